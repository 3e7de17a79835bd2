"""What operators do to jobs: purge, redrive dead letters, reschedule, promote, give another priority.

**Bounded.** One command changes at most `CHANGES_MAX` jobs, and no more than one batch of the store holds, atomically; its answer says whether there is
more, and whoever asked goes on. To find the jobs may take several portions (see `control`).

**A redriven dead letter** comes back as itself: with its place in the queue, so before all that was accepted after it and among others in their
original order, with its payload, last state and the history of its attempts. Its retries are all there again, and a deadline for waiting (ttl)
that it had no longer counts. In another queue it is a new job at the end, with all but its place; of a queue of another shard `spans` says how.
One whose id is live again, or promised to a step over several shards, stays dead.

**Another time means another place.** A job that is rescheduled, or promoted, stands where it would if it had been enqueued now, for that
time: it gets a new row in place of the old one, and its ttl counts from its new place. Another priority leaves it where it is among those of that priority, and of its key.
"""

from __future__ import annotations

from heapq import nsmallest
from itertools import chain
from typing import TYPE_CHECKING, Any

import msgspec

from proteus_shards.core.commands import Enqueue, Options, Reason, Refused
from proteus_shards.core.commands_control import Change, Counted, PickDead, Picked, Purge, Redrive, State
from proteus_shards.core.commands_jobs import Moved
from proteus_shards.core.control import AWAY, DONE, NOT_FOUND, Control
from proteus_shards.core.extras import NO_EXTRAS, PRIORITY_MAX
from proteus_shards.core.holdings import Key, answer_bytes
from proteus_shards.core.ledger import Note, footprint, image_of
from proteus_shards.core.model import RECORD_BYTES_MAX, TIME_US_MAX, Job
from proteus_shards.core.queue import DEAD, GONE, IN_FLIGHT, READY, SCHEDULED, TRANSITIONS, Queue, Verb
from proteus_shards.core.views import LOOK_MAX, portions

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from proteus_shards.core.extras import Extras

CHANGES_MAX = 1000  # jobs that one command changes
CHANGED_BYTES_MAX = 4 * 1024 * 1024  # of their payloads and states, where the store bounds its batches

_encode = msgspec.msgpack.Encoder().encode
_WAITING = frozenset({State.SCHEDULED, State.BACKING_OFF, State.READY, State.BLOCKED})


class Upkeep(Control):
    """The queues of one shard, and what operators do to their jobs."""

    _reserved: dict[tuple[str, str], str]  # ids that a step over several shards is about to add; see `spans`

    def _upkeep_handlers(self) -> dict[type, Callable[[Key | None, Any], None]]:
        return {
            Purge: lambda key, command: self._scan(key, self._purge(key, command)),
            Redrive: lambda key, command: self._scan(key, self._redrive(key, command)),
            PickDead: lambda key, command: self._scan(key, self._pick_dead(key, command.redrive)),
            Change: self._change,
        }

    # --- purge -------------------------------------------------------------------------------------------------

    def _purge(self, key: Key | None, command: Purge) -> Iterator[None]:
        queue = self.queues.get(command.queue)
        if queue is None:
            self._emit(key, Counted(0))
            return
        count = min(command.count, CHANGES_MAX)
        states = frozenset(command.states) or _WAITING
        ids = None if command.ids is None else frozenset(command.ids)
        picked: list[Job] = []
        looked = 0
        for portion in self._purgeable(queue, states, ids):
            looked += len(portion)
            if looked > LOOK_MAX:
                looked = 0
                yield
            picked += [job for job in portion if self._is_purged(job, states, ids, command.key)]
            if len(picked) > count:
                break
        picked = [job for job in picked if self._is_purged(job, states, ids, command.key)]
        chosen = self._fitting(picked[:count])
        if self.away and any(job.persist for job in chosen):
            self._answer(queue, key, AWAY)
            return
        self._log_as_one(chosen, queue)
        for job in chosen:
            image = image_of(job)
            self._weigh(queue, -footprint(job))
            queue.place(job, TRANSITIONS[Verb.PURGE][job.status])
            self._settle(queue, None, DONE, job, image, write=job.persist)
        self._note_changed(queue, "purged", len(chosen))
        self._answer(queue, key, Counted(len(chosen), len(chosen) < len(picked)))
        self._match(queue)
        self._forget_if_empty(queue)

    def _purgeable(self, queue: Queue, states: frozenset[str], ids: frozenset[str] | None) -> Iterator[Sequence[Job]]:
        """Yield, in portions, the jobs among which those to be removed are, in order of acceptance; dead ones in order of death."""
        if states - {State.DEAD}:
            if ids is None:
                yield from portions(queue.jobs.values())
            else:
                yield [job for job_id in ids if (job := queue.jobs.get(job_id)) is not None]
        if State.DEAD in states:
            yield from portions(queue.dead.values())

    def _is_purged(self, job: Job, states: frozenset[str], ids: frozenset[str] | None, ordering_key: str | None) -> bool:
        if job.status is GONE or (ids is not None and job.id not in ids):
            return False
        if ordering_key is not None and (job.extras is None or job.extras.key != ordering_key):
            return False
        return self.state_of(job) in states

    # --- redrive -----------------------------------------------------------------------------------------------

    def _redrive(self, key: Key | None, command: Redrive) -> Iterator[None]:
        queue = self.queues.get(command.queue)
        if queue is None:
            self._emit(key, Counted(0))
            return
        count = min(command.count, CHANGES_MAX)
        picked = yield from self._first_dead(queue, command, count + 1)
        target = queue
        if command.to is not None and command.to != command.queue:
            found = self.queues.get(command.to)
            if found is None and len(self.queues) >= self.limits.queues_max:
                self._answer(queue, key, Refused(Reason.FULL, f"the shard holds {self.limits.queues_max} queues, its limit (queues_max)"))
                return
            target = found or self._make_queue(command.to)
        chosen = self._fitting(picked[:count], rows=1 if target is queue else 2)
        done, last = self._bring_back(queue, target, key, chosen)
        if done is None:
            self._forget_if_empty(target)
            return
        if done:
            self._note_changed(queue, "redriven", done)
        self._answer(queue, key, Counted(done, last < len(picked), picked[last - 1].seq if last else command.after))
        self._match(target)
        if target is not queue:
            self._forget_if_empty(target)
            self._forget_if_empty(queue)

    def _first_dead(self, queue: Queue, command: Redrive, count: int) -> Generator[None, None, list[Job]]:
        """Look for the first dead letters, by their order key, that a redrive is about."""
        ids = None if command.ids is None else frozenset(command.ids)
        picked: list[Job] = []
        for number, portion in enumerate(portions(queue.dead.values())):
            if number:
                yield
            fitting = (job for job in portion if _is_redriven(job, command, ids))
            picked = nsmallest(count, chain(picked, fitting), key=lambda job: job.seq)
        return [job for job in picked if _is_redriven(job, command, ids)]

    def _pick_dead(self, key: Key | None, command: Redrive) -> Iterator[None]:
        """Say what a redrive into another shard is to move next: what a record there, and a batch here and there, have room for."""
        queue = self.queues.get(command.queue)
        if queue is None or command.to is None:
            self._emit(key, Picked([], []))
            return
        names = 4 * (len(command.queue) + len(command.to)) + 256
        record_max = record_left = RECORD_BYTES_MAX - names
        batch_max = batch_left = min(self.limits.batch_bytes_max or CHANGED_BYTES_MAX, CHANGED_BYTES_MAX) - names
        count = max(1, min(command.count, CHANGES_MAX, self._rows_max - 1))
        found = yield from self._first_dead(queue, command, count + 1)
        chosen: dict[str, tuple[int, Enqueue]] = {}
        too_large, after, looked = None, command.after, 0
        for letter in found[:count]:
            job = _moved(letter, command.to)
            size, weight = len(_encode(job)), max(answer_bytes(letter), answer_bytes(job))
            if size > record_max or weight > batch_max:
                too_large = too_large or letter.id
            elif letter.id not in chosen:
                record_left -= size
                batch_left -= weight
                if record_left < 0 or batch_left < 0:
                    break
                chosen[letter.id] = (letter.seq, job)
            after = letter.seq
            looked += 1
        self.answered_bytes += sum(answer_bytes(job) for _, job in chosen.values())
        seqs = [seq for seq, _ in chosen.values()]
        self._answer(queue, key, Picked(seqs, [job for _, job in chosen.values()], looked < len(found), after, too_large))

    def _bring_back(self, queue: Queue, target: Queue, key: Key | None, chosen: list[Job]) -> tuple[int | None, int]:
        """Redrive dead letters. Returns how many were, and how many were looked at; None: the first that could be has been refused, and that was answered."""
        done = 0
        self._log_as_one(chosen, queue, target)
        for place, job in enumerate(chosen):
            taken = (target.name, job.id)
            if job.id in target.jobs or taken in self._doubt or taken in self._reserved:
                continue
            refusal = AWAY if job.persist and self.away else self._has_no_room(target)
            if refusal is not None:
                if done:
                    return done, place
                self._answer(queue, key, refusal)
                return None, 0
            if target is queue:
                self._revive(queue, job)
            else:
                self._transplant(queue, target, job)
            done += 1
        return done, len(chosen)

    def _has_no_room(self, queue: Queue) -> Refused | None:
        limits = self.limits
        most = min(limits.queue_jobs_max, queue.settings.jobs_max or limits.queue_jobs_max)
        if len(queue.jobs) >= most:
            return Refused(Reason.FULL, f"the queue holds {most} jobs, its limit (queue_jobs_max, or jobs_max of the queue)")
        if self.totals[SCHEDULED] + self.totals[READY] + self.totals[IN_FLIGHT] >= limits.shard_jobs_max:
            return Refused(Reason.FULL, f"the shard holds {limits.shard_jobs_max} jobs, its limit (shard_jobs_max)")
        return None

    def _revive(self, queue: Queue, job: Job) -> None:
        image = image_of(job)
        job.attempt = 0
        job.reason = None
        job.updated_at = self._clock
        if job.extras is not None:
            job.extras = msgspec.structs.replace(job.extras, expires_at=None, not_before=None)
        scheduled = self._due_status(job.run_at, job.extras, READY) is SCHEDULED
        queue.place(job, TRANSITIONS[Verb.REDRIVE_LATER if scheduled else Verb.REDRIVE][job.status])
        self._arm(queue, job)
        self._settle(queue, None, DONE, job, image, write=job.persist, extras_set=job.extras is not None)

    def _transplant(self, queue: Queue, target: Queue, job: Job) -> None:
        image = image_of(job)
        self._weigh(queue, -footprint(job))
        queue.place(job, TRANSITIONS[Verb.PURGE][job.status])
        self._settle(queue, None, DONE, job, image, write=job.persist)
        extras = job.extras
        if extras is not None:
            extras = msgspec.structs.replace(extras, expires_at=None, not_before=None)
        self._settle_new(target, job, self._clock, None, 0, extras)

    # --- change ------------------------------------------------------------------------------------------------

    def _change(self, key: Key | None, command: Change) -> None:
        queue, job = self._find(command.queue, command.id)
        if queue is None or job is None:
            self._answer(queue, key, NOT_FOUND)
            return
        if job.status is IN_FLIGHT:
            self._answer(queue, key, Refused(Reason.NOT_FOUND, "the job is in flight, and does not wait"))
            return
        if command.priority is not None and not -PRIORITY_MAX <= command.priority <= PRIORITY_MAX:
            rule = f"must be an integer from {-PRIORITY_MAX} to {PRIORITY_MAX}"
            self._answer(queue, key, Refused(Reason.INVALID, f"priority: {rule}", "priority"))
            return
        if command.run_at_us is not None and command.run_at_us > TIME_US_MAX:
            self._answer(queue, key, Refused(Reason.INVALID, "run_at: must be in the years 1 to 9999", "run_at"))
            return
        if (job.persist and self.away) or (command.queue, command.id) in self._doubt:
            self._answer(queue, key, AWAY)
            return
        extras = job.extras
        if command.priority is not None and command.priority != (extras or NO_EXTRAS).priority:
            extras = msgspec.structs.replace(extras or NO_EXTRAS, priority=command.priority)
        ready_at, run_at = job.ready_at, job.run_at
        if command.run_at_us is not None:
            run_at = command.run_at_us or None
            ready_at = max(self._clock, command.run_at_us)
            if extras is not None:
                expires_at = extras.expires_at
                if expires_at is not None:
                    expires_at = min(expires_at + ready_at - job.ready_at, TIME_US_MAX)
                extras = msgspec.structs.replace(extras, not_before=None, expires_at=expires_at)
        if extras is job.extras and command.run_at_us is None:
            self._answer(queue, key, DONE)
            return
        if command.run_at_us is None:
            self._reprioritize(queue, key, job, extras)
            return
        if self._bounded and job.persist:
            self._ledger.make_room(2, 2 * answer_bytes(job) + 64)
        image = image_of(job)
        self._weigh(queue, -footprint(job))
        queue.place(job, TRANSITIONS[Verb.PURGE][job.status])
        self._settle(queue, None, DONE, job, image, write=job.persist)
        self._settle_new(queue, job, ready_at, run_at, job.attempt, extras)
        self._answer(queue, key, DONE)
        self._match(queue)

    def _reprioritize(self, queue: Queue, key: Key | None, job: Job, extras: Extras | None) -> None:
        """Put another job in place of one, with the same row and order key: in no line may the priority of a job change."""
        self._make_room(job, 64)
        image = image_of(job)
        status = job.status
        changed: dict[str, Any] = {"status": GONE, "returned": False, "timed": False, "blocked": False, "filed": 0}
        new = msgspec.structs.replace(job, extras=extras, updated_at=self._clock, **changed)
        queue.place(job, GONE)
        queue.place(new, status)
        self._arm(queue, new)
        if job.persist:
            self._ledger.succeed(job, new)
            self._touch(new, extras_set=True)
        if job.persist or queue.pending:
            self._ledger.log(queue, None, None, job, image)
            self._ledger.log(queue, key, DONE, new, None)
        else:
            self._emit(key, DONE)
        self._match(queue)

    # --- parts -------------------------------------------------------------------------------------------------

    def _settle_new(self, queue: Queue, job: Job, ready_at: int, run_at: int | None, attempt: int, extras: Extras | None) -> None:
        """Put a new job in place of one that is gone, with all that it had but what is given."""
        self._seq += 1
        new = Job(
            queue=queue.name,
            id=job.id,
            seq=self._seq,
            ready_at=ready_at,
            run_at=run_at,
            timeout=job.timeout,
            persist=job.persist,
            max_retries=job.max_retries,
            payload=job.payload,
            state=job.state,
            created_at=job.created_at,
            updated_at=self._clock,
            attempt=attempt,
            extras=extras,
        )
        self._weigh(queue, footprint(new))
        scheduled = self._due_status(run_at, extras, READY) is SCHEDULED
        queue.place(new, TRANSITIONS[Verb.SCHEDULE if scheduled else Verb.ENQUEUE][GONE])
        self._arm(queue, new)
        self._settle(queue, None, DONE, new, None, write=new.persist)

    def _fitting(self, jobs: list[Job], rows: int = 1) -> list[Job]:
        """Return the first of these jobs that one batch has room for, with so many rows for each, and make room for them."""
        if not self._bounded:
            return jobs
        most = self.limits.batch_bytes_max
        bytes_max = CHANGED_BYTES_MAX if most is None else min(CHANGED_BYTES_MAX, most)
        chosen: list[Job] = []
        size = 0
        for job in jobs[: max(1, self._rows_max // rows)]:
            size += rows * answer_bytes(job)
            if chosen and size > bytes_max:
                break
            chosen.append(job)
        self._ledger.make_room(rows * len(chosen), min(size, bytes_max))
        return chosen

    def _log_as_one(self, jobs: Sequence[Job], *queues: Queue) -> None:
        """See that what becomes of memory-only jobs is undone with what becomes of the persisted ones among them."""
        if not self.away and any(job.persist for job in jobs):
            for queue in queues:
                if not queue.pending:
                    self._ledger.log(queue, None, None, None, None)

    def _note_changed(self, queue: Queue, kind: str, count: int) -> None:
        if count:
            self._note_later(queue, Note(kind, queue.name, "", 0, persist=False, count=count))

    def _note_later(self, queue: Queue, note: Note) -> None:
        """Note what happened once what is logged before it is committed."""
        if queue.pending:
            self._ledger.log(queue, None, note, None, None)
        else:
            self._note(note)


def _moved(letter: Job, to: str) -> Enqueue:
    """Return a dead letter as the job that it is to be in another queue."""
    extras = letter.extras or NO_EXTRAS
    moved = Moved(letter.created_at, extras.history, extras.schedule)
    options = Options(extras.key, extras.priority, None, extras.backoff, extras.trace, moved)
    return Enqueue(to, letter.id, letter.timeout, letter.persist, letter.max_retries, letter.payload, letter.state, letter.run_at, options)


def _is_redriven(job: Job, command: Redrive, ids: frozenset[str] | None) -> bool:
    if job.status is not DEAD or job.seq <= command.after:
        return False
    if ids is not None and job.id not in ids:
        return False
    if command.key is not None and (job.extras is None or job.extras.key != command.key):
        return False
    return command.reason is None or job.reason == command.reason
