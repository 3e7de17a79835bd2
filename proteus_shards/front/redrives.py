"""A redrive into a queue of another shard: dead letters move in steps over both, one after the other.

What the shards do in such a step, and why it is whole after any crash, stands in `core.spans`; who ends one that was left, in `spans`. Here is who asks. For each portion:
`PickDead` says what goes next, no more than a step may have; the target promises those whose ids are free; the decision takes just these out of
their queue, and the conclusion puts them into the other. Only then comes the next portion, so that all stand there in their original order.

The target may have room for the first few only: those are moved, and the refusal that the next portion meets is told. Like every change in portions, one that
ends midway says how far it came, and is no 429 then. A dead letter that is larger than a step may be is left out, and told of at the end.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from proteus_shards.core.commands import Begin, Conclude, Decide, Forget, Mode, Outcome, Outcomes, Prepare, Reason, Refused
from proteus_shards.core.commands_control import PickDead, Picked, Redrive
from proteus_shards.fault_points import reached
from proteus_shards.front.answers import Problem, refusal
from proteus_shards.front.everywhere import midway, show_count
from proteus_shards.front.spans import EFFECT_UNKNOWN, ignore, without_effect

if TYPE_CHECKING:
    from proteus_shards.front.errands import OnAnswer
    from proteus_shards.front.pending import OnReply
    from proteus_shards.front.spans import Routes


class RedriveAcross:
    """Moves dead letters into the queue `to` of `command`, which is another shard's."""

    delivers = False

    def __init__(self, command: Redrive) -> None:
        assert command.to is not None
        self.command = command
        self._to = command.to
        self._moved = 0
        self._too_large: str | None = None
        self._over = False

    def begin(self, router: Routes, on_answer: OnAnswer) -> None:
        """See `errands.Errand`."""
        self._router = router
        self._on_answer = on_answer
        self._pick(self.command)

    def abandon(self, number: int = 0) -> None:  # noqa: ARG002  # so that a link may stand in its place
        """See `errands.Errand`. The step that is under way has its effect, and is the last."""
        self._over = True

    def _pick(self, command: Redrive) -> None:
        self._ask(PickDead(command.queue, command), self._take_picked)

    def _take_picked(self, outcome: Outcome) -> None:
        if isinstance(outcome, Refused):
            self._refuse(outcome)
            return
        assert isinstance(outcome, Picked)
        self._too_large = self._too_large or outcome.too_large
        if not outcome.jobs:
            self._go_on(outcome)
            return
        self._step = os.urandom(16)
        self._ask(Begin(self.command.queue, self._step), partial(self._take_begun, outcome))

    def _take_begun(self, picked: Picked, outcome: Outcome) -> None:
        if isinstance(outcome, Refused):
            self._refuse(without_effect(outcome))
            return
        reached("step.begun")
        self._prepare(picked)

    def _prepare(self, picked: Picked) -> None:
        asked = Prepare(self._to, self._step, self.command.queue, picked.jobs, Mode.UNIQUE, free_only=True)
        self._ask(asked, partial(self._take_prepared, picked))

    def _take_prepared(self, picked: Picked, outcome: Outcome) -> None:
        if isinstance(outcome, Refused):
            place = _room_for(outcome)
            if place:
                self._prepare(Picked(picked.seqs[:place], picked.jobs[:place], more=True, after=picked.seqs[place - 1]))
                return
            self._give_up()
            self._refuse(without_effect(outcome))
            return
        assert isinstance(outcome, Outcomes)
        reached("step.prepared")
        free = [seq for seq, refused in zip(picked.seqs, outcome.refusals, strict=True) if refused is None]
        if not free:
            self._ask(Forget(self.command.queue, self._step), ignore)
            self._go_on(picked)
            return
        decide = Decide(self.command.queue, self._step, [], Mode.UNIQUE, [self._to], dead=free)
        self._ask(decide, partial(self._take_decided, picked, len(free)))
        reached("step.asked")

    def _take_decided(self, picked: Picked, count: int, outcome: Outcome) -> None:
        reached("step.decided")
        if isinstance(outcome, Refused):
            if outcome.reason not in EFFECT_UNKNOWN:
                self._give_up()
            self._refuse(outcome)
            return
        self._ask(Conclude(self._to, self._step, done=True), partial(self._take_concluded, picked, count))

    def _take_concluded(self, picked: Picked, count: int, outcome: Outcome) -> None:
        reached("step.concluded")
        if isinstance(outcome, Refused):
            self._refuse(Refused(Reason.UNKNOWN, f"{count} more will be moved, but are not yet: {outcome.detail}"))
            return
        self._ask(Forget(self.command.queue, self._step), ignore)
        self._moved += count
        self._go_on(picked)

    def _go_on(self, picked: Picked) -> None:
        if self._over:
            return
        if picked.more:
            self._pick(msgspec.structs.replace(self.command, after=picked.after))
        elif self._too_large is not None:
            detail = f"the dead letter `{self._too_large}` is larger than a step over several shards may be, and stays where it is"
            self._tell(Problem(status=422, detail=detail, field="to", queue=self.command.queue, job_id=self._too_large))
        elif not self._over:
            self._over = True
            self._on_answer(show_count(self._moved), ())

    def _give_up(self) -> None:
        self._ask(Conclude(self._to, self._step, done=False), ignore)
        self._ask(Forget(self.command.queue, self._step), ignore)

    def _ask(self, command: Any, on_reply: OnReply) -> None:
        sent = self._router.submit(command, on_reply)
        if isinstance(sent, Refused):
            on_reply(sent)

    def _refuse(self, refused: Refused) -> None:
        self._tell(refusal(msgspec.structs.replace(refused, field=None), self.command.queue))

    def _tell(self, problem: Problem) -> None:
        if not self._over:
            self._over = True
            self._on_answer(midway(problem, self._moved, self.command.queue).answer(), ())


def _room_for(refused: Refused) -> int:
    """Return how many jobs there is room for, where it is for want of room that they were refused; else 0."""
    if refused.reason is not Reason.FULL or refused.field is None or not refused.field.startswith("jobs["):
        return 0
    return int(refused.field[5:-1])
