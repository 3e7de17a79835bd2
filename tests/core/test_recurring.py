"""Recurring jobs, on the core alone: each time once, whatever ends, fails or is set."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proteus_shards.core.commands import Complete, Enqueue, Next, Outcome, Reason
from proteus_shards.core.commands_control import DropSchedule, ListSchedules, PutSchedule, Schedules, ScheduleView
from proteus_shards.core.model import Record
from proteus_shards.core.recurring import FIRED_MAX
from tests.core.rig import DONE, SECOND, WALL, Bench, FakeStore, refused

HOUR = 3600
DAY = 24 * HOUR


def put(bench: Bench, name: str = "tick", *, persist: bool = True, **definition: Any) -> Outcome | None:
    """Put a schedule of every minute, and commit."""
    text = msgspec.json.encode({"every": 60, "job": {}, **definition})
    key = bench.send(PutSchedule("q", name, text, Enqueue("q", name, 10, persist, 0, b"1")))
    bench.commit()
    return bench.answers[key]


def look(bench: Bench, name: str = "tick") -> ScheduleView:
    """Look at a schedule."""
    answer = bench.ask(ListSchedules("q", 1, "", name))
    assert isinstance(answer, Schedules)
    return answer.schedules[0]


def times(bench: Bench) -> list[int]:
    """Take all jobs, and return for which time each is, in seconds since the bench's beginning."""
    key = bench.send(Next("q", 1000))
    bench.commit()
    return [int(job.id.partition("@")[2]) - WALL // SECOND for job in bench.jobs(key)]


def test_a_schedule_makes_a_job_at_each_of_its_times() -> None:
    """In the queue, with an id made of its name and the time."""
    bench = Bench()
    assert put(bench) == DONE

    for _ in range(3):
        bench.pass_time(60)
        bench.commit()

    assert times(bench) == [60, 120, 180]
    shown = look(bench)
    assert (shown.fired, shown.missed, shown.last_at, shown.next_at) == (3, 0, WALL + 180 * SECOND, WALL + 240 * SECOND)
    assert bench.shard.counters.fired == 3


def test_the_job_and_the_note_of_it_are_one_batch() -> None:
    """So that either both are there after a crash, or neither."""
    bench = Bench(batch_rows_max=2)
    put(bench)
    bench.enqueue("other", persist=True)
    bench.pass_time(60)

    bench.commit()
    batch = bench.commit()

    assert [row.id for row in batch.inserts] == [f"tick@{WALL // SECOND + 60}"]
    assert len(batch.records) == 1


def test_a_time_that_came_before_a_crash_does_not_come_again() -> None:
    """And one whose commit never was comes after it."""
    bench = Bench()
    put(bench)
    bench.pass_time(60)
    bench.commit()
    bench.pass_time(60)

    after = bench.restart()
    after.advance()
    after.commit()

    assert times(after) == [60, 120]
    assert look(after).fired == 2


@pytest.mark.parametrize(
    ("missed", "late", "found", "lost"),
    [
        ("skip", 10 * 60 + 30, [600], 9),
        ("once", 10 * 60 + 90, [660], 10),
        ("all", 3 * 60 + 90, [60, 120, 180, 240], 0),
        ("all", (FIRED_MAX + 5) * 60, [60 * (number + 6) for number in range(FIRED_MAX)], 5),
    ],
)
def test_what_was_missed_is_made_up_for_as_told(missed: str, late: int, found: list[int], lost: int) -> None:
    """A time that has just passed is not missed yet; what makes no job is counted."""
    bench = Bench()
    put(bench, missed=missed)
    bench.now += late * SECOND
    bench.wall += late * SECOND
    after = bench.restart()
    after.advance()
    after.commit()

    assert (times(after), look(after).missed) == (found, lost)


def test_a_daily_job_that_was_missed_by_hours_is_skipped() -> None:
    """And counted."""
    bench = Bench()
    put(bench, every=DAY)
    first = look(bench).next_at
    assert first is not None
    bench.set_wall(first + HOUR * SECOND)
    bench.commit()

    assert times(bench) == []
    assert (look(bench).missed, look(bench).next_at) == (1, first + DAY * SECOND)
    assert bench.shard.counters.missed == 1


def test_with_overlap_skip_a_time_makes_no_job_while_the_last_one_is_not_done() -> None:
    """Once that is completed, the next time does."""
    bench = Bench()
    put(bench, overlap="skip")
    for _ in range(2):
        bench.pass_time(60)
        bench.commit()

    key = bench.send(Next("q", 10))
    bench.commit()
    (job,) = bench.jobs(key)
    bench.send(Complete("q", job.id))
    bench.pass_time(60)
    bench.commit()

    assert times(bench) == [180]
    assert (look(bench).fired, look(bench).missed) == (2, 1)


def test_a_paused_schedule_lets_its_times_pass() -> None:
    """They are not missed, and do not come later."""
    bench = Bench()
    put(bench, paused=True, missed="all")
    bench.pass_time(300)
    put(bench, missed="all")
    bench.pass_time(60)
    bench.commit()

    assert times(bench) == [360]
    assert look(bench).missed == 0


def test_a_clock_set_back_makes_nothing_twice() -> None:
    """Until it has come to where it was; a clock that was a year ahead does not silence a schedule for a year."""
    bench = Bench()
    put(bench)
    bench.pass_time(120)
    bench.commit()
    seen = times(bench)
    bench.set_wall(WALL)
    bench.pass_time(60)
    bench.commit()
    again = times(bench)
    bench.set_wall(WALL + 365 * DAY * SECOND)
    bench.commit()
    ahead = times(bench)
    bench.set_wall(WALL + 200 * SECOND)
    bench.pass_time(60)
    bench.commit()

    assert (seen, again, len(ahead)) == ([120], [], 1)
    assert times(bench) == [240]


def test_nothing_comes_while_the_store_is_away() -> None:
    """What came due meanwhile is late."""
    bench = Bench()
    put(bench, missed="all")
    bench.lose_store()
    bench.pass_time(180)
    assert not bench.shard.has_open
    bench.heal()
    bench.pass_time(2)
    bench.commit()

    assert times(bench) == [60, 120, 180]


def test_a_full_queue_misses_its_time() -> None:
    """And it is counted; the next one may come."""
    bench = Bench(queue_jobs_max=1)
    put(bench)
    for _ in range(2):
        bench.pass_time(60)
        bench.commit()

    assert times(bench) == [60]
    assert (look(bench).fired, look(bench).missed) == (1, 1)


def test_the_same_definition_again_changes_nothing() -> None:
    """An application may put its schedules at each start, and loses no time that was missed by it."""
    bench = Bench()
    put(bench, missed="all")
    bench.now += 120 * SECOND
    bench.wall += 120 * SECOND
    after = bench.restart()

    put(after, missed="all")
    after.advance()
    after.commit()

    assert times(after) == [60, 120]


def test_a_schedule_that_is_dropped_comes_no_more() -> None:
    """Not after a restart either; what it has made stays."""
    bench = Bench()
    put(bench)
    bench.pass_time(60)
    bench.commit()
    key = bench.send(DropSchedule("q", "tick"))
    bench.commit()
    after = bench.restart()
    after.pass_time(60)

    assert bench.answers[key] == DONE
    assert times(after) == [60]
    assert refused(after.ask(DropSchedule("q", "tick"))).reason is Reason.NOT_FOUND


@pytest.mark.parametrize(
    ("definition", "field"),
    [
        ({"every": 0}, "every"),
        ({"every": 1.5}, "every"),
        ({"cron": "* * * * *"}, "cron"),
        ({"every": None}, "cron"),
        ({"timezone": "Europe/Berlin"}, "timezone"),
        ({"missed": "never"}, "missed"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_a_wrong_schedule_is_refused_with_the_field_at_fault(definition: dict[str, Any], field: str) -> None:
    """And nothing is written."""
    bench = Bench()
    text = msgspec.json.encode({"every": 60, "job": {}, **definition})

    answer = refused(bench.ask(PutSchedule("q", "tick", text, Enqueue("q", "tick", 10, False, 0, b"1"))))

    assert (answer.reason, answer.field) == (Reason.INVALID, field)
    assert not len(bench.commit())


def test_there_are_as_many_schedules_as_allowed() -> None:
    """One more is refused by the name of the limit."""
    bench = Bench(schedules_max=1)
    put(bench)

    answer = refused(put_later(bench))

    assert answer.reason is Reason.FULL
    assert "schedules_max" in answer.detail


def put_later(bench: Bench) -> Outcome | None:
    """Put another schedule, without a commit."""
    return bench.ask(PutSchedule("q", "more", b'{"every":60,"job":{}}', Enqueue("q", "more", 10, False, 0, b"1")))


def test_a_damaged_record_is_kept_aside() -> None:
    """The others are taken in."""
    store = FakeStore()
    bench = Bench(store=store)
    put(bench)
    key = next(iter(store.records))
    damaged = Record(key.slot, key.kind, "q\nother", b"nonsense")

    after = bench.restart()
    found = after.shard.load_records([damaged])

    assert [fault for _, fault in found] == ["the schedule cannot be read"]
    assert look(after).name == "tick"


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_each_time_comes_once_whatever_happens(data: st.DataObject) -> None:
    """Crashes, failed and doubtful commits, and clocks that are set, in any order: with missed="all" each time is there exactly once, or counted."""
    bench = Bench()
    put(bench, missed="all", every=60)
    seen: Counter[int] = Counter()
    for _ in range(data.draw(st.integers(1, 12))):
        match data.draw(st.sampled_from(["time", "crash", "busy", "unknown", "back", "take"])):
            case "time":
                bench.pass_time(data.draw(st.sampled_from([1, 30, 60, 61, 200])))
                bench.commit()
            case "crash":
                bench.pass_time(data.draw(st.sampled_from([0, 60, 130])))
                if data.draw(st.booleans()):
                    bench.store.commit(bench.shard.cut())
                bench = bench.restart()
                bench.advance()
            case "busy":
                bench.pass_time(60)
                bench.shard.cut()
                bench.fail()
                bench.heal()
            case "unknown":
                bench.pass_time(60)
                batch = bench.shard.cut()
                if data.draw(st.booleans()):
                    bench.store.commit(batch)
                keys, records = bench.fail(Reason.UNKNOWN), bench.shard.records_in_doubt
                bench.shard.adopt_records(records, bench.store.read_records(records))
                bench.heal(keys)
            case "back":
                bench.set_wall(bench.wall - 90 * SECOND)
            case "take":
                seen.update(take_and_complete(bench))
    bench.pass_time(300)
    bench.commit()
    seen.update(take_and_complete(bench))

    last = look(bench).last_at
    expected = list(range(60, (last - WALL) // SECOND + 1, 60)) if last is not None else []
    assert sorted(seen.elements()) == expected


def take_and_complete(bench: Bench) -> list[int]:
    """Complete all jobs, and return for which times they were."""
    found: list[int] = []
    while bench.shard.has_open:
        bench.commit()
    key = bench.send(Next("q", 1000))
    if bench.shard.has_open:
        bench.commit()
    for job in bench.jobs(key):
        found.append(int(job.id.partition("@")[2]) - WALL // SECOND)
        bench.send(Complete("q", job.id))
    bench.commit()
    return found
