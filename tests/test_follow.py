"""A log whose connection ends in the middle of a line."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from standpipe.engines import Container, Line
from standpipe.ledger import timestamp
from standpipe.logs.follow import ContainerGone, lines_until_the_end


class Daemon:
    """Gives what a daemon gives of a log that it is asked for again and again, and of its container."""

    def __init__(self, connections: list[list[Line]], gone: bool = False) -> None:
        self.connections, self.gone = connections, gone

    def log(self, _container: str) -> Iterator[Line]:
        yield from self.connections.pop(0)

    def find(self, _pipeline: str, _run: str) -> Container | None:
        running = bool(self.connections)
        ended = None if running else timestamp(datetime(2026, 11, 23, tzinfo=UTC))
        return (
            None if self.gone else Container("c", "n", "r", running, None if running else 0, None, ended, "", None, "")
        )


def line(text: bytes, whole: bool = True) -> Line:
    return Line("2026-11-23T03:00:00Z", "stdout", text, whole)


def read(daemon: Daemon) -> list[bytes]:
    container = Container("c", "n", "r", True, None, None, None, "", None, "")
    return [one.data for one in lines_until_the_end(daemon, "arxlive", "r", container)]  # type: ignore[arg-type]  # as much as is asked of it


def test_a_line_that_a_connection_cut_off_is_read_whole_from_the_next() -> None:
    first = [line(b"one"), line(b"tw", whole=False)]
    assert read(Daemon([first, [line(b"one"), line(b"two"), line(b"three")]])) == [b"one", b"two", b"three"]


def test_a_last_line_without_its_newline_is_kept() -> None:
    assert read(Daemon([[line(b"one"), line(b"tw", whole=False)]])) == [b"one", b"tw"]


def test_a_container_that_is_removed_meanwhile_is_told() -> None:
    with pytest.raises(ContainerGone):
        read(Daemon([[line(b"one")]], gone=True))
