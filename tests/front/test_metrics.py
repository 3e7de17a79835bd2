"""The page of metrics of one front, with fake shards behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from proteus_shards.config import Settings
from proteus_shards.core.commands import Command, Measure, Measures, Outcome, QueueMeasure, Reason, Refused, Sample
from proteus_shards.front.answers import Problem
from proteus_shards.front.counts import problem_samples
from proteus_shards.front.metrics import Page
from proteus_shards.tally import METRICS, Tally
from tests.front.fake_shard import linked, obliging
from tests.front.sites import JOB, serving, with_tls

SETTINGS = Settings(shards=2, fronts=2, metrics_queues_max=3)
HOSTILE = ['"', "\\", "\\n", '"} 1\\', "{a='b'}", "# HELP", "\u2028", "\N{GRINNING FACE}" * 1024, " ", "le", ","]


def values_of(page: bytes) -> dict[tuple[str, ...], float]:
    """Return the samples of a page by name and labels (names and values, sorted)."""
    found: dict[tuple[str, ...], float] = {}
    for family in text_string_to_metric_families(page.decode()):
        for sample in family.samples:
            key = (sample.name, *(text for pair in sorted(sample.labels.items()) for text in pair))
            assert key not in found, f"{key} is there twice"
            found[key] = sample.value
    return found


def queues_of(page: bytes) -> dict[str, float]:
    """Return the waiting jobs of the queues on a page."""
    return {key[2]: value for key, value in values_of(page).items() if key[0] == "proteus_queue_jobs" and key[4] == "waiting"}


class Shards:
    """What the fake shards say of themselves."""

    def __init__(self) -> None:
        self.queues: dict[int, dict[str, int]] = {0: {}, 1: {}}
        self.silent = False
        self._asked = 0

    def answer(self, command: Command) -> Outcome | None:
        """Answer for the shard whose turn it is."""
        if not isinstance(command, Measure):
            return obliging(command)
        if self.silent:
            return Refused(Reason.BUSY, "not now")
        shard = self._asked % 2
        self._asked += 1
        queues = self.queues[shard]
        samples: list[Sample] = [("proteus_jobs", [str(shard), "waiting"], sum(queues.values()))]
        return Measures(samples, [QueueMeasure(name, 0, jobs, 0, 0, 1_500_000) for name, jobs in queues.items()])


async def test_the_deepest_queues_of_all_shards_are_shown_and_the_others_summed(tmp_path: Path) -> None:
    """Under the empty name, which no queue has."""
    shards = Shards()
    shards.queues = {0: {"a": 5, "b": 1, "c": 9}, 1: {"d": 7, "e": 2}}
    async with linked(tmp_path, SETTINGS, shards.answer) as (router, _):
        page = await Page(router, SETTINGS, str(tmp_path)).text()

    assert queues_of(page) == {"c": 9, "d": 7, "a": 5, "": 3}
    assert values_of(page)["proteus_queue_oldest_waiting_seconds", "queue", "d"] == 1.5


async def test_a_queue_that_is_shown_stays_among_equals(tmp_path: Path) -> None:
    """Whatever order the shards name them in."""
    shards = Shards()
    shards.queues = {0: {"a": 1, "b": 1}, 1: {"c": 2}}
    async with linked(tmp_path, SETTINGS, shards.answer) as (router, _):
        page = Page(router, SETTINGS, str(tmp_path))
        await page.text()
        shards.queues = {0: {"x": 0, "y": 0, "a": 0}, 1: {"z": 0, "c": 0, "b": 0}}

        assert queues_of(await page.text()) == {"a": 0, "b": 0, "c": 0, "": 0}


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
async def test_a_name_comes_out_as_it_went_in(name: str, tmp_path: Path) -> None:
    """Quotes, backslashes and what looks like another sample stay inside the label."""
    shards = Shards()
    shards.queues = {0: {name: 3}, 1: {}}
    async with linked(tmp_path, SETTINGS, shards.answer) as (router, _):
        page = await Page(router, SETTINGS, str(tmp_path)).text()

    assert queues_of(page) == {name: 3, "": 0}
    assert {line.split("{")[0].split(" ")[0] for line in page.decode().split("\n") if line and not line.startswith("#")} <= {
        name + suffix for name in METRICS for suffix in ("", "_bucket", "_count", "_sum")
    }


async def test_a_shard_that_does_not_answer_is_shown_as_its_file_has_it(tmp_path: Path) -> None:
    """With its queues as it last named them, and 0 for up; so nothing vanishes."""
    shards = Shards()
    shards.queues = {0: {"a": 1}, 1: {"b": 2}}
    for shard in ("0", "1"):
        Tally(str(tmp_path), f"shard-{shard}").keep(
            [("proteus_jobs_enqueued_total", [shard], 10), ("proteus_jobs", [shard, "waiting"], float(int(shard) + 1))]
        )
    async with linked(tmp_path, SETTINGS, shards.answer) as (router, _):
        page = Page(router, SETTINGS, str(tmp_path))
        before = values_of(await page.text())
        shards.silent = True
        after = values_of(await page.text())

    assert [before["proteus_shard_up", "shard", "0"], after["proteus_shard_up", "shard", "0"]] == [1, 0]
    assert after["proteus_jobs_enqueued_total", "shard", "1"] == 10
    assert after["proteus_queue_jobs", "queue", "b", "state", "waiting"] == 2
    assert not before.keys() - after.keys()


async def test_fronts_are_summed_up(tmp_path: Path) -> None:
    """The one that is asked knows what it counted; of the others it reads the files."""
    async with linked(tmp_path, SETTINGS, Shards().answer) as (router, _):
        other = Page(router, SETTINGS, str(tmp_path), 1)
        router.counts.of("lane", "/enqueue")[202] = 5
        other.keep()
        router.counts.of("lane", "/enqueue")[202] = 7
        router.counts.of("lane", "/enqueue")[409] = 1
        found = values_of(await Page(router, SETTINGS, str(tmp_path), 0).text())

    def requests(status: str) -> float:
        return found["proteus_http_requests_total", "route", "/enqueue", "status", status, "way", "lane"]

    assert (requests("2xx"), requests("4xx"), requests("5xx")) == (12, 1, 0)
    assert found["proteus_link_up", "front", "1", "shard", "0"] == 1


def problems() -> dict[tuple[str, str], Any]:
    """Return the problems counted in this process, by status and limit."""
    return {(labels[0], labels[1]): value for _, labels, value in problem_samples()}


def test_a_problem_is_counted_with_the_limit_that_it_names() -> None:
    """A name that is no setting is none, so that nobody makes up labels."""
    before = problems()
    Problem(status=429, detail="the queue holds 5 jobs, its limit (queue_jobs_max)").answer()
    Problem(status=429, detail="the shard holds 5 bytes, its limit is 5 (shard_bytes_max)").answer()
    Problem(status=422, detail="queue: (made_up_max)").answer()
    Problem(status=503, detail="the link to shard 0 was lost").answer()
    after = problems()

    assert {key: after[key] - before.get(key, 0) for key in after if after[key] != before.get(key, 0)} == {
        ("429", "queue_jobs_max"): 1,
        ("429", "shard_bytes_max"): 1,
        ("422", ""): 1,
        ("503", ""): 1,
    }


@pytest.mark.parametrize("way", ["lane", "quart", "tls"])
async def test_each_way_in_counts_what_it_answers(way: str, tmp_path: Path) -> None:
    """By route without its version, and by class of status; what is no route is "other"."""
    settings = Settings(shards=1, fast_lane=way != "quart")
    async with serving(tmp_path, with_tls(settings, tmp_path) if way == "tls" else settings) as site:
        client = await site.client()
        assert (await client.ask("POST", "/enqueue", JOB)).status == 202
        assert (await client.ask("POST", "/v1/enqueue", JOB)).status == 202
        assert (await client.ask("POST", "/enqueue", b"{")).status == 422
        assert (await client.ask("GET", "/next?queue=q")).status == 204
        for target in ("/nowhere", "/nowhere/else", "//"):
            client = await site.client()
            assert (await client.ask("GET", target)).status == 404
        reply = await (await site.client()).ask("GET", "/metrics")
        head = await (await site.client()).ask("HEAD", "/metrics")
    found = values_of(reply.body)

    def requests(route: str, status: str, way: str) -> float:
        return found["proteus_http_requests_total", "route", route, "status", status, "way", way]

    used = "lane" if way == "lane" else "quart"
    assert (reply.status, reply.headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert head.status == 405
    assert (requests("/enqueue", "2xx", used), requests("/enqueue", "4xx", used), requests("/next", "2xx", used)) == (2, 1, 1)
    assert requests("other", "4xx", "quart") == 3


async def test_the_series_are_there_before_anything_happens(tmp_path: Path) -> None:
    """And the same ones after."""
    async with serving(tmp_path) as site:
        client = await site.client()
        before = values_of((await client.ask("GET", "/metrics")).body)
        other = await site.client()
        await other.ask("POST", "/enqueue", JOB)
        await other.ask("GET", "/next?queue=q&wait=bad")
        after = values_of((await client.ask("GET", "/metrics")).body)

    assert after.keys() == before.keys()


async def test_what_cannot_be_read_is_counted_too(tmp_path: Path) -> None:
    """By the lane, as no route."""
    async with serving(tmp_path) as site:
        client = await site.client()
        await client.send(b"GET / HTTP/1.1\r\nhost: localhost\r\n" + b"a: b\r\n" * 200 + b"\r\n")
        assert (await client.receive()).status == 431
        found = values_of((await (await site.client()).ask("GET", "/metrics")).body)

    assert found["proteus_http_requests_total", "route", "other", "status", "4xx", "way", "lane"] == 1


async def test_a_page_that_is_asked_for_by_many_at_once_is_one_for_each(tmp_path: Path) -> None:
    """Nothing of one scrape waits for another."""
    async with linked(tmp_path, msgspec.structs.replace(SETTINGS, fronts=1), Shards().answer) as (router, _):
        page = Page(router, SETTINGS, str(tmp_path))
        pages: list[bytes] = []

        async def scrape() -> None:
            pages.append(await page.text())

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(scrape)

    assert [values_of(text)["proteus_shard_up", "shard", "0"] for text in pages] == [1] * 5
