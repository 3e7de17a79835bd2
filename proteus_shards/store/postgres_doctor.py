"""Looking at a Postgres server as a shard would find it."""

from __future__ import annotations

from collections.abc import AsyncIterator

from proteus_shards.store.findings import Finding
from proteus_shards.store.postgres_url import PostgresUrl


async def examine(url: PostgresUrl) -> AsyncIterator[Finding]:
    """Yield what is worth knowing."""
    yield Finding("note", repr(url))
