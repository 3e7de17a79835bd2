"""What operators do in the naive model: purge, redrive, change. See `naive`."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace

from proteus_shards.core.commands import Reason
from proteus_shards.core.commands_control import Change, Purge, Redrive
from tests.core.naive_books import AWAY, DONE, FULL, NaiveBooks
from tests.core.naive_rules import due_of
from tests.core.naive_words import NaiveJob, Operation, Reply


class NaiveOperators(NaiveBooks):
    """What a shard should make of the commands of operators. Those who ask here name one id or mean all."""

    def purge(self, key: Hashable, command: Purge) -> None:
        """Remove jobs: those that wait, or those of the states that are named."""
        states = {"scheduled", "ready"}
        if command.states:
            states = {"dead"} if command.states == ["dead"] else {"scheduled", "ready", "in flight", "dead"}
        chosen = [job for job in [*self.live, *self.dead] if self._is_meant(job, command) and job.status in states]
        if command.queue not in self.queues:
            self.replies[key] = Reply("counted")
            return
        if self.away and any(job.persist for job in chosen):
            self._answer(command.queue, key, AWAY)
            return
        self._log_as_one(command.queue, chosen)
        for job in chosen:
            before = self._copy(job.queue)
            (self.dead if job.status == "dead" else self.live).remove(job)
            self._settle(job, None, None, before)
        self._tell("purged", command.queue, len(chosen))
        self._answer(command.queue, key, Reply("counted", count=len(chosen)))
        self._match({command.queue})

    def redrive(self, key: Hashable, command: Redrive) -> None:
        """Bring dead letters back, in the order in which they were accepted, as far as there is room."""
        if command.queue not in self.queues:
            self.replies[key] = Reply("counted")
            return
        chosen = sorted((job for job in self.dead if self._is_meant(job, command)), key=lambda job: job.seq)
        self._log_as_one(command.queue, chosen)
        done, more = 0, False
        for job in chosen:
            if self._find(job.queue, job.id) is not None or (job.queue, job.id) in self.doubt_names:
                continue
            refusal = AWAY if job.persist and self.away else FULL if self._is_full(job.queue) else None
            if refusal is not None:
                if not done:
                    self._answer(command.queue, key, refusal)
                    return
                more = True
                break
            self._revive(job)
            done += 1
        self._tell("redriven", command.queue, done)
        self._answer(command.queue, key, Reply("counted", count=done, more=more))
        self._match({command.queue})

    def _revive(self, job: NaiveJob) -> None:
        before = self._copy(job.queue)
        self.dead.remove(job)
        self.live.append(job)
        job.attempt, job.reason, job.updated_at = 0, None, self.clock
        job.expires_at = job.not_before = None
        self._wait(job)
        self._settle(job, None, None, before)

    def change(self, key: Hashable, command: Change) -> None:
        """Give a waiting job another time, and so another place, or another priority."""
        job = self._find(command.queue, command.id)
        if job is None or job.status == "in flight":
            self._answer(command.queue, key, Reply("refused", Reason.NOT_FOUND))
        elif (job.persist and self.away) or (job.queue, job.id) in self.doubt_names:
            self._answer(job.queue, key, AWAY)
        elif command.run_at_us is not None:
            self._move(key, job, command)
        elif command.priority in (None, job.priority):
            self._answer(job.queue, key, DONE)
        else:
            before = self._copy(job.queue)
            job.priority, job.updated_at = command.priority or 0, self.clock
            self._settle(job, key, DONE, before, entries=2)
            self._match({job.queue})

    def _move(self, key: Hashable, job: NaiveJob, command: Change) -> None:
        before = self._copy(job.queue)
        self.live.remove(job)
        self._settle(job, None, None, before)
        before = self._copy(job.queue)
        at = command.run_at_us or 0
        ready_at = max(self.clock, at)
        self.seq += 1
        moved = replace(job, seq=self.seq, history=list(job.history))
        if moved.expires_at is not None:
            moved.expires_at += ready_at - job.ready_at
        if command.priority is not None:
            moved.priority = command.priority
        moved.ready_at, moved.run_at, moved.not_before, moved.updated_at, moved.started_at = ready_at, at or None, None, self.clock, 0
        self._wait(moved)
        self.live.append(moved)
        self._settle(moved, None, None, before)
        self._answer(job.queue, key, DONE)
        self._match({job.queue})

    # --- parts -----------------------------------------------------------------------------------------------------

    def _is_meant(self, job: NaiveJob, command: Purge | Redrive) -> bool:
        return job.queue == command.queue and (command.ids is None or job.id in command.ids)

    def _is_full(self, queue: str) -> bool:
        live = len([job for job in self.live if job.queue == queue])
        most = min(self.limits.queue_jobs_max, self.line(queue).settings.jobs_max or self.limits.queue_jobs_max)
        return live >= most or len(self.live) >= self.limits.shard_jobs_max

    def _wait(self, job: NaiveJob) -> None:
        """Let a job wait: for its time, if that has not come."""
        due = due_of(job)
        job.status = "scheduled" if due is not None and due > self.wall else "ready"
        if job.status == "scheduled":
            self.reached.discard((job.seq, due))

    def _log_as_one(self, queue: str, jobs: list[NaiveJob]) -> None:
        """What becomes of the memory-only ones among several is taken back with the others."""
        if not self.away and not self.is_pending(queue) and any(job.persist for job in jobs):
            self.operations.append(Operation(queue, None, None, None, self._copy(queue), 1, [], []))

    def _tell(self, kind: str, queue: str, count: int) -> None:
        if not count:
            return
        note = (kind, queue, "", 0)
        if self.is_pending(queue):
            self.operations.append(Operation(queue, None, None, note, self._copy(queue), 1, [], []))
        else:
            self.notes.append(note)
