"""Mistakes that the simulator must find: each a small change to the core, the pump or the store, as somebody could make it.

A mutant is a function that takes `patch(owner, name, replacement)` and plants itself. What the replacement does instead of the original stands in
its docstring. `MUTANTS` lists them all; `test_mutants.py` says within how many seeds each is found.
"""

from __future__ import annotations

import asyncio
import inspect
import textwrap
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import msgspec

from proteus_shards.core import holdings, ledger
from proteus_shards.core.commands import Complete, Enqueue, Heartbeat, Outcome, Reason, Undeliver
from proteus_shards.core.holdings import Holdings
from proteus_shards.core.ledger import Ledger
from proteus_shards.core.model import Batch, Job, Row, RowKey, Status
from proteus_shards.core.queue import READY, Queue
from proteus_shards.core.shard import Shard
from proteus_shards.shard import pump as pumping
from proteus_shards.shard.pump import Pump
from tests.simulation.disk import Disk, SimulatedStore

Patch: TypeAlias = Callable[[Any, str, Any], None]
Mutant: TypeAlias = Callable[[Patch], None]

MUTANTS: list[Mutant] = []


def mutant(plant: Mutant) -> Mutant:
    """List a mutant."""
    MUTANTS.append(plant)
    return plant


# --- acknowledgements and commits ----------------------------------------------------------------------------------------


@mutant
def reply_before_commit(patch: Patch) -> None:
    """Answers are released when the batch is handed to the store."""
    cut = Shard.cut

    def cut_and_release(self: Shard) -> Batch:
        batch = cut(self)
        self.committed()
        return batch

    patch(Shard, "cut", cut_and_release)
    committed = Shard.committed
    patch(Shard, "committed", lambda self: committed(self) if self._ledger.sealed else None)


@mutant
def delivery_before_commit(patch: Patch) -> None:
    """A delivery is told at once; only its row waits for the store."""
    hand_out = Holdings._hand_out

    def eager(self: Holdings, queue: Queue, key: Any, count: int) -> None:
        hand_out(self, queue, key, count)
        if self._ledger.open and self._ledger.open[-1][1] is key:
            entry = self._ledger.open[-1]
            self._ledger.open[-1] = (entry[0], None, None, entry[3], entry[4])
            self._emit(key, entry[2])  # type: ignore[arg-type]

    patch(Holdings, "_hand_out", eager)


@mutant
def no_waiting_behind_a_commit(patch: Patch) -> None:
    """What needs no store is answered at once, also behind something in its queue that is not yet committed."""
    patch(Holdings, "_answer", lambda self, _queue, key, outcome: self._emit(key, outcome))


@mutant
def lost_undo(patch: Patch) -> None:
    """A failed commit is refused, but what it had changed in memory stays."""
    restore = Holdings._restore

    def forgetful(self: Holdings, queue: Queue, job: Job, image: Any) -> None:
        if image is None or image[0] is not READY:
            restore(self, queue, job, image)

    patch(Holdings, "_restore", forgetful)


@mutant
def undone_in_the_wrong_order(patch: Patch) -> None:
    """Images are restored oldest first, so that of two changes of a job the second image wins."""
    revert = Ledger.revert

    def turned(self: Ledger) -> Any:
        opened, sealed, keys = revert(self)
        return opened[::-1], sealed[::-1], keys

    patch(Ledger, "revert", turned)


@mutant
def only_the_sealed_log_is_undone(patch: Patch) -> None:
    """What collected behind a failed commit stays, and is written with the next."""

    def revert(self: Ledger) -> Any:
        opened = self.open
        found = original(self)
        self.open = []
        return [(queue, key, answer, None, None) for queue, key, answer, _, _ in opened], found[1], found[2]

    original = Ledger.revert
    patch(Ledger, "revert", revert)


@mutant
def unknown_told_as_busy(patch: Patch) -> None:
    """A batch whose outcome is unknown is answered BUSY, which says that it had no effect."""
    failed = Shard.failed

    def certain(self: Shard, reason: Reason, detail: str, retry_after: int = 1) -> list[RowKey]:
        keys = failed(self, reason, detail, retry_after)
        self._replies = [(key, _busy(outcome)) for key, outcome in self._replies]
        return keys

    patch(Shard, "failed", certain)


@mutant
def forgotten_doubt(patch: Patch) -> None:
    """After an unknown outcome the rows are not read back: memory is believed."""
    patch(Shard, "adopt", lambda self, _keys, _rows: setattr(self, "_doubt", {}))


@mutant
def heal_without_reopen(patch: Patch) -> None:
    """The rows are read back without a new epoch, and the doubtful batch may still be written afterwards."""

    async def reopen(self: SimulatedStore) -> int:
        await self._travel()
        if not self._doubt:
            self.known()
        return self.epoch

    patch(SimulatedStore, "reopen", reopen)


@mutant
def ids_in_doubt_are_free(patch: Patch) -> None:
    """A memory-only job may take an id whose row is in doubt."""
    failed = Shard.failed

    def carefree(self: Shard, reason: Reason, detail: str, retry_after: int = 1) -> list[RowKey]:
        keys = failed(self, reason, detail, retry_after)
        self._doubt = {}
        return keys

    patch(Shard, "failed", carefree)


@mutant
def away_is_not_refused(patch: Patch) -> None:
    """While the store is away, completions are taken all the same."""
    complete = Shard._complete

    def eager(self: Shard, key: Any, command: Complete) -> None:
        away, self.away = self.away, False
        complete(self, key, command)
        self.away = away

    patch(Shard, "_complete", eager)


@mutant
def never_healed(patch: Patch) -> None:
    """Once the store was away it stays so, until the process is started again."""
    patch(Shard, "heal", lambda _self: None)


@mutant
def polls_forgotten_at_healing(patch: Patch) -> None:
    """Polls that waited for the store are not served when it is back."""
    patch(Shard, "heal", lambda self: setattr(self, "away", False))


@mutant
def careless_mode(patch: Patch) -> None:
    """After a batch was refused for good everything is tried together again, and the one at fault may never meet its own answer."""
    _rewrite(patch, Pump, "_refuse_for_good", "CAREFUL_COMMITS", "0")


@mutant
def careful_with_the_next_frame_only(patch: Patch) -> None:
    """After a batch was refused for good, the requests of one frame still go together."""
    _rewrite(patch, Pump, "receive", "(self._committing or shard.has_open)", "self._committing")


@mutant
def batch_split_inside_an_operation(patch: Patch) -> None:
    """A delivery of several jobs is cut where the batch is full, between two of its jobs."""
    touch = Holdings._touch

    def cutting(self: Holdings, job: Job, *, state_set: bool = False) -> None:
        if self._bounded:
            self._ledger.make_room(1, 0)
        touch(self, job, state_set=state_set)

    patch(Holdings, "_touch", cutting)
    patch(Holdings, "_bound_delivery", lambda _self, _queue, count: count)


@mutant
def too_large_a_batch(patch: Patch) -> None:
    """The bounds of a batch are not kept."""
    patch(Ledger, "make_room", lambda _self, _rows, _size: None)


# --- retries and timeouts ------------------------------------------------------------------------------------------------


@mutant
def one_retry_too_many(patch: Patch) -> None:
    """A job dies one delivery late."""
    _rewrite(patch, Shard, "_expire", "job.max_retries < job.attempt", "job.max_retries + 1 < job.attempt")


@mutant
def one_retry_too_few(patch: Patch) -> None:
    """A job dies one delivery early."""
    _rewrite(patch, Shard, "_expire", "job.max_retries < job.attempt", "job.max_retries <= job.attempt")


@mutant
def timeout_from_the_decision(patch: Patch) -> None:
    """A run's time begins when it is decided, not when its runner is told: a slow commit eats it."""
    committed = Shard.committed

    def hasty(self: Shard) -> None:
        for entry in self._ledger.sealed:
            if entry[3] is not None:
                entry[3].delivering = 0
        committed(self)

    patch(Shard, "committed", hasty)


@mutant
def timeout_from_the_enqueue(patch: Patch) -> None:
    """A run's time counts from when its job was enqueued."""

    def restart(self: Holdings, job: Job) -> None:
        job.deadline = max(job.deadline, self._now + job.timeout * 1_000_000 - max(0, self._clock - job.created_at))

    patch(Holdings, "_restart_timeout", restart)


@mutant
def undone_completion_shortens(patch: Patch) -> None:
    """A run that was being completed when its delivery was released does not get its whole time once that is undone."""
    committed = Shard.committed

    def forgetful(self: Shard) -> None:
        for entry in self._ledger.sealed:
            if entry[3] is not None and entry[3].status is not Status.IN_FLIGHT:
                entry[3].delivering = 0
        committed(self)

    patch(Shard, "committed", forgetful)


@mutant
def undone_heartbeat_shortens(patch: Patch) -> None:
    """To undo a heartbeat sets its run's deadline back, even past the release of its delivery."""
    restore = Holdings._restore

    def shortening(self: Holdings, queue: Queue, job: Job, image: Any) -> None:
        if image is not None:
            job.deadline = min(job.deadline, image[3])
        restore(self, queue, job, image)

    patch(Holdings, "_restore", shortening)


@mutant
def heartbeat_keeps_the_deadline(patch: Patch) -> None:
    """A heartbeat is acknowledged, and the run times out as if there had been none."""
    heartbeat = Shard._heartbeat

    def deaf(self: Shard, key: Any, command: Heartbeat) -> None:
        _, job = self._find(command.queue, command.id)
        deadline = job.deadline if job is not None else 0
        heartbeat(self, key, command)
        if job is not None:
            job.deadline = deadline

    patch(Shard, "_heartbeat", deaf)


@mutant
def no_grace_after_a_stall(patch: Patch) -> None:
    """After a pause timers go first, and a heartbeat that lay in the socket finds its run over."""
    patch(pumping, "STALL_US", 1 << 60)


@mutant
def timeouts_by_the_wall_clock(patch: Patch) -> None:
    """Deadlines are compared with the wall clock."""
    advance = Shard.advance

    def by_wall(self: Shard, now: int, wall: int, *, due: bool = True) -> None:
        advance(self, wall - 1_799_999_000_000_000, wall, due=due)

    patch(Shard, "advance", by_wall)


@mutant
def short_runs_after_a_restart(patch: Patch) -> None:
    """A run that was in flight at a crash is over as soon as its row is read."""

    def finish(self: Holdings) -> None:
        for job in self._recovered_runs:
            job.deadline = self._now
            self._deadlines.add(job.deadline, job)
        self._recovered_runs = []
        self._order_dead()

    patch(Holdings, "finish_load", finish)


@mutant
def a_timer_too_few(patch: Patch) -> None:
    """The pump is not told when the next timeout is due."""
    patch(Shard, "due_in", lambda _self, _now, _wall: None)


@mutant
def give_back_spends_a_retry(patch: Patch) -> None:
    """A delivery that reached nobody counts."""
    undeliver = Shard._undeliver

    def counting(self: Shard, key: Any, command: Undeliver) -> None:
        _, job = self._find(command.queue, command.id)
        if job is not None and job.run_id == command.run_id and not (self.away and job.persist):
            job.attempt += 1
        undeliver(self, key, command)

    patch(Shard, "_undeliver", counting)


@mutant
def lost_with_its_link(patch: Patch) -> None:
    """A delivery whose link has closed is not given back, but waits for its timeout."""
    apply = Shard.apply
    patch(Shard, "apply", lambda self, key, command: apply(self, key, command) if key is not None else None)


@mutant
def zombies_are_heard(patch: Patch) -> None:
    """A completion counts whatever run it names."""
    complete = Shard._complete

    def trusting(self: Shard, key: Any, command: Complete) -> None:
        complete(self, key, Complete(command.queue, command.id))

    patch(Shard, "_complete", trusting)


@mutant
def attempts_of_this_process_only(patch: Patch) -> None:
    """The attempts of a job are counted anew after a restart."""
    job_of = holdings.job_of

    def forgetful(row: Row) -> Job:
        job = job_of(row)
        if row.status == Status.READY:
            job.attempt = 0
        return job

    patch(holdings, "job_of", forgetful)


# --- order ---------------------------------------------------------------------------------------------------------------


@mutant
def timed_out_to_the_end(patch: Patch) -> None:
    """A job that timed out lines up behind those that came after it."""
    line_up = Queue._line_up

    def politely(self: Queue, job: Job) -> None:
        if job.attempt:
            self._fresh.append(job)
        else:
            line_up(self, job)

    patch(Queue, "_line_up", politely)


@mutant
def order_by_the_wall_clock(patch: Patch) -> None:
    """The order key is the wall clock as it stands, which may have been set back."""
    enqueue = Shard._enqueue

    def wavering(self: Shard, key: Any, command: Enqueue) -> None:
        clock, self._clock = self._clock, self._wall
        enqueue(self, key, command)
        self._clock = clock

    patch(Shard, "_enqueue", wavering)


@mutant
def reordered_at_recovery(patch: Patch) -> None:
    """Rows are taken in by id, and keys are given anew."""
    load = Holdings.load

    def shuffled(self: Holdings, rows: Iterable[Row]) -> Any:
        rows = sorted(rows, key=lambda row: row.id)
        keys = sorted((row.ready_at, row.seq) for row in rows)
        return load(self, [msgspec.structs.replace(row, ready_at=key[0]) for row, key in zip(rows, keys, strict=True)])

    patch(Holdings, "load", shuffled)


@mutant
def scheduled_too_early(patch: Patch) -> None:
    """A job with a run_at is ready at once."""
    enqueue = Shard._enqueue

    def impatient(self: Shard, key: Any, command: Enqueue) -> None:
        wall = self._wall
        if command.run_at_us is not None:
            self._wall = max(wall, command.run_at_us)
        enqueue(self, key, command)
        self._wall = wall

    patch(Shard, "_enqueue", impatient)


@mutant
def the_youngest_first(patch: Patch) -> None:
    """A poll gets the job that has just come, also where a returned one is ahead of it."""
    head = Queue.head

    def young(self: Queue) -> Job | None:
        found = head(self)
        return self._fresh[0] if found is not None and self._fresh and self.waiters else found

    patch(Queue, "head", young)


@mutant
def passed_by_while_away(patch: Patch) -> None:
    """While the store is away, memory-only jobs overtake the persisted one at the head."""
    head = Queue.head

    def overtaking(self: Queue) -> Job | None:
        first = head(self)
        if first is not None and first.persist and AWAY[0]:
            return next((job for job in self.ready() if not job.persist), first)
        return first

    failed, heal = Shard.failed, Shard.heal

    def failing(self: Shard, *rest: Any, **options: Any) -> Any:
        AWAY[0] = True
        return failed(self, *rest, **options)

    def healing(self: Shard) -> None:
        AWAY[0] = False
        heal(self)

    patch(Queue, "head", overtaking)
    patch(Shard, "failed", failing)
    patch(Shard, "heal", healing)


AWAY = [False]


# --- rows and restarts ---------------------------------------------------------------------------------------------------


@mutant
def dead_letters_lost_at_restart(patch: Patch) -> None:
    """Only living rows are taken in."""
    load = Holdings.load
    patch(Holdings, "load", lambda self, rows: load(self, [row for row in rows if row.status != Status.DEAD]))


@mutant
def in_flight_lost_at_restart(patch: Patch) -> None:
    """Rows in flight are believed to be somebody else's."""
    load = Holdings.load
    patch(Holdings, "load", lambda self, rows: load(self, [row for row in rows if row.status != Status.IN_FLIGHT]))


@mutant
def seq_of_a_damaged_row_used_again(patch: Patch) -> None:
    """The numbers of rows that can't be read are not passed over."""
    pass_over = Holdings.pass_over
    load = Holdings.load

    def loading(self: Holdings, rows: Iterable[Row]) -> Any:
        rows = list(rows)
        for row in rows:
            pass_over(self, row.seq)
        return load(self, rows)

    patch(Holdings, "load", loading)
    patch(Holdings, "pass_over", lambda _self, _seq: None)


@mutant
def seq_starts_anew(patch: Patch) -> None:
    """Numbers are counted from 1 in every process."""
    patch(Holdings, "pass_over", lambda _self, _seq: None)


@mutant
def completion_not_written(patch: Patch) -> None:
    """A completed job is gone from memory, and its row stays."""
    write = ledger._write

    def lazy(segment: Any, job: Job, *, state_set: bool) -> None:
        if not (job.status is Status.GONE and job.stored):
            write(segment, job, state_set=state_set)

    patch(ledger, "_write", lazy)


@mutant
def state_not_written(patch: Patch) -> None:
    """The state of a heartbeat is kept in memory only."""
    touch = Ledger.touch
    patch(Ledger, "touch", lambda self, job, size=0, **_options: touch(self, job, size))


@mutant
def state_lost_at_expiry(patch: Patch) -> None:
    """A job comes back without what its runner had saved."""
    line_up = Queue._line_up

    def clearing(self: Queue, job: Job) -> None:
        if job.attempt:
            job.state = None
        line_up(self, job)

    patch(Queue, "_line_up", clearing)


@mutant
def singletons_doubled(patch: Patch) -> None:
    """An id is taken only while its job waits: one in flight does not count."""
    enqueue = Shard._enqueue

    def generous(self: Shard, key: Any, command: Enqueue) -> None:
        queue, job = self._find(command.queue, command.id)
        if queue is not None and job is not None and job.status is Status.IN_FLIGHT and not job.persist:
            self.bytes -= ledger.footprint(job)
            queue.place(job, Status.GONE)
        enqueue(self, key, command)

    patch(Shard, "_enqueue", generous)


@mutant
def polls_that_never_end(patch: Patch) -> None:
    """A poll whose time is over is not answered."""
    patch(Shard, "_end_polls", lambda self: self._polls.pop_due(self._now, 99))


@mutant
def drained_too_soon(patch: Patch) -> None:
    """A process that is told to end does not wait for its commit."""

    async def drain(self: Pump) -> None:
        self._draining = True
        await asyncio.sleep(0)

    patch(Pump, "drain", drain)


@mutant
def dead_forever(patch: Patch) -> None:
    """The id of a dead letter is not free again."""
    enqueue = Shard._enqueue

    def grudging(self: Shard, key: Any, command: Enqueue) -> None:
        queue = self.queues.get(command.queue)
        dead = next((job for job in queue.dead.values() if job.id == command.id), None) if queue is not None else None
        if queue is not None and dead is not None:
            queue.jobs[command.id] = dead
            enqueue(self, key, command)
            del queue.jobs[command.id]
        else:
            enqueue(self, key, command)

    patch(Shard, "_enqueue", grudging)


# --- the store -----------------------------------------------------------------------------------------------------------


@mutant
def no_fence(patch: Patch) -> None:
    """A store takes writes of an older epoch."""

    def write(self: SimulatedStore, batch: Batch, _epoch: int) -> None:
        self.disk.write(batch)

    patch(SimulatedStore, "_write", write)
    patch(SimulatedStore, "_write_late", write)


@mutant
def half_a_commit(patch: Patch) -> None:
    """A batch of several rows is written without its last one, and acknowledged."""
    write = Disk.write

    def half(self: Disk, batch: Batch) -> None:
        write(self, Batch(batch.deletes, batch.inserts[:-1] if len(batch.inserts) > 1 else batch.inserts, batch.marks))

    patch(Disk, "write", half)


@mutant
def a_lost_row(patch: Patch) -> None:
    """Every hundredth insert is acknowledged and not written."""
    write = Disk.write
    count = [0]

    def losing(self: Disk, batch: Batch) -> None:
        count[0] += len(batch.inserts)
        if batch.inserts and count[0] % 100 < len(batch.inserts):
            batch = Batch(batch.deletes, batch.inserts[1:], batch.marks)
        write(self, batch)

    patch(Disk, "write", losing)


@mutant
def rows_of_other_slots(patch: Patch) -> None:
    """After a change of the shard count, rows go by the slots of before: some of them to nobody."""

    async def load(self: SimulatedStore) -> Any:
        rows = sorted((row for row in self.disk.rows.values() if row.slot in self.slots and row.slot < 900), key=lambda row: (row.ready_at, row.seq))
        yield rows

    patch(SimulatedStore, "load", load)


def _busy(outcome: Outcome) -> Outcome:
    if getattr(outcome, "reason", None) is Reason.UNKNOWN:
        return msgspec.structs.replace(outcome, reason=Reason.BUSY)
    return outcome


def _rewrite(patch: Patch, owner: Any, name: str, old: str, new: str) -> None:
    """Replace a piece of a function's source."""
    function = getattr(owner, name)
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1, f"{name} has changed: {old!r} is not in it once"
    scope: dict[str, Any] = {}
    exec("from __future__ import annotations\n" + source.replace(old, new), function.__globals__, scope)  # noqa: S102
    patch(owner, name, scope[name])
