"""What a budget is, and the books of what was spent of it: counted before it is spent.

A budget has so many units in a calendar period. A request is reserved before it is sent and charged when it was
answered; a reservation that nobody closes counts as spent. Amounts are whole billionths of a unit, so that sums are
exact; times are seconds since 1970.

The SQL is what SQLite and PostgreSQL both understand. On a managed host `standpiped` keeps the books; elsewhere a
process may keep them itself, in an SQLite file that others share.
"""

from __future__ import annotations

import json
import sqlite3
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone, tzinfo
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Tuple, Type
from uuid import uuid4
from zoneinfo import ZoneInfo

SCALE = 10**9  # the parts of a unit that are counted
MOST = 9 * 10**9  # units: what fits into 64 bits
ABANDONED_AFTER = 3600  # seconds after which a reservation that nobody closed counts as crashed
WAIT = 30  # seconds for others to end their writing
CLOCK_SLIPS = 60  # seconds by which a clock may be put back without more ado
SETTLES_IN = 600  # seconds from a period's start for which a provider may still speak of the one before
MOST_HOLD = 86400  # seconds for which a provider's word counts, whatever it says
LONGEST_ORDER = 4096  # bytes, of what a run says through its socket
WARNING = 600  # seconds within which people are warned, or whoever was at it was killed
MOST_DAYS = 31  # ahead for which a pipeline may tell what it expects
LONGEST_HOLD = 900  # seconds that a request waits at a provider's word; when it asks for more, nothing is left for now

TABLES = (
    """CREATE TABLE IF NOT EXISTS budget (
        name TEXT PRIMARY KEY, next_free DOUBLE PRECISION NOT NULL, held_until DOUBLE PRECISION NOT NULL,
        latest DOUBLE PRECISION NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS period (
        budget TEXT NOT NULL, starts BIGINT NOT NULL, ends BIGINT NOT NULL, spent BIGINT NOT NULL,
        crashed BIGINT NOT NULL, elsewhere BIGINT NOT NULL, warned BIGINT NOT NULL, PRIMARY KEY (budget, starts))""",
    """CREATE TABLE IF NOT EXISTS reservation (
        id TEXT PRIMARY KEY, budget TEXT NOT NULL, starts BIGINT NOT NULL, pipeline TEXT NOT NULL, run TEXT NOT NULL,
        kind TEXT NOT NULL, amount BIGINT NOT NULL, due DOUBLE PRECISION NOT NULL)""",
    "CREATE INDEX IF NOT EXISTS reservation_by_budget ON reservation (budget)",
    """CREATE TABLE IF NOT EXISTS spending (
        budget TEXT NOT NULL, starts BIGINT NOT NULL, day TEXT NOT NULL, pipeline TEXT NOT NULL, run TEXT NOT NULL,
        kind TEXT NOT NULL, calls BIGINT NOT NULL, amount BIGINT NOT NULL,
        PRIMARY KEY (budget, run, day, pipeline, kind, starts))""",
    "CREATE INDEX IF NOT EXISTS spending_by_day ON spending (budget, day)",
    "CREATE INDEX IF NOT EXISTS spending_by_pipeline ON spending (budget, pipeline, run)",
    """CREATE TABLE IF NOT EXISTS foretold (
        budget TEXT NOT NULL, pipeline TEXT NOT NULL, said TEXT NOT NULL, days TEXT NOT NULL,
        PRIMARY KEY (budget, pipeline))""",
    "CREATE TABLE IF NOT EXISTS identity (one BIGINT PRIMARY KEY CHECK (one = 1), id TEXT NOT NULL)",
)
# What books that were begun before it lack: by which period and zone a budget was counted last, what a change of them
# brought into a period from those that it overlaps, and since when somebody is at it to warn people of a period.
COLUMNS = (
    ("budget", "counted_by", "TEXT NOT NULL DEFAULT ''"),
    ("period", "carried", "BIGINT NOT NULL DEFAULT 0"),
    ("period", "warning_since", "DOUBLE PRECISION NOT NULL DEFAULT 0"),
)


class Refused(Exception):
    """A reservation that is not made, and nothing is left to try: what is asked for is not declared."""


class Spent(Refused):
    """Nothing is left, until `resets_at` (seconds since 1970) or, where that is None, for the rest of the run."""

    def __init__(self, message: str, resets_at: Optional[float] = None) -> None:
        """Keep the instant beside the message."""
        super().__init__(message)
        self.resets_at = resets_at

    @property
    def until(self) -> Optional[datetime]:
        """The same in UTC."""
        return None if self.resets_at is None else datetime.fromtimestamp(self.resets_at, timezone.utc)


class Unavailable(Refused):
    """The books cannot be kept now; so no call goes out that they would not know of."""


@dataclass(frozen=True)
class Terms:
    """A budget as declared: `limit` and `prices` in billionths of a unit, `pace` in seconds from call to call."""

    name: str
    limit: int
    unit: str = "call"
    period: str = "month"
    timezone: str = "UTC"
    pace: float = 0.0
    prices: Mapping[str, int] = field(default_factory=dict)
    remaining_header: Optional[str] = None

    @classmethod
    def of(cls, declared: Mapping[str, Any]) -> Terms:
        """Read a declared budget. Raises ValueError with what is wrong."""
        unknown = set(declared) - {"name", "limit", "unit", "period", "timezone", "pace", "prices", "remaining_header"}
        if unknown:
            raise ValueError(f"budget {declared.get('name')!r} has the unknown key {sorted(unknown)[0]!r}")
        if declared.get("period", "month") not in ("day", "week", "month"):
            raise ValueError(f"budget {declared['name']!r}: period: choose of day, week, month")
        try:
            zone(str(declared.get("timezone", "UTC")))
        except (KeyError, ValueError, OSError):
            raise ValueError(f"budget {declared['name']!r}: timezone: this machine knows no such zone") from None
        return cls(
            name=str(declared["name"]),
            limit=parts(declared["limit"]),
            unit=str(declared.get("unit", "call")),
            period=str(declared.get("period", "month")),
            timezone=str(declared.get("timezone", "UTC")),
            pace=seconds_between(declared["pace"]) if declared.get("pace") else 0.0,
            prices={str(kind): parts(price) for kind, price in (declared.get("prices") or {}).items()},
            remaining_header=declared.get("remaining_header"),
        )

    @property
    def units(self) -> str:
        """Name the units in the plural: calls, but USD."""
        return f"{self.unit}s" if self.unit.islower() else self.unit

    @property
    def counted_by(self) -> str:
        """Name the period and the zone, a change of which begins other rows of the books."""
        return f"{self.period} {self.timezone}"

    def price(self, kind: str) -> int:
        """Return what a kind of call costs; one unit where there are no prices. Raises Refused for an unknown kind."""
        if not self.prices:
            return SCALE
        if kind not in self.prices:
            raise Refused(f"budget {self.name} has no price for a call of kind {kind!r}: declare it under prices")
        return self.prices[kind]

    def period_at(self, instant: float) -> Tuple[int, int]:
        """Return when the period of an instant starts and ends: local midnights of the budget's zone."""
        today = self.day_at(instant)
        if self.period == "day":
            first, after = today, today + timedelta(days=1)
        elif self.period == "week":  # from Monday on
            first = today - timedelta(days=today.weekday())
            after = first + timedelta(days=7)
        else:
            first = today.replace(day=1)
            after = (first + timedelta(days=32)).replace(day=1)
        return self.midnight(first), self.midnight(after)

    def day_at(self, instant: float) -> date:
        """Return the date of an instant in the budget's zone."""
        return datetime.fromtimestamp(instant, zone(self.timezone)).date()

    def midnight(self, day: date) -> int:
        """Return when a date begins in the budget's zone."""
        return int(datetime(day.year, day.month, day.day, tzinfo=zone(self.timezone)).timestamp())


def zone(name: str) -> tzinfo:
    """Return a time zone; UTC needs no database of them."""
    return timezone.utc if name == "UTC" else ZoneInfo(name)


def parts(value: object) -> int:
    """Read a number of units, as text or number; return billionths. Raises ValueError where it is none that fits."""
    try:
        units = Decimal(str(value))
    except InvalidOperation:
        raise ValueError(f"{value!r} is no number of units") from None
    scaled = units * SCALE if units.is_finite() else Decimal("0.5")
    if scaled != scaled.to_integral_value() or not 0 <= units <= MOST:
        raise ValueError(f"{value!r} is no number of units from 0 to {MOST}, with nine decimals at most")
    return int(scaled)


def units(amount: int) -> Decimal:
    """Return billionths as units, without zeros at the end."""
    value = (Decimal(amount) / SCALE).normalize()
    return value.quantize(Decimal(1)) if value == value.to_integral_value() else value


def seconds_between(pace: object) -> float:
    """Read a pace such as "10/s", "1/3s" or "100/m"; return the seconds from one call to the next."""
    calls, slash, span = str(pace).partition("/")
    number = span.rstrip("smh")
    unit = {"s": 1, "m": 60, "h": 3600}.get(span[len(number) :], 0)
    if not slash or not calls.isdecimal() or int(calls) == 0 or not unit or (number and not number.isdecimal()):
        raise ValueError(f'{pace!r} is no pace. Write for example "10/s" or "1/3s"')
    return int(number or 1) * unit / int(calls)


class Database:
    """Where the books are: SQLite, one file."""

    find_budget = "SELECT next_free, held_until, latest, counted_by FROM budget WHERE name = ?"
    find_column = "SELECT 1 FROM pragma_table_info(?) WHERE name = ?"
    errors: Tuple[Type[Exception], ...] = (sqlite3.Error,)
    identity: str  # by which these books are told from others, that know nothing of what was spent by them

    def __init__(self, path: str, clock: Callable[[], float] = time.time) -> None:
        """Open the file, and make it where it is not there."""
        if sqlite3.sqlite_version_info < (3, 35):
            raise Unavailable(f"SQLite {sqlite3.sqlite_version} is too old for the budgets' books: 3.35 is needed")
        self.clock = clock
        self._path = path
        self._connection = sqlite3.connect(path, timeout=WAIT, isolation_level=None, check_same_thread=False)
        self._log_ahead()
        self._connection.execute("PRAGMA synchronous=FULL")  # a reservation is on disk before its call goes out
        self._make_tables()
        self._inode = 0 if path == ":memory:" else Path(path).stat().st_ino

    def is_replaced(self) -> bool:
        """Say whether the file at the path is not the one that is open: what is written to that counts for nobody."""
        try:
            return Path(self._path).stat().st_ino != self._inode
        except OSError:
            return self._path != ":memory:"

    def _make_tables(self) -> None:
        """Have all tables, with all their columns, and know which books these are."""
        for statement in TABLES:
            if not self.is_made(statement.split()[5]):  # CREATE TABLE IF NOT EXISTS name
                self.execute(statement)
        for table, column, kind in COLUMNS:
            if not self._has(table, column):
                with self.transaction():
                    if not self._has(table, column):  # nobody else was faster
                        self.execute(f"ALTER TABLE {table} ADD COLUMN {column} {kind}")
        known = self.execute("SELECT id FROM identity").fetchone()
        if known is None:
            self.execute("INSERT INTO identity VALUES (1, ?) ON CONFLICT DO NOTHING", uuid4().hex)
            known = self.execute("SELECT id FROM identity").fetchone()
        self.identity = known[0]

    def is_made(self, _name: str) -> bool:
        """Say whether a table or index is known to be there; here it is as quick to have it made if it is not."""
        return False

    def _has(self, table: str, column: str) -> bool:
        return self.execute(self.find_column, table, column).fetchone() is not None

    def _log_ahead(self) -> None:
        """Turn to a write-ahead log; where others are at it as well, SQLite does not wait by itself."""
        deadline = time.monotonic() + WAIT
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode=WAL")
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            else:
                return

    def now(self) -> float:
        """Return the time that decides the period."""
        return self.clock()

    def disagreement(self, _terms: Terms) -> Optional[str]:
        """Say who, of those who share these books, declares a budget otherwise; None where nobody does."""
        return None

    def declares(self, names: List[str]) -> None:
        """Take it that only these budgets are declared here."""

    def execute(self, statement: str, *values: Any) -> Any:
        """Execute one statement; return its cursor."""
        return self._connection.execute(statement, values)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Do all or nothing, alone, and have it on disk."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def close(self) -> None:
        """Let go of it."""
        self._connection.close()


@dataclass
class Account:
    """One budget's row and its present period's, as they are within a transaction."""

    terms: Terms
    starts: int
    ends: int
    next_free: float
    held_until: float
    latest: float
    spent: int = 0
    crashed: int = 0
    elsewhere: int = 0
    carried: int = 0
    reserved: int = 0
    runs: Dict[str, int] = field(default_factory=dict)

    @property
    def left(self) -> int:
        """Return what can still be reserved; less than nothing where the limit was lowered below what is spent."""
        return self.terms.limit - self.used - self.reserved

    @property
    def used(self) -> int:
        """Return what counts as spent."""
        return self.spent + self.crashed + self.elsewhere + self.carried


class Books:
    """What may be done within one transaction: many reservations, one flush of the disk."""

    def __init__(self, database: Database) -> None:
        """Begin with nothing loaded; `write` ends it."""
        self._database = database
        self._accounts: Dict[str, Account] = {}
        self._foretold: Dict[Tuple[str, str], Tuple[str, str]] = {}
        self.now = database.now()

    def account(self, terms: Terms) -> Account:
        """Load a budget. Raises Unavailable where the clock was set back into an earlier period."""
        known = self._accounts.get(terms.name)
        if known:
            return known
        row = self._database.execute(self._database.find_budget, terms.name).fetchone()
        if row is None:
            make = "INSERT INTO budget (name, next_free, held_until, latest) VALUES (?, 0, 0, 0) ON CONFLICT DO NOTHING"
            self._database.execute(make, terms.name)
            row = self._database.execute(self._database.find_budget, terms.name).fetchone()
        next_free, held_until, latest, counted_by = row
        self.now = self._database.now()  # since it may have waited for others
        if latest > self.now + CLOCK_SLIPS:
            raise Unavailable(
                f"the clock says {moment(self.now)}, but budget {terms.name} was spent from at {moment(latest)} "
                f"already: set the clock right; where it is right now, standpipe budget {terms.name} --clock-is-right"
            )
        self.now = max(self.now, latest)
        if otherwise := self._database.disagreement(terms):
            raise Unavailable(otherwise)
        starts, ends = terms.period_at(self.now)
        account = Account(terms, starts, ends, next_free, held_until, latest)
        row = self._database.execute(
            "SELECT spent, crashed, elsewhere, carried FROM period WHERE budget = ? AND starts = ?", terms.name, starts
        ).fetchone()
        is_new = row is None
        if is_new:
            self._database.execute(
                "INSERT INTO period (budget, starts, ends, spent, crashed, elsewhere, warned) "
                "VALUES (?, ?, ?, 0, 0, 0, 0)",
                *(terms.name, starts, ends),
            )
            row = (0, 0, 0, 0)
        account.spent, account.crashed, account.elsewhere, account.carried = row
        if counted_by != terms.counted_by and (counted_by or is_new):
            # What was spent in the same time by another period or zone counts on, there and back: all of it that is in
            # other rows, where each call is in one of them, and nothing that these had only carried over themselves.
            # Books that did not note by what they counted have had it under `elsewhere` since the row was made.
            others = self._database.execute(
                "SELECT coalesce(sum(spent + crashed + elsewhere), 0) FROM period "
                "WHERE budget = ? AND starts <> ? AND starts < ? AND ends > ?",
                *(terms.name, starts, ends, starts),
            ).fetchone()
            account.carried = max(account.carried, int(others[0]))
        account.reserved = int(
            self._database.execute(
                "SELECT coalesce(sum(amount), 0) FROM reservation WHERE budget = ?", terms.name
            ).fetchone()[0]
        )
        self._accounts[terms.name] = account
        return account

    def reserve(
        self, ident: str, terms: Terms, pipeline: str, run: str, kind: str = "call", per_run: Optional[int] = None
    ) -> float:
        """Reserve the price of one call; return for how many seconds it is to wait before it goes out.

        The same `ident` again, as after a broken connection, is the same reservation. Raises Spent, Refused,
        Unavailable.
        """
        amount = terms.price(kind)
        kind = kind if terms.prices else "call"
        account = self.account(terms)
        row = self._database.execute("SELECT due, budget, kind FROM reservation WHERE id = ?", ident).fetchone()
        if row:
            if tuple(row[1:]) != (terms.name, kind):
                raise Refused(f"reservation {ident} is of another call already")
            return max(0.0, float(row[0]) - self.now)
        if account.held_until - self.now > LONGEST_HOLD:
            raise Spent(
                f"the provider of {terms.name} asks for none before {moment(account.held_until)}", account.held_until
            )
        if amount > account.left:
            raise Spent(self._told(account, amount), account.ends)
        if per_run is not None:
            used = self._used_by(account, run)
            if used + amount > per_run:
                raise Spent(
                    f"this run has spent {units(used)} of its {units(per_run)} {terms.units} of budget {terms.name}"
                )
            account.runs[run] = used + amount
        due = max(self.now, account.next_free, account.held_until)
        if due - self.now > LONGEST_HOLD:
            raise Unavailable(f"{due - self.now:.0f} s of calls are waiting for the pace of budget {terms.name}")
        account.next_free = due + terms.pace
        account.latest = max(account.latest, self.now)
        account.reserved += amount
        self._database.execute(
            "INSERT INTO reservation VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            *(ident, terms.name, account.starts, pipeline, run, kind, amount, due),
        )
        return due - self.now

    def _told(self, account: Account, amount: int) -> str:
        terms = account.terms
        used = account.used
        below = ", which is above its limit (it was lowered)" if used > terms.limit else ""
        return (
            f"budget {terms.name} has {units(max(0, account.left))} of {units(terms.limit)} {terms.units} left this "
            f"{terms.period}, and this call costs {units(amount)}: {units(used)} are spent{below}, "
            f"{units(account.reserved)} reserved; more from {moment(account.ends)}"
        )

    def _used_by(self, account: Account, run: str) -> int:
        """Return what a run has spent and reserved, over all periods."""
        if run not in account.runs:
            account.runs[run] = sum(
                int(self._database.execute(question, account.terms.name, run).fetchone()[0])
                for question in (
                    "SELECT coalesce(sum(amount), 0) FROM spending WHERE budget = ? AND run = ? AND calls > 0",
                    "SELECT coalesce(sum(amount), 0) FROM reservation WHERE budget = ? AND run = ?",
                )
            )
        return account.runs[run]

    def settle(
        self,
        ident: str,
        terms: Terms,
        remaining: Optional[int] = None,
        hold: Optional[float] = None,
        crashed: bool = False,
    ) -> None:
        """Charge a reservation: its call was answered, or may have been. One that is not open any more was charged.

        `remaining` is what the provider says is left, `hold` for how many seconds it asks for no more calls: both may
        only lower what is allowed. A call that went on past a period's end is charged to both periods.
        """
        account = self.account(terms)
        row = self._database.execute(
            "DELETE FROM reservation WHERE id = ? AND budget = ? RETURNING starts, pipeline, run, kind, amount, due",
            *(ident, terms.name),
        ).fetchone()
        if row is None:
            return
        if hold is not None:
            account.held_until = max(account.held_until, self.now + min(hold, MOST_HOLD))
        starts, pipeline, run, kind, amount, due = row
        account.reserved -= amount
        day = terms.day_at(due if terms.period_at(due)[0] == starts else starts)
        self._spend(account, starts, day, (pipeline, run, kind), (1, amount))
        if starts == account.starts:
            account.crashed += amount if crashed else 0
            account.spent += 0 if crashed else amount
        else:
            column = "crashed" if crashed else "spent"
            self._database.execute(
                f"UPDATE period SET {column} = {column} + ? WHERE budget = ? AND starts = ?",  # noqa: S608  # of two words
                *(amount, terms.name, starts),
            )
            account.crashed += amount if crashed else 0
            account.spent += 0 if crashed else amount
            self._spend(account, account.starts, terms.day_at(account.starts), (pipeline, run, kind), (0, amount))
        if remaining is not None and starts == account.starts and self.now - starts > SETTLES_IN:
            account.elsewhere += max(0, account.left - max(0, remaining - account.reserved))

    def _spend(
        self, account: Account, starts: int, day: Optional[date], who: Tuple[str, str, str], much: Tuple[int, int]
    ) -> None:
        """Note what a run has spent; of no day is what its envelope alone is to know."""
        pipeline, run, kind = who
        self._database.execute(
            "INSERT INTO spending (budget, starts, day, pipeline, run, kind, calls, amount) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (budget, run, day, pipeline, kind, starts) DO UPDATE "
            "SET calls = spending.calls + excluded.calls, amount = spending.amount + excluded.amount",
            *(account.terms.name, starts, day.isoformat() if day else "", pipeline, run, kind, *much),
        )

    def refund(self, ident: str, terms: Terms) -> None:
        """Take a reservation back: nothing was sent."""
        account = self.account(terms)
        row = self._database.execute(
            "DELETE FROM reservation WHERE id = ? AND budget = ? RETURNING run, amount", ident, terms.name
        ).fetchone()
        if row is not None:
            account.reserved -= row[1]
            if row[0] in account.runs:
                account.runs[row[0]] -= row[1]

    def expect(self, terms: Terms, pipeline: str, days: Mapping[date, int]) -> None:
        """Note what a pipeline expects to spend on the days to come, in place of what it said before.

        Days that are over or too far ahead are passed over. Whatever is said within a transaction, the last word alone
        is put down.
        """
        self.account(terms)
        today = terms.day_at(self.now)
        kept = {f"{day}": days[day] for day in sorted(days) if 0 <= (day - today).days <= MOST_DAYS}
        self._foretold[terms.name, pipeline] = today.isoformat(), json.dumps(kept)

    def declare(self, terms: Mapping[str, Terms]) -> None:
        """Say to those who share the books what is declared here, which else each call does for its own budget."""
        self._database.declares(list(terms))
        for name in sorted(terms):
            with suppress(Unavailable):  # told to whoever asks for it
                self.account(terms[name])

    def crash(self, terms: Terms, run: Optional[str] = None) -> int:
        """Charge what nobody closed: of a run that has ended, or, where none is named, what was abandoned long ago."""
        question, value = "run = ?", run
        if run is None:
            question, value = "due < ?", str(self.now - ABANDONED_AFTER)
        rows = self._database.execute(
            f"SELECT id FROM reservation WHERE budget = ? AND {question}",  # noqa: S608  # of two texts above
            *(terms.name, value if run is not None else float(value or 0)),
        ).fetchall()
        for (ident,) in rows:
            self.settle(ident, terms, crashed=True)
        return len(rows)

    def set_elsewhere(self, terms: Terms, amount: int) -> int:
        """Note what was spent of the present period without these books' knowledge; return what was noted before.

        That may be a provider's word, or what a clock that was ahead had spent.
        """
        account = self.account(terms)
        before, account.elsewhere = account.elsewhere, amount
        return before

    def warn(self, terms: Terms, level: int) -> bool:
        """Note how urgently people were warned of the present period; return whether that is more than they knew."""
        changed = self._database.execute(
            "UPDATE period SET warned = ?, warning_since = 0 WHERE budget = ? AND starts = ? AND warned < ?",
            *(level, terms.name, self.account(terms).starts, level),
        )
        return bool(changed.rowcount)

    def begin_warning(self, terms: Terms, level: int) -> bool:
        """Say whether people are to be warned now: they know less, and nobody else who has these books is at it."""
        account = self.account(terms)
        changed = self._database.execute(
            "UPDATE period SET warning_since = ? WHERE budget = ? AND starts = ? AND warned < ? "
            "AND NOT warning_since BETWEEN ? AND ?",
            *(self.now, terms.name, account.starts, level, self.now - WARNING, self.now),
        )
        return bool(changed.rowcount)

    def give_up_warning(self, terms: Terms) -> None:
        """Note that nobody could be warned: the next who looks is to try."""
        self._database.execute(
            "UPDATE period SET warning_since = 0 WHERE budget = ? AND starts = ?",
            *(terms.name, self.account(terms).starts),
        )

    def trust_clock(self, terms: Terms) -> None:
        """Take the clock for right, whatever was noted by it before; what was spent in times to come counts now."""
        self._database.execute("UPDATE budget SET latest = 0, next_free = 0, held_until = 0 WHERE name = ?", terms.name)
        account = self.account(terms)
        ahead = self._database.execute(
            "SELECT coalesce(sum(spent + crashed), 0) FROM period WHERE budget = ? AND starts >= ?",
            *(terms.name, account.ends),
        ).fetchone()
        self._database.execute("DELETE FROM period WHERE budget = ? AND starts >= ?", terms.name, account.ends)
        account.elsewhere += int(ahead[0])
        self._database.execute(
            "UPDATE reservation SET starts = ?, due = ? WHERE budget = ? AND due > ?",
            *(account.starts, self.now, terms.name, self.now),
        )
        # What was spent on days to come is not shown when they come; but the runs go on in the same envelopes.
        today = terms.day_at(self.now)
        rows = self._database.execute(
            "SELECT starts, pipeline, run, kind, sum(calls), sum(amount) FROM spending "
            "WHERE budget = ? AND day > ? AND calls > 0 GROUP BY starts, pipeline, run, kind",
            *(terms.name, today.isoformat()),
        ).fetchall()
        self._database.execute("DELETE FROM spending WHERE budget = ? AND day > ?", terms.name, today.isoformat())
        for starts, pipeline, run, kind, calls, amount in rows:
            day = today if starts < account.ends else None  # else it is under `elsewhere`
            self._spend(account, account.starts, day, (pipeline, run, kind), (int(calls), int(amount)))

    def write(self) -> None:
        """Put down what has changed."""
        for who, what in self._foretold.items():
            self._database.execute(
                "INSERT INTO foretold VALUES (?, ?, ?, ?) ON CONFLICT (budget, pipeline) DO UPDATE "
                "SET said = excluded.said, days = excluded.days",
                *who,
                *what,
            )
        for account in self._accounts.values():
            name = account.terms.name
            self._database.execute(
                "UPDATE budget SET next_free = ?, held_until = ?, latest = ?, counted_by = ? WHERE name = ?",
                *(account.next_free, account.held_until, account.latest, account.terms.counted_by, name),
            )
            self._database.execute(
                "UPDATE period SET ends = ?, spent = ?, crashed = ?, elsewhere = ?, carried = ? "
                "WHERE budget = ? AND starts = ?",
                *(account.ends, account.spent, account.crashed, account.elsewhere, account.carried),
                *(name, account.starts),
            )


def open_database(path: str) -> Database:
    """Open an SQLite file of books. Raises Unavailable where it is none, or cannot be written."""
    try:
        return Database(path)
    except sqlite3.Error as error:
        raise Unavailable(f"the budgets' ledger {path} cannot be opened ({error}): no call goes out") from None


@contextmanager
def books(database: Database) -> Iterator[Books]:
    """Open the books for one transaction. Raises Unavailable where they cannot be kept."""
    try:
        with database.transaction():
            opened = Books(database)
            yield opened
            opened.write()
    except database.errors as error:
        raise Unavailable(f"the budgets' ledger cannot be written ({str(error).strip()}): no call goes out") from error


def expected(terms: Terms, told: object) -> Dict[date, int]:
    """Read what is expected of each day, calls by kind, as `{"2026-11-20": {"search": 40.5}}`; return billionths.

    Raises Refused for what is none, for too many days, and for a kind without a price.
    """
    days = {}
    try:
        if len(told) > MOST_DAYS:  # type: ignore[arg-type]  # what has no length is none
            raise Refused(f"what is expected of budget {terms.name} is told for {MOST_DAYS} days at most")
        for day, kinds in told.items():  # type: ignore[attr-defined]  # what has no items is none
            amount = sum(_calls(number) * terms.price(kind) for kind, number in kinds.items())
            days[date.fromisoformat(day)] = int(min(amount, MOST * SCALE))
    except (AttributeError, TypeError, ValueError, InvalidOperation):
        raise Refused(f"what is expected of budget {terms.name} is told as calls by kind for each day") from None
    return days


def _calls(number: object) -> Decimal:
    """Read a number of calls, which may have decimals. Raises ValueError or InvalidOperation where it is none."""
    calls = Decimal(str(number))
    if not 0 <= calls <= MOST:
        raise ValueError(number)
    return calls


def remaining(text: object) -> Optional[int]:
    """Read how many units a provider says are left, in billionths; None where that is no number."""
    try:
        value = Decimal(str(text))
    except InvalidOperation:
        return None
    return int(min(max(value, Decimal(0)), Decimal(MOST)) * SCALE) if value.is_finite() else None


def moment(instant: float) -> str:
    """Return an instant as people read it."""
    return datetime.fromtimestamp(instant, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")


@dataclass(frozen=True)
class State:
    """What a budget's present period has come to, in billionths of a unit; what is spent by day and pipeline."""

    terms: Terms
    starts: int
    ends: int
    spent: int
    crashed: int
    elsewhere: int
    reserved: int
    held_until: float  # before which its provider asks for no calls; 0 where that is no more
    days: List[Tuple[str, str, int, int]]  # date, pipeline, calls, amount, of this period and of those before
    # Pipeline, the date on which it said so, the date it spoke of, and the amount that it expects to spend then.
    told: List[Tuple[str, str, str, int]] = field(default_factory=list)

    @property
    def left(self) -> int:
        """Return what can still be reserved, nothing where the limit was lowered below what is spent."""
        return max(0, self.terms.limit - self.spent - self.crashed - self.elsewhere - self.reserved)


def state(database: Database, terms: Terms, since: Optional[str] = None) -> State:
    """Look at a budget; with spending by day from the date `since` on, if that is given. Changes nothing."""
    now = database.now()
    starts, ends = terms.period_at(now)
    row = database.execute(
        "SELECT spent, crashed, elsewhere + carried FROM period WHERE budget = ? AND starts = ?", terms.name, starts
    ).fetchone()
    reserved = database.execute(
        "SELECT coalesce(sum(amount), 0) FROM reservation WHERE budget = ?", terms.name
    ).fetchone()
    held = database.execute(
        "SELECT held_until FROM budget WHERE name = ? AND held_until > ?", terms.name, now
    ).fetchone()
    days = (
        []
        if since is None
        else database.execute(
            "SELECT day, pipeline, sum(calls), sum(amount) FROM spending WHERE budget = ? AND day >= ? AND calls > 0 "
            "GROUP BY day, pipeline ORDER BY day, pipeline",
            *(terms.name, since),
        ).fetchall()
    )
    told = (
        []
        if since is None
        else database.execute(
            "SELECT pipeline, said, days FROM foretold WHERE budget = ? AND said >= ? ORDER BY pipeline",
            *(terms.name, since),
        ).fetchall()
    )
    spent, crashed, elsewhere = row or (0, 0, 0)
    return State(
        *(terms, starts, ends, int(spent), int(crashed), int(elsewhere), int(reserved[0])),
        float(held[0]) if held else 0.0,
        [(day, pipeline, int(calls), int(amount)) for day, pipeline, calls, amount in days],
        [(pipeline, said, day, amount) for pipeline, said, text in told for day, amount in json.loads(text).items()],
    )
