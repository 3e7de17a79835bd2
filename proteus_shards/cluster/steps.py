"""What a steward asks of the register, what it has run, and what it says of a wish."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from proteus_shards.cluster.model import Claim, Host


class Look(msgspec.Struct, frozen=True):
    """Ask for the view."""


class Join(msgspec.Struct, frozen=True):
    """Write the own host."""

    host: Host


class Beat(msgspec.Struct, frozen=True):
    """Write a sign of life."""

    host: Host


class Drain(msgspec.Struct, frozen=True):
    """Say that a host gives its shards away, or takes shards again."""

    host: str
    draining: bool


class Hand(msgspec.Struct, frozen=True):
    """Give a shard to a host: a claim, where that is the own one."""

    shard: int
    turn: int
    host: str


class Want(msgspec.Struct, frozen=True):
    """Write down where a shard is to be."""

    shard: int
    host: str


class Leave(msgspec.Struct, frozen=True):
    """Remove a host. `boot` is empty where any is meant."""

    host: str
    boot: str = ""


class Rest(msgspec.Struct, frozen=True):
    """Nothing is to be asked before this monotonic time, unless something else happens."""

    until: float


class Over(msgspec.Struct, frozen=True):
    """Nothing is to be asked any more."""

    replaced: bool  # by another host at this address; else it has left


Call: TypeAlias = Look | Join | Beat | Drain | Hand | Want | Leave
Step: TypeAlias = Call | Rest | Over


class Run(msgspec.Struct, frozen=True):
    """One process that is to run. `sources`: hosts that may have luggage for it, to be asked in this order before it is started."""

    claim: Claim
    sources: tuple[str, ...] = ()


class Fault(msgspec.Struct, frozen=True):
    """Why a wish of an operator cannot be written down."""

    detail: str
    missing: bool = False
