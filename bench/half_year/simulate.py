#!/usr/bin/env python3
"""Half a year of nights, lived through by two policies of asking OpenAlex, on the worlds of model.py.

usage: bench/half_year/simulate.py [--records papers.jsonl] [--table FILE] [--picture FILE] [--trace FILE]

The questions are real: the example's own matching, its store, its server of OpenAlex's protocol in a
process of its own, and every call counted there. Only the time is told and not waited for.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

HERE = Path(__file__).parent
EXAMPLE = HERE.parents[1] / "examples" / "arxiv"
sys.path[:0] = [str(HERE), str(EXAMPLE)]

import model  # noqa: E402 - found by the path above
import picture  # noqa: E402 - found by the path above
import requests  # noqa: E402 - found by the path above

from arxlive import ahead, openalex, rank, store  # noqa: E402 - found by the path above
from arxlive.harvest import Page  # noqa: E402 - found by the path above
from arxlive.match import Client, Outcome, match  # noqa: E402 - found by the path above
from arxlive.records import Record  # noqa: E402 - found by the path above

RUNS_AT = time(3, 0)  # UTC, Sunday to Thursday: the ancestor's schedule
RUN_DAYS = {6, 0, 1, 2, 3}
ANCESTORS_CALLS = 500  # a night
MONTH = 365.25 / 12  # days
UNLIMITED = ("--limit-usd", "1000000", "--quiet")
PRICES = {"list": 0.0001, "search": 0.001}  # dollars


@dataclass
class Lived:
    """What one policy did and found in one world."""

    nights: list[date] = field(default_factory=list)
    calls: list[Counter[str]] = field(default_factory=list)  # up to and with each night
    found: dict[str, tuple[str, date, str]] = field(default_factory=dict)  # paper: work, night, way
    told: list[dict[date, float]] = field(
        default_factory=list
    )  # after each night, what later ones are expected to call


@contextmanager
def serving(world: model.World, folder: Path) -> Iterator[tuple[str, Path]]:
    """Serve a world's works in a process of its own; yield its address and the file with its time."""
    works, clock = folder / "works.json", folder / "now"
    works.write_text(json.dumps({"works": world.works}), encoding="utf-8")
    clock.write_text(f"{model.BEGIN}T00:00:00+00:00")
    server = EXAMPLE / "openalex_server" / "serve.py"
    process = subprocess.Popen(
        [sys.executable, "-S", "-E", "-B", server, "--works", works, "--port", "0", "--now-from", clock, *UNLIMITED],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        said = re.search(r"http://[^/]+", process.stdout.readline())
        if said is None:
            raise RuntimeError("the server of OpenAlex's protocol did not start")
        yield said.group(), clock
    finally:
        process.terminate()
        process.communicate(timeout=10)


def live(world: model.World, policy: str, most_titles: int, weeks: int = model.WEEKS) -> Lived:
    """Live through `weeks` weeks by a policy: `ancestor` or `this`."""
    lived = Lived()
    with tempfile.TemporaryDirectory() as name, requests.Session() as session:
        folder = Path(name)
        with serving(world, folder) as (url, clock):
            night_of: Ancestor | This = POLICIES[policy](folder, session, url, most_titles)
            coming = list(reversed(world.papers))
            for offset in range(weeks * 7 + 1):
                day = model.BEGIN + timedelta(days=offset)
                if day.weekday() not in RUN_DAYS:
                    continue
                now = datetime.combine(day, RUNS_AT, UTC)
                clock.write_text(now.isoformat())
                arrived = []
                while coming and coming[-1].arrives < now:
                    arrived.append(coming.pop())
                for paper_id, (work, way) in night_of(day, arrived).items():
                    lived.found[paper_id] = (work, day, way)
                lived.nights.append(day)
                lived.told.append(night_of.expects(day))
                lived.calls.append(Counter(session.get(f"{url}/counts", timeout=10).json()))
    return lived


class Ancestor:
    """Every title without a match each night, at most 500, those that were asked longest ago first."""

    def __init__(self, folder: Path, session: requests.Session, url: str, most_titles: int) -> None:
        """Begin with nothing."""
        del folder, most_titles
        self.session, self.url = session, url
        self.waiting: list[model.Paper] = []

    def __call__(self, day: date, arrived: list[model.Paper]) -> dict[str, tuple[str, str]]:
        """Ask, and return what was found."""
        del day
        queue = arrived + self.waiting
        tonight, rest = queue[:ANCESTORS_CALLS], queue[ANCESTORS_CALLS:]
        found, missed = {}, []
        for paper in tonight:
            candidates = openalex.by_title(self.session, self.url, paper.title)
            best = rank.by_title(paper.title, paper.authors, paper.arrives.year, candidates)
            if best is None:
                missed.append(paper)
            else:
                found[paper.paper_id] = (best.work.work, best.way)
        self.waiting = rest + missed
        return found

    def expects(self, day: date) -> dict[date, float]:
        """Say nothing: it has no calendar."""
        del day
        return {}


class This:
    """The example's own matching, over its own store."""

    def __init__(self, folder: Path, session: requests.Session, url: str, most_titles: int) -> None:
        """Begin with an empty store."""
        self.engine = store.open_store(f"sqlite:///{folder}/arxlive.sqlite3")
        self.client = Client(partial(openalex.by_dois, session, url), partial(openalex.by_title, session, url))
        self.most_titles = most_titles

    def __call__(self, day: date, arrived: list[model.Paper]) -> dict[str, tuple[str, str]]:
        """Store the new papers, match, and return what was found."""
        if arrived:
            records = [_record(paper) for paper in arrived]
            store.save(self.engine, day, "", Page(records, 1, len(records), None, last=True, day_over=True))
        match(self.engine, self.client, day, self.most_titles, Outcome())
        return {kept.paper_id: (kept.work, kept.way) for kept in store.matched_on(self.engine, day)}

    def expects(self, day: date) -> dict[date, float]:
        """Return the calls that the nights to come are expected to take, as the example tells them to its host."""
        asked = ahead.questions(self.engine, day, self.most_titles)
        return {night: sum(kinds.values()) for night, kinds in asked.items()}


POLICIES: dict[str, type[Ancestor | This]] = {"ancestor": Ancestor, "this": This}


def _record(paper: model.Paper) -> Record:
    day = paper.arrives.date()
    return Record(
        paper.paper_id,
        day,
        deleted=False,
        created=day,
        title=paper.title,
        authors=[dict(name) for name in paper.authors],
        categories=paper.categories,
        doi=paper.doi,
    )


@dataclass(frozen=True)
class Judged:
    """What a policy's half year comes to."""

    calls_a_month: float
    searches_a_month: float
    dollars_a_month: float
    right: set[str]
    wrong: int
    days: list[int]  # from the day a work could be found until the night it was

    @property
    def usually(self) -> str:
        """Say after how many days half and nine tenths were found."""
        return f"{median(self.days):.0f} / {quantiles(self.days, n=10)[-1]:.0f}"


def judge(world: model.World, lived: Lived) -> Judged:
    """Hold what was found against the hidden truth."""
    right, wrong, days = set(), 0, []
    for paper_id, (work, night, _) in lived.found.items():
        truth = world.truth[paper_id]
        if truth.work != work or truth.findable_from is None:
            wrong += 1
            continue
        right.add(paper_id)
        known = max(truth.findable_from, next(iter_arrival(world, paper_id)))
        days.append((datetime.combine(night, RUNS_AT, UTC) - known).days)
    months = (lived.nights[-1] - lived.nights[0]).days / MONTH
    calls = lived.calls[-1]
    dollars = sum(calls[kind] * price for kind, price in PRICES.items())
    asked = calls["list"] + calls["search"]
    return Judged(asked / months, calls["search"] / months, dollars / months, right, wrong, days)


def iter_arrival(world: model.World, paper_id: str) -> Iterator[datetime]:
    """Yield when a paper arrived; papers are numbered by their arrival."""
    yield world.papers[int(paper_id.partition(".")[2])].arrives


def compare(lag: float, records: Path, copies: int, weeks: int, most_titles: int, **seed: int) -> dict[str, Any]:
    """Live one world by both policies; `seed` is another one than the model's."""
    world = model.world(lag, copies=copies, weeks=weeks, records=records, **seed)
    lived = {policy: live(world, policy, most_titles, weeks) for policy in ("ancestor", "this")}
    return {"lag": lag, "lived": lived, "judged": {policy: judge(world, one) for policy, one in lived.items()}}


def table(results: list[dict[str, Any]]) -> str:
    """Return the table for docs/."""
    lines = [
        "| median lag | policy | calls a month | by title | dollars a month | found | wrong | of the ancestor's | "
        "days until found, half / nine tenths |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        theirs = result["judged"]["ancestor"]
        for policy, name in (("ancestor", "every title, every night"), ("this", "this one")):
            one = result["judged"][policy]
            share = f"{len(one.right & theirs.right) / len(theirs.right):.1%}"
            ratio = "" if policy == "ancestor" else f" ({one.calls_a_month / theirs.calls_a_month:.1%})"
            lines.append(
                f"| {result['lag']:g} days | {name} | {one.calls_a_month:,.0f}{ratio} | {one.searches_a_month:,.0f} | "
                f"{one.dollars_a_month:.2f} | {len(one.right):,} | {one.wrong} | {share} | {one.usually} |"
            )
    return "\n".join(lines) + "\n"


def traces(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the calls of each night, and what was told of the next, by lag and policy."""
    found = []
    for result in results:
        for policy, lived in result["lived"].items():
            before = [Counter(), *lived.calls]
            nights = [
                {
                    "night": night.isoformat(),
                    **{kind: now[kind] - then[kind] for kind in PRICES},
                    "told": {day.isoformat(): round(calls, 1) for day, calls in told.items()},
                }
                for night, now, then, told in zip(lived.nights, lived.calls, before, lived.told, strict=False)
            ]
            found.append({"lag": result["lag"], "policy": policy, "nights": nights})
    return found


def main() -> int:
    """Live through all three lags, and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=Path, default=model.SHARED)
    parser.add_argument("--copies", type=int, default=10)
    parser.add_argument("--weeks", type=int, default=model.WEEKS)
    parser.add_argument("--titles", type=int, default=60, help="searches a night, at most")
    parser.add_argument("--seed", type=int, help="another world than the one of the docs")
    parser.add_argument("--table", type=Path)
    parser.add_argument("--picture", type=Path)
    parser.add_argument(
        "--trace",
        type=Path,
        help="each night's calls and what was told of the next, as JSON: what foretell.py and oracle.py read",
    )
    options = parser.parse_args()
    seed = {} if options.seed is None else {"seed": options.seed}
    one = partial(
        compare, records=options.records, copies=options.copies, weeks=options.weeks, most_titles=options.titles, **seed
    )
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(one, model.LAGS))
    source, origin = model.seeds(options.records)
    papers = f"{len(origin) * options.copies:,} papers on the dates of {len(origin)} real records"
    made = f"{papers} ({source}), {options.weeks} weeks\n"
    sys.stdout.write(made + "\n" + table(results))
    if options.table:
        options.table.write_text(made + "\n" + table(results), encoding="utf-8")
    if options.trace:
        options.trace.write_text(json.dumps(traces(results)), encoding="utf-8")
    if options.picture:
        options.picture.write_text(picture.draw(results), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
