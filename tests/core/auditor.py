"""Holds what a shard has answered against what is promised, and knows nothing of how a shard works.

It knows a job by its payload, which is unique, and believes only answers. Where an answer is unsure (a refusal that may have had an
effect, a crash) it asks for less, never for more.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count

from proteus_shards.core.commands import Command, Complete, Delivered, Delivery, Done, Enqueue, Heartbeat, Outcome, Undeliver
from proteus_shards.core.commands_control import Change, Fail, Purge, Redrive, Release
from proteus_shards.core.model import Job, Row, Status
from proteus_shards.core.shard import Shard
from tests.core.rig import SECOND, FakeStore


@dataclass
class Told:
    """What is known of one job by what was asked and answered."""

    command: Enqueue
    sent: int
    acked: int | None = None
    may_be_gone: bool = False  # someone has asked to complete it
    gone: bool = False  # its completion was acknowledged
    changed: bool = False  # someone has asked for another place in the queue
    redriven: bool = False  # someone has asked to bring it back from the dead
    may_be_dropped: bool = False  # it was in its last run, or a dead letter
    delivered: bool = False  # somebody was given it once
    deliveries: int = 0
    attempt: int = 0  # of the last delivery that was kept
    run_id: bytes | None = None  # the last run that somebody was given
    ended: set[bytes] = field(default_factory=set)  # a run that somebody has ended
    untold: set[bytes] = field(default_factory=set)  # one that was released before anybody was told of it
    run_until: int = 0  # until then nobody else may get it


class Auditor:
    """Checks every answer, and between two steps that everything promised is there."""

    def __init__(self, store: FakeStore) -> None:
        self.store = store
        self.jobs: dict[bytes, Told] = {}
        self.asked: dict[int, tuple[Command, Told | None, int]] = {}  # the command, its job, and until when a heartbeat would hold the run
        self.run_ids: set[bytes] = set()
        self.ticks = count(1)
        self.lapses = False  # whether a queue has, or had, a ttl

    def ask(self, key: int, command: Command, shard: Shard, now: int) -> None:
        """Take note of a command that is about to be sent."""
        told, until, job_run = None, 0, None
        if isinstance(command, Enqueue):
            told = self.jobs[command.payload] = Told(command, next(self.ticks))
        elif isinstance(command, Complete | Heartbeat | Undeliver | Fail | Release):
            job = _live(shard, command.queue).get(command.id)
            if job is not None and (command.run_id == job.run_id or (command.run_id is None and not isinstance(command, Undeliver))):
                told, job_run = self.jobs[job.payload], job.run_id
                until = now + job.timeout * SECOND if job.run_id == told.run_id else 0
        elif isinstance(command, Change) and (waiting := _live(shard, command.queue).get(command.id)) is not None:
            told = self.jobs[waiting.payload]
            told.changed = True
        elif isinstance(command, Purge | Redrive):
            for other in self.jobs.values():
                if other.command.queue == command.queue and (command.ids is None or other.command.id in command.ids):
                    other.may_be_gone = other.may_be_gone or isinstance(command, Purge)
                    other.redriven = other.redriven or isinstance(command, Redrive)
        if told is not None and isinstance(command, Complete):
            told.may_be_gone = True
        if job_run is not None and told is not None and isinstance(command, Fail | Release):
            told.ended.add(job_run)  # perhaps before anybody is told of it
        if told is not None and isinstance(command, Fail):
            told.run_id = None
        if told is not None and job_run is not None and isinstance(command, Release) and job_run not in self.run_ids:
            told.untold.add(job_run)  # whoever is told of that run later has it no more, and it does not count
        elif told is not None and isinstance(command, Undeliver | Release):
            told.run_id = None
            told.deliveries -= 1
            told.attempt -= 1
        self.asked[key] = (command, told, until)

    def answer(self, key: int, outcome: Outcome, shard: Shard, now: int) -> None:
        """Check an answer."""
        command, told, until = self.asked.pop(key)
        if isinstance(outcome, Delivered):
            for job in outcome.jobs:
                self._delivered(job, shard, now)
        elif isinstance(outcome, Done):
            assert told is not None, "done, but to which job?"
            row = self._row(told)
            match command:
                case Enqueue():
                    told.acked = next(self.ticks)
                    assert row is not None or told.may_be_gone or told.may_be_dropped or not command.persist, (
                        "acknowledged before it was stored"
                    )
                case Complete():
                    told.gone = True
                    assert row is None, "completed, but still stored"
                case Heartbeat():
                    told.run_until = max(told.run_until, until)

    def _delivered(self, job: Delivery, shard: Shard, now: int) -> None:
        told = self.jobs[job.payload]
        sent = told.command
        assert (job.queue, job.id, job.timeout, job.persist, job.max_retries, job.run_at) == (
            sent.queue,
            sent.id,
            sent.timeout,
            sent.persist,
            sent.max_retries,
            job.run_at if told.changed else sent.run_at_us,
        ), "not what was enqueued"
        assert job.run_id not in self.run_ids, "two deliveries under one run_id"
        assert not told.gone, "delivered after its completion"
        assert told.run_id is None or now >= told.run_until, "delivered while another run was valid"
        if job.run_id in told.untold:
            self.run_ids.add(job.run_id)
            return
        assert job.attempt > told.attempt or told.redriven, "attempts are not counted"
        key = sent.options.key if sent.options is not None else None
        for other in self.jobs.values() if key is not None else ():
            options = other.command.options
            if other is not told and options is not None and (other.command.queue, options.key) == (sent.queue, key):
                runs = other.run_id is not None and now < other.run_until and not other.may_be_gone
                assert not runs, "delivered while another job of its key was in flight"
        if not (told.delivered or told.changed or told.redriven) and sent.run_at_us is None and sent.options is None:
            self._check_first(told, shard)
        told.deliveries += 1
        if sent.max_retries >= 0 and not told.redriven:
            assert max(told.deliveries, job.attempt) <= sent.max_retries + 1, "delivered too often"
        row = self._row(told)
        if sent.persist and job.run_id not in told.ended:
            assert told.may_be_gone if row is None else row.attempt >= job.attempt, "delivered before it was stored"
        self.run_ids.add(job.run_id)
        told.delivered, told.attempt, told.run_until = True, job.attempt, now + sent.timeout * SECOND
        told.run_id = job.run_id if job.run_id not in told.ended else None

    def _check_first(self, told: Told, shard: Shard) -> None:
        for job in _live(shard, told.command.queue).values():
            other = self.jobs[job.payload]
            if other.command.options is not None or other.changed:
                continue
            waits = job.status is Status.READY and job.attempt == 0 and job.run_at is None and not other.delivered
            assert not waits or other.acked is None or other.acked > told.sent, "delivered before a job that was accepted earlier"

    def look(self, shard: Shard, now: int) -> None:
        """Look for all that is promised."""
        live = {job.payload: job for name in shard.queues for job in _live(shard, name).values()}
        dead = {job.payload for queue in shard.queues.values() for job in queue.dead.values()}
        for payload, told in self.jobs.items():
            last = max(told.attempt, live[payload].attempt if payload in live else 0) > told.command.max_retries >= 0
            options = told.command.options
            lapses = self.lapses or (options is not None and options.ttl_us is not None)
            told.may_be_dropped = told.may_be_dropped or payload in dead or last or lapses
            if told.acked is None or told.may_be_gone:
                continue
            assert payload in live or payload in dead or told.may_be_dropped, "an acknowledged job is lost"
            if told.run_id is not None and now < told.run_until:
                job = live[payload]
                assert (job.status, job.run_id) == (Status.IN_FLIGHT, told.run_id), "a run has ended early"

    def crash(self) -> None:
        """Take note that the process has ended: memory jobs are gone, and what was asked will never be answered."""
        for payload, told in list(self.jobs.items()):
            if not told.command.persist:
                del self.jobs[payload]
        self.asked.clear()

    def _row(self, told: Told) -> Row | None:
        return next((row for row in self.store.rows.values() if row.payload == told.command.payload), None)


def _live(shard: Shard, queue: str) -> dict[str, Job]:
    return shard.queues[queue].jobs if queue in shard.queues else {}
