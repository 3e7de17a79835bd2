"""What Hypercorn's connections do at the moment of a violation, each named after what went wrong without the guard."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from proteus_shards.core.commands import Cancel, Delivered, Enqueue, Next
from tests.front.fake_shard import delivery
from tests.front.sites import JOB, SETTINGS, Site, serving

HEAD = b"POST /enqueue HTTP/1.1\r\nhost: localhost\r\n"


@pytest.fixture
async def site(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Site]:
    """A server without a lane, that must log no error."""
    async with serving(tmp_path, msgspec.structs.replace(SETTINGS, fast_lane=False)) as site:
        yield site
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR or record.exc_info] == []


async def test_a_violation_behind_a_waiting_next_is_told_after_its_answer(site: Site) -> None:
    """Two answers in order, and the end; neither is lost for the other."""
    client = await site.client()
    await client.send(b"GET /next?queue=q&wait=60 HTTP/1.1\r\nhost: localhost\r\n\r\n")
    ((number, _),) = await site.shard.wait_command(Next)
    await client.send(b"GET / HTTP/1.1\nhost: x\n\n")
    await site.shard.reply((number, Delivered([delivery()])))

    assert (await client.receive()).status == 200
    assert (await client.receive()).status == 400
    assert await client.wait_closed() == b""


async def test_a_client_that_leaves_after_a_violation_gives_up_its_waiting_next(site: Site) -> None:
    """Its poll is cancelled, as without one."""
    client = await site.client()
    await client.send(b"GET /next?queue=q&wait=60 HTTP/1.1\r\nhost: localhost\r\n\r\nnonsense\r\n\r\n")
    ((number, _),) = await site.shard.wait_command(Next)

    await client.stream.aclose()

    assert [command for _, command in await site.shard.wait_command(Cancel)] == [Cancel(number)]


@pytest.mark.parametrize("rest", [b"5;a=b\r\nhello\r\n0\r\n\r\n", b"5\nhello", b"0\r\nx: y\r\n\r\n"])
async def test_a_violation_in_a_body_is_told_instead_of_its_answer(rest: bytes, site: Site) -> None:
    """Once, and the request has no effect."""
    client = await site.client()
    await client.send(HEAD + b"transfer-encoding: chunked\r\n\r\n1\r\n{\r\n")
    await client.send(rest)

    assert (await client.receive()).status == 400
    assert await client.wait_closed() == b""
    assert site.shard.commands == []


async def test_a_violation_in_a_body_that_is_answered_already_adds_nothing(site: Site) -> None:
    """The refusal of the too large body is the only answer."""
    client = await site.client()
    await client.send(HEAD + b"transfer-encoding: chunked\r\n\r\nfffff\r\n" + b" " * 0xFFFFF + b"\r\n")

    assert (await client.receive()).status == 413
    await client.send(b"5;a=b\r\nhello\r\n")
    assert await client.wait_closed() == b""


async def test_a_wish_for_h2c_is_ignored_and_the_connection_kept(site: Site) -> None:
    """Some clients send one with every request."""
    client = await site.client()
    wish = ("connection: upgrade, http2-settings", "upgrade: h2c", "http2-settings: AAMAAABkAAQAAP__")

    replies = [await client.ask("POST", "/enqueue", JOB, *wish) for _ in range(2)]

    assert [reply.status for reply in replies] == [202, 202]
    assert [type(command) for command in site.shard.commands] == [Enqueue, Enqueue]
