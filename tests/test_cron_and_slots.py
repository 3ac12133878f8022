"""Which instants a schedule names, across daylight saving and over simulated years."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from itertools import pairwise

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
