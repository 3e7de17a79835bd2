"""The load of procrastinate: its asynchronous client with a pool of connections, on uvloop, psycopg in its compiled form.

`enqueue` is `defer_async`, `batch-enqueue` is `batch_defer_async`. `life` defers for half of the time, then works off all jobs with its own worker, which runs
a task that does nothing and deletes what has succeeded; both at the same concurrency. Its worker then has nothing to
listen for, so it does not.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import procrastinate
import psycopg
import uvloop

from bench.load import Order
from bench.works_libraries import LibrarySession

TASK = "bench.job"


class ProcrastinateSession(LibrarySession):
    """See `Library`."""

    def __init__(self, order: Order) -> None:
        super().__init__(order)
        self._concurrency = max(1, len(order.mine(order.connections)))
        size = self._concurrency + 2  # a worker uses some beside those of its jobs
        connector = procrastinate.PsycopgConnector(conninfo=self.work.url, min_size=size, max_size=size)
        self._app: Any = procrastinate.App(connector=connector)
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self._stop_at = 0.0
        self._done = 0
        logging.getLogger("procrastinate").setLevel(logging.ERROR)

        async def job(payload: str) -> None:  # noqa: ARG001 it does nothing
            self._done += 1

        self._task: Any = self._app.task(name=TASK)(job)

    def open(self) -> None:
        self._runner.run(self._open())

    def act(self, seconds: float) -> None:
        self._runner.run(self._act(seconds))

    def verify(self) -> None:
        self._runner.run(self._app.close_async())
        self._runner.close()

    async def _open(self) -> None:
        await self._app.open_async()

    async def _act(self, seconds: float) -> None:
        life = self.work.verb == "life"
        self._done = 0
        self._stop_at = time.monotonic() + seconds / (2 if life else 1)
        defer = self._defer_batches if self.work.verb == "batch-enqueue" else self._defer
        async with asyncio.TaskGroup() as group:
            for _, queue in zip(range(self._concurrency), self.queues(), strict=False):
                group.create_task(defer(queue))
        if life:
            await self._app.run_worker_async(
                concurrency=self._concurrency,
                wait=False,
                listen_notify=False,
                delete_jobs="successful",
                install_signal_handlers=False,
            )
            self.report.jobs = self._done

    async def _defer(self, queue: str) -> None:
        deferrer, payload = self._task.configure(queue=queue), self.payload
        while time.monotonic() < self._stop_at:
            await deferrer.defer_async(payload=payload)
            self.report.requests += 1
            self.report.jobs += 1

    async def _defer_batches(self, queue: str) -> None:
        deferrer = self._task.configure(queue=queue)
        jobs = [{"payload": self.payload}] * self.work.size
        while time.monotonic() < self._stop_at:
            await deferrer.batch_defer_async(*jobs)
            self.report.requests += 1
            self.report.jobs += self.work.size


def make_tables(conninfo: str) -> None:
    """Make procrastinate's tables in an empty database."""
    app = procrastinate.App(connector=procrastinate.SyncPsycopgConnector(conninfo=conninfo))
    with app.open():
        app.schema_manager.apply_schema()
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE")
