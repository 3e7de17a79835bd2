"""Several changes as one: jobs added together, in place of others, or at the end of a run.

How to think about it
=====================

A step is *drafted* first: its changes are made in memory one after the other, each checked against all that those before it have made, limits
included. So a job may take the id that the run just gave up, and the thousandth job meets the limit that the first 999 have reached. Where one is
refused, the draft is taken back, newest change first, and nothing was ever logged. Else all changes are logged at once, between two calls
of which nothing else happens.

**One operation of the ledger.** Room for all rows is made before the first change, so that no batch ends in the middle of a step. A step
of more rows than a batch of the store may have is INVALID.

**One answer**, with the last change. If anything in the step must be written, or comes after what waits for the store in one of its queues, all of it
is logged, memory-only jobs too: a failed commit takes back the whole.

A job that takes the place of another is a new one, behind all that are in the queue; only created_at stays. It has a `run_at` in any case, if only of
now: created_at no longer says since when it may run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from proteus_shards.core.alarms import Alarms
from proteus_shards.core.commands import Done, Enqueue, EnqueueAll, Mode, Outcome, Reason, Refused, Replace, Requeue
from proteus_shards.core.holdings import answer_bytes
from proteus_shards.core.ledger import footprint, image_of
from proteus_shards.core.measures import COMPLETED, ENQUEUED
from proteus_shards.core.queue import IN_FLIGHT, TRANSITIONS, Queue, Verb

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from proteus_shards.core.holdings import Key
    from proteus_shards.core.ledger import Image, Undo
    from proteus_shards.core.model import Job, RecordKey, Status

AWAY = Refused(Reason.BUSY, "the backing store is away")

_COMPLETE = TRANSITIONS[Verb.COMPLETE]

Change: TypeAlias = "tuple[Queue, Job, Image | None, Done | None, int]"
"""A changed job: its queue, how it was, what is told of it, and which commit its delivery waited for."""

RecordChange: TypeAlias = "tuple[RecordKey, bytes | None, Undo]"


class Steps(Alarms):
    """The queues of one shard, and steps of several changes in them."""

    def _refusal(self, queue: Queue | None, command: Enqueue) -> Refused | None:
        raise NotImplementedError

    def _admit(self, queue: Queue, command: Enqueue, created_at: int | None = None) -> Job:
        raise NotImplementedError

    # --- commands ----------------------------------------------------------------------------------------------

    def _enqueue_all(self, key: Key | None, command: EnqueueAll) -> None:
        self._carry_out(key, command.queue, None, command.jobs, command.mode)

    def _replace(self, key: Key | None, command: Replace) -> None:
        queue, job = self._find(command.queue, command.job.id)
        if queue is None or job is None or job.status is not IN_FLIGHT:
            self._answer(
                queue, key, Refused(Reason.NOT_FOUND, "the job is not in flight" if job else "no job with this id is in the queue")
            )
            return
        self._carry_out(key, command.queue, None, [command.job], Mode.REPLACE)

    def _requeue(self, key: Key | None, command: Requeue) -> None:
        run = self._run_of(command.queue, command.id, command.run_id)
        if isinstance(run, Refused):
            self._answer(self.queues.get(command.queue), key, run)
        else:
            self._carry_out(key, command.queue, run, command.jobs, command.mode)

    # --- how a step goes ---------------------------------------------------------------------------------------

    def _run_of(self, queue_name: str, job_id: str, run_id: bytes) -> tuple[Queue, Job] | Refused:
        """Return the job of a run that goes on."""
        queue, job = self._find(queue_name, job_id)
        if queue is None or job is None:
            return Refused(Reason.NOT_FOUND, "no job with this id is in the queue")
        if job.status is not IN_FLIGHT or job.run_id != run_id:
            return Refused(Reason.NOT_FOUND, "the run is over", "run_id")
        return queue, job

    def _carry_out(
        self,
        key: Key | None,
        queue_name: str,
        run: tuple[Queue, Job] | None,
        jobs: Sequence[Enqueue],
        mode: Mode,
        records: Sequence[RecordChange] = (),
    ) -> bool:
        """Draft a step, log it, and answer. Returns whether it was done; where it was not, `records` are as they were."""
        refused = self._make_room_for(run, jobs, mode, records)
        changes = refused or self._draft(run, jobs, mode)
        if isinstance(changes, Refused):
            self._answer_behind([queue_name, *(job.queue for job in jobs)], key, changes)
            return False
        if changes or records:
            self._log_all(key, queue_name, changes, records)
        else:
            self._answer_behind([queue_name, *(job.queue for job in jobs)], key, Done())
        return True

    def _answer_behind(self, queue_names: Sequence[str], key: Key | None, outcome: Outcome) -> None:
        """Answer what changed nothing, after what is logged in any of these queues."""
        queues = [queue for name in queue_names if (queue := self.queues.get(name)) is not None]
        self._answer(next((queue for queue in queues if queue.pending), None), key, outcome)

    def _make_room_for(
        self,
        run: tuple[Queue, Job] | None,
        jobs: Sequence[Enqueue | Job],
        mode: Mode,
        records: Sequence[RecordChange],
        *,
        check: bool = True,
    ) -> Refused | None:
        """See that a step fits into a batch, before anything changes. Says why it cannot be."""
        rows = len(records)
        size = sum(len(key.name) + len(value or b"") for key, value, _ in records)
        written: list[Job | Enqueue] = [job for job in jobs if job.persist]
        if mode is Mode.REPLACE:
            written += [old for job in jobs if (old := self._find(job.queue, job.id)[1]) is not None and old.persist]
        if run is not None and run[1].persist:
            written.append(run[1])
        rows += len(written)
        if not rows:
            return None
        if self.away:
            return AWAY
        if self._bounded:
            size += sum(map(answer_bytes, written))
            if check and (refused := self._too_much(rows, size)) is not None:
                return refused
            self._ledger.make_room(rows, size)
        return None

    def _too_much(self, rows: int, size: int) -> Refused | None:
        rows_max, bytes_max = self.limits.batch_rows_max, self.limits.batch_bytes_max
        if rows_max is not None and rows > rows_max:
            return Refused(Reason.INVALID, f"the store writes at most {rows_max} rows in one step, this one has {rows}", "jobs")
        if bytes_max is not None and size > bytes_max:
            return Refused(Reason.INVALID, f"the store writes at most {bytes_max} bytes in one step, this one has {size}", "jobs")
        return None

    def _draft(self, run: tuple[Queue, Job] | None, jobs: Sequence[Enqueue], mode: Mode, *, check: bool = True) -> list[Change] | Refused:
        """Make the changes of a step. Where one is refused, none is made; the refusal's `field` says which job it was. Without `check` none is."""
        changes: list[Change] = []
        if run is not None:
            self._remove(changes, *run, COMPLETED)
        for place, item in enumerate(jobs):
            queue = self.queues.get(item.queue)
            live = queue.jobs.get(item.id) if queue is not None else None
            created_at = None
            if queue is not None and live is not None:
                if mode is Mode.UNIQUE and check:
                    self._take_back(changes)
                    return Refused(Reason.EXISTS, "a job with this id is already in the queue", f"jobs[{place}]")
                if mode is not Mode.REPLACE:
                    continue
                created_at = live.created_at
                self._remove(changes, queue, live, None)
            if check and (refused := self._refusal(queue, item)) is not None:
                self._take_back(changes)
                return Refused(refused.reason, refused.detail, f"jobs[{place}]", refused.retry_after)
            queue = queue if queue is not None else self._make_queue(item.queue)
            told = ENQUEUED if item.options is None or item.options.moved is None else None
            changes.append((queue, self._admit(queue, item, created_at), None, told, 0))
        return changes

    def _remove(
        self, changes: list[Change], queue: Queue, job: Job, answer: Done | None, ends: Mapping[Status, Status] = _COMPLETE
    ) -> None:
        changes.append((queue, job, image_of(job), answer, job.delivering))
        self._weigh(queue, -footprint(job))
        queue.place(job, ends[job.status])

    def _take_back(self, changes: Sequence[Change]) -> None:
        """Undo what was drafted and never logged."""
        for queue, job, image, _, delivering in reversed(changes):
            self._restore(queue, job, image)
            job.delivering = delivering
        for queue, *_ in changes:
            self._forget_if_empty(queue)

    def _log_all(
        self, key: Key | None, queue_name: str, changes: Sequence[Change], records: Sequence[RecordChange], answer: Outcome | None = None
    ) -> None:
        """Log a draft of at least one change, or answer at once where nothing in it depends on the store."""
        last = len(changes) - 1
        if not records and not any(job.persist or queue.pending for queue, job, *_ in changes):
            for _, job, image, told, _ in changes:
                if told is not None:
                    self._emit(None, told, job, image)
            self._emit(key, answer or Done())
        else:
            home = self.queues.get(queue_name) or self._make_queue(queue_name)
            for record, value, undo in records:
                self._ledger.write_record(record, value)
                self._ledger.log(home, None, None, None, undo)
            for place, (queue, job, image, told, _) in enumerate(changes):
                if job.persist:
                    self._touch(job)
                alone = place == last and answer is None
                self._ledger.log(queue, key if alone else None, (told or Done()) if alone else told, job, image)
            if last < 0 or answer is not None:
                self._ledger.log(home, key, answer or Done(), None, None)
        for queue in dict.fromkeys(queue for queue, *_ in changes):
            if queue.waiters:
                self._match(queue)
            self._forget_if_empty(queue)
