"""Real processes under supervision: one that hangs, a group that was stopped, fronts renewed under load, and systemd's watchdog."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from proteus_shards.child import SERVED_SECONDS_ENOUGH, Child
from proteus_shards.config import Settings, ShardBoot
from proteus_shards.surroundings import watchdog_seconds
from proteus_shards.tally import CRASH_LOOP_MIN
from tests.conftest import Server, StartServer, eventually

HANG = ("--hang-seconds-max", "5")


def pid_of(server: Server, name: str) -> int | None:
    """Return the process of a server's first shard or front, if it runs."""
    wanted = {"shard": "proteus_shards.shard", "front": "proteus_shards.front"}[name]
    found = [pid for pid, command in server.children().items() if command.split()[-1:] == [wanted]]
    return min(found, default=None)


def job(number: int) -> dict[str, object]:
    """Return a persisted job."""
    return {"id": f"{number}", "queue": "q", "timeout": 600, "persist_data": True}


@pytest.mark.parametrize("name", ["shard", "front"])
def test_a_process_that_hangs_is_replaced(name: str, start_server: StartServer) -> None:
    """It is killed, its successor has every job, and the log says why."""
    server = start_server("--shards", "1", *HANG)
    assert server.request("POST", "/enqueue", job(1)).status == 202
    stuck = pid_of(server, name)
    assert stuck is not None

    os.kill(stuck, signal.SIGSTOP)
    eventually(lambda: "hangs and is killed" in server.log())
    eventually(lambda: pid_of(server, name) not in (None, stuck))
    eventually(lambda: server.request("GET", "/ready").status == 200)

    assert server.request("GET", "/next?queue=q").json()["id"] == "1"


def test_a_crash_loop_shows_in_ready_and_in_the_metrics(start_server: StartServer) -> None:
    """Both say which process ends soon after each start, and how often in a row; the others are not named."""
    server = start_server("--shards", "1", "--store", "memory:")
    for _ in range(CRASH_LOOP_MIN):
        eventually(lambda: server.request("GET", "/ready").status == 200)
        pid = pid_of(server, "shard")
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        eventually(lambda gone=pid: pid_of(server, "shard") not in (None, gone))  # type: ignore[misc]

    eventually(lambda: server.request("GET", "/ready").json().get("crash_loops") == {"shard-0": CRASH_LOOP_MIN})
    page = server.request("GET", "/metrics").body.decode()

    assert f'proteus_process_crashes{{process="shard-0"}} {CRASH_LOOP_MIN}.0' in page
    assert 'proteus_process_crashes{process="front-0"} 0.0' in page
    assert '"level": "error"' in next(line for line in server.log().splitlines() if f'"crashes": {CRASH_LOOP_MIN}' in line)


async def test_a_process_that_serves_for_a_while_is_in_no_crash_loop() -> None:
    """Its next end is the first in a row."""
    child = Child("x", ("true",), ShardBoot(Settings(), 0, "/nowhere"))
    child._crashes = 7
    before = child.statistics().crashes
    child._serving_since = trio.current_time() - SERVED_SECONDS_ENOUGH

    assert (before, child.statistics().crashes) == (7, 0)


def test_a_group_that_was_stopped_as_a_whole_hangs_nowhere(start_server: StartServer) -> None:
    """A machine that slept for long goes on with the processes that it had."""
    server = start_server("--shards", "1", *HANG)
    children = set(server.children())
    for pid in (server.process.pid, *children):
        os.kill(pid, signal.SIGSTOP)
    stopped = threading.Event()
    stopped.wait(5)  # the one thing to wait for is time itself: longer than a hang may last
    for pid in (*children, server.process.pid):
        os.kill(pid, signal.SIGCONT)

    assert server.request("POST", "/enqueue", job(1)).status == 202
    stopped.wait(3.5)
    assert set(server.children()) == children
    assert "hangs" not in server.log()


class Producer(threading.Thread):
    """Enqueues on one connection, and on a new one where the server has said that the old one ends. Never tries anything again."""

    def __init__(self, server: Server, first: int) -> None:
        super().__init__()
        self.accepted = 0
        self.closed = 0
        self.faults: list[str] = []
        self._server = server
        self._number = first
        self._over = threading.Event()

    def stop(self) -> None:
        """Enqueue no more."""
        self._over.set()
        self.join()

    def run(self) -> None:
        connection = http.client.HTTPConnection(self._server.host, self._server.port, timeout=30)
        while not self._over.is_set():
            self._number += 1
            body = f'{{"id":"{self._number}","queue":"q","timeout":600}}'
            try:
                connection.request("POST", "/enqueue", body)
                answer = connection.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException) as error:
                self.faults.append(repr(error))
                break
            if answer.status == 202:
                self.accepted += 1
            else:
                self.faults.append(f"status {answer.status}")
            self.closed += answer.will_close
        connection.close()


@contextmanager
def producing(server: Server, count: int) -> Iterator[list[Producer]]:
    """Keep some producers at work."""
    producers = [Producer(server, 1_000_000 * number) for number in range(count)]
    for producer in producers:
        producer.start()
    try:
        yield producers
    finally:
        for producer in producers:
            producer.stop()


@pytest.mark.parametrize("fronts", [1, 2])
def test_renewed_fronts_fail_no_request(fronts: int, start_server: StartServer) -> None:
    """SIGHUP puts a new process in the place of each front, under load, one after the other, and every request gets its answer."""
    server = start_server("--fronts", f"{fronts}", "--shards", "1")
    before = {pid for pid, command in server.children().items() if command.endswith("proteus_shards.front")}
    with producing(server, 8) as producers:
        eventually(lambda: all(producer.accepted > 10 for producer in producers))
        server.process.send_signal(signal.SIGHUP)
        eventually(lambda: "all fronts are renewed" in server.log(), 60)
        reached = [producer.accepted for producer in producers]
        eventually(
            lambda: all(producer.faults or producer.accepted > count + 10 for producer, count in zip(producers, reached, strict=True))
        )
    after = {pid for pid, command in server.children().items() if command.endswith("proteus_shards.front")}

    assert [producer.faults for producer in producers] == [[]] * 8
    assert sum(producer.closed for producer in producers) >= 8
    assert len(before) == len(after) == fronts
    assert not before & after
    taken = 0
    while (answer := server.request("GET", "/next?queue=q&num_jobs=1000")).status == 200:
        taken += len(answer.json())
    assert taken == sum(producer.accepted for producer in producers)


def test_systemd_hears_that_the_server_is_ready_and_alive(start_server: StartServer, tmp_path: Path) -> None:
    """READY once, WATCHDOG again and again, STOPPING at the end; no child has the socket."""
    heard: list[bytes] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(tmp_path / "notify"))
        notify.settimeout(60)

        def hear() -> None:
            while b"STOPPING=1" not in heard:
                heard.append(notify.recv(100))

        systemd = threading.Thread(target=hear)
        systemd.start()
        server = start_server(environ={"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"})
        eventually(lambda: heard.count(b"WATCHDOG=1") > 2 and b"READY=1" in heard)
        assert server.stop() == 0
        systemd.join()

    assert heard.count(b"READY=1") == 1
    assert set(heard) == {b"READY=1", b"WATCHDOG=1", b"STOPPING=1"}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "500000"}, 0.5),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": str(os.getpid())}, 0.5),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_is_fed_as_systemd_asks(environ: dict[str, str], expected: float | None) -> None:
    """Only by the process that is meant, and only where it makes sense."""
    assert watchdog_seconds(environ) == expected
