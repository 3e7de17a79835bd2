"""Mutants: what is stored, what a restart makes of it, and stores that break their contract."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from proteus_shards.core import ledger
from proteus_shards.core.commands import Enqueue
from proteus_shards.core.holdings import Holdings
from proteus_shards.core.ledger import Ledger
from proteus_shards.core.model import Batch, Job, Row, Status
from proteus_shards.core.queue import Queue
from proteus_shards.core.shard import Shard
from proteus_shards.shard.pump import Pump
from tests.simulation.disk import Disk, SimulatedStore
from tests.simulation.planting import Patch, mutant


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

    def lazy(segment: Any, job: Job, parts: int) -> None:
        if not (job.status is Status.GONE and job.stored):
            write(segment, job, parts)

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
        rows = sorted(
            (row for row in self.disk.rows.values() if row.slot in self.slots and row.slot < 900), key=lambda row: (row.ready_at, row.seq)
        )
        yield rows

    patch(SimulatedStore, "load", load)
