"""The shard's end of links from other hosts: sessions, which outlive the connections that they go over.

A session is what the pump answers, and a connection only what its frames go through just now. While there is none, answers are kept for the front to fetch; a
poll waits on, and what it is given is kept, too (and goes back, where it was never sent). A front that does not come back in time, or has more kept for it than may be, has lost its session: its polls end, and it is told
when it comes after all, so that it calls unknown what it cannot know.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING, Protocol

import msgspec

from proteus_shards.core.commands import Delivered, Undeliver
from proteus_shards.errors import ProtocolError
from proteus_shards.ipc.messages import decode_requests
from proteus_shards.ipc.sessions import SESSION_BYTES, Strand

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from proteus_shards.config import Settings
    from proteus_shards.core.commands import Delivery, Outcome
    from proteus_shards.ipc.messages import Hello
    from proteus_shards.shard.pump import Pump

SESSIONS_MAX = 4096  # of one shard: a front of another host has one

log = logging.getLogger("proteus_shards.shard")


class SessionLimits(msgspec.Struct, frozen=True):
    """How much is kept for a front that is cut off, and for how long."""

    frames_max: int = 10_000
    bytes_max: int = 64 * 1024 * 1024
    seconds_max: float = 10.0


def session_limits(settings: Settings) -> SessionLimits:
    """Return the limits under these settings."""
    return SessionLimits(settings.resume_frames_max, settings.resume_bytes_max, settings.resume_seconds_max)


class Carrier(Protocol):
    """A connection, as a session sees it."""

    def write(self, data: bytes) -> None:
        """Send bytes."""

    def abort(self) -> None:
        """End it at once."""


class Session:
    """What one front of another host asks. Implements `pump.Link`."""

    def __init__(
        self,
        pump: Pump,
        limits: SessionLimits,
        bodies_of: Callable[[list[tuple[int, Outcome]]], Iterable[bytes]],
        forget: Callable[[], None],
    ) -> None:
        self.closed = False
        self.strand = Strand(limits.frames_max, limits.bytes_max)
        self._pump = pump
        self._seconds_max = limits.seconds_max
        self._bodies_of = bodies_of
        self._forget = forget
        self._carrier: Carrier | None = None
        self._end: asyncio.TimerHandle | None = None
        self._out: list[tuple[int, Outcome]] = []
        self._unseen: list[Delivery] = []  # runs that were handed out while there was no connection

    @property
    def unsent_bytes(self) -> int:
        """How many bytes of replies wait for the front to take them."""
        return self.strand.kept_bytes

    def put(self, number: int, outcome: Outcome) -> None:
        """Queue a reply."""
        self._out.append((number, outcome))

    def flush(self) -> None:
        """Send the queued replies, or keep them."""
        out, self._out = self._out, []
        if not out or self.closed:
            return
        data = b"".join([self.strand.pack(body) for body in self._bodies_of(out)])
        if self._carrier is not None:
            self._carrier.write(data)
        else:
            self._unseen += [job for _, outcome in out if isinstance(outcome, Delivered) for job in outcome.jobs]
        if self.strand.is_full:
            log.warning("too much is kept for a front of another host (resume_frames_max, resume_bytes_max)")
            self.end()

    def take(self, body: bytes) -> None:
        """Take in a frame of the front. Raises `ProtocolError`."""
        held = self.strand.take(body)
        if held:
            self._pump.receive(self, decode_requests(held))
        if self.strand.owes_word and self._carrier is not None:
            self._carrier.write(self.strand.word())

    def resume(self, received: int) -> bytes:
        """Return the frames that the front lacks. Raises `ProtocolError`, and ends the session, where it says what cannot be."""
        try:
            return self.strand.resume(received)
        except ProtocolError:
            self.end()
            raise

    def attach(self, carrier: Carrier) -> None:
        """Go on over another connection. One that it had is of no use any more."""
        if self._end is not None:
            self._end.cancel()
            self._end = None
        self._unseen.clear()
        before, self._carrier = self._carrier, carrier
        if before is not None:
            before.abort()

    def detach(self, carrier: Carrier) -> None:
        """Be without a connection, for a while."""
        if self._carrier is carrier:
            self._carrier = None
            self._end = asyncio.get_running_loop().call_later(self._seconds_max, self.end)

    def end(self) -> None:
        """Give it up: what the front was waiting for ends."""
        if self.closed:
            return
        self.closed = True
        self._out.clear()
        self._forget()
        if self._end is not None:
            self._end.cancel()
        if self._carrier is not None:
            self._carrier.abort()
        self._pump.lose(self)
        self._pump.carry_out([Undeliver(job.queue, job.id, job.run_id) for job in self._unseen])


class Sessions:
    """All sessions of a shard, by their names."""

    def __init__(self, pump: Pump, limits: SessionLimits, bodies_of: Callable[[list[tuple[int, Outcome]]], Iterable[bytes]]) -> None:
        self._pump = pump
        self._limits = limits
        self._bodies_of = bodies_of
        self._found: dict[bytes, Session] = {}

    def __len__(self) -> int:
        return len(self._found)

    def find(self, peer: Hello) -> tuple[Session, bool]:
        """Return the session that a greeting names, and whether it goes on (else it is a new one). Raises `ProtocolError`."""
        name = peer.session
        known = self._found.get(name)
        if known is not None:
            return known, True
        if len(name) != SESSION_BYTES:
            raise ProtocolError(f"a session's name has {SESSION_BYTES} bytes, not {len(name)}")
        if len(self._found) >= SESSIONS_MAX:
            raise ProtocolError(f"{SESSIONS_MAX} sessions are open already")
        made = self._found[name] = Session(self._pump, self._limits, self._bodies_of, partial(self._forget, name))
        return made, False

    def _forget(self, name: bytes) -> None:
        self._found.pop(name, None)
