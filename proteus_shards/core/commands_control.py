"""What a runner says beside heartbeat and complete, and what an operator asks of queues and jobs.

Like all commands (see `commands`) plain values that the IPC carries as they are. Times are whole microseconds since the Unix epoch.
Lists are pages: `after` is the page before's `next`, which is None on the last. What changes many jobs does so in bounded portions, and says
whether there is more: whoever asked goes on.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from proteus_shards.core.commands_jobs import Enqueue
from proteus_shards.core.extras import Extras


class Fail(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=9):
    """End a run that did not do its job: a retry is spent, and with none left it dies ("failed"). Answers `Done` or NOT_FOUND.

    `delay_us` None: the job's or its queue's backoff counts.
    """

    queue: str
    id: str
    run_id: bytes | None = None
    error: str | None = None
    delay_us: int | None = None


class Release(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=10):
    """End a run that was not begun, or is given up for now: no retry is spent. Answers `Done` or NOT_FOUND."""

    queue: str
    id: str
    run_id: bytes | None = None
    delay_us: int = 0


class State(StrEnum):
    """Where a job stands, as users call it, and why a job that waits is not running."""

    SCHEDULED = "scheduled"  # waits for its run_at
    BACKING_OFF = "backing_off"  # waits after a failure
    READY = "ready"
    BLOCKED = "blocked"  # another job of its key is in the way
    IN_FLIGHT = "in_flight"
    DEAD = "dead"


class JobView(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """All of a job."""

    queue: str
    id: str
    seq: int
    state_name: str  # a `State`
    timeout: int
    persist: bool
    max_retries: int
    payload: bytes
    state: bytes | None
    run_at: int | None
    attempt: int
    run_id: bytes | None
    deadline_us: int | None  # in flight: how long until its timeout
    reason: str | None  # dead: why ("timeout", "failed", "expired", …)
    created_at: int
    updated_at: int
    extras: Extras | None
    waits_for: list[
        str
    ] = []  # why it is not running: "scheduled", "backing_off", "paused", "max_in_flight", "rate", "key", "no_runner", "behind"
    blocked_by: str | None = None  # id of the job of its key that is in the way
    due_at: int | None = None  # when what it waits for is over, where that is known


class GetJob(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=11):
    """Ask for one job: the live one of that id, else its newest dead letter. Answers `Jobs` with one, or NOT_FOUND."""

    queue: str
    id: str


class FindJobs(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=12):
    """Look for an id in all queues of a shard. Answers `Jobs`."""

    id: str
    count: int = 100


class ListJobs(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=13):
    """List jobs of a queue: waiting ones in order of delivery, in flight by deadline, scheduled by time, dead by death. Answers `Jobs`."""

    queue: str
    state_name: str | None = None
    key: str | None = None
    created_before: int | None = None
    count: int = 100
    after: str | None = None
    bodies: bool = True  # False: payload and state are left out


class Jobs(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=106):
    """Some jobs."""

    jobs: list[JobView]
    next: str | None = None


class QueueView(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One queue at one moment."""

    queue: str
    scheduled: int  # backing off included
    ready: int
    blocked: int
    in_flight: int
    dead: int
    pollers: int
    waited_us: int  # how long its oldest ready job has waited since it could have started; 0 where none is ready
    held_bytes: int  # payloads and states in memory
    paused: bool
    settings: bytes | None = None  # JSON: what is set, and nothing else; None where nothing is


class ListQueues(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=14):
    """List the queues of a shard by name, after `after`. Answers `Queues`."""

    count: int = 1000
    after: str = ""
    contains: str = ""


class GetQueue(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=15):
    """Ask for one queue. Answers `Queues` with one, whether it has ever been used or not."""

    queue: str


class Queues(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=107):
    """Some queues."""

    queues: list[QueueView]
    next: str | None = None


class SetQueue(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=16):
    """Change the settings of a queue: a JSON merge patch of `queue_settings.QueueSettings`. Answers `Done` or INVALID, naming the field."""

    queue: str
    patch: bytes


class Purge(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=17):
    """Remove jobs of a queue. `states` are `State`s, [] is all that wait. Answers `Counted`."""

    queue: str
    states: list[str] = []
    key: str | None = None
    ids: list[str] | None = None  # None: whatever their id
    count: int = 1000


class Redrive(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=18):
    """Give dead letters of a queue a new life, in their original order, with all their retries. Answers `Counted`.

    One whose id is live again stays dead. `to`: into another queue of the same shard; for one of another shard see `PickDead`.
    """

    queue: str
    ids: list[str] | None = None
    key: str | None = None
    reason: str | None = None
    to: str | None = None
    count: int = 1000
    after: int = -1  # seq


class PickDead(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=24):
    """Ask what a redrive into a queue of another shard is to move next: no more than one step may have. Changes nothing. Answers `Picked`."""

    queue: str
    redrive: Redrive


class Picked(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=113):
    """Dead letters, oldest first, as the jobs that they would be in their new queue. `after`: from where there is more."""

    seqs: list[int]
    jobs: list[Enqueue]
    more: bool = False
    after: int = -1
    too_large: str | None = None  # id of the first that was left out, as no step can carry it


class Change(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=19):
    """Change a job that waits: when it runs (`run_at_us`; 0 is now: promote) or its priority. Answers `Done` or NOT_FOUND."""

    queue: str
    id: str
    run_at_us: int | None = None
    priority: int | None = None


class Counted(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=108):
    """How many jobs were changed, and whether there may be more to do (`after`: from where)."""

    jobs: int
    more: bool = False
    after: int = -1


class ScheduleView(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A recurring job."""

    queue: str
    name: str
    definition: bytes  # JSON, as `schedules` says
    next_at: int | None
    last_at: int | None = None
    fired: int = 0
    missed: int = 0


class PutSchedule(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=21):
    """Make or change a recurring job of a queue. `job` is that of its definition, its queue and id left open. Answers `Done` or INVALID, naming the field."""

    queue: str
    name: str
    definition: bytes
    job: Enqueue | None = None


class DropSchedule(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=22):
    """Remove a recurring job. Jobs that it made stay. Answers `Done` or NOT_FOUND."""

    queue: str
    name: str


class ListSchedules(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=23):
    """List recurring jobs of a queue ("": of all the shard's), or the one of a name, by queue and name. Answers `Schedules`."""

    queue: str = ""
    count: int = 1000
    after: str = ""
    name: str | None = None


class Schedules(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=109):
    """Some recurring jobs."""

    schedules: list[ScheduleView]
    next: str | None = None
