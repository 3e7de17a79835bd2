"""Ordering keys: which job of a key may stand in its queue's line.

How to think about it
=====================

All jobs of one key that wait and are not passed by form its *lane*. Its *front* is the one that must be next. It is *shown*, that is, it stands in
the line of its queue like any other job, while it is READY and no job of the key is in flight. Every other READY job of the key is *blocked*: it is
in no line, and so costs a fetch nothing, however many there are.

Two settings of the queue say what belongs to a lane and how it is ordered:

* `on_retry`: with "hold", a job that has come back (it timed out, failed, was released) comes before all that have not, and holds its key also while
  it backs off. With "skip" a job that backs off is passed; once it is READY again it takes its old place.
* `delayed_head`: with "pass", a job with a run_at is of no account until then, and the order is that of the queue, `(ready_at, seq)`. With "hold",
  the order is that of acceptance (`seq`), and a job whose time has not come holds up those accepted after it.

A priority counts between keys, never inside one: a lane takes no notice of it, and its front stands in the queue's line by its own.

Nothing here is remembered that the jobs do not say themselves (their status, attempt and extras), so that to undo a change, to read a row, and to
change a setting is to file a job again. Heaps have lazy deletion: an entry counts while its job belongs there. A job has at most one entry in each
of the two heaps of its lane (`Job.filed`), so memory follows the jobs. Filing and showing cost O(log n) of the jobs of that one key.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import TYPE_CHECKING

from proteus_shards.core.model import Job, Status

if TYPE_CHECKING:
    from proteus_shards.core.queue_settings import QueueSettings

_IN_HELD, _IN_WAITING = 1, 2  # bits of `Job.filed`


def key_of(job: Job) -> str | None:
    """Return the ordering key of a job, or None."""
    return job.extras.key if job.extras is not None else None


def came_back(job: Job) -> bool:
    """Say whether a job that waits has been given out before, or was put off."""
    return job.attempt > 0 or (job.extras is not None and job.extras.not_before is not None)


class Lane:
    """The jobs of one key."""

    __slots__ = ("held", "running", "shown", "waiting")

    def __init__(self) -> None:
        self.held: list[
            tuple[int, int, int, Job]
        ] = []  # of those that came back; with id(job), as two jobs may have one place after a doubt
        self.waiting: list[tuple[int, int, int, Job]] = []
        self.running: list[Job] = []  # in flight: one, but for what an unknown outcome may bring
        self.shown: Job | None = None


class Keys:
    """The lanes of one queue, under its settings."""

    __slots__ = ("_holds", "_strict", "lanes")

    def __init__(self, settings: QueueSettings) -> None:
        self.lanes: dict[str, Lane] = {}
        self._holds = settings.on_retry == "hold"
        self._strict = settings.delayed_head == "hold"

    def file(self, job: Job, key: str, was: Status) -> Lane:
        """Take note of where a job stands now, and return its lane."""
        lane = self.lanes.get(key)
        if lane is None:
            lane = self.lanes[key] = Lane()
        status = job.status
        if was is Status.IN_FLIGHT is not status:
            lane.running.remove(job)
        elif status is Status.IN_FLIGHT is not was:
            lane.running.append(job)
        if self._is_held(job) and not job.filed & _IN_HELD:
            job.filed |= _IN_HELD
            heappush(lane.held, self._entry(job))
        if self._is_waiting(job) and not job.filed & _IN_WAITING:
            job.filed |= _IN_WAITING
            heappush(lane.waiting, self._entry(job))
        return lane

    def front(self, lane: Lane) -> Job | None:
        """Return the job of a key that must be next, READY or not."""
        held, waiting = lane.held, lane.waiting
        while held:
            job = held[0][3]
            if self._is_held(job):
                return job
            heappop(held)
            job.filed &= ~_IN_HELD
        while waiting:
            job = waiting[0][3]
            if self._is_waiting(job):
                return job
            heappop(waiting)
            job.filed &= ~_IN_WAITING
        return None

    def clear(self) -> None:
        """Take all jobs out of all lanes, those included that are gone and may be brought back by an undo."""
        for lane in self.lanes.values():
            for *_, job in (*lane.held, *lane.waiting):
                job.filed = 0
        self.lanes.clear()

    def _entry(self, job: Job) -> tuple[int, int, int, Job]:
        return (0 if self._strict else job.ready_at, job.seq, id(job), job)

    def _is_held(self, job: Job) -> bool:
        return self._holds and (job.status is Status.READY or job.status is Status.SCHEDULED) and came_back(job)

    def _is_waiting(self, job: Job) -> bool:
        return job.status is Status.READY or (self._strict and job.status is Status.SCHEDULED and not came_back(job))
