"""One simulated host: a steward with its clock, the calls that its node makes, and the processes of its shards.

It does what the node process and the supervisor do, without their sockets: one call of the register at a time, given up after a while though it may
still be on its way; processes started and stopped as the steward says; luggage written at an orderly end, kept for a while, and fetched by the next host. All its time
is its own clock's, which may run fast or slow, and while it is paused nothing of it runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from proteus_shards.cluster.model import NOBODY, Claim
from proteus_shards.cluster.steps import Call, Hand, Over, Rest, Run
from proteus_shards.cluster.steward import Steward
from tests.simulation.cluster_plan import SECOND
from tests.simulation.disk import Violation
from tests.simulation.loop import Timer

if TYPE_CHECKING:
    from tests.simulation.cluster_world import ClusterWorld

HANDOVER_SECONDS_MAX = 10.0
LEAVE_SECONDS_MAX = 60.0  # of the server's drain: then it is killed
RETRY_SECONDS = 0.3


@dataclass(eq=False)
class Process:
    """The process of one shard, and those that take its place after a crash."""

    claim: Claim
    memory: str  # what it has in memory only, told by a token
    epoch: int | None = None  # None: it has not opened its rows
    serves: bool = False
    stopping: bool = False
    asking: bool = False  # one call of the store is under way
    ended: bool = False
    rows: int = 0
    number: int = 0  # of the process
    born: int = 0  # µs


@dataclass(eq=False)
class SimHost:
    """Lives from a start of the server to its end."""

    world: ClusterWorld
    address: str
    boot: str
    rate: float
    processes: dict[int, Process] = field(default_factory=dict)
    starting: set[int] = field(default_factory=set)
    luggage: dict[tuple[int, int], str] = field(default_factory=dict)
    dead: bool = False
    paused: bool = False
    leaving: bool = False
    left: bool = False
    cut: bool = False  # from the store
    busy: bool = False
    node: int = 0  # how often the node process was started
    _shift: int = 0  # of its clock, in µs
    _deferred: list[Callable[[], object]] = field(default_factory=list)
    _wake: Timer | None = None
    _told_until: float = -math.inf  # until when the supervisor was told, by a node process before this one, that there is a lease

    def __post_init__(self) -> None:
        self.born = self._t0 = self.world.loop.now
        self.steward = self._steward()
        self.after(0, self.pump)

    # --- time ----------------------------------------------------------------------------------------------------

    def now(self) -> float:
        """Return its monotonic time in seconds."""
        return 1000.0 + ((self.world.loop.now - self._t0) * self.rate + self._shift) / SECOND

    def after(self, seconds: float, act: Callable[..., object], *args: Any) -> Timer:
        """Do something after a time on its own clock, if it is still there and goes on."""

        def due() -> None:
            if self.dead:
                return
            if self.paused:
                self._deferred.append(due)
            else:
                act(*args)

        return self.world.loop.after(max(0, round(seconds / self.rate * SECOND)), due)

    def pause(self) -> None:
        """Stop everything."""
        self.paused = True

    def resume(self) -> None:
        """Let everything go on: what came due meanwhile comes now."""
        self.paused = False
        deferred, self._deferred = self._deferred, []
        for due in deferred:
            due()

    def jump(self, seconds: float) -> None:
        """Set its clock forward."""
        self._shift += round(seconds * SECOND)
        self.after(0, self.pump)

    def suspend(self, seconds: float) -> None:
        """Keep its clock from counting a time that has passed."""
        self._shift -= round(seconds * SECOND * self.rate)

    # --- the node ------------------------------------------------------------------------------------------------

    def restart_node(self) -> None:
        """Start the node process anew: it knows only what runs."""
        self.node += 1
        self.busy = False
        self._told_until = max(self._told_until, self.steward.lease_until)
        self.steward = self._steward()
        if self.leaving:
            self.steward.leave()
        self.after(0.05, self.pump)

    def _steward(self) -> Steward:
        running = [process.claim for process in self.processes.values()]
        return Steward(self.address, self.boot, "1", self.world.plan.lease_seconds, HANDOVER_SECONDS_MAX, running)

    def pump(self) -> None:
        """Ask what comes next, and do it."""
        if self.left or self.dead:
            return
        wake = math.inf
        if not self.busy:
            step = self.steward.step(self.now())
            match step:
                case Over(replaced):
                    self.left = True
                    self.world.tell(f"{self} is over{', replaced' if replaced else ''}")
                case Rest(until):
                    wake = until
                case _:
                    self._ask(step)
        self.manage()
        wake = min([wake, *(until for until in (self.steward.lease_until, self._told_until) if until > self.now())])
        if self._wake is not None:
            self._wake.cancel()
        if wake < math.inf:
            self._wake = self.after(max(0.0005, wake - self.now()), self.pump)

    def _ask(self, call: Call) -> None:
        self.busy = True
        node, sent_at = self.node, self.now()
        if isinstance(call, Hand):
            self.world.check_handing(self, call)

        def told(answer: Any) -> None:
            if self.dead or node != self.node or not self.busy:
                return
            self.busy = False
            self.steward.told(call, answer, sent_at, self.now())
            if isinstance(call, Hand) and answer and call.host not in {self.address, NOBODY}:
                self.world.nudge(self, call)
            self.pump()

        self.world.call(self, lambda: self.world.take(self, call), told)

    def manage(self) -> None:
        """Start and stop processes as the steward says."""
        runs = self.steward.runs(self.now())
        if runs is None and self.now() < self._told_until:
            return
        runs = runs or ()
        wanted = {run.claim.shard: run for run in runs}
        for shard, process in list(self.processes.items()):
            if shard not in wanted or wanted[shard].claim != process.claim:
                self._stop(process)
        for shard, run in wanted.items():
            if shard not in self.processes and shard not in self.starting:
                self._fetch(run, list(run.sources))

    def _fetch(self, run: Run, sources: list[str], memory: str = "") -> None:
        """Look for luggage, and start the process."""
        shard = run.claim.shard
        self.starting.add(shard)
        memory = memory or self.luggage.pop((shard, run.claim.turn + 1), "")  # its own: it was stopped for a move that was given up
        if memory or not sources:
            self.starting.discard(shard)
            runs = self.steward.runs(self.now())
            if runs is not None and any(other.claim == run.claim for other in runs):
                self._start(run.claim, memory or self.world.token())
            elif memory:
                self.luggage[shard, run.claim.turn] = memory
            return
        self.world.fetch(self, sources[0], shard, run.claim.turn, lambda found: self._fetch(run, sources[1:], found or ""))

    # --- processes -----------------------------------------------------------------------------------------------

    def _start(self, claim: Claim, memory: str) -> None:
        self.steward.listed(claim)
        process = Process(claim, memory, born=self.world.loop.now)
        self.processes[claim.shard] = process
        self.world.check_start(self, claim)
        self.world.tell(f"{self} starts shard {claim.shard} for turn {claim.turn}")
        self.after(self.world.plan.start_seconds, self._open, process, 0)

    def _open(self, process: Process, number: int) -> None:
        if process.ended or process.stopping or number != process.number:
            return

        def told(answer: Any) -> None:
            if self.dead or process.ended or number != process.number:
                return
            if answer is None:
                self.after(RETRY_SECONDS, self._open, process, number)
            elif answer == 0:
                self._end(process, fenced=True)
            else:
                process.epoch, process.serves = answer, True
                self.world.note_load(self, process)
                self.after(self.world.plan.commit_seconds, self._commit, process, number)

        self.world.call(self, lambda: self.world.open(self, process.claim), told)

    def _commit(self, process: Process, number: int) -> None:
        if process.ended or number != process.number or not process.serves:
            return
        process.rows += 1
        epoch = process.epoch
        assert epoch is not None
        row = f"{self}/{process.claim.turn}/{epoch}/{process.rows}"

        def told(answer: Any) -> None:
            if self.dead or process.ended or number != process.number:
                return
            if answer is None:  # nobody knows: take a new epoch, which settles it, and read back
                process.serves = False
                self._open(process, number)
            elif answer is False:
                self._end(process, fenced=True)
            else:
                self.world.note_kept(process.claim.shard, row)
                self.after(self.world.plan.commit_seconds, self._commit, process, number)

        self.world.call(self, lambda: self.world.commit(self, process.claim.shard, epoch, row), told)

    def _stop(self, process: Process) -> None:
        if not process.stopping:
            process.stopping = True
            self.after(self.world.plan.stop_seconds * self.world.plan.random.random(), self._drained, process)

    def _drained(self, process: Process) -> None:
        if not process.ended:
            key = (process.claim.shard, process.claim.turn + 1)
            self.luggage[key] = process.memory
            self.after(HANDOVER_SECONDS_MAX, self.luggage.pop, key, None)
            self._end(process)

    def _end(self, process: Process, *, fenced: bool = False) -> None:
        process.ended, process.serves = True, False
        del self.processes[process.claim.shard]
        self.world.tell(f"{self} ends shard {process.claim.shard} of turn {process.claim.turn}{', fenced' if fenced else ''}")
        self.steward.ended(process.claim, fenced=fenced)
        self.pump()

    def crash_shard(self) -> None:
        """End a shard's process: its supervisor starts another under the same claim."""
        if self.processes:
            process = self.world.plan.pick(sorted(self.processes.values(), key=lambda process: process.claim.shard))
            process.number += 1
            process.serves, process.memory = False, self.world.token()
            self.after(0.1 + self.world.plan.start_seconds, self._open, process, process.number)

    def leave(self) -> None:
        """End in order, within the time that there is."""
        self.leaving = True
        self.steward.leave()
        self.after(0, self.pump)
        self.after(LEAVE_SECONDS_MAX, self._give_up_leaving)

    def _give_up_leaving(self) -> None:
        if not self.left and self.world.plan.calm:
            raise Violation(f"{self} could not leave in {LEAVE_SECONDS_MAX:g} s though nothing failed")
        self.world.kill(self)

    def __str__(self) -> str:
        return f"{self.address}.{self.boot}"
