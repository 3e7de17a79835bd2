"""The Redis store: the shared suite on each server that there is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count

import pytest

from proteus_shards.store.contract import Store
from proteus_shards.store.redis import RedisStore
from proteus_shards.store.redis_prepare import prepare
from proteus_shards.store.redis_url import RedisUrl
from proteus_shards.store.urls import read_url
from tests.servers.redis import RedisServer, binaries, running
from tests.store.exercise import Backing, KeepingExercise

_numbers = count()


class RedisBacking:
    """A prefix of its own in a server."""

    def __init__(self, server: RedisServer, **options: str) -> None:
        url = read_url(server.url(f"test-{next(_numbers)}", **options))
        assert isinstance(url, RedisUrl)
        self.url = url
        self.prepared = False

    def store(self, shard: int = 0, shards: int = 1) -> RedisStore:
        return RedisStore(self.url, shard, shards)

    async def prepare(self, shards: int) -> None:
        await prepare(self.url, shards)

    async def usurp(self, store: Store) -> None:  # noqa: ARG002  # the lease is taken whoever has it
        other = self.store()
        await other.open()
        await other.close()


@pytest.fixture(scope="session", params=list(binaries()))
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """Return a running server that no test hurts."""
    with running(binaries()[request.param], tmp_path_factory.mktemp("redis")) as started:
        yield started


class TestRedis(KeepingExercise):
    """The shared suite."""

    @pytest.fixture
    def new_backing(self, server: RedisServer) -> Callable[[], Backing]:
        def make() -> Backing:
            import asyncio
            import threading

            backing = RedisBacking(server)
            thread = threading.Thread(target=lambda: asyncio.run(backing.prepare(1)))
            thread.start()
            thread.join()
            return backing

        return make
