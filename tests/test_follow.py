"""A log that is read over connections that end, in lines of any length, from a beginning that may be gone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

import pytest

from standpipe import paths
from standpipe.engines import LONGEST_PIECE, Container, Line
from standpipe.engines.compose import lines_of
from standpipe.ledger import timestamp
from standpipe.logs import spool
from standpipe.logs.follow import DROPPED, ContainerGone, lines_until_the_end, spool_log


class Daemon:
    """Gives what a daemon gives of a log that it is asked for again and again, and of its container.

    After the last connection the container has ended, and its log stays as it was then.
    """

    def __init__(self, connections: list[list[Line]], gone: bool = False) -> None:
        self.connections, self.gone, self.last = connections, gone, list[Line]()

    def log(self, _container: str) -> Iterator[Line]:
        self.last = self.connections.pop(0) if self.connections else self.last
        yield from self.last

    def find(self, _pipeline: str, _run: str) -> Container | None:
        running = bool(self.connections)
        ended = None if running else timestamp(datetime(2099, 1, 1, tzinfo=UTC))  # a clock that was put back since
        return (
            None if self.gone else Container("c", "n", "r", running, None if running else 0, None, ended, "", None, "")
        )


def line(text: bytes, whole: bool = True, second: int = 0) -> Line:
    return Line(f"2026-11-23T03:00:{second:02}Z", "stdout", text, whole=whole)


CONTAINER = Container("c", "n", "r", True, None, None, None, "", None, "")


def read(daemon: Daemon) -> list[bytes]:
    return [one.data for one in lines_until_the_end(daemon, "arxlive", "r", CONTAINER)]  # type: ignore[arg-type]  # as much as is asked of it


def test_a_line_that_a_connection_cut_off_is_read_whole_from_the_next() -> None:
    first = [line(b"one"), line(b"tw", whole=False)]
    assert read(Daemon([first, [line(b"one"), line(b"two"), line(b"three")]])) == [b"one", b"two", b"three"]


def test_a_last_line_without_its_newline_is_kept() -> None:
    assert read(Daemon([[line(b"one"), line(b"tw", whole=False)]])) == [b"one", b"tw"]


def test_a_container_that_is_removed_meanwhile_is_told() -> None:
    with pytest.raises(ContainerGone):
        read(Daemon([[line(b"one")]], gone=True))


NUMBERED = [line(b"%d" % number, second=number) for number in range(10)]


def spooled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, earlier: list[Line], log: list[Line]) -> list[bytes]:
    """Return what a spool has that one runner began with `earlier`, and that another made of the log."""
    path = tmp_path / "r.ndjson"
    monkeypatch.setattr(paths, "spool", lambda _name, _run: path)
    with spool.Spool(path, "r") as file:
        for one in earlier:
            file.write(one)
    with path.open("ab") as cut_off:
        cut_off.write(b'{"run": "r", "seq": 9')
    spool_log(Daemon([log]), "arxlive", "r", CONTAINER)  # type: ignore[arg-type]  # as much as is asked of it
    assert spool.is_whole(path)
    *records, _end = spool.read(path)
    assert [record["seq"] for record in records] == list(range(1, len(records) + 1))
    return [spool.text(record) for record in records]


def test_a_log_whose_beginning_is_there_is_spooled_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert spooled(tmp_path, monkeypatch, NUMBERED[:4], NUMBERED) == [one.data for one in NUMBERED]


@pytest.mark.parametrize("begins", [1, 2, 3, 4])
def test_a_log_that_lost_its_beginning_goes_on_behind_what_was_spooled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begins: int
) -> None:
    found = spooled(tmp_path, monkeypatch, NUMBERED[:4], NUMBERED[begins:])
    told = [b for b in found if b == DROPPED.encode()]
    assert [b for b in found if b not in told] == [one.data for one in NUMBERED]
    assert len(told) == (begins > 3)  # only where what is between the two cannot be seen


STEPPED = [*(line(b"%d" % number, second=number + 30) for number in range(4)), *NUMBERED[4:]]  # back by half a minute


def test_a_log_that_lost_its_beginning_before_the_clock_went_back_is_spooled_whole_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = spooled(tmp_path, monkeypatch, STEPPED[:4], STEPPED[6:])
    assert found == [b"0", b"1", b"2", b"3", DROPPED.encode(), b"6", b"7", b"8", b"9"]


def test_a_log_that_kept_what_was_spooled_before_the_clock_went_back_goes_on_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert spooled(tmp_path, monkeypatch, STEPPED[:6], STEPPED[5:]) == [one.data for one in STEPPED]


def test_a_clock_that_went_back_and_passes_where_it_was_loses_no_line_of_a_log_that_is_being_read() -> None:
    later = [*STEPPED[6:], line(b"caught up", second=40)]
    read_on = read(Daemon([STEPPED[:4], later]))
    assert read_on == [b"0", b"1", b"2", b"3", DROPPED.encode(), *(one.data for one in later)]


def test_a_line_that_is_looked_for_in_a_log_whose_connection_breaks_is_looked_for_again() -> None:
    assert read(Daemon([NUMBERED[:6], NUMBERED[1:4], NUMBERED[1:]])) == [one.data for one in NUMBERED]


def test_lines_whose_times_are_a_little_out_of_order_come_once() -> None:
    ahead = Line("2026-11-23T03:00:02.5Z", "stderr", b"ahead")
    log = [NUMBERED[0], NUMBERED[1], ahead, NUMBERED[2], NUMBERED[4]]
    assert read(Daemon([log[:4], log[1:]])) == [one.data for one in log]


def test_a_log_of_which_nothing_is_left_keeps_what_was_spooled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert spooled(tmp_path, monkeypatch, NUMBERED[:4], []) == [one.data for one in NUMBERED[:4]]


@pytest.mark.parametrize("lines", [0, 4])
@pytest.mark.parametrize("left", [0, 2, 4])
def test_a_log_that_was_closed_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: int, left: int
) -> None:
    path = tmp_path / "r.ndjson"
    monkeypatch.setattr(paths, "spool", lambda _name, _run: path)
    with spool.Spool(path, "r") as file:
        for one in NUMBERED[:lines]:
            file.write(one)
        file.finish()
    closed = path.read_bytes()
    spool_log(Daemon([NUMBERED[lines - min(left, lines) : lines]]), "arxlive", "r", CONTAINER)  # type: ignore[arg-type]
    assert path.read_bytes() == closed


def test_a_log_that_loses_its_beginning_between_two_connections_goes_on_and_says_so() -> None:
    read_on = read(Daemon([NUMBERED[:4], NUMBERED[2:6], NUMBERED[8:]]))
    assert read_on == [*(b"%d" % number for number in range(6)), DROPPED.encode(), b"8", b"9"]


def frames(*pieces: tuple[int, bytes]) -> Callable[[int], bytes]:
    """Return what reads Docker's frames: of a stream (1, 2), with a time, each of 16 KiB of a line at most."""
    stream = b""
    for number, data in pieces:
        for start in range(0, len(data), 16_384):
            frame = b"2026-11-23T03:00:00.0Z " + data[start : start + 16_384]
            stream += bytes([number, 0, 0, 0]) + len(frame).to_bytes(4, "big") + frame
    return BytesIO(stream).read


def test_the_frames_of_a_long_line_are_one_line_again() -> None:
    long = b"x" * 100_000
    lines = list(lines_of(frames((1, long), (2, b"between\n"), (1, b"end\n"), (1, b"open"))))
    assert [(one.stream, one.data, one.whole) for one in lines] == [
        ("stderr", b"between", True),
        ("stdout", long + b"end", True),
        ("stdout", b"open", False),
    ]


@pytest.mark.parametrize("size", [LONGEST_PIECE - 1, LONGEST_PIECE, LONGEST_PIECE + 1, 3 * LONGEST_PIECE + 7])
@pytest.mark.parametrize("letter", [b"x", "é".encode(), "漢".encode(), b"\xff", b"\x80"])
def test_a_line_that_is_too_long_for_a_record_comes_in_pieces(size: int, letter: bytes) -> None:
    text = letter * (size // len(letter))
    lines = list(lines_of(frames((1, text + b"\n"), (1, b"next\n"))))
    pieces = lines[:-1]
    assert b"".join(one.data for one in pieces) == text
    assert [one.continues for one in pieces] == [True] * (len(pieces) - 1) + [False]
    assert (len(pieces) == 1) == (len(text) <= LONGEST_PIECE)
    assert all(0 < len(one.data) <= LONGEST_PIECE for one in pieces)
    if letter not in (b"\xff", b"\x80"):
        assert all(one.data.decode() for one in pieces)
