"""The gate of a host: the TCP socket at its node_address, through which other hosts reach its shards.

A connection says with its first frame what it is for. A link's `Hello` goes on to the Unix socket of that shard's process, and from then on the gate carries bytes both ways,
as fast as the slower side takes them, and understands none. A `Fetch` brings luggage, a `Nudge` has the node look at once.

Who has not shown a certificate of the cluster is let in nowhere (where the cluster has none, the gate stands on loopback, or something else keeps others away). Whoever has not come to the end
of the handshake and of its first frame in `GREETING_SECONDS_MAX`, all in all, is cut off.
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import time
from contextlib import suppress
from typing import Protocol

from proteus_shards.config import socket_path
from proteus_shards.errors import ProtocolError
from proteus_shards.ipc.frames import pack_frame
from proteus_shards.ipc.gates import decode_at_gate
from proteus_shards.ipc.hosts import Elsewhere, Fetch, Nudge, encode
from proteus_shards.ipc.messages import Goodbye, Hello
from proteus_shards.node.luggage import give, read_frame
from proteus_shards.peering import Peering, watch

log = logging.getLogger("proteus_shards.node")

GREETING_SECONDS_MAX = 5.0
FIRST_FRAME_BYTES_MAX = 4096
PIECE_BYTES = 256 * 1024
BUFFER_BYTES = 1024 * 1024
REFUSED_TWICE = 2  # so many times node_connections_max are told why they are refused; beyond that they are only closed
ACCEPT_PAUSE_SECONDS = 0.1
LOG_SECONDS = 1.0  # from one line to the next of the same event: whoever reaches the port can cause as many as they like


class Knowledge(Protocol):
    """What a gate needs to know of its host."""

    def is_here(self, shard: int) -> bool:
        """Say whether a process of this host serves a shard."""
        ...

    def elsewhere(self, shard: int) -> Elsewhere:
        """Return who has a shard, as far as is known."""
        ...

    def nudge(self, message: Nudge) -> None:
        """Take note that another host has handed a shard over to this one."""
        ...


class Seldom:
    """Logs each event at most once in `LOG_SECONDS`; the next line of the event says how many were left out."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[float, int]] = {}  # by event: when it was logged, and how many were left out since

    def log(self, level: int, event: str, error: str | None) -> None:
        """Log an event, or count it."""
        now = time.monotonic()
        at, left_out = self._last.get(event, (-math.inf, 0))
        if now - at < LOG_SECONDS:
            self._last[event] = at, left_out + 1
            return
        self._last[event] = now, 0
        log.log(level, event, extra={"error": error} | ({"left_out": left_out} if left_out else {}))


class Gate:
    """The connections of other hosts."""

    def __init__(
        self,
        listener: socket.socket,
        peering: Peering,
        knowledge: Knowledge,
        run_dir: str,
        connections_max: int,
        handover_seconds_max: float,
    ) -> None:
        self._listener = listener
        self._peering = peering
        self._knowledge = knowledge
        self._run_dir = run_dir
        self._connections_max = connections_max
        self._handover_seconds_max = handover_seconds_max
        self._guests: set[asyncio.Task[None]] = set()
        self._told_full = False
        self._seldom = Seldom()

    @property
    def connections(self) -> int:
        """How many connections there are, those that have not said what they are for included."""
        return len(self._guests)

    async def run(self) -> None:
        """Let others in until cancelled."""
        loop = asyncio.get_running_loop()
        self._listener.setblocking(False)
        try:
            while True:
                try:
                    accepted, _ = await loop.sock_accept(self._listener)
                except OSError as error:  # no descriptor, no memory
                    self._seldom.log(logging.WARNING, "the gate cannot accept a connection", error.strerror)
                    await asyncio.sleep(ACCEPT_PAUSE_SECONDS)
                    continue
                guest = loop.create_task(self._receive(accepted))
                self._guests.add(guest)
                guest.add_done_callback(self._guests.discard)
        finally:
            for guest in self._guests:
                guest.cancel()

    async def _receive(self, accepted: socket.socket) -> None:
        full = self.connections > self._connections_max
        if full and not self._told_full:
            log.error("too many connections of other hosts (node_connections_max)", extra={"connections": self.connections})
        self._told_full = full
        if self.connections > REFUSED_TWICE * self._connections_max:
            accepted.close()
            return
        writer: asyncio.StreamWriter | None = None
        try:
            async with asyncio.timeout(GREETING_SECONDS_MAX):
                reader, writer = await self._welcome(accepted)
                body = await read_frame(reader, FIRST_FRAME_BYTES_MAX)
            await self._attend(reader, writer, body, full=full)
        except ProtocolError as error:
            self._seldom.log(logging.WARNING, "a connection of another host is refused", str(error))
            assert writer is not None
            writer.write(pack_frame(encode(Goodbye(str(error)))))
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(GREETING_SECONDS_MAX):
                    await writer.drain()
                    writer.close()
                    await writer.wait_closed()
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:  # errors of TLS are `OSError`s
            self._seldom.log(logging.INFO, "a connection of another host has ended", str(error) or type(error).__name__)
        finally:
            if writer is not None:
                writer.transport.abort()

    async def _welcome(self, accepted: socket.socket) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(BUFFER_BYTES)
        protocol = asyncio.StreamReaderProtocol(reader)
        try:
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            watch(accepted)
            context = self._peering.server()
            timeout = GREETING_SECONDS_MAX if context is not None else None
            transport, _ = await loop.connect_accepted_socket(lambda: protocol, accepted, ssl=context, ssl_handshake_timeout=timeout)
        except BaseException:
            accepted.close()
            raise
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)

    async def _attend(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes, *, full: bool) -> None:
        if full:
            raise ProtocolError("too many connections to this host (node_connections_max)")
        match decode_at_gate(body):
            case Hello(shard=shard):
                await self._join(shard, body, reader, writer)
            case Fetch() as wanted:
                async with asyncio.timeout(self._handover_seconds_max):
                    await give(writer, self._run_dir, wanted)
                    await reader.read(1)  # its end: the other side has all of it
            case Nudge() as message:
                self._knowledge.nudge(message)

    async def _join(self, shard: int, hello: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry bytes between another host's front and the process of a shard, until either ends."""
        inner: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        if self._knowledge.is_here(shard):
            with suppress(OSError):
                inner = await asyncio.open_unix_connection(socket_path(self._run_dir, shard), limit=BUFFER_BYTES)
        if inner is None:
            writer.write(pack_frame(encode(self._knowledge.elsewhere(shard))))
            await writer.drain()
            writer.close()
            await writer.wait_closed()
            return
        shard_reader, shard_writer = inner
        try:
            shard_writer.write(pack_frame(hello))
            inward = asyncio.create_task(_carry(reader, shard_writer))
            outward = asyncio.create_task(_carry(shard_reader, writer))
            try:
                await asyncio.wait({inward, outward}, return_when=asyncio.FIRST_COMPLETED)
                if outward.done():  # what the process said last is still to arrive
                    with suppress(OSError, TimeoutError):
                        async with asyncio.timeout(GREETING_SECONDS_MAX):
                            writer.close()
                            await writer.wait_closed()
            finally:
                inward.cancel()
                outward.cancel()
                await asyncio.gather(inward, outward, return_exceptions=True)
        finally:
            shard_writer.transport.abort()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Carry bytes until one side is gone."""
    with suppress(OSError):
        while data := await reader.read(PIECE_BYTES):
            writer.write(data)
            await writer.drain()
