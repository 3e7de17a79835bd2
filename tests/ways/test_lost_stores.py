"""A store that a running server loses: it came back empty, or its place was dropped. The server begins anew by itself."""

from __future__ import annotations

import asyncio
from itertools import count
from pathlib import Path

import asyncpg

from proteus_shards.core.placement import shard_of, slot_of
from tests.conftest import Server, StartServer, eventually
from tests.servers import redis
from tests.servers.postgres import PostgresServer

QUEUES = [next(queue for queue in map(str, count()) if shard_of(slot_of(queue), 2) == shard) for shard in range(2)]
IN_MEMORY = next(queue for queue in (f"in memory {number}" for number in count()) if shard_of(slot_of(queue), 2) == 1)


def enqueue(server: Server, name: str, queue: str, *, persist: bool = True) -> int:
    """Enqueue a job, and return the status."""
    return server.request("POST", "/enqueue", {"id": name, "queue": queue, "timeout": 600, "persist_data": persist}).status


def fill(server: Server) -> None:
    """Give each shard a job that is kept, and one of them another that is not."""
    assert [enqueue(server, "before", queue) for queue in QUEUES] == [202, 202]
    assert enqueue(server, "in memory", IN_MEMORY, persist=False) == 202


def check_that_it_begins_anew(server: Server) -> None:
    """See that persisted jobs are accepted again, and that a shard which had nothing to do with the store meanwhile has its jobs in memory."""
    names = map(str, count())
    eventually(lambda: enqueue(server, next(names), QUEUES[0]) == 202, 40)
    assert server.request("GET", f"/next?queue={IN_MEMORY.replace(' ', '+')}").json()["id"] == "in memory"
    eventually(lambda: enqueue(server, next(names), QUEUES[1]) == 202, 40)
    assert "the store is empty and is prepared anew" in server.log()
    assert server.request("GET", "/ready").status == 200


def test_a_redis_that_was_restarted_without_its_data(start_server: StartServer, tmp_path: Path) -> None:
    """Within seconds persisted jobs are accepted again."""
    store = redis.RedisServer(next(iter(redis.binaries().values())), tmp_path / "redis", {"appendonly": "no"})
    store.start()
    try:
        server = start_server("--store", store.url("lost"))
        fill(server)

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
        fill(server)

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
