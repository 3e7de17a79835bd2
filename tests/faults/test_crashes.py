"""Processes are killed while load runs: what was acknowledged is delivered, once a run, in order; what was completed stays so.

Real processes, the SQLite store, plain HTTP clients in threads. The full checker with all its rules is a matter of its own; these
are the claims that must never be without a test.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.conftest import Server, StartServer, eventually

QUEUES = 4
ROUNDS = 3
ACKS_A_ROUND = 40  # per queue, between two kills


class Client:
    """Keeps one connection, and makes a new one when it breaks. Status 0: nobody knows what became of the request."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._connection: http.client.HTTPConnection | None = None

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """Send a request; returns status and decoded body."""
        if self._connection is None:
            self._connection = http.client.HTTPConnection(self.server.host, self.server.port, timeout=10)
        try:
            self._connection.request(method, path, None if body is None else json.dumps(body))
            response = self._connection.getresponse()
            data = response.read()
            return response.status, json.loads(data) if data else None
        except (OSError, http.client.HTTPException):
            self.close()
            return 0, None

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class Producer(threading.Thread):
    """Enqueues jobs 0, 1, 2, … of one queue, one after the other, and notes which were acknowledged."""

    def __init__(self, server: Server, queue: str, stop: threading.Event, timeout: int) -> None:
        super().__init__(daemon=True)
        self.client = Client(server)
        self.queue = queue
        self.acked: list[int] = []
        self.unknown: set[int] = set()
        self.statuses: Counter[int] = Counter()
        self._stop_event = stop
        self._timeout = timeout

    def run(self) -> None:
        """Enqueue until told to stop."""
        number = 0
        while not self._stop_event.is_set():
            job = {
                "id": str(number),
                "queue": self.queue,
                "timeout": self._timeout,
                "persist_data": True,
                "max_retries": 50,
                "payload": number,
            }
            status, _ = self.client.ask("POST", "/v1/enqueue", job)
            self.statuses[status] += 1
            if status == 202:
                self.acked.append(number)
            elif status in (0, 503):
                self.unknown.add(number)
            else:
                assert status == 429, status
            number += 1
        self.client.close()


class Runner(threading.Thread):
    """Takes jobs of one queue and completes them, and notes both."""

    def __init__(self, server: Server, queue: str, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.client = Client(server)
        self.queue = queue
        self.delivered: list[tuple[int, int]] = []  # (payload, attempt)
        self.completed: set[int] = set()
        self.delivered_after_completion: list[int] = []
        self._stop_event = stop

    def run(self) -> None:
        """Take and complete until told to stop."""
        while not self._stop_event.is_set():
            self.step(wait=0.2)
        self.client.close()

    def step(self, wait: float) -> bool:
        """Take and complete one job, if there is one; returns whether there was."""
        status, job = self.client.ask("GET", f"/v1/next?queue={self.queue}&wait={wait}")
        if status != 200:
            return False
        if job["payload"] in self.completed:
            self.delivered_after_completion.append(job["payload"])
        self.delivered.append((job["payload"], job["attempt"]))
        status, _ = self.client.ask("DELETE", f"/v1/complete?queue={self.queue}&job_id={job['id']}&run_id={job['run_id']}")
        if status == 200:
            self.completed.add(job["payload"])
        return True


def pids(server: Server, kind: str) -> list[int]:
    """Return the processes of one kind: shard or front."""
    return [pid for pid, command in server.children().items() if f"proteus_shards.{kind}" in command and "prepare" not in command]


def kill(server: Server, kind: str, place: int) -> None:
    """Kill one process of a kind with -9, and wait until it is replaced."""
    running = pids(server, kind)
    victim = running[place % len(running)]
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: victim not in server.children() and len(pids(server, kind)) == len(running))


@contextmanager
def producing(server: Server, timeout: int = 30) -> Iterator[list[Producer]]:
    """Run a producer per queue."""
    stop = threading.Event()
    producers = [Producer(server, f"queue-{count}", stop, timeout) for count in range(QUEUES)]
    for producer in producers:
        producer.start()
    try:
        yield producers
    finally:
        stop.set()
        for producer in producers:
            producer.join(20)


def wait_for_acks(producers: list[Producer], count: int) -> None:
    """Wait until each producer has so many more acknowledgements."""
    wanted = [len(producer.acked) + count for producer in producers]
    eventually(lambda: all(len(producer.acked) >= want for producer, want in zip(producers, wanted, strict=True)), 60)


def drain(server: Server, queue: str) -> Runner:
    """Take and complete everything of a queue."""
    runner = Runner(server, queue, threading.Event())
    while runner.step(wait=0):
        pass
    runner.client.close()
    return runner


def check_drained(server: Server, producers: list[Producer]) -> None:
    """Every acknowledged job is delivered, once, in order, and nothing that nobody sent."""
    for producer in producers:
        runner = drain(server, producer.queue)
        delivered = [number for number, _ in runner.delivered]
        assert sorted(delivered) == delivered
        assert len(set(delivered)) == len(delivered)
        assert set(producer.acked) <= set(delivered)
        assert set(delivered) <= set(producer.acked) | producer.unknown
        assert {1} == {attempt for _, attempt in runner.delivered}


@pytest.mark.parametrize("kind", ["shard", "front"])
def test_acknowledged_jobs_survive_the_kills_of_a_process_under_load(start_server: StartServer, kind: str) -> None:
    """Shards, then fronts, die by -9 again and again; each 202 is delivered afterwards, once, in order."""
    server = start_server()
    with producing(server) as producers:
        for place in range(ROUNDS):
            wait_for_acks(producers, ACKS_A_ROUND)
            kill(server, kind, place)
        wait_for_acks(producers, ACKS_A_ROUND)

    check_drained(server, producers)


def test_acknowledged_jobs_survive_the_kill_of_everything_at_once(start_server: StartServer) -> None:
    """All processes die by -9 under load; a new server on the same folder has every 202."""
    server = start_server()
    with producing(server) as producers:
        wait_for_acks(producers, 2 * ACKS_A_ROUND)
        everything = [server.process.pid, *server.children()]
        for pid in everything:
            os.kill(pid, signal.SIGKILL)
    server.wait()

    check_drained(start_server(), producers)


def test_completed_jobs_stay_completed_while_shards_die(start_server: StartServer) -> None:
    """With runners at work, no job comes back after its completion was acknowledged, and none is lost."""
    server = start_server()
    stop = threading.Event()
    runners = [Runner(server, f"queue-{count}", stop) for count in range(QUEUES)]
    with producing(server, timeout=1) as producers:
        for runner in runners:
            runner.start()
        for place in range(ROUNDS):
            wait_for_acks(producers, ACKS_A_ROUND)
            kill(server, "shard", place)
        wait_for_acks(producers, ACKS_A_ROUND)

    def all_seen() -> bool:
        return all(set(producer.acked) <= runner.completed | lost(runner) for producer, runner in zip(producers, runners, strict=True))

    def lost(runner: Runner) -> set[int]:
        return {number for number, _ in runner.delivered} - runner.completed  # its completion's answer was lost: it may be gone

    try:
        eventually(all_seen, 30)
    finally:
        stop.set()
        for runner in runners:
            runner.join(20)
    for producer, runner in zip(producers, runners, strict=True):
        attempts = [attempt for _, attempt in sorted(runner.delivered)]
        assert [] == runner.delivered_after_completion
        assert set(producer.acked) <= {number for number, _ in runner.delivered}
        assert len(set(runner.delivered)) == len(runner.delivered), "two runs of one attempt"
        assert max(attempts) <= 51
