"""An ordered job runner over HTTP: a trio front, asyncio shards, and a store of your choice."""

__version__ = "0.1.0"
