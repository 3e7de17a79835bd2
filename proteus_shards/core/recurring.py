"""Recurring jobs: schedules that make a job at each of their times.

How to think about it
=====================

**Once.** What a schedule has dealt with is one number, `since`: all its times up to then are done, whatever became of them. It is written by
the very batch that inserts the job, so after any crash either both are there or neither. The id of the job is made of the schedule's name and the time: where
the same time came up twice all the same, the second job would be refused.

**Late.** What is due is looked at when the wall clock says so, and after a restart at once. The last time that has passed makes a job if it is no older
than `GRACE_US`: a restart of some seconds is nobody's fault. Of all others `missed` decides: "skip" makes none, "once" one for all of them (that of the last time),
"all" one for each, at most `FIRED_MAX` at a time, the latest ones. What makes no job is counted. While the store is away nothing comes, and what came due meanwhile is late.

**The wall clock may be set.** Forward, the times in between are late ones. Back, what is dealt with stays so, and nothing comes until the clock is there
again; unless it was set back by more than `BACK_US`: then the time before was wrong, and the schedule begins anew.

**Overlap.** With "skip" a time makes no job while that of the time before is not completed, nor dead.

A schedule is independent of its queue's settings: a paused queue gets its jobs, and delivers them once it is resumed. A paused schedule lets its
times pass; they are not missed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from proteus_shards.core.commands import Enqueue, Reason, Refused
from proteus_shards.core.commands_control import DropSchedule, ListSchedules, PutSchedule, Schedules, ScheduleView
from proteus_shards.core.control import AWAY, DONE
from proteus_shards.core.deadlines import Deadlines
from proteus_shards.core.extras import NO_EXTRAS
from proteus_shards.core.holdings import answer_bytes
from proteus_shards.core.ledger import Note
from proteus_shards.core.model import COUNT_MAX, RECORD_BYTES_MAX, SECOND_US, Kind, RecordKey, name_fault
from proteus_shards.core.placement import slot_of
from proteus_shards.core.queue_settings import SettingFault
from proteus_shards.core.records import check_job, check_place, check_times
from proteus_shards.core.schedules import (
    Calendar,
    Intervals,
    KeptSchedule,
    Schedule,
    pack_schedule,
    read_definition,
    schedule_name_fault,
    unpack_schedule,
)
from proteus_shards.core.upkeep import Upkeep
from proteus_shards.errors import RecordError

if TYPE_CHECKING:
    from collections.abc import Callable

    from proteus_shards.core.holdings import Key, Limits
    from proteus_shards.core.queue import Queue

GRACE_US = 60 * SECOND_US
BACK_US = 86_400 * SECOND_US
FIRED_MAX = 100  # jobs that one schedule makes for times that were missed
TIMES_MAX = 1000  # of one schedule that are looked at in one go; what is missed beyond that is passed over, and not counted
SCHEDULES_AT_ONCE = 50  # looked at in one advance
AWAY_US = SECOND_US  # how long it is put off while the store is away
_APART = "\n"  # between queue and name of a record: neither has it


class Recurring(Upkeep):
    """The queues of one shard, and what comes into them by itself."""

    def __init__(self, limits: Limits, new_run_id: Callable[[], bytes], draw: Callable[[], float] = lambda: 0.0) -> None:
        super().__init__(limits, new_run_id, draw)
        self.schedules: dict[tuple[str, str], Schedule] = {}
        self._calendar: Calendar = Intervals()
        self._recurring: Deadlines[Schedule] = Deadlines(lambda schedule: schedule.due if self._is_current(schedule) else None)
        self._record_takers[Kind.SCHEDULE] = self._take_schedule

    if TYPE_CHECKING:  # what `Shard` knows of enqueueing

        def _enqueue(self, key: Key | None, command: Enqueue) -> None: ...
        def _refusal(self, queue: Queue | None, command: Enqueue) -> Refused | None: ...

    def _recurring_handlers(self) -> dict[type, Callable[[Key | None, Any], None]]:
        return {PutSchedule: self._put_schedule, DropSchedule: self._drop_schedule, ListSchedules: self._list_schedules}

    def _is_current(self, schedule: Schedule) -> bool:
        return self.schedules.get(schedule.key) is schedule

    # --- commands ----------------------------------------------------------------------------------------------

    def _put_schedule(self, key: Key | None, command: PutSchedule) -> None:
        queue = self.queues.get(command.queue)
        before = self.schedules.get((command.queue, command.name))
        if before is not None and (before.kept.definition, before.kept.job) == (command.definition, command.job):
            self._answer(queue, key, DONE)
            return
        refusal = self._schedule_refusal(queue, command, before)
        definition = read_definition(command.definition)
        if refusal is not None or isinstance(definition, SettingFault) or command.job is None:
            self._answer(queue, key, refusal or Refused(Reason.INVALID, "job: is required", "job"))
            return
        kept = KeptSchedule(command.definition, command.job, self._wall)
        if before is not None:
            kept = msgspec.structs.replace(
                before.kept, definition=command.definition, job=command.job, since=max(self._wall, before.kept.since)
            )
        value = pack_schedule(kept)
        if len(value) > RECORD_BYTES_MAX:
            self._answer(
                queue, key, Refused(Reason.INVALID, f"job: the schedule must have at most {RECORD_BYTES_MAX} bytes as a whole", "job")
            )
            return
        self._replace_schedule(queue, key, Schedule(command.queue, command.name, definition, kept), value)

    def _schedule_refusal(self, queue: Queue | None, command: PutSchedule, before: Schedule | None) -> Refused | None:
        if (rule := name_fault(command.queue)) is not None:
            return Refused(Reason.INVALID, f"queue: {rule}", "queue")
        if (rule := schedule_name_fault(command.name)) is not None:
            return Refused(Reason.INVALID, f"name: {rule}", "name")
        definition = read_definition(command.definition)
        wrong = definition if isinstance(definition, SettingFault) else self._calendar.fault(definition)
        if wrong is not None:
            return Refused(Reason.INVALID, f"{wrong.field}: {wrong.rule}", wrong.field)
        if command.job is not None and command.job.persist and not self.limits.keeps:
            return Refused(Reason.INVALID, "this server keeps jobs in memory only: it has no store for persist_data", "persist_data")
        if self.away:
            return AWAY
        if before is None and len(self.schedules) >= self.limits.schedules_max:
            return Refused(Reason.FULL, f"the shard holds {self.limits.schedules_max} schedules, its limit (schedules_max)")
        if queue is None and len(self.queues) >= self.limits.queues_max:
            return Refused(Reason.FULL, f"the shard holds {self.limits.queues_max} queues, its limit (queues_max)")
        return None

    def _drop_schedule(self, key: Key | None, command: DropSchedule) -> None:
        queue = self.queues.get(command.queue)
        before = self.schedules.get((command.queue, command.name))
        if before is None:
            self._answer(queue, key, Refused(Reason.NOT_FOUND, "no schedule of this name is in the queue", "name"))
        elif self.away:
            self._answer(queue, key, AWAY)
        else:
            self._replace_schedule(queue, key, before, None)

    def _replace_schedule(self, queue: Queue | None, key: Key | None, schedule: Schedule, value: bytes | None) -> None:
        """Make a schedule what it shall be from now on (or, without a value, drop it), and log that."""
        before = self.schedules.get(schedule.key)
        queue = queue or self._make_queue(schedule.queue)

        def undo() -> None:
            self._set_schedule(schedule.key, before)

        self._write_record(queue, key, DONE, _record_key(schedule), value, undo)
        self._set_schedule(schedule.key, None if value is None else schedule)

    def _set_schedule(self, key: tuple[str, str], schedule: Schedule | None) -> None:
        if schedule is None:
            self.schedules.pop(key, None)
        else:
            self.schedules[key] = schedule
            self._file_schedule(schedule)

    def _file_schedule(self, schedule: Schedule) -> None:
        """File when a schedule comes up next."""
        schedule.due = self._next_time(schedule)
        if schedule.due is not None:
            self._recurring.add(schedule.due, schedule)

    def _next_time(self, schedule: Schedule) -> int | None:
        definition = schedule.definition
        return None if definition.paused else self._calendar.next_after(definition, schedule.kept.since)

    def _list_schedules(self, key: Key | None, command: ListSchedules) -> None:
        found = sorted(
            schedule.key
            for schedule in self.schedules.values()
            if (not command.queue or schedule.queue == command.queue) and (command.name is None or schedule.name == command.name)
        )
        found = [each for each in found if _APART.join(each) > command.after]
        shown = found[: max(1, command.count)]
        views = [self._schedule_view(self.schedules[each]) for each in shown]
        queue = self.queues.get(command.queue)
        self._answer(queue, key, Schedules(views, _APART.join(shown[-1]) if len(found) > len(shown) else None))

    def _schedule_view(self, schedule: Schedule) -> ScheduleView:
        kept = schedule.kept
        return ScheduleView(
            schedule.queue, schedule.name, kept.definition, self._next_time(schedule), kept.last_at, kept.fired, kept.missed
        )

    # --- time --------------------------------------------------------------------------------------------------

    def _come_up(self) -> None:
        """Look at the schedules that are due."""
        for schedule, due in self._recurring.pop_due(self._wall, SCHEDULES_AT_ONCE):
            if not due:
                continue
            if self.away:
                schedule.due = self._wall + AWAY_US
                self._recurring.add(schedule.due, schedule)
                continue
            self._deal_with(schedule)

    def _deal_with(self, schedule: Schedule) -> None:
        """Make the jobs of the times that have passed, or count them as missed."""
        times: list[int] = []
        at = self._next_time(schedule)
        while at is not None and at <= self._wall:
            times.append(at)
            if len(times) == TIMES_MAX:
                at = max(at, self._wall - GRACE_US)  # what is between is passed over
            at = self._calendar.next_after(schedule.definition, at)
        if times:
            missed = schedule.definition.missed
            last = times[-1:] if missed != "skip" or self._wall - times[-1] <= GRACE_US else []
            firing = times[-FIRED_MAX:] if missed == "all" else last
            lost = len(times) - len(firing)
            for time in firing:
                lost = 0 if self._fire(schedule, time, lost) else lost + 1
            if lost or times[-1] != schedule.kept.since:
                self._pass_over(schedule, times[-1], lost)
        self._file_schedule(schedule)

    def _fire(self, schedule: Schedule, at: int, missed: int) -> bool:
        """Make the job of one time, and say whether it could be made. `missed` were, since the last one."""
        before = schedule.kept
        queue = self.queues.get(schedule.queue)
        job_id = schedule.job_id(at)
        last_id = None if before.last_at is None or schedule.definition.overlap == "allow" else schedule.job_id(before.last_at)
        if last_id is not None and ((queue is not None and last_id in queue.jobs) or (schedule.queue, last_id) in self._reserved):
            return False
        command = msgspec.structs.replace(before.job, queue=schedule.queue, id=job_id)
        if (queue is not None and job_id in queue.jobs) or self._refusal(queue, command) is not None:
            return False
        queue = queue or self._make_queue(schedule.queue)
        after = msgspec.structs.replace(before, since=at, last_at=at, fired=before.fired + 1, missed=before.missed + missed)
        value = pack_schedule(after)
        self._ledger.make_room(2, len(schedule.queue) + len(schedule.name) + 1 + len(value) + answer_bytes(command))
        self._note_change(queue, schedule, after, value, Note("fired", schedule.queue, "", 0, persist=False))
        if missed:
            self._note_later(queue, Note("missed", schedule.queue, "", 0, persist=False, count=missed))
        self._enqueue(None, command)
        job = queue.jobs.get(job_id)  # one with a ttl of 0 may be dead already
        if job is not None:
            job.extras = msgspec.structs.replace(job.extras or NO_EXTRAS, schedule=schedule.name)
        return True

    def _pass_over(self, schedule: Schedule, until: int, missed: int) -> None:
        """Note that the times up to then are dealt with."""
        after = msgspec.structs.replace(schedule.kept, since=until, missed=schedule.kept.missed + missed)
        queue = self.queues.get(schedule.queue)
        if queue is None and len(self.queues) >= self.limits.queues_max:
            schedule.kept = after  # there is no queue to log it in: told again after a restart
            return
        queue = queue or self._make_queue(schedule.queue)
        note = Note("missed", schedule.queue, "", 0, persist=False, count=missed) if missed else None
        self._note_change(queue, schedule, after, pack_schedule(after), note)

    def _note_change(self, queue: Queue, schedule: Schedule, after: KeptSchedule, value: bytes, note: Note | None) -> None:
        before = schedule.kept

        def undo() -> None:
            schedule.kept = before
            if self._is_current(schedule):
                self._file_schedule(schedule)

        self._write_record(queue, None, note, _record_key(schedule), value, undo)
        schedule.kept = after

    def _mind_clock(self) -> None:
        """Begin anew with schedules whose clock turns out to have been far ahead."""
        for schedule in self.schedules.values():
            if schedule.kept.since - self._wall > BACK_US:
                schedule.kept = msgspec.structs.replace(schedule.kept, since=self._wall)
                self._file_schedule(schedule)

    # --- records -----------------------------------------------------------------------------------------------

    def _take_schedule(self, key: RecordKey, value: bytes | None) -> None:
        queue, _, name = key.name.partition(_APART)
        if name_fault(queue) is not None or schedule_name_fault(name) is not None:
            raise RecordError("the record names no queue and schedule")
        check_place(key, queue)
        if value is None:
            self._set_schedule((queue, name), None)
            return
        kept = unpack_schedule(value)
        definition = read_definition(kept.definition)
        wrong = definition if isinstance(definition, SettingFault) else self._calendar.fault(definition)
        if isinstance(definition, SettingFault) or wrong is not None:
            raise RecordError(f"{wrong.field} {wrong.rule}" if wrong is not None else "the schedule cannot be read")
        check_times(kept.since, kept.last_at)
        check_job(msgspec.structs.replace(kept.job, queue=queue, id=name))
        if not (0 <= kept.fired <= COUNT_MAX and 0 <= kept.missed <= COUNT_MAX):
            raise RecordError("fired and missed must be in their range")
        if kept.since - self._wall > BACK_US:
            kept = msgspec.structs.replace(kept, since=self._wall)
        self._set_schedule((queue, name), Schedule(queue, name, definition, kept))


def _record_key(schedule: Schedule) -> RecordKey:
    return RecordKey(slot_of(schedule.queue), Kind.SCHEDULE, _APART.join(schedule.key))
