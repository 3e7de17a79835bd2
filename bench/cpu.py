"""Who spent how much CPU, and what that says about more cores.

The model
=========

A request costs `µs` of CPU in each kind of process, user and system time, as measured. Then, on N cores that serve nothing else (the generator is
elsewhere), with F fronts and S shards:

    requests/s  ≤  1e6 × N / Σ µs                 all cores together
    requests/s  ≤  F × 1e6 / µs of the front      no front does more than one core's work
    requests/s  ≤  S × 1e6 / µs of a shard        nor does a shard

`scaled` takes the best split of N cores into F + S (with one core, both share it). It assumes that a request costs the same with more
processes beside it. That is optimistic where memory or a disk is shared, and where load spread thinner makes smaller batches; and it knows nothing
of fsync: a durable rate is bounded by the disk as well. It says where the ceiling is, not that it is reached.
"""

from __future__ import annotations

import contextlib
from typing import Any

import psutil

from bench.engine import LoadError

GENERATOR = "generator"


class Whole(psutil.Process):  # type: ignore[misc]  # it ships no types
    """A server whose processes come and go, counted as one: what runs, and what has ended under it."""

    def cpu_times(self) -> Any:
        """Return the sums."""
        own = super().cpu_times()
        user, system = own.user + own.children_user, own.system + own.children_system
        for child in self.children():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = child.cpu_times()
                user, system = user + times.user, system + times.system
        return own._replace(user=user, system=system)


class CpuMeter:
    """CPU seconds of each process of each role, from `begin` to `spent`."""

    def __init__(self, roles: dict[str, list[psutil.Process]]) -> None:
        self._roles = roles
        self._before: dict[str, list[float]] = {}
        self.begin()

    def begin(self) -> None:
        """Count from now on."""
        self._before = self._read()

    def spent(self) -> dict[str, list[float]]:
        """Return the CPU seconds since the beginning. Raises `LoadError` where a process has ended."""
        after = self._read()
        return {role: [end - start for start, end in zip(self._before[role], after[role], strict=True)] for role in after}

    def _read(self) -> dict[str, list[float]]:
        try:
            return {role: [_cpu_seconds(process) for process in processes] for role, processes in self._roles.items()}
        except psutil.NoSuchProcess as error:
            raise LoadError("a process of the server ended while it was measured") from error


def rss_bytes(processes: list[psutil.Process]) -> int:
    """Return the resident memory of some processes."""
    return sum(process.memory_info().rss for process in processes)


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def scaled(us: dict[str, float], cores: int) -> tuple[float, int, int]:
    """Return requests/s on so many cores by the model, with the number of fronts and of shards that give it."""
    front, shard = us["front"], us["shard"]
    rest = sum(value for role, value in us.items() if role not in {"front", "shard", GENERATOR})
    total = 1e6 * cores / (front + shard + rest)
    if cores < 2:
        return total, 1, 1
    splits = [(min(total, fronts * 1e6 / front, (cores - fronts) * 1e6 / shard), fronts) for fronts in range(1, cores)]
    rate, fronts = max(splits)
    return rate, fronts, cores - fronts
