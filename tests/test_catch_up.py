"""Slots that nothing started: simulated years with outages and jumps, and real runs that are tried again."""

from __future__ import annotations

import fcntl
import os
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from ulid import ULID

from conftest import DECLARED, ProcessEngine
from standpipe import backfill, catch_up, configuration, paths, runner, slots
from standpipe import pipeline as pipeline_module
from standpipe.engines import CannotStart
from standpipe.errors import BudgetShort, ConfigurationError, EngineUnavailable, LedgerDamaged, UsageError
from standpipe.ledger import Ledger, Run, SlotRecorded, recover, timestamp
from standpipe.pipeline import Pipeline, Schedule

ZONES = ("UTC", "Europe/London", "America/New_York", "Australia/Lord_Howe")
LINES = ("0 3 * * 0-4", "30 1 * * *", "30 2 * * *", "45 1,2 * * 6,0", "0 */6 * * *", "59 23 28-31 * *")


def nothing(_told: object) -> None:
    pass


def schedule(**keys: Any) -> Schedule:
    return Schedule.model_validate({"cron": "0 3 * * *", "timezone": "UTC", "start_within": "6h"} | keys)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def missed(plan: catch_up.Plan) -> list[tuple[str, str]]:
    return [(f"{slot:%d %H:%M}", reason) for slot, reason in plan.missed]


def test_of_a_week_without_a_host_the_newest_is_started_and_each_other_is_missed() -> None:
    plan = catch_up.plan(schedule(), at("2026-11-16 12:00"), [], at("2026-11-20 04:00"))
    assert plan.start == [at("2026-11-20 03:00")]
    assert missed(plan) == [(f"{day} 03:00", "too_late") for day in (17, 18, 19)]


def test_all_starts_each_that_is_not_too_late_and_latest_passes_over_those_before() -> None:
    hourly = {"cron": "0 * * * *", "start_within": "3h"}
    since, now = at("2026-11-20 00:30"), at("2026-11-20 05:30")
    every = catch_up.plan(schedule(**hourly, if_missed="all"), since, [], now)
    assert every.start == [at("2026-11-20 03:00"), at("2026-11-20 04:00"), at("2026-11-20 05:00")]
    assert missed(every) == [("20 01:00", "too_late"), ("20 02:00", "too_late")]
    latest = catch_up.plan(schedule(**hourly, if_missed="latest"), since, [], now)
    assert latest.start == [at("2026-11-20 05:00")]
    assert missed(latest)[2:] == [("20 03:00", "superseded"), ("20 04:00", "superseded")]
    none = catch_up.plan(schedule(**hourly, if_missed="skip"), since, [], now)
    assert none.start == []
    assert missed(none)[2:] == [(f"20 0{hour}:00", "policy") for hour in (3, 4, 5)]


def test_a_slot_that_is_cron_s_own_to_start_is_left_to_it() -> None:
    plan = catch_up.plan(schedule(), at("2026-11-19 12:00"), [], at("2026-11-20 03:01"))
    assert plan.start == []
    assert plan.missed == []


@pytest.mark.parametrize("policy", ["latest", "all", "skip"])
@pytest.mark.parametrize("within", ["1m", "6h"])
def test_what_stands_for_a_skipped_time_is_catch_up_s_to_start(policy: str, within: str) -> None:
    night = {"timezone": "Europe/London", "if_missed": policy, "start_within": within}
    since, now = at("2026-03-28 12:00"), at("2026-03-29 01:05")  # 01:30 is skipped: it is 02:00 at 01:00 UTC
    assert catch_up.plan(schedule(cron="30 1 * * *", **night), since, [], now).start == [at("2026-03-29 01:00")]
    named_as_well = catch_up.plan(schedule(cron="0,30 1-2 * * *", **(night | {"if_missed": "skip"})), since, [], now)
    assert named_as_well.start == []  # 02:00 is cron's to start
    later = catch_up.plan(
        schedule(cron="30 1 * * *", **(night | {"if_missed": "skip"})), since, [], at("2026-03-29 02:00")
    )
    assert later.start == []


class Host:
    """A host whose clock and power are the test's: cron and catch-up as they are; runs take their time."""

    def __init__(self, ledger: Ledger, plan_schedule: Schedule, now: datetime, seed: int = 0, retries: int = 0) -> None:
        self.ledger = ledger
        document = yaml.safe_load(DECLARED) | {
            "schedule": plan_schedule.model_dump(mode="json"),
            "retries": {"count": retries, "delay": "40m"},
        }
        self.pipeline = Pipeline.model_validate(document)
        self.schedule = plan_schedule
        self.periods = [(plan_schedule, now, now)]  # each schedule, from when to when it named slots
        self.now = now
        self.chance = Random(seed)  # noqa: S311  # no secret is made of it
        self.going: tuple[str, datetime, str] | None = None  # the run, when it ends, and how
        self.looks: set[datetime] = set()  # when catch-up has something to see: every five minutes is the rule
        self.attempts = 0
        self.engine_is_away_until = now
        self.forgotten: set[str] = set()
        ledger.register(self.pipeline, now)

    def known(self) -> Any:
        return self.ledger.registered("arxlive")[0]

    def start(
        self,
        trigger: str,
        slot: datetime | None,
        minutes: float = 0,
        outcome: str = "succeeded",
        reason: str | None = None,
    ) -> None:
        self.attempts += 1
        run = f"{self.attempts:026}"
        with suppress(SlotRecorded):
            if self.ledger.claim(run, "arxlive", trigger, date(2026, 1, 1), slot, self.now) is None:
                self.going = run, self.now + timedelta(minutes=minutes), outcome
                if not minutes:
                    self.end(outcome, reason)

    def try_slot(self, trigger: str, slot: datetime) -> None:
        if self.now < self.engine_is_away_until:
            self.start(trigger, slot, outcome="failed", reason="engine")
            return
        minutes = self.chance.choice((0, 0, 1, 50, 500)) if self.pipeline.retries.count else 0
        outcome = self.chance.choice(("succeeded", "failed", "timed_out")) if minutes else "succeeded"
        self.start(trigger, slot, minutes, outcome)

    def end(self, outcome: str, reason: str | None = None) -> None:
        assert self.going
        run = self.ledger.run(self.going[0])
        assert run
        at = runner.retry_at(self.pipeline, run, outcome, reason, self.now)
        self.ledger.settle(run.id, outcome, reason=reason, exit_code=1, ended_at=timestamp(self.now), retry_at=at)
        self.going = None
        self.looks |= {self.now + timedelta(minutes=1)} | ({at} if at else set())

    def cron(self, now: datetime) -> None:
        self.now = now
        slot = runner.due_slot(self.ledger, self.known(), now)
        if slot:
            self.try_slot("scheduled", slot)

    def catch_up(self, now: datetime) -> None:
        self.now = now
        seen = self.ledger.seen()
        down = seen if seen and now - seen > catch_up.HOST_WAS_DOWN else None
        work = catch_up.record_and_list(self.ledger, self.known(), down, now)
        self.ledger.watched(now)
        for slot, trigger in work:
            if self.ledger.running("arxlive") and self.chance.random() < 0.8:  # else another is quicker than the claim
                return  # as work_through
            self.try_slot(trigger, slot)

    def live(self, minutes: int) -> None:
        """Be up: cron at each slot, catch-up whenever there is something for it to see."""
        end = self.now + timedelta(minutes=minutes)
        named = slots.after(self.schedule, self.now)
        slot = next(named)
        while True:
            events = [end, slot, *self.looks, *([self.going[1]] if self.going else [])]
            # What lies behind a clock that was set is seen at once; a run ends by its own time.
            self.now = max(self.now, min(events))
            if self.going and self.going[1] <= self.now:
                self.end(self.going[2])
            while slot <= self.now < end:
                if not slots.is_made_up(self.schedule, slot):
                    self.cron(self.now)
                self.looks.add(self.now + timedelta(minutes=3))
                slot = next(named)
            if any(look <= self.now for look in self.looks) or self.now >= end:
                self.looks = {look for look in self.looks if look > self.now}
                self.ledger.watched(self.now - timedelta(minutes=5))
                self.catch_up(self.now)
            if self.now >= end:
                return

    def be_off(self, minutes: int) -> None:
        """Lose power, and whatever runs with it; somebody may be quicker at the boot than catch-up."""
        self.now += timedelta(minutes=minutes)
        if self.going:
            self.end("interrupted")
        if self.chance.random() < 0.5:
            self.start("manual", None, 200)
        self.catch_up(self.now)

    def set_clock(self, minutes: int) -> None:
        """Have another time, at once; what runs goes on for as long as it would have."""
        self.now += timedelta(minutes=minutes)
        if self.going:
            self.going = self.going[0], self.going[1] + timedelta(minutes=minutes), self.going[2]
        self.looks = {self.now}
        if minutes < 0 or self.chance.random() < 0.5:  # a slot that the clock jumps over is not seen by cron
            self.cron(self.now)

    def backfill(self, days: int) -> None:
        """Do what did not succeed in the last days."""
        since = self.now - timedelta(days=days)
        for slot in slots.between(self.schedule, since, self.now):
            if self.going is None and not self.ledger.succeeded("arxlive", slot):
                self.start("backfill", slot)

    def forget(self, days: int) -> None:
        """Prune what is older."""
        before = {row["slot"] for row in self.ledger._select("SELECT slot FROM slots")}
        self.ledger.prune(self.now - timedelta(days=days))
        self.forgotten |= before - {row["slot"] for row in self.ledger._select("SELECT slot FROM slots")}

    def change_schedule(self, line: str) -> None:
        """Have another schedule converged."""
        before, since, _until = self.periods[-1]
        self.schedule = before.model_copy(update={"cron": line})
        self.pipeline = self.pipeline.model_copy(update={"schedule": self.schedule})
        if line != before.cron:
            self.periods[-1:] = [(before, since, self.now), (self.schedule, self.now, self.now)]
        self.ledger.register(self.pipeline, self.now)


A_DAY = 24 * 60  # minutes
FULL = bool(os.environ.get("STANDPIPE_FULL"))
LIFE = st.one_of(
    st.tuples(st.just("up"), st.integers(1, (150 if FULL else 60) * A_DAY)),
    st.tuples(st.just("off"), st.integers(1, 20 * A_DAY)),
    st.tuples(st.just("set"), st.integers(-20 * A_DAY, 20 * A_DAY)),
    st.tuples(st.just("hold"), st.integers(1, 3 * A_DAY)),  # somebody's own run is in the way
    st.tuples(st.just("change"), st.integers(0, len(LINES) - 1)),  # of the schedule
    st.tuples(st.just("no engine"), st.integers(1, 3 * A_DAY)),
    st.tuples(st.just("backfill"), st.integers(1, 30)),  # of so many days
    st.tuples(st.just("forget"), st.integers(200, 400)),  # what is so many days old
)


@settings(max_examples=100 if FULL else 20, deadline=None)
@given(
    zone=st.sampled_from(ZONES),
    line=st.sampled_from(LINES),
    policy=st.sampled_from(("latest", "all", "skip")),
    within=st.sampled_from(("1h", "6h", "3d")),
    begins=st.integers(0, 700 * A_DAY),
    retries=st.integers(0, 2),
    seed=st.integers(0, 2**32),
    life=st.lists(LIFE, max_size=30 if FULL else 8),
)
def test_every_slot_has_exactly_one_record_whatever_the_host_lives_through_in_years(
    tmp_path_factory: pytest.TempPathFactory,
    zone: str,
    line: str,
    policy: str,
    within: str,
    begins: int,
    retries: int,
    seed: int,
    life: list[tuple[str, int]],
) -> None:
    registered = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=begins)
    ledger = Ledger(tmp_path_factory.mktemp("ledger") / "ledger.sqlite3")
    ledger._connection.execute("PRAGMA synchronous = OFF")  # years of runs in seconds
    chosen = schedule(cron=line, timezone=zone, if_missed=policy, start_within=within)
    host = Host(ledger, chosen, registered, seed, retries)
    newest = registered
    settled: dict[str, Run] = {}
    for what, minutes in [*life, ("up", 400 * A_DAY)]:
        if what == "up":
            host.live(minutes)
        elif what == "off":
            host.be_off(minutes)
        elif what == "set":
            host.set_clock(minutes)
        elif what == "change":
            host.change_schedule(LINES[minutes])
        elif what == "no engine":
            host.engine_is_away_until = host.now + timedelta(minutes=minutes)
            host.live(minutes)
        elif what == "backfill":
            host.backfill(minutes)
        elif what == "forget":
            settled = {}
            host.forget(minutes)
        else:
            if host.going is None:
                host.start("manual", None, minutes)
            host.live(minutes // 2)
        newest = max(newest, host.now)
        runs = {run.id: replace(run, notice=None, noted_at=None) for run in ledger.history("arxlive", 1_000_000)}
        assert settled.items() <= runs.items()  # whatever the clock says: what was recorded stays as it was
        settled = {run.id: run for run in runs.values() if run.outcome}
    if newest > host.now:
        host.set_clock(int((newest - host.now).total_seconds() // 60) + 1)
    host.live(4 * A_DAY)  # the last retries are made or given up
    host.catch_up(host.now)
    if host.going:
        host.end(host.going[2])

    until = host.now - catch_up.CRON_IS_PUNCTUAL
    (last, since, _end) = host.periods.pop()
    host.periods.append((last, since, until))
    expected = {timestamp(slot) for each, start, end in host.periods for slot in slots.between(each, start, end)}
    # A clock that is behind when the schedule is changed leaves what a schedule before named until then.
    named = {timestamp(slot) for each, start, _end in host.periods for slot in slots.between(each, start, host.now)}
    terminal = {row["slot"]: row for row in ledger._select("SELECT * FROM slots")}
    assert expected <= set(terminal) | host.forgotten <= named
    assert not set(terminal) & host.forgotten
    runs = {run.id: run for run in ledger.history("arxlive", 1_000_000)}
    firsts: dict[str, list[Run]] = {}
    for row in ledger._select(
        "SELECT * FROM runs WHERE trigger = 'scheduled' OR (trigger = 'catch-up' AND outcome <> 'skipped')"
        " ORDER BY rowid"
    ):
        firsts.setdefault(row["slot"], []).append(Run.of(row))
    assert set(firsts) == set(terminal)
    for records in firsts.values():  # one, but for what a clock that was ahead had missed already
        assert all(early.outcome == "missed" and early.claimed_at > records[-1].claimed_at for early in records[:-1])
    for slot, row in terminal.items():
        assert runs[row["run"]].slot == slot
    recent = timestamp(host.now - timedelta(seconds=chosen.start_within))
    assert [run for run in runs.values() if run.outcome is None] == []
    assert [slot for slot, row in terminal.items() if row["retry_at"] and slot < recent] == []
    done = [run.slot for run in runs.values() if run.outcome == "succeeded" and run.slot]
    assert len(done) == len(set(done))
    ledger.close()


def declare(**changes: Any) -> Pipeline:
    document = yaml.safe_load(DECLARED) | changes
    (paths.PIPELINES / "arxlive.yml").write_text(yaml.safe_dump(document))
    return Pipeline.model_validate(document)


def try_slot(ledger: Ledger, engine: ProcessEngine, trigger: str, slot: datetime) -> Run | None:
    pipeline, _damage = runner.load("arxlive", scheduled=True)
    with runner.stop_requests() as requests:
        day = slot.date()
        return runner.attempt(ledger, engine, "arxlive", trigger, slot, day, pipeline, requests, nothing, nothing)


def test_a_slot_that_failed_is_tried_again_as_often_as_is_declared(ledger: Ledger, engine: ProcessEngine) -> None:
    ledger.register(declare(retries={"count": 2, "delay": "1s"}), datetime.now(UTC) - timedelta(hours=1))
    slot = datetime.now(UTC).replace(second=0, microsecond=0)
    engine.program = "import os; os._exit(30)"
    first = try_slot(ledger, engine, "scheduled", slot)
    assert first is not None
    for attempt in (2, 3):
        assert [known for known, _at in ledger.retries("arxlive")] == [slot]
        again = try_slot(ledger, engine, "retry", slot)
        assert again is not None
        assert (again.attempt, again.trigger, again.slot) == (attempt, "retry", timestamp(slot))
    assert ledger.retries("arxlive") == []
    assert try_slot(ledger, engine, "retry", slot) is None


def test_a_retry_that_succeeds_is_the_slot_s_record(ledger: Ledger, engine: ProcessEngine) -> None:
    ledger.register(declare(retries={"count": 2, "delay": "1s"}), datetime.now(UTC) - timedelta(hours=1))
    slot = datetime.now(UTC).replace(second=0, microsecond=0)
    engine.program = "import os; os._exit(30)"
    try_slot(ledger, engine, "scheduled", slot)
    engine.program = "print('well')"
    try_slot(ledger, engine, "retry", slot)
    assert ledger.succeeded("arxlive", slot)
    assert ledger.retries("arxlive") == []


def fail_once(ledger: Ledger, engine: ProcessEngine) -> datetime:
    """Have a slot whose first run has failed, and that may be tried again once."""
    ledger.register(declare(retries={"count": 1, "delay": "1s"}), datetime.now(UTC) - timedelta(hours=1))
    slot = datetime.now(UTC).replace(second=0, microsecond=0)
    engine.program = "import os; os._exit(30)"
    try_slot(ledger, engine, "scheduled", slot)
    return slot


def test_a_failure_that_waits_for_its_retry_is_told_when_its_pipeline_is_removed(
    ledger: Ledger, engine: ProcessEngine
) -> None:
    fail_once(ledger, engine)
    file = paths.PIPELINES / "arxlive.yml"
    declared = file.read_text()
    file.unlink()
    runner.reconcile(ledger, engine, wait=False, say=nothing)
    assert [run.notice for run in ledger.notices()] == ["failed"]
    ledger.told([run.id for run in ledger.notices()], "failed")
    file.write_text(declared)
    catch_up.catch_up(ledger, engine, nothing, nothing, datetime.now(UTC) + timedelta(days=60))
    assert ledger.notices() == []


def without(name: str, gone: str) -> ZoneInfo:
    """Find a zone, as on a host that does not have one of them any more."""
    if name == gone:
        raise ZoneInfoNotFoundError(name)
    return ZoneInfo(name)


@pytest.fixture
def without_slots(ledger: Ledger) -> Callable[[], Ledger]:
    """Damage the page of the slots, and have the ledger recovered."""

    def recovered() -> Ledger:
        ledger.close()
        with closing(sqlite3.connect(paths.LEDGER)) as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            (page,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'slots'").fetchone()
            (size,) = db.execute("PRAGMA page_size").fetchone()
        with paths.LEDGER.open("r+b") as file:
            file.seek((page - 1) * size)
            file.write(os.urandom(size))
        recover(paths.LEDGER, datetime.now(UTC), nothing)
        return Ledger(paths.LEDGER)

    return recovered


def test_a_recovery_that_cannot_read_the_slots_loses_no_retry(
    ledger: Ledger, engine: ProcessEngine, without_slots: Callable[[], Ledger]
) -> None:
    slot = fail_once(ledger, engine)
    ledger.complete("arxlive", slot + timedelta(minutes=1))
    again = without_slots()
    assert [known for known, _at in again.retries("arxlive")] == [slot]
    engine.program = "print('well')"
    assert try_slot(again, engine, "retry", slot)
    assert [(run.trigger, run.outcome) for run in again.history("arxlive", 9)] == [
        ("retry", "succeeded"),
        ("scheduled", "failed"),
    ]


def test_a_recovery_that_cannot_read_the_slots_has_none_run_twice_nor_old_failures_tried(
    ledger: Ledger, without_slots: Callable[[], Ledger]
) -> None:
    now = datetime.now(UTC).replace(second=0, microsecond=0)
    ledger.register(declare(), now - timedelta(hours=1))
    slots_of = [now - timedelta(minutes=minutes) for minutes in (40, 30, 20)]
    for number, (slot, outcome) in enumerate(zip(slots_of, ("failed", "succeeded", "stopped"), strict=True)):
        ledger.claim(f"R{number}", "arxlive", "scheduled", slot.date(), slot, slot)
        ledger.settle(f"R{number}", outcome, exit_code=1)
    again = without_slots()
    assert again.retries("arxlive") == []
    for slot in slots_of:
        with pytest.raises(SlotRecorded):
            again.claim("another", "arxlive", "catch-up", slot.date(), slot, now)


@pytest.mark.parametrize("change", ["corrected", "removed", "neither"])
def test_a_zone_that_this_host_knows_no_more_keeps_no_other_pipeline_from_its_slots(
    ledger: Ledger, engine: ProcessEngine, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    hour_ago = datetime.now(UTC) - timedelta(hours=1)
    declared = DECLARED.replace("timezone: UTC", "timezone: US/Eastern")
    file = paths.PIPELINES / "arxlive.yml"
    file.write_text(declared)
    (paths.PIPELINES / "other.yml").write_text(DECLARED.replace("arxlive", "other", 1))
    for name in ("arxlive", "other"):
        ledger.register(configuration.load(name), hour_ago)
    monkeypatch.setattr(pipeline_module, "known_timezones", lambda: frozenset({"UTC", "America/New_York"}))
    monkeypatch.setattr(pipeline_module, "ZoneInfo", lambda name: without(name, "US/Eastern"))
    if change == "corrected":
        file.write_text(declared.replace("US/Eastern", "America/New_York"))
    elif change == "removed":
        file.unlink()
    if change == "neither":
        with pytest.raises(ConfigurationError, match="US/Eastern"):
            runner.reconcile(ledger, engine, wait=False, say=nothing)
    else:
        runner.reconcile(ledger, engine, wait=False, say=nothing)
    assert catch_up.catch_up(ledger, engine, nothing, nothing, datetime.now(UTC)) == 0
    other = next(known for known in ledger.registered("other"))
    assert other.complete_until > hour_ago


def test_a_retry_that_somebody_is_in_the_way_of_is_put_off_and_costs_no_attempt(
    ledger: Ledger, engine: ProcessEngine
) -> None:
    slot = fail_once(ledger, engine)
    engine.program = "import os; os._exit(75)"  # its entrypoint found the lock taken
    refused = try_slot(ledger, engine, "retry", slot)
    assert refused is not None
    assert (refused.outcome, refused.reason, refused.attempt) == ("skipped", "held", 2)
    assert [known for known, _at in ledger.retries("arxlive")] == [slot]
    assert ledger.notices() == []
    engine.program = "import os; os._exit(30)"
    again = try_slot(ledger, engine, "retry", slot)
    assert again is not None
    assert (again.outcome, again.attempt, again.notice) == ("failed", 2, "failed")
    assert ledger.retries("arxlive") == []


def test_a_failure_whose_retry_was_never_possible_is_told_in_the_end(ledger: Ledger, engine: ProcessEngine) -> None:
    slot = fail_once(ledger, engine)
    engine.program = "import os; os._exit(75)"
    try_slot(ledger, engine, "retry", slot)
    ledger.give_up("arxlive", slot)
    assert [(told.trigger, told.notice) for told in ledger.notices()] == [("scheduled", "failed")]
    assert ledger.trouble("arxlive") == "failed"


def test_a_failure_whose_retry_comes_too_late_is_given_up_though_somebody_holds_the_pipeline(
    ledger: Ledger, engine: ProcessEngine
) -> None:
    slot = fail_once(ledger, engine)
    (failed,) = ledger.history("arxlive", 9)
    (known,) = ledger.registered("arxlive")
    assert known.schedule
    ledger.claim("A", "arxlive", "manual", slot.date(), None, slot)
    too_late = slot + timedelta(seconds=known.schedule.start_within + 1)
    assert "retry" not in dict(catch_up.record_and_list(ledger, known, None, too_late)).values()
    assert ledger.retries("arxlive") == []
    assert [run.notice for run in ledger.notices() if run.id == failed.id] == ["failed"]


def test_a_failure_whose_retry_there_is_no_budget_for_is_told(ledger: Ledger, engine: ProcessEngine) -> None:
    slot = fail_once(ledger, engine)
    engine.refuses = BudgetShort("too little is left")
    with pytest.raises(BudgetShort):
        try_slot(ledger, engine, "retry", slot)
    assert ledger.retries("arxlive") == []
    assert [(told.trigger, told.notice) for told in ledger.notices()] == [("scheduled", "failed")]
    (record,) = ledger._select("SELECT outcome FROM slots JOIN runs ON runs.id = slots.run")
    assert record["outcome"] == "failed"


@pytest.mark.parametrize("refusal", ["policy", "image"])
def test_what_only_a_converge_can_mend_is_not_tried_again(ledger: Ledger, engine: ProcessEngine, refusal: str) -> None:
    ledger.register(declare(), datetime.now(UTC) - timedelta(hours=1))
    engine.refuses = CannotStart(refusal, "no", 78)
    with pytest.raises(CannotStart):
        try_slot(ledger, engine, "scheduled", datetime.now(UTC).replace(second=0, microsecond=0))
    assert ledger.retries("arxlive") == []


def test_an_engine_that_was_away_is_tried_again_but_not_past_start_within(
    ledger: Ledger, engine: ProcessEngine, docker_away: CannotStart
) -> None:
    pipeline = declare()
    ledger.register(pipeline, datetime.now(UTC) - timedelta(days=2))
    engine.refuses = docker_away
    now = datetime.now(UTC).replace(second=0, microsecond=0)
    for slot in (now - timedelta(hours=5, minutes=55), now):
        with pytest.raises(CannotStart):
            try_slot(ledger, engine, "scheduled", slot)
    assert [slot for slot, _at in ledger.retries("arxlive")] == [now]


def test_catch_up_starts_what_was_missed_in_processes_of_their_own(ledger: Ledger, engine: ProcessEngine) -> None:
    ledger.register(
        declare(schedule={"cron": "*/10 * * * *", "if_missed": "latest"}), datetime.now(UTC) - timedelta(hours=3)
    )
    now = datetime.now(UTC)
    assert catch_up.catch_up(ledger, engine, nothing, nothing, now) == 0
    runs = ledger.history("arxlive", 100)
    assert [run.outcome for run in runs].count("succeeded") == 1
    assert {run.reason for run in runs if run.outcome == "missed"} == {"superseded"}
    assert len(runs) >= 17
    count = len(runs)
    assert catch_up.catch_up(ledger, engine, nothing, nothing, now) == 0
    assert len(ledger.history("arxlive", 100)) == count


def test_catch_up_leaves_a_pipeline_that_is_held_and_comes_back_to_it(ledger: Ledger, engine: ProcessEngine) -> None:
    ledger.register(declare(schedule={"cron": "*/10 * * * *"}), datetime.now(UTC) - timedelta(minutes=25))
    holder = str(ULID())
    with runner.living_runner(ledger, holder):
        ledger.claim(holder, "arxlive", "manual", date(2026, 11, 23), None, datetime.now(UTC))
        catch_up.catch_up(ledger, engine, nothing, nothing, datetime.now(UTC))
        assert "succeeded" not in [run.outcome for run in ledger.history("arxlive", 100)]
        ledger.settle(holder, "failed", exit_code=1)
    catch_up.catch_up(ledger, engine, nothing, nothing, datetime.now(UTC))
    assert "succeeded" in [run.outcome for run in ledger.history("arxlive", 100)]


def test_catch_up_leaves_a_slot_to_come_while_a_container_by_hand_is_in_the_way(
    ledger: Ledger, engine: ProcessEngine
) -> None:
    slot = fail_once(ledger, engine)
    with (paths.LOCKS / "arxlive" / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for trigger in ("retry", "catch-up"):
            catch_up.work_through(ledger, engine, "arxlive", [(slot, trigger)], nothing, nothing)
    assert [run.outcome for run in ledger.history("arxlive", 9)] == ["failed"]
    assert [known for known, _at in ledger.retries("arxlive")] == [slot]


def test_a_slot_that_waits_for_a_long_run_is_late_in_its_time_and_once(ledger: Ledger, engine: ProcessEngine) -> None:
    pipeline = declare(schedule={"cron": "0 3 * * *"}, late_after="1h")
    ledger.register(pipeline, at("2026-11-20 01:00"))
    ledger.claim("A", "arxlive", "manual", date(2026, 11, 20), None, at("2026-11-20 02:00"))
    for minute in ("03:30", "04:05", "04:10"):
        now = at(f"2026-11-20 {minute}")
        catch_up.note_late(ledger, engine, pipeline, ledger.registered("arxlive")[0], now)
        late = [(run.slot, run.outcome, run.detail, run.notice) for run in ledger.notices()]
        expected = [(timestamp(at("2026-11-20 03:00")), "skipped", "held by run A", "late")]
        assert late == (expected if minute > "04" else [])
    assert len(ledger.history("arxlive", 9)) == 2
    ledger.settle("A", "succeeded", exit_code=0)
    known = ledger.registered("arxlive")[0]
    assert catch_up.record_and_list(ledger, known, None, now) == [
        (at("2026-11-20 03:00"), "catch-up")
    ]  # still to be run


def test_a_slot_that_waits_for_a_container_by_hand_is_late_in_its_time(ledger: Ledger, engine: ProcessEngine) -> None:
    pipeline = declare(schedule={"cron": "0 3 * * *"}, late_after="1h")
    ledger.register(pipeline, at("2026-11-20 01:00"))
    runner.make_lock("arxlive")
    with (paths.LOCKS / "arxlive" / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for _again in range(2):
            catch_up.note_late(ledger, engine, pipeline, ledger.registered("arxlive")[0], at("2026-11-20 04:05"))
    (late,) = ledger.history("arxlive", 9)
    assert (late.outcome, late.detail, late.notice) == (
        "skipped", "held by a container, which was started by hand", "late",
    )  # fmt: skip


def test_a_stop_is_on_record_with_who_asked(ledger: Ledger, engine: ProcessEngine) -> None:
    import threading

    declare(schedule=None)
    engine.program = "import time; print('up', flush=True); time.sleep(30)"
    up = threading.Event()

    def stop() -> None:
        up.wait(10)
        own = Ledger(paths.LEDGER)
        runner.stop(own, engine, "arxlive", "ada", nothing)
        own.close()

    stopper = threading.Thread(target=stop, daemon=True)
    stopper.start()
    run = runner.run(ledger, engine, "arxlive", None, scheduled=False, listen=lambda _line: up.set(), say=nothing)
    stopper.join()
    assert run is not None
    assert (run.outcome, run.detail, runner.exit_code_of(run)) == ("stopped", "by ada", 130)
    assert runner.stop(ledger, engine, "arxlive", "ada", nothing) is None


def test_a_backfill_works_the_slots_of_a_range_once_oldest_first(ledger: Ledger, engine: ProcessEngine) -> None:
    pipeline = declare(schedule={"cron": "0 3 * * 0-4", "timezone": "America/New_York"})
    runner.make_lock("arxlive")
    first, last = date(2026, 11, 1), date(2026, 11, 9)
    todo = backfill.open_slots(ledger, pipeline, first, last, again=False)
    assert [f"{slot:%m-%d %H:%M}" for slot in todo] == [
        f"11-{day:02} 08:00" for day in (1, 2, 3, 4, 5, 8, 9)
    ]  # fmt: skip
    assert backfill.backfill(ledger, engine, "arxlive", todo[:3], nothing, nothing) == 0
    left = backfill.open_slots(ledger, pipeline, first, last, again=False)
    assert left == todo[3:]
    assert backfill.open_slots(ledger, pipeline, first, last, again=True) == todo
    runs = list(reversed(ledger.history("arxlive", 10)))
    assert [(run.trigger, run.date, run.slot) for run in runs] == [
        ("backfill", f"2026-11-{slot:%d}", timestamp(slot)) for slot in todo[:3]
    ]


def test_a_backfill_goes_on_after_a_failure_and_says_so_at_its_end(ledger: Ledger, engine: ProcessEngine) -> None:
    pipeline = declare(schedule={"cron": "0 3 * * *"})
    runner.make_lock("arxlive")
    engine.program = "import os; os._exit(30)"
    todo = backfill.open_slots(ledger, pipeline, date(2026, 11, 1), date(2026, 11, 2), again=False)
    assert backfill.backfill(ledger, engine, "arxlive", todo, nothing, nothing) == 30
    assert len(ledger.history("arxlive", 10)) == 2
    assert ledger.retries("arxlive") == []  # it owns no slot


def test_a_backfill_that_is_asked_to_end_between_two_runs_starts_no_other(
    ledger: Ledger, engine: ProcessEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = declare(schedule={"cron": "0 3 * * *"})
    runner.make_lock("arxlive")
    monkeypatch.setattr(engine, "free", lambda _container: os.kill(os.getpid(), signal.SIGTERM))
    todo = backfill.open_slots(ledger, pipeline, date(2026, 11, 1), date(2026, 11, 5), again=False)
    assert backfill.backfill(ledger, engine, "arxlive", todo, nothing, nothing) == 130
    assert [run.outcome for run in ledger.history("arxlive", 10)] == ["succeeded"]


def test_a_backfill_waits_for_a_container_by_hand_without_a_record_of_each_look(
    ledger: Ledger, engine: ProcessEngine
) -> None:
    pipeline = declare(schedule={"cron": "0 3 * * *"})
    runner.make_lock("arxlive")
    said: list[str] = []
    with (paths.LOCKS / "arxlive" / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        def hear(message: str) -> None:
            said.append(message)
            fcntl.flock(lock, fcntl.LOCK_UN)

        todo = backfill.open_slots(ledger, pipeline, date(2026, 11, 1), date(2026, 11, 1), again=False)
        assert backfill.backfill(ledger, engine, "arxlive", todo, nothing, hear) == 0
    assert "waiting for a container, which was started by hand" in said[0]
    assert [run.outcome for run in ledger.history("arxlive", 10)] == ["succeeded"]


def test_a_slot_that_a_backfill_has_done_is_neither_retried_nor_made_up_for(
    ledger: Ledger, engine: ProcessEngine
) -> None:
    pipeline = declare(retries={"count": 2, "delay": "1s"}, schedule={"cron": "*/10 * * * *"})
    now = datetime.now(UTC)
    ledger.register(pipeline, now - timedelta(minutes=35))
    runner.make_lock("arxlive")
    assert pipeline.schedule
    failed, unseen = list(slots.between(pipeline.schedule, now - timedelta(minutes=34), now - timedelta(minutes=3)))[
        -2:
    ]
    engine.program = "import os; os._exit(30)"
    try_slot(ledger, engine, "scheduled", failed)
    engine.program = "print()"
    assert backfill.backfill(ledger, engine, "arxlive", [failed, unseen], nothing, nothing) == 0
    assert ledger.retries("arxlive") == []
    catch_up.catch_up(ledger, engine, nothing, nothing, now + timedelta(minutes=1))
    mine = [run for run in ledger.history("arxlive", 100) if run.slot in (timestamp(failed), timestamp(unseen))]
    assert sorted((run.slot, run.trigger) for run in mine if run.outcome == "succeeded") == [
        (timestamp(slot), "backfill") for slot in (failed, unseen)
    ]  # fmt: skip


@pytest.mark.parametrize(("again", "runs"), [(False, 1), (True, 2)])
def test_a_backfill_that_was_killed_and_is_begun_again_does_no_slot_twice(
    ledger: Ledger, engine: ProcessEngine, again: bool, runs: int
) -> None:
    pipeline = declare(schedule={"cron": "0 3 * * *"})
    runner.make_lock("arxlive")
    slot, left = datetime(2026, 11, 1, 3, tzinfo=UTC), str(ULID())
    ledger.claim(left, "arxlive", "backfill", slot.date(), slot, datetime.now(UTC))
    engine.program = "import time; time.sleep(0.5)"
    with runner.living_runner(ledger, left) as life:
        engine.start("arxlive", left, [], life, None)
    todo = backfill.open_slots(ledger, pipeline, slot.date(), slot.date(), again=again)
    assert todo == [slot]
    assert backfill.backfill(ledger, engine, "arxlive", todo, nothing, nothing, again) == 0
    assert [run.outcome for run in ledger.history("arxlive", 10)] == ["succeeded"] * runs


def test_a_clock_that_was_ahead_costs_no_slot_that_is_still_to_come(ledger: Ledger) -> None:
    now = at("2026-11-20 12:30")
    host = Host(ledger, schedule(cron="0 * * * *"), now)
    host.catch_up(now + timedelta(days=2))
    early = ledger.history("arxlive", 100)
    assert {run.outcome for run in early} == {"missed", "succeeded"}
    host.cron(at("2026-11-20 13:00"))
    host.catch_up(at("2026-11-20 14:03"))  # cron was not there at that time
    host.catch_up(at("2026-11-20 14:08"))
    made = [run for run in ledger.history("arxlive", 100) if run not in early]
    assert [(run.slot, run.trigger, run.outcome) for run in made] == [
        (timestamp(at("2026-11-20 14:00")), "catch-up", "succeeded"),
        (timestamp(at("2026-11-20 13:00")), "scheduled", "succeeded"),
    ]
    host.catch_up(now + timedelta(days=2, minutes=45))
    assert len(ledger.recorded("arxlive", now, now + timedelta(days=3))) == 49
    assert len(ledger.history("arxlive", 100)) == 51


def test_a_clock_that_is_behind_for_a_while_erases_no_miss_and_makes_none_again(ledger: Ledger) -> None:
    host = Host(ledger, schedule(cron="0 3 * * *", if_missed="skip"), at("2026-11-01 12:00"))
    host.catch_up(at("2026-11-20 12:00"))
    before = ledger.history("arxlive", 100)
    assert [run.outcome for run in before] == ["missed"] * 19
    for behind in ("1970-01-01 00:00", "2026-11-10 12:00", "2026-11-20 12:05"):
        host.catch_up(at(behind))
    assert ledger.history("arxlive", 100) == before


def started(host: Host, looks: list[str]) -> list[list[str]]:
    """Return what each look has started."""
    made = []
    for look in looks:
        before = len(host.ledger.history("arxlive", 1000))
        host.catch_up(at(look))
        new = host.ledger.history("arxlive", 1000)[: -before or None]
        made.append([f"{run.slot:.16}" for run in reversed(new) if run.outcome != "missed"])
    return made


@pytest.mark.parametrize("policy", ["latest", "all"])
def test_what_was_passed_over_for_a_newer_slot_is_not_started_when_the_clock_goes_back(
    ledger: Ledger, policy: str
) -> None:
    host = Host(ledger, schedule(cron="0 * * * *", if_missed=policy), at("2026-11-20 02:30"))
    first, *others = started(host, [f"2026-11-20 {look}" for look in ("09:05", "08:25", "08:30", "08:35", "09:10")])
    assert first[-1] == "2026-11-20T09:00"
    assert len(first) == (1 if policy == "latest" else 6)
    assert others == [[], [], [], []]


@pytest.mark.parametrize("policy", ["latest", "all"])
def test_of_what_a_clock_that_was_ahead_has_missed_the_newest_alone_is_started_later(
    ledger: Ledger, policy: str
) -> None:
    host = Host(ledger, schedule(cron="0 * * * *", if_missed=policy), at("2026-11-20 12:30"))
    started(host, ["2026-11-22 12:30", "2026-11-20 12:40"])
    first, *others = started(host, [f"2026-11-20 {look}" for look in ("18:03", "18:08", "18:13", "19:05")])
    due = [f"2026-11-20T{hour}:00" for hour in range(13, 19)]
    assert first == (due[-1:] if policy == "latest" else due)
    assert others == [[], [], ["2026-11-20T19:00"]]


@pytest.mark.parametrize("declared", [None, {"cron": "0 4 * * *"}, "removed"])
def test_what_is_open_of_a_schedule_that_is_given_up_is_on_record(
    ledger: Ledger, engine: ProcessEngine, declared: dict[str, str] | str | None
) -> None:
    now = datetime.now(UTC)
    ledger.register(declare(schedule={"cron": "* * * * *"}), now - timedelta(minutes=30))
    if declared == "removed":
        (paths.PIPELINES / "arxlive.yml").unlink()
    else:
        declare(schedule=declared)
    runner.reconcile(ledger, engine, wait=False, say=nothing)
    runs = ledger.history("arxlive", 100)
    assert len({run.slot for run in runs}) == len(runs) >= 30
    assert {(run.outcome, run.reason, run.detail) for run in runs} == {("missed", "policy", "the schedule was changed")}
    assert ledger.notices() == []


def test_a_long_outage_is_on_record_with_its_reason_after_one_look(ledger: Ledger) -> None:
    off, on = at("2026-11-20 12:00"), at("2026-12-04 12:00")
    host = Host(ledger, schedule(cron="* * * * *", start_within="1h"), off)
    ledger.watched(off)
    begun = time.process_time()
    host.catch_up(on)
    assert time.process_time() - begun < 20
    runs = ledger.history("arxlive", 100_000)
    assert len({run.slot for run in runs}) == len(runs) == 14 * 1440 - 2
    reasons = [run.reason for run in runs if run.outcome == "missed"]
    assert [reasons.count(reason) for reason in ("host_down", "superseded")] == [14 * 1440 - 60, 57]


def test_a_clock_far_ahead_makes_no_flood_at_once(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catch_up, "MOST_AT_ONCE", 10)
    monkeypatch.setattr(catch_up, "MOST_CHUNKS", 3)
    host = Host(ledger, schedule(cron="0 * * * *", start_within="1h"), at("2026-11-20 12:30"))
    for look, missed in enumerate((30, 60, 71)):
        host.catch_up(at("2026-11-23 12:30") + timedelta(minutes=5 * look))
        outcomes = [run.outcome for run in ledger.history("arxlive", 1000)]
        assert (outcomes.count("missed"), outcomes.count("succeeded")) == (missed, 1)


def test_a_look_that_is_cut_off_is_begun_again_and_knows_since_when_nobody_watched(
    ledger: Ledger, engine: ProcessEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(schedule={"cron": "0 3 * * *"})
    seen = datetime.now(UTC) - timedelta(days=3)
    ledger.watched(seen)

    def fail(*_arguments: object) -> None:
        raise LedgerDamaged("it is damaged")

    monkeypatch.setattr(catch_up, "record_and_list", fail)
    with pytest.raises(LedgerDamaged):
        catch_up.catch_up(ledger, engine, nothing, nothing, datetime.now(UTC))
    assert ledger.seen() == seen


def test_a_clock_far_ahead_makes_no_record_old(ledger: Ledger, engine: ProcessEngine) -> None:
    declare(schedule=None)
    now = datetime.now(UTC)
    ledger.claim("A", "arxlive", "manual", now.date(), None, now)
    ledger.settle("A", "succeeded", exit_code=0)
    catch_up.catch_up(ledger, engine, nothing, nothing, now)
    ahead = now + timedelta(days=3650)
    catch_up.catch_up(ledger, engine, nothing, nothing, ahead)
    assert ledger.run("A")
    catch_up.catch_up(ledger, engine, nothing, nothing, ahead + timedelta(minutes=5))  # it is true: the host was off
    assert ledger.run("A") is None


@pytest.mark.parametrize(("policy", "reason"), [("skip", "policy"), ("latest", "superseded")])
def test_what_if_missed_passes_over_is_not_told_though_the_host_was_down(
    ledger: Ledger, policy: str, reason: str
) -> None:
    off, on = at("2026-11-20 00:30"), at("2026-11-20 12:30")
    host = Host(ledger, schedule(cron="0 * * * *", start_within="3h", if_missed=policy), off)
    ledger.watched(off)
    host.catch_up(on)
    runs = [run for run in ledger.history("arxlive", 100) if run.outcome == "missed"]
    assert {run.reason for run in runs} == {reason, "host_down"}
    assert {run.detail for run in runs} == {f"nothing watched from {timestamp(off)} to {timestamp(on)}"}
    assert {run.reason for run in ledger.notices()} == {"host_down"}


def test_catch_up_releases_a_container_whose_release_failed(ledger: Ledger, engine: ProcessEngine) -> None:
    declare(schedule=None)
    engine.refuses_removal = EngineUnavailable("Docker is away")
    run = runner.run(ledger, engine, "arxlive", None, scheduled=False, listen=nothing, say=nothing)
    assert run is not None
    assert engine.removed == []
    engine.refuses_removal = None
    catch_up.catch_up(ledger, engine, nothing, nothing, datetime.now(UTC))
    assert engine.removed == [run.id]


def test_a_range_that_is_none_is_told(host: Path) -> None:
    pipeline = declare()
    with pytest.raises(UsageError, match="is after --to"):
        backfill.slots_of(pipeline, date(2026, 11, 2), date(2026, 11, 1), datetime.now(UTC))
    with pytest.raises(UsageError, match="has no schedule"):
        backfill.slots_of(declare(schedule=None), date(2026, 11, 1), date(2026, 11, 2), datetime.now(UTC))


def test_catch_up_settles_what_a_dead_runner_left_of_a_pipeline_that_was_removed(
    ledger: Ledger, engine: ProcessEngine
) -> None:
    ledger.claim("A", "removed", "manual", date(2026, 11, 23), None, datetime.now(UTC))
    with runner.living_runner(ledger, "A") as life:
        engine.start("removed", "A", [], life, None)
    catch_up.catch_up(ledger, engine, nothing, nothing, datetime.now(UTC))
    left = ledger.run("A")
    assert left is not None
    assert left.outcome == "succeeded"


def test_what_a_child_of_catch_up_notes_stays_when_its_parent_is_killed(host: Path, engine: ProcessEngine) -> None:
    engine.program = f"import os, time\nwhile not os.path.exists({str(host / 'enough')!r}): time.sleep(0.01)"
    hourly = declare(schedule={"cron": "0 * * * *", "start_within": "6h"})
    read, write = os.pipe()
    parent = os.fork()
    if parent == 0:
        with suppress(BaseException):
            ledger = Ledger(paths.LEDGER)
            ledger.register(hourly, datetime.now(UTC) - timedelta(hours=2))
            catch_up.catch_up(ledger, engine, nothing, nothing, datetime.now(UTC))
        os._exit(1)
    os.close(write)

    def states() -> list[str]:
        with closing(Ledger(paths.LEDGER)) as ledger:  # as any other command does, to its end
            return [run.state for run in ledger.history("arxlive", 100) if run.outcome != "missed"]

    while "started" not in states():
        assert os.waitpid(parent, os.WNOHANG) == (0, 0)
        time.sleep(0.01)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    assert states() == ["started"]
    (host / "enough").touch()
    with os.fdopen(read) as file:
        file.read()  # to its end: the child's
    assert states() == ["settled"]
