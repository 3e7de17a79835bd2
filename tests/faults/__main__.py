"""`python -m tests.faults`: a long run, or many short ones, with a report. Exit code 0 only where each verdict is true.

    python -m tests.faults --seconds 600 --store postgres
    python -m tests.faults --store redis --faults "store killed,answers lost" --fault-seconds 10
    python -m tests.faults --store sqlite --faults none --seed 7

The seed is printed first; the same seed gives the same jobs and the same order of faults, though not the same timing.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
from pathlib import Path

from tests.faults.evidence import Terms
from tests.faults.nemesis import FAULTS
from tests.faults.places import KINDS, NotHere, open_place
from tests.faults.report import report
from tests.faults.run import Plan, run
from tests.faults.workload import FEW_RETRIES, Shape

SEED_MAX = 1_000_000


def say(text: str) -> None:
    """Tell it now, not when a buffer is full."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description="Histories of a hurt server, checked.", allow_abbrev=False)
    parser.add_argument("--store", default="sqlite", choices=KINDS)
    parser.add_argument("--seconds", type=float, default=600.0, help="of load and faults [default: 600]")
    parser.add_argument("--seed", type=int, default=None, help="[default: one by chance, printed]")
    parser.add_argument(
        "--faults", default="", help="names joined by commas, in this order, or none [default: all that are possible, by chance]"
    )
    parser.add_argument("--fault-seconds", type=float, default=10.0, help="how long one lasts at most, about [default: 10]")
    parser.add_argument("--few-retries", action="store_true", help="jobs with 0 to 2 retries")
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument(
        "--patience",
        type=float,
        default=1.0,
        help="times 5 s, for healing, and times 2, for how much slower other shards may be meanwhile [default: 1]",
    )
    parser.add_argument("--jobs-per-second", type=float, default=450.0)
    parser.add_argument("--folder", type=Path, default=None, help="where the history and the logs are kept [default: a new one below /tmp]")
    given = parser.parse_args()
    names = tuple(name.strip() for name in given.faults.split(",") if name.strip() not in {"", "none"})
    unknown = [name for name in names if name not in FAULTS]
    if unknown:
        parser.error(f"no such fault: {unknown[0]}; there are {', '.join(FAULTS)}")
    shape = Shape(jobs_per_second=given.jobs_per_second)
    if given.few_retries:
        shape = Shape(jobs_per_second=given.jobs_per_second, max_retries=FEW_RETRIES.max_retries, silent_share=FEW_RETRIES.silent_share)
    plan = Plan(
        seed=random.randrange(SEED_MAX) if given.seed is None else given.seed,
        faults=names,
        seconds=0.0 if names or given.faults == "none" else given.seconds,
        calm_seconds=given.seconds if given.faults == "none" else 0.0,
        fault_seconds=given.fault_seconds,
        shape=shape,
        shards=given.shards,
        clock=True,
        terms=Terms(heal_seconds_max=5.0 * given.patience, late_seconds_max=5.0 * given.patience, beside_factor_max=2.0 * given.patience),
    )
    say(f"seed {plan.seed}")
    folder = given.folder or Path(tempfile.mkdtemp(prefix="proteus-faults-"))
    folder.mkdir(exist_ok=True, parents=True)
    try:
        with open_place(given.store, folder) as place:
            result = asyncio.run(run(plan, place, folder, say))
    except NotHere as reason:
        say(f"cannot be tried here: {reason}")
        return 2
    say(report(result))
    return 0 if result.judgement.verdict == "true" and not result.trouble else 1


if __name__ == "__main__":
    sys.exit(main())
