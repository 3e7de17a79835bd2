"""Strands: frames that are taken in once and in order, wherever the connection under them is cut."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proteus_shards.errors import ProtocolError
from proteus_shards.ipc.frames import FrameReader
from proteus_shards.ipc.sessions import COUNT_BYTES, WORD_BYTES, WORD_FRAMES, Strand


def strand(frames_max: int = 1000, bytes_max: int = 10**6) -> Strand:
    """Return a strand with wide limits."""
    return Strand(frames_max, bytes_max)


class Side:
    """One end: its strand, the frames that come in, and what they held."""

    def __init__(self) -> None:
        self.strand = strand()
        self.reader = FrameReader()
        self.taken: list[bytes] = []
        self.wire = b""  # bytes on their way to the other

    def send(self, body: bytes) -> None:
        """Send a body."""
        self.wire += self.strand.pack(body)

    def receive(self, data: bytes) -> None:
        """Take bytes as they come."""
        for body in self.reader.feed(data):
            held = bytes(self.strand.take(body))
            if held:
                self.taken.append(held)


def reconnect(one: Side, two: Side) -> None:
    """Lose all that is on its way, and begin a new connection."""
    for side, other in ((one, two), (two, one)):
        side.reader = FrameReader()
        side.wire = side.strand.resume(other.strand.received)


@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.sampled_from(["send"]), st.booleans(), st.integers(1, 50)),
            st.tuples(st.sampled_from(["carry"]), st.booleans(), st.integers(0, 200)),
            st.tuples(st.sampled_from(["word", "cut"]), st.booleans(), st.just(0)),
        ),
        max_size=60,
    )
)
def test_every_frame_is_taken_in_once_and_in_order(steps: list[tuple[str, bool, int]]) -> None:
    """Whatever is sent, however far it comes, and whenever the connection is cut."""
    one, two = Side(), Side()
    sent: dict[Side, list[bytes]] = {one: [], two: []}
    for step, first, size in steps:
        side, other = (one, two) if first else (two, one)
        if step == "send":
            body = b"%d " % len(sent[side]) + b"x" * size
            sent[side].append(body)
            side.send(body)
        elif step == "carry":
            data, side.wire = side.wire[:size], side.wire[size:]
            other.receive(data)
        elif step == "word":
            side.wire += side.strand.word()
        else:
            reconnect(one, two)
        assert one.taken == sent[two][: len(one.taken)]
        assert two.taken == sent[one][: len(two.taken)]
    reconnect(one, two)
    for side, other in ((one, two), (two, one)):
        other.receive(side.wire)
        side.wire = b""

    assert (one.taken, two.taken) == (sent[two], sent[one])
    one.receive(two.strand.word())
    two.receive(one.strand.word())
    assert (one.strand.kept_frames, two.strand.kept_frames, one.strand.kept_bytes, two.strand.kept_bytes) == (0, 0, 0, 0)


def bodies(frames: bytes) -> list[bytes]:
    """Return the bodies of frames."""
    return FrameReader().feed(frames)


def test_what_is_kept_has_a_bound_by_number_and_by_size() -> None:
    """And is free again once the peer has it."""
    by_number, by_size = strand(frames_max=2), strand(bytes_max=10)
    for each in (by_number, by_size):
        each.pack(b"12345")
        assert not each.is_full
        each.pack(b"67890")
        assert each.is_full

    by_size.take((2).to_bytes(COUNT_BYTES, "big"))

    assert not by_size.is_full


@pytest.mark.parametrize("feed", [[b"x" * WORD_BYTES], [b"x"] * WORD_FRAMES])
def test_who_only_listens_says_now_and_then_what_it_has(feed: list[bytes]) -> None:
    """Else the other would keep it for nothing."""
    sender, taker = strand(), strand()
    for body in feed:
        assert not taker.owes_word
        taker.take(bodies(sender.pack(body))[0])
    assert taker.owes_word

    sender.take(bodies(taker.word())[0])

    assert (sender.kept_frames, taker.owes_word, taker.word()) == (0, False, b"")


@pytest.mark.parametrize(
    "break_it",
    [
        lambda side: side.take(b"short"),
        lambda side: side.take((2).to_bytes(COUNT_BYTES, "big") + b"x"),
        lambda side: side.resume(2),
        lambda side: (side.take((1).to_bytes(COUNT_BYTES, "big")), side.resume(0)),
    ],
)
def test_a_count_that_cannot_be_breaks_the_protocol(break_it: Callable[[Strand], object]) -> None:
    """A peer that has taken in what was never sent is of another conversation."""
    side = strand()
    side.pack(b"1")

    with pytest.raises(ProtocolError):
        break_it(side)
