"""Metrics for Prometheus, by the textfile collector of its node exporter."""

from __future__ import annotations

import fcntl
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from standpipe import budgets, configuration, paths
from standpipe.errors import StandpipeError
from standpipe.ledger import Ledger, instant

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

RUNNING = "1 while a run is going, else 0."


@contextmanager
def alone() -> Iterator[Path]:
    """Yield the file of the metrics, for this process alone to replace."""
    with paths.MEASURING.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield paths.METRICS / "standpipe.prom"


def note_running(pipeline: str) -> None:
    """Have the metrics say that a run of a pipeline is going; the rest of them waits for its end.

    It is a matter of one line: to count all runs, and to import what writes them, would keep a run waiting.
    """
    if not paths.METRICS.is_dir():
        return
    mark, line = "# TYPE standpipe_running gauge", f'standpipe_running{{pipeline="{pipeline}"}}'
    with alone() as path:
        try:
            text = path.read_text()
        except FileNotFoundError:
            text = f"# HELP standpipe_running {RUNNING}\n{mark}\n"
        others = [other for other in text.splitlines() if not other.startswith(f"{line} ")]
        if mark not in others:
            return  # somebody else's file: it is written anew at the end
        others.insert(others.index(mark) + 1, f"{line} 1.0")
        with anew(path) as new:
            new.write_text("\n".join(others) + "\n")


def write(ledger: Ledger) -> None:
    """Write the state of all pipelines, at once and whole; nothing where this host has no such directory."""
    if not paths.METRICS.is_dir():
        return
    from prometheus_client import write_to_textfile

    with alone() as path, anew(path) as new:
        write_to_textfile(str(new), of_all(ledger))


@contextmanager
def anew(path: Path) -> Iterator[Path]:
    """Yield where a file is written that then takes the place of `path`, for everybody to read, whatever the umask."""
    new = path.with_suffix(".prom.new")
    yield new
    new.chmod(0o644)
    new.rename(path)


def of_all(ledger: Ledger) -> CollectorRegistry:
    """Return the state of all pipelines."""
    from prometheus_client import CollectorRegistry, Gauge

    registry = CollectorRegistry()

    def gauge(name: str, help_: str, *labels: str) -> Gauge:
        return Gauge(f"standpipe_{name}", help_, ["pipeline", *labels], registry=registry)

    success = gauge("last_success_timestamp_seconds", "When a run last succeeded, in seconds since 1970 (UTC).")
    took = gauge("last_duration_seconds", "How long the last run took that ended.")
    runs = gauge("runs", "Recorded runs by outcome.", "outcome")
    running = gauge("running", RUNNING)
    missed = gauge("slots_missed", "Slots that were missed.")
    waiting = gauge("logs_unconfirmed", "Logs of ended runs that the collector has not confirmed.")
    unconfirmed = Counter(run.pipeline for run in ledger.unconfirmed())
    unfinished = {run.pipeline for run in ledger.unfinished()}
    declared = configuration.names()
    for known in ledger.registered():
        if known.name not in declared and known.name not in unfinished and not unconfirmed[known.name]:
            continue  # it was removed, and nothing is to be heard of it any more
        counts = ledger.counts(known.name)
        running.labels(known.name).set(known.name in unfinished)
        waiting.labels(known.name).set(unconfirmed[known.name])
        missed.labels(known.name).set(counts.get("missed", 0))
        for outcome, count in counts.items():
            runs.labels(known.name, outcome).set(count)
        if (last := ledger.newest(known.name, "succeeded")) and last.ended_at:
            success.labels(known.name).set(instant(last.ended_at).timestamp())
        if (ended := ledger.newest(known.name)) and ended.started_at and ended.ended_at:
            took.labels(known.name).set((instant(ended.ended_at) - instant(ended.started_at)).total_seconds())
    budgets_to(registry)
    return registry


def budgets_to(registry: CollectorRegistry) -> None:
    """Add what is spent of the budgets, in their units; where the books cannot be read, only that is missing."""
    terms = budgets.terms()
    if not terms:
        return
    from prometheus_client import Gauge

    from standpipe.budgets import report
    from standpipe_task.spending import SCALE

    def gauge(name: str, help_: str) -> Gauge:
        return Gauge(f"standpipe_budget_{name}", help_, ["budget"], registry=registry)

    limit = gauge("limit", "Units that may be spent in the present period.")
    spent = gauge("spent", "Units that were spent in the present period, crashed calls and those elsewhere included.")
    reserved = gauge("reserved", "Units that are reserved for calls under way.")
    left = gauge("left", "Units that are left of the present period.")
    at_end = gauge("forecast", "Units that will have been spent at the end of the present period, as is expected.")
    held = gauge(
        "held_until_timestamp_seconds", "Before when its provider asks for no calls, in seconds since 1970 (UTC), or 0."
    )
    ends = gauge("period_end_timestamp_seconds", "When the present period ends, in seconds since 1970 (UTC).")
    with suppress(StandpipeError), budgets.books() as database:
        for name, each in terms.items():
            look = report.outlook(database, each)
            limit.labels(name).set(each.limit / SCALE)
            spent.labels(name).set((look.state.spent + look.state.crashed + look.state.elsewhere) / SCALE)
            reserved.labels(name).set(look.state.reserved / SCALE)
            left.labels(name).set(look.state.left / SCALE)
            at_end.labels(name).set(look.forecast.at_end / SCALE)
            held.labels(name).set(look.state.held_until)
            ends.labels(name).set(look.state.ends)
