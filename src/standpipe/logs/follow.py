"""A container's log to its very end, each line once, over as many connections as that takes.

Docker drops the beginning of a log that grows over its size (`pipeline_log_size`). Whoever reads on is
not disturbed; whoever begins again finds another beginning, and goes on behind the last line he had.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from itertools import chain

from standpipe import paths
from standpipe.engines import Container, Engine, Line
from standpipe.errors import EngineUnavailable
from standpipe.ledger import instant
from standpipe.logs import spool

PATIENCE = 600  # seconds for which an engine that does not answer is asked again, while a run is under way
DROPPED = (
    "lines may be missing here: the log grew over its size (pipeline_log_size), and Docker dropped its beginning "
    "before all of that was read"
)

Listener = Callable[[Line], None]


class ContainerGone(Exception):
    """The container was removed while its log was read: what came of it is not all that there was."""


def found(engine: Engine, name: str, run_id: str) -> Container | None:
    """Find a run's container; an engine that is being restarted is asked again."""
    for _ in range(PATIENCE):
        try:
            return engine.find(name, run_id)
        except EngineUnavailable:
            time.sleep(1)
    return engine.find(name, run_id)


def spool_log(engine: Engine, name: str, run_id: str, container: Container, listen: Listener | None = None) -> None:
    """Write a container's log to the spool of its run, from the first record to the closing one.

    Raises ContainerGone where the container is removed meanwhile; the spool stays open, with what it had.
    Raises OSError where the spool cannot be written, when the container has ended.
    """
    path = paths.spool(name, run_id)
    had = spool.first_and_last(path)
    lines = lines_until_the_end(engine, name, run_id, container, had)
    try:
        with spool.Spool(path, run_id) as file:
            first = next(lines, None)
            if had and first != had[0]:
                file.keep()
            for line in chain([first] if first else [], lines):
                file.write(line)
                if listen:
                    listen(line)
            file.finish()
    except OSError:
        for line in lines:
            if listen:
                listen(line)
        raise


def lines_until_the_end(
    engine: Engine, name: str, run_id: str, container: Container, had: tuple[Line, Line] | None = None
) -> Iterator[Line]:
    """Yield each line once, until the container has ended. Raises ContainerGone where it was removed meanwhile.

    `had` is the first and the last line that an earlier reader had. Where the log still begins with that
    first line, all of it is yielded again; else what comes after the last.
    """
    place = Place(had)
    while True:
        whole = False
        cut_off = []
        with suppress(EngineUnavailable):  # the daemon is being restarted: the container may well be alive
            for line in place.lines_after_it(engine.log(container.id)):
                if line.whole:
                    yield line
                else:
                    cut_off.append(line)  # by the container's end, or by the connection's
            whole = True
        closed = datetime.now(UTC)
        now = found(engine, name, run_id)
        if now is None:
            raise ContainerGone
        # A daemon that stops ends its connections like a container that ends: what came later is read again.
        if whole and not now.running and (now.ended_at is None or instant(now.ended_at) <= closed):
            yield from cut_off
            return
        time.sleep(0.2)


class Place:
    """How far a log has been read, which may have lost its beginning when it is read the next time."""

    def __init__(self, had: tuple[Line, Line] | None) -> None:
        """Begin before the first line, or with the first and the last line that were read."""
        self._first: Line | None
        self._last: Line | None
        self._first, self._last = had or (None, None)
        self._count = 0  # of whole lines that were read, from the beginning that the log has now

    def lines_after_it(self, log: Iterator[Line]) -> Iterator[Line]:
        """Yield the lines of a log, read from its present beginning, that come after this place; and move it."""
        reached = True
        for number, line in enumerate(log, start=1):
            if number == 1 and line.whole:
                if self._first and self._last and line != self._first:
                    self._count = 0
                    reached = line.time > self._last.time
                    if reached:
                        yield Line(line.time, "standpipe", DROPPED.encode())
                self._first = line
            if not reached and self._last:
                reached = line == self._last or line.time > self._last.time
                if not reached or line == self._last:
                    self._count = number
                    continue
            if not line.whole:
                yield line
            elif number > self._count:
                self._count, self._last = number, line
                yield line
