"""Luigi tasks: `luigi --module arxlive.tasks RootTask --date 2026-11-20 --production`.

**What `--date D` means.** Every day up to and with D that is not yet done, `--lookback-days` back
from D. Each day has a mark of its own in the database, so a night that was missed is made up for by
the next one. arXiv's days are UTC's, and D is the schedule's own date, which may be one day behind;
so a D of yesterday or later means "now": it reads the day under way as well. Such a day is stored
at once but not marked done, as more may join it; a later run reads it again, after its end. A D in
the past (a backfill) ends with D.

**What `--production` means.** Without it a run is a rehearsal: the same harvest, in a database of
its own (`arxlive-dev.sqlite3` beside `arxlive.sqlite3`; at any URL the database's name with `-dev`)
and with reports of its own (`reports-dev/`).
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import os
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import luigi
from luigi.parameter import ParameterVisibility
from sqlalchemy import make_url

from arxlive import ahead, store
from arxlive.harvest import read_day
from arxlive.match import Client, Outcome, match
from arxlive.openalex import OpenAlexError, Spent, by_dois, by_title
from arxlive.records import RecordError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

log = logging.getLogger("luigi-interface.arxlive")
T = TypeVar("T", bound="ArxivTask")

MOST_NAMED = 50  # records or papers, in a report or an error
NAMED_FOR = dt.timedelta(days=365)  # for which days that were missed are named

# One moment for the whole run: one that passes midnight does not change its mind about its days.
STARTED = dt.datetime.now(dt.UTC)


def days_until(last: dt.date, lookback_days: int, today: dt.date) -> list[dt.date]:
    """Return the days that a run for `last` covers, oldest first; `today` is UTC's."""
    if last >= today - dt.timedelta(days=1):
        last = today
    return [last - dt.timedelta(days=back) for back in range(lookback_days, -1, -1)]


def database_of(url: str, *, production: bool) -> str:
    """Return the URL of the database that a run uses: for a rehearsal the name gets `-dev`."""
    parsed = make_url(url)
    if not production and parsed.database:
        path = Path(parsed.database)
        parsed = parsed.set(database=str(path.with_name(f"{path.stem}-dev{path.suffix}")))
    return parsed.render_as_string(hide_password=False)


@cache
def _engine(url: str) -> Engine:
    return store.open_store(url)


class DatabaseUrl(luigi.StrParameter):
    """A SQLAlchemy URL; wherever Luigi shows or logs its parameters, the password is `***`."""

    def serialize(self, x: str) -> str:
        """Hide the password."""
        return make_url(x).render_as_string(hide_password=True) if x else x


class ArxivTask(luigi.Task):
    """What all tasks here are told: where to read, where to write, and how slowly."""

    base_url = luigi.StrParameter(
        default="https://oaipmh.arxiv.org/oai",
        significant=False,
        description="the OAI-PMH repository",
    )
    pace = luigi.FloatParameter(
        default=3.0,
        significant=False,
        description="seconds before each request; arXiv asks for 3; with a budget, its pace takes this one's place",
    )
    arxiv_budget = luigi.StrParameter(
        default="",
        significant=False,
        description="the budget that every request to the repository is counted against; default: none, --pace alone",
    )
    data_dir = luigi.StrParameter(
        default="/data", significant=False, description="where the reports and the SQLite file go"
    )
    database_url = DatabaseUrl(
        default="",
        significant=False,
        visibility=ParameterVisibility.PRIVATE,
        description="SQLAlchemy URL; default: $ARXLIVE_DATABASE_URL, else a file in data_dir",
    )
    production = luigi.BoolParameter(
        default=False, description="without it, a rehearsal: database and reports of its own"
    )

    def engine(self) -> Engine:
        """Return the database of this run, its tables made."""
        url = self.database_url or os.environ.get("ARXLIVE_DATABASE_URL")
        url = url or f"sqlite:///{Path(self.data_dir).absolute()}/arxlive.sqlite3"
        return _engine(database_of(url, production=self.production))

    def derive(self, task: type[T], **own: object) -> T:
        """Return a task that is told what this one is told, and `own`."""
        return cast("T", self.clone(task, **own))  # type: ignore[no-untyped-call]  # Luigi has no type for it


class HarvestDay(ArxivTask):
    """The papers whose datestamp is `day`, in one set or (an empty `set_spec`) in all.

    Done when the day's list was read to its end after the day's own end; for a day still under way, or
    one with records that cannot be read, when it was read to its end since this run began. For the
    latter RootTask fails, once the report is written and the papers are matched.
    """

    day = luigi.DateParameter()
    set_spec = luigi.StrParameter(default="")

    # Luigi runs one at a time of the tasks that share a resource, whatever --workers says: arXiv
    # asks for one connection.
    resources = {"oai": 1}  # noqa: RUF012 - Luigi declares it as an attribute of the instance

    @property
    def priority(self) -> int:  # type: ignore[override]  # Luigi's own way to compute it
        """Read the oldest day first; Luigi raises a negative priority to that of the report, 0."""
        return (dt.date.max - self.day).days

    def complete(self) -> bool:
        """Ask the mark in the database."""
        mark = store.mark_of(self.engine(), self.day, self.set_spec)
        return mark is not None and (mark.done or mark.read_at >= STARTED.timestamp())

    def run(self) -> None:
        """Store page after page; the last one together with the mark."""
        name = f"{self.day} {self.set_spec}".strip()
        since = store.progress_of(self.engine(), self.day, self.set_spec, self.base_url)
        pages = read_day(
            self.base_url, self.day, set_spec=self.set_spec, pace=self.pace, since=since, budget=self.arxiv_budget
        )
        for page in pages:
            store.save(self.engine(), self.day, self.set_spec, page, self.base_url)
            of = "" if page.size is None else f" of {page.size}"
            log.info("%s: page %d, %d records so far%s", name, page.number, page.so_far, of)
            for bad in page.bad:
                log.error("%s: a record that cannot be read: %s", name, bad.fault)
            if page.last:
                mark = store.mark_of(self.engine(), self.day, self.set_spec)
                why = "it has records that cannot be read" if page.day_over else "the day has not ended"
                end = "done" if mark is not None and mark.done else f"to be read again, as {why}"
                log.info("%s: read to its end, %d records; %s", name, page.so_far, end)


class DatedTask(ArxivTask):
    """What a run for a date covers."""

    date = luigi.DateParameter(description="the last day, see the module's own words")
    lookback_days = luigi.IntParameter(default=7, description="how many days before it are made up for")
    sets = luigi.StrParameter(
        default="", description="OAI sets with commas between, as cs,physics:hep-th; default: all"
    )
    openalex_url = luigi.StrParameter(
        default="",
        significant=False,
        description="https://api.openalex.org, or who speaks its protocol; default: papers are not matched",
    )
    openalex_budget = luigi.StrParameter(
        default="openalex", significant=False, description="the budget that every request to it is counted against"
    )
    title_searches = luigi.IntParameter(
        default=60, significant=False, description="how many papers a run asks for by title, at most"
    )

    def days(self) -> list[dt.date]:
        """Return the days that this run covers, oldest first."""
        return days_until(self.date, self.lookback_days, STARTED.date())

    def set_specs(self) -> list[str]:
        """Return the sets that this run covers; the empty one stands for all."""
        return [spec.strip() for spec in self.sets.split(",") if spec.strip()] or [""]

    def harvests(self) -> Iterator[HarvestDay]:
        """Yield one task a day and set."""
        for day in self.days():
            for spec in self.set_specs():
                yield self.derive(HarvestDay, day=day, set_spec=spec)


class Report(DatedTask):
    """`reports/DATE.json`: what the days that the run covers brought, and what the store holds."""

    def requires(self) -> list[HarvestDay]:
        """Ask for every day first: a report speaks of days that were read to their end."""
        return list(self.harvests())

    def output(self) -> luigi.LocalTarget:
        """Name the report's file."""
        directory = "reports" if self.production else "reports-dev"
        path = Path(self.data_dir) / directory / f"{self.date}.json"
        return luigi.LocalTarget(path)  # type: ignore[no-untyped-call]  # no types in Luigi's targets

    def complete(self) -> bool:
        """Ask the file; a report on a day that had not ended is written anew by every run."""
        return _is_final(Path(self.output().path))

    def run(self) -> None:
        """Write the report in one step: it is there whole, or not at all."""
        engine = self.engine()
        days = self.days()
        counts = store.sightings_by_day(engine, days)
        marks = {day: [store.mark_of(engine, day, spec) for spec in self.set_specs()] for day in days}
        bad, named = store.unread(engine, MOST_NAMED)
        done = {day: all(mark is not None and mark.done for mark in marks[day]) for day in days}
        report: dict[str, Any] = {
            "date": self.date.isoformat(),
            "from": days[0].isoformat(),
            "until": days[-1].isoformat(),
            "sets": self.set_specs() if self.sets else [],
            "final": all(done.values()),
            "new": sum(count["new"] for count in counts.values()),
            "updated": sum(count["updated"] for count in counts.values()),
            "deleted": sum(count["deleted"] for count in counts.values()),
            "papers_in_store": store.papers_in_store(engine),
            "never_harvested": self._gaps(engine, days[0]),
            "unreadable": {"records": bad, "named": named},
            "days": [{"day": day.isoformat(), "done": done[day], **counts[day]} for day in days],
        }
        with self.output().open("w") as out:  # type: ignore[no-untyped-call]  # likewise
            out.write(json.dumps(report, indent=2) + "\n")
        log.info(
            "%s: %d new, %d updated, %d deleted since %s; %d papers in the store",
            self.date,
            report["new"],
            report["updated"],
            report["deleted"],
            days[0],
            report["papers_in_store"],
        )

    def _gaps(self, engine: Engine, first: dt.date) -> list[dict[str, str]]:
        """Say which days before this run's first no run will reach any more, of the last year."""
        gaps = []
        for spec in self.set_specs():
            for begins, ends in store.holes(engine, first - NAMED_FOR, first, spec):
                gap = {"set": spec or "all sets", "from": begins.isoformat(), "until": ends.isoformat()}
                log.warning("%(from)s to %(until)s: never harvested (%(set)s); see --lookback-days", gap)
                gaps.append(gap)
        return gaps


class MatchPapers(DatedTask):
    """`reports/DATE-openalex.json`: what OpenAlex was asked for, what was found, and what is left.

    A budget that ends is no failure: what was asked until then is stored, the report says what is
    left, and the task is not done: the next run, of this date or another, goes on there. Papers that
    OpenAlex has no answer for, or whose match goes wrong, are put off, and the task fails with their
    names when all else is done.
    """

    resources = {"openalex": 1}  # noqa: RUF012 - as above

    def requires(self) -> list[HarvestDay]:
        """Ask for every day first: their papers are what is matched."""
        return list(self.harvests())

    def output(self) -> luigi.LocalTarget:
        """Name the report's file."""
        directory = "reports" if self.production else "reports-dev"
        path = Path(self.data_dir) / directory / f"{self.date}-openalex.json"
        return luigi.LocalTarget(path)  # type: ignore[no-untyped-call]  # no types in Luigi's targets

    def complete(self) -> bool:
        """Ask the file; a run that its budget ended leaves a report that is not final."""
        return _is_final(Path(self.output().path))

    def run(self) -> None:
        """Match what is due, and write the report."""
        # Only who matches needs Standpipe's budgets.
        from arxlive.budgeted import BudgetSpent, expect, open_session

        outcome, ended = Outcome(), None
        base_url = self.openalex_url.rstrip("/")
        with open_session(self.openalex_budget) as session:
            client = Client(partial(by_dois, session, base_url), partial(by_title, session, base_url))
            try:
                match(self.engine(), client, STARTED.date(), self.title_searches, outcome)
            except (BudgetSpent, Spent) as end:
                ended = str(end)
        report = {
            "date": self.date.isoformat(),
            "final": ended is None and not outcome.unanswered and not outcome.failed,
            "ended": ended,
            **asdict(outcome),
            "papers_in_store": store.papers_in_store(self.engine()),
            "matched_in_store": store.matches_in_store(self.engine()),
        }
        with self.output().open("w") as out:  # type: ignore[no-untyped-call]  # likewise
            out.write(json.dumps(report, indent=2) + "\n")
        if ended:
            log.warning("%s; left for the next run: %d papers by DOI, %d by title",
                        ended, outcome.left_by_doi, outcome.left_by_title)  # fmt: skip
        log.info(
            "%s: OpenAlex: %d found of %d asked for by DOI, %d of %d by title; %d of %d papers are matched",
            self.date,
            outcome.found_by_doi,
            outcome.asked_by_doi,
            outcome.found_by_title,
            outcome.asked_by_title,
            report["matched_in_store"],
            report["papers_in_store"],
        )
        if self.production:  # a rehearsal's store knows nothing of the nights to come
            try:
                expect(self.openalex_budget, ahead.questions(self.engine(), STARTED.date(), self.title_searches))
            except Exception as error:
                log.warning("what the nights to come will ask for could not be told: %r", error)
        faults = {
            "no answer from OpenAlex": outcome.unanswered,
            "could not be compared with its answer": outcome.failed,
        }
        told = [f"{what}: {len(lost)}; {'; '.join(lost[:MOST_NAMED])}" for what, lost in faults.items() if lost]
        if told:
            raise OpenAlexError("; ".join(told))


def _is_final(path: Path) -> bool:
    """Say whether a report is final, or was written by this run."""
    try:
        final = json.loads(path.read_bytes())["final"]
    except FileNotFoundError:
        return False
    return bool(final) or path.stat().st_mtime >= STARTED.timestamp()


class RootTask(DatedTask, luigi.WrapperTask):
    """Everything for one date: the days, the report on them, and the matches where they are asked for."""

    def requires(self) -> Iterator[luigi.Task]:
        """Ask for the days too: a report does not prove that the store still has them."""
        yield from self.harvests()
        yield self.derive(Report)
        if self.openalex_url:
            yield self.derive(MatchPapers)

    def run(self) -> None:
        """Fail if a record of these days could not be read: its paper is not in the store."""
        number, named = store.unread(self.engine(), MOST_NAMED, self.days(), self.set_specs())
        if number:
            raise RecordError(f"records that cannot be read: {number}, so their days are not done; {'; '.join(named)}")
