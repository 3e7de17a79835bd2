"""All queues of one shard: commands in, replies and row writes out, and how to take them back.

How to think about it
=====================

The owner of a `Shard` (the pump, a test, a simulator) drives it so: `advance(now, wall)` with the clocks, `apply(key, command)` for what
has arrived, `take_replies()` for what may be answered at once. When the store is idle, `cut()` hands out the row writes that have
collected, and after the store has spoken either `committed()` or `failed(...)`. Nothing here reads a clock, rolls dice, or waits.

**Logged or answered at once.** An operation that changes what the store must know, or that comes after such a one in the same queue, is
*logged*: its answer waits, and beside it stands the image of each job that it changed, from before. Every other operation is answered at
once. `Queue.pending` counts a queue's logged operations, so the test costs one comparison.

**Two logs.** `_open` collects while a commit is under way; `cut()` seals it. `committed()` releases the sealed answers in order.
`failed()` undoes both logs, newest first, by restoring images: the open log was never submitted, so its operations are surely
without effect (BUSY); the sealed one's answer is for the caller to say (BUSY, or UNKNOWN where the store may have written it).

**Row writes are derived.** The log remembers which persisted jobs were touched; what to write follows at `cut()` from the job as it
stands then. An insert and a delete between two cuts thus come to nothing, and a job's ten changes become one. A store that takes only so
much at once (`batch_rows_max`, `batch_bytes_max`) is given several batches, one after another, each ended between two operations.

**Doubt.** After an UNKNOWN outcome the rows touched are in doubt until `adopt()` brings what the store really holds. Meanwhile the store
counts as away, and the ids in doubt are refused.

**Away.** While the store is away, whatever must be written is refused with BUSY before anything moves, due timeouts of persisted jobs are
put off (later, never earlier), and a persisted job at the head of its queue is not passed by the jobs behind it. All else goes on.

**Two clocks.** `now` is monotonic and decides timeouts and polls. `wall` decides when a scheduled job is due, and gives, held
never-decreasing, the first half of the order key; a wall clock that jumps disturbs neither order nor timeouts, and ages no
dead letter. (A restart takes the wall clock as it finds it; rows from ahead of it age no dead letter either.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from proteus_shards.core.commands import (
    Command,
    Complete,
    DeadLetter,
    Delivered,
    Enqueue,
    Heartbeat,
    ListDead,
    Listed,
    Next,
    Outcome,
    Reason,
    Refused,
    Undeliver,
)
from proteus_shards.core.commands_control import Fail, Release
from proteus_shards.core.commands_jobs import RETRIES_OF_QUEUE
from proteus_shards.core.deadlines import STALE_MIN
from proteus_shards.core.extras import Extras, pack_extras, slim
from proteus_shards.core.holdings import ANSWER_BYTES_MAX, WALL_STEP_US, Limits, answer_bytes
from proteus_shards.core.luggage import Luggage
from proteus_shards.core.measures import ENQUEUED
from proteus_shards.core.model import SECOND_US, TIME_US_MAX, Job, RecordKey, RowKey
from proteus_shards.core.queue import DEAD, GONE, TRANSITIONS, Queue, Verb, Waiter
from proteus_shards.core.queue_settings import DEFAULT_SETTINGS, QueueSettings
from proteus_shards.core.recurring import Recurring
from proteus_shards.core.runs import AWAY
from proteus_shards.core.spans import RESERVED

if TYPE_CHECKING:
    from collections.abc import Callable

    from proteus_shards.core.deadlines import Deadlines
    from proteus_shards.core.holdings import Key
    from proteus_shards.core.ledger import Image, Undo
    from proteus_shards.core.model import Batch
    from proteus_shards.core.schedules import Calendar


_ENQUEUE, _SCHEDULE = TRANSITIONS[Verb.ENQUEUE][GONE], TRANSITIONS[Verb.SCHEDULE][GONE]


class Shard(Luggage, Recurring):
    """The queues of one shard, as commands see them."""

    def __init__(
        self,
        limits: Limits,
        new_run_id: Callable[[], bytes],
        draw: Callable[[], float] = lambda: 0.0,
        calendar: Calendar | None = None,
    ) -> None:
        super().__init__(limits, new_run_id, draw)
        self._calendar = calendar or self._calendar
        self._handlers: dict[type, Callable[[Key | None, Any], None]] = {
            Enqueue: self._enqueue,
            Next: self._next,
            Heartbeat: self._heartbeat,
            Complete: self._complete,
            Undeliver: self._undeliver,
            Fail: self._fail,
            Release: self._release,
            ListDead: self._list_dead,
            **self._step_handlers(),
            **self._control_handlers(),
            **self._upkeep_handlers(),
            **self._recurring_handlers(),
        }
        self.records_in_doubt: list[RecordKey] = []
        self._by_wall: tuple[Deadlines[Any], ...] = (self._schedule, self._recurring, self._expiries)
        self._by_now: tuple[Deadlines[Any], ...] = (self._deadlines, self._refills, self._polls)
        self._alarms = (*self._by_now, *self._by_wall, self._graves)

    # --- driving -----------------------------------------------------------------------------------------------

    def advance(self, now: int, wall: int, *, due: bool = True) -> None:
        """Set both clocks (microseconds) and do what has come due. Call it before anything else happens at that time.

        Without `due` only the clocks move: after a stall, what arrived meanwhile (heartbeats above all) should come first.
        """
        step = (wall - self._wall) - (now - self._now)
        if step > WALL_STEP_US and self._wall:
            self._wall_stepped += step  # dead letters do not get older by it
        self._now = max(now, self._now)
        self._wall = wall
        if step < -WALL_STEP_US:
            self._mind_clock()
        self._clock = max(wall, self._clock)
        if not due:
            return
        if self._scans:
            self._scan_on()
        heap: list[tuple[int, int, Any]] = self._recurring.heap
        if heap and heap[0][0] <= wall:
            self._come_up()
        if (heap := self._expiries.heap) and heap[0][0] <= wall:
            self._lapse_due()
        if (heap := self._schedule.heap) and heap[0][0] <= wall:
            self._promote()
        if (heap := self._deadlines.heap) and heap[0][0] <= self._now:
            self._expire()
        if (heap := self._refills.heap) and heap[0][0] <= self._now:
            self._refill()
        if (heap := self._polls.heap) and heap[0][0] <= self._now:
            self._end_polls()
        if (heap := self._graves.heap) and heap[0][0] <= self._clock and not self.away:
            self._drop_old()
        if self._kept_until <= self._clock:
            self._sweep_kept()
        for alarms in self._alarms:
            if len(alarms.heap) > STALE_MIN:
                self._sweep_alarms()
                break

    def _sweep_alarms(self) -> None:
        """Let what is stale among the alarms not outgrow what is not."""
        _, scheduled, ready, in_flight, _ = self.totals
        for job in self._deadlines.sweep(in_flight):
            job.timed = False
        self._schedule.sweep(scheduled)
        self._expiries.sweep(scheduled + ready)
        self._refills.sweep(len(self._waiting))
        self._polls.sweep(len(self._waiting))
        self._graves.sweep(len(self._aging))
        self._recurring.sweep(len(self.schedules))

    def apply(self, key: Key | None, command: Command) -> None:
        """Carry out a command. Its outcome comes out of `take_replies` under `key`, now or once its commit is known; None: of no interest."""
        if len(self._ledger) >= self.limits.shard_pending_max and type(command) is not Undeliver:  # to refuse that would cost a timeout
            self._emit(key, Refused(Reason.BUSY, "too many requests wait for the store (shard_pending_max)"))
        elif (handler := self._handlers.get(type(command))) is not None:
            handler(key, command)
        else:  # a peer may send any word there is
            self._emit(key, Refused(Reason.INVALID, "a shard is not asked this"))

    def take_replies(self) -> list[tuple[Key, Outcome]]:
        """Return the answers that may be given now, and forget them."""
        replies, self._replies = self._replies, []
        return replies

    def due_in(self, now: int, wall: int) -> int | None:
        """Return after how many microseconds (at least 0) `advance` has something to do, or None."""
        if self._scans:
            return 0
        waits = [alarms.heap[0][0] - wall for alarms in self._by_wall if alarms.heap]
        waits += [alarms.heap[0][0] - now for alarms in self._by_now if alarms.heap]
        if self._graves.heap and not self.away:
            waits.append(self._graves.heap[0][0] - wall)
        return max(0, min(waits)) if waits else None

    def waiting(self) -> list[Key]:
        """Return the keys of all waiting `next`s."""
        return list(self._waiting)

    @property
    def pending(self) -> int:
        """How many logged entries wait for a commit."""
        return len(self._ledger)

    @property
    def polls(self) -> int:
        """How many `next` wait for a job."""
        return len(self._waiting)

    @property
    def sealed_answers(self) -> int:
        """How many operations wait for the commit under way. A delivery to a poll that woke comes of another operation, and counts only where there is none."""
        answers = [entry[2] for entry in self._ledger.sealed if entry[1] is not None]
        return sum(type(answer) is not Delivered for answer in answers) or len(answers)

    @property
    def has_open(self) -> bool:
        """Whether anything has collected for the next `cut`."""
        return self._ledger.has_open

    # --- commits -----------------------------------------------------------------------------------------------

    def cut(self) -> Batch:
        """Seal what has collected and return the row writes, perhaps none. `committed` or `failed` must follow."""
        return self._ledger.cut()

    def committed(self) -> None:
        """Release the sealed operations: their rows are durable."""
        for queue, key, answer, job, image in self._ledger.release():
            queue.pending -= 1
            if job is not None and job.delivering == self._ledger.sealed_number:
                job.delivering = 0
                self._restart_timeout(job)  # it counts from the delivery, which is now; if completed meanwhile, that may yet be undone
            if answer is not None:
                self._emit(key, answer, job, image)
            if not queue.pending:
                self._forget_if_empty(queue)

    def failed(self, reason: Reason, detail: str, retry_after: int = 1) -> list[RowKey]:
        """Undo all that is logged. Sealed operations are answered with `reason`, open ones with BUSY; the store counts as away.

        INVALID is said of the operation at fault alone: a `next` that was to get its job is BUSY, too.

        With UNKNOWN the returned keys are those of the rows in doubt, and `records_in_doubt` those of the records: bring their truth by `adopt`
        and `adopt_records`. Else none are.
        """
        self.away = True
        opened, sealed, keys = self._ledger.revert()
        queues: dict[Queue, None] = {}
        graveyards: dict[Queue, None] = {}
        busy = Refused(Reason.BUSY, detail, retry_after=retry_after)
        others = reason is Reason.INVALID and any(key is not None and type(answer) is not Delivered for _, key, answer, _, _ in sealed)
        for entries, refusal in ((opened, busy), (sealed, Refused(reason, detail, retry_after=retry_after))):
            for queue, key, answer, job, image in reversed(entries):
                queue.pending -= 1
                queues[queue] = None
                if job is not None:
                    self._restore(queue, job, cast("Image | None", image))
                    if job.status is DEAD:
                        graveyards[queue] = None
                elif image is not None:
                    cast("Undo", image)()
                if key is not None:
                    self._replies.append((key, busy if others and type(answer) is Delivered else refusal))
        self._order_dead(graveyards)
        for queue in queues:
            self._match(queue)
            self._forget_if_empty(queue)
        self.records_in_doubt = []
        if reason is not Reason.UNKNOWN:
            return []
        self._doubt = {(key.queue, key.id): None for key in keys}
        self.records_in_doubt = self._ledger.record_keys
        return keys

    def heal(self) -> None:
        """Take writes again, now that the store does, and serve the polls that waited for it."""
        assert not self._doubt, "adopt comes before heal"
        self.away = False
        for queue in [waiter.queue for waiter in self._waiting.values()]:
            self._match(queue)

    # --- commands ----------------------------------------------------------------------------------------------

    def _enqueue(self, key: Key | None, command: Enqueue) -> None:
        queue = self.queues.get(command.queue)
        if queue is not None and command.id in queue.jobs:
            self._answer(queue, key, Refused(Reason.EXISTS, "a job with this id is already in the queue"))
            return
        if (refusal := self._refusal(queue, command)) is not None:
            self._answer(queue, key, refusal)
            return
        if queue is None:
            queue = self._make_queue(command.queue)
        if self._bounded:
            self._make_room(command)
        job = self._admit(queue, command)
        if job.persist or queue.pending:
            self._settle(queue, key, ENQUEUED, job, None, write=job.persist)
        else:
            self._emit(key, ENQUEUED)
        if queue.waiters:
            self._match(queue)

    def _admit(self, queue: Queue, command: Enqueue, created_at: int | None = None) -> Job:
        """Make a new job and put it in its place. With `created_at` it takes the place of one that was made then."""
        clock, run_at, timeout, max_retries = self._clock, command.run_at_us, command.timeout, command.max_retries
        if created_at is not None and run_at is None:
            run_at = self._wall
        extras = None
        if command.options is not None or timeout < 0 or max_retries == RETRIES_OF_QUEUE or queue.settings is not DEFAULT_SETTINGS:
            settings = queue.settings
            timeout = timeout if timeout >= 0 else settings.timeout or 0
            max_retries = max_retries if max_retries != RETRIES_OF_QUEUE else settings.max_retries or 0
            extras = _extras_of(command, settings, self._wall)
            if command.options is not None and command.options.moved is not None:
                created_at = command.options.moved.created_at
        self._seq += 1
        state = command.state or None
        job = Job(
            queue.name,
            command.id,
            self._seq,
            clock if run_at is None or run_at <= clock else run_at,
            run_at,
            timeout,
            command.persist,
            max_retries,
            command.payload,
            state,
            clock if created_at is None else created_at,
            clock,
        )
        if extras is not None:
            job.extras = extras
        scheduled = run_at is not None and run_at > self._wall
        size = len(job.payload) + (len(state) if state is not None else 0)
        self.bytes += size
        queue.bytes += size
        queue.place(job, _SCHEDULE if scheduled else _ENQUEUE)
        if scheduled or extras is not None:
            self._arm(queue, job)
        return job

    def _refusal(self, queue: Queue | None, command: Enqueue) -> Refused | None:
        limits = self.limits
        size = len(command.payload) + len(command.state or b"")
        settings = queue.settings if queue is not None else DEFAULT_SETTINGS
        if command.timeout < 0 and settings.timeout is None:
            return Refused(Reason.INVALID, "timeout: is required, as its queue has no default", "timeout")
        if command.persist:
            if not limits.keeps:
                return Refused(Reason.INVALID, "this server keeps jobs in memory only: it has no store for persist_data", "persist_data")
            if limits.row_bytes_max is not None:
                beside = len(command.queue.encode()) + len(command.id.encode())
                if command.options is not None or settings is not DEFAULT_SETTINGS:
                    beside += len(pack_extras(_extras_of(command, settings, self._wall)) or b"")
                if size + beside > limits.row_bytes_max:
                    return Refused(
                        Reason.INVALID, f"the store takes jobs of at most {limits.row_bytes_max} bytes, names and state included", "payload"
                    )
            if self.away:
                return AWAY
        if self._doubt and (command.queue, command.id) in self._doubt:
            return AWAY
        if self._reserved and (command.queue, command.id) in self._reserved:
            return RESERVED
        if queue is None and len(self.queues) >= limits.queues_max:
            return Refused(Reason.FULL, f"the shard holds {limits.queues_max} queues, its limit (queues_max)")
        if queue is not None and len(queue.jobs) >= limits.queue_jobs_max:
            return Refused(Reason.FULL, f"the queue holds {limits.queue_jobs_max} jobs, its limit (queue_jobs_max)")
        if settings is not DEFAULT_SETTINGS and queue is not None:
            if settings.jobs_max is not None and len(queue.jobs) >= settings.jobs_max:
                return Refused(Reason.FULL, f"the queue holds {settings.jobs_max} jobs, the limit that is set for it (jobs_max)")
            held = queue.bytes - queue.dead_bytes
            if settings.bytes_max is not None and held + size > settings.bytes_max:
                return Refused(
                    Reason.FULL,
                    f"the queue holds {held} bytes of payload and state, the limit that is set for it is {settings.bytes_max} (bytes_max)",
                )
        _, scheduled, ready, in_flight, _ = self.totals
        if scheduled + ready + in_flight >= limits.shard_jobs_max:
            return Refused(Reason.FULL, f"the shard holds {limits.shard_jobs_max} jobs, its limit (shard_jobs_max)")
        if self.bytes + size > limits.shard_bytes_max:
            dead = sum(queue.dead_bytes for queue in self._aging)
            return Refused(
                Reason.FULL,
                f"the shard holds {self.bytes} bytes of payload and state, of which {dead} in dead letters; its limit is {limits.shard_bytes_max}"
                " (shard_bytes_max)",
            )
        return None

    def _next(self, key: Key | None, command: Next) -> None:
        queue = self.queues.get(command.queue)
        head = queue.head() if queue is not None else None
        count = command.count
        if queue is not None and head is not None and head.extras is not None:
            head = self._unlapsed(queue, head)
            if head is None:
                self._forget_if_empty(queue)
                queue = self.queues.get(command.queue)
        if queue is not None and head is not None and queue.limited:
            count = min(count, queue.allowance(self._now))
        if queue is not None and head is not None and count > 0:
            if self.away and head.persist:
                self._answer(queue, key, AWAY)
            else:
                self._hand_out(queue, key, count)
        elif command.wait_us <= 0 or command.count < 1 or key is None:
            self._answer(queue, key, Delivered([]))
        elif len(self._waiting) >= self.limits.polls_max:
            self._answer(queue, key, Refused(Reason.FULL, f"{self.limits.polls_max} polls wait already, the limit (polls_max)"))
        elif queue is None and len(self.queues) >= self.limits.queues_max:
            self._emit(key, Refused(Reason.FULL, f"the shard holds {self.limits.queues_max} queues, its limit (queues_max)"))
        else:
            queue = queue or self._make_queue(command.queue)
            waiter = Waiter(key, queue, command.count, self._now + command.wait_us)
            queue.waiters[key] = self._waiting[key] = waiter
            self._polls.add(waiter.until, waiter)
            if queue.limited:
                self._await_token(queue)

    def _list_dead(self, key: Key | None, command: ListDead) -> None:
        queue = self.queues.get(command.queue)
        letters: list[DeadLetter] = []
        size = 0
        if queue is not None:
            after = queue.dead.get(command.after)
            for job in queue.dead.values():
                if after is not None:
                    after = None if job is after else after
                    continue
                size += answer_bytes(job)
                if len(letters) >= command.count or (letters and size > ANSWER_BYTES_MAX):
                    break
                letters.append(_dead_letter(job))
        self.answered_bytes += size
        self._answer(queue, key, Listed(letters))


def _extras_of(command: Enqueue, settings: QueueSettings, wall: int) -> Extras | None:
    """Return what a new job has beside its plain fields. Its ttl counts from when it could start."""
    options = command.options
    if options is not None and (moved := options.moved) is not None:
        own = Extras(options.key, options.priority, None, options.backoff, None, moved.history, options.trace, moved.schedule)
        return slim(own)
    ttl_us = options.ttl_us if options is not None and options.ttl_us is not None else None
    if ttl_us is None and settings.ttl is not None:
        ttl_us = int(settings.ttl * SECOND_US)
    expires_at = min(max(wall, command.run_at_us or wall) + ttl_us, TIME_US_MAX) if ttl_us is not None else None
    if options is not None:
        extras = Extras(options.key, options.priority, expires_at, options.backoff, trace=options.trace)
    else:
        extras = Extras(expires_at=expires_at)
    return slim(extras)


def _dead_letter(job: Job) -> DeadLetter:
    return DeadLetter(
        job.queue,
        job.id,
        job.seq,
        job.timeout,
        job.persist,
        job.max_retries,
        job.payload,
        job.state,
        job.run_at,
        job.attempt,
        job.reason or "",
        job.created_at,
        job.updated_at,
        job.extras,
    )
