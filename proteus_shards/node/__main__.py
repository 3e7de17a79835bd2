"""`python -m proteus_shards.node`: the node process of a host in a cluster, started by the supervisor before its shards and fronts.

Its standard input brings a `NodeBoot`, and then orders; its end means that the supervisor is gone, and so are the shards soon: this process ends, too. It serves no job, and
another one takes its place where it dies, within the lease: the shards go on meanwhile.

It is ready once it has joined, has claimed what was free, and has said which shards are to run.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable

from proteus_shards import __version__, logs
from proteus_shards.boot import STDIN, NodeBoot, beat, read_boot, report
from proteus_shards.cluster.steps import Over
from proteus_shards.cluster.steward import Steward
from proteus_shards.config import BEAT_SECONDS, Failed, Ready, node_socket_path
from proteus_shards.errors import ProteusError, StoreError
from proteus_shards.ipc.hosts import Owners
from proteus_shards.ipc.orders import Depart, Departed, SupervisorOrder, read_order
from proteus_shards.node.fronts import Fronts
from proteus_shards.node.gate import Gate
from proteus_shards.node.host import HostState
from proteus_shards.node.luggage import discard_old
from proteus_shards.node.rounds import Rounds
from proteus_shards.peering import Peering
from proteus_shards.store.registry import make_register
from proteus_shards.tally import TICK_SECONDS, WRITE_TICKS, Tally

log = logging.getLogger("proteus_shards.node")

READ_BYTES = 64 * 1024
STEP_SECONDS = 0.05  # between two looks whether the lease is over
LAST_SECONDS = 1.0  # of the time to depart in, that is left for shards which could not be given away


class Node:
    """The node process of a host."""

    def __init__(self, boot: NodeBoot) -> None:
        settings = boot.settings
        self._boot = boot
        self._peering = Peering(settings)
        self._register = make_register(settings.store)
        self._steward = Steward(
            settings.node_address, boot.boot, __version__, settings.lease_seconds, settings.handover_seconds_max, boot.running
        )
        self._host = HostState(boot, self._steward, self._peering, self._tell, report)
        self._rounds = Rounds(self._steward, self._register, settings.shards, self._changed, self._host.handed)
        self._host.poke = self._rounds.poke
        self._fronts = Fronts(node_socket_path(boot.run_dir), self._rounds.wish, self._host.stale)
        listener = socket.socket(fileno=boot.listen_fd)
        self._gate = Gate(listener, self._peering, self._host, boot.run_dir, settings.node_connections_max, settings.handover_seconds_max)
        self._tally = Tally(boot.run_dir, "node")
        self._ending = asyncio.Event()
        self._ready = False
        self._depart_at: float | None = None

    async def run(self) -> int:
        """Work until the server departs or is gone, and return the exit status."""
        _watch_lifeline(self._take, self._ending)
        await self._fronts.start()
        if self._boot.depart is not None:
            self._take(self._boot.depart)
        rounds = asyncio.create_task(self._begin())
        works = [asyncio.create_task(work) for work in (self._gate.run(), _beat_forever(), self._watch_lease(), self._count_forever())]
        ending = asyncio.create_task(self._ending.wait())
        done, _ = await asyncio.wait({rounds, ending, *works}, return_when=asyncio.FIRST_COMPLETED)
        self._fronts.close()
        failed = [task for task in done - {ending} if task is not rounds or task.exception() is not None]
        for task in failed:
            log.critical("node ends", exc_info=task.exception())
        over = rounds.result() if rounds in done and rounds not in failed else None
        if over is not None or (self._depart_at is not None and not failed):
            self._host.depart()
            if over is not None and over.replaced:
                report(Departed(self._fault()))
            else:
                report(Departed(kept=self._note_kept()))
        for task in (rounds, ending, *works):
            task.cancel()
        await asyncio.gather(rounds, ending, *works, return_exceptions=True)
        await self._register.close()
        self._tally.keep(self._host.samples())
        return int(bool(failed))

    async def _begin(self) -> Over:
        try:
            await self._register.open()
        except StoreError as error:
            log.warning("the store cannot be asked yet who has which shard", extra={"error": str(error)})
        return await self._rounds.run()

    def _fault(self) -> str:
        return f"another server has joined the cluster as {self._boot.settings.node_address}: no two hosts may have the same node_address"

    def _note_kept(self) -> int:
        kept = self._steward.kept()
        if kept:
            text = "not all shards could be given away in time (drain_seconds_max); others take them when the lease is over"
            log.error(text, extra={"shards": kept})
        return kept

    def _changed(self) -> None:
        self._host.manage()
        if not self._ready and self._steward.settled(time.monotonic()):
            self._ready = True
            report(Ready(f"{self._boot.settings.node_address}, {len(self._steward.view.hosts) if self._steward.view else 0} hosts"))

    def _tell(self, owners: Owners) -> None:
        self._fronts.tell(owners)

    def _take(self, order: SupervisorOrder) -> None:
        if isinstance(order, Depart):
            log.info("giving all shards away", extra={"seconds_max": order.seconds, "fronts": order.fronts})
            if not order.fronts:
                self._depart_at = time.monotonic() + max(0.0, order.seconds - LAST_SECONDS)
            self._steward.leave(needed=order.fronts)
            self._rounds.poke()
            self._host.manage()
        else:
            self._host.take(order)

    async def _watch_lease(self) -> None:
        """See that nothing runs here once the lease is over, whatever the register does, and that a departure ends in time."""
        looked_at = 0.0
        while True:
            await asyncio.sleep(STEP_SECONDS)
            now = time.monotonic()
            if now >= self._steward.lease_until:
                self._host.manage()
            if self._depart_at is not None and now >= self._depart_at:
                self._ending.set()
            if now - looked_at >= 1.0 and self._steward.view is not None:
                looked_at = now
                discard_old(self._boot.run_dir, self._steward.view.holdings, self._boot.settings.handover_seconds_max)

    async def _count_forever(self) -> None:
        """See that what is counted outlives this process."""
        while True:
            self._tally.keep(self._host.samples())
            for _ in range(WRITE_TICKS):
                due = time.monotonic() + TICK_SECONDS
                await asyncio.sleep(TICK_SECONDS)
                self._tally.note_lag(max(0.0, time.monotonic() - due))


async def _beat_forever() -> None:
    while True:
        beat()
        await asyncio.sleep(BEAT_SECONDS)


def _watch_lifeline(take: Callable[[SupervisorOrder], None], ending: asyncio.Event) -> None:
    """Hear the supervisor's orders, and its end."""
    loop = asyncio.get_running_loop()
    held = b""

    def read() -> None:
        nonlocal held
        data = os.read(STDIN, READ_BYTES)
        if not data:
            loop.remove_reader(STDIN)
            ending.set()
            return
        *lines, held = (held + data).split(b"\n")
        for line in lines:
            order = read_order(line)
            if order is None:
                log.error("an order of the supervisor cannot be read", extra={"bytes": len(line)})
            else:
                take(order)

    loop.add_reader(STDIN, read)
    loop.add_signal_handler(signal.SIGTERM, ending.set)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the supervisor's to handle


def main() -> int:
    """Run the node process and return its exit status."""
    boot = read_boot(NodeBoot)
    logs.setup(boot.settings, "node")

    async def work() -> int:
        try:
            node = Node(boot)
        except ProteusError as error:
            report(Failed(str(error), final=True))
            return 1
        return await node.run()

    try:
        import uvloop  # noqa: PLC0415  # optional: not there on every platform
    except ImportError:
        return asyncio.run(work())
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work())


if __name__ == "__main__":
    sys.exit(main())
