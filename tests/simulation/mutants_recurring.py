"""Mutants: jobs that come by themselves."""

from __future__ import annotations

from proteus_shards.core.recurring import Recurring
from tests.simulation.planting import Patch, mutant, rewrite


@mutant
def time_comes_early(patch: Patch) -> None:
    """Schedules make their jobs some seconds before they are due."""
    rewrite(
        patch,
        Recurring,
        "_deal_with",
        "while at is not None and at <= self._wall:",
        "while at is not None and at <= self._wall + 5_000_000:",
    )
