"""What a worker hands to a handler, and what a handler may say by raising.

A handler is a function of one argument: `def handle(job: RunningJob)` runs in a thread, `async def handle(job: AsyncRunningJob)` on the worker's event loop. When it
returns, its job is completed; when it raises, the job has failed, a retry is spent, and the text of the error is kept with the attempt.

A handler whose run is lost (the job timed out, or was removed) works for nothing. An asynchronous one is cancelled. A thread cannot be: its next
`checkpoint` raises `RunLost`, and `lost` is true.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias, TypeVar

import anyio
import anyio.from_thread

from proteus_shards.client.aio import AsyncClient
from proteus_shards.client.errors import NotFound
from proteus_shards.client.words import Job
from proteus_shards.errors import ProteusError

T = TypeVar("T")


class RetryLater(ProteusError):
    """The job failed for now. It is tried again after `delay` seconds, or as its backoff says."""

    def __init__(self, message: str | None = None, delay: float | None = None) -> None:
        super().__init__(message)
        self.delay = delay


class GiveBack(ProteusError):
    """The job goes back as if it had not been begun: no retry is spent. It is ready again after `delay` seconds."""

    def __init__(self, message: str | None = None, delay: float | None = None) -> None:
        super().__init__(message)
        self.delay = delay


class RunLost(ProteusError):
    """The run is over: the job timed out, was removed, or another run has it."""


class _Running:
    """One job under way."""

    def __init__(self, client: AsyncClient, job: Job, is_stopping: Callable[[], bool]) -> None:
        self.job = job
        self.lost = False  # the run is over, and whatever comes of it counts for nothing
        self.given_up = False
        self.scope = anyio.CancelScope()
        self._client = client
        self._is_stopping = is_stopping

    @property
    def id(self) -> str:
        """The job's id."""
        return self.job.id

    @property
    def queue(self) -> str:
        """The job's queue."""
        return self.job.queue

    @property
    def attempt(self) -> int:
        """1 for the first delivery."""
        return self.job.attempt

    @property
    def payload(self) -> Any:
        """The payload, decoded."""
        return self.job.payload

    @property
    def state(self) -> Any:
        """The state that the run before saved last, decoded; None where there is none."""
        return self.job.state

    def payload_as(self, kind: type[T]) -> T:
        """Return the payload as a type that msgspec knows. Raises `msgspec.ValidationError`."""
        return self.job.payload_as(kind)

    @property
    def stopping(self) -> bool:
        """Whether the worker wants to end: a handler that takes long may save its state and raise `GiveBack`."""
        return self._is_stopping()

    async def beat(self, *state: Any) -> None:
        """Send a heartbeat, with a state where one is given. Raises `RunLost` and other `ClientError`s."""
        if self.lost:
            raise RunLost
        try:
            await self._client.heartbeat(self.job, *state)
        except NotFound as error:
            self.lost = True
            raise RunLost from error


class AsyncRunningJob(_Running):
    """A job under way, for an asynchronous handler."""

    async def checkpoint(self, state: Any) -> None:
        """Save a state, which the next run gets should this one end early; a heartbeat too. Raises `RunLost`, `ClientError`."""
        await self.beat(state)


class RunningJob(_Running):
    """A job under way, for a handler in a thread of the worker."""

    def checkpoint(self, state: Any) -> None:
        """Save a state, which the next run gets should this one end early; a heartbeat too. Raises `RunLost`, `ClientError`."""
        anyio.from_thread.run(self.beat, state)


Handler: TypeAlias = Callable[[RunningJob], object] | Callable[[AsyncRunningJob], Awaitable[object]]


def is_async(handler: Handler) -> bool:
    """Say whether a handler runs on the event loop."""
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(getattr(handler, "__call__", None))  # noqa: B004


def refuse_generators(handler: Handler) -> None:
    """Raise `TypeError` where calling the handler would run nothing of it."""
    for called in (handler, getattr(handler, "__call__", None)):  # noqa: B004
        if inspect.isgeneratorfunction(called) or inspect.isasyncgenfunction(called):
            raise TypeError(
                "the handler has a yield in it, so that calling it would run nothing: it must be a function or an async function"
            )


def must_have_run(result: object) -> None:
    """Raise `TypeError` where what a handler returned is work that nobody has done."""
    if inspect.isawaitable(result) or inspect.isgenerator(result) or inspect.isasyncgen(result):
        if inspect.iscoroutine(result):
            result.close()
        raise TypeError(f"the handler returned a {type(result).__name__}, which nobody runs: it must do its work itself")
