"""One running double of each kind for a whole test session, for any test module that names this one in its `pytest_plugins`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers import dynamodb_local
from tests.servers.dynamodb import MotoServer
from tests.servers.dynamodb_local import DynamodbLocalServer
from tests.servers.strict_dynamodb import StrictServer


@pytest.fixture(scope="session")
def strict_dynamodb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StrictServer]:
    """Return the strict double, running."""
    server = StrictServer(tmp_path_factory.mktemp("strict-dynamodb"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def moto_dynamodb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MotoServer]:
    """Return moto, running."""
    server = MotoServer(tmp_path_factory.mktemp("moto") / "log")
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def local_dynamodb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DynamodbLocalServer]:
    """Return DynamoDB Local, running."""
    if reason := dynamodb_local.missing():
        pytest.skip(reason)
    server = DynamodbLocalServer(tmp_path_factory.mktemp("dynamodb-local") / "data")
    server.start()
    yield server
    server.stop()
