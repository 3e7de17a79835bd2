"""This host: what the steward has decided, what the supervisor does about it, and what fronts and other hosts are told.

`manage` is called whenever anything has changed. It is sync, compares what is to run with what was said to the supervisor, and says it anew where it differs; and it tells the fronts.
A shard that another host has handed over is said to run only after its luggage was asked for.

What waits here is never the truth: that is in the store, and the steward's next look finds it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

from proteus_shards.cluster.steps import Hand, Run
from proteus_shards.cluster.steward import Steward
from proteus_shards.config import luggage_path
from proteus_shards.core.commands import Sample
from proteus_shards.ipc.hosts import Elsewhere, HostSeen, Nudge, Owner, Owners
from proteus_shards.ipc.orders import Away, Ended, NodeOrder, Serving, Shards, Start
from proteus_shards.node.luggage import fetch, nudge
from proteus_shards.peering import Peering

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from proteus_shards.boot import NodeBoot
    from proteus_shards.cluster.model import Claim

log = logging.getLogger("proteus_shards.node")

STALE_SECONDS_MIN = 0.1  # between two looks for which fronts have asked


class HostState:
    """One host as its node process sees it. Implements `gate.Knowledge`. `tell` is called with news for the fronts, `say` with orders for the supervisor, `poke` when the steward has something new to think about."""

    def __init__(
        self, boot: NodeBoot, steward: Steward, peering: Peering, tell: Callable[[Owners], None], say: Callable[[NodeOrder], None]
    ) -> None:
        self.poke: Callable[[], None] = lambda: None
        self._boot = boot
        self._settings = boot.settings
        self._address = boot.settings.node_address
        self._steward = steward
        self._peering = peering
        self._tell = tell
        self._order = say
        self._starts = {claim: Start(claim) for claim in boot.running}
        self._serving = set(boot.serving)
        for claim in boot.serving:
            steward.served(claim)
        self._fetching: dict[Claim, asyncio.Task[None]] = {}
        self._said: tuple[tuple[Start, ...], float, int] | None = None
        self._heard = 0  # ends of processes
        self._tasks: set[asyncio.Task[None]] = set()
        self._stale_at = 0.0
        self._lapsed = False

    # --- what is to run ----------------------------------------------------------------------------------------

    def manage(self) -> None:
        """Say to the supervisor and the fronts what is different by now."""
        now = time.monotonic()
        runs = self._steward.runs(now)
        if runs is not None:
            self._note_lapse(now)
            self._arrange(runs)
            self._say(now)
        self._tell_fronts()

    def _note_lapse(self, now: float) -> None:
        lapsed = now >= self._steward.lease_until
        if lapsed and not self._lapsed:
            log.error(
                "no beat was written for lease_seconds: this host's shards are stopped, as others may take them",
                extra={"shards": len(self._starts)},
            )
        self._lapsed = lapsed

    def _arrange(self, runs: tuple[Run, ...]) -> None:
        wanted = {run.claim for run in runs}
        for claim in [claim for claim in self._fetching if claim not in wanted]:
            self._fetching.pop(claim).cancel()
            self._steward.ended(claim)
        for claim in [claim for claim in self._starts if claim not in wanted]:
            del self._starts[claim]
        for run in runs:
            claim = run.claim
            if claim in self._starts or claim in self._fetching:
                continue
            self._steward.listed(claim)
            path = luggage_path(self._boot.run_dir, claim.shard, claim.turn)
            if Path(path).exists():  # what a process of this very turn has left, or what was fetched for it
                self._starts[claim] = Start(claim, path)
            elif run.sources:
                self._fetching[claim] = self._spawn(self._fetch(run))
            else:
                self._starts[claim] = Start(claim)

    async def _fetch(self, run: Run) -> None:
        claim = run.claim
        path = await fetch(self._peering, run.sources, self._boot.run_dir, claim.shard, claim.turn, self._settings.handover_seconds_max)
        if self._fetching.pop(claim, None) is not None:
            self._starts[claim] = Start(claim, path)
        self.manage()

    def _say(self, now: float) -> None:
        said = tuple(self._starts.values()), self._steward.lease_until, self._heard
        if said != self._said:
            self._said = said
            self._order(Shards(said[0], max(0.0, said[1] - now), self._heard))

    def depart(self) -> None:
        """Say that nothing is to run any more."""
        for task in self._fetching.values():
            task.cancel()
        self._starts.clear()
        self._order(Shards((), 0.0, self._heard))

    # --- what the supervisor says ------------------------------------------------------------------------------

    def take(self, order: Serving | Away | Ended) -> None:
        """Take what the supervisor says of a process."""
        claim = order.claim
        match order:
            case Serving():
                self._serving.add(claim)
                self._steward.served(claim)
            case Away():
                self._serving.discard(claim)
            case Ended():
                self._heard += 1
                self._serving.discard(claim)
                self._starts.pop(claim, None)
                if order.fenced:
                    log.warning(
                        "a process of this host was fenced: its shard is another's", extra={"shard": claim.shard, "turn": claim.turn}
                    )
                self._steward.ended(claim, fenced=order.fenced)
        self.poke()
        self.manage()

    # --- what others are told ----------------------------------------------------------------------------------

    def is_here(self, shard: int) -> bool:
        """Say whether a process of this host serves a shard."""
        return any(claim.shard == shard for claim in self._serving)

    def elsewhere(self, shard: int) -> Elsewhere:
        """Return who has a shard, as far as is known."""
        view = self._steward.view
        if view is None or not 0 <= shard < len(view.holdings):
            return Elsewhere(shard, "", 0)
        holding = view.holdings[shard]
        return Elsewhere(shard, holding.host if self._steward.alive(holding.host) else "", holding.turn)

    def nudge(self, message: Nudge) -> None:
        """Look at once: another host has handed a shard over to this one."""
        self._steward.nudge(message.shard, message.turn, message.host)
        self.poke()

    def stale(self) -> None:
        """Look soon: a front was led to where a shard is not."""
        now = time.monotonic()
        if now - self._stale_at >= STALE_SECONDS_MIN:
            self._stale_at = now
            self._steward.look_soon()
            self.poke()

    def handed(self, step: Hand) -> None:
        """Tell the host that has a shard now."""
        _ = self._spawn(nudge(self._peering, step.host, Nudge(step.shard, step.turn + 1, self._address)))

    def _tell_fronts(self) -> None:
        view = self._steward.view
        if view is None:
            return
        here = {claim.shard for claim in self._serving}
        alive = {host.address: self._steward.alive(host.address) for host in view.hosts}
        self._tell(
            Owners(
                self._address,
                tuple(HostSeen(host.address, host.version, alive[host.address], host.draining) for host in view.hosts),
                tuple(
                    Owner(
                        holding.shard,
                        holding.host if alive.get(holding.host) else "",
                        holding.turn,
                        holding.epoch,
                        holding.shard in here,
                        holding.wanted,
                    )
                    for holding in view.holdings
                ),
                self._steward.away,
                dict(self._steward.counters),
            )
        )

    def samples(self) -> list[Sample]:
        """Return what is counted here."""
        counters = self._steward.counters
        return [
            ("proteus_lease_seconds_left", [], max(0.0, self._steward.lease_until - time.monotonic())),
            ("proteus_lease_beats_total", ["ok"], counters["beats"]),
            ("proteus_lease_beats_total", ["failed"], counters["beats_failed"]),
            ("proteus_claims_total", ["won"], counters["claims"]),
            ("proteus_claims_total", ["lost"], counters["claims_lost"]),
            ("proteus_moves_total", ["in"], counters["moves_in"]),
            ("proteus_moves_total", ["out"], counters["moves_out"]),
            ("proteus_fenced_total", [], counters["fenced"]),
        ]

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
