"""A Redis server whose memory is full, or evicts: what it refuses, what passes, and what is in the store afterwards."""

from __future__ import annotations

import pytest

from proteus_shards.core.model import Batch, Row
from proteus_shards.errors import StoreError, StoreRefused
from proteus_shards.store.redis import RedisStore
from tests.servers.redis import StartRedis
from tests.store.redis_backing import RedisBacking, owning
from tests.store.rows import (
    as_dict,
    deleting,
    in_asyncio,
    inserting,
    key_of,
    load_all,
    load_records,
    make_mark,
    make_record,
    make_row,
    marked,
    marking,
    recording,
)


async def fill(store: RedisStore, seq: int = 1000) -> list[Row]:
    """Insert rows of 100 KB until the server refuses one; return those that it took."""
    taken: list[Row] = []
    while len(taken) < 1000:
        row = make_row(seq + len(taken), payload=b"x" * 100_000)
        try:
            await store.commit(inserting(row))
        except StoreRefused as refusal:
            assert "maxmemory" in str(refusal)  # noqa: PT017  # it is one of many, of which the last one counts
            return taken
        taken.append(row)
    pytest.fail("the memory was never full")


@in_asyncio
async def test_a_full_memory_refuses_what_adds_and_lets_jobs_be_delivered_and_completed(start_redis: StartRedis) -> None:
    """A refused batch leaves nothing, not even its deletes; a batch that frees as much as it adds passes; all goes on once there is room."""
    server = start_redis(maxmemory="6mb")
    backing = RedisBacking(server)
    async with owning(backing.store()) as store:
        rows = await fill(store)
        first, second, third = rows[:3]
        mark = make_mark(first)
        more = make_row(1, payload=bytes(150_000))
        for batch in (inserting(more), Batch([key_of(second)], [more], []), marking(make_mark(third, state_set=True, state=bytes(50_000)))):
            with pytest.raises(StoreRefused):
                await store.commit(batch)
        await store.commit(marking(mark))
        assert await store.read([key_of(row) for row in [first, second, third, more]]) == {
            key_of(first): marked(first, mark),
            key_of(second): second,
            key_of(third): third,
        }

        assert await store.reopen() > 1
        swapped = make_row(2, payload=bytes(90_000))
        await store.commit(Batch([key_of(first)], [swapped], []))
        for row in rows[1:-1]:
            await store.commit(deleting(row))
        await store.commit(inserting(more))
        assert await store.read([key_of(row) for row in [swapped, more]]) == {key_of(swapped): swapped, key_of(more): more}


@in_asyncio
async def test_a_full_memory_refuses_records_and_extras_that_add(start_redis: StartRedis) -> None:
    """A batch with a larger record or large extras is refused as a whole; small extras pass, and so does a record that shrinks or goes."""
    server = start_redis(maxmemory="6mb")
    backing = RedisBacking(server)
    large, small = make_record("a", bytes(100_000)), make_record("a", bytes(90_000))
    async with owning(backing.store()) as store:
        await store.commit(recording(large))
        first, *_ = await fill(store)
        more = make_record("b", bytes(150_000))
        for batch in (
            recording(more),
            Batch([key_of(first)], [], [], [more]),
            recording(make_record("a", bytes(200_000))),
            marking(make_mark(first, extras_set=True, extras=bytes(50_000))),
        ):
            with pytest.raises(StoreRefused):
                await store.commit(batch)
        assert await load_records(store) == as_dict(large)
        mark = make_mark(first, extras_set=True, extras=bytes(900))
        await store.commit(marking(mark))
        await store.commit(recording(small))
        assert await store.read([key_of(first)]) == {key_of(first): marked(first, mark)}
        assert await load_records(store) == as_dict(small)
        await store.commit(recording(make_record("a", None)))
        assert await load_records(store) == {}


@in_asyncio
async def test_a_new_owner_recovers_from_a_full_memory(start_redis: StartRedis) -> None:
    """Taking the rows over writes, too, and passes."""
    server = start_redis(maxmemory="6mb")
    backing = RedisBacking(server)
    async with owning(backing.store()) as store:
        rows = await fill(store)
    async with owning(backing.store()) as store:
        assert await load_all(store) == rows
        await store.commit(deleting(*rows))


@in_asyncio
async def test_a_move_without_the_memory_for_it_changes_nothing(start_redis: StartRedis) -> None:
    """It is refused, and the old number of shards goes on."""
    server = start_redis(maxmemory="6mb")
    backing = RedisBacking(server)
    async with owning(backing.store()) as store:
        rows = await fill(store)
    with pytest.raises(StoreRefused, match="as much memory again"):
        await backing.prepare(3)
    await backing.prepare(1)
    async with owning(backing.store()) as store:
        assert await load_all(store) == rows
    assert {b"1", b"0"} >= {await count_keys(backing, generation) for generation in (2, 3)}


async def count_keys(backing: RedisBacking, generation: int) -> bytes:
    """Return how many leases there are of a generation."""
    async with owning(backing.store()) as store:
        return b"%d" % len(await store._wire.call("KEYS", f"*:g{generation}:*"))


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
@in_asyncio
async def test_a_server_that_may_throw_rows_away_is_refused_unless_that_is_allowed(start_redis: StartRedis, policy: str) -> None:
    """At the start for good; later it may be set back, and until then the store is away. Without a maxmemory the policy has no meaning."""
    server = start_redis(maxmemory_policy=policy)
    backing, lenient = RedisBacking(server), RedisBacking(server, allow_eviction="yes")
    async with owning(backing.store()) as store:
        await store.commit(inserting(make_row(1)))
        server.ask("CONFIG", "SET", "maxmemory", "100mb")
        with pytest.raises(StoreRefused, match=f"maxmemory-policy {policy}.*allow_eviction=yes"):
            await store.reopen()
    with pytest.raises(StoreError, match=f"maxmemory-policy {policy}.*allow_eviction=yes") as raised:
        await backing.store().open()
    async with owning(lenient.store()) as store:
        await store.commit(inserting(make_row(1)))

    assert not isinstance(raised.value, StoreRefused)
