"""What the naive model holds, hands out, and puts back when a commit fails. See `naive`."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import replace
from typing import TypeAlias

from proteus_shards.core.commands import Reason
from proteus_shards.core.holdings import Limits
from proteus_shards.core.queue_settings import DEFAULT_SETTINGS, QueueSettings
from tests.core.naive_rules import NaiveQueue, due_of, in_line
from tests.core.naive_words import NaiveJob, Operation, Poll, Reply, Run

SECOND = 1_000_000
Note: TypeAlias = tuple[str, str, str, int]

DONE = Reply("done")
NONE = Reply("delivered")
AWAY = Reply("refused", Reason.BUSY)
FULL = Reply("refused", Reason.FULL)


class NaiveBooks:
    """What a shard should hold, and what becomes of it by commits."""

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
        self.reached: set[tuple[int, int | None]] = set()  # schedules that have come due: of which job, and for when
        self.lines: dict[str, NaiveQueue] = {}  # what is set for queues
        self.put_off = 0  # until then a persisted job may wait beyond its ttl: the store was away when it was over
        self.replies: dict[Hashable, Reply] = {}
        self.notes: list[tuple[str, str, str, int]] = []

    # --- views ---------------------------------------------------------------------------------------------------

    @property
    def queues(self) -> set[str]:
        """Names of the queues that there is anything to say about."""
        used = {thing.queue for things in (self.live, self.dead, self.polls, self.operations) for thing in things}
        return used | {name for name, line in self.lines.items() if line.settings != DEFAULT_SETTINGS}

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
            due = due_of(job)
            if job.status == "scheduled" and due is not None:
                waits.append(due - self.wall)
            if job.status != "in flight" and job.expires_at is not None and not (self.away and job.persist):
                waits.append(max(job.expires_at + 1, self.put_off if job.persist else 0) - self.wall)
            if job.status == "in flight":
                waits.append(self.deadlines[job.seq] - self.now)
        for poll in self.polls:
            token_in, head = self.line(poll.queue).token_in(self.now), self._head(poll.queue)
            stopped = self.line(poll.queue).settings.paused or head is None or (self.away and head.persist)
            if token_in is not None and not stopped:
                waits.append(token_in)
        if not self.away:
            waits += [job.updated_at + self.stepped + self.limits.dead_letters_us_max - self.wall for job in self.dead]
            waits += [0 for job in self.dead if len(self.letters(job.queue)) > self.limits.dead_letters_max]
        return max(0, min(waits)) if waits else None

    # --- ends ----------------------------------------------------------------------------------------------------

    def _has_lapsed(self, job: NaiveJob) -> bool:
        return job.status in ("ready", "scheduled") and job.expires_at is not None and job.expires_at < self.wall

    def _lapse(self, job: NaiveJob) -> None:
        before = self._copy(job.queue)
        job.status, job.reason, job.updated_at = "dead", "expired", self.clock
        self.live.remove(job)
        self.dead.append(job)
        self._settle(job, None, None, before, note=("died", job.queue, job.id, job.attempt))
        self._trim(job.queue)

    def _trim(self, queue: str) -> None:
        while len(letters := self.letters(queue)) > self.limits.dead_letters_max:
            if self.away and letters[0].persist:
                break
            self._drop(letters[0])

    def _drop(self, job: NaiveJob) -> None:
        before = self._copy(job.queue)
        self.dead.remove(job)
        self._settle(job, None, None, before, note=("dropped", job.queue, job.id, job.attempt))

    # --- delivery --------------------------------------------------------------------------------------------------

    def line(self, queue: str) -> NaiveQueue:
        """Return what is set for a queue."""
        return self.lines.setdefault(queue, NaiveQueue())

    def set(self, queue: str, settings: QueueSettings) -> None:
        """Set something for a queue."""
        self.line(queue).set(settings, self.now)
        self._match({queue})

    def _head(self, queue: str) -> NaiveJob | None:
        found = in_line((job for job in self.live if job.queue == queue), self.line(queue).settings)
        return found[0] if found else None

    def _lapse_heads(self, queue: str) -> NaiveJob | None:
        while (head := self._head(queue)) is not None and self._has_lapsed(head) and not (self.away and head.persist):
            self._lapse(head)
        return head

    def _allowance(self, queue: str) -> int:
        return self.line(queue).allowance(self.now, len([job for job in self.live if job.queue == queue and job.run is not None]))

    def _match(self, queues: Iterable[str]) -> None:
        for queue in queues:
            while waiting := [poll for poll in self.polls if poll.queue == queue]:
                head = self._lapse_heads(queue)
                allowed = self._allowance(queue)
                if head is None or (head.persist and self.away) or not allowed:
                    break
                self.polls.remove(waiting[0])
                self._hand_out(queue, waiting[0].key, min(waiting[0].count, allowed))

    def _hand_out(self, queue: str, key: Hashable, count: int) -> None:
        before = self._copy(queue)
        taken: list[NaiveJob] = []
        while len(taken) < min(
            count, self.limits.batch_rows_max or count
        ):  # the answers here are small: the cap on their bytes has a test of its own
            job = self._head(queue)
            if job is None or (job.persist and self.away) or (taken and self._has_lapsed(job)):
                break
            job.started_at = self.clock
            job.status, job.attempt, job.run, job.updated_at = "in flight", job.attempt + 1, Run(), self.clock
            self._restart_timeout(job)
            taken.append(job)
        self.line(queue).spend(len(taken), self.now)
        reply = Reply("delivered", jobs=[replace(job) for job in taken])
        persisted = [job.seq for job in taken if job.persist]
        if not persisted and not self.is_pending(queue):
            self.replies[key] = reply
            return
        for job in taken:
            job.delivering = job.run
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
                    self.next_rows[seq] = replace(job, status="ready" if job.status == "scheduled" else job.status, delivering=None)

    def committed(self) -> None:
        """The commit has succeeded: what waited for it is told, and the time of its deliveries begins."""
        self.rows = self.next_rows
        for operation in [operation for operation in self.operations if operation.sealed]:
            self.operations.remove(operation)
            for job in self.live + self.dead:
                if job.delivering in operation.runs:
                    job.delivering = None
                    self._restart_timeout(job)
            for job in operation.reply.jobs if operation.runs and operation.reply is not None else []:
                if all(other.seq != job.seq for other in self.live + self.dead):
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
            for job in live + dead:
                job.delivering = None
                if job.status == "scheduled" and (job.seq, due_of(job)) in self.reached:
                    job.status = "ready"
        self._match({operation.queue for operation in operations})

    def adopt(self, applied: bool) -> None:
        """The truth about the rows in doubt is known."""
        if applied:
            self.rows = self.next_rows
        starts: dict[int, int] = {}
        for seq in dict.fromkeys(self.doubt):
            if all(job.seq != seq for job in self.live):
                self.deadlines.pop(seq, None)  # it comes as one newly met
            starts.update({job.seq: job.started_at for job in self.live + self.dead if job.seq == seq})
            self.live = [job for job in self.live if job.seq != seq]
            self.dead = [job for job in self.dead if job.seq != seq]
        rows = [self.rows[seq] for seq in dict.fromkeys(self.doubt) if seq in self.rows]
        taken = {(row.queue, row.id) for row in rows if row.status != "dead"}
        self.live = [job for job in self.live if (job.queue, job.id) not in taken]  # memory jobs that were completed in the batch
        self._settle_in(rows, starts)
        self.doubt, self.doubt_names = [], set()

    def heal(self) -> None:
        """The store is back."""
        self.away = False
        self._match({poll.queue for poll in self.polls})

    def load(self, rows: Mapping[int, NaiveJob]) -> None:
        """Begin with what a store holds."""
        self.rows = dict(rows)
        self.seq = max(rows, default=0)
        self._settle_in(sorted(rows.values(), key=lambda job: job.order), {})
        if self.clock - self.wall > 60_000_000:
            self.stepped = self.clock - self.wall

    def read_anew(self) -> None:
        """Forget what one who reads the rows cannot know: by the wall clock as it stands now a job waits, and when a run began counts while it runs."""
        for job in self.live + self.dead:
            job.started_at = job.started_at if job.status == "in flight" or not job.persist else 0
            if job.status != "in flight":
                self.deadlines.pop(job.seq, None)
            due = due_of(job)
            if job.status == "ready" and due is not None and due > self.wall:
                job.status = "scheduled"
                self.reached.discard((job.seq, due))

    def _settle_in(self, rows: list[NaiveJob], starts: dict[int, int]) -> None:
        for row in rows:
            job = replace(row, started_at=starts.get(row.seq, 0))
            due = due_of(job)
            if job.status == "ready" and due is not None and due > self.wall:
                job.status = "scheduled"
                self.reached.discard((job.seq, due))
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
        note: Note | None = None,
        entries: int = 1,
    ) -> None:
        if (job.persist and write) or self.is_pending(job.queue):
            self.operations.append(Operation(job.queue, key, reply, note, before, entries, [], [job.seq] if job.persist and write else []))
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
