"""The harness itself, on one server without a cluster: a right one breaks no rule when it is hurt in ways that one server can be, and a wrong one is found out.

What is tried here is the network, the stores in it, the hosts, the faults and what is written down of them; `test_hosts.py` is about clusters.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.run import ClusterPlan, run, takeovers
from tests.faults.checker import Verdict
from tests.faults.evidence import Terms
from tests.faults.places import NotHere
from tests.faults.run import Result
from tests.faults.workload import Shape

TERMS = Terms(heal_seconds_max=60.0, late_seconds_max=30.0, oks_min=40)
SHAPE = Shape(mixed_queues=2, memory_queues=1, jobs_per_second=100.0, leave_share=0.3)

Go = Callable[..., Result]


@pytest.fixture
def go(tmp_path: Path) -> Go:
    """Return a function that does one run, or skips where it cannot be done."""

    def do(kind: str, **plan: object) -> Result:
        try:
            return run(ClusterPlan(alone=True, shards=2, shape=SHAPE, terms=TERMS, **plan), kind, tmp_path)  # type: ignore[arg-type]
        except NotHere as reason:
            pytest.skip(str(reason))

    return do


def test_a_server_that_is_killed_and_cut_off_breaks_no_rule(go: Go) -> None:
    """In a namespace of its own, as its store is in another; and what was lost with its memory is known, and when it was back."""
    result = go(
        "redis", seed=1, faults=("host killed and back", "store unheard", "clock set"), clock=True, operations=60, fault_seconds=1.5
    )

    assert Verdict.TRUE is result.judgement.verdict, result.judgement.text()
    assert [] == result.trouble
    assert [("host-1", 3)] == [(name, queues) for name, queues, _ in takeovers(result.history)]
    refused = next(account for account in result.accounts if account.window.fault == "store unheard")
    assert refused.persisted["429"] + refused.persisted["503"] > 0, "the store was not felt to be away"
    assert refused.memory["429"] + refused.memory["503"] == 0


def test_a_planted_fault_is_found_through_the_harness(go: Go) -> None:
    """A server that forgets one completion in five, and is killed."""
    result = go("redis", seed=2, faults=("host killed and back",), mutation="swallowed delete", operations=60, brief=True)

    assert Verdict.FALSE is result.judgement.verdict
    assert "C5" in result.judgement.broken
