"""The test of the test: a server with a planted fault is found out, by the rule that is there for it, and a right one never.

All runs of this file go on at the same time, a few at once: most of a run is waiting for timeouts.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from tests.faults.checker import Judgement, Verdict
from tests.faults.evidence import Terms
from tests.faults.mutated import CHANGES, changes_of
from tests.faults.places import open_place
from tests.faults.run import Plan, Result, run
from tests.faults.workload import FEW_RETRIES, Shape

AT_ONCE = 5
SEED = 20_260
TERMS = Terms(heal_seconds_max=60.0, late_seconds_max=20.0)
KILLS = ("shard killed", "shard killed")

_SMALL = {"mixed_queues": 2, "memory_queues": 0, "jobs_per_second": 100.0}
SMALL = Shape(**_SMALL)  # type: ignore[arg-type]
BACKLOG = Shape(**_SMALL, runner_pause_seconds=0.05, backlog_first=60, silent_share=0.2)  # type: ignore[arg-type]
CROWD = Shape(**_SMALL, runner_pause_seconds=0.05, backlog_first=60, silent_share=0.7)  # type: ignore[arg-type]
LATE = Shape(**_SMALL, late_share=0.4)  # type: ignore[arg-type]
SILENT = Shape(**_SMALL, silent_share=0.2)  # type: ignore[arg-type]
RETRIES = Shape(**_SMALL, silent_share=0.2, max_retries=(0, 1, 2))  # type: ignore[arg-type]


class Trial(NamedTuple):
    """A mutation, what it takes to be seen, and the rules of which one at least must see it."""

    mutation: str
    rules: set[str]
    shape: Shape = SMALL
    faults: tuple[str, ...] = ()
    operations: int = 120


RIGHT = {
    "no fault": Trial("plain", set(), Shape(jobs_per_second=150.0)),
    "few retries": Trial("plain", set(), msgspec.structs.replace(FEW_RETRIES, jobs_per_second=150.0), KILLS),
    "commits that are refused": Trial("refused commits", set(), RETRIES, KILLS),
    "commits of unknown outcome": Trial("unknown commits", set(), RETRIES, KILLS),
    "slow commits": Trial("slow commits", set(), SMALL, KILLS, 100),
}
WRONG = {
    "ack before commit": Trial("ack before commit", {"C1"}, BACKLOG, KILLS),
    "lost undo": Trial("lost undo,refused commits", {"C10"}),
    "complete memory first": Trial("complete memory first,refused commits", {"C5"}),
    "swallowed delete": Trial("swallowed delete", {"C5"}, SMALL, KILLS),
    "swallowed in-flight write": Trial("swallowed in-flight write", {"C3"}, BACKLOG, KILLS),
    "recovery by wall time": Trial("recovery by wall time", {"C9"}, BACKLOG, KILLS),
    "off by one retry": Trial("off by one retry", {"C3"}, RETRIES),
    "redelivery before timeout": Trial("redelivery before timeout", {"C4"}, SILENT),
    "run_id ignored": Trial("run_id ignored", {"C6"}, LATE, (), 400),
    "state forgotten": Trial("state forgotten", {"C8"}, SILENT, (), 250),
    "timeouts never come": Trial("timeouts never come", {"C1"}, SILENT),
    "last in first out": Trial("last in first out", {"C9"}, BACKLOG),
    "returned in any order": Trial("returned in any order", {"C9"}, CROWD),
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
            operations=trial.operations,
            shape=trial.shape,
            mutation=trial.mutation,
            terms=TERMS,
            calm_seconds=1.2,
        )
        async with turns:
            with open_place("sqlite", own) as place:
                results[name] = await run(plan, place, own)

    async with asyncio.TaskGroup() as group:
        for number, (name, trial) in enumerate((RIGHT | WRONG).items()):
            group.create_task(try_one(number, name, trial))
    return results


@pytest.fixture(scope="module")
def judgements(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Judgement, list[str]]]:
    """Return the judgement on each run, and what else went wrong in it."""
    results = asyncio.run(try_all(tmp_path_factory.mktemp("mutants")))
    return {name: (result.judgement, result.trouble) for name, result in results.items()}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_server_breaks_no_rule_whatever_happens_to_it(judgements: dict[str, tuple[Judgement, list[str]]], name: str) -> None:
    """No fault at all; kills with few retries; a store that refuses, that does not say what it did, that is slow."""
    judgement, trouble = judgements[name]

    assert Verdict.TRUE is judgement.verdict, judgement.text()
    assert [] == trouble


@pytest.mark.parametrize("name", WRONG)
def test_a_planted_fault_is_found_by_its_rule(judgements: dict[str, tuple[Judgement, list[str]]], name: str) -> None:
    """Other rules may find it, too."""
    judgement, _ = judgements[name]

    assert Verdict.FALSE is judgement.verdict, judgement.text()
    assert WRONG[name].rules & judgement.broken, judgement.text()


def test_a_mutant_that_has_lost_its_place_says_so() -> None:
    """Each piece of source that is replaced stands in its module exactly once."""
    import importlib.util

    for name in CHANGES:
        for change in changes_of(name):
            spec = importlib.util.find_spec(change.module)
            assert spec is not None
            assert spec.origin is not None
            assert 1 == Path(spec.origin).read_text().count(change.old), name
