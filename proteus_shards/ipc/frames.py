"""Frames: four bytes of big-endian length, then that many bytes of MessagePack.

`FrameReader` takes bytes as they arrive, cut anywhere, and gives whole bodies back. It holds at most one frame, never more than
`frame_bytes_max`, and the only error that garbage can cause is `ProtocolError`. After an error it refuses everything: a
stream that has lost its frames cannot find them again.
"""

from __future__ import annotations

from struct import Struct

from proteus_shards.errors import ProtocolError

HEADER_BYTES = 4
FRAME_BYTES_MAX = 128 * 1024 * 1024

_header = Struct(">I")


def pack_frame(body: bytes, frame_bytes_max: int = FRAME_BYTES_MAX) -> bytes:
    """Return the frame of a body. Raises `ProtocolError` where the body is empty or too large for one."""
    if not 0 < len(body) <= frame_bytes_max:
        raise ProtocolError(f"a frame has 1…{frame_bytes_max} bytes, not {len(body)}")
    return _header.pack(len(body)) + body


class FrameReader:
    """Turns a stream of bytes into frame bodies."""

    def __init__(self, frame_bytes_max: int = FRAME_BYTES_MAX) -> None:
        self._frame_bytes_max = frame_bytes_max
        self._buffer = bytearray()
        self._broken = False

    def feed(self, data: bytes | bytearray | memoryview) -> list[bytes]:
        """Take the next bytes of the stream and return the bodies that they complete, in order. Raises `ProtocolError`."""
        if self._broken:
            raise ProtocolError("this stream has already lost its frames")
        buffer = self._buffer
        buffer += data
        bodies: list[bytes] = []
        start, end = 0, len(buffer)
        while end - start >= HEADER_BYTES:
            (size,) = _header.unpack_from(buffer, start)
            if not 0 < size <= self._frame_bytes_max:
                self._broken = True
                raise ProtocolError(f"a frame has 1…{self._frame_bytes_max} bytes, this one claims {size}")
            stop = start + HEADER_BYTES + size
            if stop > end:
                break
            bodies.append(bytes(buffer[start + HEADER_BYTES : stop]))
            start = stop
        if start:
            del buffer[:start]
        return bodies

    @property
    def pending_bytes(self) -> int:
        """How many bytes of an unfinished frame are held."""
        return len(self._buffer)
