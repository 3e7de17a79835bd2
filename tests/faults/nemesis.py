"""What goes wrong, on purpose: each fault is one asynchronous context, entered when it strikes and left when it is over.

A fault yields what it struck. One that finds nothing to strike raises `NotHere`, and the history says so. What a fault needs of the place
is said in `Fault.needs`, so that a plan for a store is made of those that it can suffer.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Generic, NamedTuple, Protocol, TypeAlias, TypeVar

from tests.faults.history import Recorder
from tests.faults.places import NotHere, Place
from tests.faults.world import World

DELAY_SECONDS = 0.15
SYNC_DELAY_US = 200_000
RESTARTS = 5
RESTARTED_SECONDS = 0.5  # how long the store lives each time
CLOCK_JUMPS_SECONDS = (-315_000_000, -3600, 7200, 315_000_000)

W = TypeVar("W")


class Placed(Protocol):
    """Whatever has a store."""

    @property
    def place(self) -> Place:
        """Its store."""
        ...


Act: TypeAlias = Callable[[World], AbstractAsyncContextManager[str]]


class Fault(NamedTuple, Generic[W]):
    """One kind of fault, of one kind of world. `lasts`: whether it takes a time of its choosing, or is over at once."""

    name: str
    act: Callable[[W], AbstractAsyncContextManager[str]]
    needs: str  # "", "server", "proxy", "full", "disk" or "clock"
    lasts: bool
    of_store: bool  # whether only what is kept in the store may suffer


# --- processes ---------------------------------------------------------------------------------------------------


def _kill(kind: str) -> Act:
    @asynccontextmanager
    async def act(world: World) -> AsyncIterator[str]:
        pid, count = _some(world, kind), len(world.pids(kind))
        world.kill(pid)
        await world.wait_replaced(kind, pid, count)
        yield f"{kind} {pid}"

    return act


def _pause(kind: str) -> Act:
    @asynccontextmanager
    async def act(world: World) -> AsyncIterator[str]:
        pid = _some(world, kind)
        world.pause(pid)
        try:
            yield f"{kind} {pid}"
        finally:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    return act


@asynccontextmanager
async def _pause_all(world: World) -> AsyncIterator[str]:
    """Stop every process of the server, as a suspended machine does."""
    pids = [world.server.process.pid, *world.server.children()]
    for pid in pids:
        world.pause(pid)
    try:
        yield f"{len(pids)} processes"
    finally:
        for pid in reversed(pids):  # whoever watches over others goes on last
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def _some(world: World, kind: str) -> int:
    pid = world.pick(kind)
    if pid is None:
        raise NotHere(f"no {kind} runs")
    return pid


@asynccontextmanager
async def _kill_supervisor(world: World) -> AsyncIterator[str]:
    await world.replace_killed()
    yield "everything"


@asynccontextmanager
async def _restart(world: World) -> AsyncIterator[str]:
    await world.restart()
    yield "everything"


@asynccontextmanager
async def _reshard(world: World) -> AsyncIterator[str]:
    was = world.shards
    await world.restart(world.random.choice([count for count in (1, 2, 3, 4) if count != was]))
    yield f"{was} to {world.shards} shards"


# --- the store ---------------------------------------------------------------------------------------------------


@asynccontextmanager
async def kill_store(world: Placed) -> AsyncIterator[str]:
    """End the store by SIGKILL, and start it again."""
    assert world.place.server is not None
    await asyncio.to_thread(world.place.server.kill)
    try:
        yield "store"
    finally:
        await asyncio.to_thread(world.place.server.start)


@asynccontextmanager
async def _restart_store(world: Placed) -> AsyncIterator[str]:
    """Kill the store and start it, again and again: whoever comes back at once must not be hurt by that, nor hurt it."""
    assert world.place.server is not None
    for _ in range(RESTARTS):
        await asyncio.to_thread(world.place.server.kill)
        await asyncio.to_thread(world.place.server.start)
        await asyncio.sleep(RESTARTED_SECONDS)
    yield f"store, {RESTARTS} times"


@asynccontextmanager
async def stop_store(world: Placed) -> AsyncIterator[str]:
    """End the store in order, and start it again."""
    assert world.place.server is not None
    await asyncio.to_thread(world.place.server.stop)
    try:
        yield "store"
    finally:
        await asyncio.to_thread(world.place.server.start)


@asynccontextmanager
async def pause_store(world: Placed) -> AsyncIterator[str]:
    """Stop the store for a while: nothing answers, and connections stay."""
    assert world.place.server is not None
    await asyncio.to_thread(world.place.server.pause)
    try:
        yield "store"
    finally:
        await asyncio.to_thread(world.place.server.resume)


@asynccontextmanager
async def _fill_store(world: World) -> AsyncIterator[str]:
    assert world.place.full is not None
    fill, free = world.place.full
    await asyncio.to_thread(fill)
    try:
        yield "store"
    finally:
        await asyncio.to_thread(free)


def _disk(injection: str) -> Act:
    """Let the syncs of one shard go wrong. What it does then is its own doing, and it may be to end."""

    @asynccontextmanager
    async def act(world: World) -> AsyncIterator[str]:
        pid = _some(world, "shard")
        command = [
            "strace",
            "-f",
            "-p",
            str(pid),
            "-e",
            "trace=fsync,fdatasync",
            "-e",
            f"inject=fsync,fdatasync:{injection}",
            "-o",
            "/dev/null",
        ]
        tracer = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
        assert tracer.stderr is not None
        told = await tracer.stderr.readline()
        if b"attached" not in told:
            raise NotHere(f"no process can be traced here: {told.decode().strip()}")
        world.expect_end(pid)
        reading = asyncio.create_task(tracer.stderr.read())  # or it would wait for somebody to read on
        try:
            yield f"syncs of shard {pid}"
        finally:
            with suppress(ProcessLookupError):
                tracer.terminate()
            await reading
            await tracer.wait()

    return act


def _link(name: str) -> Act:
    @asynccontextmanager
    async def act(world: World) -> AsyncIterator[str]:
        proxy = world.place.proxy
        assert proxy is not None
        if name == "delay":
            proxy.delay(DELAY_SECONDS)
        else:
            {"cut": proxy.cut, "reset": proxy.reset, "black hole": proxy.black_hole, "lost answers": proxy.lose_answers}[name]()
        try:
            yield "link to the store"
        finally:
            proxy.passes()

    return act


# --- the clock ---------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _shift_clock(world: World) -> AsyncIterator[str]:
    """Set the wall clock of all shards. It stays so for the time of the fault, and jumps back at its end."""
    assert world.clock_path is not None
    jump = world.random.choice(CLOCK_JUMPS_SECONDS)
    world.clock_path.write_text(str(jump))
    try:
        yield f"{jump} s"
    finally:
        world.clock_path.write_text("0")


_ALL: tuple[Fault[World], ...] = (
    Fault("shard killed", _kill("shard"), "", lasts=False, of_store=False),
    Fault("shard paused", _pause("shard"), "", lasts=True, of_store=False),
    Fault("front killed", _kill("front"), "", lasts=False, of_store=False),
    Fault("front paused", _pause("front"), "", lasts=True, of_store=False),
    Fault("supervisor killed", _kill_supervisor, "", lasts=False, of_store=False),
    Fault("supervisor paused", _pause("supervisor"), "", lasts=True, of_store=False),
    Fault("all paused", _pause_all, "", lasts=True, of_store=False),
    Fault("restart", _restart, "", lasts=False, of_store=False),
    Fault("reshard", _reshard, "", lasts=False, of_store=False),
    Fault("clock set", _shift_clock, "clock", lasts=True, of_store=False),
    Fault("store killed", kill_store, "server", lasts=True, of_store=True),
    Fault("store restarted", _restart_store, "server", lasts=False, of_store=False),
    Fault("disk slow", _disk(f"delay_enter={SYNC_DELAY_US}"), "disk", lasts=True, of_store=False),
    Fault("disk errors", _disk("error=EIO"), "disk", lasts=True, of_store=False),
    Fault("store stopped", stop_store, "server", lasts=True, of_store=True),
    Fault("store paused", pause_store, "server", lasts=True, of_store=True),
    Fault("store full", _fill_store, "full", lasts=True, of_store=True),
    Fault("link cut", _link("cut"), "proxy", lasts=True, of_store=True),
    Fault("link reset", _link("reset"), "proxy", lasts=True, of_store=True),
    Fault("link slow", _link("delay"), "proxy", lasts=True, of_store=True),
    Fault("link dead", _link("black hole"), "proxy", lasts=True, of_store=True),
    Fault("answers lost", _link("lost answers"), "proxy", lasts=True, of_store=True),
)
FAULTS: dict[str, Fault[World]] = {fault.name: fault for fault in _ALL}


def possible(place: Place, *, clock: bool = False) -> list[Fault[World]]:
    """Return the faults that a place can suffer."""
    there = {
        "": True,
        "server": place.server is not None,
        "proxy": place.proxy is not None,
        "full": place.full is not None,
        "disk": place.disk,
        "clock": clock,
    }
    return [fault for fault in FAULTS.values() if there[fault.needs] and (place.keeps or fault.name != "reshard")]


class Nemesis(Generic[W]):
    """Lets faults happen, and says so in the history."""

    def __init__(self, world: W, recorder: Recorder) -> None:
        self.happened = 0
        self._world = world
        self._recorder = recorder

    async def strike(self, fault: Fault[W], seconds: float) -> bool:
        """Let one fault happen and pass. Returns whether it did."""
        self.happened += 1
        number = str(self.happened)
        self._recorder.note("nemesis", fault=fault.name, target=number, phase="start")
        struck = refused = ""
        try:
            async with fault.act(self._world) as struck:
                if fault.lasts:
                    await asyncio.sleep(seconds)
        except NotHere as reason:
            refused = str(reason)
        self._recorder.note("nemesis", fault=fault.name, target=number, phase="stop", event=struck, detail=refused)
        return not refused
