"""While the store is away, and after it did not say whether a batch was written."""

from __future__ import annotations

import pytest

from proteus_shards.core.commands import Complete, Enqueue, Heartbeat, Next, Reason, Refused, Undeliver
from proteus_shards.core.model import RowKey, Status
from proteus_shards.core.placement import slot_of
from tests.core.rig import DONE, SECOND, WALL, Bench, check_books, refused

WAIT = 100 * SECOND

# --- the store is away ---------------------------------------------------------------------------------------------------------


def test_while_the_store_is_away_what_must_be_written_is_refused_at_once() -> None:
    """BUSY, without effect; all else goes on."""
    bench = Bench()
    bench.enqueue("running", persist=True)
    bench.commit()
    [job] = bench.take_durably()
    bench.enqueue("ready", persist=True)
    bench.commit()
    bench.lose_store()

    for command in (
        Enqueue("q", "new", 1, persist=True, max_retries=0, payload=b"1"),
        Next("q"),
        Next("q", 1, WAIT),
        Heartbeat("q", "running", job.run_id, b"1"),
        Undeliver("q", "running", job.run_id),
        Complete("q", "running", job.run_id),
        Complete("q", "ready"),
    ):
        assert bench.ask(command) == Refused(Reason.BUSY, "the backing store is away"), command
    assert bench.ask(Heartbeat("q", "running", job.run_id)) == DONE
    assert bench.enqueue("memory", "other") == DONE
    assert bench.take_ids(queue="other") == ["memory"]
    assert not bench.shard.has_open


def test_a_persisted_job_at_the_head_is_not_passed_while_the_store_is_away() -> None:
    """Order comes before availability; memory jobs before it go out."""
    bench = Bench()
    bench.enqueue("memory 1")
    bench.enqueue("persisted", persist=True)
    bench.enqueue("memory 2")
    bench.commit()
    bench.lose_store()

    assert bench.take_ids(10) == ["memory 1"]
    assert refused(bench.ask(Next("q"))).reason is Reason.BUSY
    bench.heal()
    assert [job.id for job in bench.take_durably(10)] == ["persisted", "memory 2"]


def test_timeouts_of_persisted_jobs_are_put_off_while_the_store_is_away() -> None:
    """Later, never earlier; those of memory jobs are not."""
    bench = Bench()
    bench.enqueue("persisted", timeout=1, max_retries=1, persist=True)
    bench.enqueue("memory", timeout=1, max_retries=1)
    bench.commit()
    [persisted, _] = bench.take_durably(2)
    bench.lose_store()
    bench.pass_time(1)
    assert bench.job("memory").status is Status.READY
    bench.pass_time(100)
    assert bench.job("persisted").run_id == persisted.run_id
    assert not bench.shard.has_open

    bench.heal()
    bench.pass_time(1)
    bench.commit()

    assert bench.job("persisted").status is Status.READY


def test_no_persisted_dead_letter_is_dropped_while_the_store_is_away() -> None:
    """Neither for its age nor for a younger one that dies in memory; afterwards it is."""
    bench = Bench(dead_letters_max=1, dead_letters_us_max=60 * SECOND)
    bench.enqueue("persisted", persist=True, timeout=1)
    bench.commit()
    bench.take_durably()
    bench.pass_time(1)
    bench.commit()
    bench.lose_store()
    bench.enqueue("memory", timeout=1)
    bench.take()
    bench.pass_time(1)
    assert bench.dead_ids() == ["persisted", "memory"]
    assert not bench.shard.has_open
    bench.pass_time(100)
    assert "persisted" in bench.dead_ids()

    bench.heal()
    bench.advance()
    bench.commit()

    assert bench.dead_ids() == []
    assert bench.store.rows == {}


# --- doubt -----------------------------------------------------------------------------------------------------------------------


def test_an_id_in_doubt_is_refused_until_the_truth_is_known() -> None:
    """Even to a memory-only job, which could otherwise stand beside a stored one."""
    bench = Bench()
    bench.enqueue("job", persist=True)
    bench.shard.cut()
    keys = bench.fail(Reason.UNKNOWN)

    assert refused(bench.enqueue("job")).reason is Reason.BUSY
    assert bench.enqueue("another") == DONE
    bench.heal(keys)
    assert bench.enqueue("job") == DONE


def test_a_heartbeat_of_a_job_in_doubt_is_refused() -> None:
    """Its run may be over: a runner that was told to go on would share the job with the next one."""
    bench = Bench()
    bench.enqueue("job", persist=True, timeout=1, max_retries=1)
    bench.commit()
    [job] = bench.take_durably()
    bench.pass_time(1)
    bench.store.commit(bench.shard.cut())
    keys = bench.fail(Reason.UNKNOWN)
    assert bench.job("job").run_id == job.run_id

    assert refused(bench.ask(Heartbeat("q", "job", job.run_id))).reason is Reason.BUSY
    bench.heal(keys)
    assert refused(bench.ask(Heartbeat("q", "job", job.run_id))).reason is Reason.NOT_FOUND


def test_healing_without_the_truth_is_a_bug() -> None:
    """The owner must adopt what the store says first."""
    bench = Bench()
    bench.enqueue("job", persist=True)
    bench.shard.cut()
    bench.fail(Reason.UNKNOWN)

    with pytest.raises(AssertionError):
        bench.shard.heal()


@pytest.mark.parametrize("applied", [False, True])
def test_after_a_doubt_the_store_is_right(applied: bool) -> None:
    """An insert, a delivery, a state and a completion: all of them happened or none."""
    bench = Bench()
    for name in ("deliver", "beat", "complete"):
        bench.enqueue(name, "q" if name == "deliver" else name, persist=True)
    bench.commit()
    bench.take_durably(1, "beat")
    bench.send(Enqueue("new", "new", 1, persist=True, max_retries=0, payload=b"1"))
    bench.send(Next("q"))
    bench.send(Heartbeat("beat", "beat", None, b"state"))
    bench.send(Complete("complete", "complete"))
    batch = bench.shard.cut()
    if applied:
        bench.store.commit(batch)
    bench.heal(bench.fail(Reason.UNKNOWN))

    assert ("new" in bench.shard.queues) is applied
    assert (bench.job("deliver").status is Status.IN_FLIGHT) is applied
    assert bench.job("beat", "beat").state == (b"state" if applied else None)
    assert ("complete" in bench.shard.queues) is not applied
    check_books(bench.shard)
    kept = [RowKey(slot_of(job.queue), job.seq, job.queue, job.id) for queue in bench.shard.queues.values() for job in queue.jobs.values()]
    assert sorted(kept, key=lambda key: key.seq) == sorted(bench.store.rows, key=lambda key: key.seq)


def test_an_adopted_delivery_has_its_full_timeout_from_then_on() -> None:
    """Nobody may have got it, but somebody may."""
    bench = Bench()
    bench.enqueue("job", persist=True, timeout=10, max_retries=1)
    bench.commit()
    bench.send(Next("q"))
    bench.store.commit(bench.shard.cut())
    keys = bench.fail(Reason.UNKNOWN)
    bench.pass_time(60)
    bench.heal(keys)
    bench.pass_time(9.99)
    assert bench.job("job").status is Status.IN_FLIGHT

    bench.pass_time(0.01)
    bench.commit()

    assert [job.attempt for job in bench.take_durably()] == [2]


def test_an_adopted_job_may_meet_the_ghost_of_its_undone_self() -> None:
    """The undone job left an entry with the same order key in the queue; they are not compared."""
    bench = Bench()
    bench.enqueue("keeps the queue", run_at_us=WALL + WAIT)
    bench.enqueue("job", persist=True)
    batch = bench.shard.cut()
    bench.send(Next("q"))
    bench.store.commit(batch)
    bench.heal(bench.fail(Reason.UNKNOWN))

    assert [job.id for job in bench.take_durably(5)] == ["job"]


@pytest.mark.parametrize("persist", [False, True])
def test_an_id_may_have_passed_to_a_new_job_in_the_doubtful_batch(persist: bool) -> None:
    """By completion, of a stored job or a memory one: the new row wins, for it could not be there otherwise."""
    bench = Bench()
    bench.enqueue("job", persist=persist, payload=b"old")
    if persist:
        bench.commit()
    bench.enqueue("other", persist=True)
    bench.send(Complete("q", "job"))
    bench.enqueue("job", persist=True, payload=b"new")
    bench.store.commit(bench.shard.cut())
    keys = bench.fail(Reason.UNKNOWN)
    assert bench.job("job").payload == b"old"
    bench.heal(keys)

    assert bench.job("job").payload == b"new"
    check_books(bench.shard)


def test_an_id_may_have_passed_by_death_in_the_doubtful_batch() -> None:
    """The dead one is a letter, the new one lives."""
    bench = Bench()
    bench.enqueue("job", persist=True, timeout=1, payload=b"old")
    bench.commit()
    bench.take_durably()
    bench.pass_time(1)
    bench.enqueue("job", persist=True, payload=b"new")
    bench.store.commit(bench.shard.cut())
    bench.heal(bench.fail(Reason.UNKNOWN))

    assert (bench.dead_ids(), bench.job("job").payload) == (["job"], b"new")
    check_books(bench.shard)


def test_letters_that_are_adopted_stand_in_the_order_of_their_deaths() -> None:
    """A memory job that died during the outage is younger than one whose death was in doubt."""
    bench = Bench()
    bench.enqueue("persisted", persist=True, timeout=1)
    bench.commit()
    bench.take_durably()
    bench.enqueue("memory", timeout=2)
    bench.take()
    bench.pass_time(1)
    bench.store.commit(bench.shard.cut())
    keys = bench.fail(Reason.UNKNOWN)
    bench.pass_time(1)
    bench.heal(keys)

    assert bench.dead_ids() == ["persisted", "memory"]


def test_a_refused_batch_leaves_nothing_in_doubt() -> None:
    """Surely nothing was written, so there is nothing to read back."""
    bench = Bench()
    bench.enqueue("job", persist=True)
    bench.shard.cut()
    assert bench.fail(Reason.BUSY) == []
    bench.shard.heal()

    assert bench.enqueue("job") == DONE


def test_a_refusal_says_what_its_owner_says() -> None:
    """Detail and retry_after are passed on."""
    bench = Bench()
    key = bench.send(Enqueue("q", "job", 1, persist=True, max_retries=0, payload=b"1"))
    bench.shard.cut()
    bench.shard.failed(Reason.UNKNOWN, "who knows", retry_after=7)
    bench.collect()

    assert bench.answers[key] == Refused(Reason.UNKNOWN, "who knows", None, 7)


def test_an_undone_completion_leaves_a_run_its_whole_time() -> None:
    """It counts from the release of the delivery, also where the job was completed, without its run, before that."""
    bench = Bench()
    bench.enqueue("job", persist=True, timeout=10)
    bench.commit()
    delivered = bench.send(Next("q"))
    bench.shard.cut()
    bench.ask(Complete("q", "job"))
    bench.pass_time(4)
    bench.shard.committed()
    bench.collect()
    assert len(bench.jobs(delivered)) == 1
    bench.lose_store()
    bench.heal()

    bench.pass_time(9)

    assert bench.job("job").status is Status.IN_FLIGHT
    bench.pass_time(1)
    bench.commit()
    assert bench.dead_ids() == ["job"]
