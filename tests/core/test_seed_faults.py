"""Faults that a job runner of this kind has had before, each as a test that fails where it is made again.

Those that the core decides are here; what a store decides is tested there. All of them, each with its test:

    S1   a completion left memory before the store        core  test_a_completion_whose_write_failed_is_not_a_success
    S2   an unknown id of a known queue was completed      core  test_completing_an_unknown_id_of_a_known_queue_is_not_a_success
    S3   a completed job stayed in the line                core  test_completing_a_job_that_waits_takes_it_out_of_the_line
    S4   a delivery whose write failed was given out       core  test_a_delivery_whose_write_failed_is_not_given_to_anyone
    S5   retries were not written, and lost their order    core  test_retries_are_written_and_return_in_order
    S6   jobs in flight were queued at a restart           core  test_jobs_in_flight_are_not_handed_out_again_after_a_restart
    S7   queue and id were joined into one key             core  test_queue_and_id_are_never_joined_into_one_key
    S8   a restart ordered by wall clock                   core  test_recovery_keeps_the_order_of_acceptance_when_the_wall_clock_went_back
    S8   rows that could not be read were passed over      core  test_a_row_that_is_no_job_is_not_passed_over_in_silence
    S9   a delivery came without its state                 core  test_next_returns_the_state
    S10  a start deleted the table; numbers were text      store  test_a_start_keeps_the_dynamodb_table_its_order_and_its_states
    S11  errors that pass were taken for lasting ones      store  test_an_error_of_postgres_that_passes_is_no_end
    S12  a state was stored as a list of numbers           store  test_states_come_back_from_postgres_as_the_bytes_that_they_were
    S13  a job that nobody ran took a heartbeat            core  test_a_heartbeat_of_a_job_that_is_not_in_flight_is_not_a_success
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from proteus_shards.core.commands import Complete, Heartbeat, Next, Reason
from proteus_shards.core.model import Status
from tests.core.rig import DONE, Bench, refused

_LINE = re.compile(r"^    S(\d+) .* (core|store)  (test_\w+)$", re.MULTILINE)


def test_each_fault_has_its_test() -> None:
    """The list is whole, and names tests that there are."""
    listed = _LINE.findall(__doc__ or "")
    texts = {part: (Path(__file__).parent.parent / part / Path(__file__).name).read_text(encoding="utf-8") for part in ("core", "store")}

    assert {int(number) for number, _, _ in listed} == set(range(1, 14))
    assert [name for _, part, name in listed if f"def {name}(" not in texts[part]] == []


def test_completing_an_unknown_id_of_a_known_queue_is_not_a_success() -> None:
    """It was answered as if it had been done."""
    bench = Bench()
    bench.enqueue("job")

    assert refused(bench.ask(Complete("q", "unknown"))).reason is Reason.NOT_FOUND
    assert bench.take_ids() == ["job"]


def test_completing_a_job_that_waits_takes_it_out_of_the_line() -> None:
    """It stayed in the line, and the next `next` fell over it."""
    bench = Bench()
    for name in ("1", "2", "3"):
        bench.enqueue(name)
    assert bench.ask(Complete("q", "1")) == DONE
    assert bench.ask(Complete("q", "2")) == DONE

    assert bench.take_ids() == ["3"]
    assert bench.take_ids() == []


def test_retries_are_written_and_return_in_order() -> None:
    """A retry whose write failed was told as done, and retried jobs came back in the order of a hash."""
    bench = Bench()
    names = [f"{number}" for number in range(30)]
    for name in names:
        bench.enqueue(name, persist=True, timeout=1, max_retries=1)
    bench.commit()
    bench.take_durably(30)
    bench.pass_time(1)
    bench.shard.cut()
    bench.fail()
    assert bench.take_notes() == []
    assert {bench.job(name).status for name in names} == {Status.IN_FLIGHT}
    bench.heal()
    bench.pass_time(1)
    bench.commit()

    assert {row.status for row in bench.store.rows.values()} == {Status.READY}
    assert [note.kind for note in bench.take_notes()] == ["timeout"] * 30
    assert [job.id for job in bench.take_durably(30)] == names


def test_jobs_in_flight_are_not_handed_out_again_after_a_restart() -> None:
    """They were queued again at once, under the feet of their runners."""
    bench = Bench()
    bench.enqueue("job", persist=True, timeout=100)
    bench.commit()
    [job] = bench.take_durably()
    after = bench.restart()

    assert after.take_durably() == []
    after.send(Complete("q", "job", job.run_id))
    after.commit()
    assert after.store.rows == {}


def test_queue_and_id_are_never_joined_into_one_key() -> None:
    """("a-b", "c") and ("a", "b-c") were one job, as were others with other separators."""
    bench = Bench()
    pairs = [("a-b", "c"), ("a", "b-c"), ("a/b", "c"), ("a", "b/c"), ("a:b", "c"), ("a", "b:c"), ("a b", "c"), ("a", "b c")]
    for queue, name in pairs:
        bench.enqueue(name, queue, persist=True)
    assert len(bench.commit().inserts) == len(pairs)
    after = bench.restart()

    for queue in {queue for queue, _ in pairs}:
        assert [job.id for job in after.take_durably(9, queue)] == [name for other, name in pairs if other == queue]


def test_next_returns_the_state() -> None:
    """What a heartbeat saved was never given to the next runner."""
    bench = Bench()
    bench.enqueue("job", timeout=1, max_retries=1)
    [job] = bench.take()
    assert job.state is None
    bench.ask(Heartbeat("q", "job", job.run_id, b'{"at":7}'))
    bench.pass_time(1)

    assert [job.state for job in bench.take()] == [b'{"at":7}']


def test_a_heartbeat_of_a_job_that_is_not_in_flight_is_not_a_success() -> None:
    """It was accepted, and changed the state of a job that nobody ran."""
    bench = Bench()
    bench.enqueue("job", state=b"1")

    assert refused(bench.ask(Heartbeat("q", "job", None, b"2"))).reason is Reason.NOT_FOUND
    assert [job.state for job in bench.take()] == [b"1"]


def test_a_completion_whose_write_failed_is_not_a_success() -> None:
    """Memory forgot the job before the store did; after a restart its ghost came back."""
    bench = Bench()
    bench.enqueue("job", persist=True)
    bench.commit()
    key = bench.send(Complete("q", "job"))
    bench.shard.cut()
    bench.fail()

    assert refused(bench.answers[key]).reason is Reason.BUSY
    assert bench.job("job").status is Status.READY
    bench.heal()
    bench.send(Complete("q", "job"))
    bench.commit()
    assert bench.restart().shard.queues == {}


def test_a_delivery_whose_write_failed_is_not_given_to_anyone() -> None:
    """It was handed out all the same, and after a restart once more, with an attempt that was never counted."""
    bench = Bench()
    bench.enqueue("job", persist=True)
    bench.commit()
    key = bench.send(Next("q"))
    bench.shard.cut()
    bench.fail()

    assert refused(bench.answers[key]).reason is Reason.BUSY
    bench.heal()
    assert [job.attempt for job in bench.take_durably()] == [1]


def test_recovery_keeps_the_order_of_acceptance_when_the_wall_clock_went_back() -> None:
    """The order was that of created_at, so a clock that was set back put new jobs before old ones."""
    bench = Bench()
    for name in ("1", "2", "3"):
        bench.enqueue(name, persist=True)
        bench.set_wall(bench.wall - 3_600_000_000)
    bench.commit()

    assert [job.id for job in bench.restart().take_durably(5)] == ["1", "2", "3"]


def test_a_row_that_is_no_job_is_not_passed_over_in_silence() -> None:
    """It was left out of a restart without a word, and its job was lost unseen."""
    bench = Bench()
    for name in ("1", "2", "3"):
        bench.enqueue(name, persist=True)
    bench.commit()
    key, row = next((key, row) for key, row in bench.store.rows.items() if row.id == "2")
    del bench.store.rows[key]
    bench.store.damaged.append(msgspec.structs.replace(row, timeout=-1))
    after = bench.restart()

    assert [(damaged.seq, fault) for damaged, fault in after.damaged] == [(row.seq, "timeout, attempt and seq must be in their range")]
    assert [job.id for job in after.take_durably(5)] == ["1", "3"]
