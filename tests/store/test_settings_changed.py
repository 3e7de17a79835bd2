"""A server whose settings are changed while a shard writes to it: the next look at them, which a commit takes, says so."""

from __future__ import annotations

import asyncio

import pytest

from proteus_shards.core.model import Batch
from proteus_shards.errors import StoreError, StoreRefused
from proteus_shards.store.postgres import PostgresStore
from proteus_shards.store.redis import RedisStore
from tests.servers.postgres import PostgresServer
from tests.servers.redis import StartRedis
from tests.store.postgres_backing import PostgresBacking, execute
from tests.store.redis_backing import RedisBacking, owning
from tests.store.rows import in_asyncio, inserting, load_all, make_row, opened

WAIT_SECONDS_MAX = 20.0


def let_a_minute_pass(store: RedisStore | PostgresStore) -> None:
    """Make the next commit look."""
    store._look_due = 0.0


@in_asyncio
async def test_redis_that_syncs_less_than_it_did_refuses_one_commit(start_redis: StartRedis) -> None:
    """Not before the minute is over; nothing of that commit is written; the next connection knows, and what is stronger again needs none."""
    server = start_redis()
    async with owning(RedisBacking(server).store()) as store:
        assert str(store.durability) == "machine"
        server.ask("CONFIG", "SET", "appendfsync", "everysec")
        await store.commit(inserting(make_row(1)))
        let_a_minute_pass(store)
        with pytest.raises(StoreRefused, match=r"its durability is weak now, and was machine .*appendfsync=everysec"):
            await store.commit(inserting(make_row(2)))
        assert await store.reopen()
        assert str(store.durability) == "weak"
        await store.commit(inserting(make_row(3)))
        server.ask("CONFIG", "SET", "appendfsync", "always")
        let_a_minute_pass(store)
        await store.commit(inserting(make_row(4)))
        assert str(store.durability) == "machine"
        assert "appendfsync=always" in store.terms
        assert await load_all(store) == [make_row(1), make_row(3), make_row(4)]


@in_asyncio
async def test_redis_that_may_throw_rows_away_by_now_takes_none(start_redis: StartRedis) -> None:
    """Until it is set back."""
    server = start_redis(maxmemory="100mb")
    async with owning(RedisBacking(server).store()) as store:
        server.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        let_a_minute_pass(store)
        for act in (store.commit(inserting(make_row(1))), store.reopen()):
            with pytest.raises(StoreRefused, match="may throw rows away"):
                await act
        server.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
        await store.reopen()
        await store.commit(inserting(make_row(2)))
        assert await load_all(store) == [make_row(2)]


@in_asyncio
async def test_redis_is_not_asked_at_each_commit(start_redis: StartRedis) -> None:
    """One look is for all commits of a minute."""
    server = start_redis()
    async with owning(RedisBacking(server).store()) as store:
        server.ask("CONFIG", "RESETSTAT")
        for _ in range(20):
            await store.commit(Batch([], [], []))
        assert b"cmdstat_info" not in server.ask("INFO", "commandstats")
        let_a_minute_pass(store)
        for _ in range(20):
            await store.commit(Batch([], [], []))
        assert b"cmdstat_info:calls=2," in server.ask("INFO", "commandstats")


@in_asyncio
async def test_postgres_that_writes_less_than_it_did_refuses_one_commit(own_postgres: PostgresServer) -> None:
    """And goes on as what it is, once it was connected to again."""
    backing = PostgresBacking(own_postgres)
    async with opened(backing.store()) as store:
        assert isinstance(store, PostgresStore)
        assert str(store.durability) == "machine"
        await execute(backing.url, "ALTER SYSTEM SET full_page_writes = off")
        await execute(backing.url, "SELECT pg_reload_conf()")
        refused: StoreError | None = None
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            while refused is None:  # the server's processes read their settings each when they come to it
                let_a_minute_pass(store)
                try:
                    await store.commit(Batch([], [], []))
                except StoreRefused as error:
                    refused = error
        await store.reopen()
        await store.commit(inserting(make_row(1)))
        assert str(store.durability) == "process"

    assert "the durability is process now, and was machine" in str(refused)
    assert "full_page_writes=off" in str(refused)
