"""A place in a Redis server, as the tests of the Redis store use it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from itertools import count
from typing import Any, TypeVar

import msgspec

from proteus_shards.cluster.model import Claim
from proteus_shards.store.contract import Store
from proteus_shards.store.redis import RedisStore
from proteus_shards.store.redis_place import ShardKeys, common_key, shard_keys
from proteus_shards.store.redis_prepare import prepare
from proteus_shards.store.redis_register import RedisRegister
from proteus_shards.store.redis_url import RedisUrl
from proteus_shards.store.urls import read_url
from tests.servers.redis import RedisPlace
from tests.store.exercise_register import SHARDS
from tests.store.rows import opened

_numbers = count()
_T = TypeVar("_T")


class RedisBacking:
    """A prefix of its own in a server, prepared for one shard."""

    def __init__(self, server: RedisPlace, port: int | None = None, **options: str) -> None:
        name = f"test-{next(_numbers)}"
        self.url = redis_url(server.url(name, **options) if port is None else server.url_by_way_of(port, name, **options))
        self.direct = redis_url(server.url(name, **options))  # not by way of a proxy
        apart(lambda: prepare(self.direct, 1))

    @property
    def keys(self) -> ShardKeys:
        """The keys of the one shard."""
        return shard_keys(self.url, 1, 0)

    def store(self, shard: int = 0, shards: int = 1) -> RedisStore:
        return RedisStore(self.url, shard, shards)

    async def prepare(self, shards: int) -> None:
        await prepare(self.direct, shards)

    async def usurp(self, store: Store) -> None:  # noqa: ARG002  # the lease is taken whoever has it
        other = RedisStore(self.direct, 0, 1)
        await other.open()
        await other.close()


class RedisSharedBacking:
    """A prefix of its own in a server, ready for a cluster of servers."""

    def __init__(self, server: RedisPlace, shards: int = SHARDS, **options: str) -> None:
        name = f"shared-{next(_numbers)}"
        self.url = redis_url(server.url(name, **options))
        self.shards = shards
        apart(lambda: prepare(self.url, shards, cluster=True))

    def lease(self, shard: int) -> str:
        return shard_keys(self.url, 1, shard).lease

    def register(self) -> RedisRegister:
        return RedisRegister(self.url)

    def claimed(self, shard: int, claim: Claim | None) -> RedisStore:
        return RedisStore(self.url, shard, self.shards, claim)

    def lost(self) -> RedisRegister:
        return RedisRegister(msgspec.structs.replace(self.url, nodes=(("127.0.0.1", 1),)))

    async def damage(self, address: str) -> None:
        await self.ask("HSET", common_key(self.url, "hosts"), address, b"\xc1")

    async def ask(self, command: str, key: str, *arguments: bytes | str) -> object:
        """Send a command about a key."""
        register = self.register()
        try:
            await register.open()
            (answer,) = await register._nodes.ask([(key, (command, key, *arguments))])
            return answer
        finally:
            await register.close()


def redis_url(url: str) -> RedisUrl:
    """Return what a URL means."""
    meant = read_url(url)
    assert isinstance(meant, RedisUrl)
    return meant


def apart(work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
    """Run a coroutine to its end in an event loop of its own, from inside another or not."""
    found: list[_T] = []
    thread = threading.Thread(target=lambda: found.append(asyncio.run(work())))
    thread.start()
    thread.join()
    (result,) = found
    return result


async def outcome_of(work: Awaitable[object]) -> type[BaseException] | None:
    """Return which error something ends with, if any."""
    try:
        await work
    except Exception as error:  # noqa: BLE001  # whichever it is
        return type(error)
    return None


@asynccontextmanager
async def owning(store: RedisStore) -> AsyncIterator[RedisStore]:
    """Open a store, and close it at the end: as `opened` does, but it stays known as what it is."""
    async with opened(store):
        yield store
