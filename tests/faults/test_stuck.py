"""Clients that go, or stop reading, between the match of a job and its answer: on real servers, every way in, with commits of the store under way.

A job that surely did not reach its runner is back at once, at its first attempt. What only the client can know (that it never read an answer that was
sent whole) is left to the job's timeout.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, Self

import httpx
import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived

from proteus_shards.config import Settings
from tests.conftest import REQUEST_SECONDS_MAX, Server, eventually
from tests.front.sites import trusting, with_tls

ANSWER_SECONDS_MAX = 3  # --request-seconds-max
LARGE_JOBS = 100
LARGE_BYTES = 60_000
PROGRAM = ("-m", "tests.faults.stuck")


class Way(NamedTuple):
    """One way in: a server, and how to speak to it."""

    server: Server
    asked: Path
    hold: Path
    authority: ssl.SSLContext | None
    is_http_2: bool = False

    def request(self, method: str, path: str, body: object = None) -> httpx.Response:
        """Send one request on a connection of its own, as a client that stays."""
        verify = False if self.authority is None else self.authority
        with httpx.Client(http2=self.is_http_2, verify=verify, timeout=REQUEST_SECONDS_MAX) as client:
            return client.request(method, self.server.url + path, json=body)

    def enqueue(self, queue: str, name: str, **changes: object) -> None:
        """Add a job that the store keeps."""
        body = {"id": name, "queue": queue, "timeout": 600, "persist_data": True, **changes}
        assert 202 == self.request("POST", "/enqueue", body).status_code

    def enqueue_large(self, queue: str) -> None:
        """Add jobs that are together more than sockets hold. Half of them are the store's."""
        for numbers in (range(LARGE_JOBS // 2), range(LARGE_JOBS // 2, LARGE_JOBS)):
            common = {"queue": queue, "timeout": 600, "payload": "x" * LARGE_BYTES, "persist_data": 0 in numbers}
            assert 202 == self.request("POST", "/enqueue", [{"id": f"{number:03}", **common} for number in numbers]).status_code

    def fetch(self, queue: str) -> tuple[str, int]:
        """Take a job that must be there, and return its id and attempt."""
        response = self.request("GET", f"/next?queue={queue}&wait=20")
        assert 200 == response.status_code
        job: dict[str, Any] = response.json()
        return job["id"], job["attempt"]

    def commands(self) -> list[str]:
        """Return what the shard has been asked so far."""
        return self.asked.read_text().splitlines()

    def wait_asked(self, since: int, command: str) -> None:
        """Wait until the shard has been asked something, later than the first so many commands."""
        eventually(lambda: command in self.commands()[since:])


class Runner:
    """A client that asks for a job, and then does not do as it should."""

    def __init__(self, way: Way, path: str, method: str = "GET", body: bytes = b"") -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.settimeout(REQUEST_SECONDS_MAX)
        self.socket.connect((way.server.host, way.server.port))
        if way.authority is not None:
            alpn = ssl.create_default_context()
            alpn.load_verify_locations(cadata=b"".join(way.authority.get_ca_certs(binary_form=True)))
            alpn.set_alpn_protocols(["h2" if way.is_http_2 else "http/1.1"])
            self.socket = alpn.wrap_socket(self.socket, server_hostname=way.server.host)
        self._http_2: H2Connection | None = None
        if way.is_http_2:
            self._http_2 = H2Connection(H2Configuration(client_side=True))
            self._http_2.initiate_connection()
            self._http_2.send_headers(
                1, [(":method", method), (":path", path), (":scheme", "https"), (":authority", "localhost")], end_stream=True
            )
            self.socket.sendall(self._http_2.data_to_send())
        else:
            self.socket.sendall(f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def wait_begun(self) -> None:
        """Read until a part of the body has come."""
        read = b""
        while b'"payload"' not in read:
            data = self.socket.recv(4096)
            assert data
            if self._http_2 is not None:
                data = b"".join(event.data for event in self._http_2.receive_data(data) if isinstance(event, DataReceived))
            read += data

    def answer(self) -> tuple[int, Any]:
        """Read an answer after all, and return its status and what its body says. HTTP/1.1 only."""
        with http.client.HTTPResponse(self.socket) as response:
            response.begin()
            body = response.read()
        return response.status, json.loads(body) if body else None

    def leave(self, manner: str) -> None:
        """Close, reset, or in HTTP/2 cancel the request and keep the connection."""
        if manner == "cancel":
            assert self._http_2 is not None
            self._http_2.reset_stream(1, error_code=8)
            self.socket.sendall(self._http_2.data_to_send())
            return
        if manner == "reset":
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


@pytest.fixture(scope="module")
def ways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Way]]:
    """Return four ways into three servers, which all tests here share, each with queues of its own."""
    folder = tmp_path_factory.mktemp("tls")
    settings = with_tls(Settings(), folder)
    options = {"lane": (), "quart": ("--no-fast-lane",), "tls": ("--tls-cert", settings.tls_cert)}
    found: dict[str, Way] = {}
    with ExitStack() as stack:
        for name, more in options.items():
            place = tmp_path_factory.mktemp(name)
            files = {"PROTEUS_TEST_ASKED": str(place / "asked"), "PROTEUS_TEST_HOLD": str(place / "hold")}
            limits = ("--port", "0", "--shards", "1", "--request-seconds-max", str(ANSWER_SECONDS_MAX))
            server = Server(*limits, *more, cwd=place, environ=files, program=PROGRAM)
            stack.callback(server.stop)
            found[name] = Way(server, place / "asked", place / "hold", trusting(folder) if name == "tls" else None)
        found["http/2"] = found["tls"]._replace(is_http_2=True)
        yield found


MANNERS = [(name, manner) for name in ("lane", "quart", "tls", "http/2") for manner in ("close", "reset")] + [("http/2", "cancel")]


@pytest.mark.parametrize(("name", "manner"), MANNERS)
def test_a_client_that_goes_while_its_delivery_is_committed_gives_the_job_back(ways: dict[str, Way], name: str, manner: str) -> None:
    """The match is made, its row on its way to the store: the next client has it at once, at the first attempt."""
    way, queue = ways[name], f"committed-{manner}-{name[-1]}"
    way.enqueue(queue, "a", max_retries=0)
    before = len(way.commands())
    way.hold.touch()
    try:
        with Runner(way, f"/next?queue={queue}") as runner:
            way.wait_asked(before, f"Next {queue}")
            runner.leave(manner)
            way.wait_asked(before, "Cancel ")
    finally:
        way.hold.unlink()
    way.enqueue(queue, "b")  # answered after the commit that was held

    assert [("a", 1), ("b", 1)] == [way.fetch(queue), way.fetch(queue)]


@pytest.mark.parametrize(("name", "manner"), MANNERS)
def test_a_parked_poll_whose_client_has_gone_is_never_given_a_job(ways: dict[str, Way], name: str, manner: str) -> None:
    """Nor is one given to it and taken back while its commit is under way: the shard has forgotten it."""
    way, queue = ways[name], f"parked-{manner}-{name[-1]}"
    before = len(way.commands())
    with Runner(way, f"/next?queue={queue}&wait=60") as runner:
        way.wait_asked(before, f"Next {queue}")
        runner.leave(manner)
        way.wait_asked(before, "Cancel ")
        way.enqueue(queue, "a", max_retries=0)

        assert ("a", 1) == way.fetch(queue)
        assert f"Undeliver {queue}" not in way.commands()[before:]


@pytest.mark.parametrize(("name", "manner"), [("lane", "close"), ("lane", "reset"), ("quart", "close"), ("quart", "reset")])
def test_of_many_runners_those_that_stay_and_those_that_come_share_all_jobs(ways: dict[str, Way], name: str, manner: str) -> None:
    """Six wait, six jobs come, and while their commit is under way three runners go: each job is delivered once, what went back in its order."""
    way, queue = ways[name], f"shared-{manner}"
    jobs = [{"id": f"{number}", "queue": queue, "timeout": 600, "persist_data": True, "max_retries": 0} for number in range(6)]
    before = len(way.commands())
    with ExitStack() as stack:
        runners = [stack.enter_context(Runner(way, f"/next?queue={queue}&wait=60")) for _ in jobs]
        eventually(lambda: way.commands()[before:].count(f"Next {queue}") == len(runners))
        way.hold.touch()
        try:
            producer = stack.enter_context(Runner(way, "/enqueue", "POST", json.dumps(jobs).encode()))
            eventually(lambda: way.commands()[before:].count(f"Enqueue {queue}") == len(jobs))
            for runner in runners[::2]:
                runner.leave(manner)
            eventually(lambda: way.commands()[before:].count("Cancel ") == 3)
        finally:
            way.hold.unlink()
        assert 202 == producer.answer()[0]
        stayed = [runner.answer()[1] for runner in runners[1::2]]
    came = [way.fetch(queue) for _ in range(3)]

    assert [(f"{number}", 1) for number in range(6)] == sorted([*came, *((job["id"], job["attempt"]) for job in stayed)])
    assert came == sorted(came)
    assert 204 == way.request("GET", f"/next?queue={queue}").status_code


def test_a_client_that_goes_in_the_midst_of_its_answer_gives_its_jobs_back(ways: dict[str, Way]) -> None:
    """The last byte of it never left: no client takes half an answer for one."""
    for name, way in ways.items():
        queue = f"midst-{name[-1]}"
        way.enqueue_large(queue)
        before = len(way.commands())
        with Runner(way, f"/next?queue={queue}&num_jobs={LARGE_JOBS}") as runner:
            runner.wait_begun()
            runner.leave("reset")
        eventually(lambda way=way, before=before, queue=queue: way.commands()[before:].count(f"Undeliver {queue}") == LARGE_JOBS)  # type: ignore[misc]

        assert ("000", 1) == way.fetch(queue)


def test_a_runner_that_never_reads_is_cut_off_and_its_jobs_go_back(ways: dict[str, Way]) -> None:
    """Also where HTTP/2's own window holds the answer. Meanwhile others are served."""
    before = {}
    for name, way in ways.items():
        way.enqueue_large(f"unread-{name[-1]}")
        before[name] = len(way.commands())
    with ExitStack() as stack:
        for name, way in ways.items():
            queue = f"unread-{name[-1]}"
            stack.enter_context(Runner(way, f"/next?queue={queue}&num_jobs={LARGE_JOBS}"))
            way.wait_asked(before[name], f"Next {queue}")
            assert 204 == way.request("GET", "/next?queue=none").status_code

        for name, way in ways.items():
            queue = f"unread-{name[-1]}"
            eventually(lambda way=way, since=before[name], queue=queue: way.commands()[since:].count(f"Undeliver {queue}") == LARGE_JOBS)  # type: ignore[misc]
            assert ("000", 1) == way.fetch(queue)
