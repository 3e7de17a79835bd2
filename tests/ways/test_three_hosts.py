"""Three hosts on one Postgres, as the README starts them: its commands are run, and what it says of them is looked at from every host."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prometheus_client.parser import text_string_to_metric_families

from proteus_shards.client import Client, Conflict, NotFound
from tests.conftest import Server, eventually, server_environ
from tests.servers.postgres import PostgresPlace, postgres_server
from tests.test_readme import COMMAND_SECONDS_MAX, blocks

__all__ = ["postgres_server"]

HOSTS = 3
MOVE_SECONDS_MAX = 40.0


def free_ports(count: int) -> list[int]:
    """Return ports that nothing listens on."""
    with ExitStack() as stack:
        found = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in found]


class Cluster:
    """The hosts of the README's example, and its commands."""

    def __init__(self, folder: Path, store: str) -> None:
        self._folder = folder
        self._block = blocks("shell")[0]
        self._environ = {"PROTEUS_STORE": store, "PROTEUS_LEASE_SECONDS": "3"}
        for written, port in zip(("7401", "7402", "7403"), free_ports(HOSTS), strict=True):
            self._block = self._block.replace(written, str(port))
        self.hosts: list[Server] = []
        (folder / "proteus-shards").write_text(f'#!/bin/sh\nexec {sys.executable} -m proteus_shards "$@"\n')
        (folder / "proteus-shards").chmod(0o755)

    @property
    def addresses(self) -> list[str]:
        """The addresses of the hosts."""
        return re.findall(r"--node-address (\S+)", self._block)

    def start(self) -> None:
        """Start the hosts, all at once."""
        with ThreadPoolExecutor(HOSTS) as starting:
            self.hosts = list(starting.map(self._started, range(HOSTS)))

    def _started(self, place: int) -> Server:
        """Start one host, as its line says, at a port that is free."""
        line = [line for line in self._block.splitlines() if " serve " in line][place]
        options = re.sub(r"--port \d+", "--port 0", line).removesuffix(" &").split()[2:]
        return Server(*options, cwd=self._folder, environ=self._environ)

    def stop(self) -> None:
        """Stop all that runs."""
        for host in self.hosts:
            if host.process.poll() is None:
                host.kill()

    def commands(self) -> list[str]:
        """Return the commands behind the starts, with the ports that the hosts have."""
        text = self._block
        for place, host in enumerate(self.hosts):
            text = text.replace(f"http://127.0.0.1:808{place + 1}", host.url)
        return [line for line in text.splitlines() if line.startswith("proteus-shards") and " serve " not in line]

    def run(self, command: str) -> str:
        """Run one command, and return what it prints."""
        environ = server_environ({}) | {"PATH": f"{self._folder}:{os.environ['PATH']}"}
        ran = subprocess.run(
            ["bash", "-c", command], cwd=self._folder, env=environ, capture_output=True, text=True, check=False, timeout=COMMAND_SECONDS_MAX
        )
        assert (ran.returncode, ran.stderr) == (0, ""), command
        return ran.stdout

    def seen(self, place: int = 0) -> dict[str, Any]:
        """Return the cluster as one host sees it."""
        shown: dict[str, Any] = self.hosts[place].request("GET", "/v1/cluster").json()
        return shown

    def spread(self) -> list[int]:
        """Return how many shards each host serves, by what each of them says itself."""
        return [sum(owner["here"] for owner in self.seen(each)["owners"]) for each in range(HOSTS)]

    def settled(self, *spread: int) -> bool:
        """Say whether each host serves so many shards, and reaches all others."""
        if list(spread) != self.spread():
            return False
        answers = [host.request("GET", "/ready") for host in self.hosts]
        return all(answer.status == 200 and "shards_away" not in answer.json() for answer in answers)

    def owner(self, shard: int, place: int = 0) -> str | None:
        """Return who has a shard."""
        found: str | None = self.seen(place)["owners"][shard]["host"]
        return found

    def metric(self, place: int, name: str) -> float:
        """Return a metric of a host, summed."""
        page = self.hosts[place].request("GET", "/metrics").body.decode()
        return sum(sample.value for family in text_string_to_metric_families(page) for sample in family.samples if sample.name == name)


@pytest.fixture
def cluster(tmp_path: Path, postgres_server: PostgresPlace) -> Iterator[Cluster]:
    """Return three hosts, each with its share."""
    found = Cluster(tmp_path, postgres_server.url(f"hosts_{uuid4().hex}"))
    try:
        found.start()
        eventually(lambda: found.settled(2, 2, 2), MOVE_SECONDS_MAX)
        yield found
    finally:
        found.stop()


def test_the_commands_of_the_readme_are_true_of_three_hosts(cluster: Cluster) -> None:
    """Every host takes every job and gives it, lists all, and takes steps over all; a shard moves, a host drains, and says that it is not ready; a dead one is forgotten."""
    status, enqueue, fetch, move, drain = cluster.commands()

    assert re.findall(r"^(\S+) +alive +2 ", cluster.run(status), re.MULTILINE) == sorted(cluster.addresses)
    cluster.run(enqueue)
    assert '"payload":{"to": "ada"}' in cluster.run(fetch)
    queues = [f"queue-{number}" for number in range(24)]
    for number, queue in enumerate(queues):
        job = {"id": "1", "queue": queue, "timeout": 30, "persist_data": bool(number % 2), "payload": number}
        assert 202 == cluster.hosts[number % HOSTS].request("POST", "/enqueue", job).status
    for host in cluster.hosts:
        assert set(queues) <= {queue["queue"] for queue in host.request("GET", "/queues").json()["queues"]}
        assert 24 == len(host.request("GET", "/find?job_id=1&limit=100").json()["jobs"])
    for number, queue in enumerate(queues):
        assert number == cluster.hosts[(number + 1) % HOSTS].request("GET", f"/next?queue={queue}").json()["payload"]
    step = [{"id": "2", "queue": queue, "timeout": 30, "max_retries": 0, "payload": "step"} for queue in queues]
    assert 202 == cluster.hosts[0].request("POST", "/v2/queues/jobs", step).status
    once = {"id": "3", "queue": queues[0], "timeout": 30, "payload": "once"}
    assert [202] * HOSTS == [host.request("POST", "/enqueue", once, {"Idempotency-Key": "k"}).status for host in cluster.hosts]
    for number, queue in enumerate(queues):
        assert "step" == cluster.hosts[number % HOSTS].request("GET", f"/next?queue={queue}").json()["payload"]
    assert all(cluster.metric(place, "proteus_forwards_total") > 0 for place in range(HOSTS))
    assert 50 == sum(cluster.metric(place, "proteus_jobs_enqueued_total") for place in range(HOSTS))
    cluster.run(move)
    eventually(lambda: cluster.owner(0) == cluster.addresses[1], MOVE_SECONDS_MAX)
    cluster.run(drain)
    eventually(lambda: cluster.spread()[2] == 0, MOVE_SECONDS_MAX)
    eventually(lambda: cluster.hosts[2].request("GET", "/ready").status == 503)
    detail = cluster.hosts[2].request("GET", "/ready").json()["detail"]
    assert "this host holds no shard; this host is draining" == detail
    assert 200 == cluster.hosts[2].request("GET", "/health").status
    assert cluster.metric(2, "proteus_moves_total") > 0
    eventually(lambda: cluster.metric(2, "proteus_leases_held") == 0)
    for pid in (*cluster.hosts[0].children(), cluster.hosts[0].process.pid):
        os.kill(pid, signal.SIGKILL)
    cluster.hosts[0].wait()
    with Client(cluster.hosts[2].url) as client:
        eventually(lambda: {owner.host for owner in client.cluster().owners} == {cluster.addresses[1]}, MOVE_SECONDS_MAX)
        # each host judges by itself who is dead, and the one that claims may be the first to
        eventually(lambda: [host.host for host in client.cluster().hosts if host.host_state == "dead"] == [cluster.addresses[0]])
        with pytest.raises(Conflict):
            client.forget_host(cluster.addresses[1])
        client.forget_host(cluster.addresses[0])
        eventually(lambda: len(client.cluster().hosts) == 2)
        with pytest.raises(NotFound):
            client.forget_host(cluster.addresses[0])
