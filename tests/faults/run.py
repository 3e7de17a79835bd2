"""One run from start to verdict: a store, a server, a load, a nemesis, two drains, an audit, and the judgement on what was written down."""

from __future__ import annotations

import asyncio
import random
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from proteus_shards.fault_points import VARIABLE
from tests.faults.checker import Judgement, check
from tests.faults.evidence import Terms
from tests.faults.history import History, Op, Recorder, Window, pair, read_lines
from tests.faults.nemesis import FAULTS, Fault, Nemesis, possible
from tests.faults.places import Place
from tests.faults.workload import Load, Shape
from tests.faults.world import PLAIN, World

REQUEST_SECONDS_MAX = 4.0  # of the server; its clients wait twice as long
CALM_SHARE = 0.25  # of all windows of a long run
SETTLE_SECONDS_MAX = 60.0  # for a server that no longer takes jobs: the history then shows it


class Plan(msgspec.Struct, frozen=True):
    """What one run does. Either `faults` in this order, or any that the place can suffer, by chance, for `seconds`."""

    seed: int
    faults: tuple[str, ...] = ()
    seconds: float = 0.0
    fault_seconds: float = 2.0  # how long one lasts, of those that last
    operations: int = 100  # per queue, before the first fault and after the last one
    shape: Shape = Shape()
    terms: Terms = Terms()
    shards: int = 2
    mutation: str = ""
    points: str = ""  # what `fault_points.arm` is told
    clock: bool = False
    options: tuple[str, ...] = ()
    brief: bool = False  # one drain and no restart: enough to show that something is wrong
    calm_seconds: float = 0.0  # between the last fault, if there is one, and the end of the load


class Account(msgspec.Struct):
    """What clients met while one fault lasted: for requests about persisted jobs, and for queues without any."""

    window: Window
    persisted: Counter[str]
    memory: Counter[str]
    healed_ms: int | None = None


class Result(msgspec.Struct):
    """All there is to say about one run."""

    plan: Plan
    kind: str
    history: History
    judgement: Judgement
    accounts: list[Account]
    seconds: float
    operations: int
    trouble: list[str]
    notes: list[str]
    log: str
    struck: Counter[str]  # fault points, and how often each


class Subject(Protocol):
    """What a run is about: one server, or a cluster of them."""

    trouble: list[str]
    struck: Counter[str]

    def where(self) -> tuple[str, int]:
        """Return an address and port to ask."""
        ...

    def shard_of(self, queue: str) -> int:
        """Return which shard has a queue."""
        ...

    def running(self) -> AbstractAsyncContextManager[None]:
        """Run it, and end it in order."""
        ...

    async def restart(self) -> None:
        """End it in order, and run it again."""
        ...

    async def audit(self) -> None:
        """Count what the store holds, once nothing runs."""
        ...

    def log(self) -> str:
        """Return all that was logged."""
        ...


S = TypeVar("S", bound=Subject)


async def run(plan: Plan, place: Place, folder: Path, say: Callable[[str], None] | None = None) -> Result:
    """Do one run on a server. `folder` keeps its history and logs."""
    if not place.keeps:
        shape = plan.shape
        plan = msgspec.structs.replace(plan, shape=msgspec.structs.replace(shape, mixed_queues=0, memory_queues=shape.mixed_queues))
    recorder = Recorder(folder / "history.jsonl")
    world = _world(plan, place, folder, recorder)
    faults = [FAULTS[name] for name in plan.faults] or possible(place, clock=plan.clock)
    return await hurt(plan, place, recorder, world, faults, say)


async def hurt(
    plan: Plan,
    place: Place,
    recorder: Recorder,
    world: S,
    faults: Sequence[Fault[S]],
    say: Callable[[str], None] | None = None,
) -> Result:
    """Do one run. `faults`: those of the plan in its order, or, where it names none, those that are possible."""
    if say is not None:
        say(f"seed {plan.seed}, store {place.kind}, history {recorder.path}")
    recorder.note("run", seed=plan.seed, detail=place.kind, counts={"faults": len(plan.faults)})
    load = Load(plan.shape, plan.seed, recorder, world.where, world.shard_of)
    began = time.monotonic()
    async with world.running():
        async with load.running():
            await load.wait_operations(plan.operations, SETTLE_SECONDS_MAX)
            nemesis = Nemesis(world, recorder)
            if plan.faults:
                for fault in faults:
                    await _strike(nemesis, load, fault, plan, say)
            elif plan.seconds:
                await _strike_at_random(nemesis, load, faults, plan, say, began)
            await asyncio.sleep(plan.calm_seconds)
            await load.wait_operations(plan.operations, SETTLE_SECONDS_MAX)
        await load.drain()
        if not plan.brief:
            await world.restart()
            await load.drain()
    await world.audit()
    recorder.note(
        "run", seed=plan.seed, detail=place.kind, counts={"faults": max(len(plan.faults), nemesis.happened if plan.seconds else 0)}
    )
    recorder.close()
    seconds = time.monotonic() - began
    history = pair(read_lines(recorder.path))
    judgement = check(history, plan.terms)
    return Result(
        plan,
        place.kind,
        history,
        judgement,
        accounts(history),
        seconds,
        load.operations,
        world.trouble + load.trouble,
        place.notes,
        world.log(),
        world.struck,
    )


def _world(plan: Plan, place: Place, folder: Path, recorder: Recorder) -> World:
    names = [name for name in (plan.mutation, "clock" if plan.clock else "") if name]
    clock_path = folder / "clock" if plan.clock else None
    if clock_path is not None:
        clock_path.write_text("0")
    environ = {"PROTEUS_TEST_CLOCK": str(clock_path)} if clock_path is not None else {}
    if plan.points:
        environ[VARIABLE] = f"seed={plan.seed} {plan.points}"
    return World(
        place,
        folder,
        recorder,
        plan.shape.queues(),
        seed=plan.seed + 1,
        shards=plan.shards,
        options=("--request-seconds-max", f"{REQUEST_SECONDS_MAX:g}", "--dead-letters-max", "1000000", *plan.options),
        program=("-m", "tests.faults.mutated", ",".join(names)) if names else PLAIN,
        environ=environ,
        clock_path=clock_path,
    )


async def _strike(nemesis: Nemesis[S], load: Load, fault: Fault[S], plan: Plan, say: Callable[[str], None] | None) -> None:
    """Let one fault happen, and go on once all queues are served again, or time is up."""
    if say is not None:
        say(f"{fault.name}")
    await nemesis.strike(fault, plan.fault_seconds)
    await load.wait_healed(time.monotonic_ns(), plan.terms.heal_seconds_max + 1.0)


async def _strike_at_random(
    nemesis: Nemesis[S], load: Load, faults: Sequence[Fault[S]], plan: Plan, say: Callable[[str], None] | None, began: float
) -> None:
    chance = random.Random(plan.seed + 2)
    while time.monotonic() - began < plan.seconds:
        if chance.random() < CALM_SHARE:
            await asyncio.sleep(plan.fault_seconds)
            continue
        fault = chance.choice(faults)
        if say is not None:
            say(f"{time.monotonic() - began:6.1f} s  {fault.name}")
        await nemesis.strike(fault, plan.fault_seconds * chance.uniform(0.3, 1.2))
        await load.wait_healed(time.monotonic_ns(), plan.terms.heal_seconds_max + 1.0)
        await asyncio.sleep(chance.uniform(0.0, 1.0))


def accounts(history: History) -> list[Account]:
    """Tell apart what was answered while each fault lasted. A request counts where it was sent."""
    found = []
    ops = sorted(history.ops, key=lambda op: op.s)
    queues = {op.queue for op in ops}
    persisted = {op.queue for op in ops if op.f == "enqueue" and op.persist}
    accepted = [op for op in ops if op.f == "enqueue" and op.type == "ok" and (op.persist or op.queue not in persisted)]
    accepted.sort(key=lambda op: op.e)
    for window in history.windows:
        account = Account(window, Counter(), Counter())
        for op in ops[bisect_left(ops, window.start, key=_sent) : bisect_left(ops, min(window.stop, history.drained), key=_sent)]:
            if op.queue not in persisted:
                account.memory[_answer(op)] += 1
            elif op.f != "enqueue" or op.persist:
                account.persisted[_answer(op)] += 1
        account.healed_ms = _healed_ms(accepted, window, queues)
        found.append(account)
    return found


def _sent(op: Op) -> int:
    return op.s


def _answer(op: Op) -> str:
    if op.type == "ok":
        return "ok"
    if op.http_status:
        return str(op.http_status)
    return "not connected" if op.type == "fail" else "no answer"


def _healed_ms(accepted: list[Op], window: Window, queues: set[str]) -> int | None:
    """Return when the last queue accepted its first job after a fault; a persisted one, where it has such."""
    left = set(queues)
    for place in range(bisect_left(accepted, window.stop, key=lambda op: op.e), len(accepted)):
        left.discard(accepted[place].queue)
        if not left:
            return (accepted[place].e - window.stop) // 1_000_000
    return None
