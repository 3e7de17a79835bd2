"""What is due when: run timeouts, schedules and waiting polls.

A heap with lazy deletion. An item's due time lives in the item, not in the heap: a heartbeat moves it by one assignment, and the
heap learns of it when the old entry comes up, and files it again. An item that no longer waits is thrown away then. So
moving a deadline costs O(1), and nothing is late: an entry can only be too early, never too late, because the deadline of an
item only ever grows: that is for the owner to keep.

Entries of items that have long gone (a job completed, its timeout a year away) are swept out once they outnumber the live ones.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

STALE_MIN = 256


class Deadlines(Generic[T]):
    """Items by due time. `due_of` returns when an item is due (whole microseconds), or None once it waits no more."""

    def __init__(self, due_of: Callable[[T], int | None]) -> None:
        self._due_of = due_of
        self.heap: list[
            tuple[int, int, T]
        ] = []  # its first entry is at or before the first due time; for those who look at it all the time
        self._filed = 0  # tie-breaker: items due at the same time come up in the order they were added

    def __len__(self) -> int:
        return len(self.heap)

    def add(self, due: int, item: T) -> None:
        """File an item. One that is filed already may be filed again: that costs its place in the heap, nothing else."""
        self._filed += 1
        heappush(self.heap, (due, self._filed, item))

    def first(self) -> int | None:
        """Return a time at or before the first due time, or None where nothing waits."""
        return self.heap[0][0] if self.heap else None

    def pop_due(self, now: int, most: int) -> list[tuple[T, bool]]:
        """Remove and return up to `most` items that have come up by `now`, in order, each with whether it is really due (False: it waits no more)."""
        found: dict[T, bool] = {}
        heap = self.heap
        while heap and heap[0][0] <= now and len(found) < most:
            _, filed, item = heappop(heap)
            due = self._due_of(item)
            if due is not None and due > now:
                heappush(heap, (due, filed, item))
            else:
                found[item] = due is not None
        return list(found.items())

    def sweep(self, live: int) -> list[T]:
        """Throw stale entries away if they outnumber the `live` ones, and return their items."""
        if len(self.heap) - live <= max(STALE_MIN, live):
            return []
        stale = [item for _, _, item in self.heap if self._due_of(item) is None]
        self.heap = list({item: (due, filed, item) for due, filed, item in self.heap if self._due_of(item) is not None}.values())
        heapify(self.heap)
        return stale
