"""Many operations in one request: an array of jobs, jobs line by line, and operations of every kind.

What a body means, and how the answer to it looks; how it is carried to the shards stands in `errands`.

Decisions:

- **An array of jobs is answered by an array**, one answer a job, in order. The status of the whole is 202 where every job was accepted and
  207 where one was not: whoever looks at nothing else learns that there is something to look at. A batch of operations has 200 and 207 in the same way.
- **Each operation stands for itself.** A job that is wrong or refused leaves the others alone, and what was done is not undone. Only a body
  that cannot be read as a whole, is empty or has too many operations is refused as a whole, and then nothing of it is done.
- **Which it is shows in the body**, since content types are not checked: an array begins with `[`. JSON lines (NDJSON) are told by their first line, which is
  an object by itself, with another line behind it that begins one: a job in one piece, however it is broken into lines, never looks like that.
  The content type application/x-ndjson says it beforehand, and only then is a body read as it comes, without end (see `ndjson`).
- **Lines are answered by one summary**: counts, and the refused ones with their line numbers. Nobody wants 100,000 answers that say 202, and a client that
  sends its whole body before it reads anything must not meet a server that waits to be read.
- **The operations are those of the single calls**, with the same fields, but no `wait`: what waits would hold up the answers of the others.
  There are no further routes for many heartbeats or many completions, since this one has both.
- The `next`s of one batch are at most next_queues_max, because each may bring a frame full of jobs. What they bring beyond JOBS_BYTES_MAX goes back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, TypeAlias

import msgspec

from proteus_shards.config import Settings
from proteus_shards.core.commands import Complete, Delivered, Heartbeat, Next, Outcome, Refused
from proteus_shards.core.commands_control import Fail, Release
from proteus_shards.core.model import SECOND_US, name_fault
from proteus_shards.core.queue_settings import SECONDS_MAX
from proteus_shards.front.answers import JSON_HEADERS, Answer, Problem, batch_answer, fault, jobs_part, refusal
from proteus_shards.front.errands import Batch, Item
from proteus_shards.front.job_bodies import (
    DELAY_RULES,
    FAIL_RULES,
    STRING,
    UNREADABLE,
    Rules,
    count_fault,
    explain,
    failure_of,
    members_of,
    read_array,
    read_job,
    read_jobs,
)
from proteus_shards.front.queries import read_run_id

MULTI_STATUS = 207
FAILURES_SHOWN_MAX = 1000  # of a summary: the others are counted

_ACCEPTED = b'{"status":202}'
_COMPLETED = b'{"status":200}'


# --- arrays of jobs --------------------------------------------------------------------------------------------


def enqueue_all(body: bytes, settings: Settings) -> Batch | Problem:
    """Return the errand of an array of jobs."""
    jobs = read_jobs(body, settings.batch_jobs_max)
    return jobs if isinstance(jobs, Problem) else Batch(jobs, _show_jobs)


def _show_jobs(items: Sequence[Item], outcomes: list[Outcome]) -> Answer:
    found = iter(outcomes)
    parts: list[bytes] = []
    refused = 0
    for item in items:
        problem = item if isinstance(item, Problem) else problem_of(item, next(found))
        if problem is None:
            parts.append(_ACCEPTED)
        else:
            refused += 1
            parts.append(problem.answer().body)
    return batch_answer(parts, MULTI_STATUS if refused else 202)


def problem_of(command: Any, outcome: Outcome) -> Problem | None:
    """Return why a command was refused, or None where it was not."""
    return refusal(outcome, command.queue, getattr(command, "id", None)) if type(outcome) is Refused else None


# --- jobs line by line -----------------------------------------------------------------------------------------


def looks_like_lines(body: bytes) -> bool:
    """Say whether a body that is no single JSON value is one job a line."""
    first, _, rest = body.strip().partition(b"\n")
    return rest.lstrip().startswith(b"{") and first.startswith(b"{") and not isinstance(members_of(first), Problem)


def enqueue_lines(body: bytes, settings: Settings) -> Batch | Problem:
    """Return the errand of lines that are here as a whole."""
    lines = [(number, read_job(line)) for number, line in enumerate(body.split(b"\n"), 1) if line and not line.isspace()]
    problem = count_fault(len(lines), settings.batch_jobs_max, "jobs")
    if problem is not None:
        return msgspec.structs.replace(problem, detail=f"{problem.detail}; with content-type: application/x-ndjson it may hold more")
    tally = Tally()

    def show(items: Sequence[Item], outcomes: list[Outcome]) -> Answer:
        tally.add([number for number, _ in lines], items, outcomes)
        return tally.answer()

    return Batch([item for _, item in lines], show)


def line_too_long(settings: Settings) -> Problem:
    """Return the problem of a line over the limit."""
    return Problem(status=413, detail=f"body: a line must have at most {settings.body_size_max} bytes (body_size_max)", field="body")


class Tally:
    """What has become of many lines."""

    def __init__(self) -> None:
        self.accepted = 0
        self.refused = 0
        self.retryable: int | None = None  # the status of the last that may be tried again
        self._failures: list[bytes] = []

    def add(self, lines: Sequence[int], items: Sequence[Item], outcomes: list[Outcome]) -> None:
        """Count items, whose lines are given, and the outcomes of those that are commands."""
        found = iter(outcomes)
        for line, item in zip(lines, items, strict=True):
            problem = item if isinstance(item, Problem) else problem_of(item, next(found))
            if problem is None:
                self.accepted += 1
                continue
            self.refused += 1
            if problem.retryable:
                self.retryable = problem.status
            if len(self._failures) < FAILURES_SHOWN_MAX:
                self._failures.append(msgspec.structs.replace(problem, line=line).answer().body)

    def answer(self, stopped: Problem | None = None, line: int = 0) -> Answer:
        """Return the summary. `stopped` says why the lines from `line` on were not looked at."""
        parts = [b'{"accepted":%d,"refused":%d,"failures":[%s]' % (self.accepted, self.refused, b",".join(self._failures))]
        headers: tuple[tuple[str, str], ...] = JSON_HEADERS
        if self.refused > len(self._failures):
            parts.append(b'"failures_left_out":%d' % (self.refused - len(self._failures)))
        if stopped is not None:
            shown = msgspec.structs.replace(stopped, line=line).answer()
            parts.append(b'"stopped":' + shown.body)
            headers += tuple(field for field in shown.headers if field[0] == "retry-after")
        return Answer(MULTI_STATUS if self.refused or stopped is not None else 202, headers, b",".join(parts) + b"}")


# --- operations of every kind ----------------------------------------------------------------------------------


_Seconds = Annotated[float, msgspec.Meta(ge=0, le=SECONDS_MAX)]


class _Heartbeat(msgspec.Struct, tag="heartbeat", tag_field="op", forbid_unknown_fields=True, gc=False):
    queue: str
    job_id: str
    run_id: str | None = None
    state: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Complete(msgspec.Struct, tag="complete", tag_field="op", forbid_unknown_fields=True, gc=False):
    queue: str
    job_id: str
    run_id: str | None = None


class _Fail(msgspec.Struct, tag="fail", tag_field="op", forbid_unknown_fields=True, gc=False):
    queue: str
    job_id: str
    run_id: str | None = None
    error: str | None = None
    delay: _Seconds | None = None


class _Release(msgspec.Struct, tag="release", tag_field="op", forbid_unknown_fields=True, gc=False):
    queue: str
    job_id: str
    run_id: str | None = None
    delay: _Seconds | None = None


class _Next(msgspec.Struct, tag="next", tag_field="op", forbid_unknown_fields=True, gc=False):
    queue: str
    num_jobs: int = 1


class _Enqueue(msgspec.Struct, tag="enqueue", tag_field="op", forbid_unknown_fields=True, gc=False):
    job: msgspec.Raw


_Operation: TypeAlias = _Heartbeat | _Complete | _Fail | _Release | _Next | _Enqueue

_operation: msgspec.json.Decoder[_Operation] = msgspec.json.Decoder(_Operation)
_operations: msgspec.json.Decoder[list[_Operation]] = msgspec.json.Decoder(list[_Operation])
_text = (msgspec.json.Decoder(str), STRING)
_any = (msgspec.json.Decoder(msgspec.Raw), "")
_run: Rules = {"queue": _text, "job_id": _text, "run_id": (msgspec.json.Decoder(str | None), STRING)}
_RULES: dict[str, tuple[Rules, tuple[str, ...]]] = {
    "enqueue": ({"job": _any}, ("job",)),
    "heartbeat": ({**_run, "state": _any}, ("queue", "job_id")),
    "complete": (_run, ("queue", "job_id")),
    "fail": ({**_run, **FAIL_RULES}, ("queue", "job_id")),
    "release": ({**_run, **DELAY_RULES}, ("queue", "job_id")),
    "next": ({"queue": _text, "num_jobs": (msgspec.json.Decoder(int), "must be an integer")}, ("queue",)),
}


def batch(body: bytes, query: bytes, settings: Settings) -> Batch | Problem:
    """`POST /batch`: an array of operations, each with its name in `op` and the arguments of the single call."""
    if query:
        return fault("query", "must be empty: the operations stand in the body")
    try:
        if not body.isascii():
            body.decode()
        operations: Sequence[_Operation | Problem] = _operations.decode(body)
    except UNREADABLE:
        pieces = read_array(body, settings.batch_jobs_max, "operations")
        if isinstance(pieces, Problem):
            return pieces
        operations = [_read_operation(bytes(piece)) for piece in pieces]
    problem = count_fault(len(operations), settings.batch_jobs_max, "operations")
    if problem is not None:
        return problem
    items = [each if isinstance(each, Problem) else _command_of(each, settings) for each in operations]
    polls = sum(isinstance(item, Next) for item in items)
    if polls > settings.next_queues_max:
        detail = f"body: must hold at most {settings.next_queues_max} operations that are a next, not {polls} (next_queues_max)"
        return Problem(status=413, detail=detail, field="body")
    return Batch(items, _show_operations, delivers=polls > 0)


def _read_operation(text: bytes) -> _Operation | Problem:
    """Read one operation alone, and say what is wrong with it."""
    try:
        return _operation.decode(text)
    except UNREADABLE:
        members = members_of(text)
    if isinstance(members, Problem):
        return members
    name = bytes(members.pop("op", b""))
    known = {b'"%s"' % each.encode(): each for each in _RULES}
    if name not in known:
        return fault("op", f"must be one of {', '.join(_RULES)}" if name else "is required")
    rules, required = _RULES[known[name]]
    return explain(msgspec.json.encode(members), rules, required, f"is not a field of the operation {known[name]}")


def _command_of(operation: _Operation, settings: Settings) -> Item:
    if isinstance(operation, _Enqueue):
        job = read_job(bytes(operation.job))
        if isinstance(job, Problem) and job.field == "body":  # here it is a member of one
            return msgspec.structs.replace(job, field="job", detail="job" + job.detail.removeprefix("body"))
        return job
    if (wrong := name_fault(operation.queue)) is not None:
        return fault("queue", wrong)
    if isinstance(operation, _Next):
        if 1 <= operation.num_jobs <= settings.num_jobs_max:
            return Next(operation.queue, operation.num_jobs)
        return fault("num_jobs", f"must be an integer from 1 to {settings.num_jobs_max}")
    if (wrong := name_fault(operation.job_id)) is not None:
        return fault("job_id", wrong)
    run_id = None if operation.run_id is None else read_run_id(operation.run_id)
    if isinstance(run_id, Problem):
        return run_id
    if isinstance(operation, _Complete):
        return Complete(operation.queue, operation.job_id, run_id)
    if isinstance(operation, _Fail):
        return Fail(operation.queue, operation.job_id, run_id, *failure_of(operation.error, operation.delay))
    if isinstance(operation, _Release):
        return Release(operation.queue, operation.job_id, run_id, round((operation.delay or 0) * SECOND_US))
    state: bytes | None = None
    if operation.state is not msgspec.UNSET:
        raw = bytes(operation.state)
        state = b"" if raw == b"null" else raw
    return Heartbeat(operation.queue, operation.job_id, run_id, state)


def _show_operations(items: Sequence[Item], outcomes: list[Outcome]) -> Answer:
    found = iter(outcomes)
    parts: list[bytes] = []
    refused = 0
    for item in items:
        outcome = None if isinstance(item, Problem) else next(found)
        problem = item if isinstance(item, Problem) else problem_of(item, outcome)  # type: ignore[arg-type]
        if problem is not None:
            refused += 1
            parts.append(problem.answer().body)
        elif type(outcome) is Delivered:
            parts.append(jobs_part(outcome.jobs))
        else:
            parts.append(_COMPLETED if type(item) is Complete else _ACCEPTED)
    return batch_answer(parts, MULTI_STATUS if refused else 200)
