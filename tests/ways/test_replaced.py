"""Two servers that are started on one store which hosts could share: the later one keeps it, the earlier one ends, and nothing else ends one."""

from __future__ import annotations

import asyncio
import os
import signal
from itertools import count
from uuid import uuid4

import pytest

from proteus_shards.cli import EXIT_REPLACED
from proteus_shards.core.placement import shard_of, slot_of
from proteus_shards.store.registry import make_store
from tests.conftest import Server, StartServer, eventually
from tests.servers.places import Places, places
from tests.servers.redis import free_port
from tests.store.postgres_backing import execute, postgres_url
from tests.store.rows import opened

__all__ = ["places"]

SHARDS = 2
REMOTE = ("postgres", "redis", "dynamodb")
QUEUES = [next(queue for queue in map(str, count()) if shard_of(slot_of(queue), SHARDS) == shard) for shard in range(SHARDS)]


def enqueue(server: Server, name: str, queue: str = QUEUES[0]) -> int:
    """Enqueue a job that is kept, and return the status."""
    return server.request("POST", "/enqueue", {"id": name, "queue": queue, "timeout": 600, "persist_data": True}).status


@pytest.fixture
def url(places: Places) -> str:
    """Return a place in Postgres."""
    return places.of("postgres")(f"replaced-{uuid4().hex[:12]}")


@pytest.fixture(params=REMOTE)
def any_url(request: pytest.FixtureRequest, places: Places) -> str:
    """Return a place in each kind of store that hosts can share."""
    return places.of(request.param)(f"replaced-{uuid4().hex[:12]}")


def shard_of_server(server: Server, number: int) -> int | None:
    """Return the process of one of a server's shards, by the order of their starts."""
    found = sorted(pid for pid, command in server.children().items() if command.split()[-1:] == ["proteus_shards.shard"])
    return found[number] if len(found) == SHARDS else None


def test_the_server_that_was_started_last_goes_on(start_server: StartServer, any_url: str) -> None:
    """The one before ends as soon as it has something to write, with an exit code and a message of its own; it takes nothing back."""
    old = start_server("--shards", str(SHARDS), "--store", any_url)
    assert enqueue(old, "before") == 202
    new = start_server("--shards", str(SHARDS), "--store", any_url)
    assert enqueue(new, "after") == 202

    assert enqueue(old, "late") in {429, 503}

    assert old.wait() == EXIT_REPLACED
    assert "another server was started on this store and has its shards now" in old.log().splitlines()[-1]
    assert enqueue(new, "last") == 202
    assert [job["id"] for job in new.request("GET", f"/next?queue={QUEUES[0]}&num_jobs=9").json()] == ["before", "after", "last"]
    assert "StoreFenced" not in new.log()
    assert new.stop() == 0


def start_host(start_server: StartServer, url: str) -> Server:
    """Start the first host of a cluster."""
    address = f"127.0.0.1:{free_port()}"
    return start_server("--cluster", "--node-address", address, "--shards", str(SHARDS), "--store", url, "--lease-seconds", "2")


def test_a_host_of_a_cluster_that_was_started_last_goes_on(start_server: StartServer, any_url: str) -> None:
    """The plain server before ends as it does for another one; that a shard was fenced is said in one line."""
    old = start_server("--shards", str(SHARDS), "--store", any_url)
    assert enqueue(old, "before") == 202
    host = start_host(start_server, any_url)
    assert enqueue(host, "after") == 202

    assert enqueue(old, "late") in {429, 503}

    assert old.wait() == EXIT_REPLACED
    assert "another server was started on this store and has its shards now" in old.log().splitlines()[-1]
    assert "StoreFenced" in old.log()
    assert "Traceback" not in old.log()
    assert enqueue(host, "last") == 202
    assert [job["id"] for job in host.request("GET", f"/next?queue={QUEUES[0]}&num_jobs=9").json()] == ["before", "after", "last"]
    assert "StoreFenced" not in host.log()
    assert host.stop() == 0


def test_a_host_of_a_cluster_that_has_left_again_was_a_later_server_too(start_server: StartServer, url: str) -> None:
    """Nobody holds the shards, and the plain server before takes none back: what it remembers is old."""
    old = start_server("--shards", str(SHARDS), "--store", url)
    assert enqueue(old, "before") == 202
    host = start_host(start_server, url)
    assert enqueue(host, "after") == 202
    assert host.stop() == 0

    assert enqueue(old, "late") in {429, 503}

    assert old.wait() == EXIT_REPLACED
    assert "another server was started on this store, and has left it again" in old.log().splitlines()[-1]
    new = start_server("--shards", str(SHARDS), "--store", url)
    assert [job["id"] for job in new.request("GET", f"/next?queue={QUEUES[0]}&num_jobs=9").json()] == ["before", "after"]


def test_a_shard_that_is_started_again_takes_nothing_back(start_server: StartServer, url: str) -> None:
    """Not even where its server has not noticed yet that there is a later one."""
    old = start_server("--shards", str(SHARDS), "--store", url)
    new = start_server("--shards", str(SHARDS), "--store", url)
    shard = shard_of_server(old, 0)
    assert shard is not None

    os.kill(shard, signal.SIGKILL)

    assert old.wait() == EXIT_REPLACED
    assert [enqueue(new, "after", queue) for queue in QUEUES] == [202, 202]
    assert "StoreFenced" not in new.log()


def test_a_later_server_of_another_number_of_shards_goes_on(start_server: StartServer, url: str) -> None:
    """The one before does not change the number back."""
    old = start_server("--shards", str(SHARDS), "--store", url)
    assert enqueue(old, "before") == 202
    new = start_server("--shards", "3", "--store", url)

    assert enqueue(old, "late") in {429, 503}

    assert old.wait() == EXIT_REPLACED
    assert enqueue(new, "after") == 202
    assert [job["id"] for job in new.request("GET", f"/next?queue={QUEUES[0]}&num_jobs=9").json()] == ["before", "after"]


def test_a_store_that_lost_its_last_writes_is_no_other_servers(start_server: StartServer, url: str) -> None:
    """It knows an earlier server only, as after a failover that came too soon; the shards are held anew, and serve."""
    server = start_server("--shards", str(SHARDS), "--store", url)
    assert enqueue(server, "before") == 202
    asyncio.run(execute(postgres_url(url), "UPDATE lease SET host = 'alone-earlier', turn = turn - 1, epoch = epoch - 1"))
    names = map(str, count())

    eventually(lambda: all(enqueue(server, next(names), queue) == 202 for queue in QUEUES) and "StoreFenced" in server.log(), 60)
    assert server.stop() == 0


def test_what_is_no_server_ends_none(start_server: StartServer, url: str) -> None:
    """Whoever opens the rows, as `store copy` does, fences a shard; it is started again, and so is one that was killed."""
    server = start_server("--shards", str(SHARDS), "--store", url)
    assert enqueue(server, "before") == 202

    async def open_rows() -> None:
        async with opened(make_store(url, 0, SHARDS)):
            pass

    asyncio.run(open_rows())
    names = map(str, count())
    eventually(lambda: enqueue(server, next(names)) == 202 and "StoreFenced" in server.log(), 40)
    shard = shard_of_server(server, 0)
    assert shard is not None
    os.kill(shard, signal.SIGKILL)
    eventually(lambda: shard_of_server(server, 0) not in (None, shard) and enqueue(server, next(names)) == 202, 40)

    assert server.stop() == 0
