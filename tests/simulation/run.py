"""Many seeds over some processes, and what is said about one that fails.

A seed is a bug report: the first line printed is the seed, and one command replays it. A seed that fails is tried again with fewer
requests; the shortest run of it that still fails is what is traced.
"""

from __future__ import annotations

import gc
import logging
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass, field
from unittest.mock import patch

from tests.simulation.mutants import Mutant
from tests.simulation.trace import Trace
from tests.simulation.world import World

CHUNK = 50  # seeds that a process lives through at a time


@dataclass
class Tally:
    """What some seeds came to."""

    seeds: int = 0
    operations: int = 0  # commands, commits and faults
    fingerprint: int = 0  # of all answers in order: the same for the same seeds, in every process
    failed: list[int] = field(default_factory=list)
    faults: dict[str, int] = field(default_factory=dict)

    def add(self, other: Tally) -> None:
        """Add up two tallies."""
        self.seeds += other.seeds
        self.operations += other.operations
        self.fingerprint ^= other.fingerprint
        self.failed += other.failed
        for name, count in other.faults.items():
            self.faults[name] = self.faults.get(name, 0) + count


def quiet() -> None:
    """Log nothing: the product logs what a simulated store does to it."""
    logging.disable(logging.CRITICAL)


def fails(seed: int, operations: int | None = None) -> BaseException | None:
    """Live through a seed and return what was wrong, if anything."""
    try:
        World(seed, operations=operations).run()
    except Exception as error:  # noqa: BLE001  # a violation, or any error of the product's
        return error
    return None


def live_through(seeds: range) -> Tally:
    """Live through some seeds, one after another."""
    quiet()
    gc.disable()
    tally = Tally()
    for seed in seeds:
        world = World(seed)
        try:
            world.run()
        except Exception:  # noqa: BLE001  # as above
            tally.failed.append(seed)
        tally.add(Tally(1, world.operations_done(), world.oracle.fingerprint * (seed + 1) & 0xFFFFFFFFFFFFFFFF, [], world.all_faults()))
        world.forget()
    gc.enable()
    gc.collect()
    return tally


def find_nothing(seeds: range) -> Tally:
    """Live through seeds in this process, and assert that none of them fails. A failing one is replayed into the message."""
    tally = Tally()
    for first in range(seeds.start, seeds.stop, CHUNK):
        tally.add(live_through(range(first, min(first + CHUNK, seeds.stop))))
        assert not tally.failed, report(min(tally.failed))
    return tally


def chunks(first: int) -> Iterator[range]:
    """Yield seeds in chunks, without end."""
    while True:
        yield range(first, first + CHUNK)
        first += CHUNK


def run_many(first: int, jobs: int, enough: Callable[[Tally], bool]) -> Tally:
    """Live through seeds from `first` on in `jobs` processes, until it is enough or one has failed."""
    tally = Tally()
    source = chunks(first)
    with ProcessPoolExecutor(jobs) as pool:
        under_way = {pool.submit(live_through, next(source)) for _ in range(jobs + 1)}
        while under_way:
            done = next(as_completed(under_way))
            under_way.discard(done)
            tally.add(done.result())
            if not enough(tally) and not tally.failed:
                under_way.add(pool.submit(live_through, next(source)))
    return tally


def shortest(seed: int) -> int:
    """Return with about how few requests a failing seed still fails: halving what is left, then step by step."""
    world = World(seed)
    try:
        world.run()
    except Exception:  # noqa: BLE001  # as above
        most = world.oracle.count
    else:
        return 0
    best = world.operations
    for operations in (min(most, best), most / 8, most / 4, most / 2, most / 1.5, most / 1.2):
        if 0 < operations < best and fails(seed, int(operations)) is not None:
            best = int(operations)
    return best


def report(seed: int, *, shrink: bool = True, lines: int = 120) -> str:
    """Say all about one seed: its options, what was wrong, and the last things that happened."""
    quiet()
    operations = shortest(seed) if shrink else 0
    world = World(seed, operations=operations or None)
    trace = Trace(world)
    options = ", ".join(f"{name}={value}" for name, value in vars(world.plan).items() if name not in ("random", "limits", "seed"))
    text = [f"seed {seed}, {world.operations} requests: {options}"]
    try:
        count = world.run()
    except Exception as error:  # noqa: BLE001  # as above
        text += [*list(trace.lines)[-lines:], "".join(traceback.format_exception(error)), f"seed {seed} fails: {error}"]
        text.append(f"replay: python -m tests.simulation --seed {seed}" + (f" --operations {operations}" if operations else ""))
    else:
        text.append(f"seed {seed} passes: {count} requests, faults {world.all_faults()}, fingerprint {world.oracle.fingerprint:012x}")
    return "\n".join(text)


def find(mutant: Mutant, seeds: range) -> tuple[int, BaseException] | None:
    """Plant a mutant, and return the first of some seeds that finds it, with what it says."""
    with ExitStack() as planted:
        mutant(lambda owner, name, replacement: planted.enter_context(patch.object(owner, name, replacement)))
        return next(((seed, error) for seed in seeds if (error := fails(seed)) is not None), None)


def rate(tally: Tally, started: float) -> str:
    """Say what some seeds came to, and how fast."""
    seconds = max(time.monotonic() - started, 1e-9)
    faults = ", ".join(f"{name} {count}" for name, count in sorted(tally.faults.items()))
    return (
        f"{tally.seeds} seeds, {tally.operations} operations in {seconds:.1f} s: {tally.seeds / seconds * 60:.0f} seeds/min, "
        f"{tally.operations / seconds:.0f} operations/s\nfaults: {faults}\nfingerprint {tally.fingerprint:016x}"
    )
