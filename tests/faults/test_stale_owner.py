"""Two servers on one store: the older one, stopped and gone on, finds that its rows have another owner, writes nothing, says so, and ends."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from tests.conftest import Answer, Server, StartServer, eventually, runs
from tests.faults.test_crashes import drain
from tests.servers.places import Places, places

__all__ = ["places"]

REMOTE = ("postgres", "redis", "dynamodb")


def options(url: str) -> list[str]:
    """Return the options of each server here."""
    return ["--shards", "1", "--store", url, "--request-seconds-max", "20", "--log-format", "json"]


def enqueue(server: Server, job_id: str) -> Answer:
    """Send a job that the store keeps."""
    job = {"id": job_id, "queue": "q", "timeout": 60, "persist_data": True, "payload": job_id}
    return server.request("POST", "/enqueue", job)


@contextmanager
def stopped(server: Server) -> Iterator[int]:
    """Stop a server's shard, and its supervisor so that it cannot start another one. Gives the shard; ends all of it."""
    (shard,) = (pid for pid, command in server.children().items() if "proteus_shards.shard" in command or "mutated shard" in command)
    os.kill(server.process.pid, signal.SIGSTOP)
    os.kill(shard, signal.SIGSTOP)
    try:
        yield shard
    finally:
        if runs(shard):
            os.kill(shard, signal.SIGCONT)
        server.kill()


@pytest.mark.parametrize("kind", REMOTE)
def test_a_stale_owner_writes_nothing_says_why_and_ends(start_server: StartServer, places: Places, kind: str) -> None:
    """What it is asked to store after its return is not stored, and not said to be."""
    url = places.of(kind)(f"stale-{uuid4().hex[:12]}")
    old = start_server(*options(url))
    assert 202 == enqueue(old, "before").status
    with stopped(old) as shard, ThreadPoolExecutor(1) as pool:
        late = pool.submit(enqueue, old, "late")  # waits in the stopped shard's socket
        new = start_server(*options(url))
        assert 202 == enqueue(new, "after").status

        os.kill(shard, signal.SIGCONT)

        assert late.result(30).status in {429, 503}
        eventually(lambda: not runs(shard))
        assert enqueue(old, "later").status in {429, 503}
        assert re.search("StoreFenced: .*another .*taken .*over", old.log())
    assert 202 == enqueue(new, "last").status
    assert 0 == new.stop()

    assert ["before", "after", "last"] == stored(start_server(*options(url)))


def test_an_owner_that_passed_over_its_fence_would_be_found(places: Places, start_server: StartServer, tmp_path: Path) -> None:
    """The same, with a planted fault: it says that a job is stored which is not."""
    url = places.of("redis")(f"stale-{uuid4().hex[:12]}")
    old = Server("--port", "0", *options(url), cwd=tmp_path, environ={}, program=("-m", "tests.faults.mutated", "fence ignored"))
    with stopped(old) as shard, ThreadPoolExecutor(1) as pool:
        late = pool.submit(enqueue, old, "late")
        new = start_server(*options(url))
        os.kill(shard, signal.SIGCONT)

        assert 202 == late.result(30).status
        assert [] == stored(new)


def stored(server: Server) -> list[object]:
    """Return the payloads of all jobs, in order."""
    return [payload for payload, _ in drain(server, "q").delivered]
