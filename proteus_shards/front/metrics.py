"""`GET /metrics`: one page for all processes of a server, in the text format of Prometheus.

Whichever front is asked puts the page together. It asks each shard for its measures, reads what the other fronts and the supervisor have last
written to their files (a second ago at most), and writes its own file before it answers: see `tally`. A shard that is away is shown as its
file has it, with `proteus_shard_up` 0. So any front's page has the same counters, and none of them ever goes back.

In a cluster the page is that of one host: its processes, and the shards that it runs now. Each host is scraped by itself.

**Cardinality is bounded.** The `metrics_queues_max` deepest queues have series of their own, all others are summed under the empty name, which no queue
has. Among queues of equal depth those of the last page stay, so with no more queues than that, none comes and goes; a queue that
is empty stays on the page with zeros as long as there is room.

Measured with 10,000 queues on one shard: a scrape takes 9 ms of the shard's CPU, in parts of a third of a millisecond, and 5 ms of the front's, most of it
in prometheus_client, in one go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from heapq import nlargest
from itertools import accumulate

import trio
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from quart import Response
from quart_trio import QuartTrio

from proteus_shards import __version__
from proteus_shards.config import Settings
from proteus_shards.core.commands import Measure, Measures, QueueMeasure, Sample
from proteus_shards.core.measures import STATES
from proteus_shards.core.model import SECOND_US
from proteus_shards.front.answers import Answer
from proteus_shards.front.counts import limit_samples, problem_samples
from proteus_shards.front.link import Link
from proteus_shards.front.relay_metrics import RelayCounts, queues_named, relay_page
from proteus_shards.front.responses import response_of
from proteus_shards.front.router import Router
from proteus_shards.tally import (
    CRASH_LOOP_MIN,
    METRICS,
    RELAY_METRICS,
    TICK_SECONDS,
    WRITE_TICKS,
    Tally,
    files_of,
    plus,
    read_tally,
    take_file,
    tally_path,
)

MEASURE_SECONDS_MAX = 3.0  # for the measures of a shard; then its file must do
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_OTHERS = ""  # the name under which all other queues are summed
_NO_JOBS = dict.fromkeys(STATES, 0.0)


class Page:
    """The page of metrics of one front. `run_dir` is where the processes of the server keep their counters; without one there is only this process."""

    def __init__(self, router: Router, settings: Settings, run_dir: str | None = None, front: int = 0) -> None:
        self.more: list[Callable[[], Iterable[Sample]]] = []  # what else this front has to tell
        self._router = router
        self._settings = settings
        self._run_dir = run_dir
        self._front = front
        self._file = take_file(run_dir, f"front-{front}") if run_dir is not None else None
        self._tally = Tally(run_dir, f"front-{front}", self._file)
        self._queues: dict[int, list[QueueMeasure]] = {}  # by shard, as it last said
        self._shown: dict[str, None] = {}
        if settings.metrics_relay:
            counts = RelayCounts(settings.metrics_queues_max, queues_named(self._tally.before()))
            router.watches += (counts,)
            self.more.append(counts.samples)

    def crash_loops(self) -> dict[str, int]:
        """Return the processes that end soon after each start, and how often in a row each has."""
        crashes = [(labels[0], value) for name, labels, value in self._read("supervisor") if name == "proteus_process_crashes"]
        return {process: int(value) for process, value in crashes if not isinstance(value, list) and value >= CRASH_LOOP_MIN}

    async def text(self) -> bytes:
        """Put the page together."""
        samples = await self.samples()
        samples += self._queue_samples(samples)
        page = generate_latest(_registry_of(samples))
        return page + relay_page(samples) if self._settings.metrics_relay else page

    async def samples(self) -> list[Sample]:
        """Return the samples of all processes, but for those of queues. Several of one name and the same labels are to be summed."""
        samples: list[Sample] = [("proteus_build_info", [__version__], 1)]
        measures: dict[int, Measures] = {}

        async def ask(link: Link) -> None:
            outcome = await link.call(Measure(), MEASURE_SECONDS_MAX)
            if isinstance(outcome, Measures):
                measures[link.shard] = outcome
                self._queues[link.shard] = outcome.queues

        links = self._router.links_here()
        async with trio.open_nursery() as nursery:
            for link in links:
                nursery.start_soon(ask, link)
        for link in links:
            found = measures.get(link.shard)
            samples += found.samples if found is not None else self._read(f"shard-{link.shard}")
            samples.append(("proteus_shard_up", [str(link.shard)], found is not None))
        return samples + self._others()

    def samples_kept(self) -> list[Sample]:
        """Return what the files say, of a second ago at most, without asking any shard: what only a look at its queues tells is of the last look."""
        return [sample for link in self._router.links_here() for sample in self._read(f"shard-{link.shard}")] + self._others()

    def deepest(self, queues_max: int) -> list[QueueMeasure]:
        """Return the deepest queues of all shards, as they were last measured. Those that were shown before win among equals."""
        return nlargest(
            queues_max,
            (queue for link in self._router.links_here() for queue in self._queues.get(link.shard, ())),
            key=lambda queue: (queue.scheduled + queue.ready + queue.in_flight, queue.queue in self._shown),
        )

    def _others(self) -> list[Sample]:
        """Return the samples of all that is no shard."""
        samples = self.keep()
        for front in range(self._settings.fronts):
            for file in files_of(f"front-{front}"):
                if file != self._file:
                    samples += self._read(file)
        if self._router.cluster is not None:
            samples += self._router.cluster.samples() + self._read("node")
        return samples + self._read("supervisor")

    def keep(self) -> list[Sample]:
        """Return what this front has to tell, once it is in its file."""
        samples = self._router.counts.samples() + problem_samples() + limit_samples() + self._link_samples() + self._held_samples()
        for tell in self.more:
            samples += tell()
        return self._tally.keep(samples, leaving=self._router.draining)

    async def keep_forever(self) -> None:
        """Look how late the event loop is, and see that what is counted outlives this process."""
        while True:
            self.keep()
            for _ in range(WRITE_TICKS):
                due = trio.current_time() + TICK_SECONDS
                await trio.sleep_until(due)
                self._tally.note_lag(trio.current_time() - due)

    def _read(self, process: str) -> list[Sample]:
        return read_tally(tally_path(self._run_dir, process)) if self._run_dir is not None else []

    def _link_samples(self) -> list[Sample]:
        samples: list[Sample] = []
        front = str(self._front)
        if self._router.cluster is not None:
            samples += self._router.cluster.forwards()
        for link in (link.statistics() for link in self._router.links_here()):
            shard = str(link.shard)
            samples += [
                ("proteus_link_up", [front, shard], link.connected),
                ("proteus_link_requests", [front, shard], link.in_flight),
                ("proteus_link_queued_bytes", [front, shard], link.queued_bytes),
                ("proteus_link_connects_total", [shard], link.connects),
                ("proteus_link_refused_total", [shard], link.refused),
                ("proteus_link_timeouts_total", [shard], link.timeouts),
                ("proteus_deliveries_returned_total", [shard], link.undelivered),
            ]
        return samples

    def _held_samples(self) -> list[Sample]:
        front = str(self._front)
        return [
            ("proteus_held_bytes", [front, "requests"], self._router.bodies.held),
            ("proteus_held_bytes", [front, "answers"], self._router.answers.held),
            ("proteus_requests_at_work", [front], self._router.admission.held),
        ]

    def _queue_samples(self, samples: Iterable[Sample]) -> list[Sample]:
        """Choose among the deepest queues of all shards, and sum the others up from the totals."""
        others = dict(_NO_JOBS)
        for name, labels, value in samples:
            if name == "proteus_jobs" and not isinstance(value, list):
                others[labels[1]] += value
        deepest = self.deepest(self._settings.metrics_queues_max)
        self._shown = dict.fromkeys(queue.queue for queue in deepest)
        found: list[Sample] = []
        for queue in deepest:
            jobs = {"scheduled": queue.scheduled, "waiting": queue.ready, "in_flight": queue.in_flight, "dead": queue.dead}
            for state, count in jobs.items():
                found.append(("proteus_queue_jobs", [queue.queue, state], count))
                others[state] -= count
            found.append(("proteus_queue_oldest_waiting_seconds", [queue.queue], queue.waited_us / SECOND_US))
            found.append(("proteus_queue_blocked_jobs", [queue.queue], queue.blocked))
            found.append(("proteus_queue_paused", [queue.queue], queue.paused))
        # Queues are looked at one after another while jobs move: a sum may be off by those, and must not be below zero.
        found += [("proteus_queue_jobs", [_OTHERS, state], max(0.0, count)) for state, count in others.items()]
        return found


def add_metrics_route(app: QuartTrio, page: Page) -> None:
    """Add `GET /metrics`."""

    async def view() -> Response:
        """Show the metrics of the whole server."""
        return response_of(Answer(200, (("content-type", CONTENT_TYPE),), await page.text()))

    app.add_url_rule("/metrics", "GET /metrics", view, methods=["GET"], provide_automatic_options=False)
    for rule in app.url_map.iter_rules("GET /metrics"):
        if rule.methods is not None:
            rule.methods.discard("HEAD")


class _Samples(Collector):
    """Samples as prometheus_client takes them. Those of one metric and one set of labels, from several processes, are summed."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self._by_name: dict[str, dict[tuple[str, ...], float | list[float]]] = {name: {} for name in METRICS}
        for name, labels, value in samples:
            if name in RELAY_METRICS:
                continue
            rows = self._by_name[name]
            key = tuple(labels)
            rows[key] = plus(value, rows[key]) if key in rows else value

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily]:
        for name, metric in METRICS.items():
            rows = self._by_name[name]
            if metric.kind == "histogram":
                histogram = HistogramMetricFamily(name, metric.help, labels=metric.labels)
                for labels, value in rows.items():
                    assert isinstance(value, list)
                    counts = accumulate(value[:-1])
                    bounds = [*(f"{bound:g}" for bound in metric.bounds), "+Inf"]
                    histogram.add_metric(labels, list(zip(bounds, counts, strict=True)), value[-1])
                yield histogram
            else:
                family = (CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily)(name, metric.help, labels=metric.labels)
                for labels, value in rows.items():
                    assert not isinstance(value, list)
                    family.add_metric(labels, value)
                yield family


def _registry_of(samples: Iterable[Sample]) -> CollectorRegistry:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Samples(samples))
    return registry
