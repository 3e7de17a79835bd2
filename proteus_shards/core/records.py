"""What a record must be, beyond a form that can be read, so that nothing it leads to fails.

A store may hold what no shard has written: of another program, or damaged. A record that breaks a rule here is kept aside when it is loaded
(`RecordError`), as it would else end the shard at the first job that it makes, at each start anew. Rows have theirs in `model.job_of`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from proteus_shards.core.commands_jobs import RETRIES_OF_QUEUE, TIMEOUT_OF_QUEUE
from proteus_shards.core.extras import DURATION_US_MAX, KEY_LENGTH_MAX, PRIORITY_MAX, TRACE_LENGTH_MAX
from proteus_shards.core.model import MAX_RETRIES_MAX, TIMEOUT_SECONDS_MAX, is_instant, name_fault
from proteus_shards.core.placement import slot_of
from proteus_shards.errors import RecordError

if TYPE_CHECKING:
    from proteus_shards.core.commands_jobs import Enqueue, Options
    from proteus_shards.core.model import RecordKey

STEP_BYTES = 16


def check_place(key: RecordKey, queue: str) -> None:
    """Raise `RecordError` where a record is not in the slot of a queue, or that is no name of one."""
    if (fault := name_fault(queue)) is not None:
        raise RecordError(f"queue {fault}")
    if key.slot != slot_of(queue):
        raise RecordError(f"slot must be {slot_of(queue)}, not {key.slot}")


def check_step(name: str) -> None:
    """Raise `RecordError` where the name of a record is not that of a step."""
    try:
        step = bytes.fromhex(name)
    except ValueError as error:
        raise RecordError("the record names no step") from error
    if len(step) != STEP_BYTES or step.hex() != name:
        raise RecordError("the record names no step")


def check_times(*times_us: int | None) -> None:
    """Raise `RecordError` for an instant outside the years 1…9999."""
    if not all(time is None or is_instant(time) for time in times_us):
        raise RecordError("times must lie in the years 1…9999")


def check_job(job: Enqueue) -> None:
    """Raise `RecordError` for a job that could not have been enqueued."""
    if (fault := name_fault(job.queue)) is not None:
        raise RecordError(f"queue {fault}")
    if (fault := name_fault(job.id)) is not None:
        raise RecordError(f"id {fault}")
    if not TIMEOUT_OF_QUEUE <= job.timeout <= TIMEOUT_SECONDS_MAX or not RETRIES_OF_QUEUE <= job.max_retries <= MAX_RETRIES_MAX:
        raise RecordError("timeout and max_retries must be in their range")
    check_times(job.run_at_us)
    if job.options is not None:
        _check_options(job.options)


def _check_options(options: Options) -> None:
    if not -PRIORITY_MAX <= options.priority <= PRIORITY_MAX or not 0 <= (options.ttl_us or 0) <= DURATION_US_MAX:
        raise RecordError("priority and ttl must be in their range")
    if len(options.key or "") > KEY_LENGTH_MAX or len(options.trace or "") > TRACE_LENGTH_MAX:
        raise RecordError("key and trace must not be that long")
