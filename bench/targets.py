"""Starts and stops what is measured: this server, and the peers.

A target takes a free port of the loopback address and a folder of its own. It ends by SIGTERM, and by SIGKILL where that takes too
long; should the benchmark itself be killed, the kernel signals it. Only processes that were started here are ever signalled. `roles` names its processes, so that their CPU and memory can be told apart.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import psutil

from bench.engine import LoadError

if TYPE_CHECKING:
    from bench.backings import Backing

START_SECONDS_MAX = 300.0  # a recovery of millions of rows is part of a start
STOP_SECONDS_MAX = 40.0
LOG_SHOWN_MAX = 1500  # characters
ROOT = Path(__file__).resolve().parent.parent

_LIBC = ctypes.CDLL(None)
_SIGNAL_OF_PARENTS_DEATH = 1  # PR_SET_PDEATHSIG
_URL = re.compile(rb"listening on http://([0-9.]+):([0-9]+)")


class Target:
    """One server. Subclasses say what its command is, and which of its processes is what."""

    role = "server"
    prints_address = True
    stop_signal = signal.SIGTERM

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = ("127.0.0.1", 0)
        self.start_seconds = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._temporary: Path | None = None
        self._starts = 0

    def command(self) -> list[str]:
        """Return the command line."""
        raise NotImplementedError

    def environ(self) -> dict[str, str]:
        """Return what it needs in its environment."""
        return {}

    def process_options(self) -> dict[str, Any]:
        """Return how else its process is to be started."""
        return {"cwd": self.folder}

    def start(self) -> None:
        """Start it and wait until it serves."""
        self._starts += 1
        started = time.monotonic()
        # What it would leave in the temporary folder when it is killed is taken away with this one. Short, as sockets are in it.
        self._temporary = Path(tempfile.mkdtemp(prefix="pb-"))
        with self._log_path().open("wb") as log:
            self._process = subprocess.Popen(
                self.command(),
                env=_environ() | self.environ() | {"TMPDIR": str(self._temporary)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if self.prints_address else log,
                stderr=log,
                process_group=0,
                preexec_fn=self._end_with_us,  # noqa: PLW1509 no lock is taken in it
                **self.process_options(),
            )
        try:
            if self.prints_address:
                self.address = self._read_address(started + START_SECONDS_MAX)
            else:
                self._connect(started + START_SECONDS_MAX)
        except BaseException:
            self.kill()
            raise
        self.start_seconds = time.monotonic() - started

    @property
    def running(self) -> bool:
        """Whether it was started and not ended here since."""
        return self._process is not None

    def stop(self) -> None:
        """Ask it to end, and see to it that it does."""
        self._end(kill=False)

    def kill(self) -> None:
        """End all its processes at once, as a power failure would."""
        self._end(kill=True)

    def roles(self) -> dict[str, list[psutil.Process]]:
        """Return its processes by what they do. Raises `LoadError` where it has ended."""
        assert self._process is not None
        if self._process.poll() is not None:
            raise LoadError(f"the server has ended; its log: {self.log()[-LOG_SHOWN_MAX:]}")
        found: dict[str, list[psutil.Process]] = {}
        for process in self._processes():
            found.setdefault(self.role_of(_quietly(process.cmdline) or []), []).append(process)
        return found

    def role_of(self, command: list[str]) -> str:  # noqa: ARG002 for subclasses
        """Say what one of its processes does, by its command line."""
        return self.role

    def log(self) -> str:
        """Return what it has written to standard error since its last start."""
        return self._log_path().read_text(encoding="utf-8", errors="replace")

    def _log_path(self) -> Path:
        return self.folder / f"server-{self._starts}.log"

    def _end_with_us(self) -> None:
        _LIBC.prctl(_SIGNAL_OF_PARENTS_DEATH, self.stop_signal)

    def _processes(self) -> list[psutil.Process]:
        assert self._process is not None
        try:
            parent = psutil.Process(self._process.pid)
            return [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _end(self, *, kill: bool) -> None:
        process = self._process
        if process is None:
            return
        family = self._processes() if process.poll() is None else []
        try:
            if kill:
                for each in family:
                    _quietly(each.kill)
            elif process.poll() is None:
                process.send_signal(self.stop_signal)
            try:
                process.wait(STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        finally:
            if not _ended(family, 1.0):
                for each in family:
                    _quietly(each.kill)
                _ended(family, STOP_SECONDS_MAX)
            if process.stdout is not None:
                process.stdout.close()
            self._process = None
            if self._temporary is not None:
                shutil.rmtree(self._temporary, ignore_errors=True)

    def _read_address(self, deadline: float) -> tuple[str, int]:
        assert self._process is not None
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        read = b""
        while (found := _URL.search(read)) is None or not read.endswith(b"\n"):
            readable, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
            data = os.read(fd, 4096) if readable else b""
            if not data:
                raise LoadError(f"the server does not start; its log: {self.log()[-LOG_SHOWN_MAX:]}")
            read += data
        return found[1].decode(), int(found[2])

    def _connect(self, deadline: float) -> None:
        assert self._process is not None
        while True:
            try:
                socket.create_connection(self.address, timeout=1).close()
            except OSError as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise LoadError(f"the server does not start; its log: {self.log()[-LOG_SHOWN_MAX:]}") from error
                time.sleep(0.01)
            else:
                return


class Proteus(Target):
    """This server. `backing` is the database server behind its store: it is there before this one, and longer."""

    role = "supervisor"

    def __init__(self, folder: Path, store: str, shards: int, *, fast_lane: bool, fronts: int = 1, backing: Backing | None = None) -> None:
        super().__init__(folder)
        self.backing = backing
        self._store = store.replace("FOLDER", quote(str(folder / "store")))
        self._options = ["--shards", str(shards), "--fronts", str(fronts), "--fast-lane" if fast_lane else "--no-fast-lane"]
        self._options += ["--dead-letters-max", "100000000"]  # none is to be dropped behind a measurement

    def command(self) -> list[str]:
        store = self._store if self.backing is None else self.backing.url()
        return [sys.executable, "-m", "proteus_shards", "serve", "--port", "0", "--log-format", "json", "--store", store, *self._options]

    def environ(self) -> dict[str, str]:
        return {} if self.backing is None else self.backing.environ()

    def start(self) -> None:
        if self.backing is not None and not self.backing.running:
            self.backing.start()
        super().start()

    def stop(self) -> None:
        try:
            super().stop()
        finally:
            if self.backing is not None:
                self.backing.stop()

    def roles(self) -> dict[str, list[psutil.Process]]:
        return super().roles() | ({} if self.backing is None else self.backing.roles())

    def role_of(self, command: list[str]) -> str:
        return next((name for name in ("front", "shard") if f"proteus_shards.{name}" in command), self.role)

    def events(self, event: str) -> list[dict[str, Any]]:
        """Return the records of one event in the log since the last start."""
        records: list[dict[str, Any]] = []
        for line in self.log().splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue  # a warning of the interpreter
            if isinstance(record, dict) and record.get("event") == event:
                records.append(record)
        return records


class Uvicorn(Target):
    """The bare ASGI application under uvicorn: `peer_uvicorn.py`."""

    role = "uvicorn"

    def command(self) -> list[str]:
        return [sys.executable, "-m", "bench.peer_uvicorn"]


class Beanstalkd(Target):
    """beanstalkd. `fsync_ms` None: without a binlog; 0: fsync before each answer."""

    role = "beanstalkd"
    prints_address = False

    def __init__(self, folder: Path, fsync_ms: int | None) -> None:
        super().__init__(folder)
        self._fsync_ms = fsync_ms

    def command(self) -> list[str]:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.address = ("127.0.0.1", free.getsockname()[1])  # it cannot choose one by itself
        options: list[str] = []
        if self._fsync_ms is not None:
            binlog = self.folder / "binlog"
            binlog.mkdir(exist_ok=True)
            options = ["-b", str(binlog), "-f", str(self._fsync_ms)]
        return [BEANSTALKD or "beanstalkd", "-l", self.address[0], "-p", str(self.address[1]), *options]


BEANSTALKD = shutil.which("beanstalkd") or shutil.which("/usr/sbin/beanstalkd")


def _environ() -> dict[str, str]:
    """Return this environment without settings that a user may have set, and with the way to this checkout."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PROTEUS_")}
    kept["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), kept.get("PYTHONPATH", "")]))
    return kept


def _ended(processes: list[psutil.Process], seconds: float) -> bool:
    """Wait up to some seconds until processes that are not our children have ended, and say whether they have."""
    deadline = time.monotonic() + seconds
    for process in processes:
        while process.is_running() and _quietly(process.status) not in {None, psutil.STATUS_ZOMBIE}:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)
    return True


def _quietly(ask: Any) -> Any:
    """Ask or tell a process something; one that is gone answers None."""
    try:
        return ask()
    except psutil.NoSuchProcess:
        return None
