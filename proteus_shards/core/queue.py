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

   Jobs with a priority have heaps of their own, one before (`_above`) and one behind (`_below`) those without.

4. Neither structure is searched. A job that leaves by another door (completed while it waits, say) leaves its entry behind, and
   an entry counts only while its job is READY. Since the key of a job never changes, an entry that comes to life again is
   still in the right place; two entries of one job do no harm, for the first delivery makes the other one stale. Stale
   entries are swept out once they outnumber the live ones, so memory follows the number of jobs that wait.

5. Jobs with an ordering key stand in line one for each key (see `core.keys`); the others are READY, too, but *blocked*, and in no line. An
   entry of a job that was blocked meanwhile does not count either. Whether a job is blocked follows from the jobs of its key: it is no status, is not
   stored, and needs no undoing.

6. Cost: enqueue, deliver, heartbeat and complete are O(1) (O(log r) where r jobs have returned, have a priority, or are of one key), whatever the
   number of jobs that wait, are blocked, scheduled, in flight or dead.

7. A queue may be *limited*: paused, or bounded in what is in flight or in its rate. How many jobs it may hand out now is `allowance`. The rate is a bucket of
   tokens, kept as the time at which it will be full again (in units of a microsecond / `rate.jobs`, so that no division loses anything). A token that was
   spent on a delivery stays spent, whatever becomes of that: the limit is never exceeded, and a bucket begins full. A queue's first bucket, that is: another
   rate takes over the share that is spent, and a rate that was taken away goes on being refilled until there is one again (or the queue is forgotten).
"""

from __future__ import annotations

import sys
from collections import OrderedDict, deque
from enum import StrEnum
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, TypeVar

from proteus_shards.core.keys import Keys, Lane, key_of
from proteus_shards.core.ledger import footprint
from proteus_shards.core.model import SECOND_US, Job, Status
from proteus_shards.core.queue_settings import DEFAULT_SETTINGS

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

    from proteus_shards.core.queue_settings import QueueSettings, RateSettings

GONE, SCHEDULED, READY, IN_FLIGHT, DEAD = Status
_LIVE = tuple(status in {SCHEDULED, READY, IN_FLIGHT} for status in Status)
STALE_MIN = 64  # fewer stale entries than this are never worth a sweep
UNLIMITED = sys.maxsize

E = TypeVar("E", bound=tuple[object, ...])


class Verb(StrEnum):
    """What happens to a job."""

    ENQUEUE = "enqueue"
    SCHEDULE = "enqueue with run_at"
    DUE = "run_at reached"
    DELIVER = "next"
    HEARTBEAT = "heartbeat"
    COMPLETE = "complete"
    EXPIRE = "timeout, retries left"
    FAIL = "fail, retries left"
    RELEASE = "release"
    BACK_OFF = "timeout, fail or release, with a delay"
    DIE = "timeout or fail, no retries left"
    LAPSE = "ttl is over"
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
    Verb.FAIL: {IN_FLIGHT: READY},
    Verb.RELEASE: {IN_FLIGHT: READY},
    Verb.BACK_OFF: {IN_FLIGHT: SCHEDULED},
    Verb.DIE: {IN_FLIGHT: DEAD},
    Verb.LAPSE: {SCHEDULED: DEAD, READY: DEAD},
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

    __slots__ = (
        "_above", "_below", "_fresh", "_full_at", "_keys", "_rate", "_returned", "blocked", "bytes", "counts", "dead", "dead_bytes", "jobs", "limited", "name", "pending",
        "refill_at", "settings", "slot", "totals", "waiters",
    )  # fmt: skip

    def __init__(self, name: str, slot: int, totals: list[int]) -> None:
        self.name = name
        self.slot = slot
        self.totals = totals
        self.counts = [0] * len(Status)
        self.blocked = 0  # how many of the READY ones another job of their key is in the way of
        self.bytes = 0  # payloads and states of all its jobs, dead ones too
        self.dead_bytes = 0  # of the dead ones alone
        self.jobs: dict[str, Job] = {}  # live (neither gone nor dead) by id
        self.dead: OrderedDict[int, Job] = OrderedDict()  # by seq, oldest death first
        self.waiters: OrderedDict[Hashable, Waiter] = OrderedDict()  # first come, first served
        self.pending = 0  # operations whose answer waits for a commit
        self.settings = DEFAULT_SETTINGS
        self.limited = False  # whether `allowance` has anything to say
        self.refill_at: int | None = None  # monotonic: when polls that wait for a token are to be served
        self._full_at = 0
        self._rate: RateSettings | None = None  # the last one, whose bucket `_full_at` is of
        self._keys: Keys | None = None  # of jobs with ordering keys, once there was one
        self._fresh: deque[Job] = deque()
        self._returned: list[tuple[int, int, int, Job]] = []  # with id(job): after a doubt two jobs may have one key, one of them gone
        self._above: list[tuple[int, int, int, int, Job]] = []  # of those with a priority above 0; with -priority first
        self._below: list[tuple[int, int, int, int, Job]] = []

    @property
    def empty(self) -> bool:
        """Whether nothing would be lost if this queue were forgotten."""
        return not (self.jobs or self.dead or self.waiters or self.pending) and self.settings is DEFAULT_SETTINGS

    # --- places ------------------------------------------------------------------------------------------------

    def place(self, job: Job, status: Status) -> None:
        """Take a job from where it stands and put it where `status` says. Legality is the caller's business."""
        was = job.status
        if was is status:
            if job.extras is not None:
                self._place_keyed(job, was)  # it may have been given out meanwhile, and that counts in its key
            return
        counts, totals = self.counts, self.totals
        if was is not GONE:
            counts[was] -= 1
            totals[was] -= 1
        if status is not GONE:
            counts[status] += 1
            totals[status] += 1
        was_live, is_live = _LIVE[was], _LIVE[status]
        if was is DEAD:
            del self.dead[job.seq]
            self.dead_bytes -= footprint(job)
        elif was_live and not is_live:
            del self.jobs[job.id]
        if status is DEAD:
            self.dead[job.seq] = job
            self.dead_bytes += footprint(job)
        elif is_live and not was_live:
            assert job.id not in self.jobs, "two live jobs of one id"
            self.jobs[job.id] = job
        job.status = status
        if job.extras is not None and self._place_keyed(job, was):
            pass
        elif status is READY:
            self._line_up(job)
        if was is READY and (
            self._above or self._below or len(self._fresh) + len(self._returned) - counts[READY] + self.blocked > STALE_MIN
        ):
            self._sweep()

    def head(self) -> Job | None:
        """Return the job that is next: of the highest priority, and among those the one with the smallest order key. None: no job may run."""
        if self._above and (job := _first(self._above)) is not None:
            return job
        fresh, returned = self._fresh, self._returned
        while fresh and (fresh[0].status is not READY or fresh[0].blocked):
            fresh.popleft()
        while returned and (returned[0][3].status is not READY or returned[0][3].blocked):
            heappop(returned)[3].returned = False
        if not returned:
            if fresh:
                return fresh[0]
            return _first(self._below) if self._below else None
        ready_at, seq, _, job = returned[0]
        if fresh and (fresh[0].ready_at, fresh[0].seq) < (ready_at, seq):
            return fresh[0]
        return job

    def oldest(self) -> int | None:
        """Return since when the oldest ready job could have run, or None. Of those with priorities, only the next above and below 0 are looked at."""
        head = self.head()
        if head is None or not (self._above or self._below):
            return head.ready_at if head is not None else None
        plain = [self._fresh[0].ready_at] if self._fresh else []
        plain += [self._returned[0][0]] if self._returned else []
        ranked = [job.ready_at for job in (_first(self._above), _first(self._below)) if job is not None]
        return min([head.ready_at, *plain, *ranked])

    def ready(self) -> Iterator[Job]:
        """Yield the jobs in line, in order. For views and tests: it costs as much as there are jobs."""
        found = {id(job): job for job in self._fresh}
        for heap in (self._returned, self._above, self._below):
            found.update((id(entry[-1]), entry[-1]) for entry in heap)
        yield from sorted((job for job in found.values() if job.status is READY and not job.blocked), key=place_of)

    def obstacle(self, job: Job) -> Job | None:
        """Return the job of its key that a blocked job waits for."""
        key = key_of(job)
        lane = self._keys.lanes.get(key) if self._keys is not None and key is not None else None
        if lane is None or not job.blocked or self._keys is None:
            return None
        return lane.running[0] if lane.running else self._keys.front(lane)

    # --- settings ----------------------------------------------------------------------------------------------

    def settle(self, before: QueueSettings, now: int) -> None:
        """Follow the settings, which were `before`. `now` is monotonic."""
        settings = self.settings
        if settings == DEFAULT_SETTINGS:
            settings = self.settings = DEFAULT_SETTINGS
        self.limited = settings.paused or settings.max_in_flight is not None or settings.rate is not None
        if settings.rate is not None and settings.rate != before.rate:
            self._change_bucket(settings.rate, now)
        if self._keys is not None and (settings.on_retry, settings.delayed_head) != (before.on_retry, before.delayed_head):
            self._rebuild_keys()

    def allowance(self, now: int) -> int:
        """Return how many jobs a limited queue may hand out at once."""
        settings = self.settings
        if settings.paused:
            return 0
        allowed = UNLIMITED
        if settings.max_in_flight is not None:
            allowed = max(0, settings.max_in_flight - self.counts[IN_FLIGHT])
        if settings.rate is not None:
            room, token = self._bucket(settings.rate, now)
            allowed = min(allowed, max(0, room // token))
        return allowed

    def token_at(self, now: int) -> int | None:
        """Return the monotonic time at which the bucket has a token, where it has none."""
        if (rate := self.settings.rate) is None:
            return None
        room, token = self._bucket(rate, now)
        return now - (room - token) // rate.jobs if room < token else None

    def spend(self, jobs: int, now: int) -> None:
        """Take the tokens of jobs that are handed out."""
        if (rate := self.settings.rate) is not None:
            self._full_at = max(self._full_at, now * rate.jobs) + jobs * _token(rate)

    def spent(self, now: int) -> tuple[RateSettings | None, int]:
        """Return what is missing in the bucket, in its own units, and of which rate it is. None: it is full."""
        missing = self._full_at - now * self._rate.jobs if self._rate is not None else 0
        return (self._rate, missing) if missing > 0 else (None, 0)

    def take_over(self, rate: RateSettings, missing: int, now: int) -> None:
        """Go on with the bucket of another process, of which so much is missing."""
        if self.settings.rate in (None, rate):
            self._rate = rate
            self._full_at = now * rate.jobs + max(0, min(missing, _capacity(rate)))

    def _change_bucket(self, rate: RateSettings, now: int) -> None:
        """Go on with another rate, of whose bucket the same share is spent; in doubt a little more."""
        before, self._rate = self._rate, rate
        spent = 0
        if before is not None:
            spent = -(-max(0, self._full_at - now * before.jobs) * _capacity(rate) // _capacity(before))
        self._full_at = now * rate.jobs + spent

    def _bucket(self, rate: RateSettings, now: int) -> tuple[int, int]:
        """Return what is in the bucket, and what one token is."""
        token = _token(rate)
        return _capacity(rate) - max(0, self._full_at - now * rate.jobs), token

    # --- keys --------------------------------------------------------------------------------------------------

    def _place_keyed(self, job: Job, was: Status) -> bool:
        """Follow a job with an ordering key to where it stands now, and say whether it has one."""
        key = key_of(job)
        if key is None:
            return False
        keys = self._keys
        if keys is None:
            keys = self._keys = Keys(self.settings)
        if was is READY is not job.status and job.blocked:
            job.blocked = False
            self.blocked -= 1
        elif job.status is READY is not was:
            job.blocked = True  # until it is shown
            self.blocked += 1
        self._show(keys, key, keys.file(job, key, was))
        return True

    def _show(self, keys: Keys, key: str, lane: Lane) -> None:
        """Let the front of a lane, and no other job of it, stand in line while it may run."""
        front = keys.front(lane)
        before = lane.shown
        shown = lane.shown = front if front is not None and front.status is READY and not lane.running else None
        if before is not None and before is not shown and before.status is READY and not before.blocked:
            before.blocked = True
            self.blocked += 1
        if shown is not None and shown.blocked:
            shown.blocked = False
            self.blocked -= 1
            self._line_up(shown)
        if not lane.live:
            del keys.lanes[key]

    def _rebuild_keys(self) -> None:
        if self._keys is not None:
            self._keys.clear()
        keys = self._keys = Keys(self.settings)
        for job in self.jobs.values():
            if (key := key_of(job)) is not None:
                if job.status is READY and not job.blocked:
                    job.blocked = True
                    self.blocked += 1
                keys.file(job, key, GONE)
        for key, lane in list(keys.lanes.items()):
            self._show(keys, key, lane)

    # --- the line ----------------------------------------------------------------------------------------------

    def _line_up(self, job: Job) -> None:
        if job.extras is not None and (priority := job.extras.priority):
            if not job.returned:
                job.returned = True
                heappush(self._above if priority > 0 else self._below, (-priority, job.ready_at, job.seq, id(job), job))
            return
        fresh = self._fresh
        if not fresh or (job.ready_at, job.seq) > (fresh[-1].ready_at, fresh[-1].seq):
            fresh.append(job)
        elif not job.returned:
            job.returned = True
            heappush(self._returned, (job.ready_at, job.seq, id(job), job))

    def _sweep(self) -> None:
        lined = self.counts[READY] - self.blocked
        stale = len(self._fresh) + len(self._returned) - lined
        if self._above or self._below:
            stale += len(self._above) + len(self._below)
        if stale <= STALE_MIN or stale <= lined:
            return
        self._fresh = deque(job for job in self._fresh if job.status is READY and not job.blocked)
        self._returned = _swept(self._returned)
        self._above = _swept(self._above)
        self._below = _swept(self._below)


def _token(rate: RateSettings) -> int:
    return int(rate.seconds * SECOND_US) or 1


def _capacity(rate: RateSettings) -> int:
    return (rate.burst or rate.jobs) * _token(rate)


def place_of(job: Job) -> tuple[int, int, int]:
    """Return the place of a job in its queue's line: smaller comes first."""
    return (-job.extras.priority if job.extras is not None else 0, job.ready_at, job.seq)


def _first(heap: list[tuple[int, int, int, int, Job]]) -> Job | None:
    """Return the first job of a heap that is really there, and forget those before it."""
    while heap:
        job = heap[0][4]
        if job.status is READY and not job.blocked:
            return job
        heappop(heap)
        job.returned = False
    return None


def _swept(heap: list[E]) -> list[E]:
    """Return a heap without the entries that no longer count."""
    kept = []
    for entry in heap:
        job = entry[-1]
        assert isinstance(job, Job)
        job.returned = job.status is READY and not job.blocked
        if job.returned:
            kept.append(entry)
    heapify(kept)
    return kept
