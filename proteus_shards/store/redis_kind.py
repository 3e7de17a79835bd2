"""What the registry asks of Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator

from proteus_shards.cluster.model import Claim
from proteus_shards.store import redis_doctor, redis_prepare
from proteus_shards.store.findings import Finding
from proteus_shards.store.redis import RedisStore
from proteus_shards.store.redis_register import RedisRegister
from proteus_shards.store.redis_url import RedisUrl
from proteus_shards.store.urls import StoreUrl


def make(url: StoreUrl, shard: int, shards: int) -> RedisStore:
    """Return the store of one shard."""
    assert isinstance(url, RedisUrl)
    return RedisStore(url, shard, shards)


def make_claimed(url: StoreUrl, shard: int, shards: int, claim: Claim) -> RedisStore:
    """Return the store of one shard that opens only for a claim."""
    assert isinstance(url, RedisUrl)
    return RedisStore(url, shard, shards, claim)


def register(url: StoreUrl) -> RedisRegister:
    """Return the register of the hosts."""
    assert isinstance(url, RedisUrl)
    return RedisRegister(url)


def trial(url: StoreUrl) -> RedisStore:
    """Return a store with keys of its own."""
    assert isinstance(url, RedisUrl)
    return RedisStore(url, 0, None)


async def prepare(url: StoreUrl, shards: int) -> str | None:
    """Make the keys of so many shards, or move the rows."""
    assert isinstance(url, RedisUrl)
    return await redis_prepare.prepare(url, shards)


async def prepare_shared(url: StoreUrl, shards: int) -> str | None:
    """Do the same for a cluster of servers."""
    assert isinstance(url, RedisUrl)
    return await redis_prepare.prepare(url, shards, cluster=True)


async def prepared_shards(url: StoreUrl) -> int | None:
    """Return what the manifest says."""
    assert isinstance(url, RedisUrl)
    return await redis_prepare.prepared_shards(url)


def examine(url: StoreUrl) -> AsyncIterator[Finding]:
    """Look at the server and at what is there of ours."""
    assert isinstance(url, RedisUrl)
    return redis_doctor.examine(url)
