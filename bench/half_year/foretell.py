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
LOOK = time(4, 0)  # after the night's run; catch-up looks every five minutes


def months(nights: dict[date, int]) -> Iterator[tuple[date, date]]:
    """Yield first and last day of each month that is whole, and has two weeks before it."""
    first, last = min(nights), max(nights)
    begin = (first + FIRST + timedelta(days=31)).replace(day=1)
    while (after := (begin + timedelta(days=32)).replace(day=1)) <= last:
        yield begin, after - timedelta(days=1)
        begin = after


def foretold(nights: dict[date, int], day: date, limit: int) -> Forecast:
    """Look ahead from a day, after its night."""
    terms = Terms("calls", limit * SCALE)
    now = datetime.combine(day, LOOK, UTC).timestamp()
    starts, ends = terms.period_at(now)
    days = [
        (each.isoformat(), "arxlive", calls, calls * SCALE) for each, calls in nights.items() if each <= day and calls
    ]
    spent = sum(calls for each, calls in nights.items() if terms.day_at(starts) <= each <= day) * SCALE
    state = State(terms, starts, ends, min(spent, limit * SCALE), 0, 0, 0, 0.0, days)
    first, last = min(nights), terms.day_at(ends - 1)
    span = [first + timedelta(days=count) for count in range((last - first).days + 1)]
    return forecast(state, day, {"arxlive": [each for each in span if each.weekday() in NIGHTS]}, {"arxlive": True})


def judge(trace: dict[str, Any]) -> tuple[list[float], list[float], int]:
    """Return, of one trace, the errors on the tenth, the hours of warning, and how many dry months had none."""
    nights = {date.fromisoformat(each["night"]): each["list"] + each["search"] for each in trace["nights"]}
    errors, warned, silent = [], [], 0
    for begin, end in months(nights):
        came_to = sum(calls for day, calls in nights.items() if begin <= day <= end)
        tenth = foretold(nights, begin.replace(day=10), 10**6)
        errors.append(tenth.at_end / SCALE / came_to - 1)
        for share in LIMITS:
            limit = int(came_to * share)
            dry = dry_on(nights, begin, limit)
            told = next((day for day in days_of(begin, dry) if foretold(nights, day, limit).may_run_dry), None)
            if told is None:
                silent += 1
            else:
                warned.append(
                    (datetime.combine(dry, time(3), UTC) - datetime.combine(told, LOOK, UTC)) / timedelta(hours=1)
                )
    return errors, warned, silent


def warned_for_nothing(trace: dict[str, Any], share: float) -> list[tuple[int, int]]:
    """Return, of each month of a trace, on how many days an ample limit may run dry, and on how many it will."""
    nights = {date.fromisoformat(each["night"]): each["list"] + each["search"] for each in trace["nights"]}
    found = []
    for begin, end in months(nights):
        limit = int(share * sum(calls for day, calls in nights.items() if begin <= day <= end))
        looks = [foretold(nights, day, limit) for day in days_of(begin, end)]
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


def main() -> int:
    """Judge each trace, and all of them."""
    told = json.loads(Path(sys.argv[1]).read_text())
    print("| median lag | policy | months | off on the tenth | at most | within 5 % | dry | told 72 h before | hours |")
    print("|---|---|---|---|---|---|---|---|---|")
    errors, warned, silent = list[float](), list[float](), 0
    for trace in told:
        theirs = judge(trace)
        row(f"{trace['lag']:g} days | {trace['policy']}", *theirs)
        errors, warned, silent = errors + theirs[0], warned + theirs[1], silent + theirs[2]
    row("all | both", errors, warned, silent)
    print()
    print(
        "| policy | limit | months | told that it may run dry | days of a month | told that it will | days of a month |"
    )
    print("|---|---|---|---|---|---|---|")
    for policy in dict.fromkeys(trace["policy"] for trace in told):
        for share in AMPLE:
            found = [month for trace in told if trace["policy"] == policy for month in warned_for_nothing(trace, share)]
            nothing_row(policy, share, found)
    return 0


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
