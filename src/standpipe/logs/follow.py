"""A run's log to its very end, each line once, whatever becomes of the daemon and of the runner meanwhile.

It is read from what the container's first process keeps, which is there whole for as long as the container is.
Where that process keeps nothing, it is read from Docker, over as many connections as that takes. Docker drops the
beginning of a log that grows over its size (`pipeline_log_size`): whoever reads on is not disturbed; whoever begins
again finds another beginning, and goes on behind the last line he had.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from itertools import chain
from threading import Event, Thread

from standpipe import paths
from standpipe.engines import Container, Engine, Line, joined
from standpipe.errors import EngineUnavailable
from standpipe.logs import kept, spool

PATIENCE = 600  # seconds for which an engine that does not answer is asked again, while a run is under way
OUT_OF_ORDER = timedelta(seconds=1)  # by which the times of lines of two streams may be
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


def spool_log(
    engine: Engine, name: str, run_id: str, container: Container | None, listen: Listener | None = None
) -> None:
    """Write a run's log to its spool, from the first record to the closing one, when the container has ended.

    Raises ContainerGone where all that there was went with the container; the spool stays open, with what it had.
    Raises OSError where the spool cannot be written, when the container has ended.
    """
    path = paths.spool(name, run_id)
    spool.take_back(path)  # of a ledger that is older than its receipt
    if spool.is_whole(path):
        return  # by a runner that died before it could note that
    end = End(engine, name, run_id, container)
    from_its_start = kept.begins(name, run_id, end.seen)
    had = None if from_its_start else spool.first_and_last(path)
    if from_its_start:
        lines = lines_kept(name, run_id, end)
    else:
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


def close_as_it_is(engine: Engine, name: str, run_id: str) -> None:
    """Close the spool of a run whose container is gone: with all that was kept of it, or with what is there."""
    path = paths.spool(name, run_id)
    spool.take_back(path)
    if not spool.is_closed(path):
        with suppress(ContainerGone):
            spool_log(engine, name, run_id, None)
            return
        spool.close_as_it_is(path, run_id)


class End:
    """A container's end: seen while others read, who need no daemon for that."""

    def __init__(self, engine: Engine, name: str, run_id: str, container: Container | None) -> None:
        """Begin to wait for it, where the container runs and keeps its output."""
        self.seen = Event()
        self._failure: Exception | None = None
        self._asked = engine, name, run_id
        if container is None or not container.running:
            self.seen.set()
        elif paths.output(name, run_id).exists():
            Thread(target=self._watch, args=[container], daemon=True).start()

    def _watch(self, container: Container) -> None:
        try:
            until_it_ends(*self._asked, container)
        except Exception as error:  # whoever reads raises it, when all is read
            self._failure = error
        finally:
            self.seen.set()

    def require(self) -> None:
        """Wait for it. Raises what kept it from being seen."""
        self.seen.wait()
        if self._failure:
            raise self._failure


def until_it_ends(engine: Engine, name: str, run_id: str, container: Container | None) -> None:
    """Wait until a container has ended, or is gone."""
    while container is not None and container.running:
        with suppress(EngineUnavailable):  # the daemon is being restarted: the container may well be alive
            engine.wait(container.id)
        container = found(engine, name, run_id)
        if container is not None and container.running:
            time.sleep(0.2)


def lines_kept(name: str, run_id: str, end: End) -> Iterator[Line]:
    """Yield each line that a container's first process has kept, until the container has ended."""
    try:
        yield from joined(kept.frames(paths.output(name, run_id), end.seen))
    except OSError:  # of a disk that fails: told when the container has ended, as always
        end.require()
        raise
    end.require()


def lines_until_the_end(
    engine: Engine, name: str, run_id: str, container: Container | None, had: tuple[Line, Line] | None = None
) -> Iterator[Line]:
    """Yield each line that Docker has once, until the container has ended. Raises ContainerGone where it is removed.

    `had` is the first and the last line that an earlier reader had. Where the log still begins with that
    first line, all of it is yielded again; else what comes after the last.
    """
    place = Place(had)
    while container is not None:

        def read(container_id: str = container.id) -> Iterator[Line]:
            return engine.log(container_id)

        whole = False
        cut_off = []
        with suppress(EngineUnavailable):  # the daemon is being restarted: the container may well be alive
            for line in place.lines_after_it(read, not container.running):
                if line.whole:
                    yield line
                else:
                    cut_off.append(line)  # by the container's end, or by the connection's
            whole = True
        # A daemon that stops ends its connections like a container that ends: what came later is read again.
        if whole and not container.running:
            yield from cut_off
            return
        time.sleep(0.2)
        container = found(engine, name, run_id)
    raise ContainerGone


class Place:
    """How far a log has been read, which may have lost its beginning when it is read the next time."""

    def __init__(self, had: tuple[Line, Line] | None) -> None:
        """Begin before the first line, or with the first and the last line that were read."""
        self._first: Line | None
        self._last: Line | None
        self._first, self._last = had or (None, None)
        self._count = 0  # of whole lines that were read, from the beginning that the log has now

    def lines_after_it(self, read: Callable[[], Iterator[Line]], ended: bool) -> Iterator[Line]:
        """Yield the lines of a log, read from its present beginning, that come after this place; and move it.

        A log with another beginning is past this place where the clock says so; else the place is looked for in it.
        Where it is not found by then, or in all of an `ended` log, the clock went back: all of the log is yielded.
        """
        first: Line | None = None
        past = ""
        for number, line in enumerate(read(), start=1):
            if number == 1 and line.whole and line != self._first:
                first = line
                if self._last and line.time <= self._last.time:
                    past = (datetime.fromisoformat(self._last.time) + OUT_OF_ORDER).isoformat()
                else:
                    if self._last:
                        yield Line(line.time, "standpipe", DROPPED.encode())
                    self._first, self._count = first, 0
            if past:
                if line == self._last:
                    self._first, self._count, past = first, number, ""
                elif line.time > past:
                    break
                continue
            if not line.whole:
                yield line
            elif number > self._count:
                self._count, self._last = number, line
                yield line
        else:
            past = past if ended else ""  # what is looked for may be in what another connection gives
        if first and past:
            yield Line(first.time, "standpipe", DROPPED.encode())
            self._first, self._last, self._count = None, None, 0
            yield from self.lines_after_it(read, ended)
