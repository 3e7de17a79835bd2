"""One process that should run, and its keeper: the task that starts it, waits for it and starts it again.

The keeper owns the process: whatever ends the keeper, the process is killed if it still runs, and always waited for.

- A child's standard input carries one line of JSON, then nothing, and stays open: its end tells the child that the supervisor
  is gone, however it went. Children are in process groups of their own, so that Ctrl-C reaches the supervisor alone.
- Settings travel in that line, and children see no `PROTEUS_*` variable but those for tests.
- The node of a cluster says more than that it is ready, and is told things as it runs: `on_order` hears it, `send` speaks to the process that there is at the moment.
- A child writes a sign of life every second, from its event loop. One that is silent for hang_seconds_max is killed and replaced. The
  seconds are those in which the supervisor itself was awake: a machine that slept, or a group of processes that was stopped, hangs nowhere.
"""

from __future__ import annotations

import logging
import os
import subprocess
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

import msgspec
import trio

from proteus_shards.boot import NodeBoot
from proteus_shards.config import BEAT_SECONDS, Beat, Failed, FrontBoot, Ready, ShardBoot
from proteus_shards.errors import ReplacedError, StartError
from proteus_shards.ipc.orders import NodeOrder, SupervisorOrder
from proteus_shards.surroundings import child_environment
from proteus_shards.tally import CRASH_LOOP_MIN

log = logging.getLogger("proteus_shards.supervisor")

BACKOFF_SECONDS_FIRST = 0.1
BACKOFF_SECONDS_MAX = 5.0
SERVED_SECONDS_ENOUGH = 10.0  # a child that served this long starts its backoff anew
SILENT_STARTS_MAX = 5  # a child that has never served and ends this often without a word stops the server
LAST_WORDS_SECONDS_MAX = 1.0  # for reading what an ended child wrote
FAILED_SECONDS_MAX = 5.0  # for the end of a child that said that it failed
Boot: TypeAlias = ShardBoot | FrontBoot | NodeBoot
CONTROL_LINE_BYTES_MAX = 1024 * 1024  # a node names all shards in one


_words: msgspec.json.Decoder[Ready | Failed | Beat | NodeOrder] = msgspec.json.Decoder(Ready | Failed | Beat | NodeOrder)


class ChildStatistics(msgspec.Struct, frozen=True):
    """One child at one moment."""

    name: str
    pid: int | None  # None while no process runs
    serves: bool
    starts: int
    restarts: int  # how often it was started again after its end
    crashes: int  # how often in a row it has ended soon after its start; 0 once one serves for a while


class Backoff:
    """How long to wait before the next start: twice as long after each failure, and short again after a success."""

    def __init__(self) -> None:
        self._next = BACKOFF_SECONDS_FIRST

    def after(self, served_seconds: float) -> float:
        """Return the seconds to wait after a child that served this long has ended."""
        if served_seconds >= SERVED_SECONDS_ENOUGH:
            self._next = BACKOFF_SECONDS_FIRST
        delay, self._next = self._next, min(2 * self._next, BACKOFF_SECONDS_MAX)
        return delay


class Lines:
    """Cuts what a child writes into lines. One that is longer than any control line is given in pieces."""

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes | bytearray) -> list[bytes]:
        """Take what was read and return the lines that it completes, without their ends."""
        *lines, self._held = (self._held + data).split(b"\n")
        if len(self._held) > CONTROL_LINE_BYTES_MAX:
            lines.append(self._held)
            self._held = b""
        return lines


class Child:
    """One process that should run, under its keeper.

    `mend` is done before the next start of one that has served and says now that no start would help. `on_change` is called when a process begins to serve, and when it has ended.
    A `boot` that differs from start to start is a function.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        boot: Boot | Callable[[], Boot],
        *,
        once: bool = False,
        mend: Callable[[], Awaitable[None]] | None = None,
        on_change: Callable[[], None] | None = None,
        on_order: Callable[[NodeOrder], None] | None = None,
    ) -> None:
        self.name = name
        self.ready = trio.Event()  # it has served (or, with `once`, done its work) at least once
        self.ended = trio.Event()  # its keeper is done: no process is left
        self.failure: StartError | None = None  # why it can never serve
        self.word: Ready | None = None  # what it said last when it was ready
        self.unclean = False  # it was told to stop while it served, and ended with an error
        self.fenced = False  # another owner has what it serves: it is not started again
        self._command = tuple(command)
        self._boot = boot
        self._once = once
        self._mend = mend
        self._on_change = on_change or (lambda: None)
        self._on_order = on_order
        self._outbox: deque[bytes] = deque()
        self._posted = trio.Event()
        self._to_be_mended = False
        self._stop = trio.Event()
        self._process: trio.Process | None = None
        self._serving_since: float | None = None
        self._starts = 0
        self._silent_starts = 0
        self._crashes = 0
        self._beaten = False

    def statistics(self) -> ChildStatistics:
        """Return what there is to know about it now."""
        pid = self._process.pid if self._process else None
        since = self._serving_since
        crashes = 0 if since is not None and trio.current_time() - since >= SERVED_SECONDS_ENOUGH else self._crashes
        return ChildStatistics(self.name, pid, since is not None, self._starts, max(0, self._starts - 1), crashes)

    @property
    def serves(self) -> bool:
        """Whether a process serves now."""
        return self._serving_since is not None

    def send(self, order: SupervisorOrder) -> None:
        """Tell the process something, if there is one. Its successor's boot says what that has to know."""
        if self._process is not None:
            self._outbox.append(msgspec.json.encode(order) + b"\n")
            self._posted.set()

    def finish(self) -> None:
        """Start no other process. The one that there is was told, in another way, to come to its end."""
        self._stop.set()

    def stop(self) -> None:
        """Ask the process to finish what it does and end, and start no other. Harmless if repeated."""
        if not self._stop.is_set():
            self._stop.set()
            if self._process is not None:
                self._process.terminate()

    def successor(self) -> Child:
        """Return another that is to take its place."""
        return Child(self.name, self._command, self._boot)

    def inherit(self, before: Child) -> None:
        """Count the starts of the one before as its own."""
        self._starts += before._starts

    def give(self, boot: ShardBoot) -> None:
        """Tell its next processes something else."""
        self._boot = boot

    async def keep(self) -> None:
        """Run it, again and again, until it is stopped, is done, or can never serve."""
        backoff = Backoff()
        try:
            while not self._stop.is_set():
                served_seconds = await self._run()
                self._on_change()
                if self._stop.is_set() or self.fenced or self.failure is not None or (self._once and self.ready.is_set()):
                    break
                self._crashes = 1 if served_seconds >= SERVED_SECONDS_ENOUGH else self._crashes + 1
                delay = backoff.after(served_seconds)
                level = logging.WARNING if self._crashes < CRASH_LOOP_MIN else logging.ERROR
                log.log(level, "restarting", extra={"child": self.name, "delay_seconds": delay, "crashes": self._crashes})
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(cancel_on, self._stop, nursery.cancel_scope)
                    await trio.sleep(delay)
                    if self._to_be_mended and self._mend is not None:
                        self._to_be_mended = False
                        await self._mend()
                    nursery.cancel_scope.cancel()
        finally:
            self.ended.set()

    def _own_boot(self) -> Boot:
        return self._boot() if callable(self._boot) else self._boot

    async def _run(self) -> float:
        """Start one process, attend it to its end, and return for how many seconds it served."""
        self._starts += 1
        try:
            process = await trio.lowlevel.open_process(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=_descriptors(self._own_boot()),
                env=child_environment(os.environ),
                process_group=0,
            )
        except OSError as error:  # no memory, no process slot, no descriptor
            log.error("cannot start", extra={"child": self.name, "reason": error.strerror})  # noqa: TRY400 the reason says it all
            self._note_end(f"it cannot be started: {error.strerror}")
            return 0.0
        self._process = process
        boot = self._own_boot()  # from here on `send` tells what is new
        self._outbox.clear()
        said: Ready | Failed | None = None
        try:
            log.debug("started", extra={"child": self.name, "pid": process.pid})
            if self._stop.is_set():  # while it was being started
                process.terminate()
            said = await self._attend(process, boot)
        finally:
            if process.returncode is None:
                process.kill()
            with trio.CancelScope(shield=True):  # a killed process ends: this wait is short
                await process.wait()
                await _close(process)
            self._process = None
            since, self._serving_since = self._serving_since, None
        returncode = process.returncode
        assert returncode is not None
        if self._stop.is_set():
            self.unclean = since is not None and returncode != 0
            (log.error if self.unclean else log.debug)("ended", extra={"child": self.name, "returncode": returncode})
        elif self._once and isinstance(said, Ready) and returncode == 0:
            self.ready.set()
        else:
            log.error("ended", extra={"child": self.name, "pid": process.pid, "returncode": returncode})
            if said is None or (self._once and isinstance(said, Ready)):
                self._note_end(f"it ends with {_ending(returncode)} before it serves; see the log")
        return 0.0 if since is None else trio.current_time() - since

    def _note_end(self, reason: str) -> None:
        """Count an end that came before any word, and give up after too many if it has never served."""
        self._silent_starts += 1
        if not self.ready.is_set() and self._silent_starts >= SILENT_STARTS_MAX:
            self.failure = StartError(f"{self.name}: {reason}")

    async def _attend(self, process: trio.Process, boot: Boot) -> Ready | Failed | None:
        """Give the process its boot line, hear what it says, wait for its end, and return its first word."""
        said: Ready | Failed | None = None
        heard = trio.Event()

        async def listen() -> None:
            nonlocal said
            assert process.stdout is not None
            lines = Lines()
            async for data in process.stdout:
                for line in lines.feed(data):
                    word = _word(line)
                    if isinstance(word, Beat):
                        self._beaten = True
                        continue
                    if isinstance(word, NodeOrder) and self._on_order is not None:
                        self._on_order(word)
                        continue
                    if not isinstance(word, Ready | Failed) or (said is not None and not (isinstance(word, Failed) and word.fenced)):
                        log.warning("unexpected output", extra={"child": self.name, "bytes": len(line)})
                        continue
                    said = word
                    self._take(word)
                    if isinstance(word, Failed):
                        nursery.start_soon(end_soon)
            heard.set()

        async def end_soon() -> None:
            await trio.sleep(FAILED_SECONDS_MAX)
            process.kill()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            if not self._once:
                nursery.start_soon(self._watch_beats, process, boot.settings.hang_seconds_max)
            self._outbox.appendleft(msgspec.json.encode(boot) + b"\n")
            nursery.start_soon(self._send_lines, process.stdin)
            await process.wait()
            with trio.move_on_after(LAST_WORDS_SECONDS_MAX):  # another process may hold the pipe open
                await heard.wait()
            nursery.cancel_scope.cancel()
        return said

    async def _send_lines(self, stream: trio.abc.SendStream | None) -> None:
        assert stream is not None
        try:
            while True:
                while self._outbox:
                    await stream.send_all(self._outbox.popleft())
                self._posted = trio.Event()
                await self._posted.wait()
        except trio.BrokenResourceError:
            return  # it has ended; its keeper sees that

    async def _watch_beats(self, process: trio.Process, hang_seconds_max: float) -> None:
        """Kill a process that shows no sign of life. A sleep of ours that took too long counts as one of the right length."""
        silent_seconds = 0.0
        while silent_seconds < hang_seconds_max:
            await trio.sleep(BEAT_SECONDS)
            silent_seconds += BEAT_SECONDS
            if self._beaten:
                self._beaten, silent_seconds = False, 0.0
        log.error("hangs and is killed (hang_seconds_max)", extra={"child": self.name, "pid": process.pid, "seconds": silent_seconds})
        process.kill()

    def _take(self, word: Ready | Failed) -> None:
        if isinstance(word, Ready):
            self.word = word
            if not self._once:
                self._serving_since = trio.current_time()
                self.ready.set()
                self._on_change()
            log.info("ready", extra={"child": self.name, "detail": word.detail})
            return
        if word.fenced and isinstance(self._boot, ShardBoot) and self._boot.claim is not None:
            log.warning("fenced", extra={"child": self.name, "reason": word.detail})
            self.fenced = True
            return
        log.error("cannot serve", extra={"child": self.name, "reason": word.detail, "final": word.final})
        if word.fenced:
            self.failure = ReplacedError(word.detail)
        elif word.final and self.ready.is_set():
            self._to_be_mended = True
        elif word.final:
            self.failure = StartError(word.detail)


async def cancel_on(event: trio.Event, scope: trio.CancelScope) -> None:
    """Cancel a scope at an event."""
    await event.wait()
    scope.cancel()


async def any_of(*events: trio.Event) -> None:
    """Wait for the first of some events."""
    async with trio.open_nursery() as nursery:
        for event in events:
            nursery.start_soon(cancel_on, event, nursery.cancel_scope)


def _word(line: bytes) -> Ready | Failed | Beat | NodeOrder | None:
    try:
        return _words.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _ending(returncode: int) -> str:
    return f"exit code {returncode}" if returncode >= 0 else f"signal {-returncode}"


def _descriptors(boot: Boot) -> tuple[int, ...]:
    """Return the sockets that a child inherits."""
    if isinstance(boot, NodeBoot):
        return (boot.listen_fd,)
    if not isinstance(boot, FrontBoot):
        return ()
    return (boot.listen_fd,) if boot.metrics_fd is None else (boot.listen_fd, boot.metrics_fd)


async def _close(process: trio.Process) -> None:
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            await trio.aclose_forcefully(stream)
