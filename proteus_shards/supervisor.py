"""Starts, watches, restarts and drains the processes of one server.

How to think about it: every process is a `Child`, and every child has a keeper, one task that starts it, waits for it and starts it
again. The keeper owns the process: whatever ends the keeper, the process is killed if it still runs, and always waited for.
So a replacement never meets its predecessor alive (two writers on one store file), and nothing is left behind.

Decisions that may surprise:

- The supervisor opens the listening sockets and keeps them; a front inherits one. A front that dies leaves its socket and
  the connections waiting in it to its successor. With several fronts each has a socket of its own (SO_REUSEPORT), since several
  processes that accept from one socket share the load badly.
- A child's standard input carries one line of JSON, then nothing, and stays open: its end tells the child that the supervisor
  is gone, however it went. Children are in process groups of their own, so that Ctrl-C reaches the supervisor alone.
- Settings travel in that line, and children see no `PROTEUS_*` variable but those for tests.
- A child writes a sign of life every second, from its event loop. One that is silent for hang_seconds_max is killed and replaced. The
  seconds are those in which the supervisor itself was awake: a machine that slept, or a group of processes that was stopped, hangs nowhere.
- SIGHUP renews the fronts, one after the other: each ends its connections with an answer that says so, while new ones wait in its socket for
  its successor. Where standard input is a terminal, SIGHUP keeps its meaning, which is that the terminal is gone.
- During the drain the fronts end first, and shards are still restarted while they do: requests under way may need them.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack

import msgspec
import trio

from proteus_shards.config import BEAT_SECONDS, Beat, Failed, FrontBoot, Ready, Settings, ShardBoot
from proteus_shards.errors import StartError
from proteus_shards.surroundings import child_environment, open_listeners, private_dir, sd_notify, start_line, watchdog_seconds
from proteus_shards.tally import TICK_SECONDS, WRITE_TICKS, Tally

log = logging.getLogger(__name__)

BACKOFF_SECONDS_FIRST = 0.1
BACKOFF_SECONDS_MAX = 5.0
SERVED_SECONDS_ENOUGH = 10.0  # a child that served this long starts its backoff anew
SILENT_STARTS_MAX = 5  # a child that has never served and ends this often without a word stops the server
LAST_WORDS_SECONDS_MAX = 1.0  # for reading what an ended child wrote
FAILED_SECONDS_MAX = 5.0  # for the end of a child that said that it failed
SIGNAL_SECONDS_MIN = 0.25  # a signal this soon after the first is the same one: `timeout`, say, sends it to us and to our group
CONTROL_LINE_BYTES_MAX = 64 * 1024
STDIN = 0


class Programs(msgspec.Struct, frozen=True):
    """The command of each kind of child. Tests put other programs here."""

    prepare: tuple[str, ...] = (sys.executable, "-P", "-m", "proteus_shards.shard.prepare")
    shard: tuple[str, ...] = (sys.executable, "-P", "-m", "proteus_shards.shard")
    front: tuple[str, ...] = (sys.executable, "-P", "-m", "proteus_shards.front")


class ChildStatistics(msgspec.Struct, frozen=True):
    """One child at one moment."""

    name: str
    pid: int | None  # None while no process runs
    serves: bool
    starts: int
    restarts: int  # how often it was started again after its end


class SupervisorStatistics(msgspec.Struct, frozen=True):
    """All children at one moment."""

    children: tuple[ChildStatistics, ...]
    draining: bool


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
    """One process that should run, under its keeper."""

    def __init__(self, name: str, command: Sequence[str], boot: ShardBoot | FrontBoot, *, once: bool = False) -> None:
        self.name = name
        self.ready = trio.Event()  # it has served (or, with `once`, done its work) at least once
        self.ended = trio.Event()  # its keeper is done: no process is left
        self.failure: StartError | None = None  # why it can never serve
        self.renewed = trio.Event()  # its successor serves, or there will be none
        self.unclean = False  # it was told to stop while it served, and ended with an error
        self._command = tuple(command)
        self._boot = boot
        self._once = once
        self._stop = trio.Event()
        self._process: trio.Process | None = None
        self._serving_since: float | None = None
        self._starts = 0
        self._silent_starts = 0
        self._renewing = False
        self._beaten = False

    def statistics(self) -> ChildStatistics:
        """Return what there is to know about it now."""
        pid = self._process.pid if self._process else None
        return ChildStatistics(self.name, pid, self._serving_since is not None, self._starts, max(0, self._starts - 1))

    def stop(self) -> None:
        """Ask the process to finish what it does and end, and start no other. Harmless if repeated."""
        if not self._stop.is_set():
            self._stop.set()
            if self._process is not None:
                self._process.terminate()

    async def renew(self) -> None:
        """Ask the process to finish what it does and end, and wait until another serves in its place."""
        if self._process is None:
            return  # another is about to be started anyway
        self._renewing = True
        self.renewed = trio.Event()
        self._process.terminate()
        await self.renewed.wait()

    async def keep(self) -> None:
        """Run it, again and again, until it is stopped, is done, or can never serve."""
        backoff = Backoff()
        try:
            while not self._stop.is_set():
                served_seconds = await self._run()
                if self._stop.is_set() or self.failure is not None or (self._once and self.ready.is_set()):
                    break
                if self._renewing:
                    self._renewing = False
                    continue
                delay = backoff.after(served_seconds)
                log.warning("restarting", extra={"child": self.name, "delay_seconds": delay})
                with trio.move_on_after(delay):
                    await self._stop.wait()
        finally:
            self.ended.set()
            self.renewed.set()

    async def _run(self) -> float:
        """Start one process, attend it to its end, and return for how many seconds it served."""
        self._starts += 1
        try:
            process = await trio.lowlevel.open_process(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=_descriptors(self._boot),
                env=child_environment(os.environ),
                process_group=0,
            )
        except OSError as error:  # no memory, no process slot, no descriptor
            log.error("cannot start", extra={"child": self.name, "reason": error.strerror})  # noqa: TRY400 the reason says it all
            self._note_end(f"it cannot be started: {error.strerror}")
            return 0.0
        self._process = process
        said: Ready | Failed | None = None
        try:
            log.debug("started", extra={"child": self.name, "pid": process.pid})
            if self._stop.is_set():  # while it was being started
                process.terminate()
            said = await self._attend(process)
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
        elif self._renewing:
            log.info("renewed", extra={"child": self.name, "returncode": returncode})
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

    async def _attend(self, process: trio.Process) -> Ready | Failed | None:
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
                    if word is None or said is not None:
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
                nursery.start_soon(self._watch_beats, process)
            nursery.start_soon(_send_line, process.stdin, msgspec.json.encode(self._boot) + b"\n")
            await process.wait()
            with trio.move_on_after(LAST_WORDS_SECONDS_MAX):  # another process may hold the pipe open
                await heard.wait()
            nursery.cancel_scope.cancel()
        return said

    async def _watch_beats(self, process: trio.Process) -> None:
        """Kill a process that shows no sign of life. A sleep of ours that took too long counts as one of the right length."""
        silent_seconds = 0.0
        while silent_seconds < self._boot.settings.hang_seconds_max:
            await trio.sleep(BEAT_SECONDS)
            silent_seconds += BEAT_SECONDS
            if self._beaten:
                self._beaten, silent_seconds = False, 0.0
        log.error("hangs and is killed (hang_seconds_max)", extra={"child": self.name, "pid": process.pid, "seconds": silent_seconds})
        process.kill()

    def _take(self, word: Ready | Failed) -> None:
        if isinstance(word, Ready):
            if not self._once:
                self._serving_since = trio.current_time()
                self.ready.set()
                self.renewed.set()
            log.info("ready", extra={"child": self.name, "detail": word.detail})
            return
        log.error("cannot serve", extra={"child": self.name, "reason": word.detail, "final": word.final})
        if word.final and not self.ready.is_set():
            self.failure = StartError(word.detail)


class Supervisor:
    """All children of one server, from the first start to the end of the drain."""

    def __init__(
        self,
        settings: Settings,
        programs: Programs,
        run_dir: str,
        listeners: Sequence[socket.socket],
        metrics_listener: socket.socket | None = None,
    ) -> None:
        self._settings = settings
        self._listeners = tuple(listeners) + ((metrics_listener,) if metrics_listener is not None else ())
        self._tally = Tally(run_dir, "supervisor")
        self._prepare = Child("prepare", programs.prepare, ShardBoot(settings, 0, run_dir), once=True)
        self._shards = [Child(f"shard-{i}", programs.shard, ShardBoot(settings, i, run_dir)) for i in range(settings.shards)]
        self._fronts = [
            Child(
                f"front-{i}",
                programs.front,
                FrontBoot(
                    settings, i, run_dir, listener.fileno(), metrics_listener.fileno() if metrics_listener is not None and not i else None
                ),
            )
            for i, listener in enumerate(listeners)
        ]
        self._kept: list[Child] = []
        self._stop = trio.Event()
        self._renewal = trio.Lock()

    def statistics(self) -> SupervisorStatistics:
        """Return what there is to know about the children now."""
        return SupervisorStatistics(tuple(child.statistics() for child in self._kept), self._stop.is_set())

    async def run(self, signals: AsyncIterator[int], announce: Callable[[], None]) -> int:
        """Serve until a signal asks for the end, and return the exit code. Raises `StartError` where it never served.

        `announce` is called once, when every child serves.
        """
        clean = False
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, signals, nursery)
            nursery.start_soon(_feed_watchdog)
            nursery.start_soon(self._count_forever)
            with trio.CancelScope() as starting:
                nursery.start_soon(_cancel_on, self._stop, starting)
                await self._start(nursery)
                announce()
                sd_notify("READY=1")
            await self._stop.wait()
            sd_notify("STOPPING=1")
            clean = await self._drain()
            nursery.cancel_scope.cancel()  # the keepers that are left kill and reap their processes
        for child in self._kept:
            if child.failure is not None:
                raise child.failure
        code = 0 if clean else 1
        log.info("stopped", extra={"code": code})
        return code

    async def _start(self, nursery: trio.Nursery) -> None:
        for stage in ([self._prepare], self._shards, self._fronts):
            for child in stage:
                self._kept.append(child)
                nursery.start_soon(self._keep, child)
            for child in stage:
                await child.ready.wait()
        self._kept.remove(self._prepare)

    async def _count_forever(self) -> None:
        """Write down how often each child was started again, for the page of metrics."""
        while True:
            kept = [child.statistics() for child in (*self._shards, *self._fronts)]
            self._tally.keep([("proteus_process_restarts_total", [child.name], child.restarts) for child in kept])
            for _ in range(WRITE_TICKS):
                due = trio.current_time() + TICK_SECONDS
                await trio.sleep_until(due)
                self._tally.note_lag(trio.current_time() - due)

    async def _keep(self, child: Child) -> None:
        await child.keep()
        if child.failure is not None:
            self._stop.set()

    async def _watch(self, signals: AsyncIterator[int], nursery: trio.Nursery) -> None:
        first: float | None = None
        async for number in signals:
            name = signal.Signals(number).name
            if number == signal.SIGHUP:
                nursery.start_soon(self._renew_fronts)
            elif first is None:
                first = trio.current_time()
                log.info("draining", extra={"signal": name, "seconds_max": self._settings.drain_seconds_max})
                self._stop.set()
            elif trio.current_time() - first >= SIGNAL_SECONDS_MIN:
                log.warning("killing what is left", extra={"signal": name})
                nursery.cancel_scope.cancel()

    async def _renew_fronts(self) -> None:
        """Put a new process in the place of each front, one after the other."""
        async with self._renewal:
            for child in self._fronts:
                if self._stop.is_set() or child not in self._kept:
                    return
                await child.renew()
            log.info("all fronts are renewed", extra={"fronts": len(self._fronts)})

    async def _drain(self) -> bool:
        """Stop the children, those that take requests first, and say whether all ended well and in time."""
        for listener in self._listeners:
            listener.close()
        with trio.move_on_after(self._settings.drain_seconds_max) as deadline:
            for stage in (self._fronts, self._shards, [self._prepare]):
                kept = [child for child in stage if child in self._kept]
                for child in kept:
                    child.stop()
                for child in kept:
                    await child.ended.wait()
        if deadline.cancelled_caught:
            left = [child.name for child in self._kept if not child.ended.is_set()]
            log.error("the drain took too long", extra={"killed": left, "seconds_max": self._settings.drain_seconds_max})
            return False
        return not any(child.unclean for child in self._kept)


def run(settings: Settings) -> int:
    """Run a server until it is told to stop, and return the exit code. Raises `StartError`."""
    try:
        return trio.run(supervise, settings)
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):  # all is done: an impatient third one must not change the exit code
            signal.signal(number, signal.SIG_IGN)


async def supervise(settings: Settings, programs: Programs | None = None, write: Callable[[str], None] | None = None) -> int:
    """Open what a server needs, run it until a signal asks for the end, and clean up. Returns the exit code; raises `StartError`.

    `write` gets the one line that says that the server is ready.
    """
    with ExitStack() as stack:
        numbers = [signal.SIGTERM, signal.SIGINT] + ([] if os.isatty(STDIN) else [signal.SIGHUP])
        signals = stack.enter_context(trio.open_signal_receiver(*numbers))
        listeners = open_listeners(settings.host, settings.port, settings.fronts)
        for listener in listeners:
            stack.callback(listener.close)
        line = start_line(settings, listeners[0].getsockname())
        metrics_listener: socket.socket | None = None
        if settings.metrics_port:
            (metrics_listener,) = open_listeners(settings.metrics_host, settings.metrics_port, 1)
            stack.callback(metrics_listener.close)
        run_dir = stack.enter_context(private_dir(settings.shards))
        supervisor = Supervisor(settings, programs or Programs(), run_dir, listeners, metrics_listener)
        return await supervisor.run(signals, lambda: (write or _write_line)(line))


def _word(line: bytes) -> Ready | Failed | Beat | None:
    try:
        return msgspec.json.decode(line, type=Ready | Failed | Beat)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _ending(returncode: int) -> str:
    return f"exit code {returncode}" if returncode >= 0 else f"signal {-returncode}"


def _write_line(line: str) -> None:
    try:
        sys.stdout.buffer.write(line.encode() + b"\n")  # UTF-8, whatever the locale
        sys.stdout.flush()
    except OSError as error:
        log.warning("the start line could not be written", extra={"reason": error.strerror})


async def _send_line(stream: trio.abc.SendStream | None, line: bytes) -> None:
    assert stream is not None
    try:
        await stream.send_all(line)
    except trio.BrokenResourceError:
        return  # it ended before it read its line; its keeper sees that


async def _feed_watchdog() -> None:
    """Tell systemd again and again that this loop turns, where it asked for that (WatchdogSec)."""
    seconds = watchdog_seconds(os.environ)
    while seconds is not None:
        sd_notify("WATCHDOG=1")
        await trio.sleep(seconds / 2)


async def _cancel_on(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


def _descriptors(boot: ShardBoot | FrontBoot) -> tuple[int, ...]:
    """Return the sockets that a child inherits."""
    if not isinstance(boot, FrontBoot):
        return ()
    return (boot.listen_fd,) if boot.metrics_fd is None else (boot.listen_fd, boot.metrics_fd)


async def _close(process: trio.Process) -> None:
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            await trio.aclose_forcefully(stream)
