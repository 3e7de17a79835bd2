"""The shard processes of a host in a cluster: those that its node says are to run, under the claims that it names.

How to think about it: each claim has a keeper of its own, from the first word that names it to the end of its last process. A claim that is named no longer
is stopped, and once nothing of it is left the node is told. What the node said before it heard that starts nothing again. A claim is never started twice, and never beside another of the same shard.

The node's word holds for as long as it says. A node that is silent for longer, dead or cut off from the store, has lost its lease: others may take the shards, so all are stopped.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence

import trio

from proteus_shards.child import Child, ChildStatistics
from proteus_shards.cluster.model import Claim
from proteus_shards.config import Settings, ShardBoot
from proteus_shards.errors import StartError
from proteus_shards.ipc.orders import Away, Ended, Serving, Shards, Start, SupervisorOrder

log = logging.getLogger("proteus_shards.supervisor")


class Tenants:
    """All shard processes of one host. `tell` speaks to the node, `on_failure` is told of a shard that can never be served here."""

    def __init__(
        self,
        settings: Settings,
        command: Sequence[str],
        run_dir: str,
        tell: Callable[[SupervisorOrder], None],
        mend: Callable[[], Awaitable[None]],
        on_failure: Callable[[StartError], None],
    ) -> None:
        self._settings = settings
        self._command = tuple(command)
        self._run_dir = run_dir
        self._tell = tell
        self._mend = mend
        self._on_failure = on_failure
        self._children: dict[Claim, Child] = {}
        self._serving: set[Claim] = set()
        self._wanted: dict[Claim, Start] = {}
        self._ended: dict[Claim, int] = {}  # which of the ends that the node was told of it was
        self._ends = 0
        self._until = 0.0
        self._changed = trio.Event()
        self._lapsed = True
        self.unclean = False  # one of them has ended with an error when it was told to stop

    def greet(self) -> tuple[Claim, ...]:
        """Return the claims of which there are processes, for a node that begins: it has heard of no end before."""
        self._ended.clear()
        self._ends = 0
        return tuple(self._children)

    @property
    def serving(self) -> tuple[Claim, ...]:
        """The claims of those that serve now."""
        return tuple(claim for claim, child in self._children.items() if child.serves)

    def statistics(self) -> list[ChildStatistics]:
        """Return what there is to know about the processes now."""
        return [child.statistics() for child in self._children.values()]

    def apply(self, word: Shards) -> None:
        """Take the node's word of what is to run. What is new is started by `run`."""
        self._until = trio.current_time() + word.seconds
        self._lapsed = not word.starts  # where nothing is to run, nothing can run for too long
        self._ended = {claim: number for claim, number in self._ended.items() if number > word.heard}
        self._wanted = {start.claim: start for start in word.starts if start.claim not in self._ended}
        self._stop_unwanted()
        self._change()

    def stop(self) -> None:
        """Stop all processes, and start no more."""
        self._wanted = {}
        self._stop_unwanted()
        self._change()

    async def wait_served(self) -> None:
        """Wait until all that is to run has served, or has turned out not to."""
        while not all(self._is_settled(claim) for claim in self._wanted):
            await self._changed.wait()

    async def wait_empty(self) -> None:
        """Wait until no process is left."""
        while self._children:
            await self._changed.wait()

    async def run(self) -> None:
        """Start what is to run, and see that nothing runs for longer than it may, until cancelled. What is left then is killed."""
        async with trio.open_nursery() as nursery:
            while True:
                if not self._lapsed and trio.current_time() >= self._until:
                    self._lapse()
                busy = {claim.shard for claim in self._children}
                for claim, start in self._wanted.items():
                    if claim.shard not in busy:
                        child = self._child(start)
                        self._children[claim] = child
                        nursery.start_soon(self._keep, claim, child)
                changed = self._changed
                with trio.move_on_at(self._until if not self._lapsed else float("inf")):
                    await changed.wait()

    def _lapse(self) -> None:
        self._lapsed = True
        if self._children:
            log.error("the node has been silent for its whole lease: its shards are stopped", extra={"shards": len(self._children)})
        self._wanted = {}
        self._stop_unwanted()

    def _child(self, start: Start) -> Child:
        claim = start.claim
        boot = ShardBoot(self._settings, claim.shard, self._run_dir, claim, start.luggage)
        return Child(f"shard-{claim.shard}", self._command, boot, mend=self._mend, on_change=lambda: self._note(claim))

    async def _keep(self, claim: Claim, child: Child) -> None:
        await child.keep()
        del self._children[claim]
        self._serving.discard(claim)
        self.unclean |= child.unclean
        self._wanted.pop(claim, None)
        self._ends += 1
        self._ended[claim] = self._ends
        self._tell(Ended(claim, child.fenced))
        if child.failure is not None:
            self._on_failure(child.failure)
        self._change()

    def _note(self, claim: Claim) -> None:
        child = self._children.get(claim)
        serves = child is not None and child.serves
        if serves and claim not in self._serving:
            self._serving.add(claim)
            self._tell(Serving(claim))
        elif not serves and claim in self._serving:
            self._serving.discard(claim)
            self._tell(Away(claim))
        self._change()

    def _is_settled(self, claim: Claim) -> bool:
        child = self._children.get(claim)
        return child is not None and child.ready.is_set()

    def _stop_unwanted(self) -> None:
        for claim, child in self._children.items():
            if claim not in self._wanted:
                child.stop()

    def _change(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()
