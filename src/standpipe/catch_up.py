"""Slots that nothing started, and slots that are to be tried again.

Cron starts slots on time; this looks after the rest: at boot, and every few minutes. Each slot from a
pipeline's registration on ends with a record: of its run, or of why there was none.
"""

from __future__ import annotations

import os
import traceback
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import islice

from ulid import ULID

from standpipe import configuration, report, runner, slots
from standpipe.engines import Engine, Line
from standpipe.errors import EngineUnavailable, LedgerDamaged, StandpipeError
from standpipe.ledger import Ledger, Registered, Run, timestamp
from standpipe.logs import receipts
from standpipe.pipeline import Pipeline, Schedule

CRON_IS_PUNCTUAL = timedelta(minutes=2)  # a younger slot is cron's own to start
HOST_WAS_DOWN = timedelta(minutes=12)  # nobody watched for that long, where every five minutes is the rule
A_JUMP = timedelta(days=1)  # by which the host was off, or its clock was set: nothing is forgotten by it at once
MOST_AT_ONCE = 10_000  # slots that are recorded as missed in one transaction: a week of minutes
MOST_CHUNKS = 10  # of so many in one look, which take some seconds; the next look has the rest


@dataclass(frozen=True)
class Plan:
    """What is to be done about a pipeline's slots without a record, oldest first."""

    start: list[datetime]
    missed: list[tuple[datetime, str]]  # with the reason: superseded, too_late, or policy
    complete_until: datetime
    whole: bool  # or the slots after `complete_until` are for the next plan


def plan(schedule: Schedule, since: datetime, recorded: Iterable[datetime], now: datetime) -> Plan:
    """Decide about the slots after `since` that are not `recorded`, as the schedule's `if_missed` says.

    What stands for a skipped local time, which cron does not start, is started in any case, if that was just now. Of a
    flood of slots that are too late, the next plan has the rest.
    """
    until = now - CRON_IS_PUNCTUAL
    earliest = min(until, now - timedelta(seconds=schedule.start_within))
    known = set(recorded)

    def unrecorded(start: datetime, end: datetime) -> Iterator[datetime]:
        return (slot for slot in slots.between(schedule, start, end) if slot not in known)

    not_cron_s = {
        slot for slot in unrecorded(max(since, now - HOST_WAS_DOWN), until) if slots.is_made_up(schedule, slot)
    }
    late = list(islice((slot for slot in unrecorded(since, earliest) if slot not in not_cron_s), MOST_AT_ONCE))
    fresh = list(unrecorded(max(since, earliest), until))
    start = sorted(not_cron_s.union({"latest": fresh[-1:], "all": fresh, "skip": []}[schedule.if_missed]))
    reason = "policy" if schedule.if_missed == "skip" else "superseded"
    missed = [(slot, "too_late") for slot in late] + [(slot, reason) for slot in fresh if slot not in start]
    complete_until = start[0] - timedelta(microseconds=1) if start else max(since, until)
    whole = len(late) < MOST_AT_ONCE
    return Plan(start, missed, complete_until if whole else late[-1], whole)


def catch_up(
    ledger: Ledger, engine: Engine, listen: Callable[[Line], None], say: Callable[[str], None], now: datetime
) -> int:
    """Look after every pipeline of this host, side by side; return how many of them could not be looked after.

    Raises nothing of a single pipeline's: that is told, and the others go on.
    """
    if not runner.has_collector():
        runner.wait_for_no_receipt(ledger)
    with suppress(EngineUnavailable):  # each run of a pipeline says so
        runner.release_the_settled(ledger, engine)
    seen = ledger.seen()
    down_since = seen if seen and now - seen > HOST_WAS_DOWN else None
    children = {}
    failures = 0
    for name in configuration.names():
        try:
            pipeline, _damage = runner.load(name, scheduled=True)
            known = runner.register(ledger, name, pipeline, now)
            work = record_and_list(ledger, known, down_since, now) if known else []
            note_late(ledger, engine, pipeline, known, now)
            going = ledger.running(name)
            abandoned = going is not None and not runner.has_living_runner(going.id)
        except LedgerDamaged:
            raise  # of all pipelines, and mended by whoever called
        except StandpipeError as error:
            say(f"{name}: {error}")
            failures += 1
            continue
        if work or abandoned:
            job = partial(work_through, ledger, engine, name, work, listen, say)
            children[in_a_child(ledger, name, job, say)] = name
    ledger.watched(now)  # not before: a look that is cut off is begun again, and knows since when nobody watched
    for left in ledger.unfinished():
        if left.pipeline not in configuration.names() and not runner.has_living_runner(left.id):  # it was removed since
            job = partial(work_through, ledger, engine, left.pipeline, [], listen, say)
            children[in_a_child(ledger, left.pipeline, job, say)] = left.pipeline
    for child, name in children.items():
        _pid, status = os.waitpid(child, 0)
        if status:
            say(f"{name}: its catching up ended with exit code {os.waitstatus_to_exitcode(status)}")
            failures += 1
    if seen and now - seen < A_JUMP:
        forget_the_old(ledger, say, now)
    return failures


def forget_the_old(ledger: Ledger, say: Callable[[str], None], now: datetime) -> None:
    """Forget runs, and remove confirmed logs, that have been kept for as long as the host's settings say."""
    try:
        settings = configuration.settings()
    except StandpipeError as error:
        say(str(error))
        return
    keep = timedelta(days=settings.history_days)
    if count := ledger.prune(now - keep):
        say(f"{count} runs were on record for more than {keep.days} days, and are no longer")
    if count := receipts.forget(ledger, now - timedelta(days=settings.log_days), now - keep):
        say(f"{count} logs that the collector has were {settings.log_days} days old, and are removed here")


def record_and_list(
    ledger: Ledger, known: Registered, down_since: datetime | None, now: datetime
) -> list[tuple[datetime, str]]:
    """Record what was missed, or is tried no more; return what to start, each slot with its trigger, oldest first."""
    work = []
    for slot, at in ledger.retries(known.name):
        if is_too_late(known.schedule, slot, now):  # whoever holds the pipeline
            ledger.give_up(known.name, slot)
        elif at <= now:
            work.append((slot, "retry"))
    if known.schedule is None:
        return work
    for _chunk in range(MOST_CHUNKS):
        planned = plan_of(ledger, known, known.schedule, now)
        record(ledger, known, known.schedule, planned, down_since, now)
        if planned.whole:
            break
        known = replace(known, complete_until=planned.complete_until)
    return sorted(work + [(slot, "catch-up") for slot in planned.start])


def plan_of(ledger: Ledger, known: Registered, schedule: Schedule, now: datetime) -> Plan:
    """Plan what is to be done about a pipeline's slots, by what is on record of them."""
    since = known.complete_until
    if since <= now - CRON_IS_PUNCTUAL:
        recorded = ledger.recorded(known.name, since, now)
    else:  # by a clock that was ahead; or this one is behind
        within = timedelta(seconds=schedule.start_within)
        since = open_since = min(since, max(known.schedule_since, now - within))
        if schedule.if_missed == "latest":  # a newer one was started, and those before it were passed over
            open_since = max(since, ledger.newest_started(known.name, now + within) or since)
        recorded = set(slots.between(schedule, since, now)) - ledger.missed_too_early(known.name, open_since, now)
    return plan(schedule, since, recorded, now)


def record(
    ledger: Ledger,
    known: Registered,
    schedule: Schedule,
    planned: Plan,
    down_since: datetime | None,
    now: datetime,
) -> None:
    """Record what a plan says was missed, with why, and until when every slot has its record."""
    late = [slot for slot, reason in planned.missed if reason == "too_late"]
    holders = ledger.holders(known.name, late[0], late[-1]) if late else []
    missed = []
    for slot, reason in planned.missed:
        detail = None
        if down_since and slot > down_since:
            detail = f"nothing watched from {timestamp(down_since)} to {timestamp(now)}"
            reason = "host_down" if reason == "too_late" else reason
        elif reason == "too_late" and (run := holder_at(holders, timestamp(slot))):
            reason, detail = "held", f"held by run {run.id}"
        missed.append((str(ULID()), slot, slots.slot_date(schedule, slot), reason, detail))
    if missed:
        ledger.miss(missed, known.name, now)
    if planned.complete_until > known.complete_until:
        ledger.complete(known.name, planned.complete_until)


def is_too_late(schedule: Schedule | None, slot: datetime, now: datetime) -> bool:
    """Say whether a slot may be started no more."""
    return schedule is None or now > slot + timedelta(seconds=schedule.start_within)


def holder_at(holders: list[Run], instant: str) -> Run | None:
    """Return the run, of those that held a pipeline one after the other, that held it at an instant."""
    before = bisect_right(holders, instant, key=lambda run: run.claimed_at)
    run = holders[before - 1] if before else None
    return run if run and (run.outcome is None or (run.ended_at or "") > instant) else None


def note_late(
    ledger: Ledger, engine: Engine, pipeline: Pipeline | None, known: Registered | None, now: datetime
) -> None:
    """Note the newest slot that should have succeeded by now, and has not."""
    if pipeline is None or pipeline.late_after is None or known is None or known.schedule is None:
        return
    by = now - timedelta(seconds=pipeline.late_after)
    newest = slots.newest_due(known.schedule, by, known.schedule_since)
    if newest and not ledger.succeeded(known.name, newest):
        day = slots.slot_date(known.schedule, newest)
        by_hand = None if ledger.running(known.name) else runner.holder_of_lock(engine, known.name)
        ledger.note_late(str(ULID()), known.name, newest, day, now, by_hand)


def in_a_child(ledger: Ledger, name: str, job: Callable[[], None], say: Callable[[str], None]) -> int:
    """Do one pipeline's work in a process of its own, as a run may take hours; return its id."""
    ledger.let_go()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        job()
        code = 0
    except StandpipeError as error:
        say(f"{name}: {error}")
        code = error.exit_code
    except BaseException:  # the child must never go on as its parent
        traceback.print_exc()
    finally:
        os._exit(code)


def work_through(
    ledger: Ledger,
    engine: Engine,
    name: str,
    work: list[tuple[datetime, str]],
    listen: Callable[[Line], None],
    say: Callable[[str], None],
) -> None:
    """Settle what a dead runner left, following it to its end; then try the slots, oldest first."""
    runner.settle_and_follow(ledger, engine, name, say)
    with runner.stop_requests() as requests:
        for slot, trigger in work:
            if requests.asked or ledger.running(name) or runner.holder_of_lock(engine, name):
                return  # the next catch-up comes back to it
            try_slot(ledger, engine, name, slot, trigger, requests, listen, say)


def try_slot(
    ledger: Ledger,
    engine: Engine,
    name: str,
    slot: datetime,
    trigger: str,
    requests: runner.Requests,
    listen: Callable[[Line], None],
    say: Callable[[str], None],
) -> None:
    """Try one slot, or give it up where it is too late to be tried again; what goes wrong is said."""
    pipeline, damage = runner.load(name, scheduled=True)
    schedule = pipeline.schedule if pipeline else None
    if trigger == "retry" and is_too_late(schedule, slot, datetime.now(UTC)):
        ledger.give_up(name, slot)
        return
    day = slots.slot_date(schedule, slot)
    try:
        run = runner.attempt(ledger, engine, name, trigger, slot, day, pipeline or damage, requests, listen, say)
        if run:
            say(report.ended(run, runner.exit_code_of(run)))
    except StandpipeError as error:
        say(f"{name}: {error}")
