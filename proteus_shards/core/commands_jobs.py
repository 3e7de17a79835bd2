"""What brings jobs in: one, several in one atomic step, and steps that take a job away at the same time.

Like all commands (see `commands`) plain values that the IPC carries as they are.
"""

from __future__ import annotations

from enum import IntEnum

import msgspec

from proteus_shards.core.extras import Attempt, Backoff

TIMEOUT_OF_QUEUE = -1  # `timeout` was left out: the queue's default counts, and where it has none the job is refused
RETRIES_OF_QUEUE = -(2**31) - 1  # `max_retries` was left out: the queue's default, else 0


class Moved(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What a dead letter brings along into another queue, beside what any job is enqueued with. No ttl counts for it."""

    created_at: int
    history: tuple[Attempt, ...] = ()
    schedule: str | None = None


class Options(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What a job may be enqueued with beside its plain fields; see `extras.Extras`."""

    key: str | None = None
    priority: int = 0
    ttl_us: int | None = None  # while it waits for longer, it dies
    backoff: Backoff | None = None
    trace: str | None = None
    moved: Moved | None = None  # never of a request


class Enqueue(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=1):
    """Add a job to its queue. Answers `Done`, or `Refused` (EXISTS, FULL, NO_STORE, …)."""

    queue: str
    id: str
    timeout: int
    persist: bool
    max_retries: int
    payload: bytes
    state: bytes | None = None
    run_at_us: int | None = None
    options: Options | None = None


class Mode(IntEnum):
    """What becomes of a job whose id is in its queue already."""

    UNIQUE = 0  # the whole step is refused
    IGNORE = 1  # that job is skipped
    REPLACE = 2  # it takes the place of the one that is there, whose run is over


class EnqueueAll(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=30):
    """Add several jobs in one atomic step. All their queues belong to one shard; `queue` is one of them. Answers `Done` or `Refused`, naming the `id` in its detail."""

    queue: str
    jobs: list[Enqueue]
    mode: Mode = Mode.UNIQUE


class Replace(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=31):
    """Put a job in the place of the one in flight with its queue and id, whose run is over; created_at stays. Answers `Done` or NOT_FOUND."""

    queue: str
    job: Enqueue


class Requeue(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=32):
    """Complete a run and add jobs in one atomic step, all of one shard. Answers `Done`; NOT_FOUND where the run is over, and then nothing is added."""

    queue: str
    id: str
    run_id: bytes
    jobs: list[Enqueue]
    mode: Mode = Mode.UNIQUE
