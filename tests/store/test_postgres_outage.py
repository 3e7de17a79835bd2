"""The whole product while its Postgres server is away: killed, or standing still."""

from __future__ import annotations

import time
from itertools import count

import pytest

from tests.conftest import Server, StartServer, eventually
from tests.servers.postgres import PostgresServer

HEAL_SECONDS_MAX = 15.0  # 5 on a machine that has nothing else to do
REFUSED = {429, 503}


def enqueue(server: Server, name: str, *, persist: bool) -> int:
    """Enqueue a job, and return the status."""
    job = {"queue": "kept" if persist else "light", "id": name, "timeout": 600, "persist_data": persist}
    return server.request("POST", "/enqueue", job).status


@pytest.mark.parametrize("outage", ["killed", "paused"])
def test_persisted_jobs_are_refused_and_light_ones_go_on_until_the_server_is_back(
    own_postgres: PostgresServer, start_server: StartServer, outage: str
) -> None:
    """Nothing that was accepted is lost, doubled or reordered, what was refused with 429 is nowhere, and nothing is started anew."""
    server = start_server("--store", own_postgres.url("jobs", timeout="2", connect_timeout="0.5"), "--shards", "1")
    names = (f"job-{number}" for number in count())
    statuses: dict[str, int] = {}

    def try_one() -> int:
        name = next(names)
        statuses[name] = enqueue(server, name, persist=True)
        return statuses[name]

    assert [try_one() for _ in range(5)] == [202] * 5
    pids = server.children()
    own_postgres.kill() if outage == "killed" else own_postgres.pause()
    try:
        eventually(lambda: try_one() == 429)
        for number in range(5):
            started = time.monotonic()
            assert try_one() in REFUSED
            assert time.monotonic() - started < 10
            assert enqueue(server, f"light-{number}", persist=False) == 202
        assert len(server.request("GET", "/next?queue=light&num_jobs=9").json()) == 5
    finally:
        own_postgres.start() if outage == "killed" else own_postgres.resume()
    eventually(lambda: try_one() == 202, HEAL_SECONDS_MAX)
    delivered = [job["id"] for job in server.request("GET", "/next?queue=kept&num_jobs=100").json()]

    assert [name for name, status in statuses.items() if status == 202 or (status == 503 and name in delivered)] == delivered
    assert {202, 429} <= set(statuses.values()) <= {202, *REFUSED}
    assert server.children().keys() == pids.keys()
