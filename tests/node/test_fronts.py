"""What a node tells the fronts of its host, and what they may ask of it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from proteus_shards.cluster.steps import Drain, Fault, Leave, Want
from proteus_shards.ipc.frames import pack_frame
from proteus_shards.ipc.hosts import Asked, Forget, Move, Owner, Owners, Stale, decode_from_node, encode
from proteus_shards.ipc.hosts import Drain as DrainAsked
from proteus_shards.node.fronts import Fronts
from proteus_shards.node.luggage import read_frame
from tests.store.rows import in_asyncio

FRAME_BYTES_MAX = 1_000_000


class Desk:
    """Fronts, and what was wished of them."""

    def __init__(self, folder: Path, fault: Fault | None = None) -> None:
        self.path = str(folder / "node.sock")
        self.wishes: list[object] = []
        self.stale = 0
        self.fault = fault
        self.fronts = Fronts(self.path, self._wish, self._note)

    async def _wish(self, wish: Want | Drain | Leave) -> Fault | None:
        self.wishes.append(wish)
        return self.fault

    def _note(self) -> None:
        self.stale += 1

    async def dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_unix_connection(self.path)


def owners(turn: int) -> Owners:
    """Return something to tell."""
    return Owners("a:1", (), (Owner(0, "a:1", turn, 1, here=True),))


async def told(reader: asyncio.StreamReader) -> Any:
    """Return what a front is told next."""
    return decode_from_node(await read_frame(reader, FRAME_BYTES_MAX))


@in_asyncio
async def test_a_front_is_told_at_once_and_of_every_change(tmp_path: Path) -> None:
    """What is no news is not told."""
    desk = Desk(tmp_path)
    await desk.fronts.start()
    early, first = await desk.dial()
    desk.fronts.tell(owners(1))
    assert await told(early) == owners(1)
    late, second = await desk.dial()
    assert await told(late) == owners(1)
    desk.fronts.tell(owners(1))
    desk.fronts.tell(owners(2))
    assert [await told(early), await told(late)] == [owners(2), owners(2)]

    assert Path(desk.path).stat().st_mode & 0o777 == 0o600
    for writer in (first, second):
        writer.close()
    desk.fronts.close()


@pytest.mark.parametrize("fault", [None, Fault("there is no shard 7", missing=True)])
def test_wishes_are_passed_on_and_answered(tmp_path: Path, fault: Fault | None) -> None:
    """Each under its number."""

    @in_asyncio
    async def scenario() -> None:
        desk = Desk(tmp_path, fault)
        await desk.fronts.start()
        reader, writer = await desk.dial()
        for message in (Move(1, 7, "b:1"), Stale(0, 3), DrainAsked(2, "b:1", draining=True), Forget(3, "c:1")):
            writer.write(pack_frame(encode(message)))
        answers = [await told(reader) for _ in range(3)]

        assert desk.wishes == [Want(7, "b:1"), Drain("b:1", draining=True), Leave("c:1")]
        assert desk.stale == 1
        expected = [Asked(number, fault.detail, fault.missing) if fault else Asked(number) for number in (1, 2, 3)]
        assert sorted(answers, key=lambda asked: asked.number) == expected
        writer.close()
        desk.fronts.close()

    scenario()


@in_asyncio
async def test_a_front_that_breaks_the_protocol_is_cut_off(tmp_path: Path) -> None:
    """Others go on."""
    desk = Desk(tmp_path)
    await desk.fronts.start()
    reader, writer = await desk.dial()
    other, other_writer = await desk.dial()
    writer.write(b"\0\0\0\1\xc1")
    assert await reader.read() == b""
    desk.fronts.tell(owners(5))

    assert await told(other) == owners(5)
    for each in (writer, other_writer):
        each.close()
    desk.fronts.close()
