"""One server for the tests of a file: what they do stays in queues of their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import Server


@pytest.fixture(scope="module")
def memory_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Return a running server whose jobs are in memory."""
    server = Server("--port", "0", "--shards", "2", "--store", "memory:", cwd=tmp_path_factory.mktemp("server"), environ={})
    yield server
    server.stop()
