"""HTTP/1.1 for the fast lane, without any I/O: bytes in, requests out, answers to bytes.

`RequestReader` is fed what a connection sends and gives back whole requests, in order. What it accepts is decided in `heads`. Framing is done here,
since only who knows where a request begins can hand the connection over:

- A head is parsed only once its last byte has come. Most arrive in one piece, so nothing is scanned twice.
- Parsing is half of what a request costs, and clients repeat themselves: what they send of fields is the same each time. So what was parsed is remembered, by the bytes of the whole head and by
  those of all but the target (`KnownHeads`). Only a target of ordinary characters, about which nothing is left to decide, is ever joined to fields that are known.
- A request that the lane does not serve, whose body is to be read as it comes (NDJSON), or that a browser's page sends (`origins`), becomes a `Handover` with all bytes from its
  first one on. Nothing is served after it.

Limits: head bytes and fields (431), target (414), body (413). The reader holds at most a head, or a body within its limit.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from email.utils import formatdate
from enum import Enum
from http import HTTPStatus
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import msgspec

from proteus_shards.front.answers import JSON_HEADERS, Answer, phrase_of
from proteus_shards.front.bodies import too_large
from proteus_shards.front.heads import PREFACE, ChunkedBody, Fault, Head, HttpLimits, look_at_beginning, ordinary_line, parse_head

if TYPE_CHECKING:
    import re

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
KNOWN_HEADS_MAX = 1024
KNOWN_BYTES_MAX = 1024

_ONE_JOB = b"job_id="  # a query that names a job is hardly ever sent twice

T = TypeVar("T")


class Terms(msgspec.Struct, frozen=True, gc=False):
    """What the fields of a head say, whatever its target."""

    length: int  # of the body; -1: chunked
    content_encoding: str | None
    keep_alive: bool
    http10: bool
    expects: bool
    authorization: bytes | None
    idempotency_key: bytes | None
    traceparent: str | None
    ordinary: bool  # none of what changes the meaning of a request: a content coding, an idempotency key, a trace


class Request(msgspec.Struct, frozen=True, gc=False):
    """One whole request. `body` is as it came, before any content coding is undone."""

    method: str
    path: bytes
    query: bytes
    body: bytes
    terms: Terms


class Handover(msgspec.Struct, frozen=True):
    """The connection goes to another server, with these bytes, which nobody has answered yet."""

    unread: bytes


class Need(Enum):
    """What the reader waits for before it can go on."""

    HEAD = "more of a head"
    BODY = "more of a body"
    CONTINUE = "more of a body, and the client waits to be told to send it"
    NOTHING = "nothing: a request has not begun"


Item: TypeAlias = Request | Fault | Handover | Need
Serves: TypeAlias = Callable[[str, bytes], bool]


class _Head(msgspec.Struct, frozen=True, gc=False):
    method: str
    path: bytes
    query: bytes
    terms: Terms


class KnownHeads:
    """Heads that were parsed before, for all readers of a lane: the same bytes mean the same. Neither faults nor what is handed over is among them."""

    __slots__ = ("terms", "whole")

    def __init__(self) -> None:
        self.whole: dict[bytes, _Head] = {}
        self.terms: dict[bytes, tuple[str, Terms]] = {}  # with the method, by all but the target

    def terms_of(self, line: re.Match[bytes], raw: bytes) -> tuple[str, Terms] | None:
        """Return method and terms of a head with an ordinary line, if they are known."""
        return self.terms.get(line[1] + raw[line.start(4) :])

    def remember(self, line: re.Match[bytes] | None, raw: bytes, head: _Head) -> None:
        """Keep a head, unless nothing like it is likely to come again."""
        if len(raw) > KNOWN_BYTES_MAX or head.terms.idempotency_key is not None or head.terms.traceparent is not None:
            return
        if line is not None:
            _keep(self.terms, line[1] + raw[line.start(4) :], (head.method, head.terms))
        if _ONE_JOB not in head.query:
            _keep(self.whole, raw, head)


def _keep(known: dict[bytes, T], key: bytes, value: T) -> None:
    if len(known) >= KNOWN_HEADS_MAX:
        known.clear()
    known[key] = value


class RequestReader:
    """Reads the requests of one connection. `serves` says of a method and a raw path whether the lane answers it.

    `known` may be shared by the readers of one lane.
    """

    def __init__(self, limits: HttpLimits, serves: Serves, known: KnownHeads | None = None) -> None:
        self._limits = limits
        self._serves = serves
        self._known = known if known is not None else KnownHeads()
        self._buffer = b""
        self._head: _Head | None = None
        self._body = bytearray()
        self._body_left = 0
        self._chunks: ChunkedBody | None = None
        self._told = False
        self._first = True
        self._over = False

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the connection."""
        self._buffer = self._buffer + data if self._buffer else data

    @property
    def held(self) -> int:
        """How many bytes of requests it holds that are not whole, or not taken yet."""
        return len(self._buffer) + len(self._body)

    def drop(self) -> None:
        """Forget them, and read no more."""
        self._buffer = b""
        self._body = bytearray()
        self._over = True

    def idle(self) -> bool:
        """Say whether no request has begun that is not whole yet."""
        return self._head is None and not self._buffer

    def next(self) -> Item:
        """Return the next request, or what stands in its way. After a `Fault` or a `Handover` nothing follows."""
        if self._over:
            return Need.NOTHING
        if self._head is None:
            item = self._read_head()
            if type(item) is Request:
                return item
            if item is not None:
                self._over = not isinstance(item, Need)
                return item
        item = self._read_body() if self._chunks is None else self._read_chunks(self._chunks)
        self._over = isinstance(item, Fault)
        return item

    # --- heads -------------------------------------------------------------------------------------------------

    def _read_head(self) -> Item | None:
        """Read one head into `_head`. Returns None then, and otherwise what to do instead: most requests are all there, and returned at once."""
        buffer = self._buffer
        if not buffer:
            return Need.NOTHING
        if self._first and PREFACE.startswith(buffer[: len(PREFACE)]):
            return Handover(buffer) if len(buffer) >= len(PREFACE) else Need.HEAD
        end = buffer.find(b"\r\n\r\n") + 4
        if end < 4:
            return look_at_beginning(buffer, self._limits) or Need.HEAD
        self._first = False
        raw = buffer[:end]
        head = self._known.whole.get(raw)
        if head is None:
            found = self._parse(raw)
            if not isinstance(found, _Head):
                return found or Handover(buffer)
            head = found
        length = head.terms.length
        if length > self._limits.body_size_max:
            return Fault(too_large(self._limits.body_size_max, head.path))
        if 0 <= length <= len(buffer) - end:
            stop = end + length
            self._buffer = buffer[stop:]
            return Request(head.method, head.path, head.query, buffer[end:stop], head.terms)
        self._buffer = buffer[end:]
        self._head = head
        self._body_left = max(0, length)
        self._chunks = ChunkedBody() if length < 0 else None
        self._told = not head.terms.expects
        return None

    def _parse(self, raw: bytes) -> _Head | Fault | None:
        """Return a head that is not known as a whole; None: it is not for the lane."""
        limits = self._limits
        line = ordinary_line(raw, limits)
        known = self._known.terms_of(line, raw) if line is not None else None
        if line is not None and known is not None:
            method, terms = known
            path, query = line[2], line[3] or b""
        else:
            parsed = parse_head(raw, limits)
            if isinstance(parsed, Fault):
                return parsed
            if parsed.ndjson or parsed.from_page:
                return None
            method, terms = parsed.method, _terms_of(parsed)
            path, _, query = parsed.target.partition(b"?")
        if not self._serves(method, path):
            return None
        head = _Head(method, path, query, terms)
        if known is None or _ONE_JOB not in query:
            self._known.remember(line, raw, head)
        return head

    # --- bodies ------------------------------------------------------------------------------------------------

    def _read_body(self) -> Item:
        left = self._body_left
        buffer = self._buffer
        if left and not self._body and len(buffer) >= left:  # all of it is here, and nothing was before
            self._buffer = buffer[left:]
            return self._finish(buffer[:left])
        if left:
            self._body += buffer[:left]
            self._body_left = left - min(left, len(buffer))
            self._buffer = buffer[left:]
            if self._body_left:
                return self._wait_for_body()
        return self._finish(bytes(self._body))

    def _read_chunks(self, chunks: ChunkedBody) -> Item:
        body_size_max = self._limits.body_size_max
        read = chunks.read(self._buffer, body_size_max - len(self._body) - chunks.left)
        if read is None:
            return Fault(too_large(body_size_max, self._head.path if self._head is not None else b""))
        if isinstance(read, Fault):
            return read
        pieces, used = read
        for piece in pieces:
            self._body += piece
        self._buffer = self._buffer[used:]
        return self._finish(bytes(self._body)) if chunks.ended else self._wait_for_body()

    def _wait_for_body(self) -> Need:
        if not self._told and not self._body and not self._buffer:
            self._told = True
            return Need.CONTINUE
        return Need.BODY

    def _finish(self, body: bytes) -> Request:
        head = self._head
        assert head is not None
        self._head = None
        self._chunks = None
        if self._body:
            self._body = bytearray()
        return Request(head.method, head.path, head.query, body, head.terms)


def _terms_of(head: Head) -> Terms:
    ordinary = head.content_encoding is None and head.idempotency_key is None and head.traceparent is None
    return Terms(
        head.length,
        head.content_encoding,
        head.keep_alive,
        head.http10,
        head.expects,
        head.authorization,
        head.idempotency_key,
        head.traceparent,
        ordinary,
    )


# --- answers ---------------------------------------------------------------------------------------------------

_LINES = {status.value: f"HTTP/1.1 {status.value} {phrase_of(status)}\r\n".encode() for status in HTTPStatus}


def write_answer(answer: Answer, date: bytes, *, keep_alive: bool, http10: bool) -> bytes:
    """Return the bytes of an answer. `date` is the value of its Date field."""
    parts = _begin(answer, date)
    if answer.status != HTTPStatus.NO_CONTENT:
        parts.append(b"content-length: %d\r\n" % len(answer.body))
    if not keep_alive:
        parts.append(b"connection: close\r\n")
    elif http10:
        parts.append(b"connection: keep-alive\r\n")
    parts += [b"\r\n", answer.body]
    return b"".join(parts)


def _begin(answer: Answer, date: bytes) -> list[bytes]:
    return [
        _LINES[answer.status],
        b"date: ",
        date,
        b"\r\n",
        *(f"{name}: {value}\r\n".encode("latin-1") for name, value in answer.headers),
    ]


class AnswerWriter:
    """Writes answers with the date of the last `tick`. Those of a status alone, which are most, are written once a second, and so is what comes before the length of JSON."""

    def __init__(self) -> None:
        self._date = b""
        self._common: dict[int, bytes] = {}
        self._before_length: dict[int, bytes] = {}
        self._repeated: tuple[Answer | None, bytes] = (None, b"")  # what went out last of all others, in case it does again

    def tick(self) -> None:
        """Look at the clock."""
        date = formatdate(usegmt=True).encode()
        if date != self._date:
            self._date = date
            self._common.clear()
            self._before_length.clear()
            self._repeated = (None, b"")

    def write(self, answer: Answer, *, keep_alive: bool, http10: bool) -> bytes:
        """Return the bytes of an answer."""
        body = answer.body
        if body or answer.headers or http10 or not keep_alive:
            if answer.headers is JSON_HEADERS and keep_alive and not http10:
                before = self._before_length.get(answer.status)
                if before is None:
                    before = self._before_length[answer.status] = b"".join(_begin(answer, self._date))
                return b"%bcontent-length: %d\r\n\r\n%b" % (before, len(body), body)
            if not keep_alive or http10:
                return write_answer(answer, self._date, keep_alive=keep_alive, http10=http10)
            if answer is not self._repeated[0]:
                self._repeated = (answer, write_answer(answer, self._date, keep_alive=True, http10=False))
            return self._repeated[1]
        data = self._common.get(answer.status)
        if data is None:
            data = self._common[answer.status] = write_answer(answer, self._date, keep_alive=True, http10=False)
        return data


def serves_among(routes: Collection[tuple[str, bytes]], prefixes: tuple[bytes, ...] = ()) -> Serves:
    """Return the `serves` of a fixed set of (method, raw path), and of all paths that begin so."""
    known = frozenset(routes)
    return lambda method, path: (method, path) in known or path.startswith(prefixes)
