"""The runs that a collector holds: found, read, followed and searched."""

from __future__ import annotations

import gzip
import os
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from standpipe import paths
from standpipe.errors import UsageError
from standpipe.logs.collect import HOST, PIPELINE, RUN, Teller, changes, logs_of_runs, opened, receipt_of

CONFIRMED_WITHIN = 5  # seconds from a run's end, after which a receipt is not waited for


class Entry(NamedTuple):
    """One line of a run's file."""

    time: str
    stream: str
    text: str


def files(pipeline: str | None = None, host: str | None = None) -> list[Path]:
    """Return the files of runs, newest run first; of one pipeline or host, or of all.

    Raises UsageError where a name is none.
    """
    for name, pattern in ((pipeline, PIPELINE), (host, HOST)):
        if name is not None and not pattern.fullmatch(name):
            raise UsageError(f"{name!r} cannot be the name of a host or a pipeline")
    return sorted(logs_of_runs(host or "*", pipeline or "*"), key=run_of, reverse=True)


def find(pipeline: str, host: str | None, run: str | None) -> Path:
    """Return the file of a run, the newest where none is named. Raises UsageError where there is none."""
    found = files(pipeline, host)
    for path in found:
        if run in (None, run_of(path)):
            return path
    newest = ", ".join(f"{run_of(path)} ({path.parts[-3]})" for path in found[:10]) or "none"
    where = f" of {host}" if host else ""
    raise UsageError(f"no log of {pipeline} run {run or '(any)'}{where} on this collector. Its newest: {newest}")


def run_of(path: Path) -> str:
    """Return the id of the run whose file it is."""
    return path.name.partition(".")[0]


def label(path: Path) -> str:
    """Name a run's file as HOST/PIPELINE/RUN, and a system's as HOST/system-DAY."""
    return str(path.relative_to(paths.COLLECTED).with_name(run_of(path)))


def standing(path: Path, damage: Teller) -> str | None:
    """Return why a run's file may not be whole, or None; where it is no longer what was confirmed, that is damage."""
    receipt = receipt_of(path)
    if receipt is None:
        return f"the log of {label(path)} is not confirmed: the run goes on, or lines of it have not come"
    for wrong in changes(path, receipt):
        if wrong:
            damage(wrong)
    return None


def read(path: Path, tell: Teller, growing: Callable[[], bool] = lambda: False) -> Iterator[Entry]:
    """Yield the lines of a run's file; wait for more of them, until its end and its receipt, while it is `growing`.

    What is no line of such a file is skipped and told, as the file was changed by somebody.
    """
    of_a_run = RUN.fullmatch(run_of(path)) is not None
    with opened(path) as file:
        while True:
            more = growing()
            while (line := file.readline()).endswith(b"\n"):
                parts = line.decode(errors="backslashreplace").rstrip("\n").split(" ", 2)
                if len(parts) != 3:
                    tell(f"{path} is damaged: a line was skipped that has no time and no stream")
                    continue
                entry = Entry(*parts)
                if entry.stream == "end" and of_a_run:  # in a system's log that is some program's name
                    until = time.monotonic() + CONFIRMED_WITHIN
                    while growing() and receipt_of(path) is None and time.monotonic() < until:
                        time.sleep(0.2)
                    return
                yield entry
            if not more:
                return
            if os.fstat(file.fileno()).st_nlink == 0:
                tell(f"{path} was set aside, or removed: journalctl -u standpipe-collect; what comes anew has another")
                return
            file.seek(-len(line), 1)  # a line that is being written
            time.sleep(0.2)


def search(text: str, pipeline: str | None, host: str | None, tell: Teller) -> Iterator[tuple[Path, Entry]]:
    """Yield each line that has a text in it, with the file it stands in, newest run first; tell of damaged files.

    Where a line came in pieces, a text across their cut is found in the later one. What the hosts' systems logged comes
    last, unless a pipeline is named.
    """
    runs = files(pipeline, host)
    days = [] if pipeline else paths.COLLECTED.glob(f"{host or '*'}/system-*.log*")
    systems = sorted((day for day in days if day.suffix in (".log", ".gz")), reverse=True)
    for path in [*runs, *systems]:
        before: dict[str, str] = {}  # how the last piece of a stream ended
        try:
            for entry in read(path, tell):
                stream = entry.stream.removesuffix("+")
                seen = before.pop(stream, "") + entry.text
                if text in seen:
                    yield path, entry
                if entry.stream != stream and len(text) > 1:
                    before[stream] = seen[1 - len(text) :]
        except FileNotFoundError:
            continue  # removed by its age since its name was read
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            tell(f"{path} is damaged: {error}")
