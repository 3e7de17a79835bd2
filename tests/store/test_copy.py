"""`proteus-shards store copy`, as a user runs it, and what it makes of stores that do not do as they must."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import msgspec
import pytest

from proteus_shards.core.model import Batch, Row, Status
from proteus_shards.core.placement import shard_of
from proteus_shards.errors import SettingError, StoreError, StoreRefused, StoreUnknown
from proteus_shards.store import copy as copying
from proteus_shards.store.contract import Damaged, Store
from proteus_shards.store.copy import Copied, Digester
from proteus_shards.store.registry import make_store, prepared_shards
from proteus_shards.store.sqlite import SqliteStore
from proteus_shards.store.sqlite_prepare import prepare
from proteus_shards.store.urls import SqliteUrl, read_url
from tests.conftest import StartServer, server_environ
from tests.store.rows import in_asyncio, inserting, load_all, make_row, opened
from tests.store.test_sqlite import execute
from tests.store.test_sqlite_damage import alter
from tests.test_cli import run

SHARDS = 3
ROWS = [
    make_row(
        seq,
        queue=f"q{seq % 17}",
        ready_at=make_row(0).ready_at + seq * 7919 % 31,
        status=(2, 3, 4)[seq % 3],
        run_id=seq.to_bytes(16, "big") if seq % 3 == 1 else None,
        reason="timeout" if seq % 3 == 2 else None,
        attempt=seq,
        run_at=seq if seq % 5 == 0 else None,
        state=[None, b"", b"{}"][seq % 3],
        payload=b"x" * (seq * 37 % 5000),
    )
    for seq in range(1, 400)
]


def at(tmp_path: Path, name: str) -> str:
    """Return the URL of a folder."""
    return f"sqlite:///{tmp_path}/{name}?synchronous=normal"


async def fill(url: str, shards: int, rows: Sequence[Row]) -> None:
    """Prepare a place and put rows there."""
    meant = read_url(url)
    assert isinstance(meant, SqliteUrl)
    prepare(meant, shards)
    for shard in range(shards):
        async with opened(make_store(url, shard, shards)) as store:
            await store.commit(inserting(*(row for row in rows if shard_of(row.slot, shards) == shard)))


async def rows_at(url: str) -> list[list[Row | Damaged]]:
    """Return the rows of each shard of a place."""
    shards = await prepared_shards(url)
    loaded = []
    for shard in range(shards or 0):
        async with opened(make_store(url, shard, shards or 0)) as store:
            loaded.append(await load_all(store))
    return loaded


async def copied(source: str, target: str, *, skip_damaged: bool = False, tell: Callable[[str], None] = lambda _: None) -> Copied:
    """Copy."""
    return await copying.copy(source, target, skip_damaged=skip_damaged, tell=tell)


@pytest.fixture
def source(tmp_path: Path) -> str:
    """Return the URL of a place with rows."""
    url = at(tmp_path, "from")
    asyncio.run(fill(url, SHARDS, ROWS))
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
        assert "TO holds jobs already, of a server or of a copy that was interrupted; nothing was written." in err
        assert "remove its folder and begin anew" in err
        code, out, err = run("store", "copy", source, at(tmp_path, "other"), cwd=tmp_path)

    assert code == 0, err
    assert out.startswith(f"copied {len(ROWS)} jobs of {SHARDS} shards")


# --- what is copied ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prepared", [None, 1, SHARDS, 5])
@in_asyncio
async def test_every_field_of_every_row_is_copied_shard_by_shard(source: str, target: str, prepared: int | None) -> None:
    """Whatever number of shards the empty target was prepared for."""
    if prepared is not None:
        await fill(target, prepared, [])
    done = await copied(source, target)

    assert (done.jobs, done.shards, done.damaged) == (len(ROWS), SHARDS, 0)
    assert len(done.digest) == 64
    assert await rows_at(target) == await rows_at(source)
    assert sum(map(len, await rows_at(target))) == len(ROWS)


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
            **dict.fromkeys(("run_id", "payload"), b"other"),
            "state": None,
        }.items()
    ]

    assert digest([one, two]) == digest([one], [], [two])
    assert len({digest([one, two]), digest([two, one]), digest([one]), *(digest([other, two]) for other in others)}) == 3 + len(others)
    assert len(others) == len(Row.__struct_fields__)


# --- stores that do not do as they must --------------------------------------------------------------------------


class Odd(SqliteStore):
    """A target with limits, and with a fault at some commit or at every load."""

    batch_rows_max: int | None = 7
    batch_bytes_max: int | None = 20_000
    row_bytes_max: int | None = 10_000
    faults: list[tuple[str, bool]]  # of the coming commits: "refused" or "unknown", and whether the batch is written all the same
    spoil: Callable[[list[Row]], list[Row]]  # what becomes of a batch
    sizes: list[int]
    reopened: int

    async def commit(self, batch: Batch) -> None:
        if batch.inserts:
            type(self).sizes.append(sum(map(copying.size_of, batch.inserts)))
            assert len(batch) <= 7
            batch = inserting(*type(self).spoil(batch.inserts))
        fault, written = type(self).faults.pop(0) if batch.inserts and type(self).faults else ("", True)
        if written:
            await super().commit(batch)
        if fault:
            raise StoreRefused if fault == "refused" else StoreUnknown

    async def reopen(self) -> int:
        type(self).reopened += 1
        if type(self).reopened == 1:
            raise StoreRefused
        return await super().reopen()


@pytest.fixture
def odd(target: str, monkeypatch: pytest.MonkeyPatch) -> type[Odd]:
    """Let the target be of this kind, and return its class, on which faults may be set."""

    class Mine(Odd):
        faults: list[tuple[str, bool]] = []  # noqa: RUF012
        spoil = staticmethod(lambda rows: rows)
        sizes: list[int] = []  # noqa: RUF012
        reopened = 0

    def make(url: str, shard: int, shards: int) -> Store:
        if url != target:
            return make_store(url, shard, shards)
        meant = read_url(url)
        assert isinstance(meant, SqliteUrl)
        return Mine(meant, shard, shards)

    monkeypatch.setattr(copying, "make_store", make)
    monkeypatch.setattr(copying, "BACKOFF_SECONDS", 0.001)
    return Mine


@in_asyncio
async def test_batches_keep_within_the_limits_of_the_target(source: str, target: str, odd: type[Odd]) -> None:
    """In rows and in bytes."""
    await copied(source, target)

    assert max(odd.sizes) <= 20_000
    assert len(odd.sizes) >= len(ROWS) // 7
    assert await rows_at(target) == await rows_at(source)


@in_asyncio
async def test_rows_that_are_too_large_for_the_target_are_told_before_anything_is_written(source: str, target: str, odd: type[Odd]) -> None:
    """Which, how large, and how large they may be."""
    large = [row for row in ROWS if copying.size_of(row) > 4900]
    odd.row_bytes_max = 4900
    told: list[str] = []
    with pytest.raises(StoreError, match=rf"{len(large)} jobs are larger than TO can take \(4,900 bytes each\); nothing was written"):
        await copied(source, target, tell=told.append)

    assert sorted(told) == sorted(f"too large: slot {row.slot}, seq {row.seq}: {copying.size_of(row):,} bytes" for row in large)
    assert len(large) > 1
    assert await prepared_shards(target) is None


@in_asyncio
async def test_a_target_that_is_away_for_a_moment_is_waited_for(source: str, target: str, odd: type[Odd]) -> None:
    """A batch in doubt is written once, whether it was written already or not."""
    odd.faults = [("refused", False), ("", True), ("unknown", True), ("unknown", False), ("", True), ("unknown", True)]
    await copied(source, target)

    assert odd.reopened == 5
    assert await rows_at(target) == await rows_at(source)


@in_asyncio
async def test_a_target_that_stays_away_ends_the_copy(source: str, target: str, odd: type[Odd], monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while."""
    monkeypatch.setattr(copying, "PATIENCE_SECONDS", 0.01)
    odd.faults = [("refused", False)] * 10_000
    with pytest.raises(StoreRefused):
        await copied(source, target)


SPOILT: dict[str, Callable[[list[Row]], list[Row]]] = {
    "drops": lambda rows: rows[:-1] if len(rows) == 7 else rows,
    "reorders": lambda rows: [
        *(msgspec.structs.replace(row, ready_at=other.ready_at) for row, other in zip(rows, reversed(rows), strict=True)),
    ],
    "changes": lambda rows: [msgspec.structs.replace(rows[0], state=b"other"), *rows[1:]],
    "empties": lambda rows: [msgspec.structs.replace(row, state=row.state or None) for row in rows],
}


@pytest.mark.parametrize("fault", list(SPOILT))
@in_asyncio
async def test_what_a_target_spoils_is_found(source: str, target: str, odd: type[Odd], fault: str) -> None:
    """A row less, another order, another byte, nothing instead of something empty."""
    odd.spoil = staticmethod(SPOILT[fault])
    with pytest.raises(
        StoreError, match=r"shard 0: \d+ jobs were read \(SHA-256 \w+\) and \d+ are there now .*do not use TO; remove its folder"
    ):
        await copied(source, target)


@in_asyncio
async def test_a_target_that_writes_half_a_batch_is_found(source: str, target: str, odd: type[Odd]) -> None:
    """Though it said that it did not know."""
    odd.spoil = staticmethod(SPOILT["drops"])
    odd.faults = [("unknown", True)] * 100
    with pytest.raises(StoreError, match="TO has written 6 of 7 rows of one batch"):
        await copied(source, target)


@in_asyncio
async def test_a_target_that_gives_back_what_is_no_row_is_found(
    source: str, target: str, odd: type[Odd], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names where, not what."""

    async def load(_self: Odd) -> AsyncIterator[Sequence[Row | Damaged]]:
        if odd.sizes:
            yield [Damaged("row 7", "its payload is missing")]

    monkeypatch.setattr(odd, "load", load)
    with pytest.raises(StoreError, match=r"TO gave back a row that is no job \(row 7: its payload is missing\)"):
        await copied(source, target)


@in_asyncio
async def test_a_server_that_opens_the_source_meanwhile_is_found(source: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy may hold what is no longer there, and says so."""
    made: list[SqliteStore] = []

    def make(url: str, shard: int, shards: int) -> Store:
        store = make_store(url, shard, shards)
        if url == source:
            assert isinstance(store, SqliteStore)
            made.append(store)
        return store

    async def usurp(_target: str, shard: int, _shards: int) -> copying.Digest:
        if shard == SHARDS - 1:
            await execute(made[-2], "UPDATE meta SET epoch = epoch + 1")
        return await real(_target, shard, _shards)

    real = copying._read_back
    monkeypatch.setattr(copying, "make_store", make)
    monkeypatch.setattr(copying, "_read_back", usurp)
    with pytest.raises(StoreError, match="a server has opened shard 1 of FROM while it was copied: do not use TO"):
        await copied(source, target)


@in_asyncio
async def test_a_source_that_changes_between_the_two_readings_is_found(source: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a row was whole before."""
    verdicts = [None] * len(ROWS)
    monkeypatch.setattr(copying, "fault_of", lambda _: verdicts.pop() if verdicts else "gone bad")
    with pytest.raises(StoreError, match="FROM has changed while it was copied"):
        await copied(source, target)


@in_asyncio
async def test_progress_is_told_now_and_then(source: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many jobs there are, and how many of them are written."""
    monkeypatch.setattr(copying, "PROGRESS_SECONDS", 0)
    monkeypatch.setattr(copying, "BATCH_ROWS_MAX", 100)
    told: list[str] = []
    await copied(source, target, tell=told.append)

    size = sum(map(copying.size_of, ROWS))
    assert told[0] == f"{len(ROWS)} jobs in {SHARDS} shards, {size / 1e6:.1f} MB"
    assert told[-1] == f"{len(ROWS)} of {len(ROWS)} jobs written"
    assert len(told) >= 5


@in_asyncio
async def test_nothing_is_left_open(source: str, target: str) -> None:
    """Neither after a copy nor after one that failed: all may be opened at once."""
    await copied(source, target)
    assert await rows_at(source) == await rows_at(target)
    with pytest.raises(StoreError, match="TO holds jobs already"):
        await copied(source, target)
    with pytest.raises(SettingError):
        await copied(source, source)
    assert await rows_at(source) == await rows_at(target)
