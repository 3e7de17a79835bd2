"""The trace context of a producer goes with its jobs."""

from __future__ import annotations

import pytest

from proteus_shards.config import Settings
from proteus_shards.core.commands import Delivery, Enqueue, Next, Options
from proteus_shards.core.extras import Extras
from proteus_shards.front import operations
from proteus_shards.front.answers import job_answer, jobs_answer
from proteus_shards.front.errands import Batch
from proteus_shards.front.operations import Ask
from proteus_shards.front.tracing import traced

SETTINGS = Settings(shards=1)
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
JOB = b'{"id":"j","queue":"q","timeout":1,"key":"k"}'


def test_a_new_job_takes_the_trace_of_its_producer_along() -> None:
    """Beside its other options."""
    asked = traced(operations.enqueue(JOB, b"", SETTINGS), TRACE)

    assert isinstance(asked, Ask)
    assert isinstance(asked.command, Enqueue)
    assert asked.command.options == Options("k", trace=TRACE)


def test_so_do_all_jobs_of_an_array() -> None:
    """Each of them."""
    asked = traced(operations.enqueue(b"[" + JOB + b"]", b"", SETTINGS), TRACE)

    assert isinstance(asked, Batch)
    [item] = asked.items
    assert isinstance(item, Enqueue)
    assert item.options == Options("k", trace=TRACE)


@pytest.mark.parametrize(
    "traceparent",
    [None, "", "x", TRACE + "-00", TRACE.upper(), "ff" + TRACE[2:], TRACE.replace("4bf92f3577b34da6a3ce929d0e0e4736", "0" * 32)],
)
def test_what_is_no_trace_is_passed_over(traceparent: str | None) -> None:
    """And the job is taken."""
    plain = operations.enqueue(JOB, b"", SETTINGS)

    assert traced(plain, traceparent) == plain


def test_what_brings_no_job_has_no_trace() -> None:
    """A next is what it was."""
    asked = traced(operations.next_job(b"", b"queue=q", SETTINGS), TRACE)

    assert isinstance(asked, Ask)
    assert asked.command == Next("q")


def test_a_delivered_job_shows_its_trace() -> None:
    """As a header where it is alone, and as a field in any case."""
    job = Delivery("q", "j", 1, False, 0, b"1", None, None, b"\x01" * 16, 1, 0, 0, Extras(key="k", trace=TRACE))

    assert ("traceparent", TRACE) in job_answer(job).headers
    assert "traceparent" not in dict(jobs_answer([job]).headers)
    assert f'"key":"k","trace":"{TRACE}"'.encode() in jobs_answer([job]).body
