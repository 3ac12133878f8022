"""Match the papers of the store with OpenAlex's works, within a budget.

First by DOI, up to a hundred in one call; then, for a few, by title. What was asked is remembered
whatever the answer was, in one transaction with what it brought, so that a run that ends at any
moment loses at most the answer of one call, and repeats none.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import TYPE_CHECKING

from sqlalchemy import and_, case, func, or_, select
from sqlalchemy.orm import Session

from arxlive import asking, rank
from arxlive.openalex import MOST_DOIS, Candidate
from arxlive.store import ASKED_AT_ONCE, Asked, Matched, Paper

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Engine

log = logging.getLogger("luigi-interface.arxlive")

Due = tuple[Paper, Asked | None]  # a paper, and what was asked for it

RECENT = 120  # days back from which papers tell how long OpenAlex takes


@dataclass(slots=True)
class Outcome:
    """What a run asked and found, and what it left: papers that were due and not asked for."""

    asked_by_doi: int = 0
    asked_by_title: int = 0
    found_by_doi: int = 0
    found_by_title: int = 0
    left_by_doi: int = 0
    left_by_title: int = 0
    titles_from_age: float = 0.0


@dataclass(frozen=True, slots=True)
class Client:
    """The two questions, however they reach OpenAlex."""

    by_dois: Callable[[Sequence[str]], dict[str, Candidate]]
    by_title: Callable[[str], list[Candidate]]


def match(engine: Engine, client: Client, today: date, most_titles: int, outcome: Outcome) -> None:
    """Ask for everything that is due on `today`; of titles at most `most_titles`.

    `outcome` is kept up to date call by call: an exception of the client's (its budget is spent, or
    something went wrong) leaves this as it is, after what was asked until then was stored.
    """
    try:
        for batch in _due_by_doi(engine, today):
            found = client.by_dois(_dois(batch))
            outcome.found_by_doi += _store_dois(engine, batch, found, today)
            outcome.asked_by_doi += len(batch)
        outcome.titles_from_age = _titles_from_age(engine, today)
        for paper, asked in _due_by_title(engine, today, outcome.titles_from_age, most_titles):
            year = (paper.created or paper.datestamp).year
            candidates = client.by_title(paper.title or "")
            best = rank.by_title(paper.title or "", paper.authors or [], year, candidates)
            outcome.found_by_title += _store_title(engine, paper.paper_id, asked, best, today)
            outcome.asked_by_title += 1
    finally:
        outcome.titles_from_age = outcome.titles_from_age or _titles_from_age(engine, today)
        outcome.left_by_doi = _count(engine, _doi_is_due(today))
        outcome.left_by_title = sum(1 for _ in _ids_due_by_title(engine, today, outcome.titles_from_age))


def _unmatched(condition: ColumnElement[bool]) -> ColumnElement[bool]:
    return and_(Paper.deleted.is_(False), Paper.title.is_not(None), Matched.paper_id.is_(None), condition)


def _doi_is_due(today: date) -> ColumnElement[bool]:
    # A paper that was asked for without the journal's DOI that it has now is as good as new.
    return or_(
        Asked.paper_id.is_(None), Asked.doi_due <= today, func.coalesce(Asked.doi, "") != func.coalesce(Paper.doi, "")
    )


def _count(engine: Engine, condition: ColumnElement[bool]) -> int:
    query = select(func.count()).select_from(Paper).outerjoin(Asked).outerjoin(Matched).where(_unmatched(condition))
    with Session(engine) as session:
        return session.scalar(query) or 0


def _due_by_doi(engine: Engine, today: date) -> Iterator[list[Due]]:
    """Yield papers whose DOIs make one call, the longest due first, until none is due.

    The last call goes out anyway, so it is filled with those that would be due next; but not with
    any that were asked for today.
    """
    while True:
        query = (
            select(Paper, Asked)
            .outerjoin(Asked)
            .outerjoin(Matched)
            .where(_unmatched(or_(_doi_is_due(today), Asked.doi_asked < today)))
            .order_by(case((_doi_is_due(today), 0), else_=1), func.coalesce(Asked.doi_due, date.min), Paper.paper_id)
            .limit(MOST_DOIS)
        )
        with Session(engine, expire_on_commit=False) as session:
            papers: list[Due] = [(paper, asked) for paper, asked in session.execute(query)]
        if not papers or not _is_due(papers[0], today):
            return
        batch: list[Due] = []
        room = MOST_DOIS
        for one in papers:
            room -= len(_dois([one]))
            if room < 0:
                break
            batch.append(one)
        yield batch


def _is_due(due: Due, today: date) -> bool:
    paper, asked = due
    return asked is None or asked.doi_due <= today or (asked.doi or "") != (paper.doi or "")


def _dois(batch: Sequence[Due]) -> list[str]:
    dois: dict[str, None] = {}
    for paper, _ in batch:
        # Of a field with several DOIs the first few: one paper must not need more than a call has.
        for doi in [rank.arxiv_doi(paper.paper_id), *rank.journal_dois(paper.doi)[:3]]:
            dois[doi] = None
    return list(dois)


def _store_dois(engine: Engine, batch: Sequence[Due], found: dict[str, Candidate], today: date) -> int:
    number = 0
    with Session(engine) as session, session.begin():
        ids = [paper.paper_id for paper, asked in batch if asked]
        kept = {asked.paper_id: asked for asked in session.scalars(select(Asked).where(Asked.paper_id.in_(ids)))}
        for paper, _ in batch:
            asked = kept.get(paper.paper_id)
            if asked is None:
                asked = Asked(paper_id=paper.paper_id, first=today, doi_times=0, title_times=0)
                session.add(asked)
            asked.doi, asked.doi_asked = paper.doi, today
            asked.doi_times += 1
            asked.doi_due = asking.next_doi(paper.paper_id, asked.first, today)
            one = rank.by_doi(paper.paper_id, paper.title or "", paper.authors or [], paper.doi, found)
            if one is not None:
                session.add(_matched(paper.paper_id, one, asked.first, today))
                number += 1
    return number


def _due_by_title(engine: Engine, today: date, age: float, most: int) -> list[tuple[Paper, Asked]]:
    """Return up to `most` papers whose title is due, those first that were asked for least often."""
    ids = list(itertools.islice(_ids_due_by_title(engine, today, age), most))
    papers: dict[str, tuple[Paper, Asked]] = {}
    with Session(engine, expire_on_commit=False) as session:
        for start in range(0, len(ids), ASKED_AT_ONCE):
            some = ids[start : start + ASKED_AT_ONCE]
            for paper, asked in session.execute(select(Paper, Asked).join(Asked).where(Paper.paper_id.in_(some))):
                papers[paper.paper_id] = paper, asked
    return [papers[one] for one in ids]


def _ids_due_by_title(engine: Engine, today: date, age: float) -> Iterator[str]:
    youngest = today - timedelta(days=int(age * (1 - asking.JITTER)))
    query = (
        select(Asked.paper_id, Asked.first, Asked.title_due)
        .join(Paper)
        .outerjoin(Matched, Matched.paper_id == Asked.paper_id)
        .where(_unmatched(or_(Asked.title_due <= today, and_(Asked.title_due.is_(None), Asked.first <= youngest))))
        .order_by(Asked.title_times, Asked.title_due, Asked.first, Asked.paper_id)
    )
    with Session(engine) as session:
        for paper_id, first, due in session.execute(query):
            if due is not None or first + asking.first_title(paper_id, age) <= today:
                yield paper_id


def _store_title(engine: Engine, paper_id: str, asked: Asked, best: rank.Match | None, today: date) -> int:
    with Session(engine) as session, session.begin():
        kept = session.get_one(Asked, paper_id)
        kept.title_times += 1
        kept.title_due = asking.next_title(paper_id, asked.first, today)
        if best is None:
            return 0
        session.add(_matched(paper_id, best, asked.first, today))
    return 1


def _matched(paper_id: str, one: rank.Match, first: date, today: date) -> Matched:
    work = one.work
    return Matched(
        paper_id=paper_id,
        work=work.work,
        way=one.way,
        score=one.score,
        doi=work.doi,
        title=work.title,
        year=work.year,
        first=first,
        found=today,
    )


def _titles_from_age(engine: Engine, today: date) -> float:
    """Return how old a paper is when its title is first asked for, learnt from those that came by DOI."""
    since = today - timedelta(days=RECENT)
    came = select(Matched.first, Matched.found, func.count()).where(Matched.first >= since, Matched.way != "title")
    waiting = select(Asked.first, func.count()).outerjoin(Matched, Matched.paper_id == Asked.paper_id)
    waiting = waiting.where(Asked.first >= since, or_(Matched.paper_id.is_(None), Matched.way == "title"))
    with Session(engine) as session:
        ages = [
            (found - first).days
            for first, found, number in session.execute(came.group_by(Matched.first, Matched.found))
            for _ in range(number)
        ]
        still = [
            (today - first).days
            for first, number in session.execute(waiting.group_by(Asked.first))
            for _ in range(number)
        ]
    return asking.age_of_titles(ages, still)
