"""The calls of operators: queues, their settings, and a look at jobs. Sync and pure, as those of `operations`, and served beside them.

Decisions:

- A queue that has never been used is an empty queue, not a 404: whether it exists at this moment depends on who has just polled it.
- Lists are pages of at most num_jobs_max, and their cursors are opaque, but for queues: their names are in order, so a name is one.
- `limit` is how many at most, `after` is what the page before gave as `next`. A page may be short, even empty, and yet have a `next`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec

from proteus_shards.config import Settings
from proteus_shards.core.commands import Done, Outcome, Refused
from proteus_shards.core.commands_control import FindJobs, GetJob, GetQueue, Jobs, ListJobs, ListQueues, Queues, SetQueue, State
from proteus_shards.core.model import name_fault
from proteus_shards.core.queue_settings import SECONDS_MAX
from proteus_shards.front.answers import ACCEPTED, Answer, Problem, fault, json_answer, refusal
from proteus_shards.front.errands import Batch, Item
from proteus_shards.front.everywhere import AskAll
from proteus_shards.front.job_bodies import raw_json
from proteus_shards.front.operations import Ask, Parse
from proteus_shards.front.queries import parse_query, read_integer, read_name, read_seconds
from proteus_shards.front.views import Page, job_shown, jobs_page, queue_shown

PAGE_DEFAULT = 100
AFTER_LENGTH_MAX = 64  # of a cursor
_STATES = frozenset(State)
_SWITCH = {"true": True, "false": False}


# --- queues ----------------------------------------------------------------------------------------------------


def list_queues(_body: bytes, query: bytes, settings: Settings) -> AskAll | Problem:
    """`GET /queues?after=&limit=&contains=`: queues by name, over all shards."""
    values = parse_query(query, ("after", "limit", "contains"))
    if isinstance(values, Problem):
        return values
    limit = _limit(values, settings)
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
    limit = _limit(values, settings)
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
    limit = _limit(values, settings)
    if isinstance(limit, Problem):
        return limit

    def show(outcomes: list[Outcome], away: list[int]) -> Answer:
        jobs = [job for outcome in outcomes if isinstance(outcome, Jobs) for job in outcome.jobs]
        jobs.sort(key=lambda job: (job.queue, -job.seq))
        return json_answer(Page(jobs=[job_shown(job) for job in jobs[:limit]], shards_away=away or msgspec.UNSET))

    return AskAll(FindJobs(job_id, limit), show)


CONTROL_OPERATIONS: dict[tuple[str, str], Parse] = {
    ("GET", "/queues"): list_queues,
    ("GET", "/queue"): get_queue,
    ("PATCH", "/queue"): patch_queue,
    ("POST", "/pause"): pause,
    ("POST", "/resume"): resume,
    ("GET", "/jobs"): list_jobs,
    ("GET", "/job"): get_job,
    ("GET", "/find"): find_jobs,
}
CONTROL_WITH_BODY: frozenset[Parse] = frozenset({patch_queue})


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


def _limit(values: dict[str, str], settings: Settings) -> int | Problem:
    most = settings.num_jobs_max
    return read_integer("limit", values.get("limit"), min(PAGE_DEFAULT, most), 1, most)
