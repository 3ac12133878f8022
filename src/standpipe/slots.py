"""Which instants a schedule names.

Across daylight saving, a fixed time that is skipped runs once at the next valid instant, and a repeated one once, the
first time. Where the minute or the hour begins with a star, each real minute counts whose local time the line names: a
repeated hour is run again, a skipped one is not there. Cron does the same, but that it never starts what stands for a
skipped time: that is for catch-up to start.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta, tzinfo
from itertools import islice, takewhile
from zoneinfo import ZoneInfo

from cronsim import CronSim

from standpipe import cron
from standpipe.pipeline import Schedule

A_DAY = 86400  # seconds


def after(schedule: Schedule, instant: datetime) -> Iterator[datetime]:
    """Yield the slots after `instant` (aware), oldest first, without end, in UTC."""
    named = of_a_star if cron.has_star(schedule.cron) else at_fixed_times
    return named(schedule.cron, ZoneInfo(schedule.timezone), instant)


def at_fixed_times(line: str, zone: tzinfo, instant: datetime) -> Iterator[datetime]:
    """Yield what a line of fixed times names; cronsim steps through local time as if it had no seam."""
    previous = instant
    for local in CronSim(line, instant.astimezone(zone).replace(tzinfo=None)):
        slot = local.replace(tzinfo=zone).astimezone(UTC)
        while slot.astimezone(zone).replace(tzinfo=None) != local:  # that time is skipped
            local += timedelta(minutes=1)
            slot = local.replace(tzinfo=zone).astimezone(UTC)
        if slot > previous:
            yield slot
            previous = slot


def is_made_up(schedule: Schedule, slot: datetime) -> bool:
    """Say whether a slot stands for a local time that is skipped, and is none that the line itself names."""
    zone = ZoneInfo(schedule.timezone)
    if cron.has_star(schedule.cron) or offset_at(slot, zone) <= offset_at(slot - timedelta(seconds=1), zone):
        return False
    local = slot.astimezone(zone).replace(tzinfo=None)
    return next(CronSim(schedule.cron, local - timedelta(minutes=1))) != local


def of_a_star(line: str, zone: tzinfo, instant: datetime) -> Iterator[datetime]:
    """Yield each real instant that a line with a star names, from one change of the clocks to the next."""
    begin = seen = instant
    while True:
        offset = offset_at(seen, zone)
        for local in CronSim(line, (begin + offset).replace(tzinfo=None)):
            slot = (local - offset).replace(tzinfo=UTC)
            change = first_change(zone, seen, slot)
            if change:
                begin, seen = change - timedelta(seconds=1), change
                break
            yield slot
            seen = slot
        else:
            return


def offset_at(instant: datetime, zone: tzinfo) -> timedelta:
    """Return by how much a zone's clocks are before UTC at an instant."""
    return instant.astimezone(zone).utcoffset() or timedelta()


def first_change(zone: tzinfo, start: datetime, end: datetime) -> datetime | None:
    """Return the first instant after `start`, up to and including `end`, at which a zone's clocks are changed."""
    start = start.astimezone(UTC).replace(microsecond=0)
    before = offset_at(start, zone)

    def changed(seconds: int) -> bool:
        return offset_at(start + timedelta(seconds=seconds), zone) != before

    while start < end:
        seconds = min(A_DAY, int((end - start).total_seconds()))
        if changed(seconds):
            return start + timedelta(seconds=bisect_left(range(seconds), True, key=changed))
        start += timedelta(seconds=seconds)
    return None


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
