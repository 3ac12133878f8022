#!/usr/bin/env python3
"""How well the tenth of a month could foretell its end at best, on the nights that simulate.py lived through.

usage: bench/half_year/oracle.py TRACE [--records papers.jsonl] [--continuations 40] [--seed SEED]

The oracle knows the model with all its rates, how many papers are still to come, and each policy's whole state on the
tenth; not what chance will bring. It draws the rest of the month many times from what is left open: what OpenAlex comes
to hold of each paper that waits, and when, as far as it was not found when it was asked for; which papers come when,
and what it will hold of those. Its forecast is the median of these ends.

A second one knows besides when the papers of the real dates come, the one Wednesday of 222 among them.

The policies are lived through without store and server here, by the example's own calendar; each trace is compared
night by night, and by how many calls it differs is told: a title here finds its own paper's works alone.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from functools import partial
from math import inf
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parent
EXAMPLE = HERE.parents[1] / "examples" / "arxiv"
sys.path[:0] = [str(HERE), str(EXAMPLE), str(EXAMPLE / "openalex_server")]

import foretell  # noqa: E402 - found by the path above
import model  # noqa: E402 - found by the path above
from works import words  # noqa: E402 - found by the path above

from arxlive import asking, match, openalex, rank  # noqa: E402 - found by the path above

RUNS_AT = time(3, 0)
ANCESTORS_CALLS, MOST_TITLES = 500, 60  # a night
LAST = model.BEGIN + timedelta(weeks=model.WEEKS, days=-1)
WAYS = ("rates", "rates and real dates")  # what the two oracles know


@dataclass(slots=True)
class Known:
    """A paper, what was asked for it, and from when on either question finds it (seconds, or never)."""

    paper: model.Paper
    by_doi: float = inf
    by_title: float = inf
    first: date | None = None
    doi_asked: date | None = None
    doi_due: date = date.min
    title_asked: date | None = None
    title_due: date | None = None
    title_times: int = 0

    def is_held(self, works: list[dict[str, Any]]) -> None:
        """Take what OpenAlex comes to hold beside this paper."""
        paper, doi = self.paper, (self.paper.doi or "").casefold()
        sought = set(words(" ".join(openalex.asked_for(paper.title))))
        self.by_doi = self.by_title = inf
        for work in works:
            shown = openalex.Candidate(
                work["key"], work["doi"].casefold(), work["title"], work["year"], tuple(work["authors"])
            )
            findable = datetime.fromisoformat(work["findable_from"]).timestamp()
            if shown.doi in (rank.arxiv_doi(paper.paper_id), doi) and rank.by_doi(
                paper.paper_id, paper.title, paper.authors, paper.doi, {shown.doi: shown}
            ):
                self.by_doi = min(self.by_doi, findable)
            if sought <= set(words(shown.title or "")) and rank.by_title(
                paper.title, paper.authors, paper.arrives.year, [shown]
            ):
                self.by_title = min(self.by_title, findable)

    def is_redrawn(self, draw: random.Random, lag: float, origin: list[model.Seed]) -> None:
        """Draw anew what is held, until it is nothing that would have been found when it was asked for."""
        while True:
            self.is_held(model._held(draw, self.paper, lag, origin)[1])
            found_by_doi = self.doi_asked is not None and self.by_doi <= instant(self.doi_asked)
            found_by_title = self.title_asked is not None and self.by_title <= instant(self.title_asked)
            if not found_by_doi and not found_by_title:
                return


@dataclass
class Ancestor:
    """As in simulate.py."""

    waiting: list[Known] = field(default_factory=list)

    def night(self, day: date, arrived: list[Known]) -> int:
        """Ask, and return how many calls it took."""
        queue = arrived + self.waiting
        tonight, rest = queue[:ANCESTORS_CALLS], queue[ANCESTORS_CALLS:]
        for known in tonight:
            known.title_asked = day
        self.waiting = rest + [known for known in tonight if known.by_title > instant(day)]
        return len(tonight)


@dataclass
class This:
    """The example's calendar: see its match.py."""

    waiting: list[Known] = field(default_factory=list)
    came: list[tuple[date, date, str]] = field(default_factory=list)  # first asked for, found, by what

    def night(self, day: date, arrived: list[Known]) -> int:
        """Ask, and return how many calls it took."""
        self.waiting += arrived
        return self._ask_dois(day) + self._ask_titles(day)

    def _ask_dois(self, day: date) -> int:
        calls = 0
        while True:
            rows = [known for known in self.waiting if known.doi_asked != day]
            rows.sort(key=lambda known: (known.doi_due, known.paper.paper_id))
            if not rows or rows[0].doi_due > day:
                return calls
            room, found = openalex.MOST_DOIS, set()
            for known in rows[: openalex.MOST_DOIS]:
                room -= 1 + (known.paper.doi is not None)
                if room < 0:
                    break
                known.first = known.first or day
                known.doi_asked = day
                known.doi_due = asking.next_doi(known.paper.paper_id, known.first, day)
                if known.by_doi <= instant(day):
                    found.add(id(known))
                    self.came.append((known.first, day, "doi"))
            self.waiting = [known for known in self.waiting if id(known) not in found]
            calls += 1

    def _ask_titles(self, day: date) -> int:
        age = self._titles_from_age(day)
        due = [known for known in self.waiting if first_of(known) and title_due(known, age) <= day]
        due.sort(key=lambda each: (each.title_times, each.title_due or date.min, first_of(each), each.paper.paper_id))
        found = set()
        for known in due[:MOST_TITLES]:
            known.title_times += 1
            known.title_asked = day
            known.title_due = asking.next_title(known.paper.paper_id, first_of(known), day)
            if known.by_title <= instant(day):
                found.add(id(known))
                self.came.append((first_of(known), day, "title"))
        self.waiting = [known for known in self.waiting if id(known) not in found]
        return len(due[:MOST_TITLES])

    def _titles_from_age(self, day: date) -> float:
        since = day - timedelta(days=match.RECENT)
        came = [(found - first).days for first, found, way in self.came if first >= since and way == "doi"]
        still = [(day - first_of(known)).days for known in self.waiting if first_of(known) >= since]
        still += [(day - first).days for first, _, way in self.came if first >= since and way == "title"]
        return asking.age_of_titles(came, still)


Policy = Ancestor | This


def first_of(known: Known) -> date:
    """Return when a paper was first asked for, which each of a night has been when titles are asked for."""
    return known.first or date.max


def title_due(known: Known, age: float) -> date:
    """Return when a paper's title is asked for."""
    return known.title_due or first_of(known) + asking.first_title(known.paper.paper_id, age)


def instant(day: date) -> float:
    """Return when a day's run is, in seconds."""
    return datetime.combine(day, RUNS_AT, UTC).timestamp()


def nights(first: date, last: date) -> Iterator[date]:
    """Yield the nights from a day to another."""
    for count in range((last - first).days + 1):
        if (day := first + timedelta(days=count)).weekday() in foretell.NIGHTS:
            yield day


def live(policy: Policy, coming: Iterable[Known], first: date, last: date) -> dict[date, int]:
    """Live through nights; return the calls of each."""
    left, calls = list(reversed(list(coming))), {}
    for day in nights(first, last):
        arrived = []
        while left and left[-1].paper.arrives.timestamp() < instant(day):
            arrived.append(left.pop())
        calls[day] = policy.night(day, arrived)
    return calls


@dataclass(frozen=True)
class Tenth:
    """What is known on the tenth: a policy's state, the papers that came since its last night, and those to come."""

    day: date
    policy: Policy
    number: int  # of papers until now
    since: list[Known]
    to_come: list[model.Paper]  # which ones; the oracle knows not when

    def goes_on(
        self, draw: random.Random, world: tuple[float, list[model.Seed]], end: date, real: Counter[tuple[str, date]]
    ) -> int:
        """Draw the rest of the month, and return its calls; the papers of the `real` dates come on these."""
        policy, since = copy.deepcopy((self.policy, self.since), {id(each.paper): each.paper for each in self._all()})
        for known in policy.waiting + since:
            known.is_redrawn(draw, *world)
        arriving = [
            paper if real[paper.title, paper.arrives.date()] else self._moved(draw, paper) for paper in self.to_come
        ]
        arriving = sorted(
            (paper for paper in arriving if paper.arrives.date() <= end), key=lambda paper: (paper.arrives, paper.title)
        )
        coming = [Known(model._numbered(self.number + count, paper)) for count, paper in enumerate(arriving)]
        for known in coming:
            known.is_redrawn(draw, *world)
        return sum(live(policy, since + coming, self.day + timedelta(days=1), end).values())

    def _all(self) -> list[Known]:
        return self.policy.waiting + self.since

    def _moved(self, draw: random.Random, paper: model.Paper) -> model.Paper:
        """Move a paper to another week, as the model does; weekday and time of day stay."""
        first = self.day + timedelta(days=(paper.arrives.weekday() - self.day.weekday() - 1) % 7 + 1)
        weeks = (LAST - first).days // 7
        day = first + timedelta(weeks=draw.randint(0, weeks))
        moved = datetime.combine(day, paper.arrives.timetz())
        return model.Paper("", moved, paper.title, paper.authors, paper.categories, paper.doi)


def tenths(world: model.World, policy: Policy, days: set[date]) -> tuple[dict[date, int], dict[date, Tenth]]:
    """Live through the half year; return the calls of its nights, and what was known on some days."""
    works: dict[str, list[dict[str, Any]]] = {}
    for work in world.works:
        works.setdefault(work["key"][1:].partition("-")[0], []).append(work)
    calls: dict[date, int] = {}
    found = {}
    done, at = 0, model.BEGIN
    for day in [*sorted(days), model.BEGIN + timedelta(weeks=model.WEEKS)]:
        last = max(nights(at, day))
        until = next(
            (n for n, each in enumerate(world.papers) if each.arrives.timestamp() >= instant(last)), len(world.papers)
        )
        coming = [Known(paper) for paper in world.papers[done:until]]
        for known in coming:
            known.is_held(works.get(known.paper.paper_id, []))
        calls |= live(policy, coming, at, last)
        look = datetime.combine(day, foretell.LOOK, UTC)
        known_by = sum(paper.arrives < look for paper in world.papers)
        since = [Known(paper) for paper in world.papers[until:known_by]]
        found[day] = Tenth(day, copy.deepcopy(policy), known_by, since, world.papers[known_by:])
        done, at = until, last + timedelta(days=1)
    return calls, found


def real_dates(origin: list[model.Seed]) -> Counter[tuple[str, date]]:
    """Return the titles that the model puts on real dates, with the day in the half year."""
    return Counter(
        (
            seed.title,
            model.BEGIN
            + timedelta(weeks=(seed.created.date() - model.EPOCH).days // 7 % model.WEEKS, days=seed.created.weekday()),
        )
        for seed in origin
    )


def judge(trace: dict[str, Any], records: Path, continuations: int, **seed: int) -> tuple[str, dict[str, list[float]]]:
    """Return what to say of a trace, and how far each oracle is off in each of its months."""
    lag, lived = trace["lag"], foretell.lived(trace)[0]
    origin = model.seeds(records)[1]
    months = list(foretell.months(lived))
    policy: Policy = Ancestor() if trace["policy"] == "ancestor" else This()
    world = model.world(lag, records=records, **seed)
    calls, known = tenths(world, policy, {begin.replace(day=10) for begin, _ in months})
    differ = sum(abs(calls[day] - lived[day]) for day in lived)
    errors: dict[str, list[float]] = {way: [] for way in WAYS}
    for begin, end in months:
        tenth = known[begin.replace(day=10)]
        spent = sum(number for day, number in calls.items() if begin <= day <= tenth.day)
        came_to = spent + sum(number for day, number in calls.items() if tenth.day < day <= end)
        for way in WAYS:
            draw = random.Random(f"{lag} {trace['policy']} {begin} {way}")  # noqa: S311 - a simulation
            real = real_dates(origin) if way == WAYS[1] else Counter[tuple[str, date]]()
            ends = [spent + tenth.goes_on(draw, (lag, origin), end, real) for _ in range(continuations)]
            errors[way].append(median(ends) / came_to - 1)
    told = f"{lag:g} days | {trace['policy']}"
    return f"{told} | {differ} of {sum(lived.values())}", errors


def row(name: str, errors: list[float], each_month: str = "") -> str:
    """Return what foretell.py says of errors."""
    off = [abs(error) for error in errors]
    near = f"{sum(each <= 0.05 for each in off)} of {len(off)}"
    return f"| {name} | {median(off):.1%} | {max(off):.1%} | {near} | {each_month} |"


def main() -> int:
    """Judge each trace, and all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--records", type=Path, default=model.SHARED)
    parser.add_argument("--continuations", type=int, default=40)
    parser.add_argument("--seed", type=int, help="the world's, where it was another one than that of the docs")
    options = parser.parse_args()
    seed = {} if options.seed is None else {"seed": options.seed}
    one = partial(judge, records=options.records, continuations=options.continuations, **seed)
    print("| median lag | policy | calls that differ | knows | off on the tenth | at most | within 5 % | each month |")
    print("|---|---|---|---|---|---|---|---|")
    every: dict[str, list[float]] = {way: [] for way in WAYS}
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for told, errors in pool.map(one, json.loads(options.trace.read_text())):
            for way in WAYS:
                print(row(f"{told} | {way}", errors[way], " ".join(f"{each:+.1%}" for each in errors[way])))
                every[way] += errors[way]
    for way in WAYS:
        print(row(f"all | both | | {way}", every[way]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
