"""Request bodies as they arrive: their limit, and their content coding.

The limit `body_size_max` holds twice, for the bytes on the wire and for what they unpack to. Unpacking stops one byte past
the limit, so a small body that unpacks to gigabytes costs no more than a large honest one.
"""

from __future__ import annotations

import zlib

from proteus_shards.front.answers import Problem, fault

GZIP_WINDOW = 31  # zlib's code for: gzip header and trailer, largest window
GZIP_MEMBERS_MAX = 1024  # each costs a new decompressor, however little it holds
PIECE_BYTES = 65536  # bounds what is copied at the end of each member

_PLAIN = frozenset({"", "identity"})
_GZIP = frozenset({"gzip", "x-gzip"})


def too_large(body_size_max: int) -> Problem:
    """Return the problem of a body over the limit."""
    return Problem(status=413, detail=f"body: must have at most {body_size_max} bytes (body_size_max)", field="body")


def unpack_body(body: bytes, content_encoding: str | None, body_size_max: int) -> bytes | Problem:
    """Return a body without its content coding (gzip or none), or the problem that it has: 413, 415 or 422."""
    if len(body) > body_size_max:
        return too_large(body_size_max)
    coding = (content_encoding or "").strip().lower()
    if coding in _PLAIN:
        return body
    if coding not in _GZIP:
        return Problem(
            status=415,
            detail="content-encoding: must be gzip or identity",
            field="content-encoding",
            headers=(("accept-encoding", "gzip"),),
        )
    return _gunzip(body, body_size_max)


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
