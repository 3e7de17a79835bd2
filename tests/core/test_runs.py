"""How runs end that do not complete their job: fail, release, backoff, history; and jobs that wait for too long."""

from __future__ import annotations

import pytest

from proteus_shards.core.commands import Complete, Heartbeat, Next, Reason
from proteus_shards.core.commands_control import Fail, Release
from proteus_shards.core.extras import ERROR_LENGTH_MAX, HISTORY_MAX, Attempt, Backoff
from proteus_shards.core.ledger import Note
from proteus_shards.core.model import Status
from proteus_shards.core.queue_settings import BackoffSettings
from tests.core.rig import DONE, SECOND, WALL, Bench, check_books, refused


def history(bench: Bench, job_id: str = "job") -> list[tuple[int, str, str | None]]:
    """Return the attempts of a job."""
    extras = bench.job(job_id).extras
    return [(attempt.number, attempt.outcome, attempt.error) for attempt in extras.history] if extras is not None else []


def test_a_failure_spends_a_retry_and_its_error_is_kept() -> None:
    """With none left the job is dead."""
    bench = Bench()
    bench.enqueue("job", max_retries=1)
    bench.take()
    assert bench.ask(Fail("q", "job", error="first")) == DONE
    [job] = bench.take()
    assert (job.attempt, history(bench)) == (2, [(1, "failed", "first")])
    assert bench.ask(Fail("q", "job", error="second")) == DONE

    assert bench.take_notes() == [Note("failed", "q", "job", 1, persist=False), Note("died", "q", "job", 2, persist=False, reason="failed")]
    [letter] = bench.shard.queues["q"].dead.values()
    assert letter.reason == "failed"
    assert letter.extras is not None
    assert letter.extras.history == (
        Attempt(1, WALL, WALL, "failed", "first"),
        Attempt(2, WALL, WALL, "failed", "second"),
    )
    counters = bench.shard.counters
    assert (counters.failed, counters.retried, counters.died, counters.timeouts) == (2, 1, 1, 0)


def test_a_release_spends_no_retry_and_leaves_no_history() -> None:
    """However often."""
    bench = Bench()
    bench.enqueue("job", max_retries=0)
    for _ in range(5):
        [job] = bench.take()
        assert job.attempt == 1
        assert bench.ask(Release("q", "job", job.run_id)) == DONE

    assert history(bench) == []
    assert bench.shard.counters.released == 5


@pytest.mark.parametrize("command", [Fail, Release])
def test_only_the_run_that_has_the_job_can_end_it(command: type[Fail | Release]) -> None:
    """Another one is told who has it, and until when."""
    bench = Bench()
    bench.enqueue("job", timeout=10, max_retries=1)
    [first] = bench.take()
    bench.pass_time(10)
    [second] = bench.take()

    answer = refused(bench.ask(command("q", "job", first.run_id)))

    assert (answer.reason, answer.field, answer.held_by, answer.held_until) == (
        Reason.NOT_FOUND,
        "run_id",
        second.run_id,
        bench.wall + 10 * SECOND,
    )
    for late in (Heartbeat("q", "job", first.run_id), Complete("q", "job", first.run_id)):
        assert refused(bench.ask(late)).held_by == second.run_id
    assert refused(bench.ask(command("q", "none"))).reason is Reason.NOT_FOUND
    assert bench.ask(command("q", "job")) == DONE
    assert refused(bench.ask(command("q", "job"))).reason is Reason.NOT_FOUND


@pytest.mark.parametrize(
    ("backoff", "waits"),
    [
        (Backoff(2 * SECOND), [2.0, 2.0, 2.0]),
        (Backoff(SECOND, 3.0), [1.0, 3.0, 9.0]),
        (Backoff(SECOND, 3.0, 5 * SECOND), [1.0, 3.0, 5.0]),
        (Backoff(SECOND, 2.0, jitter=0.5), [0.75, 1.5, 3.0]),
        (None, [7.0, 7.0, 7.0]),
    ],
)
def test_a_job_backs_off_after_failures_and_timeouts_alike(backoff: Backoff | None, waits: list[float]) -> None:
    """Its own backoff counts before its queue's; half of the jitter is drawn here."""
    bench = Bench()
    bench.set(backoff=BackoffSettings(seconds=7))
    bench.enqueue("job", timeout=1, max_retries=-1, backoff=backoff)
    for number, wait in enumerate(waits):
        bench.take()
        if number % 2:
            bench.pass_time(1)
        else:
            bench.ask(Fail("q", "job"))
        due = bench.job("job").extras
        assert due is not None
        assert due.not_before == bench.wall + int(wait * SECOND)
        bench.pass_time(wait - 0.001)
        assert bench.take_ids() == []
        bench.pass_time(0.001)


def test_a_failure_may_say_its_delay_and_a_long_backoff_stays_a_number() -> None:
    """Zero is at once; after a thousand attempts the longest delay counts."""
    bench = Bench()
    bench.enqueue("job", max_retries=-1, backoff=Backoff(SECOND, 100.0, 60 * SECOND))
    for _ in range(1000):
        bench.take()
        bench.ask(Fail("q", "job", delay_us=0))
    bench.take()
    bench.ask(Fail("q", "job"))

    assert bench.take_ids() == []
    bench.pass_time(60)
    assert bench.take_ids() == ["job"]


def test_a_job_that_backs_off_keeps_its_place() -> None:
    """It comes before all that were behind it."""
    bench = Bench()
    for name in ("1", "2", "3"):
        bench.enqueue(name, max_retries=1)
    bench.take()
    bench.ask(Fail("q", "1", delay_us=SECOND))
    bench.pass_time(1)

    assert bench.take_ids() == ["1", "2", "3"]


def test_the_first_and_the_latest_attempts_are_kept() -> None:
    """And of an error its beginning."""
    bench = Bench()
    bench.enqueue("job", max_retries=-1)
    for _ in range(HISTORY_MAX + 5):
        bench.take()
        bench.ask(Fail("q", "job", error="x" * (ERROR_LENGTH_MAX + 1)))

    numbers = [number for number, _, _ in history(bench)]
    assert numbers == [1, *range(7, HISTORY_MAX + 6)]
    assert {len(error or "") for _, _, error in history(bench)} == {ERROR_LENGTH_MAX}


def test_a_history_never_makes_a_row_too_large_for_its_store() -> None:
    """Errors go first, then attempts."""
    bench = Bench(row_bytes_max=200)
    bench.enqueue("job", persist=True, max_retries=-1, payload=b"1" * 100)
    bench.commit()
    for number in range(30):
        bench.take_durably()
        bench.send(Fail("q", "job", error=f"{number}" * 30))
        [mark] = bench.commit().marks
        assert mark.extras is not None
        assert len(mark.extras) + 104 <= 200

    assert history(bench)[-1][0] == 30


def test_a_timeout_writes_the_history_and_nothing_else_does() -> None:
    """A delivery, a heartbeat and a release without delay leave extras alone."""
    bench = Bench()
    bench.enqueue("job", persist=True, timeout=1, max_retries=3)
    bench.commit()
    for command in (Next("q"), Heartbeat("q", "job", None, b"1"), Release("q", "job"), Next("q")):
        bench.send(command)
        [mark] = bench.commit().marks
        assert not mark.extras_set
    bench.pass_time(1)
    [mark] = bench.commit().marks

    assert mark.extras_set
    assert [number for number, _, _ in history(bench.restart())] == [1]


# --- ttl -----------------------------------------------------------------------------------------------------------------


def test_a_job_that_waits_for_too_long_is_dead_and_not_gone() -> None:
    """With its reason."""
    bench = Bench()
    bench.enqueue("job", ttl_us=10 * SECOND)
    bench.pass_time(10)
    assert bench.dead_ids() == []
    bench.pass_time(0.000001)

    assert bench.dead_ids() == ["job"]
    assert bench.take_notes() == [Note("died", "q", "job", 0, persist=False, reason="expired")]
    assert bench.shard.counters.expired == 1


def test_a_ttl_counts_while_a_job_waits_only() -> None:
    """From when it could start; a run is not cut off, but the job dies when it comes back."""
    bench = Bench()
    bench.set(ttl=10)
    bench.enqueue("scheduled", run_at_us=WALL + 60 * SECOND)
    bench.enqueue("running", timeout=100, max_retries=5)
    assert bench.take_ids() == ["running"]
    bench.pass_time(65)
    assert bench.take_ids(1) == ["scheduled"]
    poll = bench.send(Next("q", 1, SECOND))
    bench.ask(Fail("q", "running"))

    assert poll not in bench.answers
    assert bench.dead_ids() == ["running"]
    check_books(bench.shard)


def test_a_ttl_survives_a_restart() -> None:
    """What is over by then is dead, and no runner gets it."""
    bench = Bench()
    bench.enqueue("job", persist=True, ttl_us=10 * SECOND)
    bench.enqueue("other", persist=True)
    bench.commit()
    bench.wall += 11 * SECOND
    after = bench.restart()

    assert [job.id for job in after.take_durably(10)] == ["other"]
    assert after.dead_ids() == ["job"]


def test_while_the_store_is_away_nothing_expires() -> None:
    """It dies when it can be written, and is not delivered before."""
    bench = Bench()
    bench.enqueue("job", persist=True, ttl_us=SECOND)
    bench.commit()
    bench.lose_store()
    bench.pass_time(5)
    assert bench.job("job").status is Status.READY
    bench.heal()

    assert bench.take_durably() == []
    assert bench.dead_ids() == ["job"]
