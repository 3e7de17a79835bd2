"""Timeouts, heartbeats, retries, and what becomes of jobs that use them up."""

from __future__ import annotations

from proteus_shards.core.commands import Complete, Heartbeat, ListDead, Listed, Next, Reason, Undeliver
from proteus_shards.core.ledger import Note
from proteus_shards.core.model import TIMEOUT_SECONDS_MAX, Status
from tests.core.rig import DONE, SECOND, WALL, YEAR, Bench, check_books, refused


def died(bench: Bench, name: str, *, persist: bool = False) -> None:
    """Bring a job to its death."""
    bench.enqueue(name, timeout=1, persist=persist, max_retries=0)
    if persist:
        bench.commit()
        bench.take_durably()
    else:
        bench.take()
    bench.pass_time(1)


# --- timeouts ------------------------------------------------------------------------------------------------------------


def test_a_run_ends_at_its_deadline_and_not_before() -> None:
    """To the microsecond."""
    bench = Bench()
    bench.enqueue("job", timeout=3, max_retries=1)
    bench.take()
    bench.now += 3 * SECOND - 1
    bench.advance()
    assert bench.job("job").status is Status.IN_FLIGHT

    bench.now += 1
    bench.advance()

    assert bench.job("job").status is Status.READY
    assert bench.take_notes() == [Note("timeout", "q", "job", 1, persist=False)]


def test_a_job_that_waits_has_no_timeout() -> None:
    """Only a run times out."""
    bench = Bench()
    bench.enqueue("job", timeout=1)
    bench.pass_time(1000)

    assert [job.attempt for job in bench.take()] == [1]


def test_a_timeout_of_zero_ends_with_the_next_advance() -> None:
    """It is legal, and the runner's answer comes before the timeout if both come at once."""
    bench = Bench()
    bench.enqueue("job", timeout=0, max_retries=1)
    [job] = bench.take()
    assert bench.job("job").status is Status.IN_FLIGHT
    bench.advance()
    assert bench.job("job").status is Status.READY
    assert refused(bench.ask(Complete("q", "job", job.run_id))).reason is Reason.NOT_FOUND

    [job] = bench.take()

    assert bench.ask(Complete("q", "job", job.run_id)) == DONE


def test_the_longest_timeout_is_held() -> None:
    """68 years later, to the microsecond."""
    bench = Bench()
    bench.enqueue("job", timeout=TIMEOUT_SECONDS_MAX, max_retries=1)
    bench.take()
    bench.now += TIMEOUT_SECONDS_MAX * SECOND - 1
    bench.advance()
    assert bench.job("job").status is Status.IN_FLIGHT

    bench.now += 1
    bench.advance()

    assert bench.job("job").status is Status.READY


def test_the_owner_is_told_when_to_come_back() -> None:
    """`due_in` names the next timeout, schedule, poll or dead letter, whichever is first, and never a later one."""
    bench = Bench(dead_letters_us_max=100 * SECOND)
    due_in = bench.shard.due_in
    assert due_in(bench.now, bench.wall) is None
    died(bench, "dead")
    assert due_in(bench.now, bench.wall) == 100 * SECOND
    bench.enqueue("running", timeout=50)
    bench.take()
    assert due_in(bench.now, bench.wall) == 50 * SECOND
    bench.enqueue("scheduled", run_at_us=bench.wall + 30 * SECOND)
    assert due_in(bench.now, bench.wall) == 30 * SECOND
    bench.send(Next("q", 1, 20 * SECOND))

    assert due_in(bench.now, bench.wall) == 20 * SECOND
    assert due_in(bench.now + 21 * SECOND, bench.wall + 21 * SECOND) == 0


def test_after_a_stall_heartbeats_come_before_timeouts() -> None:
    """An advance that does only set the clocks leaves an overdue run for its heartbeat to save."""
    bench = Bench()
    bench.enqueue("job", timeout=5, max_retries=1)
    [job] = bench.take()
    bench.now += 60 * SECOND
    bench.shard.advance(bench.now, bench.wall, due=False)
    assert bench.ask(Heartbeat("q", "job", job.run_id)) == DONE
    bench.advance()
    assert bench.job("job").run_id == job.run_id

    bench.pass_time(5)

    assert bench.job("job").status is Status.READY


def test_a_monotonic_clock_that_goes_back_is_held() -> None:
    """No deadline is put off by it."""
    bench = Bench()
    bench.enqueue("job", timeout=5, max_retries=1)
    bench.take()
    bench.shard.advance(bench.now - 3600 * SECOND, bench.wall)
    bench.shard.advance(bench.now + 5 * SECOND, bench.wall)

    assert bench.job("job").status is Status.READY


# --- heartbeats ----------------------------------------------------------------------------------------------------------


def test_a_heartbeat_restarts_the_timeout() -> None:
    """A run lives as long as it is heard of within its timeout."""
    bench = Bench()
    bench.enqueue("job", timeout=10, max_retries=1)
    [job] = bench.take()
    for _ in range(20):
        bench.pass_time(9)
        assert bench.ask(Heartbeat("q", "job", job.run_id)) == DONE
    bench.pass_time(9.999999)
    assert bench.job("job").run_id == job.run_id

    bench.pass_time(0.000001)

    assert bench.job("job").status is Status.READY


def test_a_heartbeat_keeps_sets_and_clears_the_state() -> None:
    """None keeps it, bytes set it, empty bytes clear it; each next run gets what stands."""
    bench = Bench()
    bench.enqueue("job", timeout=1, max_retries=-1, state=b"1")
    for state, kept in ((None, b"1"), (b'{"a":2}', b'{"a":2}'), (None, b'{"a":2}'), (b"", None), (None, None)):
        bench.take()
        bench.ask(Heartbeat("q", "job", None, state))
        bench.pass_time(1)
        [job] = bench.take()
        assert job.state == kept
        bench.pass_time(1)
    check_books(bench.shard)


def test_a_heartbeat_of_another_run_changes_nothing() -> None:
    """A zombie runner neither lengthens the run of its successor nor writes into its state."""
    bench = Bench()
    bench.enqueue("job", timeout=10, max_retries=1, state=b"1")
    [old] = bench.take()
    bench.pass_time(10)
    [new] = bench.take()
    bench.pass_time(5)

    answer = refused(bench.ask(Heartbeat("q", "job", old.run_id, b"2")))

    assert (answer.reason, answer.field) == (Reason.NOT_FOUND, "run_id")
    assert (bench.job("job").state, bench.job("job").run_id) == (b"1", new.run_id)
    bench.pass_time(5)
    assert bench.dead_ids() == ["job"]


def test_a_heartbeat_without_a_run_id_counts_for_the_run_there_is() -> None:
    """The weaker form, for runners that do not know their run."""
    bench = Bench()
    bench.enqueue("job", timeout=10)
    bench.take()

    assert bench.ask(Heartbeat("q", "job", None, b"1")) == DONE


# --- retries -------------------------------------------------------------------------------------------------------------


def test_a_job_is_delivered_once_more_than_it_has_retries() -> None:
    """Then it is dead, whatever the number."""
    for retries in (0, 1, 5):
        bench = Bench()
        bench.enqueue("job", timeout=1, max_retries=retries)
        attempts = []
        while jobs := bench.take():
            attempts.append(jobs[0].attempt)
            bench.pass_time(1)

        assert attempts == list(range(1, retries + 2))
        assert bench.dead_ids() == ["job"]


def test_negative_retries_are_without_end() -> None:
    """A thousand timeouts do not kill the job."""
    bench = Bench()
    bench.enqueue("job", timeout=1, max_retries=-1)
    for attempt in range(1, 1001):
        assert [job.attempt for job in bench.take()] == [attempt]
        bench.pass_time(1)

    assert bench.dead_ids() == []


def test_an_undelivered_run_spends_no_retry() -> None:
    """A job with no retry can be given back any number of times and still be delivered."""
    bench = Bench()
    bench.enqueue("job", timeout=1)
    for _ in range(10):
        [job] = bench.take()
        assert job.attempt == 1
        assert bench.ask(Undeliver("q", "job", job.run_id)) == DONE
    bench.take()
    bench.pass_time(1)

    assert bench.dead_ids() == ["job"]


def test_retries_are_counted_across_restarts() -> None:
    """A crash neither refunds an attempt nor spends one."""
    bench = Bench()
    bench.enqueue("job", timeout=1, persist=True, max_retries=2)
    bench.commit()
    attempts = []
    while jobs := bench.take_durably():
        attempts.append(jobs[0].attempt)
        bench = bench.restart()
        assert bench.take_durably() == []
        bench.pass_time(1)
        bench.commit()
        bench = bench.restart()

    assert attempts == [1, 2, 3]
    assert bench.dead_ids() == ["job"]


# --- dead letters --------------------------------------------------------------------------------------------------------


def test_a_dead_letter_says_all_about_its_job() -> None:
    """With the reason, the attempts, and when it died."""
    bench = Bench()
    bench.enqueue("job", timeout=1, max_retries=0, payload=b"[1]", state=b"2", run_at_us=WALL)
    bench.take()
    bench.pass_time(1)
    listed = bench.ask(ListDead("q"))

    assert isinstance(listed, Listed)
    [letter] = listed.jobs
    assert (letter.queue, letter.id, letter.seq, letter.timeout, letter.persist, letter.max_retries) == ("q", "job", 1, 1, False, 0)
    assert (letter.payload, letter.state, letter.run_at, letter.attempt, letter.reason) == (b"[1]", b"2", WALL, 1, "timeout")
    assert (letter.created_at, letter.died_at) == (WALL, WALL + SECOND)
    assert bench.take_notes() == [Note("died", "q", "job", 1, persist=False, reason="timeout")]
    assert (bench.shard.counters.timeouts, bench.shard.counters.died) == (1, 1)


def test_dead_letters_are_listed_page_by_page_oldest_first() -> None:
    """`after` names the last one of the page before; where that was dropped meanwhile, nothing is skipped and nothing comes twice."""
    bench = Bench(dead_letters_max=5)
    names = [f"{number}" for number in range(5)]
    for name in names:
        died(bench, name)
    first = bench.ask(ListDead("q", 2))
    assert isinstance(first, Listed)
    for name in ("5", "6"):  # drops the two of the first page
        died(bench, name)
    second = bench.ask(ListDead("q", 2, first.jobs[-1].seq))
    assert isinstance(second, Listed)
    third = bench.ask(ListDead("q", 100, second.jobs[-1].seq))
    assert isinstance(third, Listed)

    assert [letter.id for page in (first, second, third) for letter in page.jobs] == ["0", "1", "2", "3", "4", "5", "6"]


def test_the_oldest_dead_letters_beyond_the_limit_are_dropped_with_a_note() -> None:
    """Never silently; each queue has the limit for itself."""
    bench = Bench(dead_letters_max=2)
    for name in ("1", "2", "3"):
        died(bench, name)

    assert bench.dead_ids() == ["2", "3"]
    assert [(note.kind, note.id) for note in bench.take_notes()] == [("died", "1"), ("died", "2"), ("died", "3"), ("dropped", "1")]
    assert bench.shard.counters.dead_dropped == 1
    check_books(bench.shard)


def test_with_a_limit_of_zero_no_dead_letter_is_kept() -> None:
    """The death is told all the same, and the store forgets the job."""
    bench = Bench(dead_letters_max=0)
    died(bench, "job", persist=True)
    bench.commit()

    assert [(note.kind, note.id) for note in bench.take_notes()] == [("died", "job"), ("dropped", "job")]
    assert (bench.store.rows, bench.shard.queues, bench.shard.bytes) == ({}, {}, 0)


def test_dead_letters_that_are_too_old_are_dropped_with_a_note() -> None:
    """In the microsecond that their time is over, in memory and in the store."""
    bench = Bench(dead_letters_us_max=60 * SECOND)
    died(bench, "1", persist=True)
    bench.commit()
    bench.pass_time(30)
    died(bench, "2")
    bench.take_notes()
    bench.pass_time(29 - 0.000001)
    assert bench.dead_ids() == ["1", "2"]

    bench.pass_time(0.000001)
    bench.commit()

    assert bench.dead_ids() == ["2"]
    assert [(note.kind, note.id) for note in bench.take_notes()] == [("dropped", "1")]
    assert bench.store.rows == {}
    bench.pass_time(60)
    assert bench.shard.queues == {}


def test_a_death_that_was_undone_leaves_no_trace_in_the_age_of_the_letter() -> None:
    """A letter's age counts from the death that was committed."""
    bench = Bench(dead_letters_us_max=60 * SECOND)
    died(bench, "job", persist=True)
    bench.shard.cut()
    bench.fail()
    bench.pass_time(50)
    bench.heal()
    bench.pass_time(1)
    bench.commit()
    bench.pass_time(59)
    assert bench.dead_ids() == ["job"]

    bench.pass_time(1)
    bench.commit()

    assert bench.dead_ids() == []


def test_an_undone_drop_puts_the_letter_back_as_the_oldest() -> None:
    """Its place among the dead letters is the time of its death."""
    bench = Bench(dead_letters_max=2)
    for name in ("1", "2"):
        died(bench, name, persist=True)
        bench.commit()
    died(bench, "3", persist=True)
    bench.shard.cut()
    bench.fail()
    assert bench.dead_ids() == ["1", "2"]
    bench.heal()
    bench.pass_time(1)
    bench.commit()

    assert bench.dead_ids() == ["2", "3"]


def test_the_id_of_a_dead_job_is_free_again() -> None:
    """A new job may take it, die, and stand beside the old one."""
    bench = Bench()
    died(bench, "job")
    died(bench, "job")

    assert bench.dead_ids() == ["job", "job"]
    assert bench.enqueue("job") == DONE


def test_a_dead_job_cannot_be_completed_or_heard_of() -> None:
    """Its run is over."""
    bench = Bench()
    bench.enqueue("job", timeout=1)
    [job] = bench.take()
    bench.pass_time(1)

    for command in (Complete("q", "job"), Complete("q", "job", job.run_id), Heartbeat("q", "job"), Undeliver("q", "job", job.run_id)):
        assert refused(bench.ask(command)).reason is Reason.NOT_FOUND
    assert bench.dead_ids() == ["job"]


def test_dead_letters_survive_a_restart_in_their_order() -> None:
    """The order of the deaths, not of the jobs."""
    bench = Bench()
    for name, timeout in (("1", 3), ("2", 2), ("3", 1)):
        bench.enqueue(name, timeout=timeout, persist=True)
    bench.commit()
    bench.take_durably(10)
    for _ in range(3):
        bench.pass_time(1)
        bench.commit()
    assert bench.dead_ids() == ["3", "2", "1"]

    assert bench.restart().dead_ids() == ["3", "2", "1"]


def test_deaths_after_a_restart_with_the_wall_clock_set_back_are_the_youngest() -> None:
    """The clock that stamps deaths never runs backwards, not even across a restart."""
    bench = Bench()
    died(bench, "1", persist=True)
    bench.commit()
    bench.wall = WALL - YEAR
    bench = bench.restart()
    died(bench, "2", persist=True)
    bench.commit()

    assert bench.dead_ids() == ["1", "2"]
    assert bench.restart().dead_ids() == ["1", "2"]


def test_a_restart_after_a_wall_clock_that_was_ahead_drops_no_dead_letter() -> None:
    """A row that was written while the clock stood years ahead makes no letter older than it is."""
    bench = Bench(dead_letters_us_max=10 * SECOND)
    died(bench, "1", persist=True)
    bench.commit()
    bench.set_wall(WALL + 10 * YEAR)
    bench.enqueue("from the future", persist=True)
    bench.commit()
    bench.set_wall(WALL + 5 * SECOND)

    after = bench.restart()
    assert after.dead_ids() == ["1"]
    after.pass_time(1)
    assert after.dead_ids() == ["1"]
    after.wall = WALL + 30 * SECOND
    again = after.restart()
    again.pass_time(1)
    again.commit()
    assert again.dead_ids() == []
