"""The collector's alarms: passed on to people, and seen by its doctor."""

from __future__ import annotations

import json
import os
import sys
import time
import tracemalloc
from pathlib import Path

import pytest

from conftest import have_certificates
from standpipe import cli, notify, paths
from standpipe.logs import alarms

JOURNAL = f"""#!{sys.executable}
import json, os, sys
lines = open(os.environ["STANDPIPE_TEST_JOURNAL"]).read().splitlines()
after = [argument.partition("=")[2] for argument in sys.argv if argument.startswith("--after-cursor=")]
cursors = [json.loads(line)["__CURSOR"] for line in lines]
for line in lines[cursors.index(after[0]) + 1 if after else 0:]:
    print(line)
"""


class Journal:
    """A journal of the collector's service, as journalctl shows one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_text("")

    def warn(self, message: object) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"__CURSOR": f"s={os.urandom(4).hex()}", "MESSAGE": message}) + "\n")


@pytest.fixture
def journal(host: Path, monkeypatch: pytest.MonkeyPatch) -> Journal:
    for name, script in (("journalctl", JOURNAL), ("systemctl", "#!/bin/sh\necho active\n")):
        command = host / "bin" / name
        command.parent.mkdir(exist_ok=True)
        command.write_text(script)
        command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{host / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("STANDPIPE_TEST_JOURNAL", str(host / "journal"))
    paths.COLLECTOR.parent.mkdir(parents=True, exist_ok=True)
    paths.COLLECTOR.write_text("")
    return Journal(host / "journal")


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    paths.NOTIFY.parent.mkdir(parents=True, exist_ok=True)
    paths.NOTIFY.write_text("urls: [json://one, json://two]\n")
    taken: list[tuple[str, str]] = []

    def send(url: str, title: str, body: str) -> bool:
        taken.append((url, f"{title}\n{body}"))
        return True

    monkeypatch.setattr(notify, "send", send)
    return taken


def test_alarms_are_passed_on_once_and_then_at_most_hourly(journal: Journal, sent: list[tuple[str, str]]) -> None:
    assert cli.main(["collect", "--tell"]) == 0
    assert sent == []
    journal.warn("batch-1/arxlive: a record was refused: password=hunter22 \x1b[2J")
    journal.warn([255, 104, 105])
    assert cli.main(["collect", "--tell"]) == 0
    assert [url for url, _ in sent] == ["json://one", "json://two"]
    assert "2 alarms\nbatch-1/arxlive: a record was refused: *** \\x1b[2J\n\\xffhi" in sent[0][1]
    for number in range(30):
        journal.warn(f"alarm {number}")
    assert cli.main(["collect", "--tell"]) == 0
    assert len(sent) == 2
    os.utime(paths.ALARMS_TOLD, (0, 0))
    assert cli.main(["collect", "--tell"]) == 0
    assert len(sent) == 4
    assert "and 10 more" in sent[2][1]
    assert "refused" not in sent[2][1]


def test_what_no_address_takes_is_tried_again(
    journal: Journal, sent: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    journal.warn("an alarm")
    with monkeypatch.context() as patch:
        patch.setattr(notify, "send", lambda *_: False)
        assert cli.main(["collect", "--tell"]) == 0
    assert cli.main(["collect", "--tell"]) == 0
    assert len(sent) == 2


def test_a_clock_that_was_ahead_silences_no_alarm(journal: Journal, sent: list[tuple[str, str]]) -> None:
    for number in range(2):
        journal.warn(f"alarm {number}")
        assert cli.main(["collect", "--tell"]) == 0
        os.utime(paths.ALARMS_TOLD, (time.time() + 86400,) * 2)
    assert len(sent) == 4


def test_a_collector_is_told_of_its_own_certificate(journal: Journal, sent: list[tuple[str, str]]) -> None:
    have_certificates(13, 100)
    for _ in range(2):
        assert cli.main(["collect", "--tell"]) == 0
    assert [text.partition(" on ")[0] for _, text in sent] == ["certificate", "certificate"]  # to each address, once


def test_a_flood_of_alarms_is_counted_in_little_memory_and_told_in_parts(
    journal: Journal, sent: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alarms, "MOST_COUNTED", 2000)
    for number in range(3000):
        journal.warn(f"alarm {number} {'x' * 2000}")
    tracemalloc.start()
    assert cli.main(["collect", "--tell"]) == 0
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2_000_000
    os.utime(paths.ALARMS_TOLD, (0, 0))
    assert cli.main(["collect", "--tell"]) == 0
    assert ["2000 alarms\nalarm 0 " in sent[0][1], "1000 alarms\nalarm 2000 " in sent[2][1]] == [True, True]


def test_a_journal_that_cannot_be_read_is_told(
    journal: Journal, sent: list[tuple[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    journal.path.unlink()
    assert cli.main(["collect", "--tell"]) == 70
    assert "the journal cannot be read: Traceback" in capsys.readouterr().err


def test_doctor_looks_at_a_collector_and_misses_nothing_there_that_only_a_runner_needs(
    journal: Journal, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("standpipe.doctor.ENOUGH_DISK", 0)
    paths.COLLECTED.mkdir(parents=True)
    assert cli.main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert [line.split(": ")[0].split(maxsplit=1)[1] for line in shown.splitlines()] == [
        "service rsyslog",
        "service standpipe-collect",
        "service standpipe-receipts",
        "service standpipe-alarms.timer",
        f"disk {paths.COLLECTED}",
        "alarms",
    ]
    assert not paths.LEDGER.exists()
    journal.warn("a gap")
    assert cli.main(["doctor"]) == 69
    assert "1 in the last day; the last: a gap" in capsys.readouterr().out
