"""Two owners of the same rows in Postgres: the older one can write nothing, whatever it was doing when the newer one came."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable

import msgspec
import psutil
import pytest

from proteus_shards.core.model import Batch
from proteus_shards.errors import StoreError, StoreFailed, StoreFenced, StoreRefused, StoreUnknown
from proteus_shards.store import postgres as postgres_module
from proteus_shards.store.contract import Damaged
from proteus_shards.store.postgres import PostgresStore
from proteus_shards.store.postgres_errors import Doing
from proteus_shards.store.postgres_session import connect, query, session
from tests.conftest import server_environ
from tests.servers.postgres import PostgresPlace, PostgresServer
from tests.store.postgres_backing import PostgresBacking, number_of, until
from tests.store.rows import in_asyncio, inserting, key_of, load_all, make_row, opened

TAKEOVERS = 12
WRITERS = 4
GATE = "SELECT pg_advisory_lock(hashtext(current_schema()))"  # of each schema its own
WAIT_AT_GATE = "PERFORM pg_advisory_xact_lock_shared(hashtext(TG_TABLE_SCHEMA))"


@pytest.fixture
def backing(postgres_server: PostgresPlace) -> PostgresBacking:
    """Return a schema whose stores wait for a lock for a third of a second."""
    return PostgresBacking(postgres_server, timeout="3")


async def twin_of(store: PostgresStore, backing: PostgresBacking) -> PostgresStore:
    """Return another session of the same owner, as if one owner had several commits under way."""
    twin = backing.store()
    twin._owner, twin._epoch = store._owner, store._epoch
    twin._connection = await connect(backing.url, Doing.OPENING)
    return twin


@in_asyncio
async def test_no_commit_of_an_older_owner_comes_after_the_newer_one_has_loaded(backing: PostgresBacking) -> None:
    """Several writers against takeovers in a row: what each new owner loads is all that the older one ever wrote."""
    numbers = iter(range(1_000_000))

    async def write(store: PostgresStore) -> StoreError:
        while True:
            try:
                await store.commit(inserting(*(make_row(next(numbers)) for _ in range(5))))
            except StoreError as error:
                return error

    store = backing.store()
    await store.open()
    for _ in range(TAKEOVERS):
        stores = [store, *[await twin_of(store, backing) for _ in range(WRITERS - 1)]]
        writing = [asyncio.ensure_future(write(each)) for each in stores]
        await asyncio.sleep(0)
        before = await backing.run("SELECT count(*) FROM job")
        await until(backing.url, "count(*) > $1 FROM job", before[0][0] + 20)
        heir = backing.store()
        await heir.open()
        loaded = await load_all(heir)
        assert [type(error) for error in await asyncio.gather(*writing)] == [StoreFenced] * WRITERS
        assert await load_all(heir) == loaded
        for each in stores:
            await each.close()
        store = heir
    await store.close()


@pytest.mark.parametrize("statement", ["commit", "commit_inserts"])
@pytest.mark.parametrize("locked", [True, False], ids=["with FOR SHARE", "without"])
@in_asyncio
async def test_it_is_the_lock_on_the_lease_that_keeps_a_late_commit_out(
    backing: PostgresBacking, monkeypatch: pytest.MonkeyPatch, statement: str, locked: bool
) -> None:
    """A commit that has passed the fence is still writing when a new owner comes. Without the lock it appears after the load."""
    if not locked:
        without = query(statement).replace(" FOR SHARE", "")
        assert without != query(statement)
        monkeypatch.setattr(postgres_module, "query", lambda name: without if name == statement else query(name))
    old, new = make_row(1), make_row(2)
    async with session(backing.url, Doing.READING) as gate, opened(backing.store()) as store:
        assert isinstance(store, PostgresStore)
        await store.commit(inserting(old))
        await backing.before_each_insert(WAIT_AT_GATE)
        await gate.execute(GATE)
        await store._connection.execute("SET lock_timeout = 0")  # it would not wait at the gate for long
        pid = number_of(store)
        batch = Batch([key_of(old)] if statement == "commit" else [], [new], [])
        committing = asyncio.ensure_future(store.commit(batch))
        await until(backing.url, "wait_event = 'advisory' FROM pg_stat_activity WHERE pid = $1", pid)
        async with opened(backing.store()) as heir:
            loaded = await load_all(heir)
            await gate.execute("SELECT pg_advisory_unlock_all()")
            (outcome,) = await asyncio.gather(committing, return_exceptions=True)
            later = await load_all(heir)

    assert loaded == [old]
    assert type(outcome) is (StoreUnknown if locked else type(None))
    assert (later == loaded) is locked


@in_asyncio
async def test_an_owner_that_is_stuck_with_the_lock_is_ended(backing: PostgresBacking) -> None:
    """Its session is silent inside a transaction, as one is whose process was stopped with half a statement sent."""
    async with opened(backing.store()) as store, asyncio.timeout(20):
        assert isinstance(store, PostgresStore)
        await store._connection.execute("BEGIN; SELECT FROM lease FOR SHARE")
        async with opened(backing.store()) as heir:
            with pytest.raises((StoreUnknown, StoreRefused)):
                await store.commit(inserting(make_row(1)))
            with pytest.raises(StoreFenced):
                await store.reopen()
            await heir.commit(inserting(make_row(2)))
            assert await load_all(heir) == [make_row(2)]


@in_asyncio
async def test_a_takeover_is_not_held_up_by_a_server_process_that_stands_still(own_postgres: PostgresServer) -> None:
    """It cannot be ended before it goes on, and so the rows cannot be taken: that is told within seconds, and passes."""
    backing = PostgresBacking(own_postgres, timeout="3")
    async with opened(backing.store()) as store:
        assert isinstance(store, PostgresStore)
        await store._connection.execute("BEGIN; SELECT FROM lease FOR SHARE")
        frozen = psutil.Process(number_of(store))
        frozen.suspend()
        heir = backing.store()
        try:
            async with asyncio.timeout(20):
                with pytest.raises(StoreRefused):
                    await heir.open()
        finally:
            frozen.resume()
        await until(backing.url, "NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1)", frozen.pid)
        async with opened(heir):
            await heir.commit(inserting(make_row(1)))


@in_asyncio
async def test_a_session_that_only_has_the_number_of_an_old_owner_is_left_alone(backing: PostgresBacking) -> None:
    """The server gives numbers out again; the time at which the session began tells."""
    async with opened(backing.store()), session(backing.url, Doing.READING) as other:
        await other.execute("UPDATE lease SET session = pg_backend_pid()")
        async with other.transaction():
            await other.execute("SELECT FROM lease FOR SHARE")
            heir = backing.store()
            with pytest.raises(StoreRefused, match="55P03"):
                await heir.open()
            await heir.close()
            assert await other.fetchval("SELECT 1") == 1


@in_asyncio
async def test_an_owner_that_was_replaced_cannot_come_back(backing: PostgresBacking) -> None:
    """Its memory is not what is stored by now: to reopen is to end."""
    async with opened(backing.store()) as store, opened(backing.store()) as heir:
        for _ in range(2):
            with pytest.raises(StoreFenced):
                await store.reopen()
        await heir.commit(inserting(make_row(1)))


@pytest.mark.parametrize(
    "statement",
    ["UPDATE lease SET epoch = epoch - 1", "UPDATE lease SET owner = gen_random_uuid()", "DELETE FROM lease"],
    ids=["epoch", "owner", "lease"],
)
@in_asyncio
async def test_a_lease_that_went_back_in_time_fences(backing: PostgresBacking, statement: str) -> None:
    """A failover has lost the last takeover: the same epoch might be given out twice, and is not enough."""
    async with opened(backing.store()) as store:
        await store.reopen()
        await backing.run(statement)
        with pytest.raises(StoreFenced):
            await store.commit(inserting(make_row(1)))
        with pytest.raises(StoreFenced):
            await store.reopen()


@in_asyncio
async def test_after_a_promotion_everything_is_read_anew(backing: PostgresBacking) -> None:
    """The new primary may lack the last commits, and nothing else would tell."""
    async with opened(backing.store()) as store:
        assert isinstance(store, PostgresStore)
        assert store._timeline == "00000001"
        store._timeline = "00000000"
        with pytest.raises(StoreFailed, match="standby has become the primary"):
            await store.reopen()


@in_asyncio
async def test_another_number_of_shards_fences_those_of_the_old_one(backing: PostgresBacking) -> None:
    """Whatever they were about to write."""
    async with opened(backing.store()) as store:
        await backing.prepare(3)
        with pytest.raises(StoreFenced):
            await store.commit(inserting(make_row(1)))
        with pytest.raises(StoreFenced, match="3 shards"):
            await store.reopen()


WRITER = """
import asyncio, sys
from proteus_shards.errors import StoreError
from proteus_shards.store.registry import make_store
from tests.store.rows import inserting, make_row

async def main():
    store = make_store(sys.argv[1], 0, 1)
    await store.open()
    for seq in range(1_000_000):
        try:
            await store.commit(inserting(make_row(seq)))
        except StoreError as error:
            sys.stdout.write(f"{type(error).__name__}\\n")
            break
        if seq == 20:
            sys.stdout.write("writing\\n")
            sys.stdout.flush()
    await store.close()

asyncio.run(main())
"""


@pytest.fixture
def start_writer() -> Callable[[str], subprocess.Popen[str]]:
    """Return a function that starts a process which opens a store and commits until it cannot."""
    return lambda url: subprocess.Popen([sys.executable, "-c", WRITER, url], env=server_environ({}), stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("_", range(3))
def test_a_process_that_was_stopped_and_goes_on_writes_nothing(
    postgres_server: PostgresPlace, start_writer: Callable[[str], subprocess.Popen[str]], _: int
) -> None:
    """Wherever it was in its commit: the new owner comes within seconds, has all that will ever be there, and the old one ends fenced."""
    backing = PostgresBacking(postgres_server)
    text = postgres_server.url(backing.url.schema)
    with start_writer(text) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        os.kill(process.pid, signal.SIGSTOP)

        async def take_over() -> tuple[list[object], list[object]]:
            async with opened(backing.store()) as heir:
                loaded = await load_all(heir)
                os.kill(process.pid, signal.SIGCONT)
                assert process.stdout is not None
                told = await asyncio.to_thread(process.stdout.readline)
                assert told in {
                    "StoreFenced\n",
                    "StoreUnknown\n",
                    "StoreRefused\n",
                }  # the others: its session was ended while it held the lock
                return [*loaded], [*await load_all(heir)]

        try:
            loaded, later = asyncio.run(take_over())
        finally:
            os.kill(process.pid, signal.SIGCONT)

    assert len(loaded) > 20
    assert not any(isinstance(row, Damaged) for row in loaded)
    assert loaded == later


@in_asyncio
async def test_two_shards_do_not_fence_each_other(backing: PostgresBacking) -> None:
    """Each has a lease of its own."""
    await backing.prepare(2)
    first, second = make_row(1, queue="a"), make_row(2, queue="b")
    async with opened(backing.store(0, 2)) as one, opened(backing.store(1, 2)) as two:
        for row in (first, second):
            await (one if row.slot < 512 else two).commit(inserting(row))
        rows = [*await load_all(one), *await load_all(two)]

    assert msgspec.structs.asdict(first) in [msgspec.structs.asdict(row) for row in rows if not isinstance(row, Damaged)]
    assert len(rows) == 2
