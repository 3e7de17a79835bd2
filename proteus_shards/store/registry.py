"""From the `store` setting to a store: the one place that knows which there are.

A store's module is loaded when a store of it is made, so that a driver need be installed only where it is used, and the supervisor, which
merely checks the setting, loads none.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from importlib import import_module
from typing import Any, Protocol, cast

from proteus_shards.cluster.model import Claim
from proteus_shards.errors import SettingError, StoreError, StoreFailed
from proteus_shards.store.contract import Store
from proteus_shards.store.dynamodb_url import DynamodbUrl
from proteus_shards.store.findings import Finding
from proteus_shards.store.postgres_url import PostgresUrl
from proteus_shards.store.redis_url import RedisUrl
from proteus_shards.store.register import Register
from proteus_shards.store.urls import MemoryUrl, SqliteUrl, StoreUrl, read_url

_MODULES: dict[type[Any], str] = {
    MemoryUrl: "memory",
    SqliteUrl: "sqlite",
    PostgresUrl: "postgres",
    RedisUrl: "redis",
    DynamodbUrl: "dynamodb",
}
_SHARED: tuple[type[Any], ...] = (
    PostgresUrl,
    RedisUrl,
    DynamodbUrl,
)  # what the hosts of a cluster can share: their modules are a `SharedKind`
_EXTRAS = {"asyncpg": "postgres", "redis": "redis", "aioboto3": "dynamodb", "aiobotocore": "dynamodb", "botocore": "dynamodb"}


class Kind(Protocol):
    """What `store/<kind>_kind.py` offers."""

    def make(self, url: StoreUrl, shard: int, shards: int) -> Store:
        """Return one shard's store, not yet open."""
        ...

    def trial(self, url: StoreUrl) -> Store:
        """Return a store, not yet open, in the same place, whose rows and epoch no shard ever meets. Closing it removes what it wrote."""
        ...

    async def prepare(self, url: StoreUrl, shards: int) -> str | None:
        """Make the place ready for so many shards, as `prepare_store` says."""
        ...

    async def prepared_shards(self, url: StoreUrl) -> int | None:
        """Return for how many shards the place was last prepared; None: never. Writes nothing."""
        ...

    def examine(self, url: StoreUrl) -> AsyncIterator[Finding]:
        """Look at the place as a shard would find it, and yield what is worth knowing. Takes no epoch and changes no row of a shard."""
        ...


class SharedKind(Kind, Protocol):
    """What it offers besides, where hosts can share such a store."""

    def make_claimed(self, url: StoreUrl, shard: int, shards: int, claim: Claim) -> Store:
        """Return one shard's store, not yet open, that takes an epoch only while the shard's holding is what the claim says."""
        ...

    def register(self, url: StoreUrl) -> Register:
        """Return the register of the hosts that share the place, not yet open."""
        ...

    async def prepare_shared(self, url: StoreUrl, shards: int) -> str | None:
        """Make the place ready for a cluster, as `prepare_store` says."""
        ...


def check_url(url: str, *, cluster: bool = False) -> None:
    """Raise `SettingError`, which names the setting, unless a store of this version can be made of the URL, and be shared by a `cluster`."""
    meant = read_url(url)
    if cluster:
        _check_shared(meant)


def can_be_shared(url: str) -> bool:
    """Say whether hosts can share a store, and servers get into each other's way there. Raises `SettingError`."""
    return isinstance(read_url(url), _SHARED)


def make_store(url: str, shard: int, shards: int, claim: Claim | None = None) -> Store:
    """Return the store of one of `shards` shards, not yet open; with a `claim`, one that opens only for it (`register.py`). Raises `SettingError`."""
    meant = read_url(url)
    if claim is not None:
        assert claim.shard == shard, "a claim of another shard"
        return _shared_kind(meant).make_claimed(meant, shard, shards, claim)
    return _kind(meant).make(meant, shard, shards)


def make_register(url: str) -> Register:
    """Return the register of the cluster that shares a store, not yet open. Raises `SettingError`."""
    meant = read_url(url)
    return _shared_kind(meant).register(meant)


def make_trial(url: str) -> Store:
    """Return a store in the same place that disturbs no shard. Raises `SettingError`."""
    meant = read_url(url)
    return _kind(meant).trial(meant)


async def prepare_store(url: str, shards: int, cluster: bool = False) -> str | None:
    """Make a store ready for `shards` shards: create it, or move its rows where it was made for another number.

    For a `cluster` several hosts may do so at once, and while any host is registered there, another number than theirs is refused. Without
    it, a place where hosts are registered is refused: it is their cluster's.

    To be run once, to its end, by a process of its own before any shard starts. Returns what was moved, in one line for a reader,
    or None. Raises `SettingError` and `StoreError`; either way, and after a crash at any moment, no row is lost and it may be run again.
    """
    meant = read_url(url)
    if cluster:
        return await _shared_kind(meant).prepare_shared(meant, shards)
    return await _kind(meant).prepare(meant, shards)


async def prepared_shards(url: str) -> int | None:
    """Return for how many shards a store was last prepared; None: never, or it keeps nothing. Raises `SettingError` and `StoreError`."""
    meant = read_url(url)
    return await _kind(meant).prepared_shards(meant)


async def check_alone(url: str) -> None:
    """Raise `StoreError` where hosts of a cluster are registered at a store: whoever opens its rows without a claim would fence them."""
    meant = read_url(url)
    if not isinstance(meant, _SHARED) or await _kind(meant).prepared_shards(meant) is None:
        return
    register = _shared_kind(meant).register(meant)
    try:
        await register.open()
        hosts = [host.address for host in (await register.look()).hosts]
    except StoreFailed:  # of an older version, which knows no hosts; or of what opening the rows tells as well
        return
    finally:
        await register.close()
    if hosts:
        raise StoreError(
            f"the store is shared by the hosts {', '.join(hosts)} of a cluster; nothing was done. Stop them all in order; one that is gone for good is "
            "removed by `proteus-shards cluster forget`"
        )


def examine_store(url: str) -> AsyncIterator[Finding]:
    """Look at a store and yield what is worth knowing. Raises `SettingError`; what is wrong with the store is a finding."""
    meant = read_url(url)
    return _kind(meant).examine(meant)


def _check_shared(url: StoreUrl) -> None:
    if not isinstance(url, _SHARED):
        raise SettingError(
            f"cluster: hosts cannot share a {_MODULES[type(url)]} store: name one that they can (Postgres, Redis or DynamoDB)"
        )


def _shared_kind(url: StoreUrl) -> SharedKind:
    _check_shared(url)
    return cast("SharedKind", _kind(url))


def _kind(url: StoreUrl) -> Kind:
    name = _MODULES[type(url)]
    try:
        return cast("Kind", import_module(f"proteus_shards.store.{name}_kind"))
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        raise SettingError(
            f"store: {name} needs the extra {extra}, which brings a driver that is not installed: pip install '.[{extra}]' in the clone"
        ) from error
