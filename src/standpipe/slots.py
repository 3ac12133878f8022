"""Which instants a schedule names.

cronsim follows Debian's cron across daylight saving: a fixed time that is skipped runs once at the
next valid instant, a repeated one runs once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from itertools import islice, takewhile
from zoneinfo import ZoneInfo

from cronsim import CronSim

from standpipe.pipeline import Schedule


def after(schedule: Schedule, instant: datetime) -> Iterator[datetime]:
    """Yield the slots after `instant` (aware), oldest first, without end, in UTC."""
    previous = instant
    for slot in CronSim(schedule.cron, instant.astimezone(ZoneInfo(schedule.timezone))):
        slot = slot.astimezone(UTC)
        if slot > previous:
            yield slot
            previous = slot


def between(schedule: Schedule, start: datetime, end: datetime) -> Iterator[datetime]:
    """Yield the slots after `start` up to and including `end`, oldest first, in UTC."""
    return takewhile(lambda slot: slot <= end, after(schedule, start))


def upcoming(schedule: Schedule, now: datetime, count: int) -> list[datetime]:
    """Return the next `count` slots after `now`, in UTC."""
    return list(islice(after(schedule, now), count))


def newest_due(schedule: Schedule, now: datetime, since: datetime) -> datetime | None:
    """Return the newest slot that may still be started at `now`; slots exist after `since` only."""
    earliest = max(since, now - timedelta(seconds=schedule.start_within))
    newest = deque(between(schedule, earliest, now), maxlen=1)
    return newest[0] if newest else None


def slot_date(schedule: Schedule | None, instant: datetime) -> date:
    """Return the date of an instant in the schedule's zone; UTC where there is no schedule."""
    return instant.astimezone(ZoneInfo(schedule.timezone if schedule else "UTC")).date()
