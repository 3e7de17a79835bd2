"""Hosts of a cluster, each a real server in a site of its own, and all that may be done to them.

How to think about it: a `Cluster` is to a run with faults what `tests.faults.world.World` is, but that there are several servers, of which clients may ask any. It hears
the logs of all, and asks the store's register who holds what. Two things it says of what happens:

- Every epoch that a shard's process says it has taken. Each may be taken once only, by whomever.
- Every loss of memory. After a **rough** fault (a host killed, paused or cut off) jobs that live in memory only may go with any process that ends or is
  replaced. In an orderly time (a host joins, leaves, is told to move a shard) they may not: they are handed over, and one that is lost then
  breaks C1.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from proteus_shards.core.placement import shard_of, slot_of
from tests.cluster.network import Network, Site
from tests.cluster.owners import Owners
from tests.conftest import LOG_SHOWN_MAX, Server
from tests.faults.history import Recorder
from tests.faults.places import Place
from tests.faults.tail import Tail
from tests.faults.world import PLAIN, WATCH_SECONDS, audit

HTTP_PORT = 8080
GATE_PORT = 7400
SETTLE_SECONDS_MAX = 60.0  # of a machine that has other things to do
LOOK_SECONDS = 0.05
KINDS = ("shard", "front", "node")


class Host:
    """One host: up, paused or down."""

    def __init__(self, site: Site, folder: Path, program: Sequence[str], options: Sequence[str], environ: Mapping[str, str]) -> None:
        self.site = site
        self.name = site.name
        self.gate = f"{site.address}:{GATE_PORT}"
        self.folder = folder
        self.clock_path = folder / "clock"
        self.tails: list[Tail] = []
        self.paused = False
        self.leaving = False  # it was told to end, and takes no more requests
        self.server: Server | None = None
        self._program = tuple(program)
        self._options = tuple(options)
        self._environ = dict(environ) | {"PROTEUS_TEST_CLOCK": str(self.clock_path)}
        folder.mkdir()
        self.clock_path.write_text("0")

    @property
    def serves(self) -> bool:
        """Whether clients are sent here."""
        return self.server is not None and not self.paused and not self.leaving

    def start(self) -> None:
        """Start the server, and wait until it says that it serves."""
        options = ["--host", self.site.address, "--port", str(HTTP_PORT), "--insecure", "--log-format", "json", *self._options]
        with self.site.entered():
            self.server = Server(*options, cwd=self.folder, environ=self._environ, program=self._program)
        self.tails.append(Tail(self.server.log_path))
        self.paused = self.leaving = False

    def stop(self) -> int:
        """Ask it to end in order, wait, and return its exit code."""
        assert self.server is not None
        self.leaving = True
        try:
            return self.server.stop()
        finally:
            self.server = None

    def kill(self) -> None:
        """End all its processes at once."""
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        if self.server is not None:
            self.server.kill()
        self.server, self.paused = None, False

    def pause(self) -> None:
        """Stop all its processes, those that start others first."""
        self.paused = True
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let them go on."""
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)
        self.paused = False

    def processes(self) -> list[psutil.Process]:
        """Return all its processes, the supervisor first."""
        if self.server is None:
            return []
        with suppress(psutil.NoSuchProcess):
            first = psutil.Process(self.server.process.pid)
            return [first, *first.children(recursive=True)]
        return []

    def pids(self, kind: str) -> list[int]:
        """Return the processes of a kind."""
        assert kind in KINDS
        if self.server is None:
            return []
        names = (f"proteus_shards.{kind}", f"mutated {kind}")
        return sorted(
            pid
            for pid, command in self.server.children().items()
            if any(name in command for name in names) and f"{names[0]}.prepare" not in command
        )

    def hear(self) -> list[dict[str, Any]]:
        """Return what it has logged since the last time."""
        return [said for tail in self.tails for said in tail.take()]

    def log(self) -> str:
        """Return all that it has logged."""
        return "".join(f"--- {self.name}\n{tail.path.read_text(errors='replace')}" for tail in self.tails)


class Cluster:
    """Implements `tests.faults.run.Subject`. All coroutines run in the recorder's thread, which is at a site; what blocks goes to others."""

    def __init__(
        self,
        network: Network,
        place: Place,
        folder: Path,
        recorder: Recorder,
        queues: Sequence[str],
        *,
        seed: int,
        hosts: int = 3,
        shards: int = 6,
        lease_seconds: float = 2.0,
        options: Sequence[str] = (),
        program: Sequence[str] = PLAIN,
        environ: Mapping[str, str] | None = None,
        alone: bool = False,
    ) -> None:
        self.network = network
        self.place = place
        self.shards = shards
        self.lease_seconds = lease_seconds
        self.random = random.Random(seed)
        self.trouble: list[str] = []
        self.struck: Counter[str] = Counter()
        self.rough = False
        self.owners = Owners(place.direct_url, shards, alone=alone)
        self.hosts: list[Host] = []
        self.serving: dict[int, tuple[int, str]] = {}  # by shard: the newest epoch that was told of, and the name of the host that did
        self._folder = folder
        self._recorder = recorder
        self._queues = list(queues)
        self._program, self._environ = program, dict(environ or {})
        self._options = ("--shards", str(shards), "--store", place.url, *options)
        self._alone = alone
        self._killed: set[int] = set()
        self._epochs: dict[tuple[int, int], str] = {}
        assert hosts == 1 or not alone
        for _ in range(hosts):
            self.add()

    # --- what a run asks -----------------------------------------------------------------------------------------

    def where(self) -> tuple[str, int]:
        """Return a host that serves: what stands before the hosts has found out about those that do not."""
        up = [host for host in self.hosts if host.serves] or self.hosts
        return self.random.choice(up).site.address, HTTP_PORT

    def shard_of(self, queue: str) -> int:
        """Return which shard has a queue."""
        return shard_of(slot_of(queue), self.shards)

    def queues_of(self, shards: Sequence[int]) -> list[str]:
        """Return the queues of some shards."""
        return [queue for queue in self._queues if self.shard_of(queue) in shards]

    def log(self) -> str:
        """Return all that the hosts have logged."""
        return "".join(host.log() for host in self.hosts)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run all hosts, hear their logs, and end them in order, one after the other."""
        watching = asyncio.create_task(self._watch())
        try:
            await self.start(self.hosts)
            await self.wait_settled()
            yield
            await self.stop(self.up())
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching
            for host in self.hosts:
                host.kill()
            self.hear()

    async def restart(self) -> None:
        """End all hosts in order, so that none is left to hand anything to, and start them again."""
        hosts = self.up()
        await self.stop(hosts)
        await self.start(hosts)
        await self.wait_settled()
        self.note_death("cluster", "restart", self._queues)

    async def audit(self) -> None:
        """Open the store as a shard without a cluster would, once no host runs, and count what it holds."""
        await audit(self.place, self.shards, self._recorder, lambda shard, epoch: self._note_epoch("audit", shard, epoch))
        await self.owners.close()

    # --- hosts ---------------------------------------------------------------------------------------------------

    def add(self) -> Host:
        """Make one more host. It does not run yet."""
        number = len(self.hosts) + 1
        site = self.network.add(f"host-{number}")
        clustered = () if self._alone else ("--cluster", "--node-address", f"{site.address}:{GATE_PORT}")
        lease = () if self._alone else ("--lease-seconds", f"{self.lease_seconds:g}")
        host = Host(site, self._folder / site.name, self._program, (*self._options, *clustered, *lease), self._environ)
        self.hosts.append(host)
        return host

    def up(self) -> list[Host]:
        """Return the hosts that run and were not told to end."""
        return [host for host in self.hosts if host.serves]

    def pick(self) -> Host:
        """Return one of them by chance."""
        return self.random.choice(self.up())

    def named(self, name: str) -> Host:
        """Return the host of a name."""
        return next(host for host in self.hosts if host.name == name)

    async def start(self, hosts: Sequence[Host]) -> None:
        """Start some hosts, at the same time; one after the other where the store is a double that many at once are too much for."""
        for some in [[host] for host in hosts] if self.place.kind == "dynamodb" else [hosts]:
            await asyncio.gather(*(asyncio.to_thread(host.start) for host in some))

    async def stop(self, hosts: Sequence[Host]) -> None:
        """End some hosts in order, one after the other."""
        for host in hosts:
            code = await asyncio.to_thread(host.stop)
            self.hear()
            if code != 0:
                self.trouble.append(f"{host.name}: exit code {code} after SIGTERM; its log ends in {host.log()[-LOG_SHOWN_MAX:]}")

    def kill_host(self, host: Host) -> list[int]:
        """Kill a host, and return the shards that it has served."""
        had = [shard for shard, (_, name) in self.serving.items() if name == host.name]
        self._killed |= {process.pid for process in host.processes()}
        host.kill()
        self.note_death(host.name, "killed", self.queues_of(had))
        return had

    async def kill_process(self, host: Host, kind: str) -> int | None:
        """Kill one process of a kind, wait until there are as many as before, and return its pid."""
        pids = host.pids(kind)
        if not pids:
            return None
        pid = self.random.choice(pids)
        self._killed.add(pid)
        os.kill(pid, signal.SIGKILL)

        async def is_replaced() -> bool:
            return pid not in (now := host.pids(kind)) and len(now) >= len(pids)

        await self._wait(is_replaced, SETTLE_SECONDS_MAX, f"a killed {kind} of {host.name} is not replaced")
        self.hear()
        return pid

    async def order(self, what: str, body: Mapping[str, object]) -> None:
        """Ask any host for what an operator wants of the cluster. One that refuses is trouble."""
        server = self.pick().server
        assert server is not None
        answer = await asyncio.to_thread(server.request, "POST", f"/v1/cluster/{what}", body, {"content-type": "application/json"})
        if answer.status >= 300:
            self.trouble.append(f"{what} {dict(body)}: {answer.status} {answer.body[:200]!r}")

    # --- what is waited for ----------------------------------------------------------------------------------------

    async def wait_settled(self, seconds_max: float = SETTLE_SECONDS_MAX) -> None:
        """Wait until each shard is served by the host that holds it, and no running host has more than one shard more than another."""
        await self._wait(self._is_settled, seconds_max, "the cluster does not come to rest")

    async def wait_left(self, host: Host, seconds_max: float = SETTLE_SECONDS_MAX) -> None:
        """Wait until others serve all shards that a host had."""

        async def is_left() -> bool:
            return all(name != host.name for _, name in self.serving.values())

        if not self._alone:
            await self._wait(is_left, seconds_max, f"nobody takes the shards of {host.name}")

    async def wait_served_by(self, shard: int, host: Host, seconds_max: float = SETTLE_SECONDS_MAX) -> None:
        """Wait until a host serves a shard."""

        async def is_served() -> bool:
            return self.serving.get(shard, (0, ""))[1] == host.name

        await self._wait(is_served, seconds_max, f"shard {shard} does not come to {host.name}")

    async def _is_settled(self) -> bool:
        if self._alone:
            return len(self.serving) == self.shards
        held = await self.owners.look()
        if held is None:
            return False
        up = {host.gate: host.name for host in self.up()}
        if {holding.host for holding in held} - set(up):
            return False
        if any(self.serving.get(holding.shard) != (holding.epoch, up[holding.host]) for holding in held):
            return False
        shares = Counter(holding.host for holding in held)
        counts = [shares[gate] for gate in up]
        return max(counts) - min(counts) <= 1

    async def _wait(self, condition: Callable[[], Awaitable[bool]], seconds_max: float, what: str) -> None:
        deadline = time.monotonic() + seconds_max
        while not await condition():
            if time.monotonic() > deadline:
                owners = await self.owners.look()
                self.trouble.append(f"{what} within {seconds_max:g} s: {owners}, serving {self.serving}")
                return
            await asyncio.sleep(LOOK_SECONDS)

    # --- the logs ------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            self.hear()

    def hear(self) -> None:
        """Take what all logs have grown by, in the order of its times."""
        heard = [(str(said.get("time")), host, said) for host in self.hosts for said in host.hear()]
        for _, host, said in sorted(heard, key=lambda item: item[0]):
            self._take(host, said)

    def _take(self, host: Host, said: dict[str, Any]) -> None:
        process, event = str(said.get("process")), said.get("event")
        if event == "fault point":
            self.struck[str(said["point"])] += 1
        elif event in {"recovered", "store is back"} and process.startswith("shard-"):
            shard, epoch = int(process.removeprefix("shard-")), int(said["epoch"])
            if self.rough and event == "recovered":
                self.note_death(f"{host.name} {process}", "recovered", self.queues_of([shard]))
            self._note_epoch(host.name, shard, epoch)
            self.serving[shard] = max(self.serving.get(shard, (0, "")), (epoch, host.name))
        elif event == "ended" and process == "supervisor" and str(said.get("child")).startswith("shard-"):
            shard = int(str(said["child"]).removeprefix("shard-"))
            if self.serving.get(shard, (0, ""))[1] == host.name:
                del self.serving[shard]
            expected = self.rough or said.get("pid") in self._killed or not said.get("returncode")
            if self.rough or not expected:
                self.note_death(f"{host.name} shard-{shard}", f"returncode {said.get('returncode')}", self.queues_of([shard]), not expected)

    def note_death(self, target: str, detail: str, queues: Sequence[str], by_itself: bool = False) -> None:
        """Write down that what some queues had in memory only may have gone."""
        phase = "by itself" if by_itself else "killed"
        self._recorder.note("server", event="death", target=target, detail=detail, queues=list(queues), phase=phase)

    def _note_epoch(self, name: str, shard: int, epoch: int) -> None:
        """Write down an epoch. Those of one host only grow; of two hosts, one may tell later what it has taken before."""
        before = self._epochs.setdefault((shard, epoch), name)
        if before != name:
            self.trouble.append(f"epoch {epoch} of shard {shard} was taken twice, by {before} and by {name}")
        self._recorder.note("server", event="epoch", target=f"shard {shard} on {name}", server_epoch=epoch)
