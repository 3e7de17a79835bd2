"""The shard and a naive second model of it, driven side by side through commits, refusals, doubts, crashes and clock jumps.

Three independent judges look at each step: `NaiveShard` predicts every answer and the whole memory, `FakeStore` checks each batch, and
`Auditor` knows nothing of how a shard works and only holds what it has answered against the promises.

`PROTEUS_TEST_HYPOTHESIS=deep` runs for many minutes instead of seconds.
"""

from __future__ import annotations

import os
import sys
from itertools import count

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from proteus_shards.core.commands import Complete, Enqueue, Heartbeat, ListDead, Next, Options, Reason, Undeliver
from proteus_shards.core.commands_control import Change, Fail, Purge, Redrive, Release, State
from proteus_shards.core.extras import Backoff
from proteus_shards.core.holdings import Limits
from proteus_shards.core.model import Status
from proteus_shards.core.queue_settings import BackoffSettings, QueueSettings, RateSettings
from tests.core.naive_words import NaiveJob
from tests.core.rig import LIMITS, SECOND, YEAR
from tests.core.side_by_side import SideBySide

settings.register_profile(
    "core-quick",
    max_examples=300,
    stateful_step_count=100,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
settings.register_profile("core-deep", settings.get_profile("core-quick"), max_examples=10_000, stateful_step_count=200)

QUEUES = ["a", "b"]
IDS = ["1", "2", "3", "4"]
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
    msgspec.structs.replace(LIMITS, batch_rows_max=1),
    msgspec.structs.replace(LIMITS, batch_rows_max=2),
    msgspec.structs.replace(LIMITS, batch_bytes_max=9000),
    msgspec.structs.replace(TIGHT, shard_pending_max=1000, queues_max=10, shard_bytes_max=1000, row_bytes_max=None),
]

SOME_OPTIONS = [
    None,
    Options(key="k"),
    Options(key="k"),
    Options(key="k", priority=1),
    Options(key="l"),
    Options(key="k", backoff=Backoff(SECOND, 2.0, 3 * SECOND, 0.5)),
    Options(key="k", ttl_us=3 * SECOND),
    Options(priority=2),
    Options(priority=-1),
    Options(ttl_us=SECOND, trace="t"),
]
SOME_SETTINGS = [
    QueueSettings(),
    QueueSettings(on_retry="skip"),
    QueueSettings(delayed_head="hold"),
    QueueSettings(on_retry="skip", delayed_head="hold", backoff=BackoffSettings(seconds=2)),
    QueueSettings(backoff=BackoffSettings(seconds=1, factor=3, seconds_max=5, jitter=0.2)),
    QueueSettings(paused=True),
    QueueSettings(max_in_flight=1),
    QueueSettings(max_in_flight=2, ttl=3),
    QueueSettings(rate=RateSettings(jobs=3, seconds=7)),
    QueueSettings(rate=RateSettings(jobs=2, seconds=1, burst=1), jobs_max=3),
]

queues = st.sampled_from(QUEUES)
reasons = st.sampled_from([Reason.BUSY, Reason.UNKNOWN])
ids = st.sampled_from(IDS)
states = st.sampled_from([None, b"", b"1", b'"longer"'])
numbers = st.integers(0, 5)
small_times = st.sampled_from([0, 1, SECOND // 2, SECOND, 2 * SECOND, 5 * SECOND, 30 * SECOND])


class ShardMachine(RuleBasedStateMachine):
    """Steps of clients, of time, of the store, and of fate."""

    pair: SideBySide

    def __init__(self) -> None:
        super().__init__()
        self.payloads = count(1)

    @initialize(limits=st.sampled_from(SOME_LIMITS))
    def start(self, limits: Limits) -> None:
        """Begin with an empty store."""
        self.pair = SideBySide(limits)

    # --- clients -------------------------------------------------------------------------------------------------------

    @rule(
        queue=queues,
        job_id=ids,
        timeout=st.sampled_from([0, 1, 5]),
        persist=st.booleans(),
        max_retries=st.sampled_from([-1, 0, 1]),
        state=states,
        run_at=st.sampled_from([None, None, None, -SECOND, 0, SECOND // 2, 2 * SECOND]),
        options=st.sampled_from([None, *SOME_OPTIONS]),
    )
    def enqueue(
        self,
        queue: str,
        job_id: str,
        timeout: int,
        persist: bool,
        max_retries: int,
        state: bytes | None,
        run_at: int | None,
        options: Options | None = None,
    ) -> None:
        """Enqueue a job with a payload of its own."""
        run_at_us = None if run_at is None else self.pair.wall + run_at
        self.pair.ask(Enqueue(queue, job_id, timeout, persist, max_retries, b"%d" % next(self.payloads), state, run_at_us, options))

    @rule(queue=queues, number=st.sampled_from([1, 1, 2, 10]), wait=small_times)
    def next(self, queue: str, number: int, wait: int) -> None:
        """Ask for jobs."""
        self.pair.ask(Next(queue, number, wait))

    @precondition(lambda self: self._running())
    @rule(number=numbers, which=st.sampled_from([None, 0, 0, 0, 1]), state=states)
    def heartbeat(self, number: int, which: int | None, state: bytes | None) -> None:
        """Say that a run goes on, or did."""
        job = _pick(self._running(), number)
        self.pair.ask(Heartbeat(job.queue, job.id, self._run_id(job, which), state))

    @precondition(lambda self: self._running())
    @rule(number=numbers, which=st.sampled_from([0, 0, 0, 1]))
    def undeliver(self, number: int, which: int) -> None:
        """Give a delivery back."""
        job = _pick(self._running(), number)
        self.pair.ask(Undeliver(job.queue, job.id, self._run_id(job, which) or b""))

    @precondition(lambda self: self._running())
    @rule(
        number=numbers,
        which=st.sampled_from([None, 0, 0, 1]),
        error=st.sampled_from([None, "why"]),
        delay=st.sampled_from([None, None, 0, SECOND]),
    )
    def fail_run(self, number: int, which: int | None, error: str | None, delay: int | None) -> None:
        """Say that a run has failed."""
        job = _pick(self._running(), number)
        self.pair.ask(Fail(job.queue, job.id, self._run_id(job, which), error, delay))

    @precondition(lambda self: self._running())
    @rule(number=numbers, which=st.sampled_from([None, 0, 0, 1]), delay=st.sampled_from([0, 0, SECOND]))
    def release(self, number: int, which: int | None, delay: int) -> None:
        """Give a run up for now."""
        job = _pick(self._running(), number)
        self.pair.ask(Release(job.queue, job.id, self._run_id(job, which), delay))

    @rule(queue=queues, settings=st.sampled_from(SOME_SETTINGS))
    def set(self, queue: str, settings: QueueSettings) -> None:
        """Give a queue other settings."""
        self.pair.auditor.lapses = self.pair.auditor.lapses or settings.ttl is not None
        self.pair.set(queue, settings)

    @precondition(lambda self: self.pair.model.live)
    @rule(number=numbers, which=st.sampled_from([None, 0, 0, 1]))
    def complete(self, number: int, which: int | None) -> None:
        """Complete a job, in flight or not."""
        job = _pick(self.pair.model.live, number)
        self.pair.ask(Complete(job.queue, job.id, self._run_id(job, which)))

    @precondition(lambda self: self.pair.age % 8 == 0)
    @rule(
        queue=queues,
        job_id=ids,
        kind=st.sampled_from([Heartbeat, Complete, Undeliver, Fail, Release]),
        run_id=st.sampled_from([b"", b"\xff" * 16]),
    )
    def stray(self, queue: str, job_id: str, kind: type[Heartbeat | Complete | Undeliver | Fail | Release], run_id: bytes) -> None:
        """Speak for a run that never was."""
        self.pair.ask(kind(queue, job_id, run_id))

    @precondition(lambda self: self.pair.model.dead)
    @rule(queue=queues, number=st.sampled_from([1, 100]), after=st.sampled_from([-1, -1, 0, 1, 2]))
    def list_dead(self, queue: str, number: int, after: int) -> None:
        """List dead letters, from the start or from one of them."""
        letters = self.pair.model.letters(queue)
        self.pair.ask(ListDead(queue, number, letters[after].seq if 0 <= after < len(letters) else -1))

    @rule(queue=queues, states=st.sampled_from([[], ["dead"], [str(state) for state in State]]), job_id=st.sampled_from([None, *IDS]))
    def purge(self, queue: str, states: list[str], job_id: str | None) -> None:
        """Remove jobs; where a batch holds only some, one at a time."""
        ids = [job_id] if job_id is not None else None
        if not self._is_bounded(queue, ids):
            self.pair.ask(Purge(queue, states, None, ids))

    @precondition(lambda self: self.pair.model.dead)
    @rule(queue=queues, job_id=st.sampled_from([None, *IDS]))
    def redrive(self, queue: str, job_id: str | None) -> None:
        """Bring dead letters back."""
        ids = [job_id] if job_id is not None else None
        if not self._is_bounded(queue, ids):
            self.pair.ask(Redrive(queue, ids))

    def _is_bounded(self, queue: str, ids: list[str] | None) -> bool:
        """Say whether a batch of the store may have no room for all jobs that are meant: then the shard may take some of them."""
        limits, model = self.pair.limits, self.pair.model
        meant = [job for job in model.live + model.dead if job.queue == queue and (ids is None or job.id in ids)]
        return len(meant) > 1 and (limits.batch_rows_max is not None or limits.batch_bytes_max is not None)

    @rule(
        queue=queues,
        job_id=ids,
        run_at=st.sampled_from([None, None, 0, -SECOND, SECOND, 5 * SECOND]),
        priority=st.sampled_from([None, 0, 2, -1]),
    )
    def change(self, queue: str, job_id: str, run_at: int | None, priority: int | None) -> None:
        """Give a job another time, another priority, or both. Another time means another row: no store takes one row at a time."""
        if self.pair.limits.batch_rows_max == 1:
            return
        at = None if run_at is None else 0 if run_at == 0 else self.pair.wall + run_at
        self.pair.ask(Change(queue, job_id, at, priority))

    @precondition(lambda self: self.pair.model.polls)
    @rule(which=st.integers(0, 9))
    def cancel(self, which: int) -> None:
        """End a waiting poll."""
        polls = self.pair.model.polls
        self.pair.cancel(polls[which % len(polls)].key)

    @rule(queue=queues, job_id=ids, persist=st.booleans(), commit=st.booleans())
    def use_up(self, queue: str, job_id: str, persist: bool, commit: bool) -> None:
        """Let a job, and perhaps others, have its last run."""
        self.enqueue(queue, job_id, 1, persist, 0, None, None)
        if commit:
            self.pair.commit_all()
        self.next(queue, 10, 0)
        if commit:
            self.pair.commit_all()
        self.pass_time(2 * SECOND, 0, due=True)

    def _running(self) -> list[NaiveJob]:
        return [job for job in self.pair.model.live if job.status == "in flight"]

    def _run_id(self, job: NaiveJob, which: int | None) -> bytes | None:
        """Return a run id that a client may know: the last one of a job, or the one before it."""
        told = self.pair.runs.get((job.queue, job.id), [])
        if which is None:
            return None
        return told[-1 - which] if which < len(told) else b"\xff" * 16

    # --- time ------------------------------------------------------------------------------------------------------------

    @rule(
        step=small_times,
        jump=st.sampled_from([0, 0, 0, 0, 0, 0, -SECOND, -3600 * SECOND, 3600 * SECOND, -10 * YEAR]),
        due=st.sampled_from([True, True, True, False]),
    )
    def pass_time(self, step: int, jump: int, due: bool) -> None:
        """Let time go on; sometimes the wall clock is set, sometimes there is no time yet for what is due."""
        self.pair.now += step
        self.pair.wall += step + jump
        self.pair.advance(due=due)

    @precondition(lambda self: self._is_due())
    @rule()
    def settle(self) -> None:
        """Do what is due until nothing is: the shard must not keep its owner busy for ever."""
        for _ in range(20):
            if not self._is_due():
                return
            self.pair.advance()
        raise AssertionError("it never settles")

    def _is_due(self) -> bool:
        return self.pair.shard.due_in(self.pair.now, self.pair.wall) == 0

    # --- the store -------------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.pair.batch is None and self.pair.shard.has_open)
    @rule()
    def begin_commit(self) -> None:
        """Hand a batch to the store."""
        self.pair.begin_commit()

    @precondition(lambda self: self.pair.batch is not None)
    @rule()
    def commit(self) -> None:
        """Let the store say yes."""
        self.pair.commit()

    @precondition(lambda self: self.pair.shard.has_open)
    @rule()
    def commit_all(self) -> None:
        """Commit until nothing waits."""
        self.pair.commit_all()

    @precondition(lambda self: self.pair.batch is not None)
    @rule(reason=reasons, applied=st.booleans())
    def fail(self, reason: Reason, applied: bool) -> None:
        """Let the store say no, or not say."""
        self.pair.fail(reason, applied=applied)

    @precondition(lambda self: self.pair.batch is None and self.pair.shard.has_open)
    @rule(reason=reasons, applied=st.booleans(), heal=st.booleans())
    def fail_at_once(self, reason: Reason, applied: bool, heal: bool) -> None:
        """Begin a commit in vain; the store is back at once or not."""
        self.pair.begin_commit()
        self.pair.fail(reason, applied=applied)
        if heal:
            self.pair.heal()

    @precondition(lambda self: self.pair.shard.away)
    @rule()
    def heal(self) -> None:
        """Let the store come back."""
        self.pair.heal()

    @precondition(lambda self: self.pair.age > 10)
    @rule(applied=st.booleans())
    def crash(self, applied: bool) -> None:
        """Kill the process, before or after the commit under way, and start another."""
        self.pair.crash(applied=applied)

    @precondition(lambda self: self.pair.age > 5 and self.pair.batch is None and not self.pair.shard.away)
    @rule()
    def move(self) -> None:
        """Let the shard go to another host in order."""
        self.pair.move()

    # --- judging ---------------------------------------------------------------------------------------------------------

    @invariant()
    def holds(self) -> None:
        """Check what is always true."""
        if hasattr(self, "pair"):
            self.pair.check()

    def teardown(self) -> None:
        """Heal everything; then all that was asked is answered, and all that was promised can be had."""
        if not hasattr(self, "pair") or sys.exc_info()[0] is not None:
            return
        pair = self.pair
        if pair.batch is not None:
            pair.commit()
        if pair.shard.away:
            pair.heal()
        pair.commit_all()
        assert set(pair.auditor.asked) == {poll.key for poll in pair.model.polls}, "a command was never answered"
        for poll in list(pair.model.polls):
            pair.cancel(poll.key)
        pair.wall = max(pair.wall, pair.model.clock)
        self.pass_time(60 * SECOND, 0, due=True)
        pair.commit_all()
        for queue in QUEUES:
            pair.set(queue, QueueSettings())
            while any(job.queue == queue for job in pair.model.live):
                pair.ask(Next(queue, 100))
                pair.commit_all()
                runs = [job for job in pair.model.live if job.queue == queue and job.status == "in flight"]
                if not runs:  # what holds its key backs off
                    self.pass_time(60 * SECOND, 0, due=True)
                    pair.commit_all()
                    pair.ask(Next(queue, 100))
                    pair.commit_all()
                    runs = [job for job in pair.model.live if job.queue == queue and job.status == "in flight"]
                assert runs or not any(job.queue == queue for job in pair.model.live), "there are jobs, and none is delivered"
                for job in runs:
                    pair.ask(Complete(queue, job.id, self._run_id(job, 0)))
                pair.commit_all()
        assert {row.status for row in pair.store.rows.values()} <= {Status.DEAD}


def _pick(jobs: list[NaiveJob], number: int) -> NaiveJob:
    return jobs[number % len(jobs)]


TestShard = ShardMachine.TestCase
TestShard.settings = settings.get_profile(f"core-{os.environ.get('PROTEUS_TEST_HYPOTHESIS', 'quick')}")
