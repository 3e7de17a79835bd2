"""What one shard does in a step over several; that the whole is whole is shown in the simulation."""

from __future__ import annotations

from collections.abc import Callable

from proteus_shards.core.commands import (
    AskDecision,
    Begin,
    Command,
    Conclude,
    Decide,
    Decided,
    Enqueue,
    EnqueueAll,
    Forget,
    Heartbeat,
    ListSteps,
    Mode,
    OpenStep,
    OpenSteps,
    Outcome,
    Prepare,
    Reason,
)
from proteus_shards.core.model import RECORD_BYTES_MAX, Kind
from proteus_shards.core.spans import OPEN_US_MAX
from tests.core.rig import DONE, SECOND, Bench, check_books, refused

STEP = b"\x01" * 16


def job(job_id: str, queue: str = "q", *, persist: bool = True, payload: bytes = b"1") -> Enqueue:
    """Return a job to add."""
    return Enqueue(queue, job_id, 10, persist, 0, payload)


def ask(bench: Bench, command: Command) -> Outcome:
    """Ask, commit, and return the answer."""
    key = bench.send(command)
    while bench.shard.has_open:
        bench.commit()
    check_books(bench.shard)
    return bench.answers[key]


def ids(bench: Bench, queue: str = "q") -> list[str]:
    """Return the ids of the ready jobs in order."""
    return [job.id for job in bench.shard.queues[queue].ready()] if queue in bench.shard.queues else []


def test_a_promise_is_kept_over_restarts_and_done_once() -> None:
    """Its jobs come behind those that were there before the conclusion."""
    bench = Bench()
    assert ask(bench, Prepare("q", STEP, "home", [job("a"), job("b", "r")])) == DONE
    assert (ids(bench), len(bench.store.records)) == ([], 2)
    bench = bench.restart()
    bench.enqueue("x")

    assert ask(bench, ListSteps(0)) == OpenSteps([step for step in listed(bench) if step.home == "home"])
    assert ask(bench, Conclude("q", STEP, done=True)) == DONE
    assert ask(bench, Conclude("q", STEP, done=True)) == DONE
    assert (ids(bench), ids(bench, "r")) == (["x", "a"], ["b"])
    assert bench.store.records == {}


def listed(bench: Bench) -> list[OpenStep]:
    """Return the steps under way."""
    answer = ask(bench, ListSteps(0))
    assert isinstance(answer, OpenSteps)
    assert len(answer.steps) == 1
    return answer.steps


def test_a_promise_that_is_taken_back_leaves_nothing() -> None:
    """And its ids are free again, which were reserved meanwhile."""
    bench = Bench()
    ask(bench, Prepare("q", STEP, "home", [job("a")]))

    assert refused(bench.enqueue("a")).reason is Reason.BUSY
    assert refused(ask(bench, EnqueueAll("q", [job("a")]))).reason is Reason.BUSY
    assert refused(ask(bench, Prepare("q", b"2" * 16, "home", [job("a")]))).reason is Reason.BUSY
    assert ask(bench, Conclude("q", STEP, done=False)) == DONE
    assert bench.enqueue("a") == DONE
    assert bench.store.records == {}


def test_what_stands_against_the_jobs_is_told_when_they_are_prepared() -> None:
    """Conflicts, limits, the size of the record and of the store's batches."""
    bench = Bench(queue_jobs_max=3, batch_rows_max=4)
    bench.enqueue("a")

    for jobs, mode, reason in (
        ([job("b"), job("a")], Mode.UNIQUE, Reason.EXISTS),
        ([job(each) for each in "bcd"], Mode.UNIQUE, Reason.FULL),
        ([job(str(each), str(each)) for each in range(4)], Mode.UNIQUE, Reason.INVALID),
        ([job("b"), job("c")], Mode.REPLACE, Reason.INVALID),
        ([job("b", payload=b"1" * RECORD_BYTES_MAX)], Mode.UNIQUE, Reason.INVALID),
    ):
        assert refused(ask(bench, Prepare("q", STEP, "home", jobs, mode))).reason is reason
    bench.lose_store()
    assert refused(ask(bench, Prepare("q", STEP, "home", [job("b")]))).reason is Reason.BUSY
    assert bench.store.records == {}


def test_a_promise_meets_no_limit_later() -> None:
    """The queue that was filled meanwhile takes the jobs all the same."""
    bench = Bench(queue_jobs_max=2)
    ask(bench, Prepare("q", STEP, "home", [job("a", persist=False)]))
    bench.enqueue("x")
    bench.enqueue("y")

    assert ask(bench, Conclude("q", STEP, done=True)) == DONE
    assert ids(bench) == ["x", "y", "a"]


def test_promises_that_skip_or_replace_do_so_when_they_are_concluded() -> None:
    """What is there then counts."""
    for mode, payload in ((Mode.IGNORE, b"0"), (Mode.REPLACE, b"1")):
        bench = Bench()
        ask(bench, Prepare("q", STEP, "home", [job("a"), job("b")], mode))
        bench.enqueue("a", payload=b"0", persist=True)
        [run] = bench.take_durably()

        assert ask(bench, Conclude("q", STEP, done=True)) == DONE
        assert bench.job("a").payload == payload
        assert (bench.ask(Heartbeat("q", "a", run.run_id)) == DONE) is (mode is Mode.IGNORE)


def too_old(bench: Bench) -> Bench:
    """Let a step be open for too long."""
    ask(bench, Begin("q", STEP))
    bench.pass_time(OPEN_US_MAX / SECOND)
    ask(bench, Begin("q", b"2"))
    return bench


def test_only_an_open_step_can_be_decided() -> None:
    """One that was never begun, was denied, is too old, or was begun before a restart, is given up."""
    spoilers: list[Callable[[Bench], Bench]] = [
        lambda bench: bench,
        lambda bench: (ask(bench, Begin("q", STEP)), ask(bench, AskDecision("q", STEP)), bench)[-1],
        lambda bench: (ask(bench, Begin("q", STEP)), bench.restart())[-1],
        lambda bench: (ask(bench, Begin("q", STEP)), ask(bench, Forget("q", STEP)), bench)[-1],
        too_old,
    ]
    for spoil in spoilers:
        bench = spoil(Bench())
        assert refused(ask(bench, Decide("q", STEP, [job("a")], Mode.UNIQUE, ["r"]))).reason is Reason.BUSY
        assert ask(bench, AskDecision("q", STEP)) == Decided(done=False)
        assert ids(bench) == []


def test_a_decision_is_known_until_it_is_forgotten() -> None:
    """After a restart, too."""
    bench = Bench()
    bench.enqueue("run", persist=True)
    [run] = bench.take_durably()
    ask(bench, Begin("q", STEP))

    assert ask(bench, Decide("q", STEP, [job("a")], Mode.UNIQUE, ["r"], "run", run.run_id)) == DONE
    bench = bench.restart()
    assert ids(bench) == ["a"]
    assert ask(bench, AskDecision("q", STEP)) == Decided(done=True)
    assert [key.kind for key in bench.store.records] == [Kind.DECISION]
    assert ask(bench, Forget("q", STEP)) == DONE
    assert bench.store.records == {}
    assert ask(bench, AskDecision("q", STEP)) == Decided(done=False)


def test_a_decision_under_way_is_told_to_nobody() -> None:
    """Neither to who asks, nor to who lists; where its commit fails, it never was."""
    bench = Bench()
    ask(bench, Begin("q", STEP))
    bench.send(Decide("q", STEP, [job("a")], Mode.UNIQUE, ["r"]))

    keys = [bench.send(AskDecision("q", STEP)), bench.send(ListSteps(0))]
    assert not set(keys) & set(bench.answers)
    bench.shard.cut()
    bench.heal(bench.fail(Reason.UNKNOWN))

    assert all(refused(bench.answers[key]).reason is Reason.BUSY or bench.answers[key] for key in keys)
    assert ask(bench, AskDecision("q", STEP)) == Decided(done=False)


def test_a_step_over_several_shards_works_without_a_store() -> None:
    """For as long as the shards live."""
    bench = Bench(keeps=False)
    ask(bench, Begin("q", STEP))

    assert ask(bench, Decide("q", STEP, [job("a", persist=False)], Mode.UNIQUE, ["r"])) == DONE
    assert ask(bench, AskDecision("q", STEP)) == Decided(done=True)
    assert refused(ask(bench, Prepare("q", STEP, "home", [job("b")]))).field == "jobs[0]"


def test_records_that_say_nothing_are_damaged() -> None:
    """They are named, and kept aside."""
    bench = Bench()
    ask(bench, Prepare("q", STEP, "home", [job("a")]))
    [key] = bench.store.records
    bench.store.records[key] = b"nonsense"

    assert [(where, fault) for where, fault in bench.restart().damaged_records] == [(key, "an intent cannot be read")]
