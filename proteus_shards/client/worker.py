"""The worker: fetches jobs, runs a handler on each, and tells the server how it went.

**Slots.** A worker of `concurrency` n has n slots. Each holds one job at a time and goes round: fetch, run, tell. A slot that has completed its job asks for the next in the same
request, so a busy slot costs one round trip a job; an empty queue is waited on by a long poll of each slot.

**Heartbeats** go out on their own after a third of the job's timeout, so that two may be lost. One that is answered 404 ends the run: see `handlers`. One that fails otherwise
is only logged: while nobody knows better, the job is this worker's.

**Stopping.** `stop` ends the polls and lets what runs go on for `grace_seconds`. A job that arrives all the same was not begun, and is released. What still runs after the grace is
cancelled and released, if it is asynchronous. A thread cannot be cancelled: its job is left to its timeout, because a job that was released
could be run again beside it.

**Faults.** What may be better in a while (the server is away or busy) is waited for, with growing pauses. What cannot (a token that is not known, a queue name that is
wrong) ends the worker, with that error.
"""

from __future__ import annotations

import functools
import logging
import random
import signal
from collections.abc import Sequence
from typing import Any, Literal

import anyio
import anyio.abc
import anyio.to_thread
import msgspec

from proteus_shards.client.aio import AsyncClient
from proteus_shards.client.errors import BadAnswer, ClientError, NotFound, Refusal, ServerFault
from proteus_shards.client.handlers import (
    AsyncRunningJob,
    GiveBack,
    Handler,
    RetryLater,
    RunLost,
    RunningJob,
    is_async,
    must_have_run,
    refuse_generators,
)
from proteus_shards.client.retries import leaves_open
from proteus_shards.client.words import Job

log = logging.getLogger("proteus_shards.client")

WAIT_SECONDS = 20.0  # of a long poll
GRACE_SECONDS = 25.0  # less than the 30 s that most platforms give a process after SIGTERM
BEATS_PER_TIMEOUT = 3
PAUSE_SECONDS_MAX = 30.0
TELL_SECONDS_MAX = 10.0  # for the last words of a worker that stops
ERROR_LENGTH_MAX = 4096  # characters, as many as the server keeps


class WorkerStatistics(msgspec.Struct, frozen=True):
    """What a worker has done since it began, in jobs, and what it does."""

    running: int = 0
    completed: int = 0
    failed: int = 0
    released: int = 0
    lost: int = 0
    untold: int = 0  # the server could not be told how they went


class _Failed(msgspec.Struct, frozen=True):
    error: str
    delay: float | None = None


class _Back(msgspec.Struct, frozen=True):
    delay: float | None = None


_Ending = Literal["done", "lost", "left"] | _Failed | _Back


class Worker:
    """Runs a handler on the jobs of some queues, asked in their order."""

    def __init__(
        self,
        client: AsyncClient,
        handler: Handler,
        queues: str | Sequence[str],
        *,
        concurrency: int = 1,
        wait_seconds: float = WAIT_SECONDS,
        grace_seconds: float = GRACE_SECONDS,
    ) -> None:
        assert concurrency >= 1
        refuse_generators(handler)
        self._client = client
        self._handler: Any = handler
        self._is_async = is_async(handler)
        self._queues = [queues] if isinstance(queues, str) else list(queues)
        self._concurrency = concurrency
        self._wait_seconds = wait_seconds
        self._grace_seconds = grace_seconds
        self._counts = dict.fromkeys(WorkerStatistics.__struct_fields__, 0)
        self._running: set[AsyncRunningJob | RunningJob] = set()
        self._polls: set[anyio.CancelScope] = set()
        self._fatal: ClientError | None = None
        self._stopped = anyio.Event()
        self._given_up = anyio.Event()

    @property
    def stopping(self) -> bool:
        """Whether it wants to end."""
        return self._stopped.is_set()

    def statistics(self) -> WorkerStatistics:
        """Return what it has done so far."""
        return WorkerStatistics(**{**self._counts, "running": len(self._running)})

    def stop(self) -> None:
        """Take no more jobs, and end once those that run are done or the grace is over. To be called on the event loop, as often as you like."""
        self._stopped.set()
        for scope in self._polls:
            scope.cancel()

    def give_up(self) -> None:
        """End without grace."""
        self.stop()
        self._given_up.set()

    async def run(self) -> None:
        """Work until `stop` is called. Raises the `ClientError` that no waiting can mend."""
        limiter = anyio.CapacityLimiter(self._concurrency)
        async with anyio.create_task_group() as group:
            async with anyio.create_task_group() as slots:
                group.start_soon(self._end_the_grace)
                for _ in range(self._concurrency):
                    slots.start_soon(self._slot, limiter)
            group.cancel_scope.cancel()
        if self._fatal is not None:
            raise self._fatal

    async def _end_the_grace(self) -> None:
        await self._stopped.wait()
        with anyio.move_on_after(self._grace_seconds):
            await self._given_up.wait()
        for run in list(self._running):
            run.given_up = True
            run.scope.cancel()

    async def _slot(self, limiter: anyio.CapacityLimiter) -> None:
        job: Job | None = None
        while job is not None or not self.stopping:
            if job is None:
                job = await self._poll()
            elif self.stopping:
                await self._tell(job, _Back())
                job = None
            else:
                job = await self._tell(job, await self._work(job, limiter))

    async def _poll(self) -> Job | None:
        """Wait for a job. None: there was none for a while, or the worker stops."""
        tries = 0
        while not self.stopping:
            with anyio.CancelScope() as scope:
                self._polls.add(scope)
                try:
                    return await self._client.next(self._queues, wait=self._wait_seconds)
                except ClientError as error:
                    if not _may_pass(error):
                        self._fatal = error
                        self.stop()
                        return None
                    pause = random.random() * min(PAUSE_SECONDS_MAX, 2.0**tries)  # noqa: S311 it is jitter
                    log.warning("no job could be fetched; next try in %.1f s: %s", pause, error)
                    tries = min(tries + 1, 10)
                    await anyio.sleep(pause)
                finally:
                    self._polls.discard(scope)
        return None

    # --- one job -----------------------------------------------------------------------------------------------

    async def _work(self, job: Job, limiter: anyio.CapacityLimiter) -> _Ending:
        """Run the handler on a job, with heartbeats, and return how it ended."""
        run = (AsyncRunningJob if self._is_async else RunningJob)(self._client, job, lambda: self.stopping)
        self._running.add(run)
        ending: _Ending = _Back() if self._is_async else "left"  # where it is cancelled
        try:
            with run.scope:
                async with anyio.create_task_group() as group:
                    group.start_soon(self._beat, run)
                    ending = await self._handle(run, limiter)
                    group.cancel_scope.cancel()
        except anyio.get_cancelled_exc_class():
            if self._is_async:
                with anyio.move_on_after(TELL_SECONDS_MAX, shield=True):
                    await self._tell(job, _Back())
            raise
        finally:
            self._running.discard(run)
        return "lost" if run.lost else ending

    async def _handle(self, run: Any, limiter: anyio.CapacityLimiter) -> _Ending:
        try:
            if self._is_async:
                must_have_run(await self._handler(run))
            else:
                must_have_run(await anyio.to_thread.run_sync(self._handler, run, limiter=limiter, abandon_on_cancel=True))
        except Exception as error:  # noqa: BLE001 the server is told
            return _ending_of(error, run.job)
        return "done"

    async def _beat(self, run: AsyncRunningJob | RunningJob) -> None:
        """Keep a job's run alive until the handler is done with it."""
        while run.job.timeout > 0:
            await anyio.sleep(run.job.timeout / BEATS_PER_TIMEOUT)
            try:
                await run.beat()
            except RunLost:
                log.warning("the run of job %r of queue %r is lost", run.id, run.queue)
                if self._is_async:
                    run.scope.cancel()
                return
            except ClientError as error:
                log.warning("no heartbeat for job %r of queue %r: %s", run.id, run.queue, error)

    # --- telling how it went -----------------------------------------------------------------------------------

    async def _tell(self, job: Job, ending: _Ending) -> Job | None:
        """Tell the server how a job ended. Returns the next one, if it came along."""
        with anyio.move_on_after(TELL_SECONDS_MAX if self.stopping else None):
            try:
                return await self._tell_once(job, ending)
            except NotFound as error:
                if not error.after_unknown:
                    self._counts["lost"] += 1
                    log.warning("job %r of queue %r was no longer this worker's when it ended", job.id, job.queue)
                return None
            except ClientError as error:
                self._counts["untold"] += 1
                log.warning("the server could not be told how job %r of queue %r ended: %s", job.id, job.queue, error)
                if not _may_pass(error) and not isinstance(error, BadAnswer):
                    self._fatal = self._fatal or error
                    self.stop()
                return None
        self._counts["untold"] += 1
        return None

    async def _tell_once(self, job: Job, ending: _Ending) -> Job | None:
        if ending == "done":
            if not self.stopping:
                return await self._complete_and_next(job)
            await self._client.complete(job)
            self._counts["completed"] += 1
        elif isinstance(ending, _Failed):
            await self._client.fail(job, ending.error, delay=ending.delay)
            self._counts["failed"] += 1
        elif isinstance(ending, _Back):
            await self._client.release(job, delay=ending.delay)
            self._counts["released"] += 1
        elif ending == "lost":
            self._counts["lost"] += 1
        else:
            log.warning("job %r of queue %r still runs in its thread, and is left to its timeout", job.id, job.queue)
            self._counts["untold"] += 1
        return None

    async def _complete_and_next(self, job: Job) -> Job | None:
        try:
            following = await self._client.complete_and_next(job, self._queues)
        except ClientError as error:
            if isinstance(error, Refusal) and error.problem.completed:
                self._counts["completed"] += 1
                return None
            if not leaves_open(error):
                raise
            try:
                await self._client.complete(job)
            except NotFound:
                log.info("job %r of queue %r is gone: its completion, whose answer was lost, had its effect", job.id, job.queue)
            following = None
        self._counts["completed"] += 1
        return following


def _may_pass(error: ClientError) -> bool:
    """Say whether waiting may mend an error."""
    if isinstance(error, Refusal):
        return error.retryable or isinstance(error, ServerFault)
    return not isinstance(error, BadAnswer)


def _ending_of(error: Exception, job: Job) -> _Ending:
    """Return what an exception of a handler means."""
    if isinstance(error, RunLost):
        return "lost"
    if isinstance(error, GiveBack):
        return _Back(error.delay)
    text = str(error) if isinstance(error, RetryLater) else f"{type(error).__name__}: {error}"
    if not isinstance(error, RetryLater):
        log.error("job %r of queue %r failed", job.id, job.queue, exc_info=error)
    return _Failed(text[:ERROR_LENGTH_MAX], error.delay if isinstance(error, RetryLater) else None)


# --- a process of its own --------------------------------------------------------------------------------------


def run_worker(
    handler: Handler,
    queues: str | Sequence[str],
    *,
    url: str | None = None,
    token: str | None = None,
    ca: str | None = None,
    concurrency: int = 1,
    loop: Literal["trio", "asyncio"] | None = None,
    wait_seconds: float = WAIT_SECONDS,
    grace_seconds: float = GRACE_SECONDS,
) -> WorkerStatistics:
    """Work until SIGTERM or SIGINT; a second one ends the grace. For the main thread of a process that does nothing else.

    `loop` is what runs an asynchronous handler, by default asyncio; threads are minded by trio. Raises `ClientError`, `SettingError`.
    """
    options = {"concurrency": concurrency, "wait_seconds": wait_seconds, "grace_seconds": grace_seconds}
    whole = functools.partial(_run_worker, AsyncClient(url, token=token, ca=ca), handler, queues, options)
    return anyio.run(whole, backend=loop or ("asyncio" if is_async(handler) else "trio"))


async def _run_worker(made: AsyncClient, handler: Handler, queues: str | Sequence[str], options: dict[str, Any]) -> WorkerStatistics:
    async with made as client:
        worker = Worker(client, handler, queues, **options)

        async def mind_signals(*, task_status: anyio.abc.TaskStatus[None]) -> None:
            with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
                task_status.started()
                async for _ in signals:
                    if worker.stopping:
                        worker.give_up()
                    worker.stop()

        failed: ClientError | None = None
        async with anyio.create_task_group() as group:
            await group.start(mind_signals)
            try:
                await worker.run()
            except ClientError as error:
                failed = error
            group.cancel_scope.cancel()
        if failed is not None:
            raise failed
        return worker.statistics()
