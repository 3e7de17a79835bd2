"""The whole product on each store: a job's life, hostile names, restarts, another number of shards, and what it says of itself."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest

from tests.conftest import Server, StartServer
from tests.servers.places import place, places

__all__ = ["place", "places"]

HOSTILE = [
    "'; DROP TABLE job; --",
    '"quoted" \\ back\\slash',
    "{tag}:key*?[a-z]",
    "$(touch x) `touch x` | > /tmp/x",
    "<script>alert(1)</script>&amp;",
    "../../etc/passwd",
    "%00%2e%2F+ +",
    "\u202eright to left\u200d\ufeff",
    "e\u0301 and \u00e9",
    "\U0001f600" * 1024,
    " leading and trailing ",
    "slot#0001",
    "null",
]


def job(job_id: str, queue: str, **fields: Any) -> dict[str, Any]:
    """Return a persisted job."""
    return {"id": job_id, "queue": queue, "timeout": 600, "persist_data": True, **fields}


def query(**values: str) -> str:
    """Return a query string."""
    return "&".join(f"{name}={quote(value, safe='')}" for name, value in values.items())


def take(server: Server, queue: str, count: int = 1000) -> list[dict[str, Any]]:
    """Take the jobs of a queue, in as many requests as it needs."""
    found: list[dict[str, Any]] = []
    while len(found) < count:
        answer = server.request("GET", f"/next?{query(queue=queue)}&num_jobs={count - len(found)}")
        if answer.status == 204:
            break
        assert answer.status == 200, answer.body
        found += answer.json()
    return found


def test_a_jobs_life_survives_restarts_and_other_numbers_of_shards(start_server: StartServer, place: str) -> None:
    """Order, payload, state, attempts, dead letters and what is completed: all as it was, through 2, 3 and 1 shards, kill -9 included."""
    payload = '{"a": [1, 2.50, 1e300, "\\u0000 é"], "b":  null}'
    server = start_server("--store", place, "--shards", "2")
    for number in range(40):
        body = job(f"{number}", f"q{number % 4}", max_retries=number % 2)
        assert server.request("POST", "/enqueue", body).status == 202
    raw = f'{{"id":"raw","queue":"raw","timeout":600,"persist_data":true,"payload":{payload}}}'
    assert server.request("POST", "/enqueue", raw).status == 202
    assert server.request("POST", "/enqueue", job("late", "late", run_at="2099-01-01T00:00:00Z")).status == 202
    [first] = take(server, "q0", 1)
    assert first["id"] == "0"
    assert server.request("PATCH", f"/heartbeat?{query(queue='q0', job_id='0', run_id=first['run_id'])}", {"at": 1}).status == 202
    assert server.request("DELETE", f"/complete?{query(queue='q1', job_id='1')}").status == 200
    assert server.request("POST", "/enqueue", job("dies", "dead", timeout=0)).status == 202
    assert [letter["id"] for letter in take(server, "dead")] == ["dies"]

    server.kill()
    server = start_server("--store", place, "--shards", "3")
    assert [found["id"] for found in take(server, "q1")] == ["5", "9", "13", "17", "21", "25", "29", "33", "37"]
    assert [found["id"] for found in take(server, "q0", 2)] == ["4", "8"]
    assert server.request("POST", "/enqueue", job("0", "q0")).status == 409
    assert server.stop() == 0

    server = start_server("--store", place, "--shards", "1")
    assert [found["id"] for found in take(server, "q0")] == ["12", "16", "20", "24", "28", "32", "36"]
    assert server.request("DELETE", f"/complete?{query(queue='q0', job_id='0', run_id=first['run_id'])}").status == 200
    found = server.request("GET", "/next?queue=raw")
    assert f'"payload":{payload}'.encode() in found.body
    assert found.json()["attempt"] == 1
    assert take(server, "late") == []
    [letter] = server.request("GET", "/dead?queue=dead").json()["jobs"]
    assert (letter["id"], letter["reason"]) == ("dies", "timeout")


def test_hostile_names_are_names(start_server: StartServer, place: str) -> None:
    """As queue and as id, through a restart, each its own job and no other's."""
    server = start_server("--store", place)
    for name in HOSTILE:
        assert server.request("POST", "/enqueue", job(name, name, payload=name, state=name)).status == 202, name
    server.kill()
    server = start_server("--store", place)

    for name in HOSTILE:
        [found] = take(server, name)
        assert (found["id"], found["queue"], found["payload"], found["state"]) == (name, name, name, name)
        assert server.request("DELETE", f"/complete?{query(queue=name, job_id=name, run_id=found['run_id'])}").status == 200
        assert take(server, name) == []


def test_many_jobs_in_one_delivery(start_server: StartServer, place: str) -> None:
    """A delivery may have fewer jobs than were asked for, where the store takes so many at once, and the next has the others, in order."""
    server = start_server("--store", place, "--shards", "1")
    for number in range(120):
        assert server.request("POST", "/enqueue", job(f"{number}", "q")).status == 202

    assert [found["id"] for found in take(server, "q", 120)] == [f"{number}" for number in range(120)]


def test_it_says_what_its_durability_rests_on(start_server: StartServer, place: str) -> None:
    """In /health and in the log; no secret is among it."""
    server = start_server("--store", place)

    health = server.request("GET", "/health").json()

    kind = place.partition(":")[0]
    assert health["store"] == kind
    assert health["durability"] == ("weak" if kind == "dynamodb" else "machine")  # it is a double, which promises nothing
    assert health["terms"]
    assert health["terms"] in server.log()


@pytest.mark.parametrize("size", [380_000, 4_000_000])
def test_a_large_job_is_kept_or_refused_before_anything_is_written(size: int, start_server: StartServer, place: str) -> None:
    """What the store cannot take is a 422 that says the limit; what it takes comes back whole."""
    server = start_server("--store", place)
    text = "x" * size

    answer = server.request("POST", "/enqueue", job("large", "q", payload=text))

    if answer.status == 422:
        assert place.startswith("dynamodb")
        assert "the store takes jobs of at most" in answer.json()["detail"]
        assert take(server, "q") == []
    else:
        assert answer.status == 202
        server.kill()
        [found] = take(start_server("--store", place), "q")
        assert found["payload"] == text
