"""DynamoDB for tests: what the doubles have in common, and moto in a process of its own.

| | moto | DynamoDB Local (`dynamodb_local.py`) | `strict_dynamodb.py` |
|---|---|---|---|
| data after `kill` and `start` | forgotten | but for the last commits | kept |
| limits, tokens, conflicts | the 100 actions and the 400 KB only | yes | yes |
| throttling, unprocessed keys, lost answers | no | no | on demand |

Each ends with whoever started it: it reads its standard input, a pipe from there, and ends when that closes.
"""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote, urlencode

REGION = "us-east-1"
START_SECONDS_MAX = 60.0
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "AKIATESTTESTTESTTEST", "AWS_SECRET_ACCESS_KEY": "for-tests-only", "AWS_EC2_METADATA_DISABLED": "true"}

# ends when its standard input does: with whoever started it, however that ended
_MOTO = """
import os, sys, threading
threading.Thread(target=lambda: (os.read(0, 1), os._exit(0)), daemon=True).start()
import logging
logging.getLogger("werkzeug").setLevel(logging.ERROR)
from moto.server import main
main(["-H", "127.0.0.1", "-p", sys.argv[1]])
"""


def pretend_credentials() -> None:
    """Let this process and its children have AWS credentials, where they have none: doubles take any."""
    for name, value in CREDENTIALS.items():
        os.environ.setdefault(name, value)


def free_port() -> int:
    """Return a port of loopback that is free now."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


class Process:
    """A server process: a `servers.server.StoreServer`, but for how it is started."""

    def __init__(self, log_path: Path) -> None:
        self.port = free_port()
        self._log_path = log_path
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        """Return what is run."""
        raise NotImplementedError

    def url(self, name: str, **options: str) -> str:
        return self.url_by_way_of(self.port, name, **options)

    def url_by_way_of(self, port: int, name: str, **options: str) -> str:
        query = urlencode({"endpoint": f"http://127.0.0.1:{port}", "region": REGION, **options})
        return f"dynamodb://{quote(name)}?{query}"

    def start(self) -> None:
        pretend_credentials()
        assert self._process is None or self._process.poll() is not None, "it runs"
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self.command(), stdin=subprocess.PIPE, stdout=log, stderr=log, env=self.environ(), process_group=0
            )
        deadline = time.monotonic() + START_SECONDS_MAX
        while not self._listens():
            assert self._process.poll() is None, f"it ended: {self._log_path.read_text(errors='replace')[-2000:]}"
            assert time.monotonic() < deadline, "it did not listen in time"
            time.sleep(0.02)

    def environ(self) -> Mapping[str, str]:
        """Return its environment."""
        return os.environ

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def pause(self) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGCONT)

    def _end(self, number: int) -> None:
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            os.killpg(process.pid, number)
            os.killpg(process.pid, signal.SIGCONT)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)
        assert process.stdin is not None
        process.stdin.close()
        self._process = None

    def _listens(self) -> bool:
        with socket.socket() as connecting:
            connecting.settimeout(0.5)
            return connecting.connect_ex(("127.0.0.1", self.port)) == 0


class MotoServer(Process):
    """moto's double. Its data is in memory: after `kill` or `stop` it starts empty, so only `pause` and `resume` are of use for outages."""

    def command(self) -> list[str]:
        return [sys.executable, "-c", _MOTO, str(self.port)]

    def reset(self) -> None:
        """Forget all tables."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request("POST", "/moto-api/reset")
            assert connection.getresponse().status == 200
        finally:
            connection.close()
