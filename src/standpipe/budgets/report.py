"""What `standpipe budget` shows: tables for people, a burn-down, JSON of schema 1 for programs, an SVG picture."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import groupby
from pathlib import Path
from typing import Any

from standpipe import configuration, slots
from standpipe.budgets import forecast
from standpipe.errors import StandpipeError
from standpipe.ledger import timestamp
from standpipe.report import SCHEMA, table
from standpipe_task import spending

A_WEEK = timedelta(days=7)
BAR = 40  # characters
SVG = "http://www.w3.org/2000/svg"


@dataclass(frozen=True)
class Outlook:
    """A budget's state, and what is to be expected of it."""

    state: spending.State
    forecast: forecast.Forecast

    @property
    def name(self) -> str:
        """Return the budget's name."""
        return self.state.terms.name


def outlook(database: spending.Database, terms: spending.Terms) -> Outlook:
    """Look at a budget, and ahead to its period's end."""
    now = datetime.fromtimestamp(database.now(), UTC)
    today = terms.day_at(now.timestamp())
    since = today - timedelta(days=forecast.DAYS_LOOKED_AT)
    state = spending.state(database, terms, min(since, terms.day_at(terms.period_at(now.timestamp())[0])).isoformat())
    days: dict[str, list[date]] = {}
    over: dict[str, bool] = {}
    for name in {row[1] for row in state.days} | {row[0] for row in state.told}:
        try:
            schedule = configuration.load(name).schedule
        except StandpipeError:
            # Another host's, or gone: it goes on as it did, or it does not.
            spent = [day for day, pipeline, _, _ in state.days if pipeline == name]
            if spent and max(spent) < (today - A_WEEK).isoformat():
                days[name] = []
            continue
        if schedule is None:
            continue
        begin = datetime.combine(since, datetime.min.time(), UTC)
        named = list(slots.between(schedule, begin, datetime.fromtimestamp(state.ends, UTC) - timedelta(seconds=1)))
        days[name] = [terms.day_at(slot.timestamp()) for slot in named]
        over[name] = not any(slot > now and terms.day_at(slot.timestamp()) == today for slot in named)
    return Outlook(state, forecast.forecast(state, today, days, over))


def shown(amount: float) -> str:
    """Write an amount: exact where it is of the books, of four digits where it is foretold."""
    if isinstance(amount, int):
        return f"{spending.units(amount):f}"
    value = amount / spending.SCALE
    return f"{value:.0f}" if value >= 1000 else f"{value:.4g}"


def when_dry(look: forecast.Forecast) -> str:
    """Say on which day nothing is left."""
    if look.runs_dry:
        return f"{look.runs_dry}"
    return f"perhaps {look.may_run_dry}" if look.may_run_dry else "no"


def overview(outlooks: list[Outlook]) -> str:
    """Return a table of budgets."""
    if not outlooks:
        return "no budgets are declared on this host"
    rows: list[tuple[str, ...]] = [("BUDGET", "LIMIT", "A", "SPENT", "RESERVED", "LEFT", "AT ITS END", "RUNS DRY")]
    for each in outlooks:
        now = each.state
        rows.append(
            (
                each.name,
                f"{shown(now.terms.limit)} {now.terms.units}",
                now.terms.period,
                shown(now.spent + now.crashed + now.elsewhere),
                shown(now.reserved),
                shown(now.left),
                shown(each.forecast.at_end),
                when_dry(each.forecast),
            )
        )
    return "\n".join([table(rows), *(f"{each.name}: {told}" for each in outlooks for told in held(each.state))])


def detail(each: Outlook) -> str:
    """Return all there is to say of one budget, with what was left day by day, and will be."""
    now, look = each.state, each.forecast
    told = forecast.told_lately(now, look.days[0].day)
    lines = [
        f"{each.name}: {shown(now.terms.limit)} {now.terms.units} a {now.terms.period} ({now.terms.timezone}), "
        f"until {spending.moment(now.ends)}",
        f"spent {shown(now.spent)}, crashed {shown(now.crashed)}, elsewhere {shown(now.elsewhere)}, "
        f"reserved {shown(now.reserved)}, left {shown(now.left)}",
        f"at its end {shown(look.at_end)} (nine times of ten {shown(look.low)} to {shown(look.high)}); "
        f"runs dry: {when_dry(look)}",
        *held(now),
        *(f"{name} told on {said} what it expects to spend" for name, said in sorted({row[:2] for row in told})),
        "",
        table([("PIPELINE", "CALLS", "SPENT"), *by_pipeline(now)]),
        "",
        table([("DAY", "SPENT", "LEFT", ""), *burn_down(each)]),
    ]
    return "\n".join(lines)


def held(now: spending.State) -> list[str]:
    """Say that a provider asks for no calls, while it does."""
    return [f"its provider asks for no calls before {spending.moment(now.held_until)}"] if now.held_until else []


def of_this_period(now: spending.State) -> list[tuple[str, str, int, int]]:
    """Return what was spent in the present period, by day and pipeline."""
    first = now.terms.day_at(now.starts).isoformat()
    return [row for row in now.days if row[0] >= first]


def by_pipeline(now: spending.State) -> list[tuple[str, str, str]]:
    """Return a row for each pipeline, of the present period."""
    rows = sorted(of_this_period(now), key=lambda row: row[1])
    found = []
    for pipeline, group in groupby(rows, key=lambda row: row[1]):
        each = list(group)
        found.append((pipeline, str(sum(row[2] for row in each)), shown(sum(row[3] for row in each))))
    return found


def by_day(now: spending.State) -> list[tuple[date, int]]:
    """Return what was spent on each day of the present period that has been."""
    spent = {day: sum(row[3] for row in rows) for day, rows in groupby(of_this_period(now), key=lambda row: row[0])}
    first = now.terms.day_at(now.starts)
    last = max([first, *(date.fromisoformat(day) for day in spent)])
    days = [first + timedelta(days=count) for count in range((last - first).days + 1)]
    return [(day, spent.get(day.isoformat(), 0)) for day in days]


def been(now: spending.State) -> list[tuple[date, int, int]]:
    """Return for each day of the period that has been what was spent, and what was left at its end.

    What no day has (calls under way, those elsewhere, those of a period before) counts from the first on.
    """
    days = by_day(now)
    left = now.terms.limit - now.spent - now.crashed - now.elsewhere - now.reserved + sum(spent for _, spent in days)
    return [(day, spent, max(0, left := left - spent)) for day, spent in days]


def burn_down(each: Outlook) -> list[tuple[str, str, str, str]]:
    """Return a row for each day: what was left at its end, full; what is expected to be, hatched."""
    now = each.state
    limit = max(1, now.terms.limit)
    rows = [
        (day.isoformat(), shown(amount), shown(left), "█" * round(BAR * left / limit))
        for day, amount, left in been(now)
    ]
    for coming in each.forecast.days:
        if coming.spends:
            bar = "░" * round(BAR * max(0.0, coming.left) / limit)
            rows.append((coming.day.isoformat(), f"~{shown(coming.spends)}", f"~{shown(max(0.0, coming.left))}", bar))
    return rows


def as_json(outlooks: list[Outlook]) -> dict[str, Any]:
    """Return budgets in the words of the JSON contract; amounts are decimal texts, in units."""
    return {
        "schema": SCHEMA,
        "budgets": [
            {
                "name": each.name,
                "unit": each.state.terms.unit,
                "period": each.state.terms.period,
                "timezone": each.state.terms.timezone,
                "starts": timestamp(datetime.fromtimestamp(each.state.starts, UTC)),
                "ends": timestamp(datetime.fromtimestamp(each.state.ends, UTC)),
                "limit": shown(each.state.terms.limit),
                "spent": shown(each.state.spent),
                "crashed": shown(each.state.crashed),
                "elsewhere": shown(each.state.elsewhere),
                "reserved": shown(each.state.reserved),
                "left": shown(each.state.left),
                "held_until": timestamp(datetime.fromtimestamp(each.state.held_until, UTC))
                if each.state.held_until
                else None,
                "forecast": {
                    "at_end": shown(each.forecast.at_end),
                    "low": shown(each.forecast.low),
                    "high": shown(each.forecast.high),
                    "runs_dry": each.forecast.runs_dry and each.forecast.runs_dry.isoformat(),
                    "may_run_dry": each.forecast.may_run_dry and each.forecast.may_run_dry.isoformat(),
                },
                "days": [
                    {"day": day, "pipeline": pipeline, "calls": calls, "spent": shown(amount)}
                    for day, pipeline, calls, amount in of_this_period(each.state)
                ],
            }
            for each in outlooks
        ],
    }


def write_svg(each: Outlook, path: Path) -> None:
    """Draw what was left day by day, and will be, with the range of nine times of ten."""
    import pygal
    from pygal.style import CleanStyle

    now = each.state
    chart = pygal.DateLine(
        title=f"{each.name}: {now.terms.units} left of {shown(now.terms.limit)} this {now.terms.period}",
        style=CleanStyle,
        x_label_rotation=30,
        show_dots=False,
        range=(0, float(spending.units(now.terms.limit))),
    )
    full = [(day, left / spending.SCALE) for day, _, left in been(now)]
    coming = full[-1:] + [(day.day, max(0.0, day.left) / spending.SCALE) for day in each.forecast.days]
    at_least = full[-1:] + [(day.day, max(0.0, day.left_at_least) / spending.SCALE) for day in each.forecast.days]
    chart.add("left", full)
    chart.add("expected", coming, stroke_style={"dasharray": "6, 4"})
    chart.add("at least, nine times of ten", at_least, stroke_style={"dasharray": "2, 4"})
    for name, space in (("", SVG), ("xlink", "http://www.w3.org/1999/xlink")):
        ET.register_namespace(name, space)
    picture = ET.fromstring(chart.render())  # noqa: S314  # it was drawn here
    for parent in list(picture.iter()):
        for script in parent.findall(f"{{{SVG}}}script"):  # a picture runs nothing and loads nothing
            parent.remove(script)
    path.write_bytes(ET.tostring(picture))


def render_json(outlooks: list[Outlook]) -> str:
    """Return the JSON as text."""
    return json.dumps(as_json(outlooks), indent=1)
