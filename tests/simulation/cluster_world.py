"""A simulated cluster: hosts, the store, what lies between them, and what must always hold.

How to think about it: the steward is the product's own; `cluster_host.py` does what the node and the supervisor do, `cluster_place.py` is the store. This file lets calls be lost, be
late and overtake each other, lets things happen to hosts, and judges. Then it heals the world: no call is lost any more, whoever is stopped goes on, nothing
else happens; and within a lease and 2 s every shard must be served, in the end evenly, and then no shard may move again.

What must hold at every moment:

- a row is written under the newest epoch only, and what was acknowledged is there when the next owner loads;
- an epoch is taken for the newest turn only, and a turn belongs to one life of one host (but that a host which has just been replaced by another at its address
  may claim once more before it knows; and a node process that begins anew before it has claimed what its address held no longer knows of it);
- a host hands a shard over once its own process of it has ended;
- where clocks run evenly, no host claims a shard that another one still means to serve;
- where nothing fails, what a shard has in memory goes with it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from proteus_shards.cluster.model import NOBODY, Claim
from proteus_shards.cluster.steps import Call, Hand
from tests.simulation.cluster_host import Process, SimHost
from tests.simulation.cluster_place import Place
from tests.simulation.cluster_plan import SECOND, ClusterPlan
from tests.simulation.disk import Violation
from tests.simulation.loop import VirtualLoop

TRACED = 400  # lines
ADDRESSES = 6
QUIET_LEASES = 5
MOVE_SECONDS_MAX = 14.0  # of one shard, in order: its handing over may have to be given up once


class ClusterWorld:
    """One seed."""

    def __init__(self, seed: int) -> None:
        self.plan = ClusterPlan(seed)
        self.loop = VirtualLoop()
        self.place = Place(self.plan.shards)
        self.hosts: list[SimHost] = []
        self.trace: deque[str] = deque(maxlen=TRACED)
        self.faults: Counter[str] = Counter()
        self.calls = 0
        self.fingerprint = 0
        self._away = False  # the store
        self._decided = 0  # not after this time, in µs, was that decided which the call that has its effect now is about
        self._parted: set[frozenset[str]] = set()
        self._boots = self._tokens = 0
        self._healed = False
        self._done = False
        self._claims: dict[tuple[int, int], str] = {}
        self._handed_at: dict[tuple[int, int], int] = {}
        self._opened = [0] * self.plan.shards  # the newest turn that has taken an epoch
        self._loaded = [0] * self.plan.shards  # the newest epoch that has loaded
        self._kept: list[list[str]] = [[] for _ in range(self.plan.shards)]
        self._kept_at = [0] * self.plan.shards
        self._memory: dict[int, str] = {}

    def run(self) -> None:
        """Live through it. Raises `Violation`."""
        plan, loop = self.plan, self.loop
        for number in range(plan.hosts):
            loop.after(round(plan.random.random() * SECOND), self.start, f"host-{number}")
        loop.after(round((1 + plan.random.random()) * SECOND), self._happen)
        loop.after(round(plan.troubled_seconds * SECOND), self._heal)
        loop.run(lambda: self._done)
        assert self._done, "the simulation ended before its time"

    # --- what happens --------------------------------------------------------------------------------------------

    def _happen(self) -> None:
        if self._healed:
            return
        plan = self.plan
        name = plan.pick(plan.events)
        happened = getattr(self, f"_{name}")()
        if happened:
            self.faults[name] += 1
            self.tell(f"--- {name} {happened}")
        self.loop.after(round(plan.event_seconds * plan.random.uniform(0.2, 1.8) * SECOND), self._happen)

    def start(self, address: str) -> SimHost:
        """Start a server at an address."""
        self._boots += 1
        host = SimHost(self, address, str(self._boots), self.plan.random.uniform(*self.plan.rates))
        self.hosts.append(host)
        return host

    def kill(self, host: SimHost) -> None:
        """End a host at once."""
        host.dead = True
        host.processes.clear()
        self.hosts = [other for other in self.hosts if other is not host]

    def _some(self, *, healthy: bool = True) -> SimHost | None:
        found = [host for host in self.living() if not (healthy and (host.paused or host.cut))]
        return self.plan.pick(found) if found else None

    def living(self) -> list[SimHost]:
        """Return the hosts that run and have not left."""
        return [host for host in self.hosts if not (host.dead or host.left)]

    def _join(self) -> str:
        free = sorted({f"host-{number}" for number in range(ADDRESSES)} - {host.address for host in self.living()})
        if not free or len(self.living()) > self.plan.hosts:
            return ""
        return str(self.start(self.plan.pick(free)))

    def _leave(self) -> str:
        host = self._some()
        if host is None or len(self.living()) < 2 or host.left:
            return ""
        host.leave()
        return str(host)

    def _move(self) -> str:
        takers = [host for host in self._takers() if not host.paused]
        if not takers:
            return ""
        shard, host = self.plan.random.randrange(self.plan.shards), self.plan.pick(takers)
        self.place.want(shard, host.address)
        return f"shard {shard} to {host}"

    def _takers(self) -> list[SimHost]:
        hosts = self.place.hosts
        return [host for host in self.living() if host.address in hosts and not hosts[host.address].draining]

    def _drain(self) -> str:
        takers = self._takers()
        if len(takers) < 2:
            return ""
        host = self.plan.pick(takers)
        self.place.drain(host.address, draining=True)
        return str(host)

    def _undrain(self) -> str:
        draining = [host for host in self.living() if host.address in self.place.hosts and self.place.hosts[host.address].draining]
        if not draining:
            return ""
        host = self.plan.pick(draining)
        self.place.drain(host.address, draining=False)
        return str(host)

    def _restart_node(self) -> str:
        host = self._some()
        if host is None:
            return ""
        host.restart_node()
        return str(host)

    def _kill(self) -> str:
        host = self._some(healthy=False)
        if host is None or len(self.living()) < 2:
            return ""
        self.kill(host)
        return str(host)

    def _kill_back(self) -> str:
        host = self._some(healthy=False)
        if host is None:
            return ""
        self.kill(host)
        back = self.plan.lease_seconds * self.plan.random.uniform(0.1, 2)
        self.loop.after(round(back * SECOND), lambda: self._healed or self.start(host.address))
        return f"{host}, back after {back:.2f} s"

    def _replace(self) -> str:
        host = self._some(healthy=False)
        if host is None or sum(other.address == host.address for other in self.living()) > 1:
            return ""
        return f"{host} by {self.start(host.address)}"

    def _pause(self) -> str:
        return self._for_a_while(SimHost.pause, SimHost.resume)

    def _cut(self) -> str:
        return self._for_a_while(lambda host: setattr(host, "cut", True), lambda host: setattr(host, "cut", False))

    def _for_a_while(self, begin: Callable[[SimHost], object], end: Callable[[SimHost], object], after: float = 0.0) -> str:
        host = self._some()
        if host is None:
            return ""
        seconds = after or self.plan.lease_seconds * self.plan.random.uniform(0.1, 2.5)
        begin(host)
        self.loop.after(round(seconds * SECOND), lambda: self._healed or host.dead or end(host))
        return f"{host} for {seconds:.2f} s"

    def _suspend(self) -> str:
        """Pause a host whose clock stands still meanwhile."""
        begun = self.loop.now

        def wake(host: SimHost) -> None:
            host.suspend((self.loop.now - begun) / SECOND)
            host.resume()

        return self._for_a_while(SimHost.pause, wake)

    def _jump(self) -> str:
        host = self._some()
        if host is None:
            return ""
        host.jump(self.plan.lease_seconds * self.plan.random.random())
        return str(host)

    def _outage(self) -> str:
        if self._away:
            return ""
        self._away = True
        seconds = self.plan.lease_seconds * self.plan.random.uniform(0.1, 3)
        self.loop.after(round(seconds * SECOND), self._end_outage)
        return f"for {seconds:.2f} s"

    def _end_outage(self) -> None:
        self._away = False

    def _part(self) -> str:
        addresses = sorted({host.address for host in self.living()})
        if len(addresses) < 2:
            return ""
        pair = frozenset(self.plan.random.sample(addresses, 2))
        self._parted.add(pair)
        self.loop.after(round(self.plan.lease_seconds * SECOND), self._parted.discard, pair)
        return " and ".join(sorted(pair))

    def _crash_shard(self) -> str:
        host = self._some()
        if host is None:
            return ""
        host.crash_shard()
        return str(host)

    # --- the network ---------------------------------------------------------------------------------------------

    def call(self, host: SimHost, act: Callable[[], Any], told: Callable[[Any], None]) -> None:
        """Let a host ask the store. `told` gets the answer, or None after a while; the act may come after that."""
        self.calls += 1
        plan = self.plan
        give_up = plan.call_seconds_max
        if self._away or host.cut:
            host.after(plan.delay_seconds if self._away else give_up, told, None)
            return
        out, back = self._delay(), self._delay()
        sent = self.loop.now
        answered = False

        def arrive() -> None:
            if out is None or (self._away and not self._healed):
                return
            self._decided = sent - 2 * round(give_up * SECOND)  # by a look that may have taken as long
            answer = act()
            if back is not None and out + back < give_up and not host.cut:
                self.loop.after(round(back * SECOND), finish, answer)

        def finish(answer: Any) -> None:
            nonlocal answered
            if not answered:
                answered = True
                host.after(0, told, answer)

        self.loop.after(round((out or 0) * SECOND), arrive)
        self.loop.after(round(give_up * SECOND), finish, None)

    def _delay(self) -> float | None:
        """Return how long a message takes; None: for ever."""
        plan, random = self.plan, self.plan.random
        if not self._healed:
            if random.random() < plan.lost:
                return None
            if random.random() < plan.late:
                return random.random() * 2 * plan.call_seconds_max
        return random.random() * (min(plan.delay_seconds, plan.lease_seconds / 40) if self._healed else plan.delay_seconds)

    def fetch(self, host: SimHost, source: str, shard: int, turn: int, told: Callable[[str | None], None]) -> None:
        """Let a host ask another for its luggage."""

        def arrive() -> None:
            other = next((other for other in self.living() if other.address == source and not other.paused), None)
            parted = frozenset((host.address, source)) in self._parted
            found = other.luggage.pop((shard, turn), None) if other is not None and not parted else None
            host.after(self.plan.delay_seconds, told, found)

        self.loop.after(round(self.plan.delay_seconds * SECOND), arrive)

    def nudge(self, host: SimHost, hand: Hand) -> None:
        """Let a host tell another that a shard is its now."""
        if self.plan.chance(self.plan.lost) or frozenset((host.address, hand.host)) in self._parted:
            return
        for other in self.living():
            if other.address == hand.host:
                other.after(self.plan.delay_seconds, self._nudged, other, hand, host.address)

    @staticmethod
    def _nudged(host: SimHost, hand: Hand, giver: str) -> None:
        host.steward.nudge(hand.shard, hand.turn + 1, giver)
        host.pump()

    # --- the store, and what must hold ---------------------------------------------------------------------------

    def take(self, host: SimHost, call: Call) -> Any:
        """Let a call of the register have its effect."""
        if isinstance(call, Hand) and call.host == host.address:
            self._check_claim(host, call)
        before = self.place.hands
        answer = self.place.take(call)
        if isinstance(call, Hand) and self.place.hands > before:
            self._handed_at[call.shard, call.turn + 1] = self.loop.now
            self.tell(f"{host} hands shard {call.shard} to {call.host or 'nobody'}, turn {call.turn + 1}")
            if call.host == NOBODY or (call.shard, call.turn) not in self._claims:
                # nobody is there to take it along; or it goes on from a host that left, or was told to, before it could fetch it
                self._memory.pop(call.shard, None)
        return answer

    def _check_claim(self, host: SimHost, call: Hand) -> None:
        held = self.place.holdings[call.shard]
        if held.host in {NOBODY, host.address} or held.turn != call.turn:
            return
        for other in self.living():
            if other.address != held.host or other.paused:
                continue
            process = other.processes.get(call.shard)
            serving = process is not None and not process.stopping and process.claim.turn == held.turn and process.born < self._decided
            if (self.plan.kind != "wild" and serving) or self.plan.calm or self.plan.only_outages:
                raise Violation(f"{host} claims shard {call.shard}, turn {call.turn + 1}, from {other}, which still has it")

    def check_handing(self, host: SimHost, call: Hand) -> None:
        """Check that a host gives away only what it does not run any more."""
        if call.host != host.address and call.shard in host.processes:
            raise Violation(f"{host} hands shard {call.shard} to {call.host} while its own process of it runs")

    def check_start(self, host: SimHost, claim: Claim) -> None:
        """Check that a claim is of this life of this host alone, and that memory came along where nothing fails."""
        owner = self._claims.setdefault((claim.shard, claim.turn), str(host))
        if owner != str(host) and not host.node and self._handed_at.get((claim.shard, claim.turn), 0) < host.born:
            raise Violation(f"{host} starts shard {claim.shard} for turn {claim.turn}, which is that of {owner}")
        if claim.turn > self.place.holdings[claim.shard].turn:
            raise Violation(f"{host} starts shard {claim.shard} for turn {claim.turn}, which it was never given")
        if self.plan.calm:
            had, has = self._memory.get(claim.shard), host.processes[claim.shard].memory
            if had not in {None, has}:
                raise Violation(f"shard {claim.shard} starts on {host} without what it had in memory")
            self._memory[claim.shard] = has

    def open(self, host: SimHost, claim: Claim) -> int:
        """Let a process take an epoch; 0: its claim is over."""
        epoch = self.place.open(claim)
        if epoch is None:
            return 0
        if claim.turn < self._opened[claim.shard]:
            raise Violation(
                f"{host} takes epoch {epoch} of shard {claim.shard} for turn {claim.turn}, after turn {self._opened[claim.shard]}"
            )
        self._opened[claim.shard] = claim.turn
        return epoch

    def note_load(self, host: SimHost, process: Process) -> None:
        """Check what a process finds when it loads: it reads after its epoch was taken."""
        shard, epoch = process.claim.shard, process.epoch
        assert epoch is not None
        self._loaded[shard] = max(self._loaded[shard], epoch)
        lost = [row for row in self._kept[shard] if row not in self.place.rows[shard]]
        if lost:
            raise Violation(f"{host} loads shard {shard} without the acknowledged {lost[0]}")

    def commit(self, host: SimHost, shard: int, epoch: int, row: str) -> bool:
        """Let a row be written."""
        written = self.place.commit(shard, epoch, row)
        if written and epoch < self._loaded[shard]:
            raise Violation(f"{host} commits to shard {shard} under epoch {epoch}, though {self._loaded[shard]} has loaded")
        return written

    def note_kept(self, shard: int, row: str) -> None:
        """Note that a row was acknowledged."""
        self._kept[shard].append(row)
        self._kept_at[shard] = self.loop.now
        self.fingerprint = (self.fingerprint * 1_000_003 + hash((shard, len(self._kept[shard]), self.loop.now))) & 0xFFFFFFFFFFFF

    def token(self) -> str:
        """Return what a process without luggage has in memory."""
        self._tokens += 1
        return f"memory {self._tokens}"

    def tell(self, what: str) -> None:
        """Write down what happens."""
        self.trace.append(f"{self.loop.now / SECOND:9.3f}  {what}")

    # --- the end -------------------------------------------------------------------------------------------------

    def _heal(self) -> None:
        self._healed, self._away = True, False
        self._parted.clear()
        self.tell("--- healed")
        for host in self.living():
            host.cut = False
            if host.paused:
                host.resume()
        if not any(self._is_registered(host) and not host.leaving for host in self.living()):
            self.start(f"host-{ADDRESSES}")
        self._healed_at = self.loop.now
        self.loop.after(round(self.plan.settle_seconds_max() * SECOND), self._check_back)

    def _is_registered(self, host: SimHost) -> bool:
        """Say whether a host is the one that the store knows at its address."""
        known = self.place.hosts.get(host.address)
        return known is not None and known.boot == host.boot

    def _check_back(self) -> None:
        """Every shard was served since the world is healed."""
        gone = [shard for shard, at in enumerate(self._kept_at) if at <= self._healed_at]
        if gone:
            raise Violation(
                f"shards {gone} are not served {self.plan.settle_seconds_max():.1f} s after healing; {self.place.holdings}, {self.place.hosts}"
            )
        self._check_rest(self.loop.now + round((5 + MOVE_SECONDS_MAX * self.plan.shards) * SECOND))

    def _check_rest(self, deadline: int) -> None:
        """Wait until shards are where they belong; from then on none may move."""
        unrest = self._unrest()
        if unrest and self.loop.now >= deadline:
            raise Violation(f"{unrest}; {self.place.holdings}, {self.place.hosts}")
        if unrest:
            self.loop.after(round(self.plan.lease_seconds / 4 * SECOND), self._check_rest, deadline)
        else:
            self.loop.after(round(QUIET_LEASES * self.plan.lease_seconds * SECOND), self._check_quiet, self.place.hands)

    def _unrest(self) -> str:
        """Return why the cluster has not come to rest; empty: it has."""
        addresses = Counter(host.address for host in self.living())
        if max(addresses.values(), default=0) > 1:
            return f"two hosts go on at one address: {addresses}"
        serving = {
            process.claim.shard: host
            for host in self.living()
            for process in host.processes.values()
            if process.serves and process.epoch == self.place.holdings[process.claim.shard].epoch
        }
        takers = {host.address for host in self._takers()}
        shares = Counter(dict.fromkeys(takers, 0))
        pinned: Counter[str] = Counter()
        for holding in self.place.holdings:
            if holding.shard not in serving or serving[holding.shard].address != holding.host:
                return f"shard {holding.shard} is not served by its holder"
            if takers and holding.host not in takers:
                return f"shard {holding.shard} is on {holding.host}, which is to have none"
            if holding.wanted in takers and holding.host != holding.wanted:
                return f"shard {holding.shard} is on {holding.host} and not on {holding.wanted}, where it is wanted"
            shares[holding.host] += 1
            pinned[holding.host] += holding.wanted == holding.host
        if any(shares[rich] - shares[poor] > 1 and shares[rich] > pinned[rich] for rich in takers for poor in takers):
            return f"the shares are not even: {shares}"
        return ""

    def _check_quiet(self, hands: int) -> None:
        """Nothing moves any more."""
        if self.place.hands != hands:
            raise Violation(f"{self.place.hands - hands} shards move though nothing happens")
        self._done = True
