"""What may be asked of a shard, and what it answers.

Commands and outcomes are plain values. The IPC carries them as they are (tagged MessagePack arrays), so a word means the
same in the core, on the socket and in the front. A refusal is an outcome like any other: nothing is raised for it.
What brings jobs in stands in `commands_jobs`, what operators ask in `commands_control`; the hot ones and the unions stand here.

Public shapes, units and limits: a `timeout` is whole seconds, a `*_us` whole microseconds, a run_id 16 bytes (a UUID).
Payload and state are JSON text, opaque to everything behind the front.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TypeAlias

import msgspec

from proteus_shards.core import commands_control as control
from proteus_shards.core.commands_jobs import Enqueue as Enqueue
from proteus_shards.core.commands_jobs import EnqueueAll as EnqueueAll
from proteus_shards.core.commands_jobs import Mode as Mode
from proteus_shards.core.commands_jobs import Options as Options
from proteus_shards.core.commands_jobs import Replace as Replace
from proteus_shards.core.commands_jobs import Requeue as Requeue
from proteus_shards.core.commands_steps import AskDecision as AskDecision
from proteus_shards.core.commands_steps import Begin as Begin
from proteus_shards.core.commands_steps import Conclude as Conclude
from proteus_shards.core.commands_steps import Decide as Decide
from proteus_shards.core.commands_steps import Decided as Decided
from proteus_shards.core.commands_steps import EnqueueOnce as EnqueueOnce
from proteus_shards.core.commands_steps import Forget as Forget
from proteus_shards.core.commands_steps import JobRefusal as JobRefusal
from proteus_shards.core.commands_steps import ListSteps as ListSteps
from proteus_shards.core.commands_steps import OpenStep as OpenStep
from proteus_shards.core.commands_steps import OpenSteps as OpenSteps
from proteus_shards.core.commands_steps import Outcomes as Outcomes
from proteus_shards.core.commands_steps import Prepare as Prepare
from proteus_shards.core.extras import Extras


class Next(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=2):
    """Deliver up to `count` jobs; with none ready, wait up to `wait_us` for the first. Answers `Delivered`, which may be empty."""

    queue: str
    count: int = 1
    wait_us: int = 0


class Heartbeat(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=3):
    """Restart the timeout of a run and save its state. `state`: None keeps it, b"" clears it. Answers `Done` or NOT_FOUND."""

    queue: str
    id: str
    run_id: bytes | None = None
    state: bytes | None = None


class Complete(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=4):
    """Remove a job, in flight or not; with a run_id only that run. Answers `Done` or NOT_FOUND."""

    queue: str
    id: str
    run_id: bytes | None = None


class Undeliver(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=5):
    """Give back a run whose delivery surely never reached its runner: back to its place, no retry spent. Answers `Done` or NOT_FOUND."""

    queue: str
    id: str
    run_id: bytes


class Cancel(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=6):
    """Forget the request `request` of the same link: a waiting `Next` ends, and what it was already given goes back. Not answered.

    With `answered` that `Next` is answered all the same: with what it was already given, or with nothing, now.
    """

    request: int
    answered: bool = False


class Inspect(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=7):
    """Ask a shard for its `Statistics`."""


class ListDead(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=8):
    """List up to `count` dead letters of a queue, oldest death first, after the one with seq `after`. Answers `Listed`."""

    queue: str
    count: int = 100
    after: int = -1


class Measure(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=20):
    """Ask a shard for its `Measures`. Costs the more the more queues there are, and is carried out bit by bit."""


Command: TypeAlias = (
    Enqueue
    | Next
    | Heartbeat
    | Complete
    | Undeliver
    | Cancel
    | Inspect
    | ListDead
    | Measure
    | EnqueueAll
    | Replace
    | Requeue
    | Begin
    | Prepare
    | Decide
    | AskDecision
    | Conclude
    | Forget
    | ListSteps
    | EnqueueOnce
    | control.Fail
    | control.Release
    | control.GetJob
    | control.FindJobs
    | control.ListJobs
    | control.ListQueues
    | control.GetQueue
    | control.SetQueue
    | control.Purge
    | control.Redrive
    | control.PickDead
    | control.Change
    | control.PutSchedule
    | control.DropSchedule
    | control.ListSchedules
)


class Reason(IntEnum):
    """Why a command was refused. The HTTP status of each is the front's business."""

    EXISTS = 1  # a live job of that id is in the queue
    NOT_FOUND = 2  # no such job, not in flight, or another run
    INVALID = 3  # no retry can mend it
    BUSY = 4  # surely without effect; try again later (store away, shard away, too much under way)
    FULL = 5  # surely without effect; a limit is reached (jobs, bytes, waiting polls)
    UNKNOWN = 6  # may have had an effect
    FAULT = 7  # a bug or a fault inside; may have had an effect
    MOVED = 8  # surely without effect; the shard moves to another process, which may be asked at once


class Done(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=101):
    """It was done, and a persisted part of it is durable. `trace` is that of a job that was completed, where it has one."""

    trace: str | None = None


class Delivery(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One job as its runner gets it."""

    queue: str
    id: str
    timeout: int
    persist: bool
    max_retries: int
    payload: bytes
    state: bytes | None
    run_at: int | None
    run_id: bytes
    attempt: int
    created_at: int
    updated_at: int
    extras: Extras | None = None


class Delivered(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=102):
    """The jobs of a `Next`, in order; none where the queue had none in time."""

    jobs: list[Delivery]


class Refused(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=103):
    """It was not done, or for UNKNOWN and FAULT perhaps not. `field` names the argument at fault, if one is."""

    reason: Reason
    detail: str
    field: str | None = None
    retry_after: int = 1  # seconds; counts for BUSY, FULL and UNKNOWN
    held_by: bytes | None = None  # NOT_FOUND because another run has the job: its run_id
    held_until: int | None = None  # and when that will time out, if nothing is heard of it (microseconds since the Unix epoch)


class DeadLetter(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One dead letter."""

    queue: str
    id: str
    seq: int
    timeout: int
    persist: bool
    max_retries: int
    payload: bytes
    state: bytes | None
    run_at: int | None
    attempt: int
    reason: str
    created_at: int
    died_at: int
    extras: Extras | None = None


class Listed(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=104):
    """Dead letters, oldest death first."""

    jobs: list[DeadLetter]


class Statistics(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=105):
    """What a shard holds and has done, at one moment. Counts are since the process started."""

    shard: int
    epoch: int
    store: str  # kind of the store: "memory", "sqlite", …
    durability: str  # "memory", "process", "machine", "replica" or "weak"
    terms: str  # what that rests on: versions and settings of the store, no more
    store_away: bool
    queues: int
    scheduled: int
    ready: int
    in_flight: int
    dead: int
    polls: int
    bytes: int  # payloads and states in memory
    recovered: int  # rows read at start
    recovery_seconds: float
    damaged: int  # rows that are no jobs, kept aside in the store
    commits: int
    rows_written: int
    timeouts: int
    died: int
    dead_dropped: int


Sample: TypeAlias = tuple[str, list[str], float | list[float]]
"""One number of a metric: its name and the values of its labels. A histogram has a list: how many fell into each bucket, and their sum."""


class QueueMeasure(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One queue at one moment."""

    queue: str
    scheduled: int
    ready: int
    in_flight: int
    dead: int
    waited_us: int  # how long its oldest ready job has waited since it could have started; 0 where none is ready
    blocked: int = 0  # of the ready ones, those that wait for another of their key
    paused: bool = False


class Measures(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=120):
    """All that a shard counts and measures, and its deepest queues. Counters go on where an earlier process of the same shard left them."""

    samples: list[Sample]
    queues: list[QueueMeasure]


Outcome: TypeAlias = (
    Done
    | Delivered
    | Refused
    | Listed
    | Statistics
    | Measures
    | control.Jobs
    | control.Queues
    | control.Counted
    | control.Picked
    | control.Schedules
    | Decided
    | OpenSteps
    | Outcomes
)
