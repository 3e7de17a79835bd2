"""Relay's metric names: counted for every call, bounded, kept over restarts, and not there unless asked for."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess

import pytest

from proteus_shards.core.commands import Complete, Delivered, Done, Enqueue, Next, Outcome, Reason, Refused
from proteus_shards.front.relay_metrics import RelayCounts, queues_named, relay_page
from proteus_shards.tally import RELAY_METRICS
from tests.conftest import Server, StartServer, eventually
from tests.front.fake_shard import delivery


def page_of(server: Server) -> dict[str, float]:
    """Return the series of relay's names, as they stand on the page."""
    text = server.request("GET", "/metrics").body.decode()
    return {series: float(value) for series, value in re.findall(r'^(\w+\{app="relay_rs".*\}) (\S+)$', text, re.MULTILINE)}


def enqueue(queue: str, job_id: str = "1") -> Enqueue:
    """Return a command."""
    return Enqueue(queue, job_id, 30, False, 0, b"{}")


def counted(counts: RelayCounts) -> dict[tuple[str, ...], float]:
    """Return what was counted, by name and labels."""
    return {(name, *labels): value for name, labels, value in counts.samples() if not isinstance(value, list)}


def test_what_is_asked_and_what_comes_of_it_is_counted() -> None:
    """By endpoint and queue; several jobs of one queue at once are one request."""
    counts = RelayCounts(10)
    commands = [enqueue("a"), enqueue("a", "2"), enqueue("b")]
    same, end = counts.begin(commands)
    assert end is not None
    outcomes: list[Outcome] = [Done(), Refused(Reason.EXISTS, "is there"), Done()]

    assert outcomes == end(outcomes)
    assert same is commands
    assert {
        ("http_request", "enqueue", "", "a"): 1,
        ("http_request", "enqueue", "", "b"): 1,
        ("enqueued", "", "", "a"): 1,
        ("enqueued", "", "", "b"): 1,
        ("errors", "enqueue", "job_exists", "a"): 1,
    } == counted(counts)


def test_the_number_of_queues_is_bounded() -> None:
    """The first have names, those of the front before are the first of all, and the others share the series without one."""
    counts = RelayCounts(2, ["before"])
    for queue in ("a", "b", "c", "before", "a"):
        _, end = counts.begin([Next(queue, 1, 0)])
        assert end is not None
        end([Delivered([delivery(queue)])])

    fetched = {key[3]: value for key, value in counted(counts).items() if key[0] == "fetched"}
    assert {"a": 2, "": 2, "before": 1} == fetched
    assert ["a", "before"] == sorted(queues_named(counts.samples()))


def test_a_run_id_tells_completed_from_deleted() -> None:
    """As relay's second generation and its first do."""
    counts = RelayCounts(2)
    for run_id in (None, bytes(16)):
        _, end = counts.begin([Complete("q", "1", run_id)])
        assert end is not None
        end([Done()])

    assert {"deleted": 1, "completed": 1, "http_request": 2} == {key[0]: value for key, value in counted(counts).items()}


def test_names_of_queues_are_escaped() -> None:
    """Whatever a queue is called, its line is one line."""
    page = relay_page([("fetched", ["", "", 'a"b\\c\nd'], 3.0)]).decode()

    assert 'fetched{app="relay_rs",queue="a\\"b\\\\c\\nd"} 3.0' == page.splitlines()[-1]


def test_the_page_has_relays_names_only_if_asked_for(server: Server) -> None:
    """Without the option nobody meets them."""
    assert 202 == server.request("POST", "/enqueue", {"id": "1", "queue": "q", "timeout": 1}).status

    assert {} == page_of(server)


def test_relays_names_are_on_the_page_and_survive_a_front(start_server: StartServer) -> None:
    """Calls of either API are counted, retries and timeouts come from the shards, and a front that is killed loses none."""
    server = start_server("--metrics-relay", "--store", "memory:")
    assert 202 == server.request("POST", "/enqueue", {"id": "1", "queue": "q", "timeout": 0, "max_retries": 1}).status
    assert 409 == server.request("POST", "/enqueue", {"id": "1", "queue": "q", "timeout": 0}).status
    body = [{"id": "2", "queue": "q", "timeout": 30, "payload": {}}]
    assert 202 == server.request("POST", "/v1/queues/jobs", body, {"content-type": "application/json"}).status
    for _ in range(2):
        eventually(lambda: server.request("GET", "/next?queue=q&wait=5").json()["id"] == "1")
    eventually(lambda: page_of(server).get('errors{app="relay_rs",type="max_retries"}') == 1)
    before = page_of(server)

    assert 2 == before['enqueued{app="relay_rs",queue="q"}']
    assert 1 == before['errors{app="relay_rs",endpoint="enqueue",type="job_exists",queue="q"}']
    assert 1 == before['retries{app="relay_rs"}']
    assert 2 == before['errors{app="relay_rs",type="job_timeout"}']
    assert {series.partition("{")[0] for series in before} <= set(RELAY_METRICS)
    (front,) = (pid for pid, command in server.children().items() if command.endswith("proteus_shards.front"))
    os.kill(front, signal.SIGKILL)

    def again() -> bool:
        try:
            return server.request("DELETE", "/complete?queue=q&job_id=2").status == 200
        except OSError:
            return False

    eventually(again)
    after = page_of(server)
    assert 1 == after['deleted{app="relay_rs",queue="q"}']
    assert all(after[series] >= value for series, value in before.items())


def test_promtool_reads_the_page(start_server: StartServer) -> None:
    """It has to complain of names without an ending, which are relay's, and of nothing else."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")
    server = start_server("--metrics-relay", "--store", "memory:")
    assert 202 == server.request("POST", "/enqueue", {"id": "1", "queue": 'a"b\\c', "timeout": 1}).status
    page = server.request("GET", "/metrics").body

    ran = subprocess.run([promtool, "check", "metrics"], input=page, capture_output=True, check=False, timeout=60)

    complaints = ran.stderr.decode().splitlines()
    assert complaints
    assert all(re.fullmatch(r'\w+ counter metrics should have "_total" suffix', line) for line in complaints), complaints
