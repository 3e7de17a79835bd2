"""What a request's head and the framing of its body must look like, for every HTTP/1 connection alike.

Both the fast lane's reader and the guard before Hypercorn decide by these rules, so that the two can't disagree about where a request ends, and
neither can another parser that the bytes pass through before or after: whatever is malformed, ambiguous or over a limit is a `Fault`, after which a
connection says no more. httptools (llhttp) parses each head and refuses most of that; what it lets pass (a second or a missing
Host, HTTP/2.0 in a request line, Transfer-Encoding in HTTP/1.0, a fragment, a target of another host, white space in the
request line) is refused here.

- Chunked bodies are read by the letter: chunk extensions and trailers are refused, as no client of this API has a reason to send them, and many
  attacks have.
- No connection changes its protocol after it has begun. A wish for HTTP/2 (h2c), which some clients send along with every request, is ignored. One for
  a websocket is refused: such a client could not read the answer, and a job in it would be lost until its timeout.

Limits: head bytes and fields (431), target (414).
"""

from __future__ import annotations

import re
from typing import TypeAlias

import httptools
import msgspec

from proteus_shards.config import Settings
from proteus_shards.front.answers import Problem
from proteus_shards.front.hosts import Names, misdirected, names_of

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # all of it: with less, it is no HTTP/2
CHUNK_HEAD_BYTES_MAX = 16
NDJSON = frozenset({b"application/x-ndjson", b"application/ndjson", b"application/jsonl", b"application/x-jsonlines"})

_REQUEST_LINE = re.compile(rb"[A-Z]{1,20} [!-~]+ HTTP/1\.[01]\r\n")
_ORDINARY_LINE = re.compile(rb"([A-Z]{1,20}) (/[A-Za-z0-9/._~%-]*)(?:\?([A-Za-z0-9/._~%&=+:,@-]*))?( HTTP/1\.[01]\r\n)")
_ORIGIN = re.compile(rb"(?i:https?)://([^/?#]*)(.*)")
_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,8}")
_LENGTH = re.compile(rb"[0-9]{1,15}")
_HOST = re.compile(rb"[A-Za-z0-9.~!$&'()*+,;=%_-]*(:[0-9]{0,5})?|\[[0-9A-Fa-f:.]+\](:[0-9]{0,5})?")


class HttpLimits(msgspec.Struct, frozen=True):
    """The limits of one request; each is a setting of the same name."""

    header_bytes_max: int
    headers_max: int
    url_bytes_max: int
    body_size_max: int
    hosts: Names | None = None  # that a request may be for; None: any


def limits_of(settings: Settings) -> HttpLimits:
    """Return the limits that settings ask for."""
    return HttpLimits(settings.header_bytes_max, settings.headers_max, settings.url_bytes_max, settings.body_size_max, names_of(settings))


class Fault(msgspec.Struct, frozen=True):
    """The connection broke a rule: answer with the problem and close."""

    problem: Problem


Field: TypeAlias = tuple[bytes, bytes]


class Head(msgspec.Struct, frozen=True, gc=False):
    """The head of a request. `target` is in origin form, or an asterisk."""

    method: str
    target: bytes
    fields: list[Field]
    length: int  # of the body; -1: chunked
    content_encoding: str | None
    ndjson: bool
    keep_alive: bool
    http10: bool
    expects: bool  # 100 Continue
    authorization: bytes | None = None  # empty where it stands there twice
    from_page: bool = False  # a browser sends it
    idempotency_key: bytes | None = None  # empty where it stands there twice
    traceparent: str | None = None  # the last one


class _Fields:
    """Collects what httptools reports of one head."""

    __slots__ = ("fields", "url")

    def __init__(self) -> None:
        self.url = b""
        self.fields: list[Field] = []

    def on_url(self, url: bytes) -> None:
        """Take (a part of) the target."""
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take one field."""
        self.fields.append((name, value))


def look_at_beginning(buffer: bytes, limits: HttpLimits) -> Fault | None:
    """Refuse the beginning of a head that can't come right any more."""
    line_end = buffer.find(b"\n")
    if (line_end if line_end >= 0 else len(buffer)) > limits.url_bytes_max + 32:
        return refuse(414, f"the target of the request is longer than {limits.url_bytes_max} bytes (url_bytes_max)")
    if line_end >= 0 and _REQUEST_LINE.match(buffer) is None:
        return refuse(400, "the request line is malformed")
    if len(buffer) > limits.header_bytes_max:
        return refuse(431, f"the head of the request is larger than {limits.header_bytes_max} bytes (header_bytes_max)")
    if b"\n\n" in buffer or b"\x00" in buffer:
        return refuse(400, "the head of the request is malformed")
    return None


def ordinary_line(raw: bytes, limits: HttpLimits) -> re.Match[bytes] | None:
    """Return method, path, query (perhaps None) and what follows the target (groups 1 to 4), where these and the sizes of a whole head leave nothing to refuse.

    Whether the head is right then depends on its method and fields alone.
    """
    line = _ORDINARY_LINE.match(raw)
    if line is None or len(raw) > limits.header_bytes_max or line.start(4) - line.start(2) > limits.url_bytes_max:
        return None
    return line


def parse_head(raw: bytes, limits: HttpLimits) -> Head | Fault:
    """Parse a whole head, its empty line included."""
    if len(raw) > limits.header_bytes_max or _REQUEST_LINE.match(raw) is None:  # told as if it had come byte by byte
        wrong = look_at_beginning(raw[: limits.header_bytes_max], limits) or look_at_beginning(raw, limits)
        assert wrong is not None
        return wrong
    seen = _Fields()
    parser = httptools.HttpRequestParser(seen)
    try:
        parser.feed_data(raw)
    except httptools.HttpParserUpgrade:
        pass  # `_understand` looks at what it is to be upgraded to
    except httptools.HttpParserError as error:
        return refuse(400, f"the head of the request is malformed: {error}")
    method = parser.get_method().decode("ascii")
    if method == "CONNECT":
        return refuse(405, "this server is no proxy")
    if len(seen.fields) > limits.headers_max:
        return refuse(431, f"the request has more than {limits.headers_max} header fields (headers_max)")
    if len(seen.url) > limits.url_bytes_max:
        return refuse(414, f"the target of the request is longer than {limits.url_bytes_max} bytes (url_bytes_max)")
    return _understand(method, seen, limits.hosts, http10=raw[: raw.index(b"\r\n")].endswith(b"1.0"))


def _understand(method: str, seen: _Fields, names: Names | None, *, http10: bool) -> Head | Fault:
    length, framed, chunked, hosts = 0, False, False, 0
    host = connection = b""
    encoding: str | None = None
    authorization: bytes | None = None
    idempotency_key: bytes | None = None
    traceparent: str | None = None
    ndjson = expects = from_page = False
    for name, value in seen.fields:
        match name.lower():
            case b"host":
                host, hosts = value, hosts + 1
            case b"content-length":
                if framed or _LENGTH.fullmatch(value) is None:
                    return refuse(400, "content-length: must be a number of bytes, given once")
                length, framed = int(value), True
            case b"transfer-encoding":
                if http10 or framed or value.lower() != b"chunked":
                    return refuse(400, "transfer-encoding: must be chunked, given once, without content-length, and not in HTTP/1.0")
                chunked = framed = True
            case b"connection":
                connection += b"," + value.lower()
            case b"authorization":
                authorization = value if authorization is None else b""
            case b"idempotency-key":
                idempotency_key = value if idempotency_key is None else b""
            case b"traceparent":
                traceparent = value.decode("latin-1")
            case b"content-type":
                ndjson = ndjson or is_ndjson(value)
            case b"content-encoding":
                encoding = value.decode("latin-1") if encoding is None else f"{encoding}, {value.decode('latin-1')}"
            case b"upgrade":
                if b"websocket" in value.lower():
                    return refuse(400, "upgrade: this server speaks no websocket")
            case b"expect":
                if value.lower() != b"100-continue":
                    return refuse(417, "expect: must be 100-continue")
                expects = not http10
            case b"sec-fetch-site" | b"origin":
                from_page = True
    if hosts > 1 or (hosts == 0 and not http10) or _HOST.fullmatch(host) is None:
        return refuse(400, "host: must be given exactly once, as a name and perhaps a port")
    if (wrong := misdirected(host, names)) is not None:
        return Fault(wrong)
    target = seen.url
    if not target.startswith(b"/") and (target != b"*" or method != "OPTIONS"):
        relative = origin_form(target, host)
        if relative is None:
            return refuse(400, "the target of the request is not on this host")
        target = relative
    if b"#" in target:
        return refuse(400, "the target of the request has a fragment")
    options = {option.strip() for option in connection.split(b",")} if connection else frozenset()
    keep_alive = b"close" not in options and (not http10 or b"keep-alive" in options)
    length = -1 if chunked else length
    return Head(
        method,
        target,
        seen.fields,
        length,
        encoding,
        ndjson,
        keep_alive,
        http10,
        expects,
        authorization,
        from_page,
        idempotency_key,
        traceparent,
    )


class ChunkedBody:
    """Reads one chunked body, piece by piece."""

    def __init__(self) -> None:
        self.ended = False
        self.left = 0  # bytes of the current chunk that have not come
        self._at_end_of_chunk = False

    def read(self, buffer: bytes, size_max: int | None = None) -> tuple[list[bytes], int] | Fault | None:
        """Return the data in a buffer, and how many bytes of it are understood; None where a chunk makes the data more than `size_max`.

        What is not understood is to come again, with what follows it. Once `ended`, the rest belongs to the next request.
        """
        pieces: list[bytes] = []
        at = total = 0
        while True:
            if self.left:
                piece = buffer[at : at + self.left]
                if piece:
                    pieces.append(piece)
                self.left -= len(piece)
                at += len(piece)
                if self.left:
                    break
                self._at_end_of_chunk = True
            elif self._at_end_of_chunk:
                line_end = buffer[at : at + 2]
                if line_end != b"\r\n":
                    if not b"\r\n".startswith(line_end):
                        return refuse(400, "a chunk of the body is malformed")
                    break
                at += 2
                self._at_end_of_chunk = False
            else:
                end = buffer.find(b"\r\n", at, at + CHUNK_HEAD_BYTES_MAX)
                if end < 0:
                    if not _may_become_size(buffer[at : at + CHUNK_HEAD_BYTES_MAX]):
                        return refuse(400, "a chunk of the body is malformed")
                    break
                if _CHUNK_SIZE.fullmatch(buffer, at, end) is None:
                    return refuse(400, "a chunk of the body is malformed, or has extensions")
                size = int(buffer[at:end], 16)
                if size == 0:
                    trailer = buffer[end + 2 : end + 4]
                    if trailer == b"\r\n":
                        self.ended = True
                        at = end + 4
                    elif not b"\r\n".startswith(trailer):
                        return refuse(400, "the body has trailer fields")
                    break  # the last chunk is read again, with what follows it
                total += size
                if size_max is not None and total > size_max:
                    return None
                at = end + 2
                self.left = size
        return pieces, at


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


def is_ndjson(content_type: bytes) -> bool:
    """Say whether a body of this type comes line by line, without an end that is known."""
    return content_type.partition(b";")[0].strip().lower() in NDJSON


def refuse(status: int, detail: str) -> Fault:
    """Return a fault with this problem."""
    return Fault(Problem(status=status, detail=detail))
