"""What a collector of OpenTelemetry is told: a span for the enqueue, each delivery and the completion of a job that is traced.

A job is traced if its producer said so (`traceparent`, with its flag of sampling); others cost nothing. The trace travels with the job, through the shard and its store,
so it does not matter which front, or which process after a restart, does what comes next:

    producer's span ── enqueue ─┬─ deliver ── the runner's spans
                                └─ complete

A job carries the context of its `enqueue`; the shard says it again when it delivers and when it completes the job. A runner gets the context of its `deliver`.

Spans are told by a thread of the SDK, in batches, by OTLP over HTTP. Where the collector is away or slow they are dropped, and the log says so; no request waits
for it. Everything else (sampling, headers, batches, attributes of the resource) is set by OpenTelemetry's own `OTEL_*` variables.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from functools import partial

import msgspec
import trio
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from proteus_shards import __version__
from proteus_shards.core.commands import Complete, Delivered, Delivery, Done, Enqueue, EnqueueAll, EnqueueOnce, Next, Outcome, Refused
from proteus_shards.front.answers import write_run_id
from proteus_shards.front.operations import QueueCommand
from proteus_shards.front.watching import End

FLUSH_SECONDS_MAX = 5.0  # for what is left when the front ends

_HEADER = "traceparent"

log = logging.getLogger("proteus_shards.front")


class Telemetry:
    """Makes the spans of one front: a watch. An `exporter` takes the place of the collector at `endpoint`."""

    def __init__(self, endpoint: str, front: int, exporter: SpanExporter | None = None) -> None:
        own = Resource({"service.name": "proteus-shards", "service.version": __version__, "service.instance.id": f"front-{front}"})
        self._provider = TracerProvider(resource=own.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter(endpoint.rstrip("/") + "/v1/traces")))
        self._tracer = self._provider.get_tracer("proteus_shards", __version__)
        self._context = TraceContextTextMapPropagator()

    def begin(self, commands: Sequence[QueueCommand]) -> tuple[Sequence[QueueCommand], End | None]:
        """Begin the spans of jobs that come in, and give the jobs their context."""
        spans: dict[int, list[Span]] = {}
        changed: list[QueueCommand] = list(commands)
        ends = False
        for place, command in enumerate(commands):
            match command:
                case Enqueue() if command.options is not None and command.options.trace is not None:
                    changed[place] = self._enqueue(command, spans.setdefault(place, []))
                case EnqueueOnce() | EnqueueAll():
                    own = spans.setdefault(place, [])
                    changed[place] = msgspec.structs.replace(command, jobs=[self._enqueue(job, own) for job in command.jobs])
                case Next() | Complete():
                    ends = True
        return changed, partial(self._end, commands, spans, time.time_ns()) if ends or spans else None

    async def flush(self) -> None:
        """Tell what is left, for a bounded time, and stop. What cannot be told by then is lost."""
        with trio.move_on_after(FLUSH_SECONDS_MAX):
            await trio.to_thread.run_sync(self._provider.shutdown, abandon_on_cancel=True)

    def _end(
        self, commands: Sequence[QueueCommand], spans: dict[int, list[Span]], began_ns: int, outcomes: Sequence[Outcome]
    ) -> list[Outcome]:
        shown = list(outcomes)
        for place, (command, outcome) in enumerate(zip(commands, outcomes, strict=True)):
            for span in spans.get(place, ()):
                if isinstance(outcome, Refused):
                    span.set_status(Status(StatusCode.ERROR, outcome.reason.name.lower()))
                span.end()
            if isinstance(outcome, Delivered) and any(job.extras is not None and job.extras.trace is not None for job in outcome.jobs):
                shown[place] = Delivered([self._deliver(job) for job in outcome.jobs])
            elif isinstance(command, Complete) and isinstance(outcome, Done) and outcome.trace is not None:
                self._complete(command, outcome.trace, began_ns)
        return shown

    def _enqueue(self, job: Enqueue, spans: list[Span]) -> Enqueue:
        if job.options is None or job.options.trace is None:
            return job
        span = self._span("enqueue", SpanKind.PRODUCER, job.options.trace, job.queue, job.id)
        if not span.is_recording():
            return job
        spans.append(span)
        return msgspec.structs.replace(job, options=msgspec.structs.replace(job.options, trace=_written(span)))

    def _deliver(self, job: Delivery) -> Delivery:
        if job.extras is None or job.extras.trace is None:
            return job
        span = self._span("deliver", SpanKind.CONSUMER, job.extras.trace, job.queue, job.id)
        if not span.is_recording():
            return job
        span.set_attribute("proteus_shards.attempt", job.attempt)
        span.set_attribute("proteus_shards.run_id", write_run_id(job.run_id))
        span.end()
        return msgspec.structs.replace(job, extras=msgspec.structs.replace(job.extras, trace=_written(span)))

    def _complete(self, command: Complete, trace: str, began_ns: int) -> None:
        span = self._span("complete", SpanKind.SERVER, trace, command.queue, command.id, began_ns)
        if command.run_id is not None:
            span.set_attribute("proteus_shards.run_id", write_run_id(command.run_id))
        span.end()

    def _span(self, name: str, kind: SpanKind, trace: str, queue: str, job_id: str, began_ns: int | None = None) -> Span:
        attributes = {
            "messaging.system": "proteus_shards",
            "messaging.operation.name": name,
            "messaging.destination.name": queue,
            "messaging.message.id": job_id,
        }
        return self._tracer.start_span(name, self._context.extract({_HEADER: trace}), kind=kind, attributes=attributes, start_time=began_ns)


def _written(span: Span) -> str:
    """Return the context of a span as a header has it."""
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
