"""The settings of one queue: what there is to set, and how a change is checked.

A change is a JSON merge patch (RFC 7396): a field that is left out stays, `null` takes it back to its default. The same function checks it in
the front, which can name the field at fault, and again in the shard, which knows what is set. What is kept is the JSON of all that
differs from the defaults: a setting that a later version adds is simply not there yet.

Durations are seconds, as everywhere in the API.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from proteus_shards.core.extras import FACTOR_MAX
from proteus_shards.core.model import MAX_RETRIES_MAX, TIMEOUT_SECONDS_MAX

SECONDS_MAX = 366 * 86_400.0

_Seconds = Annotated[float, msgspec.Meta(ge=0, le=SECONDS_MAX)]
_Count = Annotated[int, msgspec.Meta(ge=1, le=2**53)]


class BackoffSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """How long a job that failed or timed out waits: `seconds × factor ** (attempt - 1)`, at most `seconds_max`, less a random share `jitter`."""

    seconds: _Seconds
    factor: Annotated[float, msgspec.Meta(ge=1, le=FACTOR_MAX)] = 1.0
    seconds_max: _Seconds = SECONDS_MAX
    jitter: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0


class RateSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """At most `jobs` deliveries in `seconds`, evenly refilled; `burst` (by default `jobs`) is how many may come at once."""

    jobs: _Count
    seconds: Annotated[float, msgspec.Meta(gt=0, le=SECONDS_MAX)] = 1.0
    burst: _Count | None = None


class QueueSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """All settings of a queue. The first word of each help is what happens without it."""

    paused: bool = False
    max_in_flight: _Count | None = None
    rate: RateSettings | None = None
    timeout: Annotated[int, msgspec.Meta(ge=0, le=TIMEOUT_SECONDS_MAX)] | None = None
    max_retries: Annotated[int, msgspec.Meta(ge=-(2**31), le=MAX_RETRIES_MAX)] | None = None
    backoff: BackoffSettings | None = None
    on_retry: Literal["hold", "skip"] = "hold"
    delayed_head: Literal["hold", "pass"] = "pass"
    ttl: _Seconds | None = None
    jobs_max: _Count | None = None
    bytes_max: _Count | None = None
    dead_letters_max: Annotated[int, msgspec.Meta(ge=0, le=2**53)] | None = None
    dead_letters_seconds_max: _Seconds | None = None


DEFAULT_SETTINGS = QueueSettings()

_RULES: dict[str, str] = {
    "paused": "must be true or false",
    "max_in_flight": "must be an integer of at least 1, or null",
    "rate": "must be null or an object: jobs (an integer of at least 1), seconds (above 0, default 1), burst (an integer of at least 1)",
    "timeout": f"must be an integer from 0 to {TIMEOUT_SECONDS_MAX}, or null",
    "max_retries": f"must be an integer from {-(2**31)} to {MAX_RETRIES_MAX}, or null",
    "backoff": f"must be null or an object: seconds (0 to {SECONDS_MAX:g}), factor (1 to {FACTOR_MAX:g}), seconds_max, jitter (0 to 1)",
    "on_retry": 'must be "hold" or "skip"',
    "delayed_head": 'must be "hold" or "pass"',
    "ttl": f"must be a number of seconds from 0 to {SECONDS_MAX:g}, or null",
    "jobs_max": "must be an integer of at least 1, or null",
    "bytes_max": "must be an integer of at least 1, or null",
    "dead_letters_max": "must be an integer of at least 0, or null",
    "dead_letters_seconds_max": f"must be a number of seconds from 0 to {SECONDS_MAX:g}, or null",
}


class SettingFault(msgspec.Struct, frozen=True):
    """What is wrong with a change: the field, and the rule that it breaks."""

    field: str
    rule: str


def merge(settings: QueueSettings, patch: bytes) -> QueueSettings | SettingFault:
    """Return settings changed by a JSON merge patch, or what is wrong with it."""
    try:
        changes = msgspec.json.decode(patch, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return SettingFault("body", "must be a JSON object")
    whole: dict[str, Any] = msgspec.to_builtins(settings)
    for name, value in changes.items():
        if name not in _RULES:
            return SettingFault(name, "is not a setting of a queue")
        if value is None:
            whole.pop(name, None)
            continue
        before = whole.get(name)
        whole[name] = {**before, **value} if isinstance(before, dict) and isinstance(value, dict) else value
        if isinstance(whole[name], dict):
            whole[name] = {key: part for key, part in whole[name].items() if part is not None}
        try:
            msgspec.convert({name: whole[name]}, QueueSettings)
        except msgspec.ValidationError:
            return SettingFault(name, _RULES[name])
    return msgspec.convert(whole, QueueSettings)


def kept(settings: QueueSettings) -> bytes:
    """Return the JSON of what differs from the defaults."""
    return msgspec.json.encode(settings)


def read_kept(value: bytes) -> QueueSettings:
    """Return the settings that `kept` wrote; what this version does not know is passed over. Raises `msgspec.DecodeError`."""
    found = msgspec.json.decode(value, type=_Kept)
    return QueueSettings(
        **{name: getattr(found, name) for name in QueueSettings.__struct_fields__}
    )  # the same settings are equal, wherever they come from


class _Kept(QueueSettings, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """`QueueSettings` of another version."""
