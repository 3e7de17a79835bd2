"""What a link keeps of a request until it is settled, and what the request weighs meanwhile."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import msgspec
import trio

from proteus_shards.config import Settings
from proteus_shards.core.commands import Command, Complete, Enqueue, Heartbeat, Next, Outcome, Reason, Refused

REQUEST_BYTES = 64  # what a request weighs beside its payload, state and names
WINDOW_MIN = 256
WINDOW_GROWTH = 1.25
UNSETTLED = Refused(Reason.FAULT, "not settled")  # holds the place of an outcome in a group

OnReply: TypeAlias = Callable[[Outcome], None]
OnOutcomes: TypeAlias = Callable[[list[Outcome]], None]


class Group(msgspec.Struct, eq=False):
    """Requests that were submitted together: numbers `first`…, and what has come back so far."""

    first: int
    outcomes: list[Outcome]
    left: int
    on_outcomes: OnOutcomes


class Pending(msgspec.Struct, eq=False):
    """A request that is not settled yet; those of a group share one."""

    on_reply: OnReply
    deadline: float
    next: bool
    poll: bool
    sent: bool = False
    group: Group | None = None
    ending: bool = False  # the shard was told to answer it now


class UnderWay:
    """The requests of a link that are not settled, by number, and how many there are of each kind.

    **They are bounded in time as well.** One request at a time is a probe. Where it takes longer than delay_seconds_max, only as many may be under way as would have
    been answered in that time, and further ones are refused at once: they would wait, and their clients would give up on them. Each probe that is in time widens
    that window. A shard that stands still is found out before the probe ends. As few as `WINDOW_MIN` always pass: a store that is slow for a moment is no overload.
    """

    def __init__(self, settings: Settings) -> None:
        self._delay_seconds_max = settings.delay_seconds_max
        self._requests_max = settings.link_requests_max
        self.free_max = min(WINDOW_MIN, settings.link_requests_max, settings.polls_max)  # with fewer no limit of a single request is near
        self.entries: dict[int, Pending] = {}
        self.polls = 0  # that wait
        self.window = math.inf  # most requests that may be under way, as delays have shown
        self._probe = 0  # the number of a request whose time is taken
        self._probed_at = 0.0
        self._probed_with = 0  # requests under way with it
        self._in_groups = 0  # beyond the first of each group

    @property
    def requests(self) -> int:
        """How many requests there are, without the polls; a group is one."""
        return len(self.entries) - self.polls - self._in_groups

    @property
    def operations(self) -> int:
        """How many operations there are in them."""
        return len(self.entries) - self.polls

    def add(self, number: int, pending: Pending) -> None:
        """Enter a request."""
        entries = self.entries
        entries[number] = pending
        if pending.poll:
            self.polls += 1
        elif len(entries) >= WINDOW_MIN and not self._probe:  # with fewer nothing depends on it
            self._begin_probe(number)

    def add_group(self, group: Group, deadline: float) -> None:
        """Enter the requests of a group; they share one entry."""
        shared = Pending(ignore, deadline, next=False, poll=False, group=group)
        self.entries.update(dict.fromkeys(range(group.first, group.first + group.left), shared))
        self._in_groups += group.left - 1
        if not self._probe and len(self.entries) >= WINDOW_MIN:
            self._begin_probe(group.first)

    def remove(self, number: int) -> Pending | None:
        """Take a request out."""
        pending = self.entries.pop(number, None)
        if pending is None:
            return None
        if pending.poll:
            self.polls -= 1
        elif pending.group is not None and pending.group.left > 1:
            self._in_groups -= 1
        if number == self._probe:
            self._end_probe()
        return pending

    def remove_all(self) -> dict[int, Pending]:
        """Take all out."""
        entries, self.entries = self.entries, {}
        self.polls = self._in_groups = self._probe = 0
        self.window = math.inf
        return entries

    def forget_probe(self) -> None:
        """Learn nothing from the time of the probe: it was held."""
        self._probe = 0

    def _begin_probe(self, number: int) -> None:
        self._probe, self._probed_at, self._probed_with = number, trio.current_time(), self.requests

    def _end_probe(self) -> None:
        """Learn from the time that one request took. What was under way with it, and how long it took, say how much fits into the time that may be."""
        self._probe = 0
        seconds = trio.current_time() - self._probed_at
        if seconds > self._delay_seconds_max:
            self.window = max(WINDOW_MIN, self._probed_with * self._delay_seconds_max / seconds)
        elif self.window < math.inf:
            self.window = self.window * WINDOW_GROWTH if self.window < self._requests_max else math.inf

    def limit_hit(self, settings: Settings, count: int, *, poll: bool = False) -> str | None:
        """Return what there is too much of for one more request of so many operations, with the name of the limit."""
        if poll:
            return "polls wait at {} (polls_max)" if self.polls >= settings.polls_max else None
        requests = self.requests
        if requests >= WINDOW_MIN:
            if requests >= settings.link_requests_max:
                return "requests are under way at {} (link_requests_max)"
            if requests >= self.window or (self._probe and trio.current_time() - self._probed_at > self._delay_seconds_max):
                return "requests would wait for too long at {} (delay_seconds_max)"
        elif requests >= settings.link_requests_max:
            return "requests are under way at {} (link_requests_max)"
        operations = self.operations
        if count > 1 and operations and operations + count > settings.link_operations_max:
            return "operations are under way at {} (link_operations_max)"
        return None


def ignore(_outcome: Outcome) -> None:
    """Take what a group tells its own callback."""


def weigh(command: Command) -> int:
    """Return roughly how many bytes a command is."""
    if isinstance(command, Enqueue):
        return REQUEST_BYTES + len(command.queue) + len(command.id) + len(command.payload) + len(command.state or b"")
    if isinstance(command, Next):
        return REQUEST_BYTES + len(command.queue)
    if isinstance(command, Complete):
        return REQUEST_BYTES + len(command.queue)
    if isinstance(command, Heartbeat):
        return REQUEST_BYTES + len(command.queue) + len(command.id) + len(command.state or b"")
    jobs = getattr(command, "jobs", ())
    return REQUEST_BYTES + len(getattr(command, "queue", "")) + sum(map(weigh, jobs))
