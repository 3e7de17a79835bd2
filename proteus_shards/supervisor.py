"""Starts, watches, restarts and drains the processes of one server.

How to think about it: every process is a `Child`, and every child has a keeper, which waits for the end of a process before it starts the next one.
So a replacement never meets its predecessor alive (two writers on one store file), and nothing is left behind.

Decisions that may surprise:

- The supervisor opens the listening sockets and keeps them; a front inherits one. A front that dies leaves its socket and
  the connections waiting in it to its successor. With several fronts each has a socket of its own (SO_REUSEPORT), since several
  processes that accept from one socket share the load badly.
- SIGHUP renews the fronts, one after the other: a successor starts on the same socket, and once it serves the front before ends its connections
  with an answer that says so. Where the successor cannot serve, the front before goes on. Where standard input is a terminal, SIGHUP keeps its
  meaning, which is that the terminal is gone.
- A shard that has served and cannot any more (its store came back empty, say) has the store prepared once more before its next start: a server that begins
  anew serves better than one that waits for what is gone. Where the store is another server's by then, it is left alone, and this server ends (`shard/prepare.py`).
- In a cluster the node process starts before shards and fronts, and says which shards run here (`tenants.py`). At the drain it hands all of them over at once, while the
  fronts finish what is under way with the shards' new hosts: a slow client holds nothing up. Where no other host is there to take them, they stay until the fronts have ended.
- During the drain the fronts end first, and shards are still restarted while they do: requests under way may need them.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack
from functools import partial

import msgspec
import trio

from proteus_shards.boot import NodeBoot
from proteus_shards.child import Child, ChildStatistics, any_of, cancel_on
from proteus_shards.cluster.address import split_address
from proteus_shards.config import FrontBoot, Settings, ShardBoot
from proteus_shards.errors import ReplacedError, StartError
from proteus_shards.ipc.orders import Depart, Departed, NodeOrder, Shards
from proteus_shards.surroundings import open_listeners, private_dir, sd_notify, start_line, watchdog_seconds
from proteus_shards.tally import TICK_SECONDS, WRITE_TICKS, Tally
from proteus_shards.tenants import Tenants

log = logging.getLogger(__name__)

SIGNAL_SECONDS_MIN = 0.25  # a signal this soon after the first is the same one: `timeout`, say, sends it to us and to our group
PREPARE_SECONDS_MIN = 5.0  # from one preparation of a store that a running server has lost to the next
SHARDS_SECONDS_MAX = (
    30.0  # in a cluster, for the first shards of a server to serve; it is ready then in any case, as it serves those of others
)
DEPART_SECONDS_LEFT = 1.0  # of drain_seconds_max, for the ends of processes once the shards are given away
RENEWAL_SECONDS_MAX = 30.0  # for the successor of a front to serve
STDIN = 0


class Programs(msgspec.Struct, frozen=True):
    """The command of each kind of child. Tests put other programs here."""

    prepare: tuple[str, ...] = (sys.executable, "-P", "-m", "proteus_shards.shard.prepare")
    prepare_again: tuple[str, ...] = (sys.executable, "-P", "-m", "proteus_shards.shard.prepare", "again")
    shard: tuple[str, ...] = (sys.executable, "-P", "-m", "proteus_shards.shard")
    front: tuple[str, ...] = (sys.executable, "-P", "-m", "proteus_shards.front")
    node: tuple[str, ...] = (sys.executable, "-P", "-m", "proteus_shards.node")


class SupervisorStatistics(msgspec.Struct, frozen=True):
    """All children at one moment."""

    children: tuple[ChildStatistics, ...]
    draining: bool


class Supervisor:
    """All children of one server, from the first start to the end of the drain."""

    def __init__(
        self,
        settings: Settings,
        programs: Programs,
        run_dir: str,
        listeners: Sequence[socket.socket],
        metrics_listener: socket.socket | None = None,
        node_listener: socket.socket | None = None,
    ) -> None:
        self._settings = settings
        self._listeners = tuple(listeners) + ((metrics_listener,) if metrics_listener is not None else ())
        self._tally = Tally(run_dir, "supervisor")
        name = "" if settings.cluster else f"alone-{secrets.token_hex(8)}"
        self._boots = [ShardBoot(settings, i, run_dir, server=name) for i in range(settings.shards)]
        self._prepare = Child("prepare", programs.prepare, self._boots[0], once=True)
        self._prepare_again = partial(Child, "prepare", programs.prepare_again, once=True)
        self._turns: tuple[int, ...] = ()
        self._preparing = trio.Lock()
        self._prepared_at = -math.inf
        self._shards = [
            Child(f"shard-{i}", programs.shard, boot, mend=self._mend_store)
            for i, boot in enumerate(self._boots if node_listener is None else ())
        ]
        self._node: Child | None = None
        self._tenants: Tenants | None = None
        if node_listener is not None:
            self._node = Child("node", programs.node, partial(self._node_boot, run_dir, node_listener.fileno()), on_order=self._take)
            self._tenants = Tenants(settings, programs.shard, run_dir, self._node.send, self._mend_store, self._fail)
        self._boot = secrets.token_hex(16)
        self._depart_at: float | None = None
        self._fronts_ended = False
        self._departed = Departed()
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
        self._failure: StartError | None = None

    def statistics(self) -> SupervisorStatistics:
        """Return what there is to know about the children now."""
        tenants = self._tenants.statistics() if self._tenants is not None else []
        return SupervisorStatistics((*(child.statistics() for child in self._kept), *tenants), self._stop.is_set())

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
                nursery.start_soon(cancel_on, self._stop, starting)
                await self._start(nursery)
                announce()
                sd_notify("READY=1")
            await self._stop.wait()
            sd_notify("STOPPING=1")
            clean = await self._drain()
            nursery.cancel_scope.cancel()  # the keepers that are left kill and reap their processes
        if self._failure is not None:
            raise self._failure
        code = 0 if clean else 1
        log.info("stopped", extra={"code": code})
        return code

    async def _start(self, nursery: trio.Nursery) -> None:
        if self._tenants is not None:
            nursery.start_soon(self._tenants.run)
        for stage in ([self._prepare], [self._node] if self._node is not None else [], self._shards, self._fronts):
            for child in stage:
                self._kept.append(child)
                nursery.start_soon(self._keep, child)
            for child in stage:
                await child.ready.wait()
            if stage == [self._prepare]:
                self._hold(self._prepare)
            if self._tenants is not None and self._node in stage:
                with trio.move_on_after(SHARDS_SECONDS_MAX):
                    await self._tenants.wait_served()
        self._kept.remove(self._prepare)

    def _hold(self, prepared: Child) -> None:
        """Tell the shards at which turns the server holds them."""
        self._turns = prepared.word.turns if prepared.word else self._turns
        for shard, boot, turn in zip(self._shards, self._boots, self._turns, strict=False):
            shard.give(msgspec.structs.replace(boot, turn=turn))

    def _node_boot(self, run_dir: str, listen_fd: int) -> NodeBoot:
        assert self._tenants is not None
        depart = None if self._depart_at is None else self._depart_order(self._depart_at)
        return NodeBoot(self._settings, run_dir, listen_fd, self._boot, self._tenants.greet(), self._tenants.serving, depart)

    def _depart_order(self, at: float) -> Depart:
        return Depart(max(0.0, at - trio.current_time()), fronts=not self._fronts_ended)

    def _take(self, order: NodeOrder) -> None:
        """Do what the node says."""
        assert self._tenants is not None
        if isinstance(order, Shards):
            self._tenants.apply(order)
            return
        self._departed = order
        self._tenants.stop()
        if self._node is not None:
            self._node.finish()
        if order.fault:
            self._fail(ReplacedError(order.fault))

    def _fail(self, failure: StartError) -> None:
        self._failure = self._failure or failure
        self._stop.set()

    async def _mend_store(self) -> None:
        """Prepare the store once more, for a shard that has served and cannot any more. What one shard has just had done is done for all."""
        async with self._preparing:
            if trio.current_time() - self._prepared_at >= PREPARE_SECONDS_MIN:
                again = self._prepare_again(msgspec.structs.replace(self._boots[0], turns=self._turns))
                await again.keep()
                self._prepared_at = trio.current_time()
                self._hold(again)
                if isinstance(again.failure, ReplacedError):
                    self._fail(again.failure)

    async def _count_forever(self) -> None:
        """Write down how often each child was started again, for the page of metrics."""
        while True:
            kept = [child.statistics() for child in (*self._shards, *self._fronts, *([self._node] if self._node is not None else []))]
            kept += self._tenants.statistics() if self._tenants is not None else []
            self._tally.keep(
                [
                    sample
                    for child in kept
                    for sample in (
                        ("proteus_process_restarts_total", [child.name], child.restarts),
                        ("proteus_process_crashes", [child.name], child.crashes),
                    )
                ]
            )
            for _ in range(WRITE_TICKS):
                due = trio.current_time() + TICK_SECONDS
                await trio.sleep_until(due)
                self._tally.note_lag(trio.current_time() - due)

    async def _keep(self, child: Child) -> None:
        await child.keep()
        if child.failure is not None:
            self._fail(child.failure)

    async def _watch(self, signals: AsyncIterator[int], nursery: trio.Nursery) -> None:
        first: float | None = None
        async for number in signals:
            name = signal.Signals(number).name
            if number == signal.SIGHUP:
                nursery.start_soon(self._renew_fronts, nursery)
            elif first is None:
                first = trio.current_time()
                log.info("draining", extra={"signal": name, "seconds_max": self._settings.drain_seconds_max})
                self._stop.set()
            elif trio.current_time() - first >= SIGNAL_SECONDS_MIN:
                log.warning("killing what is left", extra={"signal": name})
                nursery.cancel_scope.cancel()

    async def _renew_fronts(self, nursery: trio.Nursery) -> None:
        """Put a new process in the place of each front, one after the other. One that waits for its turn does it for all who ask meanwhile."""
        if self._renewal.statistics().tasks_waiting:
            return
        async with self._renewal:
            renewed = 0
            for child in tuple(self._fronts):
                if self._stop.is_set() or child not in self._kept:
                    return
                renewed += await self._renew(child, nursery)
            if renewed == len(self._fronts):
                log.info("all fronts are renewed", extra={"fronts": renewed})

    async def _renew(self, child: Child, nursery: trio.Nursery) -> bool:
        """Start the successor of a front, stop the front once that serves, and say whether it does."""
        successor = child.successor()
        for children in (self._fronts, self._kept):
            children.insert(children.index(child), successor)
        nursery.start_soon(successor.keep)
        with trio.move_on_after(RENEWAL_SECONDS_MAX):
            await any_of(successor.ready, successor.ended, self._stop)
        if self._stop.is_set():
            return False  # the drain ends both
        renewed = successor.ready.is_set()
        if not renewed:
            reason = str(successor.failure or f"it did not serve within {RENEWAL_SECONDS_MAX} s")
            log.error("a front cannot be renewed, the one before goes on", extra={"child": child.name, "reason": reason})
        leaves = child if renewed else successor
        leaves.stop()
        await leaves.ended.wait()
        for children in (self._fronts, self._kept):
            children.remove(leaves)
        if renewed:
            successor.inherit(child)
            log.info("renewed", extra={"child": child.name})
        return renewed

    async def _drain(self) -> bool:
        """Stop the children, those that take requests first, and say whether all ended well and in time."""
        for listener in self._listeners:
            listener.close()
        with trio.move_on_after(self._settings.drain_seconds_max) as deadline:
            self._begin_to_depart(deadline.deadline)
            for stage in (self._fronts, self._shards, [self._prepare]):
                kept = [child for child in stage if child in self._kept]
                for child in kept:
                    child.stop()
                for child in kept:
                    await child.ended.wait()
                if stage is self._fronts and self._tenants is not None:
                    await self._depart(self._tenants)
        if deadline.cancelled_caught:
            left = [child.name for child in self._kept if not child.ended.is_set()]
            log.error("the drain took too long", extra={"killed": left, "seconds_max": self._settings.drain_seconds_max})
            return False
        if self._departed.kept:
            log.error("shards were left behind", extra={"shards": self._departed.kept})
            return False
        return not any(child.unclean for child in self._kept) and not (self._tenants is not None and self._tenants.unclean)

    def _begin_to_depart(self, deadline: float) -> None:
        """Have the node begin to give all shards to other hosts."""
        if self._tenants is not None and self._node is not None:
            self._tenants.unclean = False  # what a lost lease or a fence has ended before is no fault of this drain
            self._depart_at = deadline - DEPART_SECONDS_LEFT
            self._node.send(self._depart_order(self._depart_at))

    async def _depart(self, tenants: Tenants) -> None:
        """Have the node give the rest away, now that no front needs it, and leave the cluster."""
        self._fronts_ended = True
        node = self._node
        if node is not None and node in self._kept:
            if not node.ready.is_set():
                node.stop()
            assert self._depart_at is not None
            node.send(self._depart_order(self._depart_at))
            await node.ended.wait()
        tenants.stop()
        await tenants.wait_empty()


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
        node_listener: socket.socket | None = None
        if settings.cluster:
            (node_listener,) = open_listeners(*split_address(settings.node_address), 1)
            stack.callback(node_listener.close)
        run_dir = stack.enter_context(private_dir(settings.shards))
        supervisor = Supervisor(settings, programs or Programs(), run_dir, listeners, metrics_listener, node_listener)
        return await supervisor.run(signals, lambda: (write or _write_line)(line))


def _write_line(line: str) -> None:
    try:
        sys.stdout.buffer.write(line.encode() + b"\n")  # UTF-8, whatever the locale
        sys.stdout.flush()
    except OSError as error:
        log.warning("the start line could not be written", extra={"reason": error.strerror})


async def _feed_watchdog() -> None:
    """Tell systemd again and again that this loop turns, where it asked for that (WatchdogSec)."""
    seconds = watchdog_seconds(os.environ)
    while seconds is not None:
        sd_notify("WATCHDOG=1")
        await trio.sleep(seconds / 2)
