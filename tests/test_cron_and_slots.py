"""Which instants a schedule names, across daylight saving and over simulated years."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from standpipe import slots
from standpipe.pipeline import Schedule


def schedule(cron: str, timezone: str, start_within: str = "6h") -> Schedule:
    return Schedule.model_validate({"cron": cron, "timezone": timezone, "start_within": start_within})


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def named(cron: str, timezone: str, start: str, end: str) -> list[str]:
    return [f"{slot:%m-%d %H:%M}" for slot in slots.between(schedule(cron, timezone), at(start), at(end))]


def test_the_default_schedule_is_sunday_to_thursday_at_three_utc() -> None:
    week = named("0 3 * * 0-4", "UTC", "2026-10-31", "2026-11-08")
    assert week == ["11-01 03:00", "11-02 03:00", "11-03 03:00", "11-04 03:00", "11-05 03:00"]


@pytest.mark.parametrize(
    ("cron", "timezone", "start", "end", "expected"),
    [
        # New York: 02:30 does not exist on 8 March; 01:30 exists twice on 1 November.
        ("30 2 * * *", "America/New_York", "2026-03-07T08:00", "2026-03-10", ["03-08 07:00", "03-09 06:30"]),
        ("30 1 * * *", "America/New_York", "2026-11-01", "2026-11-02T12:00", ["11-01 05:30", "11-02 06:30"]),
        # London: 01:30 does not exist on 29 March; it exists twice on 25 October.
        ("30 1 * * *", "Europe/London", "2026-03-28T02:00", "2026-03-31", ["03-29 01:00", "03-30 00:30"]),
        ("30 1 * * *", "Europe/London", "2026-10-24T12:00", "2026-10-26T12:00", ["10-25 00:30", "10-26 01:30"]),
        # Lord Howe: half an hour is skipped on 4 October and repeated on 5 April.
        ("15 2 * * *", "Australia/Lord_Howe", "2026-10-03", "2026-10-04T18:00", ["10-03 15:30", "10-04 15:15"]),
    ],
)
def test_a_skipped_time_runs_once_and_a_repeated_one_once(
    cron: str, timezone: str, start: str, end: str, expected: list[str]
) -> None:
    assert named(cron, timezone, start, end) == expected


def numbers(field: str, lowest: int, highest: int) -> set[int]:
    found: set[int] = set()
    for part in field.split(","):
        span, _, step = part.partition("/")
        low, _, high = (f"{lowest}-{highest}" if span == "*" else span).partition("-")
        found |= set(range(int(low), int(high or low) + 1, int(step or 1)))
    return found


def minute_by_minute(line: str, timezone: str, start: datetime, end: datetime) -> list[datetime]:
    """What a cron daemon would start that looked at each minute, and took care of those that are skipped."""
    zone, fields = ZoneInfo(timezone), line.split()
    lowest_and_highest = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 6))
    minutes, hours, days, months, weekdays = map(numbers, fields, *zip(*lowest_and_highest, strict=True))
    star = fields[0].startswith("*") or fields[1].startswith("*")
    both = fields[2].startswith("*") or fields[4].startswith("*")

    def is_named(local: datetime) -> bool:
        if local.minute not in minutes or local.hour not in hours or local.month not in months:
            return False
        of_month, of_week = local.day in days, local.isoweekday() % 7 in weekdays
        return (of_month and of_week) if both else (of_month or of_week)

    found, minute = [], timedelta(minutes=1)
    now = start.replace(second=0, microsecond=0) + minute
    before = (now - minute).astimezone(zone).replace(tzinfo=None)
    while now <= end:
        aware = now.astimezone(zone)
        local = aware.replace(tzinfo=None)
        if star:
            is_due = is_named(local)
        else:
            passed = [before + minute * n for n in range(1, max(1, (local - before) // minute) + 1)]
            is_due = aware.fold == 0 and any(is_named(each) for each in {local, *passed})
        if is_due:
            found.append(now)
        before, now = local, now + minute
    return found


def changes(timezone: str, year: int) -> list[datetime]:
    """The hours of a year in which a zone's clocks are changed."""
    hours = [datetime(year, 1, 1, tzinfo=UTC) + timedelta(hours=n) for n in range(366 * 24)]
    offsets = [hour.astimezone(ZoneInfo(timezone)).utcoffset() for hour in hours]
    return [hour for hour, (one, other) in zip(hours, pairwise(offsets), strict=False) if one != other]


ZONES = ("Australia/Lord_Howe", "Europe/London", "America/New_York", "Australia/Lord_Howe", "America/Havana", "UTC")
ORACLE_LINES = (
    "0 */6 * * *", "0 */2 * * *", "15 */5 * * *", "30 * * * *", "*/20 1-3 * * *", "* 2 * * 0", "*/7 * 1-9 * 1",
    "30 2 * * *", "0,30 0-3 * * *", "59 23 * * *", "0 0 * * *", "45 1,2 * * 6,0", "15 2 1 * *", "5 2-23/3 * * *",
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(
    line=st.sampled_from(ORACLE_LINES),
    timezone=st.sampled_from(ZONES),
    year=st.integers(2015, 2037),
    which=st.integers(0, 3),
    begins=st.integers(-40 * 3600, 3 * 3600),  # seconds beside a change of the clocks
)
def test_slots_are_what_looking_at_each_minute_finds_through_years_of_changed_clocks(
    line: str, timezone: str, year: int, which: int, begins: int
) -> None:
    changed = changes(timezone, year) or [datetime(year, 3, 1, tzinfo=UTC)]
    start = changed[which % len(changed)] + timedelta(seconds=begins)
    end = start + timedelta(days=3)
    assert list(slots.between(schedule(line, timezone), start, end)) == minute_by_minute(line, timezone, start, end)


@pytest.mark.parametrize(
    ("line", "start", "end", "expected"),
    [
        ("0 */6 * * *", "2026-04-04T14:00", "2026-04-05T02:00", ["04-04 19:30", "04-05 01:30"]),
        ("0 */6 * * *", "2026-10-03T14:00", "2026-10-04T02:00", ["10-03 19:00", "10-04 01:00"]),
        ("30 * * * *", "2026-10-03T14:00", "2026-10-03T17:00", ["10-03 15:00", "10-03 15:30", "10-03 16:30"]),
    ],
)
def test_a_change_of_half_an_hour_costs_no_slot(line: str, start: str, end: str, expected: list[str]) -> None:
    assert named(line, "Australia/Lord_Howe", start, end) == expected


@settings(max_examples=60, deadline=None)
@given(
    cron=st.sampled_from(["0 3 * * 0-4", "30 1 * * *", "*/15 * * * *", "45 22 * * 0-4", "15 2 1 * *", "0 */5 * * *"]),
    timezone=st.sampled_from(["Europe/London", "America/New_York", "Australia/Lord_Howe", "UTC"]),
    start=st.datetimes(datetime(2024, 1, 1), datetime(2030, 1, 1)),  # noqa: DTZ001  # made aware below
)
def test_slots_are_strictly_later_each_time_and_the_same_from_wherever_one_begins(
    cron: str, timezone: str, start: datetime
) -> None:
    first = start.replace(tzinfo=UTC)
    listed = slots.upcoming(schedule(cron, timezone), first, 200)
    assert all(earlier < later for earlier, later in pairwise([first, *listed]))
    middle = listed[100]
    assert slots.upcoming(schedule(cron, timezone), middle - timedelta(seconds=1), 50) == listed[100:150]


def test_the_newest_due_slot_is_within_start_within() -> None:
    daily = schedule("0 3 * * *", "UTC", "2h")
    since = at("2026-01-01")
    assert slots.newest_due(daily, at("2026-01-10T03:00"), since) == at("2026-01-10T03:00")
    assert slots.newest_due(daily, at("2026-01-10T04:59"), since) == at("2026-01-10T03:00")
    assert slots.newest_due(daily, at("2026-01-10T05:01"), since) is None


def test_a_slot_before_the_registration_does_not_exist() -> None:
    daily = schedule("0 3 * * *", "UTC", "6h")
    assert slots.newest_due(daily, at("2026-01-10T03:30"), at("2026-01-10T03:10")) is None


def test_of_several_due_slots_the_newest_is_meant() -> None:
    often = schedule("*/15 * * * *", "UTC", "6h")
    assert slots.newest_due(often, at("2026-01-10T03:50"), at("2026-01-01")) == at("2026-01-10T03:45")


def test_the_slot_s_date_is_that_of_its_zone() -> None:
    evening = schedule("45 22 * * *", "America/New_York")
    assert slots.slot_date(evening, at("2026-11-23T03:45")) == date(2026, 11, 22)
