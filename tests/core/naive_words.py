"""The words of the naive model: its jobs, its answers, and what waits."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable
from dataclasses import dataclass

from proteus_shards.core.commands import Reason
from proteus_shards.core.extras import Attempt, Backoff


class Run:
    """One delivery. Its id is not predicted but learned, once."""

    def __init__(self) -> None:
        self.id: bytes | None = None


@dataclass
class NaiveJob:
    """A job, live or dead."""

    queue: str
    id: str
    seq: int
    ready_at: int
    run_at: int | None
    timeout: int
    persist: bool
    max_retries: int
    payload: bytes
    state: bytes | None
    created_at: int
    updated_at: int
    status: str  # "scheduled", "ready", "in flight" or "dead"
    attempt: int = 0
    run: Run | None = None
    reason: str | None = None
    delivering: Run | None = None  # the run that nobody is told of yet
    key: str | None = None
    priority: int = 0
    expires_at: int | None = None
    backoff: Backoff | None = None
    not_before: int | None = None
    history: list[Attempt] = dataclasses.field(default_factory=list)
    trace: str | None = None
    started_at: int = 0

    @property
    def size(self) -> int:
        """Bytes of payload and state."""
        return len(self.payload) + len(self.state or b"")

    @property
    def order(self) -> tuple[int, int]:
        """Its place in the queue."""
        return (self.ready_at, self.seq)


@dataclass
class Reply:
    """What a command should be answered."""

    kind: str  # "done", "refused", "delivered", "listed" or "counted"
    reason: Reason | None = None
    field: str | None = None
    jobs: list[NaiveJob] = dataclasses.field(default_factory=list)
    count: int = 0
    more: bool = False


@dataclass
class Poll:
    """A waiting `next`."""

    key: Hashable
    queue: str
    count: int
    until: int


@dataclass
class Operation:
    """Something that waits for a commit."""

    queue: str
    key: Hashable | None
    reply: Reply | None
    note: tuple[str, str, str, int] | None
    before: tuple[list[NaiveJob], list[NaiveJob]]  # live and dead jobs of the queue
    entries: int
    runs: list[Run]
    touched: list[int]  # jobs whose rows it changes
    sealed: bool = False
