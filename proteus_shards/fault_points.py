"""Named places in the product where a test may let something go wrong that no outside hand can time.

A signal from outside hits a process somewhere. Between a commit and the release of its answers, or between a frame and the answer to a client, lie
microseconds: such a place has a name here and calls `reached` with it. Without `PROTEUS_TEST_FAULTS` in the environment that is one test
of an empty dict, and a place is passed once a commit, a frame or a connection, never once a job.

`PROTEUS_TEST_FAULTS` holds words with spaces between them: `seed=N`, and `NAME=ACTION:CHANCE[:TIMES]` for each place at which to strike. On average each
1/CHANCE-th pass is struck, never more than 2/CHANCE passes go by in between, and TIMES says how often one process is struck at most. `exit` ends the process at once, as SIGKILL would, with `EXIT_STATUS`; `stall` holds it up for
`STALL_SECONDS`. Each process draws from the seed and its own process id. What was struck is told on standard error, one JSON object a line.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from typing import NamedTuple, NoReturn

VARIABLE = "PROTEUS_TEST_FAULTS"
EXIT_STATUS = 86
STALL_SECONDS = 0.2

POINTS: dict[str, str] = {
    "shard.recovered": "all rows are read back, nothing is served yet",
    "shard.cut": "commands are decided, and their rows are about to go to the store",
    "shard.committed": "the rows are durable, and no answer is out",
    "shard.released": "the answers of a commit are out",
    "shard.lost": "the store did not say what became of a commit, and nothing is read back yet",
    "link.sent": "the front has sent a frame of requests",
    "link.received": "the front has a frame of answers, and no client has any of them",
    "link.settled": "all answers of a frame are handed to the clients' connections",
    "step.begun": "a step over several shards is open at its home, and no other shard knows of it",
    "step.prepared": "all shards have promised their part of a step, and it is not decided",
    "step.asked": "the home is about to be asked to decide",
    "step.decided": "the front knows how a step was decided, and no other shard does",
    "step.concluded": "all shards have done their part, and the client has no answer",
}


class _Plan(NamedTuple):
    action: str
    chance: float
    times: int


_plans: dict[str, _Plan] = {}
_random = random.Random()  # noqa: S311 draws faults, not secrets
_struck: dict[str, int] = {}
_left: dict[str, int] = {}  # passes until the next strike


def reached(name: str) -> None:
    """Say that a place is passed."""
    if _plans:
        _pass(name)


def arm(text: str) -> None:
    """Read what to do where. Raises `ValueError` for words that mean nothing: a test that strikes nowhere proves nothing."""
    _plans.clear()
    _struck.clear()
    _left.clear()
    for word in text.split():
        name, _, value = word.partition("=")
        if name == "seed":
            _random.seed(f"{int(value)} {os.getpid()}")
            continue
        action, _, rest = value.partition(":")
        chance, _, times = rest.partition(":")
        if name not in POINTS or action not in {"exit", "stall"}:
            raise ValueError(f"{VARIABLE}: {word} names no place or no action")
        if not 0 < float(chance) <= 1:
            raise ValueError(f"{VARIABLE}: {word} has no chance in 0…1")
        _plans[name] = _Plan(action, float(chance), int(times or 1_000_000))


def _pass(name: str) -> None:
    assert name in POINTS, f"{name} is no fault point"
    plan = _plans.get(name)
    if plan is None or _struck.get(name, 0) >= plan.times:
        return
    left = _left.pop(name, 0) or _random.randint(1, max(1, round(2 / plan.chance) - 1))
    if left > 1:
        _left[name] = left - 1
        return
    _struck[name] = _struck.get(name, 0) + 1
    sys.stderr.write(json.dumps({"process": str(os.getpid()), "event": "fault point", "point": name, "action": plan.action}) + "\n")
    sys.stderr.flush()
    if plan.action == "exit":
        _end()
    time.sleep(STALL_SECONDS)


def _end() -> NoReturn:
    os._exit(EXIT_STATUS)


if VARIABLE in os.environ:
    arm(os.environ[VARIABLE])
