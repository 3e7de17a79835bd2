"""One queue: the transition table of a job's life, and the order in which jobs are delivered.

Theory of operation
===================

1. Everything that a job may do stands in `TRANSITIONS`: verb → status before → status after. A missing key is an illegal
   move, and what a client reads as 404. The README's picture is drawn from this table. Only `core.shard` moves jobs, and only
   by a verb of the table; undoing a move, and reading rows back from a store, *restore* a status without a verb.

2. A job's place is its order key `(ready_at, seq)`, given at enqueue and kept for life. `ready_at` is the later of run_at and
   the shard's never-decreasing clock, `seq` a counter over the whole shard. So a job that comes back (timed out, not
   delivered, undone) needs no place to be remembered: its key is smaller than that of all that were behind it.

3. Ready jobs wait in two structures, and the head is the smaller of their two heads. `_fresh` is a deque whose keys only grow:
   nearly every job enters and leaves there, at the price of an append and a popleft. `_returned` is a heap for the few whose key
   lies below the end of the deque: returned and scheduled ones.

4. Neither structure is searched. A job that leaves by another door (completed while it waits, say) leaves its entry behind, and
   an entry counts only while its job is READY. Since the key of a job never changes, an entry that comes to life again is
   still in the right place; two entries of one job do no harm, for the first delivery makes the other one stale. Stale
   entries are swept out once they outnumber the live ones, so memory follows the number of jobs that wait.

5. Cost: enqueue, deliver, heartbeat and complete are O(1) (O(log r) where r jobs have returned), whatever the number of jobs that
   wait, are scheduled, in flight or dead.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from enum import StrEnum
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

from proteus_shards.core.model import Job, Status
from proteus_shards.core.queue_settings import DEFAULT_SETTINGS

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

GONE, SCHEDULED, READY, IN_FLIGHT, DEAD = Status
STALE_MIN = 64  # fewer stale entries than this are never worth a sweep


class Verb(StrEnum):
    """What happens to a job."""

    ENQUEUE = "enqueue"
    SCHEDULE = "enqueue with run_at"
    DUE = "run_at reached"
    DELIVER = "next"
    HEARTBEAT = "heartbeat"
    COMPLETE = "complete"
    EXPIRE = "timeout, retries left"
    DIE = "timeout, no retries left"
    UNDELIVER = "not delivered"
    DROP = "dead letter limit"
    PURGE = "delete or purge"
    REDRIVE = "redrive"
    REDRIVE_LATER = "redrive, run_at not reached"


TRANSITIONS: dict[Verb, dict[Status, Status]] = {
    Verb.ENQUEUE: {GONE: READY},
    Verb.SCHEDULE: {GONE: SCHEDULED},
    Verb.DUE: {SCHEDULED: READY},
    Verb.DELIVER: {READY: IN_FLIGHT},
    Verb.HEARTBEAT: {IN_FLIGHT: IN_FLIGHT},
    Verb.COMPLETE: {SCHEDULED: GONE, READY: GONE, IN_FLIGHT: GONE},
    Verb.EXPIRE: {IN_FLIGHT: READY},
    Verb.DIE: {IN_FLIGHT: DEAD},
    Verb.UNDELIVER: {IN_FLIGHT: READY},
    Verb.DROP: {DEAD: GONE},
    Verb.PURGE: {SCHEDULED: GONE, READY: GONE, IN_FLIGHT: GONE, DEAD: GONE},
    Verb.REDRIVE: {DEAD: READY},
    Verb.REDRIVE_LATER: {DEAD: SCHEDULED},
}


class Waiter:
    """A `next` that waits for a job (long poll)."""

    __slots__ = ("count", "key", "queue", "until")

    def __init__(self, key: Hashable, queue: Queue, count: int, until: int) -> None:
        self.key = key  # where the answer goes
        self.queue = queue
        self.count = count
        self.until = until  # monotonic microseconds


class Queue:
    """The jobs of one queue. `totals` counts jobs by status over all queues of the shard, and is shared by them."""

    __slots__ = ("_fresh", "_returned", "bytes", "counts", "dead", "jobs", "name", "pending", "settings", "slot", "totals", "waiters")

    def __init__(self, name: str, slot: int, totals: list[int]) -> None:
        self.name = name
        self.slot = slot
        self.totals = totals
        self.counts = [0] * len(Status)
        self.jobs: dict[str, Job] = {}  # live (neither gone nor dead) by id
        self.dead: OrderedDict[int, Job] = OrderedDict()  # by seq, oldest death first
        self.waiters: OrderedDict[Hashable, Waiter] = OrderedDict()  # first come, first served
        self.bytes = 0  # payloads and states
        self.pending = 0  # operations whose answer waits for a commit
        self.settings = DEFAULT_SETTINGS
        self._fresh: deque[Job] = deque()
        self._returned: list[tuple[int, int, int, Job]] = []  # with id(job): after a doubt two jobs may have one key, one of them gone

    @property
    def empty(self) -> bool:
        """Whether nothing would be lost if this queue were forgotten."""
        return not (self.jobs or self.dead or self.waiters or self.pending) and self.settings is DEFAULT_SETTINGS

    def place(self, job: Job, status: Status) -> None:
        """Take a job from where it stands and put it where `status` says. Legality is the caller's business."""
        was = job.status
        if was is status:
            return
        self._count(was, -1)
        self._count(status, 1)
        was_live, is_live = SCHEDULED <= was <= IN_FLIGHT, SCHEDULED <= status <= IN_FLIGHT
        if was is DEAD:
            del self.dead[job.seq]
        elif was_live and not is_live:
            del self.jobs[job.id]
        if status is DEAD:
            self.dead[job.seq] = job
        elif is_live and not was_live:
            assert job.id not in self.jobs, "two live jobs of one id"
            self.jobs[job.id] = job
        job.status = status
        if status is READY:
            self._line_up(job)
        elif was is READY:
            self._sweep()

    def head(self) -> Job | None:
        """Return the ready job with the smallest order key, or None."""
        fresh, returned = self._fresh, self._returned
        while fresh and fresh[0].status is not READY:
            fresh.popleft()
        while returned and returned[0][3].status is not READY:
            heappop(returned)[3].returned = False
        if not returned:
            return fresh[0] if fresh else None
        ready_at, seq, _, job = returned[0]
        if fresh and (fresh[0].ready_at, fresh[0].seq) < (ready_at, seq):
            return fresh[0]
        return job

    def ready(self) -> Iterator[Job]:
        """Yield the ready jobs in order. For views and tests: it costs as much as there are jobs."""
        entries = {job.seq: job for job in self._fresh if job.status is READY}
        entries.update((job.seq, job) for *_, job in self._returned if job.status is READY)
        yield from sorted(entries.values(), key=lambda job: (job.ready_at, job.seq))

    def _count(self, status: Status, step: int) -> None:
        if status is not GONE:
            self.counts[status] += step
            self.totals[status] += step

    def _line_up(self, job: Job) -> None:
        fresh = self._fresh
        if not fresh or (job.ready_at, job.seq) > (fresh[-1].ready_at, fresh[-1].seq):
            fresh.append(job)
        elif not job.returned:
            job.returned = True
            heappush(self._returned, (job.ready_at, job.seq, id(job), job))

    def _sweep(self) -> None:
        entries = len(self._fresh) + len(self._returned)
        if entries - self.counts[READY] <= max(STALE_MIN, self.counts[READY]):
            return
        self._fresh = deque(job for job in self._fresh if job.status is READY)
        for *_, job in self._returned:
            job.returned = job.status is READY
        self._returned = [entry for entry in self._returned if entry[3].returned]
        heapify(self._returned)
