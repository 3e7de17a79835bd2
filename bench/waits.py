"""The scenarios that measure latency."""

from __future__ import annotations

import math
from array import array

import msgspec

from bench import load
from bench.cpu import CpuMeter
from bench.jobs import balanced
from bench.load import Loaded, percentile
from bench.run import Done, Run, Sample, done_of
from bench.scenarios import enqueue
from bench.subjects import Subject
from bench.targets import Target

LOADS = (20, 50, 80)  # per cent of the measured maximum
PACED_CONNECTIONS = 256  # enough that an arrival hardly ever waits for one
PACED_RATE_MAX = 15_000.0  # of one generator process


def wake(run: Run, subject: Subject, target: Target) -> Sample:
    """Measure how long a job takes to reach a runner that waits for it: p99 in ms.

    Each of `waiters` connections has a `next` parked on a queue of its own. At a steady rate a job is enqueued to one queue after the other. The
    time counts from the moment at which the enqueue was due to the moment at which the waiter's answer was read: both requests' ways
    are in it, and any lateness of the generator. `from_accepted` counts from the enqueue's own answer; it is negative where the job came first.
    """
    options = run.options
    family = msgspec.structs.replace(run.family(subject), slots=balanced("wait", options.waiters, subject.shards))
    rate = options.wakes_per_second
    # the first turn of each waiter pays for its queue and its connection like any other
    loaded, sample = _timed(run, target, load.Wake(family, rate, options.seconds), connections=options.waiters, processes=1)
    figures = {f"{name}_p{percent}_ms": 1000 * percentile(times, percent) for name, times in loaded.times.items() for percent in (50, 99)}
    curves = {"wake": curve(loaded.times["from_due"])}
    return msgspec.structs.replace(sample, value=figures["from_due_p99_ms"], figures=figures, curves=curves)


def paced(run: Run, subject: Subject, target: Target) -> Sample:
    """Measure the latency of enqueue at fixed shares of the maximum, which is measured just before: p99 in ms at 50 %."""
    most = enqueue(run, subject, target)
    figures: dict[str, float] = {"max_rate": most.value}
    curves: dict[str, list[float]] = {}
    middle = most
    for percent in LOADS:
        rate = most.value * percent / 100
        work = load.Paced(run.family(subject), 0, rate, run.options.seconds, seed=percent)
        processes = math.ceil(rate / PACED_RATE_MAX)
        loaded, sample = _timed(run, target, work, connections=PACED_CONNECTIONS, processes=processes)
        latency = loaded.times["latency"]
        for at in (50, 90, 99, 99.9):
            figures[f"load{percent}_p{at:g}_ms"] = 1000 * percentile(latency, at)
        figures[f"load{percent}_lag_p99_ms"] = 1000 * percentile(loaded.times["lag"], 99)
        figures[f"load{percent}_rate"] = loaded.requests / loaded.seconds
        curves[f"{percent} %"] = curve(latency)
        if percent == 50:
            middle = sample
    return msgspec.structs.replace(middle, value=figures["load50_p99_ms"], figures=figures, curves=curves)


def curve(times: array[float]) -> list[float]:
    """Return percentiles 0, 1, … 99, 99.9 and 100 in ms."""
    return [1000 * percentile(times, percent) for percent in (*range(100), 99.9, 100)] if times else []


def _timed(run: Run, target: Target, work: load.Work, *, connections: int, processes: int) -> tuple[Loaded, Sample]:
    kept: list[Loaded] = []

    def act(meter: CpuMeter) -> Done:
        loaded = load.run(target.address, work, connections=connections, processes=processes, when_ready=meter.begin)
        kept.append(loaded)
        return done_of(loaded)

    sample = run.measure(target, act)
    return kept[0], sample
