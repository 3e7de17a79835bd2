"""The benchmark harness works: every scenario once, as small as it goes, against real servers. No number is judged here."""

from __future__ import annotations

import itertools
import json
import math
import re
import subprocess
import sys
from array import array
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from bench import bars, load, plan, report, wrk
from bench.cpu import GENERATOR, scaled
from bench.engine import LoadError, split_http
from bench.jobs import Family, balanced
from bench.results import NotMeasured, Results
from bench.run import Options, Run, Sample, opened_run
from bench.subjects import PEERS, STORES, ours, peer
from bench.targets import BEANSTALKD, Target
from bench.works_beanstalk import split_beanstalk
from bench.works_timed import arrivals
from proteus_shards.core.placement import shard_of, slot_of
from tests.conftest import server_environ

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the generator of bench/ needs epoll")

TINY = Options(
    seconds=0.1,
    repeat=1,
    connections=4,
    stores=("memory",),
    shards=(1,),
    backlog=3000,
    batch_jobs=450,
    waiters=12,
    wakes_per_second=60.0,
    cold_queues=6,
    large_bytes=1 << 17,
    use_wrk=False,
)
ROOT = Path(__file__).resolve().parent.parent
COMMAND_SECONDS_MAX = 120
MEMORY = ours("memory")
FAMILIES = itertools.count(10_000, 1000)  # beyond those of the shared run


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Return a run of the smallest kind. It is not in pytest's folder, which is closed to the user that PostgreSQL runs as where the tests are root."""
    with opened_run(TINY, None) as opened:
        yield opened


@pytest.fixture(scope="module")
def memory(run: Run) -> Iterator[Target]:
    """Return a server without a store, which the scenarios here share: each uses queues of its own."""
    with run.opened(MEMORY) as target:
        yield target


def checked(found: Sample | list[Sample]) -> list[Sample]:
    """Return samples, once nothing in them is wrong."""
    samples = found if isinstance(found, list) else [found]
    assert samples
    for sample in samples:
        assert (sample.errors, sample.first_error) == (0, "")
        assert math.isfinite(sample.value)
        assert all(map(math.isfinite, sample.figures.values()))
    return samples


@pytest.mark.parametrize("name", [name for name, scenario in plan.SCENARIOS.items() if not scenario.stores or "memory" in scenario.stores])
def test_a_scenario_runs_and_all_its_answers_are_right(name: str, run: Run, memory: Target) -> None:
    """With the own generator, which checks contents."""
    samples = checked(plan.SCENARIOS[name].measure(run, MEMORY, memory))

    assert all(sample.requests > 0 for sample in samples)
    if name != "memory":
        assert all({"front", "shard", GENERATOR} <= set(sample.cpu_us) for sample in samples)


def test_recovery_kills_a_server_with_a_store_and_counts_its_rows(run: Run) -> None:
    """The rows come from the log of the shards, and must be those that were enqueued."""
    subject = ours("sqlite-full", 2)
    with run.opened(subject) as target:
        (sample,) = checked(plan.SCENARIOS["recovery"].measure(run, subject, target))

        assert sample.figures["rows"] == TINY.backlog
        checked(plan.SCENARIOS["life-checked"].measure(run, subject, target))


@pytest.mark.skipif(not wrk.available(), reason="wrk is not installed")
@pytest.mark.parametrize("name", ["enqueue", "next", "life", "loop", "large"])
def test_a_rate_by_wrk_has_no_wrong_answers(name: str, run: Run, memory: Target) -> None:
    """Its life never asks for a job that is not there, although it reads no answer."""
    with_wrk = Run(msgspec.structs.replace(TINY, use_wrk=True, seconds=0.5), run.folder, next(FAMILIES))

    (sample,) = checked(plan.SCENARIOS[name].measure(with_wrk, MEMORY, memory))

    assert sample.generator == "wrk"


@pytest.mark.parametrize("name", [name for name, entry in PEERS.items() if not entry.missing()])
def test_a_peer_that_is_installed_is_measured_too(name: str, run: Run) -> None:
    """In every scenario that its entry names."""
    for scenario in PEERS[name].scenarios:
        with run.opened(peer(name)) as target:
            checked(plan.measure(plan.Cell(scenario, peer(name)), run, target))


def test_the_command_prints_tables_and_writes_json(tmp_path: Path) -> None:
    """From outside, as a user runs it; what it started is gone afterwards, and so is its folder."""
    command = [sys.executable, "-m", "bench", "--quick", "--no-wrk", "--only", "batch", "--stores", "memory", "--batch-jobs", "300"]
    folder, out = tmp_path / "folder", tmp_path / "out"
    folder.mkdir()

    ran = subprocess.run(
        [*command, "--connections", "3", "--folder", str(folder), "--out", str(out)],
        env=server_environ({}),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=COMMAND_SECONDS_MAX,
    )

    assert ran.returncode == 0, ran.stderr
    assert re.search(r"^batch +memory/1 +[0-9,.]+ +jobs/s", ran.stdout, re.MULTILINE)
    assert re.search(r"^batch of 100, memory +[0-9,]+ jobs/s +≥ 300,000 jobs/s +(yes|NO)$", ran.stdout, re.MULTILINE)
    assert re.search(r"^full life, memory +not measured ", ran.stdout, re.MULTILINE)
    written = json.loads((out / "bench.json").read_bytes())
    assert [(cell["scenario"], cell["subject"]) for cell in written["cells"]] == [("batch", "memory/1")]
    assert written["failures"] == []
    assert list(folder.iterdir()) == []


def test_a_scenario_that_finds_a_wrong_answer_says_so(run: Run, memory: Target) -> None:
    """Here jobs are asked for that were never enqueued."""
    family = run.family(MEMORY)

    loaded = load.run(memory.address, load.Take(family, 3), connections=1)

    assert loaded.errors == 3
    assert loaded.first_error.startswith("status 204 in place of 200")


def test_a_generator_that_cannot_connect_is_told_from_a_slow_server() -> None:
    """It raises, with the reason."""
    with pytest.raises(LoadError, match="refused"):
        load.run(("127.0.0.1", 1), load.Take(Family("t", ["q"]), 1), connections=1)


@pytest.mark.parametrize("cut", [None, *range(0, 120, 7)])
def test_an_answer_is_whole_only_with_its_last_byte(cut: int | None) -> None:
    """Wherever the bytes are cut."""
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 4\r\nDate: Thu, 01 Jan 2026 00:00:00 GMT\r\n\r\n1234"
    data = b"xx" + answer[:cut]

    assert split_http(data, 2) == (None if cut is not None and cut < len(answer) else (200, len(data) - 4, len(data)))
    assert split_http(b"HTTP/1.1 204 No Content\r\n\r\nHTTP", 0) == (204, 27, 27)
    assert split_beanstalk(b"RESERVED 7 4\r\n12\r\n", 0) is None
    assert split_beanstalk(b"RESERVED 7 4\r\n1234\r\nIN", 0) == (200, 0, 20)
    assert split_beanstalk(b"OUT_OF_MEMORY\r\n", 0) == (500, 0, 15)


@pytest.mark.parametrize("number", [0, 7, 999_999, 1_000_000_000])
def test_a_request_is_as_long_as_it_says(number: int) -> None:
    """Whatever the number of its job."""
    family = Family("t-", ["a", "queue-2"], persist=True)
    head, _, body = family.enqueue(number).partition(b"\r\n\r\n")

    assert f"Content-Length: {len(body)}".encode() in head.split(b"\r\n")
    assert json.loads(body) == {
        "id": family.id(number),
        "queue": family.queue(number),
        "timeout": 86400,
        "persist_data": True,
        "payload": "x" * 22,
    }


@pytest.mark.parametrize("shards", [1, 2, 4, 7])
def test_queues_are_spread_evenly_over_the_shards(shards: int) -> None:
    """So that no shard is the limit by chance of a name."""
    names = balanced("q", 4 * shards, shards)
    owners = [shard_of(slot_of(name), shards) for name in names]

    assert len(set(names)) == 4 * shards
    assert {owners.count(shard) for shard in range(shards)} == {4}


def test_arrivals_are_fixed_and_come_at_their_rate() -> None:
    """The same seed gives the same times."""
    times = arrivals(1000.0, 5.0, seed=3)

    assert times == arrivals(1000.0, 5.0, seed=3)
    assert times == sorted(times)
    assert 4500 < len(times) < 5500
    assert times[-1] < 5.0


def test_percentiles_are_values_that_occurred() -> None:
    """None of them is interpolated."""
    values = array("d", range(1, 101))

    assert [1, 51, 100, 100] == [load.percentile(values, percent) for percent in (0, 50, 99.9, 100)]
    assert math.isnan(load.percentile(array("d"), 50))


def test_the_model_divides_cores_where_they_help_most() -> None:
    """One process is never worth more than one core, and the generator is elsewhere."""
    us = {"front": 20.0, "shard": 10.0, GENERATOR: 100.0}

    assert scaled(us, 1) == (1e6 / 30, 1, 1)
    assert scaled(us, 2) == (50_000, 1, 1)
    assert scaled(us, 3) == (100_000, 2, 1)
    assert scaled(us, 6) == (200_000, 4, 2)


def results_of(values: dict[tuple[str, str], list[float]]) -> Results:
    """Return results with these values."""
    cells = [plan.Cell(scenario, ours(subject.split("/")[0]) if "/" in subject else peer(subject)) for scenario, subject in values]
    results = Results(cells)
    for cell, each in zip(cells, values.values(), strict=True):
        results.add(cell, [Sample(value=value) for value in each])
    return results


def test_a_bar_is_held_against_medians_and_never_met_unmeasured() -> None:
    """What it needs and the run lacks makes it neither met nor missed."""
    results = results_of({("enqueue", "memory/1"): [10.0, 90.0, 40.0], ("enqueue", "uvicorn"): [50.0], ("life", "memory/1"): [8999.0]})
    found = {verdict.name: verdict for verdict in bars.verdicts(results)}

    assert found["enqueue, memory: to bare uvicorn"].measured == 0.8
    assert found["enqueue, memory: to bare uvicorn"].met is True
    assert found["full life, memory"].met is False
    assert found["enqueue, memory: fast lane to Quart on Hypercorn"].met is None
    assert len(report.bars_table(list(found.values())).splitlines()) == len(bars.BARS) + 2


def test_a_cell_with_errors_is_no_measurement() -> None:
    """A bar cannot be met by fast wrong answers."""
    cell = plan.Cell("life", MEMORY)
    results = Results([cell])
    results.add(cell, [Sample(value=1e9, errors=1, first_error="status 404")])

    with pytest.raises(NotMeasured, match="had errors"):
        results.value("life", "memory/1")
    assert results.failures() == ["life memory/1: 1 errors, the first: status 404"]


def test_the_plan_holds_every_cell_that_a_bar_asks_for() -> None:
    """As long as all peers are installed."""
    options = Options()
    planned = {(cell.scenario, cell.subject.name) for cell in plan.cells(options)}
    asked: set[tuple[str, str]] = set()

    class Asked(Results):
        def value(self, scenario: str, subject: str, figure: str | None = None) -> float:  # noqa: ARG002
            asked.add((scenario, subject))
            return 1.0

    bars.verdicts(Asked([]))

    absent = plan.absent(options)
    assert {cell for cell in asked - planned if cell[0] in plan.SCENARIOS and cell[1].split("/")[0] not in absent} == set()
    assert ("enqueue", "memory/1/quart") in planned
    assert {cell.subject.store for cell in plan.cells(options)} >= set(STORES) - set(absent)
    assert (BEANSTALKD is None) == ("beanstalkd" in plan.absent(options))
