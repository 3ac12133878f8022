#!/usr/bin/env python3
"""How well `standpipe budget` foretells, on the nights that simulate.py lived through.

usage: bench/half_year/foretell.py TRACE     (what simulate.py --trace wrote)

Three questions, for each calendar month of each trace that is in it from its first day to its last: on the tenth, how
far is the forecast of the month's calls from what they came to? And for limits from half to nine tenths of that, which
all run dry: how long before the night that finds nothing left did the forecast say so first? And for limits above
that, which none reaches: on how many of the month's days did it warn for nothing?
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from statistics import median
from typing import Any

from standpipe.budgets.forecast import Forecast, forecast
from standpipe_task.spending import SCALE, State, Terms

NIGHTS = {6, 0, 1, 2, 3}  # Sunday to Thursday
LIMITS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9)  # of what the month came to
AMPLE = (1.05, 1.1, 1.2, 1.3, 1.4, 1.5)  # likewise: these months do not run dry
FIRST = timedelta(days=14)  # without nights to go by, nothing can be foretold
Told = dict[date, dict[str, float]]  # by the night in which it was: later nights, and the calls expected of them
LOOK = time(4, 0)  # after the night's run; catch-up looks every five minutes


def months(nights: dict[date, int]) -> Iterator[tuple[date, date]]:
    """Yield first and last day of each month that is whole, and has two weeks before it."""
    first, last = min(nights), max(nights)
    begin = (first + FIRST + timedelta(days=31)).replace(day=1)
    while (after := (begin + timedelta(days=32)).replace(day=1)) <= last:
        yield begin, after - timedelta(days=1)
        begin = after


def foretold(nights: dict[date, int], day: date, limit: int, told: Told) -> Forecast:
    """Look ahead from a day, after its night, by the nights until then and what was told in the last of them."""
    terms = Terms("calls", limit * SCALE)
    now = datetime.combine(day, LOOK, UTC).timestamp()
    starts, ends = terms.period_at(now)
    days = [
        (each.isoformat(), "arxlive", calls, calls * SCALE) for each, calls in nights.items() if each <= day and calls
    ]
    spent = sum(calls for each, calls in nights.items() if terms.day_at(starts) <= each <= day) * SCALE
    state = State(terms, starts, ends, min(spent, limit * SCALE), 0, 0, 0, 0.0, days, told_until(told, day))
    first, last = min(nights), terms.day_at(ends - 1)
    span = [first + timedelta(days=count) for count in range((last - first).days + 1)]
    return forecast(state, day, {"arxlive": [each for each in span if each.weekday() in NIGHTS]}, {"arxlive": True})


def told_until(told: Told, day: date) -> list[tuple[str, str, str, int]]:
    """Return the last word of all until a day, as the books have it."""
    said = max((night for night in told if night <= day), default=day)
    return [("arxlive", said.isoformat(), each, round(calls * SCALE)) for each, calls in told.get(said, {}).items()]


def lived(trace: dict[str, Any]) -> tuple[dict[date, int], Told]:
    """Return the calls of each night of a trace, and what was told in it of the later ones."""
    nights = {date.fromisoformat(each["night"]): each["list"] + each["search"] for each in trace["nights"]}
    return nights, {date.fromisoformat(each["night"]): each.get("told", {}) for each in trace["nights"]}


def judge(trace: dict[str, Any]) -> tuple[list[float], list[float], int]:
    """Return, of one trace, the errors on the tenth, the hours of warning, and how many dry months had none."""
    nights, told = lived(trace)
    errors, warned, silent = [], [], 0
    for begin, end in months(nights):
        came_to = sum(calls for day, calls in nights.items() if begin <= day <= end)
        tenth = foretold(nights, begin.replace(day=10), 10**6, told)
        errors.append(tenth.at_end / SCALE / came_to - 1)
        for share in LIMITS:
            limit = int(came_to * share)
            dry = dry_on(nights, begin, limit)
            first = (day for day in days_of(begin, dry) if foretold(nights, day, limit, told).may_run_dry)
            if (warning := next(first, None)) is None:
                silent += 1
            else:
                warned.append(
                    (datetime.combine(dry, time(3), UTC) - datetime.combine(warning, LOOK, UTC)) / timedelta(hours=1)
                )
    return errors, warned, silent


def warned_for_nothing(trace: dict[str, Any], share: float) -> list[tuple[int, int]]:
    """Return, of each month of a trace, on how many days an ample limit may run dry, and on how many it will."""
    nights, told = lived(trace)
    found = []
    for begin, end in months(nights):
        limit = int(share * sum(calls for day, calls in nights.items() if begin <= day <= end))
        looks = [foretold(nights, day, limit, told) for day in days_of(begin, end)]
        found.append(
            (sum(look.may_run_dry is not None for look in looks), sum(look.runs_dry is not None for look in looks))
        )
    return found


def days_of(begin: date, until: date) -> Iterator[date]:
    """Yield the days before one."""
    for count in range((until - begin).days):
        yield begin + timedelta(days=count)


def dry_on(nights: dict[date, int], begin: date, limit: int) -> date:
    """Return the night in which a limit is reached."""
    spent = 0
    for day in sorted(day for day in nights if day >= begin):
        spent += nights[day]
        if spent > limit:
            return day
    raise ValueError("it never is")


def untold(trace: dict[str, Any]) -> dict[str, Any]:
    """Return a trace as it would be if nothing had been told."""
    nights = [{key: value for key, value in night.items() if key != "told"} for night in trace["nights"]]
    return {**trace, "nights": nights}


def main() -> int:
    """Judge each trace, and all of them: without what was told, and with it."""
    traces = json.loads(Path(sys.argv[1]).read_text())
    silent = [
        {**untold(trace), "policy": f"{trace['policy']}, untold"} for trace in traces if any(lived(trace)[1].values())
    ]
    print("| median lag | policy | months | off on the tenth | at most | within 5 % | dry | told 72 h before | hours |")
    print("|---|---|---|---|---|---|---|---|---|")
    for trace in traces + silent:
        row(f"{trace['lag']:g} days | {trace['policy']}", *judge(trace))
    row("all | untold", *together([judge(untold(trace)) for trace in traces]))
    row("all | told", *together([judge(trace) for trace in traces]))
    print()
    print(
        "| policy | limit | months | told that it may run dry | days of a month | told that it will | days of a month |"
    )
    print("|---|---|---|---|---|---|---|")
    for policy in dict.fromkeys(trace["policy"] for trace in traces + silent):
        for share in AMPLE:
            found = [
                month
                for trace in traces + silent
                if trace["policy"] == policy
                for month in warned_for_nothing(trace, share)
            ]
            nothing_row(policy, share, found)
    return 0


def together(judged: list[tuple[list[float], list[float], int]]) -> tuple[list[float], list[float], int]:
    """Return what several traces come to."""
    errors = [error for each, _, _ in judged for error in each]
    return errors, [hours for _, each, _ in judged for hours in each], sum(silent for _, _, silent in judged)


def nothing_row(policy: str, share: float, found: list[tuple[int, int]]) -> None:
    """Print a row of the months that do not run dry."""
    parts = []
    for days in zip(*found, strict=True):
        months_warned = sum(each > 0 for each in days)
        parts.append(f"{months_warned} ({months_warned / len(days):.0%}) | {sum(days) / len(days):.1f}")
    print(f"| {policy} | {share:.0%} | {len(found)} | {' | '.join(parts)} |")


def row(name: str, errors: list[float], warned: list[float], silent: int) -> None:
    """Print a row."""
    early = sum(hours >= 72 for hours in warned)
    dry = len(warned) + silent
    off = [abs(error) for error in errors]
    told = f"{early} ({early / dry:.0%}) | {median(warned):.0f}"
    near = sum(each <= 0.05 for each in off)
    print(f"| {name} | {len(errors)} | {median(off):.1%} | {max(off):.1%} | {near} | {dry} | {told} |")


if __name__ == "__main__":
    sys.exit(main())
