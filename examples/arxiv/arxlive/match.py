"""Match the papers of the store with OpenAlex's works, within a budget.

First by DOI, up to a hundred in one call; then, for a few, by title. What was asked is remembered
whatever the answer was, in one transaction with what it brought, so that a run that ends at any
moment loses at most the answer of one call, and repeats none.

A question that OpenAlex has no answer to is put off, and the others go on: a list of DOIs is halved
until the paper is found whose DOIs it does not bear, and that one is from then on asked for alone.
"""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy import and_, case, delete, func, or_, select
from sqlalchemy.orm import Session

from arxlive import asking, rank
from arxlive.openalex import MOST_DOIS, Candidate, OpenAlexError, Unanswered
from arxlive.store import ASKED_AT_ONCE, Alone, Asked, Matched, Paper

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Engine

log = logging.getLogger("luigi-interface.arxlive")

T = TypeVar("T")
Due = tuple[Paper, Asked | None]  # a paper, and what was asked for it

RECENT = 120  # days back from which papers tell how long OpenAlex takes
# Questions without an answer; after one more nobody is there. Four papers of one list can be found with these.
MOST_IN_A_ROW = 8


@dataclass(slots=True)
class Outcome:
    """What a run asked and found, what it left (papers that were due and not asked for), which papers
    OpenAlex had no answer for, with what came instead, and which could not be compared with its answer.
    """

    asked_by_doi: int = 0
    asked_by_title: int = 0
    found_by_doi: int = 0
    found_by_title: int = 0
    left_by_doi: int = 0
    left_by_title: int = 0
    titles_from_age: float = 0.0
    unanswered: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Client:
    """The two questions, however they reach OpenAlex."""

    by_dois: Callable[[Sequence[str]], dict[str, Candidate]]
    by_title: Callable[[str], list[Candidate]]


@dataclass(slots=True)
class _Patience:
    """Counts the questions in a row that got no answer, and ends the run when they are too many."""

    in_a_row: int = 0

    def ask(self, question: Callable[[], T]) -> T:
        """Put one question."""
        try:
            answer = question()
        except Unanswered as error:
            self.in_a_row += 1
            if self.in_a_row > MOST_IN_A_ROW:
                raise OpenAlexError(f"{self.in_a_row} questions in a row without an answer: {error}") from error
            raise
        self.in_a_row = 0
        return answer


def match(engine: Engine, client: Client, today: date, most_titles: int, outcome: Outcome) -> None:
    """Ask for everything that is due on `today`; of titles at most `most_titles`.

    `outcome` is kept up to date call by call: an exception of the client's (its budget is spent, or
    something went wrong) leaves this as it is, after what was asked until then was stored.
    """
    patience = _Patience()
    try:
        for batch in _due_by_doi(engine, today):
            _ask_dois(engine, client, batch, today, outcome, patience)
        outcome.titles_from_age = _titles_from_age(engine, today)
        for paper, asked in _due_by_title(engine, today, outcome.titles_from_age, most_titles):
            year = (paper.created or paper.datestamp).year
            try:
                candidates = patience.ask(partial(client.by_title, paper.title or ""))
            except Unanswered as error:
                candidates = []
                outcome.unanswered.append(f"{paper.paper_id}, by title: {error}")
            choice = partial(rank.by_title, paper.title or "", paper.authors or [], year, candidates)
            best = _choose(choice, paper.paper_id, outcome)
            outcome.found_by_title += _store_title(engine, paper.paper_id, asked, best, today)
            outcome.asked_by_title += 1
    finally:
        outcome.titles_from_age = outcome.titles_from_age or _titles_from_age(engine, today)
        outcome.left_by_doi = _count(engine, _doi_is_due(today))
        outcome.left_by_title = sum(1 for _ in _ids_due_by_title(engine, today, outcome.titles_from_age))


def _ask_dois(
    engine: Engine, client: Client, batch: list[Due], today: date, outcome: Outcome, patience: _Patience
) -> None:
    """Ask for the DOIs of a list; where there is no answer for its halves, and so on."""
    parts = deque([batch])
    while parts:
        part = parts.popleft()
        fault = None
        try:
            found = patience.ask(partial(client.by_dois, _dois(part)))
        except Unanswered as error:
            if len(part) > 1:
                parts += [part[: len(part) // 2], part[len(part) // 2 :]]
                continue
            found, fault = {}, str(error)
            outcome.unanswered.append(f"{part[0][0].paper_id}, by DOI: {error}")
        outcome.found_by_doi += _store_dois(engine, part, found, today, fault, outcome)
        outcome.asked_by_doi += len(part)


def _choose(choice: Callable[[], rank.Match | None], paper_id: str, outcome: Outcome) -> rank.Match | None:
    """Choose among what was found for a paper; where that goes wrong, none, and the others go on."""
    try:
        return choice()
    except Exception as error:
        log.warning("%s could not be compared with what OpenAlex has", paper_id, exc_info=True)
        outcome.failed.append(f"{paper_id}: {error!r}")
        return None


def _unmatched(condition: ColumnElement[bool]) -> ColumnElement[bool]:
    return and_(Paper.deleted.is_(False), Paper.title.is_not(None), Matched.paper_id.is_(None), condition)


def _doi_is_due(today: date) -> ColumnElement[bool]:
    # A paper that was asked for without the journal's DOI that it has now is as good as new.
    return and_(
        or_(Alone.paper_id.is_(None), Alone.due <= today),
        or_(
            Asked.paper_id.is_(None),
            Asked.doi_due <= today,
            func.coalesce(Asked.doi, "") != func.coalesce(Paper.doi, ""),
        ),
    )


def _count(engine: Engine, condition: ColumnElement[bool]) -> int:
    query = select(func.count()).select_from(Paper).outerjoin(Asked).outerjoin(Matched).outerjoin(Alone)
    query = query.where(_unmatched(condition))
    with Session(engine) as session:
        return session.scalar(query) or 0


def _due_by_doi(engine: Engine, today: date) -> Iterator[list[Due]]:
    """Yield papers whose DOIs make one call, the longest due first, until none is due.

    The last call goes out anyway, so it is filled with those that would be due next; but not with
    any that were asked for today. A paper that is to be asked for alone is.
    """
    while True:
        query = (
            select(Paper, Asked, Alone)
            .outerjoin(Asked)
            .outerjoin(Matched)
            .outerjoin(Alone)
            .where(_unmatched(or_(_doi_is_due(today), and_(Alone.paper_id.is_(None), Asked.doi_asked < today))))
            .order_by(case((_doi_is_due(today), 0), else_=1), func.coalesce(Asked.doi_due, date.min), Paper.paper_id)
            .limit(MOST_DOIS)
        )
        with Session(engine, expire_on_commit=False) as session:
            rows = list(session.execute(query))
        if rows and rows[0].Alone is not None:
            yield [(rows[0].Paper, rows[0].Asked)]
            continue
        papers: list[Due] = [(paper, asked) for paper, asked, alone in rows if alone is None]
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


def _store_dois(
    engine: Engine, batch: Sequence[Due], found: dict[str, Candidate], today: date, fault: str | None, outcome: Outcome
) -> int:
    """Store what was asked and found; `fault` is what came in place of an answer for a paper alone."""
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
            choice = partial(rank.by_doi, paper.paper_id, paper.title or "", paper.authors or [], paper.doi, found)
            one = _choose(choice, paper.paper_id, outcome)
            if one is not None:
                session.add(_matched(paper.paper_id, one, asked.first, today))
                number += 1
        if fault is not None:
            paper_id = batch[0][0].paper_id
            alone = session.get(Alone, paper_id) or Alone(paper_id=paper_id, times=0)
            alone.times += 1
            alone.due, alone.fault = asking.next_alone(alone.times, today), fault
            session.add(alone)
        else:
            session.execute(delete(Alone).where(Alone.paper_id.in_([paper.paper_id for paper, _ in batch])))
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
    return asking.age_of_titles(*ages(engine, today))


def ages(engine: Engine, today: date) -> tuple[list[int], list[int]]:
    """Return at which ages in days the papers of the last months came by DOI, and the ages of the others."""
    since = today - timedelta(days=RECENT)
    came = select(Matched.first, Matched.found, func.count()).where(Matched.first >= since, Matched.way != "title")
    waiting = select(Asked.first, func.count()).outerjoin(Matched, Matched.paper_id == Asked.paper_id)
    waiting = waiting.where(Asked.first >= since, or_(Matched.paper_id.is_(None), Matched.way == "title"))
    with Session(engine) as session:
        found = [
            (come - first).days
            for first, come, number in session.execute(came.group_by(Matched.first, Matched.found))
            for _ in range(number)
        ]
        still = [
            (today - first).days
            for first, number in session.execute(waiting.group_by(Asked.first))
            for _ in range(number)
        ]
    return found, still
