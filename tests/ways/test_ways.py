"""The fast lane, Quart on Hypercorn, and HTTP/2 behind TLS answer alike: the same requests to all, compared in status, fields and body."""

from __future__ import annotations

import gzip
import http.client
import json
import re
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from proteus_shards.config import Settings
from tests.conftest import Answer, Server, StartServer
from tests.front.sites import trusting, with_tls

FIELDS = ("content-type", "content-length", "retry-after", "allow", "accept-encoding")
RUN_ID = "11111111-2222-4333-8444-555555555555"
LONG = "x" * 1025
WIDE = "\N{GRINNING FACE}" * 1024

_VARYING = re.compile(rb'("(?:run_id|created_at|updated_at|died_at|started_at|ended_at|held_by|held_until|request_id)":)"[^"]*"')


class Step(NamedTuple):
    """One request. `{run}` in the path is the run_id that the last delivery had."""

    method: str
    path: str
    body: bytes | None = None
    headers: dict[str, str] = {}  # noqa: RUF012  # never changed


def job(**changes: Any) -> bytes:
    """Return a job's JSON text."""
    return json.dumps({"id": "a", "queue": "q", "timeout": 30, **changes}).encode()


def quoted(text: str) -> str:
    """Percent-encode every byte."""
    return "".join(f"%{byte:02X}" for byte in text.encode())


LIFE = [
    Step("POST", "/enqueue", job(persist_data=True, payload={"a": [1, 2.50, 1e300, "\u00e9"]}, max_retries=1)),
    Step("POST", "/enqueue", job()),
    Step("POST", "/v1/enqueue", job(id="b", state={"at": 1}, max_retries=-1, run_at="2020-01-01T00:00:00+01:00")),
    Step("POST", "/v1/enqueue", gzip.compress(job(id="c")), {"Content-Encoding": "gzip"}),
    Step("GET", "/next?queue=q"),
    Step("PATCH", "/heartbeat?queue=q&job_id=a", b' {"step": 1} '),
    Step("PATCH", "/heartbeat?queue=q&job_id=a"),
    Step("PATCH", "/heartbeat?queue=q&job_id=a&run_id={run}", b"null"),
    Step("PATCH", f"/heartbeat?queue=q&job_id=a&run_id={RUN_ID}", b"1"),
    Step("PATCH", "/heartbeat?queue=q&job_id=b", b"1"),
    Step("DELETE", f"/complete?queue=q&job_id=a&run_id={RUN_ID}"),
    Step("DELETE", "/v1/complete?queue=q&job_id=a&run_id={run}"),
    Step("DELETE", "/complete?queue=q&job_id=a"),
    Step("GET", "/v1/next?queue=q&num_jobs=10&wait=0.5"),
    Step("GET", "/next?queue=q&num_jobs=10"),
    Step("GET", "/next?queue=q"),
    Step("GET", "/next?queue=none&wait=0.01"),
    Step("DELETE", "/complete?queue=q&job_id=b"),
    Step("POST", "/enqueue", job(id=WIDE, queue=WIDE)),
    Step("GET", f"/next?queue={quoted(WIDE)}"),
    Step("DELETE", f"/complete?queue={quoted(WIDE)}&job_id={quoted(WIDE)}"),
    Step("POST", "/enqueue", job(id="dead", queue="d", timeout=0)),
    Step("GET", "/next?queue=d"),
    Step("GET", "/next?queue=d&wait=0.5"),
    Step("GET", "/dead?queue=d"),
    Step("GET", "/v1/dead?queue=d&num_jobs=1&after=99"),
    Step("POST", "/enqueue", job(id="a b+c/d?e&f=g%h#i", queue='it\'s "odd" <b>&amp;')),
    Step("GET", "/next?queue=it's+%22odd%22+%3Cb%3E%26amp;"),
]

BODIES: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"{",
    "two values": b"{} {}",
    "not UTF-8": b'{"id":"\xff","queue":"q","timeout":1}',
    "byte order mark": b"\xef\xbb\xbf" + job(),
    "array": b"[]",
    "null": b"null",
    "deep": b'{"id":"a","queue":"q","timeout":1,"payload":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "NaN": b'{"id":"a","queue":"q","timeout":1,"payload":NaN}',
    "lone surrogate in the payload": b'{"id":"a","queue":"q","timeout":1,"payload":"\\ud800"}',
    "lone surrogate in the id": b'{"id":"\\ud800","queue":"q","timeout":1}',
    "NUL in the id": b'{"id":"\\u0000","queue":"q","timeout":1}',
    "unknown field": job(colour=1),
    "no id": b'{"queue":"q","timeout":1}',
    "no queue": b'{"id":"a","timeout":1}',
    "no timeout": b'{"id":"a","queue":"q"}',
    "id is a number": job(id=1),
    "id is empty": job(id=""),
    "id is long": job(id=LONG),
    "queue is long": job(queue=LONG),
    "timeout is negative": job(timeout=-1),
    "timeout is huge": job(timeout=2**31),
    "timeout is a fraction": job(timeout=1.5),
    "timeout is text": job(timeout="1"),
    "timeout is true": job(timeout=True),
    "persist_data is text": job(persist_data="yes"),
    "max_retries is huge": job(max_retries=2**31),
    "max_retries is null": job(max_retries=None),
    "run_at is no time": job(run_at="tomorrow"),
    "run_at has no offset": job(run_at="2020-01-01T00:00:00"),
    "run_at is a number": job(run_at=1),
}

REFUSED = [
    *(Step("POST", "/enqueue", body) for body in BODIES.values()),
    Step("POST", "/enqueue?x=1", job()),
    Step("POST", "/enqueue", job(), {"Content-Encoding": "br"}),
    Step("POST", "/enqueue", b"no gzip", {"Content-Encoding": "gzip"}),
    Step("POST", "/enqueue", gzip.compress(b" " * 5_000_000), {"Content-Encoding": "gzip"}),
    Step("GET", "/next"),
    Step("GET", "/next?queue="),
    Step("GET", "/next?queue=%ff"),
    Step("GET", "/next?queue=%zz"),
    Step("GET", "/next?queue=%00"),
    Step("GET", "/next?queue=a&queue=a"),
    Step("GET", "/next?queue=a&nonsense=1"),
    Step("GET", f"/next?queue={LONG}"),
    Step("GET", "/next?queue=a&num_jobs=0"),
    Step("GET", "/next?queue=a&num_jobs=x"),
    Step("GET", "/next?queue=a&num_jobs=1001"),
    Step("GET", "/next?queue=a&wait=-1"),
    Step("GET", "/next?queue=a&wait=61"),
    Step("GET", "/next?queue=a&wait=nan"),
    Step("PATCH", "/heartbeat?queue=q"),
    Step("PATCH", "/heartbeat?queue=q&job_id=a", b"{"),
    Step("PATCH", "/heartbeat?queue=q&job_id=a&run_id=1"),
    Step("PATCH", "/heartbeat?queue=q&job_id=unknown", b"1"),
    Step("DELETE", "/complete?job_id=a"),
    Step("DELETE", "/complete?queue=q&job_id=unknown"),
    Step("GET", "/dead?queue=q&after=-1"),
    Step("GET", "/enqueue"),
    Step("PUT", "/enqueue", job()),
    Step("HEAD", "/next?queue=q"),
    Step("OPTIONS", "/next"),
    Step("GET", "/nowhere"),
    Step("GET", "/next/?queue=q"),
    Step("GET", "//next?queue=q"),
    Step("GET", "/v2/next?queue=q"),
]


class Way:
    """One way to ask a server of its own."""

    def __init__(self, server: Server, over_http_2: ssl.SSLContext | None = None) -> None:
        self.server = server
        self._client = None if over_http_2 is None else httpx.Client(http1=False, http2=True, verify=over_http_2, timeout=20)

    def ask(self, step: Step, run: str = "") -> Answer:
        """Send one request."""
        path = step.path.replace("{run}", run)
        if self._client is None:
            return self.server.request(step.method, path, step.body, step.headers)
        # as bytes: httpx would rewrite the path
        url = httpx.URL(scheme="https", host=self.server.host, port=self.server.port, raw_path=path.encode())
        response = self._client.request(step.method, url, content=step.body, headers=step.headers)
        assert response.http_version == "HTTP/2"
        headers = http.client.HTTPMessage()
        for name, value in response.headers.multi_items():
            headers[name] = value
        return Answer(response.status_code, headers, response.content)

    def close(self) -> None:
        """End its connection."""
        if self._client is not None:
            self._client.close()


@pytest.fixture
def ways(start_server: StartServer, tmp_path: Path) -> Iterator[list[Way]]:
    """Return a server with the fast lane, one without, and one behind TLS, each with a store of its own."""
    settings = with_tls(Settings(), tmp_path)
    options = [[], ["--no-fast-lane"], ["--tls-cert", settings.tls_cert]]
    servers = [start_server("--store", f"sqlite:///{tmp_path / str(place)}", "--shards", "1", *more) for place, more in enumerate(options)]
    lane, quart, secure = servers
    assert [server.scheme for server in servers] == ["http", "http", "https"]
    found = [Way(lane), Way(quart), Way(secure, trusting(tmp_path))]
    yield found
    for way in found:
        way.close()


def comparable(answer: Answer) -> tuple[int, dict[str, str | None], bytes]:
    """Return what must be the same in two servers."""
    fields = {name: answer.headers[name] for name in FIELDS}
    return answer.status, fields, _VARYING.sub(rb'\1""', answer.body)


def run_of(answer: Answer, run: str) -> str:
    """Return the run_id of a delivery of one job, or the one before."""
    found = answer.json() if answer.status == 200 and answer.body else None
    return found["run_id"] if isinstance(found, dict) and "run_id" in found else run


def test_a_jobs_life_looks_the_same_every_way(ways: list[Way]) -> None:
    """Enqueue, next, heartbeat, complete, dead letters: same answers, step by step."""
    runs = [""] * len(ways)
    for step in LIFE:
        answers = []
        for place, way in enumerate(ways):
            answer = way.ask(step, runs[place])
            runs[place] = run_of(answer, runs[place])
            answers.append(comparable(answer))
        assert answers[1:] == answers[:1] * (len(ways) - 1), step
        assert answers[0][0] < 500, step


def test_refusals_look_the_same_every_way(ways: list[Way]) -> None:
    """Whatever is wrong with a request is told in the same words."""
    for step in REFUSED:
        answers = [comparable(way.ask(step)) for way in ways]
        assert answers[1:] == answers[:1] * (len(ways) - 1), step
        assert 400 <= answers[0][0] < 500, step


def test_keep_alive_and_pipelining_look_the_same_in_plain_text(ways: list[Way]) -> None:
    """Three requests at once get three answers in order, the last with its end. HTTP/1.0 stays open on the lane only."""
    request = b"GET /next?queue=none HTTP/1.1\r\nHost: localhost\r\nConnection: %s\r\n\r\n"
    seen = []
    for server in (ways[0].server, ways[1].server):
        with socket.create_connection((server.host, server.port), timeout=20) as sock:
            sock.sendall(request % b"keep-alive" * 2 + request % b"close")
            data = b""
            while piece := sock.recv(65536):
                data += piece
        seen.append([line.split(b" ")[1] for line in data.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")])
    assert [[b"204"] * 3] * 2 == seen
