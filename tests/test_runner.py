"""One run, from claim to release, with real processes in the place of containers."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import signal
import sqlite3
import sys
import threading
import time
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from conftest import DECLARED, ProcessEngine
from standpipe import backfill, catch_up, cli, paths, runner
from standpipe.engines import CannotStart, Line, compose
from standpipe.errors import AlreadyRunning, ConfigurationError, EngineUnavailable, NotWritable, UsageError
from standpipe.ledger import Ledger, Run, recover, timestamp
from standpipe.logs import spool
from standpipe.pipeline import Pipeline, parse_duration


def declare(**changes: Any) -> None:
    lines = DECLARED.splitlines()
    lines += [f"{key}: {json.dumps(value)}" for key, value in changes.items()]
    (paths.PIPELINES / "arxlive.yml").write_text("\n".join(lines))


def nothing(_told: object) -> None:
    pass


def by_hand(ledger: Ledger, engine: ProcessEngine, day: date | None = None) -> Run:
    run = runner.run(ledger, engine, "arxlive", day, scheduled=False, listen=nothing, say=nothing)
    assert run is not None
    return run


def by_cron(ledger: Ledger, engine: ProcessEngine) -> Run | None:
    return runner.run(ledger, engine, "arxlive", None, scheduled=True, listen=nothing, say=nothing)


def registered_an_hour_ago(ledger: Ledger) -> None:
    ledger.register(Pipeline.model_validate_json(json.dumps(_document())), datetime.now(UTC) - timedelta(hours=1))


def _document() -> Any:
    import yaml

    return yaml.safe_load(DECLARED)


def test_a_run_by_hand_is_recorded_with_all_that_is_known(ledger: Ledger, engine: ProcessEngine) -> None:
    run = by_hand(ledger, engine, date(2026, 11, 20))
    assert (run.outcome, run.exit_code, run.trigger, run.slot, run.date) == (
        "succeeded",
        0,
        "manual",
        None,
        "2026-11-20",
    )
    assert run.commit_id == "c" * 40
    assert engine.arguments == ["--module", "arxlive.tasks", "RootTask", "--date=2026-11-20"]
    assert engine.removed == [run.id]


@pytest.mark.parametrize("code", [1, 10, 20, 25, 30, 35, 40, 137])
def test_a_failure_keeps_its_exit_code_and_is_never_0(ledger: Ledger, engine: ProcessEngine, code: int) -> None:
    engine.program = f"import os; os._exit({code})"
    run = by_hand(ledger, engine)
    assert (run.outcome, run.exit_code, runner.exit_code_of(run)) == ("failed", code, code)


def test_every_line_is_spooled_numbered_and_sealed(ledger: Ledger, engine: ProcessEngine) -> None:
    engine.program = r"import sys; sys.stdout.buffer.write(b'one\n\xff\x00two\n' + 'dr\u00e9i\n'.encode() + b'last')"
    run = by_hand(ledger, engine)
    path = paths.spool("arxlive", run.id)
    records = list(spool.read(path))
    assert [record["seq"] for record in records] == [1, 2, 3, 4, 5]
    assert [spool.text(record) for record in records[:4]] == [b"one", b"\xff\x00two", "dréi".encode(), b"last"]
    lines = path.read_bytes().splitlines(keepends=True)
    assert records[4]["stream"] == "end"
    assert records[4]["count"] == 4
    assert records[4]["sha256"] == hashlib.sha256(b"".join(lines[:4])).hexdigest()
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_a_run_prints_cannot_forge_a_record(ledger: Ledger, engine: ProcessEngine) -> None:
    forged = '{"run": "X", "seq": 1, "stream": "end"}'
    engine.program = f"print({forged!r})"
    run = by_hand(ledger, engine)
    records = list(spool.read(paths.spool("arxlive", run.id)))
    assert [record["run"] for record in records] == [run.id, run.id]
    assert records[0]["text"] == forged


def test_cron_claims_the_newest_slot_once(ledger: Ledger, engine: ProcessEngine) -> None:
    registered_an_hour_ago(ledger)
    run = by_cron(ledger, engine)
    assert run is not None
    assert (run.trigger, run.outcome) == ("scheduled", "succeeded")
    assert run.slot is not None
    assert run.slot >= (datetime.now(UTC) - timedelta(minutes=1, seconds=2)).isoformat()[:16]


def test_cron_without_a_due_slot_starts_nothing(ledger: Ledger, engine: ProcessEngine) -> None:
    assert by_cron(ledger, engine) is None  # its slots exist from now on
    assert ledger.history(None, 10) == []


def test_a_slot_is_claimed_by_one_of_two_that_start_together(ledger: Ledger, engine: ProcessEngine) -> None:
    declare(schedule={"cron": "0 0 1 1 *", "timezone": "UTC", "start_within": "370d"})
    document = _document() | {"schedule": {"cron": "0 0 1 1 *", "timezone": "UTC", "start_within": "370d"}}
    ledger.register(Pipeline.model_validate(document), datetime.now(UTC) - timedelta(days=370))
    first, second = by_cron(ledger, engine), by_cron(ledger, engine)
    assert first is not None
    assert second is None


def test_a_second_run_is_refused_names_the_first_and_is_on_record(ledger: Ledger, engine: ProcessEngine) -> None:
    engine.program = "import time; time.sleep(2)"
    first = threading.Thread(target=lambda: by_hand_in_a_thread(engine), daemon=True)
    first.start()
    wait_for(lambda: any(run.state == "started" for run in ledger.unfinished()))
    holder = ledger.unfinished()[0].id
    with pytest.raises(AlreadyRunning, match=holder):
        by_hand(ledger, engine)
    refused = ledger.history("arxlive", 1)[0]
    assert (refused.outcome, refused.reason, refused.exit_code) == ("skipped", "held", 75)
    first.join()
    assert ledger.run(holder).outcome == "succeeded"  # type: ignore[union-attr]


def by_hand_in_a_thread(engine: ProcessEngine) -> None:
    own = Ledger(paths.LEDGER)
    run_id = "01J00000000000000000000000"
    with contextlib.closing(own), runner.living_runner(own, run_id) as life:
        runner.make_lock("arxlive")
        runner.claim(own, run_id, "arxlive", "manual", date(2026, 11, 23), None)
        pipeline = Pipeline.model_validate(_document())
        container = runner.start(own, engine, run_id, pipeline, date(2026, 11, 23), life)
        runner.follow(own, engine, run_id, "arxlive", container, nothing, nothing)
        runner.settle(own, engine, run_id, "arxlive")


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_an_engine_that_is_away_is_on_record_with_its_slot(
    ledger: Ledger, engine: ProcessEngine, docker_away: CannotStart
) -> None:
    registered_an_hour_ago(ledger)
    engine.refuses = docker_away
    with pytest.raises(CannotStart) as error:
        by_cron(ledger, engine)
    run = ledger.history("arxlive", 1)[0]
    assert error.value.exit_code == 69
    assert (run.outcome, run.reason, run.exit_code) == ("failed", "engine", 69)
    assert run.slot is not None


@pytest.mark.parametrize("step", ["make_lock", "note_holder"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_disk_that_has_no_room_for_a_start_is_on_record_with_its_reason(
    ledger: Ledger, engine: ProcessEngine, monkeypatch: pytest.MonkeyPatch, step: str, code: int
) -> None:
    registered_an_hour_ago(ledger)
    runner.make_lock("arxlive")
    monkeypatch.setattr(runner, "register", lambda ledger, *_known: ledger.registered("arxlive")[0])

    def full(*_asked: str) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(runner, step, full)
    with pytest.raises(CannotStart, match="cannot be written") as error:
        by_cron(ledger, engine)
    run = ledger.history("arxlive", 1)[0]
    assert error.value.exit_code == 73
    assert (run.outcome, run.reason, run.exit_code) == ("failed", "no_space", 73)
    assert [slot for slot, _at in ledger.retries("arxlive")] == [datetime.fromisoformat(run.slot or "")]


@pytest.mark.parametrize("made", [False, True])
def test_an_engine_that_goes_away_during_a_start_says_later_whether_there_is_a_container(
    ledger: Ledger, engine: ProcessEngine, monkeypatch: pytest.MonkeyPatch, made: bool
) -> None:
    start = engine.start

    def lose(*asked: Any) -> None:
        if made:
            start(*asked)
        raise EngineUnavailable("Docker does not answer (ConnectionError)")

    monkeypatch.setattr(engine, "start", lose)
    if made:
        assert by_hand(ledger, engine).outcome == "succeeded"
    else:
        with pytest.raises(EngineUnavailable):
            by_hand(ledger, engine)
        run = ledger.history("arxlive", 1)[0]
        assert (run.outcome, run.reason, run.detail) == (
            "interrupted", "engine", "Docker does not answer (ConnectionError)",
        )  # fmt: skip


def test_a_run_whose_runner_died_before_its_start_says_so(ledger: Ledger, engine: ProcessEngine) -> None:
    ledger.claim("01J", "arxlive", "manual", date(2026, 11, 23), None, datetime.now(UTC))
    runner.reconcile(ledger, engine, wait=False, say=nothing)
    run = ledger.history("arxlive", 1)[0]
    assert (run.outcome, run.detail) == ("interrupted", "its runner died before a container had started")


def test_a_damaged_file_is_78_and_the_slot_has_its_record_all_the_same(ledger: Ledger, engine: ProcessEngine) -> None:
    registered_an_hour_ago(ledger)
    (paths.PIPELINES / "arxlive.yml").write_text("name: [")
    with pytest.raises(ConfigurationError, match="damaged"):
        by_cron(ledger, engine)
    run = ledger.history("arxlive", 1)[0]
    assert (run.outcome, run.exit_code) == ("failed", 78)
    assert run.slot is not None


def test_an_unknown_pipeline_lists_those_that_are_known(ledger: Ledger, engine: ProcessEngine) -> None:
    with pytest.raises(UsageError, match="It knows: arxlive"):
        runner.run(ledger, engine, "nosuch", None, scheduled=False, listen=nothing, say=nothing)


def test_a_run_that_takes_too_long_is_ended_and_recorded_as_timed_out(ledger: Ledger, engine: ProcessEngine) -> None:
    declare(timeout="1s", stop_grace="1s")
    engine.program = "import time; time.sleep(30)"
    run = by_hand(ledger, engine)
    assert (run.outcome, runner.exit_code_of(run)) == ("timed_out", 124)


def test_a_runner_that_is_asked_to_end_stops_its_container_and_says_so(ledger: Ledger, engine: ProcessEngine) -> None:
    engine.program = "import time; print('up'); time.sleep(30)"
    asked = threading.Event()

    def ask(_line: Line) -> None:
        if not asked.is_set():
            asked.set()
            os.kill(os.getpid(), signal.SIGTERM)

    run = runner.run(ledger, engine, "arxlive", None, scheduled=False, listen=ask, say=nothing)
    assert run is not None
    assert (run.outcome, runner.exit_code_of(run)) == ("stopped", 130)


@pytest.mark.parametrize(("code", "outcome"), [(0, "succeeded"), (30, "failed")])
def test_a_run_whose_runner_died_is_settled_by_the_next_with_its_true_exit_code(
    ledger: Ledger, engine: ProcessEngine, code: int, outcome: str
) -> None:
    run_id = "01J00000000000000000000000"
    runner.make_lock("arxlive")
    ledger.register(Pipeline.model_validate(_document()), datetime.now(UTC))
    ledger.claim(run_id, "arxlive", "manual", date(2026, 11, 23), None, datetime.now(UTC))
    engine.program = f"import os; print('left', flush=True); os._exit({code})"
    with runner.living_runner(ledger, run_id) as life:
        engine.start("arxlive", run_id, [], life, None)
    engine.processes[run_id].wait()
    engine.program = "print('next')"
    assert by_hand(ledger, engine).outcome == "succeeded"
    left = ledger.run(run_id)
    assert left is not None
    assert (left.outcome, left.exit_code) == (outcome, code)
    assert next(spool.text(record) for record in spool.read(paths.spool("arxlive", run_id))) == b"left"


def leave_a_run(ledger: Ledger, engine: ProcessEngine, ended: timedelta) -> str:
    """Leave a run whose runner died, of a container that has ended by itself `ended` ago after a minute."""
    run_id = "01J00000000000000000000000"
    runner.make_lock("arxlive")
    ledger.register(Pipeline.model_validate(_document()), datetime.now(UTC))
    ledger.claim(run_id, "arxlive", "manual", date(2026, 11, 23), None, datetime.now(UTC))
    with runner.living_runner(ledger, run_id) as life:
        engine.start("arxlive", run_id, [], life, None)
    engine.processes[run_id].wait()
    at = datetime.now(UTC) - ended
    engine.find("arxlive", run_id)
    engine.made[run_id] = replace(
        engine.made[run_id], started_at=timestamp(at - timedelta(minutes=1)), ended_at=timestamp(at)
    )
    return run_id


def test_a_run_that_is_settled_long_after_its_end_did_not_time_out(ledger: Ledger, engine: ProcessEngine) -> None:
    run_id = leave_a_run(ledger, engine, ended=timedelta(days=1))
    runner.reconcile(ledger, engine, wait=False, say=nothing)
    left = ledger.run(run_id)
    assert left is not None
    assert (left.outcome, left.exit_code) == ("succeeded", 0)


HANGS_ONCE = """
import os, time
hangs = not os.path.exists({flag!r})
open({flag!r}, "w").close()
time.sleep(60 if hangs else 0.5)
"""


@pytest.mark.parametrize("who", ["backfill", "catch-up"])
def test_a_timeout_ends_its_own_run_and_none_that_comes_after_it(
    ledger: Ledger, engine: ProcessEngine, tmp_path: Path, who: str
) -> None:
    declare(timeout="2s", stop_grace="1s")
    engine.program = HANGS_ONCE.format(flag=str(tmp_path / "hung"))
    now = datetime.now(UTC).replace(second=0, microsecond=0)
    todo = [now - timedelta(minutes=minutes) for minutes in (4, 3, 2)]
    ledger.register(Pipeline.model_validate(_document()), now - timedelta(hours=1))
    if who == "backfill":
        backfill.backfill(ledger, engine, "arxlive", todo, nothing, nothing)
    else:
        catch_up.work_through(ledger, engine, "arxlive", [(slot, who) for slot in todo], nothing, nothing)
    ends = [(run.outcome, run.exit_code, run.ending) for run in reversed(ledger.history("arxlive", 9))]
    assert ends == [("timed_out", 124, "timed_out"), ("succeeded", 0, None), ("succeeded", 0, None)]


def test_a_backfill_goes_on_and_bounds_its_runs_when_whoever_looked_on_has_gone(
    ledger: Ledger, engine: ProcessEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(timeout="1s", stop_grace="1s")
    engine.program = "import time; print('hello', flush=True); time.sleep(60)"
    now = datetime.now(UTC).replace(second=0, microsecond=0)
    todo = [now - timedelta(minutes=minutes) for minutes in (4, 3)]
    monkeypatch.setattr(compose, "ComposeEngine", lambda: engine)
    monkeypatch.setattr(backfill, "open_slots", lambda *_arguments: todo)
    monkeypatch.setattr(cli, "pass_on", nothing)
    ledger.let_go()
    child = os.fork()
    if child == 0:
        code = 70
        with contextlib.suppress(BaseException):
            read, write = os.pipe()
            os.dup2(write, 2)
            os.close(read)
            sys.stderr = os.fdopen(2, "w")
            code = cli.main(["backfill", "arxlive", "--from", f"{now:%F}", "--to", f"{now:%F}"])
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 124
    assert [(run.slot, run.outcome) for run in reversed(ledger.history("arxlive", 9))] == [
        (timestamp(slot), "timed_out") for slot in todo
    ]


def test_a_backfill_ends_with_a_run_of_it_that_was_stopped_and_was_done_all_the_same(
    ledger: Ledger, engine: ProcessEngine
) -> None:
    registered_an_hour_ago(ledger)
    engine.program = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); "
        "print('up', flush=True); time.sleep(30)"
    )
    now = datetime.now(UTC).replace(second=0, microsecond=0)
    todo = [now - timedelta(minutes=minutes) for minutes in (4, 3)]

    def stop() -> None:
        own = Ledger(paths.LEDGER)
        while not (run := own.running("arxlive")) or run.state != "started":
            time.sleep(0.05)
        time.sleep(0.5)
        runner.stop(own, engine, "arxlive", "ada", nothing)

    stops = threading.Thread(target=stop)
    stops.start()
    assert backfill.backfill(ledger, engine, "arxlive", todo, nothing, nothing) == 130
    stops.join()
    assert [(run.outcome, run.ending) for run in ledger.history("arxlive", 9)] == [("succeeded", "stopped")]


def test_who_reads_slowly_costs_no_memory_by_lines_however_long(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reads = threading.Event()
    monkeypatch.setattr(cli, "show_line", lambda _line: reads.wait(30))
    viewer = cli.Viewer()
    line = Line("2026-11-23T03:00:00Z", "stdout", b"x" * 1_000_000)
    for _ in range(100):
        viewer(line)
    reads.set()
    viewer.close()
    assert "lines came too fast to be shown" in capsys.readouterr().err
    assert viewer._taken <= viewer.MOST + len(line.data)


@pytest.mark.parametrize("who", ["look", "catch-up", "backfill"])
def test_a_slot_waits_for_whoever_settles_the_run_before_it(
    ledger: Ledger, engine: ProcessEngine, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    registered_an_hour_ago(ledger)
    left = leave_a_run(ledger, engine, ended=timedelta())
    ledger.let_go()
    child = os.fork()
    if child == 0:
        find = engine.find

        def slowly(pipeline: str, run: str) -> Any:
            time.sleep(0.5)
            return find(pipeline, run)

        with contextlib.suppress(BaseException):
            engine.find = slowly  # type: ignore[method-assign]
            if who == "look":
                runner.settle_for_a_look(ledger, engine)
            elif who == "catch-up":
                catch_up.work_through(ledger, engine, "arxlive", [], nothing, nothing)
            else:
                with runner.stop_requests() as requests:
                    backfill.wait_until_free(ledger, engine, "arxlive", requests, nothing)
        os._exit(0)
    while not runner.has_living_runner(left):
        time.sleep(0.01)
    time.sleep(0.1)
    run = by_cron(ledger, engine)
    os.waitpid(child, 0)
    assert run
    assert (run.outcome, run.trigger) == ("succeeded", "scheduled")


def test_a_connection_that_breaks_costs_no_line(ledger: Ledger, engine: ProcessEngine) -> None:
    engine.program = "for number in range(5): print(number)"
    engine.break_after = 2
    run = by_hand(ledger, engine)
    records = list(spool.read(paths.spool("arxlive", run.id)))
    assert [spool.text(record) for record in records[:-1]] == [b"0", b"1", b"2", b"3", b"4"]


def test_a_container_that_cannot_be_removed_yet_does_not_change_the_outcome(
    ledger: Ledger, engine: ProcessEngine
) -> None:
    engine.refuses_removal = EngineUnavailable("device or resource busy")
    run = by_hand(ledger, engine)
    assert (run.outcome, runner.exit_code_of(run)) == ("succeeded", 0)
    engine.refuses_removal = None
    runner.reconcile(ledger, engine, wait=False, say=nothing)
    assert engine.removed == [run.id]


def test_a_removed_pipeline_names_no_slots_any_more(ledger: Ledger, engine: ProcessEngine) -> None:
    registered_an_hour_ago(ledger)
    (paths.PIPELINES / "arxlive.yml").unlink()
    runner.reconcile(ledger, engine, wait=False, say=nothing)
    assert [known.schedule for known in ledger.registered()] == [None]
    now = datetime.now(UTC)
    ledger.register(Pipeline.model_validate(_document()), now)  # and when it comes back, it begins anew
    assert ledger.registered("arxlive")[0].schedule_since == now


def test_a_run_without_a_container_was_interrupted(ledger: Ledger, engine: ProcessEngine) -> None:
    ledger.claim("01J00000000000000000000000", "arxlive", "manual", date(2026, 11, 23), None, datetime.now(UTC))
    ledger.started("01J00000000000000000000000", "gone", None, None, "sha256:0")
    runner.reconcile(ledger, engine, wait=False, say=nothing)
    assert [run.outcome for run in ledger.history("arxlive", 5)] == ["interrupted"]


def test_the_lock_file_is_made_once_and_never_replaced(host: Path) -> None:
    runner.make_lock("arxlive")
    before = (paths.LOCKS / "arxlive/lock").stat()
    runner.make_lock("arxlive")
    after = (paths.LOCKS / "arxlive/lock").stat()
    assert (before.st_ino, after.st_mode & 0o777) == (after.st_ino, 0o444)


def test_a_changed_schedule_names_slots_from_its_change_on(ledger: Ledger) -> None:
    registered_an_hour_ago(ledger)
    document = _document() | {"schedule": {"cron": "*/2 * * * *", "timezone": "UTC"}}
    now = datetime.now(UTC)
    ledger.register(Pipeline.model_validate(document), now)
    known = ledger.registered()[0]
    assert known.schedule_since == now
    assert runner.due_slot(ledger, known, now) is None


@pytest.mark.parametrize(("text", "seconds"), [("4h", 14400), ("1h30m", 5400), ("90", 90), ("2d", 172800)])
def test_durations_are_read_as_people_write_them(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("why", ["stopped", "timed_out"])
def test_a_run_that_is_done_by_itself_has_succeeded_though_it_was_about_to_be_ended(
    ledger: Ledger, engine: ProcessEngine, why: str
) -> None:
    run_id = leave_a_run(ledger, engine, ended=timedelta())
    ledger.ending(run_id, why, "by ada")  # and whoever was to stop it was killed, or came too late
    runner.reconcile(ledger, engine, wait=False, say=nothing)
    left = ledger.run(run_id)
    assert left is not None
    assert (left.outcome, left.exit_code, left.detail) == ("succeeded", 0, "by ada")


@pytest.mark.parametrize(("rebooted", "outcome"), [(False, "succeeded"), (True, "interrupted")])
def test_a_clock_that_is_set_during_a_run_is_no_reboot(
    ledger: Ledger, engine: ProcessEngine, monkeypatch: pytest.MonkeyPatch, rebooted: bool, outcome: str
) -> None:
    run_id, now = leave_a_run(ledger, engine, ended=timedelta(hours=1)), datetime.now(UTC)
    with contextlib.closing(sqlite3.connect(paths.LEDGER)) as db:
        db.execute("UPDATE runs SET boot = ?", (runner.boot_identity(),))
        db.commit()
    engine.made[run_id] = replace(engine.made[run_id], started_at=timestamp(now - timedelta(hours=3)))
    monkeypatch.setattr(runner, "boot_time", lambda: now - timedelta(hours=2))  # by the clock that was set
    if rebooted:
        monkeypatch.setattr(runner, "boot_identity", lambda: "another")
    runner.reconcile(ledger, engine, wait=False, say=nothing)
    left = ledger.run(run_id)
    assert left is not None
    assert left.outcome == outcome


@pytest.mark.parametrize(("who", "outcome"), [(None, "interrupted"), ("by ada", "stopped")])
def test_a_run_that_the_host_s_end_stopped_is_interrupted_and_one_that_somebody_stopped_is_stopped(
    ledger: Ledger, engine: ProcessEngine, monkeypatch: pytest.MonkeyPatch, who: str | None, outcome: str
) -> None:
    engine.program = "import os; os._exit(25)"
    run_id = leave_a_run(ledger, engine, ended=timedelta(minutes=5))
    ledger.ending(run_id, "stopped", who)
    monkeypatch.setattr(runner, "boot_time", lambda: datetime.now(UTC))
    monkeypatch.setattr(runner, "boot_identity", lambda: "another")
    runner.reconcile(ledger, engine, wait=False, say=nothing)
    left = ledger.run(run_id)
    assert left is not None
    assert (left.outcome, left.reason) == (outcome, "host_down" if who is None else None)


def test_a_runner_that_is_ended_when_docker_has_gone_already_notes_that(
    ledger: Ledger, engine: ProcessEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.program = "import time; print('up'); time.sleep(2); import os; os._exit(25)"
    found, asked = engine.find, threading.Event()

    def find(pipeline: str, run: str) -> Any:
        if asked.is_set() and threading.current_thread() is not threading.main_thread():
            raise EngineUnavailable("Docker is away")
        return found(pipeline, run)

    def ask(_line: Line) -> None:
        asked.set()
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(engine, "find", find)
    run = runner.run(ledger, engine, "arxlive", None, scheduled=False, listen=ask, say=nothing)
    assert run is not None
    assert (run.ending, run.outcome) == ("stopped", "stopped")


def let_systemd_say(host: Path, word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (host / "systemctl").write_text(f"#!/bin/sh\necho {word}\n")
    (host / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{host}:{os.environ['PATH']}")


@pytest.mark.parametrize(("systemd", "outcome"), [("stopping", "interrupted"), ("degraded", "stopped")])
def test_a_runner_that_is_ended_with_its_host_has_its_slot_tried_again(
    ledger: Ledger, engine: ProcessEngine, host: Path, monkeypatch: pytest.MonkeyPatch, systemd: str, outcome: str
) -> None:
    registered_an_hour_ago(ledger)
    let_systemd_say(host, systemd, monkeypatch)
    engine.program = "import time; print('up'); time.sleep(30)"

    def ask(_line: Line) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    run = runner.run(ledger, engine, "arxlive", None, scheduled=True, listen=ask, say=nothing)
    assert run is not None
    assert (run.outcome, bool(ledger.retries("arxlive"))) == (outcome, outcome == "interrupted")


@pytest.mark.parametrize(
    ("code", "outcome"), [(0, "succeeded"), (25, "interrupted"), (143, "interrupted"), (30, "failed")]
)
def test_a_container_that_a_signal_ended_while_the_host_goes_down_is_interrupted(
    ledger: Ledger, engine: ProcessEngine, host: Path, monkeypatch: pytest.MonkeyPatch, code: int, outcome: str
) -> None:
    let_systemd_say(host, "stopping", monkeypatch)
    engine.program = f"import os; os._exit({code})"
    assert by_hand(ledger, engine).outcome == outcome


def test_a_ledger_that_is_set_aside_during_a_run_has_its_outcome_in_the_new_one(
    ledger: Ledger, engine: ProcessEngine
) -> None:
    declare(schedule=None)
    engine.program = "import time; print('up', flush=True); time.sleep(1)"
    recovered: list[int] = []

    def set_aside(_line: Line) -> None:
        with contextlib.closing(sqlite3.connect(paths.LEDGER)) as whole:
            whole.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            (page,) = whole.execute("SELECT rootpage FROM sqlite_master WHERE name = 'runs_by_outcome'").fetchone()
        with paths.LEDGER.open("r+b") as file:
            file.seek((page - 1) * 4096)
            file.write(b"\xff" * 4096)
        recovered.append(recover(paths.LEDGER, datetime.now(UTC), nothing))

    run = runner.run(ledger, engine, "arxlive", None, scheduled=False, listen=set_aside, say=nothing)
    assert recovered == [1]
    assert run is not None
    with contextlib.closing(Ledger(paths.LEDGER)) as fresh:
        assert [(one.id, one.outcome) for one in fresh.history("arxlive", 9)] == [(run.id, "succeeded")]


def test_a_run_whose_record_was_lost_meanwhile_says_so_and_is_not_taken_for_none(
    ledger: Ledger, engine: ProcessEngine
) -> None:
    declare(schedule=None)

    def lose(_line: Line) -> None:
        with contextlib.closing(sqlite3.connect(paths.LEDGER)) as db:
            db.execute("DELETE FROM runs")
            db.commit()

    with pytest.raises(NotWritable, match=r"record of arxlive's run .* is lost"):
        runner.run(ledger, engine, "arxlive", None, scheduled=False, listen=lose, say=nothing)


def test_a_ledger_that_is_damaged_while_a_run_goes_on_has_nothing_started_a_second_time(
    ledger: Ledger, engine: ProcessEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(schedule=None)
    monkeypatch.setattr(compose, "ComposeEngine", lambda: engine)
    engine.program = "import time; time.sleep(0.5)"
    start = engine.start

    def start_and_damage(*arguments: Any) -> None:
        start(*arguments)
        (row,) = ledger._select("SELECT rootpage FROM sqlite_master WHERE name = 'runs'")
        ledger.sync()
        with paths.LEDGER.open("r+b") as file:
            file.seek((row["rootpage"] - 1) * 4096)
            file.write(b"\xff" * 4096)
        ledger._connection.execute("CREATE TABLE unread (one TEXT)")  # what a process has cached is no longer valid

    monkeypatch.setattr(engine, "start", start_and_damage)
    assert cli.main(["run", "arxlive"]) == 73
    assert len(engine.processes) == 1
    (left,) = paths.RUNNERS.iterdir()
    assert [left.name] == list(engine.processes)


@pytest.mark.parametrize("collector", [False, True])
def test_a_container_whose_run_the_ledger_has_lost_is_taken_in_and_settled_by_its_own_word(
    ledger: Ledger, engine: ProcessEngine, monkeypatch: pytest.MonkeyPatch, collector: bool
) -> None:
    monkeypatch.setattr(runner, "has_collector", lambda: collector)
    declare(schedule=None)
    for number, program in enumerate(("print('well')", "import os; os._exit(30)")):
        engine.program = program
        engine.start("arxlive", f"LOST{number}", [], os.open(os.devnull, os.O_RDONLY), None)
        engine.wait(f"LOST{number}")
        runner.reconcile(ledger, engine, wait=False, say=nothing)
    assert engine.holder("arxlive") is None
    runs = [(run.id, run.outcome, run.detail) for run in reversed(ledger.history("arxlive", 9))]
    assert runs == [("LOST0", "succeeded", "its record was lost"), ("LOST1", "failed", "its record was lost")]
    assert next(spool.text(record) for record in spool.read(paths.spool("arxlive", "LOST0"))) == b"well"
    assert [run.id for run in ledger.unconfirmed()] == (["LOST0", "LOST1"] if collector else [])
    assert engine.removed == ([] if collector else ["LOST0", "LOST1"])


def test_a_run_that_is_looked_after_or_of_no_pipeline_here_is_not_taken_in(
    ledger: Ledger, engine: ProcessEngine
) -> None:
    declare(schedule=None)
    with runner.living_runner(ledger, "LIVES") as life:
        engine.start("arxlive", "LIVES", [], life, None)
        engine.start("removed", "GONE", [], life, None)
        runner.release_the_settled(ledger, engine)
    assert ledger.history(None, 9) == []


def test_who_holds_a_lock_is_named_by_its_run_where_it_has_one(
    ledger: Ledger, engine: ProcessEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.program = "import time; time.sleep(60)"
    engine.start("arxlive", "LOST", [], os.open(os.devnull, os.O_RDONLY), None)
    by_hand = replace(engine.made["LOST"], run=None, name="docker-luigi-run-1")
    for containers, named in (
        ([engine.made["LOST"]], "run LOST"),
        ([by_hand], "the container docker-luigi-run-1, which was started by hand"),
        ([], "a container, which was started by hand"),
    ):
        monkeypatch.setattr(engine, "sharing_lock", lambda _name, found=containers: found)
        assert runner.holder_in_container(engine, "arxlive") == named


class UnwantedEngine:
    """One that says when it is asked."""

    def __getattr__(self, question: str) -> Any:
        raise AssertionError(f"the engine was asked: {question}")


def test_whoever_looks_settles_what_has_ended_and_waits_for_nothing_that_runs(
    ledger: Ledger, engine: ProcessEngine
) -> None:
    run_id = leave_a_run(ledger, engine, ended=timedelta())
    ledger.claim("B", "slow", "manual", date(2026, 11, 23), None, datetime.now(UTC))
    engine.program = "import time; time.sleep(30)"
    with runner.living_runner(ledger, "B") as life:
        engine.start("slow", "B", [], life, None)
    began = time.monotonic()
    assert runner.settle_for_a_look(ledger, engine)  # something runs that nobody follows
    assert time.monotonic() - began < 5
    assert [run.outcome for run in (ledger.run(run_id), ledger.run("B")) if run] == ["succeeded", None]
    assert [run.id for run in runner.abandoned(ledger, but="arxlive")] == ["B"]


def test_whoever_looks_asks_no_engine_about_a_run_whose_runner_lives(ledger: Ledger, host: Path) -> None:
    ledger.claim("B", "slow", "manual", date(2026, 11, 23), None, datetime.now(UTC))
    with runner.living_runner(ledger, "B"):
        assert not runner.settle_for_a_look(ledger, UnwantedEngine())
        assert runner.abandoned(ledger, but="arxlive") == []


def test_whoever_looks_is_shown_what_there_is_while_the_engine_is_away(
    ledger: Ledger, engine: ProcessEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = leave_a_run(ledger, engine, ended=timedelta())

    def away(_pipeline: str, _run: str) -> None:
        raise EngineUnavailable("Docker is away")

    monkeypatch.setattr(engine, "find", away)
    runner.settle_for_a_look(ledger, engine)
    assert [run.id for run in ledger.unfinished()] == [run_id]


def test_cron_s_line_without_a_due_slot_settles_what_a_dead_runner_left(ledger: Ledger, engine: ProcessEngine) -> None:
    run_id = leave_a_run(ledger, engine, ended=timedelta())
    assert by_cron(ledger, engine) is None
    left = ledger.run(run_id)
    assert left is not None
    assert left.outcome == "succeeded"


def test_a_run_that_its_own_entrypoint_refused_says_who_was_in_the_way(ledger: Ledger, engine: ProcessEngine) -> None:
    engine.program = "import os; os._exit(75)"
    run = by_hand(ledger, engine)
    assert (run.outcome, run.reason, run.exit_code) == ("skipped", "held", 75)
    assert run.detail == "held by a container, which was started by hand"


def test_a_runner_that_dies_between_two_words_names_no_holder_that_is_none(
    ledger: Ledger, engine: ProcessEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(schedule=None)

    def die(*_arguments: object, **_named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "conclude", die)
    with pytest.raises(KeyboardInterrupt):
        by_hand(ledger, engine)
    assert (paths.LOCKS / "arxlive" / "holder").read_text() == ""


def test_a_run_waits_for_whoever_settles_the_one_before_it(ledger: Ledger, engine: ProcessEngine) -> None:
    run_id = leave_a_run(ledger, engine, ended=timedelta())
    begun = threading.Event()

    def settle() -> None:
        with contextlib.closing(Ledger(paths.LEDGER)) as own, runner.living_runner(own, run_id, settling=True):
            begun.set()
            time.sleep(0.5)
            runner.settle_one(own, engine, run_id, nothing, wait=False)

    looks = threading.Thread(target=settle, daemon=True)
    looks.start()
    begun.wait(10)
    assert by_hand(ledger, engine).outcome == "succeeded"
    looks.join()
    assert [run.outcome for run in ledger.history("arxlive", 5)] == ["succeeded", "succeeded"]
