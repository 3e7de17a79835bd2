"""Right histories at random: a plain sequential queue server, seen by clients who overlap and who lose answers.

Each client does one thing after the other. What it asks takes effect at one moment between sending and answer, in the order of those moments, on a
list of jobs that is searched and sorted at each step. Requests and answers get lost, requests are refused, clients go silent, shards
lose their memory. The times are random integers, many of them equal or nearly so.
"""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field

from tests.faults.history import FOREVER, NO_STATE, SECOND, Death, Given, History, Op

CLIENTS = 6
IDS = 4  # so few that they meet
TIMEOUTS = (1, 2)
QUEUES = ("a", "b")


@dataclass
class Job:
    """A job as the server has it."""

    op: Op
    order: int
    state: str
    attempt: int = 0
    run_id: str = ""
    deadline: int = FOREVER

    @property
    def given(self) -> Given:
        """As its runner gets it."""
        op = self.op
        return Given(op.queue, op.id, op.uid, self.attempt, self.run_id, self.state, op.timeout, op.max_retries, op.persist, op.payload_sha)


@dataclass
class Server:
    """All that there is."""

    chance: random.Random
    live: list[Job] = field(default_factory=list)
    dead: list[Job] = field(default_factory=list)
    accepted: int = 0

    def expire(self, now: int) -> None:
        """Let runs time out."""
        for job in list(self.live):
            if job.deadline <= now:
                job.deadline, job.run_id = FOREVER, ""
                if 0 <= job.op.max_retries < job.attempt:
                    self.live.remove(job)
                    self.dead.append(job)

    def do(self, op: Op, now: int) -> None:
        """Carry out a request, and write its answer into it."""
        self.expire(now)
        match op.f:
            case "enqueue":
                if self.find(op) is not None:
                    op.type, op.http_status = "fail", 409
                else:
                    self.accepted += 1
                    self.live.append(Job(op, self.accepted, op.state or NO_STATE))
                    op.type, op.http_status = "ok", 202
            case "next":
                ready = sorted((job for job in self.live if job.op.queue == op.queue and not job.run_id), key=lambda job: job.order)
                for job in ready[: max(1, op.num_jobs)]:
                    job.attempt += 1
                    job.run_id = f"{self.chance.getrandbits(64):x}"
                    job.deadline = now + job.op.timeout * SECOND
                    op.jobs.append(job.given)
                op.type, op.http_status = "ok", 200 if ready else 204
            case "heartbeat" | "complete":
                found = self.find(op)
                if found is None or op.run_id not in {"", found.run_id} or (op.f == "heartbeat" and not found.run_id):
                    op.type, op.http_status = "fail", 404
                elif op.f == "complete":
                    self.live.remove(found)
                    op.type, op.http_status = "ok", 200
                else:
                    found.deadline = now + found.op.timeout * SECOND
                    found.state = op.state if op.state is not None else found.state
                    op.type, op.http_status = "ok", 202

    def find(self, op: Op) -> Job | None:
        """Return the live job of a name."""
        return next((job for job in self.live if (job.op.queue, job.op.id) == (op.queue, op.id)), None)


class Author:
    """Writes one history."""

    def __init__(self, seed: int, operations: int) -> None:
        self.chance = random.Random(seed)
        self.server = Server(self.chance)
        self.history = History(seed=seed, ops=[], windows=[], deaths=[], epochs=[], audits=[])
        self.operations = operations
        self.known: list[Given] = []
        self.written = 0

    def write(self) -> History:
        """Return a right history that ends with a drain."""
        now = 0
        events: list[tuple[int, int, int]] = [(self.gap(), client, 0) for client in range(CLIENTS)]
        heapq.heapify(events)
        while self.written < self.operations:
            s, client, _ = heapq.heappop(events)
            now = max(now, s) + self.chance.randrange(3)
            told = now + self.gap()
            self.ask(self.request(s), now, told)
            if self.chance.random() < 0.01:
                self.forget(now)
            heapq.heappush(events, (told + self.chance.randrange(3), client, 0))
        self.drain(now + 10 * SECOND)
        self.chance.shuffle(self.history.ops)
        return self.history

    def gap(self) -> int:
        """Return some time, often none."""
        return self.chance.choice((0, 1, SECOND // 50, SECOND // 5, self.chance.randrange(SECOND)))

    def request(self, s: int) -> Op:
        """Make up a request."""
        chance = self.chance
        kind = chance.choice(("enqueue", "enqueue", "next", "next", "next", "heartbeat", "complete"))
        queue = chance.choice(QUEUES)
        if kind == "enqueue":
            uid = f"uid {self.written}"
            job_id = f"pool {chance.randrange(IDS)}" if chance.random() < 0.5 else uid
            op = self.op(kind, s, queue, job_id, uid)
            op.persist, op.timeout = chance.random() < 0.5, chance.choice(TIMEOUTS)
            op.max_retries = chance.choice((-1, 0, 1, 5, 200))
            op.state, op.payload_sha = chance.choice((None, '"born"')), f"sha of {uid}"
            return op
        if kind == "next" or not self.known:
            op = self.op("next", s, queue, "", "")
            op.num_jobs = chance.choice((0, 0, 3))
            return op
        given = chance.choice(self.known[-8:])
        op = self.op(kind, s, given.queue, given.id, "")
        op.run_id = given.run_id if chance.random() < 0.7 else ""
        op.state = chance.choice((None, NO_STATE, f'"{self.written}"')) if kind == "heartbeat" else None
        return op

    def op(self, kind: str, s: int, queue: str, job_id: str, uid: str) -> Op:
        """Begin a request."""
        self.written += 1
        return Op(self.written, kind, "unknown", s, FOREVER, queue, job_id, uid, False, 0, 0, "", None, "", 0.0, 0, jobs=[])

    def ask(self, op: Op, now: int, told: int) -> None:
        """Let a request be answered, refused or lost."""
        self.history.ops.append(op)
        op.told, draw = told, self.chance.random()
        if draw < 0.05:
            op.type, op.http_status, op.retry_after, op.e = "fail", 429, 1, told
            return
        if draw < 0.1:
            op.http_status, op.retry_after = self.chance.choice(((0, None), (503, 1)))
            return
        self.server.do(op, now)
        if draw < 0.18:  # the answer is lost
            op.type, op.jobs, op.e = "unknown", [], FOREVER
            op.http_status = 0
            return
        op.e = told
        self.known += op.jobs

    def forget(self, now: int) -> None:
        """Let the shard of one queue end, and start again: what is persisted goes on, each run with its full time."""
        queue = self.chance.choice(QUEUES)
        self.server.live = [job for job in self.server.live if job.op.queue != queue or job.op.persist]
        self.server.dead = [job for job in self.server.dead if job.op.queue != queue or job.op.persist]
        for job in self.server.live:
            if job.op.queue == queue and job.run_id:
                job.deadline = now + job.op.timeout * SECOND
        self.history.deaths.append(Death(now, frozenset({queue}), by_itself=False))

    def drain(self, now: int) -> None:
        """Take and complete all, and look at the dead."""
        self.history.drained, self.history.drains = now, 1
        for queue in QUEUES:
            while True:
                op = self.op("next", now, queue, "", "")
                self.answer(op, now)
                if not op.jobs:
                    break
                for given in op.jobs:
                    end = self.op("complete", now + 1, queue, given.id, "")
                    end.run_id = given.run_id
                    self.answer(end, now + 1)
                now += SECOND
            op = self.op("dead", now, queue, "", "")
            op.jobs = [job.given for job in self.server.dead if job.op.queue == queue]
            op.type, op.http_status, op.e, op.told = "ok", 200, now, now
            self.history.ops.append(op)

    def answer(self, op: Op, now: int) -> None:
        """Let a request be answered for sure."""
        self.history.ops.append(op)
        self.server.do(op, now)
        op.e = op.told = now
