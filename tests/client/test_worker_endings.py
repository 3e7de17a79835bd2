"""What a worker tells the server of jobs that it did not complete."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread

from proteus_shards.client import (
    AsyncClient,
    AsyncRunningJob,
    Client,
    GiveBack,
    Job,
    RetryLater,
    RunningJob,
    Worker,
    WorkerStatistics,
)
from tests.client.at_work import SECONDS_MAX, Bench, at_work, completes
from tests.conftest import Server


def test_a_state_is_there_for_the_next_run(memory_server: Server, client: Client, loop: str, queue: str) -> None:
    """What a thread saved is what the next run finds."""
    states: list[Any] = []

    def handle(job: RunningJob) -> None:
        states.append(job.state)
        if job.attempt == 1:
            job.checkpoint({"step": 1})
            raise RetryLater("not yet", delay=0)

    client.enqueue(queue, timeout=30, max_retries=1)
    done = at_work(memory_server.url, loop, handle, queue, completes(1))

    assert ([None, {"step": 1}], WorkerStatistics(completed=1, failed=1)) == (states, done)


def test_a_job_that_raises_has_failed_with_the_text_of_its_error(memory_server: Server, client: Client, loop: str, queue: str) -> None:
    """With no retry left it is a dead letter."""

    def handle(_job: RunningJob) -> None:
        raise ValueError("no such address")

    async def then(bench: Bench) -> None:
        await bench.until(lambda done: done.failed == 1)

    client.enqueue(queue, id="1", timeout=30)
    done = at_work(memory_server.url, loop, handle, queue, then)

    assert WorkerStatistics(failed=1) == done
    assert [("1", "failed")] == [(letter.id, letter.reason) for letter in client.dead(queue).items]


def test_a_job_that_is_given_back_spends_no_retry(memory_server: Server, client: Client, loop: str, queue: str) -> None:
    """The next delivery is the first attempt again."""
    attempts: list[int] = []

    async def handle(job: AsyncRunningJob) -> None:
        attempts.append(job.attempt)
        if len(attempts) == 1:
            raise GiveBack(delay=0)

    client.enqueue(queue, timeout=30)
    done = at_work(memory_server.url, loop, handle, queue, completes(1))

    assert ([1, 1], WorkerStatistics(completed=1, released=1)) == (attempts, done)


def test_a_job_that_arrives_after_the_stop_is_released(memory_server: Server, client: Client, loop: str, queue: str) -> None:
    """It was not begun, and is delivered as if for the first time."""

    class Late(AsyncClient):
        async def next(self, *args: Any, **kwargs: Any) -> Job | None:
            job = await super().next(*args, **kwargs)
            workers[0].stop()
            return job

    workers: list[Worker] = []

    async def handle(_job: AsyncRunningJob) -> None:
        raise AssertionError

    async def main() -> None:
        async with Late(memory_server.url) as late:
            workers.append(Worker(late, handle, queue))
            with anyio.fail_after(SECONDS_MAX):
                await workers[0].run()

    client.enqueue(queue, timeout=30)
    anyio.run(main, backend=loop)
    job = client.next(queue)

    assert WorkerStatistics(released=1) == workers[0].statistics()
    assert job is not None
    assert 1 == job.attempt


def test_what_does_not_end_in_the_grace_is_cancelled_and_released(memory_server: Server, client: Client, loop: str, queue: str) -> None:
    """An asynchronous handler can be stopped anywhere."""

    async def handle(_job: AsyncRunningJob) -> None:
        await anyio.sleep_forever()

    async def then(bench: Bench) -> None:
        await bench.until(lambda done: done.running == 1)

    client.enqueue(queue, timeout=30)
    done = at_work(memory_server.url, loop, handle, queue, then, grace_seconds=0.0)

    assert WorkerStatistics(released=1) == done
    assert client.next(queue) is not None
