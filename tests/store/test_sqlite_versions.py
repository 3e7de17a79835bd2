"""A folder that version 1 wrote, and that this one goes on with.

`sqlite_version_1.tar.gz` is the folder of a server of schema version 1, with one shard, that was killed with its last batches in the log: six jobs, of
which one is scheduled, one dead, two are in flight, one has a large payload.
"""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from proteus_shards.core.model import Batch, Row
from proteus_shards.store import sqlite_file
from proteus_shards.store.contract import Damaged
from proteus_shards.store.sqlite import SqliteStore
from proteus_shards.store.sqlite_prepare import prepare
from proteus_shards.store.urls import SqliteUrl
from tests.conftest import server_environ
from tests.store.exercise import jobs_by_queue
from tests.store.rows import (
    as_dict,
    deleting,
    in_asyncio,
    key_of,
    load_all,
    load_records,
    make_mark,
    make_record,
    make_row,
    marked,
    opened,
)
from tests.store.version_1 import ROWS

KILLED = """
import os, sys
from pathlib import Path
from proteus_shards.store import sqlite_file
real = sqlite_file.sqlite3.connect
def connect(*arguments, **options):
    db = real(*arguments, **options)
    db.set_trace_callback(lambda statement: sys.argv[2] in statement and os.kill(os.getpid(), 9))
    return db
sqlite_file.sqlite3.connect = connect
sqlite_file.open_file(Path(sys.argv[1]), "quick")
"""


@pytest.fixture
def url(tmp_path: Path) -> SqliteUrl:
    """Return the folder of version 1."""
    with tarfile.open(Path(__file__).with_name("sqlite_version_1.tar.gz")) as archive:
        archive.extractall(tmp_path / "data", filter="data")
    return SqliteUrl(tmp_path / "data")


def version_of(file: Path) -> tuple[int, set[str]]:
    """Return the version of a file that nobody has open, and its tables."""
    db = sqlite3.connect(file)
    ((version,),) = db.execute("PRAGMA user_version").fetchall()
    tables = {name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    db.close()
    return version, tables


@in_asyncio
async def test_a_folder_of_version_1_is_taken_over(url: SqliteUrl) -> None:
    """With every job, and from then on with extras and records."""
    file = url.folder / "generation-000001/shard-0.sqlite3"
    assert prepare(url, 1) is None
    new = make_row(7, extras=b"new")
    record = make_record("q")
    async with opened(SqliteStore(url, 0, 1)) as store:
        assert await load_records(store) == {}
        assert await load_all(store) == ROWS
        mark = make_mark(ROWS[0], extras_set=True, extras=b"e" * 5000)
        await store.commit(Batch([key_of(ROWS[2])], [new], [mark], [record]))
    expected = [marked(ROWS[0], mark), ROWS[1], *ROWS[3:], new]
    assert version_of(file) == (2, {"meta", "job", "large_payload", "record"})
    async with opened(SqliteStore(url, 0, 1)) as store:
        assert await load_records(store) == as_dict(record)
        assert await load_all(store) == expected
        await store.commit(deleting(*expected))


@in_asyncio
async def test_a_folder_of_version_1_may_be_moved_at_once(url: SqliteUrl) -> None:
    """To another number of shards, by the first start."""
    assert prepare(url, 3) == "moved 6 stored jobs from 1 to 3 shards"
    found: list[Row | Damaged] = []
    for shard in range(3):
        async with opened(SqliteStore(url, shard, 3)) as store:
            assert await load_records(store) == {}
            found += await load_all(store)

    assert jobs_by_queue([row for row in found if isinstance(row, Row)]) == jobs_by_queue(ROWS)


@pytest.mark.parametrize("statement", ["ADD COLUMN extras", "CREATE TABLE record", "PRAGMA user_version = 2", "COMMIT"])
def test_the_way_to_version_2_may_be_killed_at_any_statement(url: SqliteUrl, statement: str) -> None:
    """The file is then of version 1 as a whole, and the next start begins again."""
    file = url.folder / "generation-000001/shard-0.sqlite3"
    ran = subprocess.run([sys.executable, "-c", KILLED, file, statement], env=server_environ({}), check=False, timeout=60)

    assert ran.returncode == -9
    assert version_of(file) == (1, {"meta", "job", "large_payload"})
    assert asyncio.run(rows_in(url)) == ROWS
    assert version_of(file)[0] == len(sqlite_file.MIGRATIONS)


async def rows_in(url: SqliteUrl) -> list[Row | Damaged]:
    """Open the folder's one shard, and return its rows."""
    async with opened(SqliteStore(url, 0, 1)) as store:
        return await load_all(store)
