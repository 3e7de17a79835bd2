"""The arithmetic of the model of many hosts, and what is made of measurements for it."""

from __future__ import annotations

import pytest

from bench import cluster, fleet

COSTS = fleet.Costs(front=20.0, shard=10.0, store=30.0, onward=6.0, gate=4.0, standing=1000.0, rows=18)
POSTGRES = fleet.Store("postgres", 16.0)


def test_hosts_are_the_limit_while_the_store_has_room() -> None:
    """Two hosts of eight cores, half of whose requests go on to the other, at 35 µs each."""
    found = fleet.ceiling(COSTS, POSTGRES, 2, fleet.random_share(2))

    assert "hosts" == found.bound
    assert pytest.approx(2 * 8 * 1e6 / 35) == found.rate


def test_a_gate_is_one_process() -> None:
    """Where hosts have cores in plenty and all requests go on, what one process passes on is the limit."""
    found = fleet.ceiling(COSTS, fleet.Store("x", 1e6), 3, 1.0, cores=64)

    assert "gates" == found.bound
    assert pytest.approx(3 * 1e6 / 4) == found.rate


def test_nothing_goes_through_gates_where_nothing_goes_on() -> None:
    """One host has all shards."""
    assert 0 == fleet.random_share(1)
    assert "gates" not in fleet.ceiling(COSTS, POSTGRES, 1, 0.0).bounds


def test_the_store_is_one_primary_and_serves_idle_hosts_too() -> None:
    """Two hosts stand at what was measured, as they bring the rows of the measurement; more bring more for each."""
    assert pytest.approx(2000) == fleet.standing(COSTS, 2)
    assert pytest.approx(64 * 1000 * (1 + 5.76) / 1.18) == fleet.standing(COSTS, 64)

    found = fleet.ceiling(COSTS, POSTGRES, 64, fleet.random_share(64))

    assert "store" == found.bound
    assert pytest.approx((16e6 - fleet.standing(COSTS, 64)) / 30) == found.rate


def test_a_store_that_is_paid_by_units_is_limited_by_them() -> None:
    """Whatever it costs in CPU is its operator's."""
    found = fleet.ceiling(COSTS, fleet.Store("dynamodb", 0.0, 40_000.0, 2.0), 64, 0.0)

    assert ("store", 20_000) == (found.bound, found.rate)


def test_a_store_that_idle_hosts_use_up_gives_nothing() -> None:
    """And not less than nothing."""
    assert 0 == fleet.ceiling(COSTS, fleet.Store("redis", 0.1), 64, 0.0).rate


def test_a_request_that_goes_on_costs_what_the_front_and_the_gate_spend_on_it() -> None:
    """What two hosts spend on others' queues beyond what they spend on their own."""
    own = cluster.Sample(100.0, {"front": 20.0, "shard": 10.0, "store": 30.0, "node": 1.0, "generator": 10.0})
    others = cluster.Sample(90.0, {"front": 26.0, "shard": 10.0, "store": 30.0, "node": 5.0, "generator": 10.0})

    costs = cluster.costs_of(own, others, 1000.0, 18)

    assert COSTS == costs
    assert pytest.approx(70) == fleet.shared(costs, 0.0, 10.0)
    assert pytest.approx(80) == fleet.shared(costs, 1.0, 10.0)


def test_the_report_says_what_the_model_starts_from_and_how_right_it_is_here() -> None:
    """And then what it says of more hosts than there are."""
    us = {"front": 20.0, "shard": 10.0, "store": 30.0, "node": 1.0, "generator": 10.0}
    found = {
        "alone": cluster.Sample(110.0, us),
        "cluster/1": cluster.Sample(104.5, us),
        "cluster/2 own": cluster.Sample(100.0, us),
        "cluster/2 others": cluster.Sample(88.0, us | {"front": 26.0, "node": 5.0}),
    }

    lines = cluster.report("redis", found, 1000.0)

    assert any(line.startswith("cluster/1") and " 0.95 " in line for line in lines)
    assert "cluster/2 others: 0.88 × cluster/2 own; the model says 0.88" in lines
    assert ["redis", "dynamodb"] == [line.split()[0] for line in lines[-6::3]]


def test_medians_are_taken_role_by_role() -> None:
    """A role that one sample lacks counts as nothing there."""
    samples = [cluster.Sample(rate, {"front": float(rate)}) for rate in (1, 5, 3)]

    assert cluster.Sample(3, {"front": 3.0}) == cluster.medians(samples)
