"""What tests of the Postgres store share: a schema as a backing, statements beside the store, and a way to the server that can be cut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import Any
from uuid import uuid4

from proteus_shards.cluster.model import Claim
from proteus_shards.store.contract import Store
from proteus_shards.store.postgres import PostgresStore, store_of_shard
from proteus_shards.store.postgres_errors import Doing
from proteus_shards.store.postgres_prepare import prepare
from proteus_shards.store.postgres_register import PostgresRegister
from proteus_shards.store.postgres_session import session
from proteus_shards.store.postgres_url import PostgresUrl
from proteus_shards.store.urls import read_url
from tests.servers.postgres import PostgresPlace
from tests.store.exercise_register import SHARDS

WAIT_SECONDS_MAX = 20.0


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


async def until(url: PostgresUrl, condition: str, *arguments: Any) -> None:
    """Wait until a condition holds that the server is asked for."""
    async with asyncio.timeout(WAIT_SECONDS_MAX), session(url, Doing.READING) as connection:
        while not await connection.fetchval(f"SELECT {condition}", *arguments):
            await asyncio.sleep(0.01)


def number_of(store: PostgresStore) -> int:
    """Return the server's number of a store's session."""
    pid: int = store._connection.get_server_pid()
    return pid


class PostgresBacking:
    """A schema, ready for one shard."""

    def __init__(self, place: PostgresPlace, **options: str) -> None:
        self.text = place.url(f"test {uuid4()}", **options)
        self.url = postgres_url(self.text)
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

    async def run(self, statement: str, *arguments: Any) -> list[Any]:
        """Run a statement on a session of its own."""
        return await execute(self.url, statement, *arguments)

    async def before_each_insert(self, body: str) -> None:
        """Let the server do something (PL/pgSQL) before it inserts a job."""
        await self.run(f"CREATE OR REPLACE FUNCTION hook() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body}; RETURN NEW; END $$")
        await self.run("CREATE OR REPLACE TRIGGER hook BEFORE INSERT ON job FOR EACH ROW EXECUTE FUNCTION hook()")


class ClusterBacking(PostgresBacking):
    """A schema, ready for a cluster of `SHARDS` shards."""

    def __init__(self, place: PostgresPlace) -> None:
        super().__init__(place, timeout="3")
        with ThreadPoolExecutor(1) as thread:
            thread.submit(asyncio.run, prepare(self.url, SHARDS, cluster=True)).result()

    def register(self) -> PostgresRegister:
        return PostgresRegister(self.url)

    def claimed(self, shard: int, claim: Claim | None) -> PostgresStore:
        return store_of_shard(self.url, shard, SHARDS, claim)

    def lost(self) -> PostgresRegister:
        return PostgresRegister(postgres_url("postgres://nobody@127.0.0.1:1/nowhere"))

    async def damage(self, address: str) -> None:
        await self.run("ALTER TABLE host ALTER boot DROP NOT NULL")
        await self.run("UPDATE host SET boot = NULL WHERE address = $1", address)


class Way:
    """A proxy in front of a server. `trouble` says what becomes of what passes from then on."""

    def __init__(self, target: int) -> None:
        self.port = 0
        self.trouble = ""  # "lose request": cut instead of passing it on; "lose answer": cut when it comes; "hang": answers are kept back
        self._target = target
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass bytes both ways."""
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._target)
        both = (writer, server_writer)
        tasks = {
            asyncio.ensure_future(self._pass(reader, server_writer, both, "lose request")),
            asyncio.ensure_future(self._pass(server_reader, writer, both, "lose answer")),
        }
        self._tasks |= tasks
        with suppress(asyncio.CancelledError):
            await asyncio.wait(tasks)

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, both: tuple[asyncio.StreamWriter, ...], cut: str
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                if self.trouble == cut:
                    break
                if self.trouble == "hang" and cut == "lose answer":
                    continue
                writer.write(data)
                await writer.drain()
        for end in both:
            end.transport.abort()

    def stop(self) -> None:
        """Cut everything."""
        for task in self._tasks:
            task.cancel()


@asynccontextmanager
async def way_to(url: PostgresUrl) -> AsyncIterator[Way]:
    """Open a way to the first host of a URL."""
    way = Way(url.hosts[0][1])
    server = await asyncio.start_server(way.serve, "127.0.0.1", 0)
    way.port = server.sockets[0].getsockname()[1]
    try:
        yield way
    finally:
        server.close()
        way.stop()
