"""What goes out: an `Answer` is a status, headers and a body, ready for any HTTP stack.

Errors are RFC 9457 problems without a `type`, so their title is the phrase of the status. Beyond the RFC a problem has
`retryable`, and where they are known `field` (the part of the request at fault), `queue`, `job_id` and, for a fault inside,
the `request_id` under which the log has the details, `held_by` and `held_until` (which run has the job instead of the one that called, and when that will time out), `completed` (what became of the completion of a complete-and-next) and `line` (of NDJSON). A problem never repeats a payload, and never tells of what is inside the server.

The answer to several operations at once is an array of such answers as JSON, each a problem or an object with its `status`.

Payload and state of a delivered job are copied to the byte, wherever they came from; nothing here parses them.
"""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus

import msgspec
from msgspec import UNSET

from proteus_shards.core.commands import DeadLetter, Delivery, Reason, Refused
from proteus_shards.core.extras import NO_EXTRAS, Backoff, Extras
from proteus_shards.core.model import SECOND_US
from proteus_shards.front.counts import count_problem
from proteus_shards.front.instants import write_instant

JSON_HEADERS = (("content-type", "application/json"),)
_NO_SNIFFING = ("x-content-type-options", "nosniff")  # errors may hold what a client wrote
TEXT_HEADERS = (("content-type", "text/plain; charset=utf-8"), _NO_SNIFFING)
PROBLEM_HEADERS = (("content-type", "application/problem+json"), _NO_SNIFFING)

STATUSES: dict[Reason, int] = {
    Reason.EXISTS: 409,
    Reason.NOT_FOUND: 404,
    Reason.INVALID: 422,
    Reason.BUSY: 429,
    Reason.FULL: 429,
    Reason.UNKNOWN: 503,
    Reason.FAULT: 500,
    Reason.MOVED: 429,
}
RETRYABLE = frozenset({408, 429, 503})
WITH_RETRY_AFTER = frozenset({429, 503})


_PHRASES = {413: "Content Too Large", 414: "URI Too Long", 422: "Unprocessable Content"}  # RFC 9110; Python has them from 3.13 on


def phrase_of(status: int) -> str:
    """Return the phrase of a status, the same on every Python."""
    return _PHRASES.get(status) or HTTPStatus(status).phrase


class Answer(msgspec.Struct, frozen=True, gc=False):
    """A whole HTTP answer. `headers` lack those of the transport (date, content-length, connection)."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""


ACCEPTED = Answer(202)
COMPLETED = Answer(200)
NO_JOB = Answer(204)


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """Why a request was not served. `retry_after` is in seconds, and counts for 429 and 503 only."""

    status: int
    detail: str
    field: str | None = None
    queue: str | None = None
    job_id: str | None = None
    request_id: str | None = None
    shards_away: list[int] | None = None
    crash_loops: dict[str, int] | None = None
    completed: bool | None = None
    line: int | None = None
    held_by: bytes | None = None
    held_until: int | None = None
    retry_after: int = 1
    headers: tuple[tuple[str, str], ...] = ()
    plain: str | None = None  # the body as plain text, where it is not to be JSON; perhaps empty

    @property
    def retryable(self) -> bool:
        """Whether the same request may do better later."""
        return self.status in RETRYABLE

    def answer(self, *, counted: bool = True) -> Answer:
        """Return the problem as it goes out, and count it."""
        if counted:
            count_problem(self.status, self.detail)
        headers = self.headers
        if self.status in WITH_RETRY_AFTER:
            headers += (("retry-after", str(max(1, self.retry_after))),)
        if self.plain is not None:
            return Answer(self.status, TEXT_HEADERS + headers if self.plain else headers, self.plain.encode())
        headers = PROBLEM_HEADERS + headers
        body = _ProblemView(
            title=phrase_of(self.status),
            status=self.status,
            detail=self.detail,
            retryable=self.retryable,
            field=self.field,
            queue=self.queue,
            job_id=self.job_id,
            request_id=self.request_id,
            shards_away=self.shards_away,
            crash_loops=self.crash_loops,
            completed=self.completed,
            line=self.line,
            held_by=write_run_id(self.held_by) if self.held_by is not None else None,
            held_until=write_instant(self.held_until) if self.held_until is not None else None,
        )
        return Answer(self.status, headers, _encode(body))


class Repeated(Problem, frozen=True, kw_only=True):
    """A problem that many are told of in the same bytes."""

    told: Answer

    def answer(self, *, counted: bool = True) -> Answer:
        """See `Problem`."""
        if counted:
            count_problem(self.status, self.detail)
        return self.told


def fault(field: str, rule: str) -> Problem:
    """Return the 422 problem of one part of a request: `field` breaks `rule`."""
    return Problem(status=422, detail=f"{field}: {rule}", field=field)


def too_many_unfinished() -> Problem:
    """Return the problem of a body for which there is no room."""
    return Problem(status=429, detail="too many bytes of unfinished requests are held (bodies_bytes_max)")


def too_many_at_once(requests_max: int) -> Problem:
    """Return the problem of a request outside the fast lane for which there is no place."""
    return Problem(status=429, detail=f"{requests_max} requests are worked on at once, more must come again (quart_requests_max)")


def too_many_unsent(*, sure: bool) -> Problem:
    """Return the problem of an answer that is not kept for its client. `sure`: what was asked had no other effect than the jobs in it."""
    return Problem(status=429 if sure else 503, detail="too many bytes of answers wait to be taken; the jobs went back (answers_bytes_max)")


def refusal(refused: Refused, queue: str | None = None, job_id: str | None = None, *, completed: bool | None = None) -> Problem:
    """Return the problem of a refused command."""
    return Problem(
        status=STATUSES[refused.reason],
        detail=refused.detail,
        field=refused.field,
        queue=queue,
        job_id=job_id,
        completed=completed,
        retry_after=refused.retry_after,
        held_by=refused.held_by,
        held_until=refused.held_until,
    )


def json_answer(value: object, status: int = 200) -> Answer:
    """Return any value that msgspec can encode as a JSON answer."""
    return Answer(status, JSON_HEADERS, _encode(value))


def job_answer(job: Delivery) -> Answer:
    """Return one delivered job as a JSON object. Its trace goes on in a header."""
    headers: tuple[tuple[str, str], ...] = JSON_HEADERS
    if job.extras is not None and job.extras.trace is not None:
        headers += (("traceparent", job.extras.trace),)
    return Answer(200, headers, _encode(_job_view(job)))


def jobs_answer(jobs: Sequence[Delivery]) -> Answer:
    """Return delivered jobs as a JSON array."""
    return Answer(200, JSON_HEADERS, _encode([_job_view(job) for job in jobs]))


def batch_answer(parts: Sequence[bytes], status: int) -> Answer:
    """Return the answers to several operations, each of them JSON text, as one JSON array."""
    return Answer(status, JSON_HEADERS, b"[" + b",".join(parts) + b"]")


def jobs_part(jobs: Sequence[Delivery]) -> bytes:
    """Return the answer to a `next` among several operations."""
    return _encode(_JobsPart(status=200 if jobs else 204, jobs=[_job_view(job) for job in jobs]))


def dead_answer(letters: Sequence[DeadLetter]) -> Answer:
    """Return a page of dead letters. `next` is the `after` of the page behind it, null where this one is empty."""
    page = _DeadPage(jobs=[_dead_view(letter) for letter in letters], next=letters[-1].seq if letters else None)
    return Answer(200, JSON_HEADERS, _encode(page))


def write_run_id(run_id: bytes) -> str:
    """Return the 36-character form of a run_id (16 bytes)."""
    text = run_id.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


class _ProblemView(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    title: str
    status: int
    detail: str
    retryable: bool
    field: str | None = None
    queue: str | None = None
    job_id: str | None = None
    request_id: str | None = None
    shards_away: list[int] | None = None
    crash_loops: dict[str, int] | None = None
    completed: bool | None = None
    line: int | None = None
    held_by: str | None = None
    held_until: str | None = None


class BackoffShown(msgspec.Struct, frozen=True, kw_only=True):
    """A backoff of a job's own."""

    seconds: float
    factor: float
    seconds_max: float
    jitter: float


def backoff_shown(backoff: Backoff) -> BackoffShown:
    """Return a backoff as it is shown: durations in seconds."""
    return BackoffShown(
        seconds=backoff.first_us / SECOND_US, factor=backoff.factor, seconds_max=backoff.max_us / SECOND_US, jitter=backoff.jitter
    )


class _JobView(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    id: str
    queue: str
    timeout: int
    persist_data: bool
    max_retries: int
    payload: msgspec.Raw
    state: msgspec.Raw | msgspec.UnsetType
    run_at: str | msgspec.UnsetType
    run_id: str
    attempt: int
    created_at: str
    updated_at: str
    key: str | msgspec.UnsetType = msgspec.UNSET
    priority: int | msgspec.UnsetType = msgspec.UNSET
    ttl: float | msgspec.UnsetType = msgspec.UNSET
    backoff: BackoffShown | msgspec.UnsetType = msgspec.UNSET
    trace: str | msgspec.UnsetType = msgspec.UNSET


class AttemptShown(msgspec.Struct, frozen=True, kw_only=True):
    """One run that did not complete its job."""

    attempt: int
    started_at: str | None
    ended_at: str
    outcome: str
    error: str | None


def history_shown(extras: Extras) -> list[AttemptShown]:
    """Return the runs of a job that did not complete it, the first one first."""
    return [
        AttemptShown(
            attempt=attempt.number,
            started_at=write_instant(attempt.started_at) if attempt.started_at else None,
            ended_at=write_instant(attempt.ended_at),
            outcome=attempt.outcome,
            error=attempt.error,
        )
        for attempt in extras.history
    ]


class _JobsPart(msgspec.Struct, frozen=True, kw_only=True):
    status: int
    jobs: list[_JobView]


class _DeadView(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    id: str
    queue: str
    timeout: int
    persist_data: bool
    max_retries: int
    payload: msgspec.Raw
    state: msgspec.Raw | msgspec.UnsetType
    run_at: str | msgspec.UnsetType
    attempt: int
    reason: str
    key: str | msgspec.UnsetType
    priority: int | msgspec.UnsetType
    history: list[AttemptShown]
    created_at: str
    died_at: str


class _DeadPage(msgspec.Struct, frozen=True, kw_only=True):
    jobs: list[_DeadView]
    next: int | None


_encode = msgspec.json.Encoder().encode
_raw = msgspec.Raw


def _job_view(job: Delivery) -> _JobView:
    view = _JobView(
        id=job.id,
        queue=job.queue,
        timeout=job.timeout,
        persist_data=job.persist,
        max_retries=job.max_retries,
        payload=_raw(job.payload),
        state=_raw(job.state) if job.state else UNSET,
        run_at=write_instant(job.run_at) if job.run_at is not None else UNSET,
        run_id=write_run_id(job.run_id),
        attempt=job.attempt,
        created_at=write_instant(job.created_at),
        updated_at=write_instant(job.updated_at),
    )
    return view if job.extras is None else _with_extras(view, job, job.extras)


def _with_extras(view: _JobView, job: Delivery, extras: Extras) -> _JobView:
    ttl_us = None
    if extras.expires_at is not None:  # it began when the job could start
        ttl_us = max(0, extras.expires_at - max(job.created_at, job.run_at or job.created_at))
    return msgspec.structs.replace(
        view,
        key=extras.key if extras.key is not None else msgspec.UNSET,
        priority=extras.priority or msgspec.UNSET,
        ttl=ttl_us / SECOND_US if ttl_us is not None else msgspec.UNSET,
        backoff=backoff_shown(extras.backoff) if extras.backoff is not None else msgspec.UNSET,
        trace=extras.trace if extras.trace is not None else msgspec.UNSET,
    )


def _dead_view(letter: DeadLetter) -> _DeadView:
    extras = letter.extras or NO_EXTRAS
    return _DeadView(
        id=letter.id,
        queue=letter.queue,
        timeout=letter.timeout,
        persist_data=letter.persist,
        max_retries=letter.max_retries,
        payload=msgspec.Raw(letter.payload),
        state=msgspec.Raw(letter.state) if letter.state else msgspec.UNSET,
        run_at=write_instant(letter.run_at) if letter.run_at is not None else msgspec.UNSET,
        attempt=letter.attempt,
        reason=letter.reason,
        key=extras.key if extras.key is not None else msgspec.UNSET,
        priority=extras.priority or msgspec.UNSET,
        history=history_shown(extras),
        created_at=write_instant(letter.created_at),
        died_at=write_instant(letter.died_at),
    )
