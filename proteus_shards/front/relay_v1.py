"""Relay's first generation, `/v1/queues/…`: what each call means and how it is answered. Sync and pure, as in `operations`.

Decisions, where relay errs or leaves it open, are those of this server's own API: a heartbeat without a body keeps the state; unknown jobs are 404; a job
that is not in flight has no heartbeat and no replacement. What was surely without effect is 429; what may have had one is 503, which these clients
try again as well.
"""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Annotated

import msgspec

from proteus_shards.config import Settings
from proteus_shards.core.commands import Complete, Enqueue, Heartbeat, Replace
from proteus_shards.core.model import MAX_RETRIES_MAX, TIME_US_MAX, TIME_US_MIN, name_fault
from proteus_shards.front.answers import Problem
from proteus_shards.front.instants import read_instant, write_instant
from proteus_shards.front.operations import Ask
from proteus_shards.front.relay_calls import Calls, remove
from proteus_shards.front.relay_words import (
    INT32_MAX,
    NOT_OF_TYPE,
    NULL,
    Asked,
    JobLike,
    Shares,
    accepted,
    decode,
    heartbeat,
    is_kept,
    not_found,
    read_state,
    refused_text,
    too_many,
    wrong,
)

_Int32 = Annotated[int, msgspec.Meta(ge=-(2**31), le=INT32_MAX)]
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class _Job(msgspec.Struct, kw_only=True, gc=False):
    id: str
    queue: str
    timeout: _Int32
    max_retries: _Int32 = 0
    payload: msgspec.Raw
    state: msgspec.Raw = NULL
    run_at: msgspec.Raw = NULL
    updated_at: str | None = None


class _View(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    id: str
    queue: str
    timeout: int
    max_retries: int
    payload: msgspec.Raw
    state: msgspec.Raw
    run_at: str
    updated_at: str


_jobs = msgspec.json.Decoder(list[_Job])
_job = msgspec.json.Decoder(_Job)
_texts = msgspec.json.Decoder(str)


class _Dialect:
    busy = 429

    def backend(self, detail: str, *, retryable: bool) -> str:  # noqa: ARG002  # the first generation does not tell
        return f"Backend error: {detail}"


V1 = _Dialect()


# --- the calls -----------------------------------------------------------------------------------------------------


def enqueue(body: bytes, _query: bytes, settings: Settings) -> Asked:
    """`POST /v1/queues/jobs`: an array. One job that is there already is 409, among several it is skipped."""
    jobs = decode(_jobs, body)
    if isinstance(jobs, Problem):
        return jobs
    if len(jobs) > settings.batch_jobs_max:
        return too_many(len(jobs), settings)
    commands = [_command(job, place, is_kept(settings)) for place, job in enumerate(jobs)]
    wrongs = [command for command in commands if isinstance(command, Problem)]
    if wrongs:
        return wrongs[0]
    asked = [command for command in commands if isinstance(command, Enqueue)]
    if len(asked) == 1:
        return Ask(asked[0], accepted, partial(refused_text, V1, asked[0].queue, asked[0].id))
    return Shares(asked, V1)


def reschedule(body: bytes, _query: bytes, settings: Settings) -> Asked:
    """`PUT /v1/queues/jobs`: one job, which takes the place of the one in flight with its id."""
    job = decode(_job, body)
    if isinstance(job, Problem):
        return job
    command = _command(job, None, is_kept(settings))
    if isinstance(command, Problem):
        return command
    return Ask(Replace(command.queue, command), accepted, partial(refused_text, V1, command.queue, command.id))


def beat(queue: str, job_id: str, body: bytes, _query: bytes, _settings: Settings) -> Asked:
    """`PATCH /v1/queues/{queue}/jobs/{id}`: a heartbeat of whatever run is in flight."""
    state = read_state(body)
    if isinstance(state, Problem):
        return state
    return heartbeat(Heartbeat(queue, job_id, None, state), not_found(queue, job_id), V1)


def delete(queue: str, job_id: str, _body: bytes, _query: bytes, _settings: Settings) -> Asked:
    """`DELETE /v1/queues/{queue}/jobs/{id}`."""
    return remove(Complete(queue, job_id), partial(refused_text, V1, queue, job_id))


# --- bodies --------------------------------------------------------------------------------------------------------


def _command(job: _Job, place: int | None, kept: bool) -> Enqueue | Problem:
    where = "" if place is None else f"[{place}]."
    for field, name in (("queue", job.queue), ("id", job.id)):
        if (fault := name_fault(name)) is not None:
            return wrong(422, f"{NOT_OF_TYPE}{where}{field}: {fault}")
    if job.updated_at is not None and read_instant(job.updated_at) is None:
        return wrong(422, f"{NOT_OF_TYPE}{where}updated_at: must be an RFC 3339 time or null")
    state = bytes(job.state)
    return Enqueue(
        job.queue,
        job.id,
        max(0, job.timeout),
        kept,
        max(-1, job.max_retries),
        bytes(job.payload),
        None if state == b"null" else state,
        _run_at(bytes(job.run_at)),
    )


def _run_at(raw: bytes) -> int | None:
    """Return when a job may run: a date in a string, or seconds since 1970 in one. Anything else means now."""
    if not raw.startswith(b'"'):
        return None
    written = _texts.decode(raw).strip()
    found = read_instant(written)
    if found is None:
        found = _leniently(written)
    return found if found is not None and TIME_US_MIN <= found <= TIME_US_MAX else None


def _leniently(written: str) -> int | None:
    try:
        return round(float(written) * 1_000_000) if written.isascii() else None
    except (ValueError, OverflowError):
        pass
    for read in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            moment = read(written)
            moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
            seconds = (moment - _EPOCH).total_seconds()
        except (ValueError, TypeError, IndexError, OverflowError):
            continue
        return round(seconds * 1_000_000)
    return None


# --- outcomes ------------------------------------------------------------------------------------------------------


def view(job: JobLike) -> _View:
    """Return a job as this generation shows it."""
    return _View(
        id=job.id,
        queue=job.queue,
        timeout=job.timeout,
        max_retries=max(-1, min(job.max_retries, MAX_RETRIES_MAX)),
        payload=msgspec.Raw(job.payload),
        state=msgspec.Raw(job.state) if job.state else NULL,
        run_at=write_instant(job.run_at if job.run_at is not None else job.created_at),
        updated_at=write_instant(job.updated_at),
    )


CALLS = Calls(V1, view)
