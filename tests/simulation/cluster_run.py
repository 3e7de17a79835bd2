"""Seeds of the cluster's simulation: as many as one likes, one of them told in full, or the first that finds a planted mistake."""

from __future__ import annotations

import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from unittest.mock import patch

from tests.simulation.cluster_world import ClusterWorld
from tests.simulation.planting import Mutant


@dataclass
class ClusterTally:
    """What some seeds came to."""

    seeds: int = 0
    calls: int = 0
    fingerprint: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    failed: list[int] = field(default_factory=list)

    def text(self, seconds: float) -> str:
        """Say so in a line or two."""
        faults = ", ".join(f"{name} {count}" for name, count in sorted(self.faults.items()))
        return f"{self.seeds} seeds, {self.calls} calls of the store in {seconds:.1f} s\n{faults}\nfingerprint {self.fingerprint:012x}"


def fails(seed: int) -> BaseException | None:
    """Live through a seed and return what was wrong, if anything."""
    try:
        ClusterWorld(seed).run()
    except Exception as error:  # noqa: BLE001  # a violation, or any error of the product's
        return error
    return None


def live_through(seeds: Iterable[int], enough: Callable[[ClusterTally], bool] = lambda _tally: False) -> ClusterTally:
    """Live through seeds until it is enough, they are over, or one has failed."""
    tally = ClusterTally()
    for seed in seeds:
        if tally.failed or enough(tally):
            break
        world = ClusterWorld(seed)
        try:
            world.run()
        except Exception:  # noqa: BLE001  # as above
            tally.failed.append(seed)
        tally.seeds += 1
        tally.calls += world.calls
        tally.faults += world.faults
        tally.fingerprint = (tally.fingerprint * 31 + world.fingerprint) & 0xFFFFFFFFFFFF
    return tally


def report(seed: int, lines: int = 60) -> str:
    """Say all about one seed: its plan, what was wrong, and the last things that happened."""
    world = ClusterWorld(seed)
    options = ", ".join(f"{name}={value}" for name, value in vars(world.plan).items() if name not in {"random", "seed"})
    text = [f"seed {seed}: {options}"]
    try:
        world.run()
    except Exception as error:  # noqa: BLE001  # as above
        text += [*list(world.trace)[-lines:], "".join(traceback.format_exception(error)), f"seed {seed} fails: {error}"]
        text.append(f"replay: python -m tests.simulation --cluster --seed {seed}")
    else:
        text.append(
            f"seed {seed} passes: {world.calls} calls of the store, faults {dict(world.faults)}, fingerprint {world.fingerprint:012x}"
        )
    return "\n".join(text)


def find(mutant: Mutant, seeds: Iterable[int]) -> tuple[int, BaseException] | None:
    """Plant a mutant, and return the first of some seeds that finds it, with what it says."""
    with ExitStack() as planted:
        mutant(lambda owner, name, replacement: planted.enter_context(patch.object(owner, name, replacement)))
        return next(((seed, error) for seed in seeds if (error := fails(seed)) is not None), None)


def soak(first: int, seconds: float) -> ClusterTally:
    """Live through seeds from one on, for some time."""
    until = time.monotonic() + seconds
    return live_through(range(first, first + 10**9), lambda _tally: time.monotonic() >= until)
