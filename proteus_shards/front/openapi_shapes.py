"""What bodies may be, by the names that `openapi_words` uses for them: made from the very types that are decoded and encoded.

The few types here are for what the code writes by hand, as it is the same each time.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from proteus_shards.config import Settings
from proteus_shards.core.queue_settings import SECONDS_MAX, QueueSettings
from proteus_shards.core.schedules import Definition
from proteus_shards.front import answers, batches, cluster_calls, cluster_views, control, job_bodies, relay_v1, relay_v2, schedules, views
from proteus_shards.front.schemas import Schema, Schemas


class _Accepted(msgspec.Struct, frozen=True):
    """The answer to one job or operation that was accepted, among several."""

    status: int


class _Summary(msgspec.Struct, frozen=True):
    """What became of job lines."""

    accepted: int
    refused: int
    failures: list[answers._ProblemView]
    failures_left_out: int = 0
    stopped: answers._ProblemView | msgspec.UnsetType = msgspec.UNSET


class _Failed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a run failed."""

    error: str | None = None
    delay: Annotated[float, msgspec.Meta(ge=0, le=SECONDS_MAX)] | None = None


class _Released(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a run was given up."""

    delay: Annotated[float, msgspec.Meta(ge=0, le=SECONDS_MAX)] | None = None


class _Count(msgspec.Struct, frozen=True):
    """How many jobs were changed."""

    jobs: int


class _Health(msgspec.Struct, frozen=True):
    """What a server says of itself."""

    status: str
    version: str
    store: str
    durability: str | None
    terms: str | None
    shards: int


class _Ready(msgspec.Struct, frozen=True):
    """That a server is ready."""

    status: str
    shards: int
    crash_loops: dict[str, int] | msgspec.UnsetType = msgspec.UNSET
    shards_here: list[int] | msgspec.UnsetType = msgspec.UNSET
    shards_away: list[int] | msgspec.UnsetType = msgspec.UNSET


def shapes_of(schemas: Schemas, settings: Settings) -> dict[str, Schema]:
    """Return what bodies may be, by the names that the calls use."""
    job = schemas.of(job_bodies._JobBody)  # noqa: SLF001 the very types that are decoded and encoded
    for field in ("timeout", "max_retries"):  # what stands for "left out" there is no value
        schemas.components["NewJob"]["properties"][field].pop("default", None)
    delivered = schemas.of(answers._JobView)  # noqa: SLF001
    problem = schemas.of(answers._ProblemView)  # noqa: SLF001
    accepted = schemas.of(_Accepted)
    next_answer = schemas.of(answers._JobsPart)  # noqa: SLF001
    operation = schemas.of(batches._Operation)  # noqa: SLF001
    schemas.components["Enqueue"]["properties"]["job"] |= job
    queue = schemas.of(views.QueueShown)
    settings_shape = schemas.of(QueueSettings)
    schemas.components["Queue"]["properties"]["settings"] |= settings_shape
    page = schemas.of(views.Page)
    v1_job, v1_view = schemas.of(relay_v1._Job), schemas.of(relay_v1._View)  # noqa: SLF001
    v2_job, v2_view = schemas.of(relay_v2._Job), schemas.of(relay_v2._View)  # noqa: SLF001
    several = {"type": "array", "minItems": 1, "maxItems": settings.batch_jobs_max}
    shapes = {
        "Any": {},
        "Text": {"type": "string"},
        "Lines": {"type": "string", "pattern": "\\S", "description": "One job a line, each as JSON."},
        "Problem": problem,
        "Enqueued": {"anyOf": [job, {**several, "items": job}]},
        "EnqueuedAnswer": {"anyOf": [{"type": "array", "items": {"anyOf": [accepted, problem]}}, schemas.of(_Summary)]},
        "Delivered": {"anyOf": [delivered, {"type": "array", "items": delivered, "minItems": 1, "maxItems": settings.num_jobs_max}]},
        "Operations": {**several, "items": operation},
        "OperationAnswers": {"type": "array", "items": {"anyOf": [next_answer, accepted, problem]}},
        "DeadLetters": schemas.of(answers._DeadPage),  # noqa: SLF001
        "Queue": queue,
        "Queues": {"allOf": [page], "required": ["queues", "next"]},
        "QueuePatch": _patch_of(schemas.components["QueueSettings"], schemas.components),
        "JobInfo": schemas.of(views.JobShown),
        "JobInfos": {"allOf": [page], "required": ["jobs", "next"]},
        "Found": {"allOf": [page], "required": ["jobs"]},
        "Count": schemas.of(_Count),
        "JobPatch": {**schemas.of(control._Changed), "minProperties": 1},  # noqa: SLF001
        "Picked": schemas.of(control._Chosen),  # noqa: SLF001
        "Failed": schemas.of(_Failed),
        "Released": schemas.of(_Released),
        "ScheduleBody": schemas.of(Definition),
        "Schedule": schemas.of(schedules.ScheduleShown),
        "Schedules": schemas.of(schedules._SchedulePage),  # noqa: SLF001
        "Cluster": schemas.of(cluster_views.ClusterShown),
        "Move": schemas.of(cluster_calls._Move),  # noqa: SLF001
        "Drain": schemas.of(cluster_calls._Drain),  # noqa: SLF001
        "Forget": schemas.of(cluster_calls._Forget),  # noqa: SLF001
        "RelayV1NewJob": v1_job,
        "RelayV1Jobs": {**several, "minItems": 0, "items": v1_job},
        "RelayV1Job": v1_view,
        "RelayV1Delivered": {"type": "array", "items": v1_view, "minItems": 1},
        "RelayV2Jobs": {**several, "minItems": 0, "items": v2_job},
        "RelayV2Requeued": {**several, "minItems": 0, "items": v2_job},
        "RelayV2Job": v2_view,
        "RelayV2Delivered": {"type": "array", "items": v2_view, "minItems": 1},
        "Health": schemas.of(_Health),
        "Ready": schemas.of(_Ready),
    }
    schemas.components["Move"]["properties"]["shard"]["maximum"] = settings.shards - 1
    schemas.components["JobChoice"]["properties"]["ids"]["anyOf"][0]["maxItems"] = settings.batch_jobs_max
    given = {"id", "queue", "run_at"}
    whole = schemas.components["NewJob"]
    schemas.components["ScheduleDefinition"]["properties"]["job"] |= {
        **whole,
        "properties": {name: schema for name, schema in whole["properties"].items() if name not in given},
        "required": [name for name in whole["required"] if name not in given],
    }
    schemas.components["ScheduleDefinition"]["oneOf"] = [{"required": ["cron"]}, {"required": ["every"]}]
    return shapes


def _patch_of(whole: Schema, components: dict[str, Schema]) -> Schema:
    """Return what a merge patch of an object may be: any of its members, or null where it is not required."""
    required = whole.get("required", [])
    properties = {
        name: schema
        if name in required
        else {"description": schema["description"], "anyOf": [*_parts_of(schema, components), {"type": "null"}]}
        for name, schema in whole["properties"].items()
    }
    return {"type": "object", "properties": properties, "additionalProperties": False} | ({"required": required} if required else {})


def _parts_of(schema: Schema, components: dict[str, Schema]) -> list[Schema]:
    """Return what the value of a member may be besides null, objects as patches of them."""
    return [
        _patch_of(components[part["$ref"].rpartition("/")[2]], components)
        if "$ref" in part
        else {word: value for word, value in part.items() if word not in {"description", "default"}}
        for part in schema.get("anyOf", [schema])
        if part.get("type") != "null"
    ]
