"""What listings show: tables for people at 80 columns, and JSON of schema 1 for programs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from standpipe.ledger import Ledger, Registered, Run, instant, timestamp
from standpipe.releases import Release

SCHEMA = 1
RECEIPTS_TAKE = timedelta(minutes=1)  # what is confirmed sooner is not worth a word


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


def history(runs: list[Run], of_one: bool = False) -> str:
    """Return a table of runs, newest first, each with what more there is to say of it below it.

    Without the pipeline's name where they are all of one.
    """
    if not runs:
        return "no runs yet"
    header = ("RUN", "PIPELINE", "DATE", "OUTCOME", "EXIT", "TOOK", "COMMIT", "BY")
    rows = [
        (
            run.id,
            run.pipeline,
            run.date,
            outcome(run),
            "" if run.exit_code is None else str(run.exit_code),
            took(run),
            (run.commit_id or "")[:8],
            {"scheduled": "cron", "manual": "hand"}.get(run.trigger, run.trigger),
        )
        for run in runs
    ]
    head, *lines = table([row[:1] + row[2:] if of_one else row for row in (header, *rows)]).splitlines()
    for run, line in zip(runs, lines, strict=True):
        head += f"\n{line}" + (f"\n    {run.detail}" if run.detail else "")
    return head


def status_of(ledger: Ledger, pipeline: Registered, now: datetime, count: int) -> dict[str, Any]:
    """Return what a pipeline does, did last, and does next (`count` slots)."""
    from standpipe import slots

    last = ledger.last(pipeline.name)
    skipped = ledger.skipped_since(pipeline.name, last)
    running = ledger.running(pipeline.name)
    upcoming = slots.upcoming(pipeline.schedule, now, count) if pipeline.schedule else []
    return {
        "name": pipeline.name,
        "running": run_as_json(running) if running else None,
        "last": run_as_json(last) if last else None,
        "skipped_since": run_as_json(skipped) if skipped else None,
        "schedule": pipeline.schedule.model_dump(mode="json") if pipeline.schedule else None,
        "next": [timestamp(slot) for slot in upcoming],
    }


def status(ledger: Ledger, known: list[Registered], now: datetime) -> str:
    """Return a table: each pipeline, what it does now, its last run, and its next slot."""
    from standpipe import slots

    rows: list[tuple[str, ...]] = [("PIPELINE", "LAST", "EXIT", "TOOK", "COMMIT", "ENDED", "NEXT (UTC)")]
    running = {run.pipeline: run for run in ledger.unfinished()}
    for pipeline in known:
        last = ledger.last(pipeline.name)
        shown = running.get(pipeline.name) or last
        skipped = None if pipeline.name in running else ledger.skipped_since(pipeline.name, last)
        upcoming = slots.upcoming(pipeline.schedule, now, 1) if pipeline.schedule else []
        rows.append(
            (
                pipeline.name,
                (outcome(shown) if shown else "never ran") + (f", then {skipped.reason}" if skipped else ""),
                "" if shown is None or shown.exit_code is None else str(shown.exit_code),
                took(shown, now) if shown else "",
                (shown.commit_id or "")[:8] if shown else "",
                ago(last, now) if last else "",
                f"{upcoming[0]:%a %d %b %H:%M}" if upcoming else "by hand",
            )
        )
    return (
        table(rows)
        if len(rows) > 1
        else "no pipelines yet: run site.yml on this host (or standpipe reconcile, if it was run before)"
    )


def unconfirmed(ledger: Ledger, now: datetime) -> str:
    """Return a line of the logs that the collector should have confirmed by now; nothing where there are none."""
    waiting = [run for run in ledger.unconfirmed() if now - run.awaits_receipt_since > RECEIPTS_TAKE]
    if not waiting:
        return ""
    oldest = waiting[0]
    return (
        f"logs that the collector has not confirmed: {len(waiting)}, the oldest (of {oldest.pipeline}) "
        f"since {oldest.awaits_receipt_since:%Y-%m-%d %H:%M} UTC: standpipe doctor"
    )


def unconfirmed_as_json(run: Run) -> dict[str, str | None]:
    """Return a run whose log is not confirmed, and since when."""
    return {"run": run.id, "pipeline": run.pipeline, "since": run.unconfirmed_since}


def next_slots(pipeline: Registered, now: datetime, count: int) -> str:
    """Return the next slots of a pipeline, in UTC and in the schedule's own zone, one a line."""
    from standpipe import slots

    if pipeline.schedule is None:
        return f"{pipeline.name} runs by hand only"
    zone = pipeline.schedule.timezone
    lines = [f"next slots of {pipeline.name} ({pipeline.schedule.cron}, {zone}):"]
    for slot in slots.upcoming(pipeline.schedule, now, count):
        own = "" if zone == "UTC" else f"   {slot.astimezone(ZoneInfo(zone)):%a %Y-%m-%d %H:%M} {zone}"
        lines.append(f"  {slot:%a %Y-%m-%d %H:%M} UTC{own}")
    return "\n".join(lines)


def ended(run: Run, code: int) -> str:
    """Return the line that tells of a run's end."""
    return f"{run.pipeline}: run {run.id} {outcome(run)}, exit code {code}, {took(run) or 'never started'}"


def outcome(run: Run) -> str:
    """Return a run's outcome with its reason."""
    return f"{run.outcome or 'running'} ({run.reason})" if run.reason else run.outcome or "running"


def took(run: Run, now: datetime | None = None) -> str:
    """Return how long a run took, or has taken until `now`."""
    if not run.started_at or not (run.ended_at or now):
        return ""
    end = instant(run.ended_at) if run.ended_at else now or datetime.now(UTC)
    return duration((end - instant(run.started_at)).total_seconds())


def ago(run: Run, now: datetime) -> str:
    """Return how long ago a run ended, or was tried."""
    return f"{duration((now - instant(run.ended_at or run.claimed_at)).total_seconds(), tenths=False)} ago"


def duration(seconds: float, tenths: bool = True) -> str:
    """Write a duration for people: 12.3s, 4m05s, 3h20m, 2d04h."""
    if seconds < 60 and tenths:
        return f"{seconds:.1f}s"
    minutes, whole = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d{hours:02}h"
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{whole:02}s" if minutes else f"{whole}s"


def releases(found: dict[str, list[Release]]) -> str:
    """Return the releases of pipelines as a table, the newest first."""
    rows = [
        (
            name,
            release.name,
            release.image,
            release.kept_at[:16].replace("T", " "),
            "in service" if release.in_service else "rolled back" if release.rolled_back else "",
        )
        for name, kept in found.items()
        for release in kept
    ]
    return table([("PIPELINE", "RELEASE", "IMAGE", "SINCE (UTC)", ""), *rows]) if rows else "no release is kept yet"


def table(rows: list[tuple[str, ...]]) -> str:
    """Return rows in columns as wide as their widest cell."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
