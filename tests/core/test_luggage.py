"""Luggage: what moves along with a shard, and what is not taken for it."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from proteus_shards.core.commands import Begin, Decide, Done, Enqueue, EnqueueOnce, Heartbeat, Mode, Next, Outcomes, Reason
from proteus_shards.core.extras import Attempt, Extras
from proteus_shards.core.luggage import CarriedJob, End, Head, Jobs, Label, read_pieces
from proteus_shards.core.model import Row, Status
from proteus_shards.core.placement import slot_of
from proteus_shards.core.queue_settings import RateSettings
from proteus_shards.errors import LuggageError
from tests.core.rig import NOW, SECOND, Bench, check_books, refused

OWN = Label(0, 4, 7)
NEXT = Label(0, 4, 8)


def packed(bench: Bench) -> list[bytes]:
    """Return the pieces of a shard."""
    return list(bench.shard.pack_luggage(OWN))


def moved(bench: Bench, *, idle_seconds: int = 3600) -> Bench:
    """Return what a shard is on another host, whose clock counts from elsewhere, after a while in which nobody served."""
    pieces = read_pieces(packed(bench), NEXT)
    after = Bench(bench.limits, bench.store, now=NOW // 7 + idle_seconds, wall=bench.wall)
    after.shard._new_run_id = bench.shard._new_run_id
    assert after.shard.load_luggage(pieces) == []
    after.shard.finish_luggage()
    check_books(after.shard)
    return after


def test_memory_only_jobs_keep_their_places_among_those_of_the_store() -> None:
    """The order is that of acceptance, whoever holds the jobs."""
    bench = Bench()
    for number in range(20):
        bench.enqueue(str(number), persist=number % 3 == 0)
        bench.pass_time(0.001)
    bench.commit()

    after = moved(bench)

    assert [str(number) for number in range(20)] == [job.id for job in after.take_durably(100)]


def test_a_new_job_comes_after_all_that_moved() -> None:
    """The counter and the clock move along, though the store knows less of both."""
    bench = Bench()
    bench.enqueue("first", run_at_us=bench.wall + SECOND)
    bench.pass_time(2)
    bench.take()
    after = moved(bench)
    after.set_wall(bench.wall - SECOND)

    after.enqueue("second")

    assert after.job("second").seq == bench.job("first").seq + 1
    assert after.job("second").ready_at == bench.wall


@pytest.mark.parametrize("persist", [False, True])
def test_a_run_has_as_much_time_left_as_it_had(persist: bool) -> None:
    """A move neither ends a run early nor gives it its whole time again."""
    bench = Bench()
    bench.enqueue("a", timeout=100, max_retries=5, persist=persist)
    bench.commit()
    (run,) = bench.take_durably()
    bench.pass_time(40)
    bench.ask(Heartbeat("q", "a", run.run_id))
    bench.pass_time(70)

    after = moved(bench)
    after.pass_time(29.999)
    assert after.ask(Heartbeat("q", "a", b"no such run 1234")) is not None
    assert after.job("a").status is Status.IN_FLIGHT
    after.pass_time(0.001)
    after.commit()

    assert (after.job("a").status, after.job("a").attempt) == (Status.READY, 1)
    assert after.job("a").updated_at == after.wall


def test_a_run_that_moved_is_heard_of_under_its_run_id() -> None:
    """Its runner notices nothing."""
    bench = Bench()
    bench.enqueue("a", timeout=100)
    (run,) = bench.take()

    after = moved(bench)

    assert after.ask(Heartbeat("q", "a", run.run_id, b"7")) == Done()
    after.pass_time(99)
    assert (after.job("a").status, after.job("a").state) == (Status.IN_FLIGHT, b"7")


def test_dead_letters_keep_their_history_and_the_order_of_their_deaths() -> None:
    """Among those of one moment, too, whichever was accepted first."""
    bench = Bench()
    for name, timeout, persist in (("a", 3, False), ("b", 2, True), ("c", 1, False)):
        bench.enqueue(name, timeout=timeout, persist=persist)
    bench.commit()
    bench.take_durably(3)
    bench.pass_time(5)
    bench.commit()
    order = bench.dead_ids()
    assert order == ["c", "b", "a"]

    after = moved(bench)

    assert after.dead_ids() == order
    (history,) = {job.extras for job in after.shard.queues["q"].dead.values() if job.id == "c"}
    assert history == Extras(history=(Attempt(1, bench.wall - 5 * SECOND, bench.wall, "timeout"),))


def test_jobs_of_one_key_stay_behind_the_one_that_runs() -> None:
    """The lanes follow from the jobs, memory-only ones among them."""
    bench = Bench()
    bench.enqueue("a", key="k")
    bench.enqueue("b", key="k", persist=True)
    bench.enqueue("c", priority=1)
    bench.commit()
    assert [job.id for job in bench.take_durably(2)] == ["c", "a"]

    after = moved(bench)

    assert after.take() == []
    after.pass_time(10)
    assert [job.id for job in after.take_durably(2)] == ["b"]


def test_a_bucket_that_was_spent_stays_spent() -> None:
    """The rate of a queue holds across a move."""
    bench = Bench()
    bench.set(rate=RateSettings(jobs=2, seconds=10))
    for number in range(4):
        bench.enqueue(str(number))
    assert bench.take_ids() == ["0", "1"]
    bench.pass_time(2)
    pieces = read_pieces(packed(bench), NEXT)
    after = Bench(now=5)
    after.set(rate=RateSettings(jobs=2, seconds=10))

    assert after.shard.load_luggage(pieces) == []

    assert after.take_ids() == []
    after.pass_time(2.999)
    assert after.take_ids() == []
    after.pass_time(0.001)
    assert after.take_ids() == ["2"]


def test_a_request_that_named_itself_is_done_once_across_a_move() -> None:
    """Also where its jobs were in memory only."""
    bench = Bench()
    command = EnqueueOnce("q", "name", b"digest", [Enqueue("q", "a", 10, False, 0, b"1")])
    assert bench.ask(command) == Outcomes([None])
    bench.ask(Next("q"))

    after = moved(bench)

    assert after.ask(command) == Outcomes([None])
    assert after.take_ids() == []


def test_a_step_that_is_open_may_be_decided_after_a_move() -> None:
    """And one that is not known here may not."""
    bench = Bench()
    bench.ask(Begin("q", b"s" * 16))

    after = moved(bench)
    jobs = [Enqueue("q", "a", 10, False, 0, b"1")]

    key = after.send(Decide("q", b"s" * 16, jobs, Mode.UNIQUE, ["p"]))
    after.commit()
    assert after.answers[key] == Done()
    assert refused(after.ask(Decide("q", b"t" * 16, jobs, Mode.UNIQUE, ["p"]))).reason is Reason.BUSY


def luggage() -> list[bytes]:
    """Return the pieces of a shard with a job."""
    bench = Bench()
    bench.enqueue("a", payload=b'"payload"')
    return packed(bench)


@pytest.mark.parametrize(
    "damage",
    [
        lambda pieces: pieces[:-1],
        lambda pieces: pieces[1:],
        lambda pieces: [pieces[0], pieces[-1]],
        lambda pieces: [*pieces, pieces[-1]],
        lambda pieces: [pieces[0], pieces[1].replace(b"payload", b"PAYLOAD"), pieces[2]],
        lambda pieces: [pieces[0], pieces[1][:-1], pieces[2]],
        lambda pieces: [b"\xc1", *pieces[1:]],
        lambda pieces: [b"", *pieces],
        lambda _pieces: [],
    ],
)
def test_luggage_that_is_not_what_was_packed_is_refused_as_a_whole(damage: Callable[[list[bytes]], list[bytes]]) -> None:
    """Half of it would be worse than none."""
    with pytest.raises(LuggageError):
        read_pieces(damage(luggage()), NEXT)


@pytest.mark.parametrize("own", [Label(1, 4, 8), Label(0, 5, 8), Label(0, 4, 9), Label(0, 4, 6)])
def test_luggage_of_another_shard_or_an_older_turn_is_refused(own: Label) -> None:
    """Who had the shard between may have completed the jobs that it brings."""
    with pytest.raises(LuggageError, match="this is"):
        read_pieces(luggage(), own)


def test_luggage_is_taken_back_by_the_turn_that_packed_it() -> None:
    """A host may keep its shard after all."""
    assert len(read_pieces(luggage(), OWN)) == len(luggage()) - 1


@pytest.mark.parametrize("change", [{"version": 99}, {"seq": -1}, {"seq": 2**63}, {"clock": 2**62}, {"stepped": -1}])
def test_a_head_that_cannot_be_is_refused(change: dict[str, int]) -> None:
    """A clock far in the future would drag all jobs along."""
    head = msgspec.msgpack.decode(luggage()[0], type=Head)
    pieces = [msgspec.msgpack.encode(msgspec.structs.replace(head, **change)), msgspec.msgpack.encode(End(1, 0))]

    with pytest.raises(LuggageError):
        read_pieces(pieces, NEXT)


@pytest.mark.parametrize(
    "change",
    [
        {"slot": 1},
        {"queue": ""},
        {"status": 9},
        {"status": int(Status.IN_FLIGHT)},
        {"id": "taken"},
        {"ready_at": 2**62},
        {"extras": b"\xc1"},
        {"left_us": 2**62},
        {"started_at": 2**62},
    ],
)
def test_an_item_that_is_no_job_is_left_out_and_told(change: dict[str, object]) -> None:
    """The others are taken in."""
    bench = Bench()
    bench.enqueue("taken")
    row = Row(slot_of("q"), 50, "q", "a", Status.READY, NOW, None, 1, 0, 0, None, None, NOW, NOW, b"1", None)
    good = CarriedJob(**msgspec.structs.asdict(row))
    bad = msgspec.structs.replace(good, **change)
    also_good = msgspec.structs.replace(good, id="b", seq=51)

    (fault,) = bench.shard.load_luggage([Jobs([bad, also_good])])
    bench.shard.finish_luggage()

    assert fault.startswith("job of slot")
    assert sorted(bench.shard.queues["q"].jobs) == ["b", "taken"]
    check_books(bench.shard)


def test_a_run_that_the_store_does_not_know_is_left_out() -> None:
    """The store is the truth about persisted jobs."""
    bench = Bench()
    bench.enqueue("a", persist=True)
    bench.commit()
    bench.take_durably()
    pieces = read_pieces(packed(bench), NEXT)
    after = Bench()

    assert after.shard.load_luggage(pieces) == ["run of seq 1: the store knows no such run"]
