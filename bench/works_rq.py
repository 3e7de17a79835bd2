"""The load of rq: its client, with hiredis, one connection a process, as it knows no other way to use a process well.

`enqueue` is `Queue.enqueue` of a function by name, `batch-enqueue` is `Queue.enqueue_many`, which sends one pipeline. `life` enqueues for half of the time, then
works off all jobs with its `SimpleWorker` in burst mode: the worker that forks no process for a job. Results are not kept.
"""

from __future__ import annotations

import time

import redis
import rq

from bench.load import Order
from bench.works_libraries import JOB_SECONDS_MAX, LibrarySession

JOB = "bench.works_rq.job"
_DONE = [0]


def job(payload: str) -> None:  # noqa: ARG001 it does nothing
    """Do nothing."""
    _DONE[0] += 1


class RqSession(LibrarySession):
    """See `Library`."""

    def __init__(self, order: Order) -> None:
        super().__init__(order)
        self._redis = redis.Redis.from_url(self.work.url)
        self._jobs = [
            rq.Queue.prepare_data(JOB, args=(self.payload,), result_ttl=0, timeout=JOB_SECONDS_MAX) for _ in range(self.work.size)
        ]
        self._queues = {name: rq.Queue(name, connection=self._redis, default_timeout=JOB_SECONDS_MAX) for name in self.work.queues}

    def open(self) -> None:
        self._redis.ping()

    def act(self, seconds: float) -> None:
        life = self.work.verb == "life"
        _DONE[0] = 0
        stop_at = time.monotonic() + seconds / (2 if life else 1)
        enqueue = self._enqueue_many if self.work.verb == "batch-enqueue" else self._enqueue
        for name in self.queues():
            if time.monotonic() >= stop_at:
                break
            self.report.jobs += enqueue(self._queues[name])
            self.report.requests += 1
        if life:
            rq.SimpleWorker([*self._queues.values()], connection=self._redis).work(burst=True, logging_level="ERROR")
            self.report.jobs = _DONE[0]

    def _enqueue(self, queue: rq.Queue) -> int:
        queue.enqueue(JOB, args=(self.payload,), result_ttl=0)
        return 1

    def _enqueue_many(self, queue: rq.Queue) -> int:
        queue.enqueue_many(self._jobs)
        return len(self._jobs)

    def verify(self) -> None:
        self._redis.close()
