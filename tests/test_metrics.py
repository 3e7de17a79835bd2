"""The page of metrics of real servers: what happened is on it, whoever is asked, and whatever is killed."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from proteus_shards.config import Settings
from proteus_shards.tally import METRICS
from tests.conftest import REQUEST_SECONDS_MAX, Server, StartServer, eventually
from tests.front.sites import trusting, with_tls
from tests.front.test_metrics import HOSTILE, queues_of, values_of

COUNTED = tuple(name + suffix for name, metric in METRICS.items() if metric.kind != "gauge" for suffix in ("", "_bucket", "_count", "_sum"))


def scrape(server: Server) -> dict[tuple[str, ...], float]:
    """Return the samples of the page, as some front shows them."""
    answer = server.request("GET", "/metrics")
    assert answer.status == 200
    return values_of(answer.body)


def total(page: dict[tuple[str, ...], float], name: str, *labels: str) -> float:
    """Return the sum of a metric over all series that have some label values."""
    return sum(value for key, value in page.items() if key[0] == name and set(labels) <= set(key[1:]))


def check_forth(before: dict[tuple[str, ...], float], after: dict[tuple[str, ...], float]) -> None:
    """See that no series has vanished, and that no counter has gone back. Of a shard that is away, a front may never have heard which queues it has."""
    assert sorted(key for key in before.keys() - after.keys() if not key[0].startswith("proteus_queue_")) == []
    back = {key: (before[key], after[key]) for key in before if key[0] in COUNTED and after[key] < before[key]}
    assert not back


def ready(server: Server) -> bool:
    """Say whether every front has all its links: each connection meets one of the fronts."""
    return all(server.request("GET", "/ready").status == 200 for _ in range(16))


def live(server: Server, first: int, count: int) -> None:
    """Let some jobs live: each queue gets one that is completed and one that stays."""
    for number in range(first, first + count):
        for name in (f"{number}", f"{number} stays"):
            job = {"id": name, "queue": f"q{number % 4}", "timeout": 600, "persist_data": True}
            assert server.request("POST", "/enqueue", job).status == 202
        job_id = server.request("GET", f"/next?queue=q{number % 4}").json()["id"]
        taken = f"queue=q{number % 4}&job_id={job_id.replace(' ', '+')}"
        assert server.request("PATCH", f"/heartbeat?{taken}").status == 202
        assert server.request("DELETE", f"/complete?{taken}").status == 200


def test_no_counter_goes_back_when_any_process_is_killed(start_server: StartServer) -> None:
    """With two fronts and two shards, killed one after the other, and looked at all the while."""
    server = start_server("--fronts", "2")
    live(server, 0, 8)
    page = scrape(server)
    assert total(page, "proteus_jobs_enqueued_total") == 16
    assert total(page, "proteus_jobs", "waiting") == 8

    for killed, pid in enumerate(sorted(server.children()), 1):
        live(server, 8 * killed, 8)
        before = scrape(server)
        os.kill(pid, signal.SIGKILL)

        def recovered(seen: dict[tuple[str, ...], float] = before, restarts: int = killed) -> bool:
            try:
                after = scrape(server)
            except (OSError, http.client.HTTPException):
                return False  # the front that was asked is the one that was killed
            check_forth(seen, after)
            seen |= after
            return total(after, "proteus_process_restarts_total") == restarts and total(after, "proteus_shard_up") == 2

        eventually(recovered)
        eventually(lambda: ready(server))

    page = scrape(server)
    assert [total(page, name) for name in ("proteus_jobs_enqueued_total", "proteus_jobs_completed_total", "proteus_heartbeats_total")] == [
        80,
        40,
        40,
    ]
    assert total(page, "proteus_run_seconds_count") == 40
    assert total(page, "proteus_jobs", "waiting") == 40
    assert {key[2]: value for key, value in page.items() if key[0] == "proteus_process_restarts_total"} == {
        "front-0": 1,
        "front-1": 1,
        "shard-0": 1,
        "shard-1": 1,
    }


def test_every_front_has_the_same_page(start_server: StartServer) -> None:
    """What the others counted is on it a moment later."""
    server = start_server("--fronts", "2")
    for number in range(20):
        assert server.request("POST", "/enqueue", {"id": f"{number}", "queue": "q", "timeout": 1}).status == 202

    def seen() -> float:
        page = scrape(server)
        assert total(page, "proteus_link_up") <= 4
        return total(page, "proteus_http_requests_total", "/enqueue", "2xx")

    eventually(lambda: [seen() for _ in range(8)] == [20] * 8)
    eventually(lambda: total(scrape(server), "proteus_link_up") == 4)


def test_what_happens_to_jobs_is_on_the_page(server: Server) -> None:
    """Retries, deaths, refusals, ages and the store."""
    assert server.request("POST", "/enqueue", {"id": "j", "queue": "q", "timeout": 0, "max_retries": 1, "persist_data": True}).status == 202
    assert server.request("POST", "/enqueue", {"id": "j", "queue": "q", "timeout": 0}).status == 409
    assert server.request("POST", "/enqueue", {"id": "k", "queue": "q", "timeout": "soon"}).status == 422
    assert server.request("POST", "/enqueue", {"id": "k", "queue": "later", "timeout": 1, "run_at": "2999-01-01T00:00:00Z"}).status == 202
    assert server.request("POST", "/enqueue", {"id": "k", "queue": "old", "timeout": 1}).status == 202
    for _ in range(2):
        assert server.request("GET", "/next?queue=q&wait=5").status == 200
    eventually(lambda: total(scrape(server), "proteus_jobs", "dead") == 1)
    page = scrape(server)

    assert total(page, "proteus_jobs", "scheduled") == 1
    assert [
        total(page, f"proteus_{name}_total") for name in ("jobs_enqueued", "jobs_delivered", "run_timeouts", "jobs_retried", "jobs_died")
    ] == [3, 2, 2, 1, 1]
    assert [total(page, "proteus_errors_total", status) for status in ("409", "422", "429")] == [1, 1, 0]
    assert page["proteus_queue_oldest_waiting_seconds", "queue", "later"] == 0
    assert page["proteus_queue_oldest_waiting_seconds", "queue", "old"] > 0
    assert total(page, "proteus_store_info", "sqlite", "machine") == 2
    assert total(page, "proteus_commit_rows_sum") >= 3
    assert total(page, "proteus_commit_seconds_count") == total(page, "proteus_commit_rows_count")
    assert total(page, "proteus_start_seconds_count") == 1
    assert {key[2] for key in page if key[0] == "proteus_process_cpu_seconds_total"} == {"front-0", "shard-0", "shard-1", "supervisor"}
    assert all(page["proteus_process_resident_bytes", "process", name] > 1e6 for name in ("front-0", "shard-0", "shard-1", "supervisor"))


def test_the_limit_that_was_hit_is_named(start_server: StartServer) -> None:
    """By its setting."""
    server = start_server("--queue-jobs-max", "1", "--store", "memory:")
    statuses = [server.request("POST", "/enqueue", {"id": f"{number}", "queue": "q", "timeout": 1}).status for number in range(3)]

    assert statuses == [202, 429, 429]
    assert scrape(server)["proteus_errors_total", "limit", "queue_jobs_max", "status", "429"] == 2


def test_promtool_finds_nothing_to_say(server: Server) -> None:
    """With hostile names on the page."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")
    for name in HOSTILE:
        assert server.request("POST", "/enqueue", {"id": "j", "queue": name, "timeout": 1}).status == 202
    page = server.request("GET", "/metrics").body

    ran = subprocess.run([promtool, "check", "metrics"], input=page, capture_output=True, check=False, timeout=60)

    assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"", b"")
    assert set(HOSTILE) <= queues_of(page).keys()


def test_a_queue_that_is_empty_stays_on_the_page(server: Server) -> None:
    """With zeros."""
    assert server.request("POST", "/enqueue", {"id": "j", "queue": "q", "timeout": 1}).status == 202
    before = scrape(server)
    assert server.request("DELETE", "/complete?queue=q&job_id=j").status == 200
    after = scrape(server)

    assert after["proteus_queue_jobs", "queue", "q", "state", "waiting"] == 0
    assert not before.keys() - after.keys()


def test_ten_thousand_queues_have_a_small_page(start_server: StartServer) -> None:
    """The deepest are on it, and the sum of all others is right."""
    server = start_server("--store", "memory:", "--metrics-queues-max", "5", "--batch-jobs-max", "10003")
    jobs = [{"id": "j", "queue": f"queue {number}", "timeout": 1} for number in range(10_000)]
    jobs += [{"id": f"{number}", "queue": "queue 77", "timeout": 1} for number in range(3)]
    assert server.request("POST", "/enqueue", jobs).status == 202
    answer = server.request("GET", "/metrics")
    queues = queues_of(answer.body)

    assert (len(queues), queues["queue 77"], queues[""]) == (6, 4, 10_003 - 4 - 4)
    assert len(answer.body) < 100_000
    assert total(values_of(answer.body), "proteus_queues") == 10_000


def test_the_page_has_a_port_of_its_own_and_only_probes_beside_it(start_server: StartServer, tmp_path: Path) -> None:
    """In plain text, while the main port speaks TLS; both have it, after the front was killed, too."""
    settings = with_tls(Settings(), tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    server = start_server("--metrics-port", str(port), "--tls-cert", settings.tls_cert, "--fronts", "2")

    def status(path: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=REQUEST_SECONDS_MAX)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        finally:
            connection.close()

    assert [status(path) for path in ("/metrics", "/health", "/ready", "/next?queue=q", "/v1/enqueue")] == [200, 200, 200, 404, 404]
    secure = http.client.HTTPSConnection(server.host, server.port, timeout=REQUEST_SECONDS_MAX, context=trusting(tmp_path))
    secure.request("POST", "/enqueue", json.dumps({"id": "j", "queue": "q", "timeout": 1}))
    assert secure.getresponse().read() == b""
    secure.request("GET", "/metrics")
    page = values_of(secure.getresponse().read())
    secure.close()
    assert page["proteus_jobs_enqueued_total", "shard", "0"] + page["proteus_jobs_enqueued_total", "shard", "1"] == 1

    for pid, command in server.children().items():
        if command.endswith("proteus_shards.front"):
            os.kill(pid, signal.SIGKILL)

    def served() -> bool:
        try:
            return status("/metrics") == 200
        except (OSError, http.client.HTTPException):
            return False  # the connection was the killed front's

    eventually(served)
