"""The store of a simulated cluster: its register, the epochs of its shards and their rows, as `store/register.py` promises them.

Each method is one atomic moment of the store. When it comes, and whether its answer does, is the network's (`cluster_world.py`). What the contract forbids only a planted mistake does.
"""

from __future__ import annotations

import msgspec

from proteus_shards.cluster.model import NOBODY, Claim, Holding, Host, View
from proteus_shards.cluster.steps import Beat, Call, Drain, Hand, Join, Leave, Look, Want


class Place:
    """All that is kept."""

    def __init__(self, shards: int) -> None:
        self.hosts: dict[str, Host] = {}
        self.holdings = [Holding(shard) for shard in range(shards)]
        self.rows: list[list[str]] = [[] for _ in range(shards)]  # what was committed, in order
        self.hands = 0

    def take(self, call: Call) -> View | bool:
        """Do what a call of the register asks for."""
        match call:
            case Look():
                return View(tuple(self.hosts.values()), tuple(self.holdings))
            case Join(host):
                self.hosts[host.address] = host
                return True
            case Beat(host):
                return self.beat(host)
            case Drain(address, draining):
                return self.drain(address, draining=draining)
            case Hand(shard, turn, address):
                return self.hand(shard, turn, address)
            case Want(shard, address):
                return self.want(shard, address)
            case Leave(address, boot):
                return self.leave(address, boot)

    def beat(self, host: Host) -> bool:
        """Write a host's beat."""
        own = self.hosts.get(host.address)
        if own is None or own.boot != host.boot:
            return False
        self.hosts[host.address] = msgspec.structs.replace(host, draining=own.draining)
        return True

    def drain(self, address: str, *, draining: bool) -> bool:
        """Write whether a host drains."""
        if address not in self.hosts:
            return False
        self.hosts[address] = msgspec.structs.replace(self.hosts[address], draining=draining)
        return True

    def hand(self, shard: int, turn: int, address: str) -> bool:
        """Give a shard to a host."""
        held = self.holdings[shard]
        if held.turn != turn:
            return False
        self.holdings[shard] = Holding(shard, address, held.turn + 1, held.epoch, address if held.wanted == address else NOBODY)
        self.hands += 1
        return True

    def want(self, shard: int, address: str) -> bool:
        """Write down an operator's wish."""
        self.holdings[shard] = msgspec.structs.replace(self.holdings[shard], wanted=address)
        return True

    def leave(self, address: str, boot: str) -> bool:
        """Remove a host."""
        found = self.hosts.get(address)
        if found is None or (boot and found.boot != boot):
            return False
        del self.hosts[address]
        return True

    def open(self, claim: Claim) -> int | None:
        """Take an epoch under a claim; None: the holding says something else."""
        held = self.holdings[claim.shard]
        if (held.host, held.turn) != (claim.host, claim.turn):
            return None
        self.holdings[claim.shard] = msgspec.structs.replace(held, epoch=held.epoch + 1)
        return held.epoch + 1

    def commit(self, shard: int, epoch: int, row: str) -> bool:
        """Write a row under an epoch; False: another epoch was taken."""
        if self.holdings[shard].epoch != epoch:
            return False
        self.rows[shard].append(row)
        return True

    def held_by(self, address: str) -> list[int]:
        """Return the shards of a host."""
        return [holding.shard for holding in self.holdings if holding.host == address != NOBODY]
