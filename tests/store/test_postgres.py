"""The Postgres store: the shared suite."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest

from proteus_shards.store.contract import Store
from proteus_shards.store.postgres import PostgresStore, store_of_shard
from proteus_shards.store.postgres_errors import Doing
from proteus_shards.store.postgres_prepare import prepare
from proteus_shards.store.postgres_session import session
from proteus_shards.store.postgres_url import PostgresUrl
from proteus_shards.store.urls import read_url
from tests.servers.postgres import PostgresPlace, postgres_server
from tests.store.exercise import Backing, KeepingExercise

__all__ = ["postgres_server"]


def postgres_url(text: str) -> PostgresUrl:
    """Return what a URL means."""
    url = read_url(text)
    assert isinstance(url, PostgresUrl)
    return url


async def execute(url: PostgresUrl, statement: str, *arguments: Any) -> list[Any]:
    """Run a statement on a session of its own."""
    async with session(url, Doing.READING) as connection:
        found: list[Any] = await connection.fetch(statement, *arguments)
        return found


class PostgresBacking:
    """A schema, ready for one shard."""

    def __init__(self, place: PostgresPlace, **options: str) -> None:
        self.url = postgres_url(place.url(f"test {uuid4()}", **options))
        with ThreadPoolExecutor(1) as thread:  # some tests make backings inside an event loop
            thread.submit(asyncio.run, prepare(self.url, 1)).result()

    def store(self, shard: int = 0, shards: int = 1) -> PostgresStore:
        return store_of_shard(self.url, shard, shards)

    async def prepare(self, shards: int) -> None:
        await prepare(self.url, shards)

    async def usurp(self, store: Store) -> None:
        assert isinstance(store, PostgresStore)
        other = self.store()
        await other.open()
        await other.close()


class TestPostgres(KeepingExercise):
    """The shared suite."""

    @pytest.fixture
    def new_backing(self, postgres_server: PostgresPlace) -> Callable[[], Backing]:
        return lambda: PostgresBacking(postgres_server)
