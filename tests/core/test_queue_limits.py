"""Limits of one queue: what is in flight, its rate, a pause, its size, and defaults of its jobs."""

from __future__ import annotations

from proteus_shards.core.commands import Complete, Heartbeat, Next, Reason
from proteus_shards.core.commands_control import Fail, SetQueue
from proteus_shards.core.commands_jobs import RETRIES_OF_QUEUE, TIMEOUT_OF_QUEUE
from proteus_shards.core.queue_settings import RateSettings
from tests.core.rig import DONE, SECOND, Bench, check_books, refused


def test_no_more_than_max_in_flight_run_at_once() -> None:
    """One is strictly serial; a poll is served when one ends."""
    bench = Bench()
    bench.set(max_in_flight=2)
    for number in range(5):
        bench.enqueue(f"{number}", max_retries=1)
    assert bench.take_ids() == ["0", "1"]
    poll = bench.send(Next("q", 5, 60 * SECOND))
    bench.ask(Complete("q", "0"))
    assert [job.id for job in bench.jobs(poll)] == ["2"]
    assert bench.take_ids() == []
    bench.ask(Fail("q", "1"))
    assert bench.take_ids() == ["1"]
    bench.set()
    assert bench.take_ids() == ["3", "4"]


def test_a_paused_queue_takes_jobs_and_delivers_none() -> None:
    """Runs go on; polls are served once it is resumed."""
    bench = Bench()
    bench.enqueue("running")
    bench.take()
    bench.set(paused=True)
    bench.enqueue("waiting")
    poll = bench.send(Next("q", 1, 60 * SECOND))
    assert bench.take_ids() == []
    assert bench.ask(Complete("q", "running")) == DONE
    assert bench.shard.explain(bench.shard.queues["q"], bench.job("waiting")) == (["paused"], None, None)
    bench.set()

    assert [job.id for job in bench.jobs(poll)] == ["waiting"]


def test_a_rate_lets_so_many_jobs_go_in_its_time() -> None:
    """A full bucket at first, then evenly; a poll is woken when there is a token."""
    bench = Bench()
    bench.set(rate=RateSettings(jobs=2, seconds=1, burst=3))
    for number in range(10):
        bench.enqueue(f"{number}")
    assert bench.take_ids() == ["0", "1", "2"]
    poll = bench.send(Next("q", 5, 60 * SECOND))
    assert bench.shard.due_in(bench.now, bench.wall) == SECOND // 2
    assert bench.shard.explain(bench.shard.queues["q"], bench.job("3")) == (["rate"], None, bench.wall + SECOND // 2)
    bench.pass_time(0.499999)
    assert poll not in bench.answers
    bench.pass_time(0.000001)
    assert [job.id for job in bench.jobs(poll)] == ["3"]
    bench.pass_time(60)
    assert bench.take_ids() == ["4", "5", "6"]


def test_a_rate_is_exact_over_any_time() -> None:
    """Seven in three seconds are seven hundred in three hundred, whatever is asked when."""
    bench = Bench()
    bench.set(rate=RateSettings(jobs=7, seconds=3))
    for number in range(1000):
        bench.enqueue(f"{number}")
    taken, began = len(bench.take_ids()), bench.now
    for step in range(3000):
        bench.pass_time(0.1 if step % 3 else 0.0999)
        taken += len(bench.take_ids())

    assert taken == 7 + 7 * (bench.now - began) // (3 * SECOND)


def test_a_queue_has_its_own_limits_of_size() -> None:
    """The message names the setting."""
    bench = Bench()
    bench.set(jobs_max=1)
    bench.enqueue("1")
    assert "(jobs_max)" in refused(bench.enqueue("2")).detail
    bench.set(bytes_max=3)
    assert refused(bench.enqueue("2", payload=b"123")).reason is Reason.FULL
    assert "(bytes_max)" in refused(bench.enqueue("2", payload=b"123")).detail
    assert bench.enqueue("2", payload=b"12") == DONE
    check_books(bench.shard)


def test_what_a_job_leaves_out_its_queue_may_say() -> None:
    """Without a timeout there is no job."""
    bench = Bench()
    answer = refused(bench.enqueue("job", timeout=TIMEOUT_OF_QUEUE, max_retries=RETRIES_OF_QUEUE))
    assert (answer.reason, answer.field) == (Reason.INVALID, "timeout")
    bench.set(timeout=77, max_retries=3)
    bench.enqueue("job", timeout=TIMEOUT_OF_QUEUE, max_retries=RETRIES_OF_QUEUE)
    bench.enqueue("own", timeout=5, max_retries=0)

    assert [(job.timeout, job.max_retries) for job in bench.take(2)] == [(77, 3), (5, 0)]


def test_another_rate_does_not_fill_the_bucket() -> None:
    """The share that is spent stays spent: at once, when the rate was taken away for a while, and when a change is undone."""
    bench = Bench()
    hourly = RateSettings(jobs=1, seconds=3600)
    for number in range(20):
        bench.enqueue(f"{number}", persist=True)
    bench.commit()
    bench.set(rate=hourly)
    assert [job.id for job in bench.take_durably(9)] == ["0"]
    for other in (None, RateSettings(jobs=1, seconds=7200), RateSettings(jobs=3, seconds=3600, burst=1), RateSettings(jobs=5, seconds=5)):
        bench.set(rate=other)
        if other is not None:
            assert bench.take_durably(9) == []
        bench.set(rate=hourly)
        assert bench.take_durably(9) == []
    bench.send(SetQueue("q", b'{"rate":null}'))
    bench.lose_store()
    bench.heal()
    assert bench.take_durably(9) == []

    bench.set()
    bench.pass_time(1800)
    bench.set(rate=RateSettings(jobs=4, seconds=4))
    assert [job.id for job in bench.take_durably(9)] == ["1", "2"]
    bench.set(rate=hourly)
    assert bench.take_durably(9) == []
    bench.pass_time(3600)
    assert [job.id for job in bench.take_durably(9)] == ["3"]


def test_a_larger_bucket_is_as_full_as_the_smaller_one_was() -> None:
    """What nobody has spent may be."""
    bench = Bench()
    bench.set(rate=RateSettings(jobs=1, seconds=3600, burst=2))
    for number in range(9):
        bench.enqueue(f"{number}")
    assert bench.take_ids() == ["0", "1"]
    bench.pass_time(3600)
    bench.set(rate=RateSettings(jobs=1, seconds=3600, burst=6))

    assert bench.take_ids() == ["2", "3", "4"]


def test_dead_letters_do_not_fill_their_queue() -> None:
    """What is kept of them does not count against bytes_max, whatever way they went: they died, came back, were undone, or loaded."""
    bench = Bench()
    bench.send(SetQueue("q", b'{"bytes_max":8}'))
    for number in range(3):
        bench.enqueue(f"{number}", payload=b"1234", persist=True, timeout=1)
        bench.commit()
        bench.take_durably()
        bench.ask(Heartbeat("q", f"{number}", None, b"1234"))
        bench.pass_time(1)
        bench.commit()
        check_books(bench.shard)
    bench.enqueue("dies in vain", payload=b"1234", state=b"1", persist=True, timeout=1)
    bench.commit()
    bench.take_durably()
    bench.send(Heartbeat("q", "dies in vain", None, b"123"))
    bench.pass_time(1)
    assert len(bench.shard.queues["q"].dead) == 4
    bench.lose_store()
    bench.heal()
    check_books(bench.shard)

    bench = bench.restart()
    check_books(bench.shard)
    assert (bench.shard.queues["q"].bytes, bench.shard.queues["q"].dead_bytes) == (29, 24)
    assert "holds 5 bytes" in refused(bench.enqueue("4", payload=b"1234")).detail
    assert bench.enqueue("4", payload=b"123") == DONE
