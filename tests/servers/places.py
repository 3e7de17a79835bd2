"""A place in each kind of store for tests of the whole product: one server a kind and session, a place of its own for each test.

A test file that wants them imports `place` and what it names in `__all__`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import pytest

from tests.servers import redis
from tests.servers.dynamodb import MotoServer, pretend_credentials
from tests.servers.postgres import PostgresServer

KINDS = ("sqlite", "postgres", "redis", "dynamodb")

Place = Callable[[str], str]  # from a name to the URL of a place of that name


class Places:
    """Starts the server of a kind when it is first asked for, and stops all of them at the end."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ends = ExitStack()
        self._places: dict[str, Place] = {}

    def of(self, kind: str) -> Place:
        """Return the places of a kind."""
        if kind not in self._places:
            self._places[kind] = getattr(self, f"_{kind}")()
        return self._places[kind]

    def close(self) -> None:
        """Stop all servers."""
        self._ends.close()

    def _sqlite(self) -> Place:
        return lambda name: f"sqlite:///{self._folder / name}"

    def _postgres(self) -> Place:
        if foreign := os.environ.get("PROTEUS_TEST_POSTGRES_URL"):
            return lambda name: f"{foreign}{'&' if '?' in foreign else '?'}schema={name}"
        server = PostgresServer()
        self._ends.callback(server.remove)
        server.start()
        return server.url

    def _redis(self) -> Place:
        if foreign := os.environ.get("PROTEUS_TEST_REDIS_URL"):
            return lambda name: f"{foreign}{'&' if '?' in foreign else '?'}prefix={name}"
        binary = next(iter(redis.binaries().values()))
        return self._ends.enter_context(redis.running(binary, self._folder)).url

    def _dynamodb(self) -> Place:
        pretend_credentials()
        server = MotoServer(self._folder / "moto.log")
        self._ends.callback(server.stop)
        server.start()
        return server.url


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    """Return the places of all kinds."""
    found = Places(tmp_path_factory.mktemp("places"))
    yield found
    found.close()


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, places: Places) -> str:
    """Return the URL of a new place, of one kind after the other."""
    return places.of(request.param)(f"test-{uuid4().hex[:12]}")
