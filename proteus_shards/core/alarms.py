"""What comes by itself: schedules that are due, runs that time out, jobs whose ttl is over, tokens, polls that end, dead letters that are dropped.

`Shard.advance` calls these when the clocks say so. Like all that changes a job, each change goes through the ledger.
"""

from __future__ import annotations

from proteus_shards.core.deliveries import DUE_MAX
from proteus_shards.core.model import SECOND_US
from proteus_shards.core.queue import TRANSITIONS, Queue, Verb
from proteus_shards.core.runs import Runs

PUT_OFF_US = SECOND_US  # how long a timeout is put off that can't be written while the store is away
DELIVERING_US = 10_000  # how long one is that came up while its delivery still waits for its commit


class Alarms(Runs):
    """The queues of one shard, and what happens in them without a command."""

    def _promote(self) -> None:
        queues: dict[Queue, None] = {}
        for job, due in self._schedule.pop_due(self._wall, DUE_MAX):
            if due:
                queue = self.queues[job.queue]
                queue.place(job, TRANSITIONS[Verb.DUE][job.status])
                queues[queue] = None
        for queue in queues:
            self._match(queue)

    def _expire(self) -> None:
        queues: dict[Queue, None] = {}
        found = self._deadlines.pop_due(self._now, DUE_MAX)
        for job, _ in found:
            job.timed = False
        for job in sorted((job for job, due in found if due), key=lambda job: (job.deadline, job.seq)):
            queue = self.queues[job.queue]
            if job.delivering or (self.away and job.persist):
                job.deadline = self._now + (DELIVERING_US if job.delivering else PUT_OFF_US)
                self._arm(queue, job)
                continue
            self._end_badly(queue, job, "timeout")
            queues[queue] = None
        for queue in queues:
            self._match(queue)
            self._drop_surplus(queue, DUE_MAX)
            self._forget_if_empty(queue)

    def _lapse_due(self) -> None:
        queues: dict[Queue, None] = {}
        for job, due in self._expiries.pop_due(self._wall, DUE_MAX):
            if due and self.away and job.persist:
                self._expiries.add(self._wall + PUT_OFF_US, job)
            elif due:
                queue = self.queues[job.queue]
                self._lapse(queue, job)
                queues[queue] = None
        for queue in queues:
            self._match(queue)
            self._forget_if_empty(queue)

    def _refill(self) -> None:
        for queue, due in self._refills.pop_due(self._now, DUE_MAX):
            if due:
                self._match(queue)

    def _end_polls(self) -> None:
        for waiter, due in self._polls.pop_due(self._now, DUE_MAX):
            if due:
                self.end_wait(waiter.key)

    def _drop_old(self) -> None:
        left = DUE_MAX
        for queue, _ in self._graves.pop_due(self._clock, DUE_MAX):
            while left > 0 and (until := self._dead_until(queue)) is not None and until <= self._clock:
                left -= 1
                self._drop(queue, next(iter(queue.dead.values())))
            if queue.dead:
                self._file_dead(queue)
            else:
                self._aging.pop(queue, None)
                self._forget_if_empty(queue)
