"""The transition table, and that the public commands allow exactly what stands in it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from proteus_shards.core.commands import Command, Complete, Delivered, Heartbeat, Next, Reason, Undeliver
from proteus_shards.core.model import Status
from proteus_shards.core.queue import TRANSITIONS, Verb
from tests.core.rig import DONE, SECOND, WALL, Bench, check_books, refused

RUN = b"\xaa" * 16
BY_COMMAND: dict[Verb, Callable[[bytes | None], Command]] = {
    Verb.HEARTBEAT: lambda run_id: Heartbeat("q", "job", run_id, b"1"),
    Verb.COMPLETE: lambda run_id: Complete("q", "job", run_id),
    Verb.UNDELIVER: lambda run_id: Undeliver("q", "job", run_id or RUN),
}
BY_ITSELF = [Verb.DUE, Verb.EXPIRE, Verb.DIE, Verb.DROP]


def job_in(status: Status, *, persist: bool) -> tuple[Bench, bytes | None]:
    """Return a bench with one job in a status, and its run_id."""
    bench = Bench()
    if status is Status.SCHEDULED:
        bench.enqueue("job", persist=persist, run_at_us=WALL + 1000 * SECOND)
    elif status is not Status.GONE:
        bench.enqueue("job", persist=persist, timeout=1)
    bench.commit()
    run_id = None
    if status in (Status.IN_FLIGHT, Status.DEAD):
        [job] = bench.take_durably()
        run_id = job.run_id
    if status is Status.DEAD:
        bench.pass_time(1)
        bench.commit()
    return bench, run_id


def status_in(bench: Bench) -> Status:
    """Return the status of the one job."""
    if "q" not in bench.shard.queues:
        return Status.GONE
    [status] = [status for status in Status if bench.shard.queues["q"].counts[status]] or [Status.GONE]
    return status


@pytest.mark.parametrize("persist", [False, True])
@pytest.mark.parametrize("status", Status)
@pytest.mark.parametrize("verb", BY_COMMAND)
def test_a_command_moves_a_job_as_the_table_says_or_finds_none(verb: Verb, status: Status, persist: bool) -> None:
    """A missing key is NOT_FOUND, and nothing has moved."""
    bench, run_id = job_in(status, persist=persist)
    assert status_in(bench) is status

    key = bench.send(BY_COMMAND[verb](run_id))
    bench.commit()

    if status in TRANSITIONS[verb]:
        assert bench.answers[key] == DONE
        assert status_in(bench) is TRANSITIONS[verb][status]
    else:
        assert refused(bench.answers[key]).reason is Reason.NOT_FOUND
        assert status_in(bench) is status
    check_books(bench.shard)


@pytest.mark.parametrize("persist", [False, True])
@pytest.mark.parametrize("status", Status)
def test_next_delivers_what_is_ready_and_nothing_else(status: Status, persist: bool) -> None:
    """A job in any other status is not there for it."""
    bench, _ = job_in(status, persist=persist)

    jobs = bench.take_durably()

    assert bool(jobs) is (status in TRANSITIONS[Verb.DELIVER])
    assert status_in(bench) is TRANSITIONS[Verb.DELIVER].get(status, status)


@pytest.mark.parametrize("status", Status)
def test_an_enqueue_makes_a_job_where_none_is_alive(status: Status) -> None:
    """A dead letter is no job; every other status is EXISTS."""
    bench, _ = job_in(status, persist=False)

    answer = bench.enqueue("job")

    if status in (Status.GONE, Status.DEAD):
        assert answer == DONE
    else:
        assert refused(answer).reason is Reason.EXISTS


@pytest.mark.parametrize("status", Status)
def test_a_run_that_was_never_given_out_is_nobodys(status: Status) -> None:
    """Whatever the job does, a foreign run_id changes nothing."""
    bench, _ = job_in(status, persist=False)

    for command in (Heartbeat("q", "job", RUN, b"1"), Complete("q", "job", RUN), Undeliver("q", "job", RUN)):
        answer = refused(bench.ask(command))
        assert (answer.reason, answer.field) == (Reason.NOT_FOUND, "run_id" if status is Status.IN_FLIGHT else None)
    assert status_in(bench) is status


def test_a_refusal_says_what_is_missing() -> None:
    """No job, not in flight, or another run."""
    bench = Bench()
    assert refused(bench.ask(Complete("q", "job"))).detail == "no job with this id is in the queue"
    bench.enqueue("job")
    assert refused(bench.ask(Heartbeat("q", "job"))).detail == "the job is not in flight"
    assert refused(bench.ask(Complete("q", "job", RUN))).detail == "the job is not in flight"
    bench.take()
    assert refused(bench.ask(Heartbeat("q", "job", RUN))).detail == "the job is in flight under another run_id"


def test_what_happens_by_itself_happens_in_the_status_of_the_table() -> None:
    """A schedule, a timeout, a death and a drop each take a job from the one status that has a key."""
    assert {verb: set(TRANSITIONS[verb]) for verb in BY_ITSELF} == {
        Verb.DUE: {Status.SCHEDULED},
        Verb.EXPIRE: {Status.IN_FLIGHT},
        Verb.DIE: {Status.IN_FLIGHT},
        Verb.DROP: {Status.DEAD},
    }
    for status in Status:
        bench, _ = job_in(status, persist=False)
        bench.pass_time(60 * 86_400)
        expected = {Status.SCHEDULED: Status.READY, Status.IN_FLIGHT: Status.DEAD, Status.DEAD: Status.GONE}
        assert status_in(bench) is expected.get(status, status)


def test_a_life_passes_through_every_status() -> None:
    """Scheduled, ready, in flight, ready again, in flight, dead, gone."""
    bench = Bench()
    bench.enqueue("job", timeout=1, max_retries=1, run_at_us=WALL + SECOND)
    seen = [status_in(bench)]
    for seconds in (1.0, None, 1.0, None, 1.0, 60 * 86_400.0):
        if seconds is None:
            assert isinstance(bench.ask(Next("q")), Delivered)
        else:
            bench.pass_time(seconds)
        seen.append(status_in(bench))

    assert [status.name for status in seen] == ["SCHEDULED", "READY", "IN_FLIGHT", "READY", "IN_FLIGHT", "DEAD", "GONE"]


def test_every_verb_has_a_row_in_the_table() -> None:
    """And no row leads from GONE but an enqueue's."""
    assert set(TRANSITIONS) == set(Verb)
    assert {verb for verb, moves in TRANSITIONS.items() if Status.GONE in moves} == {Verb.ENQUEUE, Verb.SCHEDULE}
