"""Hosts that share one store, as users start them: real servers on loopback, with Postgres."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import trustme

from proteus_shards.cli import EXIT_REPLACED
from proteus_shards.cluster.model import Host
from proteus_shards.core.placement import shard_of, slot_of
from proteus_shards.store.registry import make_register
from tests.conftest import Server, StartServer, eventually, server_environ
from tests.node.gates import issue
from tests.servers.places import Places, places
from tests.servers.redis import free_port

__all__ = ["places"]

SHARDS = 4
LEASE_SECONDS = 6.0  # a node process that is killed has to be back before that, on a busy machine too
SECONDS_MAX = 90.0
QUEUES = [next(queue for queue in map(str, count()) if shard_of(slot_of(queue), SHARDS) == shard) for shard in range(SHARDS)]

StartHost = Callable[..., Server]


@pytest.fixture
def url(places: Places) -> str:
    """Return the place of a cluster."""
    return places.of("postgres")(f"cluster-{uuid4().hex[:12]}")


@pytest.fixture
def host(start_server: StartServer, url: str) -> StartHost:
    """Return a function that starts a host of one cluster, under an address of its own or a given one."""

    def start(address: str = "", *options: str) -> Server:
        address = address or f"127.0.0.1:{free_port()}"
        return start_server(
            *("--cluster", "--node-address", address, "--store", url, "--shards", str(SHARDS), "--lease-seconds", str(LEASE_SECONDS)),
            *options,
        )

    return start


def cluster_of(server: Server) -> Any:
    """Return what a server says of its cluster."""
    return server.request("GET", "/v1/cluster").json()


def served_here(server: Server) -> set[int]:
    """Return the shards that a server's own processes serve."""
    return {owner["shard"] for owner in cluster_of(server)["owners"] if owner["here"]}


def is_shared(*servers: Server) -> bool:
    """Say whether each shard is served by one of these, in even shares, and all see that."""
    shares = [served_here(server) for server in servers]
    even = max(map(len, shares)) - min(map(len, shares)) <= 1
    known = all(all(owner["host"] for owner in cluster_of(server)["owners"]) for server in servers)
    return even and known and sorted(shard for share in shares for shard in share) == list(range(SHARDS))


def enqueue(server: Server, name: str, queue: str, *, persist: bool = True) -> int:
    """Enqueue a job, and return the status."""
    return server.request("POST", "/enqueue", {"id": name, "queue": queue, "timeout": 600, "persist_data": persist}).status


def fill(server: Server, name: str, *, persist: bool = True) -> None:
    """Give every shard a job; what is refused for a moment is tried again."""
    for queue in QUEUES:
        eventually(lambda queue=queue: enqueue(server, name, queue, persist=persist) in {202, 409}, SECONDS_MAX)  # type: ignore[misc]


def taken(server: Server, queue: str) -> str | None:
    """Take the next job of a queue, and return its name."""
    answer = server.request("GET", f"/next?queue={queue}")
    return answer.json()["id"] if answer.status == 200 else None


def check_all(server: Server, name: str) -> None:
    """See that every shard has this job next."""
    for queue in QUEUES:
        found: list[str] = []
        eventually(lambda queue=queue, found=found: found.append(taken(server, queue) or "") or found[-1], SECONDS_MAX)  # type: ignore[misc]
        assert found[-1] == name


def test_hosts_share_the_shards_and_hand_them_over(host: StartHost, tmp_path: Path) -> None:
    """A second host takes its share, both serve all queues, and one that leaves gives back what it has, memory-only jobs too. All that under TLS."""
    issue(tmp_path, trustme.CA(), "any.example")
    papers = ("--cluster-cert", str(tmp_path / "host.pem"), "--cluster-ca", str(tmp_path / "authority.pem"))
    a = host("", *papers)
    assert served_here(a) == set(range(SHARDS))
    fill(a, "kept")
    fill(a, "in memory", persist=False)
    b = host("", *papers)
    eventually(lambda: is_shared(a, b), SECONDS_MAX)
    for server in (a, b):
        eventually(lambda server=server: server.request("GET", "/ready").status == 200, SECONDS_MAX)  # type: ignore[misc]
    check_all(b, "kept")
    assert b.stop() == 0
    eventually(lambda: served_here(a) == set(range(SHARDS)), SECONDS_MAX)
    check_all(a, "in memory")

    for line in (
        'proteus_claims_total{outcome="won"} 4.0',
        'proteus_moves_total{direction="out"} 2.0',
        'proteus_moves_total{direction="in"} 2.0',
    ):
        eventually(lambda line=line: f"\n{line}\n" in a.request("GET", "/metrics").body.decode())  # type: ignore[misc]
    eventually(lambda: [found["host_state"] for found in cluster_of(a)["hosts"]] == ["alive"])

    assert a.stop() == 0


def test_a_host_that_cannot_be_one_says_why(host: StartHost, url: str, tmp_path: Path) -> None:
    """Another number of shards than the cluster's, or an address that is taken; and one whose address another has taken over ends."""
    address = f"127.0.0.1:{free_port()}"
    first = host(address)
    for options, text in (
        (("--node-address", f"127.0.0.1:{free_port()}", "--shards", "7"), "--shards 4"),
        (("--node-address", address, "--shards", "4"), f"cannot listen on 127.0.0.1 port {address.rpartition(':')[2]}"),
    ):
        command = [sys.executable, "-m", "proteus_shards", "serve", "--port", "0", "--cluster", "--store", url, *options]
        ended = subprocess.run(command, cwd=tmp_path, env=server_environ({}), capture_output=True, text=True, timeout=60, check=False)
        assert ended.returncode == 1
        assert text in ended.stderr

    asyncio.run(join(url, Host(address, "another", 1, "1")))
    assert first.wait() == EXIT_REPLACED
    assert f"another server has joined the cluster as {address}" in first.log()


async def join(store: str, host: Host) -> None:
    """Join a cluster as a host that is not there."""
    register = make_register(store)
    await register.open()
    await register.join(host)
    await register.close()


def test_a_host_that_is_killed_is_missed_soon(host: StartHost) -> None:
    """The other serves its shards, and it takes its share again when it comes back under its address. What its node process does when it is killed harms no shard."""
    address = f"127.0.0.1:{free_port()}"
    a, b = host(), host(address)
    eventually(lambda: is_shared(a, b), SECONDS_MAX)
    fill(a, "kept")
    pids = shards_of(a)
    os.kill(next(pid for pid, command in a.children().items() if command.endswith("proteus_shards.node")), signal.SIGKILL)
    for pid in [b.process.pid, *b.children()]:
        os.kill(pid, signal.SIGKILL)
    killed_at = time.monotonic()
    b.kill()
    eventually(lambda: served_here(a) == set(range(SHARDS)), SECONDS_MAX)
    waited_seconds = time.monotonic() - killed_at
    assert pids <= shards_of(a)  # its own shards went on
    check_all(a, "kept")
    assert waited_seconds > LEASE_SECONDS / 2  # not before it could be known
    c = host(address)
    eventually(lambda: is_shared(a, c), SECONDS_MAX)
    fill(c, "again")
    check_all(a, "again")

    assert c.stop() == 0
    assert a.stop() == 0


def shards_of(server: Server) -> set[int]:
    """Return the processes of shards of a server."""
    return {pid for pid, command in server.children().items() if command.endswith("proteus_shards.shard")}


def begin(server: Server, name: str, queue: str) -> tuple[socket.socket, bytes]:
    """Send a request to enqueue a job but for its last bytes, which are returned."""
    body = json.dumps({"id": name, "queue": queue, "timeout": 600}).encode()
    slow = socket.create_connection((server.host, server.port), timeout=SECONDS_MAX)
    slow.sendall(b"POST /enqueue HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body[:5]))
    return slow, body[5:]


def finish(slow: socket.socket, rest: bytes) -> bytes:
    """Send the rest, and return the first line of the answer."""
    with slow, slow.makefile("rb") as answer:
        slow.sendall(rest)
        return answer.readline()


def test_a_slow_client_does_not_hold_up_a_host_that_leaves(host: StartHost) -> None:
    """Its shards are elsewhere, memory-only jobs too, while it still waits for the request, and then serves that there. The last host waits with its shards."""
    a, b = host(), host()
    eventually(lambda: is_shared(a, b), SECONDS_MAX)
    fill(a, "in memory", persist=False)
    slow, rest = begin(b, "slow", QUEUES[min(served_here(b))])
    b.process.send_signal(signal.SIGTERM)
    eventually(lambda: served_here(a) == set(range(SHARDS)), SECONDS_MAX)
    assert b.process.poll() is None
    check_all(a, "in memory")
    assert b" 202 " in finish(slow, rest)
    assert b.wait() == 0

    slow, rest = begin(a, "last", QUEUES[0])
    a.process.send_signal(signal.SIGTERM)
    eventually(lambda: "giving all shards away" in a.log(), SECONDS_MAX)
    assert b" 202 " in finish(slow, rest)
    assert a.wait() == 0
    assert "shard handed over" in a.log()
