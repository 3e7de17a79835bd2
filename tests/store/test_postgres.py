"""The Postgres store: the shared suite, and what an open store says and does beyond it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from uuid import uuid4

import msgspec
import pytest

from proteus_shards.core.model import Batch, Record, Row
from proteus_shards.errors import StoreError, StoreFailed, StoreRefused, StoreUnknown
from proteus_shards.store import postgres as postgres_module
from proteus_shards.store import postgres_upkeep
from proteus_shards.store.contract import Damaged, Durability
from proteus_shards.store.postgres_prepare import prepare
from proteus_shards.store.postgres_session import Facts
from proteus_shards.store.registry import make_trial
from tests.conftest import server_environ
from tests.servers.postgres import PostgresPlace, PostgresServer
from tests.store.exercise import Backing, KeepingExercise
from tests.store.postgres_backing import PostgresBacking, execute, number_of, postgres_url, until
from tests.store.rows import (
    as_dict,
    commit_all,
    deleting,
    in_asyncio,
    inserting,
    key_of,
    load_all,
    make_mark,
    make_record,
    make_row,
    marked,
    marking,
    opened,
    record_key_of,
    recording,
)


class TestPostgres(KeepingExercise):
    """The shared suite."""

    @pytest.fixture
    def new_backing(self, postgres_server: PostgresPlace) -> Callable[[], Backing]:
        return lambda: PostgresBacking(postgres_server)


@pytest.fixture
def backing(postgres_server: PostgresPlace) -> PostgresBacking:
    """Return a schema."""
    return PostgresBacking(postgres_server)


# --- durability --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "expected"),
    [("on", Durability.MACHINE), ("local", Durability.MACHINE), ("off", Durability.WEAK)],
    ids=["on", "local", "off"],
)
@in_asyncio
async def test_what_the_server_says_decides_the_durability(postgres_server: PostgresPlace, option: str, expected: Durability) -> None:
    """Before it was asked, the weakest is claimed; afterwards the terms name the settings."""
    backing = PostgresBacking(postgres_server, synchronous_commit=option)
    store = backing.store()
    assert store.durability is Durability.WEAK
    async with opened(store):
        assert store.durability is expected
        assert f"synchronous_commit={option}" in store.terms
        assert "PostgreSQL 1" in store.terms


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, Durability.MACHINE),
        ({"standbys": "*"}, Durability.REPLICA),
        ({"standbys": "*", "synchronous_commit": "remote_apply"}, Durability.REPLICA),
        ({"standbys": "*", "synchronous_commit": "remote_write"}, Durability.MACHINE),
        ({"standbys": "*", "synchronous_commit": "local"}, Durability.MACHINE),
        ({"standbys": "*", "synchronous_commit": "off"}, Durability.WEAK),
        ({"standbys": "*", "fsync": "off"}, Durability.PROCESS),
        ({"fsync": "off"}, Durability.PROCESS),
        ({"full_page_writes": "off"}, Durability.PROCESS),
        ({"data_sync_retry": "on"}, Durability.WEAK),
    ],
)
def test_each_setting_weakens_what_is_promised(changes: dict[str, str], expected: Durability) -> None:
    """A standby counts only where a commit waits until it has written."""
    facts = Facts("18.6", 180006, "UTF8", "on", "on", "on", "off", "", standby=False, timeline="00000001")

    assert expected is msgspec.structs.replace(facts, **changes).durability


@in_asyncio
async def test_a_commit_that_stopped_waiting_for_its_standby_is_unknown() -> None:
    """The server answers with success and a warning: the row is on the primary only."""
    server = PostgresServer(synchronous_standby_names="ghost")
    try:
        server.start()
        backing = PostgresBacking(server, synchronous_commit="local")  # to open a store takes a commit as well
        store = backing.store()
        async with opened(store):
            await store._connection.execute("SET synchronous_commit = on")
            pid = number_of(store)
            committing = asyncio.ensure_future(store.commit(inserting(make_row(1))))
            await until(backing.url, "wait_event = 'SyncRep' FROM pg_stat_activity WHERE pid = $1", pid)
            await backing.run("SELECT pg_cancel_backend($1)", pid)
            with pytest.raises(StoreUnknown, match="on no standby"):
                await committing
            await store.reopen()
            assert await load_all(store) == [make_row(1)]
    finally:
        server.remove()


# --- memory and store --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", ["delete", "mark", "insert"])
@in_asyncio
async def test_a_row_that_is_not_as_memory_has_it_fails_the_store(backing: PostgresBacking, wrong: str) -> None:
    """To delete or change what is not there, or insert what is: nothing of such a batch is written."""
    kept, other, gone = make_row(1), make_row(2), make_row(3)
    batch = {
        "delete": Batch([key_of(kept), key_of(gone)], [make_row(4)], [make_mark(other)]),
        "mark": Batch([key_of(kept)], [make_row(4)], [make_mark(other), make_mark(gone)]),
        "insert": Batch([key_of(kept)], [make_row(4), other], []),
    }[wrong]
    async with opened(backing.store()) as store:
        await store.commit(inserting(kept, other))
        with pytest.raises(StoreFailed, match="do not agree"):
            await store.commit(batch)
        assert await load_all(store) == [kept, other]


@in_asyncio
async def test_another_job_at_the_same_place_is_not_found(backing: PostgresBacking) -> None:
    """A read compares queue and id, too."""
    async with opened(backing.store()) as store:
        await store.commit(inserting(make_row(1)))

        assert await store.read([msgspec.structs.replace(key_of(make_row(1)), id="another")]) == {}


@in_asyncio
async def test_plans_do_not_depend_on_what_the_table_held_when_they_were_made(backing: PostgresBacking) -> None:
    """Made on an empty table that was just analyzed, they still look rows up by key when it is full."""
    await backing.run("ANALYZE job")
    async with opened(backing.store()) as store:
        for seq in range(10):  # a generic plan is made by now
            await store.commit(inserting(make_row(seq)))
            await store.commit(marking(make_mark(make_row(seq))))
            await store.commit(deleting(make_row(seq)))
        await commit_all(store, inserting(*(make_row(seq) for seq in range(100, 20_000))))
        await backing.run("SELECT pg_stat_reset_single_table_counters('job'::regclass)")
        await store.commit(marking(*(make_mark(make_row(seq)) for seq in range(100, 200))))
        await store.commit(deleting(*(make_row(seq) for seq in range(100, 200))))
        await store.read([key_of(make_row(seq)) for seq in range(200, 300)])
        await store.close()  # its counts are told when it ends
        ((scans, rows),) = await backing.run("SELECT seq_scan, idx_tup_fetch FROM pg_stat_user_tables WHERE relid = 'job'::regclass")

    assert scans == 0
    assert rows <= 400


@in_asyncio
async def test_records_are_found_by_their_key_whatever_the_table_held(backing: PostgresBacking) -> None:
    """The same of records."""
    await backing.run("ANALYZE record")
    async with opened(backing.store()) as store:
        for number in range(10):
            await store.commit(recording(make_record(f"record {number}")))
            await store.commit(recording(make_record(f"record {number}", b"new"), make_record("other", None)))
            await store.commit(recording(make_record(f"record {number}", None)))
        await commit_all(store, recording(*(make_record(f"record {number}") for number in range(100, 9000))))
        await backing.run("SELECT pg_stat_reset_single_table_counters('record'::regclass)")
        await store.commit(recording(*(make_record(f"record {number}", b"new") for number in range(100, 200))))
        await store.commit(recording(*(make_record(f"record {number}", None) for number in range(100, 200))))
        await store.read_records([record_key_of(make_record(f"record {number}")) for number in range(200, 300)])
        await store.close()
        ((scans, rows),) = await backing.run("SELECT seq_scan, idx_tup_fetch FROM pg_stat_user_tables WHERE relid = 'record'::regclass")

    assert scans == 0
    assert rows <= 400


# --- loading -----------------------------------------------------------------------------------------------------


@in_asyncio
async def test_a_load_is_bounded_in_bytes(backing: PostgresBacking, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small rows come many at a time, large ones few, whatever order they lie in."""
    monkeypatch.setattr(postgres_module, "LOAD_BYTES", 100_000)
    monkeypatch.setattr(postgres_module, "LOAD_ROWS", 200)
    sizes = [10] * 700 + [30_000, 10, 250_000, 10, 99_990] * 4 + [10] * 300
    rows = [make_row(seq, payload=bytes(size), state=bytes(size // 10)) for seq, size in enumerate(sizes)]
    async with opened(backing.store()) as store:
        await commit_all(store, inserting(*rows))
        chunks = [chunk async for chunk in store.load()]

    assert [row for chunk in chunks for row in chunk] == rows
    assert len(chunks) <= 40
    for chunk in chunks:
        loaded = [len(row.payload) + len(row.state or b"") for row in chunk if isinstance(row, Row)]
        assert len(loaded) <= 200
        assert sum(loaded) - max(loaded) <= 100_000


@in_asyncio
async def test_a_row_that_is_not_a_job_is_named_and_left(backing: PostgresBacking) -> None:
    """Someone has made a column nullable, or wider: the others are loaded."""
    rows = [make_row(seq) for seq in range(4)]
    async with opened(backing.store()) as store:
        await store.commit(inserting(*rows))
    await backing.run("ALTER TABLE job ALTER COLUMN status DROP NOT NULL, ALTER COLUMN timeout TYPE text")
    await backing.run("UPDATE job SET timeout = '60', status = NULL WHERE seq = 1")
    await backing.run("ALTER TABLE job ALTER COLUMN timeout TYPE integer USING timeout::integer")
    async with opened(backing.store()) as store:
        loaded = await load_all(store)
        with pytest.raises(StoreFailed, match="seq 1 is damaged"):
            await store.read([key_of(row) for row in rows])

    assert [rows[0], rows[2], rows[3]] == [row for row in loaded if isinstance(row, Row)]
    (damaged,) = [row for row in loaded if isinstance(row, Damaged)]
    assert (damaged.where, damaged.seq) == (f"slot {rows[1].slot}, seq 1", 1)
    assert "status" in damaged.fault


@in_asyncio
async def test_a_record_that_is_none_is_named_and_left(backing: PostgresBacking) -> None:
    """Someone has changed its name, or a column: the others are loaded."""
    records = [make_record(f"record {number}") for number in range(5)]
    async with opened(backing.store()) as store:
        await store.commit(recording(*records))
    await backing.run("ALTER TABLE record ALTER COLUMN value DROP NOT NULL")
    await backing.run("UPDATE record SET name = 'secret' WHERE name = 'record 1'")
    await backing.run("UPDATE record SET value = NULL WHERE name = 'record 3'")
    async with opened(backing.store()) as store:
        loaded = [item async for chunk in store.load_records() for item in chunk]
        for number, fault in ((1, "digest is not that of its name"), (3, "at value")):
            with pytest.raises(StoreFailed, match=f"the record at slot {records[number].slot}, kind 1, digest .* is damaged: .*{fault}"):
                await store.read_records([record_key_of(records[number])])
        assert await store.read_records([record_key_of(records[0])]) == as_dict(records[0])

    assert as_dict(*(item for item in loaded if isinstance(item, Record))) == as_dict(records[0], records[2], records[4])
    assert len([item for item in loaded if isinstance(item, Damaged)]) == 2
    assert "secret" not in str(loaded)


@in_asyncio
async def test_a_load_that_is_given_up_leaves_the_store_usable(backing: PostgresBacking, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its snapshot ends with it."""
    monkeypatch.setattr(postgres_module, "LOAD_ROWS", 2)
    async with opened(backing.store()) as store:
        await store.commit(inserting(*(make_row(seq) for seq in range(9))))
        loading = store.load()
        await anext(loading)
        await loading.aclose()  # type: ignore[attr-defined]  # it is a generator
        await store.commit(inserting(make_row(10)))

        assert len(await load_all(store)) == 10


# --- what is not ready -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("schema", "told"), [("fresh", "no tables yet"), ("prepared", "made ready for 1 shards, not 2")])
@in_asyncio
async def test_a_schema_that_is_not_ready_is_refused_for_good(postgres_server: PostgresPlace, schema: str, told: str) -> None:
    """The message says what to do."""
    backing = PostgresBacking(postgres_server)
    url = backing.url if schema == "prepared" else msgspec.structs.replace(backing.url, schema=f"fresh {uuid4()}")
    store = postgres_module.store_of_shard(url, 0, 2)
    with pytest.raises(StoreError, match=told) as raised:
        await store.open()
    await store.close()

    assert not isinstance(raised.value, StoreRefused)


def test_without_the_driver_the_message_names_the_extra() -> None:
    """Only where such a store is to be made: the URL can be checked without."""
    code = (
        "import sys; sys.modules['asyncpg'] = None\n"
        "from proteus_shards.errors import SettingError\n"
        "from proteus_shards.store.registry import check_url, make_store\n"
        "check_url('postgres://u:secret@h/d')\n"
        "try: make_store('postgres://u:secret@h/d', 0, 1)\n"
        "except SettingError as error: print(error)"
    )

    ran = subprocess.run([sys.executable, "-c", code], env=server_environ({}), capture_output=True, text=True, check=False)

    assert (ran.stdout, ran.stderr) == (
        "store: postgres needs the extra postgres, which brings a driver that is not installed: pip install '.[postgres]' in the clone\n",
        "",
    )


# --- a trial -----------------------------------------------------------------------------------------------------


@in_asyncio
async def test_a_trial_disturbs_no_shard_and_leaves_nothing(postgres_server: PostgresPlace) -> None:
    """Not even where both have the same rows; what a killed trial left goes after an hour."""
    text = postgres_server.url(f"test {uuid4()}")
    url = postgres_url(text)
    await prepare(url, 1)
    row = make_row(1)
    async with opened(postgres_module.store_of_shard(url, 0, 1)) as shard:
        await shard.commit(inserting(row))
        abandoned = make_trial(text)
        await abandoned.open()
        await abandoned.commit(inserting(row))
        abandoned._connection.terminate()  # type: ignore[attr-defined]  # as a kill does
        await execute(url, "UPDATE lease SET taken_at = taken_at - interval '2 hours' WHERE name LIKE 'trial-%'")
        async with opened(make_trial(text)) as trial:
            await trial.commit(inserting(row, make_row(2)))
            await trial.commit(Batch([key_of(make_row(2))], [], [make_mark(row)]))
            assert await load_all(trial) == [marked(row, make_mark(row))]
            assert await trial.read([key_of(row), key_of(make_row(2))]) == {key_of(row): marked(row, make_mark(row))}
            assert len(await execute(url, "SELECT FROM job")) == 2
        await shard.commit(deleting(row))

        assert [name for (name,) in await execute(url, "SELECT name FROM lease")] == ["shard-0"]
        assert await execute(url, "SELECT FROM job") == []


@in_asyncio
async def test_a_trial_before_the_first_start_leaves_nothing_either(postgres_server: PostgresPlace) -> None:
    """It makes a schema of its own then: the number of shards is not known yet."""
    text = postgres_server.url(f"test {uuid4()}")
    url = postgres_url(text)
    count = "SELECT count(*) FROM pg_namespace WHERE nspname = $1 OR nspname LIKE 'proteus_shards_trial_%'"
    trial = make_trial(text)
    async with opened(trial):
        await trial.commit(inserting(make_row(1)))
        assert await execute(url, count, url.schema) == [(1,)]
        assert await load_all(trial) == [make_row(1)]

    assert await execute(url, count, url.schema) == [(0,)]


# --- upkeep ------------------------------------------------------------------------------------------------------


@in_asyncio
async def test_the_table_does_not_grow_with_what_has_passed_through(backing: PostgresBacking, monkeypatch: pytest.MonkeyPatch) -> None:
    """The space of jobs that are gone is used again, without waiting for autovacuum; an old job that stays is no hindrance."""
    monkeypatch.setattr(postgres_upkeep, "DEAD_ROWS_MAX", 1000)
    await backing.run("ALTER TABLE job SET (autovacuum_enabled = false)")
    payload = bytes(2000)
    async with opened(backing.store()) as store:
        assert isinstance(store, postgres_module.PostgresStore)
        await store.commit(inserting(make_row(0)))
        for start in range(1, 10_000, 500):
            rows = [make_row(seq, payload=payload) for seq in range(start, start + 500)]
            await store.commit(inserting(*rows))
            await store.commit(deleting(*rows))
            if store._upkeep._task is not None:
                await store._upkeep._task
        ((size,),) = await backing.run("SELECT pg_total_relation_size('job')")
        assert await load_all(store) == [make_row(0)]

    assert size < 6_000_000  # of 20,000,000 bytes of payloads
