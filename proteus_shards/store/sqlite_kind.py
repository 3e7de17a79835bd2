"""What the registry asks of SQLite."""

from __future__ import annotations

from proteus_shards.store.sqlite import SqliteStore
from proteus_shards.store.sqlite_prepare import prepare as prepare_folder
from proteus_shards.store.urls import SqliteUrl, StoreUrl


def make(url: StoreUrl, shard: int, shards: int) -> SqliteStore:
    """Return the store of one shard."""
    assert isinstance(url, SqliteUrl)
    return SqliteStore(url, shard, shards)


async def prepare(url: StoreUrl, shards: int) -> str | None:
    """Create the folder and its files, or move the rows."""
    assert isinstance(url, SqliteUrl)
    return prepare_folder(url, shards)
