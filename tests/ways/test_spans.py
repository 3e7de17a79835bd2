"""Steps over several shards on real servers, whose processes end between the parts of a step: all of it or nothing, as its client was told."""

from __future__ import annotations

import http.client
import json
import os
import signal
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from proteus_shards.core.placement import shard_of, slot_of
from proteus_shards.fault_points import VARIABLE
from tests.conftest import Server, StartServer, eventually
from tests.servers.places import place, places

__all__ = ["place", "places"]

SHARDS = 3
QUEUES = {shard: next(f"queue {n}" for n in range(100) if shard_of(slot_of(f"queue {n}"), SHARDS) == shard) for shard in range(SHARDS)}
POINTS = {"step.begun": False, "step.prepared": False, "step.asked": None, "step.decided": True, "step.concluded": True}
"""Where a front ends, and whether the step is done then; None: either way."""


def job(job_id: str, shard: int, **fields: Any) -> dict[str, Any]:
    """Return a job of a queue of a shard."""
    return {"id": job_id, "queue": QUEUES[shard], "timeout": 600, "payload": None, **fields}


def path(shard: int, job_id: str = "") -> str:
    """Return the path of a queue's jobs, or of one."""
    return f"/v2/queues/{QUEUES[shard].replace(' ', '%20')}/jobs" + (f"/{job_id}" if job_id else "")


def begin(server: Server) -> str:
    """Have a run under way, and return its path."""
    assert server.request("POST", "/v2/queues/jobs", [job("run", 0)]).status == 202
    [run] = server.request("GET", path(0)).json()
    return f"{path(0, 'run')}/run-id/{run['run_id']}"


def requeue(server: Server, run: str) -> int | None:
    """End a run and add a job to each shard; return the status, or None where no answer came."""
    try:
        return server.request("PUT", run, [job(f"new-{shard}", shard) for shard in range(SHARDS)]).status
    except (OSError, http.client.HTTPException):
        return None


def there(server: Server) -> list[bool]:
    """Say of each of the new jobs whether it is there, and last whether the run is over."""
    found: list[bool] = []
    for shard, name in [*((shard, f"new-{shard}") for shard in range(SHARDS)), (0, "run")]:
        try:
            found.append(server.request("HEAD", path(shard, name)).status == 200)
        except (OSError, http.client.HTTPException):
            return []
    return [*found[:-1], not found[-1]]


def is_whole(server: Server) -> bool:
    """Say whether the step is done, or can be done anew: no intent is left."""
    found = there(server)
    if found == [True] * (SHARDS + 1):
        return True
    if found != [False] * (SHARDS + 1):
        return False
    probe = [server.request("POST", "/v2/queues/jobs", [job(f"new-{shard}", shard)]).status for shard in range(SHARDS)]
    for shard, status in enumerate(probe):
        if status == 202:
            server.request("DELETE", path(shard, f"new-{shard}"))
    return probe == [202] * SHARDS


@pytest.mark.parametrize("point", POINTS)
def test_a_front_that_ends_between_the_parts_of_a_step_leaves_nothing_half_done(start_server: StartServer, point: str) -> None:
    """Its successor takes the step to its end, or back to its beginning."""
    server = start_server("--shards", str(SHARDS), environ={VARIABLE: f"seed=1 {point}=exit:1:1"})
    run = begin(server)

    assert requeue(server, run) is None
    eventually(lambda: is_whole(server), 60)

    done = there(server)[0]
    assert POINTS[point] in (None, done)
    assert server.request("PATCH", run, 1).status == (404 if done else 202)


def test_a_shard_that_ends_in_a_step_leaves_nothing_half_done(start_server: StartServer, place: str) -> None:
    """On every store, whichever shard it is: it comes back and the step is whole; then the whole server is killed and started anew."""
    kill_one(start_server, place, zlib.crc32(place.encode()) % SHARDS)


@pytest.mark.parametrize("shard", range(SHARDS))
def test_whichever_shard_ends_in_a_step_nothing_is_left_half_done(start_server: StartServer, tmp_path: Path, shard: int) -> None:
    """The home and the others."""
    kill_one(start_server, f"sqlite:///{tmp_path / 'store'}", shard)


def kill_one(start_server: StartServer, place: str, shard: int) -> None:
    """Kill a shard while a step is under way, and look what has become of it."""
    server = start_server("--shards", str(SHARDS), "--store", place)
    run = begin(server)
    victims = sorted(pid for pid, words in server.children().items() if "proteus_shards.shard" in words)

    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(requeue, server, run)
        os.kill(victims[shard], signal.SIGKILL)
        status = asked.result()
    eventually(lambda: is_whole(server), 60)
    found = there(server)[0]
    assert status in ((202, 503, None) if found else (503, None))

    server.kill()
    server = start_server("--shards", "1" if shard == 0 else "2", "--store", place)
    eventually(lambda: there(server) == [found] * (SHARDS + 1), 60)


def test_without_a_store_a_step_is_whole_too(start_server: StartServer) -> None:
    """For as long as its shards live."""
    server = start_server("--shards", str(SHARDS), "--store", "memory:")
    run = begin(server)

    assert requeue(server, run) == 202
    assert there(server) == [True] * (SHARDS + 1)
    assert requeue(server, run) == 202
    again = server.request("POST", "/v2/queues/jobs", [job("x", 0), job("new-2", 2)])
    assert (again.status, again.body.decode()) == (409, f"job with id `new-2` already exists in queue `{QUEUES[2]}`.")


def test_a_step_that_is_too_large_for_several_shards_is_refused(start_server: StartServer) -> None:
    """With 422, and nothing of it is there; within one shard it is done."""
    server = start_server("--shards", str(SHARDS))
    large = "x" * 300_000

    refused = server.request("POST", "/v2/queues/jobs", json.dumps([job("a", 0), job("b", 1, payload=large)]))
    assert (refused.status, b"several shards" in refused.body) == (422, True)
    assert server.request("HEAD", path(0, "a")).status == 404
    assert server.request("POST", "/v2/queues/jobs", [job("a", 1), job("b", 1, payload=large)]).status == 202
