"""The slots of a range of dates, worked through one at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

from tqdm import tqdm

from standpipe import configuration, report, runner, slots
from standpipe.engines import Engine, Line
from standpipe.errors import STOPPED, AlreadyRunning, UsageError
from standpipe.ledger import Ledger
from standpipe.onlooker import Onlooker
from standpipe.pipeline import Pipeline, Schedule

ONLOOKER = Onlooker()


def slots_of(pipeline: Pipeline, first: date, last: date, now: datetime) -> list[datetime]:
    """Return the slots whose date is in a range, ends included, and that have come; oldest first.

    Raises UsageError where the range is none, or the pipeline has no schedule.
    """
    if first > last:
        raise UsageError(f"--from {first} is after --to {last}: exchange them")
    if pipeline.schedule is None:
        raise UsageError(f"{pipeline.name} has no schedule that names slots: standpipe run {pipeline.name} --date D")
    tomorrow = slots.slot_date(pipeline.schedule, now) + timedelta(days=1)
    if first >= tomorrow:
        return []
    if first.year < 1970:
        raise UsageError(f"--from {first} is before 1970: name a date after it")
    end = midnight(pipeline.schedule, min(last, tomorrow) + timedelta(days=1))
    just_before = timedelta(microseconds=1)
    start = midnight(pipeline.schedule, first) - just_before
    return list(slots.between(pipeline.schedule, start, min(end - just_before, now)))


def midnight(schedule: Schedule, day: date) -> datetime:
    """Return the first instant of a date in the schedule's zone."""
    return datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(schedule.timezone)).astimezone(UTC)


def open_slots(ledger: Ledger, pipeline: Pipeline, first: date, last: date, again: bool) -> list[datetime]:
    """Return the slots that a backfill works on: those that did not succeed, or all of them `again`."""
    named = slots_of(pipeline, first, last, datetime.now(UTC))
    return [slot for slot in named if again or not ledger.succeeded(pipeline.name, slot)]


def backfill(
    ledger: Ledger,
    engine: Engine,
    name: str,
    todo: list[datetime],
    listen: Callable[[Line], None],
    say: Callable[[str], None],
    again: bool = False,
) -> int:
    """Try each slot once, oldest first; return 0, or the exit code of the first that failed.

    It waits for whoever holds the pipeline, and ends where it, or a run of it, was stopped. A slot that has succeeded
    by the time of its turn, by a retry or by the run that an earlier backfill left, is passed over unless `again`.
    """
    worst = 0
    with runner.stop_requests() as requests:
        for slot in shown(todo, name):
            pipeline = configuration.load(name)
            day = slots.slot_date(pipeline.schedule, slot)
            run = None
            while run is None:
                wait_until_free(ledger, engine, name, requests, say)
                if requests.asked:
                    return STOPPED
                if not again and ledger.succeeded(name, slot):
                    break
                try:
                    run = runner.attempt(ledger, engine, name, "backfill", slot, day, pipeline, requests, listen, say)
                except AlreadyRunning as error:  # somebody was quicker
                    say(f"{error}; waiting")
            if run is None:
                continue
            code = runner.exit_code_of(run)
            say(report.ended(run, code))
            worst = worst or code
            # What was stopped may have been done all the same.
            if requests.asked or "stopped" in (run.outcome, run.ending):
                return STOPPED
    return worst


def shown(todo: list[datetime], name: str) -> Iterator[datetime]:
    """Yield the slots beside a bar that shows how far it is."""
    with tqdm(todo, desc=name, unit="slot", file=ONLOOKER) as bar:
        for slot in bar:
            bar.set_postfix_str(f"{slot:%Y-%m-%d %H:%M} UTC")
            yield slot


def beside_the_bar(message: str) -> None:
    """Say something to whoever looks at the bar."""
    tqdm.write(f"standpipe: {message}", file=ONLOOKER)


def wait_until_free(
    ledger: Ledger, engine: Engine, name: str, requests: runner.Requests, say: Callable[[str], None]
) -> None:
    """Wait until nobody holds the pipeline, or a stop is asked; a run without its runner is followed to its end."""
    told = None
    while not requests.asked:
        running = ledger.running(name)
        held_by = f"run {running.id}" if running else runner.holder_of_lock(engine, name)
        if held_by is None:
            return
        if told != held_by:
            say(f"{name}: waiting for {held_by}")
            told = held_by
        runner.settle_and_follow(ledger, engine, name, say)
        time.sleep(2)
