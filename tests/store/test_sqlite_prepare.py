"""The folder of a SQLite store: made, moved to another number of shards, and never lost, whenever the process ends."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proteus_shards.core.model import Batch, Record, RecordKey, Row, Status
from proteus_shards.core.placement import SHARDS_MAX, slots_of
from proteus_shards.errors import StoreError, StoreLocked
from proteus_shards.store import sqlite_folder
from proteus_shards.store.sqlite import SqliteStore
from proteus_shards.store.sqlite_folder import locked, manifest_for
from proteus_shards.store.sqlite_prepare import FILES_AT_ONCE, STEPS, prepare
from proteus_shards.store.urls import SqliteUrl
from tests.conftest import server_environ
from tests.store.exercise import examples, jobs_by_queue
from tests.store.rows import as_dict, in_asyncio, inserting, load_all, load_records, make_row, opened

KILLED = """
import os, sys
from pathlib import Path
from proteus_shards.store.sqlite_prepare import prepare
from proteus_shards.store.urls import SqliteUrl
prepare(SqliteUrl(Path(sys.argv[1])), int(sys.argv[2]), lambda step: os.kill(os.getpid(), 9) if step == sys.argv[3] else None)
"""

ROWS = [make_row(seq, queue=f"q{seq % 11}", status=Status.DEAD if seq % 7 == 0 else Status.READY) for seq in range(200)]

RECORDS = [Record(slot, 1, f"record {slot}", b"%d" % slot * 600) for slot in (0, 341, 342, 511, 512, 682, 683, 1023)]


@pytest.fixture
def url(tmp_path: Path) -> SqliteUrl:
    """Return a folder that is not there yet."""
    return SqliteUrl(tmp_path / "data")


def fill(url: SqliteUrl, shards: int, rows: list[Row]) -> None:
    """Prepare a folder and put rows in."""

    async def fill_shard(shard: int) -> None:
        own = slots_of(shard, shards)
        async with opened(SqliteStore(url, shard, shards)) as store:
            records = [record for record in RECORDS if record.slot in own]
            await store.commit(Batch([], [row for row in rows if row.slot in own], [], records))

    prepare(url, shards)
    for shard in range(shards):
        asyncio.run(fill_shard(shard))


def contents(url: SqliteUrl, shards: int) -> tuple[list[Row], list[int]]:
    """Return the rows of all shards, and the epoch that each opening took. Their records are what they were, if there are any."""
    records: dict[RecordKey, bytes] = {}

    async def read_shard(shard: int) -> tuple[list[Row], int]:
        store = SqliteStore(url, shard, shards)
        try:
            epoch = await store.open()
            own = await load_records(store)
            assert all(key.slot in slots_of(shard, shards) for key in own)
            records.update(own)
            return [row for row in await load_all(store) if isinstance(row, Row)], epoch
        finally:
            await store.close()

    found = [asyncio.run(read_shard(shard)) for shard in range(shards)]
    assert records in ({}, as_dict(*RECORDS))
    assert records or not any(rows for rows, _ in found)
    return [row for rows, _ in found for row in rows], [epoch for _, epoch in found]


def files(folder: Path) -> set[str]:
    """Return the names of all files below a folder, those of logs aside."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and not path.name.endswith("-wal")}


# --- moving ------------------------------------------------------------------------------------------------------


@settings(examples, max_examples=12)
@given(
    queues=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3), st.sampled_from([2, 4]), st.sampled_from([5, 3000])), max_size=60),
    counts=st.lists(st.integers(1, 5), min_size=1, max_size=2),
)
def test_moving_there_and_back_keeps_the_order_of_every_queue(
    tmp_path_factory: pytest.TempPathFactory, queues: list[tuple[int, int, int, int]], counts: list[int]
) -> None:
    """Every job, live or dead, small or large, byte for byte; numbers are unique in a file, and epochs only grow."""
    url = SqliteUrl(tmp_path_factory.mktemp("moving") / "data")
    rows = [
        make_row(seq, queue=f"queue {queue}", ready_at=ready_at, status=status, payload=bytes([seq]) * size)
        for seq, (queue, ready_at, status, size) in enumerate(queues)
    ]
    fill(url, 2, rows)
    highest = 1
    for shards in [*counts, 2]:
        prepare(url, shards)
        found, epochs = contents(url, shards)

        assert jobs_by_queue(found) == jobs_by_queue(rows)
        assert len({(row.slot, row.seq) for row in found}) == len(found)
        assert shards == 2 or min(epochs) > highest
        highest = max(epochs)
    shutil.rmtree(url.folder)


def test_a_move_says_what_it_moved_and_leaves_one_generation(url: SqliteUrl) -> None:
    """And nothing where nothing is to be done."""
    fill(url, 2, ROWS)

    assert prepare(url, 2) is None
    assert prepare(url, 3) == "moved 200 stored jobs and 8 records from 2 to 3 shards"
    assert files(url.folder) == {"manifest.json", *(f"generation-000002/shard-{shard}.sqlite3" for shard in range(3))}
    assert {path.stat().st_mode & 0o777 for path in url.folder.rglob("*.*")} == {0o600}


def test_more_shards_than_are_written_at_a_time(url: SqliteUrl) -> None:
    """Up to one for each slot would do; here a few more than one group."""
    shards = FILES_AT_ONCE + 6
    assert shards <= SHARDS_MAX
    rows = [make_row(seq, queue=f"q{seq}", ready_at=1000 - seq) for seq in range(300)]
    fill(url, 1, rows)
    prepare(url, shards)
    prepare(url, 1)
    found, _ = contents(url, 1)

    assert jobs_by_queue(found) == jobs_by_queue(rows)
    assert [row.seq for row in found] == list(range(1, 301))


@pytest.mark.parametrize("step", STEPS)
def test_a_move_may_be_killed_at_any_step(url: SqliteUrl, step: str) -> None:
    """Before the switch the old files are in force, after it the new ones; the next start sweeps the others away."""
    fill(url, 3, ROWS)
    ran = subprocess.run([sys.executable, "-c", KILLED, url.folder, "2", step], env=server_environ({}), check=False, timeout=60)
    switched = STEPS.index(step) >= STEPS.index("switched")
    shards = 2 if switched else 3

    assert ran.returncode == -9
    assert prepare(url, shards) is None
    assert len(files(url.folder)) == 1 + shards
    assert jobs_by_queue(contents(url, shards)[0]) == jobs_by_queue(ROWS)
    assert prepare(url, 5) == f"moved 200 stored jobs and 8 records from {shards} to 5 shards"
    assert jobs_by_queue(contents(url, 5)[0]) == jobs_by_queue(ROWS)


@pytest.mark.parametrize("step", ["written", "switched", "created", "copied", "synced"])
def test_a_first_start_may_be_killed_at_any_step(url: SqliteUrl, step: str) -> None:
    """The next one begins again, for whatever number of shards."""
    ran = subprocess.run([sys.executable, "-c", KILLED, url.folder, "2", step], env=server_environ({}), check=False, timeout=60)

    assert ran.returncode == -9
    assert prepare(url, 3) is None
    assert contents(url, 3)[0] == []


@pytest.mark.parametrize("step", STEPS[: STEPS.index("switched")])
def test_a_move_that_fails_changes_nothing(url: SqliteUrl, step: str) -> None:
    """What it has written goes at once."""

    def fail(reached: str) -> None:
        if reached == step:
            raise KeyboardInterrupt

    fill(url, 2, ROWS)
    before = files(url.folder)
    with pytest.raises(KeyboardInterrupt):
        prepare(url, 3, fail)

    assert files(url.folder) == before
    assert jobs_by_queue(contents(url, 2)[0]) == jobs_by_queue(ROWS)


@in_asyncio
async def test_nothing_is_moved_while_one_file_is_in_use(url: SqliteUrl) -> None:
    """Not even the files of the other shards are touched."""
    prepare(url, 3)
    before = files(url.folder)
    async with opened(SqliteStore(url, 1, 3)) as store:
        with pytest.raises(StoreLocked, match=r"shard-1\.sqlite3"):
            prepare(url, 2)
        await store.commit(inserting(make_row(1)))

    assert files(url.folder) == before


def test_only_one_process_prepares_at_a_time(url: SqliteUrl) -> None:
    """The second is refused."""
    prepare(url, 1)
    with locked(url.folder), pytest.raises(StoreLocked, match="preparing"):
        prepare(url, 1)


def test_what_is_not_ours_is_never_removed(url: SqliteUrl) -> None:
    """A backup beside the files stays when its generation goes."""
    prepare(url, 1)
    backup = url.folder / "generation-000001/shard-0.sqlite3.backup"
    backup.write_text("mine")
    (url.folder / "generation-mine").mkdir()
    (url.folder / "notes.txt").write_text("mine")
    prepare(url, 2)
    prepare(url, 2)

    assert backup.read_text() == "mine"
    assert (url.folder / "generation-mine").is_dir()
    assert (url.folder / "notes.txt").is_file()


# --- opening -----------------------------------------------------------------------------------------------------


def refusal(url: SqliteUrl, shard: int, shards: int) -> str:
    """Return why a shard's file does not open."""

    async def fail() -> str:
        store = SqliteStore(url, shard, shards)
        with pytest.raises(StoreError) as raised:
            await store.open()
        await store.close()
        return str(raised.value)

    return asyncio.run(fail())


def test_a_folder_that_was_never_prepared_does_not_open(url: SqliteUrl) -> None:
    """Nor is it made by opening."""
    assert "not prepared" in refusal(url, 0, 1)
    assert not url.folder.exists()


def test_another_number_of_shards_does_not_open(url: SqliteUrl) -> None:
    """The message says what to do."""
    prepare(url, 2)

    assert refusal(url, 0, 3) == f"{url.folder} is prepared for 2 shards, not 3: stop the whole server and start it again"


def test_a_missing_file_is_not_taken_for_a_new_one(url: SqliteUrl) -> None:
    """Lost rows must not look like none; a move is refused too."""
    prepare(url, 2)
    (url.folder / "generation-000001/shard-1.sqlite3").unlink()

    assert "is missing: restore it" in refusal(url, 1, 2)
    with pytest.raises(StoreError, match="is missing: restore it"):
        prepare(url, 3)


def test_a_lost_manifest_is_not_taken_for_a_new_folder(url: SqliteUrl) -> None:
    """The files are left alone."""
    fill(url, 1, ROWS)
    manifest = (url.folder / "manifest.json").read_bytes()
    (url.folder / "manifest.json").unlink()
    with pytest.raises(StoreError, match=r"generation-000001 but no manifest\.json"):
        prepare(url, 1)
    (url.folder / "manifest.json").write_bytes(manifest)

    assert jobs_by_queue(contents(url, 1)[0]) == jobs_by_queue(ROWS)


def test_files_in_each_others_place_do_not_open(url: SqliteUrl) -> None:
    """Each says whose it is."""
    prepare(url, 2)
    first, second = (url.folder / f"generation-000001/shard-{shard}.sqlite3" for shard in (0, 1))
    first.rename(aside := first.with_name("aside"))
    second.rename(first)
    aside.rename(second)

    assert "holds shard 1 of 2, generation 1, not shard 0 of 2, generation 1" in refusal(url, 0, 2)
    with pytest.raises(StoreError, match="holds shard 1 of 2"):
        prepare(url, 1)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"", "is damaged"),
        (b"{}", "is damaged"),
        (b'{"layout":1,"shards":"2","generation":1}', "is damaged"),
        (b'{"layout":1,"shards":2,"generation":1,"more":1}', "is damaged"),
        (b'{"layout":2,"shards":2,"generation":1,"more":1}', "newer version"),
    ],
)
def test_a_manifest_that_is_not_understood_is_refused(url: SqliteUrl, text: bytes, told: str) -> None:
    """By prepare and by opening alike."""
    prepare(url, 2)
    (url.folder / "manifest.json").write_bytes(text)

    assert told in refusal(url, 0, 2)
    with pytest.raises(StoreError, match=re.escape(told)):
        prepare(url, 2)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    """With an error of the store, which names the place."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file"):
        prepare(SqliteUrl(tmp_path / "file" / "data"), 1)
    with pytest.raises(StoreError, match="file"):
        prepare(SqliteUrl(tmp_path / "file"), 1)


def test_a_move_during_an_opening_is_noticed(url: SqliteUrl, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard looks at the manifest again once it holds its file."""
    prepare(url, 1)
    manifest = manifest_for(url.folder, 1)
    manifests = iter([manifest, msgspec.structs.replace(manifest, generation=2)])
    monkeypatch.setattr("proteus_shards.store.sqlite.manifest_for", lambda *_: next(manifests))

    assert "moved to another number of shards just now" in refusal(url, 0, 1)


def test_a_relative_folder_is_below_the_current_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its name holds."""
    monkeypatch.chdir(tmp_path)
    url = SqliteUrl(Path("a b?c#d%20é"))
    fill(url, 1, ROWS)

    assert len(contents(url, 1)[0]) == len(ROWS)
    assert [path.name for path in tmp_path.iterdir()] == ["a b?c#d%20é"]


# --- the folder's own name ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("made", [(), ("one",), ("one", "one/two")])
def test_the_names_of_a_new_folder_and_of_those_above_it_are_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: tuple[str, ...]
) -> None:
    """A loss of power took the folder with all acknowledged jobs. What a killed process had made is synced, too."""
    synced: list[Path] = []
    monkeypatch.setattr(sqlite_folder, "sync", synced.append)
    for name in made:
        (tmp_path / name).mkdir()
    sqlite_folder.make_folder(tmp_path / "one/two/three")

    assert (tmp_path / "one/two/three").is_dir()
    expected = [tmp_path.parent, tmp_path, tmp_path / "one", tmp_path / "one/two"]
    assert synced == expected[len(made) :]
    sqlite_folder.make_folder(tmp_path / "one/two/three")
    assert synced[-1] == tmp_path / "one/two"


def test_a_folder_below_one_that_may_not_be_read_is_synced_with_all_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service manager may give a folder below one that is closed to the service."""
    all_synced = []

    def refuse(path: Path) -> None:
        raise PermissionError(path)

    monkeypatch.setattr(sqlite_folder, "sync", refuse)
    monkeypatch.setattr(os, "sync", lambda: all_synced.append(True))
    sqlite_folder.make_folder(tmp_path)

    assert all_synced == [True]
