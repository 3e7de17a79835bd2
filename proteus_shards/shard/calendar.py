"""Which times a recurring job has: cron expressions in a time zone, and plain intervals.

Cron expressions are evaluated as Debian's cron does it, by cronsim: five fields, or six with seconds in front. Where a time zone's clocks
are set, a time of day that does not exist comes right after the gap, one that exists twice comes once, and what comes every hour or minute comes as
often as hours and minutes pass. (croniter was the other candidate: larger, with another library beneath it, and of no such rule.) Names of time zones
and their rules are the system's, or where it has none those of the package tzdata.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from proteus_shards.core.queue_settings import SettingFault
from proteus_shards.core.schedules import DEFINITION_RULES, Intervals

if TYPE_CHECKING:
    from proteus_shards.core.schedules import Definition

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_ZONES_MAX = 512


class CronCalendar(Intervals):
    """Implements `core.schedules.Calendar`."""

    def fault(self, definition: Definition) -> SettingFault | None:
        """See `Calendar`."""
        if definition.cron is None:
            return None
        zone = _zone(definition.timezone)
        if zone is None:
            return SettingFault("timezone", DEFINITION_RULES["timezone"])
        try:
            CronSim(definition.cron, _EPOCH)
        except CronSimError as error:
            return SettingFault("cron", f"is no cron expression: {error}")
        return None

    def next_after(self, definition: Definition, after_us: int) -> int | None:
        """See `Calendar`."""
        if definition.cron is None:
            return super().next_after(definition, after_us)
        zone = _zone(definition.timezone)
        try:
            times = CronSim(definition.cron, (_EPOCH + timedelta(microseconds=after_us)).astimezone(zone))
            for _ in range(3):  # where clocks are set back, a time of day may come up that has been
                found = (next(times).astimezone(UTC) - _EPOCH) // _MICROSECOND
                if found > after_us:
                    return found
        except (StopIteration, OverflowError, CronSimError):
            pass
        return None


@lru_cache(_ZONES_MAX)
def _zone(name: str) -> ZoneInfo | None:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # unknown, no name at all, or a folder of them
        return None
