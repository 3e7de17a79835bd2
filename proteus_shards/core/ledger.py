"""What a shard has promised but not yet told: logged operations, the rows they touch, and the images to take them back.

Two logs: `open` collects, `sealed` is with the store. Where the store takes only so much in one batch, the open log is ended before the
operation that would pass that, and waits, closed, while another one is begun: an operation is never split, and the rows of a closed log are
derived when it is closed, so that they show nothing of what comes after. An entry is one changed job or one waiting answer (or both) of an operation;
an operation that changes several jobs has several entries, in order. Replaying `image`s newest first undoes the log,
because between two entries nothing else moves a job of a queue that has logged operations, but for two things that are not
taken back: a deadline only ever grows, and a schedule once due stays so.

**Records** (settings, schedules, kept answers, …) are written by the same batches. `write_record` says what a record shall be; the entry
that stands for the change has, instead of a job and its image, no job and a function that takes it back.
"""

from __future__ import annotations

import sys
from collections import deque
from typing import TYPE_CHECKING, TypeAlias

import msgspec

from proteus_shards.core.extras import pack_extras
from proteus_shards.core.model import Batch, Job, Mark, Record, RecordKey, Row, RowKey, Status
from proteus_shards.core.placement import slot_of

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from proteus_shards.core.commands import Enqueue, Outcome
    from proteus_shards.core.extras import Extras
    from proteus_shards.core.queue import Queue


class Note(msgspec.Struct, frozen=True, gc=False):
    """Something that happened without a request, or to more than it asked for, for the log and the counters.

    `kind`: "timeout" or "failed" (retries are left), "died" (`reason` says of what) or "dropped". Or to many jobs at once, whose number is `count`:
    "purged", "redriven".
    """

    kind: str
    queue: str
    id: str
    attempt: int
    persist: bool
    count: int = 1
    reason: str | None = None


Image: TypeAlias = "tuple[Status, int, bytes | None, int, int, bytes | None, str | None, Extras | None, int]"
Undo: TypeAlias = "Callable[[], None]"
Entry: TypeAlias = "tuple[Queue, Hashable | None, Outcome | Note | None, Job | None, Image | Undo | None]"


STATE_SET, EXTRAS_SET = 1, 2


def image_of(job: Job) -> Image:
    """Return all of a job that may change, as it is now."""
    return (job.status, job.attempt, job.run_id, job.deadline, job.updated_at, job.state, job.reason, job.extras, job.started_at)


def footprint(job: Job | Enqueue) -> int:
    """Return the bytes that count against the shard's limit: payload and state."""
    return len(job.payload) + (len(job.state) if job.state is not None else 0)


class Segment(msgspec.Struct, eq=False):
    """Entries that are committed together, and the rows that they come to."""

    number: int
    entries: list[Entry]
    batch: Batch
    inserted: list[Job]
    deleted: list[Job]


class Ledger:
    """The logs of a shard, and the persisted jobs that the open one touches. A batch has at most `rows_max` rows and `bytes_max` bytes."""

    def __init__(self, rows_max: int = sys.maxsize, bytes_max: int = sys.maxsize) -> None:
        self.open: list[Entry] = []
        self.sealed: list[Entry] = []
        self.sealed_number = 0
        self.number = 1  # of the commit that the open log will be
        self.record_keys: list[RecordKey] = []  # of the records that the last sealed batch to be reverted would have written
        self._rows_max = rows_max
        self._bytes_max = bytes_max
        self._closed: deque[Segment] = deque()
        self._closed_entries = 0
        self._sealed = Segment(0, [], Batch([], [], []), [], [])
        self._touched: dict[Job, int] = {}  # → which of its large parts have changed
        self._records: dict[RecordKey, bytes | None] = {}
        self._bytes = 0  # that the touched rows have at most

    def __len__(self) -> int:
        return len(self.open) + self._closed_entries + len(self.sealed)

    @property
    def has_open(self) -> bool:
        """Whether anything waits for the next `cut`."""
        return bool(self.open or self._closed)

    @property
    def sealed_batch(self) -> Batch:
        """The row writes that are with the store."""
        return self._sealed.batch

    def make_room(self, rows: int, size: int) -> None:
        """See to it that an operation which is about to touch so many rows, of so many bytes, fits into the open log as a whole."""
        written = len(self._touched) + len(self._records)
        if written and (written + rows > self._rows_max or self._bytes + size > self._bytes_max):
            self._close()

    def log(self, queue: Queue, key: Hashable | None, answer: Outcome | Note | None, job: Job | None, image: Image | Undo | None) -> None:
        """Add an entry to the open log. `image` None with a job means: it did not exist before. Without a job it may be a function that undoes the change."""
        queue.pending += 1
        self.open.append((queue, key, answer, job, image))

    def touch(self, job: Job, size: int = 0, *, state_set: bool = False, extras_set: bool = False) -> None:
        """Note that a persisted job's row, of so many bytes, must be written."""
        self._touched[job] = self._touched.get(job, 0) | (STATE_SET if state_set else 0) | (EXTRAS_SET if extras_set else 0)
        self._bytes += size

    def succeed(self, job: Job, heir: Job) -> None:
        """Note that another job has taken over the row of one."""
        parts = self._touched.pop(job, None)
        if parts is not None:
            self._touched[heir] = parts

    def write_record(self, key: RecordKey, value: bytes | None) -> None:
        """Note what a record shall be; None: gone."""
        self._records[key] = value
        self._bytes += len(key.name.encode()) + len(value or b"")

    def cut(self) -> Batch:
        """Seal what comes next and return the row writes that it comes to, perhaps none."""
        assert not self.sealed, "one commit at a time"
        if not self._closed:
            self._close()
        self._sealed = self._closed.popleft()
        self._closed_entries -= len(self._sealed.entries)
        self.sealed, self.sealed_number = self._sealed.entries, self._sealed.number
        return self._sealed.batch

    def release(self) -> list[Entry]:
        """Empty the sealed log, whose rows are durable, and return its entries in order."""
        entries, self.sealed = self.sealed, []
        self._sealed = Segment(self.sealed_number, [], Batch([], [], []), [], [])
        return entries

    def revert(self) -> tuple[list[Entry], list[Entry], list[RowKey]]:
        """Empty all logs and return (entries not sealed, sealed entries, keys of the sealed rows), for undoing them newest first."""
        opened: list[Entry] = []
        for segment in self._closed:
            opened += segment.entries
        opened += self.open
        for segment in (*reversed(self._closed), self._sealed):
            for job in segment.inserted:
                job.stored = False
            for job in segment.deleted:
                job.stored = True
        batch = self._sealed.batch
        keys = list(batch.deletes)
        keys += [RowKey(row.slot, row.seq, row.queue, row.id) for row in batch.inserts]
        keys += [RowKey(mark.slot, mark.seq, mark.queue, mark.id) for mark in batch.marks]
        self.record_keys = [RecordKey(record.slot, record.kind, record.name) for record in batch.records]
        self.open, self._touched, self._records, self._bytes = [], {}, {}, 0
        self._closed.clear()
        self._closed_entries = 0
        return opened, self.release(), keys

    def _close(self) -> None:
        """End the open log where it stands, and derive its row writes."""
        segment = Segment(self.number, self.open, Batch([], [], []), [], [])
        for job, parts in self._touched.items():
            _write(segment, job, parts)
        segment.batch.records += [Record(key.slot, key.kind, key.name, value) for key, value in self._records.items()]
        self._closed.append(segment)
        self._closed_entries += len(segment.entries)
        self.open, self._touched, self._records, self._bytes = [], {}, {}, 0
        self.number += 1


def _write(segment: Segment, job: Job, parts: int) -> None:
    """Add to a batch what makes a job's row what the job is now."""
    slot = slot_of(job.queue)
    if job.status is Status.GONE:
        if job.stored:
            job.stored = False
            segment.deleted.append(job)
            segment.batch.deletes.append(RowKey(slot, job.seq, job.queue, job.id))
    elif job.stored:
        segment.batch.marks.append(_mark(job, slot, parts))
    else:
        job.stored = True
        segment.inserted.append(job)
        segment.batch.inserts.append(row_of(job, slot))


def _status(job: Job) -> int:
    return Status.READY if job.status is Status.SCHEDULED else job.status


def row_of(job: Job, slot: int) -> Row:
    """Return the row of a job as it is now."""
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
        pack_extras(job.extras),
    )


def _mark(job: Job, slot: int, parts: int) -> Mark:
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
        bool(parts & STATE_SET),
        job.state if parts & STATE_SET else None,
        bool(parts & EXTRAS_SET),
        pack_extras(job.extras) if parts & EXTRAS_SET else None,
    )
