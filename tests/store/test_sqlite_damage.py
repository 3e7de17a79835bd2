"""SQLite files that are not as they should be: damage, single bad rows, other versions."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from proteus_shards.core.model import ROW_VERSION, Record, Row
from proteus_shards.errors import StoreError, StoreFailed
from proteus_shards.store import sqlite as sqlite_module
from proteus_shards.store import sqlite_file
from proteus_shards.store.contract import Damaged
from proteus_shards.store.sqlite import SqliteStore
from proteus_shards.store.sqlite_prepare import prepare
from proteus_shards.store.sqlite_rows import INLINE_BYTES_MAX
from proteus_shards.store.urls import SqliteUrl
from tests.store.rows import deleting, in_asyncio, inserting, load_all, make_record, make_row, opened, recording

ROWS = [make_row(seq, payload=bytes([seq % 256]) * 300) for seq in range(1000)]


@pytest.fixture
def url(tmp_path: Path) -> SqliteUrl:
    """Return a prepared folder with rows."""
    url = SqliteUrl(tmp_path / "data")
    prepare(url, 1)

    async def fill() -> None:
        async with opened(SqliteStore(url, 0, 1)) as store:
            await store.commit(inserting(*ROWS))

    asyncio.run(fill())
    return url


@pytest.fixture
def file(url: SqliteUrl) -> Path:
    """Return its only file, closed."""
    return url.folder / "generation-000001/shard-0.sqlite3"


def alter(file: Path, *statements: str) -> None:
    """Change a file behind the store's back."""
    db = sqlite3.connect(file)
    with db:
        for statement in statements:
            db.execute(statement)
    db.close()


def flip(file: Path, place: int) -> None:
    """Turn bytes round in the middle of a file."""
    with file.open("r+b") as opened_file:
        opened_file.seek(place)
        old = opened_file.read(64)
        opened_file.seek(place)
        opened_file.write(bytes(byte ^ 0xFF for byte in old))


async def open_error(url: SqliteUrl) -> StoreError:
    """Return why the file does not open."""
    store = SqliteStore(url, 0, 1)
    with pytest.raises(StoreError) as raised:
        await store.open()
    await store.close()
    return raised.value


# --- whole files -------------------------------------------------------------------------------------------------


@in_asyncio
async def test_a_corrupted_file_is_refused_and_named(url: SqliteUrl, file: Path) -> None:
    """With both ways out."""
    flip(file, 4096 * 20)

    error = await open_error(url)

    assert type(error) is StoreFailed
    assert str(error) == f"{file} is damaged: restore it from a backup, or start with the store option check=none to save what can be read"
    with pytest.raises(StoreFailed, match="is damaged"):
        prepare(url, 2)


@in_asyncio
async def test_without_a_check_a_corrupted_file_is_read_as_far_as_it_goes(url: SqliteUrl, file: Path) -> None:
    """Damage that is met then still ends the load, and is no silent loss."""
    flip(file, 4096 * 20)
    async with opened(SqliteStore(SqliteUrl(url.folder, check="none"), 0, 1)) as store:
        with pytest.raises(StoreFailed, match="is damaged"):
            await load_all(store)


@pytest.mark.parametrize(("content", "told"), [(b"", "is emptied"), (b"no database at all" * 500, "is damaged")])
def test_what_is_no_database_is_refused(url: SqliteUrl, file: Path, content: bytes, told: str) -> None:
    """An empty file above all: it would look like a queue without jobs."""
    file.write_bytes(content)

    error = asyncio.run(open_error(url))

    assert isinstance(error, StoreFailed)
    assert told in str(error)
    assert file.read_bytes() == content


@pytest.mark.parametrize("statement", ["PRAGMA application_id = 7", "PRAGMA user_version = 0"])
@in_asyncio
async def test_a_database_of_another_program_is_refused(url: SqliteUrl, file: Path, statement: str) -> None:
    """Whatever tables it has."""
    alter(file, statement)

    assert "is not a file of proteus-shards" in str(await open_error(url))


@in_asyncio
async def test_a_file_that_does_not_say_whose_it_is_is_refused(url: SqliteUrl, file: Path) -> None:
    """Its epoch is lost with it."""
    alter(file, "DELETE FROM meta")

    assert "is damaged" in str(await open_error(url))


# --- versions ----------------------------------------------------------------------------------------------------


@in_asyncio
async def test_a_newer_schema_is_refused_and_left_alone(url: SqliteUrl, file: Path) -> None:
    """The message says which program can read it."""
    alter(file, f"PRAGMA user_version = {ROW_VERSION + 1}")

    told = f"written by a newer version of proteus-shards (schema {ROW_VERSION + 1}, this one knows {ROW_VERSION}): run that one"
    assert told in str(await open_error(url))


@in_asyncio
async def test_an_older_schema_is_brought_up_to_date(url: SqliteUrl, monkeypatch: pytest.MonkeyPatch) -> None:
    """When it is opened, with all its rows."""
    real = sqlite_file._text
    monkeypatch.setattr(sqlite_file, "MIGRATIONS", (*sqlite_file.MIGRATIONS, "next", "last"))
    scripts = {"next": "CREATE TABLE two (a INTEGER) STRICT;", "last": "INSERT INTO two VALUES (3); -- and so on"}
    monkeypatch.setattr(sqlite_file, "_text", lambda name: scripts.get(name) or real(name))
    async with opened(SqliteStore(url, 0, 1)) as store:
        assert isinstance(store, SqliteStore)
        assert await load_all(store) == ROWS
        assert await store._call(lambda: store._db and store._db.execute("PRAGMA user_version").fetchone()) == (ROW_VERSION + 2,)
        assert await store._call(lambda: store._db and store._db.execute("SELECT a FROM two").fetchall()) == [(3,)]


@in_asyncio
async def test_a_migration_that_fails_changes_nothing(url: SqliteUrl, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither schema nor version."""
    real = sqlite_file._text
    with monkeypatch.context() as patch:
        patch.setattr(sqlite_file, "MIGRATIONS", (*sqlite_file.MIGRATIONS, "bad"))
        patch.setattr(sqlite_file, "_text", lambda name: "DELETE FROM job; DROP TABLE nothing;" if name == "bad" else real(name))
        assert isinstance(await open_error(url), StoreFailed)
    async with opened(SqliteStore(url, 0, 1)) as store:
        assert await load_all(store) == ROWS


def test_the_newest_schema_has_the_columns_of_a_row() -> None:
    """In the same order, as rows are written and read by place; its number is that of the model."""
    db = sqlite3.connect(":memory:")
    for name in sqlite_file.MIGRATIONS:
        db.executescript(sqlite_file._text(name))
    columns = [name for _, name, *_ in db.execute("PRAGMA table_info(job)")]
    db.close()

    assert columns == list(Row.__struct_fields__)
    assert len(sqlite_file.MIGRATIONS) == ROW_VERSION


def test_every_statement_is_used() -> None:
    """And every one that is used is there."""
    package = Path(sqlite_file.__file__).parent
    code = "".join(path.read_text(encoding="utf-8") for path in package.glob("sqlite*.py"))

    assert [name for name in sqlite_file._queries() if f'"{name}"' not in code] == []


# --- rows --------------------------------------------------------------------------------------------------------


BAD_TEXT = "UPDATE job SET {} = CAST(x'ff' || 'secret' AS TEXT) WHERE seq = {}"


@pytest.mark.parametrize("column", ["queue", "id", "reason"])
@in_asyncio
async def test_text_that_is_no_utf8_is_kept_aside(url: SqliteUrl, file: Path, column: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the row lies, every other one is loaded, once and in order; the bad one stays in the file."""
    monkeypatch.setattr(sqlite_module, "LOAD_ROWS", 100)
    alter(file, *[BAD_TEXT.format(column, seq) for seq in (0, 555, 556, 999)])
    for _ in range(2):
        async with opened(SqliteStore(url, 0, 1)) as store:
            loaded = await load_all(store)
            await store.commit(deleting(ROWS[1]) if ROWS[1] in loaded else inserting())

        bad = [item for item in loaded if isinstance(item, Damaged)]
        good = [item for item in loaded if isinstance(item, Row)]
        assert [(item.where, item.fault, item.seq) for item in bad] == [
            (f"{file}, seq {seq}", f"{column} is not UTF-8", seq) for seq in (0, 555, 556, 999)
        ]
        assert [row for row in good if row != ROWS[1]] == [row for row in ROWS[2:] if row.seq not in (555, 556, 999)]


@pytest.mark.parametrize(
    ("statement", "fault"),
    [
        ("UPDATE job SET payload = NULL WHERE seq = 7", "Expected `bytes`, got `null` - at payload"),
        ("UPDATE job SET slot = 1024 WHERE seq = 7", "Expected `int` <= 1023 - at slot"),
        ("UPDATE job SET slot = -1 WHERE seq = 7", "Expected `int` >= 0 - at slot"),
    ],
)
@in_asyncio
async def test_a_row_that_is_none_is_kept_aside(url: SqliteUrl, file: Path, statement: str, fault: str) -> None:
    """It is told what is wrong with it, never what it holds."""
    alter(file, statement)
    async with opened(SqliteStore(url, 0, 1)) as store:
        loaded = await load_all(store)

    assert [item for item in loaded if isinstance(item, Damaged)] == [Damaged(f"{file}, seq 7", fault, 7)]
    assert [item for item in loaded if isinstance(item, Row)] == ROWS[:7] + ROWS[8:]


@in_asyncio
async def test_a_wrong_type_is_kept_aside_without_a_check(url: SqliteUrl, file: Path) -> None:
    """A table that is not strict stands for bits that have turned."""
    alter(
        file,
        "PRAGMA writable_schema = ON",
        "UPDATE sqlite_schema SET sql = replace(sql, ') STRICT', ')') WHERE name = 'job'",
    )
    alter(file, "UPDATE job SET queue = x'00ff' WHERE seq = 7", "UPDATE job SET timeout = 'soon' WHERE seq = 8")
    async with opened(SqliteStore(SqliteUrl(url.folder, check="none"), 0, 1)) as store:
        loaded = await load_all(store)

    assert [item.fault for item in loaded if isinstance(item, Damaged)] == [
        "Expected `str`, got `bytes` - at queue",
        "Expected `int`, got `str` - at timeout",
    ]
    assert len(loaded) == len(ROWS)


@in_asyncio
async def test_a_lost_large_payload_is_told(url: SqliteUrl, file: Path) -> None:
    """The row is none without it."""
    async with opened(SqliteStore(url, 0, 1)) as store:
        await store.commit(inserting(make_row(5000, payload=bytes(INLINE_BYTES_MAX + 1))))
    alter(file, "DELETE FROM large_payload")
    async with opened(SqliteStore(url, 0, 1)) as store:
        assert [item.seq for item in await load_all(store) if isinstance(item, Damaged)] == [5000]


def test_damaged_rows_are_never_moved_nor_lost(url: SqliteUrl, file: Path) -> None:
    """A move is refused and names them; as before it goes on."""
    elsewhere = make_row(0, queue="elsewhere").slot
    alter(
        file, BAD_TEXT.format("id", 3), f"UPDATE job SET slot = {elsewhere} WHERE seq = 4", "UPDATE job SET payload = NULL WHERE seq > 987"
    )
    with pytest.raises(StoreError) as raised:
        prepare(url, 2)

    assert str(raised.value).startswith(
        f"14 stored rows are damaged and cannot be moved: {file}, seq 3: id is not UTF-8; {file}, seq 4: slot is not that of its queue; "
    )
    assert str(raised.value).endswith("…. Start with 1 shards as before, or take these rows out of their files first")
    assert prepare(url, 1) is None


# --- records -----------------------------------------------------------------------------------------------------


@in_asyncio
async def test_a_record_that_is_none_is_kept_aside(url: SqliteUrl, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it lies, every other one is loaded once; the bad one stays in the file, and is not told but by its place."""
    monkeypatch.setattr(sqlite_module, "LOAD_ROWS", 7)
    records = [make_record(f"record {number}") for number in range(30)]
    async with opened(SqliteStore(url, 0, 1)) as store:
        await store.commit(recording(*records))
    bad_text = "UPDATE record SET name = CAST(x'ff' || 'secret' AS TEXT) WHERE name = 'record {}'"
    alter(file, bad_text.format(9), bad_text.format(10), "UPDATE record SET slot = 1024 WHERE name = 'record 20'")
    async with opened(SqliteStore(url, 0, 1)) as store:
        loaded = [item async for chunk in store.load_records() for item in chunk]
        assert await load_all(store) == ROWS

    assert [item for item in loaded if isinstance(item, Damaged)] == [
        Damaged(f"{file}, record 10", "name is not UTF-8"),
        Damaged(f"{file}, record 11", "name is not UTF-8"),
        Damaged(f"{file}, record 21", "Expected `int` <= 1023 - at slot"),
    ]
    assert [item for item in loaded if isinstance(item, Record)] == [*records[:9], *records[11:20], *records[21:]]
    with pytest.raises(StoreError, match=r"3 stored rows are damaged and cannot be moved: .*, record 10: name is not UTF-8"):
        prepare(url, 2)


@in_asyncio
async def test_a_record_of_a_wrong_type_is_kept_aside_without_a_check(url: SqliteUrl, file: Path) -> None:
    """A table that is not strict stands for bits that have turned."""
    async with opened(SqliteStore(url, 0, 1)) as store:
        await store.commit(recording(make_record("a"), make_record("b"), make_record("c")))
    alter(
        file,
        "PRAGMA writable_schema = ON",
        "UPDATE sqlite_schema SET sql = replace(replace(sql, ') STRICT', ')'), 'NOT NULL', '') WHERE name = 'record'",
    )
    alter(file, "UPDATE record SET value = NULL WHERE name = 'a'", "UPDATE record SET kind = 'none' WHERE name = 'b'")
    async with opened(SqliteStore(SqliteUrl(url.folder, check="none"), 0, 1)) as store:
        loaded = [item async for chunk in store.load_records() for item in chunk]

    assert loaded == [
        Damaged(f"{file}, record 1", "Expected `bytes`, got `null` - at value"),
        Damaged(f"{file}, record 2", "Expected `int`, got `str` - at kind"),
        make_record("c"),
    ]
