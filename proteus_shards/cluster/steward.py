"""What one host of a cluster does next: beats, looks, claims, hands over, and says which shards its processes are to serve. sans-IO.

How to think about it
=====================

The owner of a steward has one task that does what `step` returns, one call of the register at a time, and tells what came of it:

    step = steward.step(now)                      # a Look, Join, Beat, Drain, Hand, Want or Leave; or Rest until a time; or Over
    answer = ...                                  # View of a look, True or False of the rest (True of a join); None: the call failed, or nobody knows
    steward.told(step, answer, sent_at, now)      # sent_at: the monotonic time before the call was sent

Whenever something has changed, and at `lease_until`, it asks `runs(now)` for the processes that are to run, starts and stops them, and says so: `listed` before it
starts one, `ended` when no process is left. What it says in between is of no interest: a process that crashes is started again under its claim.

**The own lease** runs from before the last good beat was sent, for `lease_seconds` less a margin. When it is over others may claim, so nothing is to run here:
`runs` is empty then, register or not. Once beats pass again, a look made after that says what is still this host's.

**Others** are dead by `watch.py`. Which shard belongs where is `spread.py`'s.

**Giving one away**: once its process has served here, and so has what was in memory where it came from, it is left out of `runs`; its process drains, commits, writes its luggage and ends; then `Hand`. The next one follows when the new host has opened the
rows (their epoch has gone up), or has taken too long. So at any moment one shard is on the move, or a few when the host leaves.

**Answers that are lost.** A call that failed or whose outcome nobody knows changes nothing here, but that a look comes before the next decision. So does a compare-and-set that another host has won.

**Another at this address.** A host that finds another boot in its own row has been replaced: it stops everything and is `Over`. At its own start it is the one that replaces: what its
address held belongs to processes that are gone or no longer know what they hold, and it claims all of that anew, which fences them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec

from proteus_shards.cluster.model import NOBODY, Claim, Holding, Host, View
from proteus_shards.cluster.spread import spread
from proteus_shards.cluster.steps import Beat, Call, Drain, Fault, Hand, Join, Leave, Look, Over, Rest, Run, Step, Want
from proteus_shards.cluster.watch import Watch

BEATS_PER_LEASE = 3
LOOKS_PER_LEASE = 8  # more often than beats: a beat must have been seen for a lease, and it is seen so much later than it was written
MARGINS_PER_LEASE = 32
GIVEN_AT_ONCE_MAX = 1
GIVEN_AT_ONCE_LEAVING_MAX = 4


class _Given(msgspec.Struct, frozen=True):
    """A shard that was handed over, and is not yet opened by its new host as far as is known."""

    turn: int
    epoch: int
    host: str
    until: float


class _Taken(msgspec.Struct, frozen=True):
    """A shard that has come here."""

    turn: int
    epoch: int  # before a process of this host has opened it
    since: float
    served: bool = False


class Steward:
    """One host's part in its cluster. `running`: what runs already, from before this process."""

    def __init__(
        self,
        address: str,
        boot: str,
        version: str,
        lease_seconds: float,
        handover_seconds_max: float = 10.0,
        running: Iterable[Claim] = (),
    ) -> None:
        self.view: View | None = None  # as last seen, with what was written since
        self.away = False  # the last call has failed
        self.counters = dict.fromkeys(("beats", "beats_failed", "claims", "claims_lost", "moves_out", "moves_in", "fenced"), 0)
        self._address = address
        self._boot = boot
        self._version = version
        self._lease_seconds = lease_seconds
        self._margin_seconds = lease_seconds / MARGINS_PER_LEASE
        self._handover_seconds_max = handover_seconds_max
        self._watch = Watch(lease_seconds + self._margin_seconds, lease_seconds / 2)
        self._running = {claim.shard: claim for claim in running}
        self._sources: dict[int, tuple[int, tuple[str, ...]]] = {}  # shard → turn, hosts that may have its luggage
        self._hints: dict[int, tuple[int, str]] = {}  # shard → turn, who says that it has handed it over
        self._earlier: dict[int, int] = {}  # shard → turn, under which an earlier life of this address holds it
        self._fenced: dict[int, int] = {}  # shard → turn, under which a process of this host was refused
        self._claims: list[int] = []
        self._moves: dict[int, str] = {}  # shard that is being given away → to whom
        self._given: dict[int, _Given] = {}
        self._taken: dict[int, _Taken] = {}  # shard → the turn under which it came here
        self._now = -math.inf
        self._beat = 0
        self._joined = False
        self._replaced = self._left = self._leaving = self._needed = self._drain_said = False
        self._lapsed = True  # until a look that was made under a lease
        self._began = False
        self._lease_from = -math.inf
        self._look_asked = True
        self._beat_at = self._look_at = self._retry_at = -math.inf

    # --- what is to be done ------------------------------------------------------------------------------------

    def step(self, now: float) -> Step:
        """Return what is to be asked next."""
        self._check_lease(now)
        if self._leaving and self._lapsed and self.away and not self._running:
            self._left = True  # nothing can be given away any more: others take it when they see that the lease is over
        if self._replaced or self._left:
            return Over(self._replaced)
        if now < self._retry_at:
            return Rest(self._retry_at)
        if self._joined and now >= self._beat_at:
            return Beat(self._host(self._beat + 1))
        if self.view is None or self._look_asked:
            return Look()
        if not self._joined:
            return Join(self._host(self._beat + 1))
        if self._leaving and not self._drain_said:
            return Drain(self._address, draining=True)
        if not self._lapsed and (hand := self._next_hand()) is not None:
            return hand
        if self._leaving and self._is_bare():
            return Leave(self._address, self._boot)
        due = self._watch.due()
        look_at = self._look_at if due is None else min(self._look_at, due)
        if now >= look_at:
            return Look()
        return Rest(min(self._beat_at, look_at))

    def told(self, step: Call, answer: View | bool | None, sent_at: float, now: float) -> None:
        """Take what came of a call. None: it failed, or nobody knows."""
        self._check_lease(now)
        self.away = answer is None
        if answer is None:
            self._retry_at = now + self._margin_seconds
            self._look_asked = True
            if isinstance(step, Join | Beat):
                self._beat = step.host.beat  # it may have been written, and the same number once more would be no sign of life
            self.counters["beats_failed"] += isinstance(step, Beat)
            return
        match step:
            case Look():
                assert isinstance(answer, View)
                self._see(answer, sent_at, now)
            case Join() | Beat():
                self._beat = step.host.beat
                if answer:
                    self._joined = True
                    self._lease_from = sent_at
                    self._beat_at = sent_at + self._lease_seconds / BEATS_PER_LEASE
                    self.counters["beats"] += 1
                    self._look_asked |= self._lapsed
                else:
                    self._beat_at = now + self._margin_seconds
                    self._look_asked = True
            case Hand():
                self._handed(step, now) if answer else self._lose(step)
            case Drain():
                self._drain_said |= step.host == self._address and step.draining and bool(answer)
                self._look_asked = True
            case Want():
                self._look_asked = True
            case Leave():
                self._left |= step.host == self._address
                self._look_asked = True
        self._plan()

    def runs(self, now: float) -> tuple[Run, ...] | None:
        """Return the processes that are to run here; None: not known yet, what runs may go on."""
        self._check_lease(now)
        if self._replaced or self._left:
            return ()
        if not self._began:
            return None
        if self._lapsed or self.view is None:
            return ()
        listed = []
        for holding in self.view.holdings:
            shard, turn = holding.shard, holding.turn
            claim = Claim(shard, self._address, turn)
            if not self._is_own(holding) or shard in self._moves or self._fenced.get(shard) == turn:
                continue
            if self._running.get(shard, claim) == claim:  # one of an older turn has to end first
                source = self._sources.get(shard)
                listed.append(Run(claim, source[1] if source is not None and source[0] == turn else ()))
        return tuple(listed)

    def settled(self, now: float) -> bool:
        """Say whether this host has a lease, and nothing left to claim."""
        self._check_lease(now)
        return not (self._lapsed or self._claims or self._look_asked)

    @property
    def lease_until(self) -> float:
        """The monotonic time at which the own lease is over, unless there is another beat. It may be past, or minus infinity."""
        return self._lease_from + self._lease_seconds - self._margin_seconds

    # --- what has happened -------------------------------------------------------------------------------------

    def listed(self, claim: Claim) -> None:
        """Note that a process is going to run under this claim. `ended` will be said of it once."""
        self._running[claim.shard] = claim

    def ended(self, claim: Claim, *, fenced: bool = False) -> None:
        """Note that no process runs under this claim any more. `fenced`: the store has refused it, and starting it again would not help."""
        if self._running.get(claim.shard) == claim:
            del self._running[claim.shard]
        if fenced:
            self._fenced[claim.shard] = claim.turn
            self.counters["fenced"] += 1
            self._look_asked = True
        self._plan()

    def served(self, claim: Claim) -> None:
        """Note that the process under this claim serves: it has taken in what luggage there was."""
        taken = self._taken.get(claim.shard)
        if taken is None or taken.turn <= claim.turn:
            self._taken[claim.shard] = _Taken(claim.turn, 0, self._now, served=True)
        self._plan()

    def look_soon(self) -> None:
        """Have a look come next: somebody says that things have changed."""
        self._look_asked = True

    def nudge(self, shard: int, turn: int, host: str) -> None:
        """Note that a host says that it has handed a shard over to this one, with this turn, and may have luggage."""
        if self.view is not None and 0 <= shard < len(self.view.holdings):
            self._hints[shard] = (turn, host)
        self._look_asked = True

    def leave(self, *, needed: bool = False) -> None:
        """Give everything away and leave the cluster. Harmless if repeated. `needed`: what no other host takes is still served here."""
        self._leaving, self._needed = True, needed
        self._plan()

    def kept(self) -> int:
        """Return how many shards a host that leaves has not given away, or nobody has opened since, though another host lives."""
        if self.view is None or not any(host.address != self._address and self.alive(host.address) for host in self.view.hosts):
            return 0
        return sum(holding.host == self._address for holding in self.view.holdings) + len(self._given)

    # --- what is known -----------------------------------------------------------------------------------------

    def alive(self, address: str) -> bool:
        """Say whether a host is alive, as far as is known."""
        return address == self._address or self._watch.alive(address)

    def fault_of(self, wish: Want | Drain | Leave) -> Fault | None:
        """Return why an operator's wish cannot be written down, if it cannot."""
        hosts = {host.address: host for host in self.view.hosts} if self.view is not None else {}
        if self.view is None or self.away:
            return Fault("the store cannot be asked now")
        if isinstance(wish, Want) and not 0 <= wish.shard < len(self.view.holdings):
            return Fault(f"there is no shard {wish.shard}", missing=True)
        if isinstance(wish, Want) and wish.host == NOBODY:
            return None
        if wish.host not in hosts:
            return Fault(f"there is no host {wish.host}", missing=True)
        if isinstance(wish, Want) and (not self.alive(wish.host) or hosts[wish.host].draining):
            return Fault(f"{wish.host} is {'draining' if self.alive(wish.host) else 'dead'}")
        if isinstance(wish, Leave) and self.alive(wish.host):
            return Fault(f"{wish.host} is alive; drain it and stop it instead")
        return None

    # --- how it is done ----------------------------------------------------------------------------------------

    def _host(self, beat: int) -> Host:
        return Host(self._address, self._boot, beat, self._version, self._leaving)

    def _is_own(self, holding: Holding) -> bool:
        return holding.host == self._address and self._earlier.get(holding.shard) != holding.turn

    def _note_taken(self, holding: Holding) -> None:
        taken = self._taken.get(holding.shard)
        if taken is None or taken.turn != holding.turn:
            self._taken[holding.shard] = _Taken(holding.turn, holding.epoch, self._now)

    def _may_give(self, holding: Holding) -> bool:
        """Say whether an own shard may be given on: its process has served under this turn, and so has what luggage there was, or will not come to it any more."""
        taken = self._taken.get(holding.shard)
        if not self._is_own(holding) or self._fenced.get(holding.shard) == holding.turn:
            return True  # no process of this host will ever serve it
        if taken is None or taken.turn != holding.turn:
            return False
        return taken.served or holding.epoch > taken.epoch or self._now >= taken.since + self._handover_seconds_max

    def _check_lease(self, now: float) -> None:
        self._now = max(self._now, now)
        if not self._lapsed and now >= self.lease_until:
            self._lapsed = True
            self._look_asked = True
            self._beat_at = -math.inf
            self._claims = []

    def _is_bare(self) -> bool:
        assert self.view is not None
        return not (self._running or self._given or any(holding.host == self._address for holding in self.view.holdings))

    def _next_hand(self) -> Hand | None:
        assert self.view is not None
        if self._claims:
            return Hand(self._claims[0], self.view.holdings[self._claims[0]].turn, self._address)
        for shard, host in self._moves.items():
            if shard not in self._running:
                return Hand(shard, self.view.holdings[shard].turn, host)
        return None

    def _handed(self, step: Hand, now: float) -> None:
        """Bring the view up to date with what was written."""
        assert self.view is not None
        holdings = list(self.view.holdings)
        before = holdings[step.shard]
        holdings[step.shard] = Holding(
            step.shard, step.host, step.turn + 1, before.epoch, step.host if before.wanted == step.host else NOBODY
        )
        self.view = View(self.view.hosts, tuple(holdings))
        self._moves.pop(step.shard, None)
        if step.host == self._address:
            self.counters["claims"] += 1
            self._note_taken(holdings[step.shard])
            return
        self._give(step, before, now)

    def _give(self, step: Hand, before: Holding, now: float) -> None:
        self.counters["moves_out"] += 1
        if step.host != NOBODY:
            self._given[step.shard] = _Given(step.turn + 1, before.epoch, step.host, now + self._handover_seconds_max)

    def _lose(self, step: Hand) -> None:
        self._look_asked = True
        self.counters["claims_lost"] += step.host == self._address

    def _see(self, view: View, sent_at: float, now: float) -> None:
        before, self.view = self.view, view
        self._look_asked = False
        self._watch.see((host for host in view.hosts if host.address != self._address), sent_at, now)
        own = next((host for host in view.hosts if host.address == self._address), None)
        if own is not None and own.boot == self._boot:
            self._joined = True
            self._drain_said = own.draining  # an operator may have taken it back
            self._beat = max(self._beat, own.beat)
        elif own is not None and self._joined:
            self._replaced = True
            return
        else:
            self._joined = False
        if before is None and (own is None or own.boot != self._boot):
            held = [holding for holding in view.holdings if holding.host == self._address]
            self._earlier = {holding.shard: holding.turn for holding in held if holding.shard not in self._running}
        self._find_sources(before, view)
        self._find_given(before, view, now)
        if self._joined and sent_at >= self._lease_from > -math.inf and now < self.lease_until:
            self._lapsed = False
            self._began = True
        self._given = {shard: given for shard, given in self._given.items() if self._is_awaited(given, view.holdings[shard], now)}
        interval = self._margin_seconds if self._given else self._lease_seconds / LOOKS_PER_LEASE
        self._look_at = sent_at + interval

    def _is_awaited(self, given: _Given, holding: Holding, now: float) -> bool:
        same = holding.turn == given.turn and holding.epoch == given.epoch
        return same and now < given.until and self.alive(given.host)

    def _find_sources(self, before: View | None, view: View) -> None:
        """Find out who has handed over what is new here."""
        for holding in view.holdings:
            shard, turn = holding.shard, holding.turn
            if not self._is_own(holding):
                continue
            self._note_taken(holding)
            last = before.holdings[shard] if before is not None and shard < len(before.holdings) else None
            if (last is not None and (last.host, last.turn) == (self._address, turn)) or self._running.get(shard) == Claim(
                shard, self._address, turn
            ):
                continue
            hint = self._hints.pop(shard, None)
            if hint is not None and hint[0] == turn:
                sources: tuple[str, ...] = (hint[1],)
            elif last is not None and last.turn == turn - 1:
                sources = (last.host,)
            else:
                sources = tuple(host.address for host in view.hosts)
            sources = tuple(source for source in sources if source != self._address and self._watch.alive(source))
            self._sources[shard] = (turn, sources)
            self.counters["moves_in"] += bool(sources)

    def _find_given(self, before: View | None, view: View, now: float) -> None:
        """Find out which hand-overs were written whose answer was lost."""
        for shard, host in list(self._moves.items()):
            last = before.holdings[shard] if before is not None else Holding(shard)
            if last.host == self._address and (view.holdings[shard].host, view.holdings[shard].turn) == (host, last.turn + 1):
                del self._moves[shard]
                self._give(Hand(shard, last.turn, host), last, now)

    def _plan(self) -> None:
        """Decide what to claim and what to give away, from what is known now."""
        self._claims = []
        if self.view is None or self._lapsed or not self._joined:
            return
        view = self.view
        living = {host.address: host.draining for host in view.hosts if self.alive(host.address)}
        living[self._address] = self._leaving or living.get(self._address, False)
        takers = [address for address, draining in living.items() if not draining]
        others = [address for address in living if address != self._address or not self._leaving]
        targets = spread(view.holdings, takers) if takers else spread(view.holdings, others, even=False)
        if self._leaving and not takers:
            stays = self._address if self._needed else NOBODY
            targets |= {holding.shard: stays for holding in view.holdings if holding.host == self._address}
        held = [holding for holding in view.holdings if holding.host == self._address]
        gives = {
            holding.shard: targets[holding.shard]
            for holding in held
            if targets[holding.shard] != self._address and (holding.shard in self._moves or self._may_give(holding))
        }
        self._claims = [
            holding.shard
            for holding in view.holdings
            if targets[holding.shard] == self._address and holding.shard not in self._moves and self._is_free(holding, living)
        ]
        self._plan_moves(gives, {holding.shard for holding in held})

    def _is_free(self, holding: Holding, living: Iterable[str]) -> bool:
        """Say whether a shard that is to be here is to be claimed: nobody alive has it, or this host under a turn that serves no more."""
        if holding.host != self._address:
            return holding.host not in living
        return self._earlier.get(holding.shard) == holding.turn or self._fenced.get(holding.shard) == holding.turn

    def _plan_moves(self, gives: dict[int, str], held: set[int]) -> None:
        """Go on with the moves that have begun, though perhaps to others, and begin as many as there may be."""
        begun = [shard for shard in self._moves if shard in held]
        self._moves = {shard: gives.pop(shard) for shard in begun if shard in gives}
        for shard in begun:
            if shard not in self._moves and gives:  # another was to move by now, but this one has been stopped for it
                self._moves[shard] = gives.pop(next(iter(gives)))
        at_once = GIVEN_AT_ONCE_LEAVING_MAX if self._leaving else GIVEN_AT_ONCE_MAX
        for shard, host in gives.items():
            if len(self._moves) + len(self._given) >= at_once:
                break
            self._moves[shard] = host
