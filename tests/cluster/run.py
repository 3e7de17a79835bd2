"""One run of a cluster, from an empty network to a verdict."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.cluster.hosts import Cluster
from tests.cluster.nemesis import FAULTS, STORE, possible
from tests.cluster.network import open_network
from tests.cluster.stores import open_store
from tests.faults.history import SECOND, History, Op, Recorder, Window
from tests.faults.run import REQUEST_SECONDS_MAX, Plan, Result, hurt
from tests.faults.workload import Shape
from tests.faults.world import PLAIN

CROSSED_SECONDS = 0.05
LEAVE_SHARE = 0.3  # of refusals after which a client turns to another host


class ClusterPlan(Plan, frozen=True):
    """What one run does. `alone`: one server without a cluster, which shows what the run itself is worth."""

    hosts: int = 3
    lease_seconds: float = 2.0
    alone: bool = False


def run(plan: ClusterPlan, kind: str, folder: Path, say: Callable[[str], None] | None = None) -> Result:
    """Do one run on a store of a kind. `folder` keeps its history and logs. Raises `NotHere`. The calling thread is elsewhere meanwhile."""
    with open_network() as network, open_store(kind, folder, network.add(STORE)) as place, network.add("clients").entered():
        recorder = Recorder(folder / "history.jsonl")
        names = [name for name in (plan.mutation, "clock" if plan.clock else "") if name]
        cluster = Cluster(
            network,
            place,
            folder,
            recorder,
            plan.shape.queues(),
            seed=plan.seed + 1,
            hosts=1 if plan.alone else plan.hosts,
            shards=plan.shards,
            lease_seconds=plan.lease_seconds,
            options=("--request-seconds-max", f"{REQUEST_SECONDS_MAX:g}", "--dead-letters-max", "1000000", *plan.options),
            program=("-m", "tests.faults.mutated", ",".join(names)) if names else PLAIN,
            alone=plan.alone,
        )
        faults = [FAULTS[name] for name in plan.faults] or possible(clock=plan.clock, alone=plan.alone)
        return asyncio.run(hurt(plan, place, recorder, cluster, faults, say))


def shape(jobs_per_second: float = 150.0) -> Shape:
    """Return what clients of a cluster do: queues on all shards, and another host after some refusals."""
    return Shape(mixed_queues=8, memory_queues=4, runners=1, jobs_per_second=jobs_per_second, leave_share=LEAVE_SHARE)


def takeovers(history: History) -> Iterator[tuple[str, int, float]]:
    """Yield each loss of a whole host: its name, how many queues it took along, and the seconds until the last of them took a job again."""
    persisted = {op.queue for op in history.ops if op.f == "enqueue" and op.persist}
    taken: dict[str, list[tuple[int, int]]] = {}
    for op in history.ops:
        if op.f == "enqueue" and op.type == "ok" and (op.persist or op.queue not in persisted):
            taken.setdefault(op.queue, []).append((op.s, op.e))
    for times in taken.values():
        times.sort()
    for death in history.deaths:
        name, _, how = death.detail.partition(": ")
        if how != "killed" or not death.queues:
            continue
        back = []
        for queue in death.queues:
            times = taken.get(queue, [])
            place = bisect_left(times, (death.t, 0))
            back.append(min((end for _, end in times[place:]), default=0))
        if all(back):
            yield name, len(death.queues), (max(back) - death.t) / SECOND


def failures(history: History, window: Window) -> list[Op]:
    """Return the requests sent while something orderly happened that failed for good, as far as their client could tell.

    Not among them: a refusal that says when to try again, no connection (nothing was sent), and a connection that was closed with a request just sent on it, which HTTP lets a server do
    between two answers.
    """
    found = []
    for op in history.ops:
        crossed = op.http_status == 0 and op.told - op.s < CROSSED_SECONDS * SECOND
        if window.start <= op.s <= window.stop and op.type == "unknown" and op.http_status not in {429, 503} and not crossed:
            found.append(op)
    return found


def describe(result: Result) -> list[str]:
    """Return what a reader wants to know of a cluster's run beside the common report."""
    lines = [
        f"{name} killed: its {queues} queues take jobs again after {seconds:.1f} s" for name, queues, seconds in takeovers(result.history)
    ]
    refused = sum(op.http_status in {429, 503} for op in result.history.ops)
    failed = sum(op.type == "unknown" and op.http_status not in {429, 503} for op in result.history.ops)
    return [*lines, f"{refused} requests were refused with 429 or 503, {failed} had no answer or another 5xx"]
