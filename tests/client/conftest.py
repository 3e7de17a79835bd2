"""One server for the tests of a file: what they do stays in queues of their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from proteus_shards.client import Client
from tests.conftest import Server


@pytest.fixture(scope="module")
def memory_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Return a running server whose jobs are in memory."""
    server = Server("--port", "0", "--shards", "2", "--store", "memory:", cwd=tmp_path_factory.mktemp("server"), environ={})
    yield server
    server.stop()


@pytest.fixture(scope="module")
def client(memory_server: Server) -> Iterator[Client]:
    """Return a client to look at what a worker did."""
    with Client(memory_server.url) as made:
        yield made


@pytest.fixture(params=["trio", "asyncio"])
def loop(request: pytest.FixtureRequest) -> str:
    """Return the name of an event loop."""
    return str(request.param)


@pytest.fixture
def queue(request: pytest.FixtureRequest) -> str:
    """Return a queue of the test's own."""
    return str(request.node.name)
