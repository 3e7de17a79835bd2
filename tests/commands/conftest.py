"""One server for the tests of a file, and the command line against it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import pytest

from proteus_shards.cli import main
from proteus_shards.client import Client
from tests.conftest import Server


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """Return what it printed, where that is one line of JSON."""
        return json.loads(self.out)


class RunCommand(Protocol):
    """Runs a command against the server."""

    def __call__(self, *arguments: str) -> Ended: ...


@pytest.fixture(scope="module")
def memory_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Return a running server whose jobs are in memory."""
    server = Server("--port", "0", "--shards", "2", "--store", "memory:", cwd=tmp_path_factory.mktemp("server"), environ={})
    yield server
    server.stop()


@pytest.fixture(scope="module")
def client(memory_server: Server) -> Iterator[Client]:
    """Return a client to look at what commands did."""
    with Client(memory_server.url) as made:
        yield made


@pytest.fixture
def queue(request: pytest.FixtureRequest) -> str:
    """Return a queue of the test's own."""
    return str(request.node.name)


@pytest.fixture
def command(memory_server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunCommand:
    """Return a function that runs a command in this process."""
    monkeypatch.setenv("PROTEUS_URL", memory_server.url)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> Ended:
        try:
            code = main(arguments)
        except SystemExit as ended:
            code = int(ended.code or 0)
        captured = capsys.readouterr()
        return Ended(code, captured.out, captured.err)

    return run
