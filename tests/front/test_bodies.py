"""Request bodies: limit and content coding."""

from __future__ import annotations

import gzip
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proteus_shards.front.answers import Problem
from proteus_shards.front.bodies import GZIP_MEMBERS_MAX, unpack_body

LIMIT = 1000


def status_of(body: bytes, coding: str | None) -> int:
    """Return the status of the problem that a body has."""
    problem = unpack_body(body, coding, LIMIT)
    assert isinstance(problem, Problem)
    return problem.status


@pytest.mark.parametrize("coding", [None, "", "identity", " Identity "])
def test_a_plain_body_is_left_as_it_is(coding: str | None) -> None:
    """Up to the limit."""
    assert unpack_body(b"x" * LIMIT, coding, LIMIT) == b"x" * LIMIT
    assert status_of(b"x" * (LIMIT + 1), coding) == 413


@pytest.mark.parametrize("coding", ["gzip", "GZIP", "x-gzip", " gzip "])
def test_a_gzip_body_is_unpacked(coding: str) -> None:
    """Members one after the other are one body."""
    assert unpack_body(gzip.compress(b"hello"), coding, LIMIT) == b"hello"
    assert unpack_body(gzip.compress(b"hel") + gzip.compress(b"lo"), coding, LIMIT) == b"hello"
    assert unpack_body(gzip.compress(b""), coding, LIMIT) == b""
    assert unpack_body(b"", coding, LIMIT) == b""


def test_the_limit_holds_after_unpacking() -> None:
    """To the byte, over all members."""
    assert unpack_body(gzip.compress(b"x" * LIMIT), "gzip", LIMIT) == b"x" * LIMIT
    assert status_of(gzip.compress(b"x" * (LIMIT + 1)), "gzip") == 413
    assert status_of(gzip.compress(b"x" * LIMIT) + gzip.compress(b"x"), "gzip") == 413


def test_a_bomb_costs_no_more_memory_than_the_limit() -> None:
    """What lies beyond it is never unpacked."""
    bomb = gzip.compress(b"\0" * 50_000_000)
    tracemalloc.start()
    try:
        problem = unpack_body(bomb, "gzip", 100_000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert isinstance(problem, Problem)
    assert problem.status == 413
    assert peak < 1_000_000


def test_members_are_bounded() -> None:
    """Empty ones cost time and hold nothing."""
    empty = gzip.compress(b"")

    assert unpack_body(empty * GZIP_MEMBERS_MAX, "gzip", 1_000_000) == b""
    problem = unpack_body(empty * (GZIP_MEMBERS_MAX + 1), "gzip", 1_000_000)
    assert isinstance(problem, Problem)
    assert problem.status == 422


@pytest.mark.parametrize("coding", ["br", "deflate", "gzip, gzip", "gzip,identity", "zstd", "*"])
def test_another_coding_is_refused_by_its_name(coding: str) -> None:
    """And the answer says which there is."""
    problem = unpack_body(b"", coding, LIMIT)

    assert isinstance(problem, Problem)
    assert (problem.status, problem.headers) == (415, (("accept-encoding", "gzip"),))


HELLO = gzip.compress(b"hello", mtime=0)


@pytest.mark.parametrize("body", [b"hello", b"\x1f\x8b", HELLO[:-1], HELLO + b"x", HELLO[:-8] + b"\0" * 8])
def test_what_is_no_gzip_is_refused(body: bytes) -> None:
    """Cut off, followed by something else, or with a wrong checksum."""
    assert status_of(body, "gzip") == 422


@given(st.binary(max_size=500), st.sampled_from([b"", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03"]))
def test_no_body_raises(body: bytes, start: bytes) -> None:
    """Garbage is a problem or a body."""
    unpack_body(start + body, "gzip", LIMIT)


@given(st.binary(max_size=LIMIT), st.integers(0, 9))
def test_what_was_packed_comes_back(body: bytes, level: int) -> None:
    """At any level."""
    assert unpack_body(gzip.compress(body, level), "gzip", LIMIT) == body
