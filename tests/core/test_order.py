"""In which order jobs are delivered."""

from __future__ import annotations

import random

from proteus_shards.core.commands import Complete, Heartbeat, Undeliver
from tests.core.rig import DONE, SECOND, WALL, YEAR, Bench


def test_jobs_are_delivered_in_the_order_of_their_acceptance() -> None:
    """First in, first out, in batches of any size."""
    bench = Bench()
    for number in range(50):
        bench.enqueue(f"{number}")
        bench.pass_time(0.001)

    taken = bench.take_ids(1) + bench.take_ids(9) + bench.take_ids(100)

    assert taken == [f"{number}" for number in range(50)]


def test_jobs_of_the_same_microsecond_are_delivered_in_the_order_of_acceptance() -> None:
    """The tie-breaker is a counter, not the id."""
    bench = Bench()
    for name in ("c", "a", "b"):
        bench.enqueue(name)

    assert bench.take_ids() == ["c", "a", "b"]


def test_queues_do_not_disturb_each_other() -> None:
    """A queue hands out its own jobs only."""
    bench = Bench()
    bench.enqueue("1", "a")
    bench.enqueue("2", "b")
    bench.enqueue("3", "a")

    assert bench.take_ids(queue="b") == ["2"]
    assert bench.take_ids(queue="a") == ["1", "3"]


def test_a_job_that_timed_out_comes_before_all_that_were_behind_it() -> None:
    """A job keeps its place for life."""
    bench = Bench()
    bench.enqueue("first", timeout=1, max_retries=1)
    bench.enqueue("second")
    bench.take()
    bench.pass_time(1)
    bench.enqueue("third")

    assert bench.take_ids() == ["first", "second", "third"]


def test_jobs_that_timed_out_together_return_in_their_old_order() -> None:
    """Whatever the order of their deadlines, the order key decides."""
    bench = Bench()
    names = [f"{number}" for number in range(20)]
    for number, name in enumerate(names):
        bench.enqueue(name, timeout=20 - number, max_retries=1)
    bench.take(10)
    bench.pass_time(30)

    assert bench.take_ids() == names


def test_an_undelivered_job_returns_to_its_place() -> None:
    """A delivery that is taken back leaves no trace in the order."""
    bench = Bench()
    for name in ("1", "2", "3"):
        bench.enqueue(name)
    first, second = bench.take(2)
    bench.ask(Undeliver("q", second.id, second.run_id))
    bench.ask(Undeliver("q", first.id, first.run_id))

    assert bench.take_ids() == ["1", "2", "3"]


def test_a_job_with_run_at_takes_its_place_at_that_time() -> None:
    """It comes after what was accepted before its time, and before what was accepted later."""
    bench = Bench()
    bench.enqueue("later", run_at_us=WALL + 2 * SECOND)
    bench.enqueue("sooner", run_at_us=WALL + 1 * SECOND)
    bench.enqueue("now")
    bench.pass_time(1.5)
    bench.enqueue("between")
    bench.pass_time(1.5)
    bench.enqueue("last")

    assert bench.take_ids() == ["now", "sooner", "between", "later", "last"]


def test_a_job_is_not_delivered_before_its_run_at() -> None:
    """It is due in the very microsecond of its run_at, and not before."""
    bench = Bench()
    bench.enqueue("job", run_at_us=WALL + SECOND)
    bench.set_wall(WALL + SECOND - 1)
    assert bench.take_ids() == []

    bench.set_wall(WALL + SECOND)

    assert bench.take_ids() == ["job"]


def test_a_run_at_in_the_past_means_now() -> None:
    """It is no way to jump the queue."""
    bench = Bench()
    bench.enqueue("first")
    bench.enqueue("second", run_at_us=WALL - YEAR)

    jobs = bench.take(2)

    assert [job.id for job in jobs] == ["first", "second"]
    assert jobs[1].run_at == WALL - YEAR


def test_a_job_with_run_at_that_times_out_is_ready_at_once() -> None:
    """Its run_at has been reached; only the timeout sends it back."""
    bench = Bench()
    bench.enqueue("job", timeout=1, max_retries=1, run_at_us=WALL + SECOND)
    bench.pass_time(1)
    bench.take()
    bench.pass_time(1)

    assert bench.take_ids() == ["job"]


def test_a_wall_clock_jump_disturbs_no_order() -> None:
    """Ten years forth and back between two jobs change nothing between them."""
    bench = Bench()
    names = [f"{number}" for number in range(6)]
    for name, jump in zip(names, (0, 10 * YEAR, 0, -10 * YEAR, 10 * YEAR, 0), strict=True):
        bench.set_wall(WALL + jump)
        bench.enqueue(name)

    assert bench.take_ids() == names


def test_a_wall_clock_jump_disturbs_no_timeout() -> None:
    """A run ends after its seconds on the monotonic clock, whatever the wall clock says."""
    for jump in (10 * YEAR, -10 * YEAR):
        bench = Bench()
        bench.enqueue("job", timeout=10, max_retries=5)
        bench.take()
        bench.pass_time(9)
        bench.set_wall(WALL + jump)
        assert bench.take_ids() == []

        bench.pass_time(1)

        assert bench.take_ids() == ["job"]


def test_order_survives_a_restart_with_the_wall_clock_set_back() -> None:
    """What is accepted after the restart comes after what was accepted before it, though the wall clock says otherwise."""
    bench = Bench()
    for name in ("1", "2", "3"):
        bench.enqueue(name, persist=True)
        bench.pass_time(1)
    bench.commit()
    bench.wall = WALL - 10 * YEAR
    bench = bench.restart()
    bench.enqueue("4", persist=True)
    bench.commit()

    assert [job.id for job in bench.take_durably(10)] == ["1", "2", "3", "4"]


def test_completing_jobs_that_wait_disturbs_no_order() -> None:
    """Jobs that leave from the middle, the front and the end leave the others in order."""
    bench = Bench()
    names = [f"{number}" for number in range(300)]
    for name in names:
        bench.enqueue(name)
    gone = set(random.Random(7).sample(names, 200)) | {"0", "299"}
    for name in sorted(gone):
        assert bench.ask(Complete("q", name)) == DONE

    assert bench.take_ids() == [name for name in names if name not in gone]


def test_a_job_enqueued_again_goes_to_the_end() -> None:
    """The id is the same, the place is not."""
    bench = Bench()
    bench.enqueue("1")
    bench.enqueue("2")
    bench.ask(Complete("q", "1"))
    bench.enqueue("1")

    assert bench.take_ids() == ["2", "1"]


def test_a_heartbeat_does_not_change_the_place_of_a_job() -> None:
    """After its timeout it is still the first."""
    bench = Bench()
    bench.enqueue("1", timeout=1, max_retries=1)
    bench.enqueue("2")
    bench.take()
    bench.pass_time(0.5)
    bench.ask(Heartbeat("q", "1"))
    bench.pass_time(1)

    assert bench.take_ids() == ["1", "2"]


def test_scheduled_jobs_of_a_held_clock_are_still_in_order() -> None:
    """After the wall clock was set back, two scheduled jobs come in the order of acceptance, for the order clock stands still."""
    bench = Bench()
    bench.set_wall(WALL - 3600 * SECOND)
    bench.enqueue("1", run_at_us=bench.wall + 2 * SECOND)
    bench.enqueue("2", run_at_us=bench.wall + 1 * SECOND)
    bench.pass_time(5)

    assert bench.take_ids() == ["1", "2"]
