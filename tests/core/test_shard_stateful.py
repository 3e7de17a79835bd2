"""The shard and a naive second model of it, driven side by side through commits, refusals, doubts, crashes and clock jumps.

Three independent judges look at each step: `NaiveShard` predicts every answer and the whole memory, `FakeStore` checks each batch, and
`Auditor` knows nothing of how a shard works and only holds what it has answered against the promises.

`PROTEUS_TEST_HYPOTHESIS=deep` runs for minutes instead of seconds.
"""

from __future__ import annotations

import os
import sys
from itertools import count

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from proteus_shards.core.commands import (
    Command,
    Complete,
    DeadLetter,
    Delivered,
    Delivery,
    Done,
    Enqueue,
    Heartbeat,
    ListDead,
    Listed,
    Next,
    Outcome,
    Reason,
    Refused,
    Undeliver,
)
from proteus_shards.core.holdings import Limits
from proteus_shards.core.model import Batch, Job, Row, RowKey, Status
from proteus_shards.core.shard import Shard
from tests.core.auditor import Auditor
from tests.core.naive import NaiveJob, NaiveShard, Reply, Run
from tests.core.rig import LIMITS, NOW, SECOND, WALL, YEAR, FakeStore, check_books, run_ids

settings.register_profile(
    "core-quick", max_examples=300, stateful_step_count=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)
settings.register_profile("core-deep", settings.get_profile("core-quick"), max_examples=10_000, stateful_step_count=200)

QUEUES = ["a", "b"]
IDS = ["1", "2", "3", "4"]
STATUS = {"scheduled": Status.SCHEDULED, "ready": Status.READY, "in flight": Status.IN_FLIGHT, "dead": Status.DEAD}
TIGHT = msgspec.structs.replace(
    LIMITS,
    shard_pending_max=8,
    polls_max=2,
    queue_jobs_max=3,
    shard_jobs_max=4,
    shard_bytes_max=60,
    queues_max=1,
    dead_letters_max=1,
    dead_letters_us_max=20 * SECOND,
    row_bytes_max=14,
)
SOME_LIMITS = [
    LIMITS,
    LIMITS,
    LIMITS,
    TIGHT,
    msgspec.structs.replace(LIMITS, dead_letters_max=0),
    msgspec.structs.replace(LIMITS, dead_letters_max=2, dead_letters_us_max=5 * SECOND),
    msgspec.structs.replace(LIMITS, keeps=False),
    msgspec.structs.replace(TIGHT, shard_pending_max=1000, queues_max=10, shard_bytes_max=1000, row_bytes_max=None),
]

queues = st.sampled_from(QUEUES)
ids = st.sampled_from(IDS)
states = st.sampled_from([None, b"", b"1", b'"longer"'])
numbers = st.integers(0, 5)
small_times = st.sampled_from([0, 1, SECOND // 2, SECOND, 2 * SECOND, 5 * SECOND, 30 * SECOND])


class ShardMachine(RuleBasedStateMachine):
    """Steps of clients, of time, of the store, and of fate."""

    shard: Shard
    model: NaiveShard
    auditor: Auditor

    def __init__(self) -> None:
        super().__init__()
        self.store = FakeStore()
        self.limits = LIMITS
        self.now, self.wall = NOW, WALL
        self.keys = count(1)
        self.payloads = count(1)
        self.new_run_id = run_ids()
        self.runs: dict[tuple[str, str], list[bytes]] = {}  # that clients were told of
        self.known_runs: set[bytes] = set()
        self.batch: Batch | None = None
        self.doubt: list[RowKey] = []
        self.age = 0  # commands since the last start
        self.applied = False

    @initialize(limits=st.sampled_from(SOME_LIMITS))
    def start(self, limits: Limits) -> None:
        """Begin with an empty store."""
        self.limits = limits
        self.auditor = Auditor(self.store)
        self._boot({})

    def _boot(self, rows: dict[int, NaiveJob]) -> None:
        self.batch, self.doubt, self.age = None, [], 0
        self.shard = Shard(self.limits, self.new_run_id)
        self.model = NaiveShard(self.limits)
        self.shard.advance(self.now, self.wall)
        self.model.advance(self.now, self.wall, lambda _: True)
        assert self.shard.load(self.store.load()) == []
        self.shard.finish_load()
        self.model.load(rows)

    # --- clients -------------------------------------------------------------------------------------------------------

    @rule(
        queue=queues,
        job_id=ids,
        timeout=st.sampled_from([0, 1, 5]),
        persist=st.booleans(),
        max_retries=st.sampled_from([-1, 0, 1]),
        state=states,
        run_at=st.sampled_from([None, None, None, -SECOND, 0, SECOND // 2, 2 * SECOND]),
    )
    def enqueue(self, queue: str, job_id: str, timeout: int, persist: bool, max_retries: int, state: bytes | None, run_at: int | None) -> None:
        """Enqueue a job with a payload of its own."""
        run_at_us = None if run_at is None else self.wall + run_at
        self._ask(Enqueue(queue, job_id, timeout, persist, max_retries, b"%d" % next(self.payloads), state, run_at_us))

    @rule(queue=queues, number=st.sampled_from([1, 1, 2, 10]), wait=small_times)
    def next(self, queue: str, number: int, wait: int) -> None:
        """Ask for jobs."""
        self._ask(Next(queue, number, wait))

    @precondition(lambda self: self._running())
    @rule(number=numbers, which=st.sampled_from([None, 0, 0, 0, 1]), state=states)
    def heartbeat(self, number: int, which: int | None, state: bytes | None) -> None:
        """Say that a run goes on, or did."""
        job = self._pick(self._running(), number)
        self._ask(Heartbeat(job.queue, job.id, self._run_id(job, which), state))

    @precondition(lambda self: self._running())
    @rule(number=numbers, which=st.sampled_from([0, 0, 0, 1]))
    def undeliver(self, number: int, which: int) -> None:
        """Give a delivery back."""
        job = self._pick(self._running(), number)
        self._ask(Undeliver(job.queue, job.id, self._run_id(job, which) or b""))

    @precondition(lambda self: self.model.live)
    @rule(number=numbers, which=st.sampled_from([None, 0, 0, 1]))
    def complete(self, number: int, which: int | None) -> None:
        """Complete a job, in flight or not."""
        job = self._pick(self.model.live, number)
        self._ask(Complete(job.queue, job.id, self._run_id(job, which)))

    @precondition(lambda self: self.age % 8 == 0)
    @rule(queue=queues, job_id=ids, kind=st.sampled_from([Heartbeat, Complete, Undeliver, ListDead]), which=st.sampled_from([b"", b"\xff" * 16]))
    def stray(self, queue: str, job_id: str, kind: type[Heartbeat | Complete | Undeliver | ListDead], which: bytes) -> None:
        """Ask for what may not be there."""
        self._ask(ListDead(queue) if kind is ListDead else kind(queue, job_id, which))  # type: ignore[arg-type]

    @precondition(lambda self: self.model.dead)
    @rule(queue=queues, number=st.sampled_from([1, 100]), after=st.sampled_from([-1, -1, 0, 1, 2]))
    def list_dead(self, queue: str, number: int, after: int) -> None:
        """List dead letters, from the start or from one of them."""
        letters = self.model.letters(queue)
        self._ask(ListDead(queue, number, letters[after].seq if 0 <= after < len(letters) else -1))

    @precondition(lambda self: self.model.polls)
    @rule(which=st.integers(0, 9))
    def cancel(self, which: int) -> None:
        """End a waiting poll."""
        key = self.model.polls[which % len(self.model.polls)].key
        assert isinstance(key, int)
        self.shard.cancel(key)
        self.model.cancel(key)
        del self.auditor.asked[key]
        self._compare()

    def _running(self) -> list[NaiveJob]:
        return [job for job in self.model.live if job.status == "in flight"]

    def _pick(self, jobs: list[NaiveJob], number: int) -> NaiveJob:
        return jobs[number % len(jobs)]

    def _run_id(self, job: NaiveJob, which: int | None) -> bytes | None:
        """Return a run id that a client may know: the last one of a job, or one before it."""
        told = self.runs.get((job.queue, job.id), [])
        if which is None:
            return None
        return told[-1 - which] if which < len(told) else b"\xff" * 16

    def _ask(self, command: Command) -> None:
        key = next(self.keys)
        self.age += 1
        self.auditor.ask(key, command, self.shard, self.now)
        self.shard.apply(key, command)
        self.model.apply(key, command)
        self._compare()

    @rule(queue=queues, job_id=ids, persist=st.booleans(), commit=st.booleans())
    def use_up(self, queue: str, job_id: str, persist: bool, commit: bool) -> None:
        """Let a job, and perhaps others, have its last run."""
        self.enqueue(queue, job_id, 1, persist, 0, None, None)
        if commit and not self.shard.away:
            self.commit_all()
        self.next(queue, 10, 0)
        if commit and not self.shard.away:
            self.commit_all()
        self.pass_time(2 * SECOND, 0)

    # --- time ------------------------------------------------------------------------------------------------------------

    @rule(step=small_times, jump=st.sampled_from([0, 0, 0, 0, 0, 0, -SECOND, -3600 * SECOND, 3600 * SECOND, -10 * YEAR]))
    def pass_time(self, step: int, jump: int) -> None:
        """Let time go on; sometimes the wall clock is set."""
        self.now += step
        self.wall += step + jump
        self._advance()

    @precondition(lambda self: self.shard.due_in(self.now, self.wall) == 0)
    @rule()
    def settle(self) -> None:
        """Do what is due until nothing is: the shard must not keep its owner busy for ever."""
        for _ in range(20):
            if self.shard.due_in(self.now, self.wall) != 0:
                return
            self._advance()
        raise AssertionError("it never settles")

    def _advance(self) -> None:
        self.shard.advance(self.now, self.wall)
        self.model.advance(self.now, self.wall, lambda job: job.queue in self.shard.queues and job.seq in self.shard.queues[job.queue].dead)
        self._compare()

    # --- the store -------------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.batch is None and self.shard.has_open)
    @rule()
    def begin_commit(self) -> None:
        """Hand a batch to the store."""
        assert not self.shard.away
        self.batch = self.shard.cut()
        self.model.cut()

    @precondition(lambda self: self.shard.has_open and not self.shard.away)
    @rule()
    def commit_all(self) -> None:
        """Commit until nothing waits."""
        if self.batch is not None:
            self.commit()
        self._commit_all()

    @precondition(lambda self: self.batch is not None)
    @rule()
    def commit(self) -> None:
        """The store says yes."""
        self._apply_batch()
        self.shard.committed()
        self.model.committed()
        self._compare()

    @precondition(lambda self: self.batch is None and self.shard.has_open)
    @rule(reason=st.sampled_from([Reason.BUSY, Reason.UNKNOWN]), applied=st.booleans(), heal=st.booleans())
    def commit_in_vain(self, reason: Reason, applied: bool, heal: bool) -> None:
        """The store fails, and is back at once or not."""
        self.begin_commit()
        self.fail(reason, applied)
        if heal:
            self.heal()

    @precondition(lambda self: self.batch is not None)
    @rule(reason=st.sampled_from([Reason.BUSY, Reason.UNKNOWN]), applied=st.booleans())
    def fail(self, reason: Reason, applied: bool) -> None:
        """The store says no, or does not say."""
        self.applied = applied and reason is Reason.UNKNOWN
        if self.applied:
            self._apply_batch()
        self.batch = None
        self.doubt = self.shard.failed(reason, "the store says no")
        self.model.failed(reason)
        assert {key.seq for key in self.doubt} == set(self.model.doubt)
        self._compare()

    @precondition(lambda self: self.shard.away)
    @rule()
    def heal(self) -> None:
        """The store is back."""
        self._advance()
        self.shard.adopt(self.doubt, self.store.read(self.doubt))
        self.model.adopt(self.applied)
        self._compare()
        self.shard.heal()
        self.model.heal()
        self.doubt, self.applied = [], False
        self._compare()

    @precondition(lambda self: self.age > 10)
    @rule(applied=st.booleans())
    def crash(self, applied: bool) -> None:
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
            )

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
                    assert delivery == _delivery(job, self._run_of(job.run, delivery.run_id))
                    self.runs.setdefault((job.queue, job.id), []).append(delivery.run_id)
            case Listed():
                assert expected.kind == "listed"
                assert outcome.jobs == [_letter(job) for job in expected.jobs]
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
        assert (job.seq, job.ready_at, job.status, job.attempt, job.state, job.reason, job.updated_at, job.run_id, bool(job.delivering)) == (
            expected.seq,
            expected.ready_at,
            STATUS[expected.status],
            expected.attempt,
            expected.state,
            expected.reason,
            expected.updated_at,
            self._run_of(expected.run, job.run_id),
            expected.delivering,
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

    @invariant()
    def holds(self) -> None:
        """What is always true."""
        if not hasattr(self, "shard"):
            return
        check_books(self.shard)
        self.auditor.look(self.shard, self.now)
        assert self.shard.away == self.model.away
        assert not (self.shard.away and self.shard.has_open), "something waits to be written while the store is away"
        due, event = self.shard.due_in(self.now, self.wall), self.model.next_event()
        assert event is None or (due is not None and due <= event), "its owner would oversleep"
        if not self.shard.pending and not self.doubt:
            kept = {(job.queue, job.seq) for job in self.model.live + self.model.dead if job.persist}
            assert {(row.queue, row.seq) for row in self.store.rows.values()} == kept, "the store holds what it should not, or lacks a job"

    def teardown(self) -> None:
        """Heal everything; then all that was asked is answered, and all that was promised can be had."""
        if not hasattr(self, "shard") or sys.exc_info()[0] is not None:
            return
        if self.batch is not None:
            self.commit()
        if self.shard.away:
            self.heal()
        self._commit_all()
        assert set(self.auditor.asked) == {poll.key for poll in self.model.polls}, "a command was never answered"
        for poll in list(self.model.polls):
            self.shard.cancel(poll.key)
            self.model.cancel(poll.key)
        self.wall = max(self.wall, self.model.clock) + 60 * SECOND
        self.now += 60 * SECOND
        self._advance()
        self._commit_all()
        for queue in QUEUES:
            while any(job.queue == queue for job in self.model.live):
                self._ask(Next(queue, 100))
                self._commit_all()
                for job in [job for job in self.model.live if job.queue == queue]:
                    assert job.status == "in flight"
                    self._ask(Complete(queue, job.id, self.runs[(queue, job.id)][-1]))
                self._commit_all()
        assert {row.status for row in self.store.rows.values()} <= {Status.DEAD}

    def _commit_all(self) -> None:
        while self.shard.has_open:
            self.begin_commit()
            self.commit()
            self.holds()
        assert self.shard.pending == 0


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
    )


TestShard = ShardMachine.TestCase
TestShard.settings = settings.get_profile(f"core-{os.environ.get('PROTEUS_TEST_HYPOTHESIS', 'quick')}")
