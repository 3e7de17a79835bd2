"""Steps of several jobs, carried out in one shard or over several, and what becomes of those that nobody carries on with.

What each shard does in a step over several, and why that is whole after any crash, stands in `core.spans`. Here is who asks: `Span` is the errand of one step,
and whoever finds a step that was left takes it to its end with `carry_on`. Both are sync, like all errands: commands out, outcomes back through callbacks.

What the client is told:

- Refused before the decision: surely without effect, so what a shard did not say in time is BUSY and not UNKNOWN.
- The decision was not heard of, or a shard has not concluded in time: UNKNOWN. `carry_on` ends it, soon.
- Accepted: every shard has its jobs, and an enqueue that comes after is behind them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, Protocol, TypeAlias

import msgspec

from proteus_shards.core.commands import (
    AskDecision,
    Begin,
    Conclude,
    Decide,
    Decided,
    Done,
    Enqueue,
    EnqueueAll,
    Forget,
    ListSteps,
    Mode,
    OpenStep,
    OpenSteps,
    Outcome,
    Prepare,
    Reason,
    Refused,
    Requeue,
)
from proteus_shards.core.placement import slot_of
from proteus_shards.fault_points import reached
from proteus_shards.front.answers import Answer
from proteus_shards.front.errands import OnAnswer
from proteus_shards.front.faults import log_fault
from proteus_shards.front.pending import OnReply

LEFT_US = 5_000_000  # a step that has been under way for so long was left by its front

EFFECT_UNKNOWN = frozenset({Reason.UNKNOWN, Reason.FAULT})

log = logging.getLogger("proteus_shards.front")


class Run(msgspec.Struct, frozen=True):
    """The run that a step completes."""

    queue: str
    id: str
    run_id: bytes


Show: TypeAlias = Callable[[Outcome], Answer]


class Routes(Protocol):
    """What a step needs of a router."""

    def link_of(self, queue: str) -> Any:
        """Return the link to the shard that owns a queue."""

    def submit(self, command: Any, on_reply: OnReply) -> tuple[Any, int] | Refused:
        """Send a command to the shard of its queue."""


class Span:
    """Jobs that are added together, perhaps with the end of a run. `show` is given `Done`, or a `Refused` whose field "jobs[3]" names a job."""

    delivers = False

    def __init__(self, run: Run | None, jobs: Sequence[Enqueue], mode: Mode, show: Show) -> None:
        assert run is not None or jobs
        self._run = run
        self._jobs = jobs
        self._mode = mode
        self._show = show
        self._home = run.queue if run is not None else jobs[0].queue
        self._step = b""

    @property
    def adds(self) -> bool:
        """Whether it adds jobs."""
        return bool(self._jobs)

    @property
    def queues(self) -> list[str]:
        """The queues that it is about."""
        return [self._home, *(job.queue for job in self._jobs)]

    def begin(self, router: Routes, on_answer: OnAnswer) -> None:
        """See `errands.Errand`."""
        self._router = router
        self._on_answer = on_answer
        groups: dict[Hashable, list[int]] = {}
        for place, job in enumerate(self._jobs):
            groups.setdefault(router.link_of(job.queue), []).append(place)
        self._own = groups.pop(router.link_of(self._home), [])
        self._others = list(groups.values())
        if not self._others:
            self._ask(self._alone(), partial(self._tell, self._own))
            return
        self._step = os.urandom(16)
        run = self._run
        self._ask(Begin(self._home, self._step, *((run.id, run.run_id) if run is not None else ())), self._take_begun)

    def abandon(self, number: int = 0) -> None:
        """See `errands.Errand`. It has its effect all the same."""

    def _alone(self) -> EnqueueAll | Requeue:
        if self._run is None:
            return EnqueueAll(self._home, list(self._jobs), self._mode)
        return Requeue(self._run.queue, self._run.id, self._run.run_id, list(self._jobs), self._mode)

    def _take_begun(self, outcome: Outcome) -> None:
        if isinstance(outcome, Refused):
            self._tell([], without_effect(outcome))
            return
        reached("step.begun")
        self._ask_others([self._prepare(places) for places in self._others], self._take_prepared)

    def _prepare(self, places: list[int]) -> Prepare:
        jobs = [self._jobs[place] for place in places]
        return Prepare(jobs[0].queue, self._step, self._home, jobs, self._mode)

    def _take_prepared(self, outcomes: Sequence[Outcome]) -> None:
        reached("step.prepared")
        found = [(places, outcome) for places, outcome in zip(self._others, outcomes, strict=True) if isinstance(outcome, Refused)]
        if found:
            places, refused = min(found, key=lambda item: item[1].reason in EFFECT_UNKNOWN or item[1].reason is Reason.BUSY)
            self._give_up()
            self._tell(places, without_effect(refused))
            return
        own = [self._jobs[place] for place in self._own]
        others = {slot_of(queue := self._jobs[place].queue): queue for places in self._others for place in places}
        run = self._run
        self._ask(
            Decide(self._home, self._step, own, self._mode, list(others.values()), *((run.id, run.run_id) if run is not None else ())),
            self._take_decided,
        )
        reached("step.asked")

    def _take_decided(self, outcome: Outcome) -> None:
        reached("step.decided")
        if not isinstance(outcome, Refused):
            self._ask_others(
                [Conclude(self._jobs[places[0]].queue, self._step, done=True) for places in self._others], self._take_concluded
            )
            return
        if outcome.reason not in EFFECT_UNKNOWN:
            self._give_up()
        self._tell(self._own, outcome)

    def _take_concluded(self, outcomes: Sequence[Outcome]) -> None:
        reached("step.concluded")
        left = next((outcome for outcome in outcomes if isinstance(outcome, Refused)), None)
        if left is not None:
            self._tell([], Refused(Reason.UNKNOWN, f"the step will be done, but not all of it is yet: {left.detail}"))
            return
        self._ask(Forget(self._home, self._step), ignore)
        self._tell([], Done())

    def _give_up(self) -> None:
        for places in self._others:
            self._ask(Conclude(self._jobs[places[0]].queue, self._step, done=False), ignore)
        self._ask(Forget(self._home, self._step), ignore)

    def _ask(self, command: Any, on_reply: OnReply) -> None:
        sent = self._router.submit(command, on_reply)
        if isinstance(sent, Refused):
            on_reply(sent)

    def _ask_others(self, commands: Sequence[Prepare | Conclude], then: Callable[[Sequence[Outcome]], None]) -> None:
        """Ask all other shards, and go on once all have answered."""
        outcomes: list[Outcome | None] = [None] * len(commands)
        left = len(commands)

        def take(place: int, outcome: Outcome) -> None:
            nonlocal left
            outcomes[place] = outcome
            left -= 1
            if not left:
                then([each for each in outcomes if each is not None])

        for place, command in enumerate(commands):
            self._ask(command, partial(take, place))

    def _tell(self, places: Sequence[int], outcome: Outcome) -> None:
        """Answer. `places` are those of the jobs that the outcome counts by."""
        if isinstance(outcome, Refused) and outcome.field is not None and outcome.field.startswith("jobs["):
            own = int(outcome.field[5:-1])
            outcome = msgspec.structs.replace(outcome, field=f"jobs[{places[own]}]")
        try:
            shown = self._show(outcome)
        except Exception as error:  # noqa: BLE001 it is logged and answered
            shown = log_fault(error).answer()
        self._on_answer(shown, ())


def without_effect(refused: Refused) -> Refused:
    """Return what is told of a refusal before the decision."""
    return msgspec.structs.replace(refused, reason=Reason.BUSY) if refused.reason is Reason.UNKNOWN else refused


def ignore(_outcome: Outcome) -> None:
    """Leave the rest to whoever lists the steps next."""


# --- steps that were left ----------------------------------------------------------------------------------------


def find_left(router: Routes, links: Sequence[Any], older_us: int = LEFT_US) -> None:
    """Ask shards for steps that were left, and carry on with each."""
    for link in links:
        link.submit(ListSteps(older_us), partial(_take_left, router))


def _take_left(router: Routes, outcome: Outcome) -> None:
    if isinstance(outcome, OpenSteps):
        for step in outcome.steps:
            log.info("a step over several shards was left, and is carried on with", extra={"step": step.step.hex()})
            carry_on(router, step)


def carry_on(router: Routes, step: OpenStep) -> None:
    """Take a step one step further: whatever is still missing then is found again."""
    if step.home is not None:
        router.submit(AskDecision(step.home, step.step), partial(_conclude, router, step))
        return
    left = len(step.others)

    def take(outcome: Outcome) -> None:
        nonlocal left
        left -= isinstance(outcome, Done)
        if not left:
            router.submit(Forget(step.queue, step.step), ignore)

    for queue in step.others:
        router.submit(Conclude(queue, step.step, done=True), take)


def _conclude(router: Routes, step: OpenStep, outcome: Outcome) -> None:
    if isinstance(outcome, Decided):
        router.submit(Conclude(step.queue, step.step, done=outcome.done), ignore)
