"""Mistakes that the simulator must find: each a small change to the core, the pump or the store, as somebody could make it.

`test_mutants.py` plants them one by one, and `python -m tests.simulation --mutants` tells by how many seeds each is found.
"""

from __future__ import annotations

from tests.simulation import (
    mutants_commits,
    mutants_operators,
    mutants_recurring,
    mutants_rows,
    mutants_runs,
    mutants_semantics,
    mutants_steps,
)
from tests.simulation.planting import MUTANTS, Mutant

__all__ = [
    "MUTANTS",
    "Mutant",
    "mutants_commits",
    "mutants_operators",
    "mutants_recurring",
    "mutants_rows",
    "mutants_runs",
    "mutants_semantics",
    "mutants_steps",
]
