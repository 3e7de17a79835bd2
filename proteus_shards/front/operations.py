r"""The native calls: what a request means, and what its outcome looks like. Sync, pure, free of any framework.

Each call is one function `(body, query, settings) -> Ask | Problem`. An `Ask` holds the core command and knows, through
`answer`, how to show its outcome. Whoever serves HTTP, now or later, finds the function in `OPERATIONS`, carries the command to
the shard that owns `command.queue`, and sends what `answer` returns. No input makes any of this raise.

Decisions:

- Refusals name the part at fault and speak of it in the words of the API. The fast path is one typed decode of the whole job; only when
  that fails, `_explain` reads the body again field by field to find out what to say.
- The body must be UTF-8 throughout. msgspec checks the grammar of what it keeps raw, not its encoding, so that is done here. It
  also refuses a string with half a surrogate pair in it (`"\ud800"`): such text could not be handed on as UTF-8.
- How deep JSON may nest is the interpreter's recursion limit, less the caller's own depth: 850 levels always pass.
- Of a member that stands twice in a job the last one counts. `state: null` and `run_at: null` mean "not set".
- A heartbeat's body is told from "no body" by its length alone: white space is not JSON and is refused.
- A body where none is asked for (next, complete) is not looked at.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, TypeAlias

import msgspec

from proteus_shards.config import Settings
from proteus_shards.core.commands import Complete, Delivered, Done, Enqueue, Heartbeat, ListDead, Listed, Next, Outcome, Refused
from proteus_shards.core.model import MAX_RETRIES_MAX, SECOND_US, TIMEOUT_SECONDS_MAX, name_fault
from proteus_shards.front import instants
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
from proteus_shards.front.queries import parse_query, shown

MAX_RETRIES_MIN = -(2**31)
DEAD_JOBS_DEFAULT = 100
SEQ_MAX = 2**63 - 1

QueueCommand: TypeAlias = Enqueue | Next | Heartbeat | Complete | ListDead


class Ask(msgspec.Struct, frozen=True, gc=False):
    """A request understood: the command to carry out, and how to show the outcome that it should have."""

    command: QueueCommand
    show: Callable[[Any], Answer]


Parse: TypeAlias = Callable[[bytes, bytes, Settings], Ask | Problem]


def answer(ask: Ask, outcome: Outcome) -> Answer:
    """Return the answer to a request whose command had this outcome."""
    if type(outcome) is Refused:
        return refusal(outcome, ask.command.queue, getattr(ask.command, "id", None)).answer()
    return ask.show(outcome)


# --- the calls -------------------------------------------------------------------------------------------------


def enqueue(body: bytes, query: bytes, _settings: Settings) -> Ask | Problem:
    """`POST /enqueue`: the body is one job."""
    if query and isinstance(found := parse_query(query, ()), Problem):
        return found
    try:
        if not body.isascii():
            body.decode()
        job = _jobs.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _explain(body)
    if (wrong := name_fault(job.queue)) is not None:
        return fault("queue", wrong)
    if (wrong := name_fault(job.id)) is not None:
        return fault("id", wrong)
    run_at_us = None
    if job.run_at is not None and (run_at_us := instants.read_instant(job.run_at)) is None:
        return fault("run_at", instants.RULE)
    state = bytes(job.state)
    return Ask(
        Enqueue(
            job.queue,
            job.id,
            job.timeout,
            job.persist_data,
            job.max_retries,
            bytes(job.payload),
            None if state == b"null" else state,
            run_at_us,
        ),
        _show_accepted,
    )


def next_job(_body: bytes, query: bytes, settings: Settings) -> Ask | Problem:
    """`GET /next?queue=&num_jobs=&wait=`: one job, or with num_jobs an array of up to that many."""
    values = parse_query(query, ("queue", "num_jobs", "wait"))
    if isinstance(values, Problem):
        return values
    queue = _name(values, "queue")
    if isinstance(queue, Problem):
        return queue
    count = _integer("num_jobs", values.get("num_jobs"), 1, 1, settings.num_jobs_max)
    if isinstance(count, Problem):
        return count
    wait_us = _wait_us(values.get("wait"), settings.wait_seconds_max)
    if isinstance(wait_us, Problem):
        return wait_us
    return Ask(Next(queue, count, wait_us), _show_jobs if "num_jobs" in values else _show_job)


def heartbeat(body: bytes, query: bytes, _settings: Settings) -> Ask | Problem:
    """`PATCH /heartbeat?queue=&job_id=&run_id=`: the body, if there is one, is the new state; `null` clears it."""
    run = _run(query)
    if isinstance(run, Problem):
        return run
    state: bytes | None = None
    if body:
        raw = _raw_json(body)
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


def dead(_body: bytes, query: bytes, settings: Settings) -> Ask | Problem:
    """`GET /dead?queue=&num_jobs=&after=`: a page of dead letters, oldest death first; `after` is the page before's `next`."""
    values = parse_query(query, ("queue", "num_jobs", "after"))
    if isinstance(values, Problem):
        return values
    queue = _name(values, "queue")
    if isinstance(queue, Problem):
        return queue
    count = _integer("num_jobs", values.get("num_jobs"), min(DEAD_JOBS_DEFAULT, settings.num_jobs_max), 1, settings.num_jobs_max)
    if isinstance(count, Problem):
        return count
    after = _integer("after", values.get("after"), -1, 0, SEQ_MAX)
    if isinstance(after, Problem):
        return after
    return Ask(ListDead(queue, count, after), _show_dead)


OPERATIONS: dict[tuple[str, str], Parse] = {
    ("POST", "/enqueue"): enqueue,
    ("GET", "/next"): next_job,
    ("PATCH", "/heartbeat"): heartbeat,
    ("DELETE", "/complete"): complete,
    ("GET", "/dead"): dead,
}
WITH_BODY: frozenset[Parse] = frozenset({enqueue, heartbeat})
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

_DIGITS = re.compile("[0-9]{1,19}")
_SECONDS = re.compile(r"[0-9]{1,10}(\.[0-9]{1,12})?")
_RUN_ID = re.compile("[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def _name(values: dict[str, str], field: str) -> str | Problem:
    name = values.get(field)
    if name is None:
        return fault(field, "is required")
    wrong = name_fault(name)
    return name if wrong is None else fault(field, wrong)


def _run(query: bytes) -> tuple[str, str, bytes | None] | Problem:
    """Read which run is meant: queue, job id, and the run_id (16 bytes) where one is named."""
    values = parse_query(query, ("queue", "job_id", "run_id"))
    if isinstance(values, Problem):
        return values
    queue = _name(values, "queue")
    if isinstance(queue, Problem):
        return queue
    job_id = _name(values, "job_id")
    if isinstance(job_id, Problem):
        return job_id
    text = values.get("run_id")
    if text is None:
        return queue, job_id, None
    if _RUN_ID.fullmatch(text) is None:
        return fault("run_id", "must be a UUID of 36 characters")
    return queue, job_id, bytes.fromhex(text.replace("-", ""))


def _integer(field: str, text: str | None, default: int, low: int, high: int) -> int | Problem:
    if text is None:
        return default
    if _DIGITS.fullmatch(text) is not None and low <= (value := int(text)) <= high:
        return value
    return fault(field, f"must be an integer from {low} to {high}")


def _wait_us(text: str | None, wait_seconds_max: float) -> int | Problem:
    if text is None:
        return 0
    if _SECONDS.fullmatch(text) is not None and (seconds := float(text)) <= wait_seconds_max:
        return round(seconds * SECOND_US)
    return fault("wait", f"must be a number of seconds from 0 to {wait_seconds_max:g}")


# --- bodies ----------------------------------------------------------------------------------------------------

_NULL = msgspec.Raw(b"null")
_Timeout = Annotated[int, msgspec.Meta(ge=0, le=TIMEOUT_SECONDS_MAX)]
_MaxRetries = Annotated[int, msgspec.Meta(ge=MAX_RETRIES_MIN, le=MAX_RETRIES_MAX)]


class _JobBody(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    id: str
    queue: str
    timeout: _Timeout
    persist_data: bool = False
    max_retries: _MaxRetries = 0
    payload: msgspec.Raw = _NULL
    state: msgspec.Raw = _NULL
    run_at: str | None = None


_jobs = msgspec.json.Decoder(_JobBody)
_raws = msgspec.json.Decoder(msgspec.Raw)
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])

_STRING = "must be a string"
_RULES: dict[str, tuple[msgspec.json.Decoder[Any], str]] = {
    "id": (msgspec.json.Decoder(str), _STRING),
    "queue": (msgspec.json.Decoder(str), _STRING),
    "timeout": (msgspec.json.Decoder(_Timeout), f"must be an integer from 0 to {TIMEOUT_SECONDS_MAX}"),
    "persist_data": (msgspec.json.Decoder(bool), "must be true or false"),
    "max_retries": (msgspec.json.Decoder(_MaxRetries), f"must be an integer from {MAX_RETRIES_MIN} to {MAX_RETRIES_MAX}"),
    "payload": (_raws, ""),
    "state": (_raws, ""),
    "run_at": (msgspec.json.Decoder(str | None), instants.RULE),
}
_REQUIRED = ("id", "queue", "timeout")


def _raw_json(body: bytes) -> bytes | Problem:
    """Return the JSON text of a body, byte for byte but for white space around it."""
    try:
        if not body.isascii():
            body.decode()
        return bytes(_raws.decode(body))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return _not_json(error)


def _not_json(error: Exception) -> Problem:
    if isinstance(error, RecursionError):
        return fault("body", "is nested too deeply")
    if isinstance(error, UnicodeDecodeError):
        return fault("body", "must be UTF-8")
    reason = str(error).removeprefix("JSON is malformed: ").replace("Input data was truncated", "it ends too early")
    return fault("body", f"must be JSON: {reason}")


def _explain(body: bytes) -> Problem:
    """Say why a body is not a job."""
    text = _raw_json(body)
    if isinstance(text, Problem):
        return text
    try:
        members = _members.decode(text)
    except msgspec.ValidationError:
        return fault("body", "must be a JSON object")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return _not_json(error)
    for field in members:
        if field not in _RULES:
            return fault(shown(field), "is not a field of a job")
    for field in _REQUIRED:
        if field not in members:
            return fault(field, "is required")
    for field, raw in members.items():
        decoder, rule = _RULES[field]
        try:
            decoder.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return fault(field, rule)
    # Each member is right as it stands last, so one that stands twice was wrong before.
    return fault("body", "has a member twice, and not both are right")
