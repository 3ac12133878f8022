"""What was harvested, and which days are done, in one database.

One row a paper, one row for each day on which a paper was seen, one mark for each day and set. One
process writes at a time; whoever reads sees whole pages only.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from datetime import date, timedelta
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Connection,
    Double,
    Engine,
    ForeignKey,
    NullPool,
    String,
    Text,
    bindparam,
    create_engine,
    delete,
    func,
    insert,
    make_url,
    or_,
    select,
    update,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from arxlive.harvest import Page
    from arxlive.records import Record

ASKED_AT_ONCE = 500  # ids in one query: every database bears this many parameters


class Base(DeclarativeBase):
    """The tables of arxlive."""


class Paper(Base):
    """A paper as it was last seen; the columns are those of `arxlive.records.Record`.

    A deleted paper keeps what was known of it. One that was never seen before it was deleted has no
    more than its id.
    """

    __tablename__ = "paper"

    paper_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    datestamp: Mapped[date]
    deleted: Mapped[bool]
    created: Mapped[date | None]
    updated: Mapped[date | None]
    title: Mapped[str | None] = mapped_column(Text)
    authors: Mapped[list[dict[str, Any]] | None] = mapped_column(JSON)
    categories: Mapped[str | None] = mapped_column(Text)
    comments: Mapped[str | None] = mapped_column(Text)
    report_no: Mapped[str | None] = mapped_column(Text)
    journal_ref: Mapped[str | None] = mapped_column(Text)
    doi: Mapped[str | None] = mapped_column(Text)
    msc_class: Mapped[str | None] = mapped_column(Text)
    acm_class: Mapped[str | None] = mapped_column(Text)
    license: Mapped[str | None] = mapped_column(Text)
    abstract: Mapped[str | None] = mapped_column(Text)


class Sighting(Base):
    """That a day's list held a paper, and what it was then: `new`, `updated` or `deleted`."""

    __tablename__ = "sighting"

    paper_id: Mapped[str] = mapped_column(ForeignKey("paper.paper_id"), primary_key=True)
    day: Mapped[date] = mapped_column(primary_key=True, index=True)
    kind: Mapped[str] = mapped_column(String(8))


class Mark(Base):
    """That a day's list was read to its end, at `read_at` (seconds since the epoch).

    `done` is false as long as it was read only before the day had ended, or with records that could
    not be read. `set_spec` is empty for all sets.
    """

    __tablename__ = "mark"

    day: Mapped[date] = mapped_column(primary_key=True)
    set_spec: Mapped[str] = mapped_column(String(80), primary_key=True)
    done: Mapped[bool]
    records: Mapped[int]
    read_at: Mapped[float] = mapped_column(Double)


class Progress(Base):
    """Up to which page a day's list was stored, and the token that the rest is asked for with.

    `size` is empty where the server does not say it. It is written with each page and removed with
    the mark.
    """

    __tablename__ = "reading"  # a table `progress` is an older version's, without the digest

    day: Mapped[date] = mapped_column(primary_key=True)
    set_spec: Mapped[str] = mapped_column(String(80), primary_key=True)
    base_url: Mapped[str] = mapped_column(Text)
    number: Mapped[int]
    so_far: Mapped[int]
    size: Mapped[int | None]
    digest: Mapped[int] = mapped_column(BigInteger)
    token: Mapped[str] = mapped_column(Text)
    expires: Mapped[str] = mapped_column(String(40))


class Unread(Base):
    """A record of a day's list that could not be read: where it stood, why, and its XML.

    It is written with its page, and removed when the day is read anew.
    """

    __tablename__ = "unread"

    day: Mapped[date] = mapped_column(primary_key=True)
    set_spec: Mapped[str] = mapped_column(String(80), primary_key=True)
    place: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    fault: Mapped[str] = mapped_column(Text)
    xml: Mapped[str] = mapped_column(Text)


class Asked(Base):
    """When OpenAlex was asked for a paper that it may not have, and when it is asked again.

    `first` is the day of the first question. `doi` is the journal's DOI that was asked for beside
    arXiv's own. `title_due` is empty as long as the title was not asked for.
    """

    __tablename__ = "asked"

    paper_id: Mapped[str] = mapped_column(ForeignKey("paper.paper_id"), primary_key=True)
    first: Mapped[date]
    doi: Mapped[str | None] = mapped_column(Text)
    doi_asked: Mapped[date]
    doi_times: Mapped[int]
    doi_due: Mapped[date] = mapped_column(index=True)
    title_times: Mapped[int]
    title_due: Mapped[date | None] = mapped_column(index=True)


class Alone(Base):
    """A paper whose DOIs got no answer from OpenAlex: they are asked for by themselves, from `due` on.

    `times` is how often they got none, `fault` what came instead. An answer removes it.
    """

    __tablename__ = "alone"

    paper_id: Mapped[str] = mapped_column(ForeignKey("paper.paper_id"), primary_key=True)
    times: Mapped[int]
    due: Mapped[date]
    fault: Mapped[str] = mapped_column(Text)


class Matched(Base):
    """The work of OpenAlex that a paper is.

    `way` is `arxiv-doi`, `journal-doi` or `title`, `score` how sure it is (1 is certain). `first` and
    `found` are the days of the first question and of the answer; the rest is the work's.
    """

    __tablename__ = "matched"

    paper_id: Mapped[str] = mapped_column(ForeignKey("paper.paper_id"), primary_key=True)
    work: Mapped[str] = mapped_column(String(32), index=True)
    way: Mapped[str] = mapped_column(String(16))
    score: Mapped[float] = mapped_column(Double)
    doi: Mapped[str | None] = mapped_column(Text)
    title: Mapped[str | None] = mapped_column(Text)
    year: Mapped[int | None]
    first: Mapped[date]
    found: Mapped[date]


HEADER = ("paper_id", "datestamp", "deleted")
COLUMNS = tuple(column.key for column in Paper.__table__.columns)


def open_store(url: str) -> Engine:
    """Connect to the database at a SQLAlchemy URL, and make its tables where they are missing."""
    database = make_url(url)
    if database.get_backend_name() == "sqlite":
        if database.database in (None, "", ":memory:"):
            raise ValueError("a database in memory forgets which days are done: name a file")
        Path(str(database.database)).parent.mkdir(parents=True, exist_ok=True)
    # No pool: Luigi forks its workers, and a connection must not be shared by two processes.
    engine = create_engine(database, poolclass=NullPool)
    Base.metadata.create_all(engine)
    return engine


def save(engine: Engine, day: date, set_spec: str, page: Page, base_url: str = "") -> None:
    """Store one page of a day in one transaction, and with the last page the day's mark.

    A day of which a record could not be read is marked as read, but not as done. With any other page,
    where the list goes on: see `progress_of`.
    """
    with engine.begin() as connection:
        for start in range(0, len(page.records), ASKED_AT_ONCE):
            _upsert(connection, day, page.records[start : start + ASKED_AT_ONCE])
        where = {"day": day, "set_spec": set_spec}
        connection.execute(delete(Progress).filter_by(**where))
        if page.number == 1:
            connection.execute(delete(Unread).filter_by(**where))
        if page.bad:
            connection.execute(insert(Unread), [{**where, **asdict(one)} for one in page.bad])
        if page.last:
            bad = connection.scalar(select(func.count()).select_from(Unread).filter_by(**where))
            connection.execute(delete(Mark).filter_by(**where))
            mark = {"done": page.day_over and not bad, "records": page.so_far, "read_at": time.time()}
            connection.execute(insert(Mark).values(**where, **mark))
        elif page.token and page.day_over:
            so_far = {"number": page.number, "so_far": page.so_far, "size": page.size, "digest": page.digest}
            token = {"base_url": base_url, "token": page.token, "expires": page.expires}
            connection.execute(insert(Progress).values(**where, **so_far, **token))


def _upsert(connection: Connection, day: date, records: Sequence[Record]) -> None:
    ids = {record.paper_id for record in records}
    query = select(Paper.paper_id, Paper.datestamp).where(Paper.paper_id.in_(ids))
    newest: dict[str, date] = {row.paper_id: row.datestamp for row in connection.execute(query)}
    inserts: dict[str, dict[str, Any]] = {}
    updates: dict[str, dict[str, Any]] = {}
    kinds = {}
    for record in records:
        paper_id = record.paper_id
        known = paper_id in newest
        kinds[paper_id] = "deleted" if record.deleted else "updated" if known else "new"
        if not known:
            inserts[paper_id] = {name: getattr(record, name) for name in COLUMNS}
        elif record.datestamp < newest[paper_id]:
            continue  # an older day that is read later does not undo what is newer
        else:
            row = inserts[paper_id] if paper_id in inserts else updates.setdefault(paper_id, {})
            # A deleted paper keeps what was known of it.
            row.update({name: getattr(record, name) for name in (HEADER if record.deleted else COLUMNS)})
        newest[paper_id] = record.datestamp
    if inserts:
        connection.execute(insert(Paper), list(inserts.values()))
    which = update(Paper).where(Paper.paper_id == bindparam("which"))
    for length in (len(HEADER), len(COLUMNS)):
        if rows := [{**row, "which": row["paper_id"]} for row in updates.values() if len(row) == length]:
            connection.execute(which, rows)
    _see(connection, day, kinds)


def _see(connection: Connection, day: date, kinds: dict[str, str]) -> None:
    """Note that a day's list held these papers, and what they were then.

    Where the day is read once more, what a paper was at first stays true, unless it is deleted now.
    """
    query = select(Sighting.paper_id).where(Sighting.day == day, Sighting.paper_id.in_(kinds))
    before = set(connection.scalars(query))
    rows = [{"paper_id": one, "day": day, "kind": kind} for one, kind in kinds.items() if one not in before]
    if rows:
        connection.execute(insert(Sighting), rows)
    if gone := [one for one in before if kinds[one] == "deleted"]:
        those = update(Sighting).where(Sighting.day == day, Sighting.paper_id.in_(gone))
        connection.execute(those.values(kind="deleted"))


def progress_of(engine: Engine, day: date, set_spec: str, base_url: str) -> Progress | None:
    """Return where the reading of a day was broken off and can go on; None where it begins anew.

    It can where the day had ended before the reading began: only then can it be told that the list is
    still the one that was begun.
    """
    with Session(engine) as session:
        kept = session.get(Progress, (day, set_spec))
    return kept if kept is not None and kept.base_url == base_url else None


def mark_of(engine: Engine, day: date, set_spec: str) -> Mark | None:
    """Return the mark of a day and set; None if its list was never read to its end."""
    with Session(engine) as session:
        return session.get(Mark, (day, set_spec))


def unread(
    engine: Engine, most: int, days: Iterable[date] | None = None, set_specs: Iterable[str] = ()
) -> tuple[int, list[str]]:
    """Count the records that could not be read, of certain days and sets or of all; name up to `most`.

    The newest come first, each as `DAY: what is wrong with it`.
    """
    of = [] if days is None else [Unread.day.in_(list(days)), Unread.set_spec.in_(list(set_specs))]
    query = select(Unread.day, Unread.fault).where(*of).order_by(Unread.day.desc(), Unread.place).limit(most)
    with Session(engine) as session:
        number = session.scalar(select(func.count()).select_from(Unread).where(*of)) or 0
        return number, [f"{day}: {fault}" for day, fault in session.execute(query)]


def holes(engine: Engine, since: date, before: date, set_spec: str) -> list[tuple[date, date]]:
    """Return first and last day of each stretch that no run of a set has read to its end.

    A stretch begins after a day of `since` or later that was, or, where there is none, after the newest one, and ends
    before another or `before`. A day with records that could not be read is none: these are known by name.
    """
    bad = select(Unread.day).where(Unread.set_spec == set_spec)
    read = select(Mark.day).where(or_(Mark.done, Mark.day.in_(bad)), Mark.set_spec == set_spec, Mark.day < before)
    with Session(engine) as session:
        days = list(session.scalars(read.order_by(Mark.day)))
    days = [day for day in days if day >= since] or days[-1:]
    a_day = timedelta(days=1)
    return [(done + a_day, then - a_day) for done, then in pairwise([*days, before]) if then - done > a_day]


def sightings_by_day(engine: Engine, days: Iterable[date]) -> dict[date, dict[str, int]]:
    """Count what each of `days` brought: `{day: {"new": n, "updated": n, "deleted": n}}`."""
    counts = {day: {"new": 0, "updated": 0, "deleted": 0} for day in days}
    query = select(Sighting.day, Sighting.kind, func.count()).group_by(Sighting.day, Sighting.kind)
    with Session(engine) as session:
        for day, kind, number in session.execute(query.where(Sighting.day.in_(list(counts)))):
            counts[day][kind] = number
    return counts


def papers_in_store(engine: Engine) -> int:
    """Count the papers that are not deleted."""
    with Session(engine) as session:
        return session.scalar(select(func.count()).where(Paper.deleted.is_(False))) or 0


def matches_in_store(engine: Engine) -> int:
    """Count the papers that are not deleted and whose work is known."""
    query = select(func.count()).select_from(Paper).join(Matched).where(Paper.deleted.is_(False))
    with Session(engine) as session:
        return session.scalar(query) or 0


def matched_on(engine: Engine, day: date) -> list[Matched]:
    """Return the matches that were found on a day."""
    with Session(engine, expire_on_commit=False) as session:
        return list(session.scalars(select(Matched).where(Matched.found == day)))
