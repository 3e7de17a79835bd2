"""The front with real shards: each meaning once, from HTTP to the queue and back."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import trio

from proteus_shards.config import Settings, ShardBoot, socket_path
from proteus_shards.front.app import make_app
from proteus_shards.front.link import Link
from proteus_shards.front.router import Router
from proteus_shards.front.server import Server
from tests.front.fake_shard import PATIENCE_SECONDS

SETTINGS = Settings(shards=2, store="memory:", log_format="json")


@asynccontextmanager
async def shard_process(run_dir: Path, shard: int, settings: Settings) -> AsyncIterator[trio.Process]:
    """Run a shard process until it is told to end, or killed."""
    with (run_dir / f"shard-{shard}.log").open("ab") as log:
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", "proteus_shards.shard"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
        )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        await process.stdin.send_all(msgspec.json.encode(ShardBoot(settings, shard, str(run_dir))) + b"\n")
        with trio.fail_after(PATIENCE_SECONDS):
            assert b'"ready"' in await process.stdout.receive_some(4096), (run_dir / f"shard-{shard}.log").read_text()
        yield process
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
        await process.stdin.aclose()
        await process.stdout.aclose()


class Site:
    """A front on a port, its shards, and a client."""

    def __init__(self, router: Router, shards: list[trio.Process], client: httpx.AsyncClient, port: int) -> None:
        self.router = router
        self.shards = shards
        self.client = client
        self.port = port

    async def enqueue(self, job_id: str, **fields: Any) -> httpx.Response:
        """Enqueue a job."""
        return await self.client.post("/enqueue", json={"id": job_id, "queue": "q", "timeout": 30, **fields})

    async def wait_connected(self) -> None:
        """Wait until every link is up."""
        with trio.fail_after(PATIENCE_SECONDS):
            for link in self.router.links:
                await link.wait_connected()
                await link.wait_settled()


@pytest.fixture
async def site(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[Site]:
    """Two shards and a front."""
    async with AsyncExitStack() as stack:
        shards = [await stack.enter_async_context(shard_process(tmp_path, shard, SETTINGS)) for shard in range(SETTINGS.shards)]
        router = Router([Link(socket_path(str(tmp_path), shard), shard, SETTINGS) for shard in range(SETTINGS.shards)])
        for link in router.links:
            nursery.start_soon(link.run)
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        server = Server(make_app(router, SETTINGS), router, SETTINGS)
        await nursery.start(server.serve, listening, 1.0)
        port = listening.getsockname()[1]
        client = await stack.enter_async_context(httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_SECONDS))
        site = Site(router, shards, client, port)
        await site.wait_connected()
        yield site
        nursery.cancel_scope.cancel()


async def test_a_job_lives_its_life(site: Site) -> None:
    """Enqueued, delivered, kept alive, completed."""
    payload = '{"a":1.00,"a":[ 2 ],"u":"\\u00fc"}'
    body = f'{{"id":"j","queue":"q","timeout":30,"payload":{payload},"max_retries":-1}}'

    enqueued = await site.client.post("/enqueue", content=body)
    again = await site.client.post("/v1/enqueue", content=body)
    delivered = await site.client.get("/next?queue=q")
    run = {"queue": "q", "job_id": "j", "run_id": delivered.json()["run_id"]}
    beaten = await site.client.patch("/heartbeat", params=run, content="[1.0]")
    other_run = await site.client.patch("/heartbeat", params={**run, "run_id": "0" * 8 + "-0000-0000-0000-" + "0" * 12})
    completed = await site.client.delete("/v1/complete", params=run)
    gone = await site.client.delete("/complete", params=run)

    assert [enqueued.status_code, again.status_code, delivered.status_code, beaten.status_code] == [202, 409, 200, 202]
    assert [other_run.status_code, completed.status_code, gone.status_code] == [404, 200, 404]
    assert f'"payload":{payload},' in delivered.text
    assert (delivered.json()["attempt"], again.json()["job_id"], gone.json()["queue"]) == (1, "j", "q")


async def test_jobs_come_in_order(site: Site) -> None:
    """Each queue in its own."""
    for number in range(5):
        assert (await site.enqueue(str(number))).status_code == 202

    some = await site.client.get("/next?queue=q&num_jobs=3")
    rest = await site.client.get("/next?queue=q&num_jobs=100")
    none = await site.client.get("/next?queue=q&num_jobs=100")

    assert [job["id"] for job in some.json() + rest.json()] == ["0", "1", "2", "3", "4"]
    assert none.status_code == 204


async def test_a_waiting_next_is_woken_by_an_enqueue(site: Site) -> None:
    """And gets the job itself."""
    answers: list[httpx.Response] = []

    async def poll() -> None:
        answers.append(await site.client.get("/next?queue=q&wait=30"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(poll)
        await wait_polls(site, 1)
        await site.enqueue("j")

    assert answers[0].json()["id"] == "j"


async def test_a_job_is_not_lost_to_a_client_that_left(site: Site) -> None:
    """Its poll is forgotten, and the next client gets the first attempt."""
    stream = await trio.open_tcp_stream("127.0.0.1", site.port)
    await stream.send_all(b"GET /next?queue=q&wait=30 HTTP/1.1\r\nhost: localhost\r\n\r\n")
    await wait_polls(site, 1)
    await stream.aclose()
    await wait_polls(site, 0)
    await site.router.wait_settled()

    await site.enqueue("j")
    job = (await site.client.get("/next?queue=q")).json()

    assert (job["id"], job["attempt"]) == ("j", 1)


async def test_a_dead_letter_can_be_seen(site: Site) -> None:
    """A job whose one delivery timed out."""
    await site.enqueue("j", timeout=0, payload={"a": 1})
    assert (await site.client.get("/next?queue=q")).json()["id"] == "j"

    with trio.fail_after(PATIENCE_SECONDS):
        while not (page := (await site.client.get("/dead?queue=q")).json())["jobs"]:
            await trio.sleep(0.01)

    assert (page["jobs"][0]["id"], page["jobs"][0]["payload"], page["jobs"][0]["reason"]) == ("j", {"a": 1}, "timeout")
    assert (await site.client.get(f"/dead?queue=q&after={page['next']}")).json() == {"jobs": [], "next": None}


async def test_a_refusal_names_its_field(site: Site) -> None:
    """In the words of the API: a server without a store keeps nothing."""
    refused = await site.enqueue("j", persist_data=True)

    assert (refused.status_code, refused.json()["field"]) == (422, "persist_data")


async def test_a_shard_that_is_killed_is_away_until_it_is_back(site: Site, tmp_path: Path) -> None:
    """Its queues get 429 or 503 at once, the others go on, and health stays 200."""
    shard = site.router.link_of("q").shard
    other = next(name for name in map(str, range(100)) if site.router.link_of(name).shard != shard)
    site.shards[shard].kill()
    await site.shards[shard].wait()

    first = await site.enqueue("j")
    elsewhere = await site.client.post("/enqueue", json={"id": "j", "queue": other, "timeout": 1})
    health = await site.client.get("/health")

    assert first.status_code in (429, 503)
    assert int(first.headers["retry-after"]) >= 1
    assert (elsewhere.status_code, health.status_code) == (202, 200)
    with trio.fail_after(PATIENCE_SECONDS):
        while (ready := await site.client.get("/ready")).status_code == 200:
            await trio.sleep(0.01)
    assert json.loads(ready.content)["shards_away"] == [shard]
    async with shard_process(tmp_path, shard, SETTINGS):
        await site.wait_connected()
        assert (await site.enqueue("j")).status_code == 202
        assert (await site.client.get("/ready")).status_code == 200


async def wait_polls(site: Site, polls: int) -> None:
    """Wait until the front has so many polls under way."""
    with trio.fail_after(PATIENCE_SECONDS):
        while sum(link.polls for link in site.router.statistics()) != polls:
            await trio.sleep(0.01)
