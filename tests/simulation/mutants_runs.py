"""Mutants: retries, timeouts, and the order of a queue."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from proteus_shards.core import holdings, model
from proteus_shards.core.commands import Complete, Enqueue, Heartbeat, Undeliver
from proteus_shards.core.holdings import Holdings
from proteus_shards.core.model import Job, Row, Status
from proteus_shards.core.queue import Queue
from proteus_shards.core.runs import Runs
from proteus_shards.core.shard import Shard
from proteus_shards.shard import pump as pumping
from tests.simulation.planting import Patch, mutant, rewrite

# --- retries and timeouts ------------------------------------------------------------------------------------------------


@mutant
def one_retry_too_many(patch: Patch) -> None:
    """A job dies one delivery late."""
    rewrite(patch, Runs, "_end_badly", "job.max_retries < job.attempt", "job.max_retries + 1 < job.attempt")


@mutant
def one_retry_too_few(patch: Patch) -> None:
    """A job dies one delivery early."""
    rewrite(patch, Runs, "_end_badly", "job.max_retries < job.attempt", "job.max_retries <= job.attempt")


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

    def by_wall(self: Shard, _now: int, wall: int, *, due: bool = True) -> None:
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
        self._order_dead(self.queues.values())

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
    job_of = model.job_of

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
    AWAY[0] = False

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
