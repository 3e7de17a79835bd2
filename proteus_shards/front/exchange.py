"""One request and its answer, watched for jobs that never reach their runner.

A job that a `next` was given is in flight from then on. If its client is gone, it would wait for its timeout; so it goes back, but only
where it is *sure* that the client can't have it, since a job given back wrongly runs twice.

What is knowable:

- The client closes while its `next` waits, or before the answer begins: Hypercorn sees the end of the stream, the handler is
  cancelled, nothing was sent. Sure: it goes back at once.
- The answer could not be made, and the client got a 500 in its place. Sure: it goes back.
- HTTP/1 only: the answer has a content-length, and `Connection` counts what the socket took. If a send failed or was cut short, the last
  byte never left, and no parser accepts the rest. Sure: it goes back.

What is not:

- The socket took the whole answer: the kernel holds it, and nothing tells whether the client read it before it died.
- While an HTTP/1 client has sent more requests behind its `next` (pipelining), Hypercorn reads no further, and so notices
  the end of the stream only after the answer.
- A client that shuts down only its sending side looks gone to Hypercorn; it gets no answer, and no job either.
- On HTTP/2 the answers of all streams share one socket and are sent later, by another task: once the answer has begun, it counts as sent. Only
  where the connection broke, and took fewer bytes since then than the answer has, the job goes back: its end surely never left.

In the unsure cases the job returns at its timeout, and its delivery counts.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, cast

from proteus_shards.core.commands import Delivery
from proteus_shards.front.admission import Place
from proteus_shards.front.answers import Answer, Problem, too_many_unsent
from proteus_shards.front.connection import CURRENT_CONNECTION, Connection
from proteus_shards.front.router import Router
from proteus_shards.tokens import Grant

if TYPE_CHECKING:
    from hypercorn.typing import ASGISendCallable

WITH_JOBS = frozenset({200, 207})  # the statuses of answers that hold jobs
SCOPE_KEY = "proteus_shards.exchange"
GRANT_KEY = "proteus_shards.grant"

log = logging.getLogger("proteus_shards.front")


class Exchange:
    """The answer of one request on its way out."""

    def __init__(self, router: Router, http_version: str, send: ASGISendCallable) -> None:
        self._router = router
        self._send = send
        self._connection = CURRENT_CONNECTION.get()
        self._is_shared = not http_version.startswith("1")  # with the answers to other requests, and sent by a task of their own
        self._jobs: Sequence[Delivery] = ()
        self._body_bytes = 0
        self._taken_bytes = 0  # of the body, by the socket; counted with a connection only
        self._shared_before = 0  # what a shared connection had sent when the answer began
        self._held_bytes = [0, 0]  # of the body of the request, and of the answer, as counted for all connections
        self._status: int | None = None
        self.place: Place | None = None  # None: it needs none
        self.finishing = False  # the last message of the answer is being sent
        self.request_ended = False  # the client's whole body has arrived

    @property
    def begun(self) -> bool:
        """Whether an answer has begun."""
        return self._status is not None

    def waiting(self, *, long: bool = False) -> AbstractContextManager[None]:
        """Wait for someone else; see `Place.waiting`."""
        return self.place.waiting(long=long) if self.place is not None else nullcontext()

    def hold(self, jobs: Sequence[Delivery]) -> None:
        """Answer for these jobs from now on."""
        self._jobs = jobs

    def take_body(self, size: int) -> bool:
        """Count bytes of the request's body that are held until the exchange is over, and say whether there is room for them."""
        taken = self._router.bodies.take(size, self._held_bytes[0])
        self._held_bytes[0] += size * taken
        return taken

    def take_answer(self, shown: Answer, *, sure: bool) -> Answer:
        """Count the answer with the jobs that are held, and return it; where there is no room for it, they go back, and a problem is to be told. See `too_many_unsent`."""
        size = len(shown.body)
        if self._jobs and not self._router.answers.take(size):
            jobs, self._jobs = self._jobs, ()
            self._router.undeliver(jobs)
            return too_many_unsent(sure=sure).answer()
        self._held_bytes[1] += size * bool(self._jobs)
        return shown

    async def send(self, message: Any) -> None:
        """Send the next ASGI message of the answer."""
        body: bytes = message.get("body", b"")
        if message["type"] == "http.response.start":
            self._status = message["status"]
            if self.place is not None:
                self.place.wait()  # for the client
        elif not message.get("more_body", False):
            self.finishing = True
        if self._connection is not None and self._is_shared:
            await self._send_shared(self._connection, message, len(body))
            return
        if not body or self._connection is None:
            await self._send(message)
            return
        before = self._connection.sent_bytes
        self._body_bytes += len(body)
        try:
            await self._send(message)
        finally:
            self._taken_bytes += self._connection.sent_bytes - before

    async def _send_shared(self, connection: Connection, message: Any, body_bytes: int) -> None:
        if message["type"] == "http.response.start":
            self._shared_before = connection.sent_bytes
        self._body_bytes += body_bytes
        connection.begin_answer()
        try:
            await self._send(message)
        finally:
            connection.end_answer()

    def settle(self) -> None:
        """Give back what surely did not arrive. The exchange is over."""
        if self.place is not None:
            self.place.leave()
        self._router.bodies.give(self._held_bytes[0])
        self._router.answers.give(self._held_bytes[1])
        if self._jobs and self._surely_lost():
            log.debug("a delivery did not reach its client", extra={"jobs": len(self._jobs)})
            self._router.undeliver(self._jobs)

    def _surely_lost(self) -> bool:
        if self._status not in WITH_JOBS:  # no answer has begun, or a problem went out in its place
            return True
        if self._connection is None:
            return False
        if self._is_shared:
            return self._connection.broken and self._connection.sent_bytes_most - self._shared_before < self._body_bytes
        return self._body_bytes == 0 or self._taken_bytes < self._body_bytes


def exchange_of(scope: Any) -> Exchange:
    """Return the exchange that an ASGI scope belongs to."""
    return cast("Exchange", scope[SCOPE_KEY])


def grant_of(scope: Any) -> Grant | None:
    """Return what the sender of a request may do, or None where everyone may do everything. The request has passed `access.check_route`."""
    grant: Grant | Problem | None = scope.get(GRANT_KEY)
    assert not isinstance(grant, Problem), "a route that is open to all asks for something"
    return grant
