"""Mutants: jobs that come by themselves."""

from __future__ import annotations

from proteus_shards.core.recurring import Recurring
from tests.simulation.planting import Patch, mutant, rewrite


@mutant
def time_not_written_with_its_job(patch: Patch) -> None:
    """What a schedule has dealt with is known in memory only: after a restart it comes again."""
    rewrite(patch, Recurring, "_note_change", "_record_key(schedule), value, undo)", "_record_key(schedule), pack_schedule(before), undo)")


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
