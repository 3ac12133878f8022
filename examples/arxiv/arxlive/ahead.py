"""What matching is going to ask OpenAlex for, night by night, as far as its own store can tell.

Most of it is known: every paper that waits has a day on which it is asked for again. The rest is learnt from the
store: on which weekdays there is a night, how many papers come with it, how long OpenAlex takes, and how often a
title finds something. What comes is counted by its chance: a paper that has come by then with a chance of a third is
two thirds of a question. Nothing is asked, and nothing is written.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from datetime import date, timedelta
from math import ceil
from statistics import median
from typing import TYPE_CHECKING

from sqlalchemy import and_, func, select
from sqlalchemy.orm import Session

from arxlive import asking, match, rank
from arxlive.openalex import MOST_DOIS
from arxlive.store import Asked, Matched, Paper

if TYPE_CHECKING:
    from sqlalchemy import Engine

DAYS = 31  # ahead: as far as the end of any month
YOUNG = timedelta(weeks=2)  # a store that is not older has not seen each of its weekdays twice: it tells nothing
WEEKS = 8  # back from which nights are judged
TIMES = 3  # a title that was asked for more often than this is like one that was asked for as often
FORGOTTEN = 0.01  # of a paper: less is not followed


@dataclass(slots=True)
class Waiting:
    """A paper without a match, or the part of one that will still be without: see `asking`."""

    paper_id: str
    dois: float
    first: date
    doi_asked: date | None
    doi_due: date
    title_times: int = 0
    title_due: date | None = None
    part: float = 1.0


@dataclass(frozen=True)
class Learnt:
    """How it went: papers that come with a night of a weekday, the share that is still out at an age, and the share
    of titles that are found when asked for the first, second and third time.
    """

    arrivals: dict[int, float]
    out: list[tuple[int, float]]
    titles_from_age: float
    found: tuple[float, ...]

    def stays(self, before: int, after: int) -> float:
        """Return the chance that who had not come by DOI at one age has not at another."""
        share = self._out_at(before)
        return self._out_at(after) / share if share else 1.0

    def _out_at(self, age: int) -> float:
        place = bisect_right(self.out, age, key=lambda each: each[0])
        return self.out[place - 1][1] if place else 1.0


def questions(engine: Engine, today: date, most_titles: int) -> dict[date, dict[str, float]]:
    """Return the lists and searches of each night to come, after that of `today`; nothing from a young store."""
    with Session(engine) as session:
        begun = session.scalar(select(func.min(Asked.first)))
    if begun is None or today - begun < YOUNG:
        return {}
    learnt = learn(engine, begun, today)
    return walk(_waiting(engine, today), learnt, today, most_titles)


def walk(waiting: list[Waiting], learnt: Learnt, today: date, most_titles: int) -> dict[date, dict[str, float]]:
    """Go through the nights to come as `match` will."""
    asked = {}
    for day in (today + timedelta(days=count) for count in range(1, DAYS + 1)):
        if day.weekday() not in learnt.arrivals:
            continue
        new = learnt.arrivals[day.weekday()]
        waiting += [
            Waiting(f"{day} {number}", 1, day, None, date.min, part=min(1.0, new - number))
            for number in range(ceil(new))
        ]
        lists = _ask_dois(waiting, learnt, day)
        asked[day] = {"list": float(lists), "search": _ask_titles(waiting, learnt, day, most_titles)}
        waiting = [paper for paper in waiting if paper.part > FORGOTTEN]
    return asked


def _ask_dois(waiting: list[Waiting], learnt: Learnt, day: date) -> int:
    """Ask for what is due, and fill the last list; return how many lists that takes."""
    waiting.sort(key=lambda paper: (paper.doi_due, paper.paper_id))
    lists = ceil(sum(paper.part * paper.dois for paper in waiting if paper.doi_due <= day) / MOST_DOIS)
    room = float(lists * MOST_DOIS)
    for paper in waiting:
        room -= paper.part * paper.dois
        if room < 0:
            break
        if paper.doi_asked is None:
            paper.first = day
        before = -1 if paper.doi_asked is None else (paper.doi_asked - paper.first).days
        paper.part *= learnt.stays(before, (day - paper.first).days)
        paper.doi_asked, paper.doi_due = day, asking.next_doi(paper.paper_id, paper.first, day)
    return lists


def _ask_titles(waiting: list[Waiting], learnt: Learnt, day: date, most: int) -> float:
    """Ask for the titles that are due, `most` at most; return how many."""
    due = [paper for paper in waiting if _title_due(paper, learnt) <= day]
    due.sort(key=lambda paper: (paper.title_times, paper.title_due or date.min, paper.first, paper.paper_id))
    asked = 0.0
    for paper in due:
        if asked + paper.part > most:
            break
        asked += paper.part
        paper.part *= 1 - learnt.found[min(paper.title_times, TIMES - 1)]
        paper.title_times += 1
        paper.title_due = asking.next_title(paper.paper_id, paper.first, day)
    return asked


def _title_due(paper: Waiting, learnt: Learnt) -> date:
    return paper.title_due or paper.first + asking.first_title(paper.paper_id, learnt.titles_from_age)


def _waiting(engine: Engine, today: date) -> list[Waiting]:
    """Return all papers without a match: one that was never asked for will be, before all others, the next night."""
    query = select(Paper.paper_id, Paper.doi, Asked).select_from(Paper).outerjoin(Asked).outerjoin(Matched)
    query = query.where(and_(Paper.deleted.is_(False), Paper.title.is_not(None), Matched.paper_id.is_(None)))
    new = Asked(first=today + timedelta(days=1), doi_asked=None, doi_due=date.min, title_times=0, title_due=None)
    with Session(engine) as session:
        return [
            Waiting(
                paper_id,
                1 + len(rank.journal_dois(doi)[:3]),
                asked.first,
                asked.doi_asked,
                asked.doi_due,
                asked.title_times,
                asked.title_due,
            )
            for paper_id, doi, known in session.execute(query)
            for asked in [known or new]
        ]


def learn(engine: Engine, begun: date, today: date) -> Learnt:
    """Learn from the store."""
    came, still = match.ages(engine, today)
    since = today - timedelta(weeks=WEEKS)
    by_first = select(Asked.first, func.count()).where(Asked.first > since).group_by(Asked.first)
    by_times = select(Asked.title_times, func.count()).group_by(Asked.title_times)
    found = by_times.join(Matched, Matched.paper_id == Asked.paper_id).where(Matched.way == "title")
    with Session(engine) as session:
        firsts, times, finds = (
            {key: int(number) for key, number in session.execute(query)} for query in (by_first, by_times, found)
        )
    return Learnt(
        arrivals(firsts, begun, today),
        asking.still_out(came, still),
        asking.age_of_titles(came, still),
        shares_found(times, finds),
    )


def arrivals(firsts: dict[date, int], begun: date, today: date) -> dict[int, float]:
    """Return how many papers come with a night, by its weekday, which has a night if it had one.

    It is the median: a night that brings a month's papers is no rule.
    """
    nights: dict[int, list[int]] = {}
    for back in range(min(7 * WEEKS, (today - begun).days + 1)):
        day = today - timedelta(days=back)
        nights.setdefault(day.weekday(), []).append(firsts.get(day, 0))
    return {weekday: float(median(come)) for weekday, come in nights.items() if any(come)}


def shares_found(times: dict[int, int], found: dict[int, int]) -> tuple[float, ...]:
    """Return which share of titles is found when asked for once more, by how often they were asked for before.

    `times` has how many papers were asked for how often, `found` those of them that the last time found.
    """
    shares = []
    for place in range(1, TIMES + 1):
        asked = sum(number for count, number in times.items() if count >= place)
        finds = found.get(place, 0)
        if place == TIMES:
            asked = sum((count - place + 1) * number for count, number in times.items() if count >= place)
            finds = sum(number for count, number in found.items() if count >= place)
        shares.append((finds + 1) / (asked + 4))  # as if one of four had been, before any was
    return tuple(shares)
