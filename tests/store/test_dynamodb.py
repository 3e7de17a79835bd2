"""The DynamoDB store: the shared suite, over each double that is there."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from tests.servers.dynamodb import MotoServer
from tests.servers.dynamodb_local import DynamodbLocalServer
from tests.servers.strict_dynamodb import StrictServer
from tests.store.dynamodb_backing import DynamodbBacking, Foreign
from tests.store.exercise import Backing, KeepingExercise

pytest_plugins = ["tests.servers.dynamodb_fixtures"]

LARGE = {
    "test_another_number_of_shards_keeps_every_row_and_the_order_of_each_queue",
    "test_ten_thousand_queues",
    "test_read_finds_the_rows_that_exist",
    "test_a_load_is_ordered_by_ready_at_and_then_seq",
}
DRAWN = {"test_every_field_comes_back_byte_for_byte", "test_batches_do_what_a_dict_would"}


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


class TestForeign(KeepingExercise):
    """The shared suite on the service that the environment names, and pays for."""

    @pytest.fixture
    def new_backing(self) -> Callable[[], Backing]:
        url = os.environ.get("PROTEUS_TEST_DYNAMODB_URL")
        if url is None:
            pytest.skip("PROTEUS_TEST_DYNAMODB_URL names none")
        server = Foreign(url)
        return lambda: DynamodbBacking(server)
