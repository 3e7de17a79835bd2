"""The calls about the cluster, and what else of a front is different in one: with fake shards, and a node that says what it is told to."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import msgspec
import pytest
import trio
from quart.testing import QuartClient

from proteus_shards.config import Settings
from proteus_shards.core.commands import Command, Measure, Measures, Outcome
from proteus_shards.front.app import make_app
from proteus_shards.front.metrics import Page
from proteus_shards.front.owners import Cluster
from proteus_shards.front.router import Router
from proteus_shards.front.viewers import Viewers
from proteus_shards.ipc.hosts import Asked, Drain, Forget, Move
from proteus_shards.tally import Tally
from tests.front.fake_node import HERE, THERE, FakeLink, FakeNode, owners_of
from tests.front.fake_shard import PATIENCE_SECONDS, FakeShard, linked, obliging
from tests.front.test_metrics import values_of

SETTINGS = Settings(shards=2, cluster=True, node_address=HERE, store="memory:")
WISHES = [("move", {"shard": 1, "host": HERE}), ("drain", {"host": THERE, "draining": True}), ("forget", {"host": THERE})]


class Front(NamedTuple):
    """An app in a cluster of two shards: the first is here."""

    client: QuartClient
    router: Router
    node: FakeNode
    shards: list[FakeShard]
    page: Page
    viewers: Viewers

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Return the status and what the body of the answer says."""
        response = await self.client.open(path, method=method, data=b"" if body is None else json.dumps(body).encode())
        text = await response.get_data(as_text=False)
        return response.status_code, json.loads(text) if text else None


@pytest.fixture
async def front(tmp_path: Path) -> AsyncIterator[Front]:
    """A front, its node and its shards."""

    def answer(command: Command) -> Outcome | None:
        return Measures([], []) if isinstance(command, Measure) else obliging(command)

    async with linked(tmp_path, SETTINGS, answer) as (router, shards), trio.open_nursery() as nursery:
        node = FakeNode(str(tmp_path), owners_of(HERE, THERE))
        await nursery.start(node.run)
        router.cluster = Cluster(str(tmp_path), [FakeLink(shard) for shard in range(2)], 5.0)
        nursery.start_soon(router.cluster.run)
        with trio.fail_after(PATIENCE_SECONDS):
            await router.cluster.wait_heard()
        page = Page(router, SETTINGS, str(tmp_path))
        viewers = Viewers(router, SETTINGS, page, str(tmp_path))
        client = cast("QuartClient", make_app(router, SETTINGS, page, viewers).test_client())
        yield Front(client, router, node, shards, page, viewers)
        nursery.cancel_scope.cancel()


async def test_the_cluster_is_shown(front: Front) -> None:
    """Its hosts, and who has each shard."""
    status, shown = await front.ask("GET", "/v1/cluster")

    assert 200 == status
    assert {"seen_from": HERE, "store_away": False} == {name: shown[name] for name in ("seen_from", "store_away")}
    assert {"host": HERE, "host_state": "alive", "version": "1.0", "shards_held": 1} == shown["hosts"][0]
    assert [
        {"shard": 0, "host": HERE, "turn": 1, "epoch": 1, "here": True, "wanted": None},
        {"shard": 1, "host": THERE, "turn": 1, "epoch": 1, "here": False, "wanted": None},
    ] == shown["owners"]


@pytest.mark.parametrize(("call", "body"), WISHES)
async def test_a_wish_goes_to_the_node(call: str, body: dict[str, Any], front: Front) -> None:
    """Word for word."""
    status, shown = await front.ask("POST", f"/v1/cluster/{call}", body)

    assert (202, None) == (status, shown)
    expected = {"move": Move(1, 1, HERE), "drain": Drain(1, THERE, draining=True), "forget": Forget(1, THERE)}
    assert [expected[call]] == front.node.wishes


async def test_a_wish_is_taken_back(front: Front) -> None:
    """By a move to nobody in particular."""
    assert (202, None) == await front.ask("POST", "/cluster/move", {"shard": 1, "host": None})
    assert [Move(1, 1, "")] == front.node.wishes


async def test_what_cannot_be_written_down_now_may_be_tried_again(front: Front) -> None:
    """While the store is away."""
    assert front.router.cluster is not None
    front.router.cluster.take(owners_of(HERE, THERE, store_away=True))
    front.node.answer = lambda _: Asked(1, "the store cannot be asked now")
    status, problem = await front.ask("POST", "/cluster/drain", {"host": THERE, "draining": False})

    assert (503, True, "the store cannot be asked now") == (status, problem["retryable"], problem["detail"])


@pytest.mark.parametrize(("missing", "expected"), [(True, 404), (False, 409)])
async def test_what_the_node_refuses_is_told(missing: bool, expected: int, front: Front) -> None:
    """In its words."""
    front.node.answer = lambda _: Asked(1, "not so", missing=missing)
    status, problem = await front.ask("POST", "/cluster/forget", {"host": THERE})

    assert (expected, "not so") == (status, problem["detail"])


@pytest.mark.parametrize(
    ("call", "body", "field"),
    [
        ("move", {"shard": 2, "host": HERE}, "shard"),
        ("move", {"shard": -1, "host": HERE}, "shard"),
        ("move", {"shard": "1", "host": HERE}, "shard"),
        ("move", {"shard": 1}, "host"),
        ("move", {"shard": 1, "host": ""}, "host"),
        ("drain", {"host": HERE}, "draining"),
        ("drain", {"host": HERE, "draining": 1}, "draining"),
        ("forget", {"host": HERE, "now": True}, "now"),
        ("forget", [HERE], "body"),
        ("forget?force=1", {"host": HERE}, "force"),
    ],
)
async def test_a_wrong_field_is_named(call: str, body: Any, field: str, front: Front) -> None:
    """And the node hears nothing of it."""
    status, problem = await front.ask("POST", f"/cluster/{call}", body)

    assert (422, field) == (status, problem["field"])
    assert [] == front.node.wishes


async def test_without_a_node_nothing_is_wished_but_the_last_word_is_shown(front: Front) -> None:
    """It may be old, and says so."""
    async with trio.open_nursery() as nursery:
        alone = Cluster("/nowhere", [], 5.0)
        alone.take(owners_of(HERE, THERE))
        front.router.cluster = alone
        refused = await front.ask("POST", "/cluster/forget", {"host": THERE})
        shown = await front.ask("GET", "/cluster")
        nursery.cancel_scope.cancel()

    assert (503, "the node process of this host is away") == (refused[0], refused[1]["detail"])
    assert (200, True) == (shown[0], shown[1]["store_away"])


@pytest.mark.parametrize(("method", "path"), [("GET", "/cluster"), *(("POST", f"/v1/cluster/{call}") for call, _ in WISHES)])
async def test_a_server_in_no_cluster_says_so(method: str, path: str, tmp_path: Path) -> None:
    """404, whatever is asked."""
    settings = Settings(shards=1)
    async with linked(tmp_path, settings) as (router, _):
        response = await cast("QuartClient", make_app(router, settings).test_client()).open(path, method=method)
        problem = json.loads(await response.get_data(as_text=False))

    assert (404, "this server is in no cluster (cluster)") == (response.status_code, problem["detail"])


async def test_a_host_is_ready_for_its_own_shards(front: Front) -> None:
    """Another host's shard that is away does not count, and is named."""
    ready = await front.ask("GET", "/ready")
    await front.shards[1].hang_up()
    front.shards[1].greeting = None
    with trio.fail_after(PATIENCE_SECONDS):
        while front.router.links[1].connected:
            await trio.lowlevel.checkpoint()
    still = await front.ask("GET", "/ready")

    assert (200, {"status": "ready", "shards": 2, "shards_here": [0]}) == ready
    assert (200, {"status": "ready", "shards": 2, "shards_here": [0], "shards_away": [1]}) == still


async def test_a_host_without_shards_is_not_ready(front: Front) -> None:
    """But healthy."""
    assert front.router.cluster is not None
    front.router.cluster.take(owners_of(THERE, THERE, store_away=True))
    status, problem = await front.ask("GET", "/ready")

    assert (503, "this host holds no shard; the node of this host cannot reach the store") == (status, problem["detail"])
    assert 200 == (await front.ask("GET", "/health"))[0]


async def test_the_page_of_metrics_is_that_of_one_host(front: Front, tmp_path: Path) -> None:
    """Its shards, its node, and the cluster as it sees it."""
    Tally(str(tmp_path), "node").keep([("proteus_moves_total", ["in"], 3), ("proteus_lease_seconds_left", [], 7.5)])
    page = values_of(await front.page.text())

    assert {"0"} == {key[2] for key in page if key[0] == "proteus_shard_up"}
    assert {"0"} == {key[4] for key in page if key[0] == "proteus_link_up"}
    assert [3, 7.5, 1, 2] == [
        page["proteus_moves_total", "direction", "in"],
        page["proteus_lease_seconds_left",],
        page["proteus_leases_held",],
        page["proteus_cluster_hosts", "state", "alive"],
    ]
    assert page["proteus_process_resident_bytes", "process", "node"] > 0


async def test_the_dashboard_is_told_of_the_cluster(front: Front) -> None:
    """Of its own shards' health, and of who has all of them."""
    frames = front.viewers.frames()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(front.viewers.run)
        with trio.fail_after(PATIENCE_SECONDS):
            await anext(frames)
            frame = msgspec.json.decode((await anext(frames)).partition(b"data: ")[2])
        await frames.aclose()
        nursery.cancel_scope.cancel()

    assert [0] == [shard["shard"] for shard in frame["shards"]]
    assert [HERE, THERE] == [owner["host"] for owner in frame["cluster"]["owners"]]
