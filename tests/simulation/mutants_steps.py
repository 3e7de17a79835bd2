"""Mutants: steps of several changes, and answers that are kept."""

from __future__ import annotations

from proteus_shards.core.once import Once
from proteus_shards.core.steps import Steps
from tests.simulation.planting import Patch, mutant, rewrite


@mutant
def answer_kept_though_undone(patch: Patch) -> None:
    """A named request whose commit has failed is told of success when it comes again."""
    patch(Once, "_undo_of_answer", lambda _self, _record, _known: lambda: None)


@mutant
def answers_lost_at_restart(patch: Patch) -> None:
    """Stored answers are not read back."""
    patch(Once, "_take_answer", lambda _self, _key, _value: None)


@mutant
def answer_not_written(patch: Patch) -> None:
    """Answers are kept in memory only."""
    rewrite(patch, Once, "_keep_answer", "[(record, value, undo)]", "[]")


@mutant
def refusal_forgotten(patch: Patch) -> None:
    """Only what was accepted is answered the same again."""
    rewrite(patch, Once, "_keep_answer", "refusal is None or refusal.reason not in _FOR_NOW", "refusal is None")


@mutant
def other_request_of_the_same_name(patch: Patch) -> None:
    """Whoever uses a name again is told what its first user was told."""
    rewrite(patch, Once, "_enqueue_once", "known.digest != command.digest or ", "")


@mutant
def run_goes_on_after_requeue(patch: Patch) -> None:
    """A step adds its jobs, but does not end its run."""
    rewrite(patch, Steps, "_draft", "self._remove(changes, *run, COMPLETED)", "pass")


@mutant
def refused_step_leaves_jobs(patch: Patch) -> None:
    """A step that is refused at its second job has added the first."""
    patch(Steps, "_take_back", lambda _self, _changes: None)


@mutant
def step_undone_by_half(patch: Patch) -> None:
    """Of a step whose commit fails, memory keeps all but the last change."""
    rewrite(
        patch, Steps, "_log_all", "self._ledger.log(queue, key if alone else None, (told or Done()) if alone else told, job, image)",
        "self._ledger.log(queue, key if alone else None, (told or Done()) if alone else told, job if place == last else None, image)",
    )  # fmt: skip
