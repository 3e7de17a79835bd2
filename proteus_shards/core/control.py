"""What operators ask of a shard: settings of queues, and a look at queues and jobs.

**Looking through many.** A question that must look at more than `LOOK_MAX` jobs or queues is carried out in portions, one at each `advance`, between
which everything else goes on: `due_in` says that there is more to do right away. Such a question is a generator which yields after each portion
and answers at its end. What it has picked it looks at again then, since jobs move meanwhile. Nothing is kept for such questions while nobody
asks: no index, not a byte a job. Depths, ages and bytes are counted as they change, and cost nothing to ask for.

**Settings** are a record of their own, written when they change, by the same commits as jobs. A queue that has settings of its own is kept,
and counts against `queues_max`, though it is empty; with the defaults it has no record and is forgotten as before.
"""

from __future__ import annotations

from collections import deque
from heapq import nsmallest
from itertools import chain
from typing import TYPE_CHECKING, Any

import msgspec

from proteus_shards.core.alarms import Alarms
from proteus_shards.core.commands import Done, Reason, Refused
from proteus_shards.core.commands_control import (
    FindJobs,
    GetJob,
    GetQueue,
    Jobs,
    JobView,
    ListJobs,
    ListQueues,
    Queues,
    QueueView,
    SetQueue,
    State,
)
from proteus_shards.core.holdings import ANSWER_BYTES_MAX, Key, Limits, answer_bytes
from proteus_shards.core.model import Kind, RecordKey, name_fault
from proteus_shards.core.placement import slot_of
from proteus_shards.core.queue import DEAD, GONE, Queue
from proteus_shards.core.queue_settings import DEFAULT_SETTINGS, QueueSettings, SettingFault, kept, merge, read_kept
from proteus_shards.core.views import LOOK_MAX, job_view, place_in, portions, queue_view, read_cursor, write_cursor
from proteus_shards.errors import RecordError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from proteus_shards.core.model import Job

SCANS_MAX = 100  # questions that are carried out in portions at the same time; further ones are refused
AWAY = Refused(Reason.BUSY, "the backing store is away")
DONE = Done()
NOT_FOUND = Refused(Reason.NOT_FOUND, "no job with this id is in the queue")

_SAME = object()


class Control(Alarms):
    """The queues of one shard, and what operators ask of them."""

    def __init__(self, limits: Limits, new_run_id: Callable[[], bytes], draw: Callable[[], float] = lambda: 0.0) -> None:
        super().__init__(limits, new_run_id, draw)
        self._scans: deque[Iterator[None]] = deque()
        self._record_takers[Kind.QUEUE] = self._take_settings

    def _control_handlers(self) -> dict[type, Callable[[Key | None, Any], None]]:
        return {
            SetQueue: self._set_queue,
            GetQueue: self._get_queue,
            ListQueues: lambda key, command: self._scan(key, self._list_queues(key, command)),
            GetJob: lambda key, command: self._scan(key, self._get_job(key, command)),
            FindJobs: lambda key, command: self._scan(key, self._find_jobs(key, command)),
            ListJobs: lambda key, command: self._scan(key, self._list_jobs(key, command)),
        }

    # --- portions ----------------------------------------------------------------------------------------------

    def _scan(self, key: Key | None, scan: Iterator[None]) -> None:
        """Carry out a question: its first portion now, the others one at each `advance`."""
        if len(self._scans) >= SCANS_MAX:
            self._emit(key, Refused(Reason.BUSY, f"{SCANS_MAX} questions about many jobs are being answered already"))
        elif next(scan, _SAME) is not _SAME:
            self._scans.append(scan)

    def _scan_on(self) -> None:
        """Carry out the next portion of the question whose turn it is."""
        scan = self._scans.popleft()
        if next(scan, _SAME) is not _SAME:
            self._scans.append(scan)

    # --- settings ----------------------------------------------------------------------------------------------

    def _set_queue(self, key: Key | None, command: SetQueue) -> None:
        queue = self.queues.get(command.queue)
        before = queue.settings if queue is not None else DEFAULT_SETTINGS
        after = merge(before, command.patch)
        if isinstance(after, SettingFault):
            self._answer(queue, key, Refused(Reason.INVALID, f"{after.field}: {after.rule}", after.field))
            return
        if after == before:
            self._answer(queue, key, DONE)
            return
        if self.away:
            self._answer(queue, key, AWAY)
            return
        if queue is None and len(self.queues) >= self.limits.queues_max:
            self._emit(key, Refused(Reason.FULL, f"the shard holds {self.limits.queues_max} queues, its limit (queues_max)"))
            return
        queue = queue or self._make_queue(command.queue)
        record = RecordKey(queue.slot, Kind.QUEUE, queue.name)

        def undo() -> None:
            self._settle_settings(queue, before, match=False)  # whoever undoes this serves the polls at its end

        self._write_record(queue, key, DONE, record, None if after == DEFAULT_SETTINGS else kept(after), undo)
        self._settle_settings(queue, after)

    def _settle_settings(self, queue: Queue, settings: QueueSettings, *, match: bool = True) -> None:
        before, queue.settings = queue.settings, settings
        self._settings_changed(queue, before, match=match)

    def _take_settings(self, key: RecordKey, value: bytes | None) -> None:
        if (fault := name_fault(key.name)) is not None:
            raise RecordError(f"queue {fault}")
        if key.slot != slot_of(key.name):
            raise RecordError(f"slot must be {slot_of(key.name)}, not {key.slot}")
        try:
            settings = DEFAULT_SETTINGS if value is None else read_kept(value)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise RecordError("settings cannot be read") from error
        queue = self.queues.get(key.name)
        if queue is None and settings == DEFAULT_SETTINGS:
            return
        queue = queue or self._make_queue(key.name)
        self._settle_settings(queue, settings)
        self._forget_if_empty(queue)

    # --- queues ------------------------------------------------------------------------------------------------

    def view_of(self, name: str) -> QueueView:
        """Return one queue as it is now, used or not."""
        queue = self.queues.get(name)
        return queue_view(name, queue, 0 if queue is None else self.waited_us(queue), 0 if queue is None else queue.blocked)

    def _get_queue(self, key: Key | None, command: GetQueue) -> None:
        self._answer(self.queues.get(command.queue), key, Queues([self.view_of(command.queue)]))

    def _list_queues(self, key: Key | None, command: ListQueues) -> Iterator[None]:
        names: list[str] = []
        for number, portion in enumerate(portions(self.queues)):
            if number:
                yield
            fitting = (name for name in portion if name > command.after and command.contains in name)
            names = nsmallest(command.count + 1, chain(names, fitting))
        found = [name for name in names[: command.count] if name in self.queues]
        more = names[command.count - 1] if len(names) > command.count else None
        self._emit(key, Queues([self.view_of(name) for name in found], more))

    # --- jobs --------------------------------------------------------------------------------------------------

    def _view(self, queue: Queue, job: Job, *, bodies: bool = True) -> JobView:
        return job_view(job, self.state_of(job), self._now, self.explain(queue, job), bodies=bodies)

    def _tell_jobs(self, key: Key | None, found: list[tuple[Queue, Job]]) -> None:
        """Answer with those of these jobs that still exist, as many as an answer has room for."""
        views: list[JobView] = []
        size = 0
        logged: Queue | None = None
        for queue, job in found:
            if job.status is GONE:
                continue
            size += answer_bytes(job)
            if views and size > ANSWER_BYTES_MAX:
                break
            views.append(self._view(queue, job))
            logged = queue if queue.pending else logged  # whatever is logged is committed before this answer, whichever queue it names
        self.answered_bytes += size
        self._answer(logged, key, Jobs(views) if views else NOT_FOUND)

    def _get_job(self, key: Key | None, command: GetJob) -> Iterator[None]:
        queue, job = self._find(command.queue, command.id)
        if queue is None:
            self._emit(key, NOT_FOUND)
            return
        if job is None:
            for number, portion in enumerate(portions(list(queue.dead.values())[::-1])):
                if number:
                    yield
                job = next((letter for letter in portion if letter.id == command.id and letter.status is DEAD), None)
                if job is not None:
                    break
        if job is None:
            self._answer(queue, key, NOT_FOUND)
        else:
            self._tell_jobs(key, [(queue, job)])

    def _find_jobs(self, key: Key | None, command: FindJobs) -> Iterator[None]:
        found: list[tuple[Queue, Job]] = []
        looked = 0
        for queue in list(self.queues.values()):
            job = queue.jobs.get(command.id)
            if job is not None:
                found.append((queue, job))
            looked += 1
            for portion in portions(queue.dead.values()):
                looked += len(portion)
                if looked > LOOK_MAX:
                    looked = 0
                    yield
                found += [(queue, letter) for letter in portion if letter.id == command.id]
            if len(found) >= command.count:
                break
        found = sorted(found, key=lambda pair: (pair[0].name, -pair[1].seq))[: command.count]
        if found:
            self._tell_jobs(key, found)
        else:
            self._emit(key, Jobs([]))

    def _list_jobs(self, key: Key | None, command: ListJobs) -> Iterator[None]:
        queue = self.queues.get(command.queue)
        after = None if command.after is None else read_cursor(command.after)
        if command.after is not None and after is None:
            self._emit(key, Refused(Reason.INVALID, "after: must be the next of the page before", "after"))
            return
        if queue is None:
            self._emit(key, Jobs([]))
            return
        place = place_in(command.state_name)
        picked: list[Job] = []
        jobs = queue.dead if command.state_name == State.DEAD else queue.jobs
        for number, portion in enumerate(portions(jobs.values())):
            if number:
                yield
            fitting = (job for job in portion if self._fits(job, command) and (after is None or place(job) > after))
            picked = nsmallest(command.count + 1, chain(picked, fitting), key=place)
        views: list[JobView] = []
        size = 0
        cursor: str | None = None
        last: Job | None = None
        for job in picked:
            size += answer_bytes(job) if command.bodies else 0
            if last is not None and (len(views) == command.count or (views and size > ANSWER_BYTES_MAX)):
                cursor = write_cursor(place(last))
                break
            last = job
            if self._fits(job, command):
                views.append(self._view(queue, job, bodies=command.bodies))
        self.answered_bytes += size
        self._answer(queue, key, Jobs(views, cursor))

    def _fits(self, job: Job, command: ListJobs) -> bool:
        """Say whether a list shall have a job."""
        if job.status is GONE or (command.created_before is not None and job.created_at >= command.created_before):
            return False
        if command.key is not None and (job.extras is None or job.extras.key != command.key):
            return False
        return command.state_name is None or self.state_of(job) == command.state_name
