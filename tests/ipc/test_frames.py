"""Frames: bytes cut anywhere give the same bodies, and garbage gives one error and no other."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proteus_shards.errors import ProtocolError
from proteus_shards.ipc.frames import FRAME_BYTES_MAX, HEADER_BYTES, FrameReader, pack_frame

BODIES = [b"1", b"two", b"\x00\x00\x00\x01", b"x" * 300]
STREAM = b"".join(pack_frame(body) for body in BODIES)


@pytest.mark.parametrize("cut", range(len(STREAM) + 1))
def test_a_stream_cut_anywhere_gives_the_same_bodies(cut: int) -> None:
    """In two pieces, whatever they are."""
    reader = FrameReader()

    assert reader.feed(STREAM[:cut]) + reader.feed(STREAM[cut:]) == BODIES
    assert reader.pending_bytes == 0


def test_a_stream_in_single_bytes_gives_the_same_bodies() -> None:
    """Each body comes with its last byte."""
    reader = FrameReader()
    bodies = [reader.feed(STREAM[at : at + 1]) for at in range(len(STREAM))]

    assert [body for found in bodies for body in found] == BODIES
    assert [at for at, found in enumerate(bodies) if found][-1] == len(STREAM) - 1


@settings(deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=100), max_size=10), st.lists(st.integers(0, 1200), max_size=10))
def test_any_cuts_of_any_frames_give_the_same_bodies(bodies: list[bytes], cuts: list[int]) -> None:
    """And nothing is held back once the last byte is there."""
    stream = b"".join(pack_frame(body) for body in bodies)
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    reader = FrameReader()
    found = [body for start, stop in itertools.pairwise(edges) for body in reader.feed(stream[start:stop])]

    assert (found, reader.pending_bytes) == (bodies, 0)


@settings(deadline=None)
@given(st.binary(max_size=400), st.integers(1, 100))
def test_garbage_gives_bodies_or_a_protocol_error(data: bytes, most: int) -> None:
    """Never another error, never a body beyond the limit, and never more held than a frame."""
    reader = FrameReader(most)
    try:
        for at in range(0, len(data), 7):
            assert all(0 < len(body) <= most for body in reader.feed(data[at : at + 7]))
            assert reader.pending_bytes <= HEADER_BYTES + most
    except ProtocolError:
        with pytest.raises(ProtocolError, match="already lost its frames"):
            reader.feed(pack_frame(b"good"))


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_kind_of_bytes_may_be_fed(kind: type[bytes | bytearray | memoryview]) -> None:
    """What comes out are bytes of their own, untouched by what becomes of the buffer."""
    source = bytearray(pack_frame(b"body"))
    [body] = FrameReader().feed(kind(source))
    source[:] = bytes(len(source))

    assert (type(body), body) == (bytes, b"body")


def test_nothing_is_no_news() -> None:
    """An empty read gives no body."""
    assert FrameReader().feed(b"") == []


def test_the_size_limit_is_the_size_of_the_body() -> None:
    """A body of exactly the limit passes on both sides, one byte more on neither."""
    assert FrameReader(10).feed(pack_frame(b"x" * 10, 10)) == [b"x" * 10]
    with pytest.raises(ProtocolError, match="a frame has 1…10 bytes, not 11"):
        pack_frame(b"x" * 11, 10)
    with pytest.raises(ProtocolError, match="a frame has 1…10 bytes, this one claims 11"):
        FrameReader(10).feed(pack_frame(b"x" * 11))


def test_an_empty_body_is_no_frame() -> None:
    """Neither side makes or takes one."""
    with pytest.raises(ProtocolError, match="not 0"):
        pack_frame(b"")
    with pytest.raises(ProtocolError, match="claims 0"):
        FrameReader().feed(bytes(4))


@pytest.mark.parametrize("size", [FRAME_BYTES_MAX + 1, 2**31, 2**32 - 1])
def test_a_frame_too_large_is_refused_by_its_header_alone(size: int) -> None:
    """Before a byte of its body is waited for or kept."""
    with pytest.raises(ProtocolError, match=str(size)):
        FrameReader().feed(struct.pack(">I", size))


def test_a_frame_of_the_greatest_size_is_waited_for() -> None:
    """The header alone is no reason to refuse it."""
    reader = FrameReader()

    assert reader.feed(struct.pack(">I", FRAME_BYTES_MAX)) == []
    assert reader.pending_bytes == HEADER_BYTES


def test_a_broken_stream_stays_broken() -> None:
    """A good frame after bad bytes may be anything, and is refused."""
    reader = FrameReader()
    with pytest.raises(ProtocolError):
        reader.feed(b"\xff\xff\xff\xff")
    for _ in range(2):
        with pytest.raises(ProtocolError, match="already lost its frames"):
            reader.feed(pack_frame(b"good"))


def test_an_unfinished_frame_is_counted() -> None:
    """So that its owner can see a peer that went away in the middle."""
    reader = FrameReader()
    reader.feed(STREAM[:3])
    assert reader.pending_bytes == 3

    reader.feed(STREAM[3:7])

    assert reader.pending_bytes == 2
