"""Bad inputs of every kind, from a seed: requests that are framed well and say nonsense, bytes that are no request, and frames that no front would send."""

from __future__ import annotations

import gzip
import json
import random
import struct
from collections.abc import Sequence

from proteus_shards.front.operations import OPERATIONS
from tests.hostile.table import HOST, LEGAL, REFUSED

NAMES = [
    "q", "", "x" * 1024, "x" * 1025, "..", "../../etc/passwd", "a/../b", "a-b", "-", "'; DROP TABLE jobs; --", '" OR 1=1', "%s%n%x", "{0.__class__}",
    "{{7*7}}", "${jndi:ldap://x}", "<script>alert(1)</script>", "$(id)", "`id`", "|id", "a\\b", "a\u0000b", "a\r\nSET x y", "*3\r\n$3\r\nSET", "return redis.call('FLUSHALL')",
    "{tag}", "\ud7ff", "\u202egpj", "e\u0301", "\u00e9", "\U0001f600" * 200, "None", "true", "__proto__", "\x7f", "\u2028",
]  # fmt: skip
WORDS = [
    b"null", b"true", b"1e400", b"-1e400", b"NaN", b"0123", b"9" * 400, b"-0", b"1.", b"0x10", b"[" * 900, b"[" * 400 + b"]" * 400, b'{"a":' * 300 + b"1" + b"}" * 300,
    b'"\\ud800"', b'"\\u0000"', b'"\x00"', b'"\xff"', b'"\xed\xa0\x80"', b'"\xc0\x80"', b"\xef\xbb\xbf1", b'{"a":1,"a":2}', b"nul", b"'a'", b"//", b"", b"\x00",
    b'"' + b"a" * 3000, b'"\\x41"', b"[1,]", b"2147483648", b"-2147483649", b'"9999-12-31T23:59:60Z"', b"{}", b"[]", b'""', b'{"\\u0000":1}',
]  # fmt: skip
FIELDS = [
    b"id",
    b"queue",
    b"timeout",
    b"persist_data",
    b"max_retries",
    b"payload",
    b"state",
    b"run_at",
    b"op",
    b"job",
    b"job_id",
    b"run_id",
    b"num_jobs",
    b"extra",
    b"key",
]
PARTS = [b"queue", b"job_id", b"run_id", b"num_jobs", b"wait", b"after", b"next_queue", b"Queue", b"queue%00", b"q", b"limit", b"state"]
ARGUMENTS = [
    b"q", b"%00", b"%ff", b"%c0%80", b"%ed%a0%80", b"%", b"%zz", b"+", b"1e400", b"nan", b"-1", b"9" * 400, b"0", b"1", b"0.001", b"%2e%2e%2f", b"a;b",
    b"11111111-2222-4333-8444-555555555555", b"%3Cscript%3E", b"%27%3B--", b"%F0%9F%98%80" * 50,
]  # fmt: skip
LINES = [
    b"Content-Type: text/html", b"Content-Type: application/x-ndjson", b"Accept: */*;q=nan", b"Cookie: a=b", b"X-Forwarded-For: 127.0.0.1", b"Expect: 100-continue",
    b"Authorization: Bearer \xff", b"Upgrade: h2c", b"Range: bytes=0-", b"Content-Encoding: br", b"Origin: null", b"X: " + b"y" * 300, b"If-None-Match: *",
]  # fmt: skip
ROUTES = [
    *OPERATIONS,
    ("GET", "/health"),
    ("GET", "/nowhere"),
    ("PUT", "/next"),
    ("GET", "//next"),
    ("GET", "/next/../dead"),
    ("HEAD", "/next"),
    ("OPTIONS", "/enqueue"),
]
LANE = [route for route in OPERATIONS if route[1] != "/dead"]
HELPS = [case.data for case in REFUSED.values()] + [case[0] for case in LEGAL.values()]


def _json(source: random.Random, depth: int = 0) -> bytes:
    """Return JSON, or what nearly is."""
    kind = source.random()
    if kind < 0.35 or depth > 2:
        return source.choice(WORDS) if source.random() < 0.6 else json.dumps(source.choice(NAMES)).encode()
    if kind < 0.8:
        return b"{" + b",".join(b'"%s":%s' % (source.choice(FIELDS), _json(source, depth + 1)) for _ in range(source.randrange(7))) + b"}"
    return source.choice([b"[%s]", b"%s"]) % source.choice([b",", b"\n"]).join(_json(source, depth + 1) for _ in range(source.randrange(4)))


def _job(source: random.Random) -> bytes:
    """Return a job with something odd in it; few ids, so that little is ever kept."""
    job = {
        "id": source.choice(NAMES),
        "queue": source.choice(NAMES),
        "timeout": source.choice([0, 1, 30]),
        "persist_data": source.random() < 0.2,
    }
    return json.dumps(job).encode()[:-1] + b',"%s":%s}' % (source.choice(FIELDS), source.choice(WORDS))


def mutated(source: random.Random, data: bytes, times: int = 3) -> bytes:
    """Return bytes with some of them changed, doubled, cut or put in."""
    found = bytearray(data)
    for _ in range(source.randrange(1, times + 1)):
        at = source.randrange(len(found) + 1)
        match source.randrange(5):
            case 0 if at < len(found):
                found[at] = source.randrange(256)
            case 1:
                found[at:at] = source.choice([b"\r\n", b"\n", b"\x00", b" ", b"\t", b":", b"\r", b"\xff", b"0", b"{", b"\\"])
            case 2:
                del found[at : at + source.randrange(1, 9)]
            case 3:
                found[at:at] = found[at : at + source.randrange(1, 30)]
            case _:
                found[at:at] = source.randbytes(source.randrange(1, 5))
    return bytes(found)


def body(source: random.Random) -> bytes:
    """Return the body of a request."""
    kind = source.random()
    found = _json(source) if kind < 0.5 else _job(source)
    if kind < 0.1 or kind > 0.9:
        found = mutated(source, found)
    return b"[" + b",".join([found, _job(source)]) + b"]" if 0.6 < kind < 0.7 else found


def request(source: random.Random) -> bytes:
    """Return a request that is framed well, whatever it says: the connection goes on after it."""
    method, path = source.choice(ROUTES if source.random() < 0.02 else LANE)  # after another route a connection stays with Quart
    query = b"&".join(b"%s=%s" % (source.choice(PARTS), source.choice(ARGUMENTS)) for _ in range(source.randrange(4)))
    query = query.replace(b"wait=1", b"wait=0").replace(b"wait=9", b"wait=x")  # nothing here should have to be waited for
    lines = [source.choice(LINES[2:] if source.random() < 0.95 else LINES)] if source.random() < 0.2 else []
    content = body(source) if method in {"POST", "PATCH"} or source.random() < 0.1 else b""
    if content and source.random() < 0.05:
        content, lines = mutated(source, gzip.compress(content, 1)), [*lines, b"Content-Encoding: gzip"]
    prefix = source.choice([b"", b"/v1"])
    head = b"%s %s%s%s HTTP/1.1\r\n" % (method.encode(), prefix, path.encode(), b"?" + query.replace(b"\xff", b"") if query else b"")
    fields = b"".join(line + b"\r\n" for line in lines if not line.startswith((b"Expect", b"Upgrade")))
    return head + HOST + fields + b"Content-Length: %d\r\n\r\n" % len(content) + content


def broken(source: random.Random) -> bytes:
    """Return bytes that are probably no request: after them the connection ends."""
    kind = source.random()
    if kind < 0.6:
        return mutated(source, source.choice(HELPS))
    if kind < 0.8:
        return mutated(source, request(source), 6)
    if kind < 0.9:
        return b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"".join(_http2_frame(source) for _ in range(source.randrange(6)))
    return source.randbytes(source.randrange(1, 400))


def _http2_frame(source: random.Random) -> bytes:
    content = source.randbytes(source.choice([0, 4, 5, 6, 8, 9, 40]))
    length = len(content) if source.random() < 0.9 else source.randrange(2**24)
    return (
        struct.pack(">I", length)[1:]
        + bytes([source.randrange(12), source.randrange(256)])
        + struct.pack(">I", source.choice([0, 1, 2, 3, 2**31]))
        + content
    )


def frame(source: random.Random, honest: Sequence[bytes]) -> bytes:
    """Return a frame for a shard, made from honest ones or from nothing."""
    content = mutated(source, source.choice(honest)) if source.random() < 0.8 else source.randbytes(source.randrange(60))
    length = len(content) if source.random() < 0.95 else source.randrange(2**32)
    return struct.pack(">I", length) + content
