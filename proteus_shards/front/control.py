"""The calls of operators: queues, their settings, and a look at jobs. Sync and pure, as those of `operations`, and served beside them.

Decisions:

- A queue that has never been used is an empty queue, not a 404: whether it exists at this moment depends on who has just polled it.
- Lists are pages of at most num_jobs_max, and their cursors are opaque, but for queues: their names are in order, so a name is one.
- `limit` is how many at most, `after` is what the page before gave as `next`. A page may be short, even empty, and yet have a `next`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Annotated

import msgspec

from proteus_shards.config import Settings
from proteus_shards.core.commands import Done, Outcome, Refused
from proteus_shards.core.commands_control import (
    Change,
    Counted,
    FindJobs,
    GetJob,
    GetQueue,
    Jobs,
    ListJobs,
    ListQueues,
    Purge,
    Queues,
    Redrive,
    SetQueue,
    State,
)
from proteus_shards.core.extras import PRIORITY_MAX
from proteus_shards.core.model import name_fault
from proteus_shards.core.placement import shard_of, slot_of
from proteus_shards.core.queue_settings import SECONDS_MAX
from proteus_shards.front.answers import ACCEPTED, COMPLETED, Answer, Problem, fault, json_answer, refusal
from proteus_shards.front.errands import Batch, Item
from proteus_shards.front.everywhere import AskAll, InPortions
from proteus_shards.front.instants import RULE, read_instant
from proteus_shards.front.job_bodies import STRING, UNREADABLE, Rules, explain, raw_json
from proteus_shards.front.operations import Ask, Parse
from proteus_shards.front.queries import parse_query, read_integer, read_name, read_seconds
from proteus_shards.front.redrives import RedriveAcross
from proteus_shards.front.views import Page, job_shown, jobs_page, queue_shown

PAGE_DEFAULT = 100
ALL = "all"
AFTER_LENGTH_MAX = 64  # of a cursor
_STATES = frozenset(State)
_SWITCH = {"true": True, "false": False}


# --- queues ----------------------------------------------------------------------------------------------------


def list_queues(_body: bytes, query: bytes, settings: Settings) -> AskAll | Problem:
    """`GET /queues?after=&limit=&contains=`: queues by name, over all shards."""
    values = parse_query(query, ("after", "limit", "contains"))
    if isinstance(values, Problem):
        return values
    limit = read_limit(values, settings)
    if isinstance(limit, Problem):
        return limit
    after, contains = values.get("after", ""), values.get("contains", "")
    for field, text in (("after", after), ("contains", contains)):
        if text and (wrong := name_fault(text)) is not None:
            return fault(field, wrong)

    def show(outcomes: list[Outcome], away: list[int]) -> Answer:
        pages = [outcome for outcome in outcomes if isinstance(outcome, Queues)]
        ends = [page.next for page in pages if page.next is not None]
        found = sorted(
            (queue for page in pages for queue in page.queues if not ends or queue.queue <= min(ends)), key=lambda queue: queue.queue
        )
        following = found[limit - 1].queue if len(found) > limit else min(ends, default=None)
        return json_answer(Page(queues=[queue_shown(queue) for queue in found[:limit]], next=following, shards_away=away or msgspec.UNSET))

    return AskAll(ListQueues(limit, after, contains), show)


def get_queue(_body: bytes, query: bytes, _settings: Settings) -> Ask | Problem:
    """`GET /queue?queue=`."""
    queue = _queue(query)
    return queue if isinstance(queue, Problem) else Ask(GetQueue(queue), _show_queue)


def patch_queue(body: bytes, query: bytes, _settings: Settings) -> Batch | Problem:
    """`PATCH /queue?queue=`: the body is a JSON merge patch of its settings."""
    queue = _queue(query)
    if isinstance(queue, Problem):
        return queue
    patch = raw_json(body)
    if isinstance(patch, Problem):
        return patch
    return Batch([SetQueue(queue, patch), GetQueue(queue)], _show_changed_queue)


def pause(_body: bytes, query: bytes, _settings: Settings) -> Ask | Problem:
    """`POST /pause?queue=`: nothing is delivered until it is resumed."""
    queue = _queue(query)
    return queue if isinstance(queue, Problem) else Ask(SetQueue(queue, b'{"paused":true}'), _show_accepted)


def resume(_body: bytes, query: bytes, _settings: Settings) -> Ask | Problem:
    """`POST /resume?queue=`."""
    queue = _queue(query)
    return queue if isinstance(queue, Problem) else Ask(SetQueue(queue, b'{"paused":null}'), _show_accepted)


# --- jobs ------------------------------------------------------------------------------------------------------


def list_jobs(_body: bytes, query: bytes, settings: Settings) -> Ask | Problem:
    """`GET /jobs?queue=&state=&key=&older_than=&limit=&after=&bodies=`: a page of the jobs of a queue; without a state all that are not dead."""
    values = parse_query(query, ("queue", "state", "key", "older_than", "limit", "after", "bodies"))
    if isinstance(values, Problem):
        return values
    queue = read_name(values, "queue")
    if isinstance(queue, Problem):
        return queue
    state = values.get("state")
    if state is not None and state not in _STATES:
        return fault("state", f"must be one of {', '.join(State)}")
    key = values.get("key")
    if key is not None and (wrong := name_fault(key)) is not None:
        return fault("key", wrong)
    age_us = read_seconds("older_than", values.get("older_than"), SECONDS_MAX, default=-1)
    if isinstance(age_us, Problem):
        return age_us
    limit = read_limit(values, settings)
    if isinstance(limit, Problem):
        return limit
    after = values.get("after")
    if after is not None and len(after) > AFTER_LENGTH_MAX:
        return fault("after", "must be the next of the page before")
    bodies = _SWITCH.get(values.get("bodies", "true"))
    if bodies is None:
        return fault("bodies", "must be true or false")
    created_before = None if age_us < 0 else time.time_ns() // 1000 - age_us
    return Ask(ListJobs(queue, state, key, created_before, limit, after, bodies), _show_jobs)


def get_job(_body: bytes, query: bytes, _settings: Settings) -> Ask | Problem:
    """`GET /job?queue=&job_id=`: the live job of that id, else its newest dead letter."""
    named = _job(query)
    return named if isinstance(named, Problem) else Ask(GetJob(*named), _show_job)


def find_jobs(_body: bytes, query: bytes, settings: Settings) -> AskAll | Problem:
    """`GET /find?job_id=&limit=`: the jobs of an id in all queues, dead ones included."""
    values = parse_query(query, ("job_id", "limit"))
    if isinstance(values, Problem):
        return values
    job_id = read_name(values, "job_id")
    if isinstance(job_id, Problem):
        return job_id
    limit = read_limit(values, settings)
    if isinstance(limit, Problem):
        return limit

    def show(outcomes: list[Outcome], away: list[int]) -> Answer:
        jobs = [job for outcome in outcomes if isinstance(outcome, Jobs) for job in outcome.jobs]
        jobs.sort(key=lambda job: (job.queue, -job.seq))
        return json_answer(Page(jobs=[job_shown(job) for job in jobs[:limit]], shards_away=away or msgspec.UNSET))

    return AskAll(FindJobs(job_id, limit), show)


# --- changes of many -------------------------------------------------------------------------------------------


def purge(_body: bytes, query: bytes, _settings: Settings) -> InPortions | Problem:
    """`POST /purge?queue=&state=&key=`: removes the jobs of a state, or all; without a state all that wait."""
    values = parse_query(query, ("queue", "state", "key"))
    if isinstance(values, Problem):
        return values
    queue = read_name(values, "queue")
    if isinstance(queue, Problem):
        return queue
    state = values.get("state")
    if state is not None and state != ALL and state not in _STATES:
        return fault("state", f"must be one of {', '.join(State)}, {ALL}")
    key = values.get("key")
    if key is not None and (wrong := name_fault(key)) is not None:
        return fault("key", wrong)
    states = [] if state is None else [str(each) for each in State] if state == ALL else [state]
    command = Purge(queue, states, key)
    return InPortions(command, lambda _: command)


def delete_job(_body: bytes, query: bytes, _settings: Settings) -> Ask | Problem:
    """`DELETE /job?queue=&job_id=`: removes the live job of that id and its dead letters."""
    named = _job(query)
    if isinstance(named, Problem):
        return named
    queue, job_id = named
    return Ask(Purge(queue, [str(state) for state in State], None, [job_id]), partial(_show_deleted, queue, job_id))


def redrive(body: bytes, query: bytes, settings: Settings) -> InPortions | RedriveAcross | Problem:
    """`POST /redrive?queue=&to=`: gives dead letters a new life, all or those that the body names (`ids`, `key`, `reason`)."""
    values = parse_query(query, ("queue", "to"))
    if isinstance(values, Problem):
        return values
    queue = read_name(values, "queue")
    if isinstance(queue, Problem):
        return queue
    to = values.get("to")
    if to is not None and (wrong := name_fault(to)) is not None:
        return fault("to", wrong)
    chosen = _Chosen()
    if body:
        try:
            if not body.isascii():
                body.decode()
            chosen = _chosen.decode(body)
        except UNREADABLE:
            return explain(body, _CHOSEN_RULES, (), "is not a field of a redrive (there are: ids, key, reason)")
    if chosen.key is not None and (wrong := name_fault(chosen.key)) is not None:
        return fault("key", wrong)
    if chosen.ids is not None and len(chosen.ids) > settings.batch_jobs_max:
        detail = f"ids: must hold at most {settings.batch_jobs_max}, not {len(chosen.ids)} (batch_jobs_max)"
        return Problem(status=413, detail=detail, field="ids")
    if chosen.key is not None and (wrong := name_fault(chosen.key)) is not None:
        return fault("key", wrong)
    command = Redrive(queue, chosen.ids, chosen.key, chosen.reason, to)
    if to is not None and shard_of(slot_of(to), settings.shards) != shard_of(slot_of(queue), settings.shards):
        return RedriveAcross(command)
    return InPortions(command, lambda counted: msgspec.structs.replace(command, after=counted.after))


def change_job(body: bytes, query: bytes, _settings: Settings) -> Ask | Problem:
    """`PATCH /job?queue=&job_id=`: another `run_at` (null: now) or `priority` for a job that waits."""
    named = _job(query)
    if isinstance(named, Problem):
        return named
    try:
        if not body.isascii():
            body.decode()
        changed = _changed.decode(body)
    except UNREADABLE:
        return explain(body, _CHANGED_RULES, (), "is not a field that can be changed (there are: run_at, priority)")
    run_at_us: int | None = None
    if changed.run_at is None:
        run_at_us = 0
    elif changed.run_at is not msgspec.UNSET:
        run_at_us = read_instant(changed.run_at)
        if run_at_us is None:
            return fault("run_at", RULE)
    priority = None if changed.priority is msgspec.UNSET else changed.priority
    if run_at_us is None and priority is None:
        return fault("body", "must say what shall change: run_at, priority")
    queue, job_id = named
    return Ask(Change(queue, job_id, run_at_us if run_at_us is None else max(0, run_at_us), priority), _show_accepted)


_Priority = Annotated[int, msgspec.Meta(ge=-PRIORITY_MAX, le=PRIORITY_MAX)]


class _Chosen(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    ids: list[str] | None = None
    key: str | None = None
    reason: str | None = None


class _Changed(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    run_at: str | msgspec.UnsetType | None = msgspec.UNSET
    priority: _Priority | msgspec.UnsetType = msgspec.UNSET


_chosen = msgspec.json.Decoder(_Chosen)
_CHOSEN_RULES: Rules = {
    "ids": (msgspec.json.Decoder(list[str] | None), "must be an array of strings"),
    "key": (msgspec.json.Decoder(str | None), STRING),
    "reason": (msgspec.json.Decoder(str | None), STRING),
}
_changed = msgspec.json.Decoder(_Changed)
_CHANGED_RULES: Rules = {
    "run_at": (msgspec.json.Decoder(str | None), RULE),
    "priority": (msgspec.json.Decoder(_Priority), f"must be an integer from {-PRIORITY_MAX} to {PRIORITY_MAX}"),
}

CONTROL_OPERATIONS: dict[tuple[str, str], Parse] = {
    ("GET", "/queues"): list_queues,
    ("GET", "/queue"): get_queue,
    ("PATCH", "/queue"): patch_queue,
    ("POST", "/pause"): pause,
    ("POST", "/resume"): resume,
    ("GET", "/jobs"): list_jobs,
    ("GET", "/job"): get_job,
    ("GET", "/find"): find_jobs,
    ("POST", "/purge"): purge,
    ("DELETE", "/job"): delete_job,
    ("PATCH", "/job"): change_job,
    ("POST", "/redrive"): redrive,
}
CONTROL_WITH_BODY: frozenset[Parse] = frozenset({patch_queue, change_job, redrive})


# --- outcomes --------------------------------------------------------------------------------------------------


def _show_accepted(outcome: Outcome) -> Answer:
    assert type(outcome) is Done
    return ACCEPTED


def _show_changed_queue(items: Sequence[Item], outcomes: list[Outcome]) -> Answer:
    command, _ = items
    if isinstance(command, Problem):
        return command.answer()
    changed, shown = outcomes
    refused = changed if isinstance(changed, Refused) else shown
    return refusal(refused, command.queue).answer() if isinstance(refused, Refused) else _show_queue(shown)


def _show_queue(outcome: Outcome) -> Answer:
    assert type(outcome) is Queues
    return json_answer(queue_shown(outcome.queues[0]))


def _show_jobs(outcome: Outcome) -> Answer:
    assert type(outcome) is Jobs
    return jobs_page(outcome.jobs, outcome.next)


def _show_job(outcome: Outcome) -> Answer:
    assert type(outcome) is Jobs
    return json_answer(job_shown(outcome.jobs[0]))


def _show_deleted(queue: str, job_id: str, outcome: Outcome) -> Answer:
    assert type(outcome) is Counted
    if outcome.jobs:
        return COMPLETED
    return Problem(status=404, detail="no job with this id is in the queue", queue=queue, job_id=job_id).answer()


# --- parameters ------------------------------------------------------------------------------------------------


def _queue(query: bytes) -> str | Problem:
    values = parse_query(query, ("queue",))
    return values if isinstance(values, Problem) else read_name(values, "queue")


def _job(query: bytes) -> tuple[str, str] | Problem:
    values = parse_query(query, ("queue", "job_id"))
    if isinstance(values, Problem):
        return values
    queue = read_name(values, "queue")
    if isinstance(queue, Problem):
        return queue
    job_id = read_name(values, "job_id")
    return job_id if isinstance(job_id, Problem) else (queue, job_id)


def read_limit(values: dict[str, str], settings: Settings) -> int | Problem:
    """Return how many a page shall have at most."""
    most = settings.num_jobs_max
    return read_integer("limit", values.get("limit"), min(PAGE_DEFAULT, most), 1, most)
