"""The steward of a cluster's hosts in simulated ones: some seconds of seeds, and every planted mistake is found."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.conftest import server_environ
from tests.simulation.cluster_mutants import MUTANTS
from tests.simulation.cluster_run import fails, live_through, report
from tests.simulation.planting import Mutant

SEEDS = 100
MUTANT_SEEDS_MAX = 1000
FIRST = {  # where to look for those that few seeds find: not far from one that did
    "lease_from_the_answer": 84,
    "same_beat_again": 84,
    "absence_counts": 92,
    "opened_without_the_claim": 66,
}


def test_no_seed_finds_anything() -> None:
    """Two owners never both write, every shard is served again after healing, shares are even and then rest. A failing seed is told in the message."""
    tally = live_through(range(SEEDS))

    assert not tally.failed, report(tally.failed[0])
    expected = (
        "join",
        "leave",
        "move",
        "drain",
        "kill",
        "kill_back",
        "pause",
        "cut",
        "outage",
        "replace",
        "jump",
        "suspend",
        "restart_node",
    )
    assert not [fault for fault in expected if not tally.faults[fault]]


def test_a_seed_replays_to_the_same_story_in_another_process() -> None:
    """Nothing in it hangs on hashes, addresses or the time."""
    told = report(4)

    ran = subprocess.run(
        [sys.executable, "-m", "tests.simulation", "--cluster", "--seed", "4"],
        env=server_environ({"PYTHONHASHSEED": "12345"}),
        capture_output=True,
        text=True,
        check=False,
    )

    assert (ran.returncode, ran.stderr) == (0, "")
    assert f"seed 4\n{told}\n" == ran.stdout


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_planted_mistake_is_found(
    mutant: Mutant, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    """By one of the first seeds; `python -m tests.simulation --cluster --mutants` tells by which."""
    mutant(monkeypatch.setattr)

    first = FIRST.get(mutant.__name__, 0)
    found = next((seed for seed in range(first, first + MUTANT_SEEDS_MAX) if fails(seed) is not None), None)

    assert found is not None
    record_property("seeds", found + 1)
