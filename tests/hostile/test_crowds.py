"""Many slow clients, and no descriptor left: those who ask honestly are served all the while. The figures come from `python -m bench.crowds`."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import psutil
import pytest
import trio

from proteus_shards.core.commands import Command, Delivered, Next, Outcome
from tests.conftest import Server, eventually
from tests.front.fake_shard import PATIENCE_SECONDS, delivery, obliging
from tests.front.sites import JOB, SETTINGS, Client, serving

CROWD = 150
KINDS: dict[str, bytes] = {
    "head": b"GET /next?queue=",
    "body": b"POST /enqueue HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\n",
    "read": b"GET /next?queue=large HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "idle": b"",
    "polls": b"GET /next?queue=never&wait=60 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
}
LOW_LIMIT = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (80, 80))
from proteus_shards.cli import main
sys.exit(main())
"""


def answer(command: Command) -> Outcome | None:
    """Answer with a large job on one queue, and as a shard without jobs on the others."""
    if isinstance(command, Next) and command.queue == "large":
        return Delivered([delivery(payload=b'"' + b"x" * 100_000 + b'"')])
    return obliging(command)


async def served(client: Client, method: str, path: str, body: bytes = b"") -> int:
    """Ask until there is a place, which outside the lane a crowd that has just come holds for a moment, and return the status."""
    with trio.fail_after(PATIENCE_SECONDS):
        while (status := (await client.ask(method, path, body)).status) == 429:
            await trio.sleep(0.01)
    return status


@pytest.mark.parametrize("lane", [True, False], ids=["fast lane", "Quart"])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_crowd_of_slow_clients_keeps_nobody_from_being_served(kind: str, lane: bool, tmp_path: Path) -> None:
    """Whichever way they are slow in; and when they leave, nothing of them is left."""
    async with serving(tmp_path, msgspec.structs.replace(SETTINGS, fast_lane=lane), answer) as site:
        before = site.server.connections
        crowd = [await site.client() for _ in range(CROWD)]
        for client in crowd:
            await client.send(KINDS[kind])
        honest = await site.client()
        for _ in range(20):
            for client in crowd if kind in {"head", "body"} else ():
                with contextlib.suppress(trio.BrokenResourceError):
                    await client.send(b"x")
            assert await served(honest, "POST", "/enqueue", JOB) == 202
            assert await served(honest, "GET", "/next?queue=q") == 204
        held = site.server.connections
        for client in (*crowd, honest):
            await client.stream.aclose()
        with trio.fail_after(PATIENCE_SECONDS):
            while site.server.connections > before or site.router.answers.held or site.router.bodies.held:
                await trio.sleep(0.01)

    assert held == CROWD + 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts descriptors and CPU time as Linux does")
def test_with_no_descriptor_left_a_server_waits_and_does_not_spin(tmp_path: Path) -> None:
    """Who is connected is served; who connects waits, and is served once others have left; meanwhile the event loop sleeps."""
    server = Server("--port", "0", "--shards", "1", "--store", "memory:", cwd=tmp_path, environ={}, program=("-c", LOW_LIMIT))
    try:
        (front,) = [psutil.Process(pid) for pid, command in server.children().items() if "proteus_shards.front" in command]
        crowd = [socket.create_connection((server.host, server.port), timeout=20) for _ in range(120)]
        eventually(lambda: "no file descriptor left" in server.log())
        first = crowd[0]

        def ask(sock: socket.socket) -> bytes:
            sock.sendall(b"GET /next?queue=q HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            return sock.recv(1000)

        served = [ask(first)[:12] for _ in range(3)]
        began = front.cpu_times().user
        turns = len(server.log())
        eventually(lambda: len(server.log()) > turns)  # it has tried again, and waits
        spent = front.cpu_times().user - began
        for sock in crowd[1:]:
            sock.close()
        last: Callable[[], bool] = lambda: server.request("GET", "/next?queue=q").status == 204  # noqa: E731
        eventually(last)
        first.close()
        alive = set(server.children())
    finally:
        code = server.stop()

    assert served == [b"HTTP/1.1 204"] * 3
    assert spent < 0.5
    assert (front.pid in alive, code) == (True, 0)
