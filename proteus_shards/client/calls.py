"""Every call of the API as a value: what to send, what may come back, and what that means. Sync, pure, free of any socket.

A function of this module is written once and is a method of both clients (see `sync` and `aio`): its parameters and its docstring are
theirs, and the `T` of the `Call[T]` that it returns is what they return. `repeatable` says whether the call may be sent again when it is not known what
became of it; a call that surely had no effect may always be (see `retries`).

Decisions:

- **Repeatable is what has the same effect twice.** Reads are, and heartbeats, pauses, settings. Ending a run is where it names the run, as a run ends once; without a
  run_id the second try could end another one. An enqueue is with an idempotency key only: its id may have been completed, and so be free again, by
  the time of the second try. A `next` is not: the first try may have brought a job that the second would leave to its timeout in silence.
- The arguments are those of the HTTP API, by the same names. `run_at` may be a `datetime` with a zone.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from proteus_shards.client.errors import BadAnswer, Problem, Refusal, refusal
from proteus_shards.client.words import (
    Backoff,
    Cluster,
    DeadLetter,
    HasRun,
    Job,
    JobInfo,
    JobState,
    NewJob,
    Page,
    Queue,
    Schedule,
    Summary,
)

T = TypeVar("T")
S = TypeVar("S")

LINES_BYTES = 64 * 1024  # of job lines in one piece of a body
NDJSON = {"content-type": "application/x-ndjson"}


class _Keep:
    """The default of what may be left as it is."""

    def __repr__(self) -> str:
        return "KEEP"


KEEP: Any = _Keep()


class Call(Generic[T]):
    """One request, and how its answer is read. `wait` is the time that the server may take on purpose, in seconds."""

    __slots__ = ("accepts", "body", "headers", "method", "path", "query", "read", "repeatable", "wait")

    def __init__(
        self,
        method: str,
        path: str,
        read: Callable[[int, bytes], T],
        query: Sequence[tuple[str, str]] = (),
        body: bytes | Iterator[bytes] | None = None,
        *,
        accepts: frozenset[int] = frozenset({200, 202}),
        headers: Mapping[str, str] | None = None,
        repeatable: bool = False,
        wait: float = 0.0,
    ) -> None:
        self.method = method
        self.path = path
        self.read = read
        self.query = query
        self.body = body
        self.accepts = accepts
        self.headers = headers or {}
        self.repeatable = repeatable
        self.wait = wait

    @property
    def target(self) -> str:
        """Path and query, escaped."""
        return f"/v1{self.path}?{urlencode(self.query, quote_via=quote)}" if self.query else f"/v1{self.path}"


# --- producing -------------------------------------------------------------------------------------------------


def enqueue(
    queue: str,
    payload: Any = None,
    *,
    id: str | None = None,  # noqa: A002 it is the word of the API
    timeout: int | None = None,
    persist_data: bool = False,
    max_retries: int | None = None,
    state: Any = None,
    run_at: str | datetime | None = None,
    key: str | None = None,
    priority: int = 0,
    ttl: float | None = None,
    backoff: Backoff | None = None,
    idempotency_key: str | bool = False,
    traceparent: str | None = None,
) -> Call[str]:
    """Enqueue one job and return its id, which is drawn where none is given.

    Raises `Conflict` where the id is in the queue already. With an idempotency key (True draws one for this call) it is tried again also
    when an answer was lost, and still enqueued once. `traceparent` (W3C) goes along with the job.
    """
    job = NewJob(
        id=str(uuid.uuid4()) if id is None else id,
        queue=queue,
        timeout=timeout,
        payload=payload,
        persist_data=persist_data,
        max_retries=max_retries,
        state=state,
        run_at=_instant(run_at),
        key=key,
        priority=priority,
        ttl=ttl,
        backoff=backoff,
    )
    headers, repeatable = _idempotent(idempotency_key)
    if traceparent is not None:
        headers["traceparent"] = traceparent
    return Call("POST", "/enqueue", lambda *_: job.id, body=msgspec.json.encode(job), headers=headers, repeatable=repeatable)


def enqueue_many(jobs: Iterable[NewJob], *, idempotency_key: str | bool = False) -> Call[list[Problem | None]]:
    """Enqueue several jobs in one request, in order. Returns one entry a job: None where it was accepted, else why not."""
    headers, repeatable = _idempotent(idempotency_key)
    body = msgspec.json.encode(list(jobs))
    return Call("POST", "/enqueue", _problems, body=body, accepts=_SEVERAL, headers=headers, repeatable=repeatable)


def enqueue_lines(jobs: Iterable[NewJob | bytes]) -> Call[Summary]:
    """Enqueue any number of jobs in one request, read from an iterator as they are sent. A job may be a line of JSON as it is.

    It is never tried again: what was accepted before a fault stays so, and the summary says how far it came.
    """
    return Call("POST", "/enqueue", _reader(Summary), body=_lines(jobs), accepts=_SEVERAL, headers=NDJSON, wait=_LINES_SECONDS)


# --- running ---------------------------------------------------------------------------------------------------


def next_job(queue: str | Sequence[str], *, wait: float = 0.0) -> Call[Job | None]:
    """Return the next job of a queue, or of the first of several that has one; None where there is none. Waits for one up to `wait` seconds."""
    return Call("GET", "/next", _job, [*_queues("queue", queue), *_some(wait=wait or None)], accepts=_MAYBE, wait=wait)


def next_jobs(queue: str | Sequence[str], num_jobs: int, *, wait: float = 0.0) -> Call[list[Job]]:
    """Return up to so many jobs, of several queues in their order. Waits for the first up to `wait` seconds."""
    query = [*_queues("queue", queue), *_some(num_jobs=num_jobs, wait=wait or None)]
    return Call("GET", "/next", _jobs, query, accepts=_MAYBE, wait=wait)


def heartbeat(run: HasRun, state: Any = KEEP) -> Call[None]:
    """Say that a job is still worked on, and save a state, if one is given; None clears it. Raises `NotFound` where the run is over."""
    body = None if state is KEEP else msgspec.json.encode(state)
    return Call("PATCH", "/heartbeat", _nothing, _run(run), body, repeatable=True)


def complete(run: HasRun) -> Call[None]:
    """Remove a job that is done. Raises `NotFound` where the run is over."""
    return Call("DELETE", "/complete", _nothing, _run(run), repeatable=run.run_id is not None)


def fail(run: HasRun, error: str | None = None, *, delay: float | None = None) -> Call[None]:
    """End a run that did not do its job: a retry is spent. It is ready again after `delay` seconds, or as its backoff says."""
    body = msgspec.json.encode({name: value for name, value in (("error", error), ("delay", delay)) if value is not None})
    return Call("POST", "/fail", _nothing, _run(run), body, repeatable=run.run_id is not None)


def release(run: HasRun, *, delay: float | None = None) -> Call[None]:
    """Give a job back that was not begun, or is given up for now: no retry is spent."""
    body = None if delay is None else msgspec.json.encode({"delay": delay})
    return Call("POST", "/release", _nothing, _run(run), body, repeatable=run.run_id is not None)


def complete_and_next(run: HasRun, queue: str | Sequence[str] | None = None, *, wait: float = 0.0) -> Call[Job | None]:
    """Complete a job and return the next, of the same queue or of those named, in one round trip.

    Raises `NotFound` where the run is over, and takes no job then. An error whose `problem.completed` is true lacks the next job only.
    """
    query = [*_run(run), *(_queues("next_queue", queue) if queue is not None else ()), *_some(wait=wait or None)]
    return Call("POST", "/complete-and-next", _job, query, accepts=_MAYBE, wait=wait)


class Outcome(msgspec.Struct, frozen=True):
    """What became of one operation of a batch: a problem, or none; and the jobs of a `next`."""

    problem: Problem | None = None
    jobs: Sequence[Job] = ()

    def check(self) -> Outcome:
        """Raise what the single call would have raised, if anything."""
        if self.problem is not None:
            raise refusal(self.problem)
        return self


def batch(operations: Sequence[Mapping[str, Any]]) -> Call[list[Outcome]]:
    """Carry out operations of any kind in one request: `{"op": "complete", "queue": …, "job_id": …}`. Returns one outcome each."""
    return Call("POST", "/batch", _outcomes, body=msgspec.json.encode(list(operations)), accepts=_SEVERAL)


def complete_many(runs: Iterable[HasRun]) -> Call[list[Outcome]]:
    """Complete several jobs in one request."""
    return batch([{"op": "complete", **_names(run)} for run in runs])


def heartbeat_many(runs: Iterable[HasRun]) -> Call[list[Outcome]]:
    """Say of several jobs in one request that they are still worked on."""
    return batch([{"op": "heartbeat", **_names(run)} for run in runs])


# --- looking ---------------------------------------------------------------------------------------------------


def get_job(queue: str, job_id: str) -> Call[JobInfo]:
    """Return one job, wherever it stands."""
    return Call("GET", "/job", _reader(JobInfo), _some(queue=queue, job_id=job_id), repeatable=True)


def find(job_id: str, *, limit: int | None = None) -> Call[list[JobInfo]]:
    """Return the jobs with an id, over all queues."""
    return Call("GET", "/find", lambda _, body: _found(body), _some(job_id=job_id, limit=limit), repeatable=True)


def jobs(
    queue: str,
    *,
    state: JobState | None = None,
    key: str | None = None,
    older_than: float | None = None,
    bodies: bool = True,
    limit: int | None = None,
    after: str | int | None = None,
) -> Call[Page[JobInfo]]:
    """Return a page of the jobs of a queue. `older_than` is in seconds; without `bodies` payload and state are left out."""
    query = _some(queue=queue, state=state, key=key, older_than=older_than, bodies=None if bodies else "false", limit=limit, after=after)
    return Call("GET", "/jobs", _pager("jobs", JobInfo), query, repeatable=True)


def queues(*, contains: str | None = None, limit: int | None = None, after: str | int | None = None) -> Call[Page[Queue]]:
    """Return a page of the queues by name."""
    return Call("GET", "/queues", _pager("queues", Queue), _some(contains=contains, limit=limit, after=after), repeatable=True)


def get_queue(queue: str) -> Call[Queue]:
    """Return one queue."""
    return Call("GET", "/queue", _reader(Queue), _some(queue=queue), repeatable=True)


def dead(queue: str, *, num_jobs: int | None = None, after: str | int | None = None) -> Call[Page[DeadLetter]]:
    """Return a page of the dead letters of a queue, oldest death first."""
    return Call("GET", "/dead", _pager("jobs", DeadLetter), _some(queue=queue, num_jobs=num_jobs, after=after), repeatable=True)


# --- operating -------------------------------------------------------------------------------------------------


def set_queue(queue: str, **settings: Any) -> Call[Queue]:
    """Change settings of a queue; None takes one back to its default. Returns the queue as it is then."""
    return Call("PATCH", "/queue", _reader(Queue), _some(queue=queue), msgspec.json.encode(settings), repeatable=True)


def pause(queue: str) -> Call[None]:
    """Deliver no more jobs of a queue. Those in flight go on."""
    return Call("POST", "/pause", _nothing, _some(queue=queue), repeatable=True)


def resume(queue: str) -> Call[None]:
    """Deliver the jobs of a queue again."""
    return Call("POST", "/resume", _nothing, _some(queue=queue), repeatable=True)


def purge(queue: str, *, state: JobState | str | None = None, key: str | None = None) -> Call[int]:
    """Remove the jobs of a queue that wait, or those of a state ("all" are all), and return how many they were."""
    return Call("POST", "/purge", _count, _some(queue=queue, state=state, key=key))


def redrive(
    queue: str, *, to: str | None = None, ids: Sequence[str] | None = None, key: str | None = None, reason: str | None = None
) -> Call[int]:
    """Give dead letters a new life in their original order, in their own queue or another. Returns how many they were."""
    picked = {name: value for name, value in (("ids", ids), ("key", key), ("reason", reason)) if value is not None}
    return Call("POST", "/redrive", _count, _some(queue=queue, to=to), msgspec.json.encode(picked) if picked else None)


def delete_job(queue: str, job_id: str) -> Call[None]:
    """Remove a job in any state, dead letters included."""
    return Call("DELETE", "/job", _nothing, _some(queue=queue, job_id=job_id))


def change_job(queue: str, job_id: str, *, run_at: str | datetime | None = KEEP, priority: int = KEEP) -> Call[None]:
    """Change when a job that waits runs (None: now) or its priority."""
    changes = {} if run_at is KEEP else {"run_at": _instant(run_at)}
    if priority is not KEEP:
        changes["priority"] = priority  # type: ignore[assignment]
    return Call("PATCH", "/job", _nothing, _some(queue=queue, job_id=job_id), msgspec.json.encode(changes), repeatable=True)


def schedules(queue: str | None = None, *, limit: int | None = None, after: str | int | None = None) -> Call[Page[Schedule]]:
    """Return a page of the recurring jobs of a queue, or of all."""
    return Call("GET", "/schedules", _pager("schedules", Schedule), _some(queue=queue, limit=limit, after=after), repeatable=True)


def get_schedule(queue: str, name: str) -> Call[Schedule]:
    """Return one recurring job."""
    return Call("GET", "/schedule", _reader(Schedule), _some(queue=queue, name=name), repeatable=True)


def put_schedule(
    queue: str,
    name: str,
    job: Mapping[str, Any],
    *,
    cron: str | None = None,
    timezone: str | None = None,
    every: int | None = None,
    missed: str | None = None,
    overlap: str | None = None,
    paused: bool = False,
) -> Call[Schedule]:
    """Make or change a recurring job, by `cron` or `every` so many seconds, and return it. `job` has the fields of a job but its id and queue."""
    whole = {
        "cron": cron,
        "timezone": timezone,
        "every": every,
        "job": dict(job),
        "missed": missed,
        "overlap": overlap,
        "paused": paused or None,
    }
    body = msgspec.json.encode({field: value for field, value in whole.items() if value is not None})
    return Call("PUT", "/schedule", _reader(Schedule), _some(queue=queue, name=name), body, repeatable=True)


def delete_schedule(queue: str, name: str) -> Call[None]:
    """Remove a recurring job. Jobs that it made stay."""
    return Call("DELETE", "/schedule", _nothing, _some(queue=queue, name=name))


def cluster() -> Call[Cluster]:
    """Return the hosts of a cluster, and who has which shard. Raises `NotFound` where the server is in none."""
    return Call("GET", "/cluster", _reader(Cluster), repeatable=True)


def move_shard(shard: int, host: str | None) -> Call[None]:
    """Let a shard move to a host, and stay there while that lives; with None it may be anywhere again. Raises `NotFound` where there is no such host."""
    return Call("POST", "/cluster/move", _nothing, body=msgspec.json.encode({"shard": shard, "host": host}), repeatable=True)


def drain_host(host: str, *, draining: bool = True) -> Call[None]:
    """Let a host give its shards away, or with `draining=False` take shards again."""
    return Call("POST", "/cluster/drain", _nothing, body=msgspec.json.encode({"host": host, "draining": draining}), repeatable=True)


def forget_host(host: str) -> Call[None]:
    """Forget a host that is gone for good. Raises `Conflict` where it is alive."""
    return Call("POST", "/cluster/forget", _nothing, body=msgspec.json.encode({"host": host}))


def health() -> Call[dict[str, Any]]:
    """Return what the server says of itself."""
    return Call("GET", "/health", _reader(dict[str, Any]), repeatable=True)


# --- answers ---------------------------------------------------------------------------------------------------

_MAYBE = frozenset({200, 204})
_SEVERAL = frozenset({200, 202, 207})
_LINES_SECONDS = 300.0

_list_of_raw = msgspec.json.Decoder(list[msgspec.Raw]).decode
_job_of = msgspec.json.Decoder(Job).decode
_jobs_of = msgspec.json.Decoder(list[Job]).decode


class _Part(msgspec.Struct, frozen=True):
    status: int
    jobs: list[Job] = []


def _nothing(_status: int, _body: bytes) -> None:
    return None


def _reader(kind: type[T]) -> Callable[[int, bytes], T]:
    decode = msgspec.json.Decoder(kind).decode
    return lambda _, body: decode(body)


def _job(status: int, body: bytes) -> Job | None:
    return None if status == 204 else _job_of(body)


def _jobs(status: int, body: bytes) -> list[Job]:
    return [] if status == 204 else _jobs_of(body)


def _problems(_status: int, body: bytes) -> list[Problem | None]:
    parts = msgspec.json.decode(body, type=list[Problem])
    return [None if part.status < 300 else part for part in parts]


def _outcomes(_status: int, body: bytes) -> list[Outcome]:
    found = []
    for raw in _list_of_raw(body):
        part = msgspec.json.decode(raw, type=_Part)
        found.append(Outcome(jobs=part.jobs) if part.status < 300 else Outcome(msgspec.json.decode(raw, type=Problem)))
    return found


def _found(body: bytes) -> list[JobInfo]:
    return _items(body, "jobs", JobInfo)


def _items(body: bytes, member: str, kind: type[T]) -> list[T]:
    whole = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    if member not in whole:
        raise BadAnswer
    return msgspec.json.decode(whole[member], type=list[kind])  # type: ignore[valid-type]


def _pager(member: str, kind: type[T]) -> Callable[[int, bytes], Page[T]]:
    def read(_status: int, body: bytes) -> Page[T]:
        whole = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        cursor = msgspec.json.decode(whole.get("next", b"null"), type=str | int | None)
        return Page(_items(body, member, kind), cursor)

    return read


def _count(_status: int, body: bytes) -> int:
    return msgspec.json.decode(body, type=dict[str, int])["jobs"]


# --- requests --------------------------------------------------------------------------------------------------


def _some(**values: Any) -> list[tuple[str, str]]:
    """Return the parameters that are given."""
    return [(name, f"{value:g}" if isinstance(value, float) else str(value)) for name, value in values.items() if value is not None]


def _queues(name: str, queue: str | Sequence[str]) -> list[tuple[str, str]]:
    return [(name, each) for each in ([queue] if isinstance(queue, str) else queue)]


def _run(run: HasRun) -> list[tuple[str, str]]:
    return _some(queue=run.queue, job_id=run.id, run_id=run.run_id)


def _names(run: HasRun) -> dict[str, str | None]:
    return {"queue": run.queue, "job_id": run.id, "run_id": run.run_id}


def _idempotent(key: str | bool) -> tuple[dict[str, str], bool]:
    if key is False:
        return {}, False
    return {"idempotency-key": str(uuid.uuid4()) if key is True else key}, True


def _instant(value: str | datetime | None) -> str | None:
    if not isinstance(value, datetime):
        return value
    if value.tzinfo is None:
        raise ValueError("run_at: a datetime must have a zone")
    return value.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _lines(jobs: Iterable[NewJob | bytes]) -> Iterator[bytes]:
    piece = bytearray()
    for job in jobs:
        piece += job.strip() if isinstance(job, bytes) else msgspec.json.encode(job)
        piece += b"\n"
        if len(piece) >= LINES_BYTES:
            yield bytes(piece)
            piece.clear()
    if piece:
        yield bytes(piece)


__all__ = ["KEEP", "Call", "Outcome", "Refusal"]
