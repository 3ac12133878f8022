"""The budgets of this host: what is declared, where the books are, and what a run may be expected to spend.

`standpiped` alone writes the books (runsocket/budgets.py); what is here reads them, but for what a person corrects.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from functools import lru_cache
from math import ceil
from pathlib import Path

from standpipe import configuration, paths
from standpipe.errors import BudgetsUnavailable, ConfigurationError, UsageError
from standpipe.ledger import Ledger
from standpipe.pipeline import BudgetUse, Pipeline
from standpipe_task import spending

RUNS_LOOKED_AT = 20
FEWEST_RUNS = 3  # from which more is concluded than the envelope says


def terms() -> dict[str, spending.Terms]:
    """Return the declared budgets by their names."""
    try:
        seen = paths.BUDGETS.stat()
    except FileNotFoundError:
        return {}
    return _terms_as_of(seen.st_mtime_ns, seen.st_ino)


@lru_cache(maxsize=1)
def _terms_as_of(_changed: int, _file: int) -> dict[str, spending.Terms]:
    """Read the file once for each time that it was written: the service asks at every call."""
    return {budget.name: budget.terms for budget in configuration.budgets()}


def named(name: str) -> spending.Terms:
    """Return one of them. Raises UsageError where it is not declared here."""
    declared = terms()
    if name not in declared:
        known = ", ".join(sorted(declared)) or "none"
        raise UsageError(f"this host knows no budget {name!r}. It knows: {known}")
    return declared[name]


def open_books() -> spending.Database:
    """Open the books: in the database whose URL the host was given, else in a file of its own.

    Raises Unavailable where they are not those by which this host has spent what it did.
    """
    shared = paths.BUDGETS_DATABASE.exists()
    paths.STATE.mkdir(mode=0o700, parents=True, exist_ok=True)
    known = paths.BUDGETS_BEGUN.read_text() if paths.BUDGETS_BEGUN.exists() else None  # empty: of no known identity
    others = spending.Unavailable(
        f"the books by which this host has spent are not {'those of its database' if shared else paths.BUDGET_LEDGER}: "
        "bring them back; or standpipe budget --new-books, and --elsewhere for what was spent"
    )
    if known is not None and not shared and not paths.BUDGET_LEDGER.exists():
        raise others
    database = open_shared_books() if shared else spending.open_database(str(paths.BUDGET_LEDGER))
    if known and known != database.identity:
        database.close()
        raise others
    if not known and terms():
        paths.BUDGETS_BEGUN.write_text(database.identity)
    return database


def open_shared_books() -> spending.Database:
    """Open those of the database."""
    from standpipe.budgets.postgres import PostgresDatabase

    return PostgresDatabase(paths.BUDGETS_DATABASE.read_text().strip())


def begin_new_books(now: datetime) -> list[Path]:
    """Set the books of this host aside, damaged ones too, and go on with empty ones, or with those of its database.

    Returns where the old ones are.
    """
    aside = []
    for path in sorted(paths.STATE.glob(f"{paths.BUDGET_LEDGER.name}*")):
        if ".aside" not in path.name:
            suffix = path.name.removeprefix(paths.BUDGET_LEDGER.name)  # by which SQLite finds a file's log beside it
            aside.append(path.rename(f"{paths.BUDGET_LEDGER}.aside-{now:%Y%m%dT%H%M%SZ}{suffix}"))
    paths.BUDGETS_BEGUN.unlink(missing_ok=True)
    with books():
        return aside


@contextmanager
def books() -> Iterator[spending.Database]:
    """Open the books for a look, and close them. Raises BudgetsUnavailable where that is not possible."""
    try:
        database = open_books()
        try:
            yield database
        except database.errors as error:
            raise BudgetsUnavailable(f"the budgets' ledger cannot be read: {str(error).strip()}") from None
        finally:
            database.close()
    except spending.Refused as error:
        raise BudgetsUnavailable(str(error)) from None


def cautious(pipeline: Pipeline) -> list[BudgetUse]:
    """Return the budgets of which enough is to be left before a run starts."""
    return [use for use in pipeline.budgets if use.if_short == "skip"]


def shortage(pipeline: Pipeline, under_way: Iterable[tuple[str, str, list[BudgetUse]]] = ()) -> str | None:
    """Say which budget has less left now than a run of a pipeline is expected to spend; None where each has enough.

    What the runs `under_way` (pipeline, id, and the budgets by which it began) are still expected to spend is not for
    this one. Raises BudgetsUnavailable where that cannot be known, ConfigurationError where one is not declared.
    """
    with books() as database:
        for use in cautious(pipeline):
            budget = terms().get(use.name)
            if budget is None:
                raise ConfigurationError(f"budget {use.name} is not declared on this host: run site.yml on it")
            needed = expected(database, pipeline.name, use)
            others = sum(
                still_expected(database, name, run, theirs)
                for name, run, uses in under_way
                for theirs in uses
                if theirs.name == use.name
            )
            state = spending.state(database, budget)
            if state.held_until - database.now() > spending.LONGEST_HOLD:
                return f"the provider of {use.name} asks for no calls before {spending.moment(state.held_until)}"
            left = max(0, state.left - others)
            if needed > left or left == 0:
                besides = f" for it, besides the {spending.units(others)} of runs under way" if others else ""
                return (
                    f"budget {use.name} has {spending.units(left)} {budget.units} left this {budget.period}{besides}, "
                    f"and a run is expected to spend {spending.units(needed)} (standpipe budget {use.name})"
                )
    return None


def still_expected(database: spending.Database, pipeline: str, run: str, use: BudgetUse) -> int:
    """Return what a run under way is expected to spend of a budget, beyond what it has spent and reserved."""
    used = sum(
        int(database.execute(question, use.name, run).fetchone()[0])
        for question in (
            "SELECT coalesce(sum(amount), 0) FROM spending WHERE budget = ? AND run = ? AND calls > 0",
            "SELECT coalesce(sum(amount), 0) FROM reservation WHERE budget = ? AND run = ?",
        )
    )
    return max(0, expected(database, pipeline, use) - used)


def succeeded(pipeline: str) -> list[str]:
    """Return which of a pipeline's last runs succeeded, by this host's ledger, if it has one."""
    if not paths.LEDGER.exists():
        return []
    with closing(Ledger(paths.LEDGER, migrate=False)) as ledger:
        return [run.id for run in ledger.logged(pipeline, RUNS_LOOKED_AT) if run.outcome == "succeeded"]


def expected(database: spending.Database, pipeline: str, use: BudgetUse) -> int:
    """Return what a run is expected to spend, in billionths: what nine of ten of the last runs stayed within.

    A run that succeeded since the first that spent something, by this host's ledger, and spent nothing is one of them.
    Where too few runs are known, and never more than, the run's envelope.
    """
    rows = database.execute(
        "SELECT run, sum(amount) FROM spending WHERE budget = ? AND pipeline = ? AND calls > 0 AND length(run) = 26 "
        "GROUP BY run ORDER BY run DESC LIMIT ?",
        *(use.name, pipeline, RUNS_LOOKED_AT),
    ).fetchall()
    runs = {run: int(amount) for run, amount in rows}
    runs |= {run: 0 for run in succeeded(pipeline) if runs and run > min(runs) and run not in runs}
    spent = sorted(runs[run] for run in sorted(runs)[-RUNS_LOOKED_AT:])  # an id begins with the time
    envelope = None if use.per_run is None else spending.parts(use.per_run)
    if len(spent) < FEWEST_RUNS:
        return envelope if envelope is not None else max(spent, default=0)
    usual = spent[ceil(0.9 * len(spent)) - 1]
    return usual if envelope is None else min(usual, envelope)
