"""A store that a running server loses: it came back empty, or its place was dropped. The server begins anew by itself."""

from __future__ import annotations

import asyncio
from pathlib import Path

import asyncpg

from tests.conftest import Server, StartServer, eventually
from tests.servers import redis
from tests.servers.postgres import PostgresServer


def statuses(server: Server, name: str, *, persist: bool) -> set[int]:
    """Enqueue a job in each of some queues, which are of all shards, and return what was answered."""
    return {
        server.request("POST", "/enqueue", {"id": name, "queue": f"q{number}", "timeout": 600, "persist_data": persist}).status
        for number in range(8)
    }


def check_that_it_begins_anew(server: Server) -> None:
    """See that persisted jobs are accepted again."""
    numbers = iter(range(100_000))
    eventually(lambda: statuses(server, f"{next(numbers)}", persist=True) == {202}, 40)
    assert "the store is empty and is prepared anew" in server.log()
    assert server.request("GET", "/ready").status == 200


def test_a_redis_that_was_restarted_without_its_data(start_server: StartServer, tmp_path: Path) -> None:
    """Within seconds persisted jobs are accepted again."""
    store = redis.RedisServer(next(iter(redis.binaries().values())), tmp_path / "redis", {"appendonly": "no"})
    store.start()
    try:
        server = start_server("--store", store.url("lost"))
        assert statuses(server, "before", persist=True) == {202}

        store.kill()
        store.start()
        check_that_it_begins_anew(server)
        assert server.stop() == 0
    finally:
        store.stop()


def test_a_schema_that_was_dropped(start_server: StartServer) -> None:
    """Within seconds persisted jobs are accepted again."""
    store = PostgresServer()
    try:
        store.start()
        server = start_server("--store", store.url("lost"))
        assert statuses(server, "before", persist=True) == {202}

        async def drop() -> None:
            connection = await asyncpg.connect(host=str(store.sockets), user="postgres", port=store.port, database="postgres")
            await connection.execute("DROP SCHEMA lost CASCADE")
            await connection.close()

        asyncio.run(drop())
        check_that_it_begins_anew(server)
        assert server.stop() == 0
    finally:
        store.stop()
        store.remove()
