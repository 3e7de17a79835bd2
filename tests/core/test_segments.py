"""Batches no larger than the store takes: cut between two operations, one after another, taken back as one."""

from __future__ import annotations

from proteus_shards.core.commands import Complete, Done, Enqueue, Next, Reason
from proteus_shards.core.holdings import answer_bytes
from proteus_shards.core.model import Status
from tests.core.rig import DONE, Bench, check_books, refused


def enqueue(number: int, size: int = 1) -> Enqueue:
    """Return a persisted job of its own queue."""
    return Enqueue(f"q{number}", f"{number}", 10, persist=True, max_retries=0, payload=b"1" * size)


def sizes(bench: Bench) -> list[int]:
    """Commit until nothing waits, and return how many rows each batch had."""
    found = []
    while bench.shard.has_open:
        found.append(len(bench.commit()))
    return found


def test_a_batch_has_no_more_rows_than_the_store_takes() -> None:
    """What is beyond them waits for the next, in order."""
    bench = Bench(batch_rows_max=3)
    keys = [bench.send(enqueue(number)) for number in range(7)]

    assert len(bench.commit()) == 3
    assert list(bench.answers) == keys[:3]
    assert sizes(bench) == [3, 1]
    assert [bench.answers[key] for key in keys] == [DONE] * 7


def test_a_batch_has_no_more_bytes_than_the_store_takes() -> None:
    """Names, payloads and states of all its rows together."""
    one = answer_bytes(enqueue(0, 1000))
    bench = Bench(batch_bytes_max=3 * one)
    for number in range(7):
        bench.send(enqueue(number, 1000))

    assert sizes(bench) == [3, 3, 1]


def test_a_job_that_a_closed_batch_holds_is_written_again_by_the_next() -> None:
    """Each shows the job as it was at the end of that batch, and nothing of what came after."""
    bench = Bench(batch_rows_max=1)
    bench.send(enqueue(0))
    taken = bench.send(Next("q0"))
    [row] = bench.commit().inserts
    assert row.status == Status.READY
    assert taken not in bench.answers

    [mark] = bench.commit().marks
    [delivery] = bench.jobs(taken)
    assert (mark.status, mark.run_id) == (Status.IN_FLIGHT, delivery.run_id)


def test_a_refused_batch_takes_the_waiting_ones_with_it() -> None:
    """They were never submitted: surely without effect, whatever became of the first."""
    bench = Bench(batch_rows_max=2)
    keys = [bench.send(enqueue(number)) for number in range(5)]
    bench.shard.cut()
    doubt = bench.fail(Reason.UNKNOWN)
    reasons = [refused(bench.answers[key]).reason for key in keys]
    bench.heal(doubt)

    assert reasons == [Reason.UNKNOWN, Reason.UNKNOWN, Reason.BUSY, Reason.BUSY, Reason.BUSY]
    assert bench.shard.queues == {}
    assert bench.shard.pending == 0
    check_books(bench.shard)


def test_a_job_enqueued_and_completed_in_two_batches_is_undone_through_both() -> None:
    """A failed first batch leaves neither the job nor a row to delete."""
    bench = Bench(batch_rows_max=1)
    bench.send(enqueue(0))
    bench.send(enqueue(1))
    bench.send(Complete("q0", "0"))
    assert len(bench.shard.cut()) == 1
    bench.fail()
    bench.heal()
    bench.send(enqueue(0))

    assert sizes(bench) == [1]
    assert [row.seq for row in bench.store.rows.values()] == [3]


def test_a_delivery_has_no_more_jobs_than_a_batch_has_rows() -> None:
    """An operation is never split: fewer jobs come than were asked for."""
    bench = Bench(batch_rows_max=3)
    for number in range(5):
        bench.send(Enqueue("q", f"{number}", 10, persist=True, max_retries=0, payload=b"1"))
    assert sizes(bench) == [3, 2]

    assert [job.id for job in bench.take_durably(100)] == ["0", "1", "2"]
    assert [job.id for job in bench.take_durably(100)] == ["3", "4"]


def test_a_delivery_leaves_room_beside_it() -> None:
    """Its jobs take at most half the bytes of a batch, but one job always goes."""
    payload = b"1" * 1000
    one = answer_bytes(Enqueue("q", "0", 10, persist=True, max_retries=0, payload=payload))
    bench = Bench(batch_bytes_max=4 * one)
    for number in range(5):
        bench.send(Enqueue("q", f"{number}", 10, persist=True, max_retries=0, payload=payload))
    assert sizes(bench) == [4, 1]

    assert [len(bench.take_durably(100)) for _ in range(3)] == [2, 2, 1]


def test_memory_only_operations_take_no_room() -> None:
    """They write no row, whatever their number."""
    bench = Bench(batch_rows_max=1)
    for number in range(5):
        assert bench.enqueue(f"{number}") == Done()

    assert not bench.shard.has_open
