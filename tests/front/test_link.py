"""A link, against a fake shard that is cut at every interesting moment."""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec
import pytest
import trio
from trio.testing import MockClock

from proteus_shards.config import Settings
from proteus_shards.core.commands import (
    Cancel,
    Complete,
    Delivered,
    Done,
    Enqueue,
    Next,
    Outcome,
    Reason,
    Refused,
)
from proteus_shards.front.link import FRAME_BYTES_SOFT, Link
from proteus_shards.ipc.frames import pack_frame
from proteus_shards.ipc.messages import Goodbye, Hello, encode, hello
from tests.front.cable import ENQUEUE, SETTINGS, Cable, never, reason_of, silent
from tests.front.fake_shard import obliging


@pytest.fixture
async def cable(tmp_path: Path, nursery: trio.Nursery) -> Cable:
    """A link that is up."""
    return await Cable(tmp_path, nursery).up()


# --- coming up -------------------------------------------------------------------------------------------------


async def test_a_link_that_is_down_refuses_at_once(tmp_path: Path) -> None:
    """Before the shard is there, a request is surely without effect."""
    link = Link(str(tmp_path / "none.sock"), 3, Settings(shards=4))

    outcome = await link.call(ENQUEUE)

    assert outcome == Refused(Reason.BUSY, "shard 3 is away")
    assert link.submit(ENQUEUE, never) == outcome
    assert link.statistics().refused == 2


async def test_a_link_comes_up_when_its_shard_does(tmp_path: Path, nursery: trio.Nursery) -> None:
    """It retries until the socket is there."""
    cable = Cable(tmp_path, nursery)
    nursery.start_soon(cable.link.run)
    await trio.testing.wait_all_tasks_blocked()
    assert not cable.link.connected

    await nursery.start(cable.shard.run)
    await cable.wait_quiet()

    assert await cable.link.call(ENQUEUE) == Done()
    assert cable.link.shard_statistics is not None


async def test_a_shard_that_hangs_up_before_its_greeting_is_tried_again(tmp_path: Path, nursery: trio.Nursery) -> None:
    """Nothing was asked of it, and nothing is lost."""
    cable = Cable(tmp_path, nursery)
    cable.shard.greeting = None
    await nursery.start(cable.shard.run)
    nursery.start_soon(cable.link.run)
    await cable.shard.wait_for(lambda: cable.shard.connects >= 3)
    assert not cable.link.connected

    cable.shard.greeting = hello(0, 1)
    await cable.wait_quiet()

    assert await cable.link.call(ENQUEUE) == Done()


@pytest.mark.parametrize(
    ("greeting", "said"),
    [
        (msgspec.structs.replace(hello(0, 1), version="0.0.0"), "run the same version in every process"),
        (msgspec.structs.replace(hello(0, 1), protocol=99), "run the same version in every process"),
        (hello(1, 2), "its peer means 1 of 2"),
        (Goodbye("no room"), "no room"),
        (pack_frame(b"\xc1"), "not a greeting"),
        (b"\xff" * 8, "claims 4294967295"),
        (pack_frame(encode(hello(0, 1))) * 2, "spoke before it was asked"),
    ],
)
async def test_a_shard_that_greets_wrongly_is_logged_and_tried_again(
    autojump_clock: MockClock,  # noqa: ARG001
    greeting: Hello | Goodbye | bytes,
    said: str,
    tmp_path: Path,
    nursery: trio.Nursery,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The link stays down, says why, and comes up when the shard is mended."""
    cable = Cable(tmp_path, nursery)
    cable.shard.greeting = greeting
    await nursery.start(cable.shard.run)
    nursery.start_soon(cable.link.run)
    await cable.shard.wait_for(lambda: cable.shard.connects >= 3)
    refused = await cable.link.call(ENQUEUE)

    cable.shard.greeting = hello(0, 1)
    await cable.wait_quiet()

    assert reason_of(refused) is Reason.BUSY
    loud = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(loud) == 1
    assert said in loud[0].__dict__["reason"]


async def test_a_shard_that_never_greets_is_given_up(tmp_path: Path, nursery: trio.Nursery, autojump_clock: MockClock) -> None:  # noqa: ARG001
    """The greeting has a deadline."""
    cable = Cable(tmp_path, nursery)
    cable.shard.greeting = b""
    await nursery.start(cable.shard.run)
    nursery.start_soon(cable.link.run)

    await cable.shard.wait_for(lambda: cable.shard.connects >= 2)

    assert not cable.link.connected


# --- carrying --------------------------------------------------------------------------------------------------


async def test_requests_of_one_tick_travel_in_one_frame(cable: Cable) -> None:
    """Many are asked before the writer's turn comes."""
    before = len(cable.shard.frames)
    for number in range(100):
        cable.ask(str(number), Complete("q", str(number)))

    for number in range(100):
        assert await cable.wait_outcome(str(number)) == Done()

    assert cable.shard.frames[before:] == [100]


async def test_a_large_batch_is_split_into_frames(cable: Cable) -> None:
    """No frame is much larger than the soft limit, unless one request is."""
    before = len(cable.shard.frames)
    payload = b'"' + b"x" * (FRAME_BYTES_SOFT // 3) + b'"'
    for number in range(6):
        cable.submit(str(number), Enqueue("q", str(number), 1, False, 0, payload))
    cable.submit("huge", Enqueue("q", "huge", 1, False, 0, payload * 5))

    for name in [*map(str, range(6)), "huge"]:
        assert await cable.wait_outcome(name) == Done()

    assert cable.shard.frames[before:] == [2, 2, 2, 1]


async def test_replies_may_come_in_any_order(cable: Cable) -> None:
    """Each finds its own request."""
    cable.shard.answer = silent
    for name in "abc":
        cable.ask(name, Complete("q", name))
    asked = {command.id: number for number, command in await cable.shard.wait_command(Complete, 3) if isinstance(command, Complete)}

    await cable.shard.reply((asked["c"], Refused(Reason.NOT_FOUND, "c")))
    await cable.shard.reply((asked["b"], Refused(Reason.NOT_FOUND, "b")), (asked["a"], Refused(Reason.NOT_FOUND, "a")))

    for name in "abc":
        assert await cable.wait_outcome(name) == Refused(Reason.NOT_FOUND, name)


async def test_a_callback_that_fails_harms_no_other_request(cable: Cable, caplog: pytest.LogCaptureFixture) -> None:
    """Its error is logged; the link goes on."""

    def fail(_outcome: Outcome) -> None:
        raise ZeroDivisionError

    cable.link.submit(ENQUEUE, fail)
    cable.ask("b", ENQUEUE)

    assert await cable.wait_outcome("b") == Done()
    assert cable.link.statistics().connects == 1
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [ZeroDivisionError]


async def test_a_request_that_cannot_be_encoded_harms_no_other(cable: Cable, caplog: pytest.LogCaptureFixture) -> None:
    """It is a fault of its own; its neighbours in the frame are sent."""
    for name in ("a", "\ud800", "b"):
        cable.ask(name, Complete("q", name))

    assert reason_of(await cable.wait_outcome("\ud800")) is Reason.FAULT
    assert [await cable.wait_outcome("a"), await cable.wait_outcome("b")] == [Done(), Done()]
    assert cable.link.statistics().connects == 1
    caplog.clear()


# --- losing the link -------------------------------------------------------------------------------------------


async def test_what_was_handed_over_is_unknown_when_the_link_is_lost(cable: Cable) -> None:
    """It may have had an effect."""
    cable.shard.answer = silent
    cable.ask("a", ENQUEUE)
    await cable.shard.wait_command(Enqueue)

    await cable.shard.hang_up()

    assert reason_of(await cable.wait_outcome("a")) is Reason.UNKNOWN


async def test_a_link_cut_in_the_middle_of_a_reply_comes_back(cable: Cable) -> None:
    """The half frame is forgotten, its request is unknown, and the next link is whole."""
    cable.shard.answer = silent
    cable.ask("a", ENQUEUE)
    ((number, _),) = await cable.shard.wait_command(Enqueue)
    await cable.shard.send(pack_frame(encode([(number, Done())]))[:-2])
    await cable.shard.hang_up()

    assert reason_of(await cable.wait_outcome("a")) is Reason.UNKNOWN
    cable.shard.answer = obliging
    await cable.wait_quiet()
    assert await cable.link.call(ENQUEUE) == Done()
    assert cable.link.statistics().connects == 2


@pytest.mark.parametrize("garbage", [b"\xff" * 64, pack_frame(b"\xc1"), pack_frame(encode([(1, "x")])), pack_frame(encode([[1]]))])
async def test_garbage_from_the_shard_drops_the_link(garbage: bytes, cable: Cable) -> None:
    """And nothing else: it comes back."""
    cable.shard.answer = silent
    cable.ask("a", ENQUEUE)
    await cable.shard.wait_command(Enqueue)

    await cable.shard.send(garbage)

    assert reason_of(await cable.wait_outcome("a")) is Reason.UNKNOWN
    await cable.wait_quiet()
    assert cable.link.statistics().connects == 2


async def test_what_was_never_handed_over_is_surely_without_effect(cable: Cable) -> None:
    """While the socket is full, later requests wait in the queue; if the link is lost then, they were never sent."""
    cable.shard.answer = silent
    cable.shard.reading = trio.Event()
    cable.ask("wedge", Complete("q", "wedge"))
    await cable.shard.wait_command(Complete)
    cable.ask("large", Enqueue("q", "large", 1, False, 0, b"1" * 8_000_000))
    await trio.testing.wait_all_tasks_blocked()
    cable.ask("queued", ENQUEUE)
    await trio.testing.wait_all_tasks_blocked()
    assert cable.link.statistics().queued == 1

    await cable.shard.hang_up()

    assert reason_of(await cable.wait_outcome("wedge")) is Reason.UNKNOWN
    assert reason_of(await cable.wait_outcome("large")) is Reason.UNKNOWN
    assert reason_of(await cable.wait_outcome("queued")) is Reason.BUSY
    assert cable.link.statistics().queued_bytes == 0


async def test_a_link_that_is_cancelled_settles_what_is_under_way(tmp_path: Path) -> None:
    """No caller is left waiting at exit."""
    async with trio.open_nursery() as inner:
        cable = await Cable(tmp_path, inner).up()
        cable.shard.answer = silent
        cable.submit("a", ENQUEUE)
        await cable.shard.wait_command(Enqueue)
        inner.cancel_scope.cancel()

    assert reason_of(cable.outcomes["a"]) is Reason.UNKNOWN


# --- time ------------------------------------------------------------------------------------------------------


async def test_a_request_that_is_not_answered_in_time_is_unknown(cable: Cable, autojump_clock: MockClock) -> None:
    """The shard is told to forget it, and a late reply is ignored."""
    cable.shard.answer = silent
    cable.ask("a", ENQUEUE)
    ((number, _),) = await cable.shard.wait_command(Enqueue)

    assert reason_of(await cable.wait_outcome("a")) is Reason.UNKNOWN
    assert [command for _, command in await cable.shard.wait_command(Cancel)] == [Cancel(number)]
    assert autojump_clock.current_time() >= SETTINGS.request_seconds_max
    await cable.shard.reply((number, Done()))
    await cable.wait_quiet()
    assert cable.link.statistics().timeouts == 1
    assert cable.link.statistics().connects == 1


async def test_a_poll_has_its_wait_beyond_the_request_time(cable: Cable, autojump_clock: MockClock) -> None:  # noqa: ARG001
    """A wait longer than request_seconds_max is not cut short."""
    cable.shard.answer = silent
    cable.ask("a", Next("q", 1, 50_000_000))
    ((number, _),) = await cable.shard.wait_command(Next)
    await trio.sleep(SETTINGS.request_seconds_max + 49)
    assert "a" not in cable.outcomes

    await cable.shard.reply((number, Delivered([])))

    assert await cable.wait_outcome("a") == Delivered([])


async def test_a_request_still_queued_at_its_deadline_is_never_sent(cable: Cable, autojump_clock: MockClock) -> None:  # noqa: ARG001
    """It is surely without effect."""
    cable.shard.answer = silent
    cable.shard.reading = trio.Event()
    cable.ask("wedge", Complete("q", "wedge"), 1000)
    await cable.shard.wait_command(Complete)
    cable.ask("large", Enqueue("q", "large", 1, False, 0, b"1" * 8_000_000), 1000)
    await trio.testing.wait_all_tasks_blocked()
    cable.ask("queued", ENQUEUE, 5)

    assert reason_of(await cable.wait_outcome("queued")) is Reason.BUSY
    cable.shard.answer = obliging
    cable.shard.reading.set()
    assert await cable.wait_outcome("large") == Done()
    await cable.wait_quiet()
    assert ENQUEUE not in cable.shard.commands


# --- bounds ----------------------------------------------------------------------------------------------------


async def test_more_requests_than_the_limit_are_refused_at_once(tmp_path: Path, nursery: trio.Nursery) -> None:
    """The one at the limit passes, the one beyond does not, and an answer makes room."""
    cable = await Cable(tmp_path, nursery, Settings(shards=1, link_requests_max=2)).up()
    cable.shard.answer = silent
    cable.submit("a", Complete("q", "a"))
    cable.submit("b", Complete("q", "b"))
    (first, _), _ = await cable.shard.wait_command(Complete, 2)

    refused = await cable.link.call(ENQUEUE)

    assert isinstance(refused, Refused)
    assert (refused.reason, "link_requests_max" in refused.detail) == (Reason.BUSY, True)
    await cable.shard.reply((first, Done()))
    await cable.wait_outcome("a")
    cable.shard.answer = obliging
    assert await cable.link.call(ENQUEUE) == Done()


async def test_an_array_counts_as_one_request_and_a_poll_that_waits_as_none(tmp_path: Path, nursery: trio.Nursery) -> None:
    """Polls have a limit of their own, and so have the operations in arrays."""
    cable = await Cable(tmp_path, nursery, Settings(shards=1, link_requests_max=2, link_operations_max=5, polls_max=2)).up()
    cable.shard.answer = silent
    wait = Next("q", 1, 1_000_000)
    for name in ("p1", "p2"):
        cable.submit(name, wait)
    assert cable.link.submit_all([Complete("q", "a")] * 3, lambda _: None) is None
    many = cable.link.submit_all([Complete("q", "a")] * 3, lambda _: None)
    cable.submit("one", Complete("q", "a"))
    refused = [many, cable.link.submit(wait, never), cable.link.submit(ENQUEUE, never)]

    found = [each.detail.partition("(")[2] for each in refused if isinstance(each, Refused)]
    assert found == ["link_operations_max)", "polls_max)", "link_requests_max)"]
    for number, _ in await cable.shard.wait_command(Complete, 3):
        await cable.shard.reply((number, Done()))
    cable.shard.answer = obliging
    await cable.shard.reply(*[(number, Delivered([])) for number, _ in await cable.shard.wait_command(Next, 2)])
    await cable.wait_quiet()
    assert await cable.link.call(ENQUEUE) == Done()


async def test_more_queued_bytes_than_the_limit_are_refused_at_once(tmp_path: Path, nursery: trio.Nursery) -> None:
    """A request larger than the limit passes while nothing else is queued."""
    cable = await Cable(tmp_path, nursery, Settings(shards=1, link_bytes_max=1000)).up()
    cable.submit("a", Enqueue("q", "a", 1, False, 0, b"1" * 2000))

    refused = cable.link.submit(ENQUEUE, never)

    assert isinstance(refused, Refused)
    assert (refused.reason, "link_bytes_max" in refused.detail) == (Reason.BUSY, True)
    assert await cable.wait_outcome("a") == Done()
    assert await cable.link.call(ENQUEUE) == Done()
