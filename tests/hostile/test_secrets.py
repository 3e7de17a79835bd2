"""What is planted is looked for: no log, no error, no metric and no file that others may read holds a payload, a token or a password."""

from __future__ import annotations

import json
import os
import pwd
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from proteus_shards.tokens import new_token
from tests.conftest import StartServer, eventually, server_environ

PAYLOAD, STATE, PASSWORD = "planted-payload-81", "planted-state-82", "planted-password-83"
NEEDS_ROOT = pytest.mark.skipif(not sys.platform.startswith("linux") or os.getuid() != 0, reason="becomes another user")


def test_a_whole_run_logs_no_payload_no_state_and_no_token(start_server: StartServer, tmp_path: Path) -> None:
    """At the level that says most, with timeouts, dead letters, refusals, hostile bytes, a killed shard and a killed front."""
    token, line = new_token("ci", ["admin"], ["*"])
    (tmp_path / "tokens").write_text(line + "\n")
    server = start_server("--log-level", "debug", "--tokens-file", str(tmp_path / "tokens"))
    headers = {"Authorization": f"Bearer {token}"}
    job = {"id": "1", "queue": "q", "timeout": 0, "persist_data": True, "payload": PAYLOAD, "state": STATE}

    def ask(method: str, path: str, body: object = None) -> tuple[int, str]:
        found = server.request(method, path, body, headers)
        return found.status, found.body.decode() + str(found.headers)

    seen = [ask("POST", "/enqueue", job), ask("POST", "/enqueue", job), ask("POST", "/enqueue", json.dumps(job)[:-3])]
    seen += [
        ask("POST", "/enqueue", {**job, "timeout": PAYLOAD}),
        ask("POST", "/batch", [{"op": "enqueue", "job": {**job, "run_at": PAYLOAD}}]),
    ]
    seen += [ask("PATCH", "/heartbeat?queue=q&job_id=1", f'"{STATE}'), ask("GET", f"/metrics?x={PAYLOAD}")]
    ask("GET", "/next?queue=q")
    eventually(lambda: '"job is dead"' in server.log() or '"run timed out"' in server.log())
    assert ask("POST", "/enqueue", {**job, "id": "2", "timeout": 30})[0] == 202
    for data in (PAYLOAD.encode() + b"\r\n\r\n", b"GET /next?queue=q HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + token.encode() + b"\0\r\n\r\n"):
        with socket.create_connection((server.host, server.port), timeout=20) as sock:
            sock.sendall(data)
            seen.append((0, sock.recv(65536).decode()))
    for pid, command in server.children().items():
        if "proteus_shards.shard" in command or "proteus_shards.front" in command:
            os.kill(pid, signal.SIGKILL)
    eventually(lambda: server.log().count('"serving"') >= 2)
    eventually(lambda: _status(lambda: ask("GET", "/next?queue=q")[0]) == 200)
    assert server.stop() == 0
    shown = server.log() + server.start_line + "".join(text for _, text in seen)

    assert all(secret not in shown for secret in (PAYLOAD, STATE, token, token[4:], line.split('"')[7]))
    assert "Traceback" not in shown


def _status(ask: object) -> int:
    try:
        return int(ask())  # type: ignore[operator]
    except OSError:
        return 0


@pytest.mark.parametrize(
    "store", ["postgres://me:{}@127.0.0.1:1/jobs", "redis://me:{}@127.0.0.1:1/0", "rediss://127.0.0.1:1/0?password={}"]
)
def test_a_store_that_cannot_be_reached_is_told_without_its_password(store: str, tmp_path: Path) -> None:
    """Not in the error, not in the log, and not in the list of processes of its children."""
    command = [sys.executable, "-m", "proteus_shards", "serve", "--port", "0", "--shards", "1", "--log-level", "debug"]
    environ = server_environ({"PROTEUS_STORE": store.format(PASSWORD)})

    with subprocess.Popen(command, env=environ, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            _, shown = process.communicate(timeout=8)
        except subprocess.TimeoutExpired:
            process.terminate()
            _, shown = process.communicate(timeout=60)

    assert shown
    assert PASSWORD.encode() not in shown


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder whose path leaves room for the names of sockets."""
    with tempfile.TemporaryDirectory(prefix="ps-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@NEEDS_ROOT
def test_another_user_gets_neither_into_the_folder_of_the_sockets_nor_through_one(start_server: StartServer, short_folder: Path) -> None:
    """The folder keeps him out; where someone opened it, the shard looks who connects, and hangs up."""
    folder = short_folder
    server = start_server(environ={"TMPDIR": str(folder)})
    (path,) = folder.glob("proteus-*/shard-0.sock")
    nobody = pwd.getpwnam("nobody").pw_uid
    code = f"""
import os, socket
sock = socket.socket(socket.AF_UNIX)
os.chdir({str(path.parent.parent)!r})
os.setuid({nobody})
try:
    sock.connect({str(path.relative_to(folder))!r})
    sock.settimeout(20)
    print("connected", len(sock.recv(1000)))
except OSError as error:
    print(type(error).__name__)
"""

    def ran() -> str:
        return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()

    kept_out = ran()
    modes = [each.stat().st_mode & 0o777 for each in (path.parent, path)]
    path.parent.chmod(0o755)
    path.chmod(0o777)
    hung_up = ran()

    assert (kept_out, modes) == ("PermissionError", [0o700, 0o600])
    assert hung_up in {"connected 0", "ConnectionResetError"}
    assert f"the peer runs as user {nobody}" in server.log()
    assert server.request("GET", "/ready").status == 200
