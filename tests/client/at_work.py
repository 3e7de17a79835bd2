"""A worker at work beside a test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread

from proteus_shards.client import (
    AsyncClient,
    Worker,
    WorkerStatistics,
)

SECONDS_MAX = 20.0


class Bench:
    """A worker at work, and a way to wait for what it did."""

    def __init__(self, client: AsyncClient, worker: Worker) -> None:
        self.client = client
        self.worker = worker

    async def until(self, condition: Callable[[WorkerStatistics], object]) -> None:
        """Wait until its statistics are as they should be."""
        while not condition(self.worker.statistics()):
            await anyio.sleep(0.01)


def at_work(
    url: str, loop: str, handler: Any, queue: str | list[str], then: Callable[[Bench], Awaitable[None]], **options: Any
) -> WorkerStatistics:
    """Run a worker beside `then`, stop it after that, and return what it has done."""

    @asynccontextmanager
    async def working() -> AsyncIterator[Bench]:
        async with AsyncClient(url) as client:
            worker = Worker(client, handler, queue, **options)
            async with anyio.create_task_group() as group:
                group.start_soon(worker.run)
                yield Bench(client, worker)
                worker.stop()
            found.append(worker.statistics())

    async def main() -> None:
        with anyio.fail_after(SECONDS_MAX):
            async with working() as bench:
                await then(bench)

    found: list[WorkerStatistics] = []
    anyio.run(main, backend=loop)
    return found[0]


def completes(count: int) -> Callable[[Bench], Awaitable[None]]:
    """Return what waits for so many completions."""

    async def wait(bench: Bench) -> None:
        await bench.until(lambda done: done.completed == count)

    return wait
