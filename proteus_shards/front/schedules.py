"""The calls about recurring jobs. The body of a schedule says when (`cron` and `timezone`, or `every`), what (`job`), and how (`missed`, `overlap`, `paused`).

A `job` has the fields of any job but its id, its queue and a run_at: the queue is that of the schedule, and the id of each job that it makes is the
schedule's name and the time in seconds since the Unix epoch, with an @ between them. The same definition put again changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from proteus_shards.config import Settings
from proteus_shards.core.commands import Done, Enqueue, Outcome, Refused
from proteus_shards.core.commands_control import DropSchedule, ListSchedules, PutSchedule, Schedules, ScheduleView
from proteus_shards.core.queue_settings import SettingFault
from proteus_shards.core.schedules import Definition, read_definition, schedule_name_fault
from proteus_shards.front.answers import COMPLETED, Answer, Problem, fault, json_answer, refusal
from proteus_shards.front.control import read_limit
from proteus_shards.front.errands import Batch, Item
from proteus_shards.front.everywhere import AskAll
from proteus_shards.front.instants import write_instant
from proteus_shards.front.job_bodies import members_of, raw_json, read_job
from proteus_shards.front.operations import Ask, Parse
from proteus_shards.front.queries import parse_query, read_name

AFTER_LENGTH_MAX = 2048  # of a cursor: a queue and a name
_APART = "\n"
GIVEN = {"id": "its name and the time are it", "queue": "it is that of the schedule", "run_at": "the schedule says when"}


class ScheduleShown(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One recurring job."""

    queue: str
    name: str
    cron: str | None = None
    timezone: str | None = None
    every: int | None = None
    job: msgspec.Raw
    missed: str
    overlap: str
    paused: bool
    next_at: str | None
    last_at: str | None
    fired: int
    missed_times: int


class _SchedulePage(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    schedules: list[ScheduleShown]
    next: str | None
    shards_away: list[int] | msgspec.UnsetType = msgspec.UNSET


def put_schedule(body: bytes, query: bytes, _settings: Settings) -> Batch | Problem:
    """`PUT /schedule?queue=&name=`: makes or changes a recurring job."""
    named = _named(query)
    if isinstance(named, Problem):
        return named
    text = raw_json(body)
    if isinstance(text, Problem):
        return text
    definition = read_definition(text)
    if isinstance(definition, SettingFault):
        return fault(definition.field, definition.rule)
    job = _read_job(bytes(definition.job), *named)
    if isinstance(job, Problem):
        return job
    put = PutSchedule(*named, text, job)
    return Batch([put, ListSchedules(named[0], 1, "", named[1])], _show_changed)


def get_schedule(_body: bytes, query: bytes, _settings: Settings) -> Ask | Problem:
    """`GET /schedule?queue=&name=`."""
    named = _named(query)
    return named if isinstance(named, Problem) else Ask(ListSchedules(named[0], 1, "", named[1]), _show_schedule)


def drop_schedule(_body: bytes, query: bytes, _settings: Settings) -> Ask | Problem:
    """`DELETE /schedule?queue=&name=`: jobs that it made stay."""
    named = _named(query)
    return named if isinstance(named, Problem) else Ask(DropSchedule(*named), _show_dropped)


def list_schedules(_body: bytes, query: bytes, settings: Settings) -> Ask | AskAll | Problem:
    """`GET /schedules?queue=&limit=&after=`: recurring jobs by queue and name, of one queue or of all."""
    values = parse_query(query, ("queue", "limit", "after"))
    if isinstance(values, Problem):
        return values
    limit = read_limit(values, settings)
    if isinstance(limit, Problem):
        return limit
    after = values.get("after", "")
    if len(after) > AFTER_LENGTH_MAX:
        return fault("after", "must be the next of the page before")
    if "queue" in values:
        queue = read_name(values, "queue")
        return queue if isinstance(queue, Problem) else Ask(ListSchedules(queue, limit, after), lambda outcome: _show([outcome], [], limit))
    return AskAll(ListSchedules("", limit, after), lambda outcomes, away: _show(outcomes, away, limit))


SCHEDULE_OPERATIONS: dict[tuple[str, str], Parse] = {
    ("GET", "/schedules"): list_schedules,
    ("GET", "/schedule"): get_schedule,
    ("PUT", "/schedule"): put_schedule,
    ("DELETE", "/schedule"): drop_schedule,
}
SCHEDULE_WITH_BODY: frozenset[Parse] = frozenset({put_schedule})


def _read_job(text: bytes, queue: str, name: str) -> Enqueue | Problem:
    """Return the job of a definition, as the queue's own body would be read, or what is wrong with it."""
    members = members_of(text)
    if isinstance(members, Problem):
        return fault("job", "must be an object")
    for field, why in GIVEN.items():
        if field in members:
            return fault(f"job.{field}", f"must not be given: {why}")
    job = read_job(msgspec.json.encode({**members, "id": name, "queue": queue}))
    if isinstance(job, Problem):
        field = "job" if job.field in {None, "body"} else f"job.{job.field}"
        return msgspec.structs.replace(job, field=field, detail=f"{field}{job.detail.removeprefix(job.field or '')}")
    return job


def _named(query: bytes) -> tuple[str, str] | Problem:
    values = parse_query(query, ("queue", "name"))
    if isinstance(values, Problem):
        return values
    queue = read_name(values, "queue")
    if isinstance(queue, Problem):
        return queue
    name = read_name(values, "name")
    if isinstance(name, Problem):
        return name
    wrong = schedule_name_fault(name)
    return (queue, name) if wrong is None else fault("name", wrong)


def _show(outcomes: Sequence[Outcome], away: list[int], limit: int) -> Answer:
    pages = [outcome for outcome in outcomes if isinstance(outcome, Schedules)]
    ends = [page.next for page in pages if page.next is not None]
    found = sorted((_place(each), each) for page in pages for each in page.schedules if not ends or _place(each) <= min(ends))
    following = found[limit - 1][0] if len(found) > limit else min(ends, default=None)
    return json_answer(
        _SchedulePage(schedules=[_shown(each) for _, each in found[:limit]], next=following, shards_away=away or msgspec.UNSET)
    )


def _place(schedule: ScheduleView) -> str:
    return f"{schedule.queue}{_APART}{schedule.name}"


def _show_schedule(outcome: Outcome) -> Answer:
    assert type(outcome) is Schedules
    return json_answer(_shown(outcome.schedules[0])) if outcome.schedules else _NO_SUCH_SCHEDULE.answer()


def _show_changed(items: Sequence[Item], outcomes: list[Outcome]) -> Answer:
    forbidden = next((item for item in items if isinstance(item, Problem)), None)
    if forbidden is not None:
        return forbidden.answer()
    changed, shown = outcomes
    refused = changed if isinstance(changed, Refused) else shown
    if not isinstance(refused, Refused):
        return _show_schedule(shown)
    (command, _) = items
    return refusal(refused, None if isinstance(command, Problem) else command.queue).answer()


def _show_dropped(outcome: Outcome) -> Answer:
    assert type(outcome) is Done
    return COMPLETED


def _shown(schedule: ScheduleView) -> ScheduleShown:
    definition = read_definition(schedule.definition)
    assert isinstance(definition, Definition)
    return ScheduleShown(
        queue=schedule.queue,
        name=schedule.name,
        cron=definition.cron,
        timezone=definition.timezone if definition.cron is not None else None,
        every=definition.every,
        job=definition.job,
        missed=definition.missed,
        overlap=definition.overlap,
        paused=definition.paused,
        next_at=None if schedule.next_at is None else write_instant(schedule.next_at),
        last_at=None if schedule.last_at is None else write_instant(schedule.last_at),
        fired=schedule.fired,
        missed_times=schedule.missed,
    )


_NO_SUCH_SCHEDULE = Problem(status=404, detail="no schedule of this name is in the queue")
