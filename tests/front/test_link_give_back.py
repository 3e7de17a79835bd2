"""A link gives back what nobody waits for any more."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from proteus_shards.core.commands import (
    Cancel,
    Delivered,
    Delivery,
    Done,
    Enqueue,
    Next,
    Reason,
    Refused,
    Undeliver,
)
from proteus_shards.front.link import Link
from tests.front.cable import ENQUEUE, POLL, SETTINGS, Cable, never, silent
from tests.front.fake_shard import RUN_ID, delivery, obliging


@pytest.fixture
async def cable(tmp_path: Path, nursery: trio.Nursery) -> Cable:
    """A link that is up."""
    return await Cable(tmp_path, nursery).up()


async def test_a_poll_whose_client_is_gone_is_cancelled(cable: Cable) -> None:
    """The shard learns of it, so that it gives the next job to somebody else."""
    with trio.CancelScope() as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cable.link.call, POLL)
            await cable.shard.wait_command(Next)
            client.cancel()

    ((number, _),) = await cable.shard.wait_command(Next)
    assert [command for _, command in await cable.shard.wait_command(Cancel)] == [Cancel(number)]
    assert cable.link.statistics().in_flight == 0


async def test_a_delivery_that_comes_too_late_is_given_back(cable: Cable) -> None:
    """Each of its jobs."""
    number = cable.link.submit(POLL, never)
    assert isinstance(number, int)
    await cable.shard.wait_command(Next)
    cable.link.abandon(number)

    await cable.shard.reply((number, Delivered([delivery(job_id="a"), delivery(job_id="b")])))

    given_back = [command for _, command in await cable.shard.wait_command(Undeliver, 2)]
    assert given_back == [Undeliver("q", "a", RUN_ID), Undeliver("q", "b", RUN_ID)]
    await cable.wait_quiet()
    assert cable.link.statistics().undelivered == 2


async def test_a_delivery_that_meets_the_cancellation_of_its_request_is_given_back(cable: Cable) -> None:
    """The client goes, and in the same tick, before the waiting task runs, the job comes."""
    cable.shard.answer = silent
    with trio.CancelScope() as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cable.link.call, POLL)
            ((number, _),) = await cable.shard.wait_command(Next)
            client.cancel()
            cable.link._take_reply(number, Delivered([delivery()]))

    assert [command for _, command in await cable.shard.wait_command(Undeliver)] == [Undeliver("q", "a", RUN_ID)]


async def test_a_delivery_that_comes_just_before_the_cancellation_reaches_its_caller(cable: Cable) -> None:
    """The caller has it then, and answers for it."""
    cable.shard.answer = silent
    with trio.CancelScope() as client:
        cable_outcome = None
        async with trio.open_nursery() as nursery:

            async def poll() -> None:
                nonlocal cable_outcome
                cable_outcome = await cable.link.call(POLL)

            nursery.start_soon(poll)
            ((number, _),) = await cable.shard.wait_command(Next)
            cable.link._take_reply(number, Delivered([delivery()]))
            client.cancel()

    assert cable_outcome == Delivered([delivery()])
    assert cable.link.statistics().undelivered == 0


async def test_a_request_abandoned_before_it_was_sent_is_never_sent(cable: Cable) -> None:
    """Nothing of it goes out, a cancellation included."""
    number = cable.link.submit(POLL, never)
    assert isinstance(number, int)
    cable.link.abandon(number)
    cable.link.abandon(number)

    await cable.wait_quiet()

    assert cable.shard.commands == []


async def test_a_reply_that_nobody_asked_for_is_ignored(cable: Cable) -> None:
    """The link goes on."""
    await cable.shard.reply((12345, Done()), (12346, Delivered([])))

    await cable.wait_quiet()

    assert cable.link.statistics().connects == 1
    assert cable.shard.commands == []


async def test_a_run_that_the_shard_cannot_take_back_now_is_given_back_later(cable: Cable) -> None:
    """A busy shard, or one whose store is away, is asked again, until it says yes or knows of no such run."""
    answers = [Refused(Reason.BUSY, "store away"), Refused(Reason.BUSY, "store away"), Refused(Reason.NOT_FOUND, "over")]
    cable.shard.answer = lambda command: answers.pop(0) if isinstance(command, Undeliver) else obliging(command)
    cable.link.undeliver([delivery()])
    asked = await cable.shard.wait_command(Undeliver, 3)
    await cable.wait_quiet()

    assert {("q", "a", RUN_ID)} == {(command.queue, command.id, command.run_id) for _, command in asked if isinstance(command, Undeliver)}
    assert answers == []


async def test_a_run_is_given_back_once_the_link_is_up(cable: Cable) -> None:
    """What was to be given back while the link was down is not forgotten."""
    await cable.shard.hang_up()
    while cable.link.connected:
        await trio.lowlevel.checkpoint()
    cable.link.undeliver([delivery()])

    assert [Undeliver("q", "a", RUN_ID)] == [command for _, command in await cable.shard.wait_command(Undeliver)]


async def test_give_backs_that_are_owed_have_a_limit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond it a run waits for its timeout, and the log says so."""
    monkeypatch.setattr("proteus_shards.front.link.OWED_MAX", 1)
    Link(str(tmp_path / "none.sock"), 0, SETTINGS).undeliver([delivery(), delivery()])

    assert ["a run could not be given back and waits for its timeout"] == [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("jobs", [[], [delivery()]])
async def test_polls_that_end_are_answered_by_the_shard(cable: Cable, jobs: list[Delivery]) -> None:
    """A job that it had delivered by then reaches who polled; other requests are left alone."""
    cable.shard.answer = silent
    cable.ask("poll", POLL)
    cable.ask("other", ENQUEUE)
    ((number, _),) = await cable.shard.wait_command(Next)

    cable.link.end_polls()
    cable.link.end_polls()
    assert [Cancel(number, answered=True)] == [command for _, command in await cable.shard.wait_command(Cancel)]
    assert cable.outcomes == {}
    await cable.shard.reply((number, Delivered(jobs)))

    assert await cable.wait_outcome("poll") == Delivered(jobs)
    assert "other" not in cable.outcomes
    assert cable.link.statistics().undelivered == 0


async def test_a_poll_that_the_shard_does_not_end_is_answered_with_no_job(cable: Cable, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a bounded time; what is delivered later goes back."""
    monkeypatch.setattr("proteus_shards.front.link.POLL_END_SECONDS_MAX", 0.0)
    cable.shard.answer = silent
    cable.ask("poll", POLL)
    ((number, _),) = await cable.shard.wait_command(Next)

    cable.link.end_polls()

    assert await cable.wait_outcome("poll") == Delivered([])
    assert [Cancel(number, answered=True), Cancel(number)] == [command for _, command in await cable.shard.wait_command(Cancel, 2)]
    await cable.shard.reply((number, Delivered([delivery()])))
    await cable.shard.wait_command(Undeliver)


async def test_a_poll_that_ends_and_was_never_sent_is_answered_at_once(cable: Cable) -> None:
    """The shard hears nothing of it."""
    cable.submit("poll", POLL)

    cable.link.end_polls()

    assert cable.outcomes == {"poll": Delivered([])}
    await cable.wait_quiet()
    assert cable.shard.commands == []


async def test_statistics_show_what_is_under_way(cable: Cable) -> None:
    """Requests, polls and queued messages are counted."""
    cable.shard.answer = silent
    for _ in range(3):
        cable.link.submit(POLL, lambda _: None)
    cable.link.submit(ENQUEUE, lambda _: None)

    queued = cable.link.statistics()
    await cable.shard.wait_command(Enqueue)
    sent = cable.link.statistics()

    assert (queued.in_flight, queued.queued, queued.polls, queued.queued_bytes > 0) == (4, 4, 3, True)
    assert (sent.in_flight, sent.queued, sent.polls, sent.queued_bytes) == (4, 0, 3, 0)
