"""What a budget will have come to at its period's end, and on which day nothing is left.

Each pipeline that has a schedule spends on its slots' days, one without on any day. What it spends is foretold by its
last eight weeks, the later ones counting for more: a level, by weekday, that goes on rising or falling as it did, ever
more slowly (a damped trend; Gardner and McKenzie, Management Science 31, 1985), and never above the most that one day
has come to. A pipeline that has told what it expects to spend on the days to come is believed instead, for a week, from
the first day that it names to the last: it knows its own calendar. What a day brings varies, and so does the sum of
what is still to come: the range holds nine of ten such ends. Amounts are billionths of a unit, as in the books.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta

from standpipe_task.spending import SCALE, State

DAYS_LOOKED_AT = 56
HALF_LIFE = 21  # days after which a day counts for half
DAMPING = 0.95  # what is left of a rise or a fall after each day
TREND_FROM = 20  # days that are known, before which nothing rises or falls
SURE = 4  # standard errors, squared: a rise or fall below that is taken for chance
TOLD_FOR = 7  # days for which a pipeline's own word counts, where it tells nothing new
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

    `runs_dry` is the day on which less than nothing would be left, or today where something was spent and what is left
    is too little for any call; `may_run_dry` the first on which it may be so, or is so by what pipelines spent,
    whatever they tell. None for not in this period.
    """

    at_end: float
    low: float
    high: float
    runs_dry: date | None
    may_run_dry: date | None
    days: list[Day]


@dataclass(frozen=True)
class Rhythm:
    """How much is spent on a day: a level that rises or falls, more on some weekdays, and how far off a day is.

    `level` is that of `middle` days after today (before it, if negative), `slope` the change from a day to the next.
    `spread`, `level_doubt` and `slope_doubt` are variances.
    """

    level: float
    middle: float
    slope: float
    weekdays: Mapping[int, float]
    most: float
    spread: float
    level_doubt: float
    slope_doubt: float

    @classmethod
    def of(cls, known: Sequence[tuple[date, float]], today: date) -> Rhythm:
        """Fit it to what days have come to, by least squares."""
        weights = [math.pow(0.5, (today - day).days / HALF_LIFE) for day, _ in known]
        whole = sum(weights)

        def mean(values: Iterable[float]) -> float:
            return sum(weight * value for weight, value in zip(weights, values, strict=True)) / whole

        overall = mean(amount for _, amount in known)
        weekdays = {}
        for weekday in range(7):
            same = [
                (weight, amount)
                for weight, (day, amount) in zip(weights, known, strict=True)
                if day.weekday() == weekday
            ]
            if same and overall:
                share = sum(weight * amount for weight, amount in same) / sum(weight for weight, _ in same) / overall
                weekdays[weekday] = (share * len(same) + 1) / (len(same) + 1)  # as if one more had been like all days
        factors = [weekdays.get(day.weekday(), 1.0) for day, _ in known]
        levels = [amount / factor for factor, (_, amount) in zip(factors, known, strict=True)]
        places = [float((day - today).days) for day, _ in known]
        level, middle = mean(levels), mean(places)
        width = mean((place - middle) ** 2 for place in places)
        slope = 0.0
        if len(known) >= TREND_FROM and width:
            slope = mean((x - middle) * (y - level) for x, y in zip(places, levels, strict=True)) / width
        off = [
            amount - factor * (level + slope * (place - middle))
            for factor, place, (_, amount) in zip(factors, places, known, strict=True)
        ]
        worth = whole**2 / sum(weight**2 for weight in weights)  # how many days of full weight the known ones are like
        daily = mean(each**2 for each in off) * worth / (worth - 2) if worth > 3 else overall**2
        if slope:  # chance alone makes a slope: as far as it is unsure, it is none (shrinkage)
            slope *= max(0.0, 1 - SURE * daily / worth / width / slope**2)
        spread = max(daily, by_weeks(off, places))
        return cls(
            level=level,
            middle=middle,
            slope=slope,
            weekdays=weekdays,
            most=max(amount for _, amount in known),
            spread=spread,
            level_doubt=spread / worth,
            slope_doubt=spread / worth / width if slope else 0.0,
        )

    def steps(self, ahead: int) -> float:
        """Return by how many slopes the level differs from its middle's, some days ahead."""
        return DAMPING * (1 - math.pow(DAMPING, ahead)) / (1 - DAMPING) - self.middle

    def on(self, day: date, ahead: int) -> float:
        """Return what is expected of a day."""
        expected = (self.level + self.slope * self.steps(ahead)) * self.weekdays.get(day.weekday(), 1.0)
        return min(max(expected, 0.0), self.most)


def by_weeks(off: Sequence[float], places: Sequence[float]) -> float:
    """Return the variance of a day by that of whole weeks: it is larger where days that are off come together."""
    weeks: dict[int, list[float]] = {}
    for each, place in zip(off, places, strict=True):
        weeks.setdefault(int(-place // 7), []).append(each)
    return sum(sum(week) ** 2 for week in weeks.values()) / len(off)


def forecast(now: State, today: date, slots: Mapping[str, list[date]], spent_today: Mapping[str, bool]) -> Forecast:
    """Look ahead from the books' present state.

    `slots` has, for each pipeline with a schedule, the days of its slots: of those past as far as the state's days go
    back, and of those to come in this period; `spent_today` says whose slots of today are over. What pipelines tell
    keeps nobody from hearing that it will run dry by what they have spent: a word may be too low, night after night.
    """
    look = foreseen(now, today, slots, spent_today)
    if look.may_run_dry or not now.told:
        return look
    untold = foreseen(replace(now, told=[]), today, slots, spent_today)
    return replace(look, may_run_dry=untold.runs_dry)


def foreseen(now: State, today: date, slots: Mapping[str, list[date]], spent_today: Mapping[str, bool]) -> Forecast:
    """Look ahead by what was told, and beyond it by what was spent."""
    last = now.terms.day_at(now.ends - 1)
    ahead = [today + timedelta(days=count) for count in range((last - today).days + 1)]
    expected = dict.fromkeys(ahead, 0.0)
    uncertain = dict.fromkeys(ahead, 0.0)
    for pipeline in {name for _, name, _, _ in now.days} | {name for name, _, _, _ in now.told}:
        spent = {date.fromisoformat(day): amount for day, name, _, amount in now.days if name == pipeline}
        scheduled = slots.get(pipeline)
        first = max(min(spent, default=today), today - timedelta(days=DAYS_LOOKED_AT))
        today_is_over = spent_today.get(pipeline, False)
        past = [first + timedelta(days=count) for count in range((today - first).days + today_is_over)]
        known = [day for day in past if scheduled is None or day in scheduled or day in spent]
        if not known and today in spent:
            known = [today]
        coming = [day for day in ahead if scheduled is None or day in scheduled]
        if spent_today.get(pipeline, scheduled is None) and today in coming:
            coming.remove(today)
        told = told_by(now, pipeline, today)
        for day in ahead:
            if day > today or today in coming:
                expected[day] += told.get(day, 0)
        if not spent or not known:
            continue
        rhythm = Rhythm.of([(day, float(spent.get(day, 0))) for day in known], today)
        steps = doubt = 0.0
        for count, day in enumerate(coming, start=1):
            # What each day brings; and, shared by all of them, that neither level nor slope is known for sure.
            if not told or not min(told) <= day <= max(told):
                expected[day] += rhythm.on(day, (day - today).days)
                steps += rhythm.steps((day - today).days)
            shared = count**2 * rhythm.level_doubt + steps**2 * rhythm.slope_doubt
            uncertain[day] += rhythm.spread + max(0.0, shared - doubt)
            doubt = max(doubt, shared)
    return along(now, ahead, expected, uncertain)


def told_by(now: State, pipeline: str, today: date) -> dict[date, int]:
    """Return what a pipeline itself expects to spend, by day; nothing where it did not say so lately."""
    return {date.fromisoformat(day): amount for name, _, day, amount in told_lately(now, today) if name == pipeline}


def told_lately(now: State, today: date) -> list[tuple[str, str, str, int]]:
    """Return what the state has of pipelines' own words, as far as they are believed still."""
    return [row for row in now.told if 0 <= (today - date.fromisoformat(row[1])).days <= TOLD_FOR]


def along(now: State, ahead: list[date], expected: dict[date, float], uncertain: dict[date, float]) -> Forecast:
    """Go through the days to come, and see what is left after each."""
    spent = float(now.spent + now.crashed + now.elsewhere + now.reserved)
    doubt = 0.0
    days = []
    for day in ahead:
        spent += expected[day]
        doubt += uncertain[day]
        days.append(
            Day(day, expected[day], now.terms.limit - spent, now.terms.limit - spent - NINE_OF_TEN * math.sqrt(doubt))
        )
    already = float(now.spent + now.crashed + now.elsewhere)
    cheapest = min(filter(None, now.terms.prices.values()), default=SCALE)
    # The books never have more than the limit: what ended there has run dry.
    today = ahead[0] if already and now.terms.limit - already < cheapest else None
    margin = NINE_OF_TEN * math.sqrt(doubt)
    return Forecast(
        at_end=spent,
        low=max(already, spent - margin),
        high=spent + margin,
        runs_dry=today or next((each.day for each in days if each.left < 0), None),
        may_run_dry=today or next((each.day for each in days if each.left_at_least < 0), None),
        days=days,
    )
