"""The shard's end of its links: a Unix socket on which fronts connect.

One `Connection` is one front. Bytes become requests here, and outcomes bytes; everything between is the pump's. A connection that breaks
the protocol is told why, closed, and logged; no other notices. Only processes of the same user (or root) are served: the
socket lies in a private folder, has mode 0600, and where the kernel tells who connects, that is checked as well.

A front of another host comes through that host's gate, over which its session goes on when a connection is cut (`sessions.py`).

Memory is bounded on both ways: while a front does not read its replies, nothing more is read from it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, cast

import msgspec

from proteus_shards.core.commands import Outcome, Reason, Refused
from proteus_shards.errors import ProtocolError
from proteus_shards.ipc.frames import FrameReader, pack_frame
from proteus_shards.ipc.hosts import Elsewhere
from proteus_shards.ipc.messages import MOVING, Goodbye, Hello, check_hello, decode_greeting, decode_requests, encode, hello
from proteus_shards.shard.sessions import Session, SessionLimits, Sessions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proteus_shards.shard.pump import Pump

log = logging.getLogger("proteus_shards.shard")

FRAME_BYTES_SOFT = 1024 * 1024  # a frame is closed once it is larger; one message may be larger still
MESSAGES_MAX = 1024  # and once it has this many messages, so that its first is not held up by its last
WRITE_BUFFER_BYTES = 8 * 1024 * 1024

MOVED = Refused(Reason.MOVED, "the shard moves")

_array32 = struct.Struct(">BI").pack


class Connection(asyncio.Protocol):
    """One front's link. Implements `pump.Link`."""

    def __init__(self, pump: Pump, own: Hello, connections: set[Connection], sessions: Sessions) -> None:
        self.closed = False
        self._sessions = sessions
        self._session: Session | None = None  # where it is one of another host
        self._pump = pump
        self._own = own
        self._connections = connections
        self._reader = FrameReader()
        self._greeted = False
        self._transport: asyncio.Transport | None = None
        self._out: list[tuple[int, Outcome]] = []

    # --- asyncio's side ----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Check who connects."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        self._connections.add(self)
        uid = _peer_uid(transport.get_extra_info("socket"))
        if uid is not None and uid not in (0, os.getuid()):
            log.error("link refused", extra={"error": f"the peer runs as user {uid}"})
            self.closed = True
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Take the next bytes of the front."""
        if self.closed:
            return
        try:
            for body in self._reader.feed(data):
                if self._greeted:
                    self._pump.receive(self, decode_requests(body))
                elif self._session is not None:
                    self._session.take(body)
                else:
                    self._greet(body)
        except ProtocolError as error:
            self._refuse(str(error))

    def connection_lost(self, exc: Exception | None) -> None:
        """Give up what this front was waiting for."""
        self.closed = True
        self._connections.discard(self)
        self._out.clear()
        if self._session is not None:
            self._session.detach(self)
        else:
            self._pump.lose(self)
        log.debug("link closed", extra={"error": str(exc) if exc else None})

    def pause_writing(self) -> None:
        """Stop reading from a front that does not read."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Read again from a front that reads again."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    # --- the pump's side ---------------------------------------------------------------------------------------

    @property
    def unsent_bytes(self) -> int:
        """How many bytes of replies wait for the front to take them."""
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def put(self, number: int, outcome: Outcome) -> None:
        """Queue a reply."""
        self._out.append((number, outcome))

    def flush(self) -> None:
        """Send the queued replies, many to a frame."""
        out, self._out = self._out, []
        if not out or self.closed or self._transport is None:
            return
        if len(out) <= MESSAGES_MAX:
            body = encode(out)
            if len(out) == 1 or len(body) <= FRAME_BYTES_SOFT:  # nearly always
                self._transport.write(pack_frame(body))
                return
        self._transport.write(b"".join(map(pack_frame, _bodies_of(out))))

    def tell(self, number: int, outcome: Outcome) -> None:
        """Send a reply at once, whoever it is for."""
        link = self._session or (self if self._greeted else None)
        if link is not None:
            link.put(number, outcome)
            link.flush()

    def close(self) -> None:
        """Send what is queued and end the link."""
        self.flush()
        if self._session is not None:
            self._session.flush()
        if self._transport is not None:
            self._transport.close()

    # --- a session's side --------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Send bytes of a session."""
        if self._transport is not None and not self.closed:
            self._transport.write(data)

    def abort(self) -> None:
        """End the connection: its session goes on over another, or has ended."""
        self.closed = True
        if self._transport is not None:
            self._transport.abort()

    # --- greeting ----------------------------------------------------------------------------------------------

    def _greet(self, body: bytes) -> None:
        peer = decode_greeting(body)
        if not isinstance(peer, Hello):
            raise ProtocolError("the front did not greet" if isinstance(peer, Elsewhere) else f"the front ended the link: {peer.detail}")
        check_hello(self._own, peer)
        assert self._transport is not None
        if peer.session:
            self._resume(peer)
            return
        self._greeted = True
        self._transport.write(pack_frame(encode(hello(self._own.shard, self._own.shards, self._pump.epoch))))

    def _resume(self, peer: Hello) -> None:
        """Go on with the session of a front on another host, or begin it."""
        session, known = self._sessions.find(peer)
        missing = session.resume(peer.received) if known else b""
        answer = hello(self._own.shard, self._own.shards, self._pump.epoch)
        self.write(pack_frame(encode(msgspec.structs.replace(answer, received=session.strand.received, resumed=known))) + missing)
        self._session = session
        session.attach(self)

    def _refuse(self, detail: str) -> None:
        log.error("link refused", extra={"error": detail})
        self.closed = True
        assert self._transport is not None
        if not self._greeted and self._session is None:
            self._transport.write(pack_frame(encode(Goodbye(detail))))
        self._transport.close()


class Listener:
    """The shard's socket and the connections made on it."""

    def __init__(self, pump: Pump, path: str, shard: int, shards: int, limits: SessionLimits | None = None) -> None:
        self._pump = pump
        self._path = path
        self._own = hello(shard, shards)
        self._connections: set[Connection] = set()
        self._sessions = Sessions(pump, limits or SessionLimits(), _bodies_of)
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen. A socket file that an ended process left is replaced."""
        with suppress(FileNotFoundError):
            os.unlink(self._path)  # noqa: PTH108  # a local folder, at start: nobody waits
        mask = os.umask(0o177)
        try:
            self._server = await asyncio.get_running_loop().create_unix_server(self._connect, self._path)
        finally:
            os.umask(mask)

    def stop_accepting(self) -> None:
        """Take no more connections."""
        if self._server is not None:
            self._server.close()

    def tell_moving(self) -> None:
        """Tell every front that the shard moves, so that none sends what would come too late."""
        for connection in list(self._connections):
            connection.tell(MOVING, MOVED)

    async def wait_left(self) -> None:
        """Wait, a bounded time, for the fronts to go: each does once all that it has sent is answered."""
        for _ in range(100):
            if not self._connections:
                return
            await asyncio.sleep(0.01)

    async def close(self) -> None:
        """End all connections once their replies are out."""
        self.stop_accepting()
        for connection in list(self._connections):
            connection.close()
        await self.wait_left()  # one that does not read is not waited for longer

    def _connect(self) -> Connection:
        return Connection(self._pump, self._own, self._connections, self._sessions)


def _bodies_of(out: list[tuple[int, Outcome]]) -> Iterator[bytes]:
    """Yield the bodies of frames for replies, none much larger than need be."""
    parts: list[bytes] = []
    size = 0
    for reply in out:
        part = encode(reply)
        parts.append(part)
        size += len(part)
        if size >= FRAME_BYTES_SOFT or len(parts) >= MESSAGES_MAX:
            yield _array32(0xDD, len(parts)) + b"".join(parts)
            parts, size = [], 0
    if parts:
        yield _array32(0xDD, len(parts)) + b"".join(parts)


def _peer_uid(connected: socket.socket | None) -> int | None:
    option = getattr(socket, "SO_PEERCRED", None)
    if connected is None or option is None:
        return None
    _, uid, _ = struct.unpack("3i", connected.getsockopt(socket.SOL_SOCKET, option, struct.calcsize("3i")))
    return cast("int", uid)
