"""HTTP/1.1 for the fast lane, without any I/O: bytes in, requests out, answers to bytes.

`RequestReader` is fed what a connection sends and gives back whole requests, in order. It is strict where parsers have been known to disagree,
because a proxy in front may read the same bytes: whatever is malformed, ambiguous or over a limit becomes one `Fault`, after
which the connection says no more. httptools (llhttp) parses each head and refuses most of that; what it lets pass (a second or a missing
Host, HTTP/2.0 in a request line, Transfer-Encoding in HTTP/1.0, a fragment, a target of another host, white space in the
request line) is refused here. Framing is done here too, since only who knows where a request begins can hand the connection over:

- A head is fed to the parser only once its last byte has come. Most arrive in one piece, so nothing is scanned twice.
- Bodies with a length are cut out, chunked ones decoded by the letter: chunk extensions and trailers are refused, as no
  client of this API has a reason to send them, and many attacks have.
- A request that the lane does not serve, or whose body is to be read as it comes (NDJSON), becomes a `Handover` with all bytes from its first one on. Nothing is served after it.

Limits: head bytes and fields (431), target (414), body (413). The reader holds at most a head, or a body within its limit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from email.utils import formatdate
from enum import Enum
from http import HTTPStatus
from typing import TypeAlias

import httptools
import msgspec

from proteus_shards.front.answers import Answer, Problem, phrase_of
from proteus_shards.front.bodies import too_large

PREFACE = b"PRI * HTTP/2.0\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
CHUNK_HEAD_BYTES_MAX = 16
NDJSON = frozenset({b"application/x-ndjson", b"application/ndjson", b"application/jsonl", b"application/x-jsonlines"})
KNOWN_HEADS_MAX = 1024
KNOWN_BYTES_MAX = 1024

_REQUEST_LINE = re.compile(rb"[A-Z]{1,20} [^ \t]+ HTTP/1\.[01]\r\n")
_ORIGIN = re.compile(rb"(?i:https?)://([^/?#]*)(.*)")
_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,8}")
_LENGTH = re.compile(rb"[0-9]{1,15}")


class HttpLimits(msgspec.Struct, frozen=True):
    """The limits of one request; each is a setting of the same name."""

    header_bytes_max: int
    headers_max: int
    url_bytes_max: int
    body_size_max: int


class Request(msgspec.Struct, frozen=True, gc=False):
    """One whole request. `body` is as it came, before any content coding is undone."""

    method: str
    path: bytes
    query: bytes
    body: bytes
    content_encoding: str | None
    keep_alive: bool
    http10: bool


class Fault(msgspec.Struct, frozen=True):
    """The connection broke a rule: answer with the problem and close."""

    problem: Problem


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
    length: int  # -1: chunked
    content_encoding: str | None
    keep_alive: bool
    http10: bool
    expects: bool


KnownHeads: TypeAlias = dict[bytes, _Head]


class _Fields:
    """Collects what httptools reports of one head."""

    __slots__ = ("fields", "url")

    def __init__(self) -> None:
        self.url = b""
        self.fields: list[tuple[bytes, bytes]] = []

    def on_url(self, url: bytes) -> None:
        """Take (a part of) the target."""
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take one field."""
        self.fields.append((name, value))


class RequestReader:
    """Reads the requests of one connection. `serves` says of a method and a raw path whether the lane answers it.

    `known` may be shared by the readers of one lane: heads that were parsed before, by their bytes. The same bytes mean the same,
    and a client that asks for the same thing again and again sends the same head.
    """

    def __init__(self, limits: HttpLimits, serves: Serves, known: KnownHeads | None = None) -> None:
        self._limits = limits
        self._serves = serves
        self._known: KnownHeads = known if known is not None else {}
        self._buffer = b""
        self._head: _Head | None = None
        self._body = bytearray()
        self._body_left = 0  # of the body, or of the current chunk and its line end
        self._chunk_end = False
        self._told = False
        self._first = True
        self._over = False

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the connection."""
        self._buffer = self._buffer + data if self._buffer else data

    def idle(self) -> bool:
        """Say whether no request has begun that is not whole yet."""
        return self._head is None and not self._buffer

    def next(self) -> Item:
        """Return the next request, or what stands in its way. After a `Fault` or a `Handover` nothing follows."""
        if self._over:
            return Need.NOTHING
        if self._head is None:
            item = self._read_head()
            if item is not None:
                self._over = not isinstance(item, Need)
                return item
        item = self._read_chunks() if self._head is not None and self._head.length < 0 else self._read_body()
        self._over = isinstance(item, Fault)
        return item

    # --- heads -------------------------------------------------------------------------------------------------

    def _read_head(self) -> Item | None:
        """Read one head into `_head`. Returns None then, and otherwise what to do instead."""
        buffer = self._buffer
        if not buffer:
            return Need.NOTHING
        end = buffer.find(b"\r\n\r\n") + 4
        limits = self._limits
        if end < 4:
            if self._first and PREFACE.startswith(buffer[: len(PREFACE)]):
                return Need.HEAD
            return self._look_at_beginning(buffer)
        if end > limits.header_bytes_max:
            return _fault(431, f"the head of the request is larger than {limits.header_bytes_max} bytes (header_bytes_max)")
        if self._first and buffer.startswith(PREFACE):
            return Handover(buffer)
        self._first = False
        raw = buffer[:end]
        head = self._known.get(raw)
        if head is None:
            parsed = self._parse(raw)
            if not isinstance(parsed, _Head):
                return parsed
            if not self._serves(parsed.method, parsed.path):
                return Handover(buffer)
            head = parsed
            if end <= KNOWN_BYTES_MAX:
                if len(self._known) >= KNOWN_HEADS_MAX:
                    self._known.clear()
                self._known[raw] = head
        if head.length > limits.body_size_max:
            return Fault(too_large(limits.body_size_max))
        self._buffer = buffer[end:]
        self._head = head
        self._body_left = max(0, head.length)
        self._told = not head.expects
        return None

    def _look_at_beginning(self, buffer: bytes) -> Item:
        """Refuse a head that can't come right any more before it is whole."""
        limits = self._limits
        line_end = buffer.find(b"\n")
        if line_end >= 0 and _REQUEST_LINE.match(buffer) is None and not (self._first and buffer.startswith(PREFACE)):
            return _fault(400, "the request line is malformed")
        if (line_end if line_end >= 0 else len(buffer)) > limits.url_bytes_max + 32:
            return _fault(414, f"the target of the request is longer than {limits.url_bytes_max} bytes (url_bytes_max)")
        if len(buffer) > limits.header_bytes_max:
            return _fault(431, f"the head of the request is larger than {limits.header_bytes_max} bytes (header_bytes_max)")
        if b"\n\n" in buffer or b"\x00" in buffer:
            return _fault(400, "the head of the request is malformed")
        return Need.HEAD

    def _parse(self, raw: bytes) -> _Head | Fault | Handover:
        if _REQUEST_LINE.match(raw) is None:
            return _fault(400, "the request line is malformed")
        seen = _Fields()
        parser = httptools.HttpRequestParser(seen)
        upgrade = False
        try:
            parser.feed_data(raw)
        except httptools.HttpParserUpgrade:
            upgrade = True
        except httptools.HttpParserError as error:
            return _fault(400, f"the head of the request is malformed: {error}")
        method = parser.get_method().decode("ascii")
        if method == "CONNECT":
            return _fault(405, "this server is no proxy")
        limits = self._limits
        if len(seen.fields) > limits.headers_max:
            return _fault(431, f"the request has more than {limits.headers_max} header fields (headers_max)")
        if len(seen.url) > limits.url_bytes_max:
            return _fault(414, f"the target of the request is longer than {limits.url_bytes_max} bytes (url_bytes_max)")
        return self._understand(method, seen, http10=raw[: raw.index(b"\r\n")].endswith(b"1.0"), upgrade=upgrade)

    def _understand(self, method: str, seen: _Fields, *, http10: bool, upgrade: bool) -> _Head | Fault | Handover:
        length, chunked, hosts = 0, False, 0
        host = connection = b""
        encoding: str | None = None
        expects = False
        for name, value in seen.fields:
            match name.lower():
                case b"host":
                    host, hosts = value, hosts + 1
                case b"content-length":
                    if _LENGTH.fullmatch(value) is None:
                        return _fault(400, "content-length: must be a number of bytes")
                    length = int(value)
                case b"transfer-encoding":
                    if http10 or value.lower() != b"chunked":
                        return _fault(400, "transfer-encoding: must be chunked, and not in HTTP/1.0")
                    chunked = True
                case b"connection":
                    connection += b"," + value.lower()
                case b"content-type" if is_ndjson(value):
                    return Handover(self._buffer)
                case b"content-encoding":
                    encoding = value.decode("latin-1") if encoding is None else f"{encoding}, {value.decode('latin-1')}"
                case b"expect":
                    if value.lower() != b"100-continue":
                        return _fault(417, "expect: must be 100-continue")
                    expects = not http10
        if hosts > 1 or (hosts == 0 and not http10):
            return _fault(400, "host: must be given exactly once")
        target = seen.url
        if not target.startswith(b"/"):
            if target == b"*":
                return Handover(self._buffer)
            relative = origin_form(target, host)
            if relative is None:
                return _fault(400, "the target of the request is not on this host")
            target = relative
        if b"#" in target:
            return _fault(400, "the target of the request has a fragment")
        if upgrade:
            return Handover(self._buffer)
        path, _, query = target.partition(b"?")
        options = {option.strip() for option in connection.split(b",")} if connection else frozenset()
        keep_alive = b"close" not in options and (not http10 or b"keep-alive" in options)
        return _Head(method, path, query, -1 if chunked else length, encoding, keep_alive, http10, expects)

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

    def _read_chunks(self) -> Item:
        at = 0  # how much of the buffer is understood; it is cut once, however many chunks it has
        buffer = self._buffer
        while True:
            if self._body_left:  # data of a chunk
                piece = buffer[at : at + self._body_left]
                self._body += piece
                self._body_left -= len(piece)
                at += len(piece)
                if self._body_left:
                    break
                self._chunk_end = True
            elif self._chunk_end:
                line_end = buffer[at : at + 2]
                if line_end != b"\r\n":
                    if not b"\r\n".startswith(line_end):
                        return _fault(400, "a chunk of the body is malformed")
                    break
                at += 2
                self._chunk_end = False
            else:
                end = buffer.find(b"\r\n", at, at + CHUNK_HEAD_BYTES_MAX)
                if end < 0:
                    if not _may_become_size(buffer[at : at + CHUNK_HEAD_BYTES_MAX]):
                        return _fault(400, "a chunk of the body is malformed")
                    break
                if _CHUNK_SIZE.fullmatch(buffer, at, end) is None:
                    return _fault(400, "a chunk of the body is malformed, or has extensions")
                size = int(buffer[at:end], 16)
                if size == 0:
                    trailer = buffer[end + 2 : end + 4]
                    if trailer == b"\r\n":
                        self._buffer = buffer[end + 4 :]
                        return self._finish(bytes(self._body))
                    if not b"\r\n".startswith(trailer):
                        return _fault(400, "the body has trailer fields")
                    break  # the last chunk is read again, with what follows it
                if len(self._body) + size > self._limits.body_size_max:
                    return Fault(too_large(self._limits.body_size_max))
                at = end + 2
                self._body_left = size
        self._buffer = buffer[at:]
        return self._wait_for_body()

    def _wait_for_body(self) -> Need:
        if not self._told and not self._body and not self._buffer:
            self._told = True
            return Need.CONTINUE
        return Need.BODY

    def _finish(self, body: bytes) -> Request:
        head = self._head
        assert head is not None
        self._head = None
        self._chunk_end = False
        if self._body:
            self._body = bytearray()
        return Request(head.method, head.path, head.query, body, head.content_encoding, head.keep_alive, head.http10)


def origin_form(target: bytes, host: bytes) -> bytes | None:
    """Return what an absolute target (RFC 9112 §3.2.2) says of path and query, or None where it is none, or of another host than Host says."""
    absolute = _ORIGIN.fullmatch(target)
    if absolute is None or _without_port(absolute[1]) != _without_port(host):
        return None
    return absolute[2] if absolute[2].startswith(b"/") else b"/" + absolute[2]


def _without_port(authority: bytes) -> bytes:
    return authority.lower().removesuffix(b":80")


def _may_become_size(head: bytes) -> bool:
    """Say whether this may be the beginning of a chunk's size and its line end."""
    digits = head.removesuffix(b"\r")
    return len(head) < CHUNK_HEAD_BYTES_MAX and head != b"\r" and (not digits or _CHUNK_SIZE.fullmatch(digits) is not None)


def _fault(status: int, detail: str) -> Fault:
    return Fault(Problem(status=status, detail=detail))


# --- answers ---------------------------------------------------------------------------------------------------

_LINES = {status.value: f"HTTP/1.1 {status.value} {phrase_of(status)}\r\n".encode() for status in HTTPStatus}


def write_answer(answer: Answer, date: bytes, *, keep_alive: bool, http10: bool) -> bytes:
    """Return the bytes of an answer. `date` is the value of its Date field."""
    parts = [_LINES[answer.status], b"date: ", date, b"\r\n"]
    parts += [f"{name}: {value}\r\n".encode("latin-1") for name, value in answer.headers]
    if answer.status != HTTPStatus.NO_CONTENT:
        parts.append(b"content-length: %d\r\n" % len(answer.body))
    if not keep_alive:
        parts.append(b"connection: close\r\n")
    elif http10:
        parts.append(b"connection: keep-alive\r\n")
    parts += [b"\r\n", answer.body]
    return b"".join(parts)


class AnswerWriter:
    """Writes answers with the date of the last `tick`. Those of a status alone, which are most, are written once a second."""

    def __init__(self) -> None:
        self._date = b""
        self._common: dict[int, bytes] = {}

    def tick(self) -> None:
        """Look at the clock."""
        date = formatdate(usegmt=True).encode()
        if date != self._date:
            self._date = date
            self._common.clear()

    def write(self, answer: Answer, *, keep_alive: bool, http10: bool) -> bytes:
        """Return the bytes of an answer."""
        if answer.body or answer.headers or http10 or not keep_alive:
            return write_answer(answer, self._date, keep_alive=keep_alive, http10=http10)
        data = self._common.get(answer.status)
        if data is None:
            data = self._common[answer.status] = write_answer(answer, self._date, keep_alive=True, http10=False)
        return data


def is_ndjson(content_type: bytes) -> bool:
    """Say whether a body of this type comes line by line, without an end that is known."""
    return content_type.partition(b";")[0].strip().lower() in NDJSON


def serves_among(routes: Collection[tuple[str, bytes]]) -> Serves:
    """Return the `serves` of a fixed set of (method, raw path)."""
    known = frozenset(routes)
    return lambda method, path: (method, path) in known
