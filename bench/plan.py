"""What is measured: the table of scenarios, and the cells of a run. A new scenario is one entry here.

`predicted` was written down before the first run of this harness, from trials of the parts on two cores (README.md says how
each number comes about). A result far from its prediction, either way, is a question to answer, not a number to be pleased with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from bench import costs, libraries, scenarios, waits, weights
from bench.run import FILL_SHARE, Options, Run, Sample
from bench.subjects import PEERS, STORES, Peer, Subject, ours, peer
from bench.targets import Target

FILL_PER_SECOND = 20_000  # jobs, for the estimate of a run's length only
START_SECONDS = 2.5  # to start, warm up and stop a subject, for the same

Measure = Callable[[Run, Subject, Target], Sample | list[Sample]]


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """One scenario and where it is measured."""

    measure: Measure
    unit: str
    requests: int = 1  # for each unit that is counted
    less: bool = False  # less is better
    stores: tuple[str, ...] = ()  # () is all
    all_shards: bool = False  # at each number of shards and of fronts, and not at the first alone
    quart: bool = False  # without the fast lane too
    repeats_itself: bool = False
    windows: float = 1.0  # how many times --seconds a sample takes
    fills: Callable[[Options], int] = lambda _: 0  # how many jobs are made first
    predicted: dict[str, tuple[float, float]] = {}  # by subject


SCENARIOS: dict[str, Scenario] = {
    "enqueue": Scenario(
        measure=scenarios.enqueue,
        unit="jobs/s",
        all_shards=True,
        quart=True,
        predicted={
            "memory/1": (38_000, 50_000),
            "memory/1/quart": (1_000, 1_400),
            "sqlite-full/1": (17_000, 34_000),
            "sqlite-normal/1": (20_000, 36_000),
            "postgres/1": (12_000, 24_000),
            "redis/1": (16_000, 30_000),
            "procrastinate": (1_000, 2_500),
            "rq": (1_500, 3_000),
            "uvicorn": (40_000, 50_000),
            "beanstalkd": (60_000, 100_000),
            "beanstalkd-50ms": (50_000, 81_000),
            "beanstalkd-sync": (4_000, 9_000),
        },
    ),
    "next": Scenario(
        measure=scenarios.next_job,
        unit="jobs/s",
        all_shards=True,
        quart=True,
        windows=1 + FILL_SHARE,
        predicted={"memory/1": (32_000, 45_000), "sqlite-full/1": (15_000, 30_000), "sqlite-normal/1": (17_000, 32_000)},
    ),
    "life": Scenario(
        measure=scenarios.life,
        unit="jobs/s",
        requests=4,
        all_shards=True,
        quart=True,
        predicted={
            "memory/1": (9_000, 12_000),
            "sqlite-full/1": (5_000, 8_000),
            "sqlite-normal/1": (5_500, 8_500),
            "postgres/1": (3_000, 6_000),
            "redis/1": (4_000, 7_500),
        },
    ),
    "life-checked": Scenario(measure=scenarios.life_checked, unit="jobs/s", requests=4, predicted={"memory/1": (5_000, 8_000)}),
    "batch": Scenario(
        measure=scenarios.batch,
        unit="jobs/s",
        fills=lambda options: options.batch_jobs,
        predicted={"memory/1": (300_000, 600_000), "sqlite-full/1": (120_000, 250_000)},
    ),
    "batch-enqueue": Scenario(
        measure=scenarios.batch_enqueue,
        unit="jobs/s",
        predicted={"memory/1": (100_000, 200_000), "sqlite-full/1": (60_000, 120_000)},
    ),
    "batch-complete": Scenario(
        measure=scenarios.batch_complete,
        unit="jobs/s",
        fills=lambda options: options.batch_jobs,
        predicted={"memory/1": (120_000, 250_000), "sqlite-full/1": (70_000, 150_000)},
    ),
    "loop": Scenario(
        measure=scenarios.loop,
        unit="jobs/s",
        requests=2,
        predicted={"memory/1": (15_000, 22_000), "sqlite-full/1": (7_000, 13_000)},
    ),
    "relay-life": Scenario(
        measure=scenarios.relay_life,
        unit="jobs/s",
        requests=3,
        predicted={"memory/1": (5_000, 9_000), "sqlite-full/1": (3_500, 6_500)},
    ),
    "mixed": Scenario(
        measure=scenarios.mixed, unit="jobs/s", requests=4, predicted={"memory/1": (8_000, 12_000), "sqlite-full/1": (4_500, 8_000)}
    ),
    "large": Scenario(measure=scenarios.large, unit="MB/s", requests=4, predicted={"memory/1": (150, 350), "sqlite-full/1": (60, 200)}),
    "wake": Scenario(
        measure=waits.wake,
        unit="p99 ms",
        less=True,
        predicted={"memory/1": (0.5, 3.0), "sqlite-full/1": (1.0, 5.0)},
    ),
    "paced": Scenario(
        measure=waits.paced,
        unit="p99 ms",
        less=True,
        windows=1 + len(waits.LOADS),
        predicted={"memory/1": (0.5, 5.0), "sqlite-full/1": (1.5, 8.0)},
    ),
    "backlog": Scenario(
        measure=weights.backlog,
        unit="× none",
        stores=("memory", "sqlite-full"),
        repeats_itself=True,
        windows=4 + FILL_SHARE,
        fills=lambda options: options.backlog,
        predicted={"memory/1": (0.9, 1.05), "sqlite-full/1": (0.85, 1.05)},
    ),
    "crowd": Scenario(
        measure=weights.crowd,
        unit="× none",
        stores=("memory", "sqlite-full"),
        repeats_itself=True,
        windows=3 + FILL_SHARE,
        fills=lambda options: 3 * options.backlog,
        predicted={"memory/1": (0.9, 1.05), "sqlite-full/1": (0.85, 1.05)},
    ),
    "memory": Scenario(
        measure=weights.memory,
        unit="bytes/job",
        less=True,
        stores=("memory",),
        repeats_itself=True,
        fills=lambda options: options.backlog,
        predicted={"memory/1": (380, 480)},
    ),
    "recovery": Scenario(
        measure=weights.recovery,
        unit="s/million",
        less=True,
        stores=("sqlite-full", "postgres", "redis"),
        repeats_itself=True,
        windows=0,
        fills=lambda options: options.backlog,
        predicted={"sqlite-full/1": (4, 8), "postgres/1": (5, 10), "redis/1": (4, 9)},
    ),
    "cost": Scenario(
        measure=costs.cost,
        unit="units/job",
        requests=4,
        less=True,
        stores=("dynamodb",),
        predicted={"dynamodb/1": (6, 6.5)},
    ),
}


class Cell(msgspec.Struct, frozen=True):
    """One scenario with one subject."""

    scenario: str
    subject: Subject


def cells(options: Options, only: Sequence[str] = ()) -> list[Cell]:
    """Return what a run measures, in order. Stores and peers that are missing are left out."""
    found: list[Cell] = []
    for name, scenario in SCENARIOS.items():
        if only and name not in only:
            continue
        for store in options.stores or tuple(STORES):
            if (scenario.stores and store not in scenario.stores) or STORES[store].missing():
                continue
            allowed = STORES[store].scenarios
            if allowed and name not in allowed:
                continue
            shards = options.shards if scenario.all_shards else options.shards[:1]
            fronts = options.fronts if scenario.all_shards else options.fronts[:1]
            found += [Cell(name, ours(store, count, fronts=each)) for each in fronts for count in shards]
            if scenario.quart:
                found.append(Cell(name, ours(store, options.shards[0], fast_lane=False)))
        found += [Cell(name, peer(each)) for each, entry in _peers(options).items() if name in entry.scenarios and not entry.missing()]
    return found


def measure(cell: Cell, run: Run, target: Target) -> list[Sample]:
    """Measure a cell on its subject, started and empty."""
    if cell.subject.protocol == "library":
        return [libraries.measure(cell.scenario, run, cell.subject, target)]
    taken = SCENARIOS[cell.scenario].measure(run, cell.subject, target)
    return taken if isinstance(taken, list) else [taken]


def absent(options: Options) -> dict[str, str]:
    """Return which stores and peers cannot be measured, and why."""
    entries: dict[str, Callable[[], str]] = {name: STORES[name].missing for name in options.stores or tuple(STORES)}
    entries |= {name: entry.missing for name, entry in _peers(options).items()}
    return {name: reason for name, missing in entries.items() if (reason := missing())}


def _peers(options: Options) -> dict[str, Peer]:
    return {name: entry for name, entry in PEERS.items() if options.peers is None or name in options.peers}


def estimate_seconds(options: Options, planned: Sequence[Cell]) -> float:
    """Return about how long a run takes."""
    total = 0.0
    for cell in planned:
        scenario = SCENARIOS[cell.scenario]
        each = START_SECONDS + scenario.windows * options.seconds
        fill = scenario.fills(options) / FILL_PER_SECOND
        total += options.repeat * each + (fill if scenario.repeats_itself else options.repeat * fill)
    return total
