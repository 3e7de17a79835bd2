"""Fronts that are renewed: the successor serves before the one before ends, and where it cannot, nothing changes."""

from __future__ import annotations

import http.client
import signal
import ssl
from pathlib import Path

import pytest

from proteus_shards import supervisor
from proteus_shards.child import SILENT_STARTS_MAX
from proteus_shards.config import Settings
from tests.conftest import REQUEST_SECONDS_MAX, StartServer, eventually
from tests.front.sites import trusting, with_tls
from tests.front.test_metrics import values_of
from tests.test_metrics import total
from tests.test_supervisor import Notes, notes, supervised, wait_until

__all__ = ["notes"]


async def test_the_successor_serves_before_the_front_before_ends(notes: Notes) -> None:
    """Nobody waits for a drain, and a renewal counts as a restart."""
    async with supervised(notes, notes.programs(front="first next"), shards=1, fronts=2) as run:
        await run.serve()
        run.signal(signal.SIGHUP)
        await notes.wait_for("front1 terminated")
        await wait_until(lambda: len(run.subject.statistics().children) == 3)

        assert notes.all()[-6:] == [f"front{number} {event}" for number in (0, 1) for event in ("started", "serves", "terminated")]
        assert [(child.name, child.serves, child.restarts) for child in run.subject.statistics().children] == [
            ("shard-0", True, 0),
            ("front-0", True, 1),
            ("front-1", True, 1),
        ]


@pytest.mark.parametrize("act", ["final", "silent", "hang"])
async def test_a_front_whose_successor_cannot_serve_goes_on(
    act: str,
    notes: Notes,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The log says so, the server does not end, and the next try is made when it is asked for."""
    if act == "hang":
        monkeypatch.setattr(supervisor, "RENEWAL_SECONDS_MAX", 0.5)
    failing = " ".join([act] * (SILENT_STARTS_MAX if act == "silent" else 1))
    async with supervised(notes, notes.programs(front=f"first {failing} next"), shards=1) as run:
        await run.serve()
        before = run.subject.statistics().children
        run.signal(signal.SIGHUP)
        await wait_until(lambda: "a front cannot be renewed, the one before goes on" in [record.message for record in caplog.records])
        await wait_until(lambda: len(run.subject.statistics().children) == 2)
        assert run.subject.statistics().children == before

        run.signal(signal.SIGHUP)
        await wait_until(lambda: (found := run.subject.statistics().children)[-1].serves and found[-1].pid == notes.pids("front0")[-1])
        await wait_until(lambda: len(run.subject.statistics().children) == 2)
        assert await run.stop() == 0


async def test_a_stop_in_the_middle_of_a_renewal_ends_both(notes: Notes) -> None:
    """With the exit code of a clean end."""
    async with supervised(notes, notes.programs(front="first hang"), shards=1) as run:
        await run.serve()
        run.signal(signal.SIGHUP)
        await notes.wait_for("front0 started", 2)

        assert await run.stop() == 0


def test_a_renewal_with_a_broken_certificate_is_no_outage(start_server: StartServer, tmp_path: Path) -> None:
    """The front goes on with the one that it has, and the log names the file."""
    settings = with_tls(Settings(), tmp_path)
    server = start_server("--tls-cert", settings.tls_cert, "--shards", "1")

    def health(context: ssl.SSLContext) -> int:
        connection = http.client.HTTPSConnection(server.host, server.port, timeout=REQUEST_SECONDS_MAX, context=context)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status
        finally:
            connection.close()

    context = trusting(tmp_path)
    Path(settings.tls_cert).write_text("no PEM")
    server.process.send_signal(signal.SIGHUP)
    eventually(lambda: "a front cannot be renewed" in server.log())
    assert health(context) == 200

    with_tls(Settings(), tmp_path)
    server.process.send_signal(signal.SIGHUP)
    eventually(lambda: "all fronts are renewed" in server.log())
    assert health(trusting(tmp_path)) == 200


def test_what_fronts_have_counted_outlives_their_renewals(start_server: StartServer) -> None:
    """No counter goes back, none is lost, and each gauge is told once."""
    server = start_server("--shards", "1", "--store", "memory:")
    seen: list[float] = []

    def page() -> dict[tuple[str, ...], float]:
        found = values_of(server.request("GET", "/metrics").body)
        seen.append(total(found, "proteus_http_requests_total", "/metrics"))
        return found

    for times in (1, 2, 3):
        assert server.request("POST", "/enqueue", {"id": f"{times}", "queue": "q", "timeout": 1}).status == 202
        server.process.send_signal(signal.SIGHUP)
        eventually(lambda: page() and server.log().count("all fronts are renewed") == times)  # noqa: B023

    eventually(lambda: page()["proteus_process_restarts_total", "process", "front-0"] == 3)
    last = page()
    assert total(last, "proteus_http_requests_total", "/enqueue", "2xx") == 3
    assert last["proteus_link_up", "front", "0", "shard", "0"] == 1
    assert seen == sorted(seen)
    assert seen[-1] == len(seen) - 1
