"""Fixtures for all tests: the real server, started as a user starts it.

Every wait has a deadline; what a test starts is stopped when the test ends, and a server that does not stop by itself fails its test.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pytest

# pytest explains their assertions, too, as it does those of a test file
pytest.register_assert_rewrite("tests.store.exercise", "tests.store.exercise_owners", "tests.store.exercise_rows")

START_SECONDS_MAX = 60.0
STOP_SECONDS_MAX = 40.0
REQUEST_SECONDS_MAX = 20.0
LOG_SHOWN_MAX = 3000  # characters
LONG = ("ways", "faults", "simulation", "cluster", "store", "openapi", "dashboard")  # folders of files that take long, the longest first

_START_LINE = re.compile(r"proteus-shards \S+ listening on (?P<scheme>https?)://(?P<host>\S+):(?P<port>\d+) · ")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take long first: where several processes share the files, none of them is then left with one at the end."""
    items.sort(key=lambda item: LONG.index(item.path.parent.name) if item.path.parent.name in LONG else len(LONG))


class Answer(NamedTuple):
    """What the server answered."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def json(self) -> Any:
        """Return the body as JSON says it."""
        return json.loads(self.body)


class Server:
    """One running `proteus-shards serve`."""

    def __init__(
        self,
        *options: str,
        cwd: Path,
        environ: Mapping[str, str],
        program: Sequence[str] = ("-m", "proteus_shards"),
        command: Sequence[str] | None = None,
    ) -> None:
        self.log_path = cwd / f"server-{time.monotonic_ns()}.log"
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [*(command or [sys.executable, *program]), "serve", *options],
                cwd=cwd,
                env=server_environ(environ, clone=command is None),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                process_group=0,
            )
        try:
            self.start_line = self._read_start_line()
            found = _START_LINE.match(self.start_line)
            assert found is not None, f"not a start line: {self.start_line!r}"
        except BaseException:
            self.kill()
            raise
        self.scheme = found["scheme"]
        self.host = found["host"].strip("[]")
        self.port = int(found["port"])

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"{self.scheme}://{self.host}:{self.port}"

    def log(self) -> str:
        """Return what it has logged so far."""
        return self.log_path.read_text(errors="replace")

    def request(self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None) -> Answer:
        """Send one request on a connection of its own. A body that is not bytes or text is sent as JSON."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=REQUEST_SECONDS_MAX)
        try:
            data = body if body is None or isinstance(body, bytes | str) else json.dumps(body)
            connection.request(method, path, data.encode() if isinstance(data, str) else data, dict(headers or {}))
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        finally:
            connection.close()

    def children(self) -> dict[int, str]:
        """Return the command line of each process that it has started and that still runs or was not reaped, by pid."""
        return children_of(self.process.pid)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ask it to stop, wait until it has, and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Wait until it has ended and return its exit code. One that does not end is killed and fails the test."""
        try:
            return self.process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail(f"the server did not stop within {STOP_SECONDS_MAX} s; its log ends in:\n{self.log()[-LOG_SHOWN_MAX:]}")
        finally:
            assert self.process.stdout is not None
            self.process.stdout.close()

    def kill(self) -> None:
        """End it at once (its children notice by themselves)."""
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def _read_start_line(self) -> str:
        """Read the line without a thread: straight from the pipe, up to the deadline."""
        assert self.process.stdout is not None
        fd = self.process.stdout.fileno()
        read = b""
        deadline = time.monotonic() + START_SECONDS_MAX
        while not read.endswith(b"\n"):
            readable, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
            data = os.read(fd, 4096) if readable else b""
            assert data, f"the server printed no start line, only {read!r}; its log ends in:\n{self.log()[-LOG_SHOWN_MAX:]}"
            read += data
        return read.decode().rstrip("\n")


class StartServer(Protocol):
    """Starts a server on a free port, with a store in the test's own folder, and returns it once it is ready."""

    def __call__(self, *options: str, environ: Mapping[str, str] | None = None) -> Server:
        """`options` are added to those of the fixture and win over them."""
        ...


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[StartServer]:
    """Return a function that starts servers. All of them share one store, as one does after the other; each is stopped at the end."""
    started: list[Server] = []

    def start(*options: str, environ: Mapping[str, str] | None = None) -> Server:
        server = Server("--port", "0", "--shards", "2", *options, cwd=tmp_path, environ=environ or {})
        started.append(server)
        return server

    yield start
    for server in started:
        if server.process.returncode is None:
            server.stop()


@pytest.fixture
def server(start_server: StartServer) -> Server:
    """Return a running server: two shards, one front, SQLite."""
    return start_server()


def server_environ(changes: Mapping[str, str], *, clone: bool = True) -> dict[str, str]:
    """Return this environment without settings that a developer may have set, and with the changes. This clone is on the path, or is not."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PROTEUS_")}
    if not clone:
        kept.pop("PYTHONPATH", None)
        return kept | dict(changes)
    root = str(Path(__file__).resolve().parent.parent)
    kept["PYTHONPATH"] = os.pathsep.join(filter(None, [root, kept.get("PYTHONPATH", "")]))
    return kept | dict(changes)


def children_of(pid: int) -> dict[int, str]:
    """Return the command line of each child of a process, by pid; that of a zombie is empty or in brackets."""
    proc = Path("/proc")
    if not proc.is_dir():
        listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,args="], check=True, capture_output=True, text=True).stdout
        rows = [line.split(maxsplit=2) for line in listed.splitlines()]
        return {int(row[0]): row[2] if len(row) > 2 else "" for row in rows if int(row[1]) == pid}
    found: dict[int, str] = {}
    for entry in proc.glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid:
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            continue  # it ended while we looked
    return found


def runs(pid: int) -> bool:
    """Say whether there is such a process that has not ended: an orphan that has may wait a while for its reaper."""
    if Path("/proc/self").exists():
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def eventually(condition: Callable[[], object], seconds_max: float = 20.0) -> None:
    """Wait until a condition of another process holds: the only way to see it is to look again."""
    deadline = time.monotonic() + seconds_max
    while not condition():
        assert time.monotonic() < deadline, f"it did not become true within {seconds_max} s"
        time.sleep(0.01)
