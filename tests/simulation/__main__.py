"""`python -m tests.simulation`: one seed again, or as many as there is time for.

python -m tests.simulation --seed 42                     replays one seed; if it fails, tells what happened
python -m tests.simulation --seconds 60 --jobs 2         as many seeds as fit
python -m tests.simulation --operations 10000000         as many as it takes
python -m tests.simulation --mutants                     how many seeds it takes to find each planted mistake
python -m tests.simulation --cluster --seconds 60        the hosts of clusters, and the stewards that share shards among them; so with --seed, --mutants
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence

from tests.simulation import cluster_mutants, cluster_run
from tests.simulation.mutants import MUTANTS, Mutant
from tests.simulation.run import find, quiet, rate, report, run_many

SEEDS_MAX = 3000


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return the exit status: 1 if a seed has failed."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, help="replay this one")
    parser.add_argument("--first", type=int, help="the first of many (default: drawn from the clock)")
    parser.add_argument("--seconds", type=float, help="go on for so long")
    parser.add_argument(
        "--operations",
        type=int,
        help="go on until so many commands, commits and faults have come, on all cores; with --seed: let clients make so many requests",
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one a core)")
    parser.add_argument("--mutants", action="store_true", help="plant each mistake of mutants.py and look for it")
    parser.add_argument("--lines", type=int, default=120, help="how much of a failing seed's trace to show (default: 120)")
    parser.add_argument("--cluster", action="store_true", help="the hosts of clusters, in one process")
    options = parser.parse_args(arguments)
    if options.mutants:
        return hunt(cluster_run.find, cluster_mutants.MUTANTS) if options.cluster else hunt(find, MUTANTS)
    if options.cluster:
        return soak(options)
    if options.seed is not None:
        say(f"seed {options.seed}")
        text = report(options.seed, shrink=options.operations is None, lines=options.lines)
        say(text)
        return int(" fails: " in text)
    first = int(time.time()) % 1_000_000 * 1_000 if options.first is None else options.first
    say(f"seeds from {first} on, {options.jobs} processes")
    started = time.monotonic()
    seconds = options.seconds or (float("inf") if options.operations else 60)
    operations = options.operations or float("inf")
    tally = run_many(first, options.jobs, lambda tally: time.monotonic() - started >= seconds or tally.operations >= operations)
    say(rate(tally, started))
    for seed in sorted(tally.failed)[:1]:
        say(f"failed: {sorted(tally.failed)}\n{report(seed, lines=options.lines)}")
    return int(bool(tally.failed))


def soak(options: argparse.Namespace) -> int:
    """Live through clusters, and return 1 if one has failed."""
    first = int(time.time()) % 1_000_000 * 1_000 if options.first is None else options.first
    say(f"seed {options.seed}" if options.seed is not None else f"seeds from {first} on")
    if options.seed is not None:
        text = cluster_run.report(options.seed, options.lines)
        say(text)
        return int(" fails: " in text)
    started = time.monotonic()
    tally = cluster_run.soak(first, options.seconds or 60)
    say(tally.text(time.monotonic() - started))
    for seed in tally.failed:
        say(cluster_run.report(seed, options.lines))
    return int(bool(tally.failed))


def hunt(find: Callable[[Mutant, range], tuple[int, BaseException] | None], mutants: Sequence[Mutant]) -> int:
    """Look for each mutant, and return 1 if one was not found."""
    quiet()
    lost = 0
    for mutant in mutants:
        found = find(mutant, range(SEEDS_MAX))
        lost += found is None
        told = f"{found[0] + 1:>5} seeds: {str(found[1])[:120]}" if found is not None else f"not found in {SEEDS_MAX} seeds"
        say(f"{mutant.__name__:<40} {told}")
    say(f"{len(mutants)} mutants, {lost} not found")
    return int(bool(lost))


def say(text: str) -> None:
    """Print a line."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
