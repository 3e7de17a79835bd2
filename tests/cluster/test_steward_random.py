"""Hosts that share shards, whatever happens to them: drawn at random, in virtual time."""

from __future__ import annotations

import random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proteus_shards.cluster.model import NOBODY, Holding
from proteus_shards.cluster.spread import spread
from proteus_shards.cluster.steps import Drain, Want
from tests.cluster.clusters import Cluster, Site

SETTLE_SECONDS = 40.0


@given(
    st.lists(
        st.builds(Holding, st.just(0), st.sampled_from(["", "a", "b", "c", "x"]), wanted=st.sampled_from(["", "", "", "b", "x"])),
        max_size=40,
    ),
    st.sets(st.sampled_from(["a", "b", "c", "d"])),
)
def test_a_spread_is_even_and_moves_as_little_as_it_can(drawn: list[Holding], takers: set[str]) -> None:
    """Beside pins, shares differ by one at most, and a second spread changes nothing."""
    holdings = [Holding(shard, holding.host, wanted=holding.wanted) for shard, holding in enumerate(drawn)]
    targets = spread(holdings, takers)
    pinned = {holding.shard for holding in holdings if holding.wanted in takers}
    counts = {address: sum(target == address for target in targets.values()) for address in takers}
    free = {address: counts[address] - sum(targets[shard] == address for shard in pinned) for address in takers}
    after = [Holding(holding.shard, targets[holding.shard], wanted=holding.wanted) for holding in holdings]

    assert list(range(len(holdings))) == sorted(targets)
    assert all(counts[rich] - min(counts.values()) <= 1 for rich in takers if free[rich])
    assert spread(after, takers) == targets
    assert all(targets[shard] == holdings[shard].wanted for shard in pinned)
    if not takers:
        assert set(targets.values()) <= {NOBODY}


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32), shards=st.integers(1, 12))
def test_whatever_happens_every_shard_is_served_once_after_healing(seed: int, shards: int) -> None:
    """Lost calls, stopped hosts, hosts that are cut off, joins, deaths, restarts and leaves: then shares are even, and nothing moves."""
    chance = random.Random(seed)
    cluster = Cluster(shards)
    names = ["a:1", "b:1", "c:1", "d:1", "e:1"]
    cluster.add("a:1")

    def see() -> None:
        served = [shard for site in cluster.sites for shard in site.serves()]
        assert len(served) == len(set(served))  # the store's fence: no two can commit

    for _ in range(chance.randint(5, 25)):
        _strike(cluster, chance, names)
        cluster.run(chance.choice([0.05, 0.5, 3.0, 12.0]), chance if chance.random() < 0.5 else None, see)
    for site in cluster.sites:
        site.stopped = site.cut = False
    if not any(not (site.left or site.replaced) for site in cluster.sites):
        cluster.add("f:1")
    cluster.run(SETTLE_SECONDS)
    for site in [site for site in cluster.sites if site.left or site.replaced]:
        cluster.kill(site)
    if not cluster.sites:
        cluster.add("g:1")
    cluster.run(SETTLE_SECONDS, see=see)

    assert cluster.settled()
    hands = cluster.book.hands
    cluster.run(SETTLE_SECONDS, see=see)
    assert cluster.book.hands == hands


def _strike(cluster: Cluster, chance: random.Random, names: list[str]) -> None:
    living = [site for site in cluster.sites if not (site.left or site.replaced)]
    free = [name for name in names if name not in {site.address for site in cluster.sites}]
    site: Site | None = chance.choice(living) if living else None
    kind = chance.choice(["join", "join", "kill", "restart", "leave", "stop", "cut", "heal", "want", "drain"])
    if kind == "join" and free:
        cluster.add(chance.choice(free), boot=f"n{chance.random()}", skew=chance.uniform(-500, 500))
    elif site is None:
        return
    elif kind == "kill":
        cluster.kill(site)
    elif kind == "restart":
        cluster.kill(site)
        cluster.add(site.address, boot=f"r{chance.random()}")
    elif kind == "leave":
        site.steward.leave()
    elif kind == "stop":
        site.stopped = True
    elif kind == "cut":
        site.cut = True
    elif kind == "heal":
        for other in cluster.sites:
            other.stopped = other.cut = False
    elif kind == "want":
        cluster.book.take(Want(chance.randrange(len(cluster.book.holdings)), site.address))
    elif kind == "drain" and site.address in cluster.book.hosts:
        cluster.book.take(Drain(site.address, draining=chance.random() < 0.5))
