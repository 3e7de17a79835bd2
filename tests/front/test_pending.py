"""How much may be under way at a shard: bounded in number, and in the time that it would take."""

from __future__ import annotations

import trio.testing

from proteus_shards.config import Settings
from proteus_shards.core.commands import Outcome
from proteus_shards.front.pending import WINDOW_MIN, Group, Pending, UnderWay

SETTINGS = Settings(shards=1, delay_seconds_max=1.0, link_requests_max=8192)


def never(_: Outcome) -> None:
    """Take an outcome that does not come."""


def enter(under_way: UnderWay, first: int, count: int) -> None:
    """Enter so many requests."""
    for number in range(first, first + count):
        under_way.add(number, Pending(never, 0.0, next=False, poll=False))


def limit(under_way: UnderWay) -> str:
    """Return the name of the limit that one more request would hit."""
    return (under_way.limit_hit(SETTINGS, 1) or "").partition("(")[2].rstrip(")")


async def test_requests_that_would_wait_for_too_long_are_refused(mock_clock: trio.testing.MockClock) -> None:
    """After one that took twice the time, half as many may be under way; each that is in time lets in more, and in the end as many as ever."""
    under_way = UnderWay(SETTINGS)
    enter(under_way, 1, 2000)
    before = limit(under_way)
    mock_clock.jump(2.0)
    standing = limit(under_way)
    under_way.remove(WINDOW_MIN)  # the probe: the first with which there were so many
    first_window = under_way.window
    enter(under_way, 3000, 1)
    under_way.remove(3000)
    widened = under_way.window
    for number in range(4000, 4100):
        enter(under_way, number, 1)
        under_way.remove(number)

    assert (before, standing) == ("", "delay_seconds_max")
    assert (first_window, widened) == (WINDOW_MIN, WINDOW_MIN * 1.25)
    assert under_way.window > 10**9


async def test_a_window_is_what_would_have_been_answered_in_time(mock_clock: trio.testing.MockClock) -> None:
    """The number that was under way with the probe, less by as much as it was late."""
    under_way = UnderWay(SETTINGS)
    enter(under_way, 1, 2000)
    under_way.remove(WINDOW_MIN)
    enter(under_way, 5000, 1)
    mock_clock.jump(2.0)
    under_way.remove(5000)

    assert under_way.window == 1000
    assert limit(under_way) == "delay_seconds_max"
    for number in range(1000, 2001):
        under_way.remove(number)
    assert limit(under_way) == ""


async def test_a_few_always_pass_however_slow_the_shard_is(mock_clock: trio.testing.MockClock) -> None:
    """A store that stops for a moment is no overload."""
    under_way = UnderWay(SETTINGS)
    enter(under_way, 1, WINDOW_MIN - 1)
    mock_clock.jump(20.0)

    assert limit(under_way) == ""
    enter(under_way, 1000, 1)
    assert limit(under_way) == ""
    mock_clock.jump(20.0)
    assert limit(under_way) == "delay_seconds_max"


async def test_an_array_is_a_probe_like_any_other_and_polls_are_none(mock_clock: trio.testing.MockClock) -> None:
    """A poll may wait as long as it likes."""
    under_way = UnderWay(SETTINGS)
    under_way.add(1, Pending(never, 0.0, next=True, poll=True))
    mock_clock.jump(50.0)
    under_way.remove(1)
    group = Group(10, [], WINDOW_MIN, lambda _: None)
    under_way.add_group(group, 0.0)
    mock_clock.jump(4.0)
    window = under_way.window
    under_way.remove(10)

    assert (window > 10**9, under_way.window) == (True, WINDOW_MIN)
