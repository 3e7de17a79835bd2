"""The dashboard over HTTP: what is served, under which headers, to whom, and to how many."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

import proteus_shards
from proteus_shards.config import Settings
from proteus_shards.core.commands import Command, Measure, Measures, Outcome, QueueMeasure
from proteus_shards.front.app import make_app
from proteus_shards.front.dashboard import ACCESS_PATH, EVENTS_PATH, FILES_PATH, GUARDS, POLICY, TYPES, read_files
from proteus_shards.front.metrics import Page
from proteus_shards.front.origins import foreign
from proteus_shards.front.server import Server
from proteus_shards.front.viewers import Viewers
from proteus_shards.front.vitals import Reading, point_of, quantile
from tests.front.fake_shard import PATIENCE_SECONDS, linked, obliging
from tests.front.sites import Client, ClientStream, Reply

FOLDER = Path(proteus_shards.__file__).parent / "dashboard"
SETTINGS = Settings(shards=1, dashboard_viewers_max=2)


class Site:
    """A front with a dashboard, and what its shard was asked."""

    def __init__(self, viewers: Viewers, port: int) -> None:
        self.viewers = viewers
        self.port = port
        self.clients: list[Client] = []

    async def client(self) -> Client:
        """Connect."""
        client = Client(ClientStream(await trio.open_tcp_stream("127.0.0.1", self.port), None))
        self.clients.append(client)
        return client

    async def ask(self, method: str, target: str, *headers: str) -> Reply:
        """Ask on a connection of its own."""
        return await (await self.client()).ask(method, target, b"", *headers)


@asynccontextmanager
async def serving(tmp_path: Path, settings: Settings = SETTINGS) -> AsyncIterator[tuple[Site, list[Command]]]:
    """Serve a dashboard; at the end, drain."""
    asked: list[Command] = []

    def answer(command: Command) -> Outcome | None:
        asked.append(command)
        if isinstance(command, Measure):
            return Measures([("proteus_jobs", ["0", "waiting"], 1)], [QueueMeasure("<q>\n", 0, 1, 0, 0, 1_500_000, 1, True)])
        return obliging(command)

    async with linked(tmp_path, settings, answer) as (router, _), trio.open_nursery() as surveys:
        viewers = Viewers(router, settings, page := Page(router, settings))
        surveys.start_soon(viewers.run)
        async with trio.open_nursery() as nursery:
            listener = socket.create_server(("127.0.0.1", 0))
            server = Server(make_app(router, settings, page, viewers), router, settings)
            await nursery.start(server.serve, listener, settings.drain_seconds_max)
            site = Site(viewers, listener.getsockname()[1])
            try:
                yield site, asked
            finally:
                for client in site.clients:
                    client.stream.socket.close()
                viewers.drain()
                server.drain()
        surveys.cancel_scope.cancel()
    listener.close()


async def until(condition: Any) -> None:
    """Wait until a condition of this process holds."""
    with trio.fail_after(PATIENCE_SECONDS):
        while not condition():
            await trio.sleep(0.01)


async def read_until(client: Client, wanted: bytes) -> bytes:
    """Read a stream until some bytes have come."""
    found = b""
    with trio.fail_after(PATIENCE_SECONDS):
        while wanted not in found:
            data = await client.stream.receive_some(65536)
            assert data, f"the stream has ended: {found!r}"
            found += data
    return found


async def look(site: Site) -> Client:
    """Begin to look."""
    client = await site.client()
    await client.send(f"GET {EVENTS_PATH} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
    return client


async def test_the_page_is_at_the_root_under_a_strict_policy(tmp_path: Path) -> None:
    """Whatever stands in its query; and there are no others."""
    async with serving(tmp_path) as (site, _):
        plain = await site.ask("GET", "/")
        named = await site.ask("GET", "/?view=job&queue=%3Cscript%3Ealert(1)%3C/script%3E", "accept: application/json")
        head = await site.ask("HEAD", "/")
        wrong = [
            (await site.ask(method, path)).status
            for method, path in (
                ("POST", "/"),
                ("GET", "/dashboard"),
                ("GET", f"{FILES_PATH}/../page.html"),
                ("GET", f"{FILES_PATH}/%2e%2e/page.html"),
            )
        ]

    assert (plain.status, plain.headers["content-type"], plain.body) == (200, "text/html; charset=utf-8", named.body)
    assert dict(GUARDS).items() <= plain.headers.items()
    assert (head.status, head.body) == (200, b"")
    assert wrong == [405, 404, 404, 404]


def test_the_policy_allows_nothing_inline_and_nobody_else() -> None:
    """No source of it is another host, and none is a wish for trouble."""
    assert "unsafe" not in POLICY
    assert "http" not in POLICY
    assert {"default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "base-uri 'none'"} <= set(POLICY.split("; "))


def test_the_files_need_nothing_from_elsewhere() -> None:
    """No address of another host, no markup made of strings, no style or script inside the page; and what one imports is there."""
    for path in FOLDER.rglob("*.*"):
        text = path.read_text(encoding="utf-8")
        outside = re.findall(r"https?://[\w.]+", text)
        assert set(outside) <= {"http://www.w3.org"}, f"{path.name}: {outside}"
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMParser", text), path.name
        for name in re.findall(r'from "\./([\w.]+)"', text):
            assert (path.parent / name).is_file(), f"{path.name} imports {name}"
    page = (FOLDER / "page.html").read_text(encoding="utf-8")
    assert not re.search(r"<style|style=|\son\w+=|<script(?![^>]*src=)", page)
    assert {path.suffix for path in (FOLDER / "static").iterdir()} <= TYPES.keys()


async def test_files_are_sent_once_and_then_only_if_they_changed(tmp_path: Path) -> None:
    """Packed where the browser can unpack; each under the guards of the page."""
    async with serving(tmp_path) as (site, _):
        for name in read_files():
            path = f"{FILES_PATH}/{name}" if name else "/"
            first = await site.ask("GET", path)
            packed = await site.ask("GET", path, "accept-encoding: gzip")
            again = await site.ask("GET", path, f"if-none-match: {first.headers['etag']}")

            assert (first.status, packed.status, again.status) == (200, 200, 304)
            assert dict(GUARDS).items() <= first.headers.items()
            assert packed.headers["content-encoding"] == "gzip"
            assert again.body == b""


async def test_a_viewer_is_told_of_the_past_and_then_of_each_moment(tmp_path: Path) -> None:
    """In one line of JSON each, whatever a queue is called."""
    async with serving(tmp_path) as (site, _):
        client = await look(site)
        found = await read_until(client, b"event: frame")
        found += await read_until(client, b"\n\n")
        frame = re.search(rb"event: frame\ndata: (.*)\n\n", found)

    assert b"content-type: text/event-stream" in found
    assert found.index(b"event: past") < found.index(b"event: frame")
    assert frame is not None
    shown = json.loads(frame[1])
    assert shown["deepest"] == [["<q>\n", 0, 1, 0, 0, 1_500_000, 1, True]]
    assert [shard["shard"] for shard in shown["shards"]] == [0]


async def test_all_viewers_share_one_survey_and_without_them_there_is_none(tmp_path: Path) -> None:
    """A shard is asked about once a second, however many look."""
    async with serving(tmp_path) as (site, asked):
        assert not [command for command in asked if isinstance(command, Measure)]
        clients = [await look(site), await look(site)]
        for client in clients:
            await read_until(client, b"event: frame")
        surveys = sum(isinstance(command, Measure) for command in asked)
        assert surveys <= 2
        for client in clients:
            client.stream.socket.close()
        await until(lambda: site.viewers.looking == 0)


async def test_more_viewers_than_allowed_are_refused(tmp_path: Path) -> None:
    """Until one goes."""
    async with serving(tmp_path) as (site, _):
        clients = [await look(site), await look(site)]
        for client in clients:
            await read_until(client, b"event: past")
        refused = await site.ask("GET", EVENTS_PATH)
        clients[0].stream.socket.close()
        await until(lambda: site.viewers.looking == 1)
        await read_until(await look(site), b"event: past")

    assert (refused.status, json.loads(refused.body)["detail"]) == (429, "2 pages look already (dashboard_viewers_max)")


async def test_a_drain_ends_the_streams(tmp_path: Path) -> None:
    """Whole, so that nothing waits for them."""
    async with serving(tmp_path) as (site, _):
        client = await look(site)
        await read_until(client, b"event: past")
        site.viewers.drain()
        await read_until(client, b"0\r\n\r\n")
        refused = await site.ask("GET", EVENTS_PATH)

    assert refused.status == 503


async def test_without_tokens_everything_is_allowed(tmp_path: Path) -> None:
    """And the page is told so."""
    async with serving(tmp_path) as (site, _):
        shown = await site.ask("GET", ACCESS_PATH)

    assert json.loads(shown.body) == {"scopes": ["produce", "consume", "read", "admin"], "every_queue": True}


async def test_a_server_may_have_no_dashboard(tmp_path: Path) -> None:
    """Then nothing is at its path."""
    async with linked(tmp_path, SETTINGS, obliging) as (router, _):
        app = make_app(router, msgspec.structs.replace(SETTINGS, dashboard=False))
        assert not [rule for rule in app.url_map.iter_rules() if rule.rule == "/" or rule.rule.startswith("/dashboard")]


PAGES = {
    "no browser": (("GET", "/next"), {}, True),
    "its own page": (("POST", "/pause"), {"sec-fetch-site": "same-origin", "origin": "http://here:8080"}, True),
    "its own page, behind a proxy": (("POST", "/pause"), {"sec-fetch-site": "same-origin", "origin": "https://jobs.example"}, True),
    "typed by hand": (("GET", "/"), {"sec-fetch-site": "none"}, True),
    "a link to the page": (("GET", "/"), {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, True),
    "a link to a job": (("GET", "/next"), {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, False),
    "an image": (("GET", "/metrics"), {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, False),
    "a form": (
        ("POST", "/enqueue"),
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "origin": "http://evil.example"},
        False,
    ),
    "another port of this host": (("POST", "/enqueue"), {"sec-fetch-site": "same-site"}, False),
    "an old browser, its own page": (("POST", "/enqueue"), {"origin": "http://here:8080"}, True),
    "an old browser, another port": (("POST", "/enqueue"), {"origin": "http://here:8081"}, False),
    "an old browser, a file": (("POST", "/enqueue"), {"origin": "null"}, False),
}


@pytest.mark.parametrize("case", PAGES, ids=str)
def test_pages_of_other_sites_are_refused(case: str) -> None:
    """Links to what is only read may be followed."""
    (method, path), headers, allowed = PAGES[case]
    fields = [(name.encode(), value.encode()) for name, value in {"host": "here:8080", **headers}.items()]

    assert (foreign(method, path, fields) is None) == allowed


@pytest.mark.parametrize("prefix", ["", "/v1"])
async def test_no_page_of_another_site_takes_a_job(prefix: str, tmp_path: Path) -> None:
    """Not on the fast lane either."""
    async with serving(tmp_path) as (site, asked):
        refused = await site.ask("GET", f"{prefix}/next?queue=q", "sec-fetch-site: cross-site")
        taken = await site.ask("GET", f"{prefix}/next?queue=q", "sec-fetch-site: same-origin")

    assert (refused.status, taken.status) == (403, 204)
    assert sum(type(command).__name__ == "Next" for command in asked) == 1


def test_rates_are_what_counters_gained() -> None:
    """And nothing is known of what has not happened."""
    before = Reading([("proteus_jobs_enqueued_total", ["0"], 10), ("proteus_jobs_enqueued_total", ["1"], 5)], 100.0)
    now = Reading([("proteus_jobs_enqueued_total", ["0"], 20), ("proteus_jobs_enqueued_total", ["1"], 15)], 102.0)
    point = point_of(before, now)

    assert point is not None
    assert point[:3] == [102_000, 10.0, 0.0]
    assert point[-1] is None
    assert point_of(now, now) is None


def test_a_shard_that_comes_from_another_host_brings_no_rate_along() -> None:
    """What it had counted here before is no gain; nor does one that goes take anything away."""
    name, histogram = "proteus_jobs_enqueued_total", "proteus_commit_seconds"
    before = Reading([(name, ["0"], 10), (name, ["2"], 7000), (histogram, ["0"], [1.0] * 13)], 100.0)
    now = Reading([(name, ["0"], 20), (name, ["1"], 5000), (histogram, ["0"], [1.0] * 13), (histogram, ["1"], [9.0] * 13)], 102.0)
    point = point_of(before, now)

    assert point is not None
    assert point[1] == 5.0
    assert point[-1] is None


def test_a_quantile_is_read_off_between_the_bounds_of_its_bucket() -> None:
    """What is above them all is at the last bound, and of nothing there is none."""
    assert quantile((1.0, 2.0, 4.0), [0, 10, 0, 0], 0.5) == 1.5
    assert quantile((1.0, 2.0, 4.0), [5, 0, 0, 5], 0.99) == 4.0
    assert quantile((1.0, 2.0, 4.0), [0, 0, 0, 0], 0.5) is None
