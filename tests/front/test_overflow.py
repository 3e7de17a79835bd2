"""Refusing in overload: what no shard would take is not read, and has its place in line and in the counts all the same."""

from __future__ import annotations

from pathlib import Path

from proteus_shards.core.commands import Command, Done, Enqueue, Outcome
from proteus_shards.front.counts import limit_samples
from tests.front.fake_shard import obliging
from tests.front.test_lane import get, post, stand


def silent(command: Command) -> Outcome | None:
    """Answer as a shard that commits nothing for now."""
    return None if isinstance(command, Enqueue) else obliging(command)


def hits() -> int:
    """Return how often the limit was hit."""
    return next(int(str(value)) for _, labels, value in limit_samples() if labels == ["link_requests_max"])


async def test_what_no_shard_would_take_is_refused_unread(tmp_path: Path) -> None:
    """The first refusal names its job, those after it only the limit; a body that is none is refused alike, and all are counted."""
    async with stand(tmp_path, silent, link_requests_max=2) as made:
        caller = await made.connect()
        before = hits()
        await caller.send(post() * 3 + post(b"nonsense") + post(b"[]") + post())
        sent = await made.shard.wait_command(Enqueue, 2)
        await made.shard.reply(*((number, Done()) for number, _ in sent))
        replies = [await caller.answer() for _ in range(6)]
        (link,) = made.router.statistics()

        assert [reply[0] for reply in replies] == [202, 202, 429, 429, 429, 429]
        assert [b'"job_id":"a"' in reply[2] for reply in replies[2:]] == [True, False, False, False]
        assert {b"(link_requests_max)" in reply[2] and reply[1]["retry-after"] == "1" for reply in replies[2:]} == {True}
        assert (link.refused, hits() - before) == (4, 4)


async def test_as_soon_as_there_is_room_requests_are_read_again(tmp_path: Path) -> None:
    """Also those that came with what was refused, and wait in line; a job that is none is then told so."""
    async with stand(tmp_path, silent, link_requests_max=2) as made:
        caller = await made.connect()
        await caller.send(post() * 4)
        sent = await made.shard.wait_command(Enqueue, 2)
        await made.shard.reply(*((number, Done()) for number, _ in sent))
        first = [(await caller.answer())[0] for _ in range(4)]
        await caller.send(post(b"nonsense") + get())
        second = [(await caller.answer())[0] for _ in range(2)]

    assert (first, second) == ([202, 202, 429, 429], [422, 204])
