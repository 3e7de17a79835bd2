"""Errands that go to all shards, or to one again and again.

**To all shards**: one question to each, and one page of what they say. A shard that is away is named in the answer, and what the others know is
shown; only where none answers the request is refused. Each shard gives its first items in order; the merged page ends where the first
shard that has more to say has stopped, so that nothing is left out between two pages.

**In portions**: what changes many jobs changes a bounded number with each command, each portion atomically. The errand goes on until nothing is
left to do. One that ends midway says how far it came: it was not without effect then, and so is no 429.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from proteus_shards.core.commands import Outcome, Reason, Refused
from proteus_shards.core.commands_control import Counted
from proteus_shards.front.answers import Answer, Problem, json_answer, refusal
from proteus_shards.front.faults import log_fault

if TYPE_CHECKING:
    from proteus_shards.core.commands import Command
    from proteus_shards.front.errands import OnAnswer
    from proteus_shards.front.operations import QueueCommand
    from proteus_shards.front.router import Router


class AskAll:
    """One question to every shard. `show` is given the answers of those that gave one, and the numbers of the others."""

    delivers = False

    def __init__(self, command: Command, show: Callable[[list[Outcome], list[int]], Answer]) -> None:
        self.command = command
        self._show = show
        self._over = False

    def begin(self, router: Router, on_answer: OnAnswer) -> None:
        """See `Errand`."""
        self._on_answer = on_answer
        router.ask_all(self.command, self._take)

    def abandon(self, number: int = 0) -> None:  # noqa: ARG002  # so that a link may stand in its place
        """See `Errand`."""
        self._over = True

    def _take(self, outcomes: Sequence[Outcome]) -> None:
        if self._over:
            return
        answers: list[Outcome] = [outcome for outcome in outcomes if not isinstance(outcome, Refused)]
        refusals = [outcome for outcome in outcomes if isinstance(outcome, Refused)]
        wrong = next((refused for refused in refusals if refused.reason is Reason.INVALID), None)
        if wrong is not None or not answers:
            self._on_answer(refusal(wrong or refusals[0]).answer(), ())
            return
        away = [shard for shard, outcome in enumerate(outcomes) if isinstance(outcome, Refused)]
        _tell(self._on_answer, partial(self._show, answers, away))


class InPortions:
    """A change of many jobs. `next_command` gives the command that goes on behind an answer that says that there is more."""

    delivers = False

    def __init__(
        self, command: QueueCommand, next_command: Callable[[Counted], QueueCommand], show: Callable[[int], Answer] | None = None
    ) -> None:
        self.command = command
        self._next_command = next_command
        self._show = show or show_count
        self._jobs = 0
        self._over = False

    def begin(self, router: Router, on_answer: OnAnswer) -> None:
        """See `Errand`."""
        self._router = router
        self._on_answer = on_answer
        self._submit(self.command)

    def abandon(self, number: int = 0) -> None:  # noqa: ARG002  # so that a link may stand in its place
        """See `Errand`. What is under way has its effect, and is the last."""
        self._over = True

    def _submit(self, command: QueueCommand) -> None:
        sent = self._router.submit(command, self._take)
        if isinstance(sent, Refused):
            self._take(sent)

    def _take(self, outcome: Outcome) -> None:
        if self._over:
            return
        if isinstance(outcome, Refused):
            problem = midway(refusal(outcome, self.command.queue), self._jobs, self.command.queue)
            self._on_answer(problem.answer(), ())
            return
        assert isinstance(outcome, Counted)
        self._jobs += outcome.jobs
        if outcome.more:
            self._submit(self._next_command(outcome))
        else:
            _tell(self._on_answer, partial(self._show, self._jobs))


def midway(problem: Problem, jobs: int, queue: str) -> Problem:
    """Return what is told of a problem that has ended a change of many after so many jobs."""
    if not jobs:
        return problem
    return Problem(status=problem.status if problem.status == 500 else 503, detail=f"after {jobs} jobs: {problem.detail}", queue=queue)


def show_count(jobs: int) -> Answer:
    """Return the answer that tells how many jobs were changed."""
    return json_answer({"jobs": jobs})


def _tell(on_answer: OnAnswer, show: Callable[[], Answer]) -> None:
    try:
        shown = show()
    except Exception as error:  # noqa: BLE001 it is logged and answered
        shown = log_fault(error).answer()
    on_answer(shown, ())
