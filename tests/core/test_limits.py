"""Every limit of a shard: where it begins, what it says, and that it ends."""

from __future__ import annotations

import pytest

from proteus_shards.core.commands import Complete, Enqueue, Heartbeat, Next, Outcome, Reason, Undeliver
from tests.core.rig import DONE, SECOND, WALL, YEAR, Bench, check_books, refused


def says(outcome: Outcome | None, reason: Reason, setting: str, number: int | None = None, field: str | None = None) -> None:
    """Check a refusal: its reason, that it names the setting and the number, and which argument it blames."""
    refusal = refused(outcome)
    assert (refusal.reason, refusal.field) == (reason, field)
    assert setting in refusal.detail
    assert number is None or str(number) in refusal.detail


def test_queue_jobs_max() -> None:
    """A queue holds so many live jobs: scheduled, ready and in flight; the next is refused until one goes."""
    bench = Bench(queue_jobs_max=3)
    bench.enqueue("in flight", timeout=1)
    bench.take()
    bench.enqueue("ready")
    assert bench.enqueue("scheduled", run_at_us=WALL + 100 * SECOND) == DONE

    says(bench.enqueue("one more"), Reason.FULL, "queue_jobs_max", 3)
    assert bench.enqueue("elsewhere", "other") == DONE
    bench.pass_time(1)
    assert bench.dead_ids() == ["in flight"]
    assert bench.enqueue("one more") == DONE


def test_shard_jobs_max() -> None:
    """A shard holds so many live jobs over all queues."""
    bench = Bench(shard_jobs_max=2)
    bench.enqueue("1", "a")
    assert bench.enqueue("2", "b") == DONE

    says(bench.enqueue("3", "c"), Reason.FULL, "shard_jobs_max", 2)
    bench.ask(Complete("a", "1"))
    assert bench.enqueue("3", "c") == DONE


def test_shard_bytes_max() -> None:
    """Payloads and states, of dead letters too, come to so many bytes; deaths and completions are counted."""
    bench = Bench(shard_bytes_max=10)
    assert bench.enqueue("1", payload=b"12345", state=b"12345", timeout=1) == DONE

    says(bench.enqueue("2", payload=b"1"), Reason.FULL, "shard_bytes_max", 10)
    assert "of which 0 in dead letters" in refused(bench.enqueue("2", payload=b"1")).detail
    bench.take()
    bench.pass_time(1)
    says(bench.enqueue("2", payload=b"1"), Reason.FULL, "shard_bytes_max", 10)
    assert "of which 10 in dead letters" in refused(bench.enqueue("2", payload=b"1")).detail
    bench.pass_time(2 * 86_400)
    assert bench.enqueue("2", payload=b"1234567890") == DONE
    bench.ask(Complete("q", "2"))
    assert bench.shard.bytes == 0


def test_shard_bytes_max_of_a_heartbeat() -> None:
    """A state may shrink at any time, and grow while there is room; a refused one leaves the old state and timeout."""
    bench = Bench(shard_bytes_max=10)
    bench.enqueue("job", payload=b"12345", timeout=10)
    bench.take()
    assert bench.ask(Heartbeat("q", "job", None, b"12345")) == DONE
    bench.pass_time(5)

    says(bench.ask(Heartbeat("q", "job", None, b"123456")), Reason.FULL, "shard_bytes_max", 10)

    assert (bench.job("job").state, bench.job("job").deadline) == (b"12345", bench.now + 5 * SECOND)
    assert bench.ask(Heartbeat("q", "job", None, b"1")) == DONE
    assert bench.shard.bytes == 6
    check_books(bench.shard)


def test_queues_max() -> None:
    """A shard holds so many queues; one that empties makes room."""
    bench = Bench(queues_max=2)
    bench.enqueue("1", "a")
    bench.send(Next("b", 1, SECOND))

    says(bench.enqueue("1", "c"), Reason.FULL, "queues_max", 2)
    says(bench.ask(Next("c", 1, SECOND)), Reason.FULL, "queues_max", 2)
    assert bench.enqueue("2", "a") == DONE
    bench.pass_time(1)
    assert bench.enqueue("1", "c") == DONE


def test_polls_max() -> None:
    """So many polls wait at a shard; one that does not wait is no poll."""
    bench = Bench(polls_max=2)
    bench.send(Next("a", 1, SECOND))
    bench.send(Next("b", 1, SECOND))

    says(bench.ask(Next("c", 1, SECOND)), Reason.FULL, "polls_max", 2)
    assert bench.take_ids(queue="c") == []
    bench.pass_time(1)
    bench.send(Next("c", 1, SECOND))
    assert bench.shard.polls == 1


def test_shard_pending_max() -> None:
    """So many operations wait for the store; beyond that everything is refused, at once and without effect."""
    bench = Bench(shard_pending_max=2)
    bench.enqueue("1", persist=True)
    bench.enqueue("2", persist=True)

    for command in (
        Enqueue("q", "3", 1, persist=True, max_retries=0, payload=b"1"),
        Enqueue("other", "3", 1, persist=False, max_retries=0, payload=b"1"),
        Next("q"),
        Complete("q", "1"),
    ):
        says(bench.ask(command), Reason.BUSY, "shard_pending_max")
    bench.commit()
    assert sorted(bench.shard.queues["q"].jobs) == ["1", "2"]
    assert bench.enqueue("3", "other") == DONE


def test_to_give_back_is_never_too_much() -> None:
    """A run that nobody saw goes back even beyond shard_pending_max: refused, it would wait out its timeout."""
    bench = Bench(shard_pending_max=2)
    bench.enqueue("seen by nobody")
    (run,) = bench.take()
    bench.enqueue("1", persist=True)
    bench.enqueue("2", persist=True)

    says(bench.ask(Next("q")), Reason.BUSY, "shard_pending_max")
    bench.ask(Undeliver("q", "seen by nobody", run.run_id))
    bench.commit()
    assert [(run.id, run.attempt) for run in bench.take()] == [("seen by nobody", 1)]


def test_without_a_store_persisted_jobs_are_refused_for_good() -> None:
    """It is no matter of trying again."""
    bench = Bench(keeps=False)

    says(bench.enqueue("job", persist=True), Reason.INVALID, "persist_data", field="persist_data")
    assert bench.enqueue("job") == DONE


@pytest.mark.parametrize("name", ["abc", "äöü"])
def test_row_bytes_max(name: str) -> None:
    """Names, payload and state of a persisted job together, in bytes; memory jobs are not limited by the store."""
    names = 1 + len(name.encode())
    bench = Bench(row_bytes_max=names + 10)

    says(bench.enqueue(name, payload=b"12345", state=b"123456", persist=True), Reason.INVALID, str(names + 10), field="payload")
    assert bench.enqueue(name, payload=b"12345678901") == DONE
    bench.ask(Complete("q", name))
    bench.enqueue(name, payload=b"12345", state=b"12345", persist=True)
    bench.commit()
    bench.take_durably()
    says(bench.ask(Heartbeat("q", name, None, b"123456")), Reason.INVALID, str(names + 10), field="state")
    assert bench.job(name).state == b"12345"
    bench.send(Heartbeat("q", name, None, b"1234"))
    assert len(bench.commit()) == 1


def test_a_refusal_for_want_of_room_has_no_effect() -> None:
    """No queue is made, no counter moves, no sequence number is spent in vain for the order."""
    bench = Bench(shard_bytes_max=1)
    bench.enqueue("1")
    refused(bench.enqueue("2", "other"))

    assert list(bench.shard.queues) == ["q"]
    check_books(bench.shard)


def test_an_existing_id_is_refused_whatever_its_job_does() -> None:
    """Scheduled, ready or in flight, persisted or not."""
    bench = Bench()
    bench.enqueue("scheduled", run_at_us=WALL + SECOND)
    bench.enqueue("in flight")
    bench.take()
    bench.enqueue("ready")

    for name in ("scheduled", "in flight", "ready"):
        for persist in (False, True):
            answer = refused(bench.enqueue(name, persist=persist))
            assert (answer.reason, answer.detail) == (Reason.EXISTS, "a job with this id is already in the queue")
    assert bench.enqueue("ready", "other") == DONE


def test_an_id_is_free_again_after_completion() -> None:
    """At once, in flight or not."""
    bench = Bench()
    for _ in range(3):
        assert bench.enqueue("job") == DONE
        assert bench.ask(Complete("q", "job")) == DONE
        assert bench.enqueue("job") == DONE
        [job] = bench.take()
        assert bench.ask(Complete("q", "job", job.run_id)) == DONE


def test_a_wall_clock_that_is_set_forward_ages_no_dead_letter() -> None:
    """Ten years at one stroke drop nothing; the time that really passes afterwards does."""
    bench = Bench(dead_letters_us_max=10 * SECOND)
    bench.enqueue("job", timeout=1)
    bench.take()
    bench.pass_time(1)

    bench.set_wall(WALL + 10 * YEAR)
    assert bench.dead_ids() == ["job"]
    bench.pass_time(11)
    assert bench.dead_ids() == []
