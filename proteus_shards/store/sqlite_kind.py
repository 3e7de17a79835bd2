"""What the registry asks of SQLite."""

from __future__ import annotations

from collections.abc import AsyncIterator

from proteus_shards.errors import StoreError
from proteus_shards.store.findings import Finding
from proteus_shards.store.sqlite import SqliteStore
from proteus_shards.store.sqlite_doctor import examine_folder
from proteus_shards.store.sqlite_file import translated
from proteus_shards.store.sqlite_folder import MANIFEST, generations, read_manifest
from proteus_shards.store.sqlite_prepare import prepare as prepare_folder
from proteus_shards.store.sqlite_trial import SqliteTrial
from proteus_shards.store.urls import SqliteUrl, StoreUrl


def make(url: StoreUrl, shard: int, shards: int) -> SqliteStore:
    """Return the store of one shard."""
    assert isinstance(url, SqliteUrl)
    return SqliteStore(url, shard, shards)


def trial(url: StoreUrl) -> SqliteTrial:
    """Return a store in a folder of its own."""
    assert isinstance(url, SqliteUrl)
    return SqliteTrial(url)


async def prepare(url: StoreUrl, shards: int) -> str | None:
    """Create the folder and its files, or move the rows."""
    assert isinstance(url, SqliteUrl)
    return prepare_folder(url, shards)


async def prepared_shards(url: StoreUrl) -> int | None:
    """Return what the manifest says. Raises `StoreError` where it is lost."""
    assert isinstance(url, SqliteUrl)
    with translated(url.folder):
        manifest = read_manifest(url.folder)
        if manifest is None and url.folder.is_dir() and (lost := generations(url.folder)):
            raise StoreError(f"{url.folder} holds {min(lost.values()).name} but no {MANIFEST}: restore it from a backup")
    return None if manifest is None or manifest.generation == 0 else manifest.shards


async def examine(url: StoreUrl) -> AsyncIterator[Finding]:
    """Look at the folder and its files, which stay as they are."""
    assert isinstance(url, SqliteUrl)
    for finding in examine_folder(url):
        yield finding
