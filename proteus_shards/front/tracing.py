"""The trace context of a producer (W3C, `traceparent`), which its jobs carry to whoever runs them.

It comes as a header of the request that brings jobs, and goes out with each delivery. One that is no trace context is passed over, as the
standard says: it is nobody's reason to lose a job.
"""

from __future__ import annotations

import re
from typing import TypeVar

import msgspec

from proteus_shards.core.commands import Enqueue, EnqueueOnce, Options
from proteus_shards.front.answers import Problem
from proteus_shards.front.errands import Batch, Errand
from proteus_shards.front.once import OnceEach
from proteus_shards.front.operations import Ask

T = TypeVar("T")

_TRACEPARENT = re.compile("(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def traced(asked: Ask | Errand | Problem, traceparent: str | None) -> Ask | Errand | Problem:
    """Return what is asked for, its new jobs with the trace of who asks."""
    if traceparent is None or _TRACEPARENT.fullmatch(traceparent) is None:
        return asked
    if isinstance(asked, Ask):
        command = _traced(asked.command, traceparent)
        return asked if command is asked.command else msgspec.structs.replace(asked, command=command)
    if isinstance(asked, Batch | OnceEach):
        asked.items = [_traced(item, traceparent) for item in asked.items]
    return asked


def _traced(item: T, traceparent: str) -> T:
    if isinstance(item, EnqueueOnce):
        return msgspec.structs.replace(item, jobs=[_traced(job, traceparent) for job in item.jobs])
    if not isinstance(item, Enqueue):
        return item
    options = msgspec.structs.replace(item.options or Options(), trace=traceparent)
    return msgspec.structs.replace(item, options=options)
