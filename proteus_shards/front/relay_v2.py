"""Relay's second generation, `/v2/queues/…`: what each call means and how it is answered. Sync and pure, as in `operations`.

Its clients try everything again but 404 and 409. What may be tried again is 503 here, with or without an effect. A requeue of a run that is over is
202, as a client expects, adds nothing, and says so in a header: `Relay-Matched: false`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated

import msgspec

from proteus_shards.config import Settings
from proteus_shards.core.commands import Complete, Enqueue, Heartbeat, Mode, Outcome, Reason, Refused
from proteus_shards.core.commands_control import JobView, State
from proteus_shards.core.model import name_fault
from proteus_shards.front.answers import Answer, Problem, write_run_id
from proteus_shards.front.instants import read_instant, write_instant
from proteus_shards.front.operations import Ask
from proteus_shards.front.queries import read_run_id
from proteus_shards.front.relay_calls import Calls, remove
from proteus_shards.front.relay_words import (
    BAD_URL,
    INT16_MAX,
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
    parameters,
    read_state,
    refused_text,
    too_many,
    wrong,
)
from proteus_shards.front.spans import Run, Span

_MODES = {"ignore": Mode.IGNORE, "replace": Mode.REPLACE}
_UNMATCHED = Answer(202, (("relay-matched", "false"),))


class _Job(msgspec.Struct, kw_only=True, gc=False):
    queue: str
    id: str
    timeout: Annotated[int, msgspec.Meta(ge=0, le=INT32_MAX)]
    max_retries: Annotated[int, msgspec.Meta(ge=0, le=INT16_MAX)] | None = None
    payload: msgspec.Raw
    state: msgspec.Raw = NULL
    run_at: str | None = None


class _View(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    queue: str
    id: str
    timeout: int
    max_retries: int | None
    retries_remaining: int | None
    payload: msgspec.Raw
    state: msgspec.Raw
    run_id: str | None
    run_at: str
    updated_at: str
    created_at: str


_jobs = msgspec.json.Decoder(list[_Job])


class _Dialect:
    busy = 503

    def backend(self, detail: str, *, retryable: bool) -> str:
        return f"Backend error: {detail}. Is retryable: {str(retryable).lower()}."


V2 = _Dialect()


# --- the calls -----------------------------------------------------------------------------------------------------


def enqueue(body: bytes, query: bytes, settings: Settings) -> Asked:
    """`POST /v2/queues/jobs?mode=`: an array; all or nothing in every mode."""
    jobs = _read_jobs(body, settings)
    if isinstance(jobs, Problem):
        return jobs
    mode = _mode(query)
    if isinstance(mode, Problem):
        return mode
    if not jobs:
        return Shares(jobs, V2)
    if len(jobs) == 1 and mode is Mode.UNIQUE:
        return Ask(jobs[0], accepted, partial(refused_text, V2, jobs[0].queue, jobs[0].id))
    return Span(None, jobs, mode, partial(_show_step, jobs))


def delete(queue: str, job_id: str, _body: bytes, _query: bytes, _settings: Settings) -> Asked:
    """`DELETE /v2/queues/{queue}/jobs/{id}`: 200 whether there was such a job or not."""
    return remove(Complete(queue, job_id), partial(_refuse_deletion, queue, job_id))


def beat(queue: str, job_id: str, raw_run_id: str, body: bytes, _query: bytes, _settings: Settings) -> Asked:
    """`PATCH /v2/queues/{queue}/jobs/{id}/run-id/{run_id}`: a heartbeat of that run."""
    run_id = _run_id(raw_run_id)
    if isinstance(run_id, Problem):
        return run_id
    state = read_state(body)
    if isinstance(state, Problem):
        return state
    sentence = f"job with id `{job_id}` not found in queue `{queue}` with {write_run_id(run_id)}."
    return heartbeat(Heartbeat(queue, job_id, run_id, state), sentence, V2)


def complete(queue: str, job_id: str, raw_run_id: str, _body: bytes, _query: bytes, _settings: Settings) -> Asked:
    """`DELETE /v2/queues/{queue}/jobs/{id}/run-id/{run_id}`: 200 also where that run is over, and then nothing changes."""
    run_id = _run_id(raw_run_id)
    if isinstance(run_id, Problem):
        return run_id
    return remove(Complete(queue, job_id, run_id), partial(_refuse_deletion, queue, job_id))


def requeue(queue: str, job_id: str, raw_run_id: str, body: bytes, query: bytes, settings: Settings) -> Asked:
    """`PUT /v2/queues/{queue}/jobs/{id}/run-id/{run_id}?mode=`: ends the run and adds the jobs of the body, in one step."""
    run_id = _run_id(raw_run_id)
    if isinstance(run_id, Problem):
        return run_id
    jobs = _read_jobs(body, settings)
    if isinstance(jobs, Problem):
        return jobs
    mode = _mode(query)
    if isinstance(mode, Problem):
        return mode
    return Span(Run(queue, job_id, run_id), jobs, mode, partial(_show_requeue, queue, job_id, jobs))


# --- requests ------------------------------------------------------------------------------------------------------


def _run_id(raw: str) -> bytes | Problem:
    run_id = read_run_id(raw)
    return wrong(400, BAD_URL + "the run id must be a UUID of 36 characters") if isinstance(run_id, Problem) else run_id


def _mode(query: bytes) -> Mode | Problem:
    values = parameters(query) if query else {}
    return values if isinstance(values, Problem) else _MODES.get(values.get("mode", ""), Mode.UNIQUE)


def _read_jobs(body: bytes, settings: Settings) -> list[Enqueue] | Problem:
    jobs = decode(_jobs, body)
    if isinstance(jobs, Problem):
        return jobs
    if len(jobs) > settings.batch_jobs_max:
        return too_many(len(jobs), settings)
    commands: list[Enqueue] = []
    kept = is_kept(settings)
    for place, job in enumerate(jobs):
        for field, name in (("queue", job.queue), ("id", job.id)):
            if (fault := name_fault(name)) is not None:
                return wrong(422, f"{NOT_OF_TYPE}[{place}].{field}: {fault}")
        run_at = None
        if job.run_at is not None and (run_at := read_instant(job.run_at)) is None:
            return wrong(422, f"{NOT_OF_TYPE}[{place}].run_at: must be an RFC 3339 time or null")
        state = bytes(job.state)
        retries = -1 if job.max_retries is None else job.max_retries
        commands.append(
            Enqueue(job.queue, job.id, job.timeout, kept, retries, bytes(job.payload), None if state == b"null" else state, run_at)
        )
    return commands


# --- outcomes ------------------------------------------------------------------------------------------------------


def view(job: JobLike) -> _View:
    """Return a job as this generation shows it."""
    endless = job.max_retries < 0
    in_flight = not isinstance(job, JobView) or job.state_name == State.IN_FLIGHT
    spent = job.attempt - in_flight  # the run that goes on has spent nothing yet
    return _View(
        queue=job.queue,
        id=job.id,
        timeout=job.timeout,
        max_retries=None if endless else min(job.max_retries, INT16_MAX),
        retries_remaining=None if endless else max(0, min(job.max_retries - spent, INT16_MAX)),
        payload=msgspec.Raw(job.payload),
        state=msgspec.Raw(job.state) if job.state else NULL,
        run_id=write_run_id(job.run_id) if job.run_id is not None else None,
        run_at=write_instant(job.run_at if job.run_at is not None else job.created_at),
        updated_at=write_instant(job.updated_at),
        created_at=write_instant(job.created_at),
    )


def _refuse_deletion(queue: str, job_id: str, refused: Refused) -> Answer:
    return Answer(200) if refused.reason is Reason.NOT_FOUND else refused_text(V2, queue, job_id, refused)


def _show_step(jobs: Sequence[Enqueue], outcome: Outcome) -> Answer:
    """Answer for several jobs that were added in one step; a refusal names one of them."""
    if not isinstance(outcome, Refused):
        return Answer(202)
    at = int(outcome.field[5:-1]) if outcome.field is not None and outcome.field.startswith("jobs[") else 0
    return refused_text(V2, jobs[at].queue, jobs[at].id, outcome)


def _show_requeue(queue: str, job_id: str, jobs: Sequence[Enqueue], outcome: Outcome) -> Answer:
    if isinstance(outcome, Refused):
        if outcome.reason is Reason.NOT_FOUND:
            return _UNMATCHED
        if not jobs:
            return refused_text(V2, queue, job_id, outcome)
    return _show_step(jobs, outcome)


CALLS = Calls(V2, view)
