"""Traces: a span for each step of a job's life, joined by the context that the job carries, told to a collector over the wire."""

from __future__ import annotations

import http.server
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from proteus_shards.config import load_settings
from proteus_shards.core.commands import Complete, Delivered, Done, Enqueue, Next, Options, Outcome, Reason, Refused
from proteus_shards.core.extras import Extras
from proteus_shards.errors import SettingError
from proteus_shards.front.telemetry import Telemetry
from tests.conftest import StartServer, eventually
from tests.front.fake_shard import delivery

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PRODUCER_SPAN = "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE_ID}-{PRODUCER_SPAN}-01"
UNSAMPLED = f"00-{TRACE_ID}-{PRODUCER_SPAN}-00"


class Collector(http.server.ThreadingHTTPServer):
    """Takes what is exported, as a collector does."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[tuple[str, ExportTraceServiceRequest]] = []

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def spans(self) -> list[Span]:
        """Return all spans that have come."""
        return [
            span
            for _, request in list(self.requests)
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.requests.append((self.path, ExportTraceServiceRequest.FromString(body)))
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 its name is the base's
        """Say nothing."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    """Return a collector that listens."""
    collector = Collector()
    thread = threading.Thread(target=collector.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield collector
    collector.shutdown()
    thread.join(20)
    collector.server_close()


class Watched:
    """A watch, and what it has told."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.telemetry = Telemetry("http://127.0.0.1:9", 0, self.exporter)

    def ask(self, command: Enqueue | Next | Complete, outcome: Outcome) -> tuple[object, Outcome]:
        """Let a command pass, and its outcome. Returns both as they came out."""
        (changed,), end = self.telemetry.begin([command])
        return changed, (end([outcome])[0] if end is not None else outcome)

    def told(self) -> list[tuple[str, str, str]]:
        """Return name, trace and parent of each span."""
        self.telemetry._provider.force_flush()
        spans = self.exporter.get_finished_spans()
        found = []
        for span in spans:
            assert span.context is not None
            parent = f"{span.parent.span_id:016x}" if span.parent is not None else ""
            found.append((span.name, f"{span.context.trace_id:032x}", parent))
        return found


def traced(trace: str | None) -> Enqueue:
    """Return a job that comes in."""
    return Enqueue("q", "1", 30, False, 0, b"{}", options=Options(trace=trace, priority=3))


def test_a_job_without_a_trace_is_left_alone() -> None:
    """No span is made, and nothing is changed."""
    watched = Watched()
    plain, delivered, done = Enqueue("q", "1", 30, False, 0, b"{}"), Delivered([delivery()]), Done()

    assert (plain, done) == watched.ask(plain, done)
    assert watched.ask(Next("q", 1, 0), delivered)[1] is delivered
    assert watched.ask(Complete("q", "1", None), done)[1] is done
    assert [] == watched.told()


def test_a_trace_that_is_not_sampled_is_carried_on() -> None:
    """Its context goes from the producer to the runner as it is."""
    watched = Watched()
    job = msgspec.structs.replace(delivery(), extras=Extras(trace=UNSAMPLED))

    assert traced(UNSAMPLED) == watched.ask(traced(UNSAMPLED), Done())[0]
    assert Delivered([job]) == watched.ask(Next("q", 1, 0), Delivered([job]))[1]
    watched.ask(Complete("q", "1", None), Done(UNSAMPLED))
    assert [] == watched.told()


def test_the_spans_of_a_job_hang_together() -> None:
    """The job carries the span of its enqueue, below that of its producer; delivery and completion hang below it, and what the runner gets below the delivery."""
    watched = Watched()
    (changed, _) = watched.ask(traced(TRACEPARENT), Done())
    assert isinstance(changed, Enqueue)
    assert changed.options is not None
    carried = changed.options.trace
    assert carried is not None
    assert (3, TRACE_ID) == (changed.options.priority, carried.split("-")[1])
    job = msgspec.structs.replace(delivery(), extras=Extras(trace=carried))

    _, shown = watched.ask(Next("q", 1, 0), Delivered([job]))
    watched.ask(Complete("q", "1", bytes(16)), Done(carried))

    assert isinstance(shown, Delivered)
    extras = shown.jobs[0].extras
    assert extras is not None
    assert extras.trace is not None
    own = carried.split("-")[2]
    assert extras.trace.split("-")[2] not in {own, PRODUCER_SPAN}
    assert [("enqueue", TRACE_ID, PRODUCER_SPAN), ("deliver", TRACE_ID, own), ("complete", TRACE_ID, own)] == watched.told()


def test_a_refusal_is_an_error_of_its_span() -> None:
    """It ends, and says why."""
    watched = Watched()
    watched.ask(traced(TRACEPARENT), Refused(Reason.FULL, "queue_jobs_max"))

    watched.told()
    (span,) = watched.exporter.get_finished_spans()
    assert "full" == span.status.description
    assert "queue_jobs_max" not in str(span.attributes)


@pytest.mark.parametrize("endpoint", ["127.0.0.1:4318", "ftp://a", "http://user:secret@a:4318", "http://a?b=c", "http://"])
def test_what_is_no_collector_is_refused(endpoint: str) -> None:
    """At the start, and without showing what may be a secret."""
    with pytest.raises(SettingError, match="--otel-endpoint must be http") as told:
        load_settings({"otel_endpoint": endpoint}, {})

    assert "secret" not in str(told.value)


def test_a_collector_is_told_of_a_job_over_all_processes(start_server: StartServer, collector: Collector, tmp_path: Path) -> None:
    """Enqueued by one server and fetched and completed by the next one on the same store: one trace, in real exports."""
    options = ("--store", f"sqlite:///{tmp_path / 'jobs'}", "--otel-endpoint", collector.url)
    first = start_server(*options)
    job = {"id": "1", "queue": "q", "timeout": 30, "persist_data": True, "payload": "secret-payload"}
    assert 202 == first.request("POST", "/enqueue", job, {"traceparent": TRACEPARENT}).status
    assert 202 == first.request("POST", "/enqueue", job | {"id": "2"}).status
    assert 0 == first.stop()
    assert ["enqueue"] == [span.name for span in collector.spans()]  # what was left was told at the end

    second = start_server(*options, "--fronts", "2")
    answer = second.request("GET", "/next?queue=q")
    assert 200 == second.request("DELETE", f"/complete?queue=q&job_id=1&run_id={answer.json()['run_id']}").status
    assert 200 == second.request("GET", "/next?queue=q").status
    assert 0 == second.stop()
    eventually(lambda: len(collector.spans()) == 3)

    spans = {span.name: span for span in collector.spans()}
    assert {"enqueue", "deliver", "complete"} == set(spans)
    assert {TRACE_ID} == {span.trace_id.hex() for span in spans.values()}
    assert PRODUCER_SPAN == spans["enqueue"].parent_span_id.hex()
    assert {spans["enqueue"].span_id} == {spans[name].parent_span_id for name in ("deliver", "complete")}
    given = re.fullmatch(f"00-{TRACE_ID}-([0-9a-f]{{16}})-01", answer.headers["traceparent"])
    assert given is not None
    assert spans["deliver"].span_id.hex() == given[1]
    attributes = {each.key: each.value.string_value for each in spans["complete"].attributes}
    assert ("q", "1") == (attributes["messaging.destination.name"], attributes["messaging.message.id"])
    assert {"/v1/traces"} == {path for path, _ in collector.requests}
    names = {
        each.value.string_value
        for _, request in collector.requests
        for each in request.resource_spans[0].resource.attributes
        if each.key == "service.name"
    }
    assert {"proteus-shards"} == names
    assert not any(b"secret-payload" in request.SerializeToString() for _, request in collector.requests)


def test_a_collector_that_is_away_holds_up_nobody(start_server: StartServer) -> None:
    """Requests are answered, and the server drains in time."""
    server = start_server("--store", "memory:", "--otel-endpoint", "http://127.0.0.1:9")

    assert 202 == server.request("POST", "/enqueue", {"id": "1", "queue": "q", "timeout": 30}, {"traceparent": TRACEPARENT}).status
    assert 0 == server.stop()
