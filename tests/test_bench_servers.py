"""The benchmark harness works with database servers: it starts them, counts what is asked of them, and leaves nothing behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

from bench import plan
from bench.counting import Counts, Ledger, size_of
from bench.cpu import GENERATOR, Whole
from bench.plan import Cell
from bench.run import Options, Run, opened_run
from bench.subjects import STORES, ours
from tests.conftest import server_environ

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the generator of bench/ needs epoll")

TINY = Options(seconds=0.1, repeat=1, connections=4, shards=(1,), backlog=500, use_wrk=False)
END_SECONDS_MAX = 30.0

HOLDING = """
import sys, time
from pathlib import Path
from bench.subjects import ours
target = ours("redis").make(Path(sys.argv[1]))
target.start()
print(*(process.pid for processes in target.roles().values() for process in processes), flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Return a run of the smallest kind. It is not in pytest's folder, which is closed to the user that PostgreSQL runs as where the tests are root."""
    with opened_run(TINY, None) as opened:
        yield opened


def needs(store: str) -> None:
    """Skip the test where a store has not all that it needs."""
    if reason := STORES[store].missing():
        pytest.skip(reason)


def gone(pids: list[int]) -> bool:
    """Wait until no such process runs, and say whether that came about in time."""
    deadline = time.monotonic() + END_SECONDS_MAX
    while time.monotonic() < deadline:
        if not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids):
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize("store", ["postgres", "redis"])
def test_a_store_with_a_server_is_measured_and_its_cpu_too(store: str, run: Run) -> None:
    """After a SIGKILL of this server all rows are there, and then answers are checked one by one."""
    needs(store)
    subject = ours(store, fronts=2)
    with run.opened(subject) as target:
        (recovered,) = plan.measure(Cell("recovery", subject), run, target)
        (sample,) = plan.measure(Cell("life-checked", subject), run, target)
        pids = [process.pid for processes in target.roles().values() for process in processes]
        fronts = target.roles()["front"]

    assert (sample.errors, sample.first_error) == (0, "")
    assert set(sample.cpu_us) == {"supervisor", "front", "shard", store, GENERATOR}
    assert len(fronts) == 2
    assert recovered.figures["rows"] == TINY.backlog
    assert gone(pids)


def test_the_cost_of_a_job_is_counted_from_what_the_store_asks_for(run: Run) -> None:
    """Two units for each of its three writes, and a share of the check that each transaction makes."""
    needs("dynamodb")
    subject = ours("dynamodb")
    with run.opened(subject) as target:
        (sample,) = plan.measure(Cell("cost", subject), run, target)

    figures = sample.figures
    assert (sample.errors, sample.first_error) == (0, "")
    assert [figures[f"{step}_units"] for step in ("enqueue", "delivery", "completion")] == pytest.approx([2.0, 2.0, 2.0])
    assert 6.0 < figures["units_per_job"] == pytest.approx(6.0 + figures["epoch_check_units"])
    assert figures["dollars_per_million"] == pytest.approx(0.625 * figures["units_per_job"])


def test_write_units_are_those_of_the_larger_item_and_doubled_in_a_transaction() -> None:
    """For each begun KB."""
    ledger = Ledger()
    key = {"pk": {"S": "p"}, "sk": {"S": "s"}}
    large = {**key, "payload": {"B": "A" * 2048}}  # 1,536 bytes and its names

    ledger.asked(
        "TransactWriteItems", {"TransactItems": [{"Put": {"Item": large}}, {"ConditionCheck": {"Key": {"pk": {"S": "lease"}}}}]}, {}
    )
    before = ledger.counts.copy()
    ledger.asked("TransactWriteItems", {"TransactItems": [{"Delete": {"Key": key}}]}, {"ConsumedCapacity": [{"CapacityUnits": 4.0}]})
    ledger.asked("UpdateItem", {"Key": key}, {})
    ledger.asked("Query", {}, {"ConsumedCapacity": {"CapacityUnits": 9.0}})

    assert size_of(large) == len("pkpskspayload") + 1536
    assert before == Counts({"TransactWriteItems": 1}, {"Put": 1, "ConditionCheck": 1}, {"Put": 4, "ConditionCheck": 2})
    found = ledger.counts.since(before)
    assert found.units == {"Put": 0, "ConditionCheck": 0, "Delete": 4, "UpdateItem": 1}
    assert found.units_answered == 4.0
    assert found.requests == {"TransactWriteItems": 1, "UpdateItem": 1, "Query": 1}


def test_fronts_are_an_axis_like_shards() -> None:
    """Of the rates; what is not a plain rate uses the first number."""
    options = msgspec.structs.replace(TINY, stores=("memory",), peers=(), shards=(1, 2), fronts=(1, 3))
    planned = [cell.subject.name for cell in plan.cells(options, ("enqueue", "wake"))]

    assert planned == ["memory/1", "memory/2", "memory/1/3-fronts", "memory/2/3-fronts", "memory/1/quart", "memory/1"]


def test_a_server_counted_as_one_has_what_its_ended_processes_have_spent() -> None:
    """So that a rate does not lose the CPU of a connection that has ended."""
    spending = "import time\nwhile time.process_time() < 0.2: pass\nprint(flush=True)\ninput()"
    parent = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {spending!r}])\nprint(flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        whole = Whole(process.pid)
        times = whole.cpu_times()
        process.stdin.write("\n")
        process.stdin.flush()
        process.stdout.readline()
        later = whole.cpu_times()
        process.stdin.close()

    assert times.user + times.system > 0.18
    assert later.user + later.system >= times.user + times.system


def test_servers_end_with_a_benchmark_that_is_killed(tmp_path: Path) -> None:
    """It has no time to end them: the kernel does."""
    needs("redis")
    with tempfile.TemporaryDirectory(prefix="b-") as folder:  # its temporary files stay, and names of sockets must be short
        environ = server_environ({}) | {"TMPDIR": folder}
        command = [sys.executable, "-c", HOLDING, str(tmp_path)]
        with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as holder:
            assert holder.stdout is not None
            pids = [int(pid) for pid in holder.stdout.readline().split()]
            holder.kill()
        ended = gone(pids)

    assert len(pids) == 4  # supervisor, front, shard, redis
    assert ended


def test_an_interrupted_benchmark_leaves_nothing_behind(tmp_path: Path) -> None:
    """No process, and no folder."""
    needs("postgres")
    folder, out = Path(tempfile.mkdtemp(prefix="bench-")), tmp_path / "out"
    folder.chmod(0o755)
    command = [sys.executable, "-m", "bench", "--only", "enqueue", "--stores", "postgres", "--shards", "1", "--peers", "none", "--no-wrk"]
    with subprocess.Popen(
        [*command, "--seconds", "60", "--folder", str(folder), "--out", str(out)], env=server_environ({}), cwd=tmp_path
    ) as bench:
        deadline = time.monotonic() + END_SECONDS_MAX
        pids: set[int] = set()
        while not any("bench.worker" in _command(pid) for pid in pids) and time.monotonic() < deadline:
            pids |= {child.pid for child in psutil.Process(bench.pid).children(recursive=True)}
            time.sleep(0.02)
        bench.send_signal(signal.SIGTERM)
        bench.wait(END_SECONDS_MAX)

    assert len(pids) > 5
    assert gone(list(pids))
    assert list(folder.iterdir()) == []
    folder.rmdir()


def _command(pid: int) -> str:
    try:
        return " ".join(psutil.Process(pid).cmdline())
    except psutil.NoSuchProcess:
        return ""
