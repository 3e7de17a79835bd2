"""What a backlog takes of memory is given back once it is gone."""

from __future__ import annotations

import json
import re

import pytest

from proteus_shards.memory import Memory
from tests.conftest import Server, StartServer, eventually

MIB = 1024 * 1024


def resident(server: Server, process: str) -> float:
    """Return the resident memory of the processes of a kind, in MiB."""
    page = server.request("GET", "/metrics").body.decode()
    return sum(float(found) for found in re.findall(rf'proteus_process_resident_bytes{{process="{process}[^"]*"}} (\S+)', page)) / MIB


@pytest.mark.parametrize("size", [200, 5_000])
def test_memory_is_given_back_after_a_backlog(size: int, start_server: StartServer) -> None:
    """Of small jobs, whose memory Python keeps, as of large ones, whose memory the C library keeps."""
    count = 60_000 if size < 1000 else 20_000
    server = start_server("--shards", "1", "--store", "memory:")
    before = {process: resident(server, process) for process in ("shard", "front")}
    for start in range(0, count, 500):
        jobs = [{"id": f"{start + number}", "queue": "q", "timeout": 3600, "payload": f"{number:0{size}}"} for number in range(500)]
        assert server.request("POST", "/enqueue", jobs).status == 202
    full = resident(server, "shard")
    left = count
    while left:
        jobs = server.request("GET", "/next?queue=q&num_jobs=1000").json()
        done = [{"op": "complete", "queue": "q", "job_id": job["id"]} for job in jobs]
        assert server.request("POST", "/batch", json.dumps(done)).status == 200
        left -= len(jobs)

    assert full - before["shard"] > count * size / MIB
    for process, was in before.items():
        eventually(lambda process=process, was=was: resident(server, process) - was < max(20.0, 0.2 * (full - was)))  # type: ignore[misc]


def test_memory_is_trimmed_for_each_halving_of_much() -> None:
    """Three times, as some of it is freed a little later; not while a backlog grows or shrinks a little, and never for little."""
    trims: list[int] = []
    memory = Memory(trims.append)
    seen = []
    for size in (100, 200, 150, 101, 100, 99, 60, 51, 49, 200, 10, 0, 5, 0):
        memory.look(0, size * MIB)
        seen.append(len(trims))

    assert seen == [0, 0, 0, 0, 1, 2, 3, 3, 4, 5, 6, 7, 8, 8]
