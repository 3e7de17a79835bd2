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
of the two heaps of its lane (`Job.filed`). Filing and showing cost O(log n) of the jobs of that one key.

An entry of a job that is gone (completed or purged while an older one waits, say) stays behind the front, with its payload. A heap is swept once it has
more of those than jobs of the key are live, and more than `STALE_MIN`: so memory follows the jobs that are live.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

from proteus_shards.core.model import Job, Status

if TYPE_CHECKING:
    from collections.abc import Callable

    from proteus_shards.core.queue_settings import QueueSettings

STALE_MIN = 64  # fewer stale entries than this are never worth a sweep

_IN_HELD, _IN_WAITING = 1, 2  # bits of `Job.filed`
_LIVE = tuple(status not in {Status.GONE, Status.DEAD} for status in Status)


def key_of(job: Job) -> str | None:
    """Return the ordering key of a job, or None."""
    return job.extras.key if job.extras is not None else None


def came_back(job: Job) -> bool:
    """Say whether a job that waits has been given out before, or was put off."""
    return job.attempt > 0 or (job.extras is not None and job.extras.not_before is not None)


class Lane:
    """The jobs of one key."""

    __slots__ = ("held", "live", "running", "shown", "waiting")

    def __init__(self) -> None:
        self.held: list[
            tuple[int, int, int, Job]
        ] = []  # of those that came back; with id(job), as two jobs may have one place after a doubt
        self.waiting: list[tuple[int, int, int, Job]] = []
        self.running: list[Job] = []  # in flight: one, but for what an unknown outcome may bring
        self.shown: Job | None = None
        self.live = 0  # jobs of the key that are neither gone nor dead, whether they belong here now or not


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
        if _LIVE[status]:
            lane.live += not _LIVE[was]
        elif _LIVE[was]:
            lane.live -= 1
            self._sweep(lane)
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

    def _sweep(self, lane: Lane) -> None:
        most = lane.live + max(STALE_MIN, lane.live)
        if len(lane.held) > most:
            lane.held = _swept(lane.held, self._is_held, _IN_HELD)
        if len(lane.waiting) > most:
            lane.waiting = _swept(lane.waiting, self._is_waiting, _IN_WAITING)

    def _entry(self, job: Job) -> tuple[int, int, int, Job]:
        return (0 if self._strict else job.ready_at, job.seq, id(job), job)

    def _is_held(self, job: Job) -> bool:
        return self._holds and (job.status is Status.READY or job.status is Status.SCHEDULED) and came_back(job)

    def _is_waiting(self, job: Job) -> bool:
        return job.status is Status.READY or (self._strict and job.status is Status.SCHEDULED and not came_back(job))


def _swept(heap: list[tuple[int, int, int, Job]], belongs: Callable[[Job], bool], bit: int) -> list[tuple[int, int, int, Job]]:
    """Return a heap without the entries that no longer count."""
    kept = []
    for entry in heap:
        if belongs(entry[3]):
            kept.append(entry)
        else:
            entry[3].filed &= ~bit
    heapify(kept)
    return kept
