"""nginx and HAProxy in front of the server: whatever of the table they let through, they and the server count the same requests in it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Server, StartServer, eventually
from tests.hostile.table import LEGAL, REFUSED, SMUGGLED

PATIENCE_SECONDS = 20.0
HOSTILE_SECONDS = 0.5  # some of the table never come to an end, and a proxy waits for it
OF_PROXIES = {501, 502, 504, 505}  # what they say of a request that they or the server refuse

NGINX = """
daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{}}
http {{

  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  upstream server {{ server 127.0.0.1:{server}; keepalive 4; }}
  server {{
    listen 127.0.0.1:{port};
    access_log off;
    large_client_header_buffers 8 64k;
    location / {{
      proxy_pass http://server; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $http_host;
      proxy_request_buffering off; proxy_next_upstream off;
    }}
  }}
}}
"""

HAPROXY = """
global
  tune.bufsize 131072
defaults
  mode http
  timeout connect 5s
  timeout client 5s
  timeout server 2s
  retries 0
  http-reuse always
frontend all
  bind 127.0.0.1:{port}
  default_backend server
backend server
  server one 127.0.0.1:{server}
"""


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def listens(port: int) -> bool:
    """Say whether someone does."""
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(params=["nginx", "haproxy"])
def proxy(request: pytest.FixtureRequest, start_server: StartServer) -> Iterator[tuple[Server, int]]:
    """A server, and the port of a proxy in front of it that keeps its connections to it open."""
    program = shutil.which(request.param, path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        pytest.skip(f"{request.param} is not installed")
    server = start_server("--shards", "1")
    with tempfile.TemporaryDirectory(prefix="proxy-") as name:
        folder, port = Path(name), free_port()
        config = folder / "config"
        config.write_text((NGINX if request.param == "nginx" else HAPROXY).format(folder=folder, port=port, server=server.port))
        command = [program, "-c", str(config)] if request.param == "nginx" else [program, "-db", "-q", "-f", str(config)]
        with (folder / "out").open("wb") as out:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        try:
            eventually(lambda: process.poll() is not None or listens(port))
            assert process.poll() is None, (folder / "out").read_text()
            yield server, port
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE_SECONDS)


def exchange(port: int, data: bytes, seconds: float = PATIENCE_SECONDS) -> list[int]:
    """Send bytes, and return the statuses of all answers until the end, or until nothing comes for so long."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as sock:
        received = b""
        try:
            sock.sendall(data)
            while piece := sock.recv(65536):
                received += piece
        except OSError:
            pass  # a reset is an end as well
    return [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3})", received) if status != b"100"]


def test_no_proxy_lets_a_request_through_that_it_did_not_see(proxy: tuple[Server, int]) -> None:
    """After each request of the table comes an honest one, alone on a new connection of the client; it gets its own answer, not that of one smuggled before it.

    The proxy sends both over the same connections to the server. If the server saw more requests in the first than the proxy did, the answers to
    all that follow would be those of others.
    """
    server, port = proxy
    cases = {**{name: case.data for name, case in REFUSED.items()}, **{name: case[0] for name, case in LEGAL.items()}}
    wrong: list[str] = []
    for name, data in cases.items():
        statuses = exchange(port, data + SMUGGLED, HOSTILE_SECONDS)
        if len(statuses) > 4 or any(status >= 500 and status not in OF_PROXIES for status in statuses):
            wrong.append(f"{name}: {statuses}")
        for asked, wanted in ((b"GET /next?queue=%zz", 422), (b"GET /nowhere", 404), (b"GET /next?queue=honest", 204)):
            seen = exchange(port, asked + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            if seen != [wanted]:
                wrong.append(f"after {name}: {seen}, not {wanted}")
    assert not wrong
    assert "Traceback" not in server.log()
