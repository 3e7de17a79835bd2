"""What operators set and do, on the whole product: over both ways alike, and through kill -9 on every store."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Server, StartServer, eventually
from tests.servers.places import place, places
from tests.ways.test_stores import job, take

__all__ = ["place", "places"]

_VARYING = re.compile(
    rb'("(?:run_id|created_at|updated_at|died_at|started_at|ended_at|due_at|next_at|last_at|oldest_ready_seconds|timeout_in)":)("[^"]*"|[0-9.]+)'
)


@pytest.fixture
def both(start_server: StartServer, tmp_path: Path) -> list[Server]:
    """Return a server with the fast lane and one without."""
    options: list[list[str]] = [[], ["--no-fast-lane"]]
    return [start_server("--store", f"sqlite:///{tmp_path / str(number)}", "--shards", "2", *more) for number, more in enumerate(options)]


STEPS: list[tuple[str, str, Any]] = [
    ("POST", "/enqueue", job("a", "q", payload={"x": [1, 2.50]})),
    ("POST", "/enqueue", job("b", "q")),
    ("POST", "/enqueue", job("c", "q", run_at="2099-01-01T00:00:00Z")),
    ("GET", "/next?queue=q", None),
    ("GET", "/queue?queue=q", None),
    ("GET", "/queues", None),
    ("GET", "/queues?limit=1&contains=nothing", None),
    ("GET", "/jobs?queue=q", None),
    ("GET", "/jobs?queue=q&state=scheduled&bodies=false", None),
    ("GET", "/v1/job?queue=q&job_id=b", None),
    ("GET", "/job?queue=q&job_id=none", None),
    ("GET", "/find?job_id=a", None),
    ("PATCH", "/queue?queue=q", {"max_in_flight": 5, "backoff": {"seconds": 1}, "dead_letters_max": 7}),
    ("PATCH", "/queue?queue=q", {"max_in_flight": 0}),
    ("PATCH", "/queue?queue=q", {"nonsense": 0}),
    ("PATCH", "/queue?queue=q", []),
    ("POST", "/pause?queue=q", None),
    ("GET", "/v1/queue?queue=q", None),
    ("POST", "/resume?queue=q", None),
    ("PATCH", "/job?queue=q&job_id=c", {"priority": 9}),
    ("PATCH", "/job?queue=q&job_id=c", {"run_at": None}),
    ("PATCH", "/job?queue=q&job_id=c", {"run_at": "soon"}),
    ("PATCH", "/job?queue=q&job_id=a", {"priority": 1}),
    ("GET", "/job?queue=q&job_id=c", None),
    ("DELETE", "/job?queue=q&job_id=c", None),
    ("DELETE", "/job?queue=q&job_id=c", None),
    ("POST", "/purge?queue=q&state=nonsense", None),
    ("POST", "/purge?queue=q", None),
    ("POST", "/purge?queue=q&state=all", None),
    ("POST", "/enqueue", job("dead", "q", timeout=0)),
    ("GET", "/next?queue=q", None),
    ("GET", "/next?queue=q&wait=0.2", None),
    ("GET", "/dead?queue=q", None),
    ("POST", "/redrive?queue=q", {"reason": "failed"}),
    ("POST", "/redrive?queue=q", {"ids": ["dead"], "reason": "timeout"}),
    ("POST", "/redrive?queue=q", {"nonsense": 1}),
    ("GET", "/jobs?queue=q&state=ready", None),
    ("PUT", "/schedule?queue=s&name=nightly", {"cron": "30 2 * * *", "timezone": "Europe/Berlin", "job": {"timeout": 60}}),
    ("PUT", "/schedule?queue=s&name=bad", {"cron": "every day", "job": {"timeout": 60}}),
    ("PUT", "/schedule?queue=s&name=bad", {"every": 60, "job": {"timeout": -1}}),
    ("PUT", "/schedule?queue=s&name=bad", {"every": 60, "job": {"timeout": 1, "id": "mine"}}),
    ("GET", "/schedule?queue=s&name=nightly", None),
    ("GET", "/schedules", None),
    ("GET", "/schedules?queue=s", None),
    ("DELETE", "/schedule?queue=s&name=nightly", None),
    ("DELETE", "/schedule?queue=s&name=nightly", None),
]


def test_operating_looks_the_same_both_ways(both: list[Server]) -> None:
    """Status, content type and body, step by step, whatever is right or wrong with a request."""
    for method, path, body in STEPS:
        answers = [server.request(method, path, body) for server in both]
        shown = [(answer.status, answer.headers["content-type"], _VARYING.sub(rb"\1", answer.body)) for answer in answers]
        assert shown[0] == shown[1], (method, path)
        assert answers[0].status < 500, (method, path, answers[0].body)


def test_what_is_set_survives_kill_9_and_another_number_of_shards(start_server: StartServer, place: str) -> None:
    """Settings, pauses, changes of jobs, redriven and dead letters with their history, and schedules."""
    server = start_server("--store", place, "--shards", "2")
    for number in range(4):
        assert server.request("POST", "/enqueue", job(f"{number}", "q", payload=number)).status == 202
    assert server.request("PATCH", "/job?queue=q&job_id=3", {"priority": 5}).status == 202
    assert server.request("PATCH", "/job?queue=q&job_id=0", {"run_at": "2099-01-01T00:00:00Z"}).status == 202
    assert server.request("DELETE", "/job?queue=q&job_id=1").status == 200
    assert server.request("PATCH", "/queue?queue=q", {"paused": True, "timeout": 60, "rate": {"jobs": 1000}}).status == 200
    for name in ("d1", "d2"):
        assert server.request("POST", "/enqueue", job(name, "dead", timeout=0)).status == 202
    for _ in range(2):
        assert len(take(server, "dead", 1)) == 1
        eventually(lambda: server.request("GET", "/queue?queue=dead").json()["in_flight"] == 0)
    assert server.request("POST", "/redrive?queue=dead", {"ids": ["d2"]}).json() == {"jobs": 1}
    every = {"every": 31_622_400, "job": {"timeout": 60, "persist_data": True}, "missed": "all"}
    assert server.request("PUT", "/schedule?queue=s&name=yearly", every).status == 200
    before = server.request("GET", "/schedules").json()

    server.kill()
    server = start_server("--store", place, "--shards", "3")

    queue = server.request("GET", "/queue?queue=q").json()
    assert queue["settings"] == {"paused": True, "timeout": 60, "rate": {"jobs": 1000}}
    assert (queue["ready"], queue["scheduled"]) == (2, 1)
    assert take(server, "q") == []
    assert server.request("POST", "/resume?queue=q").status == 202
    assert [found["id"] for found in take(server, "q")] == ["3", "2"]
    [letter] = server.request("GET", "/dead?queue=dead").json()["jobs"]
    assert (letter["id"], [run["outcome"] for run in letter["history"]]) == ("d1", ["timeout"])
    [redriven] = take(server, "dead")
    assert (redriven["id"], redriven["attempt"]) == ("d2", 1)
    assert server.request("GET", "/schedules").json() == before


def test_a_schedule_makes_each_job_once_through_kill_9(start_server: StartServer, place: str) -> None:
    """Every second, with everything that is missed made up for: no time is there twice, and none is left out."""
    server = start_server("--store", place, "--shards", "1")
    every = {"every": 1, "missed": "all", "job": {"timeout": 600, "persist_data": True}}
    assert server.request("PUT", "/schedule?queue=s&name=tick", every).status == 200
    for _ in range(2):
        fired = server.request("GET", "/schedule?queue=s&name=tick").json()["fired"]
        eventually(lambda: server.request("GET", "/schedule?queue=s&name=tick").json()["fired"] > fired)  # noqa: B023
        server.kill()
        server = start_server("--store", place, "--shards", "1")
    begun = time.time()
    eventually(lambda: server.request("GET", "/schedule?queue=s&name=tick").json()["fired"] >= 4)
    assert server.request("PUT", "/schedule?queue=s&name=tick", {**every, "paused": True}).status == 200

    times = [int(found["id"].partition("@")[2]) for found in take(server, "s")]

    assert times == list(range(times[0], times[-1] + 1))
    assert times[-1] >= begun - 2
