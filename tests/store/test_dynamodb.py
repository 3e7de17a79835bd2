"""The DynamoDB store: the shared suite, over each double that is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count

import pytest

from proteus_shards.store.contract import Store
from proteus_shards.store.dynamodb import DynamodbStore
from proteus_shards.store.dynamodb_prepare import prepare
from proteus_shards.store.dynamodb_url import DynamodbUrl
from proteus_shards.store.urls import read_url
from tests.servers import dynamodb_local
from tests.servers.dynamodb import MotoServer, Process
from tests.servers.dynamodb_local import DynamodbLocalServer
from tests.store.exercise import Backing, KeepingExercise

_tables = count()


class DynamodbBacking:
    """A table of its own."""

    def __init__(self, server: Process) -> None:
        url = read_url(server.url(f"table-{next(_tables)}"))
        assert isinstance(url, DynamodbUrl)
        self.url = url
        self._prepared = False

    def store(self, shard: int = 0, shards: int = 1) -> DynamodbStore:
        return Prepared(self, shard, shards)

    async def prepare(self, shards: int) -> None:
        self._prepared = True
        await prepare(self.url, shards)

    async def usurp(self, store: Store) -> None:
        """Let another store take the lease."""
        assert isinstance(store, DynamodbStore)
        other = DynamodbStore(self.url, 0, 1)
        await other.open()
        await other.close()

    async def have_table(self) -> None:
        """Make the table at its first use, as a coroutine may only then be run."""
        if not self._prepared:
            await self.prepare(1)


class Prepared(DynamodbStore):
    """A store whose table is made when it is opened."""

    def __init__(self, backing: DynamodbBacking, shard: int, shards: int) -> None:
        super().__init__(backing.url, shard, shards)
        self._backing = backing

    async def open(self) -> int:
        await self._backing.have_table()
        return await super().open()


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MotoServer]:
    """Return moto, running."""
    server = MotoServer(tmp_path_factory.mktemp("moto") / "log")
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DynamodbLocalServer]:
    """Return DynamoDB Local, running."""
    if reason := dynamodb_local.missing():
        pytest.skip(reason)
    server = DynamodbLocalServer(tmp_path_factory.mktemp("dynamodb-local") / "data")
    server.start()
    yield server
    server.stop()


class TestMoto(KeepingExercise):
    """The shared suite on moto."""

    @pytest.fixture
    def new_backing(self, moto: MotoServer) -> Callable[[], Backing]:
        return lambda: DynamodbBacking(moto)


class TestLocal(KeepingExercise):
    """The shared suite on DynamoDB Local."""

    @pytest.fixture
    def new_backing(self, local: DynamodbLocalServer) -> Callable[[], Backing]:
        return lambda: DynamodbBacking(local)
