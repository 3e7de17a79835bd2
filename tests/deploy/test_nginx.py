"""nginx before two servers, as deploy/ configures it: a queue lives on one of them, whatever is asked."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.conftest import Answer, Server, StartServer, eventually

CONFIG = Path(__file__).resolve().parents[2] / "deploy" / "nginx" / "nginx.conf"
QUEUES = [*(f"mail-{number}" for number in range(16)), "a b/c&d", "grün"]

pytestmark = pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed (Debian: nginx)")


class Proxy:
    """A running nginx."""

    def __init__(self, port: int, process: subprocess.Popen[bytes]) -> None:
        self.port = port
        self.process = process

    def request(self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None) -> Answer:
        """Send one request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, json.dumps(body) if body is not None else None, dict(headers or {}))
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        finally:
            connection.close()

    def listens(self) -> bool:
        """Say whether it can be reached."""
        assert self.process.poll() is None, "nginx has ended"
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", self.port)) == 0


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@pytest.fixture
def hosts(start_server: StartServer) -> list[Server]:
    """Return two servers that know nothing of each other."""
    return [start_server("--store", "memory:", "--shards", "1") for _ in range(2)]


@pytest.fixture
def proxy(tmp_path: Path, hosts: list[Server]) -> Iterator[Proxy]:
    """Return an nginx with the configuration of deploy/; only addresses and the places of its files are others."""
    port = free_port()
    text = CONFIG.read_text()
    for place, host in enumerate(hosts):
        text = text.replace(f"10.0.0.1{place + 1}:8080", f"127.0.0.1:{host.port}")
    text = text.replace("listen 8080;", f"listen 127.0.0.1:{port};").replace("worker_processes auto;", "worker_processes 1;\ndaemon off;")
    text = re.sub(r"^pid .*;", f"pid {tmp_path}/nginx.pid;", text, flags=re.MULTILINE)
    text = text.replace("/var/log/nginx/error.log", f"{tmp_path}/error.log")
    places = "\n".join(f"    {kind}_temp_path {tmp_path}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    path = tmp_path / "nginx.conf"
    path.write_text(text.replace("http {\n", f"http {{\n{places}\n", 1))
    command = ["nginx", "-e", str(tmp_path / "first.log"), "-p", str(tmp_path), "-c", str(path)]
    checked = subprocess.run([*command, "-t"], capture_output=True, text=True, check=False, timeout=30)
    assert 0 == checked.returncode, checked.stderr
    assert "warn" not in checked.stderr
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        found = Proxy(port, process)
        eventually(found.listens)
        yield found
    finally:
        process.terminate()
        process.wait(20)


def job(queue: str, job_id: str) -> dict[str, object]:
    """Return a job."""
    return {"id": job_id, "queue": queue, "timeout": 30, "payload": queue}


def test_a_queue_always_lands_on_one_host(proxy: Proxy, hosts: list[Server]) -> None:
    """What was enqueued under its name in the header is found by the query and the path, on one host, and both hosts have queues."""
    for queue in QUEUES:
        for job_id in ("1", "2", "3"):
            sent = proxy.request("POST", "/enqueue", job(queue, job_id), {"Proteus-Queue": quote(queue, safe="")})
            assert 202 == sent.status, sent.body
    has = [{queue for queue in QUEUES if host.request("GET", f"/queue?queue={quote(queue, safe='')}").json()["ready"]} for host in hosts]

    assert has[0] | has[1] == set(QUEUES)
    assert not has[0] & has[1]
    assert all(has)
    for queue in QUEUES:
        name = quote(queue, safe="")
        first = proxy.request("GET", f"/next?queue={name}").json()
        assert ("1", queue) == (first["id"], first["payload"])
        assert 202 == proxy.request("PATCH", f"/heartbeat?queue={name}&job_id=1", {"half": True}).status
        second = proxy.request("POST", f"/complete-and-next?queue={name}&job_id=1&run_id={first['run_id']}").json()
        assert "2" == second["id"]
        assert 200 == proxy.request("DELETE", f"/complete?job_id=2&queue={name}").status
        assert ["3"] == [found["id"] for found in proxy.request("GET", f"/v2/queues/{name}/jobs?num_jobs=5").json()]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/enqueue"),
        ("POST", "/batch"),
        ("GET", "/next?queue=a&queue=b"),
        ("GET", "/next?queue=a&wait=1&queue=a"),
        ("POST", "/complete-and-next?queue=a&job_id=1&next_queue=b"),
        ("GET", "/queues"),
        ("GET", "/next?queue="),
    ],
)
def test_what_names_no_queue_or_several_reaches_no_host(proxy: Proxy, method: str, path: str) -> None:
    """It could go to the wrong host, so it is refused, with a reason."""
    answer = proxy.request(method, path, [] if method == "POST" else None)

    assert (421, "application/problem+json") == (answer.status, answer.headers["content-type"])
    assert (421, False) == (answer.json()["status"], answer.json()["retryable"])


def test_a_host_that_is_down_keeps_its_queues(proxy: Proxy, hosts: list[Server]) -> None:
    """Its requests are told to come again, and no other host takes them."""
    hosts[1].stop()

    answers = {queue: proxy.request("POST", "/enqueue", job(queue, "1"), {"Proteus-Queue": quote(queue, safe="")}) for queue in QUEUES}

    assert {202, 503} == {answer.status for answer in answers.values()}
    for answer in answers.values():
        if answer.status == 503:
            assert (True, "1") == (answer.json()["retryable"], answer.headers["retry-after"])
