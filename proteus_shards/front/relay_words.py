"""What both generations of relay's API share: sentences, statuses, bodies, names in paths, and errands of many jobs.

Clients of relay compare statuses, and some show the text, so both are as relay's. Errors are plain text; an error of a `next` has no body, since a
client in a loop may never read it, and so holds on to its connection.

Decisions:

- Of a body that is no JSON relay says 400, of one that is JSON and no job 422. Unknown members are ignored.
- Relay knows no limits but the body's, so ours speak in their own words: 413 for an array that is too long, 429 or 503 for a queue that is full.
- A job that was enqueued by relay's API is persisted, as there is no word for it; without a store it lives in memory.
- An array of the first generation, which skips what is there already, is added job by job. Sent again after an error it comes to the same, so it needs no step over several
  shards. The second generation has its arrays in one transaction, in every mode, and so they are one step here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias
from urllib.parse import unquote_to_bytes

import msgspec

from proteus_shards.config import Settings
from proteus_shards.core.commands import Delivery, Done, Enqueue, Heartbeat, Outcome, Reason, Refused
from proteus_shards.core.commands_control import JobView
from proteus_shards.core.model import SECOND_US, name_fault
from proteus_shards.front.answers import STATUSES, Answer, Problem
from proteus_shards.front.errands import Errand, OnAnswer
from proteus_shards.front.job_bodies import UNREADABLE
from proteus_shards.front.operations import Ask
from proteus_shards.front.router import Router

NOT_JSON = "Failed to parse the request body as JSON: "
NOT_OF_TYPE = "Failed to deserialize the JSON body into the target type: "
BAD_QUERY = "Failed to deserialize query string: "
BAD_URL = "Invalid URL: "
NOWHERE = Problem(status=404, detail="there is nothing at this path", plain="")
INT32_MAX = 2**31 - 1
INT16_MAX = 2**15 - 1
U32_MAX = 2**32 - 1

Asked: TypeAlias = "Ask | Errand | Problem"
JobLike: TypeAlias = "Delivery | JobView"

_raws = msgspec.json.Decoder(msgspec.Raw)
NULL = msgspec.Raw(b"null")


class Dialect(Protocol):
    """One generation of the API."""

    busy: int  # the status of what was surely without effect and may be tried again

    def backend(self, detail: str, *, retryable: bool) -> str:
        """Return the sentence of a store that is in trouble."""


# --- sentences -----------------------------------------------------------------------------------------------------


def exists(queue: str, job_id: str) -> str:
    """Return the sentence of a job that is there already."""
    return f"job with id `{job_id}` already exists in queue `{queue}`."


def not_found(queue: str, job_id: str) -> str:
    """Return the sentence of a job that is not there."""
    return f"job with id `{job_id}` not found in queue `{queue}`."


def text(status: int, sentence: str, retry_after: int = 1) -> Answer:
    """Return an error as plain text."""
    return Problem(status=status, detail=sentence, plain=sentence, retry_after=retry_after).answer()


def wrong(status: int, sentence: str) -> Problem:
    """Return what is wrong with a request."""
    return Problem(status=status, detail=sentence, plain=sentence)


def without_body(problem: Problem) -> Problem:
    """Return the same, told by its status alone."""
    return msgspec.structs.replace(problem, plain="")


def refused_text(dialect: Dialect, queue: str, job_id: str, refused: Refused) -> Answer:
    """Return the answer to a refused command about one job."""
    match refused.reason:
        case Reason.EXISTS:
            return text(409, exists(queue, job_id))
        case Reason.NOT_FOUND:
            return text(404, not_found(queue, job_id))
        case Reason.BUSY | Reason.FULL | Reason.MOVED:
            return text(dialect.busy, dialect.backend(refused.detail, retryable=True), refused.retry_after)
        case _:
            status = STATUSES[refused.reason]
            return text(status, dialect.backend(refused.detail, retryable=refused.reason is Reason.UNKNOWN), refused.retry_after)


def refused_silently(dialect: Dialect, refused: Refused) -> Answer:
    """Return the answer to a refused command by its status alone."""
    status = dialect.busy if refused.reason in (Reason.BUSY, Reason.FULL, Reason.MOVED) else STATUSES[refused.reason]
    return Problem(status=status, detail=refused.detail, plain="", retry_after=refused.retry_after).answer()


# --- paths and queries ---------------------------------------------------------------------------------------------


def name_of(raw: bytes) -> str | Problem:
    """Return a name as it stands in a path: percent-decoded, and a plus is a plus."""
    try:
        name = (unquote_to_bytes(raw) if b"%" in raw else raw).decode()
    except UnicodeDecodeError:
        return wrong(400, BAD_URL + "a name must be percent-encoded UTF-8")
    fault = name_fault(name)
    return name if fault is None else wrong(400, f"{BAD_URL}a name {fault}")


def parameters(query: bytes) -> dict[str, str] | Problem:
    """Return the parameters of a query; of one that is given twice the last. Those that nobody knows are ignored."""
    found: dict[str, str] = {}
    for pair in query.split(b"&"):
        name, _, value = pair.partition(b"=")
        try:
            found[unquote_to_bytes(name.replace(b"+", b" ")).decode()] = unquote_to_bytes(value.replace(b"+", b" ")).decode()
        except UnicodeDecodeError:
            return wrong(400, BAD_QUERY + "a parameter must be percent-encoded UTF-8")
    return found


def wanted(query: bytes, settings_num_jobs_max: int, wait_seconds_max: float) -> tuple[int, int] | Problem:
    """Return how many jobs a next wants, and how long it waits (µs). Relay has no `wait`: only who asks for it waits."""
    values = parameters(query) if query else {}
    if isinstance(values, Problem):
        return values
    count = values.get("num_jobs", "1")
    if not (count.isascii() and count.isdigit() and 1 <= int(count[:11]) <= U32_MAX):
        return wrong(400, BAD_QUERY + "num_jobs: must be an integer of at least 1")
    wait = values.get("wait", "0")
    try:
        seconds = float(wait)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= wait_seconds_max:
        return wrong(400, f"{BAD_QUERY}wait: must be a number of seconds from 0 to {wait_seconds_max:g}")
    return min(int(count[:11]), settings_num_jobs_max), round(seconds * SECOND_US)


# --- bodies --------------------------------------------------------------------------------------------------------


def decode(decoder: msgspec.json.Decoder[Any], body: bytes) -> Any:
    """Return what a body holds, or the problem that it has."""
    try:
        if not body.isascii():
            body.decode()
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        if decoder is not _raws and isinstance(broken := decode(_raws, body), Problem):
            return broken  # the type was wrong before the grammar was
        return wrong(422, NOT_OF_TYPE + _of_type(str(error)))
    except UNREADABLE as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error).removeprefix("JSON is malformed: ")
        return wrong(400, NOT_JSON + (reason if not isinstance(error, UnicodeDecodeError) else "it must be UTF-8"))


def _of_type(reason: str) -> str:
    """Put msgspec's words for what is no job into relay's, where relay has a sentence of its own."""
    return reason if ">= 0" not in reason else "Integer is too small to store in target integer type" + reason.partition("0")[2]


def read_state(body: bytes) -> bytes | Problem | None:
    """Return the state that a heartbeat brings: None without a body, b"" for `null`."""
    if not body:
        return None
    raw = decode(_raws, body)
    if isinstance(raw, Problem):
        return raw
    return b"" if bytes(raw) == b"null" else bytes(raw)


def too_many(count: int, settings: Settings) -> Problem:
    """Return the problem of an array that is too long."""
    return wrong(413, f"the array holds {count} jobs, at most {settings.batch_jobs_max} may be sent at once (batch_jobs_max)")


def is_kept(settings: Settings) -> bool:
    """Say whether the server has a store."""
    return settings.store.partition(":")[0] != "memory"


def heartbeat(command: Heartbeat, sentence: str, dialect: Dialect) -> Ask:
    """Return the heartbeat of a job or run; `sentence` tells that there is none."""

    def refuse(refused: Refused) -> Answer:
        if refused.reason is Reason.NOT_FOUND:
            return text(404, sentence)
        return refused_text(dialect, command.queue, command.id, refused)

    return Ask(command, accepted, refuse)


def accepted(outcome: Outcome) -> Answer:
    """Return the answer to what was done, and has nothing to show."""
    assert type(outcome) is Done
    return Answer(202)


# --- many jobs -----------------------------------------------------------------------------------------------------


class Shares:
    """Jobs that are added one by one, and skipped where they are there. `dialect` tells of what went wrong."""

    delivers = False

    def __init__(self, jobs: Sequence[Enqueue], dialect: Dialect) -> None:
        self._jobs = jobs
        self._dialect = dialect

    @property
    def queues(self) -> list[str]:
        """The queues that it is about."""
        return [job.queue for job in self._jobs]

    def begin(self, router: Router, on_answer: OnAnswer) -> None:
        """See `errands.Errand`."""
        self._on_answer = on_answer
        router.submit_all(self._jobs, self._take)

    def abandon(self, number: int = 0) -> None:
        """See `errands.Errand`. It has its effect all the same."""

    def _take(self, outcomes: Sequence[Outcome]) -> None:
        refusals = [
            (job, outcome)
            for job, outcome in zip(self._jobs, outcomes, strict=True)
            if isinstance(outcome, Refused) and outcome.reason is not Reason.EXISTS
        ]
        if not refusals:
            self._on_answer(Answer(202), ())
            return
        job, refused = refusals[0]
        if len(refusals) < len(self._jobs) and refused.reason in (Reason.BUSY, Reason.FULL, Reason.MOVED):
            refused = msgspec.structs.replace(refused, reason=Reason.UNKNOWN)  # the others had their effect
        self._on_answer(refused_text(self._dialect, job.queue, job.id, refused), ())
