"""The native calls: what a request means, and what its outcome looks like. Sync, pure, free of any framework.

Each call is one function `(body, query, settings) -> Ask | Errand | Problem`. An `Ask` holds the core command and knows, through
`answer`, how to show its outcome. Whoever serves HTTP, now or later, finds the function in `OPERATIONS`, carries the command to
the shard that owns `command.queue`, and sends what `answer` returns. An `Errand` takes more than one command, and carries itself out. No input
makes any of this raise.

Decisions:

- Refusals name the part at fault and speak of it in the words of the API. What bodies may be, and what is said of them, stands in
  `job_bodies`; what several operations in one request mean, in `batches`.
- A heartbeat's body is told from "no body" by its length alone: white space is not JSON and is refused.
- A body where none is asked for (next, complete) is not looked at.
- A runner asks for the same again and again, so what the query of a `next` means is remembered (3 of its 22 µs in the front).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeAlias

import msgspec

from proteus_shards.config import Settings
from proteus_shards.core.commands import (
    AskDecision,
    Begin,
    Complete,
    Conclude,
    Decide,
    Delivered,
    Done,
    Enqueue,
    EnqueueAll,
    EnqueueOnce,
    Forget,
    Heartbeat,
    ListDead,
    Listed,
    Next,
    Outcome,
    Prepare,
    Refused,
    Replace,
    Requeue,
)
from proteus_shards.core.commands_control import (
    Change,
    DropSchedule,
    Fail,
    GetJob,
    GetQueue,
    ListJobs,
    ListSchedules,
    Purge,
    PutSchedule,
    Redrive,
    Release,
    SetQueue,
)
from proteus_shards.core.model import name_fault
from proteus_shards.front.answers import (
    ACCEPTED,
    COMPLETED,
    NO_JOB,
    Answer,
    Problem,
    dead_answer,
    fault,
    job_answer,
    jobs_answer,
    refusal,
)
from proteus_shards.front.batches import batch, enqueue_all, enqueue_lines, looks_like_lines
from proteus_shards.front.errands import CompleteAndNext, Errand, NextOfSeveral
from proteus_shards.front.job_bodies import raw_json, read_delay, read_failure, read_job
from proteus_shards.front.queries import parse_query, read_integer, read_name, read_run_id, read_seconds

DEAD_JOBS_DEFAULT = 100
SEQ_MAX = 2**63 - 1
KNOWN_QUERIES_MAX = 1024
KNOWN_QUERY_BYTES_MAX = 256

SpanCommand: TypeAlias = Begin | Prepare | Decide | AskDecision | Conclude | Forget
StepCommand: TypeAlias = EnqueueAll | EnqueueOnce | Replace | Requeue | SpanCommand
QueueCommand: TypeAlias = (
    Enqueue
    | Next
    | Heartbeat
    | Complete
    | Fail
    | Release
    | ListDead
    | GetQueue
    | SetQueue
    | GetJob
    | ListJobs
    | Purge
    | Redrive
    | Change
    | PutSchedule
    | DropSchedule
    | ListSchedules
    | StepCommand
)


class Ask(msgspec.Struct, frozen=True, gc=False):
    """A request understood: the command to carry out, and how to show the outcome that it should have."""

    command: QueueCommand
    show: Callable[[Any], Answer]
    refuse: Callable[[Refused], Answer] | None = None  # how a refusal is shown, where it is not as a problem


Wanted: TypeAlias = tuple[list[str], int, int, Callable[[Any], Answer]]
"""Which jobs a next wants: the queues in order, how many, how long it waits (µs), and how they are shown."""

Parse: TypeAlias = Callable[[bytes, bytes, Settings], Ask | Errand | Problem]


def answer(ask: Ask, outcome: Outcome) -> Answer:
    """Return the answer to a request whose command had this outcome."""
    if type(outcome) is Refused:
        if ask.refuse is not None:
            return ask.refuse(outcome)
        return refusal(outcome, ask.command.queue, getattr(ask.command, "id", None)).answer()
    return ask.show(outcome)


# --- the calls -------------------------------------------------------------------------------------------------


def enqueue(body: bytes, query: bytes, settings: Settings) -> Ask | Errand | Problem:
    """`POST /enqueue`: the body is one job, an array of jobs, or one job a line."""
    if query and isinstance(found := parse_query(query, ()), Problem):
        return found
    if body[:1] != b"{" and body.lstrip()[:1] == b"[":
        return enqueue_all(body, settings)
    job = read_job(body)
    if isinstance(job, Problem):
        return enqueue_lines(body, settings) if job.field == "body" and looks_like_lines(body) else job
    return Ask(job, _show_accepted)


def next_job(_body: bytes, query: bytes, settings: Settings) -> Ask | Errand | Problem:
    """`GET /next?queue=&num_jobs=&wait=`: one job, or with num_jobs an array of up to that many. Several queues are asked in order."""
    read = _read_next if len(query) <= KNOWN_QUERY_BYTES_MAX else _read_next.__wrapped__
    asked = read(query, settings.num_jobs_max, settings.wait_seconds_max, settings.next_queues_max)
    return NextOfSeveral(*asked) if isinstance(asked, tuple) else asked


@lru_cache(KNOWN_QUERIES_MAX)
def _read_next(query: bytes, num_jobs_max: int, wait_seconds_max: float, queues_max: int) -> Ask | Wanted | Problem:
    further: list[str] = []
    values = parse_query(query, ("queue", "num_jobs", "wait"), {"queue": further})
    if isinstance(values, Problem):
        return values
    wanted = _wanted(values, "queue", further, num_jobs_max, wait_seconds_max, queues_max)
    if isinstance(wanted, Problem) or further:
        return wanted
    (queue,), count, wait_us, show = wanted
    return Ask(Next(queue, count, wait_us), show)


def complete_and_next(_body: bytes, query: bytes, settings: Settings) -> Errand | Problem:
    """`POST /complete-and-next?queue=&job_id=&run_id=&next_queue=&num_jobs=&wait=`: completes, then is a next on next_queue (or queue)."""
    further: list[str] = []
    values = parse_query(query, ("queue", "job_id", "run_id", "next_queue", "num_jobs", "wait"), {"next_queue": further})
    if isinstance(values, Problem):
        return values
    run = _run_of(values)
    if isinstance(run, Problem):
        return run
    field = "next_queue" if "next_queue" in values else "queue"
    wanted = _wanted(values, field, further, settings.num_jobs_max, settings.wait_seconds_max, settings.next_queues_max)
    if isinstance(wanted, Problem):
        return wanted
    return CompleteAndNext(Complete(*run), *wanted)


def heartbeat(body: bytes, query: bytes, _settings: Settings) -> Ask | Problem:
    """`PATCH /heartbeat?queue=&job_id=&run_id=`: the body, if there is one, is the new state; `null` clears it."""
    run = _run(query)
    if isinstance(run, Problem):
        return run
    state: bytes | None = None
    if body:
        raw = raw_json(body)
        if isinstance(raw, Problem):
            return raw
        state = b"" if raw == b"null" else raw
    queue, job_id, run_id = run
    return Ask(Heartbeat(queue, job_id, run_id, state), _show_accepted)


def complete(_body: bytes, query: bytes, _settings: Settings) -> Ask | Problem:
    """`DELETE /complete?queue=&job_id=&run_id=`."""
    run = _run(query)
    if isinstance(run, Problem):
        return run
    queue, job_id, run_id = run
    return Ask(Complete(queue, job_id, run_id), _show_completed)


def fail(body: bytes, query: bytes, _settings: Settings) -> Ask | Problem:
    """`POST /fail?queue=&job_id=&run_id=`: the body, if there is one, is an object with `error` and `delay`."""
    run = _run(query)
    if isinstance(run, Problem):
        return run
    failure = read_failure(body)
    if isinstance(failure, Problem):
        return failure
    return Ask(Fail(*run, *failure), _show_accepted)


def release(body: bytes, query: bytes, _settings: Settings) -> Ask | Problem:
    """`POST /release?queue=&job_id=&run_id=`: the body, if there is one, is an object with `delay`."""
    run = _run(query)
    if isinstance(run, Problem):
        return run
    delay_us = read_delay(body)
    if isinstance(delay_us, Problem):
        return delay_us
    return Ask(Release(*run, delay_us), _show_accepted)


def dead(_body: bytes, query: bytes, settings: Settings) -> Ask | Problem:
    """`GET /dead?queue=&num_jobs=&after=`: a page of dead letters, oldest death first; `after` is the page before's `next`."""
    values = parse_query(query, ("queue", "num_jobs", "after"))
    if isinstance(values, Problem):
        return values
    queue = read_name(values, "queue")
    if isinstance(queue, Problem):
        return queue
    count = read_integer("num_jobs", values.get("num_jobs"), min(DEAD_JOBS_DEFAULT, settings.num_jobs_max), 1, settings.num_jobs_max)
    if isinstance(count, Problem):
        return count
    after = read_integer("after", values.get("after"), -1, 0, SEQ_MAX)
    if isinstance(after, Problem):
        return after
    return Ask(ListDead(queue, count, after), _show_dead)


OPERATIONS: dict[tuple[str, str], Parse] = {
    ("POST", "/enqueue"): enqueue,
    ("GET", "/next"): next_job,
    ("PATCH", "/heartbeat"): heartbeat,
    ("DELETE", "/complete"): complete,
    ("POST", "/fail"): fail,
    ("POST", "/release"): release,
    ("GET", "/dead"): dead,
    ("POST", "/batch"): batch,
    ("POST", "/complete-and-next"): complete_and_next,
}
WITH_BODY: frozenset[Parse] = frozenset({enqueue, heartbeat, fail, release, batch})
PREFIXES = ("", "/v1")


# --- outcomes --------------------------------------------------------------------------------------------------


def _show_accepted(outcome: Outcome) -> Answer:
    assert type(outcome) is Done
    return ACCEPTED


def _show_completed(outcome: Outcome) -> Answer:
    assert type(outcome) is Done
    return COMPLETED


def _show_job(outcome: Outcome) -> Answer:
    assert type(outcome) is Delivered
    assert len(outcome.jobs) <= 1
    return job_answer(outcome.jobs[0]) if outcome.jobs else NO_JOB


def _show_jobs(outcome: Outcome) -> Answer:
    assert type(outcome) is Delivered
    return jobs_answer(outcome.jobs) if outcome.jobs else NO_JOB


def _show_dead(outcome: Outcome) -> Answer:
    assert type(outcome) is Listed
    return dead_answer(outcome.jobs)


# --- parameters ------------------------------------------------------------------------------------------------


def _run(query: bytes) -> tuple[str, str, bytes | None] | Problem:
    """Read which run is meant: queue, job id, and the run_id (16 bytes) where one is named."""
    values = parse_query(query, ("queue", "job_id", "run_id"))
    return values if isinstance(values, Problem) else _run_of(values)


def _run_of(values: dict[str, str]) -> tuple[str, str, bytes | None] | Problem:
    queue = read_name(values, "queue")
    if isinstance(queue, Problem):
        return queue
    job_id = read_name(values, "job_id")
    if isinstance(job_id, Problem):
        return job_id
    text = values.get("run_id")
    run_id = read_run_id(text) if text is not None else None
    return run_id if isinstance(run_id, Problem) else (queue, job_id, run_id)


def _wanted(
    values: dict[str, str], field: str, further: list[str], num_jobs_max: int, wait_seconds_max: float, queues_max: int
) -> Wanted | Problem:
    """Read which jobs a next wants."""
    queue = read_name(values, field)
    if isinstance(queue, Problem):
        return queue
    queues = [queue]
    if further:
        queues += further
        if len(queues) > queues_max:
            return fault(field, f"must be given at most {queues_max} times (next_queues_max)")
        for name in further:
            if (wrong := name_fault(name)) is not None:
                return fault(field, wrong)
        if len(set(queues)) < len(queues):
            return fault(field, "must not name a queue twice")
    count = read_integer("num_jobs", values.get("num_jobs"), 1, 1, num_jobs_max)
    if isinstance(count, Problem):
        return count
    wait_us = read_seconds("wait", values.get("wait"), wait_seconds_max, default=0)
    if isinstance(wait_us, Problem):
        return wait_us
    return queues, count, wait_us, _show_jobs if "num_jobs" in values else _show_job
