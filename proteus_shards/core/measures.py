"""What the core counts, and how its queues are looked over for the deepest and the oldest.

Counting on the hot path is integer addition and nothing else. A histogram is a list of counts with the sum at its end; where a value belongs is a
binary search among a few bounds, done in C. What is counted is what was *told*: an operation that was undone, because its commit failed, was none.

Age, not depth, says that a queue stands still. The oldest ready job of a queue is its head, so its age costs nothing to keep; but to
know the oldest of all, each queue must be looked at. A `Survey` does that some queues at a time, so that a million of them hold up nobody.
"""

from __future__ import annotations

from bisect import bisect_left
from heapq import heappush, heapreplace
from typing import TYPE_CHECKING

import msgspec

from proteus_shards.core.commands import Done, QueueMeasure
from proteus_shards.core.model import SECOND_US, Status

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from proteus_shards.core.queue import Queue

ENQUEUED, HEARTBEATEN, COMPLETED, UNDELIVERED, RELEASED, FAILED = (
    Done(),
    Done(),
    Done(),
    Done(),
    Done(),
    Done(),
)  # one and the same to all but the counters, which tell them by identity

START_BOUNDS_US = (1_000, 5_000, 25_000, 100_000, 500_000, 2_500_000, 10_000_000, 60_000_000, 600_000_000, 3_600_000_000)
RUN_BOUNDS_US = (1_000, 10_000, 100_000, 500_000, 2_500_000, 10_000_000, 60_000_000, 300_000_000, 1_800_000_000, 7_200_000_000)


def empty(bounds: Sequence[int]) -> list[int]:
    """Return a histogram with nothing in it: a count for each bound, one for what is above them, and the sum."""
    return [0] * (len(bounds) + 2)


def note(histogram: list[int], bounds: Sequence[int], value: int) -> None:
    """Count a value that is at least 0."""
    histogram[bisect_left(bounds, value)] += 1
    histogram[-1] += value


class Counters(msgspec.Struct):
    """What has happened since the shard was made. An operation counts once it is answered: what was undone does not."""

    timeouts: int = 0
    failed: int = 0  # runs that were ended by `fail`
    released: int = 0
    retried: int = 0  # runs that timed out or failed, with retries left
    expired: int = 0  # jobs that waited for longer than their ttl
    died: int = 0
    dead_dropped: int = 0
    purged: int = 0
    redriven: int = 0
    fired: int = 0  # schedules that made a job
    missed: int = 0  # times of schedules at which they made none
    enqueued: int = 0
    delivered: int = 0
    undelivered: int = 0
    heartbeats: int = 0
    completed: int = 0
    started_us: list[int] = msgspec.field(default_factory=lambda: empty(START_BOUNDS_US))  # from when it could start to its first delivery
    ran_us: list[int] = msgspec.field(default_factory=lambda: empty(RUN_BOUNDS_US))  # from delivery to completion


class Survey:
    """Looks over all queues, a few at each `look`, for the `queues_max` deepest and the oldest ready job.

    `shown` are the names that the last survey found: they are preferred among queues of equal depth, and shown with zeros where they are gone
    and there is room. So the series of a queue that is empty now and then does not come and go.
    """

    def __init__(self, queues: Mapping[str, Queue], waited_us: Callable[[Queue], int], queues_max: int, shown: Mapping[str, None]) -> None:
        self.oldest_us = 0
        self._queues = queues
        self._waited_us = waited_us
        self._queues_max = queues_max
        self._shown = shown
        self._left = list(queues)
        self._deepest: list[tuple[int, bool, int, QueueMeasure]] = []  # a heap, the shallowest first

    def look(self, count: int) -> bool:
        """Look at the next `count` queues, and say whether any are left."""
        for _ in range(min(count, len(self._left))):
            name = self._left.pop()
            queue = self._queues.get(name)
            if queue is None:
                continue
            waited_us = self._waited_us(queue)
            self.oldest_us = max(waited_us, self.oldest_us)
            _, scheduled, ready, in_flight, dead = queue.counts
            rank = (scheduled + ready + in_flight, name in self._shown, len(self._left))
            if len(self._deepest) >= self._queues_max and (not self._deepest or rank < self._deepest[0][:3]):
                continue
            measure = QueueMeasure(name, scheduled, ready, in_flight, dead, waited_us, queue.blocked, queue.settings.paused)
            if len(self._deepest) >= self._queues_max:
                heapreplace(self._deepest, (*rank, measure))
            else:
                heappush(self._deepest, (*rank, measure))
        return bool(self._left)

    def deepest(self) -> list[QueueMeasure]:
        """Return what was found, the deepest first, and then those of the last survey that are gone."""
        found = [measure for *_, measure in sorted(self._deepest, key=lambda entry: entry[:3], reverse=True)]
        names = {measure.queue for measure in found}
        gone = [name for name in self._shown if name not in names and name not in self._queues]
        return found + [QueueMeasure(name, 0, 0, 0, 0, 0) for name in gone[: self._queues_max - len(found)]]


def seconds(histogram: Sequence[int]) -> list[float]:
    """Return a histogram of microseconds as one of seconds: only its sum changes, its bounds are told elsewhere."""
    return [*histogram[:-1], histogram[-1] / SECOND_US]


STATES = {"scheduled": Status.SCHEDULED, "waiting": Status.READY, "in_flight": Status.IN_FLIGHT, "dead": Status.DEAD}
