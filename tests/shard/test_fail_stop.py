"""A bug in a shard ends the process: memory that may be half changed serves nobody."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import server_environ

PROGRAM = """
import asyncio
from proteus_shards.shard.__main__ import fail_stop

class Link(asyncio.Protocol):
    def data_received(self, data):
        assert data == b"sound", "a bug"
        print("served", flush=True)

async def main():
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(fail_stop)
    import socket
    ours, theirs = socket.socketpair()
    await loop.connect_accepted_socket(Link, ours)
    theirs.send(b"sound")
    await asyncio.sleep(0.05)
    theirs.send(b"unsound")
    await asyncio.sleep(20)
    print("still there", flush=True)

RUN(main())
"""


@pytest.mark.parametrize("run", ["import asyncio; RUN = asyncio.run", "import uvloop; RUN = uvloop.run"])
def test_an_exception_in_a_callback_ends_the_process(run: str) -> None:
    """Whichever loop is used, the process exits with 1, having logged the fault."""
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", f"{run}\n{PROGRAM}"],
        env=server_environ({}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (1, "served\n") == (ended.returncode, ended.stdout)
    assert "shard ends after a fault inside" in ended.stderr
