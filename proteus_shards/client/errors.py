"""What can go wrong between a client and its server, and how a problem that the server tells becomes an exception.

Three kinds, told apart by what a caller may conclude. A `Refusal` is the server's own answer: it has a status and what the problem document says. `NotReached`
means that the request surely had no effect. `Unanswered` means that it may have had one. The client has tried again before it raises any of them, as
far as that was safe (see `retries`).
"""

from __future__ import annotations

import msgspec

from proteus_shards.errors import ProteusError


class ClientError(ProteusError):
    """A call to the server failed."""


class NotReached(ClientError):
    """The server could not be reached, and the request surely had no effect."""


class Unanswered(ClientError):
    """The request was sent, but its answer did not come: it may have had an effect."""


class BadAnswer(ClientError):
    """The server answered something that is no answer of this API: the URL may be wrong."""


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """What a problem document (RFC 9457) of the server says."""

    status: int
    detail: str = ""
    title: str = ""
    retryable: bool = False
    field: str | None = None
    queue: str | None = None
    job_id: str | None = None
    request_id: str | None = None
    line: int | None = None
    completed: bool | None = None
    held_by: str | None = None
    held_until: str | None = None

    def __str__(self) -> str:
        """Return it as one sentence."""
        return f"{self.status} {self.detail or self.title}"


class Refusal(ClientError):
    """The server refused."""

    def __init__(self, problem: Problem, retry_after: float | None = None) -> None:
        super().__init__(str(problem))
        self.problem = problem
        self.retry_after = retry_after  # seconds
        self.after_unknown = False  # an earlier try of the same call may have had the effect

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.problem.status

    @property
    def retryable(self) -> bool:
        """Whether the same call may do better later."""
        return self.problem.retryable


class BadRequest(Refusal):
    """400, 408, 414, 431, 422 and other 4xx: no retry can mend it."""


class Unauthorized(Refusal):
    """401: a token is missing or not known."""


class Forbidden(Refusal):
    """403: the token does not allow this."""


class NotFound(Refusal):
    """404: there is no such job, or its run is over. `problem.held_by` says who has it instead.

    `after_unknown`: an earlier try may have succeeded, and this answer be its trace.
    """


class Conflict(Refusal):
    """409: a job with this id is in the queue already. With `after_unknown` it may be this very one."""


class TooLarge(Refusal):
    """413: the request is over a limit."""


class Invalid(BadRequest):
    """422: part of the request is wrong; `problem.field` says which."""


class Busy(Refusal):
    """429: not now, and surely without effect."""


class ServerFault(Refusal):
    """500: a fault inside; the server's log has the details under `problem.request_id`."""


class Unavailable(Refusal):
    """503: not now, and it may have had an effect."""


_CLASSES: dict[int, type[Refusal]] = {
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    413: TooLarge,
    422: Invalid,
    429: Busy,
    500: ServerFault,
    503: Unavailable,
}

_decode = msgspec.json.Decoder(Problem).decode


def refusal_of(status: int, body: bytes, retry_after: str | None = None) -> Refusal:
    """Return the exception of an answer that is an error, whoever gave it: a proxy in between does not speak in problem documents."""
    try:
        problem = _decode(body)
    except msgspec.DecodeError:
        text = body[:200].decode(errors="replace").strip() if body[:1] != b"<" else ""
        problem = Problem(status=status, detail=text, title=f"HTTP status {status}", retryable=status in {408, 429, 502, 503, 504})
    return refusal(problem, retry_after)


def refusal(problem: Problem, retry_after: str | None = None) -> Refusal:
    """Return the exception of a problem."""
    kind = _CLASSES.get(problem.status)
    if kind is None:
        kind = Unavailable if problem.status >= 500 else BadRequest
    return kind(problem, float(retry_after) if retry_after is not None and retry_after.isdigit() else None)
