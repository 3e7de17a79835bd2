"""Luggage as a file: written at the end of one process, taken in at the start of the next."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from proteus_shards.cluster.model import Claim
from proteus_shards.config import Settings, ShardBoot, luggage_path
from proteus_shards.core.commands import Cancel, Complete, Delivered, Enqueue, Inspect, Next, Reason, Refused
from proteus_shards.shard.luggage import leave_luggage, take_luggage
from tests.shard.scripted import Clock, RecordingLink, ScriptedStore, make_pump
from tests.store.rows import in_asyncio

HOST = "127.0.0.1:9000"


def boot(folder: Path, turn: int, luggage: str = "") -> ShardBoot:
    """Return what a process of a turn is told."""
    settings = Settings(shards=4, cluster=True, node_address=HOST)
    return ShardBoot(settings, 0, str(folder), Claim(0, HOST, turn), luggage)


def files(folder: Path) -> list[Path]:
    """Return what is in a folder."""
    return list(folder.iterdir())


def mode_of(path: str) -> int:
    """Return who may do what with a file."""
    return stat.S_IMODE(Path(path).stat().st_mode)


def rewrite(path: str, change: Callable[[bytes], bytes]) -> None:
    """Damage a file."""
    Path(path).write_bytes(change(Path(path).read_bytes()))


async def left_by(folder: Path, store: ScriptedStore, jobs: int = 3, size: int = 10) -> str:
    """Let a shard with memory-only jobs end, and return the path of its luggage."""
    pump = make_pump(store, Clock())
    link = RecordingLink(pump)
    for number in range(jobs):
        pump.receive(link, [(number, Enqueue("q", f"job-{number}", 30, False, 0, b"1" * size))])
    pump.stop()
    await leave_luggage(pump.shard, boot(folder, 3))
    return luggage_path(str(folder), 0, 3)


async def ids_after(folder: Path, store: ScriptedStore, turn: int, luggage: str) -> list[str]:
    """Start a shard with luggage, and return what it has to give out."""
    pump = make_pump(store, Clock())

    async def take() -> bool:
        return await take_luggage(pump.shard, boot(folder, turn, luggage))

    await pump.recover(take)
    link = RecordingLink(pump)
    pump.receive(link, [(1, Next("q", 1000))])
    outcome = link.answers[1]
    assert isinstance(outcome, Delivered)
    return [job.id for job in outcome.jobs]


@in_asyncio
async def test_what_one_process_leaves_the_next_one_has(tmp_path: Path) -> None:
    """And only this user may read it meanwhile."""
    store = ScriptedStore()
    path = await left_by(tmp_path, store)
    assert mode_of(path) == 0o600

    assert await ids_after(tmp_path, store, 4, path) == ["job-0", "job-1", "job-2"]


@in_asyncio
async def test_luggage_of_many_pieces_arrives_whole(tmp_path: Path) -> None:
    """Pieces are cut by size, and read as they come."""
    store = ScriptedStore()
    path = await left_by(tmp_path, store, jobs=40, size=100_000)

    assert len(await ids_after(tmp_path, store, 4, path)) == 40


@in_asyncio
async def test_luggage_is_taken_in_once(tmp_path: Path) -> None:
    """A process that is started again after a crash must not bring back what was completed since."""
    store = ScriptedStore()
    path = await left_by(tmp_path, store)
    await ids_after(tmp_path, store, 4, path)

    assert await ids_after(tmp_path, store, 4, path) == []
    assert not files(tmp_path)


@in_asyncio
async def test_what_the_same_turn_left_earlier_goes_when_it_is_not_given_back(tmp_path: Path) -> None:
    """From here on it is old."""
    store = ScriptedStore()
    await left_by(tmp_path, store)

    assert await ids_after(tmp_path, store, 3, "") == []
    assert not files(tmp_path)


@in_asyncio
async def test_a_host_that_keeps_its_shard_takes_back_what_it_left(tmp_path: Path) -> None:
    """The hand-over may have failed."""
    store = ScriptedStore()
    path = await left_by(tmp_path, store)

    assert len(await ids_after(tmp_path, store, 3, path)) == 3


@pytest.mark.parametrize("change", [lambda data: data[:-3], lambda data: data[:50], lambda _data: b"\xff" * 100, lambda _data: b""])
def test_damaged_luggage_is_left_aside(tmp_path: Path, change: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture) -> None:
    """The shard serves without it, and says so."""

    @in_asyncio
    async def scenario() -> None:
        store = ScriptedStore()
        path = await left_by(tmp_path, store)
        rewrite(path, change)

        assert await ids_after(tmp_path, store, 4, path) == []
        assert files(tmp_path)

    scenario()
    assert "luggage is left aside: what was in memory only is lost" in caplog.messages


@in_asyncio
async def test_luggage_that_cannot_be_written_costs_the_memory_only_jobs_and_no_more(tmp_path: Path) -> None:
    """The end stays an orderly one."""
    await left_by(tmp_path / "no" / "such folder", ScriptedStore())

    assert not files(tmp_path)


@in_asyncio
async def test_a_process_without_a_claim_leaves_nothing(tmp_path: Path) -> None:
    """It has nobody to leave it to."""
    pump = make_pump(ScriptedStore(), Clock())
    alone = ShardBoot(Settings(), 0, str(tmp_path))

    await leave_luggage(pump.shard, alone)

    assert not files(tmp_path)
    assert await take_luggage(pump.shard, alone) is False


@in_asyncio
async def test_a_shard_that_moves_tells_whoever_comes_late_to_ask_the_new_owner() -> None:
    """Polls that wait, too: nothing of theirs has happened."""
    pump = make_pump(ScriptedStore(), Clock(), moves=True)
    link = RecordingLink(pump)
    pump.receive(link, [(1, Next("q", 1, 60_000_000)), (2, Enqueue("p", "a", 1, False, 0, b"1"))])

    await pump.drain()
    pump.receive(link, [(3, Complete("p", "a"))])
    pump.stop()
    pump.receive(link, [(4, Complete("p", "a")), (5, Cancel(4)), (6, Inspect())])

    reasons = {number: outcome.reason for number, outcome in link.answers.items() if isinstance(outcome, Refused)}
    assert reasons == {1: Reason.MOVED, 3: Reason.MOVED, 4: Reason.MOVED, 6: Reason.MOVED}
    assert list(pump.shard.queues["p"].jobs) == ["a"]


@in_asyncio
async def test_no_time_passes_in_a_shard_that_has_stopped() -> None:
    """What is being packed must not change."""
    clock = Clock()
    pump = make_pump(ScriptedStore(), clock, moves=True)
    link = RecordingLink(pump)
    pump.receive(link, [(1, Enqueue("q", "a", 1, False, 0, b"1")), (2, Next("q"))])
    await pump.drain()
    pump.stop()
    clock.step(60)

    pump.receive(link, [(3, Next("q"))])
    pump.lose(link)

    assert pump.shard.queues["q"].jobs["a"].attempt == 1
    assert not pump.shard.queues["q"].dead
