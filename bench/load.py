"""The own generator as the benchmark sees it: what it can be asked to do, and how its processes are run.

A work is split over the processes by its connections: process `i` of `n` takes connections i, i + n, …. All of them connect first and
begin at one agreed moment of the monotonic clock, which the processes of one machine share. Each reports what it did, its own CPU time, and the
first thing that was wrong.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from array import array
from collections.abc import Callable
from pathlib import Path

import msgspec

from bench.engine import LoadError
from bench.jobs import Family

START_SECONDS = 0.05  # from "all are ready" to the agreed moment
GRACE_SECONDS = 60.0  # beyond the time that a work should take


class Fill(msgspec.Struct, frozen=True, tag="fill"):
    """Enqueue jobs, many pipelined on each connection, each slot in order: up to `count`, and for up to `seconds` (then possibly with gaps)."""

    family: Family
    count: int
    seconds: float | None = None
    pipeline: int = 48


class Take(msgspec.Struct, frozen=True, tag="take"):
    """Ask for the next job of slots 0, 1, …, `count` times in all, pipelined. Every answer must bring one."""

    family: Family
    count: int
    pipeline: int = 16


class Enqueue(msgspec.Struct, frozen=True, tag="enqueue"):
    """Enqueue for some seconds, one request at a time on each connection."""

    family: Family
    first: int
    seconds: float


class Next(msgspec.Struct, frozen=True, tag="next"):
    """Ask for the next job for some seconds, one request at a time on each connection."""

    family: Family
    seconds: float


class Life(msgspec.Struct, frozen=True, tag="life"):
    """Enqueue, next, heartbeat, complete, one request at a time; connection `c` alone uses slot `c`, and `depth` jobs wait in each.

    Everything is checked: statuses, ids in the order of their enqueueing, first attempts, payloads to the byte.
    """

    family: Family
    seconds: float
    depth: int = 8


class Batch(msgspec.Struct, frozen=True, tag="batch"):
    """Fetch `count` jobs with num_jobs=`size`. Checked after the clock has stopped: each connection saw each queue in order, all ids are returned."""

    family: Family
    count: int
    size: int


class EnqueueArrays(msgspec.Struct, frozen=True, tag="enqueue-arrays"):
    """Enqueue for some seconds, `size` jobs a request, one request at a time on each connection. Every answer must say that all were accepted."""

    family: Family
    size: int
    seconds: float


class CompleteArrays(msgspec.Struct, frozen=True, tag="complete-arrays"):
    """Complete jobs 0…count-1, `size` of them a request to `POST /batch`. Every answer must say that all were completed."""

    family: Family
    count: int
    size: int


class Loop(msgspec.Struct, frozen=True, tag="loop"):
    """A runner's loop: enqueue, complete-and-next, one request at a time; connection `c` alone uses slot `c`. Checked as in `Life`."""

    family: Family
    seconds: float
    depth: int = 8


class RelayLife(msgspec.Struct, frozen=True, tag="relay-life"):
    """Enqueue, next and complete in the words of relay's second generation, one request at a time; connection `c` alone uses slot `c`. Ids and payloads are checked."""

    family: Family
    seconds: float
    depth: int = 8


class Paced(msgspec.Struct, frozen=True, tag="paced"):
    """Enqueue at arrival times that are fixed beforehand (Poisson), whatever the server does. Latency counts from the arrival time."""

    family: Family
    first: int
    rate: float
    seconds: float
    seed: int = 1


class Wake(msgspec.Struct, frozen=True, tag="wake"):
    """Keep one waiting `next` on each slot, and enqueue to one slot after the other at a steady rate."""

    family: Family
    rate: float
    seconds: float
    wait_seconds: int = 55


class Beanstalk(msgspec.Struct, frozen=True, tag="beanstalk"):
    """Load beanstalkd with `verb`: put, reserve, or life (put, reserve, touch, delete). Ends after `seconds` or `count` operations."""

    verb: str
    payload_bytes: int
    seconds: float | None = None
    count: int | None = None
    pipeline: int = 1


class Library(msgspec.Struct, frozen=True, tag="library"):
    """Use a peer that is a library on the database at `url`: "enqueue", "batch-enqueue" with `size` jobs a call, or "life".

    A life is enqueueing for half of the time, and then working off all jobs, however long that takes. The same goes on for `warm_seconds` before.
    """

    library: str
    verb: str
    url: str
    queues: list[str]
    payload_bytes: int
    seconds: float
    warm_seconds: float
    size: int


Work = Fill | Take | Enqueue | Next | Life | Batch | EnqueueArrays | CompleteArrays | Loop | RelayLife | Paced | Wake | Beanstalk | Library


class Order(msgspec.Struct, frozen=True):
    """What one process is told, as one line of JSON."""

    address: tuple[str, int]
    work: Work
    connections: int  # of all processes together
    part: int
    parts: int

    def mine(self, count: int) -> range:
        """Return which of `count` numbered things belong to this part."""
        return range(self.part, count, self.parts)


class Report(msgspec.Struct):
    """What one process did between the agreed moment and its last answer. `times` are float64 seconds, `numbers` int64 job numbers."""

    requests: int = 0
    jobs: int = 0  # whole units of the work: jobs enqueued, delivered, or taken through their life
    began: float = 0.0
    ended: float = 0.0
    cpu_seconds: float = 0.0
    errors: int = 0
    first_error: str = ""
    unanswered: int = 0
    times: dict[str, bytes] = {}
    numbers: bytes = b""


class Loaded(msgspec.Struct, frozen=True):
    """What all processes did together."""

    requests: int
    jobs: int
    seconds: float
    cpu_seconds: float
    processes: int
    errors: int
    first_error: str
    unanswered: int
    times: dict[str, array[float]]  # sorted
    numbers: array[int]

    @property
    def jobs_per_second(self) -> float:
        """The rate over the time from the first request to the last answer."""
        return self.jobs / self.seconds if self.seconds else 0.0


def run(
    address: tuple[str, int], work: Work, *, connections: int, processes: int = 1, when_ready: Callable[[], None] | None = None
) -> Loaded:
    """Carry out a work. Raises `LoadError` where a process cannot, or does not end in time.

    `when_ready` is called once all connections are up, just before the work begins.
    """
    parts = max(1, min(processes, connections))
    seconds = getattr(work, "seconds", None) or 0.0
    counted = getattr(work, "count", None) or 0
    deadline = time.monotonic() + seconds + GRACE_SECONDS + counted / 500  # slower than that is given up
    children: list[subprocess.Popen[bytes]] = []
    try:
        children += (_start(Order(address, work, connections, part, parts)) for part in range(parts))
        for child in children:
            if _awaited(child, deadline, b"\n") != b"ready\n":
                raise LoadError(_complaint(child))
        if when_ready is not None:
            when_ready()
        begin = b"%f\n" % (time.monotonic() + START_SECONDS)
        for child in children:
            assert child.stdin is not None
            child.stdin.write(begin)
            child.stdin.flush()
        reports = [_report(child, deadline) for child in children]
    finally:
        for child in children:
            if child.poll() is None:
                child.kill()
            child.communicate()
    return _joined(reports)


def _start(order: Order) -> subprocess.Popen[bytes]:
    root = str(Path(__file__).resolve().parent.parent)
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))}
    child = subprocess.Popen(
        [sys.executable, "-m", "bench.worker"], env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdin is not None
    child.stdin.write(msgspec.json.encode(order) + b"\n")
    child.stdin.flush()
    return child


def _awaited(child: subprocess.Popen[bytes], deadline: float, until: bytes | None) -> bytes:
    """Read standard output up to a line's end, or up to its own (None)."""
    assert child.stdout is not None
    fd = child.stdout.fileno()
    read = bytearray()
    while until is None or not read.endswith(until):
        if not select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise LoadError("the generator did not end in time")
        data = os.read(fd, 1 if until else 1 << 20)
        if not data:
            break
        read += data
    return bytes(read)


def _report(child: subprocess.Popen[bytes], deadline: float) -> Report:
    data = _awaited(child, deadline, None)
    if not data:
        raise LoadError(_complaint(child))
    return msgspec.msgpack.decode(data, type=Report)


def _complaint(child: subprocess.Popen[bytes]) -> str:
    _, stderr = child.communicate()
    lines = stderr.decode(errors="replace").strip().splitlines()
    return f"the generator failed: {lines[-1] if lines else 'without a word'}"


def _joined(reports: list[Report]) -> Loaded:
    times: dict[str, array[float]] = {}
    numbers = array("q")
    for report in reports:
        for name, data in report.times.items():
            times.setdefault(name, array("d")).frombytes(data)
        numbers.frombytes(report.numbers)
    return Loaded(
        requests=sum(report.requests for report in reports),
        jobs=sum(report.jobs for report in reports),
        seconds=max(report.ended for report in reports) - min(report.began for report in reports),
        cpu_seconds=sum(report.cpu_seconds for report in reports),
        processes=len(reports),
        errors=sum(report.errors for report in reports),
        first_error=next((report.first_error for report in reports if report.first_error), ""),
        unanswered=sum(report.unanswered for report in reports),
        times={name: array("d", sorted(values)) for name, values in times.items()},
        numbers=numbers,
    )


def percentile(values: array[float], percent: float) -> float:
    """Return a percentile of sorted values (the next one up, none interpolated); NaN where there are none."""
    if not values:
        return float("nan")
    return values[min(len(values) - 1, int(len(values) * percent / 100))]
