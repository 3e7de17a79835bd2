"""Crowds and overload: what many slow clients, and more load than fits, do to the others. `python -m bench.crowds` prints a table.

A *healthy* client has one connection and asks for one thing after the other. Its latencies are taken alone and beside a crowd, which is there all the while:

- **head**, **body**: connections that send a request byte by byte, one a second, and are cut off by their deadline and come again;
- **read**: connections that asked for 100 KB and take a byte a second of it;
- **idle**: connections that have been served and stay; **polls**: connections whose next waits.

**Overload** is offered in bursts of `BURST` requests on as many connections as it takes, at three times the rate that a closed loop reaches, whatever the server does: a burst
whose turn has come while all `POOL` connections wait is not sent, and counted. Goodput is what was accepted a second.

A crowd runs beside the server on the same cores: what it costs the client side is in the figures as well. For overload the two have a core each, where there are
two (`--shared`: not), in the closed loop and beyond it alike: else the load would take from the server what it is measured by. What the server's own CPU time brings is
told beside (`per_core`): on a machine that others use as well that is the surer figure.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import resource
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import msgspec
import psutil

BURST = 8
POOL = 1000
HOST = b"Host: localhost\r\n"
POST = b"POST /enqueue HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n%s"
CLOSED = 64  # connections of the closed loop


class Load(msgspec.Struct):
    """What a load came to."""

    seconds: float = 0.0
    offered: int = 0
    unsent: int = 0
    closed: int = 0  # connections that the server closed
    accepted: int = 0  # in time: before the clock stopped
    statuses: Counter[str] = msgspec.field(default_factory=Counter)
    accepted_ms: list[float] = msgspec.field(default_factory=list)  # of bursts that were accepted as a whole
    refused_ms: list[float] = msgspec.field(default_factory=list)  # of the others

    @property
    def goodput(self) -> float:
        """Return how many requests were accepted a second."""
        return self.accepted / self.seconds


def quantile(values: list[float], share: float) -> float:
    """Return a quantile."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else 0.0


@contextlib.contextmanager
def server(*options: str, apart: bool = False) -> Iterator[tuple[int, psutil.Process]]:
    """Run a server; gives its port and its process. `apart`: on a core of its own, and this process on another, where there are two."""
    cores = sorted(os.sched_getaffinity(0))
    apart = apart and len(cores) > 1
    if apart:
        os.sched_setaffinity(0, cores[:1])  # what it starts inherits that
    with tempfile.TemporaryDirectory(prefix="crowds-") as folder:
        root = str(Path(__file__).resolve().parent.parent)
        with (Path(folder) / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "proteus_shards", "serve", "--port", "0", "--shards", "1", *options],
                cwd=folder,
                env={**os.environ, "PYTHONPATH": root},
                stdout=subprocess.PIPE,
                stderr=log,
                process_group=0,
            )
        if apart:
            os.sched_setaffinity(0, cores[1:2])
        try:
            assert process.stdout is not None
            found = re.search(rb":(\d+) ", process.stdout.readline())
            assert found is not None, (Path(folder) / "log").read_text()
            yield int(found[1]), psutil.Process(process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
            assert process.stdout is not None
            process.stdout.close()
            os.sched_setaffinity(0, cores)


def resident_mib(process: psutil.Process) -> float:
    """Return the memory of a server's processes."""
    return float(sum(child.memory_info().rss for child in process.children())) / 2**20


def cpu_seconds(process: psutil.Process) -> float:
    """Return the CPU time of a server's processes."""
    return float(sum(sum(child.cpu_times()[:2]) for child in process.children()))


def job(number: int, payload: str = "", *, kept: bool = False) -> bytes:
    """Return the enqueue of a job."""
    body = b'{"id":"%d","queue":"q","timeout":30,"persist_data":%s,"payload":"%s"}' % (
        number,
        b"true" if kept else b"false",
        payload.encode(),
    )
    return POST % (len(body), body)


def healthy(port: int, seconds: float) -> list[float]:
    """Return the latencies of one client, in milliseconds."""
    found: list[float] = []
    with socket.create_connection(("127.0.0.1", port), timeout=60) as sock:
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            began = time.perf_counter()
            sock.sendall(b"GET /next?queue=none HTTP/1.1\r\n" + HOST + b"\r\n")
            assert sock.recv(4096).startswith(b"HTTP/1.1 204"), "the healthy client was not served"
            found.append(1000 * (time.perf_counter() - began))
            time.sleep(0.002)
    return found


class Crowd:
    """Connections that do one thing, and are kept up by a thread. `drip` is called for each about once a second."""

    def __init__(
        self, port: int, count: int, begin: Callable[[socket.socket, int], None], drip: Callable[[socket.socket, int], None] | None
    ) -> None:
        self.cut_off = 0
        self._port = port
        self._begin = begin
        self._drip = drip
        self._sockets = [self._connect(number) for number in range(count)]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        for sock in self._sockets:
            sock.close()

    def _connect(self, number: int) -> socket.socket:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(60)
        sock.connect(("127.0.0.1", self._port))
        self._begin(sock, number)
        sock.setblocking(False)
        return sock

    def _keep(self) -> None:
        turn = 0
        slices = 50
        while not self._over.wait(1 / slices):
            turn += 1
            for number in range(turn % slices, len(self._sockets), slices):
                try:
                    if self._drip is not None:
                        self._drip(self._sockets[number], number)
                except BlockingIOError:
                    continue
                except OSError:
                    self.cut_off += 1
                    self._sockets[number].close()
                    self._sockets[number] = self._connect(number)


def _send_byte(sock: socket.socket, _: int) -> None:
    with contextlib.suppress(BlockingIOError):
        if not sock.recv(1000) or True:  # an answer here is the 408 that ends it
            raise ConnectionError
    sock.send(b"x")


def _read_byte(sock: socket.socket, _: int) -> None:
    if not sock.recv(1):
        raise ConnectionError


def _ask(data: bytes, wanted: bytes) -> Callable[[socket.socket, int], None]:
    def ask(sock: socket.socket, _: int) -> None:
        sock.sendall(data)
        if wanted:
            assert sock.recv(4096).startswith(wanted)

    return ask


KINDS: dict[str, tuple[Callable[[socket.socket, int], None], Callable[[socket.socket, int], None] | None]] = {
    "head": (_ask(b"GET /next?queue=", b""), _send_byte),
    "body": (_ask(b"POST /enqueue HTTP/1.1\r\n" + HOST + b"Content-Length: 1000\r\n\r\n", b""), _send_byte),
    "read": (_ask(b"GET /next?queue=q HTTP/1.1\r\n" + HOST + b"\r\n", b""), _read_byte),
    "idle": (_ask(b"GET /next?queue=none HTTP/1.1\r\n" + HOST + b"\r\n", b"HTTP/1.1 204"), None),
    "polls": (_ask(b"GET /next?queue=never&wait=60 HTTP/1.1\r\n" + HOST + b"\r\n", b""), None),
}


def crowd(kind: str, count: int, seconds: float) -> dict[str, float]:
    """Return what a crowd does to a healthy client."""
    with server("--store", "memory:") as (port, process):
        if kind == "read":
            with socket.create_connection(("127.0.0.1", port)) as sock:
                for number in range(count + 100):
                    sock.sendall(job(number, "x" * 100_000))
                    assert sock.recv(4096).startswith(b"HTTP/1.1 202")
        healthy(port, 0.5)
        alone, memory = healthy(port, seconds), resident_mib(process)
        with Crowd(port, count, *KINDS[kind]) as held:
            time.sleep(0.5)
            before = cpu_seconds(process)
            beside = healthy(port, seconds)
            cores = (cpu_seconds(process) - before) / seconds
            return {
                "connections": count,
                "alone_p50_ms": quantile(alone, 0.5),
                "alone_p99_ms": quantile(alone, 0.99),
                "beside_p50_ms": quantile(beside, 0.5),
                "beside_p99_ms": quantile(beside, 0.99),
                "server_cores": cores,
                "memory_mib": resident_mib(process) - memory,
                "cut_off": held.cut_off,
            }


def _renewed(sock: socket.socket, selector: selectors.BaseSelector, port: int) -> socket.socket:
    """Return a connection in the place of one that has ended."""
    selector.unregister(sock)
    sock.close()
    fresh = socket.create_connection(("127.0.0.1", port), timeout=60)
    selector.register(fresh, selectors.EVENT_READ)
    return fresh


def offer(port: int, seconds: float, rate: float | None, first: int, *, kept: bool = False) -> Load:
    """Offer bursts at a rate, or, without one, as a closed loop of `CLOSED` connections."""
    load = Load()
    selector = selectors.DefaultSelector()
    idle: list[socket.socket] = []
    number = 0
    waiting: dict[socket.socket, tuple[float, bytes]] = {}
    for _ in range(POOL if rate is not None else CLOSED):
        idle.append(socket.create_connection(("127.0.0.1", port), timeout=60))
        selector.register(idle[-1], selectors.EVENT_READ)
    began = time.monotonic()

    def send(sock: socket.socket) -> None:
        nonlocal number
        sock.send(b"".join(job(first + number + each, kept=kept) for each in range(BURST)))
        number += BURST
        waiting[sock] = (time.monotonic(), b"")

    def receive(sock: socket.socket) -> None:
        more = sock.recv(65536)
        if not more:  # the server has closed
            load.closed += 1
            idle[:] = [*(each for each in idle if each is not sock), _renewed(sock, selector, port)]
            waiting.pop(sock, None)
            return
        since, data = waiting[sock]
        known = data.count(b"HTTP/1.1 202")
        data += more
        if time.monotonic() < began + seconds:
            load.accepted += data.count(b"HTTP/1.1 202") - known
        heads = re.findall(rb"HTTP/1\.1 (\d{3}) ", data)
        if len(heads) < BURST or not data.endswith(b"\r\n\r\n" if heads[-1] == b"202" else b"}"):
            waiting[sock] = (since, data)
            return
        del waiting[sock]
        idle.append(sock)
        load.statuses.update(head.decode() for head in heads)
        (load.accepted_ms if set(heads) == {b"202"} else load.refused_ms).append(1000 * (time.monotonic() - since))

    due = began
    while (now := time.monotonic()) < began + seconds or (waiting and now < began + seconds + 30):
        offering = now < began + seconds
        while offering and (due <= now if rate is not None else len(waiting) < CLOSED):
            due += BURST / rate if rate is not None else 0
            load.offered += BURST
            if idle:
                send(idle.pop())
            else:
                load.unsent += BURST
        for key, _ in selector.select(0.001):
            assert isinstance(key.fileobj, socket.socket)
            receive(key.fileobj)
    load.seconds = seconds
    for key in list(selector.get_map().values()):
        assert isinstance(key.fileobj, socket.socket)
        key.fileobj.close()
    selector.close()
    return load


def overload(seconds: float, *options: str, kept: bool = False, apart: bool = True) -> dict[str, float]:
    """Return what three times the capacity does to goodput, latency and memory."""
    with server(*options, apart=apart) as (port, process):
        offer(port, 1.0, None, 0, kept=kept)
        before = cpu_seconds(process)
        capacity = offer(port, seconds, None, 10**8, kept=kept)
        cores = (cpu_seconds(process) - before) / seconds
        rate = 3 * capacity.goodput
        offer(port, 1.0, rate, 2 * 10**8, kept=kept)
        memory = resident_mib(process)
        before = cpu_seconds(process)
        load = offer(port, seconds, rate, 3 * 10**8, kept=kept)
        overload_cores = (cpu_seconds(process) - before) / seconds
        per_job = (resident_mib(process) - memory) * 2**20 / max(1, load.statuses["202"])
        return {
            "capacity_per_second": capacity.goodput,
            "capacity_cores": cores,
            "capacity_per_core": capacity.goodput / cores,
            "overload_cores": overload_cores,
            "goodput_per_core": load.goodput / overload_cores,
            "answers_per_core": sum(load.statuses.values()) / seconds / overload_cores,
            "offered_per_second": load.offered / seconds,
            "goodput_per_second": load.goodput,
            "goodput_share": load.goodput / capacity.goodput,
            "refused_per_second": load.statuses["429"] / seconds,
            "unsent_per_second": load.unsent / seconds,
            "closed_per_second": load.closed / seconds,
            "others": sum(count for status, count in load.statuses.items() if status not in {"202", "429"}),
            "accepted_p50_ms": quantile(load.accepted_ms, 0.5),
            "accepted_p99_ms": quantile(load.accepted_ms, 0.99),
            "refused_p50_ms": quantile(load.refused_ms, 0.5),
            "refused_p99_ms": quantile(load.refused_ms, 0.99),
            "memory_bytes_per_job": per_job,
        }


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m bench.crowds", description="Crowds and overload.", allow_abbrev=False)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement [default: 5]")
    parser.add_argument("--connections", type=int, default=2000, help="of a crowd of slow ones [default: 2000]")
    parser.add_argument(
        "--only",
        default="",
        help="names joined by commas: head, body, read, idle, idle-many, polls, overload, overload-kept, overload-quart",
    )
    parser.add_argument("--shared", action="store_true", help="let the server and the load of overload share their cores")
    given = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, hard), hard))
    count, seconds, apart = given.connections, given.seconds, not given.shared
    runs: dict[str, Callable[[], dict[str, float]]] = {
        "head": lambda: crowd("head", count, seconds),
        "body": lambda: crowd("body", count, seconds),
        "read": lambda: crowd("read", count, seconds),
        "idle": lambda: crowd("idle", count, seconds),
        "idle-many": lambda: crowd("idle", 5 * count, seconds),
        "polls": lambda: crowd("polls", count * 5 // 2, seconds),
        "overload": lambda: overload(seconds, "--store", "memory:", apart=apart),
        "overload-kept": lambda: overload(seconds, kept=True, apart=apart),
        "overload-quart": lambda: overload(seconds, "--store", "memory:", "--no-fast-lane", apart=apart),
    }
    for name in given.only.split(",") if given.only else runs:
        found = runs[name]()
        print(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in found.items()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
