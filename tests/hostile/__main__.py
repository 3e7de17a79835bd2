"""`python -m tests.hostile`: many bad inputs for a real server, with a report. Exit code 0 only where nothing went wrong.

    python -m tests.hostile --inputs 1000000
    python -m tests.hostile --inputs 20000 --seed 7

The seed is printed first; the same seed makes the same inputs.
"""

from __future__ import annotations

import argparse
import random
import sys

import trio

from tests.hostile.run import SHARES, hurt


def say(text: str) -> None:
    """Tell it now, not when a buffer is full."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.hostile", description="Bad inputs for a real server.", allow_abbrev=False)
    parser.add_argument("--inputs", type=int, default=100_000, help="how many [default: 100000]")
    parser.add_argument("--seed", type=int, default=None, help="[default: one by chance, printed]")
    parser.add_argument("--kinds", default="", help=f"joined by semicolons, of {'; '.join(SHARES)} [default: all]")
    given = parser.parse_args()
    seed = random.randrange(1_000_000) if given.seed is None else given.seed
    say(f"seed {seed}")
    report = trio.run(hurt, given.inputs, seed, say, [kind for kind in given.kinds.split(";") if kind] or list(SHARES))
    say(report.text)
    return int(bool(report.wrong))


if __name__ == "__main__":
    sys.exit(main())
