"""A register in memory and hosts in virtual time, for tests of the steward. Nothing here waits."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import msgspec

from proteus_shards.cluster.model import NOBODY, Claim, Holding, Host, View
from proteus_shards.cluster.steps import Beat, Call, Drain, Hand, Join, Leave, Look, Over, Rest, Want
from proteus_shards.cluster.steward import Steward

LEASE_SECONDS = 8.0
CALL_SECONDS = 0.01
STOP_SECONDS = 0.3  # from the end of a shard's run to the end of its process
OPEN_SECONDS = 0.4  # from its start to its epoch


class Book:
    """What a register keeps, and the rules by which it changes."""

    def __init__(self, shards: int) -> None:
        self.hosts: dict[str, Host] = {}
        self.holdings = [Holding(shard) for shard in range(shards)]
        self.hands = 0

    def view(self) -> View:
        """Return all of it."""
        return View(tuple(self.hosts.values()), tuple(self.holdings))

    def take(self, call: Call) -> View | bool:
        """Do what a call asks for."""
        match call:
            case Look():
                return self.view()
            case Join(host):
                self.hosts[host.address] = host
                return True
            case Beat(host):
                own = self.hosts.get(host.address)
                if own is None or own.boot != host.boot:
                    return False
                self.hosts[host.address] = msgspec.structs.replace(host, draining=own.draining)
                return True
            case Drain(address, draining):
                if address in self.hosts:
                    self.hosts[address] = msgspec.structs.replace(self.hosts[address], draining=draining)
                return address in self.hosts
            case Hand(shard, turn, address):
                held = self.holdings[shard]
                if held.turn != turn:
                    return False
                self.holdings[shard] = Holding(shard, address, turn + 1, held.epoch, address if held.wanted == address else NOBODY)
                self.hands += 1
                return True
            case Want(shard, address):
                self.holdings[shard] = msgspec.structs.replace(self.holdings[shard], wanted=address)
                return True
            case Leave(address, boot):
                found = self.hosts.get(address)
                if found is None or (boot and found.boot != boot):
                    return False
                del self.hosts[address]
                return True

    def open(self, claim: Claim) -> bool:
        """Take an epoch, as the process of a shard does."""
        held = self.holdings[claim.shard]
        if (held.host, held.turn) != (claim.host, claim.turn):
            return False
        self.holdings[claim.shard] = msgspec.structs.replace(held, epoch=held.epoch + 1)
        return True


class Site:
    """One host in virtual time: a steward, and the processes that its supervisor would run."""

    def __init__(self, book: Book, address: str, boot: str = "1", *, skew: float = 0.0, lease_seconds: float = LEASE_SECONDS) -> None:
        self.book = book
        self.address = address
        self.skew = skew  # of its monotonic clock
        self.steward = Steward(address, boot, "1", lease_seconds)
        self.processes: dict[int, Claim] = {}
        self.epochs: dict[int, int] = {}  # of those that have opened their rows
        self.ends: dict[int, float] = {}
        self.opens: dict[int, float] = {}
        self.stopped = False  # its clock and its processes stand still
        self.cut = False  # from the register
        self.dead = False
        self.wakes_at = 0.0
        self.replaced = False
        self.left = False

    def turn(self, now: float, chance: random.Random | None = None) -> float:
        """Do all that is to be done by now, and return when there is more."""
        self._processes(now)
        while not (self.replaced or self.left):
            own_now = now + self.skew
            step = self.steward.step(own_now)
            if isinstance(step, Rest):
                self._manage(now)
                self.wakes_at = max(step.until - self.skew, now + 0.001)
                break
            if isinstance(step, Over):
                self.replaced, self.left = step.replaced, not step.replaced
                self._manage(now)
                break
            lost = self.cut or (chance is not None and chance.random() < 0.2)
            taken = not self.cut and (not lost or (chance is not None and chance.random() < 0.5))
            answer = self.book.take(step) if taken else None
            self.steward.told(step, None if lost else answer, own_now, own_now + (0.0 if lost else CALL_SECONDS))
            self._manage(now)
        lease = self.steward.lease_until - self.skew
        wakes = math.inf if self.replaced or self.left else min(self.wakes_at, lease if lease > now else math.inf)
        return min([wakes, *self.ends.values(), *self.opens.values()])

    def _manage(self, now: float) -> None:
        runs = self.steward.runs(now + self.skew)
        if runs is None:
            return
        wanted = {run.claim.shard: run.claim for run in runs}
        for shard, claim in self.processes.items():
            if wanted.get(shard) != claim:
                self.ends.setdefault(shard, now + STOP_SECONDS)
        for shard, claim in wanted.items():
            if shard not in self.processes:
                self.steward.listed(claim)
                self.processes[shard] = claim
                self.opens[shard] = now + OPEN_SECONDS

    def _processes(self, now: float) -> None:
        for shard in [shard for shard, at in self.opens.items() if at <= now]:
            del self.opens[shard]
            if shard in self.ends:
                continue
            if self.cut:
                self.opens[shard] = now + OPEN_SECONDS
                continue
            if self.book.open(self.processes[shard]):
                self.epochs[shard] = self.book.holdings[shard].epoch
            else:
                self._end(shard, fenced=True)
        for shard in [shard for shard, at in self.ends.items() if at <= now]:
            self._end(shard)

    def _end(self, shard: int, *, fenced: bool = False) -> None:
        claim = self.processes.pop(shard)
        for times in (self.ends, self.opens):
            times.pop(shard, None)
        self.epochs.pop(shard, None)
        self.steward.ended(claim, fenced=fenced)

    def serves(self) -> set[int]:
        """Return the shards whose processes could commit now."""
        return {shard for shard, epoch in self.epochs.items() if self.book.holdings[shard].epoch == epoch}


class Cluster:
    """Sites on one book, and the time that passes."""

    def __init__(self, shards: int) -> None:
        self.book = Book(shards)
        self.sites: list[Site] = []
        self.now = 1000.0

    def add(self, address: str, boot: str = "1", *, skew: float = 0.0) -> Site:
        """Start a host."""
        site = Site(self.book, address, boot, skew=skew)
        self.sites.append(site)
        return site

    def kill(self, site: Site) -> None:
        """End a host at once, with all its processes."""
        site.dead = True
        self.sites.remove(site)

    def run(self, seconds: float, chance: random.Random | None = None, see: Callable[[], None] | None = None) -> None:
        """Let time pass."""
        end = self.now + seconds
        due = {id(site): self.now for site in self.sites if not site.stopped}
        while self.now < end:
            for site in self.sites:
                if due.get(id(site), math.inf) <= self.now:
                    due[id(site)] = site.turn(self.now, chance)
            if see is not None:
                see()
            self.now = min(end, max(min(due.values(), default=end), self.now + 0.001))

    def shares(self) -> dict[str, int]:
        """Return how many shards each host that lives serves."""
        return {site.address: len(site.serves()) for site in self.sites if not (site.left or site.replaced)}

    def settled(self) -> bool:
        """Say whether each shard is served once, by the host that holds it, in shares of floor or ceiling."""
        living = [site for site in self.sites if not (site.left or site.replaced)]
        served = sorted(shard for site in living for shard in site.serves())
        held = all(self.book.holdings[shard].host == site.address for site in living for shard in site.serves())
        pinned = any(holding.wanted != NOBODY for holding in self.book.holdings)
        taking = [site for site in living if not self.book.hosts[site.address].draining]
        shares = [len(site.serves()) for site in taking]
        even = pinned or not shares or max(shares) - min(shares) <= 1
        return served == list(range(len(self.book.holdings))) and held and even
