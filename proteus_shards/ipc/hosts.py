"""What the node process of a host and its neighbours say to each other: its fronts, and the gates of other hosts.

**Fronts** connect to the node's Unix socket and send nothing first. The node sends `Owners` at once and after every change; a front sends `Stale`, `Move`, `Drain`
and `Forget`, the last three answered by `Asked`. Frames hold one message each.

**Gates** take TCP connections of other hosts, under TLS with certificates on both sides. The first frame is a link's `Hello` (then the gate joins it to the
socket of that shard's process, and reads no more of it; or answers `Elsewhere`), or a `Fetch`, or a `Nudge` (see there).
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from proteus_shards.errors import ProtocolError

_GARBAGE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class HostSeen(msgspec.Struct, frozen=True):
    """A host as this one sees it."""

    address: str
    version: str
    alive: bool
    draining: bool


class Owner(msgspec.Struct, frozen=True):
    """Who serves a shard, as far as this host knows. `host` is empty while nobody does."""

    shard: int
    host: str
    turn: int
    epoch: int
    here: bool  # a process of this host serves it: its own socket leads there
    wanted: str = ""


class Owners(msgspec.Struct, tag="owners", frozen=True):
    """All of it. `owners` has every shard of the cluster, in order."""

    own: str  # the address of this host
    hosts: tuple[HostSeen, ...]
    owners: tuple[Owner, ...]
    store_away: bool = False  # it may be old: the store could not be asked
    counters: dict[str, int] = msgspec.field(
        default_factory=dict
    )  # since the node process began: beats, beats_failed, claims, claims_lost, moves_out, moves_in, fenced


class Stale(msgspec.Struct, tag="stale", frozen=True):
    """What the owners said did not serve: the shard is not there. The node looks anew, soon."""

    shard: int
    turn: int


class Move(msgspec.Struct, tag="move", frozen=True):
    """An operator wants a shard on a host."""

    number: int
    shard: int
    host: str


class Drain(msgspec.Struct, tag="drain", frozen=True):
    """An operator wants a host to give its shards away, or to take shards again."""

    number: int
    host: str
    draining: bool


class Forget(msgspec.Struct, tag="forget", frozen=True):
    """An operator says that a host is gone for good. One that is alive is not forgotten."""

    number: int
    host: str


class Asked(msgspec.Struct, tag="asked", frozen=True):
    """What became of a wish: empty where it was written down, else why not. `missing`: there is no such host or shard."""

    number: int
    fault: str = ""
    missing: bool = False


class Fetch(msgspec.Struct, tag="fetch", frozen=True):
    """The new host of a shard asks the one before for its luggage: what the shard had in memory only when it was handed over.

    Answered by a `Luggage`, and then so many bytes as that says. `turn` is the new host's.
    """

    shard: int
    turn: int


class Luggage(msgspec.Struct, tag="luggage", frozen=True):
    """How many bytes follow. None: there is no luggage of that shard and turn."""

    size: int | None


class Elsewhere(msgspec.Struct, tag="elsewhere", frozen=True):
    """The shard of a `Hello` is not here; who has it, as far as is known."""

    shard: int
    host: str
    turn: int


class Nudge(msgspec.Struct, tag="nudge", frozen=True):
    """A host has handed a shard over to the one that it speaks to, under this turn. Nothing is answered: the store says the same."""

    shard: int
    turn: int
    host: str  # that says so


NodeMessage: TypeAlias = Owners | Asked
FrontMessage: TypeAlias = Stale | Move | Drain | Forget

encode = msgspec.msgpack.Encoder().encode
_from_node: msgspec.msgpack.Decoder[NodeMessage] = msgspec.msgpack.Decoder(NodeMessage)
_from_front: msgspec.msgpack.Decoder[FrontMessage] = msgspec.msgpack.Decoder(FrontMessage)


def decode_from_node(body: bytes | memoryview) -> NodeMessage:
    """Read what a node says to a front. Raises `ProtocolError`."""
    try:
        return _from_node.decode(body)
    except _GARBAGE as error:
        raise ProtocolError(f"not a message of a node: {error}") from error


def decode_from_front(body: bytes | memoryview) -> FrontMessage:
    """Read what a front says to its node. Raises `ProtocolError`."""
    try:
        return _from_front.decode(body)
    except _GARBAGE as error:
        raise ProtocolError(f"not a message of a front: {error}") from error
