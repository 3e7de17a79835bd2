"""The Unix socket on which a host's fronts learn who owns what, and pass on what operators want.

A front is told everything at once and after every change. One that reads slowly is told the newest only, for what was before it is of no use.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress

from proteus_shards.cluster.steps import Drain, Fault, Leave, Want
from proteus_shards.errors import ProtocolError
from proteus_shards.ipc.frames import FrameReader, pack_frame
from proteus_shards.ipc.hosts import Asked, Forget, Move, Owners, Stale, decode_from_front, encode
from proteus_shards.ipc.hosts import Drain as DrainAsked

log = logging.getLogger("proteus_shards.node")

READ_BYTES = 64 * 1024
FRAME_BYTES_MAX = 64 * 1024
WISHES_MAX = 100  # of one front, under way at once; further ones are not read until then

Wish = Callable[[Want | Drain | Leave], Awaitable[Fault | None]]


class Fronts:
    """The connections of this host's fronts. `wish` writes down what an operator wants, `on_stale` is told that a front was led astray."""

    def __init__(self, path: str, wish: Wish, on_stale: Callable[[], None]) -> None:
        self._path = path
        self._wish = wish
        self._on_stale = on_stale
        self._owners: Owners | None = None
        self._version = 0
        self._changed = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen. A socket file that an ended process left is replaced."""
        with suppress(FileNotFoundError):
            os.unlink(self._path)  # noqa: PTH108  # a local folder, at start: nobody waits
        mask = os.umask(0o177)
        try:
            self._server = await asyncio.start_unix_server(self._attend, self._path)
        finally:
            os.umask(mask)

    def close(self) -> None:
        """End all connections."""
        if self._server is not None:
            self._server.close()
        for connection in self._connections:
            connection.cancel()

    def tell(self, owners: Owners) -> None:
        """Tell all fronts, where that is news."""
        if owners == self._owners:
            return
        self._owners = owners
        self._version += 1
        self._changed.set()
        self._changed = asyncio.Event()

    async def _attend(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        telling = asyncio.create_task(self._tell(writer))
        try:
            await self._hear(reader, writer)
        except (OSError, ProtocolError) as error:
            log.warning("a front is no longer heard", extra={"error": str(error)})
        except asyncio.CancelledError:
            return  # the node ends
        finally:
            self._connections.discard(task)
            telling.cancel()
            writer.transport.abort()

    async def _tell(self, writer: asyncio.StreamWriter) -> None:
        told = 0
        with suppress(OSError):
            while True:
                changed = self._changed
                if self._owners is not None and told != self._version:
                    told = self._version
                    writer.write(pack_frame(encode(self._owners)))
                    await writer.drain()
                else:
                    await changed.wait()

    async def _hear(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        frames = FrameReader(FRAME_BYTES_MAX)
        room = asyncio.Semaphore(WISHES_MAX)
        async with asyncio.TaskGroup() as wishes:
            while data := await reader.read(READ_BYTES):
                for body in frames.feed(data):
                    message = decode_from_front(body)
                    if isinstance(message, Stale):
                        self._on_stale()
                        continue
                    await room.acquire()
                    wishes.create_task(self._answer(message, writer)).add_done_callback(lambda _: room.release())

    async def _answer(self, message: Move | DrainAsked | Forget, writer: asyncio.StreamWriter) -> None:
        match message:
            case Move():
                fault = await self._wish(Want(message.shard, message.host))
            case DrainAsked():
                fault = await self._wish(Drain(message.host, message.draining))
            case Forget():
                fault = await self._wish(Leave(message.host))
        asked = Asked(message.number) if fault is None else Asked(message.number, fault.detail, fault.missing)
        writer.write(pack_frame(encode(asked)))
        with suppress(OSError):
            await writer.drain()
