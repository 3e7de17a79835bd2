"""The messages between a front and a shard.

A link begins with one `Hello` from the front, answered by one `Hello` from the shard, by a `Goodbye` that says why not, or by the `Elsewhere` of a gate.
After that the front sends frames of `Request`s and the shard frames of `Reply`s, many to a frame, each with the number that the
front gave it. Replies come in any order. Both sides refuse a peer of another protocol number or package version: the messages are
positional, so a silent mismatch would be misread.

**A shard that moves** says so to all its fronts: a `Reply` of number `MOVING` that answers nothing. What reaches it from then on is refused as MOVED.

`Hello` and `Goodbye` are maps, and stay decodable for ever; `Request` and `Reply` are positional and may change with
`PROTOCOL`.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from proteus_shards import __version__
from proteus_shards.core.commands import Command, Outcome
from proteus_shards.errors import ProtocolError, VersionError
from proteus_shards.ipc.hosts import Elsewhere

PROTOCOL = 2
MOVING = 0  # no request has this number

Request: TypeAlias = tuple[int, Command]
Reply: TypeAlias = tuple[int, Outcome]


class Hello(msgspec.Struct, tag="hello", frozen=True):
    """Who speaks: protocol number, package version, and which shard of how many is meant."""

    protocol: int
    version: str
    shard: int
    shards: int
    epoch: int = 0  # the shard's epoch, in its answer
    session: bytes = b""  # of a front on another host: the name of its session (see `sessions`); empty: the link ends with its connection
    received: int = 0  # frames of the peer that were taken in, in this session
    resumed: bool = False  # in the answer: the session is known, and goes on


class Goodbye(msgspec.Struct, tag="goodbye", frozen=True):
    """Why the link ends before it began."""

    detail: str


_encoder = msgspec.msgpack.Encoder()
_greeting: msgspec.msgpack.Decoder[Hello | Goodbye | Elsewhere] = msgspec.msgpack.Decoder(Hello | Goodbye | Elsewhere)
_requests = msgspec.msgpack.Decoder(list[Request])
_replies = msgspec.msgpack.Decoder(list[Reply])

encode = _encoder.encode

_GARBAGE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)  # all that bytes of any kind can cause


def hello(shard: int, shards: int, epoch: int = 0) -> Hello:
    """Return this process's own greeting."""
    return Hello(PROTOCOL, __version__, shard, shards, epoch)


def decode_greeting(body: bytes | memoryview) -> Hello | Goodbye | Elsewhere:
    """Read the first frame of a peer. Raises `ProtocolError`."""
    try:
        return _greeting.decode(body)
    except _GARBAGE as error:
        raise ProtocolError(f"the peer's first frame is not a greeting: {error}") from error


def decode_requests(body: bytes | memoryview) -> list[Request]:
    """Read one frame of requests. Raises `ProtocolError`."""
    try:
        return _requests.decode(body)
    except _GARBAGE as error:
        raise ProtocolError(f"not a frame of requests: {error}") from error


def decode_replies(body: bytes | memoryview) -> list[Reply]:
    """Read one frame of replies. Raises `ProtocolError`."""
    try:
        return _replies.decode(body)
    except _GARBAGE as error:
        raise ProtocolError(f"not a frame of replies: {error}") from error


def check_hello(own: Hello, peer: Hello) -> None:
    """Raise `VersionError` or `ProtocolError` unless both sides mean the same protocol, version and shard."""
    if (own.protocol, own.version) != (peer.protocol, peer.version):
        raise VersionError(
            f"this process is proteus-shards {own.version} (protocol {own.protocol}), its peer is "
            f"{peer.version} (protocol {peer.protocol}): run the same version in every process"
        )
    if (own.shard, own.shards) != (peer.shard, peer.shards):
        raise ProtocolError(f"this link is for shard {own.shard} of {own.shards}, its peer means {peer.shard} of {peer.shards}")
