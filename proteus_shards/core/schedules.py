"""What a recurring job is: its definition, and what is kept of it.

The definition is JSON, checked field by field: when (`cron` with a `timezone`, or `every` so many seconds, counted from the Unix epoch), what (`job`), and
what becomes of times that were missed. Which times a definition means is a `Calendar`'s to say: the core knows no dates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Protocol

import msgspec

from proteus_shards.core.commands_jobs import Enqueue
from proteus_shards.core.model import SECOND_US, name_fault
from proteus_shards.core.queue_settings import SettingFault
from proteus_shards.errors import RecordError

if TYPE_CHECKING:
    from collections.abc import Callable

NAME_LENGTH_MAX = 900  # of a schedule: the ids of its jobs are its name and a time
CRON_LENGTH_MAX = 256
EVERY_SECONDS_MIN = 1
EVERY_SECONDS_MAX = 366 * 86_400

_GARBAGE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Definition(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a recurring job comes, and what it is."""

    job: msgspec.Raw
    cron: Annotated[str, msgspec.Meta(min_length=1, max_length=CRON_LENGTH_MAX)] | None = None
    timezone: Annotated[str, msgspec.Meta(min_length=1, max_length=64)] = "UTC"
    every: Annotated[int, msgspec.Meta(ge=EVERY_SECONDS_MIN, le=EVERY_SECONDS_MAX)] | None = None
    missed: Literal["skip", "once", "all"] = "skip"
    overlap: Literal["allow", "skip"] = "allow"
    paused: bool = False


DEFINITION_RULES = {
    "job": "must be an object: the job that comes, without id, queue and run_at",
    "cron": f"must be a cron expression of at most {CRON_LENGTH_MAX} characters, such as */5 * * * *",
    "timezone": "must be the name of a time zone, such as Europe/Berlin",
    "every": f"must be a whole number of seconds from {EVERY_SECONDS_MIN} to {EVERY_SECONDS_MAX}",
    "missed": 'must be "skip", "once" or "all"',
    "overlap": 'must be "allow" or "skip"',
    "paused": "must be true or false",
}


class Calendar(Protocol):
    """Says which times a definition means."""

    def fault(self, definition: Definition) -> SettingFault | None:
        """Say what is wrong with a definition whose fields are of the right types, if anything is."""

    def next_after(self, definition: Definition, after_us: int) -> int | None:
        """Return the first of its times after an instant (microseconds since the Unix epoch), or None where there is none any more."""


class Intervals:
    """The calendar of those who have none: it knows `every`, and no cron."""

    def fault(self, definition: Definition) -> SettingFault | None:
        """See `Calendar`."""
        return SettingFault("cron", "is not known to this server") if definition.cron is not None else None

    def next_after(self, definition: Definition, after_us: int) -> int | None:
        """See `Calendar`."""
        if definition.every is None:
            return None
        every_us = definition.every * SECOND_US
        return (after_us // every_us + 1) * every_us


class KeptSchedule(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What is stored of a recurring job. Times up to `since` are dealt with, whatever became of them."""

    definition: bytes
    job: Enqueue
    since: int
    last_at: int | None = None  # the time of the last job that it made
    fired: int = 0
    missed: int = 0


class Schedule:
    """One recurring job in a shard's memory."""

    __slots__ = ("definition", "due", "kept", "name", "queue")

    def __init__(self, queue: str, name: str, definition: Definition, kept: KeptSchedule) -> None:
        self.queue = queue
        self.name = name
        self.definition = definition
        self.kept = kept
        self.due: int | None = None  # when to look at it again

    @property
    def key(self) -> tuple[str, str]:
        """What it is found by, and sorted."""
        return (self.queue, self.name)

    def job_id(self, at: int) -> str:
        """Return the id of the job of one of its times. The same time gives the same id, whoever asks."""
        seconds, rest = divmod(at, SECOND_US)
        return f"{self.name}@{seconds}" + (f".{rest:06d}" if rest else "")


_definitions = msgspec.json.Decoder(Definition)
_encoder = msgspec.msgpack.Encoder()
_kept = msgspec.msgpack.Decoder(KeptSchedule)

pack_schedule: Callable[[KeptSchedule], bytes] = _encoder.encode


def schedule_name_fault(name: str) -> str | None:
    """Say what is wrong with the name of a schedule, if anything is."""
    return name_fault(name) or (f"must have at most {NAME_LENGTH_MAX} characters" if len(name) > NAME_LENGTH_MAX else None)


def read_definition(text: bytes) -> Definition | SettingFault:
    """Return the definition that a JSON text is, or what is wrong with it."""
    try:
        definition = _definitions.decode(text)
    except _GARBAGE:
        return _explain(text)
    if (definition.cron is None) == (definition.every is None):
        return SettingFault("cron", "is required, or else every: one of the two")
    if definition.every is not None and definition.timezone != "UTC":
        return SettingFault("timezone", "counts with cron only")
    return definition


def unpack_schedule(value: bytes) -> KeptSchedule:
    """Return what was stored of a schedule. Raises `RecordError`."""
    try:
        return _kept.decode(value)
    except _GARBAGE as error:
        raise RecordError("the schedule cannot be read") from error


def _explain(text: bytes) -> SettingFault:
    try:
        members = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    except _GARBAGE:
        return SettingFault("body", "must be a JSON object")
    for name, raw in members.items():
        if name not in DEFINITION_RULES:
            return SettingFault(name, "is not a field of a schedule")
        try:
            _definitions.decode(msgspec.json.encode({"job": msgspec.Raw(b"{}"), name: raw}))
        except _GARBAGE:
            return SettingFault(name, DEFINITION_RULES[name])
    return SettingFault("job", "is required")
