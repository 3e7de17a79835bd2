"""What one shard does in a redrive into a queue of another; that the whole is whole is shown in the simulation."""

from __future__ import annotations

import pytest

from proteus_shards.core.commands import (
    Begin,
    Command,
    Conclude,
    Decide,
    Enqueue,
    Mode,
    Outcome,
    Outcomes,
    Prepare,
    Reason,
)
from proteus_shards.core.commands_control import Counted, GetJob, Jobs, PickDead, Picked, Purge, PutSchedule, Redrive
from proteus_shards.core.extras import Attempt
from proteus_shards.core.model import RECORD_BYTES_MAX
from tests.core.rig import DONE, SECOND, WALL, Bench, check_books, refused

STEP = b"\x01" * 16
KEPT = [True, False]


def ask(bench: Bench, command: Command) -> Outcome:
    """Ask, commit, and return the answer."""
    key = bench.send(command)
    while bench.shard.has_open:
        bench.commit()
    check_books(bench.shard)
    return bench.answers[key]


def bury(bench: Bench, *ids: str, persist: bool = True, payload: bytes = b"1", **options: object) -> None:
    """Have dead letters in q."""
    for job_id in ids:
        bench.enqueue(job_id, persist=persist, payload=payload, **{"ttl_us": 0, **options})  # type: ignore[arg-type]
    bench.pass_time(0.001)
    while bench.shard.has_open:
        bench.commit()


def pick(bench: Bench, **of: object) -> Picked:
    """Pick what is to be moved to another queue."""
    answer = ask(bench, PickDead("q", Redrive("q", to="elsewhere", **of)))  # type: ignore[arg-type]
    assert isinstance(answer, Picked)
    return answer


def names(picked: Picked) -> list[str]:
    """Return the ids of picked letters."""
    return [job.id for job in picked.jobs]


def test_what_is_picked_fits_into_a_step() -> None:
    """Rows of a batch, the bytes of a record, and each id once; the next pick goes on behind it."""
    bench = Bench(batch_rows_max=4)
    bury(bench, *"abcde")
    first = pick(bench)
    second = pick(bench, after=first.after)
    assert (names(first), first.more, names(second), second.more) == (["a", "b", "c"], True, ["d", "e"], False)
    assert names(pick(bench, ids=["e", "b"])) == ["b", "e"]

    bench = Bench()
    bury(bench, *"abc", payload=b"1" * 100_000)
    bury(bench, "huge", payload=b"1" * RECORD_BYTES_MAX)
    bury(bench, "a")
    first = pick(bench)
    second = pick(bench, after=first.after)
    assert (names(first), first.more, first.too_large) == (["a", "b"], True, None)
    assert (names(second), second.more, second.too_large) == (["c", "a"], False, "huge")
    assert (pick(bench, reason="failed"), bench.ask(PickDead("none", Redrive("none", to="q")))) == (Picked([], []), Picked([], []))


def test_a_letter_keeps_what_it_was_in_its_new_queue() -> None:
    """All but its place, its reason, its attempts and its ttl; what the queue has as defaults does not count."""
    bench = Bench()
    bench.enqueue("a", persist=True, state=b"2", max_retries=1, key="k", priority=3, trace="t")
    for _ in range(2):
        bench.take_durably()
        bench.pass_time(11)
        bench.commit()
    other = Bench(now=bench.now, wall=bench.wall + 60 * SECOND)
    other.set("elsewhere", ttl=1.0, max_retries=9)

    assert isinstance(ask(other, Prepare("elsewhere", STEP, "q", pick(bench).jobs, Mode.UNIQUE, free_only=True)), Outcomes)
    other = other.restart()
    assert ask(other, Conclude("elsewhere", STEP, done=True)) == DONE
    answer = ask(other, GetJob("elsewhere", "a"))

    assert isinstance(answer, Jobs)
    [job] = answer.jobs
    assert job.extras is not None
    assert (job.attempt, job.max_retries, job.state, job.created_at) == (0, 1, b"2", WALL)
    assert (job.extras.key, job.extras.priority, job.extras.trace, job.extras.expires_at) == ("k", 3, "t", None)
    assert [(each.number, each.outcome) for each in job.extras.history] == [(1, "timeout"), (2, "timeout")]
    assert isinstance(job.extras.history[0], Attempt)
    assert other.shard.counters.enqueued == 0


def test_only_what_is_free_is_promised() -> None:
    """Neither what is live, nor what another step has promised, were it only if nothing is there."""
    bench = Bench()
    bench.enqueue("live")
    ask(bench, Prepare("q", b"2" * 16, "home", [job("unique")]))
    ask(bench, Prepare("q", b"3" * 16, "home", [job("ignored")], Mode.IGNORE))
    all_of = [job(each) for each in ("live", "unique", "ignored", "free")]

    answer = ask(bench, Prepare("q", STEP, "home", all_of, Mode.UNIQUE, free_only=True))
    nothing = ask(bench, Prepare("q", b"4" * 16, "home", all_of, Mode.UNIQUE, free_only=True))

    assert isinstance(answer, Outcomes)
    assert isinstance(nothing, Outcomes)
    assert [each is None for each in answer.refusals] == [False, False, False, True]
    assert [each is None for each in nothing.refusals] == [False] * 4
    assert len(bench.store.records) == 3


def job(job_id: str) -> Enqueue:
    """Return a job to add."""
    return Enqueue("q", job_id, 10, True, 0, b"1")


@pytest.mark.parametrize("persist", KEPT)
def test_a_decision_takes_just_the_letters_that_it_names(persist: bool) -> None:
    """In one commit; and the redriven are counted."""
    bench = Bench()
    bury(bench, *"abc", persist=persist)
    ask(bench, Begin("q", STEP))

    assert ask(bench, Decide("q", STEP, [], Mode.UNIQUE, ["elsewhere"], dead=pick(bench, ids=["a", "c"]).seqs)) == DONE
    assert bench.dead_ids() == ["b"]
    assert bench.shard.counters.redriven == 2
    assert len(bench.store.records) == 1
    assert bench.restart().dead_ids() == (["b"] if persist else [])


def test_a_decision_about_a_letter_that_has_left_is_refused() -> None:
    """As is one about a step that is over, and one while the store is away; all letters stay."""
    bench = Bench()
    bury(bench, *"ab")
    decide = Decide("q", STEP, [], Mode.UNIQUE, ["elsewhere"], dead=pick(bench).seqs)
    assert refused(ask(bench, decide)).reason is Reason.BUSY
    ask(bench, Begin("q", STEP))
    ask(bench, Purge("q", ["dead"], None, ["a"]))
    assert refused(ask(bench, decide)).reason is Reason.BUSY
    ask(bench, Begin("q", STEP))
    bench.lose_store()

    assert refused(bench.ask(Decide("q", STEP, [], Mode.UNIQUE, ["elsewhere"], dead=decide.dead[1:]))).reason is Reason.BUSY
    assert bench.dead_ids() == ["b"]


def test_a_decision_whose_commit_fails_leaves_the_letters_dead() -> None:
    """In the order of their deaths."""
    bench = Bench()
    bury(bench, *"abc")
    ask(bench, Begin("q", STEP))
    bench.send(Decide("q", STEP, [], Mode.UNIQUE, ["elsewhere"], dead=pick(bench).seqs[:2]))
    bench.shard.cut()
    bench.fail()
    bench.heal()

    assert bench.dead_ids() == ["a", "b", "c"]
    assert bench.shard.counters.redriven == 0
    check_books(bench.shard)


def test_a_reserved_id_counts_as_live_for_a_redrive() -> None:
    """In its own queue and into another of its shard: the letter stays dead."""
    bench = Bench()
    bury(bench, *"ab")
    ask(bench, Prepare("q", STEP, "home", [job("a")]))
    ask(bench, Prepare("p", b"2" * 16, "home", [Enqueue("p", "b", 10, True, 0, b"1")]))

    assert ask(bench, Redrive("q", ids=["a"])) == Counted(0, more=False, after=1)
    assert ask(bench, Redrive("q", ids=["b"], to="p")) == Counted(0, more=False, after=2)
    assert bench.dead_ids() == ["a", "b"]


@pytest.mark.parametrize(("at", "fired", "missed"), [(60, 0, 1), (120, 1, 0)])
def test_a_reserved_id_counts_as_live_for_a_schedule(at: int, fired: int, missed: int) -> None:
    """Its time makes no job then, and is missed."""
    bench = Bench()
    ask(bench, PutSchedule("q", "tick", b'{"every":60,"job":{}}', job("tick")))
    ask(bench, Prepare("q", STEP, "home", [job(f"tick@{WALL // SECOND + at}")]))
    bench.pass_time(60)

    assert (bench.shard.counters.fired, bench.shard.counters.missed) == (0, 0)
    bench.commit()
    assert (bench.shard.counters.fired, bench.shard.counters.missed) == (fired, missed)


def test_a_schedule_that_may_not_overlap_waits_for_a_reserved_id() -> None:
    """That of its last job, which was completed and is about to be added again."""
    bench = Bench()
    ask(bench, PutSchedule("q", "tick", b'{"every":60,"overlap":"skip","job":{}}', job("tick")))
    bench.pass_time(60)
    bench.commit()
    ask(bench, Purge("q"))
    ask(bench, Prepare("q", STEP, "home", [job(f"tick@{WALL // SECOND + 60}")]))
    bench.pass_time(60)
    bench.commit()

    assert (bench.shard.counters.fired, bench.shard.counters.missed) == (1, 1)
