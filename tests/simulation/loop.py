"""An event loop without a world: no sockets, no threads, and a clock that jumps to the next timer when nothing is ready.

It has what asyncio's futures, tasks, events and `sleep` ask of a loop, and nothing else, so that coroutines of the product run on it
unchanged, in an order that depends on nothing but what was scheduled. Time is whole microseconds. An hour of it costs nothing.

`stall` lets time pass while nothing runs, as SIGSTOP does. With `resolution_us` timers are kept as coarsely as libuv keeps them, which
may fire up to that much early.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from heapq import heappop, heappush
from typing import Any, cast

from tests.simulation.disk import Violation

STEPS_MAX = 300_000  # of one run: a seed takes some thousands


class Ended(BaseException):  # not an error: nothing may catch it but the loop
    """The process that this was part of is no more."""


class Timer:
    """A callback at a time. Once cancelled it is thrown away when it comes up."""

    __slots__ = ("args", "callback")

    def __init__(self, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.callback: Callable[..., object] | None = callback
        self.args = args

    def cancel(self) -> None:
        self.callback = None
        self.args = ()


class VirtualLoop:
    """Has as much of `AbstractEventLoop` as its tasks need. `now` is its time in microseconds."""

    def __init__(self, *, resolution_us: int = 1) -> None:
        self.now = 1_000_000
        self._resolution = resolution_us
        self._ready: deque[Timer] = deque()
        self._timers: list[tuple[int, int, Timer]] = []
        self._filed = 0

    # --- asyncio's side ----------------------------------------------------------------------------------------

    def time(self) -> float:
        return self.now / 1e6

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=cast("asyncio.AbstractEventLoop", self))

    def create_task(self, coro: Coroutine[Any, Any, Any], **_: Any) -> asyncio.Task[Any]:
        return asyncio.Task(coro, loop=cast("asyncio.AbstractEventLoop", self))

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Any = None) -> Any:  # noqa: ARG002
        timer = Timer(callback, args)
        self._ready.append(timer)
        return timer

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any, context: Any = None) -> Any:  # noqa: ARG002
        return self.after(round(delay * 1e6), callback, *args)

    def call_at(self, when: float, callback: Callable[..., object], *args: Any, context: Any = None) -> Any:  # noqa: ARG002
        return self.after(round(when * 1e6) - self.now, callback, *args)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """A task that ended badly is its owner's to look at; a callback's error is kept by `run`."""

    # --- the simulator's side ----------------------------------------------------------------------------------

    def after(self, delay_us: int, callback: Callable[..., object], *args: Any) -> Timer:
        """Call back in so many microseconds, or a little before that where timers are coarse."""
        timer = Timer(callback, args)
        due = self.now + delay_us
        if self._resolution > 1:
            due = max(self.now + 250 * (delay_us > 0), due - due % self._resolution)  # a turn of a real loop takes time
        self._filed += 1
        heappush(self._timers, (due, self._filed, timer))
        return timer

    def stall(self, us: int) -> None:
        """Let time pass in which nothing runs."""
        self.now += us

    def run(self, stopped: Callable[[], bool]) -> None:
        """Run until nothing is left to do, `stopped` says so, or a callback raises."""
        ready, timers = self._ready, self._timers
        asyncio._set_running_loop(cast("asyncio.AbstractEventLoop", self))
        try:
            steps = 0
            while not stopped():
                steps += 1
                if steps > STEPS_MAX:
                    raise Violation("no end in sight: something goes round in circles")
                if ready:
                    timer = ready.popleft()
                elif timers:
                    due, _, timer = heappop(timers)
                    if timer.callback is not None and due > self.now:
                        self.now = due
                else:
                    return
                callback = timer.callback
                if callback is not None:
                    try:
                        callback(*timer.args)
                    except Ended:
                        continue
        finally:
            asyncio._set_running_loop(None)

    def finish(self) -> None:
        """Run what is ready, and drop all timers: cancelled tasks come to their end."""
        self._timers.clear()
        with suppress(Exception):
            self.run(lambda: False)
        self._ready.clear()
        self._timers.clear()
