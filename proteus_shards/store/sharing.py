"""What is the same for all stores that hosts can share: when a place may be prepared, and what the doctor says of a cluster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from proteus_shards.cluster.model import NOBODY, View
from proteus_shards.errors import SettingError, SharedError
from proteus_shards.store.findings import Finding

NAMED_MAX = 8


def check_sharing(hosts: Sequence[str], shards: int, wanted: int, *, cluster: bool) -> None:
    """Raise `SettingError` where a place that has `shards` shards, and these hosts registered, may not be prepared for `wanted` ones.

    It is a `SharedError` where the hosts alone are why.
    """
    if hosts and not cluster:
        raise SharedError(
            f"cluster: this store is shared by the hosts {_named(hosts)}: start with --cluster to be one of them; a host that is gone for good "
            "is removed by `proteus-shards cluster forget`"
        )
    if hosts and shards != wanted:
        raise SettingError(
            f"shards: the cluster has {shards} shards, fixed by its first host, and not {wanted}: start with --shards {shards}; its hosts "
            f"are {_named(hosts)}"
        )


def cluster_findings(view: View) -> Iterator[Finding]:
    """Say which hosts share a place, and which shards they hold; nothing where no host does."""
    if not view.hosts:
        return
    held = Counter(holding.host for holding in view.holdings)
    for host in view.hosts:
        drains = ", and is to give them away" if host.draining else ""
        yield Finding("note", f"host {host.address} (version {host.version}) holds {held.pop(host.address, 0)} shards{drains}")
    if nobodys := held.pop(NOBODY, 0):
        yield Finding(
            "warning",
            f"{nobodys} shards are held by no host",
            "start a host; the dashboard, or `proteus-shards cluster status`, shows who takes them",
        )
    for address, count in held.items():
        yield Finding(
            "warning", f"{count} shards are held by {address}, which is not registered", "the other hosts take them, if any is alive"
        )
    versions = {host.version for host in view.hosts}
    if len(versions) > 1:
        yield Finding("note", f"the hosts run different versions ({', '.join(sorted(versions))})", "bring all to the newest")


def _named(hosts: Sequence[str]) -> str:
    more = f" and {len(hosts) - NAMED_MAX} more" if len(hosts) > NAMED_MAX else ""
    return ", ".join(sorted(hosts)[:NAMED_MAX]) + more
