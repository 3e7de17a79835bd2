"""The fast lane and Quart on Hypercorn answer alike: the same requests to both, compared in status, fields and body."""

from __future__ import annotations

import gzip
import json
import re
import socket
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.conftest import Answer, Server, StartServer

FIELDS = ("content-type", "content-length", "retry-after", "allow", "accept-encoding")
RUN_ID = "11111111-2222-4333-8444-555555555555"
LONG = "x" * 1025
WIDE = "\N{GRINNING FACE}" * 1024

_VARYING = re.compile(rb'("(?:run_id|created_at|updated_at|died_at|request_id)":)"[^"]*"')


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
    "unknown field": job(priority=1),
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
    Step("GET", "/next?queue=a&queue=b"),
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


@pytest.fixture
def both(start_server: StartServer, tmp_path: Path) -> tuple[Server, Server]:
    """Return a server with the fast lane, and one without, each with a store of its own."""
    lane = start_server("--store", f"sqlite:///{tmp_path / 'lane'}", "--shards", "1")
    quart = start_server("--store", f"sqlite:///{tmp_path / 'quart'}", "--shards", "1", "--no-fast-lane")
    return lane, quart


def comparable(answer: Answer) -> tuple[int, dict[str, str | None], bytes]:
    """Return what must be the same in two servers."""
    fields = {name: answer.headers[name] for name in FIELDS}
    return answer.status, fields, _VARYING.sub(rb'\1""', answer.body)


def run_of(answer: Answer, run: str) -> str:
    """Return the run_id of a delivery of one job, or the one before."""
    found = answer.json() if answer.status == 200 and answer.body else None
    return found["run_id"] if isinstance(found, dict) and "run_id" in found else run


def test_a_jobs_life_looks_the_same_both_ways(both: tuple[Server, Server]) -> None:
    """Enqueue, next, heartbeat, complete, dead letters: same answers, step by step."""
    runs = ["", ""]
    for step in LIFE:
        answers = []
        for place, server in enumerate(both):
            answer = server.request(step.method, step.path.replace("{run}", runs[place]), step.body, step.headers)
            runs[place] = run_of(answer, runs[place])
            answers.append(comparable(answer))
        assert answers[1] == answers[0], step
        assert answers[0][0] < 500, step


def test_refusals_look_the_same_both_ways(both: tuple[Server, Server]) -> None:
    """Whatever is wrong with a request is told in the same words."""
    for step in REFUSED:
        lane, quart = (comparable(server.request(step.method, step.path, step.body, step.headers)) for server in both)
        assert quart == lane, step
        assert 400 <= lane[0] < 500, step


def test_keep_alive_and_pipelining_look_the_same_both_ways(both: tuple[Server, Server]) -> None:
    """Three requests at once get three answers in order, the last with its end. HTTP/1.0 stays open on the lane only."""
    request = b"GET /next?queue=none HTTP/1.1\r\nHost: here\r\nConnection: %s\r\n\r\n"
    seen = []
    for server in both:
        with socket.create_connection((server.host, server.port), timeout=20) as sock:
            sock.sendall(request % b"keep-alive" * 2 + request % b"close")
            data = b""
            while piece := sock.recv(65536):
                data += piece
        seen.append([line.split(b" ")[1] for line in data.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")])
    assert [[b"204"] * 3] * 2 == seen
