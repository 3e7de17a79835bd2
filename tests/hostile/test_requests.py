"""Every request of the table, sent to real servers: on the lane, on Hypercorn after the lane, on Hypercorn alone, and behind TLS."""

from __future__ import annotations

import logging
import random
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
import trio

from proteus_shards.config import Settings
from proteus_shards.core.commands import Complete
from tests.front.fake_shard import PATIENCE_SECONDS
from tests.front.sites import SETTINGS, Site, serving, with_tls
from tests.hostile.table import HOST, LEGAL, REFUSED, SMUGGLED

HEALTH = b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n"  # no request of the lane: its connection is handed over
WAYS = ["fast lane", "handed over", "Hypercorn", "TLS"]
TICKS = 20
SEED = 7


def settings_of(way: str, folder: Path) -> Settings:
    """Return the settings of a server that is spoken to in one of the ways."""
    settings = msgspec.structs.replace(SETTINGS, fast_lane=way in {"fast lane", "handed over"})
    return with_tls(settings, folder) if way == "TLS" else settings


async def statuses_of(site: Site, pieces: list[bytes]) -> list[int]:
    """Send bytes on a connection of their own, read to its end, and return the status of every answer but 100."""
    client = await site.client()
    try:
        for piece in pieces:
            await client.send(piece)
            for _ in range(TICKS):  # the server reads each by itself
                await trio.lowlevel.checkpoint()
    except trio.BrokenResourceError:
        pass  # it has closed already; what it said is still to be read
    data = await client.wait_closed()
    heads = [part.split(b"\r\n")[0] for part in data.split(b"HTTP/1.1 ")[1:]]
    await client.stream.aclose()
    return [status for head in heads if (status := int(head[:3])) != 100]


def cut(data: bytes, places: int, source: random.Random) -> list[bytes]:
    """Cut bytes at some places."""
    edges = [0, *sorted(source.sample(range(1, len(data)), places)), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


@pytest.mark.parametrize("way", WAYS)
async def test_each_request_of_the_table_gets_its_answers_and_the_connection_ends(
    way: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In one piece or cut at random: one refusal and nothing after it, or the answer and that of the next; no error is logged."""
    before, first = (HEALTH, [200]) if way == "handed over" else (b"", [])
    wanted = {name: (case.data, case.served, case.status) for name, case in REFUSED.items()}
    wrong: list[str] = []
    async with serving(tmp_path, settings_of(way, tmp_path)) as site:
        room = trio.CapacityLimiter(150 if way == "TLS" else 40)

        async def check(name: str, data: bytes, expected: list[int] | tuple[int, int], places: int) -> None:
            data = before + data + SMUGGLED
            async with room:
                with trio.move_on_after(PATIENCE_SECONDS) as patience:
                    try:
                        seen = await statuses_of(site, cut(data, places, random.Random(f"{SEED} {name}")))
                    except trio.BrokenResourceError:  # behind TLS, a send that came too late takes the answer with it
                        seen = await statuses_of(site, [data])
            if patience.cancelled_caught:
                wrong.append(f"{name} ({places}): the connection stays open")
                return
            rest = seen[len(first) :]
            if seen[: len(first)] != first:
                wrong.append(f"{name} ({places}): {seen}")
            elif isinstance(expected, list):
                if rest != expected:
                    wrong.append(f"{name} ({places}): {rest}, not {expected}")
            elif len(rest) != expected[0] + 1 or any(status >= 300 for status in rest[:-1]) or rest[-1] != expected[1]:
                wrong.append(f"{name} ({places}): {rest}, not {expected}")

        async with trio.open_nursery() as nursery:
            for places in (0, 4):
                for name, (data, served, status) in wanted.items():
                    nursery.start_soon(check, name, data, (served, status), places)
                for name, (data, status) in LEGAL.items():
                    nursery.start_soon(check, name, data, [status, 200], places)
        smuggled = sum(isinstance(command, Complete) and command.id == "smuggled" for command in site.shard.commands)

        assert (await (await site.client()).ask("GET", "/health")).status == 200
    assert not wrong
    assert smuggled == 2 * len(LEGAL)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR or record.exc_info] == []
