"""Points in time as HTTP writes them (RFC 3339) and as the core counts them (whole microseconds since the Unix epoch).

What goes out has one form only: UTC, six fraction digits, `Z`. What comes in may have any offset, but must have one.
Decisions: digits of a second beyond the sixth are cut off; the separator may be `T`, `t` or, as RFC 3339 allows for
readability, a space; a leap second is taken where one can be (23:59:60 UTC) and means the first instant of the next day, as in POSIX
time, which has no other name for it. The years are 0001…9999, both as written and in UTC.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from proteus_shards.core.model import SECOND_US, TIME_US_MAX, TIME_US_MIN

RULE = "must be an RFC 3339 time with an offset, such as 2030-01-31T09:30:00Z"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_RFC_3339 = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt ]([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]+))?(?:[Zz]|([+-])([0-9]{2}):([0-9]{2}))"
)


def read_instant(text: str) -> int | None:
    """Return the microseconds since the epoch that an RFC 3339 time means, or None where the text is no such time."""
    match = _RFC_3339.fullmatch(text)
    if match is None:
        return None
    year, month, day, hour, minute, second, fraction, sign, offset_hour, offset_minute = match.groups()
    leap = second == "60"
    try:
        moment = datetime(int(year), int(month), int(day), int(hour), int(minute), 59 if leap else int(second), tzinfo=UTC)
        if sign is not None:
            if int(offset_hour) > 23 or int(offset_minute) > 59:
                return None
            offset = timedelta(hours=int(offset_hour), minutes=int(offset_minute))
            moment = moment - offset if sign == "+" else moment + offset
        if leap:
            if (moment.hour, moment.minute) != (23, 59):
                return None
            moment += timedelta(seconds=1)
    except (ValueError, OverflowError):  # a date that no calendar has, or a year outside 1…9999
        return None
    micros = 0 if leap else int((fraction or "0")[:6].ljust(6, "0"))
    return (moment - _EPOCH) // _MICROSECOND + micros


def write_instant(instant_us: int) -> str:
    """Return the RFC 3339 form, in UTC and to the microsecond, of an instant; of one outside the years 1…9999, that of their nearest."""
    if not TIME_US_MIN <= instant_us <= TIME_US_MAX:
        instant_us = min(max(instant_us, TIME_US_MIN), TIME_US_MAX)
    second, micros = divmod(instant_us, SECOND_US)
    return f"{_date_and_time(second)}.{micros:06d}Z"


@lru_cache(maxsize=1024)
def _date_and_time(second: int) -> str:
    return (_EPOCH + timedelta(seconds=second)).isoformat()[:19]
