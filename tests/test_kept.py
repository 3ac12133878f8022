"""What a container's first process keeps, read as a stranger's file: cut off, scribbled into, or never begun."""

from __future__ import annotations

import os
import subprocess
import threading
import tracemalloc
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from tempfile import NamedTemporaryFile
from threading import Event

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import ProcessEngine
from standpipe import paths, runner
from standpipe.engines import LONGEST_PIECE, Container, Line, joined
from standpipe.errors import EngineUnavailable
from standpipe.ledger import Ledger
from standpipe.logs import kept, spool
from standpipe.logs.follow import spool_log
from standpipe_task import output

OVER = Event()
OVER.set()
SECOND = 1_795_564_800 * 10**9  # 2026-11-25T00:00:00Z, in nanoseconds


def frame(data: bytes, stream: int = 1, at: int = SECOND) -> bytes:
    return output.HEADER.pack(output.MAGIC, stream, at, len(data)) + data


def read(path: Path, content: bytes) -> list[Line]:
    path.write_bytes(content)
    return list(joined(kept.frames(path, OVER)))


def texts(lines: list[Line]) -> list[bytes]:
    return [line.data for line in lines if line.stream != "standpipe"]


def told(lines: list[Line]) -> int:
    return sum(line.stream == "standpipe" for line in lines)


def test_both_ends_know_the_same_frames() -> None:
    assert (kept.MAGIC, kept.HEADER.format, kept.LONGEST_FRAME) == (
        output.MAGIC,
        output.HEADER.format,
        output.AT_ONCE,
    )


@given(st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(max_size=300)), max_size=20))
def test_lines_are_those_of_each_stream_wherever_frames_cut_them(pieces: list[tuple[int, bytes]]) -> None:
    frames = [("t", kept.STREAMS[stream], data) for stream, data in pieces]
    lines = list(joined(iter(frames)))
    for number, stream in kept.STREAMS.items():
        *whole, rest = b"".join(data for its, data in pieces if its == number).split(b"\n")
        assert [line.data for line in lines if line.stream == stream] == whole + ([rest] if rest else [])


def test_a_line_has_the_time_at_which_it_began(tmp_path: Path) -> None:
    lines = read(tmp_path / "r", frame(b"one\ntw") + frame(b"o\nthree", at=SECOND + 5) + frame(b"err\n", 2))
    assert [(line.time, line.stream, line.data) for line in lines] == [
        ("2026-11-25T00:00:00.000000000Z", "stdout", b"one"),
        ("2026-11-25T00:00:00.000000000Z", "stdout", b"two"),
        ("2026-11-25T00:00:00.000000000Z", "stderr", b"err"),
        ("2026-11-25T00:00:00.000000005Z", "stdout", b"three"),
    ]


def test_a_file_that_is_cut_off_anywhere_has_what_is_before_the_cut(tmp_path: Path) -> None:
    content = frame(b"") + frame(b"one\ntwo\n") + frame(b"three\n")
    whole = b"one\ntwo\nthree\n"
    for cut in range(len(content)):
        lines = read(tmp_path / "r", content[:cut])
        got = b"\n".join(texts(lines))
        assert whole.startswith(got)
        assert not told(lines)
        headers = sum(cut >= end for end in (17, 34, 34 + 8 + 17))
        assert len(got) >= cut - 17 * headers - 17 - 1  # but for a header that is not whole


@pytest.mark.parametrize(
    "strange",
    [
        b"x",
        b"scribbled" * 10_000,
        output.MAGIC,
        output.MAGIC * 1000,
        output.HEADER.pack(output.MAGIC, 3, SECOND, 1) + b"x",  # no such stream
        output.HEADER.pack(output.MAGIC, 1, SECOND, 1 << 31),  # longer than any
        bytes(100_000),  # as a disk has it that lost power
    ],
)
def test_what_a_stranger_writes_between_is_skipped_and_told(tmp_path: Path, strange: bytes) -> None:
    lines = read(tmp_path / "r", frame(b"one\n") + strange + frame(b"two\n") + strange + frame(b"three\n"))
    assert (texts(lines), told(lines)) == ([b"one", b"two", b"three"], 1)


@given(st.binary(max_size=2000))
def test_whatever_is_in_the_file_can_be_read(content: bytes) -> None:
    with NamedTemporaryFile() as file:
        for line in read(Path(file.name), frame(b"one\n") + content):
            assert datetime.fromisoformat(line.time)


def test_much_that_is_no_frame_takes_no_memory_and_a_hole_takes_no_time(tmp_path: Path) -> None:
    path = tmp_path / "r"
    with path.open("wb") as file:
        file.write(b"x" * 50_000_000)
        file.truncate(1 << 42)
    tracemalloc.start()
    lines = list(joined(kept.frames(path, OVER)))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert told(lines) == 1
    assert most < 4_000_000


def test_a_line_without_an_end_takes_no_memory_but_its_longest_piece(tmp_path: Path) -> None:
    path = tmp_path / "r"
    with path.open("wb") as file:
        for _ in range(1000):
            file.write(frame(b"x" * 65_536))
    tracemalloc.start()
    sizes = [len(line.data) for line in joined(kept.frames(path, OVER))]
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(sizes) == 65_536_000
    assert max(sizes) == LONGEST_PIECE
    assert most < 6_000_000


def test_a_file_that_somebody_empties_meanwhile_is_read_on_and_told(tmp_path: Path) -> None:
    path, ended = tmp_path / "r", Event()
    path.write_bytes(frame(b"one\n") * 1000)
    reading = kept.frames(path, ended)
    assert len([next(reading) for _ in range(1000)]) == 1000
    path.write_bytes(b"")
    rest: list[Line] = []
    reader = threading.Thread(target=lambda: rest.extend(joined(reading)))
    reader.start()
    threading.Event().wait(0.5)
    with path.open("ab") as file:
        file.write(frame(b"two\n"))
    ended.set()
    reader.join()
    assert (texts(rest), told(rest)) == ([b"two"], 1)


class KeepingEngine(ProcessEngine):
    """Processes whose output the real thing keeps, as an entrypoint does; Docker's own log has what that passes on."""

    away = False  # whether the daemon does not answer

    KEEPER = """
import subprocess, sys
from pathlib import Path
from standpipe_task import output
kept = output.kept_at(Path(sys.argv[1]))
child = subprocess.Popen([sys.executable, "-uc", sys.argv[2]], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
code = kept.follow(child)
kept.finish()
sys.exit(code if code >= 0 else 128 - code)
"""

    def start(
        self, pipeline: str, run: str, arguments: list[str], life: int, door: Path | None, output: Path | None = None
    ) -> None:
        assert output
        self.program, real = f"import sys; sys.argv[1:] = {[str(output), self.program]!r}\n{self.KEEPER}", self.program
        super().start(pipeline, run, arguments, life, door, output)
        self.program = real

    def find(self, pipeline: str, run: str) -> Container | None:
        if self.away:
            raise EngineUnavailable("Docker does not answer")
        return super().find(pipeline, run)

    def wait(self, container: str) -> None:
        if self.away:
            raise EngineUnavailable("Docker does not answer")
        super().wait(container)


@pytest.fixture
def keeping(monkeypatch: pytest.MonkeyPatch) -> KeepingEngine:
    monkeypatch.setenv("PYTHONPATH", str(Path(output.__file__).parents[1]))
    return KeepingEngine()


def nothing(_told: object) -> None:
    pass


def by_hand(ledger: Ledger, engine: ProcessEngine, listen: Callable[[Line], None] = nothing) -> tuple[str, list[Line]]:
    run = runner.run(ledger, engine, "arxlive", None, scheduled=False, listen=listen, say=nothing)
    assert run
    return run.id, [spool.line_of(one) for one in spool.read(paths.spool("arxlive", run.id)) if one["stream"] != "end"]


def test_a_run_is_read_from_what_its_first_process_keeps(ledger: Ledger, keeping: KeepingEngine) -> None:
    keeping.program = r"import sys; print('one'); print('two', file=sys.stderr); sys.stdout.buffer.write(b'\xffthree')"
    heard: list[Line] = []
    run, lines = by_hand(ledger, keeping, heard.append)
    assert heard == lines
    assert [(line.stream, line.data) for line in lines if line.stream == "stdout"] == [
        ("stdout", b"one"),
        ("stdout", b"\xffthree"),
    ]
    assert [line.data for line in lines if line.stream == "stderr"] == [b"two"]
    assert spool.is_whole(paths.spool("arxlive", run))
    assert keeping.removed == [run]
    assert not paths.output("arxlive", run).exists()


def test_what_docker_loses_is_in_the_log_all_the_same(
    ledger: Ledger, keeping: KeepingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeping.program = "for n in range(1000): print(n)"
    monkeypatch.setattr(keeping, "log", lambda _container: iter(()))
    _, lines = by_hand(ledger, keeping)
    assert [line.data for line in lines] == [b"%d" % n for n in range(1000)]


def test_lines_are_heard_while_the_daemon_is_away(ledger: Ledger, keeping: KeepingEngine) -> None:
    keeping.program = "import time; print('one'); time.sleep(1); print('two'); time.sleep(1)"
    heard: list[tuple[bytes, bool]] = []

    def listen(line: Line) -> None:
        heard.append((line.data, keeping.away))
        keeping.away = line.data == b"one"

    by_hand(ledger, keeping, listen)
    assert heard == [(b"one", False), (b"two", True)]


def test_a_second_reader_makes_the_very_same_spool(ledger: Ledger, keeping: KeepingEngine) -> None:
    keeping.program = "for n in range(1000): print(n)"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "release", nothing_of_it)
        run, _ = by_hand(ledger, keeping)
    path = paths.spool("arxlive", run)
    first = path.read_bytes().rpartition(b"\n{")[0]
    os.truncate(path, 5000)
    spool_log(keeping, "arxlive", run, keeping.find("arxlive", run))
    assert path.read_bytes().rpartition(b"\n{")[0] == first


def nothing_of_it(*_arguments: object) -> None:
    pass


def test_a_container_that_somebody_removes_takes_none_of_its_log_along(ledger: Ledger, keeping: KeepingEngine) -> None:
    keeping.program = "import time; print('one'); time.sleep(0.3); print('two'); time.sleep(60)"

    def listen(line: Line) -> None:
        if line.data == b"two":
            run = next(iter(keeping.made))
            del keeping.made[run]
            keeping.processes[run].kill()

    run, lines = by_hand(ledger, keeping, listen)
    assert [line.data for line in lines] == [b"one", b"two"]
    assert ledger.run(run).outcome == "interrupted"  # type: ignore[union-attr]
    runner.release_the_settled(ledger, keeping)
    assert not paths.output("arxlive", run).exists()


def test_a_runner_that_dies_with_its_container_leaves_a_log_that_can_be_closed(
    ledger: Ledger, keeping: KeepingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeping.program = "print('one')"
    follow = runner.follow
    monkeypatch.setattr(runner, "follow", broken)
    with pytest.raises(RuntimeError):
        by_hand(ledger, keeping)
    monkeypatch.setattr(runner, "follow", follow)
    run = ledger.history("arxlive", 1)[0].id
    keeping.processes[run].wait()
    del keeping.made[run]
    runner.settle_the_dead(ledger, keeping, None)
    assert [record.get("text") for record in spool.read(paths.spool("arxlive", run))] == ["one", None]


def broken(*_arguments: object) -> None:
    raise RuntimeError


def test_an_image_that_keeps_nothing_is_read_from_docker(
    ledger: Ledger, engine: ProcessEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "BEGINS_WITHIN", 0.2)
    engine.program = "import time; print('one'); time.sleep(1); print('two')"
    running: list[bool] = []

    def listen(_line: Line) -> None:
        running.extend(process.poll() is None for process in engine.processes.values())

    run, lines = by_hand(ledger, engine, listen)
    assert [line.data for line in lines] == [b"one", b"two"]
    assert running[0]  # it is not waited for until the end
    assert not paths.output("arxlive", run).exists()


def test_a_run_that_is_not_started_leaves_no_file(
    ledger: Ledger, engine: ProcessEngine, docker_away: Exception
) -> None:
    engine.refuses = docker_away
    with pytest.raises(type(docker_away)):
        by_hand(ledger, engine)
    assert list(kept.left()) == []


def test_the_file_is_for_its_container_alone(host: Path) -> None:
    path = kept.make("arxlive", "01J00000000000000000000000")
    assert path
    assert (path.parent.stat().st_mode & 0o777, path.stat().st_mode & 0o777) == (0o700, 0o666)
    if os.geteuid() == 0:
        command = ["/bin/sh", "-c", f": >>{path}"]
        answer = subprocess.run(command, user=65_534, group=65_534, extra_groups=[], capture_output=True, check=False)
        assert b"denied" in answer.stderr


def test_a_disk_that_cannot_take_the_file_keeps_no_run_from_starting(host: Path) -> None:
    paths.SPOOL.parent.mkdir(parents=True)
    paths.SPOOL.touch()
    assert kept.make("arxlive", "01J00000000000000000000000") is None
