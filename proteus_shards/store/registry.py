"""From the `store` setting to a store: the one place that knows which there are.

A store's module is loaded when a store of it is made, so that a driver need be installed only where it is used, and the supervisor, which
merely checks the setting, loads none.
"""

from __future__ import annotations

from proteus_shards.store.contract import Store
from proteus_shards.store.urls import MemoryUrl, SqliteUrl, read_url


def check_url(url: str) -> None:
    """Raise `SettingError`, which names the setting, unless a store of this version can be made of the URL."""
    read_url(url)


def make_store(url: str, shard: int, shards: int) -> Store:
    """Return the store of one of `shards` shards, not yet open. Raises `SettingError`."""
    match read_url(url):
        case MemoryUrl():
            from proteus_shards.store.memory import MemoryStore  # noqa: PLC0415  # loaded where it is used

            return MemoryStore()
        case SqliteUrl() as meant:
            from proteus_shards.store.sqlite import SqliteStore  # noqa: PLC0415

            return SqliteStore(meant, shard, shards)


async def prepare_store(url: str, shards: int) -> str | None:
    """Make a store ready for `shards` shards: create it, or move its rows where it was made for another number.

    To be run once, to its end, by a process of its own before any shard starts. Returns what was moved, in one line for a reader,
    or None. Raises `SettingError` and `StoreError`; either way, and after a crash at any moment, no row is lost and it may be run again.
    """
    match read_url(url):
        case MemoryUrl():
            return None
        case SqliteUrl() as meant:
            from proteus_shards.store.sqlite_prepare import prepare  # noqa: PLC0415

            return prepare(meant, shards)
