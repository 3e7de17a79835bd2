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

# the strict double runs all; these take the others too long
LONG = {
    "test_ten_thousand_queues",
    "test_every_field_comes_back_byte_for_byte",
    "test_batches_do_what_a_dict_would",
    "test_records_do_what_a_dict_would",
}
# moto copies all of its data for each transaction, and counts a binary by its base64 where it is updated
LARGE = {
    "test_another_number_of_shards_keeps_every_row_and_the_order_of_each_queue",
    "test_read_finds_the_rows_that_exist",
    "test_a_load_is_ordered_by_ready_at_and_then_seq",
    "test_epochs_only_grow_whatever_the_number_of_shards",
    "test_a_load_of_large_rows_comes_in_chunks_that_fit_memory",
    "test_a_batch_as_large_as_the_store_allows_is_taken",
    "test_a_batch_as_large_as_the_store_allows_may_be_of_rows_and_records",
    "test_large_records_are_loaded_in_chunks_that_fit_memory",
    "test_many_records_are_written_found_and_loaded",
    "test_another_number_of_shards_keeps_every_record_where_its_slot_is",
}


class TestStrict(KeepingExercise):
    """The whole suite on the strict double."""

    @pytest.fixture
    def new_backing(self, strict_dynamodb: StrictServer) -> Callable[[], Backing]:
        return lambda: DynamodbBacking(strict_dynamodb)


class TestMoto(KeepingExercise):
    """The shared suite on moto, but for what is large or long."""

    @pytest.fixture
    def new_backing(self, moto_dynamodb: MotoServer, request: pytest.FixtureRequest) -> Callable[[], Backing]:
        if request.node.originalname in LARGE | LONG:
            pytest.skip("too large or too long for moto; the strict double runs it")
        moto_dynamodb.reset()
        return lambda: DynamodbBacking(moto_dynamodb)


class TestLocal(KeepingExercise):
    """The shared suite on DynamoDB Local, but for what takes long."""

    @pytest.fixture
    def new_backing(self, local_dynamodb: DynamodbLocalServer, request: pytest.FixtureRequest) -> Callable[[], Backing]:
        if request.node.originalname in LONG:
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
