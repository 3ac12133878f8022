"""The ledger's promises: one record a slot, one outcome a run, nothing overwritten."""

from __future__ import annotations

import multiprocessing
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from conftest import DECLARED
from standpipe import paths
from standpipe.cli import main
from standpipe.errors import LedgerDamaged, NotWritable
from standpipe.ledger import MIGRATIONS, Ledger, SlotRecorded, clock_went_back, recover, timestamp
from standpipe.pipeline import Pipeline

NOW = datetime(2026, 11, 23, 3, 0, tzinfo=UTC)
DAY = date(2026, 11, 23)


def test_a_settled_run_stays_as_it_is(ledger: Ledger) -> None:
    ledger.claim("A", "arxlive", "manual", DAY, None, NOW)
    ledger.settle("A", "failed", exit_code=30)
    ledger.settle("A", "succeeded", exit_code=0)
    run = ledger.run("A")
    assert run is not None
    assert (run.outcome, run.exit_code) == ("failed", 30)


def test_a_slot_has_one_record(ledger: Ledger) -> None:
    ledger.claim("A", "arxlive", "scheduled", DAY, NOW, NOW)
    ledger.settle("A", "succeeded", exit_code=0)
    with pytest.raises(SlotRecorded):
        ledger.claim("B", "arxlive", "scheduled", DAY, NOW, NOW)
    assert ledger.run("B") is None


def test_a_slot_whose_run_a_recovery_could_not_read_is_not_run_again(ledger: Ledger) -> None:
    ledger.claim("A", "arxlive", "scheduled", DAY, NOW, NOW)
    ledger.settle("A", "failed", exit_code=30, retry_at=NOW)
    ledger._connection.execute("DELETE FROM runs")
    assert ledger.has_slot("arxlive", NOW, NOW)
    for trigger in ("scheduled", "catch-up"):
        with pytest.raises(SlotRecorded):
            ledger.claim("B", "arxlive", trigger, DAY, NOW, NOW)
    assert ledger.claim("C", "arxlive", "retry", DAY, NOW, NOW) is None


def claim_in_a_process(path: Path, run: str) -> str:
    ledger = Ledger(path)
    try:
        return "held" if ledger.claim(run, "arxlive", "manual", DAY, None, NOW) else "claimed"
    finally:
        ledger.close()


def test_of_many_processes_one_claims_the_pipeline_and_each_is_on_record(ledger: Ledger) -> None:
    with multiprocessing.get_context("spawn").Pool(8) as pool:
        answers = pool.starmap(claim_in_a_process, [(ledger.path, f"R{number:02}") for number in range(24)])
    assert sorted(answers) == ["claimed"] + ["held"] * 23
    assert len(ledger.history("arxlive", 100)) == 24


def test_a_ledger_of_a_newer_version_is_refused_and_left_alone(ledger: Ledger) -> None:
    with sqlite3.connect(ledger.path) as db:
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    db.close()
    with pytest.raises(NotWritable, match="newer standpipe"):
        Ledger(ledger.path)


def test_a_run_under_way_goes_on_when_a_newer_version_has_brought_the_ledger_forward(ledger: Ledger) -> None:
    ledger.claim("A", "arxlive", "manual", DAY, None, NOW)
    with closing(sqlite3.connect(ledger.path)) as newer:
        newer.execute("ALTER TABLE runs ADD COLUMN colour TEXT")
        newer.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
        newer.commit()
    ledger.started("A", "container", None, None, "image")
    with closing(ledger.again()) as beside:
        beside.ending("A", "timed_out")
    ledger.settle("A", "timed_out", exit_code=124)
    run = ledger.run("A")
    assert run is not None
    assert (run.ending, run.outcome) == ("timed_out", "timed_out")


KILLED_IN_ITS_MIDST = """
import os, signal, sqlite3, sys
from pathlib import Path
from standpipe import ledger

statements = 0

def count(statement):
    global statements
    statements += 1
    if statements == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)

real = sqlite3.connect

def connect(*arguments, **options):
    connection = real(*arguments, **options)
    connection.set_trace_callback(count)
    return connection

sqlite3.connect = connect
ledger.Ledger(Path(sys.argv[1])).close()
"""


def test_bringing_a_ledger_forward_can_be_killed_at_any_statement(host: Path) -> None:
    killed = 0
    while True:
        path = host / f"ledger-{killed}.sqlite3"
        ended = subprocess.run(
            [sys.executable, "-c", KILLED_IN_ITS_MIDST, path, str(killed + 1)], check=False
        ).returncode
        with closing(Ledger(path)) as after:
            assert after.is_well()
            after.claim("A", "arxlive", "manual", DAY, None, NOW)
            assert [run.id for run in after.unfinished()] == ["A"]
        if ended == 0:
            break
        assert ended == -signal.SIGKILL
        killed += 1
    assert killed > sum(migration.count(";") for migration in MIGRATIONS)


def test_what_is_old_is_forgotten_but_for_the_newest_slot_and_what_is_still_to_be_told(ledger: Ledger) -> None:
    days = [NOW + timedelta(days=number) for number in range(5)]
    for number, slot in enumerate(days):
        ledger.claim(f"R{number}", "arxlive", "scheduled", slot.date(), slot, slot)
        ledger.settle(f"R{number}", "failed", notice="failed" if number == 1 else None)
    ledger.claim("by hand", "arxlive", "manual", DAY, None, NOW)
    ledger.settle("by hand", "stopped")

    assert ledger.prune(NOW - timedelta(days=1)) == 0
    assert ledger.prune(NOW + timedelta(days=3)) == 3
    assert [run.id for run in ledger.history(None, 10)] == ["R4", "R3", "R1"]
    assert ledger.prune(NOW + timedelta(days=300)) == 1
    assert [run.id for run in ledger.history(None, 10)] == ["R4", "R1"]
    assert ledger.recorded("arxlive", NOW - timedelta(days=1), days[-1]) == {days[1], days[-1]}


def test_a_clock_behind_the_newest_record_is_told(ledger: Ledger) -> None:
    assert clock_went_back(ledger, NOW) is None
    ledger.claim("A", "arxlive", "scheduled", DAY, NOW, NOW)
    assert clock_went_back(ledger, NOW - timedelta(seconds=2)) is None
    assert "2026-11-20T03:00:00" in str(clock_went_back(ledger, NOW - timedelta(days=3)))
    ledger.miss(
        [("Z", NOW, DAY, "too_late", None)], "arxlive", NOW + timedelta(days=3)
    )  # it was ahead, and is right now
    assert clock_went_back(ledger, NOW) is None


def test_a_damaged_ledger_is_told_with_its_name_and_not_overwritten(host: Path) -> None:
    path = host / "ledger.sqlite3"
    path.write_bytes(b"this is no database, and longer than a header of one hundred bytes " * 4)
    before = path.read_bytes()
    with pytest.raises(NotWritable, match=r"ledger\.sqlite3 is damaged .* sets it aside"):
        Ledger(path)
    assert path.read_bytes() == before


def damaged(ledger: Ledger, copy: Path, runs: int) -> None:
    """Make a copy of a ledger in which an index is damaged; its runs are in the log of changes alone."""
    ledger.sync()
    for number in range(runs):
        ledger.claim(f"R{number:02}", "arxlive", "manual", DAY, None, NOW)
        ledger.settle(f"R{number:02}", "succeeded", exit_code=0)
    copy.parent.mkdir()
    for suffix in ("", "-wal"):
        copy.with_name(copy.name + suffix).write_bytes(ledger.path.with_name(ledger.path.name + suffix).read_bytes())
    (row,) = ledger._select("SELECT rootpage FROM sqlite_master WHERE name = 'notices'")
    with copy.open("r+b") as file:
        file.seek((row["rootpage"] - 1) * 4096)
        file.write(b"\xff" * 4096)


RECOVER_KILLED = """
import os, signal, sys
from datetime import UTC, datetime
from pathlib import Path
from standpipe import ledger

steps = 0

def count(event, _arguments):
    global steps
    if event in ("open", "os.rename", "os.remove", "sqlite3.connect"):
        steps += 1
        if steps == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(count)
ledger.recover(Path(sys.argv[1]), datetime(2026, 11, 23, 3, tzinfo=UTC), lambda _told: None)
"""


def test_a_recovery_that_is_killed_at_any_step_is_done_again_and_loses_no_run(ledger: Ledger, host: Path) -> None:
    whole = host / "whole" / "ledger.sqlite3"
    damaged(ledger, whole, 20)
    killed = 0
    while True:
        path = host / f"{killed}" / "ledger.sqlite3"
        shutil.copytree(whole.parent, path.parent)
        ended = subprocess.run([sys.executable, "-c", RECOVER_KILLED, path, str(killed + 1)], check=False).returncode
        said: list[str] = []
        recover(path, NOW + timedelta(hours=1), said.append)
        with closing(Ledger(path)) as after:
            assert after.is_well()
            assert len(after.history("arxlive", 100)) == 20
        (aside,) = path.parent.glob("ledger.sqlite3.damaged-*Z")
        if said:  # by the one that was killed, otherwise
            assert said == [f"the ledger was damaged: it is kept as {aside}", "20 runs were recovered from it"]
        assert list(path.parent.glob("*.recovering*")) == []
        if ended == 0:
            break
        assert ended == -signal.SIGKILL
        killed += 1
    assert killed > 8


def test_a_recovery_without_room_has_told_where_the_damaged_ledger_is_and_is_done_when_there_is(
    ledger: Ledger, host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = host / "other" / "ledger.sqlite3"
    damaged(ledger, path, 100)
    said: list[str] = []
    take_over = Ledger.take_over

    def take_over_without_room(new: Ledger, other: Path) -> int:
        new._select("PRAGMA max_page_count = 1")  # as many as there are
        return take_over(new, other)

    with monkeypatch.context() as full:
        full.setattr(Ledger, "take_over", take_over_without_room)
        with pytest.raises(NotWritable, match="full"):
            recover(path, NOW, said.append)
    (aside,) = path.parent.glob("ledger.sqlite3.damaged-*Z")
    assert said == [f"the ledger was damaged: it is kept as {aside}"]
    with pytest.raises(LedgerDamaged, match="not finished"):
        Ledger(path)
    assert recover(path, NOW, said.append) == 100
    with closing(Ledger(path)) as after:
        assert len(after.history(None, 999)) == 100


def test_a_recovered_ledger_has_its_runs_in_the_order_in_which_they_were_noted(ledger: Ledger, host: Path) -> None:
    for number in range(3000):
        ledger.claim(f"R{number:04}", "arxlive", "manual", DAY, None, NOW)
        ledger.settle(f"R{number:04}", "succeeded", exit_code=0)
    ledger.close()
    data = ledger.path.read_bytes()
    pages = [data[at : at + 4096] for at in range(0, len(data), 4096)]
    leaf = next(number for number, page in enumerate(pages) if page[0] == 0x0D and b"R1500" in page)  # of the table
    with ledger.path.open("r+b") as file:
        file.seek(leaf * 4096)
        file.write(b"\xff" * 4096)
    assert recover(ledger.path, NOW, lambda _told: None) < 3000
    with closing(Ledger(ledger.path)) as after:
        runs = [run.id for run in after.history("arxlive", 9999)]
    assert runs[0] == "R2999"
    assert runs == sorted(runs, reverse=True)


@pytest.mark.parametrize("left", [None, b""])
def test_a_ledger_that_was_lost_is_begun_anew_and_told(
    ledger: Ledger, left: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger.close()
    assert main(["history"]) == 0
    assert "gone or empty" not in capsys.readouterr().err
    paths.LEDGER.unlink()
    if left is not None:
        paths.LEDGER.write_bytes(left)
    assert main(["history"]) == 0
    assert "the history of this host: a new one is begun" in capsys.readouterr().err
    assert "gone or empty" in paths.LEDGER_BEGUN.read_text()
    assert main(["history"]) == 0
    assert capsys.readouterr().err == ""


def test_what_a_clock_that_was_ahead_has_noted_is_not_the_last(
    ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    ahead = datetime.now(UTC) + timedelta(days=300)
    ledger.register(Pipeline.model_validate(yaml.safe_load(DECLARED)), NOW)
    for run, now, outcome in (("Z", ahead, "failed"), ("A", datetime.now(UTC), "succeeded"), ("B", NOW, "skipped")):
        ledger.claim(run, "arxlive", "manual", DAY, None, now)
        ledger.settle(run, outcome, exit_code=0, ended_at=timestamp(now))
    last, newest = ledger.last("arxlive"), ledger.newest("arxlive")
    assert last is not None
    assert newest is not None
    assert (last.id, newest.id) == ("A", "B")
    assert [run.id for run in ledger.history("arxlive", 9)] == ["B", "A", "Z"]
    for command in ("status", "history"):
        assert main([command]) == 0
        assert "is behind the newest record" in capsys.readouterr().err


def test_forgetting_removes_one_pipeline_alone(ledger: Ledger) -> None:
    for name in ("arxlive", "other"):
        ledger.claim(name, name, "manual", DAY, None, NOW)
        ledger.settle(name, "succeeded", exit_code=0)
    ledger.forget("arxlive")
    assert [run.pipeline for run in ledger.history(None, 10)] == ["other"]


def test_a_ledger_of_the_first_release_is_brought_forward_with_its_runs(host: Path) -> None:
    path = paths.LEDGER
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path, isolation_level=None)) as old:
        for statement in MIGRATIONS[0].split(";"):
            old.execute(statement)
        old.execute("PRAGMA user_version = 1")
        old.execute(
            "INSERT INTO runs (id, pipeline, trigger, date, state, outcome, exit_code, claimed_at) VALUES"
            " ('01J', 'arxlive', 'manual', '2026-11-23', 'settled', 'succeeded', 0, '2026-11-23T03:00:00.000000Z')"
        )
    ledger = Ledger(path)
    (run,) = ledger.history("arxlive", 5)
    assert (run.id, run.outcome, run.attempt, run.notice) == ("01J", "succeeded", 1, None)
    ledger.close()


def test_the_recovery_of_a_pipeline_that_failed_before_its_ledger_was_brought_forward_is_news(host: Path) -> None:
    path = paths.LEDGER
    path.parent.mkdir(parents=True, exist_ok=True)
    histories = {
        "well": ("failed", "succeeded"), "failing": ("succeeded", "failed"), "refused": ("timed_out", "skipped"),
        "passed over": ("succeeded", "missed"), "new": (),
    }  # fmt: skip
    with closing(sqlite3.connect(path, isolation_level=None)) as old:
        for migration in MIGRATIONS[:3]:
            for statement in migration.split(";"):
                old.execute(statement)
        old.execute("PRAGMA user_version = 3")
        for name, outcomes in histories.items():
            old.execute("INSERT INTO pipelines (name, registered_at, schedule_since) VALUES (?, '', '')", (name,))
            for number, outcome in enumerate(outcomes):
                old.execute(
                    "INSERT INTO runs (id, pipeline, trigger, date, state, outcome, reason, claimed_at)"
                    " VALUES (?, ?, 'scheduled', '2026-11-23', 'settled', ?, ?, '2026-11-23T03:00:00.000000Z')",
                    (f"{name} {number}", name, outcome, "superseded" if outcome == "missed" else None),
                )
    with closing(Ledger(path)) as ledger:
        told = {name: ledger.trouble(name) for name in histories}
    assert told == {"well": None, "failing": "failed", "refused": "timed_out", "passed over": None, "new": None}


def test_a_slot_whose_retry_was_skipped_is_not_what_a_clock_that_was_ahead_has_noted_of_it(ledger: Ledger) -> None:
    ledger.miss([("Early", NOW, DAY, "too_late", None)], "arxlive", NOW + timedelta(days=3))
    ledger.claim("A", "arxlive", "scheduled", DAY, NOW, NOW)
    ledger.settle("A", "failed", exit_code=30, retry_at=NOW)
    ledger.claim("B", "arxlive", "retry", DAY, NOW, NOW)
    ledger.settle("B", "skipped", reason="budget", exit_code=76)
    assert [row["run"] for row in ledger._select("SELECT run FROM slots")] == ["A"]
    assert {run.id: run.notice for run in ledger.notices()} == {"A": "failed", "Early": "missed"}


def test_a_slot_that_is_given_up_is_told_as_what_came_of_its_last_run(ledger: Ledger) -> None:
    ledger.claim("A", "arxlive", "scheduled", DAY, NOW, NOW)
    ledger.settle("A", "failed", exit_code=30, retry_at=NOW)
    assert ledger.notices() == []  # it is to be tried again
    ledger.give_up("arxlive", NOW)
    ledger.give_up("arxlive", NOW)
    assert [(run.id, run.notice) for run in ledger.notices()] == [("A", "failed")]


def test_a_refused_attempt_hides_no_failure_and_is_not_hidden_by_one(ledger: Ledger) -> None:
    minutes = [NOW + timedelta(minutes=number) for number in range(3)]
    ledger.claim("A", "arxlive", "scheduled", DAY, NOW, NOW)
    ledger.claim("B", "arxlive", "scheduled", DAY, minutes[1], minutes[1])  # refused: A is going
    ledger.settle("A", "failed", exit_code=30, ended_at="2026-11-23T03:01:30.000000Z")
    last = ledger.last("arxlive")
    assert last is not None
    assert (last.id, ledger.skipped_since("arxlive", last)) == ("A", None)
    ledger.claim("C", "arxlive", "scheduled", DAY, minutes[2], minutes[2])
    ledger.settle("C", "skipped", reason="held", exit_code=75)
    later = ledger.skipped_since("arxlive", ledger.last("arxlive"))
    assert later is not None
    assert later.id == "C"


def test_a_ledger_that_was_let_go_and_cannot_be_opened_again_says_so(ledger: Ledger) -> None:
    ledger.let_go()
    lock = ledger.path.with_suffix(".lock")
    lock.unlink(missing_ok=True)
    lock.mkdir()
    with pytest.raises(NotWritable, match="cannot be used"):
        ledger.watched(datetime.now(UTC))
    lock.rmdir()
    ledger.watched(datetime.now(UTC))
    assert ledger.seen()
