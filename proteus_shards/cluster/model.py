"""What the hosts of a cluster know of each other, as the store keeps it.

Each shard has a **holding** in the store: which host runs it, and a turn that goes up with every change of host. A change is a compare-and-set on the
turn, so of two hosts that want a shard one gets it. The fence of the shard's rows is another number, the epoch: it is taken by the
shard's process when it opens its rows, and only while the holding still says what that process was started for. Safety rests on the epoch alone: whatever
the hosts believe, a commit under an older epoch is refused by the store. Beats and clocks decide only when a shard moves.

A host is known by its gate's address. It writes a beat, a number that goes up, and others call it dead once they have seen the same number for the length of a
lease on their own monotonic clock. No clock is ever compared with another's.
"""

from __future__ import annotations

import msgspec

NOBODY = ""  # in the place of a host's address


class Claim(msgspec.Struct, frozen=True):
    """What one process of a shard was started for: it may open the shard's rows while the holding says the same."""

    shard: int
    host: str
    turn: int


class Host(msgspec.Struct, frozen=True):
    """One host, as it last wrote of itself."""

    address: str  # HOST:PORT of its gate; no two hosts have the same
    boot: str  # drawn anew at each start of the server, so that a host can tell itself from another at its address
    beat: int  # goes up with each write
    version: str  # of the package
    draining: bool = False  # it is to give its shards away and get no more: it leaves, or an operator has said so


class Holding(msgspec.Struct, frozen=True):
    """Who holds one shard."""

    shard: int
    host: str = NOBODY
    turn: int = 0
    epoch: int = 0  # of the fence, as last taken
    wanted: str = NOBODY  # the host that an operator wants it to move to


class View(msgspec.Struct, frozen=True):
    """All hosts, and the holdings of all shards in the order of their numbers, at one moment of the store."""

    hosts: tuple[Host, ...]
    holdings: tuple[Holding, ...]
