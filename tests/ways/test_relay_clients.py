"""Clients of relay as they behave: the Go client's loop on the first generation, the Rust client's on the second, against real servers.

Each double keeps to what its original does on the wire: which statuses it takes, what it parses and requires, how it escapes names, what it sends and
leaves out, and what it does after an error.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from queue import Queue
from typing import Any
from urllib.parse import quote_plus

import pytest

from tests.conftest import Server, StartServer, eventually

JSON = {"Content-Type": "application/json"}
INT32 = range(-(2**31), 2**31)


_connections: list[Connection] = []


@pytest.fixture(autouse=True)
def closing() -> Iterator[None]:
    """Close what a test has opened."""
    yield
    while _connections:
        _connections.pop().close()


class UnexpectedError(Exception):
    """A status that the original would not know what to do with."""


class Connection:
    """A connection that is kept. An error body that nobody reads pins it: it is not used again."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._http: http.client.HTTPConnection | None = None
        self.opened = 0
        _connections.append(self)

    def __call__(self, method: str, path: str, body: bytes | None, headers: dict[str, str], *, reads: bool = True) -> tuple[int, bytes]:
        """Send a request. With `reads` False a body that comes is left unread, as by a client that defers closing it."""
        if self._http is None:
            self._http = http.client.HTTPConnection(self._server.host, self._server.port, timeout=30)
            self.opened += 1
        try:
            self._http.request(method, path, body, headers)
            response = self._http.getresponse()
            if not reads and response.headers["content-length"] not in ("0", None):
                self.close()
                return response.status, b""
            return response.status, response.read()
        except (OSError, http.client.HTTPException):
            self.close()
            raise

    def close(self) -> None:
        """End it."""
        if self._http is not None:
            self._http.close()
        self._http = None


class GoClient:
    """The Go client of the first generation: query escaping in paths, exact statuses, retries of 408 429 502 503 504 524."""

    RETRIED = frozenset({408, 429, 502, 503, 504, 524})

    def __init__(self, server: Server) -> None:
        self.connection = Connection(server)
        self.backoffs: list[int] = []

    def enqueue(self, **job: Any) -> None:
        """POST one job; state is left out when it is nil, max_retries when it is 0, updated_at is always null."""
        body = json.dumps([{**job, "updated_at": None}]).encode()
        self._expect(202, self._retried("POST", "/v1/queues/jobs", body))

    def next(self, queue: str, count: int, until: float) -> list[dict[str, Any]]:
        """Poll until there is a job: backoff from 100 ms to 1 s while there is none, or the server is busy."""
        pause = 0.1
        while time.monotonic() < until:
            status, body = self.connection("GET", f"/v1/queues/{quote_plus(queue)}/jobs?num_jobs={count}", None, {}, reads=True)
            if status == 200:
                jobs = [self._parse(job) for job in json.loads(body)]
                assert 1 <= len(jobs) <= count
                return jobs
            assert status == 204 or (status in self.RETRIED and not body), (status, body)
            self.backoffs.append(status)
            time.sleep(pause)  # the original's own backoff
            pause = min(1.0, pause * 2)
        return []

    def heartbeat(self, queue: str, job_id: str, state: bytes | None = None) -> None:
        """PATCH, with a JSON content type even without a body."""
        self._expect(202, self._retried("PATCH", self._path(queue, job_id), state))

    def complete(self, queue: str, job_id: str) -> None:
        """DELETE."""
        self._expect(200, self._retried("DELETE", self._path(queue, job_id), None))

    def reschedule(self, **job: Any) -> None:
        """PUT one object."""
        self._expect(202, self._retried("PUT", "/v1/queues/jobs", json.dumps({**job, "updated_at": None}).encode()))

    def exists(self, queue: str, job_id: str) -> bool:
        """HEAD."""
        status, _ = self._retried("HEAD", self._path(queue, job_id), None)
        return status == 200

    def _path(self, queue: str, job_id: str) -> str:
        return f"/v1/queues/{quote_plus(queue)}/jobs/{quote_plus(job_id)}"

    def _retried(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        for _ in range(100):
            status, text = self.connection(method, path, body, JSON)
            if status not in self.RETRIED:
                return status, text
            time.sleep(0.02)
        raise UnexpectedError(f"{method} {path}: {status}")

    @staticmethod
    def _expect(wanted: int, found: tuple[int, bytes]) -> None:
        if found[0] == 404:
            raise KeyError(found[1].decode())
        if found[0] == 409:
            raise FileExistsError(found[1].decode())
        if found[0] != wanted:
            raise UnexpectedError(str(found))

    @staticmethod
    def _parse(job: dict[str, Any]) -> dict[str, Any]:
        assert isinstance(job["id"], str)
        assert isinstance(job["queue"], str)
        assert job["timeout"] in INT32
        assert job["max_retries"] in INT32
        for field in ("run_at", "updated_at"):
            datetime.fromisoformat(job[field])
        return job


class RustClient:
    """The Rust client of the second generation: every byte that is not alphanumeric is escaped; every error but 404 and 409 is tried again, for ever."""

    def __init__(self, server: Server) -> None:
        self.connection = Connection(server)

    def enqueue(self, mode: str, jobs: list[dict[str, Any]]) -> None:
        """POST; state and run_at only where they are set, max_retries null for endless."""
        self._until("POST", f"/v2/queues/jobs?mode={mode}", 202, json.dumps(jobs).encode(), JSON)

    def next(self, queue: str, count: int) -> list[dict[str, Any]]:
        """Ask once; 204 is nothing. What comes must have all that the type requires."""
        status, body = self.connection("GET", f"/v2/queues/{_escaped(queue)}/jobs?num_jobs={count}", None, {})
        if status != 200:
            return []
        jobs: list[dict[str, Any]] = json.loads(body)
        assert 1 <= len(jobs) <= count
        for job in jobs:
            assert isinstance(job["queue"] + job["id"] + job["run_id"], str)
            assert 0 <= job["timeout"] < 2**31
            assert "payload" in job
            assert all(job[field] is None or 0 <= job[field] < 2**15 for field in ("max_retries", "retries_remaining"))
            for field in ("run_at", "updated_at", "created_at"):
                datetime.fromisoformat(job[field])
        return jobs

    def heartbeat(self, job: dict[str, Any], state: object = None) -> None:
        """PATCH of a run; without a state there is neither body nor content type."""
        body = None if state is None else json.dumps(state).encode()
        self._until("PATCH", self._run(job), 202, body, {} if body is None else JSON)

    def complete(self, job: dict[str, Any]) -> None:
        """DELETE of a run."""
        self._until("DELETE", self._run(job), 200)

    def requeue(self, job: dict[str, Any], mode: str, jobs: list[dict[str, Any]]) -> None:
        """PUT of a run."""
        self._until("PUT", f"{self._run(job)}?mode={mode}", 202, json.dumps(jobs).encode(), JSON)

    def exists(self, queue: str, job_id: str) -> bool:
        """HEAD; 404 is false."""
        try:
            self._until("HEAD", f"/v2/queues/{_escaped(queue)}/jobs/{_escaped(job_id)}", 200)
        except KeyError:
            return False
        return True

    def _run(self, job: dict[str, Any]) -> str:
        return f"/v2/queues/{_escaped(job['queue'])}/jobs/{_escaped(job['id'])}/run-id/{_escaped(job['run_id'])}"

    def _until(self, method: str, path: str, wanted: int, body: bytes | None = None, headers: dict[str, str] | None = None) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                status, text = self.connection(method, path, body, headers or {})
            except (OSError, http.client.HTTPException):
                time.sleep(0.05)
                continue
            if status == wanted:
                return
            if status == 404:
                raise KeyError(text.decode())
            if status == 409:
                raise FileExistsError(text.decode())
            assert status >= 500, f"{method} {path} would be tried for ever: {status} {text!r}"
            time.sleep(0.05)
        raise UnexpectedError(f"{method} {path}")


def _escaped(name: str) -> str:
    return "".join(chr(byte) if re.match("[A-Za-z0-9]", chr(byte)) and byte < 128 else f"%{byte:02X}" for byte in name.encode())


@pytest.fixture(params=["--fast-lane", "--no-fast-lane"])
def server(request: pytest.FixtureRequest, start_server: StartServer) -> Server:
    """Return a server of each way."""
    return start_server(request.param)


def test_a_go_consumer(server: Server) -> None:
    """Its loop: poll, work with heartbeats, complete; all on one connection, which an empty queue does not pin."""
    client, other = GoClient(server), GoClient(server)
    found: Queue[dict[str, Any]] = Queue()

    def consume() -> None:
        while jobs := client.next("my queue", 4, time.monotonic() + 10):
            for job in jobs:
                client.heartbeat("my queue", job["id"])
                client.heartbeat("my queue", job["id"], b'{"done": 1}')
                client.complete("my queue", job["id"])
                found.put(job)
                if job["id"] == "last":
                    return

    consumer = threading.Thread(target=consume)
    consumer.start()
    eventually(lambda: client.backoffs)
    for number in range(10):
        other.enqueue(id=f"{number}", queue="my+queue", timeout=60, payload={"n": number})
    other.enqueue(id="last", queue="my+queue", timeout=60, payload=None, max_retries=2, state=[1])
    consumer.join(30)

    assert [found.get_nowait()["id"] for _ in range(11)] == [*map(str, range(10)), "last"]
    assert client.connection.opened == 1
    with pytest.raises(KeyError, match=re.escape("job with id `x` not found in queue `my+queue`.")):
        other.heartbeat("my queue", "x")
    other.enqueue(id="a b", queue="q", timeout=60, payload=1)
    with pytest.raises(FileExistsError, match=re.escape("job with id `a b` already exists in queue `q`.")):
        other.enqueue(id="a b", queue="q", timeout=60, payload=1)
    assert not other.exists("q", "a b")  # it writes a space as a plus, which is a plus in a path
    other.enqueue(id="again", queue="r", timeout=60, payload=1)
    [job] = other.next("r", 1, time.monotonic() + 5)
    other.reschedule(id="again", queue="r", timeout=60, payload=2, run_at=job["run_at"])
    assert other.next("r", 1, time.monotonic() + 5)[0]["payload"] == 2


def test_a_rust_consumer(server: Server) -> None:
    """Its loop on runs, with names that need every escape there is; a job that goes on elsewhere is requeued."""
    client = RustClient(server)
    name = "a-b.c_d/é \N{GRINNING FACE}+%"
    client.enqueue("unique", [{"queue": name, "id": f"{name}{n}", "timeout": 60, "max_retries": None, "payload": n} for n in range(5)])
    with pytest.raises(FileExistsError):
        client.enqueue("unique", [{"queue": name, "id": f"{name}0", "timeout": 60, "max_retries": 1, "payload": 0}])

    jobs = client.next(name, 3)
    assert [job["payload"] for job in jobs] == [0, 1, 2]
    client.heartbeat(jobs[0])
    client.heartbeat(jobs[0], {"step": 1})
    client.complete(jobs[0])
    client.complete(jobs[0])
    assert not client.exists(name, f"{name}0")
    further = [{"queue": each, "id": "next", "timeout": 60, "max_retries": 0, "payload": each} for each in ("q0", "q1", "q2")]
    client.requeue(jobs[1], "unique", further)
    client.requeue(jobs[1], "unique", further)  # an answer that was lost: the run is over
    assert [client.next(each, 1)[0]["payload"] for each in ("q0", "q1", "q2")] == ["q0", "q1", "q2"]
    with pytest.raises(FileExistsError):
        client.requeue(jobs[2], "unique", further)
    client.requeue(jobs[2], "ignore", further)
    with pytest.raises(KeyError):
        client.heartbeat(jobs[2])
    assert [job["payload"] for job in client.next(name, 100)] == [3, 4]
    assert client.next(name, 100) == []


def test_rust_clients_ride_out_a_crash(start_server: StartServer) -> None:
    """They try again until it works, and nothing is lost or done by half."""
    server = start_server("--shards", "3")
    client = RustClient(server)
    client.enqueue("ignore", [{"queue": "q", "id": str(n), "timeout": 600, "max_retries": None, "payload": n} for n in range(30)])
    shards = [pid for pid, words in server.children().items() if "proteus_shards.shard" in words]
    seen: list[str] = []

    for turn in range(30):
        if turn in (5, 15, 25):
            os.kill(shards[turn // 10], signal.SIGKILL)
        jobs = _until_some(lambda: client.next("q", 1))
        seen.append(jobs[0]["id"])
        try:
            client.requeue(jobs[0], "unique", [{"queue": f"out {n}", "id": jobs[0]["id"], "timeout": 60, "payload": n} for n in range(3)])
        except FileExistsError:  # the try before had its effect, and its answer was lost
            assert not client.exists("q", jobs[0]["id"])

    assert sorted(seen, key=int) == [str(n) for n in range(30)]
    for n in range(3):
        eventually(partial(_all_there, client, f"out {n}"), 60)


def _all_there(client: RustClient, queue: str) -> bool:
    return all(client.exists(queue, str(each)) for each in range(30))


def _until_some(ask: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if jobs := _once(ask):
            return jobs
        time.sleep(0.05)
    raise UnexpectedError


def _once(ask: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    try:
        return ask()
    except (OSError, http.client.HTTPException):
        return []
