"""One client connection, between trio's socket and Hypercorn.

Hypercorn takes any stream that looks like trio's. This one adds what Hypercorn lacks and the front must have:

- It counts what the socket took and knows when a send failed. Hypercorn swallows that; `exchange` needs it to tell a job
  that was handed over from one that never left.
- A client that stops reading does not hold a task for ever: each piece of an answer must be taken within a time. On HTTP/2 it may hold up an answer
  by its window too, before a byte of it is sent. So it is noted that answers wait, and `stalled` says when nothing has moved for that time.
- It closes gently. A server that closes while unread bytes are left (an upload refused with 413) makes the kernel
  reset the connection, and the client may lose the answer that says why. So after its last byte it reads on for a moment, discarding.
- It has a `Guard` read before Hypercorn does. After a violation Hypercorn gets nothing more to read: what it had is answered, then the client is told
  with one answer, unless the request that broke the rule has its answer already, and the connection ends.
- What its front has no place for is turned away as soon as the guard has read it, if nothing else is under way: Hypercorn would spend on it as much as on an answer
  (`turning`). The place of what passes is taken here, too, since a thousand connections may be read before the first request reaches the app.
- A head that has begun must come to its end within a time. Hypercorn's own read timeout would cut waiting polls as well.
- It knows whether an exchange is under way, so that a drain need not wait for a connection that owes nothing.
- `abort` closes at once, from sync code, whatever Hypercorn shields.
"""

from __future__ import annotations

import math
import ssl
from contextvars import ContextVar
from email.utils import formatdate
from typing import TypeAlias

import trio

from proteus_shards.front.admission import Place
from proteus_shards.front.counts import count_limit
from proteus_shards.front.guard import Guard
from proteus_shards.front.heads import Fault, Head, HttpLimits
from proteus_shards.front.http1 import write_answer
from proteus_shards.front.tls import names_in
from proteus_shards.front.turning import Turnstile

LINGER_SECONDS_MAX = 1.0
LINGER_BYTES_MAX = 8 * 1024 * 1024
PIECE_BYTES = 64 * 1024
RECEIVE_BYTES = 64 * 1024

Secured: TypeAlias = "trio.SSLStream[trio.SocketStream]"


class Connection(trio.abc.HalfCloseableStream):
    """A socket stream as Hypercorn sees it. `stall_seconds_max`: how long the client may take over 64 KiB of an answer.

    `head_seconds_max`: how long over the head of a request. `unread` are bytes that someone else has read, and that come first. `limits` are those of
    its guard; without them, it has none.
    """

    def __init__(
        self,
        stream: trio.SocketStream | Secured,
        stall_seconds_max: float,
        head_seconds_max: float = math.inf,
        unread: bytes = b"",
        limits: HttpLimits | None = None,
        turnstile: Turnstile | None = None,
    ) -> None:
        # Hypercorn asks it for the addresses
        self.socket = stream.transport_stream.socket if isinstance(stream, trio.SSLStream) else stream.socket
        self.sent_bytes = 0
        self.broken = False  # a send failed, the client reset the connection, or it was aborted
        self.exchanges = 0  # requests that have begun and are not over
        self.quiet_since = trio.current_time()  # when the last one was over
        self._head_seconds_max = head_seconds_max
        self._head_since: float | None = None  # when the first byte came of a request that has not begun
        self._turnstile = turnstile
        self._told: list[bytes] = []  # what those are told that were turned away
        self._place: Place | None = None  # of the request that has passed and has not reached the app
        self._guard = Guard(limits, self._turn_away if turnstile is not None else None) if limits is not None else None
        self._begun = 0  # answers
        self._answered = 0  # requests that are over
        self._refused = False  # the client was told of a violation: whatever else would be said is not
        self._refusing: trio.CancelScope | None = None  # waits for the answers before that
        self._sending = 0
        self._in_hand_bytes = 0  # of the piece that is being sent
        self._answers = 0  # that wait to be sent by someone else: those of HTTP/2
        self._moved_at = 0.0  # when the last piece was taken, or the first of these answers began
        self._stream = stream
        self._stall_seconds_max = stall_seconds_max
        self._unread = unread
        self._finishing = False
        self._reading = False
        self._ended = trio.Event()
        self.client_names: frozenset[str] = frozenset()  # those of the client's certificate

    def begin_exchange(self) -> Place | None:
        """Note that a request has begun: its head is whole. Returns the place that was taken for it, if one was."""
        self.exchanges += 1
        self._head_since = None
        place, self._place = self._place, None
        return place

    def _turn_away(self, head: Head) -> bool:
        """Have a request turned away that comes by itself, or take a place for it."""
        assert self._guard is not None
        assert self._turnstile is not None
        if self._place is not None or self.exchanges or self._guard.requests > self._answered:
            return False
        found = self._turnstile.pass_or_tell(head)
        if isinstance(found, bytes):
            self._told.append(found)
            return True
        self._place = found
        return False

    def note_answer(self) -> None:
        """Note that the answer to the request that began last is about to be sent."""
        self._begun += 1

    def end_exchange(self) -> None:
        """Note that a request is over."""
        self.exchanges -= 1
        self._answered += 1
        if self._refusing is not None and self._guard is not None and self._answered >= self._guard.requests:
            self._refusing.cancel()
        self.quiet_since = trio.current_time()

    def owes_nothing(self, quiet_seconds: float) -> bool:
        """Say whether for so long no request has been under way, and nothing is being sent."""
        return not self.exchanges and not self._sending and trio.current_time() - self.quiet_since >= quiet_seconds

    def begin_answer(self) -> None:
        """Note that an answer waits for a sender that serves several."""
        if not self._answers:
            self._moved_at = trio.current_time()
        self._answers += 1

    def end_answer(self) -> None:
        """Note that it was sent, or never will be."""
        self._answers -= 1

    def note_progress(self) -> None:
        """Note that a piece of one of these answers was taken. A client that only keeps the connection busy makes none."""
        self._moved_at = trio.current_time()

    @property
    def stalled(self) -> bool:
        """Whether answers wait and the client has taken nothing of them for too long."""
        return self._answers > 0 and trio.current_time() - self._moved_at >= self._stall_seconds_max

    @property
    def sent_bytes_most(self) -> int:
        """How many bytes the socket may have taken, those that are being sent included."""
        return self.sent_bytes + self._in_hand_bytes

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send data. Raises `trio.BrokenResourceError` where the client is gone or takes too long."""
        if self._refused:
            raise trio.BrokenResourceError("the connection broke a rule, and ends")
        await self._send(data)

    async def _send(self, data: bytes | bytearray | memoryview) -> None:
        self._sending += 1
        try:
            with memoryview(data) as view:
                for start in range(0, len(view), PIECE_BYTES):
                    await self._send_piece(view[start : start + PIECE_BYTES])
        finally:
            self._sending -= 1

    async def _send_piece(self, piece: memoryview) -> None:
        if self.broken:
            raise trio.BrokenResourceError("an earlier send failed")
        self._in_hand_bytes = len(piece)
        try:
            with trio.fail_after(self._stall_seconds_max):
                await self._stream.send_all(piece)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.abort()
            raise
        except trio.TooSlowError:
            count_limit("request_seconds_max")
            self.abort()
            raise trio.BrokenResourceError("the client does not read") from None
        finally:
            self._in_hand_bytes = 0
        self.sent_bytes += len(piece)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the socket takes bytes."""
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Return what the client sends next and may; after the last answer, discard it and return only at its end."""
        if self._reading:
            await self._ended.wait()
            return b""
        self._reading = True
        try:
            data = await self._receive_what_may_pass(max_bytes)
        except BaseException:
            self._ended.set()
            raise
        finally:
            self._reading = False
        if not data:
            self._ended.set()
        return data

    async def _receive_what_may_pass(self, max_bytes: int | None) -> bytes | bytearray:
        while not self._finishing:
            if self._guard is not None and self._guard.fault is not None:
                await self._refuse(self._guard, self._guard.fault)
                return b""
            data = await self._receive_in_time(max_bytes)
            if not data:
                return b""
            if self._guard is not None and not self._finishing:
                data = self._guard.feed(bytes(data))
                if self._told:
                    await self._tell()
            if data and not self._finishing:
                return data
        await self._discard()
        return b""

    async def _tell(self) -> None:
        """Answer those that were turned away: all that came before them has its answer."""
        told, self._told = self._told, []
        self._head_since = None
        self.quiet_since = trio.current_time()
        await self._send(b"".join(told))

    async def _refuse(self, guard: Guard, fault: Fault) -> None:
        """Let what came before a violation be answered, tell the client of it, and hear it out for a moment."""
        begun = guard.in_body and self._begun >= guard.requests
        if (begun or not guard.in_body) and self._answered < guard.requests:
            with trio.CancelScope() as self._refusing:
                await self._discard()
            if not self._refusing.cancelled_caught:
                return  # the client went meanwhile
        if not (begun or self._finishing or self.broken):
            self._refused = True
            await self._send(write_answer(fault.problem.answer(), formatdate(usegmt=True).encode(), keep_alive=False, http10=False))
        self._refused = True
        with trio.move_on_after(LINGER_SECONDS_MAX):
            await self.send_eof()
            await self._discard()

    async def _discard(self) -> None:
        """Read and forget until the client ends its side, or sends too much."""
        discarded = 0
        while discarded <= LINGER_BYTES_MAX:
            data = await self._receive_in_time(RECEIVE_BYTES)
            if not data:
                return
            discarded += len(data)

    async def _receive_in_time(self, max_bytes: int | None) -> bytes | bytearray:
        if self._unread:
            await trio.lowlevel.checkpoint()
            first = self._unread[:max_bytes]
            self._unread = self._unread[len(first) :]
            self._note_bytes(first)
            return first
        while True:
            since = None if self._guard is not None and self._guard.http2 else self._head_since
            with trio.move_on_at(math.inf if since is None else since + self._head_seconds_max):
                try:
                    data = await self._stream.receive_some(max_bytes)
                except trio.BrokenResourceError:
                    self.broken = True  # reset: what is not sent yet will reach nobody
                    raise
                self._note_bytes(data)
                return data
            if self._head_since is not None and not self.exchanges:
                self.abort()
                raise trio.BrokenResourceError("the head of a request did not come in time")

    def _note_bytes(self, data: bytes | bytearray) -> None:
        if data and not self.exchanges and self._head_since is None and not self._finishing:
            self._head_since = trio.current_time()

    async def send_eof(self) -> None:
        """Tell the client that nothing more comes."""
        self._finishing = True
        if isinstance(self._stream, trio.SocketStream):
            await self._stream.send_eof()

    async def aclose(self) -> None:
        """Close; after `send_eof`, let the client finish first, for a moment."""
        try:
            if self._finishing and not self.broken and not self._ended.is_set():
                with trio.move_on_after(LINGER_SECONDS_MAX):
                    await self.receive_some(RECEIVE_BYTES)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return  # the client closed less gently
        finally:
            await self._stream.aclose()

    def abort(self) -> None:
        """Close at once. Whoever sends or receives gets `trio.ClosedResourceError`."""
        self.broken = True
        self.socket.close()
        if self._place is not None:
            self._place.leave()
            self._place = None


class SecureConnection(Connection):
    """The same behind TLS. Hypercorn knows it for that by `do_handshake`.

    All that is counted and timed is counted above TLS, in the bytes of HTTP: a piece counts as sent once the socket took all of it encrypted.
    """

    def __init__(
        self,
        stream: trio.SocketStream,
        context: ssl.SSLContext,
        stall_seconds_max: float,
        head_seconds_max: float,
        limits: HttpLimits | None = None,
        turnstile: Turnstile | None = None,
    ) -> None:
        self._secured: Secured = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
        super().__init__(self._secured, stall_seconds_max, head_seconds_max, limits=limits, turnstile=turnstile)
        self.transport_stream = stream

    async def do_handshake(self) -> None:
        """Agree with the client on keys and protocol. Raises `trio.BrokenResourceError`."""
        try:
            await self._secured.do_handshake()
        except trio.ClosedResourceError as error:  # it was aborted, by a drain say
            raise trio.BrokenResourceError("the connection was aborted in its handshake") from error
        self.client_names = names_in(self._secured.getpeercert())
        if self._guard is not None and self.selected_alpn_protocol() == "h2":
            self._guard.http2 = True

    def selected_alpn_protocol(self) -> str:
        """Return the protocol that the handshake has chosen: h2 or http/1.1."""
        return self._secured.selected_alpn_protocol() or "http/1.1"


CURRENT_CONNECTION: ContextVar[Connection | None] = ContextVar("CURRENT_CONNECTION", default=None)
