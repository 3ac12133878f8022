"""What the collector makes of what comes in: every line once, in order, or no receipt."""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import os
import random
import shutil
import threading
import time
import tracemalloc
from datetime import UTC, datetime, timedelta
from itertools import chain, repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from standpipe import cli, paths
from standpipe.engines import Line
from standpipe.logs import collect, collected, spool

RUN = "01M84AKR264QPEVVWCM9BVPTMA"
STRANGE = (
    b"plain",
    b"",
    b" spaces ",
    b"\x1b[31mred\x1b[0m",
    b"10%\r20%\r100%",
    b"nul \x00 and del \x7f",
    b"not utf-8 \xff\xfe",
    "é ü 漢 \u2028 \u202e \x85".encode(),
    b'{"run": "x", "seq": 1, "stream": "end"}',
    b"tab\there",
)


class Collector:
    """A collector below a temporary root, and what it said."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.alarms: list[str] = []
        self.intake = paths.INTAKE / "batch-1/arxlive" / f"{RUN}.ndjson"
        self.intake.parent.mkdir(parents=True, exist_ok=True)
        self.intake.write_bytes(b"")

    def take_in(self, data: bytes) -> None:
        with self.intake.open("ab") as file:
            file.write(data)

    def look(self) -> None:
        """Look once, as a service that was just started does."""
        collect.collect(self.said.append, self.alarms.append, lambda: False)

    @property
    def log(self) -> list[str]:
        path = paths.COLLECTED / "batch-1/arxlive" / f"{RUN}.log"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def receipt(self) -> dict[str, Any]:
        path = paths.RECEIPTS / "batch-1/arxlive" / f"{RUN}.json"
        return dict(json.loads(path.read_text())) if path.exists() else {}


def spooled(directory: Path, lines: list[bytes]) -> list[bytes]:
    """Write a spool; return its records."""
    with spool.Spool(directory / f"{RUN}.ndjson", RUN) as file:
        for line in lines:
            file.write(Line("2026-11-23T03:00:00.000000001Z", "stdout", line))
        file.finish()
    return (directory / f"{RUN}.ndjson").read_bytes().splitlines(keepends=True)


@pytest.fixture
def collector(host: Path) -> Collector:
    return Collector()


def test_a_spool_is_printable_ascii_whatever_was_written(tmp_path: Path) -> None:
    for record in spooled(tmp_path, [*STRANGE, bytes(range(256)), b"\x00" * 1_048_576]):
        assert all(0x20 <= byte < 0x7F for byte in record[:-1])
        assert len(record) < 2_000_000
    texts = [spool.text(record) for record in spool.read(tmp_path / f"{RUN}.ndjson")]
    assert texts[: len(STRANGE)] == list(STRANGE)


def test_each_line_is_one_line_that_moves_no_cursor_and_there_is_a_receipt(
    tmp_path: Path, collector: Collector
) -> None:
    records = spooled(tmp_path, list(STRANGE))
    collector.take_in(b"".join(records))
    collector.look()
    assert len(collector.log) == len(STRANGE) + 1
    assert collector.log[4].endswith(r"stdout 10%\x0d20%\x0d100%")
    assert not any(ord(letter) < 0x20 and letter != "\t" for line in collector.log for letter in line)
    assert collector.log[-1].split()[1:4] == ["end", str(len(STRANGE)), "lines,"]
    named = [collector.receipt[key] for key in ("host", "pipeline", "run", "count", "sha256")]
    assert named == ["batch-1", "arxlive", RUN, 10, json.loads(records[-1])["sha256"]]
    assert collector.alarms == []


def test_a_line_in_pieces_shows_where_it_goes_on_and_a_hole_that_the_host_knows_of_is_an_alarm(
    tmp_path: Path, collector: Collector
) -> None:
    moment = "2026-11-23T03:00:00Z"
    with spool.Spool(tmp_path / f"{RUN}.ndjson", RUN) as file:
        file.write(Line(moment, "stdout", b"long, ", continues=True))
        file.write(Line(moment, "stdout", b"and its end"))
        file.write(Line(moment, "standpipe", b"lines may be missing here"))
        file.finish()
    collector.take_in((tmp_path / f"{RUN}.ndjson").read_bytes())
    collector.look()
    shown = ["stdout+ long, ", "stdout and its end", "standpipe lines may be missing here"]
    assert collector.log[:3] == [f"{moment} {line}" for line in shown]
    assert collector.alarms == [f"batch-1/arxlive/{RUN}: lines may be missing here"]


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(0, 40),
    seed=st.integers(0, 2**32),
    again=st.floats(0, 1),
    cuts=st.lists(st.floats(0, 1), max_size=6),
)
def test_whatever_comes_twice_or_out_of_order_and_wherever_the_service_dies(
    tmp_path_factory: pytest.TempPathFactory, count: int, seed: int, again: float, cuts: list[float]
) -> None:
    root = tmp_path_factory.mktemp("collector")
    chance = random.Random(seed)  # noqa: S311  # no secret
    with pytest.MonkeyPatch.context() as patch:
        for name in ("INTAKE", "RECEIPTS", "COLLECTED"):
            patch.setattr(paths, name, root / name)
        collector = Collector()
        noise = [bytes(chance.choices(range(256), k=5)).replace(b"\n", b"") for _ in range(count)]
        records = spooled(root / "spool", [b"line %d " % number + noise[number] for number in range(count)])
        came = records + [record for record in records if chance.random() < again]
        if chance.random() < 0.5:
            chance.shuffle(came)
        data, at = b"".join(came), 0
        for cut in [*sorted(int(cut * len(data)) for cut in cuts), len(data)]:
            collector.take_in(data[at:cut])
            at = cut
            collector.look()
        assert [line.split(" ")[2:4] for line in collector.log[:-1]] == [["line", str(n)] for n in range(count)]
        assert collector.receipt["count"] == count
        assert collector.alarms == []


def test_a_gap_gets_no_receipt_until_it_is_filled(tmp_path: Path, collector: Collector) -> None:
    records = spooled(tmp_path, [b"one", b"two", b"three"])
    collector.take_in(records[0] + records[2] + records[3])
    collector.look()
    assert not collector.receipt
    assert len(collector.log) == 1
    collector.take_in(b"".join(records))  # sent again
    collector.look()
    assert collector.receipt
    assert [line.split()[-1] for line in collector.log[:3]] == ["one", "two", "three"]


def test_what_disagrees_with_its_digest_is_set_aside_told_and_can_be_sent_anew(
    tmp_path: Path, collector: Collector
) -> None:
    records = spooled(tmp_path, [b"one", b"two"])
    forged = records[0] + records[1].replace(b"two", b"owt") + records[2]
    collector.take_in(forged)
    collector.look()
    assert not collector.receipt
    assert collector.log == []
    assert "the digest of its 2 lines is not the host's" in collector.alarms[0]
    assert [path.read_bytes() for path in collector.intake.parent.glob("*.refused-*")] == [forged]
    collector.take_in(b"".join(records))
    collector.look()
    assert collector.receipt


@pytest.mark.parametrize("changed", [[b"one", b"two", b"three"], [b"one", b"owt"]])
def test_a_confirmed_run_that_comes_again_otherwise_is_told_and_changes_nothing(
    tmp_path: Path, collector: Collector, changed: list[bytes]
) -> None:
    collector.take_in(b"".join(spooled(tmp_path, [b"one", b"two"])))
    collector.look()
    log, receipt = collector.log, collector.receipt
    collector.take_in(b"".join(spooled(tmp_path / "changed", changed)))
    collector.look()
    assert (collector.log, collector.receipt) == (log, receipt)
    assert any("is not what was confirmed" in alarm for alarm in collector.alarms)


ANOTHER = b"01M84AKR264QPEVVWCM9BVPTMB"


@pytest.mark.parametrize(
    "forge",
    [
        lambda _: b"no json\n",
        lambda _: b"\n",
        lambda _: b'["a", "list"]\n',
        lambda record: record.replace(RUN.encode(), ANOTHER),
        lambda record: record.replace(b'"seq": 1', b'"seq": 0'),
        lambda record: record.replace(b'"seq": 1', b'"seq": "1"'),
        lambda record: record.replace(b"2026-11-23T", b"then\\n"),
        lambda record: record.replace(b"stdout", b"root"),
        lambda record: record.replace(b'"text": "one"', b'"base64": "%"'),
        lambda record: record.replace(b'"text": "one"', b'"text": {}'),
    ],
)
def test_what_is_no_record_of_the_run_is_refused_and_told(tmp_path: Path, collector: Collector, forge: Any) -> None:
    records = spooled(tmp_path, [b"one"])
    collector.take_in(forge(records[0]) + b"".join(records))
    collector.look()
    assert collector.receipt
    assert len(collector.log) == 2
    assert "was refused" in collector.alarms[0]


def test_records_that_are_refused_are_told_once_a_run(tmp_path: Path, collector: Collector) -> None:
    collector.take_in(b"".join(b"no json %d\n" % number for number in range(100)))
    collector.look()
    assert len(collector.alarms) == 1
    assert "no json 0" in collector.alarms[0]


def test_a_place_that_is_no_host_pipeline_and_run_is_not_looked_at(collector: Collector) -> None:
    for place in (f"UPPER/arxlive/{RUN}", f"batch-1/x/{RUN}", "batch-1/arxlive/short"):
        path = (paths.INTAKE / place).with_suffix(".ndjson")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x\n")
    assert list(collect.runs_taken_in()) == [collector.intake]


def confirmed(tmp_path: Path, collector: Collector, lines: list[bytes]) -> Path:
    """Have a run in the collector, to its receipt; return its file."""
    collector.take_in(b"".join(spooled(tmp_path, lines)))
    collector.look()
    return paths.COLLECTED / "batch-1/arxlive" / f"{RUN}.log"


def aged(path: Path, days: float) -> None:
    """Have a file that was last written days ago."""
    then = time.time() - days * 86400
    os.utime(path, (then, then))


def test_old_files_are_compressed_and_read_as_before(tmp_path: Path, collector: Collector) -> None:
    path = confirmed(tmp_path, collector, list(STRANGE))
    before = list(collected.read(path, pytest.fail))
    list(collect.compress(datetime.now(UTC) - timedelta(days=7), collector.alarms.append))
    assert path.exists(), "it is young"
    aged(path, 8)
    list(collect.compress(datetime.now(UTC) - timedelta(days=7), collector.alarms.append))
    packed = path.with_suffix(".log.gz")
    assert not path.exists()
    assert packed.stat().st_mtime < time.time() - 7 * 86400, "its age counts on"
    assert list(collected.read(collected.find("arxlive", None, None), pytest.fail)) == before
    collector.take_in(b"".join(spooled(tmp_path, list(STRANGE))))  # comes once more
    collector.look()
    assert not path.exists()
    assert collector.alarms == []


def test_what_a_system_logged_on_an_old_day_is_compressed(collector: Collector) -> None:
    days = [paths.COLLECTED / "batch-1" / f"system-2026-11-{day}.log" for day in (15, 24)]
    for day in days:
        day.parent.mkdir(parents=True, exist_ok=True)
        day.write_text("a line\n")
    aged(days[0], 8)
    list(collect.compress(datetime.now(UTC) - timedelta(days=7), collector.alarms.append))
    names = sorted(path.name for path in days[0].parent.iterdir())
    assert names == ["system-2026-11-15.log.gz", "system-2026-11-24.log"]


def test_a_day_that_a_wrong_clock_has_written_on_in_is_not_lost_to_what_it_wrote(collector: Collector) -> None:
    day = paths.COLLECTED / "batch-1/system-2026-11-01.log"
    day.parent.mkdir(parents=True)
    for text, days in (("the whole day", 27), ("by a clock that was behind", 26)):
        day.write_text(f"2026-11-01T09:00:00+00:00 kernel {text}\n")
        aged(day, days)
        list(collect.compress(datetime.now(UTC) - timedelta(days=7), pytest.fail))
    found = [entry.text for _path, entry in collected.search("", None, None, pytest.fail)]
    assert sorted(found) == ["by a clock that was behind", "the whole day"]


def test_what_is_written_on_while_it_is_compressed_stays_as_it_is(collector: Collector) -> None:
    day = paths.COLLECTED / "batch-1/system-2026-11-01.log"
    day.parent.mkdir(parents=True)
    day.write_text("2026-11-01T09:00:00+00:00 kernel one\n")
    aged(day, 8)
    pieces = collect.compress(datetime.now(UTC) - timedelta(days=7), pytest.fail)
    next(pieces)
    with day.open("a") as file:
        file.write("2026-11-01T09:00:01+00:00 kernel two\n")
    list(pieces)
    assert [path.name for path in day.parent.iterdir()] == [day.name]
    assert day.read_text().count("\n") == 2


def test_one_file_that_cannot_be_read_keeps_no_other_from_being_compressed(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    days = [paths.COLLECTED / host / "system-2026-11-01.log" for host in ("a", "b", "c")]
    for day in days:
        day.parent.mkdir(parents=True)
        day.write_text("2026-11-01T01:00:00+00:00 kernel line\n")
        aged(day, 8)
    opens = Path.open

    def opened(path: Path, *arguments: Any) -> Any:
        if path == days[0]:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return opens(path, *arguments)

    monkeypatch.setattr(Path, "open", opened)
    list(collect.compress(datetime.now(UTC) - timedelta(days=7), collector.alarms.append))
    assert [day.exists() for day in days] == [True, False, False]
    assert len(collector.alarms) == 1


def test_while_much_is_compressed_receipts_are_given_and_all_is_done_in_the_end(
    tmp_path: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collect, "PACKED_AT_ONCE", 100)
    monkeypatch.setattr(collect, "HELD_AT_ONCE", 1_000)
    day = paths.COLLECTED / "batch-1/system-2026-11-01.log"
    day.parent.mkdir(parents=True)
    day.write_text("2026-11-01T01:00:00+00:00 kernel line\n" * 1_000)
    aged(day, 8)
    looks: list[bool] = []

    def wait() -> bool:
        if not looks:
            collector.take_in(b"".join(spooled(tmp_path, [b"one"])))
        looks.append(day.exists())
        return len(looks) < 3

    collect.collect(lambda _said: None, pytest.fail, wait, timedelta(days=7))
    assert looks == [True, True, True]
    assert collector.receipt
    assert not day.exists()


def test_a_program_named_end_ends_no_day_of_a_system(collector: Collector) -> None:
    day = paths.COLLECTED / "batch-1/system-2026-11-01.log"
    day.parent.mkdir(parents=True)
    day.write_text("2026-11-01T01:00:00+00:00 end hello\n2026-11-01T02:00:00+00:00 kernel needle\n")
    assert [entry.text for _path, entry in collected.search("needle", None, None, pytest.fail)] == ["needle"]


def test_a_file_that_could_not_be_flushed_is_written_anew_before_it_gets_its_receipt(
    tmp_path: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    collector.take_in(b"".join(spooled(tmp_path, [b"one", b"two"])))
    log = paths.COLLECTED / "batch-1/arxlive" / f"{RUN}.log"
    flush, failed = os.fsync, list[int]()

    def fails_once(descriptor: int) -> None:
        if not failed and Path(f"/proc/self/fd/{descriptor}").readlink() == log:
            failed.append(os.dup(descriptor))
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", fails_once)
    collector.look()
    assert not collector.receipt
    collector.look()
    assert collector.receipt
    assert os.fstat(failed[0]).st_nlink == 0
    os.close(failed[0])


def test_a_refused_log_on_a_full_disk_leaves_no_pieces(
    tmp_path: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = spooled(tmp_path, [b"one", b"two"])
    collector.take_in(b"".join([records[0].replace(b'"one"', b'"eno"'), *records[1:]]))

    def full(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes()[:50])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copyfile", full)
    collector.look()
    assert "No space left" in collector.alarms[0]
    assert list(paths.INTAKE.rglob("*refused*")) == []


def test_a_receipt_whose_log_is_gone_is_taken_back_and_the_log_taken_anew(tmp_path: Path, collector: Collector) -> None:
    path = confirmed(tmp_path, collector, [b"one", b"two"])
    before = collector.log
    path.unlink()
    collector.intake.unlink()
    collector.look()
    assert not collector.receipt
    assert "its receipt is taken back" in collector.alarms[0]
    collector.take_in(b"".join(spooled(tmp_path, [b"one", b"two"])))
    collector.look()
    assert collector.log[:-1] == before[:-1]
    assert collector.receipt


@pytest.mark.parametrize("one_came_since", [False, True])
def test_receipts_stay_where_all_logs_are_gone_together_as_without_their_disk(
    tmp_path: Path, collector: Collector, one_came_since: bool
) -> None:
    path = confirmed(tmp_path, collector, [b"one"])
    receipts = paths.RECEIPTS / "batch-1/arxlive"
    shutil.copy(receipts / f"{RUN}.json", receipts / f"{RUN[:-1]}B.json")
    path.parent.rename(path.parent.with_name("unmounted"))
    if one_came_since:
        path.parent.mkdir()
        (path.parent / f"{RUN[:-1]}C.log").write_text("2026-11-29T03:00:00Z stdout since then\n")
    collector.look()
    assert collector.receipt
    assert "is its disk mounted?" in collector.alarms[-1]
    shutil.rmtree(path.parent, ignore_errors=True)
    path.parent.with_name("unmounted").rename(path.parent)
    collector.look()
    assert [file.name for file in receipts.iterdir()] == [f"{RUN}.json"], (
        "the other has no log, though its disk is here"
    )


def test_a_log_that_comes_again_before_its_lost_receipt_is_missed_is_taken(
    tmp_path: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collect, "take_back_receipts", lambda _alarm: None)  # the hour is not over
    path = confirmed(tmp_path, collector, [b"one", b"two"])
    path.unlink()
    collector.take_in(b"".join(spooled(tmp_path, [b"one", b"two"])))
    collector.look()
    assert len(collector.log) == 3
    assert collector.receipt


def test_a_compressed_log_whose_receipt_is_lost_stays_one_file(tmp_path: Path, collector: Collector) -> None:
    path = confirmed(tmp_path, collector, [b"one needle", b"two"])
    before = collector.log
    aged(path, 8)
    list(collect.compress(datetime.now(UTC) - timedelta(days=7), collector.alarms.append))
    (paths.RECEIPTS / "batch-1/arxlive" / f"{RUN}.json").unlink()
    collector.intake.unlink()
    collector.take_in(b"".join(spooled(tmp_path, [b"one needle", b"two"])))
    collector.look()
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert collector.log == before
    assert collector.receipt
    assert len(list(collected.search("needle", None, None, pytest.fail))) == 1


def test_a_line_of_a_known_number_with_another_text_is_told_and_the_first_kept(
    tmp_path: Path, collector: Collector
) -> None:
    records = spooled(tmp_path, [b"one", b"two", b"three"])
    forged = [records[0].replace(b"one", b"own"), records[2].replace(b"three", b"there")]
    collector.take_in(records[0] + forged[0] + records[2] + forged[1] + records[1] + records[3])
    collector.look()
    assert [line.split()[-1] for line in collector.log[:3]] == ["one", "two", "three"]
    assert collector.receipt
    assert len(collector.alarms) == 1
    assert "is not the one of its number" in collector.alarms[0]


def test_a_line_that_is_forged_after_the_receipt_is_told_though_no_end_follows(
    tmp_path: Path, collector: Collector
) -> None:
    records = spooled(tmp_path, [b"one", b"two", b"three"])
    steps = [b"".join(records), records[0].replace(b"one", b"own"), records[2].replace(b'"seq": 3', b'"seq": 9')]
    seen: list[list[str]] = []

    def wait() -> bool:
        seen.append(list(collector.alarms))
        if steps:
            collector.take_in(steps.pop(0))
        return len(seen) < 5

    collect.collect(collector.said.append, collector.alarms.append, wait)
    assert seen[1] == []
    assert "is not the one of its number" in seen[2][0]
    assert "after its end: it was confirmed with 3" in seen[3][1]
    assert [line.split()[-1] for line in collector.log[:3]] == ["one", "two", "three"]


def test_a_damaged_file_is_skipped_and_told_by_a_search(
    tmp_path: Path, collector: Collector, capsys: pytest.CaptureFixture[str]
) -> None:
    path = confirmed(tmp_path, collector, [b"a needle"])
    for name, content in (
        ("B.log", b"needle\n"),
        ("C.log.gz", b"no gzip"),
        ("D.log.gz", gzip.compress(b"x" * 99)[:-9]),
    ):
        path.with_name(RUN[:-1] + name).write_bytes(content)
    assert cli.main(["logs", "--search", "needle"]) == 70
    told = capsys.readouterr()
    assert [line.split(": ")[1] for line in told.out.splitlines()] == ["a needle"]
    assert told.err.count(" is damaged: ") == 3
    assert cli.main(["logs", "arxlive", "--host", "batch-1", "--run", f"{RUN[:-1]}B"]) == 70


def test_a_file_without_a_receipt_is_not_compressed(tmp_path: Path, collector: Collector) -> None:
    records = spooled(tmp_path, [b"one", b"two"])
    collector.take_in(records[0])
    collector.look()
    path = paths.COLLECTED / "batch-1/arxlive" / f"{RUN}.log"
    aged(path, 8)
    list(collect.compress(datetime.now(UTC), collector.alarms.append))
    assert path.exists()


def test_a_text_is_found_across_hosts_and_runs(
    tmp_path: Path, collector: Collector, capsys: pytest.CaptureFixture[str]
) -> None:
    confirmed(tmp_path, collector, [b"nothing", b"disk is full", b"done"])
    other = paths.COLLECTED / "batch-2/other" / f"{RUN[:-1]}B.log"
    other.parent.mkdir(parents=True)
    other.write_text("2026-11-23T03:00:00Z stderr the disk is full, too\n")
    assert cli.main(["logs", "--search", "disk is full"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"batch-2/other/{RUN[:-1]}B: the disk is full, too",
        f"batch-1/arxlive/{RUN}: disk is full",
    ]
    assert cli.main(["logs", "arxlive", "--host", "batch-1"]) == 0
    assert capsys.readouterr().out.splitlines() == ["nothing", "disk is full", "done"]
    assert cli.main(["logs", "arxlive", "--host", "batch-3"]) == 2
    assert "no log of arxlive" in capsys.readouterr().err
    assert cli.main(["logs", "../..", "--host", "batch-1"]) == 2


@pytest.mark.parametrize("meanwhile", ["compressed", "removed"])
def test_a_log_that_is_compressed_or_removed_while_others_are_searched_ends_nothing(
    tmp_path: Path,
    collector: Collector,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    meanwhile: str,
) -> None:
    path = confirmed(tmp_path, collector, [b"needle"])
    aged(path, 8)
    other = paths.COLLECTED / "batch-2/other" / f"{RUN[:-1]}B.log"
    other.parent.mkdir(parents=True)
    other.write_text("2026-11-23T03:00:00Z stderr needle\n")
    opened = collect.opened

    def in_between(named: Path) -> Any:
        if named == other and meanwhile == "compressed":
            list(collect.compress(datetime.now(UTC) - timedelta(days=7), pytest.fail))
        elif named == other:
            path.unlink()
        return opened(named)

    monkeypatch.setattr(collected, "opened", in_between)
    assert cli.main(["logs", "--search", "needle"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == (2 if meanwhile == "compressed" else 1)


def test_a_log_that_is_compressed_while_it_is_shown_is_the_same_log(
    tmp_path: Path, collector: Collector, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    aged(confirmed(tmp_path, collector, [b"needle"]), 8)
    standing = collected.standing

    def compressed_first(path: Path, *others: Any) -> Any:
        list(collect.compress(datetime.now(UTC) - timedelta(days=7), pytest.fail))
        return standing(path, *others)

    monkeypatch.setattr(collected, "standing", compressed_first)
    assert cli.main(["logs", "arxlive", "--host", "batch-1"]) == 0
    assert tuple(capsys.readouterr()) == ("needle\n", "")


def test_a_system_log_that_is_being_compressed_is_searched_once(
    tmp_path: Path, collector: Collector, capsys: pytest.CaptureFixture[str]
) -> None:
    confirmed(tmp_path, collector, [b"nothing"])
    system = paths.COLLECTED / "batch-1/system-2026-11-20.log"
    system.write_text("2026-11-20T03:00:00Z kernel needle\n" * 2)
    system.with_name(f"{system.name}.gz.unfinished").write_bytes(gzip.compress(system.read_bytes())[:20])
    assert cli.main(["logs", "--search", "needle"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_a_run_is_followed_to_its_end(tmp_path: Path, collector: Collector) -> None:
    records = spooled(tmp_path, [b"one", b"two"])
    collector.take_in(records[0])
    collector.look()

    def more() -> None:
        collector.take_in(b"".join(records[1:]))
        collector.look()

    threading.Timer(0.5, more).start()
    seen = [entry.text for entry in collected.read(collected.find("arxlive", None, None), pytest.fail, lambda: True)]
    assert seen == ["one", "two"]


def test_a_whole_log_is_not_told_as_unconfirmed_in_the_moment_before_its_receipt(
    tmp_path: Path, collector: Collector, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    confirmed(tmp_path, collector, [b"one"])
    receipt = paths.RECEIPTS / "batch-1/arxlive" / f"{RUN}.json"
    threading.Timer(0.5, receipt.with_suffix(".unfinished").rename, [receipt]).start()
    receipt.rename(receipt.with_suffix(".unfinished"))
    follow = ["logs", "arxlive", "--host", "batch-1", "--follow"]
    assert cli.main(follow) == 0
    assert tuple(capsys.readouterr()) == ("one\n", "")
    receipt.unlink()
    monkeypatch.setattr(collected, "CONFIRMED_WITHIN", 0)
    assert cli.main(follow) == 0
    assert "is not confirmed" in capsys.readouterr().err


def test_what_cannot_be_written_is_told_once_and_tried_again(
    tmp_path: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collect, "TRY_AGAIN", 0.01)
    collector.take_in(b"".join(spooled(tmp_path, [b"one", b"two"])))
    paths.COLLECTED.parent.mkdir(parents=True, exist_ok=True)
    paths.COLLECTED.write_text("a file where a folder should be")
    looks = 0

    def wait() -> bool:
        nonlocal looks
        looks += 1
        if looks == 3:
            paths.COLLECTED.unlink()
        time.sleep(0.02)
        return looks < 6

    collect.collect(collector.said.append, collector.alarms.append, wait)
    assert len(collector.alarms) == 1
    assert "it is tried again" in collector.alarms[0]
    assert collector.receipt["count"] == 2
    assert any("goes on" in told for told in collector.said)


def test_a_disk_that_fills_is_told_before_it_is_full(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    free = 3_000_000_000
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(total=100_000_000_000, free=free))
    disks = collect.Disks(collector.alarms.append, collector.said.append)
    disks.look()
    assert collector.alarms == []
    free = 1_000_000_000
    disks.look()
    disks.look()
    assert len(collector.alarms) == 1
    assert "1000 MB are free" in collector.alarms[0]
    free = 3_000_000_000
    disks.look()
    assert "free again" in collector.said[-1]


@pytest.mark.parametrize(
    "record",
    [
        b'{"run": "%s", "seq": 1, "time": "2026-11-23T03:00:00Z", "stream": "stdout", "text": "\\ud800"}\n'
        % RUN.encode(),
        b"[" * 100_000 + b"\n",
        b'{"run": "%s", "seq": 1, "time": "2026-11-23T03:00:00Z", "stream": "stdout", "text": 7}\n' % RUN.encode(),
    ],
)
def test_a_hostile_record_is_refused_and_stops_nothing(tmp_path: Path, collector: Collector, record: bytes) -> None:
    collector.take_in(record)
    collector.take_in(b"".join(spooled(tmp_path, [b"one", b"two"])))
    collector.look()
    assert "was refused" in collector.alarms[0]
    assert collector.receipt["count"] == 2


def test_what_goes_wrong_with_one_run_leaves_the_others(tmp_path: Path, collector: Collector) -> None:
    other = paths.INTAKE / "batch-1/arxlive" / f"{RUN[:-1]}0.ndjson"
    other.mkdir()  # no file at all
    collector.take_in(b"".join(spooled(tmp_path, [b"one"])))
    collector.look()
    assert collector.receipt["count"] == 1
    assert any(f"{RUN[:-1]}0" in alarm for alarm in collector.alarms)


def test_more_lines_than_the_host_counted_are_set_aside(tmp_path: Path, collector: Collector) -> None:
    records = spooled(tmp_path, [b"one", b"two", b"three"])
    short = spooled(tmp_path, [b"one", b"two"])
    collector.take_in(b"".join(records[:3]) + short[-1])
    collector.look()
    assert "is not the host's" in collector.alarms[0]
    assert not collector.receipt
    collector.take_in(b"".join(short))
    collector.look()
    assert collector.receipt["count"] == 2


def test_a_service_that_is_started_again_reads_nothing_that_it_has_confirmed(
    tmp_path: Path, collector: Collector
) -> None:
    records = b"".join(spooled(tmp_path, [b"one", b"two"]))
    collector.take_in(records)
    collector.look()
    seen = collector.intake.stat()
    collector.intake.write_bytes(b"?" * len(records))
    os.utime(collector.intake, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    collector.look()
    assert collector.alarms == []
    collector.take_in(b"?\n")  # as soon as more comes, all of it is held against the receipt
    collector.look()
    assert "a record was refused" in collector.alarms[0]


def test_what_comes_anew_after_the_receipt_is_read_though_it_is_as_long(tmp_path: Path, collector: Collector) -> None:
    collector.take_in(b"".join(spooled(tmp_path, [b"one", b"two"])))
    collector.look()
    collector.intake.unlink()
    collector.take_in(b"".join(spooled(tmp_path, [b"one", b"owt"])))
    collector.look()
    assert "was changed on the host" in collector.alarms[-1]


def test_a_stop_is_heeded_between_two_records_and_loses_nothing(tmp_path: Path, collector: Collector) -> None:
    lines = [b"%d" % number for number in range(1000)]
    collector.take_in(b"".join(spooled(tmp_path, lines)))
    for allowed in (1, 2, 300):
        asked = chain(repeat(False, allowed), repeat(True)).__next__
        collect.collect(collector.said.append, collector.alarms.append, lambda: True, asked_to_stop=asked)
        assert len(collector.log) < 1000
    assert not collector.receipt
    collector.look()
    assert [line.split()[2] for line in collector.log[:-1]] == [line.decode() for line in lines]
    assert (collector.receipt["count"], collector.alarms) == (1000, [])


def test_long_lines_take_no_more_memory_than_a_turn(tmp_path: Path, collector: Collector) -> None:
    with spool.Spool(tmp_path / f"{RUN}.ndjson", RUN) as file:
        for _ in range(60):
            file.write(Line("2026-11-23T03:00:00Z", "stdout", b"x" * 1_048_576))
        file.finish()
    (tmp_path / f"{RUN}.ndjson").rename(collector.intake)
    tracemalloc.start()
    collector.look()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert collector.receipt["count"] == 60
    assert most < 25_000_000


def test_a_backlog_holds_up_no_other_run(tmp_path: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "AT_ONCE", 1000)
    collector.take_in(b"".join(spooled(tmp_path, [b"%d" % number for number in range(100)])))
    other = f"{RUN[:-1]}B"
    with spool.Spool(collector.intake.with_name(f"{other}.ndjson"), other) as file:
        file.finish()
    collector.look()
    assert [said.split(": ")[1] for said in collector.said] == ["0 lines, confirmed", "100 lines, confirmed"]


def test_the_lines_of_a_run_that_was_confirmed_are_soon_forgotten_and_a_forged_one_is_told_all_the_same(
    tmp_path: Path, collector: Collector
) -> None:
    records = spooled(tmp_path, [b"%d" % number for number in range(10_000)])
    collector.take_in(b"".join(records))
    assembly = collect.Assembly(collector.intake, collector.said.append, collector.alarms.append)
    tracemalloc.start()
    while not assembly.advance():
        pass
    before, _ = tracemalloc.get_traced_memory()
    aged(collector.intake, 120 / 86400)
    assembly.clean_up()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert before - after > 30_000
    assert assembly.advance()
    assert collector.alarms == []
    collector.take_in(records[0].replace(b'"0"', b'"1"'))
    while not assembly.advance():
        pass
    assert "is not the one of its number" in collector.alarms[0]


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_that_is_changed_after_its_receipt_is_told_and_never_shown_as_if_it_were_well(
    tmp_path: Path, collector: Collector, capsys: pytest.CaptureFixture[str], packed: bool
) -> None:
    path = confirmed(tmp_path, collector, [b"one", b"two"])
    if packed:
        aged(path, 8)
        list(collect.compress(datetime.now(UTC) - timedelta(days=7), collector.alarms.append))
        path = path.with_suffix(".log.gz")
    collector.look()
    assert cli.main(["logs", "arxlive", "--host", "batch-1"]) == 0
    assert (collector.alarms, capsys.readouterr().err) == ([], "")
    seen = path.stat()
    content = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
    forged = content.replace(b"two", b"owt")
    path.write_bytes(gzip.compress(forged) if packed else forged)
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    collector.look()
    assert [alarm for alarm in collector.alarms if "is not what was confirmed" in alarm]
    assert cli.main(["logs", "arxlive", "--host", "batch-1"]) == 70
    assert "is not what was confirmed" in capsys.readouterr().err


def test_a_file_that_is_changed_while_the_service_runs_is_told_once(
    tmp_path: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collect, "TIDY_EVERY", 0)
    path = confirmed(tmp_path, collector, [b"one", b"two"])
    guard = collect.Guard(collector.alarms.append)
    guard.look()
    assert collector.alarms == []
    with path.open("ab") as file:
        file.write(b"2026-11-23T03:00:00Z stdout three\n")
    guard.look()
    guard.look()
    assert len(collector.alarms) == 1


def test_many_confirmed_files_take_little_memory_and_hold_up_no_receipt(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collect, "TIDY_EVERY", 0)
    monkeypatch.setattr(collect, "HELD_AT_ONCE", 100 * collect.A_LOOK)
    read: list[None] = []

    def receipt_of(_log: Path) -> dict[str, str]:
        read.append(None)
        return {"log_sha256": hashlib.sha256().hexdigest()}

    monkeypatch.setattr(collect, "receipt_of", receipt_of)
    logs = paths.COLLECTED / "batch-1/arxlive"
    logs.mkdir(parents=True)
    for number in range(1000):
        (logs / f"{RUN[:22]}{number:04}.log").touch()
    guard = collect.Guard(collector.alarms.append)
    tracemalloc.start()
    guard.look()
    assert len(read) == 100
    for _ in range(10):
        guard.look()
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 100_000
    for _ in range(11):
        guard.look()
    assert len(read) == 1000  # each once
    assert collector.alarms == []


def test_a_file_that_is_changed_before_its_receipt_is_written_anew(tmp_path: Path, collector: Collector) -> None:
    records = spooled(tmp_path, [b"one", b"two"])
    collector.take_in(records[0])
    collector.look()
    path = paths.COLLECTED / "batch-1/arxlive" / f"{RUN}.log"
    path.write_bytes(path.read_bytes().replace(b"one", b"own"))
    collector.take_in(b"".join(records[1:]))
    looks = iter([True, True, False])
    collect.collect(collector.said.append, collector.alarms.append, looks.__next__)
    assert "was changed before it was confirmed" in collector.alarms[0]
    assert [line.split()[2] for line in collector.log[:2]] == ["one", "two"]
    assert collector.receipt


def test_a_receipt_of_an_earlier_version_stays_good(
    tmp_path: Path, collector: Collector, capsys: pytest.CaptureFixture[str]
) -> None:
    confirmed(tmp_path, collector, [b"one"])
    receipt = paths.RECEIPTS / "batch-1/arxlive" / f"{RUN}.json"
    receipt.write_text(json.dumps({key: value for key, value in collector.receipt.items() if key != "log_sha256"}))
    collector.look()
    assert cli.main(["logs", "arxlive"]) == 2  # this host has a pipeline of that name, and no run
    capsys.readouterr()
    assert cli.main(["logs", "arxlive", "--host", "batch-1"]) == 0
    assert (collector.alarms, capsys.readouterr().err) == ([], "")


def test_a_log_that_is_not_confirmed_is_shown_as_that(
    tmp_path: Path, collector: Collector, capsys: pytest.CaptureFixture[str]
) -> None:
    collector.take_in(spooled(tmp_path, [b"one", b"two"])[0])
    collector.look()
    assert cli.main(["logs", "arxlive", "--host", "batch-1"]) == 0
    shown = capsys.readouterr()
    assert shown.out == "one\n"
    assert "is not confirmed" in shown.err


def test_a_gap_that_stays_and_a_run_that_falls_silent_are_told_once(tmp_path: Path, collector: Collector) -> None:
    records = spooled(tmp_path, [b"one", b"two", b"three"])
    collector.take_in(records[0] + records[2])
    assembly = collect.Assembly(collector.intake, collector.said.append, collector.alarms.append)
    for age, more, told in ((0, b"", 0), (0.5, b"", 0), (1.1, b"", 1), (0, records[3], 1), (0.01, b"", 2)):
        collector.take_in(more)
        aged(collector.intake, age)
        for _ in range(2):
            assembly.advance()
            assembly.clean_up()
        assert len(collector.alarms) == told
    assert "no line has come for a day" in collector.alarms[0]
    assert "its end came, and line 2 of 3 has not" in collector.alarms[1]


def test_lines_that_cannot_wait_for_their_turn_are_told(
    tmp_path: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collect, "MOST_WAITING", 300)
    records = spooled(tmp_path, [b"%d" % number for number in range(9)])
    collector.take_in(b"".join(records[1:]))
    collector.look()
    assert len(collector.alarms) == 1
    assert "line 1 is missing" in collector.alarms[0]
    collector.take_in(b"".join(records))
    collector.look()
    assert collector.receipt["count"] == 9


def test_the_tail_of_a_confirmed_run_that_comes_again_is_no_alarm(
    tmp_path: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collect, "MOST_WAITING", 300)
    records = spooled(tmp_path, [b"%d" % number for number in range(9)])
    collector.take_in(b"".join(records))
    collector.look()
    collector.intake.write_bytes(b"".join(records[1:]))  # its beginning was cleaned up
    collector.look()
    assert collector.alarms == []


def test_following_ends_where_the_file_is_set_aside(tmp_path: Path, collector: Collector) -> None:
    collector.take_in(spooled(tmp_path, [b"one"])[0])
    collector.look()
    path = collected.find("arxlive", None, None)
    threading.Timer(0.3, path.unlink).start()
    told: list[str] = []
    assert [entry.text for entry in collected.read(path, told.append, lambda: True)] == ["one"]
    assert "was set aside" in told[0]


def test_a_text_is_found_across_the_cut_of_a_long_line_and_in_a_system_s_logs(collector: Collector) -> None:
    path = paths.COLLECTED / "batch-1/arxlive" / f"{RUN}.log"
    path.parent.mkdir(parents=True)
    moment = "2026-11-23T03:00:00Z"
    path.write_text(f"{moment} stdout+ a nee\n{moment} stderr dle no\n{moment} stdout+ dle\n{moment} stdout no\n")
    (path.parents[1] / "system-2026-11-23.log").write_text(f"{moment} sshd the needle\n")
    found = [
        (collected.label(path), text) for path, (_, _, text) in collected.search("needle", None, None, pytest.fail)
    ]
    assert found == [(f"batch-1/arxlive/{RUN}", "dle"), ("batch-1/system-2026-11-23", "the needle")]
    assert len(list(collected.search("needle", "arxlive", None, pytest.fail))) == 1


def test_what_rsyslog_rejects_is_told_once_an_hour(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    paths.COLLECTED.mkdir(parents=True)
    paths.REJECTED.write_text("old\n")
    aged(paths.REJECTED, 1)
    rejected = collect.Rejected(collector.alarms.append)
    rejected.look()
    assert collector.alarms == []
    paths.REJECTED.write_text("one\n")
    rejected.look()
    paths.REJECTED.write_text("two\n")
    rejected.look()
    assert len(collector.alarms) == 1
    assert "was rejected" in collector.alarms[0]
    monkeypatch.setattr(collect, "TIDY_EVERY", 0)
    for days, told in ((-30, 2), (0, 3)):  # by a clock that was ahead, and then was set right
        aged(paths.REJECTED, days)
        rejected.look()
        assert len(collector.alarms) == told
