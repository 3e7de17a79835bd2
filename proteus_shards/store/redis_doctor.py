"""What `proteus-shards doctor` says about a Redis store."""

from __future__ import annotations

from collections.abc import AsyncIterator

from proteus_shards.store.findings import Finding
from proteus_shards.store.redis_url import RedisUrl


async def examine(url: RedisUrl) -> AsyncIterator[Finding]:
    """Look at the server as a shard would find it. Writes nothing."""
    yield Finding("note", f"redis {url.where}")
