"""What a dashboard shows of a server at one moment, worked out from the samples of its metrics. Sync and pure.

A `Reading` is all samples of one moment, those of several processes summed. Two readings make a `Point`: rates are the difference of two counters over
the time between, latencies the quantiles of what a histogram has gained meanwhile. So whoever looks needs no counters, and a page that
missed a second is wrong about nothing. None stands for what is not known: no job has started, so there is no latency.

A quantile is read off between the bounds of its bucket, as Prometheus does it: an estimate, off by the width of the bucket at worst.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import TypeAlias

import msgspec

from proteus_shards.core.commands import QueueMeasure, Sample, Statistics
from proteus_shards.front.cluster_views import ClusterShown
from proteus_shards.tally import CRASH_LOOP_MIN, METRICS, plus

SECONDS_MIN = 0.2  # between two readings, for a rate to mean anything

Value: TypeAlias = float | list[float]
Point: TypeAlias = list[float | None]
"""The numbers of one moment: the wall clock in milliseconds, then those of `SERIES`."""

RATES = {
    "enqueued": "proteus_jobs_enqueued_total",
    "started": "proteus_jobs_delivered_total",
    "completed": "proteus_jobs_completed_total",
    "retried": "proteus_jobs_retried_total",
    "died": "proteus_jobs_died_total",
    "heartbeats": "proteus_heartbeats_total",
    "requests": "proteus_http_requests_total",
    "problems": "proteus_errors_total",
}
STATES = ("waiting", "in_flight", "scheduled", "dead")
LATENCIES = {
    "start_p50": ("proteus_start_seconds", 0.5),
    "start_p99": ("proteus_start_seconds", 0.99),
    "run_p50": ("proteus_run_seconds", 0.5),
    "run_p99": ("proteus_run_seconds", 0.99),
    "commit_p50": ("proteus_commit_seconds", 0.5),
    "commit_p99": ("proteus_commit_seconds", 0.99),
}
SERIES = (*RATES, *STATES, "oldest", "lag", *LATENCIES)


class Reading:
    """All samples of one moment. `at` is the wall clock in seconds; `looked` says whether queues were looked at, which tells how old jobs are."""

    def __init__(self, samples: Iterable[Sample], at: float, *, looked: bool = True) -> None:
        self.at = at
        self.looked = looked
        self._rows: dict[str, dict[tuple[str, ...], Value]] = {}
        for name, labels, value in samples:
            rows = self._rows.setdefault(name, {})
            key = tuple(labels)
            rows[key] = plus(value, rows[key]) if key in rows else value

    def rows(self, name: str) -> Mapping[tuple[str, ...], Value]:
        """Return the samples of one metric by the values of their labels."""
        return self._rows.get(name, {})

    def number(self, name: str, *labels: str) -> float:
        """Return one sample; 0 where there is none."""
        value = self.rows(name).get(labels, 0.0)
        assert not isinstance(value, list)
        return value

    def total(self, name: str) -> float:
        """Return the sum of a counter or gauge over all its labels."""
        return sum(value for value in self.rows(name).values() if not isinstance(value, list))

    def most(self, name: str) -> float:
        """Return the largest of a gauge."""
        return max((value for value in self.rows(name).values() if not isinstance(value, list)), default=0.0)


def point_of(before: Reading, now: Reading) -> Point | None:
    """Return the point between two readings; None where they are too near to each other."""
    seconds = now.at - before.at
    if seconds < SECONDS_MIN:
        return None
    point: Point = [round(now.at * 1000)]
    point += [_short(_gain(before, now, name) / seconds) for name in RATES.values()]
    jobs = dict.fromkeys(STATES, 0.0)
    for (_, state), count in now.rows("proteus_jobs").items():
        assert not isinstance(count, list)
        jobs[state] = jobs.get(state, 0.0) + count
    point += [jobs[state] for state in STATES]
    point.append(_short(now.most("proteus_oldest_waiting_seconds")) if now.looked else None)
    point.append(_short(now.most("proteus_event_loop_lag_seconds")))
    point += [_quantile_between(before, now, name, share) for name, share in LATENCIES.values()]
    return point


class ShardVitals(msgspec.Struct, frozen=True, kw_only=True):
    """One shard as the dashboard shows it. What it has said of itself once, and never will again while it is away, is kept."""

    shard: int
    state: str  # "up", "away", "store away" or "crash loop"
    restarts: int
    crashes: int  # in a row, each soon after its start
    epoch: int | None
    store: str
    durability: str
    terms: str
    damaged: int
    recovery_seconds: float | None
    queues: int
    waiting: int
    in_flight: int
    scheduled: int
    dead: int
    polls: int
    pending: int
    bytes: int
    enqueued: float | None
    completed: float | None
    oldest: float | None
    commit_p99: float | None
    cpu: float | None  # cores
    rss: int
    lag: float


class ProcessVitals(msgspec.Struct, frozen=True, kw_only=True):
    """One process that is no shard."""

    process: str
    restarts: int
    cpu: float | None
    rss: int
    lag: float


class Frame(msgspec.Struct, frozen=True, kw_only=True):
    """All that a viewer is told at one moment."""

    point: Point | None
    shards: list[ShardVitals]
    processes: list[ProcessVitals]
    deepest: list[QueueMeasure]
    queues: int
    viewers: int
    cluster: ClusterShown | None = None


def shard_vitals(shard: int, said: Statistics | None, before: Reading, now: Reading, *, connected: bool) -> ShardVitals:
    """Return how a shard is. `said` is what it told when a front last connected to it."""
    name, process = str(shard), f"shard-{shard}"
    store_away = bool(now.number("proteus_store_away", name))
    up = bool(now.number("proteus_shard_up", name)) and connected
    state = "up" if up and not store_away else "store away" if up else "away"
    crashes = int(now.number("proteus_process_crashes", process))
    if crashes >= CRASH_LOOP_MIN:
        state = "crash loop"

    def count(metric: str, *labels: str) -> int:
        return int(now.number(metric, name, *labels))

    return ShardVitals(
        shard=shard,
        state=state,
        restarts=int(now.number("proteus_process_restarts_total", process)),
        crashes=crashes,
        epoch=said.epoch if said is not None else None,
        store=said.store if said is not None else "",
        durability=said.durability if said is not None else "",
        terms=said.terms if said is not None else "",
        damaged=count("proteus_damaged_rows"),
        recovery_seconds=_short(now.number("proteus_recovery_seconds", name)),
        queues=count("proteus_queues"),
        waiting=count("proteus_jobs", "waiting"),
        in_flight=count("proteus_jobs", "in_flight"),
        scheduled=count("proteus_jobs", "scheduled"),
        dead=count("proteus_jobs", "dead"),
        polls=count("proteus_polls"),
        pending=count("proteus_pending_operations"),
        bytes=count("proteus_payload_bytes"),
        enqueued=_rate(before, now, "proteus_jobs_enqueued_total", name),
        completed=_rate(before, now, "proteus_jobs_completed_total", name),
        oldest=_short(now.number("proteus_oldest_waiting_seconds", name)),
        commit_p99=_quantile_between(before, now, "proteus_commit_seconds", 0.99, name),
        cpu=_rate(before, now, "proteus_process_cpu_seconds_total", process),
        rss=int(now.number("proteus_process_resident_bytes", process)),
        lag=_short(now.number("proteus_event_loop_lag_seconds", process)),
    )


def process_vitals(process: str, before: Reading, now: Reading) -> ProcessVitals:
    """Return how a process is."""
    return ProcessVitals(
        process=process,
        restarts=int(now.number("proteus_process_restarts_total", process)),
        cpu=_rate(before, now, "proteus_process_cpu_seconds_total", process),
        rss=int(now.number("proteus_process_resident_bytes", process)),
        lag=_short(now.number("proteus_event_loop_lag_seconds", process)),
    )


def quantile(bounds: Sequence[float], counts: Sequence[float], share: float) -> float | None:
    """Return the value below which a share of what was counted lies. `counts` has one more place than `bounds`, for what is above them all."""
    wanted = share * sum(counts)
    if not wanted:
        return None
    for place, reached in enumerate(accumulate(counts)):
        if reached >= wanted and counts[place]:
            if place >= len(bounds):
                break
            low = bounds[place - 1] if place else 0.0
            return low + (bounds[place] - low) * (1 - (reached - wanted) / counts[place])
    return bounds[-1]


def _quantile_between(before: Reading, now: Reading, name: str, share: float, *labels: str) -> float | None:
    known = before.rows(name)
    counts: list[float] = []
    for key, last in now.rows(name).items():
        first = known.get(key)
        if isinstance(last, list) and isinstance(first, list) and (not labels or key == labels):
            gained = [max(0.0, b - a) for a, b in zip(first, last, strict=True)]
            counts = [a + b for a, b in zip(counts, gained, strict=True)] if counts else gained
    found = quantile(METRICS[name].bounds, counts[:-1], share) if counts else None
    return None if found is None else _short(found)


def _gain(before: Reading, now: Reading, name: str) -> float:
    """Return what a counter has gained over all its labels. A shard that was not here before has come with counts of earlier."""
    known = before.rows(name)
    comes = METRICS[name].labels[0] == "shard"
    return sum(
        max(0.0, value - before.number(name, *key))
        for key, value in now.rows(name).items()
        if not isinstance(value, list) and (key in known or not comes)
    )


def _rate(before: Reading, now: Reading, name: str, *labels: str) -> float | None:
    seconds = now.at - before.at
    if seconds < SECONDS_MIN or labels not in before.rows(name):
        return None
    return _short(max(0.0, now.number(name, *labels) - before.number(name, *labels)) / seconds)


def _short(value: float) -> float:
    """Return a number with four digits that count: nobody sees more of it in a plot."""
    return float(f"{value:.4g}")
