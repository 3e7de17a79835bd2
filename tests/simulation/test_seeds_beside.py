"""Thousands of seeds, the next of them: each answer is as the oracle says, and each world is drained once it is healed.

They are in two files, which run side by side: `--dist loadfile` gives each file to one process. Together they spend about four and a half million operations: commands, commits and faults.
"""

from __future__ import annotations

from tests.simulation.run import find_nothing

SEEDS = range(3000, 6000)
FAULTS = {"crash", "close", "jump", "stall", "take_over", "reshard", "drain", "commit unknown", "commit refused", "commit permanent"}


def test_no_seed_finds_anything() -> None:
    """And every kind of fault has come."""
    tally = find_nothing(SEEDS)

    assert len(SEEDS) == tally.seeds
    assert set() == FAULTS - set(tally.faults)
