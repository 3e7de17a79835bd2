"""What the node process of a host and its supervisor say to each other: lines of JSON, beside those of every child.

The node says which processes of shards are to run, all of them each time, and for how long they may if it says nothing more (`Shards`). The supervisor starts
what is new, stops what is no longer named, and says of each claim when its process serves (`Serving`, again after each restart), when it does not for a
while (`Away`), and, once, when no process is left (`Ended`). It keeps to the last word while no node runs, for as long as that word allows.

At the end of the server it says `Depart`, twice: at once, and when its fronts have ended. The node hands everything over, and its last word is `Departed`.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from proteus_shards.cluster.model import Claim


class Start(msgspec.Struct, frozen=True):
    """One process that is to run."""

    claim: Claim
    luggage: str = ""  # path of what it is to take in; empty: nothing


class Shards(msgspec.Struct, frozen=True, tag="shards"):
    """All processes that are to run, for `seconds` unless there is another word. Sent again with each good beat."""

    starts: tuple[Start, ...]
    seconds: float
    heard: int = 0  # of how many ends (`Ended`) this node process has been told so far


class Departed(msgspec.Struct, frozen=True, tag="departed"):
    """The node is done, and so is the server. `fault` says why, where nobody has asked for that."""

    fault: str = ""
    kept: int = 0  # shards that it could not give away, though another host lives


class Serving(msgspec.Struct, frozen=True, tag="serving"):
    """The process of a claim serves."""

    claim: Claim


class Away(msgspec.Struct, frozen=True, tag="away"):
    """The process of a claim has ended, and another one is going to be started."""

    claim: Claim


class Ended(msgspec.Struct, frozen=True, tag="ended"):
    """No process runs under a claim any more. `fenced`: the store has refused it, for the shard is another's."""

    claim: Claim
    fenced: bool = False


class Depart(msgspec.Struct, frozen=True, tag="depart"):
    """Give all shards away, within so many seconds, and leave the cluster.

    While fronts of this host still serve, what no other host takes stays, and the time is not over: their requests need it.
    """

    seconds: float
    fronts: bool = False


NodeOrder: TypeAlias = Shards | Departed
SupervisorOrder: TypeAlias = Serving | Away | Ended | Depart

_from_supervisor: msgspec.json.Decoder[SupervisorOrder] = msgspec.json.Decoder(SupervisorOrder)


def read_order(line: bytes) -> SupervisorOrder | None:
    """Return what a line of the supervisor says; None where that is nothing."""
    try:
        return _from_supervisor.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
