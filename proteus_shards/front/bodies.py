"""Request bodies as they arrive: their limit, and their content coding.

The limit `body_size_max` holds twice, for the bytes on the wire and for what they unpack to. Unpacking stops one byte past
the limit, so a small body that unpacks to gigabytes costs no more than a large honest one.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from proteus_shards.front.answers import Problem, fault

GZIP_WINDOW = 31  # zlib's code for: gzip header and trailer, largest window
GZIP_MEMBERS_MAX = 1024  # each costs a new decompressor, however little it holds
RELAY_PREFIXES = (b"/v1/queues/", b"/v2/queues/")
PIECE_BYTES = 65536  # bounds what is copied at the end of each member

_PLAIN = frozenset({"", "identity"})
_GZIP = frozenset({"gzip", "x-gzip"})


def too_large(body_size_max: int, path: bytes = b"") -> Problem:
    """Return the problem of a body over the limit; where the path is one of relay's API, in its words."""
    plain = "Failed to buffer the request body: length limit exceeded" if path.startswith(RELAY_PREFIXES) else None
    return Problem(status=413, detail=f"body: must have at most {body_size_max} bytes (body_size_max)", field="body", plain=plain)


def bad_coding(content_encoding: str | None) -> Problem | None:
    """Say what is wrong with a content coding, if anything is."""
    coding = (content_encoding or "").strip().lower()
    if coding in _PLAIN or coding in _GZIP:
        return None
    return Problem(
        status=415,
        detail="content-encoding: must be gzip or identity",
        field="content-encoding",
        headers=(("accept-encoding", "gzip"),),
    )


def unpack_body(body: bytes, content_encoding: str | None, body_size_max: int) -> bytes | Problem:
    """Return a body without its content coding (gzip or none), or the problem that it has: 413, 415 or 422."""
    if len(body) > body_size_max:
        return too_large(body_size_max)
    if (wrong := bad_coding(content_encoding)) is not None:
        return wrong
    return _gunzip(body, body_size_max) if _is_gzip(content_encoding) else body


def _is_gzip(content_encoding: str | None) -> bool:
    return (content_encoding or "").strip().lower() in _GZIP


def _gunzip(body: bytes, body_size_max: int) -> bytes | Problem:
    """Unpack one gzip member after the other, as RFC 1952 has it, up to the limit over all of them."""
    packed = memoryview(body)
    whole = bytearray()
    at = members = 0
    while at < len(packed):
        members += 1
        if members > GZIP_MEMBERS_MAX:
            return fault("body", f"must have at most {GZIP_MEMBERS_MAX} gzip members")
        member = zlib.decompressobj(GZIP_WINDOW)
        while not member.eof:
            piece = packed[at : at + PIECE_BYTES]
            if not piece:
                return fault("body", "is not valid gzip: it ends too early")
            try:
                whole += member.decompress(piece, body_size_max + 1 - len(whole))
            except zlib.error:
                return fault("body", "is not valid gzip")
            if len(whole) > body_size_max:
                return too_large(body_size_max)
            at += len(piece) - len(member.unused_data)
    return bytes(whole)


class Unpacker:
    """Takes the content coding off a body that comes piece by piece. No piece that it gives back is larger than `PIECE_BYTES`."""

    def __init__(self, *, gzip: bool) -> None:
        self._gzip = gzip
        self._member = zlib.decompressobj(GZIP_WINDOW)
        self._members = 1
        self._begun = False  # the member at hand has

    def feed(self, data: bytes) -> Iterator[bytes | Problem]:
        """Take the next bytes of the body. A problem is the last that is given back."""
        at = 0
        while at < len(data):
            piece = data[at : at + PIECE_BYTES]
            at += len(piece)
            if self._gzip:
                yield from self._unpack(piece)
            else:
                yield piece

    def fault_at_end(self) -> Problem | None:
        """Say what is wrong with a body that ends here, if anything is."""
        return fault("body", "is not valid gzip: it ends too early") if self._gzip and self._begun and not self._member.eof else None

    def _unpack(self, piece: bytes) -> Iterator[bytes | Problem]:
        more = True  # in the decompressor, though all that came is in it
        while piece or more:
            if self._member.eof:
                if not piece:
                    return
                self._members += 1
                if self._members > GZIP_MEMBERS_MAX:
                    yield fault("body", f"must have at most {GZIP_MEMBERS_MAX} gzip members")
                    return
                self._member = zlib.decompressobj(GZIP_WINDOW)
            self._begun = True
            try:
                unpacked = self._member.decompress(piece, PIECE_BYTES)
            except zlib.error:
                yield fault("body", "is not valid gzip")
                return
            more = len(unpacked) == PIECE_BYTES
            piece = self._member.unconsumed_tail or self._member.unused_data
            if unpacked:
                yield unpacked


def unpacker_of(content_encoding: str | None) -> Unpacker | Problem:
    """Return what takes a content coding off, or the problem that it is."""
    return bad_coding(content_encoding) or Unpacker(gzip=_is_gzip(content_encoding))
