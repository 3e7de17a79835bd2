"""The server that tests start: it must be hurt as a real one is, and never outlive them."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest

from tests.conftest import eventually, server_environ
from tests.servers.postgres import PostgresServer


@pytest.mark.parametrize("paused", [False, True], ids=["running", "paused"])
def test_a_server_ends_with_the_process_that_started_it(paused: bool) -> None:
    """Even where that is killed, and the server stands still."""
    code = (
        "import sys; from tests.servers.postgres import PostgresServer; server = PostgresServer(); server.start()\n"
        f"pids = [process.pid for process in server.processes()]; {paused} and server.pause()\n"
        "print(server._base, *pids, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], env=server_environ({}), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        folder, *pids = process.stdout.readline().split()
        process.kill()

    assert len(pids) > 3
    eventually(lambda: not any(psutil.pid_exists(int(pid)) for pid in pids))
    subprocess.run(["rm", "-rf", folder], check=True)


def test_it_is_stopped_and_started_on_the_same_port(own_postgres: PostgresServer) -> None:
    """However it ended; to stop it twice is no fault."""
    port = own_postgres.port
    for end in (own_postgres.kill, own_postgres.stop):
        end()
        own_postgres.stop()
        own_postgres.start()

    assert own_postgres.port == port
    own_postgres.pause()
    own_postgres.stop()
