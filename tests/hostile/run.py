"""A real server under bad inputs: on the fast lane, on Quart, and on the sockets of its shards, as many as are asked for.

What is looked for: an answer of the server's fault (5xx), a connection that is neither answered nor ended, a process that has ended, a traceback in the log, memory that grows.
Every input comes from the seed; which connection it meets does not.
"""

from __future__ import annotations

import math
import random
import re
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import psutil
import trio

from proteus_shards.core.commands import Cancel, Complete, Enqueue, Heartbeat, Inspect, ListDead, Next, Undeliver
from proteus_shards.ipc.frames import pack_frame
from proteus_shards.ipc.messages import encode, hello
from tests.conftest import server_environ
from tests.hostile import inputs

PATIENCE_SECONDS = 60.0
STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) [^\r\n]*\r\n((?:[^\r\n]+\r\n)*)\r\n")
LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)
IN_ONE = 40  # requests on one connection
SHARES = {"lane": 0.66, "lane, broken": 0.12, "quart": 0.08, "quart, broken": 0.04, "frames": 0.10}
GROWTH_BYTES_MAX = 48 * 1024 * 1024  # of all processes, from the first tenth to the end
HONEST = [
    encode([(number, command)])
    for number, command in enumerate(
        (
            Enqueue("q", "a", 30, False, 0, b"{}"),
            Next("q", 1, 0),
            Heartbeat("q", "a", None, b"1"),
            Complete("q", "a"),
            Undeliver("q", "a", bytes(16)),
            ListDead("q", 1, 0),
            Inspect(),
            Cancel(1),
        )
    )
]


class Report(msgspec.Struct):
    """What came of a run."""

    seed: int
    inputs: Counter[str] = msgspec.field(default_factory=Counter)
    statuses: Counter[int] = msgspec.field(default_factory=Counter)
    wrong: list[str] = msgspec.field(default_factory=list)
    seconds: float = 0.0
    resident_mib: tuple[float, float] = (0.0, 0.0)  # after a tenth, and at the end

    @property
    def text(self) -> str:
        """Return what a person wants to know."""
        classes: Counter[str] = Counter()
        for status, count in self.statuses.items():
            classes[f"{status // 100}xx"] += count
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(self.inputs.items()))
        lines = [
            f"{sum(self.inputs.values()):,} inputs in {self.seconds:.0f} s ({kinds})",
            f"answers: {', '.join(f'{count:,} of {name}' for name, count in sorted(classes.items()))}",
            f"memory of all processes: {self.resident_mib[0]:.0f} MiB after a tenth, {self.resident_mib[1]:.0f} MiB at the end",
        ]
        return "\n".join(lines + (self.wrong[:20] or ["nothing wrong"]))


class _Stand:
    """A running server that is to be hurt."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        folder.mkdir()
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "proteus_shards", "serve", "--port", "0", "--shards", "1", "--request-seconds-max", "10", *options],
                cwd=folder,
                env=server_environ({"TMPDIR": str(folder)}),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                process_group=0,
            )
        assert self.process.stdout is not None
        found = re.search(rb":(\d+) ", self.process.stdout.readline())
        assert found is not None, (folder / "log").read_text()
        self.port = int(found[1])
        self.pids = self._children()
        self.gone = False  # a process that should listen does not
        (self.socket,) = folder.glob("proteus-*/shard-0.sock")

    def _children(self) -> set[int]:
        return {child.pid for child in psutil.Process(self.process.pid).children()}

    @contextmanager
    def noticing(self) -> Iterator[None]:
        """Take note where nobody listens."""
        try:
            yield
        except OSError:
            self.gone = True

    def resident(self) -> int:
        """Return the memory of its processes, in bytes."""
        return sum(psutil.Process(pid).memory_info().rss for pid in self.pids & self._children())

    def faults(self) -> list[str]:
        """Return what has gone wrong inside."""
        log = (self.folder / "log").read_text(errors="replace")
        found = [line[:2000] for line in log.splitlines() if '"exception"' in line or '"level": "critical"' in line]
        if self._children() != self.pids:
            found.append(f"processes have ended, the log ends in {log[-1000:]}")
        return found

    def stop(self) -> None:
        """End it."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


async def hurt(count: int, seed: int, tell: Callable[[str], None], kinds: Collection[str] = tuple(SHARES), tasks: int = 12) -> Report:
    """Send so many inputs, in these shares, and report."""
    report = Report(seed)
    began = trio.current_time()
    with tempfile.TemporaryDirectory(prefix="hostile-") as name:
        lane = _Stand(Path(name) / "lane", "--store", "memory:")
        quart = _Stand(Path(name) / "quart", "--no-fast-lane")
        stands = (lane, quart)
        try:
            for part, share in enumerate([0.1, *[0.15] * 6]):
                batches = _batches(math.ceil(count * share), seed, part, kinds)
                async with trio.open_nursery() as nursery:
                    for _ in range(tasks):
                        nursery.start_soon(_work, batches, lane, quart, report)
                if part == 0:
                    first = sum(stand.resident() for stand in stands)
                tell(f"{sum(report.inputs.values()):,} inputs, {trio.current_time() - began:.0f} s")
                for stand in stands:
                    report.wrong += stand.faults()
                if report.wrong:
                    break
            last = sum(stand.resident() for stand in stands)
            if last - first > GROWTH_BYTES_MAX:
                report.wrong.append(f"memory grew by {(last - first) >> 20} MiB")
            report.resident_mib = (first / 2**20, last / 2**20)
        finally:
            for stand in stands:
                stand.stop()
    report.seconds = trio.current_time() - began
    return report


def _batches(count: int, seed: int, part: int, kinds: Collection[str]) -> list[tuple[str, int, int]]:
    """Return kinds of inputs, how many of each, and their seeds."""
    source = random.Random(f"{seed} {part}")
    found = []
    for kind in kinds:
        left = math.ceil(count * SHARES[kind] / sum(SHARES[each] for each in kinds))
        size = IN_ONE if "broken" not in kind else 10
        found += [(kind, min(size, left - start), source.randrange(2**32)) for start in range(0, left, size)]
    source.shuffle(found)
    return found


async def _work(batches: list[tuple[str, int, int]], lane: _Stand, quart: _Stand, report: Report) -> None:
    while batches and not report.wrong:
        kind, size, seed = batches.pop()
        source = random.Random(seed)
        stand = quart if kind.startswith("quart") else lane
        where = f"{kind}, {size} inputs of seed {seed}"
        with trio.move_on_after(PATIENCE_SECONDS) as patience, stand.noticing():
            if kind == "frames":
                await _send_frames(stand, source, size)
            elif kind.endswith("broken"):
                for _ in range(size):
                    await _send_broken(stand, inputs.broken(source), where, report)
            else:
                await _send_requests(stand, [inputs.request(source) for _ in range(size)], where, report)
        report.inputs[kind] += size
        if stand.gone:
            report.wrong.append(f"{where}: nobody listens any more")
        if patience.cancelled_caught:
            report.wrong.append(f"{where}: no end within {PATIENCE_SECONDS:g} s")


async def _talk(stream: trio.SocketStream, data: bytes, *, end: bool) -> bytes:
    """Send bytes, and read to the end of the connection."""
    received: list[bytes] = []

    async def send() -> None:
        try:
            await stream.send_all(data)
            if end:
                await stream.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return  # it has ended the connection already

    try:
        async with stream, trio.open_nursery() as nursery:
            nursery.start_soon(send)
            while piece := await stream.receive_some(65536):
                received.append(piece)
            nursery.cancel_scope.cancel()
    except* (trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    return b"".join(received)


async def _send_requests(stand: _Stand, requests: list[bytes], where: str, report: Report) -> None:
    last = b"GET /next?queue=none HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    data = await _talk(await trio.open_tcp_stream("127.0.0.1", stand.port), b"".join(requests) + last, end=False)
    statuses = statuses_of(data)
    report.statuses.update(statuses)
    if any(status >= 500 for status in statuses):
        report.wrong.append(f"{where}: {Counter(statuses)}")
    if len(statuses) > len(requests) + 1 or not statuses:
        report.wrong.append(f"{where}: {len(statuses)} answers")


async def _send_broken(stand: _Stand, data: bytes, where: str, report: Report) -> None:
    received = await _talk(await trio.open_tcp_stream("127.0.0.1", stand.port), data, end=True)
    statuses = statuses_of(received) if received.startswith(b"HTTP/1") else []
    report.statuses.update(statuses)
    if any(status >= 500 for status in statuses):
        report.wrong.append(f"{where}: {data[:300]!r} got {statuses}")


async def _send_frames(stand: _Stand, source: random.Random, size: int) -> None:
    """Greet, perhaps, and send frames until the shard has had enough; then once more."""
    left = size
    while left > 0:
        count = min(left, source.randrange(1, 12))
        left -= count
        greeting = pack_frame(encode(hello(0, 1))) if source.random() < 0.9 else b""
        data = greeting + b"".join(inputs.frame(source, HONEST) for _ in range(count))
        await _talk(await trio.open_unix_socket(str(stand.socket)), data, end=True)


def statuses_of(data: bytes) -> list[int]:
    """Return the statuses of answers that stand one behind the other."""
    found: list[int] = []
    at = 0
    while (head := STATUS.match(data, at)) is not None:
        status = int(head[1])
        length = LENGTH.search(head[2])
        at = head.end() + (int(length[1]) if length is not None else 0)
        if status >= 200:
            found.append(status)
    return found
