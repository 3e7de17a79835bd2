"""One run of the benchmark, and what every scenario needs of it.

That is: its options, its folder, subjects opened and closed, families of jobs that nothing else uses, and a measured piece of load.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from bench import load, wrk
from bench.cpu import GENERATOR, CpuMeter
from bench.engine import LoadError
from bench.jobs import PAYLOAD_BYTES, Family, balanced
from bench.load import Loaded
from bench.subjects import Subject
from bench.targets import Target

QUEUES = 8  # that the load of a plain scenario is spread over, on any number of shards up to this
LAG_PER_CONNECTION = 16  # how many jobs lie between the steps of a life, for each connection
FILL_CONNECTIONS = 8
FILL_SHARE = 1.3  # of the time of a measured `next`, spent on enqueueing for it with many requests pipelined
TRIES = 3


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What a run is told."""

    seconds: float = 3.0
    repeat: int = 5
    connections: int = 64
    processes: int = 1  # of the own generator, where the work can be split
    stores: tuple[str, ...] = ()  # () is all
    peers: tuple[str, ...] | None = None  # None is all
    shards: tuple[int, ...] = (1, 2, 4)
    fronts: tuple[int, ...] = (1,)
    backlog: int = 1_000_000
    batch_jobs: int = 400_000
    waiters: int = 2000
    wakes_per_second: float = 500.0
    cold_queues: int = 1000
    large_bytes: int = 1 << 20
    use_wrk: bool = True


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement. `value` is in the unit of its scenario; `figures` are whatever else it found."""

    value: float
    requests: int = 0
    seconds: float = 0.0
    generator: str = ""
    errors: int = 0
    first_error: str = ""
    cpu_us: dict[str, float] = {}  # µs a request, by role, the generator included
    busy: dict[str, float] = {}  # share of one core, of the busiest process of each role
    figures: dict[str, float] = {}
    curves: dict[str, list[float]] = {}  # percentiles 0…100 in ms, for plots


class Done(msgspec.Struct, frozen=True):
    """What a piece of load did, whoever made it."""

    requests: int
    jobs: int
    seconds: float
    cpu_seconds: float
    processes: int
    errors: int
    first_error: str
    generator: str


class Run:
    """The state of one run."""

    def __init__(self, options: Options, folder: Path, families: int = 0) -> None:
        self.options = options
        self.folder = folder
        self._families = families  # how many are in use already
        self._opened = 0

    # --- subjects ----------------------------------------------------------------------------------------------

    @contextmanager
    def opened(self, subject: Subject) -> Iterator[Target]:
        """Start a subject in a folder of its own, and take both away at the end."""
        self._opened += 1
        folder = self.folder / f"{self._opened}-{subject.name.replace('/', '-')}"
        folder.mkdir()
        target = subject.make(folder)
        try:
            target.start()
            yield target
        finally:
            target.stop()
            shutil.rmtree(folder, ignore_errors=True)  # the folder of the run goes with all that is in it, at the latest

    def family(self, subject: Subject, *, queues: int = QUEUES, payload_bytes: int = PAYLOAD_BYTES) -> Family:
        """Return a family of jobs that nothing else in this run uses."""
        self._families += 1
        tag = f"{self._families}-"
        return Family(tag, balanced(f"q{tag}", max(queues, subject.shards), subject.shards), subject.persist, payload_bytes)

    # --- load --------------------------------------------------------------------------------------------------

    def fill(self, target: Target, family: Family, count: int, *, pipeline: int = 48) -> None:
        """Enqueue jobs 0…count-1, each queue in order."""
        filled = load.run(target.address, load.Fill(family, count, None, pipeline), connections=FILL_CONNECTIONS)
        if filled.errors or filled.jobs != count:
            raise LoadError(f"{filled.jobs} of {count} jobs could be enqueued; {filled.first_error}")

    def fill_for(self, target: Target, family: Family, seconds: float) -> int:
        """Enqueue as many jobs as the server takes in some seconds, many requests pipelined. Returns how many."""
        filled = load.run(target.address, load.Fill(family, 1 << 30, seconds), connections=FILL_CONNECTIONS)
        if filled.errors:
            raise LoadError(f"not all jobs could be enqueued; {filled.first_error}")
        return filled.jobs

    def take(self, target: Target, family: Family, count: int, *, pipeline: int = 16) -> bool:
        """Fetch jobs, one a request, slot after slot. Says whether all were there."""
        taken = load.run(target.address, load.Take(family, count, pipeline), connections=FILL_CONNECTIONS)
        return not taken.errors

    def enqueue(self, target: Target, family: Family, first: int, seconds: float, meter: CpuMeter | None = None) -> Done:
        """Enqueue for some seconds, one request at a time on each connection."""
        if self.options.use_wrk:
            return self._wrk(target, wrk.enqueue_script(family, first), seconds)
        return self.own(target, load.Enqueue(family, first, seconds), meter)

    def next_jobs(self, target: Target, family: Family, seconds: float, meter: CpuMeter | None = None) -> Done:
        """Fetch jobs for some seconds, one request at a time on each connection."""
        if self.options.use_wrk:
            return self._wrk(target, wrk.next_script(family), seconds)
        return self.own(target, load.Next(family, seconds), meter)

    def lag(self, family: Family, connections: int) -> int:
        """Return how many jobs must lie between the steps of lives that are led without reading answers."""
        period = len(family.slots)
        return period * math.ceil(LAG_PER_CONNECTION * connections / period)

    def live(self, target: Target, family: Family, seconds: float, *, connections: int, pipeline: int = 48) -> Callable[[CpuMeter], Done]:
        """Prepare jobs, and return what leads jobs through their whole life for some seconds."""
        if not self.options.use_wrk:
            slots = balanced(f"o{family.tag}", connections, 1)
            alone = msgspec.structs.replace(family, slots=slots)
            depth = 8 if family.payload_bytes == PAYLOAD_BYTES else 1
            return lambda meter: self.own(target, load.Life(alone, seconds, depth), meter, connections=connections)
        lag = self.lag(family, connections)
        self.fill(target, family, 3 * lag, pipeline=pipeline)
        if not self.take(target, family, 2 * lag, pipeline=pipeline):
            raise LoadError("a job that was enqueued is not there")
        script = wrk.life_script(family, 3 * lag, lag, lag)

        def lead(_meter: CpuMeter) -> Done:
            done = self._wrk(target, script, seconds, connections=connections)
            return msgspec.structs.replace(done, jobs=done.requests // 4)

        return lead

    def loop(self, target: Target, family: Family, seconds: float, *, connections: int) -> Callable[[CpuMeter], Done]:
        """Prepare jobs, and return what leads runners' loops for some seconds."""
        if not self.options.use_wrk:
            alone = msgspec.structs.replace(family, slots=balanced(f"o{family.tag}", connections, 1))
            return lambda meter: self.own(target, load.Loop(alone, seconds), meter, connections=connections)
        lag = self.lag(family, connections)
        self.fill(target, family, 2 * lag)
        if not self.take(target, family, lag):
            raise LoadError("a job that was enqueued is not there")
        script = wrk.loop_script(family, 2 * lag, lag)

        def lead(_meter: CpuMeter) -> Done:
            done = self._wrk(target, script, seconds, connections=connections)
            return msgspec.structs.replace(done, jobs=done.requests // 2)

        return lead

    def own(
        self, target: Target, work: load.Work, meter: CpuMeter | None, *, connections: int | None = None, processes: int | None = None
    ) -> Done:
        """Carry out a work with the own generator."""
        loaded = load.run(
            target.address,
            work,
            connections=connections or self.options.connections,
            processes=processes or self.options.processes,
            when_ready=meter.begin if meter else None,
        )
        return done_of(loaded)

    def _wrk(self, target: Target, script: str, seconds: float, connections: int | None = None) -> Done:
        result = wrk.run(target.address, script, connections=connections or self.options.connections, seconds=seconds, folder=target.folder)
        text = f"{result.errors} answers of a wrong status or broken connections" if result.errors else ""
        return Done(result.requests, result.requests, result.seconds, result.cpu_seconds, 1, result.errors, text, "wrk")

    # --- measuring ---------------------------------------------------------------------------------------------

    def measure(self, target: Target, act: Callable[[CpuMeter], Done]) -> Sample:
        """Carry out a piece of load and return a sample whose value is jobs a second, with the CPU that everyone spent on it."""
        meter = CpuMeter(target.roles())
        done = act(meter)
        spent = meter.spent()
        target.roles()  # raises where the server has ended
        return sample_of(done, spent)


def sample_of(done: Done, spent: dict[str, list[float]]) -> Sample:
    """Return the sample of a piece of load, with the CPU seconds that each process of the server spent on it. Raises `LoadError` for none."""
    if not done.requests or not done.seconds:
        raise LoadError(f"nothing was answered; {done.first_error}")
    cpu_us = {role: 1e6 * sum(each) / done.requests for role, each in spent.items()}
    busy = {role: max(each) / done.seconds for role, each in spent.items()}
    return Sample(
        value=done.jobs / done.seconds,
        requests=done.requests,
        seconds=done.seconds,
        generator=done.generator,
        errors=done.errors,
        first_error=done.first_error,
        cpu_us=cpu_us | {GENERATOR: 1e6 * done.cpu_seconds / done.requests},
        busy=busy | {GENERATOR: done.cpu_seconds / done.seconds / done.processes},
    )


def done_of(loaded: Loaded) -> Done:
    """Return the common part of what the own generator did."""
    return Done(
        loaded.requests,
        loaded.jobs,
        loaded.seconds,
        loaded.cpu_seconds,
        loaded.processes,
        loaded.errors,
        loaded.first_error,
        "own",
    )


@contextmanager
def opened_run(options: Options, parent: Path | None) -> Iterator[Run]:
    """Make a run with a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="proteus-bench-", dir=parent, ignore_cleanup_errors=True) as folder:
        yield Run(options, Path(folder))
