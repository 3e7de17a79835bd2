"""Ordering keys and priorities: who may run, and in which order."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proteus_shards.core.commands import Complete, Enqueue, Next, Options, Reason, Undeliver
from proteus_shards.core.commands_control import Fail, Purge, Release, SetQueue, State
from proteus_shards.core.model import Status
from tests.core.rig import DONE, SECOND, WALL, Bench, check_books


def complete(bench: Bench, job_id: str) -> None:
    """Complete a job."""
    assert bench.ask(Complete("q", job_id)) == DONE


def test_at_most_one_job_of_a_key_is_in_flight() -> None:
    """The next one comes when the one before is complete."""
    bench = Bench()
    for name in ("a1", "a2", "b1", "a3", "free"):
        bench.enqueue(name, key=name[0] if name != "free" else None)

    assert bench.take_ids() == ["a1", "b1", "free"]
    assert bench.take_ids() == []
    complete(bench, "a1")
    assert bench.take_ids() == ["a2"]
    check_books(bench.shard)


def test_a_key_is_free_when_its_job_is_dead() -> None:
    """A job without retries left holds up nobody."""
    bench = Bench()
    bench.enqueue("a1", key="k", timeout=1)
    bench.enqueue("a2", key="k")
    bench.take()
    bench.pass_time(1)

    assert bench.dead_ids() == ["a1"]
    assert bench.take_ids() == ["a2"]


def test_a_poll_is_served_when_a_key_is_free() -> None:
    """By a completion, a death or a release."""
    bench = Bench()
    for name in ("1", "2", "3"):
        bench.enqueue(name, key="k")
    bench.take()
    first = bench.send(Next("q", 1, 60 * SECOND))
    complete(bench, "1")
    assert [job.id for job in bench.jobs(first)] == ["2"]
    second = bench.send(Next("q", 1, 60 * SECOND))
    bench.ask(Fail("q", "2"))
    assert [job.id for job in bench.jobs(second)] == ["3"]
    third = bench.send(Next("q", 1, 60 * SECOND))
    bench.ask(Release("q", "3"))
    assert [job.id for job in bench.jobs(third)] == ["3"]


@pytest.mark.parametrize(("on_retry", "order"), [("hold", []), ("skip", ["2"])])
def test_whether_a_job_that_backs_off_holds_its_key_is_a_setting(on_retry: str, order: list[str]) -> None:
    """With hold nothing passes it, with skip it returns to its place in its time."""
    bench = Bench()
    bench.set(on_retry=on_retry)
    for name in ("1", "2", "3"):
        bench.enqueue(name, key="k", max_retries=5)
    bench.take()
    bench.ask(Fail("q", "1", delay_us=10 * SECOND))

    assert bench.take_ids() == order
    for name in order:
        complete(bench, name)
    bench.pass_time(10)
    assert bench.take_ids() == ["1"]


@pytest.mark.parametrize(("delayed_head", "order"), [("pass", ["2"]), ("hold", [])])
def test_whether_a_scheduled_job_holds_up_later_ones_is_a_setting(delayed_head: str, order: list[str]) -> None:
    """With hold the order of acceptance counts."""
    bench = Bench()
    bench.set(delayed_head=delayed_head)
    bench.enqueue("1", key="k", run_at_us=WALL + 10 * SECOND)
    bench.enqueue("2", key="k")
    bench.enqueue("other", key="l")

    assert bench.take_ids() == [*order, "other"]
    for name in order:
        complete(bench, name)
    bench.pass_time(10)
    assert bench.take_ids() == ["1"]


def test_other_rules_count_at_once() -> None:
    """To change a setting files the waiting jobs anew."""
    bench = Bench()
    bench.enqueue("1", key="k", run_at_us=WALL + 10 * SECOND)
    bench.enqueue("2", key="k")
    bench.set(delayed_head="hold")
    assert bench.take_ids() == []
    bench.set(delayed_head="pass")
    assert bench.take_ids() == ["2"]
    check_books(bench.shard)


def test_a_failed_commit_leaves_no_key_held() -> None:
    """What was undone never held it."""
    bench = Bench()
    bench.enqueue("1", key="k", persist=True)
    bench.enqueue("2", key="k", persist=True)
    bench.commit()
    bench.send(Next("q"))
    bench.lose_store()
    bench.heal()

    assert [job.id for job in bench.take_durably()] == ["1"]
    assert bench.take_durably() == []
    check_books(bench.shard)


@pytest.mark.parametrize("reason", [Reason.BUSY, Reason.UNKNOWN])
def test_a_completion_that_was_undone_holds_its_key_again(reason: Reason) -> None:
    """Also where a memory-only job had got the key meanwhile."""
    bench = Bench()
    bench.enqueue("1", key="k", persist=True)
    bench.enqueue("2", key="k")
    bench.commit()
    bench.take_durably()
    bench.send(Complete("q", "1"))
    bench.send(Next("q"))
    bench.shard.cut()
    bench.heal(bench.fail(reason))

    assert (bench.job("1").status, bench.job("2").status) == (Status.IN_FLIGHT, Status.READY)
    assert bench.take_ids() == []
    check_books(bench.shard)


def test_keys_and_places_survive_a_restart() -> None:
    """The job in flight holds its key, and one that backs off, too."""
    bench = Bench()
    for name in ("a1", "a2", "b1", "b2"):
        bench.enqueue(name, key=name[0], persist=True, max_retries=3, priority=1 if name[0] == "b" else 0)
    bench.commit()
    assert [job.id for job in bench.take_durably(10)] == ["b1", "a1"]
    bench.send(Fail("q", "b1", error="why", delay_us=10 * SECOND))
    bench.commit()

    after = bench.restart()
    assert after.take_durably() == []
    after.send(Complete("q", "a1"))
    after.commit()
    assert [job.id for job in after.take_durably(10)] == ["a2"]
    after.send(Complete("q", "a2"))
    after.commit()
    after.pass_time(10)
    [job] = after.take_durably(10)
    assert (job.id, job.attempt) == ("b1", 2)
    assert job.extras is not None
    assert [attempt.error for attempt in job.extras.history] == ["why"]


def test_a_blocked_job_says_which_one_is_in_its_way() -> None:
    """And a delayed one until when."""
    bench = Bench()
    bench.enqueue("1", key="k", max_retries=1)
    bench.enqueue("2", key="k")
    bench.take()
    queue, second = bench.shard.queues["q"], bench.job("2")
    assert bench.shard.state_of(second) is State.BLOCKED
    assert bench.shard.explain(queue, second) == (["key"], "1", None)

    bench.ask(Fail("q", "1", delay_us=5 * SECOND))

    assert bench.shard.explain(queue, second) == (["key"], "1", bench.wall + 5 * SECOND)
    assert bench.shard.state_of(bench.job("1")) is State.BACKING_OFF
    assert bench.shard.explain(queue, bench.job("1")) == (["backing_off"], None, bench.wall + 5 * SECOND)


def test_a_hundred_thousand_blocked_jobs_are_in_no_line() -> None:
    """A fetch meets as many entries as there are keys."""
    bench = Bench()
    for number in range(100_000):
        bench.enqueue(f"{number}", key="k")
    bench.enqueue("free")

    queue = bench.shard.queues["q"]
    assert (queue.blocked, len(queue._fresh)) == (99_999, 2)
    assert bench.take_ids() == ["0", "free"]
    complete(bench, "0")
    assert bench.take_ids() == ["1"]


# --- priorities ----------------------------------------------------------------------------------------------------------


def test_higher_priorities_come_first_and_each_is_first_in_first_out() -> None:
    """Below 0 is behind all that have none."""
    bench = Bench()
    for name, priority in (("z", -1), ("a", 0), ("m", 5), ("b", 0), ("n", 5), ("top", 9), ("y", -1)):
        bench.enqueue(name, priority=priority)

    assert bench.take_ids() == ["top", "m", "n", "a", "b", "z", "y"]


def test_a_priority_never_reorders_inside_a_key() -> None:
    """A job waits for those before it in its key, whatever their priorities; once it is next, its own counts between keys."""
    bench = Bench()
    bench.enqueue("low", key="k", priority=-1)
    bench.enqueue("high", key="k", priority=9)
    bench.enqueue("plain")

    assert bench.take_ids(1) == ["plain"]
    assert bench.take_ids(1) == ["low"]
    bench.enqueue("later", priority=5)
    complete(bench, "low")
    assert bench.take_ids() == ["high", "later"]


def test_a_job_that_comes_back_takes_its_place_among_its_priority() -> None:
    """In front of those behind it, and behind higher ones."""
    bench = Bench()
    bench.enqueue("1", priority=1)
    bench.enqueue("2", priority=1)
    [first] = bench.take()
    bench.enqueue("high", priority=2)
    bench.ask(Undeliver("q", "1", first.run_id))

    assert bench.take_ids() == ["high", "1", "2"]


def test_completed_jobs_with_priorities_and_keys_are_swept_out() -> None:
    """Every structure follows the jobs that there are."""
    bench = Bench()
    bench.enqueue("head", priority=9)
    for number in range(10_000):
        bench.enqueue(f"{number}", priority=1 + number % 3, key=f"{number % 7}" if number % 2 else None)
        bench.shard.apply(None, Complete("q", f"{number}"))

    queue = bench.shard.queues["q"]
    assert len(queue._above) + len(queue._fresh) + len(queue._returned) <= 150
    assert queue._keys is not None
    assert not queue._keys.lanes


# --- properties ----------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["take", "complete", "fail", "release"]), st.integers(0, 9)), max_size=60), st.booleans())
def test_each_key_runs_alone_in_order_and_none_starves(steps: list[tuple[str, int]], hold: bool) -> None:
    """With hold, first completions of a key are in the order of acceptance; at the end everything has run."""
    bench = Bench()
    bench.set(on_retry="hold" if hold else "skip")
    for number in range(24):
        bench.enqueue(f"{number:02}", key="abc"[number % 3], max_retries=-1, priority=number % 2)
    running: dict[str, str] = {}
    done: list[str] = []

    def step(kind: str, number: int) -> None:
        if kind == "take":
            for job in bench.take(number % 3 + 1):
                assert job.extras is not None
                assert job.extras.key not in set(running.values())
                running[job.id] = job.extras.key or ""
        elif running:
            name = sorted(running)[number % len(running)]
            del running[name]
            if kind == "complete":
                complete(bench, name)
                done.append(name)
            elif kind == "fail":
                bench.ask(Fail("q", name, delay_us=(number % 2) * SECOND))
            else:
                bench.ask(Release("q", name, delay_us=(number % 2) * SECOND))
        check_books(bench.shard)

    for kind, number in steps:
        step(kind, number)
        bench.pass_time(0.1)
    for _ in range(100):
        bench.pass_time(1)
        step("take", 2)
        while running:
            step("complete", 0)

    assert sorted(done) == [f"{number:02}" for number in range(24)]
    if hold:
        for key in range(3):
            of_key = [name for name in done if int(name) % 3 == key]
            assert all(first < second for first, second in pairwise(of_key))


@pytest.mark.parametrize("on_retry", ["hold", "skip"])
@pytest.mark.parametrize("way", ["complete", "purge", "lapse", "come back"])
def test_jobs_of_a_key_that_are_gone_take_no_memory(on_retry: str, way: str) -> None:
    """However many are taken away behind an older one of their key, the lane forgets them, and may hold them again."""
    bench = Bench()
    bench.set(on_retry=on_retry)
    bench.enqueue("first", key="k")
    bench.enqueue("second", key="k")
    for number in range(500):
        bench.enqueue(f"{number}", key="k", ttl_us=0 if way == "lapse" else None)
        if way == "complete":
            complete(bench, f"{number}")
        elif way == "purge":
            bench.ask(Purge("q", ids=[f"{number}"]))
        elif way == "come back":
            assert bench.take_ids(1) == ["first"]
            bench.ask(Release("q", "first", delay_us=0))
            complete(bench, f"{number}")
        else:
            bench.pass_time(0.001)
        if number % 50 == 0:
            check_books(bench.shard)

    check_books(bench.shard)
    bench.enqueue("third", key="k")
    for name in ("first", "second", "third"):
        assert bench.take_ids() == [name]
        complete(bench, name)
    check_books(bench.shard)


@pytest.mark.parametrize("churn", [0, 200])
def test_a_job_that_is_back_after_a_failed_commit_is_in_its_lane_again(churn: int) -> None:
    """Whatever was thrown away meanwhile: its entry in a sweep, or all lanes by a change of the settings."""
    bench = Bench()
    bench.enqueue("first", key="k")
    bench.enqueue("back", key="k", persist=True)
    bench.commit()
    bench.send(Complete("q", "back"))
    bench.send(SetQueue("q", b'{"delayed_head":"hold"}'))
    for number in range(churn):
        bench.send(Enqueue("q", f"{number}", 10, False, 0, b"1", options=Options(key="k")))
        bench.send(Complete("q", f"{number}"))
    bench.shard.cut()
    bench.fail()
    bench.heal()

    check_books(bench.shard)
    assert bench.take_ids() == ["first"]
    complete(bench, "first")
    assert [job.id for job in bench.take_durably()] == ["back"]
