"""How many requests a front works on at once outside the fast lane: beyond `quart_requests_max` the next is refused as soon as its head is read.

There a request is a task, and a thousand that come together would all be served together: each as slowly as all of them, and none refused. So each takes a
**place**, and what cannot have one is told to come again.

**A place is for work, and not for waiting.** It is left while a body is on its way, while a shard is asked (the link has its own bounds) or a poll waits, and for good
once the answer begins: else a few connections that send or read slowly would keep everyone out. Who has waited takes the place up again whatever
others hold: work that has begun is not thrown away, and while there are too many of them nobody new comes in.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

BODY_SECONDS = 0.05  # from the head of a request: a body that takes longer is waited for without a place


class Admission:
    """The places of one front."""

    def __init__(self, requests_max: int) -> None:
        self.requests_max = requests_max
        self.held = 0

    def place(self) -> Place | None:
        """Return a place, or None where none is free."""
        return Place(self) if self.held < self.requests_max else None


class Place:
    """That of one request, taken until `leave`. Several of its tasks may wait at a time."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._waits = 0
        self._left = False
        admission.held += 1

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Do without the place meanwhile."""
        self._waits += 1
        if self._waits == 1 and not self._left:
            self._admission.held -= 1
        try:
            yield
        finally:
            self._waits -= 1
            if not self._waits and not self._left:
                self._admission.held += 1

    def leave(self) -> None:
        """Give the place back for good. May be called more than once."""
        if not self._left:
            self._left = True
            self._admission.held -= not self._waits
