"""What a job may have beside its plain fields, and how that is stored.

Most jobs have none of it, and cost nothing for it: `Job.extras` is None. The rest carry one frozen `Extras`, replaced as a whole
when a part changes, so that an image of a job keeps its old extras by reference. A store keeps them as one opaque value (`pack_extras`), and
never looks inside: a new field is added at the end with a default, which old rows read as, and no store needs a migration for it.

Times are whole microseconds since the Unix epoch, durations whole microseconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from proteus_shards.errors import RowError

if TYPE_CHECKING:
    from collections.abc import Iterator

PRIORITY_MAX = 2**31 - 1
KEY_LENGTH_MAX = 1024
HISTORY_MAX = 20  # attempts kept of one job, the first and the latest
ERROR_LENGTH_MAX = 4096  # characters kept of one error
TRACE_LENGTH_MAX = 1024
DURATION_US_MAX = 366 * 86_400 * 1_000_000
FACTOR_MAX = 100.0

_Duration = Annotated[int, msgspec.Meta(ge=0, le=DURATION_US_MAX)]


class Backoff(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """How long a job that failed or timed out waits before it is ready again: `first_us × factor ** (attempt - 1)`, at most `max_us`.

    A factor of 1 is a fixed delay. `jitter` is the share (0…1) of it that is drawn at random and taken off.
    """

    first_us: _Duration
    factor: Annotated[float, msgspec.Meta(ge=1, le=FACTOR_MAX)] = 1.0
    max_us: _Duration = DURATION_US_MAX
    jitter: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0


class Attempt(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One run of a job that did not complete it. `outcome` says how it ended."""

    number: int
    started_at: int  # 0: not known
    ended_at: int
    outcome: Literal["timeout", "failed"]
    error: str | None = None


class Extras(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What a job has beside its plain fields."""

    key: str | None = None  # ordering key: at most one job of a key is in flight
    priority: int = 0  # higher first
    expires_at: int | None = None  # while it waits beyond this, it dies ("expired")
    backoff: Backoff | None = None  # of its own; else its queue's counts
    not_before: int | None = None  # it backs off, or was put off, until then
    history: tuple[Attempt, ...] = ()  # runs that did not complete it
    trace: str | None = None  # W3C traceparent of its producer, carried along
    schedule: str | None = None  # name of the schedule that made it


NO_EXTRAS = Extras()


def extras_bytes(extras: Extras | None) -> int:
    """Return about how many bytes extras take in an answer or a row, at most."""
    if extras is None:
        return 0
    errors = sum(64 + 4 * len(attempt.error or "") for attempt in extras.history)
    return 256 + 4 * (len(extras.key or "") + len(extras.trace or "") + len(extras.schedule or "")) + errors


def extras_times(extras: Extras) -> Iterator[int]:
    """Yield all instants that extras have."""
    for time in (extras.expires_at, extras.not_before):
        if time is not None:
            yield time
    for attempt in extras.history:
        yield attempt.started_at
        yield attempt.ended_at


def with_attempt(extras: Extras | None, attempt: Attempt, not_before: int | None, bytes_max: int | None = None) -> Extras | None:
    """Return extras with one more attempt in their history, which keeps `HISTORY_MAX` of them and, packed, takes no more than `bytes_max`."""
    extras = extras or NO_EXTRAS
    history = (*extras.history, attempt)
    if len(history) > HISTORY_MAX:
        history = (history[0], *history[1 - HISTORY_MAX :])
    extras = msgspec.structs.replace(extras, history=history, not_before=not_before)
    while bytes_max is not None and extras.history and len(_encoder.encode(extras)) > bytes_max:
        extras = msgspec.structs.replace(extras, history=_shortened(extras.history))
    return slim(extras)


def slim(extras: Extras) -> Extras | None:
    """Return None for extras that say nothing."""
    return None if extras == NO_EXTRAS else extras


def _shortened(history: tuple[Attempt, ...]) -> tuple[Attempt, ...]:
    """Return a history without its oldest error, or, where it has none, without its oldest attempt."""
    for place, attempt in enumerate(history):
        if attempt.error is not None:
            return (*history[:place], msgspec.structs.replace(attempt, error=None), *history[place + 1 :])
    return history[1:]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Extras)
_GARBAGE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def pack_extras(extras: Extras | None) -> bytes | None:
    """Return extras as a store keeps them; None where there are none."""
    return None if extras is None or extras == NO_EXTRAS else _encoder.encode(extras)


def unpack_extras(packed: bytes | None) -> Extras | None:
    """Return the extras that a store kept. Raises `RowError`."""
    if packed is None:
        return None
    try:
        return _decoder.decode(packed)
    except _GARBAGE as error:
        raise RowError("extras cannot be read") from error
