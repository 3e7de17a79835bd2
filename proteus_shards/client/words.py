"""What goes over the wire, as a client sees it: jobs, queues, dead letters, schedules.

Payload and state stay the bytes that the server sent until somebody looks at them: `job.payload` decodes them once, `job.payload_as(T)` decodes them
checked and typed (any type that msgspec knows), and whoever only hands a job on, as an export does, hands on what came, to the byte. A field that a newer server
adds is passed over. Times are the RFC 3339 text of the server; durations are seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Generic, Literal, Protocol, TypeVar

import msgspec

T = TypeVar("T")

_NULL = msgspec.Raw(b"null")

JobState = Literal["scheduled", "backing_off", "ready", "blocked", "in_flight", "dead"]


class Backoff(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How long a job that failed or timed out waits: `seconds × factor ** (attempt - 1)`, at most `seconds_max`, less a random share `jitter`."""

    seconds: float
    factor: float = 1.0
    seconds_max: float | None = None
    jitter: float = 0.0


class NewJob(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A job to be enqueued. What is left out is the queue's or the server's default."""

    id: str
    queue: str
    timeout: int | None = None  # seconds without a heartbeat, after which the job goes to another runner
    payload: Any = None
    persist_data: bool = False
    max_retries: int | None = None
    state: Any = None
    run_at: str | None = None  # RFC 3339
    key: str | None = None
    priority: int = 0
    ttl: float | None = None
    backoff: Backoff | None = None


class HasRun(Protocol):
    """Whatever names a run of a job: a `Job` that was delivered, or a `Run`."""

    @property
    def queue(self) -> str:
        """Its queue."""

    @property
    def id(self) -> str:
        """The job's id."""

    @property
    def run_id(self) -> str | None:
        """The delivery; None means whichever run is in flight."""


class Run(msgspec.Struct, frozen=True):
    """One delivery of a job by its names."""

    queue: str
    id: str
    run_id: str | None = None


class _Bodies(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    payload_json: msgspec.Raw = msgspec.field(default=_NULL, name="payload")
    state_json: msgspec.Raw = msgspec.field(default=_NULL, name="state")

    @cached_property
    def payload(self) -> Any:
        """The payload, decoded."""
        return msgspec.json.decode(self.payload_json)

    @cached_property
    def state(self) -> Any:
        """The state, decoded; None where there is none."""
        return msgspec.json.decode(self.state_json)

    def payload_as(self, kind: type[T]) -> T:
        """Return the payload as a type that msgspec knows. Raises `msgspec.ValidationError`."""
        return msgspec.json.decode(self.payload_json, type=kind)

    def state_as(self, kind: type[T]) -> T:
        """Return the state as a type that msgspec knows. Raises `msgspec.ValidationError`."""
        return msgspec.json.decode(self.state_json, type=kind)


class Job(_Bodies, frozen=True, kw_only=True):
    """A job as it was delivered to this runner."""

    id: str
    queue: str
    timeout: int
    run_id: str
    attempt: int
    persist_data: bool = False
    max_retries: int = 0
    run_at: str | None = None
    key: str | None = None
    priority: int = 0
    ttl: float | None = None
    backoff: Backoff | None = None
    trace: str | None = None  # W3C traceparent of its producer
    created_at: str = ""
    updated_at: str = ""


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One run that did not complete its job."""

    attempt: int
    outcome: str
    started_at: str | None = None
    ended_at: str | None = None
    error: str | None = None


class JobInfo(_Bodies, frozen=True, kw_only=True):
    """A job as an operator sees it, wherever it stands."""

    id: str
    queue: str
    state_name: str  # a `JobState`
    timeout: int = 0
    attempt: int = 0
    persist_data: bool = False
    max_retries: int = 0
    run_at: str | None = None
    run_id: str | None = None
    timeout_in: float | None = None
    reason: str | None = None
    key: str | None = None
    priority: int = 0
    expires_at: str | None = None
    backoff: Backoff | None = None
    created_at: str = ""
    updated_at: str = ""
    history: Sequence[Attempt] = ()
    waits_for: Sequence[str] = ()
    blocked_by: str | None = None
    due_at: str | None = None


class DeadLetter(_Bodies, frozen=True, kw_only=True):
    """A job that used up its retries."""

    id: str
    queue: str
    reason: str
    timeout: int = 0
    attempt: int = 0
    persist_data: bool = False
    max_retries: int = 0
    run_at: str | None = None
    key: str | None = None
    priority: int = 0
    created_at: str = ""
    died_at: str = ""
    history: Sequence[Attempt] = ()


class Queue(msgspec.Struct, frozen=True, kw_only=True):
    """One queue at one moment: how many jobs of each state, and how it is set."""

    queue: str
    scheduled: int = 0
    ready: int = 0
    blocked: int = 0
    in_flight: int = 0
    dead: int = 0
    pollers: int = 0
    oldest_ready_seconds: float = 0.0
    bytes: int = 0
    paused: bool = False
    settings: dict[str, Any] = {}


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """A recurring job."""

    queue: str
    name: str
    cron: str | None = None
    timezone: str | None = None
    every: int | None = None
    job: dict[str, Any] = {}
    missed: str = "skip"
    overlap: str = "allow"
    paused: bool = False
    next_at: str | None = None
    last_at: str | None = None
    fired: int = 0
    missed_times: int = 0


class Page(Generic[T]):
    """Some of many. `next` is the cursor of the page behind, None on the last."""

    def __init__(self, items: Sequence[T], next_: str | int | None) -> None:
        self.items = items
        self.next = next_


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What became of jobs that were sent line by line. `failures` are problems with their `line`, the first thousand of them."""

    accepted: int = 0
    refused: int = 0
    failures: list[dict[str, Any]] = []
    failures_left_out: int = 0
    stopped: dict[str, Any] | None = None  # why nothing was looked at from its `line` on


class ClusterHost(msgspec.Struct, frozen=True, kw_only=True):
    """One host of a cluster."""

    host: str  # HOST:PORT, by which it is known
    host_state: str  # "alive", "draining" or "dead"
    version: str
    shards_held: int


class ClusterShard(msgspec.Struct, frozen=True, kw_only=True):
    """One shard of a cluster, and who has it."""

    shard: int
    host: str | None  # None while nobody has it
    turn: int
    epoch: int
    here: bool  # the host that answered runs it
    wanted: str | None = None  # the host that an operator wants it on


class Cluster(msgspec.Struct, frozen=True, kw_only=True):
    """A cluster, as the host that answered sees it."""

    seen_from: str  # that host
    store_away: bool  # all this may be old
    hosts: list[ClusterHost]
    owners: list[ClusterShard]
