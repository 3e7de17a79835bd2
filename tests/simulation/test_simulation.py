"""A fixed number of seeds, and that a seed is one story whoever tells it."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from tests.conftest import server_environ
from tests.simulation.disk import Violation
from tests.simulation.loop import VirtualLoop
from tests.simulation.run import fails, live_through, report, run_many
from tests.simulation.world import World

SEEDS = 100
JOBS = 2


def test_seeds_can_be_spread_over_processes() -> None:
    """As many as it takes."""
    tally = run_many(0, JOBS, lambda tally: tally.seeds >= SEEDS)

    assert [] == tally.failed
    assert tally.seeds >= SEEDS
    assert tally.operations > 100 * tally.seeds


def test_a_seed_replays_to_the_same_answers_in_another_process() -> None:
    """Nothing in it hangs on hashes, addresses or the time."""
    told = report(7)
    command = [sys.executable, "-m", "tests.simulation", "--seed", "7"]
    environ = server_environ({"PYTHONHASHSEED": "12345"})

    ran = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)

    assert (ran.returncode, ran.stderr) == (0, "")
    assert f"seed 7\n{told}\n" == ran.stdout


def test_the_same_seeds_make_the_same_tally() -> None:
    """However they are spread over processes."""
    one, other = live_through(range(20, 40)), live_through(range(20, 40))

    assert (one.operations, one.fingerprint, one.faults) == (other.operations, other.fingerprint, other.faults)


def test_a_broken_promise_is_reported_with_seed_trace_and_the_command_that_replays_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """And with about as few requests as it takes."""
    monkeypatch.setattr("proteus_shards.core.shard.Shard._end_polls", lambda _self: None)
    seed = next(seed for seed in range(100) if fails(seed) is not None)

    text = report(seed)

    assert text.startswith(f"seed {seed}, ")
    assert " ask " in text
    assert f"replay: python -m tests.simulation --seed {seed} --operations " in text


def test_a_world_can_be_lived_through_with_fewer_requests() -> None:
    """The beginning of a seed is the same, however long it is."""
    assert World(3, operations=50).run() < World(3).run()


def test_virtual_time_jumps_to_the_next_timer() -> None:
    """An hour of sleep is over at once, and things happen in the order of their times."""
    loop = VirtualLoop()
    seen: list[tuple[str, float]] = []
    tasks = []

    async def sleeper(name: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        seen.append((name, loop.time()))

    for name, seconds in (("late", 3600.0), ("early", 1.5)):
        tasks.append(loop.create_task(sleeper(name, seconds)))
    loop.run(lambda: False)

    assert [("early", 2.5), ("late", 3601.0)] == seen


def test_a_stall_makes_timers_late() -> None:
    """As a stopped process finds them when it goes on."""
    loop = VirtualLoop()
    seen: list[int] = []
    loop.after(1_000, lambda: seen.append(loop.now))
    loop.after(0, loop.stall, 50_000)

    loop.run(lambda: False)

    assert [1_050_000] == seen


def test_a_coarse_timer_may_fire_early_but_never_before_now() -> None:
    """By less than its resolution."""
    loop = VirtualLoop(resolution_us=1_000)
    seen: list[int] = []
    for delay in (1_999, 500):
        loop.after(delay, lambda: seen.append(loop.now))

    loop.run(lambda: False)

    assert [1_000_250, 1_001_000] == seen


def test_what_goes_round_in_circles_is_ended() -> None:
    """A seed that would never end is a failure like any other."""
    loop = VirtualLoop()

    def again() -> None:
        loop.after(0, again)

    again()
    with pytest.raises(Violation, match="no end in sight"):
        loop.run(lambda: False)
