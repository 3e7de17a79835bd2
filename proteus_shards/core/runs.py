"""What becomes of a run: heard of, completed, given back, failed, released, timed out.

**How a run that did not complete its job ends.** A timeout and a failure spend a retry: with none left the job dies ("timeout", "failed"), else it goes
back to its place, at once or after a delay. A failure may say its delay; else the job's own backoff counts, then its queue's, then none. A release spends
no retry, and waits only where it says so. In the meantime the job is SCHEDULED with `not_before` in its extras, which also says that it has come back;
its order key is what it was, so it returns to its old place. Whether it holds its ordering key all that time is `core.keys`' business.

**History.** Each timeout and each failure adds an attempt to the job's extras. They change the job's row anyway, so it costs no more writes; nothing else
writes extras. A release leaves none: nothing was tried.

A run that is failed or released before its delivery is out (nobody can name it yet, but a call need not name one) goes on being `delivering`: should the
end of the run be undone when the delivery is released, its time begins then.

A delay counts on the wall clock as it stands, like a run_at: it is stored, and a restart must know what is left of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from proteus_shards.core.commands import Complete, Heartbeat, Reason, Refused, Undeliver
from proteus_shards.core.deliveries import DUE_MAX, Deliveries
from proteus_shards.core.extras import ERROR_LENGTH_MAX, NO_EXTRAS, Attempt, pack_extras, slim, with_attempt
from proteus_shards.core.ledger import Note, footprint, image_of
from proteus_shards.core.measures import COMPLETED, FAILED, HEARTBEATEN, RELEASED, UNDELIVERED
from proteus_shards.core.model import SECOND_US, Job
from proteus_shards.core.queue import IN_FLIGHT, TRANSITIONS, Queue, Verb

if TYPE_CHECKING:
    from proteus_shards.core.commands_control import Fail, Release
    from proteus_shards.core.holdings import Key

_HEARTBEAT = TRANSITIONS[Verb.HEARTBEAT]
_COMPLETE = TRANSITIONS[Verb.COMPLETE]
_UNDELIVER = TRANSITIONS[Verb.UNDELIVER]
_RELEASE = TRANSITIONS[Verb.RELEASE]
_BACK_OFF = TRANSITIONS[Verb.BACK_OFF]
_DIE = TRANSITIONS[Verb.DIE]
_COMES_BACK = {"timeout": TRANSITIONS[Verb.EXPIRE], "failed": TRANSITIONS[Verb.FAIL]}

GROWTH_MAX = 64  # factors that a backoff grows by at most: far beyond its longest, and still a number

AWAY = Refused(Reason.BUSY, "the backing store is away")


class Runs(Deliveries):
    """The queues of one shard, and how runs go on and end."""

    def _heartbeat(self, key: Key | None, command: Heartbeat) -> None:
        queue = self.queues.get(command.queue)
        job = queue.jobs.get(command.id) if queue is not None else None
        if queue is None or job is None or job.status not in _HEARTBEAT or (command.run_id is not None and command.run_id != job.run_id):
            self._answer(queue, key, self._not_found(job, command.run_id))
            return
        state = command.state
        write = job.persist and state is not None
        grown = 0
        if (write and self.away) or (self._doubt and (command.queue, command.id) in self._doubt):
            self._answer(queue, key, AWAY)
            return
        if state is not None:
            size = footprint(job) - len(job.state or b"") + len(state)
            row_size = size + (len(pack_extras(job.extras) or b"") if job.extras is not None else 0)
            maximum = self.limits.row_bytes_max
            if job.persist and maximum is not None and row_size + len(job.queue.encode()) + len(job.id.encode()) > maximum:
                self._answer(
                    queue,
                    key,
                    Refused(Reason.INVALID, f"the store takes jobs of at most {maximum} bytes, names and payload included", "state"),
                )
                return
            grown = size - footprint(job)
            bytes_max = queue.settings.bytes_max
            if grown > 0 and bytes_max is not None and queue.bytes - queue.dead_bytes + grown > bytes_max:
                self._answer(queue, key, Refused(Reason.FULL, f"the queue's limit is {bytes_max} bytes of payload and state (bytes_max)"))
                return
            if grown > 0 and self.bytes + grown > self.limits.shard_bytes_max:
                self._answer(
                    queue,
                    key,
                    Refused(
                        Reason.FULL, f"the shard's limit is {self.limits.shard_bytes_max} bytes of payload and state (shard_bytes_max)"
                    ),
                )
                return
        logged = write or queue.pending > 0
        image = None
        if logged:
            self._make_room(job, len(state or b""))
            image = image_of(job)
        if state is not None:
            self._weigh(queue, grown)
            job.state = state or None
        job.updated_at = self._clock
        self._restart_timeout(job)
        if logged:
            self._settle(queue, key, HEARTBEATEN, job, image, write=write, state_set=write)
        else:
            self._emit(key, HEARTBEATEN)

    def _complete(self, key: Key | None, command: Complete) -> None:
        queue = self.queues.get(command.queue)
        job = queue.jobs.get(command.id) if queue is not None else None
        if queue is None or job is None or job.status not in _COMPLETE or (command.run_id is not None and command.run_id != job.run_id):
            self._answer(queue, key, self._not_found(job, command.run_id))
            return
        if job.persist and self.away:
            self._answer(queue, key, AWAY)
            return
        if self._bounded:
            self._make_room(job)
        image = image_of(job)
        size = len(job.payload) + (len(job.state) if job.state is not None else 0)
        self.bytes -= size
        queue.bytes -= size
        queue.place(job, _COMPLETE[job.status])
        if job.persist or queue.pending:
            self._settle(queue, key, COMPLETED, job, image, write=job.persist)
        else:
            self._emit(key, COMPLETED, job, image)
        if queue.waiters:  # a key may be free now, or a place in flight
            self._match(queue)
        if not queue.jobs:
            self._forget_if_empty(queue)

    def _undeliver(self, key: Key | None, command: Undeliver) -> None:
        queue, job = self._find(command.queue, command.id)
        if queue is None or job is None or job.status not in _UNDELIVER or command.run_id != job.run_id:
            self._answer(queue, key, self._not_found(job, command.run_id))
            return
        if job.persist and self.away:
            self._answer(queue, key, AWAY)
            return
        self._make_room(job)
        image = image_of(job)
        job.attempt -= 1
        job.run_id = None
        job.delivering = 0
        job.updated_at = self._clock
        queue.place(job, _UNDELIVER[job.status])
        self._arm(queue, job)
        self._settle(queue, key, UNDELIVERED, job, image, write=job.persist)
        self._match(queue)

    def _fail(self, key: Key | None, command: Fail) -> None:
        queue, job = self._run_that_ends(key, command)
        if queue is not None and job is not None:
            error = command.error[:ERROR_LENGTH_MAX] if command.error is not None else None
            self._end_badly(queue, job, "failed", key, error, command.delay_us)
            self._match(queue)
            self._drop_surplus(queue, DUE_MAX)
            self._forget_if_empty(queue)

    def _release(self, key: Key | None, command: Release) -> None:
        queue, job = self._run_that_ends(key, command)
        if queue is None or job is None:
            return
        self._make_room(job)
        image = image_of(job)
        extras = job.extras
        not_before = self._wall + command.delay_us if command.delay_us > 0 else None
        changed = not_before is not None or (extras is not None and extras.not_before is not None)
        if changed:
            job.extras = slim(msgspec.structs.replace(extras or NO_EXTRAS, not_before=not_before))
        job.attempt -= 1
        job.run_id = None
        job.updated_at = self._clock
        queue.place(job, (_RELEASE if not_before is None else _BACK_OFF)[job.status])
        self._arm(queue, job)
        self._settle(queue, key, RELEASED, job, image, write=job.persist, extras_set=changed)
        self._match(queue)
        self._forget_if_empty(queue)

    def _run_that_ends(self, key: Key | None, command: Fail | Release) -> tuple[Queue, Job] | tuple[None, None]:
        """Return the run that a command is about, and its queue, or answer that there is none."""
        queue, job = self._find(command.queue, command.id)
        if queue is None or job is None or job.status not in _RELEASE or (command.run_id is not None and command.run_id != job.run_id):
            self._answer(queue, key, self._not_found(job, command.run_id))
        elif job.persist and self.away:
            self._answer(queue, key, AWAY)
        else:
            return queue, job
        return None, None

    def _end_badly(
        self,
        queue: Queue,
        job: Job,
        outcome: Literal["timeout", "failed"],
        key: Key | None = None,
        error: str | None = None,
        delay_us: int | None = None,
    ) -> None:
        """End a run that did not complete its job: back to its place, now or later, or dead."""
        self._make_room(job, 128 + 4 * len(error or ""))
        image = image_of(job)
        last = 0 <= job.max_retries < job.attempt
        if last:
            delay_us = 0
        elif delay_us is None:
            delay_us = self._backoff_us(queue, job)
        not_before = self._wall + delay_us if delay_us > 0 else None
        attempt = Attempt(job.attempt, job.started_at, self._clock, outcome, error)
        job.extras = with_attempt(job.extras, attempt, not_before, self._extras_bytes_max(job))
        job.run_id = None
        job.updated_at = self._clock
        if last:
            job.reason = outcome
            status = _DIE[job.status]
        else:
            status = (_COMES_BACK[outcome] if not_before is None else _BACK_OFF)[job.status]
        queue.place(job, status)
        self._arm(queue, job)
        note = Note("died" if last else outcome, job.queue, job.id, job.attempt, job.persist, reason=outcome if last else None)
        if outcome == "timeout":
            self._settle(queue, None, note, job, image, write=job.persist, extras_set=job.persist)
        else:
            self._settle(queue, key, FAILED, job, image, write=job.persist, extras_set=job.persist)
            self._answer(queue, None, note)

    def _backoff_us(self, queue: Queue, job: Job) -> int:
        """Return how long a job that was just given out in vain waits before it is ready again."""
        own, settings = job.extras.backoff if job.extras is not None else None, queue.settings.backoff
        if own is not None:
            first, factor, longest, jitter = float(own.first_us), own.factor, float(own.max_us), own.jitter
        elif settings is not None:
            first, factor, longest, jitter = (
                settings.seconds * SECOND_US,
                settings.factor,
                settings.seconds_max * SECOND_US,
                settings.jitter,
            )
        else:
            return 0
        wait = min(first * factor ** min(job.attempt - 1, GROWTH_MAX), longest)
        return int(wait - wait * jitter * self._draw()) if jitter else int(wait)

    def _extras_bytes_max(self, job: Job) -> int | None:
        """Return how many bytes of a row are left for a job's extras."""
        if not job.persist or self.limits.row_bytes_max is None:
            return None
        return self.limits.row_bytes_max - footprint(job) - len(job.queue.encode()) - len(job.id.encode())

    def _not_found(self, job: Job | None, run_id: bytes | None) -> Refused:
        """Return why a run is over, and who has the job now."""
        if job is None:
            return Refused(Reason.NOT_FOUND, "no job with this id is in the queue")
        if job.status is not IN_FLIGHT:
            return Refused(Reason.NOT_FOUND, "the job is not in flight")
        if not run_id:
            return Refused(Reason.NOT_FOUND, "the job is in flight under another run_id")
        until = self._wall + job.deadline - self._now
        return Refused(Reason.NOT_FOUND, "the job is in flight under another run_id", "run_id", held_by=job.run_id, held_until=until)
