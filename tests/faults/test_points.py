"""Processes that end or stall at places which no outside hand can hit: between a commit and its answers, between a frame and its clients.

All runs of this file go on at the same time, a few at once.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from proteus_shards.fault_points import EXIT_STATUS, POINTS, VARIABLE, arm, reached
from tests.conftest import server_environ
from tests.faults.checker import Verdict
from tests.faults.evidence import Terms
from tests.faults.places import open_place
from tests.faults.run import Plan, Result, run
from tests.faults.workload import Shape

AT_ONCE = 5
SEED = 31_000
TERMS = Terms(heal_seconds_max=60.0, late_seconds_max=20.0)
SHAPE = Shape(mixed_queues=2, memory_queues=1, jobs_per_second=120.0, silent_share=0.05)


class Trial(NamedTuple):
    """Where to strike and how, and what must go wrong besides for the place to be passed at all."""

    points: str
    mutation: str = ""
    faults: tuple[str, ...] = ()


TRIALS = {
    "shard.cut": Trial("shard.cut=exit:0.03"),
    "shard.committed": Trial("shard.committed=exit:0.03"),
    "shard.released": Trial("shard.released=exit:0.03"),
    "shard.recovered": Trial("shard.recovered=exit:0.35", faults=("shard killed",) * 8),
    "shard.lost": Trial("shard.lost=exit:0.5", mutation="unknown commits"),
    "link.sent": Trial("link.sent=exit:0.01"),
    "link.received": Trial("link.received=exit:0.01"),
    "link.settled": Trial("link.settled=exit:0.01"),
    "stalls": Trial("shard.committed=stall:0.03 shard.cut=stall:0.03 link.received=stall:0.03 link.sent=stall:0.03"),
}


async def try_all(folder: Path) -> dict[str, Result]:
    """Do all runs."""
    turns = asyncio.Semaphore(AT_ONCE)
    results: dict[str, Result] = {}

    async def try_one(number: int, name: str, trial: Trial) -> None:
        own = folder / str(number)
        own.mkdir()
        plan = Plan(
            SEED + number,
            trial.faults,
            operations=80,
            shape=SHAPE,
            mutation=trial.mutation,
            points=trial.points,
            terms=TERMS,
            calm_seconds=0.5,
        )
        async with turns:
            with open_place("sqlite", own) as place:
                results[name] = await run(plan, place, own)

    async with asyncio.TaskGroup() as group:
        for number, (name, trial) in enumerate(TRIALS.items()):
            group.create_task(try_one(number, name, trial))
    return results


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    """Return what came of each run."""
    return asyncio.run(try_all(tmp_path_factory.mktemp("points")))


@pytest.mark.parametrize("name", TRIALS)
def test_a_server_whose_processes_end_at_the_worst_place_breaks_no_rule(results: dict[str, Result], name: str) -> None:
    """Each place was struck at least once, and the history is as true as without."""
    result = results[name]

    assert {word.partition("=")[0] for word in TRIALS[name].points.split()} == set(result.struck)
    assert Verdict.TRUE is result.judgement.verdict, result.judgement.text()
    assert [] == result.trouble


def test_every_place_is_struck_by_some_trial() -> None:
    """A new place must be added to the trials; those in steps over several shards have a test of their own."""
    tried = {word.partition("=")[0] for trial in TRIALS.values() for word in trial.points.split()}

    assert {name for name in POINTS if not name.startswith("step.")} == tried


@pytest.mark.parametrize("text", ["nowhere=exit:1", "shard.cut=fly:1", "shard.cut", "seed=x", "shard.cut=exit:often", "shard.cut=exit:0"])
def test_words_that_mean_nothing_are_refused(text: str) -> None:
    """A test that strikes nowhere would prove nothing."""
    with pytest.raises(ValueError):  # noqa: PT011 the words differ, and no user sees them
        arm(text)
    arm("")


def test_without_being_asked_nothing_happens_anywhere() -> None:
    """Whatever place is passed."""
    arm("")
    for name in POINTS:
        reached(name)


def test_a_place_strikes_as_often_as_told_and_says_so() -> None:
    """A process that is to end there does, with a status of its own."""
    code = (
        "from proteus_shards.fault_points import reached, arm\n"
        "for _ in range(5): reached('shard.cut')\n"
        "arm('shard.cut=exit:1'); reached('shard.committed'); reached('shard.cut'); print('not here')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=server_environ({VARIABLE: "seed=1 shard.cut=stall:1:2"}),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert (EXIT_STATUS, "") == (done.returncode, done.stdout)
    assert ["stall", "stall", "exit"] == [line.split('"action": "')[1][: -len('"}')] for line in done.stderr.splitlines()]
