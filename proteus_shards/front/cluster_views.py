"""What is shown of a cluster, the same by `GET /v1/cluster` and on the dashboard. Sync and pure."""

from __future__ import annotations

from collections import Counter

import msgspec

from proteus_shards.ipc.hosts import HostSeen, Owners

HOST_STATES = ("alive", "draining", "dead")


class HostShown(msgspec.Struct, frozen=True):
    """One host."""

    host: str
    host_state: str
    version: str
    shards_held: int


class OwnerShown(msgspec.Struct, frozen=True):
    """One shard of the cluster."""

    shard: int
    host: str | None
    turn: int
    epoch: int
    here: bool
    wanted: str | None


class ClusterShown(msgspec.Struct, frozen=True):
    """All of it, as the host `seen_from` sees it."""

    seen_from: str
    store_away: bool
    hosts: list[HostShown]
    owners: list[OwnerShown]


def cluster_shown(said: Owners, *, store_away: bool) -> ClusterShown:
    """Return what a node has said as it is shown."""
    held = Counter(owner.host for owner in said.owners)
    return ClusterShown(
        seen_from=said.own,
        store_away=store_away,
        hosts=[HostShown(host.address, state_of(host), host.version, held[host.address]) for host in said.hosts],
        owners=[
            OwnerShown(owner.shard, owner.host or None, owner.turn, owner.epoch, owner.here, owner.wanted or None) for owner in said.owners
        ],
    )


def state_of(host: HostSeen) -> str:
    """Return how a host is, in one word of `HOST_STATES`."""
    return "dead" if not host.alive else "draining" if host.draining else "alive"
