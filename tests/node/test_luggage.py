"""Luggage between two hosts."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from proteus_shards.cluster.model import Holding
from proteus_shards.config import luggage_path
from proteus_shards.ipc.frames import pack_frame
from proteus_shards.ipc.hosts import Fetch, Luggage, encode
from proteus_shards.node.luggage import discard_old, fetch
from proteus_shards.peering import Peering
from tests.node.gates import Papers, papers, settings_of, standing
from tests.store.rows import in_asyncio

__all__ = ["papers"]

LUGGAGE = bytes(range(256)) * 20_000


@pytest.mark.parametrize("tls", [False, True])
def test_the_new_host_gets_what_the_one_before_has_left(tmp_path: Path, papers: Papers, tls: bool) -> None:
    """All of it, to where its own process looks; only this user may read it, and it stays where it was for another try."""

    @in_asyncio
    async def scenario() -> None:
        (tmp_path / "new").mkdir()
        async with standing(tmp_path / "old", papers.settings if tls else settings_of(tmp_path)) as stand:
            old = Path(luggage_path(str(stand.run_dir), 1, 6))
            old.write_bytes(LUGGAGE)
            path = await fetch(stand.peering, (stand.address,), str(tmp_path / "new"), 1, 7, 10)

            assert path == luggage_path(str(tmp_path / "new"), 1, 7)
            assert Path(path).read_bytes() == LUGGAGE
            assert Path(path).stat().st_mode & 0o777 == 0o600
            assert old.exists()

    scenario()


@in_asyncio
async def test_where_there_is_none_the_next_one_is_asked(tmp_path: Path) -> None:
    """Luggage of another turn is none; who cannot be reached is passed by."""
    async with standing(tmp_path / "a", settings_of(tmp_path)) as a, standing(tmp_path / "b", settings_of(tmp_path)) as b:
        Path(luggage_path(str(a.run_dir), 1, 5)).write_bytes(b"old")
        Path(luggage_path(str(b.run_dir), 1, 6)).write_bytes(LUGGAGE)
        sources = ("127.0.0.1:1", a.address, b.address)
        found = await fetch(a.peering, sources, str(tmp_path), 1, 7, 10)
        none = await fetch(a.peering, sources[:2], str(tmp_path), 1, 7, 10)

        assert Path(found).read_bytes() == LUGGAGE
        assert none == ""


@pytest.mark.parametrize("answer", [b"", pack_frame(encode(Luggage(100))) + b"half", pack_frame(encode(Fetch(1, 1))), b"\xff" * 8])
def test_luggage_that_does_not_arrive_whole_is_none(tmp_path: Path, answer: bytes) -> None:
    """And nothing of it is left."""

    @in_asyncio
    async def scenario() -> None:
        async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(answer)
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"

        assert await fetch(Peering(settings_of(tmp_path)), (address,), str(tmp_path), 1, 7, 10) == ""
        assert not list(tmp_path.glob("luggage-*"))
        server.close()

    scenario()


@in_asyncio
async def test_luggage_that_takes_longer_than_handover_seconds_max_is_none(tmp_path: Path) -> None:
    """A host that stops in the middle holds nobody up."""
    stopped = asyncio.Event()

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(pack_frame(encode(Luggage(100))) + b"half")
        await stopped.wait()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"

    assert await fetch(Peering(settings_of(tmp_path)), (address,), str(tmp_path), 1, 7, 0.2) == ""
    assert not list(tmp_path.glob("luggage-*"))
    stopped.set()
    server.close()


def test_luggage_stays_while_anyone_may_want_it(tmp_path: Path) -> None:
    """It goes when another turn has begun and handover_seconds_max are over."""
    for shard, turn, age_seconds in ((0, 3, 100), (0, 4, 100), (1, 3, 1), (1, 2, 100), (9, 1, 100)):
        path = Path(luggage_path(str(tmp_path), shard, turn))
        path.write_bytes(b"")
        os.utime(path, (time.time() - age_seconds,) * 2)
    discard_old(str(tmp_path), [Holding(0, "a:1", 4), Holding(1, "b:1", 4)], 10)

    assert {path.name for path in tmp_path.iterdir()} == {"luggage-0-4", "luggage-1-3", "luggage-9-1"}
