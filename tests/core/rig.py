"""What the tests of the core share: a fake store that checks each batch, and a bench to drive one shard on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from itertools import count
from typing import Any

import msgspec

from proteus_shards.core.commands import (
    Command,
    Delivered,
    Delivery,
    Done,
    Enqueue,
    ListDead,
    Listed,
    Next,
    Options,
    Outcome,
    Reason,
    Refused,
)
from proteus_shards.core.holdings import Limits
from proteus_shards.core.keys import STALE_MIN
from proteus_shards.core.ledger import Note, footprint
from proteus_shards.core.model import Batch, Job, Mark, Record, RecordKey, Row, RowKey, Status
from proteus_shards.core.placement import slot_of
from proteus_shards.core.queue import Queue, place_of
from proteus_shards.core.queue_settings import QueueSettings
from proteus_shards.core.shard import Shard

SECOND = 1_000_000
YEAR = 365 * 86_400 * SECOND
NOW = 1_000 * SECOND
WALL = 1_800_000_000 * SECOND

LIMITS = Limits(
    shard_pending_max=1000,
    polls_max=100,
    queue_jobs_max=1_000_000,
    shard_jobs_max=1_000_000,
    shard_bytes_max=1 << 40,
    queues_max=1000,
    dead_letters_max=100,
    dead_letters_us_max=86_400 * SECOND,
    keeps=True,
)


def run_ids() -> Callable[[], bytes]:
    """Return a source of run ids: 1, 2, 3, … as 16 bytes each."""
    numbers = count(1)
    return lambda: next(numbers).to_bytes(16, "big")


class FakeStore:
    """Rows in a dict. `commit` is atomic, and checks what a real store would choke on, and what it would do in vain."""

    def __init__(self) -> None:
        self.rows: dict[RowKey, Row] = {}
        self.damaged: list[Row] = []  # rows that are no jobs; no batch may name them
        self.batches: list[Batch] = []
        self.records: dict[RecordKey, bytes] = {}

    def commit(self, batch: Batch) -> None:
        """Write a batch, all of it."""
        keys = [*batch.deletes, *(key_of(row) for row in batch.inserts), *(key_of(mark) for mark in batch.marks)]
        assert len(keys) == len(set(keys)), "a batch names a row twice"
        for key in batch.deletes:
            assert key in self.rows, "deletes a row that is not there"
            del self.rows[key]
        for row in batch.inserts:
            assert key_of(row) not in self.rows, "inserts a row that is there already"
            self.rows[key_of(row)] = row
        for mark in batch.marks:
            assert key_of(mark) in self.rows, "marks a row that is not there"
            self.rows[key_of(mark)] = marked(self.rows[key_of(mark)], mark)
        places = [(row.slot, row.seq) for row in self.rows.values()]
        names = [(row.queue, row.id) for row in self.rows.values() if row.status != Status.DEAD]
        assert len(places) == len(set(places)), "two rows of one slot and seq"
        assert len(names) == len(set(names)), "two live rows of one queue and id"
        assert all(row.slot == slot_of(row.queue) for row in self.rows.values())
        records = [RecordKey(record.slot, record.kind, record.name) for record in batch.records]
        assert len(records) == len(set(records)), "a batch names a record twice"
        for record_key, record in zip(records, batch.records, strict=True):
            self.records.pop(record_key, None)
            if record.value is not None:
                self.records[record_key] = record.value
        self.batches.append(batch)

    def load_records(self) -> list[Record]:
        """Return all records."""
        return [Record(key.slot, key.kind, key.name, value) for key, value in self.records.items()]

    def load(self) -> list[Row]:
        """Return all rows, in the order in which a shard wants them."""
        return sorted([*self.rows.values(), *self.damaged], key=lambda row: (row.ready_at, row.seq))

    def read_records(self, keys: Iterable[RecordKey]) -> dict[RecordKey, bytes]:
        """Return those of some records that exist."""
        return {key: self.records[key] for key in keys if key in self.records}

    def read(self, keys: Iterable[RowKey]) -> dict[RowKey, Row]:
        """Return those of some rows that exist."""
        return {key: self.rows[key] for key in keys if key in self.rows}


def key_of(row: Row | Mark) -> RowKey:
    """Return the name of a row."""
    return RowKey(row.slot, row.seq, row.queue, row.id)


def marked(row: Row, mark: Mark) -> Row:
    """Return a row with a mark applied."""
    changed = {name: getattr(mark, name) for name in ("status", "attempt", "run_id", "reason", "updated_at")}
    state, extras = mark.state if mark.state_set else row.state, mark.extras if mark.extras_set else row.extras
    return msgspec.structs.replace(row, **changed, state=state, extras=extras)


class Bench:
    """One shard, its clocks and its store. `ask` returns the answer to a command, or None where it does not come at once."""

    def __init__(
        self, limits: Limits = LIMITS, store: FakeStore | None = None, *, now: int = NOW, wall: int = WALL, **changes: object
    ) -> None:
        self.limits = msgspec.structs.replace(limits, **changes)
        self.store = store or FakeStore()
        self.now, self.wall = now, wall
        self.answers: dict[int, Outcome] = {}
        self.keys = count(1)
        self.shard = Shard(self.limits, run_ids(), lambda: 0.5)
        self.shard.advance(now, wall)
        self.damaged_records = self.shard.load_records(self.store.load_records())
        self.damaged = self.shard.load(self.store.load())
        self.shard.finish_load()

    def restart(self, **changes: object) -> Bench:
        """Return what comes after a crash: a new shard with the rows of the same store."""
        after = Bench(self.limits, self.store, now=self.now, wall=self.wall, **changes)
        after.shard._new_run_id = self.shard._new_run_id
        return after

    # --- commands ----------------------------------------------------------------------------------------------------

    def send(self, command: Command) -> int:
        """Apply a command and return its key, under which its answer will stand in `answers`."""
        key = next(self.keys)
        self.shard.apply(key, command)
        self.collect()
        return key

    def collect(self) -> None:
        """Take the answers that the shard gives out."""
        for key, outcome in self.shard.take_replies():
            assert isinstance(key, int)
            assert key not in self.answers, "answered twice"
            self.answers[key] = outcome

    def ask(self, command: Command) -> Outcome | None:
        """Apply a command and return its answer, if there is one at once."""
        return self.answers.get(self.send(command))

    def enqueue(
        self,
        job_id: str,
        queue: str = "q",
        *,
        timeout: int = 10,
        persist: bool = False,
        max_retries: int = 0,
        payload: bytes = b"1",
        state: bytes | None = None,
        run_at_us: int | None = None,
        **options: Any,
    ) -> Outcome | None:
        """Enqueue a job, with `commands_jobs.Options` where any are named."""
        more = Options(**options) if options else None
        return self.ask(Enqueue(queue, job_id, timeout, persist, max_retries, payload, state, run_at_us, more))

    def set(self, queue: str = "q", **settings: Any) -> None:
        """Give a queue settings, in memory only."""
        found = self.shard.queues.get(queue) or self.shard._make_queue(queue)
        before, found.settings = found.settings, QueueSettings(**settings)
        self.shard._settings_changed(found, before)
        self.collect()

    def take(self, count: int = 1, queue: str = "q") -> list[Delivery]:
        """Ask for jobs and return those that come at once."""
        answer = self.ask(Next(queue, count))
        assert isinstance(answer, Delivered), answer
        return answer.jobs

    def take_ids(self, count: int = 1000, queue: str = "q") -> list[str]:
        """Ask for jobs and return their ids."""
        return [job.id for job in self.take(count, queue)]

    def take_durably(self, count: int = 1, queue: str = "q") -> list[Delivery]:
        """Ask for jobs, commit, and return what came."""
        key = self.send(Next(queue, count))
        self.commit()
        return self.jobs(key)

    def jobs(self, key: int) -> list[Delivery]:
        """Return the jobs that an earlier command was answered with."""
        answer = self.answers[key]
        assert isinstance(answer, Delivered), answer
        return answer.jobs

    def dead_ids(self, queue: str = "q") -> list[str]:
        """Return the ids of the dead letters, oldest death first."""
        answer = self.ask(ListDead(queue))
        assert isinstance(answer, Listed), answer
        return [letter.id for letter in answer.jobs]

    def job(self, job_id: str, queue: str = "q") -> Job:
        """Look at a live job inside."""
        return self.shard.queues[queue].jobs[job_id]

    def take_notes(self) -> list[Note]:
        """Take the notes that the shard has made."""
        notes = list(self.shard.notes)
        self.shard.notes.clear()
        return notes

    # --- time and commits ----------------------------------------------------------------------------------------------

    def pass_time(self, seconds: float, *, wall: bool = True) -> None:
        """Let both clocks go on, or only the monotonic one."""
        self.now += int(seconds * SECOND)
        self.wall += int(seconds * SECOND) if wall else 0
        self.advance()

    def set_wall(self, wall: int) -> None:
        """Set the wall clock."""
        self.wall = wall
        self.advance()

    def advance(self) -> None:
        """Bring the shard to the bench's clocks."""
        self.shard.advance(self.now, self.wall)
        self.collect()

    def commit(self) -> Batch:
        """Commit what has collected, and return it."""
        batch = self.shard.cut()
        self.store.commit(batch)
        self.shard.committed()
        self.collect()
        return batch

    def fail(self, reason: Reason = Reason.BUSY) -> list[RowKey]:
        """Let the commit fail, and return the rows in doubt."""
        keys = self.shard.failed(reason, "the store says no")
        self.collect()
        return keys

    def lose_store(self) -> None:
        """Let the store go away, with nothing under way."""
        self.shard.cut()
        self.fail()

    def heal(self, keys: Iterable[RowKey] = ()) -> None:
        """Bring the store back, with the truth about the rows in doubt."""
        keys = list(keys)
        self.shard.adopt(keys, self.store.read(keys))
        self.shard.adopt_records(self.shard.records_in_doubt, self.store.records)
        self.shard.heal()
        self.collect()


def refused(outcome: Outcome | None) -> Refused:
    """Say that an answer is a refusal, and return it."""
    assert isinstance(outcome, Refused), outcome
    return outcome


def check_books(shard: Shard) -> None:
    """Compare what a shard counts with what it holds."""
    counts = [0] * len(Status)
    size = pending = polls = 0
    for name, queue in shard.queues.items():
        real = [0] * len(Status)
        for job in [*queue.jobs.values(), *queue.dead.values()]:
            real[job.status] += 1
            size += footprint(job)
            assert job.queue == name
        assert all(job.status in (Status.SCHEDULED, Status.READY, Status.IN_FLIGHT) for job in queue.jobs.values())
        assert all(job.status is Status.DEAD for job in queue.dead.values())
        assert queue.counts == real, name
        counts = [ours + theirs for ours, theirs in zip(counts, real, strict=True)]
        waiting = [job for job in queue.jobs.values() if job.status is Status.READY]
        assert queue.blocked == sum(job.blocked for job in waiting), name
        assert not any(job.blocked for job in queue.jobs.values() if job.status is not Status.READY)
        lined = sorted((job for job in waiting if not job.blocked), key=place_of)
        assert list(queue.ready()) == lined
        assert queue.head() is (lined[0] if lined else None)
        assert queue.bytes == sum(footprint(job) for job in [*queue.jobs.values(), *queue.dead.values()])
        assert queue.dead_bytes == sum(footprint(job) for job in queue.dead.values())
        assert not queue.empty, f"queue {name} should be forgotten"
        check_lanes(queue)
        pending += queue.pending
        polls += len(queue.waiters)
    assert shard.totals == counts
    assert shard.bytes == size
    assert shard.pending == pending
    assert shard.polls == polls


def check_lanes(queue: Queue) -> None:
    """See that the lanes of a queue hold its jobs, and hardly any that are gone."""
    keys = [job.extras.key for job in queue.jobs.values() if job.extras is not None and job.extras.key is not None]
    lanes = queue._keys.lanes if queue._keys is not None else {}
    assert {key: lane.live for key, lane in lanes.items()} == Counter(keys)
    for lane in lanes.values():
        assert max(len(lane.held), len(lane.waiting)) <= lane.live + max(STALE_MIN, lane.live)


DONE = Done()
