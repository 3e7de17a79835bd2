"""What a front knows of the cluster, from a node that says what it is told to."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest
import trio

from proteus_shards.config import node_socket_path, socket_path
from proteus_shards.front import owners as owners_module
from proteus_shards.front.owners import Cluster
from proteus_shards.ipc.hosts import Asked, Drain, Elsewhere, FrontMessage, Move, Stale
from tests.front.fake_node import HERE, THERE, FakeLink, FakeNode, owners_of
from tests.front.fake_shard import PATIENCE_SECONDS

THIRD = "127.0.0.3:7001"


class Host(NamedTuple):
    """One front and its node."""

    node: FakeNode
    cluster: Cluster
    links: list[FakeLink]
    run_dir: str


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    """A front of three shards: one here, one there, one that nobody has."""
    node = FakeNode(str(tmp_path), owners_of(HERE, THERE, ""))
    links = [FakeLink(shard) for shard in range(3)]
    cluster = Cluster(str(tmp_path), links, 5.0)
    async with trio.open_nursery() as nursery:
        await nursery.start(node.run)
        nursery.start_soon(cluster.run)
        with trio.fail_after(PATIENCE_SECONDS):
            await cluster.wait_heard()
        yield Host(node, cluster, links, str(tmp_path))
        nursery.cancel_scope.cancel()


async def until(host: Host, turn: int) -> None:
    """Wait until the front has heard of a turn of the first shard."""
    with trio.fail_after(PATIENCE_SECONDS):
        while host.cluster.said is None or host.cluster.said.owners[0].turn != turn:
            await trio.lowlevel.checkpoint()


async def test_links_are_led_where_their_shards_are(host: Host) -> None:
    """To a socket, to a gate, or nowhere."""
    assert [[(socket_path(host.run_dir, 0), 1)], [(THERE, 1)], [("", 1)]] == [link.led for link in host.links]
    assert [True, False, False] == [host.cluster.is_here(shard) for shard in range(3)]


async def test_only_what_changes_is_led_anew(host: Host) -> None:
    """A map that says the same again interrupts nobody."""
    host.links[0].led.clear()
    await host.node.say(owners_of(HERE, THERE, ""))
    await host.node.say(owners_of(THERE, HERE, HERE, turn=2))
    await until(host, 2)

    assert [(THERE, 2)] == host.links[0].led
    assert [(THERE, 1), (socket_path(host.run_dir, 1), 2)] == host.links[1].led


async def test_a_gate_that_knows_better_is_believed_once_and_the_node_told(host: Host) -> None:
    """Until the node has caught up its older word does not count."""
    host.links[1].on_elsewhere(Elsewhere(1, THIRD, 4))
    await host.node.wait_for(lambda: host.node.received)
    await host.node.say(owners_of(HERE, THERE, "", turn=3))
    await until(host, 3)

    assert [Stale(1, 1)] == host.node.received
    assert [(THERE, 1), (THIRD, 4)] == host.links[1].led

    host.cluster.note_elsewhere(Elsewhere(1, HERE, 2))

    assert (THERE, 3) == host.links[1].led[-1]


async def test_a_gate_that_knows_no_more_is_not_believed(host: Host) -> None:
    """Nor is the node told: a look at the store would tell nothing."""
    host.cluster.note_elsewhere(Elsewhere(1, THIRD, 1))
    host.cluster.note_elsewhere(Elsewhere(99, THIRD, 9))
    host.cluster.ask(lambda number: Drain(number, HERE, draining=True), lambda _: None)
    await host.node.wait_for(lambda: host.node.wishes)

    assert host.node.wishes == host.node.received
    assert [(THERE, 1)] == host.links[1].led


async def test_the_node_is_told_of_a_link_that_stays_down(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Again and again, by one word for all of them."""
    monkeypatch.setattr(owners_module, "LOOK_SECONDS", 0.01)
    await host.node.hang_up()
    host.links[0].connected = host.links[1].connected = host.links[2].connected = False  # what is here is not a matter of who owns it
    found = await host.node.wait_for(lambda: host.node.received if len(host.node.received) > 1 else None)

    assert [Stale(1, 1)] * 2 == found[:2]


async def test_a_wish_is_told_and_answered(host: Host) -> None:
    """Under a number of its own."""
    asked: list[Asked | None] = []
    answered = trio.Event()

    def take(answer: Asked | None) -> None:
        asked.append(answer)
        answered.set()

    host.node.answer = lambda _: Asked(1, "no such host", missing=True)

    assert host.cluster.ask(lambda number: Move(number, 2, THIRD), take)
    with trio.fail_after(PATIENCE_SECONDS):
        await answered.wait()
    assert [Asked(1, "no such host", missing=True)] == asked
    assert [Move(1, 2, THIRD)] == host.node.wishes


async def test_a_wish_whose_answer_was_lost_is_unknown(host: Host) -> None:
    """Its asker is told so at once, and the front comes back to the node."""
    asked: list[Asked | None] = []

    def silent(_: FrontMessage) -> None:
        return None

    host.node.answer = silent
    host.cluster.ask(lambda number: Drain(number, HERE, draining=True), asked.append)
    await host.node.wait_for(lambda: host.node.wishes)
    await host.node.hang_up()
    with trio.fail_after(PATIENCE_SECONDS):
        while not asked:
            await trio.lowlevel.checkpoint()
        while not host.cluster.connected:
            await trio.lowlevel.checkpoint()

    assert [None] == asked


async def test_without_a_node_there_are_no_wishes(tmp_path: Path) -> None:
    """And no readiness."""
    cluster = Cluster(str(tmp_path), [], 5.0)

    assert not cluster.ask(lambda number: Move(number, 0, HERE), lambda _: None)
    assert ["the node process of this host is away"] == cluster.unready()
    assert cluster.shown() is None
    assert [("proteus_node_up", [], False)] == cluster.samples()


@pytest.mark.parametrize(
    ("said", "reasons"),
    [
        (owners_of(HERE), []),
        (owners_of(THERE), ["this host holds no shard"]),
        (owners_of(HERE, draining=True), ["this host is draining"]),
        (owners_of("", store_away=True), ["this host holds no shard", "the node of this host cannot reach the store"]),
    ],
)
async def test_a_host_is_not_ready_for_a_reason(host: Host, said: object, reasons: list[str]) -> None:
    """It holds no shard, drains, or has lost the store."""
    host.cluster.take(said)  # type: ignore[arg-type]

    assert reasons == host.cluster.unready()


async def test_forwards_are_counted_by_host(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes to shards of this host does not count; hosts beyond a number are counted together."""
    monkeypatch.setattr(owners_module, "HOSTS_COUNTED_MAX", 1)
    host.links[0].submitted, host.links[1].submitted = 100, 7
    before = host.cluster.forwards()
    host.links[1].submitted = 10
    host.cluster.take(owners_of(THIRD, THIRD, "", turn=2))
    host.links[1].submitted = 14

    assert [("proteus_forwards_total", [THERE], 7)] == before
    assert [("proteus_forwards_total", [THERE], 10), ("proteus_forwards_total", [""], 4)] == host.cluster.forwards()


async def test_the_cluster_is_counted(host: Host) -> None:
    """By the node's word."""
    found = {(name, *labels): value for name, labels, value in host.cluster.samples()}

    assert {
        ("proteus_node_up",): 1,
        ("proteus_cluster_hosts", "alive"): 2,
        ("proteus_cluster_hosts", "draining"): 0,
        ("proteus_cluster_hosts", "dead"): 0,
        ("proteus_cluster_shards_unowned",): 1,
        ("proteus_cluster_store_away",): 0,
        ("proteus_leases_held",): 1,
    } == found


async def test_a_node_that_has_said_nothing_yet_is_there(tmp_path: Path) -> None:
    """But its host is not ready."""
    said: list[str] = []
    cluster = Cluster(str(tmp_path), [], 5.0)
    async with trio.open_nursery() as nursery:
        sock = trio.socket.socket(trio.socket.AF_UNIX)
        await sock.bind(node_socket_path(str(tmp_path)))
        sock.listen()
        nursery.start_soon(cluster.run)
        stream, _ = await sock.accept()
        with trio.fail_after(PATIENCE_SECONDS):
            while not cluster.connected:
                await trio.lowlevel.checkpoint()
        said += cluster.unready()
        stream.close()
        nursery.cancel_scope.cancel()
    sock.close()

    assert ["the node process of this host has not seen the cluster yet"] == said
