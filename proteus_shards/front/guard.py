"""Reads an HTTP/1 connection before Hypercorn does, and lets pass only what the fast lane would have accepted, without any I/O.

Hypercorn's parser (h11) forgives what others don't: bare line feeds, folded lines, a Content-Length said twice, HTTP/1.2. A proxy in front that
forgives something else would see other requests in the same bytes. So each head is held back until it is whole and then judged by `heads`, and each
body is followed to its end by the same rules. What passes:

- A head is written anew from what was understood, in the one form that every parser reads alike: its target in origin form, without `Upgrade` and
  `HTTP2-Settings`. Thereby no connection becomes something else in the midst of it: h2c is declined by being ignored.
- A body passes as it came, as soon as it is understood. A chunk's size is held back until its line is whole.
- A connection that begins with HTTP/2's preface, all 24 bytes of it, passes from there on unread.

Whoever has the connection may turn a request away here, before anything is done for it: one whose body is there as a whole, so that what follows is the next head.

The first violation is the last thing that is said of a connection: what came before it has passed, nothing after it does.
"""

from __future__ import annotations

from collections.abc import Callable

from proteus_shards.front.heads import PREFACE, ChunkedBody, Fault, Head, HttpLimits, look_at_beginning, parse_head

_NOT_PASSED_ON = frozenset({b"upgrade", b"http2-settings"})


class Guard:
    """The guard of one connection."""

    def __init__(self, limits: HttpLimits, turn_away: Callable[[Head], bool] | None = None) -> None:
        self.http2 = False
        self.fault: Fault | None = None
        self.in_body = False  # the body of the request that passed last has not come to its end
        self.requests = 0  # whose heads have passed
        self._limits = limits
        self._turn_away = turn_away
        self._buffer = b""
        self._first = True
        self._length_left = 0
        self._chunks: ChunkedBody | None = None

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes of the connection, and return what may pass. See `fault` afterwards."""
        if self.http2:
            return data
        if self.fault is not None:
            return b""
        self._buffer += data
        passed: list[bytes] = []
        while self._buffer:
            piece = self._read_body() if self.in_body else self._read_head()
            if piece is None:
                continue
            if not piece:
                break
            passed.append(piece)
        return b"".join(passed)

    def _read_head(self) -> bytes | None:
        """Return a head that may pass, empty where it is not whole, or None where its request is turned away."""
        buffer = self._buffer
        if self._first and PREFACE.startswith(buffer[: len(PREFACE)]):
            if len(buffer) < len(PREFACE):
                return b""
            self.http2 = True
            self._buffer = b""
            return buffer
        end = buffer.find(b"\r\n\r\n") + 4
        if end < 4:
            self.fault = look_at_beginning(buffer, self._limits)
            return b""
        self._first = False
        head = parse_head(buffer[:end], self._limits)
        if isinstance(head, Fault):
            self.fault = head
            return b""
        if self._turn_away is not None and 0 <= head.length <= len(buffer) - end and self._turn_away(head):
            self._buffer = buffer[end + head.length :]
            return None
        self._buffer = buffer[end:]
        self.requests += 1
        self._length_left = max(0, head.length)
        self._chunks = ChunkedBody() if head.length < 0 else None
        self.in_body = head.length != 0
        return _written(head)

    def _read_body(self) -> bytes:
        buffer = self._buffer
        if self._chunks is None:
            used = min(self._length_left, len(buffer))
            self._length_left -= used
            self.in_body = self._length_left > 0
        else:
            read = self._chunks.read(buffer)
            assert read is not None  # since it has no limit
            if isinstance(read, Fault):
                self.fault = read
                return b""
            used = read[1]
            self.in_body = not self._chunks.ended
        self._buffer = buffer[used:]
        return buffer[:used]


def _written(head: Head) -> bytes:
    """Write a head in the one form that every parser reads alike."""
    version = b"HTTP/1.0" if head.http10 else b"HTTP/1.1"
    lines = [b"%s %s %s\r\n" % (head.method.encode("ascii"), head.target, version)]
    lines += [b"%s: %s\r\n" % field for field in head.fields if field[0].lower() not in _NOT_PASSED_ON]
    return b"".join(lines) + b"\r\n"
