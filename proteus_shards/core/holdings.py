"""The jobs of a shard and the books about them: what every operation is made of.

`Holdings` knows where each job is, files what happens by itself, and keeps the ledger. On it stand, each a subclass of the one before and
split there only so that each fits a reader's head: `Deliveries` (hands jobs out), `Runs` (ends what was begun), `Alarms` (what comes by
itself), and `Shard`, which is what is asked from outside.
"""

from __future__ import annotations

import sys
from bisect import bisect_left
from typing import TYPE_CHECKING, TypeAlias, cast

import msgspec

from proteus_shards.core.commands import Delivered, Done, Enqueue, Outcome
from proteus_shards.core.deadlines import Deadlines
from proteus_shards.core.extras import NO_EXTRAS, Extras, extras_bytes, unpack_extras
from proteus_shards.core.ledger import Image, Ledger, Note, Undo, footprint
from proteus_shards.core.measures import COMPLETED, ENQUEUED, HEARTBEATEN, RELEASED, RUN_BOUNDS_US, START_BOUNDS_US, UNDELIVERED, Counters
from proteus_shards.core.model import COUNT_MAX, SECOND_US, TIME_US_MIN, Job, Record, RecordKey, Row, RowKey, Status, job_of
from proteus_shards.core.placement import slot_of
from proteus_shards.core.queue import DEAD, GONE, IN_FLIGHT, READY, SCHEDULED, Queue, Waiter
from proteus_shards.errors import RecordError, RowError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Sequence

ANSWER_BYTES_MAX = 8 * 1024 * 1024  # an answer of several jobs stops before the one that would pass this, so that it fits a frame
WALL_STEP_US = 60 * SECOND_US  # a wall clock that gains this much on the monotonic one has been set

Key: TypeAlias = "Hashable"

STATUSES = tuple(Status)
_OF_MANY = frozenset({"purged", "redriven", "fired", "missed"})  # notes whose counters have their names


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The limits of one shard; each is a setting of the same name."""

    shard_pending_max: int
    polls_max: int
    queue_jobs_max: int
    shard_jobs_max: int
    shard_bytes_max: int
    queues_max: int
    dead_letters_max: int
    dead_letters_us_max: int
    schedules_max: int = 10_000
    keeps: bool  # whether there is a store for persist_data jobs
    row_bytes_max: int | None = None  # the store's own limits, as `store.contract` says
    batch_rows_max: int | None = None
    batch_bytes_max: int | None = None
    idempotency_keys_max: int = 1_000_000
    idempotency_us_max: int = 3600 * SECOND_US


class Holdings:
    """The queues of one shard. `new_run_id` returns 16 fresh random bytes at each call (a UUID), `draw` a random number from 0 to below 1."""

    def __init__(self, limits: Limits, new_run_id: Callable[[], bytes], draw: Callable[[], float] = lambda: 0.0) -> None:
        self.limits = limits
        self.away = False  # the store can't be written; set here at a failure, cleared by `heal`
        self.queues: dict[str, Queue] = {}
        self.totals = [0] * len(Status)
        self.bytes = 0
        self.counters = Counters()
        self.notes: list[Note] = []
        self.answered_bytes = 0  # of jobs in answers, since the owner has last set it to 0
        self._new_run_id = new_run_id
        self._draw = draw
        self._now = 0
        self._wall = 0
        self._clock = 0
        self._wall_stepped = 0  # by how much the wall clock has been set forward
        self._seq = 0
        self._replies: list[tuple[Key, Outcome]] = []
        self._rows_max = limits.batch_rows_max or sys.maxsize
        self._ledger = Ledger(self._rows_max, limits.batch_bytes_max or sys.maxsize)
        self._bounded = limits.batch_rows_max is not None or limits.batch_bytes_max is not None
        self._doubt: dict[tuple[str, str], None] = {}
        self._recovered_runs: list[Job] = []
        self._waiting: dict[Key, Waiter] = {}
        self._deadlines: Deadlines[Job] = Deadlines(lambda job: job.deadline if job.status is IN_FLIGHT else None)
        self._schedule: Deadlines[Job] = Deadlines(lambda job: due_at(job) if job.status is SCHEDULED else None)
        self._expiries: Deadlines[Job] = Deadlines(lapses_at)
        self._refills: Deadlines[Queue] = Deadlines(lambda queue: queue.refill_at if queue.waiters else None)
        self._polls: Deadlines[Waiter] = Deadlines(lambda waiter: waiter.until if self._waiting.get(waiter.key) is waiter else None)
        self._graves: Deadlines[Queue] = Deadlines(self._dead_until)
        self._aging: dict[Queue, None] = {}  # those that are filed in it
        self._record_takers: dict[int, Callable[[RecordKey, bytes | None], None]] = {}

    def adopt(self, keys: Sequence[RowKey], rows: dict[RowKey, Row]) -> None:
        """Make the jobs of `keys` what the store says they are: `rows` has those that exist."""
        by_liveness = sorted(keys, key=lambda key: (key in rows, key in rows and rows[key].status != DEAD))
        for key in by_liveness:  # an id may have passed from one job to another: who gives it up comes before who takes it
            row = rows.get(key)
            queue = self.queues.get(key.queue)
            job = self._by_seq(queue, key) if queue is not None else None
            if row is None:
                if queue is not None and job is not None:
                    job.stored = False
                    self._restore(queue, job, None)
                    self._forget_if_empty(queue)
            elif job is None:
                self._make_way(queue, row)
                self._settle_in(job_of(row), Status(row.status))
            elif queue is not None and (job.extras or NO_EXTRAS).priority != (unpack_extras(row.extras) or NO_EXTRAS).priority:
                self._restore(queue, job, None)  # a job has one priority for life: the row is of its successor
                self._settle_in(job_of(row), Status(row.status))
            else:
                assert queue is not None
                extras = unpack_extras(row.extras)
                status = self._due_status(row.run_at, extras, Status(row.status))
                deadline = self._now + row.timeout * SECOND_US
                image: Image = (status, row.attempt, row.run_id, deadline, row.updated_at, row.state, row.reason, extras, job.started_at)
                job.stored = True
                self._restore(queue, job, image)
        names = {row.queue for row in rows.values() if row.status == DEAD}
        self._order_dead([self.queues[name] for name in names if name in self.queues])
        self._doubt = {}

    # --- recovery ----------------------------------------------------------------------------------------------

    def load(self, rows: Iterable[Row]) -> list[tuple[RowKey, str]]:
        """Take in stored rows, in the order `(ready_at, seq)`; `finish_load` ends it. Returns those that are no jobs, and why."""
        damaged: list[tuple[RowKey, str]] = []
        for row in rows:
            self.pass_over(row.seq)
            try:
                job = job_of(row)
            except RowError as error:
                fault: str | None = str(error)
            else:
                fault = self._misplaced(row)
                if fault is None:
                    self._settle_in(job, STATUSES[row.status])
                    if job.status is IN_FLIGHT:
                        self._recovered_runs.append(job)
            if fault is not None:
                damaged.append((RowKey(row.slot, row.seq, row.queue, row.id), fault))
        return damaged

    def pass_over(self, seq: int) -> None:
        """Give no new job this seq nor one below it: a row has it. One that counting never reaches is no danger."""
        if seq <= COUNT_MAX:
            self._seq = max(self._seq, seq)

    def finish_load(self) -> None:
        """Put what has been loaded in order. Runs that were in flight get their full timeout from now on, however long the load took."""
        runs, self._recovered_runs = self._recovered_runs, []
        for job in runs:
            self._restart_timeout(job)
        self._order_dead(queue for queue in self.queues.values() if queue.dead)
        ahead = self._clock - self._wall
        if ahead > WALL_STEP_US:  # rows of a time when the wall clock was set forward: nothing is older for them
            self._wall_stepped = ahead

    # --- records -----------------------------------------------------------------------------------------------

    def load_records(self, records: Iterable[Record]) -> list[tuple[RecordKey, str]]:
        """Take in stored records, before any row. Returns those that say nothing, and why."""
        damaged: list[tuple[RecordKey, str]] = []
        for record in records:
            key = RecordKey(record.slot, record.kind, record.name)
            try:
                self._take_record(key, record.value)
            except RecordError as error:
                damaged.append((key, str(error)))
        return damaged

    def adopt_records(self, keys: Sequence[RecordKey], values: dict[RecordKey, bytes]) -> None:
        """Make the records of `keys` what the store says they are: `values` has those that exist."""
        for key in keys:
            self._take_record(key, values.get(key))

    def _take_record(self, key: RecordKey, value: bytes | None) -> None:
        """Make one record what the store says it is; None: there is none. Raises `RecordError` for one that says nothing."""
        take = self._record_takers.get(key.kind)
        if take is None:
            raise RecordError(f"kind {key.kind} is not known")
        take(key, value)

    def _write_record(
        self, queue: Queue, answer_key: Key | None, answer: Outcome | Note | None, key: RecordKey, value: bytes | None, undo: Undo
    ) -> None:
        """Log a change of a record, which is made in memory already; `undo` takes it back."""
        self._ledger.make_room(1, len(key.name) + len(value or b""))
        self._ledger.write_record(key, value)
        self._ledger.log(queue, answer_key, answer, None, undo)

    # --- bookkeeping -------------------------------------------------------------------------------------------

    def _make_room(self, job: Job | Enqueue, more: int = 0) -> None:
        """See that the next operation, which changes a job and adds `more` bytes to it, fits into a batch. Call it before anything changes."""
        if self._bounded and job.persist:
            self._ledger.make_room(1, answer_bytes(job) + more)

    def _weigh(self, queue: Queue, size: int) -> None:
        """Count bytes of payload and state that a queue has got (or lost: negative)."""
        self.bytes += size
        queue.bytes += size

    def _touch(self, job: Job, *, state_set: bool = False, extras_set: bool = False) -> None:
        self._ledger.touch(job, answer_bytes(job) if self._bounded else 0, state_set=state_set, extras_set=extras_set)

    def _make_queue(self, name: str) -> Queue:
        queue = self.queues[name] = Queue(name, slot_of(name), self.totals)
        return queue

    def _forget_if_empty(self, queue: Queue) -> None:
        if queue.empty and self.queues.get(queue.name) is queue:
            del self.queues[queue.name]

    def _find(self, queue_name: str, job_id: str) -> tuple[Queue | None, Job | None]:
        queue = self.queues.get(queue_name)
        return queue, queue.jobs.get(job_id) if queue is not None else None

    def _by_seq(self, queue: Queue, key: RowKey) -> Job | None:
        job = queue.jobs.get(key.id)
        return job if job is not None and job.seq == key.seq else queue.dead.get(key.seq)

    def _arm(self, queue: Queue, job: Job) -> None:
        """File the time at which something happens to a job by itself."""
        if job.status is IN_FLIGHT:
            if not job.timed:
                job.timed = True
                self._deadlines.add(job.deadline, job)
        elif job.status is DEAD:
            self._bury(queue)
        else:
            if job.status is SCHEDULED:
                self._schedule.add(due_at(job), job)
            if job.extras is not None and (lapses := lapses_at(job)) is not None:
                self._expiries.add(lapses, job)

    def _restart_timeout(self, job: Job) -> None:
        job.deadline = max(job.deadline, self._now + job.timeout * SECOND_US)

    def _bury(self, queue: Queue) -> None:
        """File when the oldest dead letter of a queue is to be dropped."""
        if queue not in self._aging:
            self._aging[queue] = None
            self._file_dead(queue)

    def _file_dead(self, queue: Queue) -> None:
        if (due := self._dead_until(queue)) is not None:
            self._graves.add(due, queue)

    def _dead_until(self, queue: Queue) -> int | None:
        """Return until when (on the clock) the oldest dead letter of a queue is kept: 0 where there are too many, None where there is none."""
        if not queue.dead:
            return None
        if len(queue.dead) > self.dead_letters_max(queue):
            return 0
        seconds = queue.settings.dead_letters_seconds_max
        kept_us = self.limits.dead_letters_us_max if seconds is None else int(seconds * SECOND_US)
        return next(iter(queue.dead.values())).updated_at + kept_us + self._wall_stepped

    def dead_letters_max(self, queue: Queue) -> int:
        """Return how many dead letters a queue may keep."""
        most = queue.settings.dead_letters_max
        return self.limits.dead_letters_max if most is None else most

    def _order_dead(self, queues: Iterable[Queue]) -> None:
        """Put dead letters of queues in the order of their deaths."""
        for queue in queues:
            for job in sorted(queue.dead.values(), key=lambda job: (job.updated_at, job.seq)):
                queue.dead.move_to_end(job.seq)
            self._file_dead(queue)

    def _make_way(self, queue: Queue | None, row: Row) -> None:
        """Take away a memory-only job whose id a stored row has: it was completed in the very batch that was in doubt."""
        other = queue.jobs.get(row.id) if queue is not None and row.status != DEAD else None
        if queue is not None and other is not None:
            assert not other.persist, "two live rows of one queue and id"
            self._restore(queue, other, None)

    def _misplaced(self, row: Row) -> str | None:
        queue = self.queues.get(row.queue)
        slot = queue.slot if queue is not None else slot_of(row.queue)
        if row.slot != slot:
            return f"slot must be {slot}, not {row.slot}"
        if queue is not None and row.status != DEAD and row.id in queue.jobs:
            return "another live row has its queue and id"
        return None

    def _settle_in(self, job: Job, status: Status) -> None:
        """Place a job that comes from the store."""
        queue = self.queues.get(job.queue) or self._make_queue(job.queue)
        job.queue = queue.name  # one string for all
        status = self._due_status(job.run_at, job.extras, status)
        if job.ready_at > self._clock and (status is READY or status is IN_FLIGHT):
            self._clock = job.ready_at
        self._clock = max(self._clock, job.created_at, job.updated_at)
        if status is IN_FLIGHT:
            self._restart_timeout(job)
        self._weigh(queue, footprint(job))
        queue.place(job, status)
        if status is not READY or job.extras is not None:
            self._arm(queue, job)

    def _due_status(self, run_at: int | None, extras: Extras | None, status: Status) -> Status:
        """Return the status that a stored one stands for: a waiting job may still be scheduled, or back off."""
        if status is not READY or (run_at is None and extras is None):
            return status
        return SCHEDULED if due_time(run_at, extras) > self._wall else READY

    def _restore(self, queue: Queue, job: Job, image: Image | None) -> None:
        """Put a job back as it was (None: it was not there)."""
        was_bytes = footprint(job)
        if job.status is not GONE:
            self._weigh(queue, -was_bytes)
        status = GONE
        if image is not None:
            status, job.attempt, job.run_id, deadline, job.updated_at, job.state, job.reason, extras, job.started_at = image
            job.extras = extras
            job.deadline = max(job.deadline, deadline)  # a run's time may have begun since, with the release of its delivery
        if status is not GONE:
            self._weigh(queue, footprint(job))
        if job.status is DEAD:
            queue.dead_bytes += footprint(job) - was_bytes
        job.delivering = 0
        queue.place(job, status)
        self._arm(queue, job)

    def _settle(
        self,
        queue: Queue,
        key: Key | None,
        answer: Outcome | Note,
        job: Job,
        image: Image | None,
        *,
        write: bool,
        state_set: bool = False,
        extras_set: bool = False,
    ) -> None:
        """Log a change of a job, or, where nothing depends on the store, answer at once."""
        if write:
            self._touch(job, state_set=state_set, extras_set=extras_set)
        if write or queue.pending:
            self._ledger.log(queue, key, answer, job, image)
        else:
            self._emit(key, answer, job, image)

    def _answer(self, queue: Queue | None, key: Key | None, outcome: Outcome | Note) -> None:
        """Answer a command that changed nothing (or note what did), after what is logged before it in its queue."""
        if queue is not None and queue.pending:
            self._ledger.log(queue, key, outcome, None, None)
        else:
            self._emit(key, outcome)

    def _emit(self, key: Key | None, answer: Outcome | Note, job: Job | None = None, image: Image | Undo | None = None) -> None:
        """Give out an answer, and count what it tells of. `job` and `image` are those of a change. Written out: this is the hottest place of all."""
        counters = self.counters
        if answer is ENQUEUED:
            counters.enqueued += 1
        elif type(answer) is Delivered:
            for delivery in answer.jobs:
                counters.delivered += 1
                if delivery.attempt == 1:
                    could_start = delivery.created_at
                    if delivery.run_at is not None and delivery.run_at > could_start:
                        could_start = delivery.run_at
                    waited, histogram = self._clock - could_start, counters.started_us
                    histogram[bisect_left(START_BOUNDS_US, waited)] += 1
                    histogram[-1] += waited
        elif answer is COMPLETED:
            counters.completed += 1
            if job is not None and job.extras is not None and job.extras.trace is not None:
                answer = Done(job.extras.trace)
            if job is not None and job.started_at and type(image) is tuple and image[0] is IN_FLIGHT:
                ran, histogram = self._clock - job.started_at, counters.ran_us
                histogram[bisect_left(RUN_BOUNDS_US, ran)] += 1
                histogram[-1] += ran
        elif answer is HEARTBEATEN:
            counters.heartbeats += 1
        elif answer is UNDELIVERED:
            counters.undelivered += 1
        elif answer is RELEASED:
            counters.released += 1
        elif isinstance(answer, Note):
            self._note(answer)
            return
        if key is not None:
            self._replies.append((key, answer))

    def _note(self, note: Note) -> None:
        self.notes.append(note)
        counters, kind, cause = self.counters, note.kind, note.reason or note.kind
        if kind in _OF_MANY:
            setattr(counters, kind, getattr(counters, kind) + note.count)
            return
        counters.dead_dropped += kind == "dropped"
        counters.died += kind == "died"
        counters.timeouts += cause == "timeout"
        counters.failed += cause == "failed"
        counters.expired += cause == "expired"
        counters.retried += kind in ("timeout", "failed")

    def waited_us(self, queue: Queue) -> int:
        """Return for how long the oldest ready job of a queue could have started; 0 where none is ready."""
        since = queue.oldest()
        return max(0, self._clock - since) if since is not None else 0


def answer_bytes(job: Job | Enqueue) -> int:
    """Return the most bytes that a job takes in an answer or a row."""
    size = footprint(job) + 4 * (len(job.queue) + len(job.id)) + 256
    if type(job) is Job:
        return size if job.extras is None else size + extras_bytes(job.extras)
    options = cast("Enqueue", job).options
    if options is None:
        return size
    moved = options.moved
    if moved is not None:
        return size + extras_bytes(Extras(options.key, history=moved.history, trace=options.trace, schedule=moved.schedule))
    return size + 256 + 4 * (len(options.key or "") + len(options.trace or ""))


def due_at(job: Job) -> int:
    """Return when a job that is SCHEDULED will be ready."""
    return due_time(job.run_at, job.extras)


def due_time(run_at: int | None, extras: Extras | None) -> int:
    """Return when a job with these may be ready."""
    if extras is not None and extras.not_before is not None:
        return extras.not_before
    return run_at if run_at is not None else TIME_US_MIN


def lapses_at(job: Job) -> int | None:
    """Return when a job dies of its ttl, if it still waits then, or None where it does not wait or has none."""
    if job.extras is None or job.extras.expires_at is None or not (job.status is READY or job.status is SCHEDULED):
        return None
    return job.extras.expires_at + 1
