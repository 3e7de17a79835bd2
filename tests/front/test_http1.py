"""The fast lane's HTTP reader: whole requests whatever the cuts, and one refusal for everything malformed or ambiguous."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proteus_shards.front.answers import Answer
from proteus_shards.front.heads import Fault, HttpLimits
from proteus_shards.front.http1 import (
    KNOWN_HEADS_MAX,
    Handover,
    Item,
    KnownHeads,
    Need,
    Request,
    RequestReader,
    serves_among,
    write_answer,
)

LIMITS = HttpLimits(header_bytes_max=4096, headers_max=20, url_bytes_max=1024, body_size_max=1000)
SERVES = serves_among({("POST", b"/enqueue"), ("GET", b"/next"), ("DELETE", b"/complete"), ("PATCH", b"/heartbeat")})
HOST = b"Host: here\r\n"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def read_all(data: bytes, cuts: tuple[int, ...] = (), limits: HttpLimits = LIMITS, known: KnownHeads | None = None) -> list[Item]:
    """Feed data in pieces and return every item but the waits."""
    reader = RequestReader(limits, SERVES, known)
    items: list[Item] = []
    edges = [0, *sorted(cuts), len(data)]
    for start, end in pairwise(edges):
        reader.feed(data[start:end])
        while not isinstance(item := reader.next(), Need):
            items.append(item)
            if isinstance(item, Fault | Handover):
                return items
    return items


def post(body: bytes, fields: bytes = b"", target: bytes = b"/enqueue") -> bytes:
    """Return a POST with a length."""
    return b"POST %s HTTP/1.1\r\n%sContent-Length: %d\r\n%s\r\n%s" % (target, HOST, len(body), fields, body)


def chunked(*chunks: bytes) -> bytes:
    """Return a POST in chunks."""
    body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
    return b"POST /enqueue HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n" + body + b"0\r\n\r\n"


GOOD: list[tuple[bytes, list[tuple[str, bytes, bytes, bytes]]]] = [
    (post(b"hello"), [("POST", b"/enqueue", b"", b"hello")]),
    (post(b""), [("POST", b"/enqueue", b"", b"")]),
    (chunked(b"hel", b"lo"), [("POST", b"/enqueue", b"", b"hello")]),
    (chunked(), [("POST", b"/enqueue", b"", b"")]),
    (b"GET /next?queue=a%20b HTTP/1.1\r\n" + HOST + b"\r\n", [("GET", b"/next", b"queue=a%20b", b"")]),
    (b"GET http://here/next?queue=q HTTP/1.1\r\n" + HOST + b"\r\n", [("GET", b"/next", b"queue=q", b"")]),
    (b"GET /next HTTP/1.0\r\n\r\n", [("GET", b"/next", b"", b"")]),
    (
        post(b"1") + b"GET /next?queue=q HTTP/1.1\r\n" + HOST + b"\r\n" + chunked(b"2") + post(b"3"),
        [
            ("POST", b"/enqueue", b"", b"1"),
            ("GET", b"/next", b"queue=q", b""),
            ("POST", b"/enqueue", b"", b"2"),
            ("POST", b"/enqueue", b"", b"3"),
        ],
    ),
]

BAD: dict[str, tuple[bytes, int]] = {
    "length and chunked": (b"POST /enqueue HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "chunked and length": (b"POST /enqueue HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", 400),
    "two lengths": (b"POST /enqueue HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\n1", 400),
    "list of lengths": (b"POST /enqueue HTTP/1.1\r\n" + HOST + b"Content-Length: 1, 1\r\n\r\n1", 400),
    "signed length": (b"POST /enqueue HTTP/1.1\r\n" + HOST + b"Content-Length: +1\r\n\r\n1", 400),
    "negative length": (b"POST /enqueue HTTP/1.1\r\n" + HOST + b"Content-Length: -1\r\n\r\n1", 400),
    "hexadecimal length": (b"POST /enqueue HTTP/1.1\r\n" + HOST + b"Content-Length: 0x1\r\n\r\n1", 400),
    "underscored length": (b"POST /enqueue HTTP/1.1\r\n" + HOST + b"Content-Length: 1_0\r\n\r\n1", 400),
    "empty length": (b"POST /enqueue HTTP/1.1\r\n" + HOST + b"Content-Length: \r\n\r\n", 400),
    "endless length": (b"POST /enqueue HTTP/1.1\r\n" + HOST + b"Content-Length: " + b"9" * 40 + b"\r\n\r\n", 400),
    "space before colon": (b"POST /enqueue HTTP/1.1\r\n" + HOST + b"Content-Length : 1\r\n\r\n1", 400),
    "unknown coding": (b"POST /enqueue HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: xchunked\r\n\r\n", 400),
    "two codings": (b"POST /enqueue HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip, chunked\r\n\r\n", 400),
    "chunked twice": (b"POST /enqueue HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
    "chunked not last": (b"POST /enqueue HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked, identity\r\n\r\n", 400),
    "chunked in 1.0": (b"POST /enqueue HTTP/1.0\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "folded field": (b"POST /enqueue HTTP/1.1\r\n" + HOST + b"X: a\r\n b\r\n\r\n", 400),
    "bare LF": (b"POST /enqueue HTTP/1.1\n" + b"Host: here\n\n", 400),
    "bare LF in fields": (b"POST /enqueue HTTP/1.1\r\n" + HOST + b"X: a\nY: b\r\n\r\n", 400),
    "bare CR": (b"POST /enqueue HTTP/1.1\r\n" + HOST + b"X: a\rY: b\r\n\r\n", 400),
    "NUL in a value": (b"POST /enqueue HTTP/1.1\r\n" + HOST + b"X: a\x00b\r\n\r\n", 400),
    "NUL in a name": (b"POST /enqueue HTTP/1.1\r\n" + HOST + b"X\x00: a\r\n\r\n", 400),
    "no colon": (b"POST /enqueue HTTP/1.1\r\n" + HOST + b"nonsense\r\n\r\n", 400),
    "empty name": (b"POST /enqueue HTTP/1.1\r\n" + HOST + b": a\r\n\r\n", 400),
    "HTTP/1.2": (b"POST /enqueue HTTP/1.2\r\n" + HOST + b"\r\n", 400),
    "HTTP/2.0": (b"POST /enqueue HTTP/2.0\r\n" + HOST + b"\r\n", 400),
    "HTTP/0.9": (b"GET /next\r\n\r\n", 400),
    "no version": (b"GET /next HTTP/\r\n" + HOST + b"\r\n", 400),
    "lower case version": (b"GET /next http/1.1\r\n" + HOST + b"\r\n", 400),
    "two spaces": (b"GET  /next HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "tab": (b"GET\t/next HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "space in the target": (b"GET /ne xt HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "leading line": (b"\r\nGET /next HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "leading space": (b" GET /next HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "lower case method": (b"get /next HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "unknown method": (b"FETCH /next HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "garbage": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    "no host": (b"GET /next HTTP/1.1\r\n\r\n", 400),
    "two hosts": (b"GET /next HTTP/1.1\r\n" + HOST + HOST + b"\r\n", 400),
    "another host": (b"GET http://there/next HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "another scheme": (b"GET ftp://here/next HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "fragment": (b"GET /next#a HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "relative target": (b"GET next HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "raw unicode target": (b"GET /\xc3\xa9 HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "proxy": (b"CONNECT here:80 HTTP/1.1\r\n" + HOST + b"\r\n", 405),
    "other expectation": (b"POST /enqueue HTTP/1.1\r\n" + HOST + b"Expect: coffee\r\nContent-Length: 1\r\n\r\n1", 417),
    "chunk extension": (b"POST /enqueue HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n1;a=b\r\n1\r\n0\r\n\r\n", 400),
    "chunk size with sign": (b"POST /enqueue HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n+1\r\n1\r\n0\r\n\r\n", 400),
    "chunk size with prefix": (b"POST /enqueue HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n0x1\r\n1\r\n0\r\n\r\n", 400),
    "chunk size with space": (b"POST /enqueue HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n1 \r\n1\r\n0\r\n\r\n", 400),
    "chunk size empty": (b"POST /enqueue HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n\r\n1\r\n0\r\n\r\n", 400),
    "chunk size endless": (b"POST /enqueue HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n" + b"0" * 40, 400),
    "chunk size huge": (b"POST /enqueue HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\nffffffff\r\n", 413),
    "chunk with bare LF": (b"POST /enqueue HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n1\n1\n0\n\n", 400),
    "chunk longer than said": (b"POST /enqueue HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n1\r\n12\r\n0\r\n\r\n", 400),
    "trailer": (b"POST /enqueue HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: a\r\n\r\n", 400),
    "long target": (b"GET /next?queue=" + b"a" * 1024 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 414),
    "many fields": (b"GET /next HTTP/1.1\r\n" + HOST + b"X: a\r\n" * 20 + b"\r\n", 431),
    "large head": (b"GET /next HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 4096 + b"\r\n\r\n", 431),
    "large body": (post(b"a" * 1001), 413),
    "large body in chunks": (chunked(b"a" * 600, b"a" * 600), 413),
}


@pytest.mark.parametrize(("data", "wanted"), GOOD)
def test_whole_requests_come_out_in_order_wherever_the_bytes_are_cut(data: bytes, wanted: list[tuple[str, bytes, bytes, bytes]]) -> None:
    """Each cut at one place, and each byte by itself, gives the same requests."""
    for cuts in [(), tuple(range(1, len(data))), *((cut,) for cut in range(1, len(data)))]:
        items = read_all(data, cuts)
        assert wanted == [(item.method, item.path, item.query, item.body) for item in items if isinstance(item, Request)], cuts
        assert len(wanted) == len(items)


@pytest.mark.parametrize("name", BAD)
def test_a_malformed_request_is_refused_once_wherever_its_bytes_are_cut(name: str) -> None:
    """One fault of the same status comes out, and nothing after it."""
    data, status = BAD[name]
    for cuts in [(), tuple(range(1, len(data))), *((cut,) for cut in range(1, len(data)))]:
        items = read_all(data + post(b"smuggled"), cuts)
        assert [status] == [item.problem.status if isinstance(item, Fault) else None for item in items], (cuts, items)


@pytest.mark.parametrize("name", BAD)
def test_what_stands_before_a_malformed_request_is_served(name: str) -> None:
    """A pipelined good request is answered, then comes the fault."""
    data, status = BAD[name]
    first, second = read_all(post(b"1") + data)

    assert isinstance(first, Request)
    assert isinstance(second, Fault)
    assert status == second.problem.status


@pytest.mark.parametrize(
    "other",
    [
        b"GET / HTTP/1.1\r\n" + HOST + b"\r\n",
        b"HEAD /next HTTP/1.1\r\n" + HOST + b"\r\n",
        b"POST /v1/%65nqueue HTTP/1.1\r\n" + HOST + b"Content-Length: 0\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n",
    ],
)
def test_a_request_of_another_kind_is_handed_over_with_all_its_bytes(other: bytes) -> None:
    """What the lane does not serve goes on untouched, after what it does."""
    first, second = read_all(post(b"1") + other + b"rest")

    assert isinstance(first, Request)
    assert Handover(other + b"rest") == second


def test_an_http2_preface_is_handed_over_wherever_it_is_cut() -> None:
    """A connection that begins with the preface speaks HTTP/2, and another server."""
    for cut in range(1, len(PREFACE)):
        items = read_all(PREFACE, (cut,))
        assert len(items) == 1
        assert isinstance(items[0], Handover)
        assert PREFACE.startswith(items[0].unread)


def test_a_preface_later_on_is_a_fault() -> None:
    """HTTP/2 begins a connection or not at all."""
    _, fault = read_all(post(b"1") + PREFACE)

    assert isinstance(fault, Fault)


def test_a_client_that_expects_to_be_told_is_told_once_and_only_if_it_waits() -> None:
    """100 Continue is wanted exactly where the body has not begun to arrive."""
    head, body = post(b"hello", b"Expect: 100-continue\r\n").split(b"\r\n\r\n")
    reader = RequestReader(LIMITS, SERVES)
    reader.feed(head + b"\r\n\r\n")

    assert Need.CONTINUE is reader.next()
    assert Need.BODY is reader.next()
    reader.feed(body)
    assert isinstance(reader.next(), Request)
    reader.feed(head + b"\r\n\r\n" + body)
    assert isinstance(reader.next(), Request)


@pytest.mark.parametrize(
    ("version", "field", "kept"),
    [
        (b"1.1", b"", True),
        (b"1.1", b"Connection: close\r\n", False),
        (b"1.1", b"Connection: Keep-Alive, CLOSE\r\n", False),
        (b"1.0", b"", False),
        (b"1.0", b"Connection: keep-alive\r\n", True),
    ],
)
def test_keep_alive_follows_version_and_connection(version: bytes, field: bytes, kept: bool) -> None:
    """HTTP/1.1 stays open unless told, HTTP/1.0 the other way round."""
    (item,) = read_all(b"GET /next HTTP/" + version + b"\r\n" + HOST + field + b"\r\n")

    assert isinstance(item, Request)
    assert kept == item.terms.keep_alive


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=5))
def test_garbage_never_raises(data: bytes, cuts: list[int]) -> None:
    """Any bytes are requests, a wait, or one fault."""
    for item in read_all(data, tuple(min(cut, len(data)) for cut in cuts)):
        assert isinstance(item, Request | Fault | Handover)


@given(st.sampled_from(sorted(BAD)), st.integers(0, 200), st.binary(min_size=1, max_size=3))
def test_a_damaged_request_never_raises(name: str, at: int, patch: bytes) -> None:
    """Requests near the edge of what is allowed do not raise either."""
    data = BAD[name][0]
    for item in read_all(data[:at] + patch + data[at + len(patch) :]):
        assert isinstance(item, Request | Fault | Handover)


def test_an_answer_is_written_with_its_length_and_without_one_where_it_has_no_body() -> None:
    """The bytes of an answer are complete."""
    assert (
        b"HTTP/1.1 200 OK\r\ndate: today\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
        == write_answer(Answer(200, (("content-type", "application/json"),), b"{}"), b"today", keep_alive=True, http10=False)
    )  # fmt: skip
    assert b"HTTP/1.1 204 No Content\r\ndate: today\r\nconnection: close\r\n\r\n" == write_answer(
        Answer(204), b"today", keep_alive=False, http10=True
    )


def test_heads_that_are_known_mean_the_same_and_are_bounded() -> None:
    """Readers that share what they have parsed give the same requests, and the shared memory has an end."""
    known = KnownHeads()
    for count in range(3000):
        reader = RequestReader(LIMITS, SERVES, known)
        data = post(b"%d" % count) + b"GET /next?queue=%d HTTP/1.1\r\n" % count + HOST + b"\r\n"
        reader.feed(data)
        first, second = reader.next(), reader.next()
        assert isinstance(first, Request)
        assert isinstance(second, Request)
        assert (b"%d" % count, b"queue=%d" % count) == (first.body, second.query)
    assert 0 < len(known.whole) <= KNOWN_HEADS_MAX
    assert 0 < len(known.terms) <= KNOWN_HEADS_MAX


def versions(data: bytes) -> list[bytes]:
    """Return requests with the method, fields and body of one, and targets that are good, bad, odd, or of another server."""
    method, _, rest = data.partition(b" ")
    target, _, rest = rest.partition(b" ")
    targets = [
        b"/next?queue=other",
        b"/next?queue=a%20b&x=+",
        b"/",
        b"//here/next",
        b"/next#f",
        b"/ne\x80xt",
        b"/next?a?b",
        b"/next?" + b"a" * 2000,
        b"*",
    ]
    targets += [b"http://here/next", b"http://there/next", target + b"?job_id=1", target + b"?job_id=1&run_id=2", b"/next \t", b'/"', b""]
    return [b"%b %b %b" % (method, each, rest) for each in targets]


def test_fields_that_are_known_decide_nothing_about_another_target() -> None:
    """A request is read as if it were the first, whatever was known of the same fields, good and bad targets and sizes alike."""
    small = HttpLimits(header_bytes_max=200, headers_max=20, url_bytes_max=30, body_size_max=1000)
    everything = [data for data, _ in [*GOOD, *BAD.values()]]
    for limits in (LIMITS, small):
        known = KnownHeads()
        for data in everything:
            for version in [data, *versions(data)] * 2:
                assert read_all(version, limits=limits) == read_all(version, limits=limits, known=known), version
        assert known.terms


@given(st.sampled_from([data for data, _ in GOOD]), st.integers(0, 60), st.binary(min_size=1, max_size=3))
def test_a_damaged_request_is_no_better_for_what_is_known(data: bytes, at: int, patch: bytes) -> None:
    """What is known of whole requests makes no other sense of damaged ones."""
    known = KnownHeads()
    read_all(data, known=known)
    damaged = data[:at] + patch + data[at + len(patch) :]

    assert read_all(damaged) == read_all(damaged, known=known)


def test_a_head_that_is_no_request_of_the_lane_is_never_known() -> None:
    """Faults and handovers are found out anew each time."""
    known = KnownHeads()
    for data in [b"GET / HTTP/1.1\r\n" + HOST + b"\r\n", *(bad for bad, _ in BAD.values())]:
        reader = RequestReader(LIMITS, SERVES, known)
        reader.feed(data)
        reader.next()
    assert all(head.path == b"/enqueue" for head in known.whole.values())
