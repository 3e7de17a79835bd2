"""The lane's reader, Hypercorn's guard, and the parser behind it understand the same of any bytes, wherever they are cut."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import h11
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from proteus_shards.front.guard import Guard
from proteus_shards.front.heads import Fault, HttpLimits
from proteus_shards.front.http1 import Need, Request, RequestReader
from tests.hostile.table import LEGAL, REFUSED, SMUGGLED

LIMITS = HttpLimits(header_bytes_max=32 * 1024, headers_max=100, url_bytes_max=28 * 1024, body_size_max=100_000)
CASES = {**{name: case.data for name, case in REFUSED.items()}, **{name: case[0] for name, case in LEGAL.items()}}
CUTS_MAX = 400

settings.register_profile("hostile-quick", max_examples=200, deadline=None)
settings.register_profile("hostile-deep", max_examples=100_000, deadline=None)
fuzzed = settings.get_profile(f"hostile-{os.environ.get('PROTEUS_TEST_HYPOTHESIS', 'quick')}")


class Understood(NamedTuple):
    """What a reader makes of the bytes of a connection."""

    requests: list[tuple[str, bytes, bytes]]  # whole ones: method, target, body
    status: int | None  # of the refusal
    handed_over: bool = False  # to Hypercorn, from here on


def by_reader(data: bytes, cuts: Sequence[int] = ()) -> Understood:
    """Feed the lane's reader, which serves everything."""
    reader = RequestReader(LIMITS, lambda _method, _path: True)
    requests: list[tuple[str, bytes, bytes]] = []
    for start, end in pairwise([0, *cuts, len(data)]):
        reader.feed(data[start:end])
        while not isinstance(item := reader.next(), Need):
            if not isinstance(item, Request):
                return (
                    Understood(requests, item.problem.status) if isinstance(item, Fault) else Understood(requests, None, handed_over=True)
                )
            requests.append((item.method, item.path + b"?" + item.query if item.query else item.path, item.body))
    return Understood(requests, None)


def by_guard(data: bytes, cuts: Sequence[int] = ()) -> tuple[bytes, Guard]:
    """Feed a guard, and return what passes."""
    guard = Guard(LIMITS)
    passed = b"".join(guard.feed(data[start:end]) for start, end in pairwise([0, *cuts, len(data)]))
    return passed, guard


def by_h11(passed: bytes) -> list[tuple[str, bytes, bytes]]:
    """Return the whole requests in what has passed a guard, as Hypercorn's parser sees them. Raises where it refuses something."""
    server = h11.Connection(h11.SERVER, max_incomplete_event_size=LIMITS.header_bytes_max)
    if passed:
        server.receive_data(passed)  # nothing would mean the end
    requests: list[tuple[str, bytes, bytes]] = []
    head: h11.Request | None = None
    body = b""
    while (event := server.next_event()) is not h11.NEED_DATA and event is not h11.PAUSED:
        if isinstance(event, h11.Request):
            head, body = event, b""
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            assert head is not None
            path, _, query = head.target.partition(b"?")
            requests.append((head.method.decode(), path + b"?" + query if query else path, body))  # an empty query is none
            server.send(h11.Response(status_code=204, headers=[]))
            server.send(h11.EndOfMessage())
            if server.our_state is not h11.DONE:
                return requests
            server.start_next_cycle()
    return requests


def is_prefix(short: Sequence[object], long: Sequence[object]) -> bool:
    """Say whether one sequence begins the other."""
    return list(short) == list(long)[: len(short)]


@pytest.mark.parametrize("name", CASES)
def test_wherever_the_bytes_are_cut_reader_and_guard_understand_the_same(name: str) -> None:
    """Every offset, and each byte by itself; very long ones at some thousands of places."""
    data = CASES[name] + SMUGGLED
    whole, (passed, whole_guard) = by_reader(data), by_guard(data)
    places = list(range(1, len(data)))[:: len(data) // CUTS_MAX + 1]
    for cuts in [places, *([place] for place in places)]:
        assert by_reader(data, cuts) == whole, cuts
        again, guard = by_guard(data, cuts)
        assert (guard.fault is None, guard.requests) == (whole_guard.fault is None, whole_guard.requests), cuts
        assert again.startswith(passed), cuts


@pytest.mark.parametrize("name", CASES)
def test_the_parser_behind_the_guard_takes_what_passes_for_the_same(name: str) -> None:
    """It refuses none of it, and sees the requests that the lane sees."""
    data = CASES[name] + SMUGGLED
    passed, guard = by_guard(data)
    seen, status, _ = by_reader(data)

    assert is_prefix(seen, by_h11(passed)) if status == 413 else by_h11(passed) == seen
    if status != 413:  # how large a body may be is the app's to say there
        assert (guard.fault.problem.status if guard.fault else None) == status


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_refused_once_and_nothing_after_it_is_read(name: str) -> None:
    """The lane's reader gives the status of the table."""
    case = REFUSED[name]
    requests, status, _ = by_reader(case.data + SMUGGLED)

    assert (status, len(requests)) == (case.status, case.served)


@pytest.mark.parametrize("name", LEGAL)
def test_what_is_legal_is_one_request_and_what_follows_is_the_next(name: str) -> None:
    """However odd it looks."""
    requests, status, _ = by_reader(LEGAL[name][0] + SMUGGLED)

    assert (status, len(requests)) == (None, 2)


TOKENS = [
    b"\r\n", b"\n", b"\r", b" ", b"\t", b":", b",", b";", b"0", b"\x00", b"\x7f", b"\xff", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n",
    b"Host: here\r\n", b"0\r\n\r\n", b"5\r\nhello\r\n", b"HTTP/1.0", b"HTTP/1.1", b"Connection: close\r\n", b"\r\n\r\n", b"Upgrade: h2c\r\n", SMUGGLED,
]  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Draw some cases of the table, one after the other, with pieces replaced, put in or taken out."""
    data = b"".join(CASES[draw(st.sampled_from(sorted(CASES)))][:2000] for _ in range(draw(st.integers(1, 3))))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        gone = draw(st.integers(0, 4))
        data = data[:at] + draw(st.sampled_from(TOKENS) | st.binary(max_size=3)) + data[at + gone :]
    return data


@given(
    damaged() | st.binary(max_size=400) | st.lists(st.sampled_from(TOKENS), max_size=20).map(b"".join),
    st.lists(st.integers(0, 4000), max_size=4),
)
@example(b"GET /next? HTTP/1.1\r\nHost: x\r\n\r\n", [])
@settings(fuzzed)
def test_no_bytes_make_the_lane_and_the_parser_behind_the_guard_disagree(data: bytes, cuts: list[int]) -> None:
    """Whatever passes the guard is accepted by the parser behind it, as the requests that the lane would have served."""
    check_agreement(data, cuts)


def check_agreement(data: bytes, cuts: Sequence[int]) -> None:
    """Fail where reader, guard and parser understand different things."""
    places = sorted({cut for cut in cuts if cut < len(data)})
    passed, guard = by_guard(data, places)
    seen, status, handed_over = by_reader(data, places)

    if guard.http2:
        assert seen == []
        return
    found = by_h11(passed)
    if handed_over:  # what follows is for the parser behind the guard alone
        assert is_prefix(seen, found)
        return
    assert is_prefix(found, seen) or status == 413
    assert len(found) == len(seen) or b"close" in data.lower() or b"1.0" in data or status == 413
    assert status in {None, 413} or guard.fault is not None
