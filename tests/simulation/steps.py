"""What the oracle thinks of steps of several changes, and of requests that are done once.

A step is taken apart: each of its changes is judged as a request of its own that took effect with the others, and in limbo each row may come of it. What
makes it a step is checked beside that: where one of its rows is found the others must be, unless somebody else may have had a hand in them.

Of a request that names itself the oracle keeps the answer. The same request gets the same answer, whatever has become of the job; and the answer
of a persisted job is stored where the job is: never one without the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from proteus_shards.core.commands import (
    Complete,
    Delivered,
    Done,
    Enqueue,
    EnqueueAll,
    EnqueueOnce,
    Outcome,
    Outcomes,
    Reason,
    Refused,
    Requeue,
)
from proteus_shards.core.model import Kind, RecordKey
from proteus_shards.core.placement import slot_of
from tests.simulation.disk import Violation
from tests.simulation.operators import Operators, is_about
from tests.simulation.words import Kept, Line, Op, View, name_of

FINAL = frozenset({Reason.EXISTS, Reason.INVALID, Reason.NOT_FOUND})
NAMED = "idempotency-key"
APART = "@"  # in the id of a job that came by itself: before its time


def parts_of(command: Any) -> list[Any]:
    """Return the changes that a step is made of; of what is no step, nothing."""
    if type(command) is EnqueueAll:
        return list(command.jobs)
    if type(command) is Requeue:
        return [Complete(command.queue, command.id, command.run_id), *command.jobs]
    return []


def plain(command: Any) -> tuple[Any, tuple[str, bytes] | None]:
    """Return what a request asks for, and the name that it has given itself, with its digest."""
    if type(command) is EnqueueOnce:
        return command.jobs[0], (command.name, command.digest)
    return command, None


def plain_outcome(outcome: Outcome) -> Outcome:
    """Return what the one job of a request has met."""
    if type(outcome) is not Outcomes:
        return outcome
    (refusal,) = outcome.refusals
    return Done() if refusal is None else Refused(Reason(refusal.reason), refusal.detail, refusal.field)


class Steps(Operators):
    """What `Oracle` knows of steps and of answers that are kept."""

    if TYPE_CHECKING:

        def _enqueued(self, view: View, line: Line, op: Op, command: Enqueue) -> None: ...
        def _completed(self, view: View, line: Line, op: Op, command: Complete) -> None: ...
        def _not_found(self, view: View, line: Line, op: Op) -> None: ...
        def _fired_answered(self, line: Line, op: Op, outcome: Outcome) -> None: ...
        def _asked(self, view: View, op: Op, what: Any, job_id: str | None = None) -> bool: ...
        def _expire(self, view: View, line: Line, op: Op) -> None: ...

    # --- steps ---------------------------------------------------------------------------------------------------

    def _stepped(self, view: View, line: Line, op: Op) -> None:
        view.outstanding[op.number] = op  # its changes excuse each other
        for part in op.parts:
            if type(part.command) is Complete and APART in part.command.id:
                self._fired_answered(line, part, Done())
            elif type(part.command) is Complete:
                self._completed(view, line, part, part.command)
            else:
                self._enqueued(view, line, part, part.command)
        del view.outstanding[op.number]

    def _step_refused(self, view: View, line: Line, op: Op, reason: Reason) -> bool:
        """Judge a refusal that only steps get, and say whether it was one."""
        added = [part.command.id for part in op.parts if type(part.command) is Enqueue]
        if reason is Reason.EXISTS:
            if op.applied > line.next_due:
                self._expire(view, line, op)
            if len(set(added)) == len(added) and not any(job_id in line.jobs for job_id in added):
                raise Violation(f"{name_of(op)}: refused as existing, but no such job is there")
        elif reason is Reason.NOT_FOUND:
            self._not_found(view, line, op.parts[0])
        elif reason is Reason.FULL:
            if len(line.jobs) + len(added) <= self._most(line):
                raise Violation(f"{name_of(op)}: refused as full for no reason")
        elif reason is Reason.INVALID:
            if not view.permanents and self.plan.batch_rows_max is None and self.plan.batch_bytes_max is None:
                raise Violation(f"{name_of(op)}: refused as invalid for no reason")
        else:
            if APART in getattr(op.parts[0].command, "id", ""):
                self._fired_answered(line, op.parts[0], Refused(reason, ""))
            return False
        return True

    def _check_whole(self, view: View, line: Line, steps: list[Op], limbo: list[Op]) -> None:
        """Check of steps in limbo that all of their rows are there, or none."""
        there = {id(known.op) for known in [*line.jobs.values(), *line.dead]}
        for step in steps:
            kept = [part for part in step.parts if type(part.command) is Enqueue and part.command.persist]
            found = [part for part in kept if id(part) in there]
            missing = [part for part in kept if id(part) not in there and not self._may_have_gone(view, part, step, limbo)]
            if found and missing:
                raise Violation(f"{name_of(step)}: done by half, {missing[0].command.id} is not there")
            run = step.parts[0].command
            known = line.jobs.get(run.id) if type(run) is Complete else None
            if found and known is not None and known.persist and known.run_id == run.run_id:  # what is in memory only counts as undone
                raise Violation(f"{name_of(step)}: done by half, its run goes on")

    def _fenced(self, view: View, op: Op, outcome: Outcome) -> None:
        """A process that has lost its rows may say no, and may do what needs no store: also add a job and complete it in one commit."""
        if type(outcome) is Delivered and any(job.persist and not self._asked(view, op, Complete, job.id) for job in outcome.jobs):
            raise Violation(f"{name_of(op)}: delivered by a fenced owner")
        if op.once is not None and op.once[0] in self._line(op.queue).answers:
            return  # told again
        acked = type(outcome) is Done and [part for part in op.parts or (op,) if type(part.command) is Enqueue and part.command.persist]
        if acked and not any(self._asked(view, op, Complete, part.command.id) for part in acked):
            raise Violation(f"{name_of(op)}: acknowledged by a fenced owner")

    # --- answers that are kept -----------------------------------------------------------------------------------

    def _is_told_again(self, line: Line, op: Op, outcome: Outcome, *, kept: bool) -> bool:
        """Hold an answer against the one that was given before, and say whether that is all there is to it."""
        assert op.once is not None
        name, digest = op.once
        known = line.answers.get(name)
        reason = outcome.reason if isinstance(outcome, Refused) else None
        if reason is Reason.INVALID and isinstance(outcome, Refused) and outcome.field == NAMED:
            if known is None or known.digest == digest:
                raise Violation(f"{name_of(op)}: refused as another request of its name, which is not known")
            return True
        if known is None or not (kept or reason is None):
            return False
        if known.digest != digest or known.reason != reason:
            raise Violation(f"{name_of(op)}: answered {outcome}, but {known.reason or Done()} before")
        return True

    def _keep(self, line: Line, op: Op, outcome: Outcome) -> None:
        """Remember an answer that was given for good."""
        assert op.once is not None
        name, digest = op.once
        reason = outcome.reason if isinstance(outcome, Refused) else None
        if reason is None or reason in FINAL:
            stored = reason is None and op.command.persist
            line.answers[name] = Kept(digest, reason, stored=stored)
            if stored and self._stored_answer(line, name) is None:
                raise Violation(f"{name_of(op)}: acknowledged before its answer was stored")

    def _stored_answer(self, line: Line, name: str) -> Kept | None:
        value = self.disk.records.get(RecordKey(slot_of(line.name), Kind.ANSWER, f"{name} {line.name}"))
        if value is None:
            return None
        digest, _, refusals, _ = msgspec.msgpack.decode(value)
        (refusal,) = refusals
        return Kept(digest, None if refusal is None else Reason(refusal[0]), stored=True)

    def _audit_answers(self, view: View, line: Line, limbo: list[Op], *, restarted: bool) -> None:
        """Hold the stored answers of a queue against those that were given, and against the jobs that they tell of; then believe them."""
        if restarted:
            line.answers = {name: kept for name, kept in line.answers.items() if kept.stored}
        there = {id(known.op) for known in [*line.jobs.values(), *line.dead]}
        asked: dict[str, list[Op]] = {name: [] for name in line.answers}
        for op in limbo:
            if op.once is not None:
                asked.setdefault(op.once[0], []).append(op)
        for name, ops in asked.items():
            known, found = line.answers.get(name), self._stored_answer(line, name)
            if known is not None and known.stored and known != found:
                raise Violation(f"the answer {name} of queue {line.name} is stored as {found}, but {known} was given")
            written = [op for op in ops if op.command.persist]
            mine = [op for op in written if found is not None and op.once == (name, found.digest)]
            if any(id(op) in there and (op not in mine or found is None or found.reason is not None) for op in written):
                raise Violation(f"{name_of(written[0])}: its job is stored, but not its answer")
            if found is None or (known is not None and known.stored):
                continue  # one that was kept in memory gives way: its name was in doubt
            if not mine:
                raise Violation(f"the answer {name} of queue {line.name} is stored, but nobody asked for it")
            if found.reason is None and not any(id(op) in there or self._may_have_gone(view, op, op, limbo) for op in mine):
                raise Violation(f"{name_of(mine[0])}: its answer is stored, but not its job")
            line.answers[name] = found

    def _may_have_gone(self, view: View, part: Op, step: Op, limbo: list[Op]) -> bool:
        """Say whether anything else may have ended what a request has added."""
        command = part.command
        touched = any(
            other is not part and other not in step.parts and type(other.command) is not Enqueue and _concerns(other.command, command.id)
            for other in limbo
        )
        damaged = any((row.id, row.payload) == (command.id, command.payload) for row in self.disk.damaged.values())
        return touched or damaged or self._may_have_lapsed(view, self._met(part))


def _concerns(command: Any, job_id: str) -> bool:
    return (hasattr(command, "id") or hasattr(command, "ids")) and is_about(command, job_id)
