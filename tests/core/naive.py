"""A second model of a shard, written to be plainly right and nothing else.

Plain lists, searched and sorted at each step: no heaps, no counters, no log of changes. Before each operation that will have to
wait for a commit it copies the whole queue, and a failed commit puts the oldest such copy back. It shares no code with
`proteus_shards.core` but the words of its commands, so that a mistake would have to be made twice to stay unseen.

Three things it does not predict but learns from the shard, because they are free: the run ids, the order of letters that died in
the same microsecond, and whether a memory-only letter is dropped while an older persisted one cannot be.

Two things a failed commit does not take back: a deadline (a runner must never lose time by it) and a schedule that has come due.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import replace

from proteus_shards.core.alarms import DELIVERING_US, PUT_OFF_US
from proteus_shards.core.commands import Command, Complete, Enqueue, Heartbeat, ListDead, Next, Reason, Undeliver
from proteus_shards.core.holdings import Limits
from tests.core.naive_words import NaiveJob, Operation, Poll, Reply, Run

SECOND = 1_000_000


DONE = Reply("done")
NONE = Reply("delivered")
AWAY = Reply("refused", Reason.BUSY)
FULL = Reply("refused", Reason.FULL)


class NaiveShard:
    """What a shard should do."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.now = self.wall = self.clock = self.seq = self.stepped = 0
        self.away = False
        self.live: list[NaiveJob] = []
        self.dead: list[NaiveJob] = []
        self.polls: list[Poll] = []
        self.operations: list[Operation] = []
        self.sealed_touched: list[int] = []
        self.rows: dict[int, NaiveJob] = {}  # what the store should hold, by seq
        self.next_rows: dict[int, NaiveJob] = {}
        self.doubt: list[int] = []
        self.doubt_names: set[tuple[str, str]] = set()
        self.deadlines: dict[int, int] = {}
        self.reached: set[int] = set()  # schedules that have come due
        self.replies: dict[Hashable, Reply] = {}
        self.notes: list[tuple[str, str, str, int]] = []

    # --- views ---------------------------------------------------------------------------------------------------

    @property
    def queues(self) -> set[str]:
        """Names of the queues that there is anything to say about."""
        return {thing.queue for things in (self.live, self.dead, self.polls, self.operations) for thing in things}

    @property
    def bytes(self) -> int:
        """Bytes of payload and state of all jobs."""
        return sum(job.size for job in self.live + self.dead)

    @property
    def pending(self) -> int:
        """Entries that wait for a commit."""
        return sum(operation.entries for operation in self.operations)

    def is_pending(self, queue: str) -> bool:
        """Whether something of a queue waits for a commit."""
        return any(operation.queue == queue for operation in self.operations)

    def letters(self, queue: str) -> list[NaiveJob]:
        """Return the dead letters of a queue, oldest death first."""
        return [job for job in self.dead if job.queue == queue]

    def next_event(self) -> int | None:
        """Return in how many microseconds at the latest `advance` is needed."""
        waits = [poll.until - self.now for poll in self.polls]
        for job in self.live:
            if job.status == "scheduled" and job.run_at is not None:
                waits.append(job.run_at - self.wall)
            if job.status == "in flight":
                waits.append(self.deadlines[job.seq] - self.now)
        if not self.away:
            waits += [job.updated_at + self.stepped + self.limits.dead_letters_us_max - self.wall for job in self.dead]
            waits += [0 for job in self.dead if len(self.letters(job.queue)) > self.limits.dead_letters_max]
        return max(0, min(waits)) if waits else None

    # --- time ------------------------------------------------------------------------------------------------------

    def advance(self, now: int, wall: int, *, due: bool = True) -> None:
        """Set the clocks and do what is due."""
        if self.wall and (wall - self.wall) - (now - self.now) > 60_000_000:
            self.stepped += (wall - self.wall) - (now - self.now)
        self.now, self.wall, self.clock = max(now, self.now), wall, max(wall, self.clock)
        if not due:
            return
        reached = [job for job in self.live if job.status == "scheduled" and job.run_at is not None and job.run_at <= wall]
        for job in reached:
            job.status = "ready"
            self.reached.add(job.seq)
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
            while len(letters := self.letters(queue)) > self.limits.dead_letters_max:
                if self.away and letters[0].persist:
                    break
                self._drop(letters[0])

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
        last = 0 <= job.max_retries < job.attempt
        job.run = None
        job.updated_at = self.clock
        job.status = "dead" if last else "ready"
        if last:
            job.reason = "timeout"
            self.live.remove(job)
            self.dead.append(job)
        self._settle(job, None, None, before, note=("died" if last else "timeout", job.queue, job.id, job.attempt))

    def _drop(self, job: NaiveJob) -> None:
        before = self._copy(job.queue)
        self.dead.remove(job)
        self._settle(job, None, None, before, note=("dropped", job.queue, job.id, job.attempt))

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
            case Complete() | Undeliver():
                self._end_run(key, command)
            case ListDead():
                self._list_dead(key, command)
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
        self.live.append(job)
        self._settle(job, key, DONE, before)
        self._match({job.queue})

    def _refusal(self, command: Enqueue) -> Reply | None:
        limits = self.limits
        size = len(command.payload) + len(command.state or b"")
        names = len(command.queue.encode()) + len(command.id.encode())
        if command.persist:
            if not limits.keeps:
                return Reply("refused", Reason.INVALID, "persist_data")
            if limits.row_bytes_max is not None and size + names > limits.row_bytes_max:
                return Reply("refused", Reason.INVALID, "payload")
            if self.away:
                return AWAY
        if (command.queue, command.id) in self.doubt_names:
            return AWAY
        full = (
            (command.queue not in self.queues and len(self.queues) >= limits.queues_max)
            or len([job for job in self.live if job.queue == command.queue]) >= limits.queue_jobs_max
            or len(self.live) >= limits.shard_jobs_max
            or self.bytes + size > limits.shard_bytes_max
        )
        return FULL if full else None

    def _next(self, key: Hashable, command: Next) -> None:
        head = self._head(command.queue)
        if head is not None and head.persist and self.away:
            self._answer(command.queue, key, AWAY)
        elif head is not None:
            self._hand_out(command.queue, key, command.count)
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
            names = len(job.queue.encode()) + len(job.id.encode())
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

    def _end_run(self, key: Hashable, command: Complete | Undeliver) -> None:
        job = self._find(command.queue, command.id)
        run_id = job.run.id if job is not None and job.run is not None else None
        unnamed = isinstance(command, Complete) and command.run_id is None
        if job is None or not (unnamed or (run_id is not None and run_id == command.run_id)):
            self._answer(command.queue, key, _not_found(job, command.run_id))
            return
        if job.persist and self.away:
            self._answer(job.queue, key, AWAY)
            return
        before = self._copy(job.queue)
        if isinstance(command, Complete):
            self.live.remove(job)
        else:
            job.attempt -= 1
            job.run = None
            job.delivering = False
            job.status = "ready"
            job.updated_at = self.clock
        self._settle(job, key, DONE, before)
        self._match({job.queue})

    def _list_dead(self, key: Hashable, command: ListDead) -> None:
        letters = self.letters(command.queue)
        seqs = [job.seq for job in letters]
        if command.after in seqs:
            letters = letters[seqs.index(command.after) + 1 :]
        self._answer(command.queue, key, Reply("listed", jobs=[replace(job) for job in letters[: command.count]]))

    # --- delivery --------------------------------------------------------------------------------------------------

    def _head(self, queue: str) -> NaiveJob | None:
        ready = [job for job in self.live if job.queue == queue and job.status == "ready"]
        return min(ready, key=lambda job: job.order, default=None)

    def _match(self, queues: Iterable[str]) -> None:
        for queue in queues:
            while waiting := [poll for poll in self.polls if poll.queue == queue]:
                head = self._head(queue)
                if head is None or (head.persist and self.away):
                    break
                self.polls.remove(waiting[0])
                self._hand_out(queue, waiting[0].key, waiting[0].count)

    def _hand_out(self, queue: str, key: Hashable, count: int) -> None:
        before = self._copy(queue)
        taken: list[NaiveJob] = []
        while len(taken) < min(
            count, self.limits.batch_rows_max or count
        ):  # the answers here are small: the cap on their bytes has a test of its own
            job = self._head(queue)
            if job is None or (job.persist and self.away):
                break
            job.status, job.attempt, job.run, job.updated_at = "in flight", job.attempt + 1, Run(), self.clock
            self._restart_timeout(job)
            taken.append(job)
        reply = Reply("delivered", jobs=[replace(job) for job in taken])
        persisted = [job.seq for job in taken if job.persist]
        if not persisted and not self.is_pending(queue):
            self.replies[key] = reply
            return
        for job in taken:
            job.delivering = True
        runs = [job.run for job in taken if job.run is not None]
        self.operations.append(Operation(queue, key, reply, None, before, len(taken), runs, persisted))

    def _restart_timeout(self, job: NaiveJob) -> None:
        self.deadlines[job.seq] = max(self.deadlines.get(job.seq, 0), self.now + job.timeout * SECOND)

    # --- commits ---------------------------------------------------------------------------------------------------

    def cut(self, entries: int) -> None:
        """A commit begins with the oldest operations, of so many entries: the store should hold what each job touched was after them."""
        sealed, left = [], list(self.operations)
        while entries > 0:
            sealed.append(left.pop(0))
            entries -= sealed[-1].entries
        assert entries == 0, "an operation is split"
        self.next_rows = dict(self.rows)
        self.sealed_touched = [seq for operation in sealed for seq in operation.touched]
        for operation in sealed:
            operation.sealed = True
            after = next((later.before for later in left if later.queue == operation.queue), (self.live, self.dead))
            for seq in operation.touched:
                job = next((job for jobs in after for job in jobs if job.seq == seq), None)
                if job is None:
                    self.next_rows.pop(seq, None)
                else:
                    self.next_rows[seq] = replace(job, status="ready" if job.status == "scheduled" else job.status, delivering=False)

    def committed(self) -> None:
        """The commit has succeeded: what waited for it is told, and the time of its deliveries begins."""
        self.rows = self.next_rows
        for operation in [operation for operation in self.operations if operation.sealed]:
            self.operations.remove(operation)
            for job in self.live:
                if job.run in operation.runs:
                    job.delivering = False
                    self._restart_timeout(job)
            for job in operation.reply.jobs if operation.runs and operation.reply is not None else []:
                if all(other.seq != job.seq for other in self.live):
                    self._restart_timeout(job)  # completed meanwhile, which may yet be undone
            if operation.key is not None and operation.reply is not None:
                self.replies[operation.key] = operation.reply
            if operation.note is not None:
                self.notes.append(operation.note)

    def failed(self, reason: Reason) -> None:
        """Nothing of what waited has happened; for UNKNOWN the rows touched are in doubt."""
        self.away = True
        self.doubt = [seq for seq in self.sealed_touched if seq in self.rows or seq in self.next_rows] if reason is Reason.UNKNOWN else []
        names = [(rows[seq].queue, rows[seq].id) for seq in self.doubt for rows in (self.rows, self.next_rows) if seq in rows]
        self.doubt_names = set(names)
        operations, self.operations = self.operations, []
        for operation in operations:
            if operation.key is not None:
                self.replies[operation.key] = Reply("refused", reason if operation.sealed else Reason.BUSY)
        for queue in {operation.queue for operation in operations}:
            live, dead = next(operation.before for operation in operations if operation.queue == queue)
            self.live = [job for job in self.live if job.queue != queue] + live
            self.dead = [job for job in self.dead if job.queue != queue] + dead
            for job in live:
                job.delivering = False
                if job.status == "scheduled" and job.seq in self.reached:
                    job.status = "ready"
        self._match({operation.queue for operation in operations})

    def adopt(self, applied: bool) -> None:
        """The truth about the rows in doubt is known."""
        if applied:
            self.rows = self.next_rows
        for seq in dict.fromkeys(self.doubt):
            if all(job.seq != seq for job in self.live):
                self.deadlines.pop(seq, None)  # it comes as one newly met
            self.live = [job for job in self.live if job.seq != seq]
            self.dead = [job for job in self.dead if job.seq != seq]
        rows = [self.rows[seq] for seq in dict.fromkeys(self.doubt) if seq in self.rows]
        taken = {(row.queue, row.id) for row in rows if row.status != "dead"}
        self.live = [job for job in self.live if (job.queue, job.id) not in taken]  # memory jobs that were completed in the batch
        self._settle_in(rows)
        self.doubt, self.doubt_names = [], set()

    def heal(self) -> None:
        """The store is back."""
        self.away = False
        self._match({poll.queue for poll in self.polls})

    def load(self, rows: Mapping[int, NaiveJob]) -> None:
        """Begin with what a store holds."""
        self.rows = dict(rows)
        self.seq = max(rows, default=0)
        self._settle_in(sorted(rows.values(), key=lambda job: job.order))
        if self.clock - self.wall > 60_000_000:
            self.stepped = self.clock - self.wall

    def _settle_in(self, rows: list[NaiveJob]) -> None:
        for row in rows:
            job = replace(row)
            if job.status == "ready" and job.run_at is not None and job.run_at > self.wall:
                job.status = "scheduled"
                self.reached.discard(job.seq)
            if job.status == "in flight":
                self._restart_timeout(job)
            (self.dead if job.status == "dead" else self.live).append(job)
            self.clock = max(self.clock, job.created_at, job.updated_at, 0 if job.status in ("scheduled", "dead") else job.ready_at)
        self.dead.sort(key=lambda job: job.updated_at)

    # --- bookkeeping -----------------------------------------------------------------------------------------------

    def _find(self, queue: str, job_id: str) -> NaiveJob | None:
        return next((job for job in self.live if (job.queue, job.id) == (queue, job_id)), None)

    def _copy(self, queue: str) -> tuple[list[NaiveJob], list[NaiveJob]]:
        return [replace(job) for job in self.live if job.queue == queue], [replace(job) for job in self.dead if job.queue == queue]

    def _settle(
        self,
        job: NaiveJob,
        key: Hashable | None,
        reply: Reply | None,
        before: tuple[list[NaiveJob], list[NaiveJob]],
        *,
        write: bool = True,
        note: tuple[str, str, str, int] | None = None,
    ) -> None:
        if (job.persist and write) or self.is_pending(job.queue):
            self.operations.append(Operation(job.queue, key, reply, note, before, 1, [], [job.seq] if job.persist and write else []))
            return
        if key is not None and reply is not None:
            self.replies[key] = reply
        if note is not None:
            self.notes.append(note)

    def _answer(self, queue: str, key: Hashable, reply: Reply) -> None:
        if self.is_pending(queue):
            self.operations.append(Operation(queue, key, reply, None, self._copy(queue), 1, [], []))
        else:
            self.replies[key] = reply


def _not_found(job: NaiveJob | None, run_id: bytes | None) -> Reply:
    return Reply("refused", Reason.NOT_FOUND, "run_id" if job is not None and job.run is not None and run_id else None)
