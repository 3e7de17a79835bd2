"""Requests that take more than one command: several queues, several operations, a completion and what comes after it.

An `Errand` is one such request under way. It is sync: `begin` submits commands, outcomes come back through callbacks, and in the end `on_answer`
is called once with the answer and the jobs in it. The lane and Quart carry the same errands out, so both answer alike.

**No job is lost to an errand.** Whoever serves HTTP calls `abandon` when the client is gone. What was asked of a shard is cancelled then, and what it
has delivered already goes back, as for a single `next`. What is no `next` has its effect all the same.

**Several queues** are asked one after the other, so that the order in which they are named counts, and nothing is taken that is not
needed: a round trip to a shard for each queue that is empty. When all are, and the client waits, a poll waits at each of them;
the first that is answered ends the others, and what they bring nevertheless goes back to its place. A shard that refuses ends the wait too:
the client shall come again soon, and not wait through the time in which that shard gets well.

**Complete and next** leave in one frame, one behind the other, so that a loop of a runner costs one round trip and one commit. The job is taken
before it is known how the completion ends. Where that is refused, the job goes back to its place with no attempt spent, and another
runner that asks in this very moment is given the one behind it.

**A batch** leaves as one frame for each shard. Operations of one queue thus are applied in the order of the request; nothing joins those of different
shards, and none is undone because another failed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeAlias

from proteus_shards.core.commands import Complete, Delivered, Delivery, Next, Outcome, Reason, Refused
from proteus_shards.front.answers import Answer, Problem, refusal
from proteus_shards.front.faults import log_fault

if TYPE_CHECKING:
    from proteus_shards.front.link import Link
    from proteus_shards.front.operations import QueueCommand
    from proteus_shards.front.router import Router

JOBS_BYTES_MAX = 8 * 1024 * 1024  # of payloads and states, after which no further queue is asked; one next alone may bring more

OnAnswer: TypeAlias = "Callable[[Answer, Sequence[Delivery]], None]"
ShowJobs: TypeAlias = "Callable[[Delivered], Answer]"

_NO_JOBS = Delivered([])


class Errand(Protocol):
    """A request that takes several commands. `delivers` says whether it may bring jobs, and so must be abandoned when nobody waits for it."""

    @property
    def delivers(self) -> bool:
        """Whether jobs may come of it."""

    def begin(self, router: Router, on_answer: OnAnswer) -> None:
        """Set out. `on_answer` is called once, perhaps at once, and must not block."""

    def abandon(self, number: int = 0) -> None:
        """Wait no longer: `on_answer` is not called any more, and jobs go back."""


class NextOfSeveral:
    """A `next` on several queues: up to `count` jobs, in the order of the queues; with none in any, waits for the first."""

    delivers = True

    def __init__(self, queues: Sequence[str], count: int, wait_us: int, show: ShowJobs) -> None:
        self.queues = queues
        self._count = count
        self._wait_us = wait_us
        self._show = show
        self._jobs: list[Delivery] = []
        self._bytes = 0
        self._refused: Answer | None = None
        self._under_way: dict[int, tuple[Link, int]] = {}  # by place among the queues

    def begin(self, router: Router, on_answer: OnAnswer) -> None:
        """See `Errand`."""
        self._router = router
        self._on_answer = on_answer
        self._ask(0)

    def abandon(self, number: int = 0) -> None:  # noqa: ARG002  # so that a link may stand in its place
        """See `Errand`."""
        self._end_others()
        jobs, self._jobs = self._jobs, []
        self._router.undeliver(jobs)

    def _ask(self, place: int) -> None:
        """Ask the queue at a place without waiting, or come to an end."""
        left = self._count - len(self._jobs)
        if place < len(self.queues) and left > 0 and self._bytes < JOBS_BYTES_MAX:
            self._submit(place, Next(self.queues[place], left), partial(self._take, place))
        elif self._jobs:
            self._tell(Delivered(self._jobs))
        elif self._refused is not None:
            self._on_answer(self._refused, ())
        elif self._wait_us:
            self._wait()
        else:
            self._tell(_NO_JOBS)

    def _take(self, place: int, outcome: Outcome) -> None:
        self._under_way.pop(place, None)
        if isinstance(outcome, Delivered):
            self._jobs += outcome.jobs
            self._bytes += _bytes_of(outcome.jobs)
        elif isinstance(outcome, Refused) and self._refused is None:
            self._refused = refusal(outcome, self.queues[place]).answer()
        self._ask(place + 1)

    def _wait(self) -> None:
        for place, queue in enumerate(self.queues):
            if self._refused is None:
                self._submit(place, Next(queue, self._count, self._wait_us), partial(self._take_first, place))

    def _take_first(self, place: int, outcome: Outcome) -> None:
        """End the wait with whatever comes first: a job, a refusal, or the end of the time, which is the same for all."""
        self._under_way.pop(place, None)
        self._end_others()
        if isinstance(outcome, Refused):
            self._refused = refusal(outcome, self.queues[place]).answer()
            self._on_answer(self._refused, ())
        elif isinstance(outcome, Delivered):
            self._tell(outcome)

    def _tell(self, outcome: Delivered) -> None:
        _tell(self._router, self._on_answer, partial(self._show, outcome), outcome.jobs)

    def _submit(self, place: int, command: Next, on_reply: Callable[[Outcome], None]) -> None:
        sent = self._router.submit(command, on_reply)
        if isinstance(sent, Refused):
            on_reply(sent)
        else:
            self._under_way[place] = sent

    def _end_others(self) -> None:
        under_way, self._under_way = self._under_way, {}
        for link, number in under_way.values():
            link.abandon(number)


class CompleteAndNext:
    """Completes a job, and then is a `next` on one queue or several. Problems say in `completed` what became of the completion, where that is known."""

    delivers = True

    def __init__(self, complete: Complete, queues: Sequence[str], count: int, wait_us: int, show: ShowJobs) -> None:
        self.command = complete
        self.queues = queues
        self._count = count
        self._wait_us = wait_us
        self._show = show
        self._completed = False
        self._over = False
        self._next: tuple[Link | NextOfSeveral, int] | None = None
        self._outcome: Outcome | None = None  # of the next

    def begin(self, router: Router, on_answer: OnAnswer) -> None:
        """See `Errand`."""
        self._router = router
        self._on_answer = on_answer
        sent = router.submit(self.command, self._take_completion)
        if isinstance(sent, Refused):
            self._take_completion(sent)
        elif len(self.queues) == 1:
            asked = router.submit(Next(self.queues[0], self._count, self._wait_us), self._take_next)
            if isinstance(asked, Refused):
                self._outcome = asked
            else:
                self._next = asked

    def abandon(self, number: int = 0) -> None:  # noqa: ARG002  # so that a link may stand in its place
        """See `Errand`."""
        self._over = True
        if self._next is not None:
            waits, at = self._next
            waits.abandon(at)
        if isinstance(self._outcome, Delivered):
            self._router.undeliver(self._outcome.jobs)

    def _take_completion(self, outcome: Outcome) -> None:
        if self._over:
            return
        if isinstance(outcome, Refused):
            self.abandon()
            completed = None if outcome.reason in (Reason.UNKNOWN, Reason.FAULT) else False
            problem = refusal(outcome, self.command.queue, self.command.id, completed=completed)
            self._on_answer(problem.answer(), ())
            return
        self._completed = True
        if self._outcome is not None:
            self._finish(self._outcome)
        elif len(self.queues) > 1:
            several = NextOfSeveral(self.queues, self._count, self._wait_us, self._show)
            self._next = (several, 0)
            several.begin(self._router, self._take_several)

    def _take_next(self, outcome: Outcome) -> None:
        self._next = None
        self._outcome = outcome
        if self._completed:
            self._finish(outcome)

    def _take_several(self, shown: Answer, jobs: Sequence[Delivery]) -> None:
        self._next = None
        if shown.status < 300:
            self._on_answer(shown, jobs)
        else:
            self._on_answer(_only_completed("a queue could not be asked", self.queues[0], shown.status).answer(), ())

    def _finish(self, outcome: Outcome) -> None:
        self._outcome = None
        if isinstance(outcome, Delivered):
            _tell(self._router, self._on_answer, partial(self._show, outcome), outcome.jobs)
        else:
            assert isinstance(outcome, Refused)
            problem = refusal(outcome, self.queues[0])
            self._on_answer(_only_completed(problem.detail, self.queues[0], problem.status).answer(), ())


def _only_completed(detail: str, queue: str, status: int) -> Problem:
    """Return the problem of a completion that was done, and of which no next job came. It was not without effect, so it is no 429."""
    text = f"the job is completed, but the next could not be fetched: {detail}"
    return Problem(status=status if status == 500 else 503, detail=text, queue=queue, completed=True)


Item: TypeAlias = "QueueCommand | Problem"
ShowItems: TypeAlias = "Callable[[Sequence[Item], list[Outcome]], Answer]"


class Batch:
    """Several commands at once. `items` are in the order of the request, those that were wrong as their problems.

    `show` is given the items and the outcomes of those that are commands.
    """

    def __init__(self, items: Sequence[Item], show: ShowItems, *, delivers: bool = False) -> None:
        self.delivers = delivers
        self.items = items
        self.show = show
        self._over = False

    def begin(self, router: Router, on_answer: OnAnswer) -> None:
        """See `Errand`."""
        self._router = router
        self._on_answer = on_answer
        router.submit_all([item for item in self.items if not isinstance(item, Problem)], self._take)

    def abandon(self, number: int = 0) -> None:  # noqa: ARG002  # so that a link may stand in its place
        """See `Errand`. What it delivers comes all the same, and goes back."""
        self._over = True

    def _take(self, outcomes: list[Outcome]) -> None:
        jobs = self._fitting(outcomes) if self.delivers else []
        if self._over:
            self._router.undeliver(jobs)
        else:
            _tell(self._router, self._on_answer, partial(self.show, self.items, outcomes), jobs)

    def _fitting(self, outcomes: list[Outcome]) -> list[Delivery]:
        """Return the jobs that the answer has room for. Those of a `next` beyond that go back, and its outcome becomes a refusal."""
        jobs: list[Delivery] = []
        size = 0
        for place, outcome in enumerate(outcomes):
            if isinstance(outcome, Delivered) and outcome.jobs:
                more = _bytes_of(outcome.jobs)
                if jobs and size + more > JOBS_BYTES_MAX:
                    self._router.undeliver(outcome.jobs)
                    outcomes[place] = Refused(Reason.BUSY, f"the answer would have more than {JOBS_BYTES_MAX} bytes of payload and state")
                else:
                    jobs += outcome.jobs
                    size += more
        return jobs


def _bytes_of(jobs: Sequence[Delivery]) -> int:
    return sum(len(job.payload) + len(job.state or b"") for job in jobs)


def _tell(router: Router, on_answer: OnAnswer, show: Callable[[], Answer], jobs: Sequence[Delivery]) -> None:
    """Give an answer. Where it cannot be made, its jobs go back, and the client is told of a fault."""
    try:
        shown = show()
    except Exception as error:  # noqa: BLE001 it is logged and answered
        router.undeliver(jobs)
        shown, jobs = log_fault(error).answer(), ()
    on_answer(shown, jobs)
