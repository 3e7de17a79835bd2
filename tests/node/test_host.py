"""A host's own part, with a register in memory and no supervisor but this test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from proteus_shards.boot import NodeBoot
from proteus_shards.cluster.model import NOBODY, Claim
from proteus_shards.cluster.steps import Drain, Fault, Leave, Over, Want
from proteus_shards.cluster.steward import Steward
from proteus_shards.config import luggage_path
from proteus_shards.errors import StoreRefused
from proteus_shards.ipc.hosts import Nudge, Owners
from proteus_shards.ipc.orders import Away, Ended, NodeOrder, Serving, Shards, Start
from proteus_shards.node.host import HostState
from proteus_shards.node.rounds import AWAY, Rounds
from proteus_shards.peering import Peering
from tests.node.gates import settings_of
from tests.store.memory_register import MemoryPlace, MemoryRegister
from tests.store.rows import in_asyncio

SECONDS_MAX = 20.0


class Node:
    """One host, whose shards start and end as the test says."""

    def __init__(self, folder: Path, place: MemoryPlace, address: str, *, boot: str = "1", running: tuple[Claim, ...] = ()) -> None:
        folder.mkdir(exist_ok=True)
        settings = msgspec.structs.replace(settings_of(folder, shards=len(place.holdings), lease_seconds=2.0), node_address=address)
        self.trouble = ""
        self.said: Shards | None = None
        self.owners: Owners | None = None
        self.run_dir = str(folder)
        self.steward = Steward(address, boot, "1", settings.lease_seconds, running=running)
        node_boot = NodeBoot(settings, str(folder), 0, boot, running)
        self.host = HostState(node_boot, self.steward, Peering(settings), self._tell, self._say)
        register = MemoryRegister(place, self._fail)
        self.rounds = Rounds(self.steward, register, settings.shards, self.host.manage, self.host.handed)
        self.host.poke = self.rounds.poke

    def _tell(self, owners: Owners) -> None:
        self.owners = owners

    def _say(self, order: NodeOrder) -> None:
        assert isinstance(order, Shards)
        self.said = order

    async def _fail(self, call: str) -> None:
        if call == self.trouble:
            raise StoreRefused("the store is away")

    def starts(self) -> tuple[Start, ...]:
        """Return what is to run."""
        return self.said.starts if self.said is not None else ()


@asynccontextmanager
async def working(*nodes: Node) -> AsyncIterator[None]:
    """Let nodes make their rounds."""
    tasks = [asyncio.create_task(node.rounds.run()) for node in nodes]
    try:
        async with asyncio.timeout(SECONDS_MAX):
            yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until(condition: Callable[[], object]) -> None:
    """Wait for a fact."""
    while not condition():
        await asyncio.sleep(0.005)


@in_asyncio
async def test_what_is_to_run_is_said_and_what_serves_is_told(tmp_path: Path) -> None:
    """A shard is here while its process serves, and not while that is started again."""
    node = Node(tmp_path, MemoryPlace(2), "a:1")
    claims = [Claim(shard, "a:1", 1) for shard in range(2)]
    async with working(node):
        await until(lambda: node.starts() == tuple(map(Start, claims)))
        assert node.said is not None
        assert 0 < node.said.seconds <= 2
        node.host.take(Serving(claims[1]))
        assert node.host.is_here(1)
        assert node.owners is not None
        assert [owner.here for owner in node.owners.owners] == [False, True]
        node.host.take(Away(claims[1]))

        assert not node.host.is_here(1)
        assert [owner.here for owner in node.owners.owners] == [False, False]
        assert (node.host.elsewhere(1).host, node.host.elsewhere(1).turn) == ("a:1", 1)


@in_asyncio
async def test_a_process_that_was_fenced_runs_under_a_new_claim(tmp_path: Path) -> None:
    """Where the holding is still this host's; and the supervisor is told that its word was heard."""
    node = Node(tmp_path, MemoryPlace(1), "a:1")
    async with working(node):
        await until(node.starts)
        node.host.take(Ended(Claim(0, "a:1", 1), fenced=True))
        await until(lambda: node.starts() == (Start(Claim(0, "a:1", 2)),))

        assert node.said is not None
        assert node.said.heard == 1


@in_asyncio
async def test_what_a_process_has_left_is_given_to_the_next_one_of_its_turn(tmp_path: Path) -> None:
    """Its luggage lies in the folder of the server."""
    place = MemoryPlace(1)
    place.hand(0, 0, "a:1")
    Path(luggage_path(str(tmp_path), 0, 2)).write_bytes(b"")
    node = Node(tmp_path, place, "a:1")  # it holds the shard from an earlier life, and takes it anew
    async with working(node):
        await until(node.starts)

        assert node.starts() == (Start(Claim(0, "a:1", 2), luggage_path(str(tmp_path), 0, 2)),)


@in_asyncio
async def test_a_node_that_begins_anew_says_nothing_before_it_knows(tmp_path: Path) -> None:
    """Then that all goes on."""
    place = MemoryPlace(2)
    first = Node(tmp_path, place, "a:1")
    async with working(first):
        await until(first.starts)
    running = tuple(start.claim for start in first.starts())
    second = Node(tmp_path, place, "a:1", running=running)
    second.host.manage()
    assert second.said is None
    async with working(second):
        await until(lambda: second.said)

    assert second.starts() == tuple(map(Start, running))


@in_asyncio
async def test_when_the_lease_is_over_nothing_is_to_run(tmp_path: Path) -> None:
    """And when the store is back, all goes on under the same claims."""
    node = Node(tmp_path, MemoryPlace(1), "a:1")
    async with working(node):
        await until(node.starts)
        node.trouble = "beat"
        until_lapse = asyncio.create_task(until(lambda: not node.starts()))
        while not until_lapse.done():
            node.host.manage()  # as a timer does
            await asyncio.sleep(0.01)
        assert node.owners is not None
        assert node.owners.counters["beats_failed"] > 0
        node.host.take(Ended(Claim(0, "a:1", 1)))
        node.trouble = ""
        await until(node.starts)

        assert node.starts() == (Start(Claim(0, "a:1", 1)),)


@in_asyncio
async def test_wishes_of_operators_reach_the_store(tmp_path: Path) -> None:
    """What makes no sense, or cannot be written, does not."""
    place = MemoryPlace(2)
    node = Node(tmp_path, place, "a:1")
    assert await node.rounds.wish(Want(0, "a:1")) == Fault("the store cannot be asked now")
    async with working(node):
        await until(node.starts)
        assert await node.rounds.wish(Want(0, "a:1")) is None
        assert place.holdings[0].wanted == "a:1"
        assert await node.rounds.wish(Want(0, NOBODY)) is None
        assert await node.rounds.wish(Drain("a:1", draining=True)) is None
        assert place.hosts["a:1"].draining
        assert (await node.rounds.wish(Leave("b:1")) or Fault("")).missing
        node.trouble = "want"

        assert await node.rounds.wish(Want(1, "a:1")) in (Fault(AWAY), Fault("a:1 is draining"))


@in_asyncio
async def test_a_nudge_brings_the_next_look_forward(tmp_path: Path) -> None:
    """A shard that was handed over is seen at once, and its luggage asked for where the nudge came from."""
    place = MemoryPlace(2)
    node = Node(tmp_path, place, "a:1")
    async with working(node):
        await until(lambda: len(node.starts()) == 2)
        place.hand(0, 1, "b:1")
        node.host.stale()
        await until(lambda: len(node.starts()) == 1)
        node.host.take(Ended(Claim(0, "a:1", 1)))
        place.hand(0, 2, "a:1")
        node.host.nudge(Nudge(0, 3, "127.0.0.1:1"))
        await until(lambda: Start(Claim(0, "a:1", 3)) in node.starts())


@in_asyncio
async def test_a_host_that_departs_ends_once_it_has_nothing(tmp_path: Path) -> None:
    """Its processes have ended, its holdings are nobody's, and its row is gone."""
    place = MemoryPlace(2)
    node = Node(tmp_path, place, "a:1")
    rounds = asyncio.create_task(node.rounds.run())
    async with asyncio.timeout(SECONDS_MAX):
        await until(node.starts)
        claims = [start.claim for start in node.starts()]
        node.steward.leave()
        node.rounds.poke()
        await until(lambda: not node.starts())
        assert not rounds.done()
        for claim in claims:
            node.host.take(Ended(claim))

        assert await rounds == Over(replaced=False)
        assert not place.hosts
        assert {holding.host for holding in place.holdings} == {NOBODY}
