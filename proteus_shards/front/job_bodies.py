r"""What the bodies of requests say: jobs and other JSON, read once, and explained where they are wrong.

The fast path is one typed decode of a whole body, or of a whole array. Only when that fails is it read again, value by value and
field by field, to find out what to say, and which jobs of an array are right in spite of it.

Decisions:

- The body must be UTF-8 throughout. msgspec checks the grammar of what it keeps raw, not its encoding, so that is done here. It
  also refuses a string with half a surrogate pair in it (`"\ud800"`): such text could not be handed on as UTF-8.
- How deep JSON may nest is the interpreter's recursion limit, less the caller's own depth: 850 levels always pass.
- `timeout` and `max_retries` that are left out are the queue's to say, and so the shard's: the front does not know what is set.
- Of a member that stands twice in an object the last one counts. `state: null` and `run_at: null` mean "not set".
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any, TypeAlias

import msgspec

from proteus_shards.core.commands import Enqueue, Options
from proteus_shards.core.commands_jobs import RETRIES_OF_QUEUE, TIMEOUT_OF_QUEUE
from proteus_shards.core.extras import ERROR_LENGTH_MAX, FACTOR_MAX, PRIORITY_MAX, Backoff
from proteus_shards.core.model import MAX_RETRIES_MAX, SECOND_US, TIMEOUT_SECONDS_MAX, name_fault
from proteus_shards.core.queue_settings import SECONDS_MAX, BackoffSettings
from proteus_shards.front import instants
from proteus_shards.front.answers import Problem, fault
from proteus_shards.front.queries import shown

MAX_RETRIES_MIN = -(2**31)
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)  # all that a body of any kind can cause


_NULL = msgspec.Raw(b"null")
_Timeout = Annotated[int, msgspec.Meta(ge=0, le=TIMEOUT_SECONDS_MAX)]
_MaxRetries = Annotated[int, msgspec.Meta(ge=MAX_RETRIES_MIN, le=MAX_RETRIES_MAX)]
_Priority = Annotated[int, msgspec.Meta(ge=-PRIORITY_MAX, le=PRIORITY_MAX)]
_Seconds = Annotated[float, msgspec.Meta(ge=0, le=SECONDS_MAX)]


class _JobBody(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    id: str
    queue: str
    timeout: _Timeout = TIMEOUT_OF_QUEUE  # what stands for "left out" can't be said: it is out of bounds
    persist_data: bool = False
    max_retries: _MaxRetries = RETRIES_OF_QUEUE
    payload: msgspec.Raw = _NULL
    state: msgspec.Raw = _NULL
    run_at: str | None = None
    key: str | None = None
    priority: _Priority = 0
    ttl: _Seconds | None = None
    backoff: BackoffSettings | None = None


class _FailBody(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    error: str | None = None
    delay: _Seconds | None = None


class _ReleaseBody(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    delay: _Seconds | None = None


_jobs = msgspec.json.Decoder(_JobBody)
_fails = msgspec.json.Decoder(_FailBody)
_releases = msgspec.json.Decoder(_ReleaseBody)
_job_arrays = msgspec.json.Decoder(list[_JobBody])
_arrays = msgspec.json.Decoder(list[msgspec.Raw])
_raws = msgspec.json.Decoder(msgspec.Raw)
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])

STRING = "must be a string"
SECONDS = f"must be a number of seconds from 0 to {SECONDS_MAX:g}"
BACKOFF = f"must be an object: seconds (0 to {SECONDS_MAX:g}), factor (1 to {FACTOR_MAX:g}), seconds_max, jitter (0 to 1)"
Rules: TypeAlias = Mapping[str, tuple[msgspec.json.Decoder[Any], str]]
"""Field → how it is read, and what to say of it where that fails."""

JOB_RULES: Rules = {
    "id": (msgspec.json.Decoder(str), STRING),
    "queue": (msgspec.json.Decoder(str), STRING),
    "timeout": (msgspec.json.Decoder(_Timeout), f"must be an integer from 0 to {TIMEOUT_SECONDS_MAX}"),
    "persist_data": (msgspec.json.Decoder(bool), "must be true or false"),
    "max_retries": (msgspec.json.Decoder(_MaxRetries), f"must be an integer from {MAX_RETRIES_MIN} to {MAX_RETRIES_MAX}"),
    "payload": (_raws, ""),
    "state": (_raws, ""),
    "run_at": (msgspec.json.Decoder(str | None), instants.RULE),
    "key": (msgspec.json.Decoder(str | None), STRING),
    "priority": (msgspec.json.Decoder(_Priority), f"must be an integer from {-PRIORITY_MAX} to {PRIORITY_MAX}"),
    "ttl": (msgspec.json.Decoder(_Seconds | None), SECONDS),
    "backoff": (msgspec.json.Decoder(BackoffSettings | None), BACKOFF),
}
JOB_REQUIRED = ("id", "queue")
DELAY_RULES: Rules = {"delay": JOB_RULES["ttl"]}
FAIL_RULES: Rules = {"error": (msgspec.json.Decoder(str | None), STRING), **DELAY_RULES}


def read_job(body: bytes) -> Enqueue | Problem:
    """Return the job that a body is."""
    try:
        if not body.isascii():
            body.decode()
        job = _jobs.decode(body)
    except UNREADABLE:
        return explain(body, JOB_RULES, JOB_REQUIRED, "is not a field of a job")
    return _enqueue_of(job)


def read_jobs(body: bytes, jobs_max: int) -> list[Enqueue | Problem] | Problem:
    """Return the jobs of an array, each a job or what is wrong with it, or the problem of the whole."""
    try:
        if not body.isascii():
            body.decode()
        jobs = _job_arrays.decode(body)
    except UNREADABLE:
        pieces = read_array(body, jobs_max, "jobs")
        return pieces if isinstance(pieces, Problem) else [read_job(bytes(piece)) for piece in pieces]
    return count_fault(len(jobs), jobs_max, "jobs") or [_enqueue_of(job) for job in jobs]


def read_array(body: bytes, length_max: int, what: str) -> list[msgspec.Raw] | Problem:
    """Return the texts of the values in an array, or the problem of the whole."""
    text = raw_json(body)
    if isinstance(text, Problem):
        return text
    try:
        pieces = _arrays.decode(text)
    except msgspec.ValidationError:
        return fault("body", "must be a JSON array")
    except UNREADABLE as error:
        return _not_json(error)
    return count_fault(len(pieces), length_max, what) or pieces


def count_fault(length: int, length_max: int, what: str) -> Problem | None:
    """Say what is wrong with the length of an array, if anything is."""
    if length > length_max:
        detail = f"body: must hold at most {length_max} {what}, not {length} (batch_jobs_max)"
        return Problem(status=413, detail=detail, field="body")
    return None if length else fault("body", f"must hold at least one of the {what}: it is empty")


def raw_json(body: bytes) -> bytes | Problem:
    """Return the JSON text of a body, byte for byte but for white space around it."""
    try:
        if not body.isascii():
            body.decode()
        return bytes(_raws.decode(body))
    except UNREADABLE as error:
        return _not_json(error)


def members_of(body: bytes) -> dict[str, msgspec.Raw] | Problem:
    """Return the members of the JSON object that a body is."""
    text = raw_json(body)
    if isinstance(text, Problem):
        return text
    try:
        return _members.decode(text)
    except msgspec.ValidationError:
        return fault("body", "must be a JSON object")
    except UNREADABLE as error:
        return _not_json(error)


def explain(body: bytes, rules: Rules, required: Collection[str], unknown: str) -> Problem:
    """Say why a body is not an object of these fields."""
    members = members_of(body)
    if isinstance(members, Problem):
        return members
    for field in members:
        if field not in rules:
            return fault(shown(field), unknown)
    for field in required:
        if field not in members:
            return fault(field, "is required")
    for field, raw in members.items():
        decoder, rule = rules[field]
        try:
            decoder.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return fault(field, rule)
    # Each member is right as it stands last, so one that stands twice was wrong before.
    return fault("body", "has a member twice, and not both are right")


def _enqueue_of(job: _JobBody) -> Enqueue | Problem:
    if (wrong := name_fault(job.queue)) is not None:
        return fault("queue", wrong)
    if (wrong := name_fault(job.id)) is not None:
        return fault("id", wrong)
    run_at_us = None
    if job.run_at is not None and (run_at_us := instants.read_instant(job.run_at)) is None:
        return fault("run_at", instants.RULE)
    state = None if job.state is _NULL else bytes(job.state)
    options = None
    if job.key is not None or job.priority or job.ttl is not None or job.backoff is not None:
        if job.key is not None and (wrong := name_fault(job.key)) is not None:
            return fault("key", wrong)
        ttl_us = round(job.ttl * SECOND_US) if job.ttl is not None else None
        options = Options(job.key, job.priority, ttl_us, _backoff_of(job.backoff) if job.backoff is not None else None)
    return Enqueue(
        job.queue,
        job.id,
        job.timeout,
        job.persist_data,
        job.max_retries,
        bytes(job.payload),
        None if state == b"null" else state,
        run_at_us,
        options,
    )


def _backoff_of(backoff: BackoffSettings) -> Backoff:
    return Backoff(round(backoff.seconds * SECOND_US), backoff.factor, round(backoff.seconds_max * SECOND_US), backoff.jitter)


def read_failure(body: bytes) -> tuple[str | None, int | None] | Problem:
    """Return the error and the delay (µs) that the body of a fail tells. Of an error too long to be kept, its beginning."""
    try:
        failure = _fails.decode(body) if body else _FailBody()
    except UNREADABLE:
        return explain(body, FAIL_RULES, (), "is not a field of a failure")
    return failure_of(failure.error, failure.delay)


def failure_of(error: str | None, delay: float | None) -> tuple[str | None, int | None]:
    """Return an error as far as it is kept, and a delay in microseconds."""
    return error[:ERROR_LENGTH_MAX] if error is not None else None, round(delay * SECOND_US) if delay is not None else None


def read_delay(body: bytes) -> int | Problem:
    """Return the delay (µs) that the body of a release tells."""
    try:
        release = _releases.decode(body) if body else _ReleaseBody()
    except UNREADABLE:
        return explain(body, DELAY_RULES, (), "is not a field of a release")
    return round((release.delay or 0) * SECOND_US)


def _not_json(error: Exception) -> Problem:
    if isinstance(error, RecursionError):
        return fault("body", "is nested too deeply")
    if isinstance(error, UnicodeDecodeError):
        return fault("body", "must be UTF-8")
    reason = str(error).removeprefix("JSON is malformed: ").replace("Input data was truncated", "it ends too early")
    return fault("body", f"must be JSON: {reason}")
