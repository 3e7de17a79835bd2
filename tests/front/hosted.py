"""Shards as they are, in threads of their own, behind gates that cut connections: what stands for other hosts in tests of links."""

from __future__ import annotations

import asyncio
import random
import ssl
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import trio

from proteus_shards.cluster.model import Claim
from proteus_shards.config import Settings, ShardBoot, luggage_path
from proteus_shards.core.shard import Shard
from proteus_shards.ipc.frames import pack_frame
from proteus_shards.ipc.hosts import Elsewhere
from proteus_shards.ipc.messages import encode
from proteus_shards.shard.__main__ import end_shard, read_clocks, run_ids
from proteus_shards.shard.listener import Listener
from proteus_shards.shard.luggage import take_luggage
from proteus_shards.shard.pump import Pump
from proteus_shards.shard.sessions import SessionLimits, session_limits
from tests.front.fake_shard import PATIENCE_SECONDS
from tests.shard.scripted import ScriptedStore, limits

HOST = "127.0.0.1:1"


class HostedShard:
    """One process of a shard, but for the process: core, pump and listener on an event loop in a thread."""

    def __init__(self, folder: Path, settings: Settings, store: ScriptedStore, turn: int = 1, luggage: str = "") -> None:
        folder.mkdir(exist_ok=True)
        self.path = str(folder / "shard-0.sock")
        self.luggage = luggage_path(str(folder), 0, turn)
        self.core = Shard(limits(), run_ids())
        self._boot = ShardBoot(settings, 0, str(folder), Claim(0, HOST, turn), luggage)
        self._limits: SessionLimits = session_limits(settings)
        self._store = store
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._ending = asyncio.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._orderly = True

    async def start(self) -> HostedShard:
        """Recover, and serve."""
        self._thread.start()
        await trio.to_thread.run_sync(partial(self._ready.wait, PATIENCE_SECONDS))
        assert self._ready.is_set()
        return self

    async def end(self, *, orderly: bool = True) -> None:
        """Move away in order, or just end."""
        self._orderly = orderly
        self._loop.call_soon_threadsafe(self._ending.set)
        await trio.to_thread.run_sync(partial(self._thread.join, PATIENCE_SECONDS))
        assert not self._thread.is_alive()

    async def look(self, find: Callable[[Shard], object]) -> object:
        """Look at the core, from where it lives."""

        async def looking() -> object:
            return find(self.core)

        future = asyncio.run_coroutine_threadsafe(looking(), self._loop)
        return await trio.to_thread.run_sync(partial(future.result, PATIENCE_SECONDS))

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        pump = Pump(self.core, self._store, read_clocks, moves=True)
        await pump.recover(partial(take_luggage, self.core, self._boot))
        listener = Listener(pump, self.path, 0, 1, self._limits)
        await listener.start()
        pumping = asyncio.create_task(pump.run())
        self._ready.set()
        await self._ending.wait()
        if self._orderly:
            await end_shard(self._boot, pump, listener, pumping)
        else:
            pumping.cancel()
        await listener.close()


class Gate:
    """Joins TCP connections to a shard's socket, and cuts them: all at once with `cut`, and each after some bytes where `cut_after` says so."""

    def __init__(self, path: str | None, *, tls: ssl.SSLContext | None = None, elsewhere: Elsewhere | None = None) -> None:
        self.path = path  # None: the shard is not here
        self.cut_after: Callable[[], int | None] = lambda: None
        self.cuts = 0
        self.joined = 0
        self.refused = 0
        self.target = ""
        self._tls = tls
        self._elsewhere = elsewhere or Elsewhere(0, "", 0)
        self._scopes: set[trio.CancelScope] = set()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen until cancelled."""
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.target = f"127.0.0.1:{listener.socket.getsockname()[1]}"
        task_status.started()
        await trio.serve_listeners(self._serve, [listener])

    def cut(self) -> None:
        """Cut all connections."""
        for scope in self._scopes:
            scope.cancel()

    async def _serve(self, stream: trio.abc.Stream) -> None:
        if self._tls is not None:
            stream = trio.SSLStream(stream, self._tls, server_side=True, https_compatible=True)
        shard: trio.abc.Stream | None = None
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                if isinstance(stream, trio.SSLStream):
                    await stream.do_handshake()
                if self.path is None:
                    await stream.receive_some(65536)
                    await stream.send_all(pack_frame(encode(self._elsewhere)))
                    return
                shard = await trio.open_unix_socket(self.path)
                self.joined += 1
                left = self.cut_after()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._carry, stream, shard, left, nursery.cancel_scope)
                    nursery.start_soon(self._carry, shard, stream, left, nursery.cancel_scope)
            except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
                self.refused += 1
            finally:
                self._scopes.discard(scope)
                self.cuts += scope.cancel_called
                with trio.CancelScope(shield=True):
                    await trio.aclose_forcefully(stream)
                    if shard is not None:
                        await trio.aclose_forcefully(shard)

    async def _carry(self, source: trio.abc.Stream, target: trio.abc.Stream, left: int | None, scope: trio.CancelScope) -> None:
        try:
            while data := await source.receive_some(65536):
                if left is not None and len(data) >= left:
                    await target.send_all(bytes(data[:left]))  # in the middle of a frame, most likely
                    self.cuts += 1
                    break
                left = None if left is None else left - len(data)
                await target.send_all(data)
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        scope.cancel()


def now_and_then(seed: int, bytes_max: int) -> Callable[[], int]:
    """Return after how many bytes of either direction each connection is to be cut."""
    draw = random.Random(seed)  # a seed that is named gives the same cuts
    return lambda: draw.randrange(1, bytes_max)


async def until(find: Callable[[], object]) -> None:
    """Wait until something is so, as whoever looks at it says; its caller bounds the wait."""
    while True:
        found = find()
        if isinstance(found, Awaitable):
            found = await found
        if found:
            return
        await trio.sleep(0.01)
