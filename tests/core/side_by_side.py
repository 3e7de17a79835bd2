"""A shard and its naive model, side by side: each step is taken by both, and everything is compared after it."""

from __future__ import annotations

from collections.abc import Hashable
from itertools import count

from msgspec.structs import replace

from proteus_shards.core.commands import Command, DeadLetter, Delivered, Delivery, Done, Listed, Outcome, Reason, Refused
from proteus_shards.core.commands_control import Counted
from proteus_shards.core.extras import Extras, pack_extras
from proteus_shards.core.holdings import Limits
from proteus_shards.core.luggage import Label, read_pieces
from proteus_shards.core.model import Batch, Job, Row, RowKey, Status
from proteus_shards.core.queue import Queue
from proteus_shards.core.queue_settings import DEFAULT_SETTINGS, QueueSettings
from proteus_shards.core.shard import Shard
from tests.core.auditor import Auditor
from tests.core.naive import NaiveShard
from tests.core.naive_rules import DRAWN, extras_of
from tests.core.naive_words import NaiveJob, Reply, Run
from tests.core.rig import NOW, WALL, FakeStore, check_books, run_ids

STATUS = {"scheduled": Status.SCHEDULED, "ready": Status.READY, "in flight": Status.IN_FLIGHT, "dead": Status.DEAD}


class SideBySide:
    """Both of them, their clocks, their store, and the auditor."""

    shard: Shard
    model: NaiveShard

    def __init__(self, limits: Limits) -> None:
        self.store = FakeStore()
        self.limits = limits
        self.auditor = Auditor(self.store)
        self.now, self.wall = NOW, WALL
        self.keys = count(1)
        self.payloads = count(1)
        self.new_run_id = run_ids()
        self.runs: dict[tuple[str, str], list[bytes]] = {}  # that clients were told of
        self.known_runs: set[bytes] = set()
        self.settings: dict[str, QueueSettings] = {}
        self.settled: dict[str, Queue] = {}
        self.batch: Batch | None = None
        self.doubt: list[RowKey] = []
        self.age = 0  # commands since the last start
        self.applied = False
        self._boot({})

    def _boot(self, rows: dict[int, NaiveJob]) -> None:
        self.batch, self.doubt, self.age = None, [], 0
        self.shard = Shard(self.limits, self.new_run_id, lambda: DRAWN)
        self.model = NaiveShard(self.limits)
        self.shard.advance(self.now, self.wall)
        self.model.advance(self.now, self.wall)
        for queue, settings in self.settings.items():
            self._set(queue, settings)
        assert self.shard.load(self.store.load()) == []
        self.shard.finish_load()
        self.model.load(rows)

    # --- steps -----------------------------------------------------------------------------------------------------------

    def ask(self, command: Command) -> None:
        """Send a command to both."""
        key = next(self.keys)
        self.age += 1
        self.auditor.ask(key, command, self.shard, self.now)
        self.shard.apply(key, command)
        self.model.apply(key, command)
        self._compare()

    def set(self, queue: str, settings: QueueSettings) -> None:
        """Give a queue other settings."""
        self.settings[queue] = settings
        self._set(queue, settings)
        self._compare()

    def _set(self, queue: str, settings: QueueSettings) -> None:
        found = self.shard.queues.get(queue) or self.shard._make_queue(queue)
        before, found.settings = found.settings, settings
        self.shard._settings_changed(found, before)
        if self.settled.get(queue) is not found:  # it was forgotten meanwhile, and its bucket with it
            self.model.lines.pop(queue, None)
            self.settled[queue] = found
        self.model.set(queue, settings)

    def cancel(self, key: Hashable) -> None:
        """End a waiting poll."""
        assert isinstance(key, int)
        self.shard.cancel(key)
        self.model.cancel(key)
        del self.auditor.asked[key]
        self._compare()

    def advance(self, *, due: bool = True) -> None:
        """Bring both to the clocks."""
        self._learn_order_of_deaths()
        self.shard.advance(self.now, self.wall, due=due)
        self.model.advance(self.now, self.wall, self._lapses, due=due)
        self._compare()

    def _lapses(self, job: NaiveJob) -> bool:
        """A persisted job whose ttl was over while the store was away dies when its alarm comes up again, or when it is at the head."""
        return not (job.persist and self.wall <= self.model.put_off) or not (
            job.queue in self.shard.queues and job.id in self.shard.queues[job.queue].jobs
        )

    def _learn_order_of_deaths(self) -> None:
        """Among letters of one microsecond, which one goes first is the shard's to say."""
        ranks = {(name, seq): place for name, queue in self.shard.queues.items() for place, seq in enumerate(queue.dead)}
        self.model.dead.sort(key=lambda job: (job.updated_at, ranks.get((job.queue, job.seq), len(ranks))))

    def begin_commit(self) -> None:
        """Hand a batch to the store."""
        assert not self.shard.away
        self.batch = self.shard.cut()
        assert len(self.batch) <= (self.limits.batch_rows_max or len(self.batch))
        size = sum(len(row.payload) + len(row.state or b"") + len(row.queue) + len(row.id) for row in self.batch.inserts)
        assert size <= (self.limits.batch_bytes_max or size)
        self.model.cut(len(self.shard._ledger.sealed))

    def commit(self) -> None:
        """The store says yes."""
        self._apply_batch()
        self.shard.committed()
        self.model.committed()
        self._compare()

    def fail(self, reason: Reason, *, applied: bool) -> None:
        """The store says no, or does not say."""
        self.applied = applied and reason is Reason.UNKNOWN
        if self.applied:
            self._apply_batch()
        self.batch = None
        self.doubt = self.shard.failed(reason, "the store says no")
        self.model.failed(reason)
        assert {key.seq for key in self.doubt} == set(self.model.doubt)
        self._compare()

    def heal(self) -> None:
        """The store is back."""
        self.advance()
        self.shard.adopt(self.doubt, self.store.read(self.doubt))
        self.model.adopt(self.applied)
        self._compare()
        self.shard.heal()
        self.model.heal()
        self.doubt, self.applied = [], False
        self._compare()

    def crash(self, *, applied: bool) -> None:
        """Kill the process, before or after the commit under way, and start another."""
        if self.batch is not None and applied:
            self._apply_batch()
            self.model.rows = self.model.next_rows
        elif self.applied:
            self.model.rows = self.model.next_rows
        self.applied = False
        self.auditor.crash()
        self._boot(self.model.rows)
        self._compare()

    def move(self) -> None:
        """Let the shard go to another host in order, with its luggage. But for polls, which go by themselves, nothing is to be seen of it."""
        self.advance()
        self.commit_all()
        for poll in list(self.model.polls):
            self.cancel(poll.key)
        label = Label(0, 1, 7)
        bodies = list(self.shard.pack_luggage(label))
        before = self.shard
        self.shard = Shard(self.limits, self.new_run_id, lambda: DRAWN)
        self.shard.advance(self.now, self.wall, due=False)
        for queue in before.queues.values():
            if queue.settings != DEFAULT_SETTINGS:
                found = self.shard._make_queue(queue.name)
                found.settings = queue.settings
                self.shard._settings_changed(found, DEFAULT_SETTINGS)
        assert self.shard.load(self.store.load()) == []
        self.shard.finish_load()
        assert self.shard.load_luggage(read_pieces(bodies, Label(0, 1, 8))) == []
        self.shard.finish_luggage()
        for name, queue in self.settled.items():
            if before.queues.get(name) is queue and name in self.shard.queues:
                self.settled[name] = self.shard.queues[name]
        self.model.read_anew()
        assert {name: list(queue.dead) for name, queue in before.queues.items() if queue.dead} == {
            name: list(queue.dead) for name, queue in self.shard.queues.items() if queue.dead
        }
        assert (self.shard._seq, self.shard._clock, self.shard.bytes) == (before._seq, before._clock, before.bytes)
        self._compare()

    def _apply_batch(self) -> None:
        assert self.batch is not None
        self.store.commit(self.batch)
        self.batch = None
        rows = {row.seq: row for row in self.store.rows.values()}
        assert rows.keys() == self.model.next_rows.keys()
        for seq, job in self.model.next_rows.items():
            row = rows[seq]
            assert row == Row(
                row.slot,
                seq,
                job.queue,
                job.id,
                STATUS[job.status],
                job.ready_at,
                job.run_at,
                job.timeout,
                job.max_retries,
                job.attempt,
                self._run_of(job.run, row.run_id),
                job.reason,
                job.created_at,
                job.updated_at,
                job.payload,
                job.state,
                pack_extras(extras_of(job)),
            )

    def commit_all(self) -> None:
        """Commit until nothing waits."""
        if self.batch is not None:
            self.commit()
        while self.shard.has_open:
            self.begin_commit()
            self.commit()
            self.check()
        assert self.shard.pending == 0

    def check(self) -> None:
        """Check what is always true."""
        check_books(self.shard)
        self.auditor.look(self.shard, self.now)
        assert self.shard.away == self.model.away
        assert not (self.shard.away and self.shard.has_open), "something waits to be written while the store is away"
        due, event = self.shard.due_in(self.now, self.wall), self.model.next_event()
        assert event is None or (due is not None and due <= event), "its owner would oversleep"
        if not self.shard.pending and not self.doubt:
            kept = {(job.queue, job.seq) for job in self.model.live + self.model.dead if job.persist}
            assert {(row.queue, row.seq) for row in self.store.rows.values()} == kept, "the store holds what it should not, or lacks a job"

    # --- comparing -------------------------------------------------------------------------------------------------------

    def _compare(self) -> None:
        replies = self.shard.take_replies()
        answers = dict(replies)
        assert len(answers) == len(replies), "answered twice"
        expected, self.model.replies = self.model.replies, {}
        assert answers.keys() == expected.keys()
        for key, outcome in replies:
            assert isinstance(key, int)
            self._compare_answer(expected[key], outcome)
            self.auditor.answer(key, outcome, self.shard, self.now)
        notes = [(note.kind, note.queue, note.id, note.attempt) for note in self.shard.notes]
        assert sorted(notes) == sorted(self.model.notes)
        self.shard.notes.clear()
        self.model.notes.clear()
        self._compare_memory()

    def _compare_answer(self, expected: Reply, outcome: Outcome) -> None:
        match outcome:
            case Done():
                assert expected.kind == "done"
            case Refused():
                assert (expected.kind, expected.reason, expected.field) == ("refused", outcome.reason, outcome.field)
            case Delivered():
                assert expected.kind == "delivered"
                assert len(outcome.jobs) == len(expected.jobs)
                for delivery, job in zip(outcome.jobs, expected.jobs, strict=True):
                    assert replace(delivery, extras=_slim(delivery.extras)) == _delivery(job, self._run_of(job.run, delivery.run_id))
                    self.runs.setdefault((job.queue, job.id), []).append(delivery.run_id)
            case Counted():
                assert (expected.kind, expected.count, expected.more) == ("counted", outcome.jobs, outcome.more)
            case Listed():
                assert expected.kind == "listed"
                assert [replace(job, extras=_slim(job.extras)) for job in outcome.jobs] == [_letter(job) for job in expected.jobs]
            case _:
                raise AssertionError(outcome)

    def _compare_memory(self) -> None:
        shard, model = self.shard, self.model
        assert set(shard.queues) == model.queues
        assert shard.pending == model.pending
        for name, queue in shard.queues.items():
            assert sorted(queue.jobs) == sorted(job.id for job in model.live if job.queue == name)
            assert list(queue.waiters) == [poll.key for poll in model.polls if poll.queue == name]
            died = {job.seq: job for job in model.letters(name)}
            assert queue.dead.keys() == died.keys()
            order = [job.updated_at for job in queue.dead.values()]
            assert order == sorted(order), "letters are not in the order of their deaths"
            model.dead = [job for job in model.dead if job.queue != name] + [died[seq] for seq in queue.dead]
        for job in model.live + model.dead:
            queue = shard.queues[job.queue]
            self._compare_job(queue.jobs[job.id] if job.status != "dead" else queue.dead[job.seq], job)

    def _compare_job(self, job: Job, expected: NaiveJob) -> None:
        assert (
            job.seq,
            job.ready_at,
            job.status,
            job.attempt,
            job.state,
            job.reason,
            job.updated_at,
            job.run_id,
            bool(job.delivering),
            _slim(job.extras),
            job.started_at,
        ) == (
            expected.seq,
            expected.ready_at,
            STATUS[expected.status],
            expected.attempt,
            expected.state,
            expected.reason,
            expected.updated_at,
            self._run_of(expected.run, job.run_id),
            bool(expected.delivering),
            extras_of(expected),
            expected.started_at,
        )
        if expected.status == "in flight":
            assert job.deadline == self.model.deadlines[job.seq]

    def _run_of(self, run: Run | None, seen: bytes | None) -> bytes | None:
        """Return the id of a run; learn it from what was seen if this is its first time."""
        if run is not None and run.id is None and seen is not None:
            assert seen not in self.known_runs, "a run_id is used again"
            self.known_runs.add(seen)
            run.id = seen
        return None if run is None else run.id


def _slim(extras: Extras | None) -> Extras | None:
    return None if extras == Extras() else extras


def _delivery(job: NaiveJob, run_id: bytes | None) -> Delivery:
    return Delivery(
        job.queue,
        job.id,
        job.timeout,
        job.persist,
        job.max_retries,
        job.payload,
        job.state,
        job.run_at,
        run_id or b"",
        job.attempt,
        job.created_at,
        job.updated_at,
        extras_of(job),
    )


def _letter(job: NaiveJob) -> DeadLetter:
    return DeadLetter(
        job.queue,
        job.id,
        job.seq,
        job.timeout,
        job.persist,
        job.max_retries,
        job.payload,
        job.state,
        job.run_at,
        job.attempt,
        job.reason or "",
        job.created_at,
        job.updated_at,
        extras_of(job),
    )
