"""What the oracle thinks of what operators do: settings, purge, redrive, change.

Settings are records: what was acknowledged counts, request by request, and after a failure or a restart what is stored must be it, or that and some of the
requests in limbo. Purge and redrive answer a number only, so operators here ask for one id, or for everything: then the number says which.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from proteus_shards.core.commands import Complete, Done, Enqueue, Heartbeat
from proteus_shards.core.commands_control import (
    Change,
    Counted,
    DropSchedule,
    Fail,
    GetQueue,
    Purge,
    PutSchedule,
    Queues,
    QueueView,
    Redrive,
    SetQueue,
)
from proteus_shards.core.model import Kind, RecordKey
from proteus_shards.core.placement import slot_of
from proteus_shards.core.queue_settings import DEFAULT_SETTINGS, QueueSettings, RateSettings
from tests.simulation.disk import Disk, Violation
from tests.simulation.semantics import Semantics
from tests.simulation.words import NEVER, Known, Line, Op, View, is_vague, name_of

if TYPE_CHECKING:
    from proteus_shards.core.shard import Shard
    from tests.simulation.plan import Plan

LIKE: dict[Any, tuple[Any, ...]] = {
    Complete: (Complete, Purge, Fail),
    Enqueue: (Enqueue, Redrive),
    Heartbeat: (Heartbeat,),
    Change: (Change,),
}  # what may have the same effect on a row


def is_about(command: Any, job_id: str) -> bool:
    """Say whether a request may touch the job of an id."""
    if type(command) in (Purge, Redrive):
        return command.ids is None or job_id in command.ids
    return bool(command.id == job_id)


def patched(settings: QueueSettings, patch: bytes) -> QueueSettings:
    """Return settings as a patch would have them. What is sent here is right, and names all parts of a rate."""
    changes: dict[str, Any] = msgspec.json.decode(patch)
    for name, value in changes.items():
        if value is None:
            changes[name] = getattr(DEFAULT_SETTINGS, name)
        elif name == "rate":
            changes[name] = RateSettings(**value)
    return msgspec.structs.replace(settings, **changes)


def stored_settings(disk: Disk, queue: str) -> QueueSettings:
    """Return what is stored of the settings of a queue."""
    value = disk.records.get(RecordKey(slot_of(queue), Kind.QUEUE, queue))
    return DEFAULT_SETTINGS if value is None else msgspec.json.decode(value, type=QueueSettings)


def keep_settings(disk: Disk, plan: Plan) -> None:
    """Store the settings that a seed begins with."""
    if plan.settings != DEFAULT_SETTINGS:
        for queue in plan.queues:
            disk.records[RecordKey(slot_of(queue), Kind.QUEUE, queue)] = msgspec.json.encode(plan.settings)


def check_settings(shard: Shard, lines: dict[str, Line]) -> None:
    """Check what a shard follows at the end, and that no queue keeps more dead letters than it may."""
    for queue in shard.queues.values():
        if queue.settings != lines[queue.name].settings:
            raise Violation(f"queue {queue.name} follows {queue.settings}, not {lines[queue.name].settings}")
        most = queue.settings.dead_letters_max
        if most is not None and len(queue.dead) > most:
            raise Violation(f"queue {queue.name} keeps {len(queue.dead)} dead letters, its limit is {most}")


class Operators(Semantics):
    """What `Oracle` knows of operators."""

    lines: dict[str, Line]

    def _line(self, queue: str) -> Line:
        line = self.lines.get(queue)
        if line is None:
            line = self.lines[queue] = Line(queue, self.plan.settings)
        return line

    def _most(self, line: Line) -> int:
        """Return how many jobs a queue takes."""
        return min(self.plan.queue_jobs_max, line.settings.jobs_max or NEVER)

    def _operated(self, view: View, line: Line, op: Op, outcome: Any) -> None:
        command = op.command
        match command, outcome:
            case SetQueue(), Done():
                self._follow(view, line, patched(line.settings, command.patch), op.applied)
            case GetQueue(), Queues():
                self._seen(line, op, outcome.queues)
            case Purge(), Counted():
                self._purged(view, line, op, outcome)
            case Redrive(), Counted():
                self._redriven(view, line, op, outcome)
            case ((PutSchedule() | DropSchedule()), Done()):
                pass
            case Change(), Done():
                self._changed(view, line, op)
            case _:
                raise Violation(f"{name_of(op)}: answered {outcome}")

    # --- settings ------------------------------------------------------------------------------------------------

    def _follow(self, view: View, line: Line, settings: QueueSettings, since: int) -> None:
        if settings.rate != line.settings.rate:
            view.given[line.name] = 0
            view.filled[line.name] = since
        line.settings = settings

    def _seen(self, line: Line, op: Op, views: list[QueueView]) -> None:
        (seen,) = views
        settings = DEFAULT_SETTINGS if seen.settings is None else msgspec.json.decode(seen.settings, type=QueueSettings)
        if (settings, seen.paused) != (line.settings, line.settings.paused):
            raise Violation(f"{name_of(op)}: the queue follows {settings}, not {line.settings}")

    def audit_settings(self, view: View, line: Line, limbo: list[Op]) -> None:
        """Hold the stored settings of a queue against what was acknowledged, and believe them."""
        possible = {line.settings}
        for op in limbo:
            if type(op.command) is SetQueue:
                possible |= {patched(settings, op.command.patch) for settings in possible}
        found = stored_settings(self.disk, line.name)
        if found not in possible:
            raise Violation(f"queue {line.name} is stored with {found}, not {line.settings}")
        self._follow(view, line, found, view.now)

    # --- purge ---------------------------------------------------------------------------------------------------

    def _purged(self, view: View, line: Line, op: Op, outcome: Counted) -> None:
        command: Purge = op.command
        if outcome.more:
            raise Violation(f"{name_of(op)}: there is more, though it fits")
        if command.ids is None:
            sure = sum(not known.vague and not self._may_be_dropped(known) for known in [*line.jobs.values(), *line.dead])
            if not sure <= outcome.jobs <= len(line.jobs) + len(line.dead):
                raise Violation(f"{name_of(op)}: {outcome.jobs} are purged of {len(line.jobs)} and {len(line.dead)} dead")
            gone = list(line.jobs.values())
            line.jobs.clear()
            line.dead.clear()
            for known in gone:
                self._check_gone(view, op, known)
        elif command.states:
            self._purged_dead(view, line, op, outcome.jobs)
        else:
            self._purged_waiting(view, line, op, outcome.jobs)

    def _purged_dead(self, view: View, line: Line, op: Op, count: int) -> None:
        job_id = op.command.ids[0]
        letters = [known for known in line.dead if known.id == job_id]
        live = line.jobs.get(job_id)
        if live is not None and count > len(letters) and self._may_have_died(live, op, view=view):
            del line.jobs[job_id]
            letters.append(live)
        sure = sum(not known.vague and not self._may_be_dropped(known) for known in letters)
        if not sure <= count <= len(letters):
            raise Violation(f"{name_of(op)}: {count} dead letters are purged of {len(letters)}")
        line.dead = [known for known in line.dead if known.id != job_id]

    def _purged_waiting(self, view: View, line: Line, op: Op, count: int) -> None:
        known = line.jobs.get(op.command.ids[0])
        if not count:
            if known is not None and self._rests(view, op, known):
                raise Violation(f"{name_of(op)}: {known.id} waits, and is not purged")
            return
        if known is None or (known.run_id is not None and op.applied < known.until and not is_vague(known, op)):
            raise Violation(f"{name_of(op)}: purged, but it is not there, or in flight")
        del line.jobs[known.id]
        self._check_gone(view, op, known)

    def _check_gone(self, view: View, op: Op, known: Known) -> None:
        row = self.disk.live[op.queue].get(known.id)
        if known.persist and row is not None and row.seq == known.seq and not self._asked(view, op, Enqueue, known.id):
            raise Violation(f"{name_of(op)}: {known.id} is purged, but still stored")

    def _rests(self, view: View, op: Op, known: Known) -> bool:
        """Say whether a job surely was there and not in flight."""
        return known.run_id is None and not is_vague(known, op) and not self._may_have_lapsed(view, known)

    # --- redrive -------------------------------------------------------------------------------------------------

    def _redriven(self, view: View, line: Line, op: Op, outcome: Counted) -> None:
        job_id = op.command.ids[0]
        live = line.jobs.get(job_id)
        letters = [known for known in line.dead if known.id == job_id]
        if not outcome.jobs:
            sure = any(not known.vague and not self._may_be_dropped(known) for known in letters)
            if live is None and sure and not (op.away or view.away):
                raise Violation(f"{name_of(op)}: {job_id} is dead, and not redriven")
            return
        if live is not None:
            if not self._may_have_died(live, op, view=view):
                raise Violation(f"{name_of(op)}: redriven, but a job of this id is there")
            self._die(line, live)
            letters.append(live)
        if not letters or outcome.jobs != 1:
            raise Violation(f"{name_of(op)}: {outcome.jobs} redriven of {len(letters)}")
        known = min(letters, key=lambda known: known.number)
        if len(letters) > 1 and any(other.vague or self._may_be_dropped(other) for other in letters):
            known = self._stored_of(op, letters) or known
        self.revive(view, line, known)
        row = self.disk.live[op.queue].get(job_id)
        if known.persist and row is None and not self._asked(view, op, Complete, job_id):
            raise Violation(f"{name_of(op)}: acknowledged before it was stored")

    def _stored_of(self, op: Op, letters: list[Known]) -> Known | None:
        row = self.disk.live[op.queue].get(op.command.ids[0])
        return next((known for known in letters if row is not None and known.payload == row.payload), None)

    def revive(self, view: View, line: Line, known: Known) -> None:
        """Give a dead letter its new life."""
        line.dead.remove(known)
        line.jobs[known.id] = known
        known.past = None if known.vague or known.past is None else known.past + known.attempt
        known.error = None if known.error is None or known.error[0] != known.attempt or not known.past else (0, known.error[1])
        known.attempt = 0
        known.vague = False
        known.run_id = known.put_off = known.expires_at = None
        if known.run_at is not None:
            known.once_due = True
            view.expect(known.op, known.run_at)

    # --- change --------------------------------------------------------------------------------------------------

    def _changed(self, view: View, line: Line, op: Op) -> None:
        known = line.jobs.get(op.command.id)
        if known is None:
            raise Violation(f"{name_of(op)}: done, but no such job is there")
        if known.run_id is not None and not is_vague(known, op):
            if op.applied < known.until:
                raise Violation(f"{name_of(op)}: done, but it is in flight")
            known.put_off = NEVER if known.backoff or self.plan.settings.backoff else None
        known.run_id = None
        change(known, op)
        row = self.disk.live[op.queue].get(known.id)
        if not known.persist or self._asked(view, op, Change) or self._asked(view, op, Complete):
            return
        if row is None or (row.ready_at, row.run_at) != (known.ready_at, known.run_at):
            if not self._may_have_lapsed(view, known):
                raise Violation(f"{name_of(op)}: stored as {row}, which is not what was asked for")
        else:
            known.seq = row.seq

    def _not_changed(self, view: View, line: Line, op: Op) -> None:
        known = line.jobs.get(op.command.id)
        if known is not None and self._rests(view, op, known):
            raise Violation(f"{name_of(op)}: not found, but it waits")


def change(known: Known, op: Op) -> None:
    """Make a job what a request asks for."""
    command: Change = op.command
    if command.priority is not None:
        known.priority = command.priority
    if command.run_at_us is not None:
        known.run_at = command.run_at_us or None
        ready_at = max(op.clock, command.run_at_us)
        if known.expires_at is not None:
            known.expires_at += ready_at - known.ready_at
        known.ready_at = ready_at
        known.put_off = None
        known.once_due = False
        known.op, known.number, known.seq = op, op.number, -1
