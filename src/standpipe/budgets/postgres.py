"""Books that several hosts share, in PostgreSQL: its clock decides the period, its row locks the order.

A host's declaration is written beside the books. Where two hosts declare a budget otherwise, no call of it goes out.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from standpipe import paths
from standpipe_task import spending

ANSWER_WITHIN = 10  # seconds for a statement, which may wait for other hosts
REACHED_WITHIN = 3  # seconds for the server to be heard of: twice that is less than a run waits for its answer
DECLARED_FOR = 86400  # seconds for which a host's declaration counts after it was last heard of
TABLE_OF_DECLARATIONS = """CREATE TABLE IF NOT EXISTS declaration (
    budget TEXT NOT NULL, host TEXT NOT NULL, terms TEXT NOT NULL, seen DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (budget, host))"""
CONNECTION: dict[str, Any] = {
    "autocommit": True,
    "connect_timeout": REACHED_WITHIN,
    "tcp_user_timeout": REACHED_WITHIN * 1000,  # on a way that is cut no answer comes, and no refusal
    "keepalives_idle": REACHED_WITHIN,
    "keepalives_interval": 1,
    # A host that is cut off lets go of its locks; what is answered is on the server's disk, whatever its default.
    "options": f"-c statement_timeout={ANSWER_WITHIN}s -c idle_in_transaction_session_timeout={ANSWER_WITHIN}s "
    "-c synchronous_commit=on",
}
MAKING = 5_743_761_283  # the key of the lock under which the tables are made: any number that is always the same


def machine_id() -> str:
    """Return the beginning of what tells this machine from its clones (machine-id(5)); nothing where it has none."""
    with suppress(OSError):
        return Path("/etc/machine-id").read_text()[:8]
    return ""


class PostgresDatabase(spending.Database):
    """Where the books are: a database of a PostgreSQL server, by its URL."""

    find_budget = spending.Database.find_budget + " FOR UPDATE"
    find_column = (
        "SELECT 1 FROM information_schema.columns "
        "WHERE table_schema = current_schema() AND table_name = ? AND column_name = ?"
    )
    errors = (psycopg.Error,)

    def __init__(self, url: str) -> None:
        """Connect, and make the tables where they are not there. Raises Unavailable where that fails."""
        self._url = url
        self._host = f"{socket.gethostname()} ({machine_id()})"
        try:
            conninfo_to_dict(url)
        except psycopg.Error:  # whose message may have a part of the password
            raise spending.Unavailable("the URL of the budgets' database is none: no call goes out") from None
        try:
            self._server = psycopg.connect(url, **CONNECTION)
            with self._server.transaction():
                self._server.execute("SELECT pg_advisory_xact_lock(%s)", [MAKING])
                self._make_tables()
                self._server.execute(TABLE_OF_DECLARATIONS)
        except psycopg.Error as error:
            told = str(error).replace(url, "its URL").strip()
            raise spending.Unavailable(f"the budgets' database does not answer ({told}): no call goes out") from None

    def now(self) -> float:
        """Return the server's time, so that hosts need not agree."""
        return float(self.execute("SELECT extract(epoch FROM clock_timestamp())").fetchone()[0])

    def is_made(self, name: str) -> bool:
        """Say whether a table or index is there: who makes one that is waits for a VACUUM, and all others for him."""
        return bool(self.execute("SELECT to_regclass(?) IS NOT NULL", name).fetchone()[0])

    def execute(self, statement: str, *values: Any) -> Any:
        """Execute one statement; return its cursor."""
        return self._server.execute(statement.replace("?", "%s"), values)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Do all or nothing, and have it on the server's disk."""
        with self._server.transaction():
            yield

    def is_replaced(self) -> bool:
        """Say whether this host is to spend by another database now; the server knows its own files."""
        try:
            return paths.BUDGETS_DATABASE.read_text().strip() != self._url
        except OSError:
            return True

    def disagreement(self, terms: spending.Terms) -> str | None:
        """Say which host declares a budget otherwise, among those that were heard of within a day."""
        declared = json.dumps(asdict(terms), sort_keys=True)
        now = self.now()
        self.execute(
            "INSERT INTO declaration VALUES (?, ?, ?, ?) ON CONFLICT (budget, host) DO UPDATE "
            "SET terms = excluded.terms, seen = excluded.seen "
            "WHERE declaration.terms <> excluded.terms OR declaration.seen < excluded.seen - 3600",
            *(terms.name, self._host, declared, now),
        )
        other = self.execute(
            "SELECT host FROM declaration WHERE budget = ? AND terms <> ? AND seen > ? ORDER BY host LIMIT 1",
            *(terms.name, declared, now - DECLARED_FOR),
        ).fetchone()
        if other is None:
            return None
        return f"budget {terms.name} is declared otherwise on {other[0]} than on {self._host}: run site.yml on both"

    def declares(self, names: list[str]) -> None:
        """Forget what this host declared and does not any more: nobody is to agree with that."""
        self.execute("DELETE FROM declaration WHERE host = ? AND budget <> ALL (?)", self._host, names)

    def close(self) -> None:
        """Let go of it."""
        self._server.close()
