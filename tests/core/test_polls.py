"""What a `next` gives, waits for, and is woken by."""

from __future__ import annotations

import pytest

from proteus_shards.core.commands import Complete, Delivered, Next, Undeliver
from proteus_shards.core.holdings import ANSWER_BYTES_MAX, answer_bytes
from tests.core.rig import SECOND, WALL, Bench

WAIT = 10 * SECOND


def test_a_delivery_says_all_about_its_job() -> None:
    """Every field of the job comes back as it was sent, with run_id and attempt."""
    bench = Bench()
    bench.enqueue("job", timeout=7, max_retries=3, payload=b'{"a":1.50}', state=b"[ ]", run_at_us=WALL)

    [job] = bench.take()

    assert (job.queue, job.id, job.timeout, job.persist, job.max_retries, job.payload, job.state, job.run_at) == (
        "q",
        "job",
        7,
        False,
        3,
        b'{"a":1.50}',
        b"[ ]",
        WALL,
    )
    assert (job.attempt, job.run_id, job.created_at, job.updated_at) == (1, (1).to_bytes(16, "big"), WALL, WALL)


@pytest.mark.parametrize("wait", [0, -1])
def test_without_a_wait_an_empty_queue_answers_at_once(wait: int) -> None:
    """The answer is an empty list, and the queue is not remembered."""
    bench = Bench()

    assert bench.ask(Next("q", 1, wait)) == Delivered([])
    assert bench.shard.queues == {}


@pytest.mark.parametrize("count", [0, -3])
def test_a_next_of_no_jobs_gets_none_and_is_answered(count: int) -> None:
    """Asking for none is answered with none, whatever waits in the queue and for the store."""
    bench = Bench()
    bench.enqueue("job", persist=True)
    key = bench.send(Next("q", count, WAIT))
    bench.commit()

    assert bench.answers[key] == Delivered([])
    assert bench.ask(Next("q", count, WAIT)) == Delivered([])
    assert [job.id for job in bench.take_durably()] == ["job"]


def test_next_gives_at_most_as_many_jobs_as_asked_for() -> None:
    """And fewer where there are fewer."""
    bench = Bench()
    for name in ("1", "2", "3"):
        bench.enqueue(name)

    assert bench.take_ids(2) == ["1", "2"]
    assert bench.take_ids(2) == ["3"]


def test_an_answer_stops_before_the_job_that_would_make_it_too_large() -> None:
    """However many were asked for, the answer fits a frame; the rest stays ready."""
    bench = Bench()
    half = b"x" * (ANSWER_BYTES_MAX // 2)
    for name in ("1", "2", "3"):
        bench.enqueue(name, payload=half)

    jobs = bench.take(10)

    assert [job.id for job in jobs] == ["1"]
    assert sum(answer_bytes(bench.job(job.id)) for job in jobs) <= ANSWER_BYTES_MAX
    assert bench.take_ids(10) == ["2"]


def test_a_job_larger_than_an_answer_should_be_comes_alone() -> None:
    """No job is too large to be delivered."""
    bench = Bench()
    bench.enqueue("huge", payload=b"x" * (ANSWER_BYTES_MAX + 1))
    bench.enqueue("small")

    assert bench.take_ids(10) == ["huge"]
    assert bench.take_ids(10) == ["small"]


def test_waiting_polls_are_served_first_come_first_served() -> None:
    """Each new job goes to the poll that has waited longest."""
    bench = Bench()
    polls = [bench.send(Next("q", 1, WAIT)) for _ in range(3)]
    for name in ("a", "b", "c"):
        bench.enqueue(name)

    assert [bench.jobs(poll)[0].id for poll in polls] == ["a", "b", "c"]


def test_a_poll_for_many_is_answered_with_the_first_that_comes() -> None:
    """It waits for a job, not for all that it would take."""
    bench = Bench()
    poll = bench.send(Next("q", 10, WAIT))
    bench.enqueue("job")

    assert [job.id for job in bench.jobs(poll)] == ["job"]


def test_a_timeout_wakes_a_poll() -> None:
    """The job of a silent runner goes to the one that waits."""
    bench = Bench()
    bench.enqueue("job", timeout=2, max_retries=1)
    bench.take()
    poll = bench.send(Next("q", 1, WAIT))
    bench.pass_time(2)

    assert [job.attempt for job in bench.jobs(poll)] == [2]


def test_a_schedule_wakes_a_poll() -> None:
    """A job whose time has come goes to the one that waits."""
    bench = Bench()
    bench.enqueue("job", run_at_us=WALL + SECOND)
    poll = bench.send(Next("q", 1, WAIT))
    bench.pass_time(1)

    assert [job.id for job in bench.jobs(poll)] == ["job"]


def test_an_undelivered_job_wakes_a_poll() -> None:
    """What one runner never got, the next one gets at once."""
    bench = Bench()
    bench.enqueue("job")
    [job] = bench.take()
    poll = bench.send(Next("q", 1, WAIT))
    bench.ask(Undeliver("q", "job", job.run_id))

    assert [job.attempt for job in bench.jobs(poll)] == [1]


def test_healing_wakes_a_poll() -> None:
    """While the store is away, a poll waits on before a persisted job that has become ready; then it gets it."""
    bench = Bench()
    bench.enqueue("job", persist=True, run_at_us=WALL + SECOND)
    bench.commit()
    bench.lose_store()
    poll = bench.send(Next("q", 1, WAIT))
    bench.pass_time(1)
    assert poll not in bench.answers

    bench.heal()
    bench.commit()

    assert [job.id for job in bench.jobs(poll)] == ["job"]


def test_a_poll_ends_when_its_time_is_over() -> None:
    """It is answered with no job in the very microsecond, not before, and its queue is forgotten."""
    bench = Bench()
    poll = bench.send(Next("q", 1, WAIT))
    bench.now += WAIT - 1
    bench.advance()
    assert poll not in bench.answers

    bench.now += 1
    bench.advance()

    assert bench.answers[poll] == Delivered([])
    assert (bench.shard.polls, bench.shard.queues) == (0, {})


def test_the_wall_clock_does_not_end_a_poll() -> None:
    """Polls wait on the monotonic clock."""
    bench = Bench()
    poll = bench.send(Next("q", 1, WAIT))
    bench.set_wall(WALL + 100 * WAIT)

    assert poll not in bench.answers


def test_a_cancelled_poll_takes_no_job_and_is_not_answered() -> None:
    """The job goes to the poll behind it."""
    bench = Bench()
    first, second = bench.send(Next("q", 1, WAIT)), bench.send(Next("q", 1, WAIT))
    bench.shard.cancel(first)
    bench.enqueue("job")
    bench.pass_time(20)

    assert first not in bench.answers
    assert [job.id for job in bench.jobs(second)] == ["job"]


def test_a_poll_that_is_ended_is_answered_with_no_job() -> None:
    """One that has been given a job keeps it, and a key that never was is nobody's."""
    bench = Bench()
    first, second = bench.send(Next("q", 1, WAIT)), bench.send(Next("q", 1, WAIT))
    bench.enqueue("job")
    for key in (first, second, "never was"):
        bench.shard.end_wait(key)
    bench.pass_time(1)

    assert [job.id for job in bench.jobs(first)] == ["job"]
    assert bench.jobs(second) == []
    assert bench.shard.waiting() == []


def test_cancelling_what_does_not_wait_does_nothing() -> None:
    """An answered poll, and a key that never was, can be cancelled."""
    bench = Bench()
    bench.enqueue("job")
    key = bench.send(Next("q", 1, WAIT))
    bench.shard.cancel(key)
    bench.shard.cancel("never was")

    assert [job.id for job in bench.jobs(key)] == ["job"]
    assert bench.job("job").attempt == 1


def test_the_last_poll_that_is_cancelled_takes_its_queue_with_it() -> None:
    """A queue that nobody waits at and nothing is in is forgotten."""
    bench = Bench()
    key = bench.send(Next("q", 1, WAIT))
    assert bench.shard.waiting() == [key]

    bench.shard.cancel(key)

    assert (bench.shard.queues, bench.shard.waiting()) == ({}, [])


def test_a_poll_without_a_key_does_not_wait() -> None:
    """There is nobody to answer later."""
    bench = Bench()
    bench.shard.apply(None, Next("q", 1, WAIT))

    assert (bench.shard.polls, bench.shard.queues) == (0, {})


def test_an_expired_poll_answers_after_what_waits_in_its_queue() -> None:
    """In one queue answers keep their order, so an empty one waits for the commit too."""
    bench = Bench()
    bench.enqueue("job", persist=True, run_at_us=WALL + 100 * SECOND)
    poll = bench.send(Next("q", 1, SECOND))
    bench.pass_time(1)
    assert poll not in bench.answers

    bench.commit()

    assert bench.answers[poll] == Delivered([])


def test_a_completed_job_does_not_wake_a_poll() -> None:
    """Nothing became ready."""
    bench = Bench()
    bench.enqueue("job")
    bench.take()
    poll = bench.send(Next("q", 1, WAIT))
    bench.ask(Complete("q", "job"))

    assert poll not in bench.answers
