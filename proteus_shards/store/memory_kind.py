"""What the registry asks of the store that keeps nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator

from proteus_shards.store.findings import Finding
from proteus_shards.store.memory import MemoryStore
from proteus_shards.store.urls import StoreUrl


def make(_url: StoreUrl, _shard: int, _shards: int) -> MemoryStore:
    """Return the store of any shard."""
    return MemoryStore()


def trial(_url: StoreUrl) -> MemoryStore:
    """Return a store."""
    return MemoryStore()


async def prepare(_url: StoreUrl, _shards: int) -> None:
    """Do nothing: there is nothing to make ready."""


async def prepared_shards(_url: StoreUrl) -> None:
    """Return None: nothing is kept, not even that."""


async def examine(_url: StoreUrl) -> AsyncIterator[Finding]:
    """Say what it is."""
    yield Finding("note", "nothing is kept: jobs live in memory, and those with persist_data are refused", "name a store that keeps rows")
