"""The app on a real Hypercorn, spoken to over raw sockets."""

from __future__ import annotations

import contextlib
import gzip
import json
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import trio

from proteus_shards.config import Settings
from proteus_shards.core.commands import Cancel, Delivered, Done, Enqueue, Next, Undeliver
from proteus_shards.front.connection import Connection
from tests.front.fake_shard import PATIENCE_SECONDS, RUN_ID, delivery, obliging
from tests.front.sites import JOB, SETTINGS, Site, serving, with_tls


@pytest.fixture(params=["fast lane", "Hypercorn", "TLS"])
async def site(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Site]:
    """A server with one obliging shard, which serves all its routes one way and then the other."""
    settings = msgspec.structs.replace(SETTINGS, fast_lane=request.param == "fast lane")
    async with serving(tmp_path, with_tls(settings, tmp_path) if request.param == "TLS" else settings) as site:
        yield site


async def test_a_connection_serves_many_requests(site: Site) -> None:
    """Its answers have a date, and say nothing of the server."""
    client = await site.client()

    replies = [await client.ask("POST", "/enqueue", JOB) for _ in range(3)]

    assert [reply.status for reply in replies] == [202, 202, 202]
    assert {frozenset(reply.headers) for reply in replies} == {frozenset({"date", "content-length"})}
    assert site.server.connections == 1


async def test_no_job_has_no_length(site: Site) -> None:
    """RFC 9110 §8.6."""
    client = await site.client()

    reply = await client.ask("GET", "/next?queue=q")

    assert (reply.status, set(reply.headers)) == (204, {"date"})


async def test_a_head_takes_no_job_off_a_queue(site: Site) -> None:
    """It is 405, and HEAD on health is fine."""
    site.shard.answer = lambda _: Delivered([delivery()])
    client = await site.client()

    head = await client.ask("HEAD", "/next?queue=q")
    health = await client.ask("HEAD", "/health")

    assert (head.status, head.headers["allow"], head.body) == (405, "GET", b"")
    assert (health.status, health.body) == (200, b"")
    assert site.shard.commands == []


@pytest.mark.parametrize("target", ["//next?queue=q", "/v1//next?queue=q", "/next/?queue=q", "/nothing", "/%ff", "/next%00"])
async def test_an_unknown_path_is_404(target: str, site: Site) -> None:
    """And never a redirect."""
    client = await site.client()

    reply = await client.ask("GET", target)

    assert (reply.status, reply.headers["content-type"]) == (404, "application/problem+json")


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("http://localhost/next?queue=q", 204),
        ("HTTP://localhost:80/next?queue=q", 204),
        ("http://localhost", 404),
        ("*", 400),
        ("?queue=q", 400),
        ("next?queue=q", 400),
        ("http://[::1", 400),
        ("http://y/next?queue=q", 400),
        ("ftp://x/next", 400),
        ("http:///next?queue=q", 400),
        ("/%6Eext?queue=q", 204),
    ],
)
async def test_a_request_target_is_a_path_or_absolute(target: str, status: int, site: Site) -> None:
    """Other targets are refused, and none is a fault."""
    client = await site.client()

    assert (await client.ask("GET", target)).status == status


async def test_a_body_of_a_length_over_the_limit_is_refused_before_it_comes(site: Site) -> None:
    """The answer does not wait for it, and the connection closes."""
    client = await site.client()
    await client.send(b"POST /enqueue HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100001\r\n\r\n")

    reply = await client.receive()

    assert (reply.status, reply.headers["connection"]) == (413, "close")
    assert json.loads(reply.body)["field"] == "body"
    assert await client.wait_closed() == b""


async def test_a_client_that_sends_a_body_over_the_limit_can_read_the_answer(site: Site) -> None:
    """Though it reads only after it has sent all, which is many times the limit. Whether the connection then ends is the server's to say."""
    client = await site.client()
    await client.send(b"POST /enqueue HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n")
    for _ in range(30):
        await client.send(b"186a0\r\n" + b" " * 100_000 + b"\r\n")
    await client.send(b"0\r\n\r\n")

    reply = await client.receive()

    assert reply.status == 413
    assert site.shard.commands == []


async def test_a_chunked_body_within_the_limit_is_taken(site: Site) -> None:
    """However it is cut."""
    client = await site.client()
    await client.send(b"POST /enqueue HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n")
    for byte in JOB:
        await client.send(b"1\r\n" + bytes([byte]) + b"\r\n")
    await client.send(b"0\r\n\r\n")

    assert (await client.receive()).status == 202
    assert (await client.ask("POST", "/enqueue", JOB)).status == 202


async def test_a_gzip_bomb_is_refused(site: Site) -> None:
    """At the limit, in one piece, with the connection kept."""
    client = await site.client()

    bomb = await client.ask("POST", "/enqueue", gzip.compress(b" " * 50_000_000), "content-encoding: gzip")
    honest = await client.ask("POST", "/enqueue", gzip.compress(JOB), "content-encoding: gzip")

    assert (bomb.status, honest.status) == (413, 202)


async def test_a_refused_request_leaves_the_connection_usable(site: Site) -> None:
    """Where its whole body had come."""
    client = await site.client()

    statuses = [
        (await client.ask("POST", "/enqueue", b"{")).status,
        (await client.ask("GET", "/nothing", b"x")).status,
        (await client.ask("PUT", "/next", b"x")).status,
        (await client.ask("POST", "/enqueue", JOB)).status,
    ]

    assert statuses == [422, 404, 405, 202]


async def test_a_client_that_leaves_while_its_next_waits_gives_its_job_back(site: Site) -> None:
    """The poll is cancelled; a delivery that was on its way is undone."""
    client = await site.client()
    await client.send(b"GET /next?queue=q&wait=60 HTTP/1.1\r\nhost: localhost\r\n\r\n")
    ((number, _),) = await site.shard.wait_command(Next)

    await client.stream.aclose()

    assert [command for _, command in await site.shard.wait_command(Cancel)] == [Cancel(number)]
    await site.shard.reply((number, Delivered([delivery()])))
    assert [command for _, command in await site.shard.wait_command(Undeliver)] == [Undeliver("q", "a", RUN_ID)]


async def test_a_client_that_stops_reading_in_the_middle_of_its_job_gives_it_back(site: Site) -> None:
    """It closes while the socket is full: the last byte of the answer never left."""
    site.shard.answer = lambda command: Delivered([delivery(payload=b"1" * 30_000_000)]) if isinstance(command, Next) else obliging(command)
    client = await site.client()
    await client.send(b"GET /next?queue=q HTTP/1.1\r\nhost: localhost\r\n\r\n")
    await client.stream.receive_some(1000)
    assert [command for command in site.shard.commands if isinstance(command, Undeliver)] == []

    await client.stream.aclose()

    assert [command for _, command in await site.shard.wait_command(Undeliver)] == [Undeliver("q", "a", RUN_ID)]


async def test_a_job_that_was_sent_is_not_given_back(site: Site) -> None:
    """Whatever the client does after it, since it may have it."""
    site.shard.answer = lambda command: (
        Delivered([delivery(payload=b'"' + b"1" * 300_000 + b'"')]) if isinstance(command, Next) else obliging(command)
    )
    client = await site.client()

    reply = await client.ask("GET", "/next?queue=q")
    await client.stream.aclose()
    await site.router.wait_settled()

    assert (reply.status, json.loads(reply.body)["id"]) == (200, "a")
    assert [type(command) for command in site.shard.commands] == [Next]


async def test_a_client_that_does_not_read_is_cut_off(tmp_path: Path) -> None:
    """After a time, and its job goes back."""
    settings = Settings(shards=1, request_seconds_max=0.3)
    async with serving(tmp_path, settings) as site:
        site.shard.answer = lambda command: (
            Delivered([delivery(payload=b"1" * 30_000_000)]) if isinstance(command, Next) else obliging(command)
        )
        client = await site.client()
        await client.send(b"GET /next?queue=q HTTP/1.1\r\nhost: localhost\r\n\r\n")

        assert [command for _, command in await site.shard.wait_command(Undeliver)] == [Undeliver("q", "a", RUN_ID)]
        await client.stream.aclose()


async def test_a_body_that_does_not_come_is_408(tmp_path: Path) -> None:
    """And the connection closes."""
    async with serving(tmp_path, Settings(shards=1, request_seconds_max=0.05)) as site:
        client = await site.client()
        await client.send(b"POST /enqueue HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\n\r\n{")

        reply = await client.receive()

        assert (reply.status, json.loads(reply.body)["retryable"]) == (408, True)
        assert await client.wait_closed() == b""
        await client.stream.aclose()


async def test_an_idle_connection_is_closed(tmp_path: Path) -> None:
    """After connection_idle_seconds_max."""
    async with serving(tmp_path, Settings(shards=1, connection_idle_seconds_max=0.05)) as site:
        client = await site.client()
        assert (await client.ask("GET", "/health")).status == 200

        assert await client.wait_closed() == b""
        await client.stream.aclose()


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00" * 100,
        b"GET /health\r\n\r\n",
        b"GET /health HTTP/1.1\r\n\r\n",
        b"GET /" + b"x" * 100_000,
        b"GET /health HTTP/1.1\r\nhost: localhost\r\n" + b"a: b\r\n" * 10_000,
        b"POST /enqueue HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n",
        b"POST /enqueue HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 100,
        b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: !\r\n\r\n",
        b"GET /next?queue=q HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
        b"GET /next?queue=q HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n",
    ],
)
async def test_garbage_ends_its_own_connection_only(garbage: bytes, site: Site) -> None:
    """Another client is served as before, and no shard hears of it."""
    good = await site.client()
    bad = await site.client()
    await bad.send(garbage)
    await bad.stream.send_eof()

    with trio.move_on_after(PATIENCE_SECONDS) as patience:
        with contextlib.suppress(trio.BrokenResourceError):  # a reset closes as well
            await bad.wait_closed()

    assert not patience.cancelled_caught
    assert (await good.ask("POST", "/enqueue", JOB)).status == 202
    assert [type(command) for command in site.shard.commands] == [Enqueue]


async def test_a_fault_in_a_connection_is_logged_and_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The server goes on. The faults of the lane are in the tests of the lane."""

    async def fail(*_: object) -> bytes:
        raise ZeroDivisionError

    async with serving(tmp_path, msgspec.structs.replace(SETTINGS, fast_lane=False)) as site:
        with monkeypatch.context() as patch:
            patch.setattr(Connection, "receive_some", fail)
            bad = await site.client()
            assert await bad.wait_closed() == b""
        good = await site.client()

        assert (await good.ask("GET", "/health")).status == 200
    assert [record.getMessage() for record in caplog.records if record.exc_info] == ["a connection failed"]


async def test_a_drain_finishes_what_is_under_way(tmp_path: Path) -> None:
    """Idle connections close at once, a request is answered first, and no new connection is taken."""
    async with serving(tmp_path) as site:
        site.shard.answer = lambda command: None if isinstance(command, Enqueue) else obliging(command)
        idle, busy = await site.client(), await site.client()
        assert (await idle.ask("GET", "/health")).status == 200
        await busy.send(b"POST /enqueue HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(JOB) + JOB)
        ((number, _),) = await site.shard.wait_command(Enqueue)

        site.server.drain()

        assert await idle.wait_closed() == b""
        with pytest.raises(OSError, match=r"refused|all attempts"):
            await site.client()
        await site.shard.reply((number, Done()))
        assert (await busy.receive(leave_open=False)).status == 202
        assert await busy.wait_closed() == b""


async def test_a_drain_aborts_what_does_not_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Even a client that reads nothing."""
    async with serving(tmp_path, Settings(shards=1, drain_seconds_max=0.1)) as site:
        site.shard.answer = lambda command: (
            Delivered([delivery(payload=b"1" * 30_000_000)]) if isinstance(command, Next) else obliging(command)
        )
        client = await site.client()
        await client.send(b"GET /next?queue=q HTTP/1.1\r\nhost: localhost\r\n\r\n")
        await client.stream.receive_some(1)

        site.server.drain()

        assert [command for _, command in await site.shard.wait_command(Undeliver)] == [Undeliver("q", "a", RUN_ID)]
    assert ["connections were aborted" in record.getMessage() for record in caplog.records] == [True]


async def test_a_connection_of_hypercorn_is_over_when_its_client_has_ended_it(tmp_path: Path) -> None:
    """It does not keep its place until the idle time is up."""
    async with serving(tmp_path) as site:
        client = await site.client()
        assert (await client.ask("GET", "/health")).status == 200
        client.stream.socket.close()
        with trio.fail_after(PATIENCE_SECONDS):
            while site.server.connections:
                await trio.lowlevel.checkpoint()


async def test_connections_max_holds_without_the_lane(tmp_path: Path) -> None:
    """A client beyond it waits until another has left."""
    async with serving(tmp_path, msgspec.structs.replace(SETTINGS, fast_lane=False, connections_max=1)) as site:
        first, second = await site.client(), await site.client()
        assert (await first.ask("POST", "/enqueue", JOB)).status == 202
        await second.send(b"POST /enqueue HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(JOB) + JOB)
        assert (await first.ask("POST", "/enqueue", JOB)).status == 202
        assert len(site.shard.commands) == 2
        first.stream.socket.close()

        assert (await second.receive()).status == 202


async def test_half_a_head_is_cut_off_without_the_lane_and_a_waiting_poll_is_not(tmp_path: Path) -> None:
    """header_seconds_max is for heads alone."""
    settings = msgspec.structs.replace(SETTINGS, fast_lane=False, header_seconds_max=0.2)
    async with serving(tmp_path, settings) as site:
        slow, poll = await site.client(), await site.client()
        await poll.send(b"GET /next?queue=q&wait=30 HTTP/1.1\r\nhost: localhost\r\n\r\n")
        ((number, _),) = await site.shard.wait_command(Next)
        await slow.send(b"GET /health HTTP/1.1\r\nhost:")

        assert await slow.wait_closed() == b""
        await site.shard.reply((number, Delivered([])))
        assert (await poll.receive()).status == 204


@pytest.mark.parametrize(
    ("target", "fields", "status"),
    [
        (b"/health?" + b"x" * 2000, b"", 414),
        (b"/health", b"a: b\r\n" * 20, 431),
        (b"/health", b"content-length: 3\r\ntransfer-encoding: chunked\r\n", 400),
    ],
)
async def test_the_rules_of_the_lane_hold_behind_it(tmp_path: Path, target: bytes, fields: bytes, status: int) -> None:
    """Targets, fields and lengths have the same limits on Hypercorn."""
    settings = msgspec.structs.replace(SETTINGS, fast_lane=False, url_bytes_max=1000, headers_max=20)
    async with serving(tmp_path, settings) as site:
        client = await site.client()
        await client.send(b"GET " + target + b" HTTP/1.1\r\nhost: localhost\r\n" + fields + b"\r\n")

        assert (await client.receive(leave_open=False)).status == status


async def test_a_drain_does_not_wait_for_connections_that_owe_nothing(tmp_path: Path) -> None:
    """An idle HTTP/2 connection, say, is closed."""
    async with serving(tmp_path) as site:
        client = await site.client()
        await client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
        with trio.fail_after(PATIENCE_SECONDS):
            await client.stream.receive_some(1)
            site.server.drain()
            while await client.stream.receive_some(65536):
                pass
