"""Each rule finds what it is for, and nothing else does; what may happen breaks none."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from tests.faults.checker import RULES, Verdict
from tests.faults.evidence import Terms
from tests.faults.history import SECOND, Death
from tests.faults.stories import TERMS, Story

RIGHT: dict[str, Callable[[], Story]] = {
    "a job from its enqueue to its completion": lambda: Story().enqueue("a", 0, 1).done("a", 2),
    "a delivery that overlaps its own enqueue": lambda: Story().enqueue("a", 0, 5).next(1, 2, "a").complete("a/1", 3, 4),
    "an enqueue of unknown outcome that never happened": lambda: Story().enqueue("a", 0, 1, None),
    "one that did": lambda: Story().enqueue("a", 0, 1, 503).done("a", 2),
    "a refused one": lambda: Story().enqueue("a", 0, 1, 429),
    "a silent runner": lambda: Story().enqueue("a", 0, 1).next(2, 3, "a").next(12, 13, "a", attempt=2).complete("a/2", 14, 15),
    "a delivery as early as can be, given what its client saw": lambda: (
        Story().enqueue("a", 0, 1).next(2, 11, "a").next(11.5, 12, "a", attempt=2).complete("a/2", 14, 15)
    ),
    "a heartbeat puts the timeout off": lambda: (
        Story().enqueue("a", 0, 1).next(2, 3, "a").beat("a/1", 8, 9).next(12, 18, "a", attempt=2).complete("a/2", 19, 20)
    ),
    "a completion of unknown outcome": lambda: Story().enqueue("a", 0, 1).next(2, 3, "a").complete("a/1", 4, 5, None),
    "one that did not happen": lambda: (
        Story().enqueue("a", 0, 1).next(2, 3, "a").complete("a/1", 4, 5, None).next(12, 13, "a", attempt=2).complete("a/2", 14, 15)
    ),
    "retries used up": lambda: (
        Story().enqueue("a", 0, 1, max_retries=1).next(2, 3, "a").next(12, 13, "a", attempt=2).next(30, 31).dead("a", 2)
    ),
    "an attempt that no client saw": lambda: (
        Story().enqueue("a", 0, 1).next(2, 3, status=None).next(13, 14, "a", attempt=2).complete("a/2", 15, 16)
    ),
    "a dead letter whose only delivery was lost": lambda: Story().enqueue("a", 0, 1, max_retries=0).next(2, 3, status=503).dead("a", 1),
    "a late runner is told 404": lambda: (
        Story()
        .enqueue("a", 0, 1)
        .next(2, 3, "a")
        .next(12, 13, "a", attempt=2)
        .complete("a/1", 14, 15, 404)
        .beat("a/1", 15, 16, 404)
        .complete("a/2", 17, 18)
    ),
    "an id is used again after its completion": lambda: (
        Story().enqueue("a", 0, 1, job_id="x").done("a", 2).enqueue("b", 5, 6, job_id="x").done("b", 7)
    ),
    "an id is used again while its completion is under way": lambda: (
        Story()
        .enqueue("a", 0, 1, job_id="x")
        .next(2, 3, "a")
        .complete("a/1", 4, 9)
        .enqueue("b", 5, 6, job_id="x")
        .next(7, 8, "b")
        .complete("b/1", 10, 11)
    ),
    "an id is used again after a death": lambda: (
        Story().enqueue("a", 0, 1, job_id="x", max_retries=0).next(2, 3, "a").enqueue("b", 20, 21, job_id="x").done("b", 22).dead("a", 1)
    ),
    "409 while a job is there": lambda: (
        Story().enqueue("a", 0, 1, job_id="x").enqueue("b", 2, 3, 409, job_id="x").next(4, 5, "a").complete("a/1", 6, 7)
    ),
    "409 after an enqueue of unknown outcome": lambda: (
        Story().enqueue("a", 0, 1, None, job_id="x").enqueue("b", 2, 3, 409, job_id="x").next(4, 5, "a").complete("a/1", 6, 7)
    ),
    "a completion without a run_id, of a job that waits": lambda: Story().enqueue("a", 0, 1).complete("", 2, 3, job_id="a"),
    "one that hits the next job of that id": lambda: (
        Story()
        .enqueue("a", 0, 1, job_id="x")
        .next(2, 3, "a")
        .complete("a/1", 4, 5)
        .enqueue("b", 6, 7, job_id="x")
        .complete("", 8, 9, job_id="x")
    ),
    "the newest state": lambda: (
        Story()
        .enqueue("a", 0, 1)
        .next(2, 3, "a")
        .beat("a/1", 3, 4, state="1")
        .beat("a/1", 5, 6, state="2")
        .next(15, 16, "a", attempt=2, state="2")
        .complete("a/2", 17, 18)
    ),
    "a state of unknown outcome, taken or not": lambda: (
        Story()
        .enqueue("a", 0, 1)
        .next(2, 3, "a")
        .beat("a/1", 3, 4, state="1")
        .beat("a/1", 5, 6, None, state="2")
        .next(16, 17, "a", attempt=2, state="1")
        .next(27, 28, "a", attempt=3, state="2")
        .complete("a/3", 29, 30)
    ),
    "two enqueues at once, in either order": lambda: Story().enqueue("a", 0, 2).enqueue("b", 1, 3).done("b", 4).done("a", 5),
    "two deliveries at once": lambda: (
        Story().enqueue("a", 0, 1).enqueue("b", 2, 3).next(4, 7, "a").next(5, 6, "b").complete("a/1", 8, 9).complete("b/1", 8, 9)
    ),
    "a later one first, while a lost answer may have held the earlier": lambda: (
        Story().enqueue("a", 0, 1).enqueue("b", 2, 3).next(3.5, 4, status=None).done("b", 5).done("a", 7)
    ),
    "memory goes with its shard": lambda: Story().enqueue("a", 0, 1, persist=False).death(2),
    "a wait after a restart, in full": lambda: (
        Story().enqueue("a", 0, 1).next(2, 3, "a").fault(5, 8).next(14, 15).next(16, 19, "a", attempt=2).complete("a/2", 20, 21)
    ),
    "epochs that grow": lambda: Story().enqueue("a", 0, 1).done("a", 2).epochs(1, 2, 7),
    "a store that has grown with its jobs": lambda: Story().enqueue("a", 0, 1).done("a", 2).audit(bytes=5 << 20, bytes_before=1 << 20),
    "an empty store": lambda: Story().enqueue("a", 0, 1).done("a", 2).audit(live_rows=0, dead_rows=4),
    "healed in time": lambda: (
        Story().enqueue("a", 0, 1).done("a", 2).fault(5, 8).enqueue("b", 8.5, 9, None).enqueue("c", 10, 11).done("c", 12)
    ),
}

WRONG: dict[str, tuple[set[str], Callable[[], Story]]] = {
    "acknowledged, never delivered": ({"C1"}, lambda: Story().enqueue("a", 0, 1)),
    "delivered and forgotten": ({"C1"}, lambda: Story().enqueue("a", 0, 1).next(2, 3, "a")),
    "memory lost, and no shard ended": ({"C1"}, lambda: Story().enqueue("a", 0, 1, persist=False)),
    "memory lost, the shard had ended before": ({"C1"}, lambda: Story().death(1).enqueue("a", 2, 3, persist=False)),
    "persisted, and lost with its shard": ({"C1"}, lambda: Story().enqueue("a", 0, 1).death(2)),
    "completed, but the answer was 429": ({"C1"}, lambda: Story().enqueue("a", 0, 1).next(2, 3, "a").complete("a/1", 4, 5, 429)),
    "invented": ({"C2"}, lambda: Story().next(0, 1, "ghost")),
    "refused and delivered": ({"C2"}, lambda: Story().enqueue("a", 0, 1, 422).next(2, 3, "a")),
    "another payload": ({"C2"}, lambda: Story().enqueue("a", 0, 1).next(2, 3, "a", payload_sha="other").complete("a/1", 4, 5)),
    "another timeout": ({"C2"}, lambda: Story().enqueue("a", 0, 1).next(2, 3, "a", timeout=3).complete("a/1", 4, 5)),
    "too many deliveries": (
        {"C3"},
        lambda: Story().enqueue("a", 0, 1, max_retries=0).next(2, 3, "a").next(12, 13, "a", attempt=2).complete("a/2", 14, 15),
    ),
    "one attempt twice": (
        {"C3"},
        lambda: Story().enqueue("a", 0, 1).next(2, 3, "a").next(12, 13, "a", run="other").complete("other", 14, 15),
    ),
    "one run_id twice": (
        {"C3"},
        lambda: Story().enqueue("a", 0, 1).next(2, 3, "a").next(12, 13, "a", attempt=2, run="a/1").complete("", 14, 15, job_id="a"),
    ),
    "a retry that nobody spent": ({"C3"}, lambda: Story().enqueue("a", 0, 1).next(2, 3, "a", attempt=2).complete("a/2", 4, 5)),
    "two retries spent, one answer lost": (
        {"C3"},
        lambda: Story().enqueue("a", 0, 1).next(2, 3, status=None).next(30, 31, "a", attempt=3).complete("a/3", 32, 33),
    ),
    "attempts in the wrong order": (
        {"C3", "C4"},
        lambda: Story().enqueue("a", 0, 1).next(2, 3, "a", attempt=2).next(20, 21, "a", attempt=1).complete("", 22, 23, job_id="a"),
    ),
    "too early": ({"C4"}, lambda: Story().enqueue("a", 0, 1).next(2, 3, "a").next(10, 11.9, "a", attempt=2).complete("a/2", 14, 15)),
    "too early after a heartbeat": (
        {"C4"},
        lambda: Story().enqueue("a", 0, 1).next(2, 3, "a").beat("a/1", 8, 9).next(13, 17, "a", attempt=2).complete("a/2", 18, 19),
    ),
    "overdue, and the queue said that it was empty": (
        {"C4"},
        lambda: Story().enqueue("a", 0, 1).next(2, 3, "a").next(30, 31).next(40, 41, "a", attempt=2).complete("a/2", 42, 43),
    ),
    "overdue, and passed by a younger one": (
        {"C4"},
        lambda: (
            Story().enqueue("a", 0, 1).next(2, 3, "a").enqueue("b", 4, 5).done("b", 30).next(40, 41, "a", attempt=2).complete("a/2", 42, 43)
        ),
    ),
    "back after its completion": (
        {"C5"},
        lambda: Story().enqueue("a", 0, 1).next(2, 3, "a").complete("a/1", 4, 5).next(20, 21, "a", attempt=2),
    ),
    "back after a completion that named no run": (
        {"C5"},
        lambda: Story().enqueue("a", 0, 1).next(2, 3, "a").complete("", 4, 5, job_id="a").next(20, 21, "a", attempt=2),
    ),
    "an old run completes": (
        {"C6"},
        lambda: Story().enqueue("a", 0, 1).next(2, 3, "a").next(12, 13, "a", attempt=2).complete("a/1", 14, 15),
    ),
    "an old run is heard of": (
        {"C6"},
        lambda: Story().enqueue("a", 0, 1).next(2, 3, "a").next(12, 13, "a", attempt=2).beat("a/1", 14, 15).complete("a/2", 16, 17),
    ),
    "completed twice": (
        {"C6"},
        lambda: Story().enqueue("a", 0, 1).next(2, 3, "a").complete("a/1", 4, 5).complete("a/1", 6, 7),
    ),
    "a completion of nothing": ({"C6"}, lambda: Story().complete("", 0, 1, job_id="a")),
    "a completion of what is gone": ({"C6"}, lambda: Story().enqueue("a", 0, 1).done("a", 2).complete("", 4, 5, job_id="a")),
    "a run that never was": ({"C6"}, lambda: Story().complete("a/9", 0, 1)),
    "two of one id": (
        {"C7"},
        lambda: (
            Story()
            .enqueue("a", 0, 1, job_id="x")
            .enqueue("b", 2, 3, job_id="x")
            .next(4, 5, "a")
            .next(4, 5, "b")
            .complete("a/1", 6, 7)
            .complete("b/1", 6, 7)
        ),
    ),
    "two of one id, one of them of unknown outcome": (
        {"C7"},
        lambda: (
            Story()
            .enqueue("a", 0, 1, None, job_id="x")
            .next(2, 3, "a")
            .enqueue("b", 4, 5, job_id="x")
            .next(6, 7, "b")
            .beat("a/1", 8, 9)
            .complete("a/1", 10, 11)
            .complete("b/1", 10, 11)
        ),
    ),
    "409 for nothing": ({"C7"}, lambda: Story().enqueue("a", 0, 1, 409)),
    "409 for what is gone": (
        {"C7"},
        lambda: Story().enqueue("a", 0, 1, job_id="x").done("a", 2).enqueue("b", 5, 6, 409, job_id="x"),
    ),
    "409 for what was refused": (
        {"C7"},
        lambda: Story().enqueue("a", 0, 1, 429, job_id="x").enqueue("b", 5, 6, 409, job_id="x"),
    ),
    "404 for a run in flight": (
        {"C7"},
        lambda: Story().enqueue("a", 0, 1).next(2, 3, "a").beat("a/1", 4, 5, 404).next(12, 13, "a", attempt=2).complete("a/2", 14, 15),
    ),
    "an old state": (
        {"C8"},
        lambda: (
            Story()
            .enqueue("a", 0, 1)
            .next(2, 3, "a")
            .beat("a/1", 3, 4, state="1")
            .beat("a/1", 5, 6, state="2")
            .next(15, 16, "a", attempt=2, state="1")
            .complete("a/2", 17, 18)
        ),
    ),
    "no state": (
        {"C8"},
        lambda: Story().enqueue("a", 0, 1, state="0").next(2, 3, "a", state="null").complete("a/1", 4, 5),
    ),
    "a state that was refused": (
        {"C8"},
        lambda: (
            Story()
            .enqueue("a", 0, 1)
            .next(2, 3, "a")
            .beat("a/1", 3, 4, 429, state="1")
            .next(15, 16, "a", attempt=2, state="1")
            .complete("a/2", 17, 18)
        ),
    ),
    "out of order": ({"C9"}, lambda: Story().enqueue("a", 0, 1).enqueue("b", 2, 3).done("b", 4).done("a", 5)),
    "out of order in one answer": (
        {"C9"},
        lambda: Story().enqueue("a", 0, 1).enqueue("b", 2, 3).next(4, 5, "b", "a").complete("a/1", 6, 7).complete("b/1", 6, 7),
    ),
    "out of order, long after an answer was lost": (
        {"C9"},
        lambda: Story().enqueue("a", 0, 1).enqueue("b", 2, 3).next(3.5, 4, status=None).done("b", 50).done("a", 51),
    ),
    "429 without Retry-After": ({"C10"}, lambda: Story().enqueue("a", 0, 1, 429).retry_after(None)),
    "503 with Retry-After 0": ({"C10"}, lambda: Story().next(0, 1, status=503).retry_after(0)),
    "429 and delivered": ({"C2", "C10"}, lambda: Story().enqueue("a", 0, 1, 429).next(2, 3, "a")),
    "429 and dead": ({"C10"}, lambda: Story().enqueue("a", 0, 1, 429).next(2, 3, status=None).dead("a", 1)),
    "rows are left": ({"C11"}, lambda: Story().audit(live_rows=1)),
    "the store has grown far beyond its jobs": (
        {"C11"},
        lambda: Story().enqueue("a", 0, 1).done("a", 2).audit(bytes=8 << 20, bytes_before=1 << 20),
    ),
    "the store is damaged": ({"C11"}, lambda: Story().audit(faults=1)),
    "not healed in time": (
        {"C12"},
        lambda: Story().enqueue("a", 0, 1).done("a", 2).fault(5, 8).enqueue("b", 9, 10, 429).enqueue("c", 20, 21).done("c", 22),
    ),
    "an epoch again": ({"C13"}, lambda: Story().epochs(1, 2, 2)),
    "a process ended by itself": ({"C13"}, lambda: Story().death(1, by_itself=True)),
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_may_happen_breaks_no_rule(name: str) -> None:
    """A checker that cries wolf is soon ignored."""
    judgement = RIGHT[name]().judgement()

    assert set() == judgement.broken, judgement.text()


@pytest.mark.parametrize("name", WRONG)
def test_what_must_not_happen_breaks_its_rule_alone(name: str) -> None:
    """Each of these is wrong in one way, and is found in that way."""
    rules, story = WRONG[name]

    judgement = story().judgement()

    assert rules == judgement.broken, judgement.text()
    assert Verdict.FALSE is judgement.verdict


def test_each_rule_has_a_history_that_breaks_it() -> None:
    """A rule that nothing breaks checks nothing."""
    assert set(RULES) == {rule for rules, _ in WRONG.values() for rule in rules}


def test_a_broken_rule_has_a_witness() -> None:
    """The report names the job and its operations."""
    judgement = Story().enqueue("a", 0, 1).judgement()

    (witness,) = judgement.findings["C1"].witnesses
    assert "acknowledged and never delivered" in witness.what
    assert "a" == witness.where["uid"]
    assert "C1 broken: acknowledged and never delivered" in judgement.text()


@pytest.mark.parametrize(("took", "broken"), [(0.019, set()), (0.021, {"C12"})])
def test_shards_beside_one_that_is_replaced_are_not_much_slower(took: float, broken: set[str]) -> None:
    """If that is asked for: their 99th percentile is held against that of times without a fault."""
    story = Story().fault(100, 110)
    story.history.deaths.append(Death(int(101 * SECOND), frozenset({"another queue"}), False))
    for number in range(300):
        story.next(number / 10, number / 10 + 0.01)
        story.next(101 + number / 100, 101 + number / 100 + took)

    assert broken == story.judgement(msgspec.structs.replace(TERMS, beside_factor_max=2.0)).broken
    assert set() == story.judgement().broken


def good() -> Story:
    """Return a history that proves something."""
    return Story().enqueue("a", 0, 1).done("a", 2).audit(live_rows=0)


def test_a_history_that_proves_something_is_true() -> None:
    """A drain, an audit, enough operations, and the faults that were planned."""
    assert Verdict.TRUE is good().judgement(Terms(drains_min=1, audits_min=1, oks_min=3)).verdict


@pytest.mark.parametrize(
    ("terms", "planned", "doubt"),
    [
        (Terms(drains_min=2, audits_min=1, oks_min=1), 0, "drain"),
        (Terms(drains_min=1, audits_min=2, oks_min=1), 0, "audit"),
        (Terms(drains_min=1, audits_min=1, oks_min=4), 0, "operations"),
        (TERMS, 1, "faults"),
    ],
)
def test_a_history_that_proves_too_little_is_unknown(terms: Terms, planned: int, doubt: str) -> None:
    """What was not tried has not been shown."""
    story = good()
    story.history.planned = planned

    judgement = story.judgement(terms)

    assert Verdict.UNKNOWN is judgement.verdict
    assert doubt in " ".join(judgement.doubts)


def test_a_fault_that_goes_on_into_the_drain_proves_nothing() -> None:
    """Everything is healed before the drain."""
    story = good().fault(1, 2)
    story.history.drained = int(1.5 * SECOND)

    assert Verdict.UNKNOWN is story.judgement().verdict


def test_an_empty_history_is_unknown() -> None:
    """Nothing happened, nothing was shown."""
    assert Verdict.UNKNOWN is Story().judgement().verdict
