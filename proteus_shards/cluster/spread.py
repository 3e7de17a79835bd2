"""Which host is to have which shard: one pure function of what every host can see.

All hosts come to the same answer from the same view, so nobody need be asked. A host claims the free shards that fall to itself, gives away those of its own
that fall to another, and leaves the rest alone. Where two views differ for a moment, the compare-and-set of the register lets one of two claims through, and
the next look mends the shares.

**What is even stays as it is.** A shard moves only from a host that has at least two more than the poorest; so shares end at the floor or the ceiling of the mean, and
no shard moves after that. Ties go by address, which is the same for all.

**Pins.** A shard that an operator wants on a host that can take it falls to that host, and stays there. The others are spread around it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from proteus_shards.cluster.model import NOBODY, Holding


def spread(holdings: Sequence[Holding], takers: Iterable[str], *, even: bool = True) -> dict[int, str]:
    """Return the host of each shard, as it should be; `NOBODY` for all that no host has, where nobody takes any.

    `takers` may hold shards; what any other host has is free. Without `even`, the shares of those that have some are not touched.
    """
    counts = dict.fromkeys(sorted(takers), 0)
    targets: dict[int, str] = {}
    movable: dict[str, list[int]] = {address: [] for address in counts}
    free: list[int] = []
    for holding in holdings:
        if holding.wanted in counts:
            targets[holding.shard] = holding.wanted
        elif holding.host in counts:
            targets[holding.shard] = holding.host
            movable[holding.host].append(holding.shard)
        else:
            free.append(holding.shard)
            continue
        counts[targets[holding.shard]] += 1
    for shard in free:
        targets[shard] = _poorest(counts) if counts else NOBODY
        if counts:
            counts[targets[shard]] += 1
    while even and counts:
        donors = [address for address in counts if movable[address]]
        poorest = _poorest(counts)
        richest = max(donors, key=lambda address: counts[address], default=poorest)
        if counts[richest] - counts[poorest] < 2:
            break
        targets[movable[richest].pop()] = poorest
        counts[richest] -= 1
        counts[poorest] += 1
    return targets


def _poorest(counts: dict[str, int]) -> str:
    return min(counts, key=lambda address: counts[address])  # the first of several, in the order of their addresses
