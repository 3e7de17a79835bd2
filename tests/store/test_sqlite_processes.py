"""The SQLite store between processes and on a failing disk: locks, kill -9, a full disk, an I/O error."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from proteus_shards.core.model import Batch, RecordKey, Row
from proteus_shards.errors import StoreLocked, StoreRefused
from proteus_shards.store.contract import Store
from proteus_shards.store.sqlite import SqliteStore
from proteus_shards.store.sqlite_prepare import prepare
from proteus_shards.store.urls import SqliteUrl
from tests.conftest import server_environ
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
    opened,
)

SECONDS_MAX = 30

BEGIN = """
import asyncio, os, resource, sys
from pathlib import Path
from proteus_shards.core.model import Batch
from proteus_shards.errors import StoreError
from proteus_shards.store.sqlite import SqliteStore
from proteus_shards.store.sqlite_prepare import prepare
from proteus_shards.store.urls import SqliteUrl
from tests.store.rows import inserting, key_of, load_all, make_record, make_row
url = SqliteUrl(Path(sys.argv[1]))
"""

HOLD = """
async def main():
    store = SqliteStore(url, 0, 1)
    await store.open()
    print("open", flush=True)
    sys.stdin.read()
asyncio.run(main())
"""

OPEN = """
async def main():
    store = SqliteStore(url, 0, 1)
    try:
        await store.open()
    except StoreError as error:
        print(type(error).__name__, error)
    finally:
        await store.close()
asyncio.run(main())
"""

# inserts batch n, deletes batch n - 3, says n in a record and removes that of n - 3, prints n, for ever
WORK = """
async def main():
    store = SqliteStore(url, 0, 1)
    await store.open()
    rows = await load_all(store)
    seq = max((row.seq for row in rows), default=-1) + 1
    while True:
        new = [make_row(seq + n) for n in range(20)]
        old = [make_row(seq - 60 + n) for n in range(20)] if seq >= 60 else []
        records = [make_record("last", b"%d" % seq), make_record(f"batch {seq}"), make_record(f"batch {seq - 60}", None)]
        await store.commit(Batch([key_of(row) for row in old], new, [], records))
        seq += 20
        os.write(1, b"%d\\n" % seq)
asyncio.run(main())
"""

# no file may grow beyond what it has now
STARVE = """
async def main():
    store = SqliteStore(url, 0, 1)
    await store.open()
    await store.commit(inserting(make_row(1)))
    size = store._path.with_name(store._path.name + "-wal").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 9000, resource.RLIM_INFINITY))
    for batch in (inserting(*[make_row(n, payload=bytes(2000)) for n in range(2, 100)]), inserting(make_row(100)), Batch([], [], [])):
        try:
            await store.commit(batch)
            print("written")
        except StoreError as error:
            print(type(error).__name__)
    await store.close()
asyncio.run(main())
"""


@contextmanager
def start(code: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a process that works on a store, and end it at the end."""
    command = [sys.executable, "-c", BEGIN + code, str(folder)]
    with subprocess.Popen(command, env=server_environ({}), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def run(code: str, folder: Path) -> str:
    """Run a process that works on a store to its end, and return what it prints."""
    with start(code, folder) as process:
        printed, _ = process.communicate(timeout=SECONDS_MAX)
    assert process.returncode == 0
    return printed


def told(process: subprocess.Popen[str]) -> str:
    """Return the next line that a process prints."""
    assert process.stdout is not None
    return process.stdout.readline()


@pytest.fixture
def url(tmp_path: Path) -> SqliteUrl:
    """Return a prepared folder."""
    url = SqliteUrl(tmp_path / "data")
    prepare(url, 1)
    return url


# --- locks -------------------------------------------------------------------------------------------------------


def test_a_second_process_is_refused_and_told_why(url: SqliteUrl) -> None:
    """At once, with the name of the file; once the first has ended, it opens."""
    with start(HOLD, url.folder) as holder:
        assert told(holder) == "open\n"
        refused = run(OPEN, url.folder)
        with pytest.raises(StoreLocked):
            prepare(url, 2)
        holder.kill()

    file = url.folder / "generation-000001/shard-0.sqlite3"
    assert refused == f"StoreLocked another proteus-shards process holds {file}: end it, or give each server a store of its own\n"
    assert run(OPEN, url.folder) == ""
    assert prepare(url, 2) == "moved 0 stored jobs from 1 to 2 shards"


@in_asyncio
async def test_a_second_store_in_the_same_process_is_refused(url: SqliteUrl) -> None:
    """And harms the first one not at all."""
    async with opened(SqliteStore(url, 0, 1)) as first:
        second = SqliteStore(url, 0, 1)
        with pytest.raises(StoreLocked):
            await second.open()
        await second.close()
        await first.commit(inserting(make_row(1)))


def test_a_stopped_holder_still_holds(url: SqliteUrl) -> None:
    """A paused process cannot be replaced, only a dead one."""
    with start(HOLD, url.folder) as holder:
        assert told(holder) == "open\n"
        holder.send_signal(signal.SIGSTOP)
        refused = run(OPEN, url.folder)
        holder.kill()

    assert refused.startswith("StoreLocked ")


# --- kill -9 -----------------------------------------------------------------------------------------------------


def test_what_was_acknowledged_survives_kill_9(url: SqliteUrl) -> None:
    """Every acknowledged batch is there, whole; of what was under way, all or nothing; over several rounds."""
    for round_number in range(3):
        with start(WORK, url.folder) as worker:
            for _ in range(30 + 17 * round_number):
                assert told(worker)
            worker.kill()
            assert worker.stdout is not None
            lines = worker.stdout.read().splitlines()
            acknowledged = int(lines[-1]) if lines else 0

        records, loaded = asyncio.run(load_from(SqliteStore(url, 0, 1)))
        end = loaded[-1].seq + 1

        assert end in (acknowledged, acknowledged + 20) or not lines
        assert loaded == [make_row(seq) for seq in range(end - 60, end)]
        batches = [make_record(f"batch {seq}") for seq in (end - 60, end - 40, end - 20)]
        assert records == as_dict(make_record("last", b"%d" % (end - 20)), *batches)


async def load_from(store: Store) -> tuple[dict[RecordKey, bytes], list[Row]]:
    """Open a store, return its records and rows, close it."""
    async with opened(store):
        return await load_records(store), [row for row in await load_all(store) if isinstance(row, Row)]


# --- the disk ----------------------------------------------------------------------------------------------------


def test_an_io_error_ends_the_store_and_loses_nothing(url: SqliteUrl) -> None:
    """A file that may not grow is no full disk: nothing is tried a second time."""
    assert run(STARVE, url.folder).split() == ["StoreFailed"] * 3
    assert asyncio.run(load_from(SqliteStore(url, 0, 1))) == ({}, [make_row(1)])


class SmallDisk:
    """A file system of 3 MB, with some of it put aside."""

    def __init__(self, mounted: Path) -> None:
        self.url = SqliteUrl(mounted / "data")
        self._ballast = mounted / "ballast"

    def fill(self, leave: int = 0) -> None:
        """Take up what is free, but so many bytes."""
        disk = os.statvfs(self._ballast.parent)
        size = max(0, disk.f_bavail * disk.f_frsize - leave)
        with self._ballast.open("ab") as ballast:
            ballast.write(bytes(size))

    def free(self) -> None:
        """Give back what was taken."""
        self._ballast.unlink()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """Return a small file system, where this user may mount one."""
    mounted = tmp_path / "small"
    mounted.mkdir()
    if os.getuid() != 0:
        pytest.skip("only root may mount a small file system")
    try:
        made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", mounted], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if made.returncode:
        pytest.skip(f"no file system can be mounted here: {made.stderr.strip()}")
    yield SmallDisk(mounted)
    subprocess.run(["umount", mounted], check=True)


@in_asyncio
async def test_a_full_disk_refuses_and_heals(small_disk: SmallDisk) -> None:
    """What was acknowledged stays, what was refused is not there, and once there is space all goes on without a reopen."""
    prepare(small_disk.url, 1)
    small_disk.fill(leave=1_500_000)
    written: dict[int, Row] = {}
    refused = 0
    async with opened(SqliteStore(small_disk.url, 0, 1)) as store:
        for start_seq in range(0, 100_000, 100):
            rows = [make_row(seq, payload=bytes(200)) for seq in range(start_seq, start_seq + 100)]
            try:
                await store.commit(inserting(*rows))
            except StoreRefused:
                refused += 1
                if refused == 3:
                    break
            else:
                written |= {row.seq: row for row in rows}
        assert refused == 3
        for seq in list(written)[:40]:  # queued jobs go on, or are cleanly refused
            row = written[seq]
            try:
                if seq % 2:
                    await store.commit(deleting(row))
                    del written[seq]
                else:
                    await store.commit(marking(mark := make_mark(row)))
                    written[seq] = marked(row, mark)
            except StoreRefused:
                refused += 1
        assert await store.read([key_of(row) for row in written.values()]) == {key_of(row): row for row in written.values()}
        small_disk.free()
        row = make_row(200_000)
        await store.commit(Batch([key_of(written.pop(50))], [row], []))
        written[row.seq] = row
    async with opened(SqliteStore(small_disk.url, 0, 1)) as store:
        assert await load_all(store) == list(written.values())


@in_asyncio
async def test_on_a_full_disk_nothing_opens_and_nothing_is_lost(small_disk: SmallDisk) -> None:
    """Neither a store nor another number of shards; both may be tried again."""
    prepare(small_disk.url, 1)
    async with opened(SqliteStore(small_disk.url, 0, 1)) as store:
        rows = [make_row(seq, payload=bytes(1000)) for seq in range(500)]
        await store.commit(inserting(*rows))
    small_disk.fill()
    store = SqliteStore(small_disk.url, 0, 1)
    with pytest.raises(StoreRefused):
        await store.open()
    await store.close()
    with pytest.raises(StoreRefused, match="nothing was"):
        prepare(small_disk.url, 2)
    small_disk.free()
    small_disk.fill(leave=400_000)
    with pytest.raises(StoreRefused, match="as much space again"):
        prepare(small_disk.url, 2)
    async with opened(SqliteStore(small_disk.url, 0, 1)) as store:
        assert await load_all(store) == rows
    small_disk.free()

    assert prepare(small_disk.url, 2) == "moved 500 stored jobs from 1 to 2 shards"
