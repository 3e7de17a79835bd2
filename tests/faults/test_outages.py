"""Each store under load, hurt in every way that it can be: the history must be true, and while the store is away clients must be told so.

One run per kind of store has all its faults, one after the other, each as soon as the one before has healed. An outage is short here; `python -m
tests.faults` makes them as long as one likes. How long healing may take is a claim (5 s), and a busy machine is no counterexample: here it
is multiplied by `PROTEUS_TEST_PATIENCE` (6, unless told).
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import server_environ
from tests.faults.checker import RULES, Verdict
from tests.faults.evidence import Terms
from tests.faults.history import Window
from tests.faults.nemesis import FAULTS, possible
from tests.faults.places import NotHere, Place, open_place
from tests.faults.report import report
from tests.faults.run import Account, Plan, Result, run

SEED = 4_711
PATIENCE = float(os.environ.get("PROTEUS_TEST_PATIENCE", "6"))
OUTAGE_SECONDS = float(os.environ.get("PROTEUS_TEST_OUTAGE_SECONDS", "2"))
TERMS = Terms(heal_seconds_max=5.0 * PATIENCE, late_seconds_max=5.0 * PATIENCE)

PROCESSES = ("shard killed", "shard paused", "front killed", "front paused", "all paused", "clock set", "reshard", "supervisor killed")
OUTAGES = (
    "store killed",
    "store stopped",
    "store paused",
    "store full",
    "link cut",
    "link reset",
    "link slow",
    "link dead",
    "answers lost",
)
FAULTS_OF = {  # those that take longest share their time with those that do not
    "dynamodb": (*OUTAGES, "shard killed"),
    "sqlite": ("store full", "disk slow", "disk errors", *PROCESSES),
    "postgres": (*OUTAGES, "shard killed"),
    "redis": (*OUTAGES, "store restarted", "reshard"),
}
NOT_FELT = {"link slow"}  # an outage during which the store may take everything


async def hurt_all(folder: Path) -> dict[str, Result | NotHere]:
    """Do the runs on all stores, two at a time: most of a run is waiting for what heals."""
    turns = asyncio.Semaphore(2)
    results: dict[str, Result | NotHere] = {}

    async def hurt(kind: str) -> None:
        own = folder / kind
        own.mkdir()
        async with turns:
            with ExitStack() as stack:
                try:
                    place = await asyncio.to_thread(stack.enter_context, open_place(kind, own))
                    results[kind] = await run(_plan(kind, place), place, own)
                except NotHere as reason:
                    results[kind] = reason
                finally:
                    await asyncio.to_thread(stack.close)

    async with asyncio.TaskGroup() as group:
        for kind in FAULTS_OF:
            group.create_task(hurt(kind))
    return results


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result | NotHere]:
    """Return what came of each run."""
    return asyncio.run(hurt_all(tmp_path_factory.mktemp("outages")))


@pytest.fixture(params=FAULTS_OF)
def result(results: dict[str, Result | NotHere], request: pytest.FixtureRequest) -> Result:
    """Return what came of the run on one store."""
    found = results[request.param]
    if isinstance(found, NotHere):
        pytest.skip(str(found))
    return found


def _plan(kind: str, place: Place) -> Plan:
    faults = tuple(name for name in FAULTS_OF[kind] if FAULTS[name] in possible(place, clock=True))
    return Plan(SEED, faults, fault_seconds=OUTAGE_SECONDS, terms=TERMS, clock="clock set" in faults)


def test_the_history_of_a_hurt_server_is_true(result: Result) -> None:
    """Nothing acknowledged is lost, doubled or reordered; every queue is served again soon, and no process had to be started by hand."""
    assert Verdict.TRUE is result.judgement.verdict, f"seed {result.plan.seed}\n{result.judgement.text()}\n{result.log[-4000:]}"
    assert [] == result.trouble


def test_a_store_that_is_away_is_said_to_be_away_within_the_request_timeout(result: Result) -> None:
    """Each request about persisted jobs is answered, 429 or 503 where it was not done, and some were refused."""
    for account in _outages(result):
        answers = set(account.persisted)
        assert answers <= {"ok", "404", "409", "429", "503"}, account
        assert answers & {"429", "503"} or account.window.fault in NOT_FELT, account


def test_jobs_in_memory_do_not_feel_an_outage_of_the_store(result: Result) -> None:
    """Queues without persisted jobs go on, and nothing of theirs is refused."""
    for account in _outages(result):
        assert account.memory["ok"] > 0, account
        assert set(account.memory) <= {"ok", "404", "409"}, account


def test_what_could_not_be_tried_is_known(result: Result) -> None:
    """As root, on Linux, everything can."""
    assert [] == result.notes or os.geteuid() != 0 or all("tmpfs" in note for note in result.notes)


def test_a_report_tells_the_verdict_each_rule_and_each_fault(result: Result) -> None:
    """In lines for a person to read."""
    lines = report(result).splitlines()

    assert "verdict: true" in lines
    assert {*RULES, *result.plan.faults} <= {name for line in lines for name in (line[:18].rstrip(), line.partition(" ")[0])}


def test_a_fault_that_there_is_not_is_refused() -> None:
    """The command says which there are."""
    ran = subprocess.run(
        [sys.executable, "-m", "tests.faults", "--faults", "bad luck"], env=server_environ({}), capture_output=True, text=True, check=False
    )

    assert 2 == ran.returncode
    assert "no such fault: bad luck; there are shard killed, " in ran.stderr


def _outages(result: Result) -> list[Account]:
    return [account for account in result.accounts if FAULTS[account.window.fault].of_store and _happened(account.window)]


def _happened(window: Window) -> bool:
    return not window.refused
