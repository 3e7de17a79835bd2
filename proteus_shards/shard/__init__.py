"""One process of queues: asyncio around the core and a store."""
