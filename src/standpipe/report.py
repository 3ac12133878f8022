"""What listings show: tables for people at 80 columns, and JSON of schema 1 for programs."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from standpipe import slots
from standpipe.ledger import Ledger, Registered, Run, timestamp

SCHEMA = 1


def run_as_json(run: Run) -> dict[str, Any]:
    """Return one run in the words of the JSON contract."""
    return {
        "id": run.id,
        "pipeline": run.pipeline,
        "slot": run.slot,
        "trigger": run.trigger,
        "outcome": run.outcome,
        "reason": run.reason,
        "exit_code": run.exit_code,
        "started_at": run.started_at,
        "ended_at": run.ended_at,
        "commit": run.commit_id,
        "image": run.image,
        "receipt": run.receipt,
    }


def history_as_json(runs: list[Run]) -> dict[str, Any]:
    """Return runs, newest first."""
    return {"schema": SCHEMA, "runs": [run_as_json(run) for run in runs]}


def history(runs: list[Run]) -> str:
    """Return a table of runs, newest first."""
    if not runs:
        return "no runs yet"
    header = ("RUN", "PIPELINE", "DATE", "TRIGGER", "OUTCOME", "EXIT", "TOOK", "COMMIT")
    rows = [
        (
            run.id,
            run.pipeline,
            run.date,
            run.trigger,
            outcome(run),
            "" if run.exit_code is None else str(run.exit_code),
            took(run),
            (run.commit_id or "")[:8],
        )
        for run in runs
    ]
    return table([header, *rows])


def status_of(ledger: Ledger, pipeline: Registered, now: datetime, count: int) -> dict[str, Any]:
    """Return what a pipeline does, did last, and does next (`count` slots)."""
    runs = ledger.history(pipeline.name, 1)
    last = runs[0] if runs else None
    running = next((run for run in ledger.unfinished() if run.pipeline == pipeline.name), None)
    upcoming = slots.upcoming(pipeline.schedule, now, count) if pipeline.schedule else []
    return {
        "name": pipeline.name,
        "running": run_as_json(running) if running else None,
        "last": run_as_json(last) if last else None,
        "schedule": pipeline.schedule.model_dump(mode="json") if pipeline.schedule else None,
        "next": [timestamp(slot) for slot in upcoming],
    }


def status(ledger: Ledger, now: datetime) -> str:
    """Return a table: each pipeline, its last run, and its next slot."""
    rows: list[tuple[str, ...]] = [("PIPELINE", "NOW", "LAST", "ENDED", "EXIT", "TOOK", "COMMIT", "NEXT (UTC)")]
    running = {run.pipeline for run in ledger.unfinished()}
    for pipeline in ledger.registered():
        runs = [run for run in ledger.history(pipeline.name, 2) if run.outcome]
        last = runs[0] if runs else None
        upcoming = slots.upcoming(pipeline.schedule, now, 1) if pipeline.schedule else []
        rows.append(
            (
                pipeline.name,
                "running" if pipeline.name in running else "-",
                outcome(last) if last else "never ran",
                (last.ended_at or last.claimed_at)[:16] if last else "",
                "" if last is None or last.exit_code is None else str(last.exit_code),
                took(last) if last else "",
                (last.commit_id or "")[:8] if last else "",
                f"{upcoming[0]:%a %d %b %H:%M}" if upcoming else "by hand",
            )
        )
    return table(rows) if len(rows) > 1 else "no pipelines yet: run site.yml on this host"


def next_slots(pipeline: Registered, now: datetime, count: int) -> str:
    """Return the next slots of a pipeline, in UTC and in the schedule's own zone, one a line."""
    if pipeline.schedule is None:
        return f"{pipeline.name} runs by hand only"
    lines = [f"next slots of {pipeline.name} ({pipeline.schedule.cron}, {pipeline.schedule.timezone}):"]
    lines += [f"  {slot:%a %Y-%m-%d %H:%M} UTC" for slot in slots.upcoming(pipeline.schedule, now, count)]
    return "\n".join(lines)


def outcome(run: Run) -> str:
    """Return a run's outcome with its reason."""
    return f"{run.outcome or 'running'} ({run.reason})" if run.reason else run.outcome or "running"


def took(run: Run) -> str:
    """Return how long a run took, to the tenth of a second below a minute."""
    if not run.started_at or not run.ended_at:
        return ""
    seconds = (instant(run.ended_at) - instant(run.started_at)).total_seconds()
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}h{minutes % 60:02}m" if minutes >= 60 else f"{minutes}m{seconds:02}s"


def instant(text: str) -> datetime:
    """Read a timestamp of the ledger's or of the engine's (nanoseconds)."""
    return datetime.fromisoformat(text.rstrip("Z")[:26]).replace(tzinfo=UTC)


def table(rows: list[tuple[str, ...]]) -> str:
    """Return rows in columns as wide as their widest cell."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
