"""What the oracle knows: a request, a job, a queue, and what can be seen of one shard process."""

from __future__ import annotations

from heapq import heappush
from typing import Any, NamedTuple

from proteus_shards.core.commands import Enqueue, Next, Options, Reason
from proteus_shards.core.queue_settings import DEFAULT_SETTINGS, QueueSettings

SECOND = 1_000_000
NEVER = 1 << 62


class Op:
    """One request as a shard met it."""

    __slots__ = (
        "applied", "away", "clock", "command", "exact", "failures", "number", "once", "parts", "queue", "reached", "sent", "unknowns", "wall",
    )  # fmt: skip

    def __init__(self, number: int, command: Any, view: View, sent: int | None) -> None:
        self.number = number
        self.command = command
        self.queue: str = command.queue
        self.applied = view.now
        self.sent = view.now if sent is None else sent
        self.clock = view.clock
        self.wall = view.wall
        self.away = view.away
        self.failures = view.failures
        self.unknowns = view.unknowns
        self.once: tuple[str, bytes] | None = None  # the name that it has given itself, and its digest
        self.parts: list[Op] = []  # of a step: its changes, in order
        self.reached = NEVER  # the last request before the run_at was surely reached
        self.exact = type(command) is not Next or command.wait_us == 0  # it took effect when it was applied, or never


class Known:
    """A job that must be there. `run_id` is None while it waits."""

    __slots__ = (
        "attempt",
        "backoff",
        "created_at",
        "due_by",
        "error",
        "expires_at",
        "id",
        "key",
        "max_retries",
        "number",
        "once_due",
        "op",
        "past",
        "payload",
        "persist",
        "placeless",
        "priority",
        "put_off",
        "ready_at",
        "rests_from",
        "run_at",
        "run_id",
        "seq",
        "skip_before",
        "state",
        "timeout_us",
        "until",
        "vague",
    )  # fmt: skip

    def __init__(self, op: Op) -> None:
        command: Enqueue = op.command
        clock, run_at = op.clock, command.run_at_us
        self.id = command.id
        self.op = op
        self.number = op.number
        self.ready_at = clock if run_at is None or run_at <= clock else run_at
        self.run_at = run_at
        self.timeout_us = command.timeout * SECOND
        self.persist = command.persist
        self.max_retries = command.max_retries
        self.payload = command.payload
        self.state = command.state or None
        self.created_at = clock
        self.attempt = 0
        self.run_id: bytes | None = None
        self.until = 0  # nobody else may get it before that
        self.due_by = NEVER  # when its timeout is surely over
        self.placeless = False  # it may have been moved, or not: where it stands nobody can tell
        self.rests_from = -1  # when its last run ended
        self.skip_before = 0  # requests up to this number may not have found it
        self.once_due = False  # its run_at was reached, but the clock has been set back since: it may be scheduled again
        self.seq = -1  # where its row is known
        options = command.options or Options()
        self.key = options.key
        self.priority = options.priority
        self.backoff = options.backoff
        self.expires_at = None if options.ttl_us is None else max(op.wall, run_at or 0) + options.ttl_us
        self.past: int | None = 0  # attempts of the lives that it had before it was redriven; None: nobody knows
        self.put_off: int | None = None  # it is not to be delivered before; NEVER: nobody knows when
        self.error: tuple[int, str | None] | None = None  # of the attempt that failed last
        self.vague = False  # given back by the pump in a commit that failed: waiting, or in flight

    @property
    def back(self) -> bool:
        """Whether it was given out before, or put off."""
        return self.attempt > 0 or self.put_off is not None

    @property
    def last(self) -> bool:
        """Whether its run is its last."""
        return 0 <= self.max_retries < self.attempt


class Kept(NamedTuple):
    """An answer that the same request gets again: `reason` says why it was refused, if it was."""

    digest: bytes
    reason: Reason | None
    stored: bool


class Fired:
    """A job that came by itself."""

    __slots__ = ("over", "run_id", "timeout_us", "until")

    def __init__(self) -> None:
        self.run_id: bytes | None = None
        self.timeout_us = self.until = 0
        self.over = False  # its completion was acknowledged


class Line:
    """What must be in one queue."""

    __slots__ = ("answers", "dead", "fired", "jobs", "name", "next_due", "schedules", "settings")

    def __init__(self, name: str, settings: QueueSettings = DEFAULT_SETTINGS) -> None:
        self.settings = settings
        self.name = name
        self.jobs: dict[str, Known] = {}
        self.dead: list[Known] = []
        self.next_due = NEVER
        self.answers: dict[str, Kept] = {}
        self.schedules: list[Any] = []  # that were ever asked for
        self.fired: dict[str, Fired] = {}


class View:
    """What can be seen of one shard process."""

    def __init__(self, queues: list[str], now: int, wall: int) -> None:
        self.queues = queues
        self.began = now
        self.given: dict[str, int] = {}  # deliveries by queue, since its rate was set
        self.filled: dict[str, int] = {}  # when that was, if later than its beginning
        self.now = now
        self.wall = self.wall_max = self.clock = wall
        self.away = False
        self.failures = self.unknowns = self.permanents = 0
        self.failed_at = -NEVER
        self.known_at = -NEVER  # when the rows were last read back
        self.certain_from = 0  # what is overdue at that time has surely been dealt with
        self.grace_until = 0
        self.draining = False
        self.fenced = False  # another process owns its rows
        self.outstanding: dict[int, Op] = {}
        self.limbo: list[Op] = []  # answered UNKNOWN
        self.given_back: list[Known] = []  # by the pump, perhaps not yet committed
        self.doubt: set[tuple[str, str]] = set()
        self.schedule: list[tuple[int, int, Op]] = []
        self.filed = 0

    def expect(self, op: Op, run_at: int) -> None:
        """Wait for the clock to say that a job is due."""
        op.reached = NEVER
        self.filed += 1
        heappush(self.schedule, (run_at, self.filed, op))


def is_vague(known: Known, op: Op) -> bool:
    """Say whether a request may have met a job in flight that has been given back by now."""
    return known.vague or op.number < known.skip_before


def name_of(op: Op) -> str:
    """Return what a message says of a request."""
    command = op.command
    text = type(command).__name__
    fields = " ".join(f"{field}={getattr(command, field)!r}" for field in command.__struct_fields__)
    return f"request {op.number} ({text} {fields}, at {op.applied})"
