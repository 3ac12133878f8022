"""What a budget will have come to at its period's end, and on which day nothing is left.

Each pipeline that has a schedule spends on its slots' days: as much as on its last such days, the same weekday counting
for more; one without spends on any day. What a day brings varies, and so does the sum of what is still to come: the
range holds nine of ten such ends. Amounts are billionths of a unit, as in the books.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from math import sqrt
from statistics import fmean, variance

from standpipe_task.spending import State

DAYS_LOOKED_AT = 56
SAME_WEEKDAY_COUNTS = 0.5  # of an expected day, as soon as there is one of that weekday; the rest is all days'
NINE_OF_TEN = 1.645  # standard deviations to either side


@dataclass(frozen=True)
class Day:
    """A day still to come, or the rest of today: what is then left of the budget, and for sure, nine times of ten."""

    day: date
    spends: float
    left: float
    left_at_least: float


@dataclass(frozen=True)
class Forecast:
    """`at_end` is what will be spent at the period's end, from `low` to `high` nine times of ten.

    `runs_dry` is the day on which less than nothing would be left, `may_run_dry` the first on which it may be so;
    None for not in this period.
    """

    at_end: float
    low: float
    high: float
    runs_dry: date | None
    may_run_dry: date | None
    days: list[Day]


def forecast(now: State, today: date, slots: Mapping[str, list[date]], spent_today: Mapping[str, bool]) -> Forecast:
    """Look ahead from the books' present state.

    `slots` has, for each pipeline with a schedule, the days of its slots: of those past as far as the state's days go
    back, and of those to come in this period; `spent_today` says whose slots of today are over.
    """
    last = now.terms.day_at(now.ends - 1)
    ahead = [today + timedelta(days=count) for count in range((last - today).days + 1)]
    expected = dict.fromkeys(ahead, 0.0)
    uncertain = dict.fromkeys(ahead, 0.0)
    for pipeline in {name for _, name, _, _ in now.days}:
        spent = {date.fromisoformat(day): amount for day, name, _, amount in now.days if name == pipeline}
        scheduled = slots.get(pipeline)
        first = max(min(spent), today - timedelta(days=DAYS_LOOKED_AT))
        past = [first + timedelta(days=count) for count in range((today - first).days)]
        known = [day for day in past if scheduled is None or day in scheduled or day in spent]
        if not known and today in spent:
            known = [today]
        coming = [day for day in ahead if scheduled is None or day in scheduled]
        if spent_today.get(pipeline, scheduled is None) and today in coming:
            coming.remove(today)
        amounts = [float(spent.get(day, 0)) for day in known]
        if not amounts:
            continue
        mean = fmean(amounts)
        spread = variance(amounts) if len(amounts) > 1 else mean**2
        for day in coming:
            same = [
                amount for known_day, amount in zip(known, amounts, strict=True) if known_day.weekday() == day.weekday()
            ]
            expected[day] += mean + SAME_WEEKDAY_COUNTS * (fmean(same) - mean) if same else mean
            # What one day brings, and, shared by all of them, that the mean itself is not known.
            uncertain[day] += spread * (1 + len(coming) / len(amounts))
    return along(now, ahead, expected, uncertain)


def along(now: State, ahead: list[date], expected: dict[date, float], uncertain: dict[date, float]) -> Forecast:
    """Go through the days to come, and see what is left after each."""
    spent = float(now.spent + now.crashed + now.elsewhere + now.reserved)
    doubt = 0.0
    days = []
    for day in ahead:
        spent += expected[day]
        doubt += uncertain[day]
        days.append(
            Day(day, expected[day], now.terms.limit - spent, now.terms.limit - spent - NINE_OF_TEN * sqrt(doubt))
        )
    already = float(now.spent + now.crashed + now.elsewhere)
    margin = NINE_OF_TEN * sqrt(doubt)
    return Forecast(
        at_end=spent,
        low=max(already, spent - margin),
        high=spent + margin,
        runs_dry=next((each.day for each in days if each.left < 0), None),
        may_run_dry=next((each.day for each in days if each.left_at_least < 0), None),
        days=days,
    )
