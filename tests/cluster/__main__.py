"""`python -m tests.cluster`: real hosts in network namespaces on a real store, hurt and judged. Exit code 0 only where the verdict is true.

    python -m tests.cluster --store postgres --seconds 120
    python -m tests.cluster --store redis --faults "host killed,all restarted" --lease-seconds 8
    python -m tests.cluster --store dynamodb --faults none --seconds 20 --hosts 1

Needs root and iproute2. The seed is printed first; the same seed gives the same jobs and the same order of faults, though not the same timing.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

from tests.cluster.nemesis import FAULTS
from tests.cluster.run import ClusterPlan, describe, run, shape
from tests.cluster.stores import KINDS
from tests.faults.__main__ import SEED_MAX, say
from tests.faults.evidence import Terms
from tests.faults.places import NotHere
from tests.faults.report import report


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.cluster", description="Histories of a hurt cluster, checked.", allow_abbrev=False
    )
    parser.add_argument("--store", default="postgres", choices=KINDS)
    parser.add_argument("--seconds", type=float, default=120.0, help="of load and faults [default: 120]")
    parser.add_argument("--seed", type=int, default=None, help="[default: one by chance, printed]")
    parser.add_argument("--faults", default="", help="names joined by commas, in this order, or none [default: all, by chance]")
    parser.add_argument("--fault-seconds", type=float, default=3.0, help="how long one lasts at least [default: 3]")
    parser.add_argument("--hosts", type=int, default=3)
    parser.add_argument("--shards", type=int, default=6)
    parser.add_argument("--lease-seconds", type=float, default=2.0, help="[default: 2; the server's own default is 8]")
    parser.add_argument("--patience", type=float, default=1.0, help="times 5 s, for healing [default: 1]")
    parser.add_argument("--jobs-per-second", type=float, default=150.0)
    parser.add_argument("--mutation", default="", help="a planted fault of tests/faults/mutated.py")
    parser.add_argument("--alone", action="store_true", help="one server, without a cluster")
    parser.add_argument("--folder", type=Path, default=None, help="where the history and the logs are kept [default: a new one below /tmp]")
    given = parser.parse_args()
    names = tuple(name.strip() for name in given.faults.split(",") if name.strip() not in {"", "none"})
    unknown = [name for name in names if name not in FAULTS]
    if unknown:
        parser.error(f"no such fault: {unknown[0]}; there are {', '.join(FAULTS)}")
    plan = ClusterPlan(
        seed=random.randrange(SEED_MAX) if given.seed is None else given.seed,
        faults=names,
        seconds=0.0 if names or given.faults == "none" else given.seconds,
        calm_seconds=given.seconds if given.faults == "none" else 0.0,
        fault_seconds=given.fault_seconds,
        shape=shape(given.jobs_per_second),
        shards=given.shards,
        mutation=given.mutation,
        clock=True,
        terms=Terms(heal_seconds_max=5.0 * given.patience, late_seconds_max=5.0 * given.patience),
        hosts=given.hosts,
        lease_seconds=given.lease_seconds,
        alone=given.alone,
    )
    say(f"seed {plan.seed}")
    folder = given.folder or Path(tempfile.mkdtemp(prefix="proteus-cluster-"))
    folder.mkdir(exist_ok=True, parents=True)
    try:
        result = run(plan, given.store, folder, say)
    except NotHere as reason:
        say(f"cannot be tried here: {reason}")
        return 2
    say(report(result))
    for line in describe(result):
        say(line)
    return 0 if result.judgement.verdict == "true" and not result.trouble else 1


if __name__ == "__main__":
    sys.exit(main())
