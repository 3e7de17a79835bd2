"""Redrives into queues of other shards on real servers, whose processes end between the parts of a step: each dead letter is in one place, once."""

from __future__ import annotations

import http.client
import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from proteus_shards.fault_points import VARIABLE
from tests.conftest import Server, StartServer, eventually
from tests.ways.test_spans import POINTS, QUEUES, SHARDS

SOURCE, TARGET = QUEUES[0], QUEUES[2]
IDS = [f"{number:02}" for number in range(30)]
PATH = f"/redrive?queue={quote(SOURCE)}&to={quote(TARGET)}"


def bury(server: Server, *, persist: bool = True, payload: str = "") -> None:
    """Have dead letters: their ttl is over at once."""
    for job_id in IDS:
        letter = {"id": job_id, "queue": SOURCE, "timeout": 9, "ttl": 0, "persist_data": persist, "payload": payload, "max_retries": 3}
        assert server.request("POST", "/enqueue", letter).status == 202
    eventually(lambda: ids(server, SOURCE, "dead") == IDS)


def ids(server: Server, queue: str, state: str = "ready") -> list[str] | None:
    """Return the ids of the jobs of a queue in order, or None where nobody says."""
    try:
        answer = server.request("GET", f"/jobs?queue={quote(queue)}&state={state}&bodies=false")
    except (OSError, http.client.HTTPException):
        return None
    return [job["id"] for job in answer.json()["jobs"]] if answer.status == 200 else None


def redrive(server: Server, body: dict[str, Any] | None = None) -> Any:
    """Redrive into the other queue; return the answer, or None where none came."""
    try:
        return server.request("POST", PATH, body)
    except (OSError, http.client.HTTPException):
        return None


def is_whole(server: Server) -> bool:
    """Say whether all letters are in one of the queues, in their order, and none of their ids is promised."""
    places = [ids(server, SOURCE, "dead"), ids(server, TARGET)]
    if places == [IDS, []]:
        return bool(redrive(server, {"ids": ["none"]}).status == 200)
    return places == [[], IDS]


@pytest.mark.parametrize(
    ("point", "kind"), [*((point, "sqlite") for point in POINTS), ("step.prepared", "memory"), ("step.decided", "memory")]
)
def test_a_front_that_ends_in_a_redrive_loses_and_doubles_nothing(start_server: StartServer, tmp_path: Path, point: str, kind: str) -> None:
    """Its successor takes the step to its end, or back to its beginning; the redrive can then be asked for anew."""
    store = f"sqlite:///{tmp_path / 'store'}" if kind == "sqlite" else "memory:"
    server = start_server("--shards", str(SHARDS), "--store", store, environ={VARIABLE: f"seed=1 {point}=exit:1:1"})
    bury(server, persist=kind == "sqlite")

    assert redrive(server) is None
    eventually(lambda: is_whole(server), 60)
    done = ids(server, TARGET) == IDS

    assert POINTS[point] in (None, done)
    if not done and kind == "sqlite":
        server.kill()
        server = start_server("--shards", str(SHARDS), "--store", store)
        eventually(lambda: redrive(server).status == 200 and ids(server, TARGET) == IDS, 60)


@pytest.mark.parametrize("shard", [0, 2])
def test_a_shard_that_ends_in_a_redrive_loses_and_doubles_nothing(start_server: StartServer, tmp_path: Path, shard: int) -> None:
    """Whether it is the one that the letters leave, or the other; then the whole server is killed and started with fewer shards."""
    store = f"sqlite:///{tmp_path / 'store'}"
    server = start_server("--shards", str(SHARDS), "--store", store)
    bury(server)
    victims = sorted(pid for pid, words in server.children().items() if "proteus_shards.shard" in words)

    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(redrive, server)
        os.kill(victims[shard], signal.SIGKILL)
        answer = asked.result()
    eventually(lambda: is_whole(server), 60)
    done = ids(server, TARGET) == IDS
    assert answer is None or answer.status in ((200, 503) if done else (429, 503))

    server.kill()
    server = start_server("--shards", "2", "--store", store)
    eventually(lambda: ids(server, TARGET) == (IDS if done else []) and is_whole(server), 60)


def test_a_redrive_over_shards_goes_on_in_portions(start_server: StartServer) -> None:
    """Which no step can hold at once: in order, with all retries; ids that are live there stay dead, and what is too large is told."""
    server = start_server("--shards", str(SHARDS), "--store", "memory:")
    bury(server, persist=False, payload="x" * 50_000)
    huge = {"id": "huge", "queue": SOURCE, "timeout": 9, "ttl": 0, "payload": "x" * 300_000}
    assert server.request("POST", "/enqueue", {**huge, "queue": TARGET, "id": IDS[3], "ttl": 600}).status == 202

    assert redrive(server, {"ids": IDS[:10]}).json() == {"jobs": 9}
    assert server.request("POST", "/enqueue", huge).status == 202
    ended = redrive(server)

    assert (ended.status, ended.json()["detail"].partition(":")[0]) == (503, "after 20 jobs")
    assert ids(server, TARGET) == [IDS[3], *IDS[:3], *IDS[4:]]
    assert ids(server, SOURCE, "dead") == [IDS[3], "huge"]
    [job] = server.request("GET", f"/next?queue={quote(TARGET)}&num_jobs=2").json()[1:]
    assert (job["id"], job["attempt"], job["max_retries"], len(json.dumps(job["payload"]))) == (IDS[0], 1, 3, 50_002)
    assert redrive(server).status == 422
