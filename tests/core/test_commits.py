"""What waits for a commit, what is written, and what a failed commit leaves behind."""

from __future__ import annotations

import pytest

from proteus_shards.core.commands import Complete, Delivered, Enqueue, Heartbeat, ListDead, Next, Reason, Undeliver
from proteus_shards.core.model import RowKey, Status
from proteus_shards.core.placement import slot_of
from tests.core.rig import DONE, LIMITS, SECOND, WALL, Bench, FakeStore, check_books, key_of, refused

WAIT = 100 * SECOND


# --- when answers come -------------------------------------------------------------------------------------------------------


def test_a_change_of_a_persisted_job_is_answered_only_after_its_commit() -> None:
    """Enqueue, next, heartbeat with state, undeliver and complete: each waits for the store."""
    bench = Bench()
    key = bench.send(Enqueue("q", "job", 10, persist=True, max_retries=3, payload=b"1"))

    def released() -> object:
        assert key not in bench.answers
        bench.shard.cut()
        bench.collect()
        assert key not in bench.answers
        bench.store.commit(bench.shard._ledger.sealed_batch)
        bench.shard.committed()
        bench.collect()
        return bench.answers[key]

    assert released() == DONE
    key = bench.send(Next("q"))
    assert isinstance(released(), Delivered)
    [job] = bench.jobs(key)
    for command in (Heartbeat("q", "job", job.run_id, b"2"), Undeliver("q", "job", job.run_id), Complete("q", "job")):
        key = bench.send(command)
        assert released() == DONE
    assert (bench.store.rows, bench.shard.pending, bench.shard.queues) == ({}, 0, {})


def test_a_memory_only_operation_is_answered_at_once() -> None:
    """Nothing is written, and nothing waits."""
    bench = Bench()
    bench.enqueue("persisted", "other", persist=True)

    assert bench.enqueue("job") == DONE
    [job] = bench.take()
    assert bench.ask(Heartbeat("q", "job", job.run_id, b"1")) == DONE
    assert bench.ask(Complete("q", "job", job.run_id)) == DONE
    assert bench.shard.pending == 1


def test_an_operation_waits_behind_what_is_pending_in_its_queue() -> None:
    """Whatever it would answer, it may depend on what is not durable yet."""
    bench = Bench()
    bench.enqueue("persisted", persist=True)
    keys = [
        bench.send(command)
        for command in (
            Enqueue("q", "memory", 10, persist=False, max_retries=0, payload=b"1"),
            Enqueue("q", "memory", 10, persist=False, max_retries=0, payload=b"1"),
            Heartbeat("q", "nobody"),
            ListDead("q"),
            Complete("q", "memory"),
        )
    ]
    assert bench.answers == {}

    bench.commit()

    assert [type(bench.answers[key]).__name__ for key in keys] == ["Done", "Refused", "Refused", "Listed", "Done"]


def test_a_bare_heartbeat_of_a_persisted_job_writes_no_row() -> None:
    """It is answered at once, for the store knows no deadlines."""
    bench = Bench()
    bench.enqueue("job", persist=True, timeout=10)
    bench.commit()
    bench.take_durably()
    bench.pass_time(5)

    assert bench.ask(Heartbeat("q", "job")) == DONE
    assert not bench.shard.has_open


def test_a_note_of_a_persisted_job_waits_for_its_commit() -> None:
    """A timeout that the store has not written has not happened."""
    bench = Bench()
    bench.enqueue("job", persist=True, timeout=1)
    bench.commit()
    bench.take_durably()
    bench.pass_time(1)
    assert bench.take_notes() == []

    bench.commit()

    assert [note.kind for note in bench.take_notes()] == ["died"]


# --- what is written ---------------------------------------------------------------------------------------------------------


def test_an_insert_and_a_delete_between_two_cuts_write_nothing() -> None:
    """Both are answered by an empty commit."""
    bench = Bench()
    keys = [
        bench.send(Enqueue("q", "job", 10, persist=True, max_retries=0, payload=b"1")),
        bench.send(Next("q")),
        bench.send(Complete("q", "job")),
    ]

    batch = bench.commit()

    assert len(batch) == 0
    assert all(key in bench.answers for key in keys)
    assert bench.shard.queues == {}


def test_many_changes_of_a_job_are_one_write() -> None:
    """Ten heartbeats are one mark, and the last state counts."""
    bench = Bench()
    bench.enqueue("job", persist=True)
    bench.commit()
    [job] = bench.take_durably()
    for number in range(10):
        bench.send(Heartbeat("q", "job", job.run_id, b"%d" % number))

    batch = bench.commit()

    assert (len(batch), len(batch.marks)) == (1, 1)
    assert [row.state for row in bench.store.rows.values()] == [b"9"]


def test_a_mark_without_a_new_state_leaves_the_stored_one() -> None:
    """A large state is not written again with each delivery."""
    bench = Bench()
    bench.enqueue("job", persist=True, state=b"large")
    bench.commit()
    bench.send(Next("q"))
    [mark] = bench.commit().marks

    assert (mark.state_set, mark.state) == (False, None)
    assert [row.state for row in bench.store.rows.values()] == [b"large"]


def test_a_state_that_is_cleared_is_cleared_in_the_store() -> None:
    """An empty heartbeat state is no state."""
    bench = Bench()
    bench.enqueue("job", persist=True, state=b"1")
    bench.commit()
    bench.take_durably()
    bench.send(Heartbeat("q", "job", None, b""))
    bench.commit()

    assert [row.state for row in bench.store.rows.values()] == [None]


def test_a_scheduled_job_is_stored_as_ready() -> None:
    """Whether its time has come follows from run_at, and coming due writes nothing."""
    bench = Bench()
    bench.enqueue("job", persist=True, run_at_us=WALL + SECOND)
    [row] = bench.commit().inserts
    assert (row.status, row.ready_at, row.run_at) == (Status.READY, WALL + SECOND, WALL + SECOND)

    bench.pass_time(1)

    assert bench.job("job").status is Status.READY
    assert not bench.shard.has_open


def test_what_changes_during_a_commit_goes_out_with_the_next_one() -> None:
    """A row under way is not inserted again, and one that goes meanwhile is deleted later."""
    bench = Bench()
    bench.send(Enqueue("q", "1", 10, persist=True, max_retries=0, payload=b"1"))
    bench.send(Enqueue("q", "2", 10, persist=True, max_retries=0, payload=b"1"))
    under_way = bench.shard.cut()
    bench.send(Next("q"))
    bench.send(Complete("q", "2"))
    bench.store.commit(under_way)
    bench.shard.committed()

    batch = bench.commit()

    assert [row.id for row in under_way.inserts] == ["1", "2"]
    assert ([mark.id for mark in batch.marks], [key.id for key in batch.deletes], batch.inserts) == (["1"], ["2"], [])


def test_a_batch_may_bury_a_job_and_insert_its_id_again() -> None:
    """So a store must free the id (delete or mark) before it takes it (insert), or check uniqueness at the end."""
    bench = Bench()
    bench.enqueue("job", persist=True, timeout=1)
    bench.commit()
    bench.take_durably()
    bench.pass_time(1)
    bench.enqueue("job", persist=True)

    batch = bench.commit()

    assert ([mark.status for mark in batch.marks], [row.id for row in batch.inserts]) == ([Status.DEAD], ["job"])


def test_a_batch_may_delete_a_job_and_insert_its_id_again() -> None:
    """Two rows of one name, told apart by seq."""
    bench = Bench()
    bench.enqueue("job", persist=True)
    bench.commit()
    bench.send(Complete("q", "job"))
    bench.enqueue("job", persist=True)

    batch = bench.commit()

    assert ([key.seq for key in batch.deletes], [row.seq for row in batch.inserts]) == ([1], [2])


# --- timeouts of deliveries under way ----------------------------------------------------------------------------------------


def test_the_timeout_of_a_delivery_counts_from_its_release() -> None:
    """However long the commit takes, the runner has its full time."""
    bench = Bench()
    bench.enqueue("job", persist=True, timeout=10, max_retries=1)
    bench.commit()
    bench.send(Next("q"))
    bench.shard.cut()
    bench.pass_time(60)
    assert bench.job("job").status is Status.IN_FLIGHT
    bench.store.commit(bench.shard._ledger.sealed_batch)
    bench.shard.committed()
    bench.pass_time(9.99)
    assert bench.job("job").status is Status.IN_FLIGHT

    bench.pass_time(0.01)

    assert bench.job("job").status is Status.READY


def test_the_commit_of_an_enqueue_does_not_start_the_timeout_of_a_later_delivery() -> None:
    """A delivery that waits in the open log is not released by the commit before it."""
    bench = Bench()
    bench.send(Enqueue("q", "job", 1, persist=True, max_retries=0, payload=b"1"))
    batch = bench.shard.cut()
    key = bench.send(Next("q"))
    bench.store.commit(batch)
    bench.shard.committed()
    bench.pass_time(5)
    assert bench.job("job").status is Status.IN_FLIGHT

    bench.commit()

    assert [job.attempt for job in bench.jobs(key)] == [1]
    bench.pass_time(0.9)
    assert bench.ask(Heartbeat("q", "job", bench.jobs(key)[0].run_id)) == DONE


def test_an_undone_heartbeat_does_not_shorten_a_run() -> None:
    """The deadline that was set at the release of the delivery holds, though the heartbeat's image is older."""
    bench = Bench()
    bench.enqueue("job", persist=True, timeout=10, max_retries=1)
    bench.commit()
    bench.send(Next("q"))
    batch = bench.shard.cut()
    bench.pass_time(6)
    bench.send(Heartbeat("q", "job", None, b"1"))
    bench.store.commit(batch)
    bench.shard.committed()
    bench.shard.cut()
    bench.fail()
    bench.heal()
    bench.pass_time(9.99)

    assert bench.job("job").status is Status.IN_FLIGHT


# --- undoing -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", [Reason.BUSY, Reason.UNKNOWN])
def test_a_failed_commit_undoes_everything_that_waited(reason: Reason) -> None:
    """Sealed operations get the reason, open ones BUSY, and all jobs are as before."""
    bench = Bench()
    bench.enqueue("memory")
    for name in ("1", "2", "3"):
        bench.enqueue(name, persist=True, state=b"old")
    bench.commit()
    [memory, first] = bench.take_durably(2)
    sealed = [
        bench.send(Heartbeat("q", "1", first.run_id, b"new state")),
        bench.send(Complete("q", "2")),
        bench.send(Complete("q", "memory", memory.run_id)),
    ]
    bench.shard.cut()
    opened = [
        bench.send(Next("q", 5)),
        bench.send(Complete("q", "1")),
        bench.send(Enqueue("q", "4", 1, persist=True, max_retries=0, payload=b"1")),
        bench.send(Enqueue("q", "2", 1, persist=False, max_retries=0, payload=b"1")),
    ]

    keys = bench.fail(reason)

    assert [refused(bench.answers[key]).reason for key in sealed] == [reason] * 3
    assert [refused(bench.answers[key]).reason for key in opened] == [Reason.BUSY] * 4
    assert sorted(key.id for key in keys) == (["1", "2"] if reason is Reason.UNKNOWN else [])
    assert sorted(bench.shard.queues["q"].jobs) == ["1", "2", "3", "memory"]
    assert (bench.job("1").run_id, bench.job("1").state, bench.job("memory").run_id) == (first.run_id, b"old", memory.run_id)
    assert [job.id for job in bench.shard.queues["q"].ready()] == ["2", "3"]
    check_books(bench.shard)
    bench.heal(keys)
    assert [job.id for job in bench.take_durably(5)] == ["2", "3"]


def test_what_was_answered_before_is_not_undone() -> None:
    """Memory-only operations of queues with nothing pending have been told, and stand."""
    bench = Bench()
    bench.enqueue("1", persist=True)
    bench.enqueue("2", "other")
    bench.shard.cut()
    bench.enqueue("3", "other")
    bench.fail()

    assert sorted(bench.shard.queues["other"].jobs) == ["2", "3"]


def test_an_undone_enqueue_leaves_its_id_free_and_its_queue_forgotten() -> None:
    """As if it had never come."""
    bench = Bench()
    bench.enqueue("job", persist=True, payload=b"12345")
    bench.shard.cut()
    bench.fail()

    assert (bench.shard.queues, bench.shard.bytes, bench.shard.totals) == ({}, 0, [0] * 5)
    bench.heal()
    bench.enqueue("job", persist=True)
    assert len(bench.commit().inserts) == 1


def test_an_undone_delivery_goes_to_the_next_one_who_waits() -> None:
    """A memory job that was to be handed out behind a failed commit is handed to a poll that came meanwhile."""
    bench = Bench()
    bench.enqueue("memory")
    bench.enqueue("persisted", persist=True)
    first = bench.send(Next("q", 2))
    bench.shard.cut()
    second = bench.send(Next("q", 1, WAIT))
    bench.fail()

    assert refused(bench.answers[first]).reason is Reason.BUSY
    assert [job.id for job in bench.jobs(second)] == ["memory"]


def test_a_scheduled_job_whose_completion_was_undone_comes_due_once() -> None:
    """Being filed twice does no harm."""
    bench = Bench()
    bench.enqueue("job", persist=True, run_at_us=WALL + SECOND)
    bench.commit()
    for _ in range(3):
        bench.send(Complete("q", "job"))
        bench.shard.cut()
        bench.fail()
        bench.heal()
    bench.pass_time(1)

    assert [job.id for job in bench.take_durably(5)] == ["job"]


def test_sealed_answers_counts_those_who_wait_for_the_commit_under_way() -> None:
    """One operation of several jobs is one answer; a timeout is none."""
    bench = Bench()
    bench.enqueue("0", "timeout", persist=True, timeout=1, max_retries=1)
    for name in ("1", "2"):
        bench.enqueue(name, persist=True)
    bench.commit()
    bench.take_durably(1, "timeout")
    bench.pass_time(1)
    bench.send(Next("q", 2))
    assert bench.shard.sealed_answers == 0
    bench.shard.cut()

    assert (bench.shard.pending, bench.shard.sealed_answers) == (3, 1)


def test_two_commits_at_a_time_are_a_bug() -> None:
    """The owner must tell the outcome of one before the next."""
    bench = Bench()
    bench.enqueue("job", persist=True)
    bench.shard.cut()
    bench.enqueue("job 2", persist=True)

    with pytest.raises(AssertionError):
        bench.shard.cut()


def test_the_fake_store_is_no_pushover() -> None:
    """The judge of all batches refuses what it should."""
    bench = Bench(LIMITS, FakeStore())
    bench.enqueue("job", persist=True)
    batch = bench.commit()

    with pytest.raises(AssertionError, match="inserts a row that is there already"):
        bench.store.commit(batch)
    bench.store.rows.clear()
    bench.send(Next("q"))
    with pytest.raises(AssertionError, match="marks a row that is not there"):
        bench.store.commit(bench.shard.cut())
    assert key_of(batch.inserts[0]) == RowKey(slot_of("q"), 1, "q", "job")
