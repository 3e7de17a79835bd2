"""A second model of a shard, written to be plainly right and nothing else.

Plain lists, searched and sorted at each step: no heaps, no counters, no log of changes. Before each operation that will have to
wait for a commit it copies the whole queue, and a failed commit puts the oldest such copy back. It shares no code with
`proteus_shards.core` but the words of its commands, so that a mistake would have to be made twice to stay unseen.

Three things it does not predict but learns from the shard, because they are free: the run ids, the order of letters that died in
the same microsecond, and whether a memory-only letter is dropped while an older persisted one cannot be.

Two things a failed commit does not take back: a deadline (a runner must never lose time by it) and a schedule that has come due.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import replace

from proteus_shards.core.alarms import DELIVERING_US, PUT_OFF_US
from proteus_shards.core.commands import Command, Complete, Enqueue, Heartbeat, ListDead, Next, Options, Reason, Undeliver
from proteus_shards.core.commands_control import Change, Fail, Purge, Redrive, Release
from proteus_shards.core.extras import pack_extras
from tests.core.naive_books import AWAY, DONE, FULL, NONE, SECOND, Note
from tests.core.naive_operators import NaiveOperators
from tests.core.naive_rules import delay_of, due_of, extras_of, remember
from tests.core.naive_words import NaiveJob, Poll, Reply


class NaiveShard(NaiveOperators):
    """What a shard should do."""

    # --- time ------------------------------------------------------------------------------------------------------

    def advance(self, now: int, wall: int, lapses: Callable[[NaiveJob], bool] = lambda _job: True, *, due: bool = True) -> None:
        """Set the clocks and do what is due. `lapses` tells which jobs may wait on, though their ttl is over."""
        if self.wall and (wall - self.wall) - (now - self.now) > 60_000_000:
            self.stepped += (wall - self.wall) - (now - self.now)
        self.now, self.wall, self.clock = max(now, self.now), wall, max(wall, self.clock)
        if self.away:
            self.put_off = max(self.put_off, wall + PUT_OFF_US)
        if not due:
            return
        lapsed = [job for job in self.live if self._has_lapsed(job) and not (self.away and job.persist)]
        lapsed = [job for job in lapsed if lapses(job)]
        for job in sorted(lapsed, key=lambda job: (job.expires_at or 0, job.seq)):
            self._lapse(job)
        self._match({job.queue for job in lapsed})
        reached = [job for job in self.live if job.status == "scheduled" and (due_of(job) or 0) <= wall]
        for job in reached:
            job.status = "ready"
            self.reached.add((job.seq, due_of(job)))
        self._match({job.queue for job in reached})

        expired = []
        overdue = [job for job in self.live if job.status == "in flight" and self.deadlines[job.seq] <= self.now]
        for job in sorted(overdue, key=lambda job: (self.deadlines[job.seq], job.seq)):
            if job.delivering or (self.away and job.persist):
                self.deadlines[job.seq] = self.now + (DELIVERING_US if job.delivering else PUT_OFF_US)
            else:
                self._expire(job)
                expired.append(job.queue)
        for queue in dict.fromkeys(expired):
            self._match({queue})
            self._trim(queue)
        self._match({poll.queue for poll in self.polls if self.line(poll.queue).settings.rate is not None})

        for poll in [poll for poll in self.polls if poll.until <= self.now]:
            self.polls.remove(poll)
            self._answer(poll.queue, poll.key, NONE)

        if not self.away:
            for job in sorted(self.dead, key=lambda job: job.updated_at):
                if job.updated_at <= self.clock - self.stepped - self.limits.dead_letters_us_max:
                    self._drop(job)
            for queue in {job.queue for job in self.dead}:
                while len(letters := self.letters(queue)) > self.limits.dead_letters_max:
                    self._drop(letters[0])

    def _expire(self, job: NaiveJob) -> None:
        before = self._copy(job.queue)
        self._settle(job, None, None, before, note=self._end_badly(job, "timeout", None, None))

    def _end_badly(self, job: NaiveJob, outcome: str, error: str | None, delay: int | None) -> Note:
        last = 0 <= job.max_retries < job.attempt
        job.run = None
        job.updated_at = self.clock
        job.not_before = None
        if not last:
            self._put_off(job, delay if delay is not None else delay_of(job, self.line(job.queue).settings))
        remember(job, outcome, self.clock, error, self.limits.row_bytes_max)
        if last:
            job.status, job.reason = "dead", outcome
            self.live.remove(job)
            self.dead.append(job)
        return ("died" if last else outcome, job.queue, job.id, job.attempt)

    def _put_off(self, job: NaiveJob, delay: int) -> None:
        job.not_before = self.wall + delay if delay else None
        job.status = "scheduled" if delay else "ready"

    # --- commands --------------------------------------------------------------------------------------------------

    def apply(self, key: Hashable, command: Command) -> None:
        """Do what a command says."""
        if self.pending >= self.limits.shard_pending_max and not isinstance(command, Undeliver):
            self.replies[key] = AWAY
            return
        match command:
            case Enqueue():
                self._enqueue(key, command)
            case Next():
                self._next(key, command)
            case Heartbeat():
                self._heartbeat(key, command)
            case Complete() | Undeliver() | Fail() | Release():
                self._end_run(key, command)
            case ListDead():
                self._list_dead(key, command)
            case Purge():
                self.purge(key, command)
            case Redrive():
                self.redrive(key, command)
            case Change():
                self.change(key, command)
            case _:
                raise AssertionError(command)

    def cancel(self, key: Hashable) -> None:
        """Forget a poll."""
        self.polls = [poll for poll in self.polls if poll.key != key]

    def _enqueue(self, key: Hashable, command: Enqueue) -> None:
        if self._find(command.queue, command.id) is not None:
            self._answer(command.queue, key, Reply("refused", Reason.EXISTS))
            return
        if (refusal := self._refusal(command)) is not None:
            self._answer(command.queue, key, refusal)
            return
        before = self._copy(command.queue)
        self.seq += 1
        job = self._new(command)
        self.live.append(job)
        self._settle(job, key, DONE, before)
        self._match({job.queue})

    def _new(self, command: Enqueue) -> NaiveJob:
        run_at = command.run_at_us
        job = NaiveJob(
            command.queue,
            command.id,
            self.seq,
            max(self.clock, run_at or 0),
            run_at,
            command.timeout,
            command.persist,
            command.max_retries,
            command.payload,
            command.state or None,
            self.clock,
            self.clock,
            "scheduled" if run_at is not None and run_at > self.wall else "ready",
        )
        options = command.options or Options()
        settings = self.line(command.queue).settings
        ttl = options.ttl_us if options.ttl_us is not None or settings.ttl is None else int(settings.ttl * SECOND)
        job.key, job.priority, job.backoff, job.trace = options.key, options.priority, options.backoff, options.trace
        job.expires_at = max(self.wall, run_at or 0) + ttl if ttl is not None else None
        return job

    def _refusal(self, command: Enqueue) -> Reply | None:
        limits = self.limits
        size = len(command.payload) + len(command.state or b"")
        names = len(command.queue.encode()) + len(command.id.encode())
        if command.persist:
            if not limits.keeps:
                return Reply("refused", Reason.INVALID, "persist_data")
            beside = names + len(pack_extras(extras_of(self._new(command))) or b"")
            if limits.row_bytes_max is not None and size + beside > limits.row_bytes_max:
                return Reply("refused", Reason.INVALID, "payload")
            if self.away:
                return AWAY
        if (command.queue, command.id) in self.doubt_names:
            return AWAY
        full = (
            (command.queue not in self.queues and len(self.queues) >= limits.queues_max)
            or len([job for job in self.live if job.queue == command.queue]) >= limits.queue_jobs_max
            or len(self.live) >= limits.shard_jobs_max
            or len([job for job in self.live if job.queue == command.queue]) >= (self.line(command.queue).settings.jobs_max or 1 << 60)
            or self.bytes + size > limits.shard_bytes_max
        )
        return FULL if full else None

    def _next(self, key: Hashable, command: Next) -> None:
        head = self._lapse_heads(command.queue)
        allowed = self._allowance(command.queue)
        if head is not None and allowed and head.persist and self.away:
            self._answer(command.queue, key, AWAY)
        elif head is not None and allowed:
            self._hand_out(command.queue, key, min(command.count, allowed))
        elif command.wait_us <= 0:
            self._answer(command.queue, key, NONE)
        elif len(self.polls) >= self.limits.polls_max or (command.queue not in self.queues and len(self.queues) >= self.limits.queues_max):
            self._answer(command.queue, key, FULL)
        else:
            self.polls.append(Poll(key, command.queue, command.count, self.now + command.wait_us))

    def _heartbeat(self, key: Hashable, command: Heartbeat) -> None:
        job = self._find(command.queue, command.id)
        if job is None or job.run is None or (command.run_id is not None and command.run_id != job.run.id):
            self._answer(command.queue, key, _not_found(job, command.run_id))
            return
        state, write = command.state, job.persist and command.state is not None
        if (write and self.away) or (job.queue, job.id) in self.doubt_names:
            self._answer(job.queue, key, AWAY)
            return
        if state is not None:
            names = len(job.queue.encode()) + len(job.id.encode()) + len(pack_extras(extras_of(job)) or b"")
            if job.persist and self.limits.row_bytes_max is not None and len(job.payload) + len(state) + names > self.limits.row_bytes_max:
                self._answer(job.queue, key, Reply("refused", Reason.INVALID, "state"))
                return
            grown = len(state) - len(job.state or b"")
            if grown > 0 and self.bytes + grown > self.limits.shard_bytes_max:
                self._answer(job.queue, key, FULL)
                return
        before = self._copy(job.queue)
        if state is not None:
            job.state = state or None
        self._restart_timeout(job)
        job.updated_at = self.clock
        self._settle(job, key, DONE, before, write=write)

    def _end_run(self, key: Hashable, command: Complete | Undeliver | Fail | Release) -> None:
        job = self._find(command.queue, command.id)
        run_id = job.run.id if job is not None and job.run is not None else None
        running = job is not None and job.run is not None
        unnamed = command.run_id is None and (isinstance(command, Complete) or (running and not isinstance(command, Undeliver)))
        if job is None or not (unnamed or (run_id is not None and run_id == command.run_id)):
            self._answer(command.queue, key, _not_found(job, command.run_id))
            return
        if job.persist and self.away:
            self._answer(job.queue, key, AWAY)
            return
        before = self._copy(job.queue)
        if isinstance(command, Fail):
            note = self._end_badly(job, "failed", command.error, command.delay_us)
            self._settle(job, key, DONE, before, note=note, entries=2)
            self._match({job.queue})
            self._trim(job.queue)
            return
        if isinstance(command, Complete):
            self.live.remove(job)
        else:
            job.attempt -= 1
            job.run = None
            job.updated_at = self.clock
            if isinstance(command, Release):
                self._put_off(job, command.delay_us)
            else:
                job.status = "ready"
                job.delivering = None
        self._settle(job, key, DONE, before)
        self._match({job.queue})

    def _list_dead(self, key: Hashable, command: ListDead) -> None:
        letters = self.letters(command.queue)
        seqs = [job.seq for job in letters]
        if command.after in seqs:
            letters = letters[seqs.index(command.after) + 1 :]
        self._answer(command.queue, key, Reply("listed", jobs=[replace(job) for job in letters[: command.count]]))


def _not_found(job: NaiveJob | None, run_id: bytes | None) -> Reply:
    return Reply("refused", Reason.NOT_FOUND, "run_id" if job is not None and job.run is not None and run_id else None)
