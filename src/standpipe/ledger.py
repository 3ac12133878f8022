"""Slots and runs, in SQLite: what was claimed, what came of it, and why.

A run goes claimed, started, ended, settled, and never back; the ledger is flushed to disk at each
step (`synchronous=FULL`). A slot has one row, and ends in one outcome.
"""

from __future__ import annotations

import fcntl
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, fields
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from standpipe.errors import LedgerDamaged, NotWritable

if TYPE_CHECKING:
    from standpipe.pipeline import Pipeline, Schedule

# Each is applied once, in one transaction, in this order; PRAGMA user_version counts them.
MIGRATIONS = (
    """
    CREATE TABLE pipelines (
        name TEXT PRIMARY KEY,
        registered_at TEXT NOT NULL,
        schedule TEXT,
        schedule_since TEXT NOT NULL
    ) STRICT;
    CREATE TABLE runs (
        id TEXT PRIMARY KEY,
        pipeline TEXT NOT NULL,
        slot TEXT,
        trigger TEXT NOT NULL,
        date TEXT NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('claimed', 'started', 'ended', 'settled')),
        ending TEXT,
        outcome TEXT,
        reason TEXT,
        exit_code INTEGER,
        claimed_at TEXT NOT NULL,
        started_at TEXT,
        ended_at TEXT,
        commit_id TEXT,
        image TEXT,
        container TEXT,
        receipt TEXT,
        CHECK ((state = 'settled') = (outcome IS NOT NULL))
    ) STRICT;
    CREATE INDEX runs_by_pipeline ON runs (pipeline, id);
    CREATE UNIQUE INDEX one_unfinished_run ON runs (pipeline) WHERE state <> 'settled';
    CREATE TABLE slots (
        pipeline TEXT NOT NULL,
        slot TEXT NOT NULL,
        run TEXT NOT NULL REFERENCES runs (id),
        PRIMARY KEY (pipeline, slot)
    ) STRICT, WITHOUT ROWID;
    """,
    """
    ALTER TABLE runs ADD COLUMN attempt INTEGER NOT NULL DEFAULT 1;
    ALTER TABLE runs ADD COLUMN detail TEXT;
    ALTER TABLE runs ADD COLUMN notice TEXT;
    CREATE INDEX notices ON runs (id) WHERE notice IS NOT NULL;
    CREATE INDEX runs_by_outcome ON runs (pipeline, outcome);
    ALTER TABLE slots ADD COLUMN retry_at TEXT;
    ALTER TABLE slots ADD COLUMN late INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE pipelines ADD COLUMN complete_until TEXT;
    CREATE INDEX retries ON slots (retry_at) WHERE retry_at IS NOT NULL;
    CREATE INDEX runs_by_slot ON runs (pipeline, slot);
    CREATE TABLE watch (one INTEGER PRIMARY KEY CHECK (one = 1), seen_at TEXT NOT NULL) STRICT;
    """,
    """
    ALTER TABLE runs ADD COLUMN unconfirmed_since TEXT;
    ALTER TABLE runs ADD COLUMN send_again_at TEXT;
    CREATE INDEX unconfirmed ON runs (id) WHERE unconfirmed_since IS NOT NULL;
    """,
    """
    ALTER TABLE runs ADD COLUMN boot TEXT;
    ALTER TABLE pipelines ADD COLUMN told TEXT;
    CREATE TABLE deliveries (
        run TEXT NOT NULL,
        notice TEXT NOT NULL,
        address TEXT NOT NULL,
        PRIMARY KEY (run, notice, address)
    ) STRICT, WITHOUT ROWID;
    """,
    """
    ALTER TABLE runs ADD COLUMN log_lines INTEGER;
    ALTER TABLE runs ADD COLUMN log_sha256 TEXT;
    """,
    # Of a pipeline whose newest run went wrong before word was noted beside it, people were told: its recovery is news.
    """
    UPDATE pipelines SET told = newest.outcome FROM (
        SELECT pipeline, outcome, max(id) FROM runs WHERE outcome NOT IN ('skipped', 'stopped')
        AND NOT (outcome = 'missed' AND reason IN ('superseded', 'policy')) GROUP BY pipeline
    ) AS newest WHERE newest.pipeline = pipelines.name AND pipelines.told IS NULL AND newest.outcome <> 'succeeded'
    AND NOT EXISTS (SELECT 1 FROM slots WHERE slots.pipeline = pipelines.name AND retry_at IS NOT NULL);
    """,
    """
    DROP INDEX runs_by_pipeline;
    CREATE INDEX runs_as_noted ON runs (pipeline);
    """,
    """
    ALTER TABLE pipelines ADD COLUMN late_slot TEXT;
    UPDATE pipelines SET late_slot = (SELECT max(slot) FROM slots WHERE pipeline = name AND late = 1);
    ALTER TABLE runs ADD COLUMN noted_at TEXT;
    """,
)


# A slot that cannot be read is its newest run's. A failure that nobody was told of was to be tried again: it is due.
SLOTS_BY_THEIR_RUNS = """
INSERT OR IGNORE INTO slots (pipeline, slot, run, retry_at)
SELECT pipeline, slot, id, CASE WHEN outcome IN ('failed', 'interrupted') AND notice IS NULL
 AND NOT EXISTS (SELECT 1 FROM pipelines WHERE name = pipeline AND told IS NOT NULL)
 AND NOT EXISTS (SELECT 1 FROM runs AS later WHERE later.pipeline = runs.pipeline AND later.rowid > runs.rowid
  AND later.outcome = 'succeeded') THEN claimed_at END
FROM runs WHERE slot IS NOT NULL
AND (trigger = 'scheduled' OR (trigger IN ('catch-up', 'retry') AND reason IS NOT 'held')) ORDER BY rowid DESC
"""
UNFINISHED = ".recovering"  # ends the name of a ledger that is not whole yet
CLOCKS_DIFFER_BY = timedelta(minutes=1)  # what keeping time may correct without a word

Missed = tuple[str, datetime, date, str, str | None]  # a record's id, its slot, date, reason and detail


@dataclass(frozen=True)
class Run:
    """One attempt: times are RFC 3339 in UTC; `outcome` is None while it is unfinished.

    `attempt` counts the attempts at one slot from 1; `detail` says more of the reason, for people;
    `notice` is what somebody is still to be told of it, since `noted_at`. `receipt` is when the collector
    confirmed its log; until then, where there is a collector, it is unconfirmed since its end, and sent again in time.
    `boot` names the boot of the host in which it was claimed.
    """

    id: str
    pipeline: str
    slot: str | None
    trigger: str
    date: str
    state: str
    ending: str | None
    outcome: str | None
    reason: str | None
    exit_code: int | None
    claimed_at: str
    started_at: str | None
    ended_at: str | None
    commit_id: str | None
    image: str | None
    container: str | None
    receipt: str | None
    log_lines: int | None  # what its log was closed with: whoever changes the spool later changes this not
    log_sha256: str | None
    attempt: int
    detail: str | None
    notice: str | None
    noted_at: str | None
    unconfirmed_since: str | None
    send_again_at: str | None
    boot: str | None

    @property
    def closed_with(self) -> tuple[int, str] | None:
        """The count of its log's lines and their digest, from when its spool was closed."""
        return (self.log_lines or 0, self.log_sha256) if self.log_sha256 else None

    @property
    def awaits_receipt_since(self) -> datetime:
        """Since when the collector could have confirmed its log."""
        return instant(self.unconfirmed_since or self.claimed_at)

    @classmethod
    def of(cls, row: sqlite3.Row) -> Run:
        """Read a row; a newer standpipe may have given it more columns, or this one not yet all of its own."""
        known = set(row.keys())
        values: dict[str, Any] = {each.name: row[each.name] if each.name in known else None for each in fields(cls)}
        return cls(**values)


@dataclass(frozen=True)
class Registered:
    """A pipeline that this host knows, its schedule, and the instant from which that schedule names slots."""

    name: str
    registered_at: str
    schedule: Schedule | None
    schedule_since: datetime
    complete_until: datetime  # every slot until then has its record


class SlotRecorded(Exception):
    """The slot has its record already."""


def timestamp(instant: datetime) -> str:
    """Write an aware instant as RFC 3339 in UTC, to the microsecond."""
    return instant.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def instant(text: str) -> datetime:
    """Read a timestamp of the ledger's or of an engine's (to the nanosecond)."""
    return datetime.fromisoformat(text.rstrip("Z")[:26]).replace(tzinfo=UTC)


def schedule_of(row: sqlite3.Row) -> Schedule | None:
    """Read a pipeline's schedule; None where it has none, or one whose zone this host does not know any more."""
    from pydantic import ValidationError

    from standpipe.pipeline import Schedule  # to read history needs no model

    try:
        return Schedule.model_validate_json(row["schedule"]) if row["schedule"] else None
    except ValidationError:
        return None


def readable(path: Path, table: str) -> Iterator[sqlite3.Row]:
    """Yield the rows of a table of a damaged file, in both directions from where the damage is."""
    for order in ("ASC", "DESC"):
        with suppress(sqlite3.Error), closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            connection.row_factory = sqlite3.Row
            columns, key = ("*", "pipeline") if table == "slots" else ("rowid, *", "rowid")
            yield from connection.execute(f"SELECT {columns} FROM {table} ORDER BY {key} {order}")  # noqa: S608  # names of ours


class Ledger:
    """The ledger's file, open. Every method is one transaction.

    `began_anew` says so where the file was lost, and this opening made another.
    """

    began_anew: str | None = None

    def __init__(self, path: Path, migrate: bool = True) -> None:
        """Open the ledger, make it where there is none, and bring it to this version's tables."""
        self.path = path
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._open()
            path.chmod(0o600)
            if migrate:
                self._migrate()
        except (sqlite3.Error, OSError) as error:
            raise unwritable(path, error) from error

    def _open(self) -> None:
        mode = "rw"
        if not self.path.exists():
            if unfinished_recovery(self.path):
                raise LedgerDamaged(f"the ledger {self.path} was damaged, and its recovery is not finished")
            mode = "rwc"
        self._connection = sqlite3.connect(f"file:{self.path}?mode={mode}", uri=True, timeout=30, isolation_level=None)
        self._file: int | None = self.path.stat().st_ino
        self._connection.row_factory = sqlite3.Row
        self._connection.execute("PRAGMA synchronous = FULL")

    def _follow(self) -> None:
        """Open the file anew where it was let go, or set aside meanwhile, and another is in its place."""
        if self._file is not None and (self._connection.in_transaction or self._is_in_place()):
            return
        with self.path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # until its runs are taken over
        if self.path.exists():
            self.let_go()
            self._open()

    def _is_in_place(self) -> bool:
        try:
            return self.path.stat().st_ino == self._file
        except OSError:
            return False

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def let_go(self) -> None:
        """Close the file until it is used again: none may be open when a process is forked.

        SQLite's locks are not inherited, but its knowledge of them is. A child that opens the file takes none, then,
        and once its parent is dead, whoever closes the file next removes from under it what it writes to
        (https://www.sqlite.org/howtocorrupt.html, 2.6).
        """
        self._connection.close()
        self._file = None

    def again(self) -> Ledger:
        """Open the same file for another thread or process: SQLite's connections stay with who made them.

        A newer standpipe that was installed meanwhile may have brought the file forward: tables only grow.
        """
        return Ledger(self.path, migrate=False)

    def _migrate(self) -> None:
        if self._version() == len(MIGRATIONS):
            return
        self._connection.execute("PRAGMA journal_mode = WAL")
        while (version := self._version()) < len(MIGRATIONS):
            with self._transaction() as db:
                if self._version() != version:
                    continue  # another standpipe was quicker
                self._note_beginning(version)
                for statement in MIGRATIONS[version].split(";"):
                    db.execute(statement)
                db.execute(f"PRAGMA user_version = {version + 1}")
        if version > len(MIGRATIONS):
            raise NotWritable(
                f"the ledger {self.path} was written by a newer standpipe (tables {version}, this one knows "
                f"{len(MIGRATIONS)}): install that version again, by `ansible-playbook site.yml`"
            )

    def _note_beginning(self, version: int) -> None:
        """Leave a mark beside a ledger that has tables; one without any that has a mark was lost."""
        mark = self.path.with_name("ledger-begun")
        if self.path.suffix == UNFINISHED:
            return  # a recovery loses nothing
        if version:
            mark.touch()
        elif mark.exists():
            self.began_anew = (
                f"the ledger {self.path} was gone or empty, and with it the history of this host: a new one is begun; "
                "what was in the old one is in your backups alone"
            )
            mark.write_text(self.began_anew)  # until people are told

    def _version(self) -> int:
        return int(self._connection.execute("PRAGMA user_version").fetchone()[0])

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            self._follow()
            self._connection.execute("BEGIN IMMEDIATE")
            yield self._connection
            self._connection.execute("COMMIT")
        except (sqlite3.Error, OSError) as error:
            self._roll_back()
            raise unwritable(self.path, error) from error
        except BaseException:
            self._roll_back()
            raise

    def _roll_back(self) -> None:
        if self._file is not None and self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def register(self, pipeline: Pipeline, now: datetime) -> None:
        """Note a pipeline from its first sight on; other slots than before exist from `now` on.

        What was still open of the schedule before is missed.
        """
        with self._transaction() as db:
            row = db.execute("SELECT * FROM pipelines WHERE name = ?", (pipeline.name,)).fetchone()
            before = schedule_of(row) if row else None
            if row and before == pipeline.schedule:
                return
            names = [
                (schedule.cron, schedule.timezone) if schedule else None for schedule in (before, pipeline.schedule)
            ]
            if before and names[0] != names[1]:
                self._give_up(db, row, before, now)
            since = row["schedule_since"] if row and names[0] == names[1] else timestamp(now)
            db.execute(
                "INSERT INTO pipelines (name, registered_at, schedule, schedule_since) VALUES (?, ?, ?, ?)"
                " ON CONFLICT (name) DO UPDATE SET schedule = excluded.schedule, complete_until ="
                " CASE WHEN schedule_since = excluded.schedule_since THEN complete_until END,"
                " schedule_since = excluded.schedule_since",
                (pipeline.name, timestamp(now), pipeline.schedule and pipeline.schedule.model_dump_json(), since),
            )

    def retire(self, declared: set[str], now: datetime) -> None:
        """Have no slots any more for pipelines that are not among the declared ones; their runs stay.

        A failure of theirs that was to be tried again stands, and is told.
        """
        with self._transaction() as db:
            for row in db.execute("SELECT * FROM pipelines WHERE schedule IS NOT NULL").fetchall():
                if row["name"] not in declared:
                    if schedule := schedule_of(row):
                        self._give_up(db, row, schedule, now)
                    db.execute("UPDATE pipelines SET schedule = NULL WHERE name = ?", (row["name"],))
            for row in db.execute("SELECT pipeline, run FROM slots WHERE retry_at IS NOT NULL").fetchall():
                if row["pipeline"] not in declared:
                    let_stand(db, row["run"])

    def _give_up(self, db: sqlite3.Connection, row: sqlite3.Row, schedule: Schedule, now: datetime) -> None:
        """Record what is open of a pipeline's schedule as missed: nobody looks for its slots any more."""
        from ulid import ULID

        from standpipe import slots

        since = datetime.fromisoformat(row["complete_until"] or row["schedule_since"])
        recorded = self.recorded(row["name"], since, now)
        missed: list[Missed] = [
            (str(ULID()), slot, slots.slot_date(schedule, slot), "policy", "the schedule was changed")
            for slot in slots.between(schedule, since, now)
            if slot not in recorded
        ]
        self._miss(db, missed, row["name"], now)

    def registered(self, name: str | None = None) -> list[Registered]:
        """Return the pipelines that this host knows or has known, by name; or the one of that name."""
        rows = self._select("SELECT * FROM pipelines WHERE ?1 IS NULL OR name = ?1 ORDER BY name", name)
        return [
            Registered(
                row["name"],
                row["registered_at"],
                schedule_of(row),
                datetime.fromisoformat(row["schedule_since"]),
                datetime.fromisoformat(row["complete_until"] or row["schedule_since"]),
            )
            for row in rows
        ]

    def forget(self, name: str) -> None:
        """Remove a pipeline's registration, slots and runs."""
        with self._transaction() as db:
            for table, column in (("slots", "pipeline"), ("runs", "pipeline"), ("pipelines", "name")):
                db.execute(f"DELETE FROM {table} WHERE {column} = ?", (name,))  # noqa: S608  # names of ours

    def has_slot(self, pipeline: str, slot: datetime, now: datetime) -> bool:
        """Say whether a slot has a record that keeps it from being started.

        That it was missed, by a clock that was ahead of `now`, is none. One whose run a recovery could not read is.
        """
        return bool(
            self._select(
                "SELECT 1 FROM slots LEFT JOIN runs ON runs.id = slots.run WHERE slots.pipeline = ? AND slots.slot = ?"
                " AND NOT (runs.outcome IS 'missed' AND runs.claimed_at > ?)",
                *(pipeline, timestamp(slot), timestamp(now)),
            )
        )

    def claim(
        self,
        run: str,
        pipeline: str,
        trigger: str,
        day: date,
        slot: datetime | None,
        now: datetime,
        boot: str | None = None,
    ) -> Run | None:
        """Claim a pipeline for `run`, and a slot of it where the trigger is one that owns its slot.

        Returns None, or the unfinished run that holds the pipeline: the attempt is then on record as
        skipped, and so is the slot that cron asked for; catch-up and retries come back to theirs.
        Raises SlotRecorded where another run was quicker with the slot.
        """
        with self._transaction() as db:
            known = db.execute(
                "SELECT slots.retry_at, runs.attempt, runs.outcome IS 'missed' AND runs.claimed_at > ? AS too_early"
                " FROM slots LEFT JOIN runs ON runs.id = slots.run WHERE slots.pipeline = ? AND slots.slot = ?",
                (timestamp(now), pipeline, timestamp(slot) if slot else None),
            ).fetchone()
            if trigger in ("scheduled", "catch-up") and known and not known["too_early"]:
                raise SlotRecorded
            if trigger == "retry" and (known is None or known["retry_at"] is None):
                raise SlotRecorded
            if slot and trigger in ("scheduled", "catch-up", "retry") and self.succeeded(pipeline, slot):
                raise SlotRecorded
            row = db.execute("SELECT * FROM runs WHERE pipeline = ? AND state <> 'settled'", (pipeline,)).fetchone()
            held = ("settled", "skipped", "held", 75, f"held by run {row['id']}") if row else ("claimed", *[None] * 4)
            db.execute(
                "INSERT INTO runs (id, pipeline, slot, trigger, date, claimed_at, attempt, state, outcome, reason,"
                " exit_code, detail, boot) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    run,
                    pipeline,
                    timestamp(slot) if slot else None,
                    trigger,
                    day.isoformat(),
                    timestamp(now),
                    (known["attempt"] or 0) + 1 if trigger == "retry" else 1,
                    *held,
                    boot,
                ),
            )
            if slot and (trigger == "scheduled" or (trigger in ("catch-up", "retry") and not row)):
                db.execute(
                    "INSERT INTO slots (pipeline, slot, run) VALUES (?, ?, ?)"
                    " ON CONFLICT (pipeline, slot) DO UPDATE SET run = excluded.run, retry_at = NULL",
                    (pipeline, timestamp(slot), run),
                )
        return Run.of(row) if row else None

    def take_in(self, run: str, pipeline: str, at: datetime) -> None:
        """Note a run whose record was lost, begun `at` an instant; while another of its pipeline is unfinished, not."""
        with self._transaction() as db:
            db.execute(
                "INSERT OR IGNORE INTO runs (id, pipeline, trigger, date, claimed_at, state, detail)"
                " VALUES (?, ?, 'manual', ?, ?, 'claimed', 'its record was lost')",
                (run, pipeline, at.date().isoformat(), timestamp(at)),
            )

    def miss(self, missed: list[Missed], pipeline: str, now: datetime) -> None:
        """Record slots as missed: each with the id of its record, its instant, date, reason and detail.

        A slot that has its record by now keeps it.
        """
        with self._transaction() as db:
            self._miss(db, missed, pipeline, now)

    def _miss(self, db: sqlite3.Connection, missed: list[Missed], pipeline: str, now: datetime) -> None:
        for run, slot, day, reason, detail in missed:
            which = (pipeline, timestamp(slot))
            if db.execute("SELECT 1 FROM slots WHERE pipeline = ? AND slot = ?", which).fetchone():
                continue
            db.execute(
                "INSERT INTO runs (id, pipeline, slot, trigger, date, claimed_at, state, outcome, reason, detail,"
                " notice) VALUES (?, ?, ?, 'catch-up', ?, ?, 'settled', 'missed', ?, ?, ?)",
                (
                    *(run, *which, day.isoformat(), timestamp(now), reason, detail),
                    None if reason in ("superseded", "policy") else "missed",
                ),
            )
            db.execute("INSERT INTO slots (pipeline, slot, run) VALUES (?, ?, ?)", (*which, run))
            if reason not in ("superseded", "policy"):
                db.execute("UPDATE pipelines SET told = 'missed' WHERE name = ?", (pipeline,))

    def complete(self, pipeline: str, until: datetime) -> None:
        """Note that every slot until then has its record."""
        with self._transaction() as db:
            db.execute("UPDATE pipelines SET complete_until = ? WHERE name = ?", (timestamp(until), pipeline))

    def recorded(self, pipeline: str, start: datetime, end: datetime) -> set[datetime]:
        """Return the slots after `start`, up to and including `end`, recorded or done by a backfill."""
        rows = self._select(
            "SELECT slot FROM slots WHERE pipeline = ?1 AND slot > ?2 AND slot <= ?3 UNION"
            " SELECT slot FROM runs WHERE pipeline = ?1 AND slot > ?2 AND slot <= ?3 AND outcome = 'succeeded'",
            pipeline,
            timestamp(start),
            timestamp(end),
        )
        return {datetime.fromisoformat(row["slot"]) for row in rows}

    def missed_too_early(self, pipeline: str, start: datetime, now: datetime) -> set[datetime]:
        """Return the slots after `start`, up to and including `now`, whose record is that of a clock that was ahead."""
        rows = self._select(
            "SELECT slots.slot FROM slots JOIN runs ON runs.id = slots.run WHERE slots.pipeline = ?"
            " AND slots.slot > ? AND slots.slot <= ? AND runs.outcome = 'missed' AND runs.claimed_at > ?",
            *(pipeline, timestamp(start), timestamp(now), timestamp(now)),
        )
        return {datetime.fromisoformat(row["slot"]) for row in rows}

    def newest_started(self, pipeline: str, until: datetime) -> datetime | None:
        """Return the newest slot, up to and including `until`, whose record is not that it was missed."""
        rows = self._select(
            "SELECT max(slots.slot) AS slot FROM slots JOIN runs ON runs.id = slots.run WHERE slots.pipeline = ?"
            " AND slots.slot <= ? AND runs.outcome IS NOT 'missed'",
            *(pipeline, timestamp(until)),
        )
        return datetime.fromisoformat(rows[0]["slot"]) if rows[0]["slot"] else None

    def retries(self, pipeline: str) -> list[tuple[datetime, datetime]]:
        """Return the slots that are to be tried again, oldest first, each with the instant from which on."""
        rows = self._select(
            "SELECT slot, retry_at FROM slots WHERE pipeline = ? AND retry_at IS NOT NULL ORDER BY slot", pipeline
        )
        return [(datetime.fromisoformat(row["slot"]), datetime.fromisoformat(row["retry_at"])) for row in rows]

    def give_up(self, pipeline: str, slot: datetime) -> None:
        """Try a slot no more: what came of its last run is what came of it, and somebody is told, as nobody was."""
        with self._transaction() as db:
            row = db.execute(
                "SELECT run FROM slots WHERE pipeline = ? AND slot = ? AND retry_at IS NOT NULL",
                (pipeline, timestamp(slot)),
            ).fetchone()
            if row:
                let_stand(db, row["run"])

    def holders(self, pipeline: str, start: datetime, end: datetime) -> list[Run]:
        """Return the runs that held a pipeline at any time from `start` to `end`, as they were claimed."""
        return self._runs(
            "SELECT * FROM runs WHERE pipeline = ?1 AND claimed_at <= ?3 AND (state <> 'settled' OR ended_at > ?2)"
            " AND outcome IS NOT 'skipped' ORDER BY claimed_at",
            *(pipeline, timestamp(start), timestamp(end)),
        )

    def succeeded(self, pipeline: str, slot: datetime) -> bool:
        """Say whether a run of a slot has succeeded, whoever started it."""
        return bool(
            self._select(
                "SELECT 1 FROM runs WHERE pipeline = ? AND slot = ? AND outcome = 'succeeded' LIMIT 1",
                pipeline,
                timestamp(slot),
            )
        )

    def notices(self) -> list[Run]:
        """Return the runs of which somebody is still to be told, oldest first, those of a pipeline together."""
        return self._runs("SELECT * FROM runs WHERE notice IS NOT NULL ORDER BY pipeline, id")

    def told(self, runs: list[str], notice: str) -> None:
        """Note that everybody was told of runs; what is to be told of them since then stays."""
        with self._transaction() as db:
            db.executemany("UPDATE runs SET notice = NULL WHERE id = ? AND notice = ?", [(run, notice) for run in runs])
            db.executemany("DELETE FROM deliveries WHERE run = ? AND notice = ?", [(run, notice) for run in runs])

    def deliver(self, runs: list[str], notice: str, address: str) -> None:
        """Note that one address has taken word of runs."""
        with self._transaction() as db:
            db.executemany(
                "INSERT OR IGNORE INTO deliveries VALUES (?, ?, ?)", [(run, notice, address) for run in runs]
            )

    def delivered(self, notice: str, address: str) -> set[str]:
        """Return the runs of which an address has taken this word, while others have not."""
        rows = self._select("SELECT run FROM deliveries WHERE notice = ? AND address = ?", notice, address)
        return {row["run"] for row in rows}

    def note_late(
        self, run: str, pipeline: str, slot: datetime, day: date, now: datetime, by_hand: str | None = None
    ) -> None:
        """Note, once, that nothing has finished for a slot in its time.

        One that waits for whoever holds the pipeline, a run or what was started `by_hand`, has no record yet: `run` is
        then the attempt that was refused.
        """
        which = (pipeline, timestamp(slot))
        with self._transaction() as db:
            if db.execute("SELECT 1 FROM pipelines WHERE name = ? AND late_slot = ?", which).fetchone():
                return
            row = db.execute("SELECT run FROM slots WHERE pipeline = ? AND slot = ?", which).fetchone()
            held = db.execute("SELECT id FROM runs WHERE pipeline = ? AND state <> 'settled'", (pipeline,)).fetchone()
            holder = f"run {held['id']}" if held else by_hand
            if row is None and holder is None:
                return  # it is about to be started
            if row is None:
                db.execute(
                    "INSERT INTO runs (id, pipeline, slot, trigger, date, claimed_at, state, outcome, reason,"
                    " exit_code, detail) VALUES (?, ?, ?, 'catch-up', ?, ?, 'settled', 'skipped', 'held', 75, ?)",
                    (run, *which, day.isoformat(), timestamp(now), f"held by {holder}"),
                )
            db.execute("UPDATE pipelines SET late_slot = ?2 WHERE name = ?1", which)
            noted = db.execute(
                "UPDATE runs SET notice = 'late', noted_at = ? WHERE id = ? AND notice IS NULL",
                (timestamp(now), row["run"] if row else run),
            )
            if noted.rowcount:
                db.execute("UPDATE pipelines SET told = 'late' WHERE name = ?", (pipeline,))

    def trouble(self, pipeline: str) -> str | None:
        """Return the bad news of a pipeline that people were, or are being, told; None where it was well since."""
        rows = self._select("SELECT told FROM pipelines WHERE name = ?", pipeline)
        return rows[0]["told"] if rows else None

    def counts(self, pipeline: str) -> dict[str, int]:
        """Return how many runs of a pipeline had which outcome."""
        rows = self._select(
            "SELECT outcome, count(*) AS runs FROM runs WHERE pipeline = ? AND outcome IS NOT NULL GROUP BY outcome",
            pipeline,
        )
        return {row["outcome"]: row["runs"] for row in rows}

    def newest(self, pipeline: str, outcome: str | None = None) -> Run | None:
        """Return the newest run of a pipeline that ended in its container; or the newest of an outcome."""
        return self._run(
            "SELECT * FROM runs WHERE pipeline = ?1 AND (outcome = ?2 OR (?2 IS NULL AND ended_at IS NOT NULL))"
            " ORDER BY rowid DESC LIMIT 1",
            pipeline,
            outcome,
        )

    def seen(self) -> datetime | None:
        """Return when this host was watched last."""
        rows = self._select("SELECT seen_at FROM watch")
        return datetime.fromisoformat(rows[0]["seen_at"]) if rows else None

    def watched(self, now: datetime) -> None:
        """Note that this host is being watched now."""
        with self._transaction() as db:
            db.execute(
                "INSERT INTO watch VALUES (1, ?) ON CONFLICT (one) DO UPDATE SET seen_at = excluded.seen_at",
                (timestamp(now),),
            )

    def started(self, run: str, container: str, started_at: str | None, commit_id: str | None, image: str) -> None:
        """Note the container that a claimed run was started as."""
        with self._transaction() as db:
            db.execute(
                "UPDATE runs SET state = 'started', container = ?, started_at = ?, commit_id = ?, image = ?"
                " WHERE id = ? AND state = 'claimed'",
                (container, started_at, commit_id, image, run),
            )

    def ended(self, run: str) -> None:
        """Note that a started run's container has ended, and that its log is on disk to the last line."""
        with self._transaction() as db:
            db.execute("UPDATE runs SET state = 'ended' WHERE id = ? AND state = 'started'", (run,))

    def closed(self, run: str, end: dict[str, Any] | None) -> None:
        """Note with what a run's spool was closed; nothing where it is not."""
        if end:
            with self._transaction() as db:
                db.execute(
                    "UPDATE runs SET log_lines = ?, log_sha256 = ? WHERE id = ?", (end["count"], end["sha256"], run)
                )

    def ending(self, run: str, why: str, detail: str | None = None) -> None:
        """Note that a run is being ended, why (`timed_out` or `stopped`) and by whom, before it is."""
        with self._transaction() as db:
            db.execute(
                "UPDATE runs SET ending = ?, detail = coalesce(?, detail) WHERE id = ? AND ending IS NULL"
                " AND state <> 'settled'",
                (why, detail, run),
            )

    def settle(
        self,
        run: str,
        outcome: str,
        *,
        reason: str | None = None,
        exit_code: int | None = None,
        started_at: str | None = None,
        ended_at: str | None = None,
        detail: str | None = None,
        retry_at: datetime | None = None,
        notice: str | None = None,
        unconfirmed_since: datetime | None = None,
    ) -> None:
        """Note what came of a run, once, and when its slot is to be tried again; a settled run stays as it is.

        Where it had a container, its log is unconfirmed from now on, until the collector has it. That it was late, and
        nobody has heard of yet, is told with how it ended, and not as what it recovered from.
        """
        with self._transaction() as db:
            done = db.execute(
                "UPDATE runs SET state = 'settled', outcome = ?, reason = ?, exit_code = ?,"
                " started_at = coalesce(?, started_at), ended_at = ?, detail = coalesce(?, detail), noted_at = ?,"
                " notice = CASE WHEN notice = 'late' AND coalesce(?, 'recovered') = 'recovered' AND NOT EXISTS"
                " (SELECT 1 FROM deliveries WHERE run = id AND notice = 'late') THEN 'late' ELSE ? END,"
                " unconfirmed_since = CASE WHEN container IS NOT NULL THEN ? END WHERE id = ? AND state <> 'settled'",
                (
                    *(outcome, reason, exit_code, started_at, ended_at, detail, timestamp(datetime.now(UTC))),
                    *(notice, notice),
                    unconfirmed_since and timestamp(unconfirmed_since),
                    run,
                ),
            )
            if done.rowcount and retry_at:
                db.execute("UPDATE slots SET retry_at = ? WHERE run = ?", (timestamp(retry_at), run))
            if done.rowcount and outcome == "skipped":
                hand_back(db, run, told=retry_at is None)
            if done.rowcount and notice:
                db.execute(
                    "UPDATE pipelines SET told = ?1 WHERE name = (SELECT pipeline FROM runs WHERE id = ?2)",
                    (None if notice == "recovered" else notice, run),
                )
            if done.rowcount and outcome == "succeeded":  # whoever started it: its slot is done
                db.execute(
                    "UPDATE slots SET retry_at = NULL FROM runs WHERE runs.id = ?"
                    " AND slots.pipeline = runs.pipeline AND slots.slot = runs.slot",
                    (run,),
                )

    def unconfirmed(self) -> list[Run]:
        """Return the settled runs whose log the collector has not confirmed, oldest first."""
        return self._runs("SELECT * FROM runs WHERE unconfirmed_since IS NOT NULL ORDER BY id")

    def confirm(self, run: str, received_at: str) -> None:
        """Note that the collector holds all of a run's log, and since when."""
        with self._transaction() as db:
            db.execute(
                "UPDATE runs SET receipt = ?, unconfirmed_since = NULL, send_again_at = NULL WHERE id = ?",
                (received_at, run),
            )

    def confirmed(self, limit: int) -> list[Run]:
        """Return the `limit` runs whose log the collector confirmed last, the last one first."""
        return self._runs("SELECT * FROM runs WHERE receipt IS NOT NULL ORDER BY receipt DESC, id DESC LIMIT ?", limit)

    def newest_confirmed(self) -> list[Run]:
        """Return the run of each pipeline whose log the collector confirmed last, the last one first."""
        return self._runs(
            "SELECT *, max(receipt) FROM runs WHERE receipt IS NOT NULL GROUP BY pipeline ORDER BY receipt DESC"
        )

    def accept_loss(self, run: str, detail: str) -> bool:
        """Wait no longer for a run's receipt, as somebody says; return whether it was waited for."""
        with self._transaction() as db:
            return bool(
                db.execute(
                    "UPDATE runs SET unconfirmed_since = NULL, send_again_at = NULL,"
                    " notice = CASE notice WHEN 'unconfirmed' THEN NULL ELSE notice END,"
                    " detail = coalesce(detail || '; ', '') || ? WHERE id = ? AND unconfirmed_since IS NOT NULL",
                    (detail, run),
                ).rowcount
            )

    def unconfirm(self, run: str, now: datetime) -> None:
        """Note that the collector no longer holds a log that it had confirmed; it is to be sent again now."""
        with self._transaction() as db:
            db.execute(
                "UPDATE runs SET receipt = NULL, unconfirmed_since = ?1, send_again_at = ?1 WHERE id = ?2",
                (timestamp(now), run),
            )

    def send_again(self, run: str, at: datetime) -> None:
        """Note when a run's log is to be sent again, if it is not confirmed until then."""
        with self._transaction() as db:
            db.execute("UPDATE runs SET send_again_at = ? WHERE id = ?", (timestamp(at), run))

    def escalate(self, run: str, detail: str) -> None:
        """Have somebody told, once, that the log of a run is not confirmed, and why."""
        with self._transaction() as db:
            db.execute(
                "UPDATE runs SET notice = 'unconfirmed', detail = coalesce(detail || '; ', '') || ?1"
                " WHERE id = ?2 AND (notice IS NULL OR notice = 'unconfirmed') AND instr(coalesce(detail, ''), ?1) = 0",
                (detail, run),
            )

    def run(self, run: str) -> Run | None:
        """Return one run."""
        return self._run("SELECT * FROM runs WHERE id = ?", run)

    def running(self, pipeline: str) -> Run | None:
        """Return the run of a pipeline that is not settled; there is one at most."""
        return self._run("SELECT * FROM runs WHERE pipeline = ? AND state <> 'settled'", pipeline)

    def unfinished(self) -> list[Run]:
        """Return the runs that are not settled, oldest first."""
        # +id: sorted after they are found by their own small index, not found by going through all by id.
        return self._runs("SELECT * FROM runs WHERE state <> 'settled' ORDER BY +id")

    def history(self, pipeline: str | None, limit: int) -> list[Run]:
        """Return the newest `limit` runs, newest first, as they were noted: a clock may have been ahead."""
        if pipeline is None:
            return self._runs("SELECT * FROM runs ORDER BY rowid DESC LIMIT ?", limit)
        return self._runs("SELECT * FROM runs WHERE pipeline = ? ORDER BY rowid DESC LIMIT ?", pipeline, limit)

    def logged(self, pipeline: str, limit: int) -> list[Run]:
        """Return the newest `limit` runs that had a container, newest first."""
        return self._runs(
            "SELECT * FROM runs WHERE pipeline = ? AND container IS NOT NULL ORDER BY rowid DESC LIMIT ?",
            pipeline,
            limit,
        )

    def last(self, pipeline: str) -> Run | None:
        """Return the newest settled record of a pipeline; a refused attempt is none: it must hide no failure."""
        return self._run(
            "SELECT * FROM runs WHERE pipeline = ? AND state = 'settled' AND outcome <> 'skipped'"
            " ORDER BY rowid DESC LIMIT 1",
            pipeline,
        )

    def skipped_since(self, pipeline: str, last: Run | None) -> Run | None:
        """Return the newest slot of a pipeline that was skipped after its last run ended, or where there is none."""
        since = (last.ended_at or last.claimed_at) if last else ""
        return self._run(
            "SELECT * FROM runs WHERE pipeline = ?1 AND claimed_at > ?3 AND outcome = 'skipped'"
            " AND trigger = 'scheduled' AND rowid > coalesce((SELECT rowid FROM runs WHERE id = ?2), 0)"
            " ORDER BY rowid DESC LIMIT 1",
            *(pipeline, last.id if last else "", since),
        )

    def newest_instant(self) -> datetime | None:
        """Return the latest instant at which a run was claimed, by this host's clock at that time.

        What was missed counts not: a clock that was ahead for a moment has noted that of every slot until then.
        """
        newest = self._run("SELECT * FROM runs WHERE outcome IS NOT 'missed' ORDER BY id DESC LIMIT 1")
        return instant(newest.claimed_at) if newest else None

    def prune(self, before: datetime) -> int:
        """Forget the settled runs claimed before an instant; return how many.

        Those stay of which somebody is still to be told, or whose log the collector has not confirmed.
        Their slots go with them, but for each pipeline's newest: none before that is ever looked for again.
        """
        old = "state = 'settled' AND notice IS NULL AND unconfirmed_since IS NULL AND claimed_at < ?"
        newest = "(SELECT pipeline, max(slot) FROM slots GROUP BY pipeline)"
        with self._transaction() as db:
            db.execute(
                f"DELETE FROM slots WHERE retry_at IS NULL AND (pipeline, slot) NOT IN {newest}"  # noqa: S608  # texts of ours
                f" AND run IN (SELECT id FROM runs WHERE {old})",
                (timestamp(before),),
            )
            return db.execute(
                f"DELETE FROM runs WHERE {old} AND id NOT IN (SELECT run FROM slots)",  # noqa: S608  # a text of ours
                (timestamp(before),),
            ).rowcount

    def take_over(self, other: Path) -> int:
        """Copy what can be read of another ledger, row by row; return how many runs that was."""
        with self._transaction() as db:
            for table in ("pipelines", "runs", "slots"):
                known = {"rowid"} | {row["name"] for row in self._select(f"PRAGMA table_info({table})")}
                for row in readable(other, table):
                    values = {column: row[column] for column in row.keys() if column in known}  # noqa: SIM118  # a Row's own are its values
                    marks = ", ".join("?" * len(values))
                    with suppress(sqlite3.IntegrityError):  # the damage reaches into this row
                        db.execute(
                            f"INSERT OR IGNORE INTO {table} ({', '.join(values)}) VALUES ({marks})",  # noqa: S608  # names of ours
                            tuple(values.values()),
                        )
            db.execute(SLOTS_BY_THEIR_RUNS)
            return int(db.execute("SELECT count(*) FROM runs").fetchone()[0])

    def sync(self) -> None:
        """Have all that was written in the file itself, and on disk."""
        self._select("PRAGMA wal_checkpoint(TRUNCATE)")

    def is_well(self) -> bool:
        """Say whether SQLite finds no fault in the file."""
        try:
            return self.check() == "ok"
        except LedgerDamaged:
            return False

    def check(self) -> str:
        """Return SQLite's own word on the file: "ok", or what is damaged."""
        return str(self._select("PRAGMA quick_check(1)")[0][0])

    def _run(self, statement: str, *values: object) -> Run | None:
        return next(iter(self._runs(statement, *values)), None)

    def _runs(self, statement: str, *values: object) -> list[Run]:
        return [Run.of(row) for row in self._select(statement, *values)]

    def _select(self, statement: str, *values: object) -> list[sqlite3.Row]:
        try:
            self._follow()
            return self._connection.execute(statement, values).fetchall()
        except (sqlite3.Error, OSError) as error:
            raise unwritable(self.path, error) from error


def hand_back(db: sqlite3.Connection, run: str, told: bool) -> None:
    """Have a slot whose retry was skipped be again that of the failure before it; which is `told`, where it stands."""
    before = db.execute(
        "SELECT before.id FROM runs AS before JOIN runs AS retry ON (before.pipeline, before.slot) ="
        " (retry.pipeline, retry.slot) AND before.attempt = retry.attempt - 1 WHERE retry.id = ? AND retry.trigger ="
        " 'retry' AND before.trigger IN ('scheduled', 'catch-up', 'retry')"
        " AND before.outcome NOT IN ('skipped', 'missed')",
        (run,),
    ).fetchone()
    if before:
        db.execute("UPDATE slots SET run = ? WHERE run = ?", (before["id"], run))
        if told:
            have_told(db, before["id"])


def let_stand(db: sqlite3.Connection, run: str) -> None:
    """Have a run's slot tried no more, and somebody told of its outcome, as nobody was."""
    db.execute("UPDATE slots SET retry_at = NULL WHERE run = ?", (run,))
    have_told(db, run)


def have_told(db: sqlite3.Connection, run: str) -> None:
    """Have somebody told of a run's outcome."""
    now = timestamp(datetime.now(UTC))
    db.execute("UPDATE runs SET notice = outcome, noted_at = ? WHERE id = ?", (now, run))
    db.execute("UPDATE pipelines SET told = outcome FROM runs WHERE id = ? AND name = pipeline", (run,))


def clock_went_back(ledger: Ledger, now: datetime) -> str | None:
    """Say by how much this host's clock is behind the newest record, and what to do; None where it is not."""
    newest = ledger.newest_instant()
    if newest is None or newest - now < CLOCKS_DIFFER_BY:
        return None
    return (
        f"this host's clock ({timestamp(now)}) is behind the newest record ({timestamp(newest)}): no slot that has "
        "run is started again; check the clock: timedatectl"
    )


def unwritable(path: Path, error: Exception) -> NotWritable:
    """Say what is wrong with a ledger, and what to do."""
    if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
        return LedgerDamaged(
            f"the ledger {path} is damaged ({error}): standpipe reconcile sets it aside and recovers it"
        )
    return NotWritable(f"the ledger {path} cannot be used ({error}): check the disk (df), and that this is root")


def unfinished_recovery(path: Path) -> Path | None:
    """Return the file that is to take a damaged ledger's place, while it is not whole."""
    return next(path.parent.glob(f"{path.name}.damaged-*{UNFINISHED}"), None)


def recover(path: Path, now: datetime, say: Callable[[str], None]) -> int:
    """Set a damaged ledger aside, under a name of its own, and put one with every run that can be read in its place.

    Returns how many runs were recovered. Another process that finds the same damage meanwhile waits, and finds a
    ledger that is well. What was killed in between, or found no room, is done again by whoever comes next: until the
    new ledger is whole there is none in the damaged one's place.
    """
    from standpipe.logs.spool import flush_directory

    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        new = unfinished_recovery(path)
        if path.exists():
            with suppress(LedgerDamaged), closing(Ledger(path)) as found:
                if found.is_well():
                    return 0
            aside = path.with_name(f"{path.name}.damaged-{now:%Y%m%dT%H%M%SZ}")
            if new:
                new.unlink()
            new = aside.with_name(aside.name + UNFINISHED)
            new.touch(0o600)
            path.rename(aside)
        elif new:
            aside = new.with_name(new.name.removesuffix(UNFINISHED))
        else:
            return 0
        for suffix in ("-wal", "-shm"):
            with suppress(FileNotFoundError):
                path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
            new.with_name(new.name + suffix).unlink(missing_ok=True)
        new.write_bytes(b"")
        say(f"the ledger was damaged: it is kept as {aside}")
        with closing(Ledger(new)) as fresh:
            count = fresh.take_over(aside)
            fresh.sync()
        new.rename(path)
        flush_directory(path.parent)
        say(f"{count} runs were recovered from it")
    return count
