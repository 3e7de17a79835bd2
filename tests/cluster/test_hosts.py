"""A cluster of real hosts under load: what a host that dies or is restarted in order takes along, and what it does not.

One short run on one store here; `python -m tests.cluster` makes them as long as one likes, with all faults and on all stores that hosts can share.
"""

from __future__ import annotations

import pytest

from tests.cluster.run import ClusterPlan, describe, failures, run, takeovers
from tests.faults.checker import Verdict
from tests.faults.evidence import Terms
from tests.faults.places import NotHere
from tests.faults.report import report
from tests.faults.run import Result
from tests.faults.workload import Shape

TERMS = Terms(heal_seconds_max=60.0, late_seconds_max=30.0, oks_min=40)
SHAPE = Shape(mixed_queues=2, memory_queues=1, jobs_per_second=60.0, runners=1, leave_share=0.3)
FAULTS = ("all restarted", "host killed")


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """Do the run."""
    plan = ClusterPlan(31, FAULTS, operations=40, fault_seconds=0.5, shape=SHAPE, terms=TERMS, shards=2, hosts=2)
    try:
        return run(plan, "redis", tmp_path_factory.mktemp("hosts"))
    except NotHere as reason:
        pytest.skip(str(reason))


def test_nothing_is_lost_doubled_or_out_of_order(result: Result) -> None:
    """While all hosts are restarted one after the other, and while one is killed and comes back once another has its shards."""
    assert Verdict.TRUE is result.judgement.verdict, report(result)
    assert [] == result.trouble


def test_every_host_that_died_had_its_shards_taken_over(result: Result) -> None:
    """As its own log and those of the others tell."""
    assert 1 == sum(1 for _ in takeovers(result.history))
    assert any("take jobs again after" in line for line in describe(result))


def test_an_orderly_restart_of_all_hosts_fails_no_request_but_with_a_refusal_that_says_when_to_try_again(result: Result) -> None:
    """Or with a connection that is closed at the very moment at which a request is sent on it, as HTTP/1.1 has it."""
    (window,) = [window for window in result.history.windows if window.fault == "all restarted"]

    assert [] == failures(result.history, window)
