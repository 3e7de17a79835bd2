"""What a cluster of many hosts would give, from what a request costs on one machine. Arithmetic only; `cluster.py` measures what it starts from.

The model
=========

A request costs `µs` of CPU in a front, in the process of its shard and in the store. One that reaches another host than that of its shard costs more: in
the front that sends it on, and in the gate of the host that has the shard. `share` is how many do. Then, with H hosts of C cores each, which serve nothing else:

    requests/s  ≤  1e6 × H × C / (front + shard + share × (onward + gate))      all cores of all hosts
    requests/s  ≤  1e6 × H / (share × gate)                                      one gate a host: it is one process
    requests/s  ≤  (1e6 × cores of the store - standing) / store                 the store is one primary
    requests/s  ≤  units/s of the table / units of a request                     DynamoDB, where CPU is not what one pays for

`standing` is what the store does for the hosts when nobody asks for anything: each looks eight times and beats three times a lease. A look brings a row for each
host and each shard; it is assumed to cost twice as much for each `LOOK_ROWS` rows.

It knows nothing of what is shared beside CPU (the store's disk, the network), of batches that grow with the load, which make a request cheaper, or of
queues that are hot. It says where the ceiling is and what it is made of, not that it is reached.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

LOOK_ROWS = 100.0
HASHED_SHARE = 0.05  # of requests that a balancer which hashes by queue sends to the wrong host, as it does not know where shards are
SHARDS_PER_HOST = 8
CORES_PER_HOST = 8


class Costs(msgspec.Struct, frozen=True):
    """µs of CPU of one request, and of one second for each host that stands idle."""

    front: float
    shard: float
    store: float
    onward: float  # beyond `front`, in the front that sends a request to another host
    gate: float  # in the node of the host that gets it
    standing: float = 0.0  # of the store, for each host and second
    rows: int = 0  # that a look brought where `standing` was measured


class Store(msgspec.Struct, frozen=True):
    """What a store can do. `units_per_second`: of a table that is paid by units; None: its cores are the limit."""

    kind: str
    cores: float
    units_per_second: float | None = None
    units_per_request: float = 0.0


STORES = (
    Store("postgres", 16.0),
    Store("redis", 1.0),  # one thread runs all scripts
    Store("dynamodb", 0.0, 40_000.0, 1.7),  # the quota of a table unless one asks for more; a job's life of 4 requests takes about 7 units
)
HOSTS = (2, 8, 64)


class Ceiling(msgspec.Struct, frozen=True):
    """How many requests a second, and what is used up then."""

    rate: float
    bound: str
    bounds: dict[str, float]


def ceiling(costs: Costs, store: Store, hosts: int, share: float, *, cores: float = CORES_PER_HOST) -> Ceiling:
    """Return what so many hosts give with a store."""
    bounds = {"hosts": 1e6 * hosts * cores / (costs.front + costs.shard + share * (costs.onward + costs.gate))}
    if share * costs.gate > 0:
        bounds["gates"] = 1e6 * hosts / (share * costs.gate)
    if store.units_per_second is not None:
        bounds["store"] = store.units_per_second / store.units_per_request
    elif costs.store > 0:
        bounds["store"] = max(0.0, 1e6 * store.cores - standing(costs, hosts)) / costs.store
    bound = min(bounds, key=lambda name: bounds[name])
    return Ceiling(bounds[bound], bound, bounds)


def standing(costs: Costs, hosts: int) -> float:
    """Return what the store does in a second for hosts that stand idle, in µs."""
    rows = hosts * (1 + SHARDS_PER_HOST)
    return hosts * costs.standing * (1 + rows / LOOK_ROWS) / (1 + costs.rows / LOOK_ROWS)


def random_share(hosts: int) -> float:
    """Return how many requests reach the wrong host where they are spread by chance."""
    return 1 - 1 / hosts


def shared(costs: Costs, share: float, generator: float) -> float:
    """Return what a request costs in all, with the generator: what bounds the rate where all of it is on one machine."""
    return costs.front + costs.shard + costs.store + share * (costs.onward + costs.gate) + generator


def table(costs: Costs, stores: Sequence[Store] = STORES, hosts: Sequence[int] = HOSTS) -> list[str]:
    """Return the lines of a table for a reader: requests/s by store and number of hosts, spread by chance and hashed by queue."""
    lines = [
        f"assumed: {CORES_PER_HOST} cores and {SHARDS_PER_HOST} shards a host; "
        + ", ".join(f"{store.kind} {_capacity(store)}" for store in stores),
        f"{'store':<10} {'hosts':>5} {'by chance/s':>12} {'bound':<6} {'hashed/s':>12} {'bound':<6}",
    ]
    for store in stores:
        for count in hosts:
            chance = ceiling(costs, store, count, random_share(count))
            hashed = ceiling(costs, store, count, min(HASHED_SHARE, random_share(count)))
            lines.append(
                f"{store.kind:<10} {count:>5} {chance.rate:>12,.0f} {chance.bound:<6} {hashed.rate:>12,.0f} {hashed.bound:<6}".rstrip()
            )
    return lines


def _capacity(store: Store) -> str:
    if store.units_per_second is None:
        return f"{store.cores:g} cores"
    return f"{store.units_per_second:,.0f} units/s at {store.units_per_request:g} a request"
