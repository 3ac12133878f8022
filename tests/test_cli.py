"""What the commands that only read show, to people and to programs."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from conftest import DECLARED, ProcessEngine
from standpipe import paths, runner
from standpipe.cli import main, show_line
from standpipe.engines import Line
from standpipe.ledger import Ledger
from standpipe.logs import spool
from standpipe.pipeline import Pipeline

RUN = "01J00000000000000000000000"


@pytest.fixture
def ran(ledger: Ledger) -> Path:
    """A host on which one run of arxlive has failed with a log of three lines; return its spool."""
    import yaml

    now = datetime(2026, 11, 23, 3, tzinfo=UTC)
    ledger.register(Pipeline.model_validate(yaml.safe_load(DECLARED)), now)
    ledger.claim(RUN, "arxlive", "scheduled", date(2026, 11, 23), now, now)
    ledger.started(RUN, "c1", "2026-11-23T03:00:01.5Z", "c" * 40, "sha256:0")
    path = paths.spool("arxlive", RUN)
    with spool.Spool(path, RUN) as file:
        for data in (b"one", b"\x1b[2Jcleared \xe2\x80\xae", b"\xff\x00"):
            file.write(Line("2026-11-23T03:00:02Z", "stderr", data))
        file.finish()
    ledger.settle(RUN, "failed", exit_code=30, ended_at="2026-11-23T03:01:06.5Z")
    return path


def test_history_is_a_table_for_people(ran: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["history"]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["RUN", "PIPELINE", "DATE", "OUTCOME", "EXIT", "TOOK", "COMMIT", "BY"]
    assert row.split() == [RUN, "arxlive", "2026-11-23", "failed", "30", "1m05s", "cccccccc", "cron"]


def test_history_has_the_words_of_the_contract_for_programs(ran: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["history", "arxlive", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "schema": 1,
        "runs": [
            {
                "id": RUN,
                "pipeline": "arxlive",
                "slot": "2026-11-23T03:00:00.000000Z",
                "trigger": "scheduled",
                "outcome": "failed",
                "reason": None,
                "exit_code": 30,
                "started_at": "2026-11-23T03:00:01.5Z",
                "ended_at": "2026-11-23T03:01:06.5Z",
                "commit": "c" * 40,
                "image": "sha256:0",
                "receipt": None,
            }
        ],
    }


def test_status_shows_the_last_run_and_the_next_slots(ran: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--json", "--next", "3"]) == 0
    (pipeline,) = json.loads(capsys.readouterr().out)["pipelines"]
    assert (pipeline["name"], pipeline["running"], pipeline["last"]["id"]) == ("arxlive", None, RUN)
    assert len(pipeline["next"]) == 3


def test_a_log_cannot_drive_a_terminal_unless_it_is_asked_for_raw(
    ran: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert main(["logs", "arxlive"]) == 0
    assert capfdbinary.readouterr().out == b"one\n\\x1b[2Jcleared \\u202e\n\\xff\\x00\n"
    assert main(["logs", "arxlive", "--raw"]) == 0
    assert capfdbinary.readouterr().out == b"one\n\x1b[2Jcleared \xe2\x80\xae\n\xff\x00\n"


def forge(path: Path) -> None:
    """Have another spool in its place, closed as if it had always been that."""
    with spool.Spool(path.with_suffix(".forged"), RUN) as file:
        file.write(Line("2026-11-23T03:00:02Z", "stderr", b"all is well"))
        file.finish()
    path.with_suffix(".forged").rename(path)


def change(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"one", b"own"))


def cut_off(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 20)


@pytest.mark.parametrize("harm", [forge, change, cut_off])
def test_a_spool_that_was_changed_after_it_was_closed_is_shown_and_told(
    ran: Path, ledger: Ledger, harm: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    ledger.closed(RUN, spool.end_of(ran))
    assert main(["logs", "arxlive"]) == 0
    harm(ran)
    capsys.readouterr()
    assert main(["logs", "arxlive"]) == 70
    shown = capsys.readouterr()
    assert shown.out.splitlines()[0] in ("one", "own", "all is well")
    assert "is not what it was closed with" in shown.err


def test_a_log_that_is_confirmed_while_it_is_shown_is_what_it_was(ran: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = spool.read

    def meanwhile(path: Path, growing: Callable[[], bool]) -> Iterator[dict[str, object]]:
        yield from read(path, growing)
        spool.put_by(ran)

    monkeypatch.setattr(spool, "read", meanwhile)
    assert main(["logs", "arxlive"]) == 0
    assert not ran.exists()


def test_records_for_programs_cannot_drive_a_terminal_either(
    ledger: Ledger, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    ledger.claim(RUN, "arxlive", "manual", date(2026, 11, 23), None, datetime(2026, 11, 23, 3, tzinfo=UTC))
    ledger.started(RUN, "c1", None, None, "")
    written = "\x9b2J\x9d0;title\x9c \u202e é"
    with spool.Spool(paths.spool("arxlive", RUN), RUN) as file:
        file.write(Line("2026-11-23T03:00:02Z", "stdout", written.encode()))
        file.finish()
    ledger.settle(RUN, "failed", exit_code=30)
    assert main(["logs", "arxlive", "--json"]) == 0
    shown = capfdbinary.readouterr().out
    assert shown.isascii()
    assert json.loads(shown.splitlines()[0])["text"] == written


def test_a_run_that_is_shown_as_it_goes_cannot_drive_a_terminal_behind_a_pipe(
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    show_line(Line("2026-11-23T03:00:02Z", "stdout", b"\x1b]0;title\x07 and \x9b2J"))
    show_line(Line("2026-11-23T03:00:02Z", "stderr", "\u202e\x9b".encode()))
    shown = capfdbinary.readouterr()
    assert shown.out == b"\\x1b]0;title\\x07 and \\x9b2J\n"
    assert shown.err == b"\\u202e\\x9b\n"


@pytest.mark.parametrize("command", [["status", "nosuch"], ["history", "nosuch"], ["logs", "nosuch"]])
def test_an_unknown_pipeline_lists_those_that_are_known(
    ran: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command) == 2
    assert "It knows: arxlive" in capsys.readouterr().err


def test_a_run_that_is_not_there_lists_the_newest(ran: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["logs", "arxlive", "--run", "01J0000000000000000000000Z"]) == 2
    assert f"Its newest runs: {RUN}" in capsys.readouterr().err


def test_a_damaged_ledger_is_named_with_what_to_do(host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths.LEDGER.parent.mkdir(parents=True, exist_ok=True)
    paths.LEDGER.write_bytes(b"this is no database" * 100)
    assert main(["history"]) == 0
    (aside,) = paths.LEDGER.parent.glob("ledger.sqlite3.damaged-*")
    assert capsys.readouterr().err.splitlines() == [
        f"standpipe: the ledger was damaged: it is kept as {aside}",
        "standpipe: 0 runs were recovered from it",
    ]
    assert aside.read_bytes().startswith(b"this is no database")
    assert main(["history"]) == 0
    assert capsys.readouterr().err == ""


def test_the_runs_of_a_damaged_ledger_are_recovered(
    ledger: Ledger, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = datetime(2026, 11, 23, 3, tzinfo=UTC)
    for number in range(2000):
        run = f"01J{number:023}"
        ledger.claim(run, "arxlive", "manual", date(2026, 11, 23), None, now)
        ledger.settle(run, "succeeded", exit_code=0)
    ledger.close()
    data = bytearray(paths.LEDGER.read_bytes())
    middle = len(data) // 2 // 4096 * 4096
    data[middle : middle + 4096] = b"\xff" * 4096
    paths.LEDGER.write_bytes(data)
    monkeypatch.setattr("standpipe.engines.compose.ComposeEngine.containers", lambda _self: [])
    monkeypatch.setattr("standpipe.engines.compose.ComposeEngine.discard_images", lambda *_arguments: [])
    monkeypatch.setattr("standpipe.engines.compose.ComposeEngine.discard_networks", lambda *_arguments: [])
    assert main(["reconcile", "--no-wait"]) == 0
    told = capsys.readouterr().err
    assert "runs were recovered" in told
    fresh = Ledger(paths.LEDGER)
    recovered = len(fresh.history("arxlive", 5000))
    fresh.close()
    assert 1900 <= recovered <= 2000


def test_a_spool_is_closed_once_and_one_that_was_cut_off_is_closed_as_it_is(ran: Path) -> None:
    assert spool.is_closed(ran)
    whole = ran.read_bytes()
    ran.write_bytes(whole[: whole.index(b"\n", 120) + 20])  # two lines and a half
    assert not spool.is_closed(ran)
    spool.close_as_it_is(ran, RUN)
    records = list(spool.read(ran))
    assert spool.is_closed(ran)
    assert [record["stream"] for record in records][-2:] == ["standpipe", "end"]
    assert spool.text(records[-2]) == spool.REMOVED.encode()
    assert records[-1]["count"] == len(records) - 1
    before = ran.read_bytes()
    spool.close_as_it_is(ran, RUN)
    assert ran.read_bytes() == before


def test_nobody_who_looks_on_holds_up_a_run() -> None:
    read, write = os.pipe()
    program = (
        "from standpipe.cli import Viewer, tell\n"
        "from standpipe.engines import Line\n"
        "import sys\n"
        "viewer = Viewer()\n"
        "for number in range(100_000): viewer(Line('t', 'stdout', b'x' * 100))\n"
        "tell('all taken', sys.stderr)\n"
        "viewer.close()\n"
        "tell('gone', sys.stdout)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", program], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert child.stderr is not None
    assert child.stderr.readline() == "all taken\n"  # though nobody has read a line
    os.close(read)
    assert child.wait(timeout=30) == 0  # and though nobody ever will
    child.stderr.close()


def damage(first: int, pages: int = 1) -> None:
    data = bytearray(paths.LEDGER.read_bytes())
    data[first * 4096 : (first + pages) * 4096] = b"\xff" * 4096 * pages
    paths.LEDGER.write_bytes(data)


@pytest.mark.parametrize("page", [2, 3, -2])
def test_damage_that_is_met_after_the_opening_is_healed_by_the_command_that_meets_it(
    ledger: Ledger, page: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = datetime.now(UTC) - timedelta(days=2)
    for number in range(2000):
        run, slot = f"01J{number:023}", begun + timedelta(minutes=number)
        ledger.claim(run, "arxlive", "scheduled", slot.date(), slot, slot)
        ledger.settle(run, "succeeded", exit_code=0)
    ledger.close()
    damage(page if page > 0 else paths.LEDGER.stat().st_size // 4096 + page)
    pinged: list[object] = []
    monkeypatch.setattr("standpipe.notify.ping", pinged.append)
    monkeypatch.setattr("standpipe.catch_up.work_through", lambda *_arguments: None)
    assert main(["catch-up"]) == 0
    assert main(["history", "--limit", "5000"]) == 0
    told = capsys.readouterr().err
    assert "runs were recovered" in told
    assert len(list(paths.LEDGER.parent.glob("ledger.sqlite3.damaged-????????T??????Z"))) == 1
    assert len(pinged) == 1


def test_the_dead_man_s_switch_hears_nothing_of_a_catch_up_that_failed(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinged: list[object] = []
    monkeypatch.setattr("standpipe.notify.ping", pinged.append)
    monkeypatch.setattr("standpipe.catch_up.catch_up", lambda *_arguments: 1)
    assert main(["catch-up"]) == 70
    assert pinged == []


@pytest.mark.parametrize("name", [".", "..", "nosuch"])
def test_only_a_pipeline_that_is_known_is_forgotten(ran: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (paths.PIPELINES / "arxlive.yml").unlink()
    assert main(["reconcile", "--forget", name]) == 2
    assert "It knows: arxlive" in capsys.readouterr().err
    assert ran.exists()
    assert main(["reconcile", "--forget", "arxlive"]) == 0
    assert not ran.parent.exists()
    assert paths.SPOOL.exists()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["backfill", "arxlive", "--from", "2026-11-01", "--to", "9999-12-31", "--dry-run"], 0),
        (["backfill", "arxlive", "--from", "9999-12-31", "--to", "9999-12-31", "--dry-run"], 0),
        (["backfill", "arxlive", "--from", "0001-01-01", "--to", "0001-01-02", "--dry-run"], 2),
    ],
)
def test_dates_at_the_ends_of_time_are_no_errors_of_standpipe(
    ledger: Ledger, arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    declared = DECLARED.replace('"* * * * *", timezone: UTC', '"0 3 * * *", timezone: Asia/Tokyo')
    (paths.PIPELINES / "arxlive.yml").write_text(declared)
    begun = time.monotonic()
    assert main(arguments) == code
    assert time.monotonic() - begun < 5
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["status", "arxlive", "--next", "-1"], ["history", "--limit", "-1"]])
def test_a_negative_number_of_lines_is_wrong_usage(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2


def test_status_shows_a_failure_and_that_a_slot_was_refused_since(
    ran: Path, ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    now = datetime.now(UTC)
    ledger.claim("02J", "arxlive", "scheduled", now.date(), now, now)
    ledger.settle("02J", "skipped", reason="held", exit_code=75)
    assert main(["status"]) == 0
    assert "failed, then held  30 " in capsys.readouterr().out
    assert main(["status", "--json"]) == 0
    (pipeline,) = json.loads(capsys.readouterr().out)["pipelines"]
    assert (pipeline["last"]["id"], pipeline["skipped_since"]["id"]) == (RUN, "02J")


@pytest.mark.parametrize("command", [["status"], ["history"], ["logs", "arxlive"], ["doctor"]])
def test_whoever_looks_has_a_run_that_goes_on_without_its_runner_followed(
    ran: Path, ledger: Ledger, engine: ProcessEngine, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    begun: list[tuple[str, ...]] = []
    monkeypatch.setattr("standpipe.engines.compose.ComposeEngine", lambda: engine)
    monkeypatch.setattr("standpipe.cli.in_another_process", lambda *command: begun.append(command))
    main(command)
    assert begun == []
    ledger.claim("02J", "arxlive", "manual", date(2026, 11, 23), None, datetime.now(UTC))
    engine.program = "import time; time.sleep(30)"
    with runner.living_runner(ledger, "02J") as life:
        engine.start("arxlive", "02J", [], life, None)
        main(command)
        assert begun == []
    main(command)
    assert begun == [("reconcile", "--follow")]


def test_what_follows_a_run_in_passing_settles_it_notes_that_and_leaves_images_alone(
    ran: Path, ledger: Ledger, engine: ProcessEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted: list[str] = []
    monkeypatch.setattr("standpipe.engines.compose.ComposeEngine", lambda: engine)
    monkeypatch.setattr("standpipe.cli.note", noted.append)
    monkeypatch.setattr(engine, "discard_images", pytest.fail)
    ledger.claim("02J", "arxlive", "manual", date(2026, 11, 23), None, datetime.now(UTC))
    engine.program = "import time; time.sleep(1)"
    with runner.living_runner(ledger, "02J") as life:
        engine.start("arxlive", "02J", [], life, None)
    assert main(["reconcile", "--follow"]) == 0
    assert ledger.history("arxlive", 1)[0].outcome == "succeeded"
    assert any("whose runner died" in one for one in noted)


def test_a_run_that_is_refused_by_one_without_its_runner_has_that_followed(
    ran: Path, ledger: Ledger, engine: ProcessEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[tuple[str, ...]] = []
    monkeypatch.setattr("standpipe.engines.compose.ComposeEngine", lambda: engine)
    monkeypatch.setattr("standpipe.cli.in_another_process", lambda *command: begun.append(command))
    ledger.claim("02J", "arxlive", "manual", date(2026, 11, 23), None, datetime.now(UTC))
    engine.program = "import time; time.sleep(30)"
    with runner.living_runner(ledger, "02J") as life:
        engine.start("arxlive", "02J", [], life, None)
        assert main(["run", "arxlive"]) == 75
        assert begun == []
    assert main(["run", "arxlive"]) == 75
    assert begun == [("reconcile", "--follow")]


def test_a_stop_names_a_container_by_hand_that_is_no_run(ran: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runner.make_lock("arxlive")
    assert main(["stop", "arxlive"]) == 0
    assert "nothing is running" in capsys.readouterr().out
    with (paths.LOCKS / "arxlive" / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(["stop", "arxlive"]) == 75
    assert "has no run to stop; its lock is held by a container" in capsys.readouterr().err


def test_the_command_ends_with_its_code_whatever_becomes_of_its_output() -> None:
    with Path("/dev/full").open("w") as full:
        answer = subprocess.run(
            [sys.executable, "-m", "standpipe", "validate"],
            input='{"pipelines": []}', stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert answer.returncode == 73
    assert answer.stderr == "standpipe: the disk cannot be written: No space left on device\n"
    assert subprocess.run(
        ["bash", "-c", f"""echo '{{"pipelines": []}}' | {sys.executable} -m standpipe validate >&- 2>&-"""], check=False
    ).returncode == 0  # fmt: skip


@pytest.mark.parametrize(("known", "code"), [("", 0), ("hidden-hidden-hidden", 78)])
def test_whoever_has_read_enough_changes_no_exit_code(tmp_path: Path, known: str, code: int) -> None:
    (tmp_path / "file").write_text("hidden-hidden-hidden")
    read, write = os.pipe()
    os.close(read)
    answer = subprocess.run(
        [sys.executable, "-m", "standpipe", "scan", "--files", str(tmp_path), "--known", "-"],
        input=known, stdout=write, stderr=subprocess.PIPE, text=True, check=False,
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
    )  # fmt: skip
    os.close(write)
    assert (answer.returncode, answer.stderr) == (code, "")
