"""`python -m bench.cluster`: one host with and without a cluster, two and three hosts, and the model of many.

    python -m bench.cluster --store postgres --seconds 2 --rounds 3
    python -m bench.cluster --store redis --hosts 1,2

Everything runs on this machine: hosts on ports of loopback, their store, and the generator. So more hosts do not give more here; what they cost does show, and
the model is asked to predict that (`fleet.shared`): the rate with N hosts over that with one, from what a request costs in each process. A round measures each
subject once, by turns. The load is whole lives of persisted jobs, checked, on the own generator: four requests a job.

- `alone`: one server without a cluster. `cluster/1`: the same with `--cluster`.
- `cluster/N own`: each host is asked for queues that it has. `cluster/N others`: only for queues that others have.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
import psutil

from bench import fleet, load
from bench.backings import Backing, Postgres, Redis
from bench.cpu import CpuMeter
from bench.engine import LoadError
from bench.jobs import Family, balanced
from bench.targets import Proteus

BACKINGS: dict[str, type[Backing]] = {"postgres": Postgres, "redis": Redis}
CONNECTIONS = 32
PAYLOAD_BYTES = 110
SETTLE_SECONDS_MAX = 60.0
IDLE_SECONDS = 3.0


class Host(Proteus):
    """One server on a backing that it shares with others. Without an address it is alone."""

    def __init__(self, folder: Path, shards: int, backing: Backing, address: str = "") -> None:
        super().__init__(folder, "", shards, fast_lane=True, backing=backing)
        if address:
            self._options += ["--cluster", "--node-address", address]

    def stop(self) -> None:
        backing, self.backing = self.backing, None  # it stays for the other hosts
        try:
            super().stop()
        finally:
            self.backing = backing

    def roles(self) -> dict[str, list[psutil.Process]]:
        return {role: found for role, found in super().roles().items() if self.backing is None or role != self.backing.role}

    def role_of(self, command: list[str]) -> str:
        return "node" if "proteus_shards.node" in command else super().role_of(command)

    def newest(self) -> dict[int, int]:
        """Return the newest epoch that a process of this host has taken, by shard."""
        return {int(record["process"].removeprefix("shard-")): record["epoch"] for record in self.events("recovered")}


class Sample(msgspec.Struct, frozen=True):
    """One measurement: jobs a second, and µs of CPU for each request by role."""

    rate: float
    us: dict[str, float]


@contextmanager
def opened(kind: str, folder: Path, hosts: int, shards: int, *, clustered: bool) -> Iterator[tuple[list[Host], Backing]]:
    """Start a store and hosts on it, and stop them."""
    with ExitStack() as stack:
        folder.mkdir()
        backing = BACKINGS[kind](folder)
        stack.callback(backing.stop)
        backing.start()
        started = []
        for number in range(hosts):
            own = folder / f"host-{number}"
            own.mkdir()
            host = Host(own, shards, backing, f"127.0.0.1:{_free_port()}" if clustered else "")
            stack.callback(host.stop)
            host.start()
            started.append(host)
        _wait_spread(started, shards)
        yield started, backing


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


def owners(hosts: Sequence[Host]) -> dict[int, int]:
    """Return which host serves each shard, as the logs say."""
    newest: dict[int, tuple[int, int]] = {}
    for number, host in enumerate(hosts):
        for shard, epoch in host.newest().items():
            newest[shard] = max(newest.get(shard, (0, 0)), (epoch, number))
    return {shard: number for shard, (_, number) in newest.items()}


def _wait_spread(hosts: Sequence[Host], shards: int) -> None:
    deadline = time.monotonic() + SETTLE_SECONDS_MAX
    while True:
        found = list(owners(hosts).values())
        counts = [found.count(number) for number in range(len(hosts))]
        if sum(counts) == shards and max(counts) - min(counts) <= 1:
            return
        if time.monotonic() > deadline:
            raise LoadError(f"the shards are not spread: {counts}")
        time.sleep(0.1)


def measure(hosts: Sequence[Host], backing: Backing, shards: int, seconds: float, tag: str, *, others: bool = False) -> Sample:
    """Lead jobs through their lives at all hosts at once: through queues that each has, or only through those that it has not."""
    owner = owners(hosts)
    mine: list[list[str]] = []
    each = CONNECTIONS // len(hosts)
    for number in range(len(hosts)):
        wanted = {shard for shard in range(shards) if (owner[shard] == number) != others or len(hosts) == 1}
        names = balanced(f"{tag}{number}-", each * shards, shards)
        mine.append([name for place, name in enumerate(names) if place % shards in wanted][:each])
    meter = CpuMeter(
        {f"{role} {number}": found for number, host in enumerate(hosts) for role, found in host.roles().items()} | backing.roles()
    )
    with ThreadPoolExecutor(len(hosts)) as pool:
        works = [
            pool.submit(
                load.run,
                host.address,
                load.Life(Family(f"{tag}{number}-", mine[number], True, PAYLOAD_BYTES), seconds, depth=0),
                connections=len(mine[number]),
            )
            for number, host in enumerate(hosts)
        ]
        done = [work.result() for work in works]
    spent = meter.spent()
    for loaded in done:
        if loaded.errors or not loaded.requests:
            raise LoadError(loaded.first_error or "nothing was answered")
    requests = sum(loaded.requests for loaded in done)
    us: dict[str, float] = {}
    for name, cpu_seconds in spent.items():
        role = "store" if name == backing.role else name.partition(" ")[0]
        us[role] = us.get(role, 0.0) + 1e6 * sum(cpu_seconds) / requests
    us["generator"] = 1e6 * sum(loaded.cpu_seconds for loaded in done) / requests
    return Sample(sum(loaded.jobs_per_second for loaded in done), us)


def idle(backing: Backing) -> float:
    """Return what the store does in a second while nobody asks for anything, in µs."""
    meter = CpuMeter(backing.roles())
    began = time.monotonic()
    time.sleep(IDLE_SECONDS)
    return 1e6 * sum(sum(each) for each in meter.spent().values()) / (time.monotonic() - began)


def costs_of(own: Sample, others: Sample, standing: float, rows: int) -> fleet.Costs:
    """Return what requests cost, from two hosts that were asked for their own queues and for each other's."""
    return fleet.Costs(
        front=own.us["front"],
        shard=own.us["shard"],
        store=own.us["store"],
        onward=max(0.0, others.us["front"] - own.us["front"]),
        gate=max(0.0, others.us["node"] - own.us["node"]),
        standing=standing,
        rows=rows,
    )


def medians(samples: Sequence[Sample]) -> Sample:
    """Return the medians of some samples."""
    roles = {role for sample in samples for role in sample.us}
    return Sample(
        statistics.median(sample.rate for sample in samples),
        {role: statistics.median(sample.us.get(role, 0.0) for sample in samples) for role in sorted(roles)},
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print what came of it."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.cluster", description="A cluster's hosts, measured and extrapolated.", allow_abbrev=False
    )
    parser.add_argument("--store", default="postgres", choices=sorted(BACKINGS))
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a sample [default: 2]")
    parser.add_argument("--rounds", type=int, default=3, help="of which the medians are taken [default: 3]")
    parser.add_argument("--hosts", default="1,2,3", help="numbers of hosts [default: 1,2,3]; the model needs 2")
    parser.add_argument("--out", type=Path, default=None, help="write the samples to this file, too")
    given = parser.parse_args(argv)
    counts = [int(part) for part in given.hosts.split(",")]
    samples: dict[str, list[Sample]] = {}
    standing: list[float] = []  # for one of two hosts, and less for none
    with tempfile.TemporaryDirectory(prefix="proteus-bench-", ignore_cleanup_errors=True) as folder:
        for turn in range(given.rounds):
            plan = [("alone", 1)] + [("cluster", count) for count in counts]
            for place, (name, count) in enumerate(plan if turn % 2 == 0 else reversed(plan)):
                shards = max(2, count)
                with opened(given.store, Path(folder) / f"{turn}-{place}", count, shards, clustered=name != "alone") as (hosts, backing):
                    for others in (False, True) if count > 1 else (False,):
                        told = name if name == "alone" else f"{name}/{count}" + (" others" if others else " own" if count > 1 else "")
                        measure(hosts, backing, shards, given.seconds / 4, "warm-others-" if others else "warm-", others=others)
                        sample = measure(hosts, backing, shards, given.seconds, "others-" if others else "own-", others=others)
                        samples.setdefault(told, []).append(sample)
                        print(f"round {turn + 1}/{given.rounds} {told}: {sample.rate:,.0f} jobs/s", file=sys.stderr, flush=True)
                    if (name, count) == ("alone", 1) and 2 in counts:
                        standing.append(-idle(backing) / 2)
                    if (name, count) == ("cluster", 2):
                        standing.append(idle(backing) / 2)
    found = {name: medians(each) for name, each in samples.items()}
    print("\n".join(report(given.store, found, max(0.0, sum(standing) / given.rounds))))
    if given.out is not None:
        given.out.write_text(json.dumps({name: msgspec.to_builtins(each) for name, each in samples.items()}, indent=1))
    return 0


def report(store: str, found: dict[str, Sample], standing: float) -> list[str]:
    """Return what a reader is told."""
    roles = ("front", "shard", "node", "store", "generator")
    lines = [
        f"{store}, lives of persisted jobs, 4 requests each; µs of CPU a request",
        f"{'subject':<18} {'jobs/s':>8} {'× alone':>8} " + " ".join(f"{role:>9}" for role in roles),
    ]
    for name, sample in found.items():
        numbers = " ".join(f"{sample.us.get(role, 0.0):>9.1f}" for role in roles)
        lines.append(f"{name:<18} {sample.rate:>8,.0f} {sample.rate / found['alone'].rate:>8.2f} {numbers}")
    if "cluster/2 own" not in found:
        return lines
    costs = costs_of(found["cluster/2 own"], found["cluster/2 others"], standing, 4)
    lines += [
        "",
        f"what the model starts from: {', '.join(f'{name} {value:.1f}' for name, value in msgspec.structs.asdict(costs).items())}",
    ]
    base = found["cluster/2 own"]
    for name, sample in found.items():
        if name.startswith("cluster/") and " " in name and name != "cluster/2 own":
            share = 1.0 if name.endswith("others") else 0.0
            predicted = fleet.shared(costs, 0.0, base.us["generator"]) / fleet.shared(costs, share, sample.us["generator"])
            lines.append(f"{name}: {sample.rate / base.rate:.2f} × cluster/2 own; the model says {predicted:.2f}")
    kinds = [each for each in fleet.STORES if each.kind in {store, "dynamodb"}]
    return [*lines, "", *fleet.table(costs, kinds)]


if __name__ == "__main__":
    sys.exit(main())
