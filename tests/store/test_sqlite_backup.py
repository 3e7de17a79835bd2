"""`store backup`: a copy of a SQLite store that a server is using."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from proteus_shards.core.model import Batch
from proteus_shards.errors import SettingError, StoreError
from proteus_shards.store.sqlite import LOG_PAGES_MAX, SqliteStore
from proteus_shards.store.sqlite_backup import CheckpointLock, run
from proteus_shards.store.sqlite_folder import database_path, manifest_for
from proteus_shards.store.sqlite_prepare import prepare
from proteus_shards.store.urls import SqliteUrl
from tests.conftest import Server, StartServer, server_environ
from tests.store.rows import in_asyncio, inserting, load_all, make_row

PAGE_BYTES = 4096


def silent(_line: str) -> None:
    """Tell nobody."""


async def opened_in(folder: Path) -> SqliteStore:
    """Return the open store of a folder's only shard."""
    prepare(SqliteUrl(folder), 1)
    store = SqliteStore(SqliteUrl(folder), 0, 1)
    await store.open()
    return store


async def rows_in(folder: Path) -> list[int | None]:
    """Return the numbers of all rows of a folder."""
    store = await opened_in(folder)
    try:
        return [row.seq for row in await load_all(store)]
    finally:
        await store.close()


def sha256_of(path: Path) -> str:
    """Return the hash of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def size_of(path: str) -> int:
    """Return how large a file is; 0 where there is none."""
    return Path(path).stat().st_size if Path(path).exists() else 0


def take_all(server: Server, queue: str) -> list[str]:
    """Fetch all jobs of a queue."""
    answer = server.request("GET", f"/next?queue={queue}&num_jobs=1000")
    return [job["id"] for job in answer.json()] if answer.status == 200 else []


def test_a_backup_of_a_server_under_load_has_all_that_was_acknowledged_before(start_server: StartServer, tmp_path: Path) -> None:
    """In order, as a store that a server can start on; the server itself goes on."""
    server = start_server("--shards", "2", "--store", f"sqlite:///{tmp_path}/jobs")
    queues = ["q", "t"]
    done = threading.Event()
    sent: dict[str, int] = dict.fromkeys(queues, 0)

    def enqueue_on(queue: str) -> None:
        while not done.is_set() and sent[queue] < 900:
            job = {"queue": queue, "id": str(sent[queue]), "timeout": 60, "persist_data": True, "payload": "x" * 2000}
            assert server.request("POST", "/enqueue", job).status == 202
            sent[queue] += 1

    threads = [threading.Thread(target=enqueue_on, args=(queue,)) for queue in queues]
    for thread in threads:
        thread.start()
    while min(sent.values()) < 100:
        done.wait(0.01)
    before = dict(sent)
    summary = run(f"sqlite:///{tmp_path}/jobs", str(tmp_path / "copy"), tell=silent)
    done.set()
    for thread in threads:
        thread.join()

    assert summary.shards == 2
    restored = start_server("--shards", "2", "--store", f"sqlite:///{tmp_path}/copy")
    for queue in queues:
        found = take_all(restored, queue)
        assert found == [str(number) for number in range(len(found))]
        assert before[queue] <= len(found) <= sent[queue]
        assert take_all(server, queue) == [str(number) for number in range(sent[queue])]


@in_asyncio
async def test_checkpoints_wait_for_a_backup_and_commits_do_not(tmp_path: Path) -> None:
    """The log grows beyond what makes a checkpoint due, and closing leaves the database as it is; nothing is lost."""
    store = await opened_in(tmp_path / "jobs")
    database = database_path(tmp_path / "jobs", manifest_for(tmp_path / "jobs", 1), 0)
    await store.commit(Batch([], [make_row(seq=0)], []))
    hold = CheckpointLock(database.parent)
    hold.take()
    before = sha256_of(database)

    for seq in range(1, 13):
        await store.commit(inserting(make_row(seq=seq, payload=b'"%s"' % (b"x" * (PAGE_BYTES * LOG_PAGES_MAX // 10)))))
    await store.close()

    assert sha256_of(database) == before
    assert size_of(f"{database}-wal") > PAGE_BYTES * LOG_PAGES_MAX
    hold.close()
    assert await rows_in(tmp_path / "jobs") == list(range(13))
    assert size_of(f"{database}-wal") == 0


@in_asyncio
async def test_a_store_that_nobody_has_open_is_backed_up_too(tmp_path: Path) -> None:
    """As it is: its log, where it has one, is taken in."""
    store = await opened_in(tmp_path / "jobs")
    await store.commit(inserting(*(make_row(seq=seq) for seq in range(5))))
    await store.close()

    run(f"sqlite:///{tmp_path}/jobs", str(tmp_path / "copy"), tell=silent)

    assert await rows_in(tmp_path / "copy") == await rows_in(tmp_path / "jobs") == list(range(5))
    assert (tmp_path / "copy").stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in (tmp_path / "copy").rglob("*") if path.is_file())


def test_what_can_be_no_backup_is_refused(tmp_path: Path) -> None:
    """A folder that is there, one that an interrupted backup left, no store, another kind of store, a damaged file."""
    prepare(SqliteUrl(tmp_path / "jobs"), 1)
    source = f"sqlite:///{tmp_path}/jobs"
    (tmp_path / "there").mkdir()
    (tmp_path / "cut.partial").mkdir()

    with pytest.raises(SettingError, match="is there already"):
        run(source, str(tmp_path / "there"), tell=silent)
    with pytest.raises(SettingError, match="interrupted: remove it first"):
        run(source, str(tmp_path / "cut"), tell=silent)
    with pytest.raises(StoreError, match="holds no store"):
        run(f"sqlite:///{tmp_path}/nothing", str(tmp_path / "new"), tell=silent)
    with pytest.raises(SettingError, match="for SQLite"):
        run("postgres://localhost/jobs", str(tmp_path / "new"), tell=silent)
    assert not (tmp_path / "new").exists()

    database = database_path(tmp_path / "jobs", manifest_for(tmp_path / "jobs", 1), 0)
    with database.open("r+b") as file:
        file.seek(PAGE_BYTES + 5)
        file.write(b"\xff" * 2000)
    with pytest.raises(StoreError, match="damaged"):
        run(source, str(tmp_path / "new"), tell=silent)
    assert not (tmp_path / "new").exists()


def test_the_folder_may_be_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read as that of a store: relative with three slashes, absolute with four, and with its escapes."""
    monkeypatch.chdir(tmp_path)
    prepare(SqliteUrl(tmp_path / "jobs"), 1)

    copied = [run("sqlite:///jobs", target, tell=silent).folder for target in ("sqlite:///b%201", f"SQLITE:///{tmp_path}/b2")]

    assert copied == [str(tmp_path / "b 1"), str(tmp_path / "b2")]
    assert {path.name for path in tmp_path.iterdir()} == {"jobs", "b 1", "b2"}


@pytest.mark.parametrize("target", ["postgres://u:secret@h/d", "s3://secret/b", "sqlite://secret", "sqlite:///b?check=secret"])
def test_a_url_that_means_no_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    """Nothing is made, and the message does not repeat it: it may hold a password."""
    monkeypatch.chdir(tmp_path)
    prepare(SqliteUrl(tmp_path / "jobs"), 1)

    with pytest.raises(SettingError) as refused:
        run("sqlite:///jobs", target, tell=silent)

    assert "secret" not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["jobs"]


def test_the_command_says_what_it_copied(tmp_path: Path) -> None:
    """On standard output, in one line that names the copy as a URL."""
    prepare(SqliteUrl(tmp_path / "jobs"), 2)
    command = [sys.executable, "-P", "-m", "proteus_shards", "store", "backup", "sqlite:///jobs", "copy"]

    ran = subprocess.run(command, cwd=tmp_path, env=server_environ({}), capture_output=True, text=True, timeout=60, check=True)

    assert ran.stdout.startswith("backed up 2 shards, ")
    assert ran.stdout.endswith(f"checked page by page: sqlite:///{tmp_path}/copy\n")
    assert json.loads((tmp_path / "copy" / "manifest.json").read_bytes())["shards"] == 2
