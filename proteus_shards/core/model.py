"""The job: what is kept in memory, what is stored of it, and the limits of its fields.

`Job` is the living object that the core moves from status to status. `Row` is the stored part of it, a frozen copy that
may be handed to another thread. A field goes into `Row` only if a restart needs it: deadlines do not (a run that was
in flight at a crash gets its full timeout again), and whether a waiting job is already due follows from `run_at`.

Version rule: `Row` and `Record` mirror schema version `ROW_VERSION`. A new field is added at the end with a default, the number
goes up, and each store brings a migration from the version before it. A store that holds a higher version is refused. What
stores need not tell apart goes into `extras` (see there) or into a `Record`, and needs no new version.

Times are whole microseconds: `*_at` since the Unix epoch (wall clock), `deadline` on the monotonic clock.
"""

from __future__ import annotations

import re
from enum import IntEnum

import msgspec

from proteus_shards.core.extras import Extras, extras_times, unpack_extras
from proteus_shards.errors import RowError

ROW_VERSION = 2

NAME_LENGTH_MAX = 1024
TIMEOUT_SECONDS_MAX = 2**31 - 1
MAX_RETRIES_MAX = 2**31 - 1
TIME_US_MIN = -62_135_596_800_000_000  # 0001-01-01T00:00:00Z, the first instant that a date library knows
TIME_US_MAX = 253_402_300_799_999_999  # 9999-12-31T23:59:59.999999Z, the last instant of RFC 3339
COUNT_MAX = 2**62  # of seq and attempt: never reached, and still a number that every store holds
SECOND_US = 1_000_000
RECORD_NAME_BYTES_MAX = 9000  # of a record's name in UTF-8: two names of 1024 characters fit, with what holds them apart
RECORD_BYTES_MAX = 256 * 1024  # of a record's value: every store takes as much

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


class Status(IntEnum):
    """Where a job stands in its life."""

    GONE = 0  # not in the queue: never enqueued, completed, or dropped
    SCHEDULED = 1  # waits for its run_at
    READY = 2  # waits for a runner
    IN_FLIGHT = 3  # a runner has it
    DEAD = 4  # its retries are used up; kept as a dead letter


_STORED = frozenset({int(Status.READY), int(Status.IN_FLIGHT), int(Status.DEAD)})
_IN_FLIGHT = int(Status.IN_FLIGHT)


class Job(msgspec.Struct, eq=False, gc=False):
    """One job in a shard's memory. Compared and hashed by identity; never part of a reference cycle."""

    queue: str
    id: str
    seq: int  # shard-wide enqueue counter, the tie-breaker of the order key
    ready_at: int  # first half of the order key (ready_at, seq); kept for life
    run_at: int | None
    timeout: int  # seconds
    persist: bool
    max_retries: int  # negative: without end
    payload: bytes  # JSON text, opaque
    state: bytes | None  # JSON text, opaque
    created_at: int
    updated_at: int
    status: Status = Status.GONE
    attempt: int = 0  # deliveries so far
    run_id: bytes | None = None  # 16 bytes, while in flight
    reason: str | None = None  # why it is dead
    deadline: int = 0  # monotonic, while in flight
    stored: bool = False  # the store holds (or is being told) a row of this job
    returned: bool = False  # has an entry in its queue's heap of returned jobs
    timed: bool = False  # has an entry in the shard's heap of deadlines
    delivering: int = 0  # number of the commit that the reply with its delivery waits for, or 0
    started_at: int = 0  # when it was last delivered by this process, or 0
    extras: Extras | None = None
    blocked: bool = False  # READY, but another job of its key is in the way
    filed: int = 0  # which heaps of its key's lane have an entry of it


class Row(msgspec.Struct, frozen=True, gc=False):
    """What a store keeps of a job. `(slot, seq)` is unique among the rows of a store, as is `(queue, id)` among those not dead."""

    slot: int
    seq: int
    queue: str
    id: str
    status: int  # Status.READY stands for SCHEDULED too
    ready_at: int
    run_at: int | None
    timeout: int
    max_retries: int
    attempt: int
    run_id: bytes | None
    reason: str | None
    created_at: int
    updated_at: int
    payload: bytes
    state: bytes | None
    extras: bytes | None = None  # packed, opaque to a store


class Mark(msgspec.Struct, frozen=True, gc=False):
    """A change to a stored row: all that may change in a job's life. `state` counts only with `state_set`, `extras` only with `extras_set`."""

    slot: int
    seq: int
    queue: str
    id: str
    status: int
    attempt: int
    run_id: bytes | None
    reason: str | None
    updated_at: int
    state_set: bool
    state: bytes | None
    extras_set: bool = False
    extras: bytes | None = None


class RowKey(msgspec.Struct, frozen=True, gc=False):
    """Names one stored row. A store may use whichever of `(slot, seq)` and `(queue, id, seq)` suits it."""

    slot: int
    seq: int
    queue: str
    id: str


class Kind(IntEnum):
    """What a record is about. Stores do not care."""

    QUEUE = 1  # the settings of a queue; `name` is the queue
    SCHEDULE = 2  # a recurring job; `name` is its queue and its own name
    ANSWER = 3  # what an idempotency key was answered
    INTENT = 4  # jobs of a step over several shards that is not decided yet
    DECISION = 5  # how such a step was decided
    IMPORT = 6  # jobs were imported into this store; for the importer alone


class RecordKey(msgspec.Struct, frozen=True, gc=False):
    """Names one record. `(slot, kind, name)` is unique; a name has 1…`RECORD_NAME_BYTES_MAX` bytes and may hold any character but NUL and lone surrogates."""

    slot: int
    kind: int
    name: str


class Record(msgspec.Struct, frozen=True, gc=False):
    """Something small that a shard keeps beside its jobs. In a batch, a `value` of None removes it, where it is there; else it is written, new or not."""

    slot: int
    kind: int
    name: str
    value: bytes | None


class Batch(msgspec.Struct, gc=False):
    """One atomic change of a store: deletes first, then marks, then inserts, then records. No two entries touch the same row or record.

    The order counts where a store keeps `(queue, id)` of live rows unique: an id may pass from a job that dies to a new one.
    """

    deletes: list[RowKey]
    inserts: list[Row]
    marks: list[Mark]
    records: list[Record] = msgspec.field(default_factory=list)

    def __len__(self) -> int:
        return len(self.deletes) + len(self.inserts) + len(self.marks) + len(self.records)


def name_fault(name: str) -> str | None:
    """Say what is wrong with a queue name or job id, or return None where nothing is."""
    if 0 < len(name) <= NAME_LENGTH_MAX and name.isprintable():  # most are, and it is quickly found out
        return None
    if not name:
        return "must not be empty"
    if len(name) > NAME_LENGTH_MAX:
        return f"must have at most {NAME_LENGTH_MAX} characters, not {len(name)}"
    if _CONTROL.search(name):
        return "must not contain control characters or lone surrogates"
    return None


def is_instant(time_us: int) -> bool:
    """Say whether an instant lies in the years 1…9999."""
    return TIME_US_MIN <= time_us <= TIME_US_MAX


def job_of(row: Row) -> Job:
    """Build the living job of a stored row. Raises `RowError`, which says what the row lacks to be one."""
    if (fault := name_fault(row.queue)) is not None:
        raise RowError(f"queue {fault}")
    if (fault := name_fault(row.id)) is not None:
        raise RowError(f"id {fault}")
    if row.status not in _STORED:
        raise RowError(f"status must be 2, 3 or 4, not {row.status}")
    if (row.status == _IN_FLIGHT) != (row.run_id is not None):
        raise RowError("run_id must be set exactly while the job is in flight")
    if not (0 <= row.timeout <= TIMEOUT_SECONDS_MAX and 0 <= row.attempt <= COUNT_MAX and 0 <= row.seq <= COUNT_MAX):
        raise RowError("timeout, attempt and seq must be in their range")
    instants = (row.ready_at, row.created_at, row.updated_at, row.created_at if row.run_at is None else row.run_at)
    if min(instants) < TIME_US_MIN or max(instants) > TIME_US_MAX:  # one far in the future would drag the shard's clock along
        raise RowError("ready_at, run_at, created_at and updated_at must lie in the years 1…9999")
    extras = unpack_extras(row.extras)
    if extras is not None and not all(is_instant(time) for time in extras_times(extras)):
        raise RowError("the times in extras must lie in the years 1…9999")
    return Job(
        queue=row.queue,
        id=row.id,
        seq=row.seq,
        ready_at=row.ready_at,
        run_at=row.run_at,
        timeout=row.timeout,
        persist=True,
        max_retries=row.max_retries,
        payload=row.payload,
        state=row.state,
        created_at=row.created_at,
        updated_at=row.updated_at,
        attempt=row.attempt,
        run_id=row.run_id,
        reason=row.reason,
        stored=True,
        extras=extras,
    )
