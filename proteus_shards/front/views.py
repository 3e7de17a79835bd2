"""How jobs and queues are shown to those who look at them: JSON objects, with what is not set left out.

Payload and state go out to the byte, as everywhere. Durations are seconds, instants RFC 3339.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import msgspec

from proteus_shards.core.commands_control import JobView, QueueView
from proteus_shards.core.extras import NO_EXTRAS
from proteus_shards.core.model import SECOND_US
from proteus_shards.front.answers import Answer, AttemptShown, BackoffShown, backoff_shown, history_shown, json_answer, write_run_id
from proteus_shards.front.instants import write_instant

Unset: TypeAlias = msgspec.UnsetType

_NO_SETTINGS = msgspec.Raw(b"{}")


class JobShown(msgspec.Struct, frozen=True, kw_only=True):
    """All of a job."""

    id: str
    queue: str
    state_name: str
    timeout: int
    persist_data: bool
    max_retries: int
    payload: msgspec.Raw | Unset = msgspec.UNSET
    state: msgspec.Raw | Unset = msgspec.UNSET
    run_at: str | Unset = msgspec.UNSET
    key: str | Unset = msgspec.UNSET
    priority: int | Unset = msgspec.UNSET
    expires_at: str | Unset = msgspec.UNSET
    backoff: BackoffShown | Unset = msgspec.UNSET
    schedule: str | Unset = msgspec.UNSET
    traceparent: str | Unset = msgspec.UNSET
    attempt: int
    run_id: str | Unset = msgspec.UNSET
    timeout_in: float | Unset = msgspec.UNSET
    reason: str | Unset = msgspec.UNSET
    history: list[AttemptShown]
    waits_for: list[str]
    blocked_by: str | None
    due_at: str | None
    created_at: str
    updated_at: str


class QueueShown(msgspec.Struct, frozen=True, kw_only=True):
    """One queue."""

    queue: str
    scheduled: int
    ready: int
    blocked: int
    in_flight: int
    dead: int
    pollers: int
    oldest_ready_seconds: float
    bytes: int
    paused: bool
    settings: msgspec.Raw


class Page(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Some of many. `next` is the `after` of the page behind it, null where there is none."""

    queues: list[QueueShown] | Unset = msgspec.UNSET
    jobs: list[JobShown] | Unset = msgspec.UNSET
    next: str | Unset | None = msgspec.UNSET
    shards_away: list[int] | Unset = msgspec.UNSET


def job_shown(job: JobView) -> JobShown:
    """Return a job as it is shown."""
    extras = job.extras or NO_EXTRAS
    return JobShown(
        id=job.id,
        queue=job.queue,
        state_name=job.state_name,
        timeout=job.timeout,
        persist_data=job.persist,
        max_retries=job.max_retries,
        payload=msgspec.Raw(job.payload) if job.payload else msgspec.UNSET,
        state=msgspec.Raw(job.state) if job.state else msgspec.UNSET,
        run_at=_instant(job.run_at) or msgspec.UNSET,
        key=_set(extras.key),
        priority=extras.priority or msgspec.UNSET,
        expires_at=_instant(extras.expires_at) or msgspec.UNSET,
        backoff=msgspec.UNSET if extras.backoff is None else backoff_shown(extras.backoff),
        schedule=_set(extras.schedule),
        traceparent=_set(extras.trace),
        attempt=job.attempt,
        run_id=write_run_id(job.run_id) if job.run_id is not None else msgspec.UNSET,
        timeout_in=job.deadline_us / SECOND_US if job.deadline_us is not None else msgspec.UNSET,
        reason=_set(job.reason),
        history=history_shown(extras),
        waits_for=job.waits_for,
        blocked_by=job.blocked_by,
        due_at=_instant(job.due_at),
        created_at=write_instant(job.created_at),
        updated_at=write_instant(job.updated_at),
    )


def queue_shown(queue: QueueView) -> QueueShown:
    """Return a queue as it is shown."""
    return QueueShown(
        queue=queue.queue,
        scheduled=queue.scheduled,
        ready=queue.ready,
        blocked=queue.blocked,
        in_flight=queue.in_flight,
        dead=queue.dead,
        pollers=queue.pollers,
        oldest_ready_seconds=queue.waited_us / SECOND_US,
        bytes=queue.held_bytes,
        paused=queue.paused,
        settings=msgspec.Raw(queue.settings) if queue.settings is not None else _NO_SETTINGS,
    )


def jobs_page(jobs: Sequence[JobView], after: str | None) -> Answer:
    """Return a page of jobs."""
    return json_answer(Page(jobs=[job_shown(job) for job in jobs], next=after))


def _set(text: str | None) -> str | Unset:
    return msgspec.UNSET if text is None else text


def _instant(instant_us: int | None) -> str | None:
    return None if instant_us is None else write_instant(instant_us)
