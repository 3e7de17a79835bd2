"""Many operations in one request, on real servers: all ways answer alike, and order, memory and lost clients are as promised."""

from __future__ import annotations

import gzip
import http.client
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import psutil
import pytest

from proteus_shards.config import Settings
from tests.conftest import Answer, Server, eventually
from tests.front.sites import trusting, with_tls
from tests.ways.test_ways import RUN_ID, Step, Way, comparable, job

NDJSON = {"Content-Type": "application/x-ndjson"}
WIDE = "\N{GRINNING FACE} \u00e9"


def jobs(*ids: str, **changes: Any) -> bytes:
    """Return an array of jobs."""
    return b"[" + b",".join(job(id=each, **changes) for each in ids) + b"]"


def lines(*ids: str, **changes: Any) -> bytes:
    """Return jobs line by line."""
    return b"".join(job(id=each, **changes) + b"\n" for each in ids)


def ops(*operations: dict[str, Any]) -> bytes:
    """Return a batch."""
    return json.dumps(operations).encode()


STEPS = [
    Step("POST", "/enqueue", jobs("1", "2", "3")),
    Step("POST", "/v1/enqueue", jobs("4", "4", "5", persist_data=True)),
    Step("POST", "/enqueue", b" \n" + jobs("6", WIDE, payload={"a": 1.50, "u": "\u00e9"})),
    Step("POST", "/enqueue", gzip.compress(jobs("7")), {"Content-Encoding": "gzip"}),
    Step("POST", "/enqueue", b"[" + job(id="8") + b",[],7," + job(id="9", timeout="x") + b"," + job(queue="") + b"]"),
    Step("POST", "/enqueue", b"[]"),
    Step("POST", "/enqueue", b"[[]]"),
    Step("POST", "/enqueue", b"[" + job()),
    Step("POST", "/enqueue", b"[" + b",".join([b"1"] * 101) + b"]"),
    Step("POST", "/enqueue", lines("10", "10", "11", queue="l")),
    Step("POST", "/enqueue", b"\n" + lines("12", queue="l") + b"{\n" + lines("13", queue="l")),
    Step("POST", "/enqueue", lines(*map(str, range(101)))),
    Step("POST", "/enqueue", lines("14", "14", "15", queue="n"), NDJSON),
    Step("POST", "/v1/enqueue", gzip.compress(lines("16", queue="n") + b"[]\n"), {**NDJSON, "Content-Encoding": "gzip"}),
    Step("POST", "/enqueue", b"", NDJSON),
    Step("POST", "/enqueue", b"\n\n", NDJSON),
    Step("POST", "/enqueue", b"nonsense", NDJSON),
    Step("POST", "/enqueue", lines("17"), {**NDJSON, "Content-Encoding": "br"}),
    Step("POST", "/enqueue?x=1", lines("17"), NDJSON),
    Step("POST", "/enqueue", b"x" * 70_000 + b"\n" + lines("18", queue="n"), NDJSON),
    Step("GET", "/next?queue=none&queue=l&queue=n&num_jobs=4"),
    Step("GET", "/next?queue=none&queue=l&queue=n"),
    Step("GET", "/v1/next?queue=l&queue=n&num_jobs=100"),
    Step("GET", "/next?queue=l&queue=n"),
    Step("GET", "/next?queue=l&queue=n&wait=0.05"),
    Step("GET", "/next?queue=l&queue=l"),
    Step("GET", "/next?" + "&".join(f"queue={number}" for number in range(17))),
    Step("POST", "/complete-and-next?queue=l&job_id=10&next_queue=q"),
    Step("POST", "/v1/complete-and-next?queue=q&job_id=1&num_jobs=2", b"what stands here is not looked at"),
    Step("POST", "/complete-and-next?queue=q&job_id=1"),
    Step("POST", f"/complete-and-next?queue=q&job_id=2&run_id={RUN_ID}"),
    Step("POST", "/complete-and-next?queue=q&job_id=2&next_queue=none&next_queue=q"),
    Step("POST", "/complete-and-next?queue=q&job_id=3&next_queue=none&wait=0.05"),
    Step("POST", "/complete-and-next?queue=q"),
    Step("GET", "/complete-and-next?queue=q&job_id=1"),
    Step(
        "POST",
        "/batch",
        ops(
            {"op": "enqueue", "job": {"id": "20", "queue": "b", "timeout": 30, "persist_data": True}},
            {"op": "enqueue", "job": {"id": "20", "queue": "b", "timeout": 30}},
            {"op": "next", "queue": "b"},
            {"op": "heartbeat", "queue": "b", "job_id": "20", "state": {"at": 1}},
            {"op": "heartbeat", "queue": "b", "job_id": "20", "run_id": RUN_ID},
            {"op": "complete", "queue": "b", "job_id": "20"},
            {"op": "complete", "queue": "b", "job_id": "20"},
            {"op": "next", "queue": "b", "num_jobs": 3},
        ),
    ),
    Step("POST", "/v1/batch", ops({"op": "next", "queue": "q", "num_jobs": 2}, {"op": "next", "queue": "none"})),
    Step("POST", "/batch", ops({"op": "pause"}, {}, {"op": "next"}, {"op": "enqueue", "job": {}}, {"op": "complete", "queue": "q"})),
    Step("POST", "/batch", b"[]"),
    Step("POST", "/batch", b"{}"),
    Step("POST", "/batch", b""),
    Step("POST", "/batch", ops(*[{"op": "next", "queue": "q"}] * 17)),
    Step("POST", "/batch", ops(*[{"op": "complete", "queue": "q", "job_id": "1"}] * 101)),
    Step("POST", "/batch?queue=q", ops({"op": "next", "queue": "q"})),
    Step("GET", "/batch"),
    Step("GET", "/next?queue=q&num_jobs=100"),
]


@pytest.fixture(scope="module")
def ways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Way]]:
    """Return a server with the fast lane, one without, and one behind TLS. All tests here share them, each with queues of its own."""
    folder = tmp_path_factory.mktemp("tls")
    settings = with_tls(Settings(), folder)
    options = ("--port", "0", "--shards", "2", "--batch-jobs-max", "100", "--body-size-max", "64KiB")
    with ExitStack() as stack:
        found: list[Way] = []
        for more, trusted in (((), None), (("--no-fast-lane",), None), (("--tls-cert", settings.tls_cert), trusting(folder))):
            server = Server(*options, *more, cwd=tmp_path_factory.mktemp("server"), environ={})
            stack.callback(server.stop)
            found.append(Way(server, trusted))
            stack.callback(found[-1].close)
        yield found


@pytest.fixture
def both(ways: list[Way]) -> tuple[Server, Server]:
    """Return the servers that speak plain text."""
    return ways[0].server, ways[1].server


def test_many_operations_in_one_request_look_the_same_every_way(ways: list[Way]) -> None:
    """Step by step: statuses, fields and bodies."""
    for step in STEPS:
        answers = [comparable(way.ask(step)) for way in ways]
        assert answers[1:] == answers[:1] * (len(ways) - 1), step
        assert answers[0][0] < 500, step


def test_a_client_that_sends_all_before_it_reads_gets_the_answer_to_a_body_that_was_stopped(ways: list[Way]) -> None:
    """The rest of what it sends is thrown away."""
    for way in ways:
        for coding, status in (("br", 415), ("gzip", 422)):
            answer = way.ask(Step("POST", "/enqueue", b"{}\n" * 1_000_000, {**NDJSON, "Content-Encoding": coding}))
            assert status == answer.status


def test_one_queue_keeps_its_order_through_arrays_lines_and_batches(both: tuple[Server, Server]) -> None:
    """Jobs are delivered in the order of the requests, and within each in that of its body."""
    for server in both:
        numbers = [f"{number:03}" for number in range(300)]
        for start in range(0, 300, 60):
            one, two, three = (numbers[start + at : start + at + 20] for at in (0, 20, 40))
            assert 202 == server.request("POST", "/enqueue", jobs(*one, queue="order", persist_data=start % 120 == 0)).status
            assert 202 == server.request("POST", "/enqueue", lines(*two, queue="order"), NDJSON).status
            mixed: list[dict[str, Any]] = [
                {"op": "enqueue", "job": json.loads(job(id=each, queue="order", persist_data=True))} for each in three
            ]
            mixed[7:7] = [{"op": "complete", "queue": "order", "job_id": "unknown"}, {"op": "next", "queue": "elsewhere"}]
            assert 207 == server.request("POST", "/batch", ops(*mixed)).status
        got: list[str] = []
        while (answer := server.request("GET", "/next?queue=order&num_jobs=70")).status == 200:
            got += [each["id"] for each in answer.json()]
        assert numbers == got


def test_a_runner_that_loops_gets_every_job_once(both: tuple[Server, Server]) -> None:
    """One request a job, over two queues, until both are empty."""
    for server in both:
        for queue in ("a", "b"):
            server.request("POST", "/enqueue", jobs(*(f"{queue}{number}" for number in range(20)), queue=queue, persist_data=queue == "a"))
        answer = server.request("GET", "/next?queue=a&queue=b")
        got = []
        while answer.status == 200:
            run = answer.json()
            got.append(run["id"])
            query = f"queue={run['queue']}&job_id={run['id']}&run_id={run['run_id']}&next_queue=a&next_queue=b"
            answer = server.request("POST", f"/complete-and-next?{query}")

        assert 204 == answer.status
        assert [f"{queue}{number}" for queue in ("a", "b") for number in range(20)] == got


def test_a_wait_on_several_queues_is_woken_by_any_and_loses_nothing(both: tuple[Server, Server]) -> None:
    """The queues live on different shards; what comes to the others later is there for whoever asks."""
    for server in both:
        for queue in ("w1", "w2", "w3"):
            with waiting(server, "GET", "/next?queue=w1&queue=w2&queue=w3&wait=20") as answer:
                assert 202 == server.request("POST", "/enqueue", job(id="x", queue=queue)).status
                assert queue == answer().json()["queue"]
            assert 200 == server.request("DELETE", f"/complete?queue={queue}&job_id=x").status
        for queue in ("w1", "w2", "w3"):
            server.request("POST", "/enqueue", job(id="y", queue=queue))
            assert 1 == server.request("GET", f"/next?queue={queue}").json()["attempt"]


def test_a_runner_that_leaves_while_it_waits_has_completed_and_takes_no_job(both: tuple[Server, Server]) -> None:
    """The job that comes later is at its first attempt for whoever asks."""
    for server in both:
        server.request("POST", "/enqueue", job(id="0", queue="left"))
        server.request("GET", "/next?queue=left")
        with waiting(server, "POST", "/complete-and-next?queue=left&job_id=0&wait=20"):
            eventually(partial(is_gone, server, "left", "0"))
        server.request("POST", "/enqueue", job(id="1", queue="left"))
        assert 1 == fetched(server, "left")["attempt"]


def test_a_client_that_leaves_in_the_midst_of_its_answer_gives_back_the_jobs_of_its_batch(both: tuple[Server, Server]) -> None:
    """A large answer that it did not read to the end has not reached it."""
    body = ops({"op": "next", "queue": "large", "num_jobs": 100}, {"op": "complete", "queue": "large", "job_id": "unknown"})
    for server in both:
        payload = "x" * 60_000
        for number in range(100):
            assert 202 == server.request("POST", "/enqueue", job(id=f"{number:03}", queue="large", payload=payload)).status
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.settimeout(20)
            sock.connect((server.host, server.port))
            sock.sendall(b"POST /batch HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
            assert sock.recv(1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")

        first = fetched(server, "large")
        assert ("000", 1) == (first["id"], first["attempt"])


def test_a_hundred_thousand_lines_enter_in_one_request_in_order_and_in_little_memory(both: tuple[Server, Server]) -> None:
    """More than a body may be large, and more than the front holds at any time."""
    count = 100_000
    for server in both:
        (front,) = [psutil.Process(pid) for pid, command in server.children().items() if "proteus_shards.front" in command]
        peak = before = front.memory_info().rss
        connection = http.client.HTTPConnection(server.host, server.port, timeout=60)

        def body(front: psutil.Process = front) -> Iterator[bytes]:
            nonlocal peak
            for start in range(0, count, 1000):
                peak = max(peak, front.memory_info().rss)
                yield lines(*(f"{number:06}" for number in range(start, start + 1000)), queue="many", payload="x" * 200)

        connection.request("POST", "/enqueue", body(), NDJSON, encode_chunked=True)
        answer = connection.getresponse()
        assert (202, {"accepted": count, "refused": 0, "failures": []}) == (answer.status, json.loads(answer.read()))
        connection.close()
        assert peak - before < 32 * 1024 * 1024
        first = server.request("GET", "/next?queue=many&num_jobs=1000").json()
        assert [f"{number:06}" for number in range(1000)] == [each["id"] for each in first]


@contextmanager
def waiting(server: Server, method: str, target: str) -> Iterator[Callable[[], Answer]]:
    """Send a request that waits, and give what reads its answer; on leaving, the client is gone."""
    connection = http.client.HTTPConnection(server.host, server.port, timeout=20)

    def answer() -> Answer:
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())

    try:
        connection.request(method, target)
        yield answer
    finally:
        connection.close()


def is_gone(server: Server, queue: str, job_id: str) -> bool:
    """Say whether a job is in its queue no more."""
    return server.request("PATCH", f"/heartbeat?queue={queue}&job_id={job_id}").status == 404


def fetched(server: Server, queue: str) -> Any:
    """Wait until a queue has a job, and return it."""
    found: list[Any] = []

    def fetch() -> bool:
        answer = server.request("GET", f"/next?queue={queue}")
        if answer.status == 200:
            found.append(answer.json())
        return bool(found)

    eventually(fetch)
    return found[0]
