"""How many requests a front works on at once outside the fast lane: beyond `quart_requests_max` the next is refused as soon as its head is read.

There a request is a task, and a thousand that come together would all be served together: each as slowly as all of them, and none refused. So each takes a
**place**, from its head to the end of its answer, and what cannot have one is told to come again.

**A place is for work, and not for waiting.** What has waited for longer than `WAIT_SECONDS` for a body, for its shard, or for its client to take the answer, loses its place
meanwhile; a poll at once. Else a few connections that send or read slowly, or one shard that stands still, would keep everyone out. Shorter waits count: to
leave the place for each would let in several times as many as there are places. Who has waited takes it up again whatever others hold: work that has begun is not
thrown away, and while there are too many of them nobody new comes in. Who waits is looked up only when there is no place left, and not each time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio

WAIT_SECONDS = 0.05


class Admission:
    """The places of one front."""

    def __init__(self, requests_max: int) -> None:
        self.requests_max = requests_max
        self.held = 0
        self._places: set[Place] = set()
        self._looked_at = 0.0

    def place(self) -> Place | None:
        """Return a place, or None where none is free."""
        if self.held >= self.requests_max:
            self._look()
            if self.held >= self.requests_max:
                return None
        place = Place(self)
        self._places.add(place)
        self.held += 1
        return place

    def end(self, place: Place) -> None:
        """Take a place back for good."""
        self._places.discard(place)

    def _look(self) -> None:
        now = trio.current_time()
        if now - self._looked_at >= WAIT_SECONDS:
            self._looked_at = now
            for place in self._places:
                if place.waits_since <= now - WAIT_SECONDS:
                    place.suspend()


class Place:
    """That of one request, until `leave`. Several of its tasks may wait at a time."""

    __slots__ = ("_admission", "_left", "_suspended", "_waits", "waits_since")

    def __init__(self, admission: Admission) -> None:
        self.waits_since = float("inf")  # when the first of the waits began that are not over
        self._admission = admission
        self._waits = 0
        self._suspended = False
        self._left = False

    @contextmanager
    def waiting(self, *, long: bool = False) -> Iterator[None]:
        """Wait for someone else. `long`: surely for so long that the place is left at once."""
        self.wait()
        if long:
            self.suspend()
        try:
            yield
        finally:
            self._waits -= 1
            if not self._waits:
                self.waits_since = float("inf")
                if self._suspended and not self._left:
                    self._admission.held += 1
                self._suspended = False

    def wait(self) -> None:
        """Begin a wait, which without `waiting` lasts until the end."""
        self._waits += 1
        if self._waits == 1:
            self.waits_since = trio.current_time()

    def suspend(self) -> None:
        """Do without the place until the waits are over."""
        if not (self._suspended or self._left):
            self._suspended = True
            self._admission.held -= 1

    def leave(self) -> None:
        """Give the place back for good. May be called more than once."""
        self.suspend()
        self._left = True
        self._admission.end(self)
