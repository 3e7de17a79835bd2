"""Test the test: every planted mistake is found, and within how many seeds."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.simulation.mutants import MUTANTS, Mutant
from tests.simulation.run import fails, quiet

SEEDS_MAX = 3000


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_planted_mistake_is_found(
    mutant: Mutant, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    """By one of the first seeds; `python -m tests.simulation --mutants` tells by which."""
    quiet()
    mutant(monkeypatch.setattr)

    found = next((seed for seed in range(SEEDS_MAX) if fails(seed) is not None), None)

    assert found is not None
    record_property("seeds", found + 1)
