"""One connection of the fast lane, and the places of its answers: plain state and the counting of bytes, all decisions are the lane's."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Sequence

import msgspec

from proteus_shards.core.commands import Delivery
from proteus_shards.front.budget import Budget
from proteus_shards.front.errands import Errand
from proteus_shards.front.http1 import Need, RequestReader
from proteus_shards.front.link import Link
from proteus_shards.front.poller import READ


class LaneStatistics(msgspec.Struct, frozen=True):
    """The lane at one moment. Counts are since the process started."""

    connections: int
    waiting: int  # requests taken and not answered
    accepted: int
    requests: int
    handed_over: int
    faults: int  # connections ended for what they sent
    timeouts: int  # connections ended for what they did not send or read in time
    accepting: bool


class Slot(msgspec.Struct, eq=False):
    """The place of one answer in its connection's order."""

    client: Caller
    tally: list[int]  # where the answer is counted, by status
    keep_alive: bool
    request_http10: bool = False
    data: bytes | None = None
    jobs: Sequence[Delivery] = ()
    link: Link | Errand | None = None  # set for what brings jobs, so that it can be abandoned
    number: int = 0
    sure: bool = True  # where its jobs go back, the request had no effect


class Caller:
    """One connection."""

    __slots__ = (
        "closing",
        "deadline",
        "ended",
        "events",
        "fd",
        "handover",
        "held",
        "jobs",
        "line",
        "lingered",
        "lingering",
        "marked",
        "open",
        "out",
        "phase",
        "queued",
        "reader",
        "requests",
        "sock",
        "taken",
        "unsent",
    )

    def __init__(self, sock: socket.socket, reader: RequestReader, deadline: float) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.reader = reader
        self.line: deque[Slot] = deque()
        self.out = b""  # answers that the kernel has not taken yet
        self.queued = 0  # bytes that ever were in `out`: what the kernel takes at once never is
        self.taken = 0  # of those, by the kernel
        self.marked = 0  # `taken` when the deadline was last set
        self.held = 0  # bytes of requests that are not whole, as counted
        self.unsent = 0  # bytes of answers that the kernel has not taken, those in line included
        self.jobs: deque[tuple[int, Sequence[Delivery]]] = deque()  # of answers in `out`, with the `taken` at which each is all gone
        self.events = READ
        self.phase: Need | None = Need.NOTHING  # None: answers are awaited or being sent
        self.deadline = deadline
        self.requests = 0
        self.open = True
        self.closing = False  # no request after those in line, close when all is out
        self.ended = False  # the client has shut down its sending side
        self.handover: bytes | None = None  # unread bytes for another server, once all is out
        self.lingering = False  # all is out; what the client still sends is thrown away
        self.lingered = 0

    def hold(self, bodies: Budget) -> bool:
        """Count what is held of requests that are not whole. Where that may not be, it is thrown away, and nothing more is read."""
        held, own = self.reader.held, self.held
        taken = held <= own or bodies.take(held - own, own)
        if not taken:
            self.reader.drop()
            held = 0
        if held < own:
            bodies.give(own - held)
        self.held = held
        return taken

    def forget_sent(self, ready: int) -> None:
        """Forget what was in `out` and the first `ready` answers in line: the kernel has all."""
        while ready:
            self.line.popleft()
            ready -= 1
        if self.out:
            self.out = b""
            self.taken = self.queued
            self.jobs.clear()

    def keep_unsent(self, ready: int, rest: bytes, taken: int) -> None:
        """Keep the rest of what was in `out` and of the first `ready` answers in line: the kernel has taken only so many bytes."""
        for _ in range(ready):
            slot = self.line.popleft()
            self.queued += len(slot.data or b"")
            if slot.jobs:
                self.jobs.append((self.queued, slot.jobs))
        self.out = rest
        self.taken += taken
        while self.jobs and self.jobs[0][0] <= self.taken:
            self.jobs.popleft()  # the kernel has all of that answer
