"""`proteus-shards doctor`, as a user runs it, and what it makes of stores in trouble."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Self

import pytest

from proteus_shards import cli
from proteus_shards.core.model import Batch, RecordKey
from proteus_shards.errors import StoreError, StoreRefused
from proteus_shards.store import doctor, registry, sqlite_kind
from proteus_shards.store.contract import Durability
from proteus_shards.store.findings import Finding
from proteus_shards.store.sqlite_trial import SqliteTrial
from proteus_shards.store.urls import SqliteUrl, StoreUrl
from tests.conftest import STOP_SECONDS_MAX, Server, StartServer, eventually, server_environ
from tests.store.rows import in_asyncio
from tests.test_cli import run


def test_a_new_store_is_fit_and_nothing_is_left_of_the_trial(tmp_path: Path) -> None:
    """One finding a line, the remedy below, a summary at the end; the default store where none is named."""
    code, out, err = run("doctor", cwd=tmp_path)

    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[-1].startswith("sqlite: fit for a server")
    assert all(line.split(maxsplit=1)[0] in {"ok", "note", "warning", "→"} for line in lines[:-1])
    assert any(line.startswith("note     proteus-data does not exist yet") for line in lines)
    assert any("jobs of 110 bytes, 100 at a time: " in line for line in lines)
    assert names_in(tmp_path) == []


def names_in(folder: Path) -> list[str]:
    """Return what is in a folder."""
    return sorted(path.name for path in folder.iterdir())


def test_json_says_the_same_to_a_program(tmp_path: Path) -> None:
    """Numbers as numbers; options come from the environment and a file as for serve."""
    (tmp_path / "p.toml").write_text('require-durability = "process"\n')

    code, out, err = run(
        "doctor", "--json", "--config", "p.toml", cwd=tmp_path, environ={"PROTEUS_STORE": "sqlite:///x?synchronous=normal"}
    )

    told = json.loads(out)
    assert (code, err, told["store"], told["sound"], told["durability"]) == (0, "", "sqlite", True, "process")
    assert [rate["batch_rows"] for rate in told["rates"]] == [1, 100]
    assert all(rate["rows_per_second"] > 0 and rate["commit_ms"] > 0 for rate in told["rates"])
    assert told["round_trip_ms"] > 0
    assert {finding["level"] for finding in told["findings"]} <= {"good", "note", "warning"}


def test_a_fault_ends_it_with_1(tmp_path: Path) -> None:
    """Nothing is tried on a store that is at fault."""
    (tmp_path / "proteus-data").mkdir()
    (tmp_path / "proteus-data/manifest.json").write_text("{")

    code, out, err = run("doctor", cwd=tmp_path)

    assert (code, err) == (1, "")
    assert "\nFAULT    proteus-data/manifest.json is damaged: restore it from a backup\n" in out
    assert "at a time" not in out
    assert out.splitlines()[-1].startswith("sqlite: not fit for a server (1 fault")


def test_a_store_that_is_weaker_than_required_is_a_fault(tmp_path: Path) -> None:
    """As it would be for serve."""
    code, out, _ = run("doctor", "--store", "memory:", "--require-durability", "machine", cwd=tmp_path)

    assert code == 1
    assert "FAULT    durability memory: nothing is kept; that is weaker than what --require-durability asks for (machine)\n" in out


@pytest.mark.parametrize("url", ["nothing://ada:hunter2@host/db", "hunter2", "sqlite:///x?password=hunter2"])
def test_a_wrong_store_exits_with_2_and_shows_no_secret(tmp_path: Path, url: str) -> None:
    """One line, which names the option."""
    code, out, err = run("doctor", "--store", url, cwd=tmp_path)

    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("proteus-shards: --store")
    assert "hunter2" not in err


def test_a_missing_driver_exits_with_2_and_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is a setting that cannot be met, not a store in trouble."""

    def missing(_: str) -> None:
        raise ModuleNotFoundError(name="asyncpg")

    monkeypatch.setattr(registry, "import_module", missing)

    assert cli.main(["doctor", "--store", "sqlite:///x"]) == 2
    assert "pip install '.[postgres]' in the clone" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_doctor_that_is_stopped_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    """Though it was in the middle of its trial."""
    doctor_process = subprocess.Popen(
        [sys.executable, "-m", "proteus_shards", "doctor", "--store", "sqlite:///jobs"],
        cwd=tmp_path,
        env=server_environ({}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    eventually(lambda: list(tmp_path.glob(".trial-*/generation-000001/*.sqlite3-wal")) or doctor_process.poll() is not None)
    doctor_process.send_signal(number)
    out, _ = doctor_process.communicate(timeout=STOP_SECONDS_MAX)

    assert (doctor_process.returncode, out) == (1, "")
    assert names_in(tmp_path) == []


class Load:
    """Producers and runners that keep a server busy until told to end. `orderly`: every request must be answered."""

    def __init__(self, server: Server, *, orderly: bool = True) -> None:
        self.statuses: set[int] = set()
        self.jobs = 0
        self._server = server
        self._orderly = orderly
        self._ending = threading.Event()
        self._busy = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(number,)) for number in range(3)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        assert self._busy.wait(20)
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()

    def _work(self, number: int) -> None:
        count = 0
        while not self._ending.is_set():
            queue = f"q{number}-{count % 7}"
            job = {"id": str(count), "queue": queue, "timeout": 30, "persist_data": True}
            self._ask("POST", "/enqueue", job)
            self._ask("GET", f"/next?queue={queue}")
            self._ask("DELETE", f"/complete?queue={queue}&job_id={count}")
            count += 1
            self.jobs += 1
            if count == 20:
                self._busy.set()

    def _ask(self, method: str, path: str, body: object = None) -> None:
        try:
            self.statuses.add(self._server.request(method, path, body).status)
        except OSError:
            if self._orderly:
                self.statuses.add(0)


def test_a_server_at_work_is_not_disturbed(start_server: StartServer) -> None:
    """It answers every request, logs no complaint and keeps its epochs; the doctor sees that it runs."""
    server = start_server("--connections-max", "100")
    cwd = server.log_path.parent
    with Load(server) as load:
        before = load.jobs
        first = run("doctor", "--json", cwd=cwd)
        second = run("doctor", cwd=cwd)
        between = load.jobs - before

    assert (first[0], second[0]) == (0, 0), (first, second)
    assert load.statuses == {200, 202}
    assert between > 0
    held = [finding["what"] for finding in json.loads(first[1])["findings"] if "a server has the files open" in finding["what"]]
    assert [int(what.rpartition(" ")[2].rstrip(")")) in server.children() for what in held] == [True]
    assert server.stop() == 0
    log = [json.loads(line) for line in server.log().splitlines()]
    assert [line for line in log if line["level"] not in {"debug", "info"}] == []
    assert len([line for line in log if line["event"] == "recovered"]) == 2
    assert names_in(cwd / "proteus-data") == ["generation-000001", "manifest.json"]


# --- stores in trouble -------------------------------------------------------------------------------------------


class Trouble(SqliteTrial):
    """A trial on which something goes wrong."""

    faults: dict[str, Exception] = {}  # noqa: RUF012  # a test replaces it

    async def open(self) -> int:
        self._meet("open")
        return await super().open()

    async def commit(self, batch: Batch) -> None:
        if batch.inserts:
            self._meet("insert")
        if batch.deletes:
            self._meet("delete")
        await super().commit(batch)

    async def close(self) -> None:
        await super().close()
        self._meet("close")

    def _meet(self, moment: str) -> None:
        if moment in self.faults:
            raise self.faults[moment]


@pytest.fixture
def trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, dict[str, Any]]:
    """Return the URL of a store whose trial meets faults, and the dict to put them in."""
    faults: dict[str, Any] = {}
    monkeypatch.setattr(Trouble, "faults", faults)
    monkeypatch.setattr(sqlite_kind, "trial", lambda _: Trouble(SqliteUrl(tmp_path / "data", synchronous="normal")))
    monkeypatch.setattr(doctor, "RATE_SECONDS", 0.05)
    return f"sqlite:///{tmp_path}/data", faults


@pytest.mark.parametrize(
    ("moment", "error", "expected"),
    [
        ("open", StoreRefused("host h, port 1: refused"), Finding("fault", "a trial failed: host h, port 1: refused")),
        (
            "insert",
            StoreRefused("too many requests"),
            Finding("warning", "commits of 100 rows were refused: too many requests", "jobs that come so fast get 429"),
        ),
        ("delete", StoreError("no"), Finding("fault", "a trial failed: no")),
        ("close", StoreError("no"), Finding("warning", "the trial's traces could not be removed: no")),
    ],
)
@in_asyncio
async def test_what_a_trial_meets_is_a_finding(
    trouble: tuple[str, dict[str, Any]], tmp_path: Path, moment: str, error: Exception, expected: Finding
) -> None:
    """With what was tried, and what came of it; what the trial wrote is gone."""
    url, faults = trouble
    faults[moment] = error

    report = await doctor.diagnose(url, Durability.MEMORY)

    assert expected in report.findings
    assert report.sound == (expected.level != "fault")
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("lost", [{}, {RecordKey(0, 1, "trial"): b"other"}])
@in_asyncio
async def test_a_store_that_loses_records_is_at_fault(
    trouble: tuple[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, lost: dict[RecordKey, bytes]
) -> None:
    """Or has changed what they say."""
    url, _ = trouble

    async def read_records(_self: Trouble, _keys: Sequence[RecordKey]) -> dict[RecordKey, bytes]:
        return lost

    monkeypatch.setattr(Trouble, "read_records", read_records)
    report = await doctor.diagnose(url, Durability.MEMORY)

    assert [finding.what.split(":")[0] for finding in report.findings if finding.level == "fault"] == [
        "a record was written and could not be read back as it was"
    ]


@pytest.mark.parametrize(("shards", "level"), [(None, "note"), (2, "fault")])
@in_asyncio
async def test_a_trial_that_needs_a_prepared_store_is_put_off(
    trouble: tuple[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, shards: int | None, level: str
) -> None:
    """Until a server has prepared it; from then on it is at fault."""
    url, faults = trouble
    faults["open"] = StoreError("there are no tables")

    async def prepared(_: StoreUrl) -> int | None:
        return shards

    monkeypatch.setattr(sqlite_kind, "prepared_shards", prepared)
    report = await doctor.diagnose(url, Durability.MEMORY)

    assert [finding.level for finding in report.findings if "there are no tables" in finding.what] == [level]


@in_asyncio
async def test_a_store_that_hangs_is_a_finding_in_time(trouble: tuple[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it hangs when it is looked at or when it is tried."""
    url, _ = trouble
    monkeypatch.setattr(doctor, "EXAMINE_SECONDS_MAX", 0.05)

    async def hang(_: StoreUrl) -> AsyncIterator[Finding]:
        yield Finding("good", "the name was found")
        await asyncio.Event().wait()

    monkeypatch.setattr(sqlite_kind, "examine", hang)
    report = await doctor.diagnose(url, Durability.MEMORY)

    assert [finding.level for finding in report.findings] == ["good", "fault"]
    assert report.findings[1].what == "the store did not answer within 0 s"

    async def nothing(_: StoreUrl) -> AsyncIterator[Finding]:
        return
        yield

    async def never(_self: Trouble) -> int:
        await asyncio.Event().wait()
        return 0

    monkeypatch.setattr(sqlite_kind, "examine", nothing)
    monkeypatch.setattr(Trouble, "open", never)
    monkeypatch.setattr(doctor, "TRIAL_SECONDS_MAX", 0.05)
    report = await doctor.diagnose(url, Durability.MEMORY)

    assert [finding.what for finding in report.findings] == ["a trial took more than 0 s"]


@in_asyncio
async def test_an_examination_that_raises_is_a_finding(trouble: tuple[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """A store should say what is wrong as a finding, but one that cannot is believed too."""
    url, _ = trouble

    async def fail(_: StoreUrl) -> AsyncIterator[Finding]:
        raise StoreRefused("host h cannot be reached")
        yield

    monkeypatch.setattr(sqlite_kind, "examine", fail)

    assert (await doctor.diagnose(url, Durability.MEMORY)).findings == [
        Finding("fault", "the store cannot be looked at: host h cannot be reached")
    ]


@in_asyncio
async def test_a_trial_keeps_within_the_limits_of_its_store_and_of_its_own(
    trouble: tuple[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No batch is larger than the store takes, no more rows are written than are allowed, and all are deleted again."""
    url, _ = trouble
    sizes: list[int] = []
    left: set[int] = set()
    real = SqliteTrial.commit

    async def commit(self: SqliteTrial, batch: Batch) -> None:
        sizes.append(len(batch))
        await real(self, batch)
        left.update(row.seq for row in batch.inserts)
        left.difference_update(key.seq for key in batch.deletes)

    monkeypatch.setattr(Trouble, "commit", commit)
    monkeypatch.setattr(Trouble, "batch_rows_max", 7)
    monkeypatch.setattr(doctor, "RATE_ROWS_MAX", 21)
    monkeypatch.setattr(doctor, "RATE_SECONDS", 60)
    report = await doctor.diagnose(url, Durability.MEMORY)

    assert [rate.batch_rows for rate in report.rates] == [1, 7]
    assert max(sizes) == 7
    assert sum(sizes) == 4 * 21 + 2
    assert left == set()
