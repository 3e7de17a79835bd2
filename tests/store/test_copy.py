"""`proteus-shards store copy`, as a user runs it. What it makes of odd stores stands in `test_copy_odd.py`."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from proteus_shards.core.model import Row, Status
from proteus_shards.core.placement import shard_of
from proteus_shards.errors import StoreError
from proteus_shards.store.copy import Digester
from proteus_shards.store.registry import prepared_shards
from tests.conftest import StartServer, server_environ
from tests.store.copying import RECORDS, ROWS, SHARDS, at, copied, fill, records_at, rows_at
from tests.store.rows import in_asyncio, make_row
from tests.store.test_sqlite_damage import alter
from tests.test_cli import run


@pytest.fixture
def source(tmp_path: Path) -> str:
    """Return the URL of a place with rows and records."""
    url = at(tmp_path, "from")
    asyncio.run(fill(url, SHARDS, ROWS, RECORDS))
    return url


@pytest.fixture
def target(tmp_path: Path) -> str:
    """Return the URL of a place that is not there yet."""
    return at(tmp_path, "to")


# --- the command -------------------------------------------------------------------------------------------------


def test_the_jobs_of_a_stopped_server_are_those_of_another(start_server: StartServer) -> None:
    """In order, with another number of shards too; the first store stays as it is."""
    server = start_server("--store", "sqlite:///one", "--shards", "2")
    cwd = server.log_path.parent
    names = [str(number) for number in range(30)]
    for name in names:
        job = {"id": name, "queue": f"q{int(name) % 3}", "timeout": 30, "persist_data": True, "payload": {"n": name}}
        assert server.request("POST", "/enqueue", job).status == 202
    assert server.stop() == 0

    code, out, err = run("store", "copy", "sqlite:///one", "sqlite:///two", cwd=cwd)
    again = run("store", "copy", "sqlite:///two", "sqlite:///three", cwd=cwd)

    assert (code, err) == (0, "30 jobs in 2 shards, 0.0 MB\n")
    assert out.startswith("copied 30 jobs of 2 shards in ")
    assert again[0] == 0
    assert out.rpartition(" ")[2] == again[1].rpartition(" ")[2]
    for store, shards in (("two", "3"), ("one", "2")):
        server = start_server("--store", f"sqlite:///{store}", "--shards", shards)
        jobs = [server.request("GET", f"/next?queue=q{queue}&num_jobs=100").json() for queue in range(3)]
        assert [[job["id"] for job in some] for some in jobs] == [names[queue::3] for queue in range(3)]
        assert server.stop() == 0


def test_a_store_in_use_is_not_copied(start_server: StartServer) -> None:
    """Neither from nor to; the server goes on, and nothing is written."""
    server = start_server("--store", "sqlite:///one")
    cwd = server.log_path.parent
    assert server.request("POST", "/enqueue", {"id": "1", "queue": "q", "timeout": 30, "persist_data": True}).status == 202
    refused = run("store", "copy", "sqlite:///one", "sqlite:///two", cwd=cwd)
    asyncio.run(fill(at(cwd, "three"), 1, [make_row(1)]))
    into = run("store", "copy", "sqlite:///three", "sqlite:///one", cwd=cwd)

    for code, out, err in (refused, into):
        assert (code, out) == (1, "")
        assert err.startswith("proteus-shards: another proteus-shards process holds ")
        assert err.count("\n") == 1
    assert not (cwd / "two").exists()
    assert server.request("GET", "/next?queue=q").json()["id"] == "1"
    assert '"level": "error"' not in server.log()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("hunter2", "sqlite:///to"), "FROM must be a URL"),
        (("sqlite:///from", "nothing://ada:hunter2@host/db"), "TO: there is no store of the scheme 'nothing'"),
        (("memory:", "sqlite:///to"), "FROM: this store keeps no jobs"),
        (("sqlite:///from", "memory:"), "TO: this store keeps no jobs"),
        (("sqlite:///from", "sqlite:///./from?"), "FROM and TO are the same store"),
    ],
)
def test_a_place_that_cannot_be_meant_exits_with_2(tmp_path: Path, arguments: tuple[str, str], message: str) -> None:
    """The message names which of the two, and shows no secret."""
    code, out, err = run("store", "copy", *arguments, cwd=tmp_path)

    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"proteus-shards: {message}")
    assert "hunter2" not in err
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
from proteus_shards import cli
from proteus_shards.store import copy
real, left = copy._commit, [int(sys.argv[3])]
async def commit(target, batch):
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    await real(target, batch)
copy._commit = commit
copy.BATCH_ROWS_MAX = 20
cli.main(["store", "copy", sys.argv[1], sys.argv[2]])
"""


@pytest.mark.parametrize("commits", [0, 9])
def test_a_copy_that_was_killed_is_begun_anew(source: str, target: str, tmp_path: Path, commits: int) -> None:
    """Where it has written anything, the next one is refused and says how; the source is as it was."""
    command = [sys.executable, "-c", KILLED, source, target, str(commits)]
    killed = subprocess.run(command, env=server_environ({}), capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL

    code, out, err = run("store", "copy", source, target, cwd=tmp_path)
    if commits:
        assert (code, out) == (1, "")
        assert "TO holds records already, of a server or of a copy that was interrupted; nothing was written." in err
        assert "remove its folder and begin anew" in err
        code, out, err = run("store", "copy", source, at(tmp_path, "other"), cwd=tmp_path)

    assert code == 0, err
    assert out.startswith(f"copied {len(ROWS)} jobs and {len(RECORDS)} records of {SHARDS} shards")


# --- what is copied ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prepared", [None, 1, SHARDS, 5])
@in_asyncio
async def test_every_field_of_every_row_is_copied_shard_by_shard(source: str, target: str, prepared: int | None) -> None:
    """Whatever number of shards the empty target was prepared for."""
    if prepared is not None:
        await fill(target, prepared, [])
    done = await copied(source, target)

    assert (done.jobs, done.records, done.shards, done.damaged) == (len(ROWS), len(RECORDS), SHARDS, 0)
    assert len(done.digest) == 64
    assert await rows_at(target) == await rows_at(source)
    assert sum(map(len, await rows_at(target))) == len(ROWS)
    assert await records_at(target) == await records_at(source)
    assert sum(map(len, await records_at(target))) == len(RECORDS)


@in_asyncio
async def test_an_empty_store_is_copied(tmp_path: Path, target: str) -> None:
    """It becomes another one."""
    await fill(at(tmp_path, "from"), 2, [])

    assert (await copied(at(tmp_path, "from"), target)).jobs == 0
    assert await prepared_shards(target) == 2


@in_asyncio
async def test_what_was_never_prepared_is_not_copied(tmp_path: Path, target: str) -> None:
    """Rather a misspelt name than a store without jobs."""
    with pytest.raises(StoreError, match="no server has ever prepared it"):
        await copied(at(tmp_path, "from"), target)
    assert await prepared_shards(target) is None


@in_asyncio
async def test_a_target_with_jobs_is_refused_and_stays_as_it_is(source: str, target: str) -> None:
    """Even one with a single dead letter in its last shard, and another number of shards."""
    dead = next(make_row(1, queue=f"q{n}", status=int(Status.DEAD)) for n in range(99) if make_row(1, queue=f"q{n}").slot >= 900)
    await fill(target, 4, [dead])
    with pytest.raises(StoreError, match="TO holds jobs already"):
        await copied(source, target)

    assert await rows_at(target) == [[], [], [], [dead]]


@in_asyncio
async def test_damaged_rows_are_told_one_by_one_and_left_behind_only_if_asked(source: str, target: str, tmp_path: Path) -> None:
    """Those that the store cannot read, and those that no shard would take."""
    files = sorted((tmp_path / "from/generation-000001").glob("*.sqlite3"))
    first, second = (next(row for row in ROWS if shard_of(row.slot, SHARDS) == shard) for shard in (0, 1))
    alter(files[0], f"UPDATE job SET queue = CAST(x'ff' AS TEXT) WHERE seq = {first.seq}")
    alter(files[1], f"UPDATE job SET timeout = -5 WHERE seq = {second.seq}")
    told: list[str] = []
    with pytest.raises(StoreError, match=r"2 stored rows are no jobs; nothing was written.*--skip-damaged"):
        await copied(source, target, tell=told.append)
    assert await prepared_shards(target) is None
    assert [line.split(":")[0] for line in told] == ["damaged", "damaged"]
    assert f"seq {first.seq}: queue is not UTF-8" in told[0]
    assert f"seq {second.seq}: timeout, attempt and seq must be in their range" in told[1]

    done = await copied(source, target, skip_damaged=True)

    assert (done.jobs, done.damaged) == (len(ROWS) - 2, 2)
    assert "2 damaged rows left behind" in done.summary
    assert sorted(row.seq for rows in await rows_at(target) for row in rows if isinstance(row, Row)) == [
        row.seq for row in ROWS if row not in (first, second)
    ]


def test_a_digest_tells_rows_apart_by_order_and_by_every_field() -> None:
    """And not by how they were cut into chunks."""

    def digest(*chunks: list[Row]) -> bytes:
        digester = Digester()
        for chunk in chunks:
            digester.add(chunk)
        return digester.digest().value

    one, two = make_row(1, state=b""), make_row(2)
    others = [
        msgspec.structs.replace(one, **{name: changed})
        for name, changed in {
            **dict.fromkeys(
                ("slot", "seq", "status", "ready_at", "timeout", "max_retries", "attempt", "created_at", "updated_at", "run_at"), 77
            ),
            **dict.fromkeys(("queue", "id", "reason"), "other"),
            **dict.fromkeys(("run_id", "payload", "extras"), b"other"),
            "state": None,
        }.items()
    ]

    assert digest([one, two]) == digest([one], [], [two])
    assert len({digest([one, two]), digest([two, one]), digest([one]), *(digest([other, two]) for other in others)}) == 3 + len(others)
    assert len(others) == len(Row.__struct_fields__)
