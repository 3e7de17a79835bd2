"""Several changes as one: all of them or none, in memory and in the store."""

from __future__ import annotations

import pytest

from proteus_shards.core.commands import Complete, Enqueue, EnqueueAll, Heartbeat, Mode, Next, Outcome, Reason, Replace, Requeue
from tests.core.rig import DONE, SECOND, WALL, Bench, check_books, refused

RUN = b"\xaa" * 16


def job(job_id: str, queue: str = "q", *, persist: bool = True, payload: bytes = b"1", run_at_us: int | None = None) -> Enqueue:
    """Return a job to add."""
    return Enqueue(queue, job_id, 10, persist, 0, payload, None, run_at_us)


def ask(bench: Bench, command: EnqueueAll | Replace | Requeue) -> Outcome:
    """Ask, commit, and return the answer."""
    key = bench.send(command)
    bench.commit()
    check_books(bench.shard)
    return bench.answers[key]


def ids(bench: Bench, queue: str = "q") -> list[str]:
    """Return the ids of the ready jobs in order."""
    return [job.id for job in bench.shard.queues[queue].ready()] if queue in bench.shard.queues else []


@pytest.mark.parametrize("persist", [False, True])
def test_jobs_of_several_queues_are_added_in_order(persist: bool) -> None:
    """With one answer, and in one batch."""
    bench = Bench()

    outcome = ask(bench, EnqueueAll("q", [job(name, queue, persist=persist) for name in "abc" for queue in ("q", "r")]))

    assert outcome == DONE
    assert ids(bench) == ids(bench, "r") == ["a", "b", "c"]
    assert [len(batch.inserts) for batch in bench.store.batches] == [6 * persist]
    assert bench.shard.counters.enqueued == 6


@pytest.mark.parametrize("persist", [False, True])
def test_one_conflict_refuses_all_and_names_the_job(persist: bool) -> None:
    """Whether the other one was there before or stands in the same step."""
    bench = Bench()
    bench.enqueue("b", persist=persist)
    bench.commit()

    for jobs, place in (("abc", 1), ("aa", 1), ("acdec", 4)):
        answer = refused(ask(bench, EnqueueAll("q", [job(name, persist=persist) for name in jobs])))

        assert (answer.reason, answer.field) == (Reason.EXISTS, f"jobs[{place}]")
        assert ids(bench) == ["b"]
        assert len(bench.store.rows) == persist


def test_conflicts_are_skipped() -> None:
    """The jobs that are there stay as they are, in flight or not."""
    bench = Bench()
    bench.enqueue("a", payload=b"0", persist=True)
    bench.take_durably()
    bench.enqueue("b", payload=b"0", persist=True)

    assert ask(bench, EnqueueAll("q", [job(name) for name in "abcc"], Mode.IGNORE)) == DONE
    assert ids(bench) == ["b", "c"]
    assert {bench.job(name).payload for name in "ab"} == {b"0"}


def test_conflicts_are_replaced() -> None:
    """The new job is behind all others, its predecessor's run is over, only created_at stays; of two in one step the last counts."""
    bench = Bench()
    for name in "abc":
        bench.enqueue(name, persist=True, state=b"1")
    [run] = bench.take_durably()
    born = bench.job("a").created_at
    bench.pass_time(1)

    assert ask(bench, EnqueueAll("q", [job("a", payload=b"2"), job("b"), job("a", payload=b"3")], Mode.REPLACE)) == DONE
    assert ids(bench) == ["c", "b", "a"]
    new = bench.job("a")
    assert (new.payload, new.state, new.created_at, new.run_at, new.attempt) == (b"3", None, born, WALL + SECOND, 0)
    assert refused(bench.ask(Heartbeat("q", "a", run.run_id))).reason is Reason.NOT_FOUND
    assert ids(bench.restart()) == ["c", "b", "a"]


@pytest.mark.parametrize("persist", [False, True])
def test_a_limit_that_a_later_job_meets_refuses_all(persist: bool) -> None:
    """Each is counted with those before it."""
    bench = Bench(queue_jobs_max=3)
    bench.enqueue("a", persist=persist)

    answer = refused(ask(bench, EnqueueAll("q", [job(name, persist=persist) for name in "bcd"])))

    assert (answer.reason, answer.field) == (Reason.FULL, "jobs[2]")
    assert ids(bench) == ["a"]


def test_a_failed_commit_takes_back_the_whole_step() -> None:
    """Memory-only jobs included, and those that were replaced are as they were."""
    bench = Bench()
    bench.enqueue("a", persist=True)
    [run] = bench.take_durably()
    before = bench.job("a")

    key = bench.send(EnqueueAll("q", [job("a"), job("b", "r", persist=False)], Mode.REPLACE))
    bench.shard.cut()
    bench.fail()

    assert refused(bench.answers[key]).reason is Reason.BUSY
    assert bench.job("a") is before
    assert before.run_id == run.run_id
    assert ids(bench, "r") == []
    check_books(bench.shard)


@pytest.mark.parametrize("mode", Mode)
def test_a_step_that_no_batch_can_hold_is_invalid(mode: Mode) -> None:
    """It is never split; one that just fits follows what is open in a batch of its own."""
    bench = Bench(batch_rows_max=4)
    bench.enqueue("z", persist=True)

    refusal = bench.send(EnqueueAll("q", [job(str(each)) for each in range(5)], mode))
    key = bench.send(EnqueueAll("q", [job(str(each)) for each in range(4)], mode))
    assert len(bench.commit()) == 1
    assert len(bench.commit()) == 4
    assert refused(bench.answers[refusal]).reason is Reason.INVALID
    assert bench.answers[key] == DONE
    large = Bench(batch_bytes_max=2000)
    assert refused(large.ask(EnqueueAll("q", [job("a", payload=b"1" * 2000)], mode))).reason is Reason.INVALID


def test_the_store_is_away() -> None:
    """What must be written is BUSY, what need not goes on."""
    bench = Bench()
    bench.lose_store()

    assert refused(bench.ask(EnqueueAll("q", [job("a", persist=False), job("b")]))).reason is Reason.BUSY
    assert bench.ask(EnqueueAll("q", [job("a", persist=False)])) == DONE


@pytest.mark.parametrize("persist", [False, True])
def test_replacing_needs_a_run(persist: bool) -> None:
    """Then it ends it; the state that is not given is cleared."""
    bench = Bench()
    assert refused(ask(bench, Replace("q", job("a", persist=persist)))).reason is Reason.NOT_FOUND
    bench.enqueue("a", persist=persist)
    bench.commit()
    assert refused(ask(bench, Replace("q", job("a", persist=persist)))).reason is Reason.NOT_FOUND
    [run] = bench.take_durably()
    bench.ask(Heartbeat("q", "a", None, b"7"))

    assert ask(bench, Replace("q", job("a", persist=persist, run_at_us=WALL + 5 * SECOND))) == DONE
    assert bench.job("a").state is None
    assert refused(bench.ask(Complete("q", "a", run.run_id))).reason is Reason.NOT_FOUND
    assert bench.take_durably() == []
    bench.pass_time(5)
    assert [each.id for each in bench.take_durably()] == ["a"]


@pytest.mark.parametrize("persist", [False, True])
def test_a_requeue_ends_the_run_and_adds_the_jobs(persist: bool) -> None:
    """The same id may come again."""
    bench = Bench()
    bench.enqueue("a", persist=persist)
    bench.commit()
    [run] = bench.take_durably()

    assert ask(bench, Requeue("q", "a", run.run_id, [job("a", persist=persist), job("b", "r", persist=persist)])) == DONE
    assert (ids(bench), ids(bench, "r")) == (["a"], ["b"])
    assert bench.job("a").run_id is None
    assert bench.shard.counters.completed == 1


def test_a_requeue_of_a_run_that_is_over_adds_nothing() -> None:
    """Nor does one whose jobs are refused end the run."""
    bench = Bench()
    bench.enqueue("a", persist=True)
    bench.enqueue("b", persist=True)
    bench.commit()
    [run] = bench.take_durably()

    assert refused(ask(bench, Requeue("q", "a", RUN, [job("c")]))).reason is Reason.NOT_FOUND
    assert refused(ask(bench, Requeue("q", "x", RUN, [job("c")]))).reason is Reason.NOT_FOUND
    assert refused(ask(bench, Requeue("q", "a", run.run_id, [job("c"), job("b")]))).field == "jobs[1]"
    assert ids(bench) == ["b"]
    assert bench.job("a").run_id == run.run_id
    assert ask(bench, Requeue("q", "a", run.run_id, [])) == DONE
    assert "a" not in bench.shard.queues["q"].jobs


def test_a_waiting_poll_gets_a_job_of_the_step() -> None:
    """Once the whole step is there."""
    bench = Bench()
    poll = bench.send(Next("r", 5, 10 * SECOND))

    bench.send(EnqueueAll("q", [job("a"), job("b", "r"), job("c", "r", persist=False)]))
    assert poll not in bench.answers
    bench.commit()
    bench.commit()

    assert [each.id for each in bench.jobs(poll)] == ["b", "c"]


def test_an_answer_waits_for_what_it_rests_on() -> None:
    """A conflict with a job whose commit is under way is told after it."""
    bench = Bench()
    bench.enqueue("a", "r", persist=True)

    keys = [
        bench.send(EnqueueAll("q", [job("b"), job("a", "r", persist=False)])),
        bench.send(EnqueueAll("q", [job("a", "r")], Mode.IGNORE)),
    ]

    assert not set(keys) & set(bench.answers)
    bench.commit()
    assert refused(bench.answers[keys[0]]).reason is Reason.EXISTS
    assert bench.answers[keys[1]] == DONE
