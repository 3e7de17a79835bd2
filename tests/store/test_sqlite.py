"""The SQLite store: the shared suite, and what its file must look like while it works."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from proteus_shards.core.model import Batch, Record, Row
from proteus_shards.errors import StoreFailed, StoreFenced, StoreLocked, StorePermanent, StoreRefused
from proteus_shards.store import sqlite as sqlite_module
from proteus_shards.store.contract import Durability, Store
from proteus_shards.store.sqlite import SqliteStore
from proteus_shards.store.sqlite_file import fault_of, query
from proteus_shards.store.sqlite_prepare import prepare
from proteus_shards.store.urls import SqliteUrl
from tests.store.exercise import Backing, KeepingExercise
from tests.store.rows import (
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
    recording,
)


class SqliteBacking:
    """A folder."""

    def __init__(self, folder: Path) -> None:
        self.url = SqliteUrl(folder, synchronous="normal")  # what is tested here does not depend on it, and is sooner done
        prepare(self.url, 1)

    def store(self, shard: int = 0, shards: int = 1) -> SqliteStore:
        return SqliteStore(self.url, shard, shards)

    async def prepare(self, shards: int) -> None:
        prepare(self.url, shards)

    async def usurp(self, store: Store) -> None:
        """Raise the epoch underneath: as long as the lock is held, no second owner can do so by itself."""
        assert isinstance(store, SqliteStore)
        await execute(store, "UPDATE meta SET epoch = epoch + 1")


async def execute(store: SqliteStore, statement: str) -> list[Any]:
    """Run a statement on the store's own connection."""

    def run() -> list[Any]:
        assert store._db is not None
        return store._db.execute(statement).fetchall()

    return await store._call(run)


class TestSqlite(KeepingExercise):
    """The shared suite."""

    @pytest.fixture
    def new_backing(self, tmp_path: Path) -> Callable[[], Backing]:
        numbers = count()
        return lambda: SqliteBacking(tmp_path / f"store-{next(numbers)}")


@pytest.fixture
def backing(tmp_path: Path) -> SqliteBacking:
    """Return a prepared folder."""
    return SqliteBacking(tmp_path / "data")


# --- durability --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "durability", "level"), [("full", Durability.MACHINE, 2), ("normal", Durability.PROCESS, 1)], ids=["full", "normal"]
)
@in_asyncio
async def test_the_option_synchronous_decides_the_durability(tmp_path: Path, option: str, durability: Durability, level: int) -> None:
    """What the store claims is what SQLite was told, also after a reopen."""
    url = SqliteUrl(tmp_path / "data", synchronous=option)
    prepare(url, 1)
    async with opened(SqliteStore(url, 0, 1)) as store:
        assert isinstance(store, SqliteStore)
        assert store.durability is durability
        for _ in range(2):
            assert await execute(store, "PRAGMA synchronous") == [(level,)]
            assert await execute(store, "PRAGMA journal_mode") == [("wal",)]
            assert await execute(store, "PRAGMA locking_mode") == [("exclusive",)]
            await store.reopen()


# --- what a failed commit means ----------------------------------------------------------------------------------


class Trouble(sqlite3.Connection):
    """A connection whose `COMMIT` does what a test says."""

    fault: Exception | None = None
    first: Callable[[sqlite3.Connection], object] | None = None

    def execute(self, statement: str, *parameters: Any) -> sqlite3.Cursor:
        if statement == "COMMIT;" and self.fault is not None:
            if self.first is not None:
                self.first(self)
            raise self.fault
        return super().execute(statement, *parameters)


def sqlite_error(code: int, name: str) -> sqlite3.OperationalError:
    """Return an error as SQLite raises it."""
    error = sqlite3.OperationalError(name)
    error.sqlite_errorcode, error.sqlite_errorname = code, name
    return error


async def open_troubled(backing: SqliteBacking, monkeypatch: pytest.MonkeyPatch) -> tuple[SqliteStore, Trouble]:
    """Return an open store and its connection."""
    real = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **named: real(*args, factory=Trouble, **named))
    store = backing.store()
    await store.open()
    monkeypatch.undo()
    assert isinstance(store._db, Trouble)
    return store, store._db


@pytest.mark.parametrize("written", [False, True])
@in_asyncio
async def test_after_an_io_error_of_commit_the_store_is_never_used_again(
    backing: SqliteBacking, monkeypatch: pytest.MonkeyPatch, written: bool
) -> None:
    """The row may be there or not; memory cannot know, so nothing more is written, and the file is left as it is."""
    store, troubled = await open_troubled(backing, monkeypatch)
    await store.commit(inserting(make_row(1)))
    troubled.fault = sqlite_error(sqlite3.SQLITE_IOERR_FSYNC, "SQLITE_IOERR_FSYNC")
    if written:
        troubled.first = lambda db: sqlite3.Connection.execute(db, "COMMIT")
    with pytest.raises(StoreFailed, match="SQLITE_IOERR_FSYNC"):
        await store.commit(inserting(make_row(2)))
    troubled.fault = None
    for again in (store.commit(inserting(make_row(3))), store.commit(Batch([], [], [])), store.reopen(), store.read([])):
        with pytest.raises(StoreFailed):
            await again
    await store.close()

    assert [path.name for path in backing.url.folder.rglob("*-wal")] == ["shard-0.sqlite3-wal"]
    async with opened(backing.store()) as anew:
        assert await load_all(anew) == [make_row(1), *([make_row(2)] if written else [])]


@in_asyncio
async def test_a_commit_without_space_is_refused_as_a_whole_and_later_ones_succeed(backing: SqliteBacking) -> None:
    """Deletes and marks of the same batch are not done either; nothing need be reopened."""
    kept = [make_row(seq) for seq in range(100)]
    large = [make_row(seq, payload=b"x" * 50_000) for seq in range(100, 120)]
    async with opened(backing.store()) as store:
        assert isinstance(store, SqliteStore)
        await store.commit(inserting(*kept))
        ((pages,),) = await execute(store, "PRAGMA page_count")
        await execute(store, f"PRAGMA max_page_count = {pages + 2}")
        for _ in range(3):
            with pytest.raises(StoreRefused, match="no space"):
                await store.commit(Batch([key_of(kept[0])], large, [make_mark(kept[1])]))
        assert await store.reopen() > 0
        assert await store.read([key_of(row) for row in kept]) == {key_of(row): row for row in kept}
        await store.commit(deleting(*kept[:50]))
        await execute(store, "PRAGMA max_page_count = 100000")
        await store.commit(inserting(*large))

        assert await load_all(store) == kept[50:] + large


@pytest.mark.parametrize("what", ["delete", "mark", "insert"])
@in_asyncio
async def test_where_memory_and_store_disagree_the_store_fails_and_writes_nothing(backing: SqliteBacking, what: str) -> None:
    """A delete or a mark of a row that is not there, an insert of one that is: only reading everything anew is safe."""
    there, absent = make_row(1), make_row(2)
    batch = {"delete": deleting(there, absent), "mark": marking(make_mark(there), make_mark(absent)), "insert": inserting(absent, there)}
    async with opened(backing.store()) as store:
        await store.commit(inserting(there))
        with pytest.raises(StoreFailed):
            await store.commit(batch[what])
        with pytest.raises(StoreFailed):
            await store.commit(inserting(make_row(3)))
    async with opened(backing.store()) as store:
        assert await load_all(store) == [there]


@in_asyncio
async def test_after_being_fenced_a_store_leaves_its_file_alone(backing: SqliteBacking) -> None:
    """It does not even take a new epoch."""
    async with opened(backing.store()) as store:
        await backing.usurp(store)
        with pytest.raises(StoreFenced, match="epoch 2, this process has 1"):
            await store.commit(inserting(make_row(1)))
        with pytest.raises(StoreFenced):
            await store.reopen()


@pytest.mark.parametrize(
    "changes", [{"id": "\udfff"}, {"reason": "\ud800"}, {"timeout": 2**63}, {"payload": "text"}, {"id": b"bytes"}, {"created_at": None}]
)
@in_asyncio
async def test_a_value_that_no_row_can_hold_is_refused_for_good(backing: SqliteBacking, changes: dict[str, Any]) -> None:
    """The message may reach a client: it names neither the file nor the value."""
    async with opened(backing.store()) as store:
        with pytest.raises(StorePermanent) as raised:
            await store.commit(inserting(make_row(1), make_row(2, **changes)))
        assert str(backing.url.folder) not in str(raised.value)
        assert await load_all(store) == []


@pytest.mark.parametrize(
    ("code", "committing", "expected"),
    [
        ("FULL", False, StoreRefused),
        ("FULL", True, StoreRefused),
        ("IOERR_WRITE", False, StoreFailed),
        ("IOERR_FSYNC", True, StoreFailed),
        ("IOERR_READ", False, StoreFailed),
        ("CORRUPT", False, StoreFailed),
        ("NOTADB", False, StoreFailed),
        ("CANTOPEN", False, StoreFailed),
        ("READONLY", False, StoreFailed),
        ("NOMEM", True, StoreFailed),
        ("BUSY", False, StoreLocked),
        ("LOCKED", False, StoreLocked),
        ("TOOBIG", False, StorePermanent),
        ("TOOBIG", True, StoreFailed),
        ("CONSTRAINT_DATATYPE", False, StorePermanent),
        ("CONSTRAINT_NOTNULL", False, StorePermanent),
        ("CONSTRAINT_PRIMARYKEY", False, StoreFailed),
        ("CONSTRAINT_DATATYPE", True, StoreFailed),
        ("ERROR", False, StoreFailed),
    ],
)
def test_an_error_code_means_one_thing(code: str, committing: bool, expected: type[Exception]) -> None:
    """Only where nothing was surely written may it be tried again."""
    # SQLITE_CONSTRAINT_DATATYPE has no name in Python's module
    number = 19 | 12 << 8 if code == "CONSTRAINT_DATATYPE" else getattr(sqlite3, f"SQLITE_{code}")

    assert type(fault_of(sqlite_error(number, f"SQLITE_{code}"), Path("f"), committing=committing)) is expected


@in_asyncio
async def test_a_failed_upkeep_fails_the_next_commit(backing: SqliteBacking, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint that met an I/O error is not passed over."""
    ran = asyncio.Event()
    loop = asyncio.get_running_loop()

    def broken(_: sqlite3.Connection) -> None:
        loop.call_soon_threadsafe(ran.set)
        raise sqlite_error(sqlite3.SQLITE_IOERR_WRITE, "SQLITE_IOERR_WRITE")

    monkeypatch.setattr(sqlite_module, "checkpoint", broken)
    async with opened(backing.store()) as store:
        await store.commit(inserting(make_row(1, payload=bytes(5_000_000))))
        await asyncio.wait_for(ran.wait(), 10)
        with pytest.raises(StoreFailed, match="SQLITE_IOERR_WRITE"):
            await store.commit(inserting(make_row(2)))


@in_asyncio
async def test_an_upkeep_without_space_is_put_off(backing: SqliteBacking, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commits go on while the log has room."""
    tried = asyncio.Event()
    loop = asyncio.get_running_loop()

    def full(_: sqlite3.Connection) -> None:
        loop.call_soon_threadsafe(tried.set)
        raise sqlite_error(sqlite3.SQLITE_FULL, "SQLITE_FULL")

    async with opened(backing.store()) as store:
        with monkeypatch.context() as patch:
            patch.setattr(sqlite_module, "checkpoint", full)
            await store.commit(inserting(make_row(1, payload=bytes(5_000_000))))
            await asyncio.wait_for(tried.wait(), 10)
        await store.commit(inserting(make_row(2)))

        assert len(await load_all(store)) == 2


# --- space -------------------------------------------------------------------------------------------------------


def bytes_on_disk(backing: SqliteBacking) -> int:
    """Return what all files take."""
    return sum(path.stat().st_size for path in backing.url.folder.rglob("*.*") if path.is_file())


@in_asyncio
async def test_churn_does_not_grow_the_file(backing: SqliteBacking) -> None:
    """A hundred thousand jobs come and go behind one that stays."""
    async with opened(backing.store()) as store:
        await store.commit(inserting(make_row(0)))
        last: list[Row] = []
        for start in range(1, 100_000, 1000):
            rows = [make_row(seq) for seq in range(start, start + 1000)]
            await store.commit(Batch([key_of(row) for row in last], rows, []))
            last = rows

        assert bytes_on_disk(backing) < 12_000_000


@in_asyncio
async def test_records_that_come_and_go_do_not_grow_the_file(backing: SqliteBacking) -> None:
    """As kept answers do, and settings that are written anew."""
    async with opened(backing.store()) as store:
        last: list[Record] = []
        for start in range(0, 40_000, 1000):
            records = [make_record(f"key {number}", bytes(100)) for number in range(start, start + 1000)]
            gone = [make_record(record.name, None) for record in last]
            await store.commit(recording(*records, *gone, make_record("settings", b"%d" % start)))
            last = records

        assert bytes_on_disk(backing) < 12_000_000


@in_asyncio
async def test_a_drained_backlog_gives_its_space_back(backing: SqliteBacking) -> None:
    """Bit by bit, and without a restart; what is left is a bounded reserve."""
    rows = [make_row(seq, payload=bytes(1500)) for seq in range(20_000)]
    async with opened(backing.store()) as store:
        assert isinstance(store, SqliteStore)
        for start in range(0, len(rows), 2000):
            await store.commit(inserting(*rows[start : start + 2000]))
        assert bytes_on_disk(backing) > 30_000_000
        for start in range(0, len(rows), 2000):
            await store.commit(deleting(*rows[start : start + 2000]))
        for _ in range(1000):  # each read waits for one step of upkeep
            await store.read([])
            if not store._shrinking:
                break
        ((free,),) = await execute(store, "PRAGMA freelist_count")

        assert free <= sqlite_module.FREE_PAGES_KEPT
    assert bytes_on_disk(backing) < 8_000_000


@in_asyncio
async def test_a_mark_does_not_write_a_large_payload_again(backing: SqliteBacking) -> None:
    """A delivery or a heartbeat costs the same, whatever the job carries."""
    row = make_row(1, payload=bytes(3_000_000))
    async with opened(backing.store()) as store:
        assert isinstance(store, SqliteStore)
        await store.commit(inserting(row))
        await execute(store, "PRAGMA wal_checkpoint(PASSIVE)")
        for attempt in range(20):
            row = marked(row, mark := make_mark(row, state_set=True, state=b"%d" % attempt))
            await store.commit(marking(mark))
        ((_, pages, _),) = await execute(store, "PRAGMA wal_checkpoint(PASSIVE)")

        assert pages < 100
        assert await load_all(store) == [row]


# --- files -------------------------------------------------------------------------------------------------------


@in_asyncio
async def test_files_belong_to_their_owner_alone(backing: SqliteBacking) -> None:
    """Folders are 0700, files 0600, the log included."""
    async with opened(backing.store()) as store:
        await store.commit(inserting(make_row(1)))
        modes = {path.name: path.stat().st_mode & 0o777 for path in [backing.url.folder, *backing.url.folder.rglob("*")]}

    assert modes == {
        "data": 0o700,
        "manifest.json": 0o600,
        "generation-000001": 0o700,
        "shard-0.sqlite3": 0o600,
        "shard-0.sqlite3-wal": 0o600,
    }


@in_asyncio
async def test_a_closed_store_leaves_one_file(backing: SqliteBacking) -> None:
    """Its log is copied into it."""
    async with opened(backing.store()) as store:
        await store.commit(inserting(make_row(1)))

    assert [path.name for path in backing.url.folder.glob("*/*")] == ["shard-0.sqlite3"]


@in_asyncio
async def test_a_load_that_is_broken_off_holds_nothing_up(backing: SqliteBacking, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commits and checkpoints go on."""
    monkeypatch.setattr(sqlite_module, "LOAD_ROWS", 3)
    async with opened(backing.store()) as store:
        assert isinstance(store, SqliteStore)
        await store.commit(inserting(*[make_row(seq) for seq in range(10)]))
        chunks = store.load()
        assert len(await anext(chunks)) == 3
        await chunks.aclose()  # type: ignore[attr-defined]  # it is a generator
        await store.commit(inserting(make_row(11, payload=bytes(5_000_000))))
        await store.commit(inserting(make_row(12)))

        assert len(await load_all(store)) == 12


@in_asyncio
async def test_a_load_sorts_keys_and_not_rows(backing: SqliteBacking) -> None:
    """What is sorted is small, whatever the rows hold."""
    async with opened(backing.store()) as store:
        assert isinstance(store, SqliteStore)
        load = query("load_jobs").replace("?", "0")
        plan = [row[3] for row in await execute(store, f"EXPLAIN QUERY PLAN {load}")]

    assert plan[-2:] != []
    assert plan.index("USE TEMP B-TREE FOR ORDER BY") < plan.index("SEARCH job USING INTEGER PRIMARY KEY (rowid=?)")
    assert plan.count("USE TEMP B-TREE FOR ORDER BY") == 1


@pytest.mark.parametrize("name", ["read_records", "remove_records", "write_records"])
@in_asyncio
async def test_records_are_found_by_their_key(backing: SqliteBacking, name: str) -> None:
    """However many there are, and however many are asked for at once."""
    async with opened(backing.store()) as store:
        assert isinstance(store, SqliteStore)
        plan = [row[3] for row in await execute(store, f"EXPLAIN QUERY PLAN {query(name, 64).replace('?', '0')}")]

    assert [step for step in plan if step.startswith("SCAN record")] == []
    assert name == "write_records" or [step for step in plan if step.startswith("SEARCH record USING") and "name=?" in step]
