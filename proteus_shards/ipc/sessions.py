"""A conversation between two hosts that outlives the connection it goes over. Pure bytes, for both ends alike.

How to think about it
=====================

A connection between hosts may be cut at any byte, and neither end knows what has arrived. So each side numbers the frames that it sends by counting them, keeps
them until the other has said that it took them in, and says in each frame how many of the other's it has taken in itself. When a new connection is made, the greetings
carry that count, and each side sends again what the other lacks. So every frame is taken in once and in order, whatever happens between; requests have their effect
once because their frames are taken in once, and no answer is lost because its frame is kept. What the frames hold is not looked at.

On the wire a body begins with eight bytes: how many frames of the peer were taken in. A body of nothing else only acknowledges, and is not counted.

**Bounds.** `is_full` says that so many frames, or bytes of them, wait to be taken in that no more should be sent. Who can wait does; who cannot ends the session: then
nobody knows what arrived, and that is what the other is told. `owes_word` says that enough has come without a frame going out to say so on its own.
"""

from __future__ import annotations

from collections import deque
from struct import Struct

from proteus_shards.errors import ProtocolError
from proteus_shards.ipc.frames import pack_frame

SESSION_BYTES = 16  # of a session's name, drawn at random by the front
COUNT_BYTES = 8
WORD_BYTES = 256 * 1024  # taken in since the last frame went out: time to say so
WORD_FRAMES = 64

_count = Struct(">Q")


class Strand:
    """One side of such a conversation: what it has sent, and what it has taken in."""

    def __init__(self, frames_max: int, bytes_max: int) -> None:
        self.received = 0  # frames of the peer that were taken in
        self.kept_bytes = 0  # of own frames that the peer may lack
        self._frames_max = frames_max
        self._bytes_max = bytes_max
        self._kept: deque[bytes] = deque()
        self._sent = 0
        self._told = 0  # of those received, how many the peer was told of
        self._untold_bytes = 0

    @property
    def kept_frames(self) -> int:
        """How many own frames the peer may lack."""
        return len(self._kept)

    @property
    def is_full(self) -> bool:
        """Whether as much is kept as may be."""
        return self.kept_bytes >= self._bytes_max or len(self._kept) >= self._frames_max

    @property
    def owes_word(self) -> bool:
        """Whether so much was taken in without a word that the peer should be told."""
        return self._untold_bytes >= WORD_BYTES or self.received - self._told >= WORD_FRAMES

    def pack(self, body: bytes) -> bytes:
        """Return the frame of a body, which is kept until it is acknowledged. Raises `ProtocolError` where it is too large for one."""
        frame = self._frame(body)
        self._sent += 1
        self._kept.append(body)
        self.kept_bytes += len(body)
        return frame

    def word(self) -> bytes:
        """Return a frame that only says what was taken in; none where the peer knows."""
        return self._frame(b"") if self.received > self._told else b""

    def take(self, body: bytes) -> memoryview:
        """Take in a body of the peer, and return what it holds: nothing where it only acknowledges. Raises `ProtocolError`."""
        if len(body) < COUNT_BYTES:
            raise ProtocolError("a frame of a session begins with a count")
        self._forget(_count.unpack_from(body)[0])
        held = memoryview(body)[COUNT_BYTES:]
        if held:
            self.received += 1
            self._untold_bytes += len(held)
        return held

    def resume(self, received: int) -> bytes:
        """Return the frames that a peer lacks which has taken in so many. Raises `ProtocolError` where that cannot be."""
        self._forget(received)
        return b"".join(self._frame(body) for body in self._kept)

    def _frame(self, body: bytes) -> bytes:
        frame = pack_frame(_count.pack(self.received) + body)
        self._told, self._untold_bytes = self.received, 0
        return frame

    def _forget(self, taken: int) -> None:
        known = self._sent - len(self._kept)
        if not known <= taken <= self._sent:
            raise ProtocolError(f"a peer has taken in {taken} frames, of {self._sent} of which it had {known}")
        for _ in range(taken - known):
            self.kept_bytes -= len(self._kept.popleft())
