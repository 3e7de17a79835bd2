"""Settings of queues, views of queues and jobs, and what operators do to jobs, on the core alone."""

from __future__ import annotations

import msgspec
import pytest

from proteus_shards.core import views
from proteus_shards.core.commands import Command, Complete, Delivered, Enqueue, Next, Options, Outcome, Reason
from proteus_shards.core.commands_control import (
    Change,
    Counted,
    FindJobs,
    GetJob,
    GetQueue,
    Jobs,
    JobView,
    ListJobs,
    ListQueues,
    Purge,
    Queues,
    QueueView,
    Redrive,
    SetQueue,
    State,
)
from proteus_shards.core.model import Kind, Record
from proteus_shards.core.placement import slot_of
from proteus_shards.core.upkeep import CHANGES_MAX
from tests.core.rig import DONE, SECOND, WALL, Bench, check_books, refused

ALL = [str(state) for state in State]


def jobs(outcome: Outcome | None) -> list[JobView]:
    """Say that an answer is jobs, and return them."""
    assert isinstance(outcome, Jobs), outcome
    return outcome.jobs


def queue_of(bench: Bench, name: str = "q") -> QueueView:
    """Look at one queue."""
    answer = bench.ask(GetQueue(name))
    assert isinstance(answer, Queues), answer
    return answer.queues[0]


def counted(outcome: Outcome | None) -> int:
    """Say that an answer is a count, and return it."""
    assert isinstance(outcome, Counted), outcome
    return outcome.jobs


def later(bench: Bench, command: Command) -> Outcome:
    """Ask for something that is carried out in portions, and let it come to its end."""
    key = bench.send(command)
    for _ in range(1000):
        if key in bench.answers:
            return bench.answers[key]
        assert bench.shard.due_in(bench.now, bench.wall) == 0
        bench.advance()
    raise AssertionError("no end")


def durably(bench: Bench, command: Command) -> Outcome:
    """Ask for something, commit, and return the answer."""
    key = bench.send(command)
    assert key not in bench.answers
    bench.commit()
    return bench.answers[key]


def dead_jobs(bench: Bench, *ids: str, persist: bool = False, queue: str = "q") -> None:
    """Let jobs die, in this order."""
    for job_id in ids:
        bench.enqueue(job_id, queue, timeout=0, persist=persist)
    bench.shard.apply(None, Next(queue, len(ids)))
    bench.commit()
    bench.pass_time(0.001)
    bench.commit()


# --- settings --------------------------------------------------------------------------------------------------


def test_settings_are_a_record_of_the_queue_and_are_there_after_a_restart() -> None:
    """What is set is written by the commit whose answer says so, and nothing else is."""
    bench = Bench()

    assert durably(bench, SetQueue("q", b'{"paused":true,"max_in_flight":2}')) == DONE
    after = bench.restart()

    (record,) = bench.store.batches[-1].records
    assert (record.slot, record.kind, record.name) == (slot_of("q"), Kind.QUEUE, "q")
    assert msgspec.json.decode(record.value or b"") == {"paused": True, "max_in_flight": 2}
    assert queue_of(after).settings == record.value
    assert queue_of(after).paused


def test_a_queue_with_settings_is_kept_while_it_is_empty_and_counts_as_one() -> None:
    """Until the last of them is taken back."""
    bench = Bench(queues_max=1)
    durably(bench, SetQueue("q", b'{"ttl":5}'))

    full = bench.enqueue("1", "other")
    durably(bench, SetQueue("q", b'{"ttl":null}'))

    assert refused(full).reason is Reason.FULL
    assert bench.store.batches[-1].records == [Record(slot_of("q"), Kind.QUEUE, "q", None)]
    assert bench.shard.queues == {}
    assert bench.enqueue("1", "other") == DONE


def test_a_wrong_setting_is_refused_with_its_name() -> None:
    """And nothing of the patch is set."""
    bench = Bench()

    answer = refused(bench.ask(SetQueue("q", b'{"paused":true,"ttl":-1}')))

    assert (answer.reason, answer.field) == (Reason.INVALID, "ttl")
    assert bench.shard.queues == {}


@pytest.mark.parametrize("reason", [Reason.BUSY, Reason.UNKNOWN])
def test_settings_of_a_failed_commit_are_taken_back(reason: Reason) -> None:
    """Whatever came of it in the store: what it holds counts."""
    bench = Bench()
    durably(bench, SetQueue("q", b'{"max_in_flight":1}'))
    key = bench.send(SetQueue("q", b'{"max_in_flight":7,"paused":true}'))
    batch = bench.shard.cut()
    if reason is Reason.UNKNOWN:
        bench.store.commit(batch)

    keys = bench.fail(reason)
    in_doubt = bench.shard.records_in_doubt
    between = bench.shard.queues["q"].settings
    bench.shard.adopt(keys, {})
    bench.shard.adopt_records(in_doubt, bench.store.read_records(in_doubt))
    bench.shard.heal()

    assert refused(bench.answers[key]).reason is reason
    assert (between.max_in_flight, between.paused) == (1, False)
    after = bench.shard.queues["q"].settings
    assert (after.max_in_flight, after.paused) == ((7, True) if reason is Reason.UNKNOWN else (1, False))


def test_settings_that_say_nothing_new_write_nothing() -> None:
    """An application may set its queues at each start."""
    bench = Bench()
    durably(bench, SetQueue("q", b'{"ttl":5}'))

    assert bench.ask(SetQueue("q", b'{"ttl":5}')) == DONE
    assert not len(bench.commit())


def test_a_paused_queue_delivers_nothing_until_it_is_resumed() -> None:
    """A poll that waits is served by the resume."""
    bench = Bench()
    bench.enqueue("1")
    durably(bench, SetQueue("q", b'{"paused":true}'))

    assert bench.take_ids() == []
    poll = bench.send(Next("q", wait_us=SECOND))
    durably(bench, SetQueue("q", b'{"paused":null}'))
    bench.commit()

    assert [job.id for job in bench.jobs(poll)] == ["1"]


# --- views -----------------------------------------------------------------------------------------------------


def test_a_queue_is_shown_by_counts_that_are_kept() -> None:
    """Jobs by state, the age of the oldest ready one, polls and bytes."""
    bench = Bench()
    dead_jobs(bench, "dead")
    bench.enqueue("late", run_at_us=bench.wall + 60 * SECOND, payload=b"[1,2]")
    bench.enqueue("run", state=b"12")
    bench.take()
    bench.enqueue("1")
    bench.pass_time(3)

    shown = queue_of(bench)

    assert (shown.scheduled, shown.ready, shown.in_flight, shown.dead, shown.blocked) == (1, 1, 1, 1, 0)
    assert (shown.waited_us, shown.held_bytes) == (3 * SECOND, 1 + 5 + 3 + 1)
    assert shown.settings is None


def test_queues_are_listed_by_name_page_by_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """However few are looked at in one go."""
    monkeypatch.setattr(views.portions, "__defaults__", (7,))
    bench = Bench()
    names = [f"q{number:02}" for number in range(40)]
    for name in reversed(names):
        bench.enqueue("1", name)

    found: list[str] = []
    after: str | None = ""
    while after is not None:
        page = later(bench, ListQueues(15, after))
        assert isinstance(page, Queues)
        found += [queue.queue for queue in page.queues]
        after = page.next
    some = later(bench, ListQueues(100, "q05", "1"))

    assert found == names
    assert isinstance(some, Queues)
    assert [queue.queue for queue in some.queues] == [name for name in names if name > "q05" and "1" in name]


def test_a_job_is_found_wherever_it_stands() -> None:
    """The live one comes before a dead letter of its id; over all queues each is found."""
    bench = Bench()
    dead_jobs(bench, "1")
    (dead,) = jobs(bench.ask(GetJob("q", "1")))
    bench.enqueue("1")
    bench.enqueue("1", "p")

    (live,) = jobs(bench.ask(GetJob("q", "1")))
    everywhere = jobs(bench.ask(FindJobs("1")))

    assert (dead.state_name, dead.reason) == (State.DEAD, "timeout")
    assert (live.state_name, live.waits_for) == (State.READY, ["no_runner"])
    assert [(job.queue, job.state_name) for job in everywhere] == [("p", "ready"), ("q", "ready"), ("q", "dead")]
    assert refused(bench.ask(GetJob("q", "2"))).reason is Reason.NOT_FOUND


@pytest.mark.parametrize("portion", [3, 2000])
def test_jobs_are_listed_in_order_page_by_page(portion: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each state in its order, and with each filter."""
    monkeypatch.setattr(views.portions, "__defaults__", (portion,))
    bench = Bench()
    for number in range(20):
        priority = Options(key=f"k{number % 3}", priority=number % 2)
        bench.ask(Enqueue("q", f"{number}", 10, False, 0, b"1", options=priority))
    for number in range(20, 30):
        bench.enqueue(f"{number}", run_at_us=WALL + (100 - number) * SECOND)
    bench.take(1)

    def listed(state: str | None, **filters: object) -> list[str]:
        found: list[str] = []
        after: str | None = None
        while True:
            command = msgspec.structs.replace(ListJobs("q", state, count=4, after=after), **filters)
            page = later(bench, command)
            assert isinstance(page, Jobs)
            found += [job.id for job in page.jobs]
            after = page.next
            if after is None:
                return found

    waiting = sorted(range(20), key=lambda number: (number % 2 == 0, number))
    ready = listed("ready") + listed("blocked")
    assert sorted(ready) == sorted(str(number) for number in waiting if number != 1)
    assert listed("scheduled") == [str(number) for number in range(29, 19, -1)]
    assert listed("in_flight") == ["1"]
    assert listed(None, key="k1") == ["1", "4", "7", "10", "13", "16", "19"]
    assert listed(None, created_before=WALL) == []
    assert len(listed(None)) == 30


def test_a_cursor_that_none_was_is_refused() -> None:
    """By name."""
    answer = refused(Bench().ask(ListJobs("q", after="next")))

    assert (answer.reason, answer.field) == (Reason.INVALID, "after")


# --- purge -----------------------------------------------------------------------------------------------------


def test_a_purge_removes_what_waits_and_nothing_else() -> None:
    """Unless it is told other states, a key or ids."""
    bench = Bench()
    dead_jobs(bench, "dead")
    bench.enqueue("run")
    bench.take()
    for name in ("1", "2", "3"):
        bench.enqueue(name)
    bench.enqueue("late", run_at_us=WALL + 100 * SECOND)

    one = counted(bench.ask(Purge("q", ALL, ids=["2"])))
    waiting = counted(bench.ask(Purge("q")))
    left = queue_of(bench)
    rest = counted(bench.ask(Purge("q", ALL)))

    assert (one, waiting, rest) == (1, 3, 2)
    assert (left.ready, left.scheduled, left.in_flight, left.dead) == (0, 0, 1, 1)
    assert bench.shard.queues == {}
    assert bench.shard.counters.purged == 6


def test_a_purge_comes_in_bounded_atomic_portions() -> None:
    """Of CHANGES_MAX jobs, or what one batch of the store holds."""
    bench = Bench(batch_rows_max=10)
    for number in range(25):
        bench.enqueue(f"{number}", persist=True)
    while bench.shard.has_open:
        bench.commit()

    answers = [durably(bench, Purge("q")) for _ in range(3)]

    assert answers == [Counted(10, more=True), Counted(10, more=True), Counted(5)]
    assert CHANGES_MAX == 1000
    assert bench.store.rows == {}


def test_a_purge_whose_commit_fails_removes_nothing() -> None:
    """And it is not counted."""
    bench = Bench()
    bench.enqueue("1", persist=True)
    bench.commit()
    key = bench.send(Purge("q"))
    bench.shard.cut()
    bench.fail()
    bench.heal()

    assert refused(bench.answers[key]).reason is Reason.BUSY
    assert bench.shard.counters.purged == 0
    assert bench.take_durably(1)[0].id == "1"


# --- redrive ---------------------------------------------------------------------------------------------------


def test_a_redriven_dead_letter_has_its_old_place_and_all_its_retries() -> None:
    """Before all that was accepted after it, in the original order; its row stays the same one."""
    bench = Bench()
    dead_jobs(bench, "1", "2", "3", persist=True)
    rows = {key.seq for key in bench.store.rows}
    bench.enqueue("4", persist=True)
    bench.commit()

    done = durably(bench, Redrive("q", ids=["3", "1"]))
    after = bench.restart()

    assert done == Counted(2, more=False, after=3)
    assert rows <= {key.seq for key in bench.store.rows}
    for each in (bench, after):
        assert each.dead_ids() == ["2"]
    assert [(job.id, job.attempt) for job in after.take_durably(3)] == [("1", 1), ("3", 1), ("4", 1)]
    check_books(after.shard)


def test_a_dead_letter_whose_id_is_live_again_stays_dead() -> None:
    """It is passed over, and the others come."""
    bench = Bench()
    dead_jobs(bench, "1", "2")
    bench.enqueue("1")

    assert counted(bench.ask(Redrive("q"))) == 1
    assert bench.dead_ids() == ["1"]


def test_a_redrive_to_another_queue_makes_new_jobs_there_in_the_original_order() -> None:
    """With payload, state and history, behind what is there."""
    bench = Bench()
    dead_jobs(bench, "1", "2", persist=True)
    bench.enqueue("0", "p", persist=True)
    bench.commit()

    done = durably(bench, Redrive("q", to="p"))
    after = bench.restart()

    assert done == Counted(2, more=False, after=2)
    assert after.dead_ids() == []
    assert [job.id for job in after.take_durably(9, "p")] == ["0", "1", "2"]
    assert "q" not in bench.shard.queues


def test_a_redrive_stops_at_the_limit_of_its_queue() -> None:
    """What fits comes back; the next portion is refused."""
    bench = Bench(queue_jobs_max=2)
    dead_jobs(bench, "1", "2")
    bench.enqueue("3")

    first = bench.ask(Redrive("q"))
    second = bench.ask(Redrive("q", after=1))

    assert first == Counted(1, more=True, after=1)
    assert refused(second).reason is Reason.FULL


@pytest.mark.parametrize("to", [None, "p"])
def test_a_redrive_whose_commit_fails_leaves_the_letters_dead(to: str | None) -> None:
    """In the order of their deaths, and with their reasons."""
    bench = Bench()
    dead_jobs(bench, "1", "2", persist=True)
    bench.send(Redrive("q", to=to))
    bench.shard.cut()
    bench.fail()
    bench.heal()

    assert bench.dead_ids() == ["1", "2"]
    assert [job.reason for job in bench.shard.queues["q"].dead.values()] == ["timeout", "timeout"]
    assert "p" not in bench.shard.queues
    check_books(bench.shard)


# --- change ----------------------------------------------------------------------------------------------------


def test_a_job_can_be_put_off_and_promoted() -> None:
    """It stands where it would if it had been enqueued now, for that time."""
    bench = Bench()
    for name in ("1", "2", "3"):
        bench.enqueue(name, persist=True)
    bench.commit()

    durably(bench, Change("q", "1", run_at_us=bench.wall + 60 * SECOND))
    (put_off,) = jobs(bench.ask(GetJob("q", "1")))
    durably(bench, Change("q", "1", run_at_us=0))
    after = bench.restart()

    assert (put_off.state_name, put_off.due_at) == (State.SCHEDULED, bench.wall + 60 * SECOND)
    assert [job.id for job in after.take_durably(3)] == ["2", "3", "1"]
    assert len(bench.store.rows) == 3


def test_another_priority_keeps_the_place_and_the_row() -> None:
    """Also where the job has been enqueued by the very same commit, and where that fails."""
    bench = Bench()
    for name in ("1", "2", "3"):
        bench.enqueue(name, persist=True)
    bench.send(Change("q", "3", priority=5))
    bench.send(Change("q", "2", priority=5))
    batch = bench.commit()
    after = bench.restart()
    bench.send(Change("q", "1", priority=9))
    bench.shard.cut()
    bench.fail()
    bench.heal()

    assert (len(batch.inserts), len(batch.deletes), len(batch.marks)) == (3, 0, 0)
    for each in (bench, after):
        assert [job.id for job in each.take_durably(3)] == ["2", "3", "1"]
        check_books(each.shard)


def test_only_what_waits_can_be_changed() -> None:
    """A job in flight, a dead one and one that is not there are 404."""
    bench = Bench()
    dead_jobs(bench, "dead")
    bench.enqueue("run")
    bench.take()

    for name in ("dead", "run", "none"):
        assert refused(bench.ask(Change("q", name, priority=1))).reason is Reason.NOT_FOUND


# --- dead letters ----------------------------------------------------------------------------------------------


def test_a_queue_keeps_as_many_dead_letters_and_for_as_long_as_it_is_told() -> None:
    """Its own settings stand over the server's, and everything dropped is counted."""
    bench = Bench(dead_letters_max=100)
    durably(bench, SetQueue("q", b'{"dead_letters_max":2,"dead_letters_seconds_max":10}'))
    dead_jobs(bench, "1", "2", "3")
    dead_jobs(bench, "1", "2", "3", queue="p")

    few = bench.dead_ids()
    bench.pass_time(11)

    assert few == ["2", "3"]
    assert (bench.dead_ids(), bench.dead_ids("p")) == ([], ["1", "2", "3"])
    assert bench.shard.counters.dead_dropped == 3


def test_a_lower_limit_for_dead_letters_counts_at_once() -> None:
    """For those that are dead already."""
    bench = Bench()
    dead_jobs(bench, "1", "2", "3")

    durably(bench, SetQueue("q", b'{"dead_letters_max":1}'))
    bench.advance()

    assert bench.dead_ids() == ["3"]


# --- all of it -------------------------------------------------------------------------------------------------


def test_nothing_of_a_failed_commit_is_left_whatever_was_asked() -> None:
    """The books are those from before."""
    bench = Bench()
    dead_jobs(bench, "d1", "d2", persist=True)
    for name in ("1", "2", "3", "4"):
        bench.enqueue(name, persist=True, max_retries=1)
    bench.commit()
    before = {row.id: row for row in bench.store.load()}

    for command in (
        SetQueue("q", b'{"ttl":100}'),
        Purge("q", ids=["1"]),
        Change("q", "2", priority=3),
        Change("q", "3", run_at_us=bench.wall + SECOND),
        Change("q", "2", run_at_us=bench.wall + SECOND),
        Redrive("q", ids=["d1"]),
        Redrive("q", to="p"),
        Complete("q", "4"),
    ):
        bench.send(command)
    bench.shard.cut()
    bench.fail()
    bench.heal()
    check_books(bench.shard)

    assert {row.id: row for row in bench.store.load()} == before
    assert bench.dead_ids() == ["d1", "d2"]
    key = bench.send(Next("q", 9))
    bench.commit()
    answer = bench.answers[key]
    assert isinstance(answer, Delivered)
    assert [job.id for job in answer.jobs] == ["1", "2", "3", "4"]
