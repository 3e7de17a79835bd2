"""The bars: what the server should reach, as ratios within one run wherever possible. None is an assertion of a test.

They are meant for two cores with wrk on the same machine. Each is an expression over the medians of one run; what it needs and this
run has not measured makes it "not measured", never "met".
"""

from __future__ import annotations

import operator
from collections.abc import Callable

import msgspec

from bench.results import NotMeasured, Results

_COMPARE: dict[str, Callable[[float, float], bool]] = {"≥": operator.ge, "≤": operator.le, "<": operator.lt}


class Bar(msgspec.Struct, frozen=True):
    """One bar."""

    name: str
    measure: Callable[[Results], float]
    sign: str
    wanted: float
    unit: str = ""


class Verdict(msgspec.Struct, frozen=True):
    """A bar after a run. `measured` is None, and `met` too, where the run cannot tell; `note` says why."""

    name: str
    measured: float | None
    sign: str
    wanted: float
    unit: str
    met: bool | None
    note: str = ""


def _quotient(scenario: str, subject: str, other: str) -> Callable[[Results], float]:
    return lambda found: found.value(scenario, subject) / found.value(scenario, other)


def _value(scenario: str, subject: str, figure: str | None = None) -> Callable[[Results], float]:
    return lambda found: found.value(scenario, subject, figure)


BARS: tuple[Bar, ...] = (
    Bar("enqueue, memory: fast lane to Quart on Hypercorn", _quotient("enqueue", "memory/1", "memory/1/quart"), "≥", 25, "×"),
    Bar("enqueue, memory: to bare uvicorn", _quotient("enqueue", "memory/1", "uvicorn"), "≥", 0.8, "×"),
    Bar("enqueue, SQLite FULL: to memory", _quotient("enqueue", "sqlite-full/1", "memory/1"), "≥", 0.45, "×"),
    Bar("enqueue, SQLite FULL: to beanstalkd -f 0", _quotient("enqueue", "sqlite-full/1", "beanstalkd-sync"), "≥", 2, "×"),
    Bar("enqueue, Postgres: to memory", _quotient("enqueue", "postgres/1", "memory/1"), "≥", 0.5, "×"),
    Bar("enqueue, Postgres: to procrastinate", _quotient("enqueue", "postgres/1", "procrastinate"), "≥", 8, "×"),
    Bar("enqueue, Redis appendfsync always: to memory", _quotient("enqueue", "redis/1", "memory/1"), "≥", 0.6, "×"),
    Bar("enqueue, Redis appendfsync always: to rq", _quotient("enqueue", "redis/1", "rq"), "≥", 8, "×"),
    Bar("full life, memory", _value("life", "memory/1"), "≥", 9_000, "jobs/s"),
    Bar("batch of 100, memory", _value("batch", "memory/1"), "≥", 300_000, "jobs/s"),
    Bar("batch of 100, SQLite FULL", _value("batch", "sqlite-full/1"), "≥", 120_000, "jobs/s"),
    Bar("arrays of 100 enqueued, memory", _value("batch-enqueue", "memory/1"), "≥", 100_000, "jobs/s"),
    Bar("arrays of 100 enqueued, SQLite FULL", _value("batch-enqueue", "sqlite-full/1"), "≥", 60_000, "jobs/s"),
    Bar(
        "a runner's loop, memory: to full life",
        lambda found: found.value("loop", "memory/1") / found.value("life", "memory/1"),
        "≥",
        1.5,
        "×",
    ),
    Bar("arrays of 100 enqueued, Postgres", _value("batch-enqueue", "postgres/1"), "≥", 60_000, "jobs/s"),
    Bar("arrays of 100 enqueued, Redis", _value("batch-enqueue", "redis/1"), "≥", 60_000, "jobs/s"),
    Bar("long-poll wake-up p99, memory", _value("wake", "memory/1"), "<", 5, "ms"),
    Bar("p99 at 50 % load, SQLite FULL", _value("paced", "sqlite-full/1", "load50_p99_ms"), "<", 10, "ms"),
    Bar("memory per queued job beside its payload", _value("memory", "memory/1"), "≤", 500, "bytes"),
    Bar("recovery of a million persisted jobs", _value("recovery", "sqlite-full/1"), "<", 10, "s"),
    Bar("enqueue with a backlog, memory: to none", _value("backlog", "memory/1", "enqueue_ratio"), "≥", 0.85, "×"),
    Bar("next with a backlog, memory: to none", _value("backlog", "memory/1", "next_ratio"), "≥", 0.85, "×"),
    Bar("enqueue with a backlog, SQLite FULL: to none", _value("backlog", "sqlite-full/1", "enqueue_ratio"), "≥", 0.85, "×"),
    Bar("next with a backlog, SQLite FULL: to none", _value("backlog", "sqlite-full/1", "next_ratio"), "≥", 0.85, "×"),
)


def verdicts(results: Results) -> list[Verdict]:
    """Hold all bars against a run."""
    return [_verdict(bar, results) for bar in BARS]


def _verdict(bar: Bar, results: Results) -> Verdict:
    try:
        measured = bar.measure(results)
    except NotMeasured as reason:
        return Verdict(bar.name, None, bar.sign, bar.wanted, bar.unit, None, str(reason))
    return Verdict(bar.name, measured, bar.sign, bar.wanted, bar.unit, _COMPARE[bar.sign](measured, bar.wanted))
