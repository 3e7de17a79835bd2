"""How a connection that Hypercorn serves ends: it says so, ends although more was sent, and leaves no trace in the log."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing

from proteus_shards.config import Settings
from proteus_shards.core.commands import Done, Enqueue
from proteus_shards.front.http11 import EndingH11Protocol
from tests.front.fake_shard import PATIENCE_SECONDS, obliging
from tests.front.sites import JOB, SETTINGS, Site, serving, with_tls

ENQUEUE = b"POST /enqueue HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(JOB) + JOB
HEALTH = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"


async def wait_for_connections(site: Site, count: int) -> None:
    """Wait until a server has so many open connections."""
    with trio.fail_after(PATIENCE_SECONDS):
        while site.server.connections != count:
            await trio.sleep(0.005)


@pytest.fixture(params=["plain", "tls"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Return settings of a server without the fast lane."""
    return with_tls(SETTINGS, tmp_path) if request.param == "tls" else msgspec.structs.replace(SETTINGS, fast_lane=False)


@pytest.mark.parametrize("behind", [b"", HEALTH])
async def test_the_last_answer_of_a_drain_says_so_and_the_connection_ends(behind: bytes, settings: Settings, tmp_path: Path) -> None:
    """Whatever the client has sent behind its request, and although it closes nothing."""
    async with serving(tmp_path, settings) as site:
        site.shard.answer = lambda command: None if isinstance(command, Enqueue) else obliging(command)
        client = await site.client()
        await client.send(ENQUEUE + behind)
        ((number, _),) = await site.shard.wait_command(Enqueue)

        site.server.drain()
        await trio.testing.wait_all_tasks_blocked()
        await site.shard.reply((number, Done()))
        answer = await client.receive(leave_open=False)

        assert (answer.status, answer.headers["connection"]) == (202, "close")
        await wait_for_connections(site, 0)


async def test_a_request_that_comes_as_the_drain_begins_gets_its_answer(settings: Settings, tmp_path: Path) -> None:
    """A connection between two requests is left open for a moment."""
    async with serving(tmp_path, settings) as site:
        client = await site.client()
        assert (await client.ask("POST", "/enqueue", JOB)).headers.get("connection") is None

        site.server.drain()
        await trio.testing.wait_all_tasks_blocked()
        answer = await client.ask("POST", "/enqueue", JOB)

        assert (answer.status, answer.headers["connection"]) == (202, "close")
        await wait_for_connections(site, 0)


async def test_no_connection_is_closed_after_an_answer_that_has_not_said_so(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first answer had said nothing of it, so the request behind it has one, too, and that does."""
    held, begun = trio.Event(), trio.Event()
    finish = EndingH11Protocol._maybe_recycle

    async def finish_later(self: EndingH11Protocol) -> None:
        begun.set()
        await held.wait()
        await finish(self)

    monkeypatch.setattr(EndingH11Protocol, "_maybe_recycle", finish_later)
    async with serving(tmp_path, settings) as site:
        client = await site.client()
        await client.send(HEALTH + HEALTH)
        with trio.fail_after(PATIENCE_SECONDS):
            await begun.wait()

        site.server.drain()
        await trio.testing.wait_all_tasks_blocked()
        held.set()
        answers = [await client.receive() for _ in range(2)]

        assert [answer.headers.get("connection") for answer in answers] == [None, "close"]
        await wait_for_connections(site, 0)


async def test_a_client_that_closes_while_its_answer_ends_is_no_fault(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It has its answer, and nothing is logged."""
    close = EndingH11Protocol._close_stream

    async def close_slowly(self: EndingH11Protocol) -> None:
        await close(self)
        await trio.testing.wait_all_tasks_blocked()

    monkeypatch.setattr(EndingH11Protocol, "_close_stream", close_slowly)
    async with serving(tmp_path, settings) as site:
        client = await site.client()
        assert (await client.ask("POST", "/enqueue", JOB)).status == 202
        client.stream.socket.close()
        await wait_for_connections(site, 0)
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


async def test_a_drain_in_the_middle_of_a_handshake_is_no_fault(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The connection is closed, and nothing is logged."""
    async with serving(tmp_path, with_tls(SETTINGS, tmp_path)) as site:
        silent = await trio.open_tcp_stream("127.0.0.1", site.port)
        await wait_for_connections(site, 1)

        site.server.drain()

        await wait_for_connections(site, 0)
        await silent.aclose()
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []
