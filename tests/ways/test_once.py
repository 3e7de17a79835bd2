"""POST /enqueue with an Idempotency-Key, on the fast lane and on Quart: the same answer again, after restarts too."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.conftest import Answer, Server, StartServer
from tests.servers.places import place, places

__all__ = ["place", "places"]

ONCE = "Idempotency-Key"


def job(job_id: str, queue: str = "q", **fields: Any) -> dict[str, Any]:
    """Return a persisted job."""
    return {"id": job_id, "queue": queue, "timeout": 60, "persist_data": True, **fields}


def post(server: Server, key: str, body: object) -> Answer:
    """Enqueue under a key."""
    return server.request("POST", "/enqueue", body, {ONCE: key})


def gist(answer: Answer) -> tuple[int, object]:
    """Return what an answer says."""
    return answer.status, json.loads(answer.body) if answer.body else None


def test_a_retry_is_answered_the_same_though_the_job_is_gone(start_server: StartServer, place: str) -> None:
    """Of one job and of an array for queues of two shards, through a restart with another number of shards; another body is refused."""
    array = [job("a", "q0"), job("b", "q1"), job("a", "q0"), {"id": "x"}, job("c", "q0", persist_data=False)]
    server = start_server("--store", place)
    seen = [post(server, "one", job("1")), post(server, "many", array)]
    assert [answer.status for answer in seen] == [202, 207]
    assert [each["status"] for each in seen[1].json()] == [202, 202, 409, 422, 202]
    assert server.request("DELETE", "/complete?queue=q&job_id=1").status == 200
    assert server.request("DELETE", "/complete?queue=q0&job_id=a").status == 200
    for restarted in (False, True):
        if restarted:
            server.kill()
            server = start_server("--store", place, "--shards", "3")
        assert gist(post(server, "one", job("1"))) == gist(seen[0])
        assert gist(post(server, "many", array)) == gist(seen[1])
        assert [server.request("GET", f"/next?queue={queue}").status for queue in ("q", "q0")] == [204, 204 if restarted else 200]
    other = post(server, "one", job("2"))
    assert (other.status, other.json()["field"]) == (422, "idempotency-key")
    assert server.request("POST", "/enqueue", job("1")).status == 202
    assert gist(post(server, "refused", job("1"))) == gist(post(server, "refused", job("1")))
    assert server.request("DELETE", "/complete?queue=q&job_id=1").status == 200
    assert post(server, "refused", job("1")).status == 409


@pytest.mark.parametrize("option", ["--fast-lane", "--no-fast-lane"])
def test_keys_have_rules(start_server: StartServer, option: str) -> None:
    """Their form, their number, and their time; lines have none."""
    server = start_server(option, "--idempotency-keys-max", "1", "--shards", "1", "--store", "memory:")
    mine = job("a", persist_data=False)
    for key in ("", "a b", "x" * 256, "\x80"):
        assert (post(server, key, mine).status, post(server, key, mine).json()["field"]) == (422, "idempotency-key")
    assert post(server, "x" * 255, mine).status == 202
    full = post(server, "y", mine)
    assert (full.status, "idempotency_keys_max" in full.json()["detail"]) == (429, True)
    for headers in ({ONCE: "k"}, {ONCE: "k", "Content-Type": "application/x-ndjson"}):
        lines = json.dumps(job("l1")) + "\n" + json.dumps(job("l2")) + "\n"
        answer = server.request("POST", "/enqueue", lines, headers)
        assert (answer.status, answer.json()["field"]) == (422, "idempotency-key")


@pytest.mark.parametrize("option", ["--fast-lane", "--no-fast-lane"])
def test_a_key_that_would_not_count_is_refused(start_server: StartServer, option: str) -> None:
    """A batch with one is not carried out."""
    server = start_server(option, "--shards", "1", "--store", "memory:")

    answer = server.request("POST", "/batch", [{"op": "enqueue", "job": {"id": "1", "queue": "q", "timeout": 60}}], {ONCE: "one"})

    assert (answer.status, answer.json()["field"]) == (422, "idempotency-key")
    assert server.request("GET", "/next?queue=q").status == 204
