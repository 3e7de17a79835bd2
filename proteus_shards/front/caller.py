"""One connection of the fast lane, and the places of its answers: plain state, all decisions are the lane's."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Sequence

import msgspec

from proteus_shards.core.commands import Delivery
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


class Slot:
    """The place of one answer in its connection's order."""

    __slots__ = ("client", "data", "jobs", "keep_alive", "link", "number", "request_http10", "sure", "tally")

    tally: list[int]  # where the answer is counted, by status

    def __init__(self, client: Caller, *, keep_alive: bool, http10: bool, data: bytes | None = None) -> None:
        self.client = client
        self.keep_alive = keep_alive
        self.request_http10 = http10
        self.data = data
        self.jobs: Sequence[Delivery] = ()
        self.link: Link | Errand | None = None  # set for what brings jobs, so that it can be abandoned
        self.number = 0
        self.sure = True  # where its jobs go back, the request had no effect


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
        self.queued = 0  # bytes that ever were in `out`
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
