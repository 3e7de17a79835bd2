"""Workers on both loops and in threads, against a real server."""

from __future__ import annotations

import threading
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest

from proteus_shards.client import (
    AsyncClient,
    AsyncRunningJob,
    Client,
    NewJob,
    RunLost,
    RunningJob,
    Unauthorized,
    Worker,
    WorkerStatistics,
)
from tests.client.at_work import SECONDS_MAX, Bench, at_work, completes
from tests.client.scripted import Reply, scripted
from tests.conftest import Server


def test_jobs_are_run_in_order_and_completed(memory_server: Server, client: Client, loop: str, queue: str) -> None:
    """One slot takes one after the other."""
    seen: list[Any] = []

    async def handle(job: AsyncRunningJob) -> None:
        seen.append(job.payload)

    client.enqueue_many(NewJob(id=str(number), queue=queue, timeout=30, payload=number) for number in range(20))
    done = at_work(memory_server.url, loop, handle, queue, completes(20))

    assert (list(range(20)), WorkerStatistics(completed=20)) == (seen, done)
    assert client.next(queue) is None


def test_slots_work_at_once(memory_server: Server, client: Client, loop: str, queue: str) -> None:
    """As many jobs run as there are slots, in threads too."""
    barrier = threading.Barrier(3)

    def handle(_job: RunningJob) -> None:
        barrier.wait(SECONDS_MAX)

    client.enqueue_many(NewJob(id=str(number), queue=queue, timeout=30) for number in range(6))
    done = at_work(memory_server.url, loop, handle, queue, completes(6), concurrency=3)

    assert WorkerStatistics(completed=6) == done


def test_heartbeats_keep_a_job_that_takes_longer_than_its_timeout(memory_server: Server, client: Client, loop: str, queue: str) -> None:
    """It is delivered once."""
    attempts: list[int] = []

    async def handle(job: AsyncRunningJob) -> None:
        attempts.append(job.attempt)
        await anyio.sleep(2.2)

    client.enqueue(queue, timeout=1, max_retries=5)
    done = at_work(memory_server.url, loop, handle, queue, completes(1), concurrency=2)

    assert ([1], 1) == (attempts, done.completed)


def test_an_asynchronous_handler_whose_run_is_lost_is_cancelled(memory_server: Server, client: Client, loop: str, queue: str) -> None:
    """A job that was removed is worked on no longer than to the next heartbeat."""
    cancelled: list[str] = []

    async def handle(job: AsyncRunningJob) -> None:
        await anyio.to_thread.run_sync(client.complete, job.job)
        try:
            await anyio.sleep_forever()
        finally:
            cancelled.append(job.id)

    async def then(bench: Bench) -> None:
        await bench.until(lambda done: done.lost == 1)

    client.enqueue(queue, id="1", timeout=1)
    done = at_work(memory_server.url, loop, handle, queue, then)

    assert (["1"], WorkerStatistics(lost=1)) == (cancelled, done)


def test_a_thread_whose_run_is_lost_is_told_at_its_next_checkpoint(memory_server: Server, client: Client, loop: str, queue: str) -> None:
    """It cannot be cancelled, but it need not go on."""
    told: list[bool] = []

    def handle(job: RunningJob) -> None:
        client.complete(job.job)
        try:
            job.checkpoint(1)
        except RunLost:
            told.append(job.lost)
            raise

    async def then(bench: Bench) -> None:
        await bench.until(lambda done: done.lost == 1)

    client.enqueue(queue, timeout=30)
    done = at_work(memory_server.url, loop, handle, queue, then)

    assert ([True], WorkerStatistics(lost=1)) == (told, done)


def test_stopping_lets_what_runs_end_and_takes_nothing_more(memory_server: Server, client: Client, loop: str, queue: str) -> None:
    """What waits is left to others."""

    async def then(bench: Bench) -> None:
        await bench.until(lambda done: done.running == 1)
        bench.worker.stop()
        may_end.set()

    may_end = threading.Event()

    def handle(job: RunningJob) -> None:
        assert may_end.wait(SECONDS_MAX)
        assert job.stopping

    client.enqueue_many(NewJob(id=str(number), queue=queue, timeout=30) for number in range(2))
    done = at_work(memory_server.url, loop, handle, queue, then)
    left = client.next(queue)

    assert WorkerStatistics(completed=1) == done
    assert left is not None
    assert ("1", 1) == (left.id, left.attempt)


def test_a_thread_that_does_not_end_in_the_grace_keeps_its_job(memory_server: Server, client: Client, queue: str) -> None:
    """Released, it could be run twice at once."""
    may_end = threading.Event()

    def handle(_job: RunningJob) -> None:
        may_end.wait(SECONDS_MAX)

    async def then(bench: Bench) -> None:
        await bench.until(lambda done: done.running == 1)
        bench.worker.give_up()

    client.enqueue(queue, timeout=30)
    done = at_work(memory_server.url, "trio", handle, queue, then)
    may_end.set()

    assert WorkerStatistics(untold=1) == done
    assert client.next(queue) is None


def test_what_no_waiting_can_mend_ends_the_worker(loop: str) -> None:
    """With that error."""

    async def handle(_job: AsyncRunningJob) -> None:
        raise AssertionError

    async def main(url: str) -> None:
        async with AsyncClient(url) as client:
            with anyio.fail_after(SECONDS_MAX), pytest.raises(Unauthorized):
                await Worker(client, handle, "q").run()

    with scripted(Reply(401, b'{"status":401}')) as script:
        anyio.run(main, script.url, backend=loop)


def test_a_completion_whose_answer_was_lost_is_made_sure_of(loop: str) -> None:
    """It is sent once more by itself; that the job is gone then is how it looks when it was done the first time."""
    job = b'{"id":"1","queue":"q","timeout":30,"run_id":"6f8a1c52-0b3f-4c7e-9f7d-3f2b1a0c9d8e","attempt":1}'

    async def handle(_job: AsyncRunningJob) -> None:
        pass

    async def main(url: str) -> None:
        async with AsyncClient(url) as client:
            worker = Worker(client, handle, "q")
            with anyio.fail_after(SECONDS_MAX), pytest.raises(Unauthorized):
                await worker.run()
            assert WorkerStatistics(completed=1) == worker.statistics()

    with scripted(Reply(200, job), Reply(0), Reply(404, b'{"status":404}'), Reply(401, b"{}")) as script:
        anyio.run(main, script.url, backend=loop)

    assert ["/v1/next", "/v1/complete-and-next", "/v1/complete", "/v1/next"] == [asked.target.partition("?")[0] for asked in script.asked]


def test_a_handler_of_which_a_call_runs_nothing_is_refused() -> None:
    """A generator would else complete every job undone."""

    def generator(_job: RunningJob) -> Any:
        yield 1

    async def asynchronous(_job: AsyncRunningJob) -> Any:
        yield 1

    class Called:
        def __call__(self, _job: RunningJob) -> Any:
            yield 1

    handlers: list[Any] = [generator, asynchronous, Called()]
    for handler in handlers:
        with pytest.raises(TypeError, match="yield"):
            Worker(AsyncClient("http://127.0.0.1:1"), handler, "q")


def test_a_handler_that_returns_undone_work_has_failed(memory_server: Server, client: Client, loop: str, queue: str) -> None:
    """Whether it returns a coroutine or a generator."""

    async def undone() -> None: ...

    handlers: list[Any] = [lambda _job: undone(), lambda _job: (number for number in range(3))]
    failed = []
    for handler in handlers:
        client.enqueue(queue, timeout=30, max_retries=0)
        failed.append(at_work(memory_server.url, loop, handler, queue, lambda bench: bench.until(lambda done: done.failed == 1)).failed)

    assert [1, 1] == failed
