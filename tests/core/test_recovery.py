"""What a shard reads back at its start, and what it does with rows that are no jobs."""

from __future__ import annotations

import msgspec
import pytest

from proteus_shards.core.commands import Complete, Enqueue, Heartbeat, Next
from proteus_shards.core.model import COUNT_MAX, TIME_US_MAX, TIME_US_MIN, TIMEOUT_SECONDS_MAX, Row, RowKey, Status
from proteus_shards.core.placement import slot_of
from tests.core.rig import DONE, LIMITS, SECOND, WALL, YEAR, Bench, FakeStore, check_books, key_of

GOOD = Row(slot_of("q"), 5, "q", "good", Status.READY, WALL, None, 10, 3, 0, None, None, WALL, WALL, b"1", None)
RUN = b"\x01" * 16


def holding(*rows: Row) -> FakeStore:
    """Return a store with these rows."""
    store = FakeStore()
    store.rows = {key_of(row): row for row in rows}
    return store


def test_every_kind_of_job_comes_back_as_it_was() -> None:
    """Scheduled, ready, in flight and dead, with all their fields."""
    bench = Bench()
    bench.enqueue("in flight", persist=True, timeout=100, max_retries=2, payload=b"[1]")
    bench.enqueue("dead", persist=True, timeout=1)
    bench.commit()
    [job, _] = bench.take_durably(2)
    bench.send(Heartbeat("q", "in flight", job.run_id, b'"state"'))
    bench.pass_time(1)
    bench.enqueue("ready", persist=True, state=b"2")
    bench.enqueue("scheduled", persist=True, run_at_us=WALL + YEAR)
    bench.enqueue("memory")
    bench.commit()
    before = {job.id: msgspec.structs.asdict(job) for job in bench.shard.queues["q"].jobs.values() if job.persist}
    after = bench.restart()

    assert after.damaged == []
    assert after.shard.totals == [0, 1, 1, 1, 1]
    assert sorted(after.shard.queues["q"].jobs) == ["in flight", "ready", "scheduled"]
    inner = {"deadline", "timed", "returned", "started_at"}
    for name, job_before in before.items():
        job_after = msgspec.structs.asdict(after.job(name))
        assert {key: value for key, value in job_after.items() if key not in inner} == {
            key: value for key, value in job_before.items() if key not in inner
        }
    assert after.dead_ids() == ["dead"]
    check_books(after.shard)


def test_memory_only_jobs_are_lost_with_their_process_and_only_those() -> None:
    """They leave no trace in the store."""
    bench = Bench()
    bench.enqueue("memory")
    bench.enqueue("persisted", persist=True)
    bench.commit()

    assert list(bench.restart().shard.queues["q"].jobs) == ["persisted"]


def test_what_was_never_committed_never_happened() -> None:
    """A crash before the commit leaves what was before: not enqueued, not delivered, not completed."""
    bench = Bench()
    bench.enqueue("1", persist=True)
    bench.enqueue("2", persist=True)
    bench.commit()
    bench.send(Next("q"))
    bench.send(Complete("q", "2"))
    bench.send(Enqueue("q", "3", 1, persist=True, max_retries=0, payload=b"1"))
    bench.shard.cut()
    after = bench.restart()

    assert [(job.id, job.attempt) for job in after.take_durably(5)] == [("1", 1), ("2", 1)]


def test_a_run_goes_on_after_a_restart_with_its_full_timeout() -> None:
    """Nobody else gets the job meanwhile, and its runner may still finish it."""
    bench = Bench()
    bench.enqueue("job", persist=True, timeout=10, max_retries=1)
    bench.commit()
    [job] = bench.take_durably()
    bench.pass_time(9)
    after = bench.restart()
    after.pass_time(9.99)
    assert after.take_durably() == []

    after.send(Complete("q", "job", job.run_id))
    after.commit()

    assert after.store.rows == {}


def test_a_scheduled_job_whose_time_came_while_nobody_was_there_is_ready() -> None:
    """It stands where its run_at puts it."""
    bench = Bench()
    bench.enqueue("later", persist=True, run_at_us=WALL + 2 * SECOND)
    bench.enqueue("sooner", persist=True, run_at_us=WALL + SECOND)
    bench.commit()
    bench.wall += 10 * SECOND
    after = bench.restart()
    after.enqueue("new", persist=True)
    after.commit()

    assert [job.id for job in after.take_durably(5)] == ["sooner", "later", "new"]


def test_sequence_numbers_go_on_where_they_stopped() -> None:
    """No new row takes the place of an old one."""
    bench = Bench()
    bench.enqueue("1", persist=True)
    bench.enqueue("2", persist=True, timeout=1)
    bench.commit()
    after = bench.restart()
    after.enqueue("3", persist=True)
    after.commit()

    assert sorted(row.seq for row in after.store.rows.values()) == [1, 2, 3]


def test_rows_may_come_in_any_number_of_pieces() -> None:
    """Load takes chunks; the end is told."""
    bench = Bench()
    for number in range(10):
        bench.enqueue(f"{number}", persist=True)
    bench.commit()
    rows = bench.store.load()
    after = Bench(store=FakeStore())
    for row in rows:
        assert after.shard.load([row]) == []
    after.shard.finish_load()

    assert [job.id for job in after.shard.queues["q"].ready()] == [f"{number}" for number in range(10)]


def test_a_deep_crash_in_the_middle_of_a_life_changes_no_outcome() -> None:
    """With a restart after each single step, a job lives as it would without."""
    bench = Bench()
    bench.enqueue("job", persist=True, timeout=1, max_retries=1)
    bench.commit()
    bench = bench.restart()
    [first] = bench.take_durably()
    bench = bench.restart()
    bench.pass_time(1)
    bench.commit()
    bench = bench.restart()
    [second] = bench.take_durably()
    bench = bench.restart()
    bench.send(Heartbeat("q", "job", second.run_id, b"1"))
    bench.commit()
    bench = bench.restart()
    bench.pass_time(1)
    bench.commit()
    bench = bench.restart()

    assert (first.attempt, second.attempt, bench.dead_ids()) == (1, 2, ["job"])


# --- damaged rows --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"id": ""}, "id must not be empty"),
        ({"id": "x" * 1025}, "id must have at most 1024 characters, not 1025"),
        ({"id": "a\nb"}, "id must not contain control characters or lone surrogates"),
        ({"id": "\ud800"}, "id must not contain control characters or lone surrogates"),
        ({"queue": ""}, "queue must not be empty"),
        ({"queue": "\x9f"}, "queue must not contain control characters or lone surrogates"),
        ({"slot": slot_of("q") ^ 1}, f"slot must be {slot_of('q')}, not {slot_of('q') ^ 1}"),
        ({"status": Status.GONE}, "status must be 2, 3 or 4, not 0"),
        ({"status": Status.SCHEDULED}, "status must be 2, 3 or 4, not 1"),
        ({"status": 5}, "status must be 2, 3 or 4, not 5"),
        ({"status": Status.IN_FLIGHT}, "run_id must be set exactly while the job is in flight"),
        ({"run_id": RUN}, "run_id must be set exactly while the job is in flight"),
        ({"timeout": -1}, "timeout, attempt and seq must be in their range"),
        ({"timeout": TIMEOUT_SECONDS_MAX + 1}, "timeout, attempt and seq must be in their range"),
        ({"attempt": -1}, "timeout, attempt and seq must be in their range"),
        ({"seq": -1}, "timeout, attempt and seq must be in their range"),
        ({"seq": COUNT_MAX + 1}, "timeout, attempt and seq must be in their range"),
        ({"ready_at": TIME_US_MAX + 1}, "ready_at, run_at, created_at and updated_at must lie in the years 1…9999"),
        ({"created_at": TIME_US_MIN - 1}, "ready_at, run_at, created_at and updated_at must lie in the years 1…9999"),
        ({"updated_at": 2**63 - 1}, "ready_at, run_at, created_at and updated_at must lie in the years 1…9999"),
        ({"run_at": 2**63 - 1}, "ready_at, run_at, created_at and updated_at must lie in the years 1…9999"),
        ({"id": "good"}, "another live row has its queue and id"),
    ],
)
def test_a_damaged_row_is_told_and_kept_aside(changes: dict[str, object], fault: str) -> None:
    """It is named with its fault, disturbs no other row, drags no counter or clock along, and is never written."""
    bad = msgspec.structs.replace(GOOD, **({"seq": 7, "id": "bad"} | changes))
    store = holding(GOOD)
    store.damaged = [bad]
    bench = Bench(store=store)

    assert bench.damaged == [(RowKey(bad.slot, bad.seq, bad.queue, bad.id), fault)]
    assert list(bench.shard.queues) == ["q"]
    assert list(bench.shard.queues["q"].jobs) == ["good"]
    check_books(bench.shard)
    assert bench.enqueue("new", persist=True) is None
    [new] = bench.commit().inserts
    assert (new.seq, new.ready_at) == (8 if 0 <= bad.seq <= COUNT_MAX else 6, WALL)
    assert [job.id for job in bench.take_durably(5)] == ["good", "new"]


def test_the_number_of_a_row_that_could_not_be_read_is_passed_over() -> None:
    """No new job takes its place; one that no counter ever reaches drags none along."""
    bench = Bench()
    bench.shard.pass_over(41)
    bench.shard.pass_over(2**63 - 1)
    bench.enqueue("job", persist=True)

    assert [row.seq for row in bench.commit().inserts] == [42]


def test_extreme_rows_that_are_jobs_are_taken() -> None:
    """The edges of every range are inside."""
    edge = msgspec.structs.replace(
        GOOD,
        seq=COUNT_MAX,
        id="\U0010ffff" * 1024,
        status=Status.IN_FLIGHT,
        run_id=RUN,
        timeout=TIMEOUT_SECONDS_MAX,
        max_retries=-(2**31),
        attempt=2**40,
        run_at=TIME_US_MIN,
        created_at=0,
        payload=b"",
    )
    bench = Bench(store=holding(edge))

    assert bench.damaged == []
    assert bench.job(edge.id).deadline == bench.now + TIMEOUT_SECONDS_MAX * SECOND


def test_two_letters_of_one_name_are_no_damage() -> None:
    """Only live rows must differ in their names."""
    dead = msgspec.structs.replace(GOOD, status=Status.DEAD, reason="timeout", attempt=4, seq=1)
    bench = Bench(store=holding(GOOD, dead, msgspec.structs.replace(dead, seq=2)))

    assert (bench.damaged, len(bench.dead_ids()), bench.take_durably(5)[0].id) == ([], 2, "good")


def test_more_rows_than_the_limits_allow_are_taken_all_the_same() -> None:
    """A limit that was lowered refuses new jobs; it loses none."""
    bench = Bench()
    for number in range(5):
        bench.enqueue(f"{number}", f"queue {number}", persist=True)
    bench.commit()
    after = Bench(LIMITS, bench.store, shard_jobs_max=1, queues_max=1, shard_bytes_max=1)

    assert len(after.shard.queues) == 5
    assert after.enqueue("new", "new") != DONE
