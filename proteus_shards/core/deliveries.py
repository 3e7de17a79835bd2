"""How jobs are handed out, and why one is not.

A `next` gets what is at the head of its queue, as many as it asks for and the queue's limits let go; with nothing to be had it is parked, and `_match`
serves it as soon as that changes: whatever may bring a job to the head, free a key, or make room under a limit, calls it.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from proteus_shards.core.commands import Delivered, Delivery
from proteus_shards.core.commands_control import State
from proteus_shards.core.holdings import ANSWER_BYTES_MAX, Holdings, Key, answer_bytes, due_at, lapses_at
from proteus_shards.core.keys import came_back
from proteus_shards.core.ledger import Note, footprint, image_of
from proteus_shards.core.queue import DEAD, IN_FLIGHT, READY, SCHEDULED, TRANSITIONS, UNLIMITED, Queue, Verb

if TYPE_CHECKING:
    from collections.abc import Callable

    from proteus_shards.core.holdings import Limits
    from proteus_shards.core.ledger import Image
    from proteus_shards.core.model import Job
    from proteus_shards.core.queue_settings import QueueSettings

DUE_MAX = 4096  # things that come by themselves handled by one advance; the rest come with the next, right away

_DELIVER = TRANSITIONS[Verb.DELIVER]
_LAPSE = TRANSITIONS[Verb.LAPSE]
_STATES = {IN_FLIGHT: State.IN_FLIGHT, DEAD: State.DEAD}


class Deliveries(Holdings):
    """The queues of one shard, and what comes out of them."""

    def __init__(self, limits: Limits, new_run_id: Callable[[], bytes], draw: Callable[[], float] = lambda: 0.0) -> None:
        super().__init__(limits, new_run_id, draw)
        # one delivery is one operation, and should leave room beside it
        self._delivery_bytes_max = min(ANSWER_BYTES_MAX, (limits.batch_bytes_max or sys.maxsize) // 2)

    def _match(self, queue: Queue) -> None:
        """Give the polls of a queue what there is for them."""
        while queue.waiters:
            head = queue.head()
            if head is not None and head.extras is not None:
                head = self._unlapsed(queue, head)
            if head is None or (self.away and head.persist):
                return
            allowed = queue.allowance(self._now) if queue.limited else UNLIMITED
            if not allowed:
                self._await_token(queue)
                return
            key, waiter = queue.waiters.popitem(last=False)
            del self._waiting[key]
            self._hand_out(queue, key, min(waiter.count, allowed))

    def _hand_out(self, queue: Queue, key: Key | None, count: int) -> None:
        taken: list[tuple[Job, Image | None]] = []
        deliveries: list[Delivery] = []
        if self._bounded:
            count = self._bound_delivery(queue, count)
        logged = queue.pending > 0
        size = 0
        while len(taken) < count:
            job = queue.head()
            if job is None or (self.away and job.persist) or (job.extras is not None and taken and self._has_lapsed(job)):
                break
            size += answer_bytes(job)
            if taken and size > self._delivery_bytes_max:
                break
            logged = logged or job.persist
            taken.append((job, image_of(job) if logged or count > 1 else None))  # one that is not logged is never taken back
            job.attempt += 1
            job.run_id = self._new_run_id()
            job.updated_at = job.started_at = self._clock
            self._restart_timeout(job)
            queue.place(job, _DELIVER[job.status])
            if not job.timed:
                self._arm(queue, job)
            deliveries.append(_delivery(job))
        if queue.limited:
            queue.spend(len(taken), self._now)
        outcome = Delivered(deliveries)
        self.answered_bytes += size
        if not logged:
            self._emit(key, outcome)
            return
        for job, image in taken:
            job.delivering = self._ledger.number
            last = job is taken[-1][0]
            if job.persist:
                self._touch(job)
            self._ledger.log(queue, key if last else None, outcome if last else None, job, image)

    def _bound_delivery(self, queue: Queue, count: int) -> int:
        """Make room for a delivery in the ledger, and return how many jobs it may have."""
        count = min(count, self._rows_max)
        head = queue.head()
        if head is not None:
            rows = min(count, queue.counts[READY] - queue.blocked)
            size = answer_bytes(head)
            self._ledger.make_room(rows, size if rows == 1 else max(size, self._delivery_bytes_max))
        return count

    def cancel(self, key: Key) -> None:
        """Forget a waiting `next`, unanswered."""
        if (waiter := self._waiting.pop(key, None)) is not None:
            del waiter.queue.waiters[key]
            self._forget_if_empty(waiter.queue)

    def end_wait(self, key: Key) -> None:
        """Answer a waiting `next` with no job. One that does not wait any more has its answer, or is about to get it."""
        if (waiter := self._waiting.get(key)) is not None:
            self.cancel(key)
            self._answer(self.queues.get(waiter.queue.name), key, Delivered([]))

    def _await_token(self, queue: Queue) -> None:
        """See that polls are served when the rate of their queue lets them."""
        if (at := queue.token_at(self._now)) is not None:
            queue.refill_at = at
            self._refills.add(at, queue)

    # --- ttl ---------------------------------------------------------------------------------------------------

    def _has_lapsed(self, job: Job) -> bool:
        lapses = lapses_at(job)
        return lapses is not None and lapses <= self._wall

    def _unlapsed(self, queue: Queue, head: Job | None) -> Job | None:
        """Return the head of a queue, once those have died whose ttl is over though no alarm has said so yet."""
        while head is not None and self._has_lapsed(head) and not (self.away and head.persist):
            self._lapse(queue, head)
            head = queue.head()
        return head

    def _lapse(self, queue: Queue, job: Job) -> None:
        """Let a job die that has waited for too long."""
        self._make_room(job)
        image = image_of(job)
        job.reason = "expired"
        job.updated_at = self._clock
        queue.place(job, _LAPSE[job.status])
        self._arm(queue, job)
        note = Note("died", job.queue, job.id, job.attempt, job.persist, reason="expired")
        self._settle(queue, None, note, job, image, write=job.persist)
        self._drop_surplus(queue, DUE_MAX)

    # --- dead letters ------------------------------------------------------------------------------------------

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

    # --- settings and views ------------------------------------------------------------------------------------

    def _settings_changed(self, queue: Queue, before: QueueSettings, *, match: bool = True) -> None:
        """Follow the settings of a queue, which were `before`: its limits, the rules of its keys, its dead letters, and polls that may be served now."""
        queue.settle(before, self._now)
        if queue.dead:
            self._file_dead(queue)
        if match:
            self._match(queue)
            self._forget_if_empty(queue)

    def state_of(self, job: Job) -> State:
        """Return the state of a job, as users call it."""
        if job.status is SCHEDULED:
            return State.BACKING_OFF if came_back(job) else State.SCHEDULED
        return _STATES.get(job.status, State.BLOCKED if job.blocked else State.READY)

    def explain(self, queue: Queue, job: Job) -> tuple[list[str], str | None, int | None]:
        """Say why a job does not run: what it waits for, the id of the job of its key that is in the way, and when that is over, where that is known.

        What it waits for: "scheduled", "backing_off", "key", "behind" (others are before it), "paused", "max_in_flight", "rate", "no_runner". The
        time is in microseconds since the Unix epoch.
        """
        waits, blocked_by, due = list[str](), None, None
        state, settings = self.state_of(job), queue.settings
        if state in (State.IN_FLIGHT, State.DEAD):
            return waits, None, None
        if state in (State.SCHEDULED, State.BACKING_OFF):
            waits.append(str(state))
            due = due_at(job)
        elif state is State.BLOCKED:
            waits.append("key")
            obstacle = queue.obstacle(job)
            blocked_by = obstacle.id if obstacle is not None else None
            due = due_at(obstacle) if obstacle is not None and obstacle.status is SCHEDULED else None
        elif queue.head() is not job:
            waits.append("behind")
        if settings.paused:
            waits.append("paused")
        if settings.max_in_flight is not None and queue.counts[IN_FLIGHT] >= settings.max_in_flight:
            waits.append("max_in_flight")
        if (token_at := queue.token_at(self._now)) is not None:
            waits.append("rate")
            due = due if due is not None else self._wall + token_at - self._now
        return waits or ["no_runner"], blocked_by, due


def _delivery(job: Job) -> Delivery:
    assert job.run_id is not None
    return Delivery(
        job.queue,
        job.id,
        job.timeout,
        job.persist,
        job.max_retries,
        job.payload,
        job.state,
        job.run_at,
        job.run_id,
        job.attempt,
        job.created_at,
        job.updated_at,
        job.extras,
    )
