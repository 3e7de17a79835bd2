"""Requests that name themselves are done once, and answered the same."""

from __future__ import annotations

from proteus_shards.core.commands import Complete, Enqueue, EnqueueOnce, Outcome, Outcomes, Reason
from tests.core.rig import SECOND, Bench, check_books, refused

DIGEST, OTHER = b"d" * 16, b"o" * 16
HOUR = 3600


def once(name: str, ids: str, *, persist: bool = True, digest: bytes = DIGEST, queue: str = "q") -> EnqueueOnce:
    """Return a request for some jobs."""
    return EnqueueOnce(queue, name, digest, [Enqueue(queue, each, 10, persist, 0, b"1") for each in ids])


def ask(bench: Bench, command: EnqueueOnce) -> Outcome:
    """Ask, commit, and return the answer."""
    key = bench.send(command)
    bench.commit()
    check_books(bench.shard)
    return bench.answers[key]


def reasons(outcome: Outcome) -> list[int | None]:
    """Return why each job was refused, None for one that was accepted."""
    assert isinstance(outcome, Outcomes), outcome
    return [refusal.reason if refusal is not None else None for refusal in outcome.refusals]


def test_the_same_request_is_answered_the_same_after_a_restart_too() -> None:
    """Though its job is completed meanwhile, or there."""
    bench = Bench()
    bench.enqueue("b", persist=True)
    first = ask(bench, once("k", "abc"))
    [batch] = bench.store.batches
    bench.ask(Complete("q", "a"))
    bench.commit()
    again = bench.restart()

    assert reasons(first) == [None, Reason.EXISTS, None]
    assert ask(bench, once("k", "abc")) == first
    assert ask(again, once("k", "abc")) == first
    assert "a" not in again.shard.queues["q"].jobs
    assert (len(batch.inserts), len(batch.records)) == (3, 1)


def test_another_request_of_the_same_name_is_invalid() -> None:
    """In the same queue: another queue has names of its own."""
    bench = Bench()
    ask(bench, once("k", "a"))

    assert refused(ask(bench, once("k", "a", digest=OTHER))).reason is Reason.INVALID
    assert reasons(ask(bench, once("k", "a", digest=OTHER, queue="r"))) == [None]


def test_what_was_refused_for_now_is_tried_again() -> None:
    """And nothing else is."""
    bench = Bench(queue_jobs_max=2)

    assert reasons(ask(bench, once("k", "abc"))) == [None, None, Reason.FULL]
    bench.ask(Complete("q", "a"))
    bench.commit()
    assert reasons(ask(bench, once("k", "abc"))) == [None, None, None]
    assert sorted(bench.shard.queues["q"].jobs) == ["b", "c"]
    assert reasons(ask(bench.restart(), once("k", "abc"))) == [None, None, None]


def test_an_answer_goes_with_its_time() -> None:
    """From memory and from the store."""
    bench = Bench()
    ask(bench, once("k", "a"))
    ask(bench, once("m", "b", persist=False))
    bench.ask(Complete("q", "a"))
    bench.ask(Complete("q", "b"))
    bench.commit()
    again = bench.restart()

    for each in (bench, again):
        each.pass_time(HOUR)
        each.commit()

    assert bench.shard._kept == again.shard._kept == {}
    assert bench.store.records == {}
    assert reasons(ask(bench, once("k", "x", digest=OTHER))) == [None]


def test_many_answers_go_in_portions() -> None:
    """Each a bounded number of them."""
    bench = Bench()
    for number in range(200):
        bench.send(once(str(number), "a", persist=False, queue=str(number)))
    bench.pass_time(HOUR)
    left = len(bench.shard._kept)
    for _ in range(3):
        bench.pass_time(0)

    assert 0 < left < 200
    assert not bench.shard._kept


def test_memory_only_jobs_are_answered_from_memory() -> None:
    """Nothing is written, and what waits for the store is waited for."""
    bench = Bench()
    bench.enqueue("z", persist=True)
    key = bench.send(once("k", "a", persist=False))
    assert key not in bench.answers
    bench.fail()
    assert refused(bench.answers[key]).reason is Reason.BUSY
    bench.heal()

    assert reasons(bench.ask(once("k", "a", persist=False)) or Outcomes([])) == [None]
    assert reasons(bench.ask(once("k", "a", persist=False)) or Outcomes([])) == [None]
    assert bench.store.records == {}


def test_a_failed_commit_keeps_no_answer() -> None:
    """Neither the job nor its answer is there, and where the store had written them, both are."""
    for written in (False, True):
        bench = Bench()
        key = bench.send(once("k", "a"))
        batch = bench.shard.cut()
        if written:
            bench.store.commit(batch)
        keys = bench.fail(Reason.UNKNOWN)
        bench.heal(keys)

        assert refused(bench.answers[key]).reason is Reason.UNKNOWN
        assert bool(bench.shard._kept) is written
        assert reasons(ask(bench, once("k", "a"))) == [None]
        check_books(bench.shard)


def test_the_number_of_answers_is_bounded() -> None:
    """A new name is FULL then; a known one is answered."""
    bench = Bench(idempotency_keys_max=1)
    ask(bench, once("k", "a"))

    assert refused(ask(bench, once("m", "b"))).reason is Reason.FULL
    assert reasons(ask(bench, once("k", "a"))) == [None]


def test_a_batch_that_the_store_cannot_take_is_invalid() -> None:
    """The jobs of one queue and their answer are one operation."""
    bench = Bench(batch_rows_max=3)

    assert refused(ask(bench, once("k", "abc"))).reason is Reason.INVALID
    assert reasons(ask(bench, once("k", "ab"))) == [None, None]


def test_while_the_store_is_away_nothing_is_kept_of_what_was_not_done() -> None:
    """The retry does it."""
    bench = Bench()
    bench.lose_store()
    assert reasons(bench.ask(once("k", "a")) or Outcomes([])) == [Reason.BUSY]
    bench.pass_time(SECOND / SECOND)
    bench.heal()

    assert reasons(ask(bench, once("k", "a"))) == [None]
