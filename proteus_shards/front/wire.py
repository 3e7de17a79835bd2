"""The connection of a link: where it leads, how it is kept up, and what becomes of what is under way when it ends.

How to think about it
=====================

**One process, or one host.** Without a cluster a link leads to one Unix socket for ever. When its connection ends, what was sent is UNKNOWN and what was not is BUSY: the
shard has most likely ended with it.

**In a cluster** a link has a target, which `redirect` changes: the socket of a process here, the gate of another host, or nothing while nobody has the shard. Then

- a connection *to another host* carries a session (`ipc.sessions`). When it is cut, what was sent stays under way; the next connection goes on where it ended. Only where the
  shard does not know the session any more, or no connection comes about within resume_seconds_max, what was sent is UNKNOWN.
- a conversation is *left*, when the shard says that it moves or the target changes: nothing more is sent, what was sent is waited for, `LEAVE_SECONDS` at most, and then the next one
  begins. So an orderly move leaves nothing that is unknown.
- requests are *held* while there is no conversation: what was queued, what the shard has refused as MOVED, and what comes new, within the same bounds as ever, and for
  hold_seconds_max. Then all of it is BUSY, and so is what comes, until the link is up.
"""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Awaitable, Callable
from functools import partial

import msgspec
import trio

from proteus_shards.config import Settings
from proteus_shards.core.commands import Outcome
from proteus_shards.errors import ProtocolError, SettingError, VersionError
from proteus_shards.fault_points import reached
from proteus_shards.front.reach import RECEIVE_BYTES, dial, greet, is_local
from proteus_shards.ipc.frames import FrameReader, pack_frame
from proteus_shards.ipc.hosts import Elsewhere
from proteus_shards.ipc.messages import Hello, decode_replies, hello
from proteus_shards.ipc.sessions import SESSION_BYTES, Strand

BACKOFF_SECONDS_MIN = 0.02
BACKOFF_SECONDS_MAX = 1.0
BACKOFF_SECONDS_HELD = 0.1  # while requests are held, or a session waits to go on
MISMATCH_SECONDS = 5.0  # between tries at a shard of another version: only a restart mends that
STEADY_SECONDS = 1.0  # a link that held this long was a good one, and its loss is worth a quick retry
HELLO_SECONDS_MAX = 5.0
CLOSE_SECONDS_MAX = 0.5
LEAVE_SECONDS = 1.0
SWEEP_SECONDS = 0.25
MOVES = "the shard moves"  # why a link is down that was left in order

log = logging.getLogger("proteus_shards.front")


class Wire:
    """The connection of one link. What goes over it is its subclass's business."""

    def __init__(self, target: str, shard: int, settings: Settings) -> None:
        self.shard = shard
        self.on_elsewhere: Callable[[Elsewhere], None] = ignore_elsewhere  # told what a gate says that has not got the shard
        self._target = target
        self._turn = 0
        self._settings = settings
        self._own = hello(shard, settings.shards)
        self._moves = settings.cluster
        self._connected = False
        self._conversing = False
        self._leave_at: float | None = None  # when a conversation that is being left is cut off
        self._hold_until: float | None = None  # until then requests wait for the next conversation
        self._resume_until: float | None = None  # until then the session may go on
        self._session = b""
        self._strand: Strand | None = None
        self._pack: Callable[[bytes], bytes] = pack_frame
        self._spoilt = False  # the peer broke the protocol: its session must not go on
        self._halted = False  # nothing may be sent, though something is queued
        self._speak = False  # the peer should be told what was taken in
        self._scope: trio.CancelScope | None = None  # of the conversation, or the try at one
        self._led = trio.Event()  # set, and replaced, by each `redirect`
        self._writer = trio.lowlevel.ParkingLot()
        self._changed = trio.Event()  # set, and replaced, when the link comes up or nothing is in flight any more
        self._complaint = ""
        self._connects = 0

    # --- what the subclass does --------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Send what was held, and what there is to ask at first, now that the link is up."""
        raise NotImplementedError

    def _lose(self) -> None:
        """Settle everything: the link is gone."""
        raise NotImplementedError

    def _lose_sent(self) -> None:
        """Settle what was sent: nobody knows what became of it."""
        raise NotImplementedError

    def _end_hold(self) -> None:
        """Settle what was held: it has waited for long enough."""
        raise NotImplementedError

    def _take_reply(self, number: int, outcome: Outcome) -> None:
        """Take one reply."""
        raise NotImplementedError

    def _take_or_keep(self, number: int, outcome: Outcome) -> None:
        """Take one reply in a cluster."""
        raise NotImplementedError

    def _next_frame(self) -> bytes:
        """Return the next of what is queued as a frame, perhaps nothing."""
        raise NotImplementedError

    def _has_queued(self) -> bool:
        """Whether anything is queued."""
        raise NotImplementedError

    def _has_sent(self) -> bool:
        """Whether anything that was sent is not answered."""
        raise NotImplementedError

    def _look_over(self, now: float) -> None:
        """Do what is due."""
        raise NotImplementedError

    # --- where it leads ----------------------------------------------------------------------------------------

    def redirect(self, target: str, turn: int) -> None:
        """Lead the link to a Unix socket (a path), to a gate (HOST:PORT), or nowhere (an empty text). `turn` is that of the owner."""
        self._turn = turn
        if target != self._target:
            log.info("link led elsewhere", extra={"shard": self.shard, "target": target, "turn": turn})
            self._target = target
            if self._conversing:
                self._leave()
            else:
                self._end_session()
                if self._scope is not None:
                    self._scope.cancel()
                if target:
                    self._hold()
        led, self._led = self._led, trio.Event()
        led.set()

    def _leave(self) -> None:
        """End the conversation in order: send nothing more, and wait a moment for what was sent."""
        if self._leave_at is None and self._conversing:
            self._leave_at = trio.current_time() + LEAVE_SECONDS
            self._connected, self._halted = False, True
            self._hold()
            self._check_left()

    def _check_left(self) -> None:
        if self._leave_at is not None and self._scope is not None and not self._has_sent():
            self._scope.cancel()

    def _hold(self) -> None:
        if self._hold_until is None:
            self._hold_until = trio.current_time() + self._settings.hold_seconds_max

    def _end_session(self) -> None:
        self._strand, self._resume_until = None, None
        self._lose_sent()

    # --- keeping it up -----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep the link up until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._sweep)
            await self._stay_up()

    async def _stay_up(self) -> None:
        backoff = BACKOFF_SECONDS_MIN
        while True:
            while not self._target:
                await self._led.wait()
            led, began = self._led, trio.current_time()
            pause: float | None = None
            try:
                reason = await self._connect_and_converse()
            except (VersionError, SettingError) as error:
                reason, pause = str(error), MISMATCH_SECONDS
            except (OSError, trio.BrokenResourceError, trio.ClosedResourceError, ProtocolError) as error:
                reason = _reason(error)
            except trio.TooSlowError:
                reason = f"the shard did not greet within {HELLO_SECONDS_MAX:g} s"
            except Exception:
                reason = "a fault inside the front"
                log.exception("the link failed", extra={"shard": self.shard})
            if trio.current_time() - began >= STEADY_SECONDS:
                backoff = BACKOFF_SECONDS_MIN
            if pause is None:
                longest = BACKOFF_SECONDS_HELD if self._hold_until or self._resume_until else BACKOFF_SECONDS_MAX
                pause, backoff = min(backoff, longest), min(backoff * 2, BACKOFF_SECONDS_MAX)
                self._complain(logging.INFO if reason is MOVES else logging.WARNING, reason)
            else:
                self._complain(logging.ERROR, reason)
            with trio.move_on_after(pause * random.uniform(0.5, 1.0)):  # noqa: S311 jitter keeps no secret
                await led.wait()

    def _complain(self, level: int, reason: str) -> None:
        """Log why the link is down: once, and then only to those who debug, until it has been up or the reason changes."""
        log.log(logging.DEBUG if reason == self._complaint else level, "link down", extra={"shard": self.shard, "reason": reason})
        self._complaint = reason

    async def _connect_and_converse(self) -> str:
        """Connect, greet, and carry messages until the link ends. Returns why it ended; raises where it never began."""
        target = self._target
        own = self._greeting(target)
        with trio.CancelScope() as self._scope:
            frames = FrameReader()
            with trio.fail_after(HELLO_SECONDS_MAX):
                stream = await dial(target, self._settings)
            try:
                with trio.fail_after(HELLO_SECONDS_MAX):
                    peer, bodies = await greet(stream, frames, own)
                if isinstance(peer, Elsewhere):
                    self.on_elsewhere(peer)
                    return f"the shard is not there, but at {peer.host or 'nobody'}"
                return await self._converse(stream, frames, peer, bodies)
            finally:
                with trio.move_on_after(CLOSE_SECONDS_MAX, shield=True):
                    await stream.aclose()
        return MOVES

    def _greeting(self, target: str) -> Hello:
        if is_local(target):
            return self._own
        if self._strand is None:
            self._strand, self._session = self._new_strand(), os.urandom(SESSION_BYTES)
        return msgspec.structs.replace(self._own, session=self._session, received=self._strand.received)

    def _new_strand(self) -> Strand:
        return Strand(self._settings.resume_frames_max, self._settings.resume_bytes_max)

    async def _converse(self, stream: trio.abc.Stream, frames: FrameReader, peer: Hello, bodies: list[bytes]) -> str:
        missing = self._come_up(peer)
        ends: list[str] = []
        try:
            async with trio.open_nursery() as nursery:
                for work in (partial(self._read, stream, frames, bodies), partial(self._write, stream, missing)):
                    nursery.start_soon(self._until_it_ends, work, ends, nursery.cancel_scope)
        finally:
            self._go_down()
        return ends[0]

    def _come_up(self, peer: Hello) -> bytes:
        """Begin a conversation, or go on with one. Returns what the peer lacks."""
        missing = b""
        if self._strand is not None and peer.resumed:
            missing = self._strand.resume(peer.received)
        elif self._strand is not None:
            self._lose_sent()
            self._strand = self._new_strand()
        self._pack = self._strand.pack if self._strand is not None else pack_frame
        self._connected = self._conversing = True
        self._halted = self._speak = self._spoilt = False
        self._leave_at = self._hold_until = self._resume_until = None
        self._connects += 1
        self._complaint = ""
        log.info("link up", extra={"shard": self.shard, "resumed": peer.resumed})
        self._begin()
        self._announce()
        return missing

    def _go_down(self) -> None:
        left, self._leave_at = self._leave_at is not None, None
        self._connected = self._conversing = False
        if not self._moves:
            self._lose()
            return
        self._hold()
        if self._strand is not None and not left and not self._spoilt:
            self._resume_until = trio.current_time() + self._settings.resume_seconds_max
        else:
            self._end_session()
        self._announce()

    def _announce(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    async def _until_it_ends(self, work: Callable[[], Awaitable[str]], ends: list[str], scope: trio.CancelScope) -> None:
        """Do one part of the conversation. When any part ends, for whatever reason, all do."""
        try:
            ends.append(await work())
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError, ProtocolError) as error:
            self._spoilt = self._spoilt or isinstance(error, ProtocolError)
            ends.append(_reason(error))
        except Exception:
            self._spoilt = True
            ends.append("a fault inside the front")
            log.exception("the link failed", extra={"shard": self.shard})
        scope.cancel()

    # --- reading and writing -----------------------------------------------------------------------------------

    async def _read(self, stream: trio.abc.Stream, frames: FrameReader, bodies: list[bytes]) -> str:
        strand = self._strand
        take = self._take_or_keep if self._moves else self._take_reply
        while True:
            for body in bodies:
                held: bytes | memoryview = body
                if strand is not None:
                    held = self._untie(strand, body)
                    if not held:
                        continue
                reached("link.received")
                for number, outcome in decode_replies(held):
                    take(number, outcome)
                reached("link.settled")
            data = await stream.receive_some(RECEIVE_BYTES)
            if not data:
                return "the shard closed the link"
            bodies = frames.feed(data)

    def _untie(self, strand: Strand, body: bytes) -> memoryview:
        held = strand.take(body)
        if strand.owes_word:
            self._speak = True
            self._writer.unpark()
        if self._halted and self._leave_at is None and not strand.is_full:
            self._halted = False
            self._writer.unpark()
        return held

    async def _write(self, stream: trio.abc.Stream, missing: bytes) -> str:
        strand = self._strand
        if missing:
            await stream.send_all(missing)
        while True:
            if self._halted or not self._has_queued():
                await self._writer.park()
            frame = b"" if self._halted else self._next_frame()
            if strand is not None:
                frame = frame or (strand.word() if self._speak else b"")
                self._speak = False
                self._halted = self._halted or strand.is_full
            if frame:
                await stream.send_all(frame)
                reached("link.sent")
            else:
                await trio.lowlevel.checkpoint()

    # --- time --------------------------------------------------------------------------------------------------

    async def _sweep(self) -> None:
        while True:
            await trio.sleep(SWEEP_SECONDS)
            now = trio.current_time()
            try:
                self._look_over(now)
                self._look_at_clock(now)
            except Exception:
                log.exception("the link failed", extra={"shard": self.shard})

    def _look_at_clock(self, now: float) -> None:
        if self._hold_until is not None and now >= self._hold_until and not self._connected:
            self._hold_until = None
            self._end_hold()
        if self._resume_until is not None and now >= self._resume_until:
            self._end_session()
        if self._leave_at is not None and now >= self._leave_at and self._scope is not None:
            self._scope.cancel()
        if self._strand is not None and self._conversing:
            self._speak = True
            self._writer.unpark()


def ignore_elsewhere(_elsewhere: Elsewhere) -> None:
    """Take what a gate says where nobody wants to know."""


def _reason(error: BaseException) -> str:
    cause = error.__cause__ if isinstance(error, trio.BrokenResourceError) and error.__cause__ is not None else error
    return str(cause) or type(error).__name__
