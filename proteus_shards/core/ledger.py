"""What a shard has promised but not yet told: logged operations, the rows they touch, and the images to take them back.

Two logs: `open` collects, `sealed` is with the store. An entry is one changed job or one waiting answer (or both) of an operation;
an operation that changes several jobs has several entries, in order. Replaying `image`s newest first undoes the log,
because between two entries nothing else moves a job of a queue that has logged operations, but for two things that are not
taken back: a deadline only ever grows, and a schedule once due stays so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import msgspec

from proteus_shards.core.model import Batch, Job, Mark, Row, RowKey, Status
from proteus_shards.core.placement import slot_of

if TYPE_CHECKING:
    from collections.abc import Hashable

    from proteus_shards.core.commands import Outcome
    from proteus_shards.core.queue import Queue


class Note(msgspec.Struct, frozen=True, gc=False):
    """Something that happened without a request, for the log and the counters. `kind`: timeout, died or dropped."""

    kind: str
    queue: str
    id: str
    attempt: int
    persist: bool


Image: TypeAlias = tuple[Status, int, bytes | None, int, int, bytes | None, str | None]
Entry: TypeAlias = "tuple[Queue, Hashable | None, Outcome | Note | None, Job | None, Image | None]"


def image_of(job: Job) -> Image:
    """Return all of a job that may change, as it is now."""
    return (job.status, job.attempt, job.run_id, job.deadline, job.updated_at, job.state, job.reason)


def footprint(job: Job) -> int:
    """Return the bytes that count against the shard's limit: payload and state."""
    return len(job.payload) + (len(job.state) if job.state is not None else 0)


class Ledger:
    """The two logs of a shard, and the persisted jobs that the open one touches."""

    def __init__(self) -> None:
        self.open: list[Entry] = []
        self.sealed: list[Entry] = []
        self.sealed_number = 0  # of the last commit; the open log will be the next one
        self._touched: dict[Job, bool] = {}  # → whether its state has changed
        self._inserted: list[Job] = []
        self._deleted: list[Job] = []
        self._batch = Batch([], [], [])

    def __len__(self) -> int:
        return len(self.open) + len(self.sealed)

    def log(self, queue: Queue, key: Hashable | None, answer: Outcome | Note | None, job: Job | None, image: Image | None) -> None:
        """Add an entry to the open log. `image` None with a job means: it did not exist before."""
        queue.pending += 1
        self.open.append((queue, key, answer, job, image))

    def touch(self, job: Job, *, state_set: bool = False) -> None:
        """Note that a persisted job's row must be written."""
        self._touched[job] = self._touched.get(job, False) or state_set

    def cut(self) -> Batch:
        """Seal the open log and return the row writes that it comes to, perhaps none."""
        assert not self.sealed, "one commit at a time"
        self.sealed, self.open = self.open, []
        self.sealed_number += 1
        touched, self._touched = self._touched, {}
        batch = self._batch = Batch([], [], [])
        for job, state_set in touched.items():
            slot = slot_of(job.queue)
            if job.status is Status.GONE:
                if job.stored:
                    job.stored = False
                    self._deleted.append(job)
                    batch.deletes.append(RowKey(slot, job.seq, job.queue, job.id))
            elif job.stored:
                batch.marks.append(_mark(job, slot, state_set=state_set))
            else:
                job.stored = True
                self._inserted.append(job)
                batch.inserts.append(_row(job, slot))
        return batch

    def release(self) -> list[Entry]:
        """Empty the sealed log, whose rows are durable, and return its entries in order."""
        entries, self.sealed = self.sealed, []
        self._forget()
        return entries

    def revert(self) -> tuple[list[Entry], list[Entry], list[RowKey]]:
        """Empty both logs and return (open entries, sealed entries, keys of the sealed rows), for undoing them newest first."""
        for job in self._inserted:
            job.stored = False
        for job in self._deleted:
            job.stored = True
        batch = self._batch
        keys = list(batch.deletes)
        keys += [RowKey(row.slot, row.seq, row.queue, row.id) for row in batch.inserts]
        keys += [RowKey(mark.slot, mark.seq, mark.queue, mark.id) for mark in batch.marks]
        entries = (self.open, self.sealed)
        self.open, self.sealed = [], []
        self._touched = {}
        self._forget()
        return (*entries, keys)

    def _forget(self) -> None:
        self._inserted.clear()
        self._deleted.clear()
        self._batch = Batch([], [], [])


def _status(job: Job) -> int:
    return Status.READY if job.status is Status.SCHEDULED else job.status


def _row(job: Job, slot: int) -> Row:
    return Row(
        slot,
        job.seq,
        job.queue,
        job.id,
        int(_status(job)),
        job.ready_at,
        job.run_at,
        job.timeout,
        job.max_retries,
        job.attempt,
        job.run_id,
        job.reason,
        job.created_at,
        job.updated_at,
        job.payload,
        job.state,
    )


def _mark(job: Job, slot: int, *, state_set: bool) -> Mark:
    return Mark(
        slot,
        job.seq,
        job.queue,
        job.id,
        int(_status(job)),
        job.attempt,
        job.run_id,
        job.reason,
        job.updated_at,
        state_set,
        job.state if state_set else None,
    )
