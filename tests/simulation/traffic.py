"""What clients ask for: draws of commands from a few queues and ids, so that they get into each other's way."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TypeAlias

from proteus_shards.core.commands import (
    Command,
    Complete,
    Delivery,
    Enqueue,
    EnqueueAll,
    EnqueueOnce,
    Heartbeat,
    ListDead,
    Next,
    Options,
    Requeue,
    Undeliver,
)
from proteus_shards.core.commands_control import Change, DropSchedule, Fail, GetQueue, Purge, PutSchedule, Redrive, Release, SetQueue, State
from proteus_shards.core.extras import Backoff
from tests.simulation.disk import POISON
from tests.simulation.plan import PATCHES, SECOND, Plan

Run: TypeAlias = tuple[str, str, bytes]

REMEMBERED = 40
STATES = [str(state) for state in State]
DELAY_US_MAX = 10 * SECOND


class Traffic:
    """Clients that remember the runs they were given, and what they asked for lately."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.runs: deque[Run] = deque(maxlen=REMEMBERED)
        self._recent: dict[str, deque[Command]] = {queue: deque(maxlen=8) for queue in plan.queues}
        self._random = plan.random.random
        self._payloads = 0
        self.run_at_max = 0

    def learn(self, jobs: Sequence[Delivery]) -> None:
        """Remember what was delivered."""
        for job in jobs:
            self.runs.append((job.queue, job.id, job.run_id))

    def draw(self, queue: str, wall: int) -> Command:
        """Return something to ask for in a queue."""
        draw, plan = self._random, self.plan
        recent = self._recent[queue]
        if recent and draw() < plan.retried:
            return recent[int(draw() * len(recent))]  # a client that had no answer, or did not like it
        if plan.operated and draw() < plan.operated:
            asked = self._operate(queue, wall)
            recent.append(asked)
            return asked
        if plan.recurring and draw() < plan.recurring:
            return self._schedule(queue)
        kind = draw()
        if kind < 0.34:
            command = self._add(queue, wall)
        elif kind < 0.64:
            wait = int(draw() * 5 * SECOND) + 1 if draw() < plan.polls else 0
            command = Next(queue, 1 if draw() < 0.6 else 1 + int(draw() * 5), wait)
        elif kind < 0.985:
            command = self._about_a_run(queue, kind)
        else:
            command = ListDead(queue)
        recent.append(command)
        return command

    def _add(self, queue: str, wall: int) -> Command:
        draw, plan = self._random, self.plan
        if plan.stepping and draw() < plan.stepping:
            jobs = [self._enqueue(queue, wall) for _ in range(1 + int(draw() * 3))]
            run = self.run_of(queue) if draw() < 0.5 else None
            return EnqueueAll(queue, jobs) if run is None else Requeue(*run, jobs)
        job = self._enqueue(queue, wall)
        if plan.named and draw() < plan.named:
            name = job.payload if draw() < 0.9 else b"%d" % (self._payloads - int(draw() * 9))
            return EnqueueOnce(queue, name.decode(), job.payload, [job])
        return job

    def _schedule(self, queue: str) -> Command:
        draw, plan = self._random, self.plan
        if draw() < 0.3:
            return DropSchedule(queue, "s")
        missed, overlap = ("skip", "once", "all")[int(draw() * 3)], "skip" if draw() < 0.3 else "allow"
        definition = b'{"every":%d,"job":{},"missed":"%s","overlap":"%s"}' % (1 + int(draw() * 4), missed.encode(), overlap.encode())
        timeout = plan.timeouts[int(draw() * len(plan.timeouts))]
        job = Enqueue(queue, "s", timeout, draw() < plan.persisted, plan.retries[int(draw() * len(plan.retries))], b'"s"')
        return PutSchedule(queue, "s", definition, job)

    def _operate(self, queue: str, wall: int) -> Command:
        draw, plan = self._random, self.plan
        what = plan.operators[int(draw() * len(plan.operators))]
        job_id = plan.ids[int(draw() * len(plan.ids))]
        if what == "look" or draw() < 0.2:
            return GetQueue(queue)
        if what == "set":
            patches = PATCHES[plan.settable[int(draw() * len(plan.settable))]]
            return SetQueue(queue, patches[int(draw() * len(patches))])
        if what == "purge":
            bounded = plan.batch_rows_max is not None or plan.batch_bytes_max is not None
            if draw() < 0.15 and not bounded:
                return Purge(queue, STATES)
            return Purge(queue, ["dead"] if draw() < 0.3 and plan.keeps_letters and not bounded else [], None, [job_id])
        if what == "redrive" and plan.keeps_letters:
            return Redrive(queue, [job_id])
        run_at = None if draw() < 0.4 else 0 if draw() < 0.4 else wall + int((draw() - 0.2) * 5 * SECOND)
        self.run_at_max = max(self.run_at_max, run_at or 0)
        return Change(queue, job_id, run_at, int(draw() * 4) - 1 if run_at is None or draw() < 0.3 else None)

    def run_of(self, queue: str) -> Run | None:
        """Return one of the runs that clients know of, a late one more likely than an old one."""
        runs, size = self.runs, len(self.runs)
        for _ in range(3):
            if not size:
                return None
            place = size - 1 - int(self._random() ** 2 * size)
            if runs[place][0] == queue:
                return runs[place]
        return None

    def _enqueue(self, queue: str, wall: int) -> Enqueue:
        draw, plan = self._random, self.plan
        self._payloads += 1
        run_at = None
        if draw() < plan.scheduled:
            run_at = wall + int((draw() - 0.2) * 5 * SECOND)
            self.run_at_max = max(self.run_at_max, run_at)
        persist = draw() < plan.persisted
        payload = POISON if plan.poison and draw() < 0.05 else b"%d" % self._payloads
        if plan.row_bytes_max is not None and draw() < 0.1:
            payload = b'"%s"' % (b"x" * 60)
        return Enqueue(
            queue,
            plan.ids[int(draw() * len(plan.ids))],
            plan.timeouts[int(draw() * len(plan.timeouts))],
            persist,
            plan.retries[int(draw() * len(plan.retries))],
            payload,
            None if draw() < 0.8 else b"0",
            run_at,
            self._options() if plan.keyed or plan.ranked or plan.mortal or plan.backing_off else None,
        )

    def _options(self) -> Options | None:
        draw, plan = self._random, self.plan
        key = plan.keys[int(draw() * len(plan.keys))] if draw() < plan.keyed else None
        priority = int(draw() * 4) - 1 if draw() < plan.ranked else 0
        ttl_us = int(draw() * 8 * SECOND) if draw() < plan.mortal else None
        backoff = Backoff(int(draw() * 4 * SECOND), 1.0 + int(draw() * 2), DELAY_US_MAX) if draw() < plan.backing_off else None
        return Options(key, priority, ttl_us, backoff) if key or priority or ttl_us is not None or backoff else None

    def _about_a_run(self, queue: str, kind: float) -> Command:
        draw, plan = self._random, self.plan
        run = self.run_of(queue)
        if run is None or draw() < 0.1:
            job_id = plan.ids[int(draw() * len(plan.ids))]
            return (
                Complete(queue, job_id)
                if draw() < 0.6
                else Heartbeat(queue, job_id, None, None if draw() < 0.5 else b"%d" % int(draw() * 99))
            )
        if draw() < plan.undelivered:
            return Undeliver(*run)
        if plan.failed and draw() < plan.failed:
            if draw() < 0.4:
                return Release(*run, 0 if draw() < 0.5 else int(draw() * 3 * SECOND))
            return Fail(*run, None if draw() < 0.3 else f"e{int(draw() * 99)}", None if draw() < 0.5 else int(draw() * 3 * SECOND))
        if kind < 0.86:
            return Complete(*run)
        return Heartbeat(*run, None if draw() < 0.4 else b"" if draw() < 0.1 else b"%d" % int(draw() * 99))
