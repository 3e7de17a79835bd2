"""The routes of both generations of relay's API, for the lane and for Quart.

A path is matched as it came over the wire, and only then are its parts percent-decoded: `%2F` in a name is no separator, and a plus is a plus. So each
front gives the raw path to `route_of`, and what it gets is, like any other call, a function of body, query and settings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from proteus_shards.config import Settings
from proteus_shards.front import relay_v1 as v1
from proteus_shards.front import relay_v2 as v2
from proteus_shards.front.answers import Problem
from proteus_shards.front.bodies import RELAY_PREFIXES, too_large, unpack_body
from proteus_shards.front.relay_words import NOWHERE, Asked, Dialect, name_of, without_body

PREFIXES = RELAY_PREFIXES
PATTERN_PREFIXES = ("/v1/queues/", "/v2/queues/")
WITH_BODY = frozenset({"POST", "PUT", "PATCH"})
_PREFIX_BYTES = len(PREFIXES[0])

_COLLECTION, _LIST, _JOB, _RUN = "/jobs", "/<queue>/jobs", "/<queue>/jobs/<job_id>", "/<queue>/jobs/<job_id>/run-id/<run_id>"

ROUTES: dict[str, dict[str, Callable[..., Asked]]] = {
    f"/v1/queues{_COLLECTION}": {"POST": v1.enqueue, "PUT": v1.reschedule},
    f"/v1/queues{_LIST}": {"GET": v1.CALLS.next_jobs},
    f"/v1/queues{_JOB}": {"HEAD": v1.CALLS.head, "GET": v1.CALLS.get, "PATCH": v1.beat, "DELETE": v1.delete},
    f"/v2/queues{_COLLECTION}": {"POST": v2.enqueue},
    f"/v2/queues{_LIST}": {"GET": v2.CALLS.next_jobs},
    f"/v2/queues{_JOB}": {"HEAD": v2.CALLS.head, "GET": v2.CALLS.get, "DELETE": v2.delete},
    f"/v2/queues{_RUN}": {"PATCH": v2.beat, "PUT": v2.requeue, "DELETE": v2.complete},
}
"""Path → method → call. What stands in angle brackets is one part of a path."""


SCOPE_KEY = "proteus_shards.relay"  # of an ASGI scope


class Call(msgspec.Struct, frozen=True):
    """A call understood as far as its path goes: the path's pattern, and the names in it. To be called like the functions of `operations`."""

    method: str
    pattern: str | None  # None: there is nothing at this path
    names: tuple[bytes, ...]

    def __call__(self, body: bytes, query: bytes, settings: Settings) -> Any:
        """Return what is asked for, or what is wrong with it."""
        if (fault := self.fault) is not None:
            return fault
        call = ROUTES[self.pattern or ""][self.method]
        names: list[str] = []
        for raw in self.names:
            name = name_of(raw)
            if isinstance(name, Problem):
                return self._silent(name)
            names.append(name)
        return self._silent(call(*names, body, query, settings))

    @property
    def fault(self) -> Problem | None:
        """What is wrong with a call that is none."""
        if self.pattern is None:
            return NOWHERE
        calls = ROUTES[self.pattern]
        if self.method in calls:
            return None
        allowed = ", ".join(sorted(calls))
        return Problem(status=405, detail=f"the method must be {allowed}", headers=(("allow", allowed),), plain="")

    @property
    def sample(self) -> str:
        """Return a path of the pattern, for a server that cannot match raw ones."""
        return (self.pattern or "/").replace("<", "").replace(">", "")

    def unpack(self, body: bytes, content_encoding: str | None, settings: Settings) -> bytes | Problem:
        """Take the content coding off a body, where the call has one."""
        if self.method not in WITH_BODY or content_encoding is None:
            return body
        unpacked = unpack_body(body, content_encoding, settings.body_size_max)
        if isinstance(unpacked, bytes):
            return unpacked
        if unpacked.status == too_large(0).status:
            return too_large(settings.body_size_max, RELAY_PREFIXES[0])
        return msgspec.structs.replace(unpacked, plain=unpacked.detail)

    def busy(self, problem: Problem) -> Problem:
        """Return the problem of a call that may come again, in the words of its generation."""
        dialect: Dialect = v1.V1 if (self.pattern or "").startswith(PATTERN_PREFIXES[0]) else v2.V2
        told = dialect.backend(problem.detail, retryable=True)
        return self._silent_problem(msgspec.structs.replace(problem, status=dialect.busy, plain=told))

    def _silent(self, asked: Any) -> Any:
        """Let an error of a HEAD or a next have no body."""
        return self._silent_problem(asked) if isinstance(asked, Problem) else asked

    def _silent_problem(self, problem: Problem) -> Problem:
        mute = self.method == "HEAD" or (self.pattern or "").endswith(_LIST)
        return without_body(problem) if mute else problem


def in_plain_text(problem: Problem) -> Problem:
    """Return a problem of the HTTP server as relay's clients are told of it."""
    if problem.status == too_large(0).status:
        return too_large(0, RELAY_PREFIXES[0])
    return msgspec.structs.replace(problem, plain=problem.detail)


def label_of(path: str) -> str:
    """Return the name that a path or pattern has in the metrics: of the native API that without its prefix."""
    return path if path.startswith(PATTERN_PREFIXES) else path.removeprefix("/v1")


def route_of(method: str, path: bytes) -> Call | None:
    """Return the call that a method and a raw path are, or None where the path is not of relay's API."""
    if not path.startswith(PREFIXES):
        return None
    version = path[1:3].decode()
    parts = path[_PREFIX_BYTES:].split(b"/")
    pattern: str | None = None
    names: tuple[bytes, ...] = ()
    if parts == [b"jobs"]:
        pattern = _COLLECTION
    elif len(parts) > 1 and parts[1] == b"jobs" and all(parts):
        if len(parts) == 2:
            pattern, names = _LIST, (parts[0],)
        elif len(parts) == 3:
            pattern, names = _JOB, (parts[0], parts[2])
        elif len(parts) == 5 and parts[3] == b"run-id" and version == "v2":
            pattern, names = _RUN, (parts[0], parts[2], parts[4])
    return Call(method, None if pattern is None else f"/{version}/queues{pattern}", names)
