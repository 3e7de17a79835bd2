"""Sessions of fronts on other hosts: what is kept for one that is cut off, and for how long."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import msgspec
import pytest

from proteus_shards.core.commands import Done, Enqueue, Next, Outcome, Reason, Refused
from proteus_shards.errors import ProtocolError
from proteus_shards.ipc.frames import FrameReader
from proteus_shards.ipc.messages import Request, decode_replies, encode, hello
from proteus_shards.ipc.sessions import SESSION_BYTES, Strand
from proteus_shards.shard import sessions as module
from proteus_shards.shard.sessions import SessionLimits, Sessions
from tests.shard.scripted import Clock, ScriptedStore, make_pump
from tests.store.rows import in_asyncio

LIMITS = SessionLimits(frames_max=50, bytes_max=100_000, seconds_max=0.05)
JOB = Enqueue("q", "a", 30, False, 0, b"1")
POLL = Next("q", 1, 600_000_000)


def bodies_of(out: list[tuple[int, Outcome]]) -> Iterable[bytes]:
    """Return one body for all replies."""
    return [encode(out)]


class Wire:
    """A connection that remembers what was written to it, and its front's end of the session."""

    def __init__(self, strand: Strand) -> None:
        self.strand = strand
        self.replies: list[tuple[int, Outcome]] = []
        self.aborted = False
        self._reader = FrameReader()

    def write(self, data: bytes) -> None:
        for body in self._reader.feed(data):
            held = self.strand.take(body)
            if held:
                self.replies += decode_replies(held)

    def abort(self) -> None:
        self.aborted = True


class Stand:
    """A pump, its sessions, and one front of another host."""

    def __init__(self, limits: SessionLimits = LIMITS) -> None:
        self.pump = make_pump(ScriptedStore(), Clock())
        self.sessions = Sessions(self.pump, limits, bodies_of)
        self.front = Strand(10**6, 10**9)
        self.greeting = msgspec.structs.replace(hello(0, 1), session=b"s" * SESSION_BYTES)
        self.session, known = self.sessions.find(self.greeting)
        assert not known
        self.wire = Wire(self.front)
        self.session.attach(self.wire)

    def send(self, *requests: Request) -> None:
        """Send requests over the connection that there is."""
        (body,) = FrameReader().feed(self.front.pack(encode(list(requests))))
        self.session.take(body)

    def jobs(self) -> list[str]:
        """Return the ids of the jobs that wait in the queue."""
        queue = self.pump.shard.queues.get("q")
        return [job.id for job in queue.ready()] if queue is not None else []


@in_asyncio
async def test_a_session_goes_on_over_another_connection() -> None:
    """What was answered meanwhile is fetched, and the old connection is of no use."""
    stand = Stand()
    stand.session.detach(stand.wire)
    stand.session.put(1, Done())
    stand.session.flush()

    found, known = stand.sessions.find(stand.greeting)
    second, third = Wire(stand.front), Wire(stand.front)
    second.write(found.resume(stand.front.received))
    found.attach(second)
    found.attach(third)
    stand.send((2, JOB))

    assert (found, known) == (stand.session, True)
    assert second.replies == [(1, Done())]
    assert second.aborted
    assert third.replies == [(2, Done())]


@in_asyncio
async def test_a_session_that_nobody_comes_back_to_ends_and_its_polls_with_it() -> None:
    """A job that was handed to one in between goes back: nobody has seen it."""
    stand = Stand()
    stand.send((1, POLL), (2, POLL))
    stand.session.detach(stand.wire)
    stand.pump.carry_out([JOB])
    assert stand.jobs() == []

    while len(stand.sessions):
        await asyncio.sleep(0.01)

    assert stand.session.closed
    assert stand.pump.shard.polls == 0
    assert stand.jobs() == ["a"]
    assert stand.pump.shard.queues["q"].jobs["a"].attempt == 0
    assert stand.sessions.find(stand.greeting)[1] is False


@in_asyncio
async def test_a_front_for_which_too_much_is_kept_loses_its_session() -> None:
    """It is told that what it waits for is unknown, as its session is when it comes back."""
    for size, count in ((60_000, 2), (10, 50)):
        stand = Stand()
        for number in range(count):
            assert not stand.wire.aborted
            stand.session.put(number, Refused(Reason.BUSY, "x" * size))
            stand.session.flush()

        assert stand.wire.aborted
        assert stand.session.closed
        assert len(stand.sessions) == 0


@in_asyncio
async def test_what_no_front_would_say_is_a_protocol_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """And costs that front its session alone."""
    stand = Stand()
    monkeypatch.setattr(module, "SESSIONS_MAX", 1)
    for name in (b"x", b"x" * SESSION_BYTES):  # too short; one too many
        with pytest.raises(ProtocolError):
            stand.sessions.find(msgspec.structs.replace(stand.greeting, session=name))
    for body in (b"", b"1234567", b"\xff" * 20, bytes(8) + b"\xc1"):
        with pytest.raises(ProtocolError):
            stand.session.take(body)
    with pytest.raises(ProtocolError):
        stand.session.resume(5)

    assert stand.session.closed
    assert len(stand.sessions) == 0
