"""What comes by itself: schedules that are due, runs that time out, polls that end, dead letters that are dropped.

`Shard.advance` calls these when the clocks say so. Like all that changes a job, each change goes through the ledger.
"""

from __future__ import annotations

from proteus_shards.core.commands import Delivered
from proteus_shards.core.holdings import Holdings
from proteus_shards.core.ledger import Note, footprint, image_of
from proteus_shards.core.model import SECOND_US, Job
from proteus_shards.core.queue import TRANSITIONS, Queue, Verb

DUE_MAX = 4096  # timeouts and schedules handled by one advance; the rest come with the next, right away
PUT_OFF_US = SECOND_US  # how long a timeout is put off that can't be written while the store is away
DELIVERING_US = 10_000  # how long one is that came up while its delivery still waits for its commit


class Alarms(Holdings):
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
            self._make_room(job)
            image = image_of(job)
            job.run_id = None
            job.updated_at = self._clock
            last = 0 <= job.max_retries < job.attempt
            if last:
                job.reason = "timeout"
            queue.place(job, TRANSITIONS[Verb.DIE if last else Verb.EXPIRE][job.status])
            if last:
                self._arm(queue, job)
            note = Note("died" if last else "timeout", job.queue, job.id, job.attempt, job.persist)
            self._settle(queue, None, note, job, image, write=job.persist)
            queues[queue] = None
        for queue in queues:
            self._match(queue)
            self._drop_surplus(queue, DUE_MAX)
            self._forget_if_empty(queue)

    def _end_polls(self) -> None:
        for waiter, due in self._polls.pop_due(self._now, DUE_MAX):
            if due:
                self.cancel(waiter.key)
                self._answer(self.queues.get(waiter.queue.name), waiter.key, Delivered([]))

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

    def _drop_surplus(self, queue: Queue, most: int) -> None:
        """Drop up to so many of the oldest dead letters that are too many."""
        while most > 0 and len(queue.dead) > self.dead_letters_max(queue):
            oldest = next(iter(queue.dead.values()))
            if self.away and oldest.persist:
                break
            most -= 1
            self._drop(queue, oldest)
        if len(queue.dead) > self.dead_letters_max(queue):
            self._file_dead(queue)  # for later

    def _drop(self, queue: Queue, job: Job) -> None:
        self._make_room(job)
        image = image_of(job)
        self._weigh(queue, -footprint(job))
        queue.place(job, TRANSITIONS[Verb.DROP][job.status])
        self._settle(queue, None, Note("dropped", job.queue, job.id, job.attempt, job.persist), job, image, write=job.persist)
