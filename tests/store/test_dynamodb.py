"""The DynamoDB store: the shared suite, over each double that is there."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import pytest

from proteus_shards.store.contract import Store
from proteus_shards.store.dynamodb import DynamodbStore
from proteus_shards.store.dynamodb_prepare import prepare
from proteus_shards.store.dynamodb_url import DynamodbUrl
from proteus_shards.store.urls import read_url
from tests.servers.dynamodb import MotoServer, Process
from tests.servers.dynamodb_local import DynamodbLocalServer
from tests.servers.strict_dynamodb import StrictServer
from tests.store.exercise import Backing, KeepingExercise

pytest_plugins = ["tests.servers.dynamodb_fixtures"]

_tables = count()

LARGE = {
    "test_another_number_of_shards_keeps_every_row_and_the_order_of_each_queue",
    "test_ten_thousand_queues",
    "test_read_finds_the_rows_that_exist",
    "test_a_load_is_ordered_by_ready_at_and_then_seq",
}
DRAWN = {"test_every_field_comes_back_byte_for_byte", "test_batches_do_what_a_dict_would"}


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


class TestStrict(KeepingExercise):
    """The whole suite on the strict double."""

    @pytest.fixture
    def new_backing(self, strict_dynamodb: StrictServer) -> Callable[[], Backing]:
        return lambda: DynamodbBacking(strict_dynamodb)


class TestMoto(KeepingExercise):
    """The shared suite on moto, but for what is large or long: it copies all of its data for each transaction."""

    @pytest.fixture
    def new_backing(self, moto_dynamodb: MotoServer, request: pytest.FixtureRequest) -> Callable[[], Backing]:
        if request.node.originalname in LARGE | DRAWN:
            pytest.skip("takes moto too long; the strict double and DynamoDB Local run it")
        moto_dynamodb.reset()
        return lambda: DynamodbBacking(moto_dynamodb)


class TestLocal(KeepingExercise):
    """The shared suite on DynamoDB Local, but for the tests of many examples."""

    @pytest.fixture
    def new_backing(self, local_dynamodb: DynamodbLocalServer, request: pytest.FixtureRequest) -> Callable[[], Backing]:
        if request.node.originalname in DRAWN:
            pytest.skip("takes too long; the strict double runs it")
        return lambda: DynamodbBacking(local_dynamodb)
