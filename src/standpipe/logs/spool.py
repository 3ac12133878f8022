"""A run's log lines on the host: numbered, one JSON object a line, closed by a count and a digest.

A line is `{"run", "seq", "time", "stream", "text"}`, with `"base64"` in the place of `"text"` where
the bytes are not UTF-8, or would be too long as text, and with `"continues": true` where the next
record of the stream goes on with it. It is printable ASCII, so that nothing on the way has a reason to
change it. The stream `standpipe` is no container's: it says what is wrong with the log. The closing
record has the stream `end`, the count of the lines before it and the SHA-256 of those lines as they
stand in the file.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from standpipe.engines import Line
from standpipe.errors import InternalError

LONGEST_RECORD = 1_500_000  # bytes; 1 MiB of control characters would be six times as long as text
PUT_BY = ".confirmed"  # in the place of a spool's suffix
REMOVED = "lines may be missing here: the run's container was removed before all of its log was read"

# What would move a terminal's cursor, turn its text around, or forge a line: shown as its number.
UNSEEN = (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
CONTROL = {code: f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" for code in UNSEEN if code != 0x09}


class Spool:
    """The spool of one run, open for writing from its first line.

    A run that is followed again is written over what is there: the container's log is the same from
    its start, so the bytes are too, and whoever is reading the file meanwhile sees none of it vanish.
    Where Docker has dropped that start, `keep` goes on behind what is there.
    """

    def __init__(self, path: Path, run: str) -> None:
        """Make the file, and its directory, root's alone."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path = path
        self._run = run
        self._digest = hashlib.sha256()
        self.count = 0
        self._file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600), "wb")

    def __enter__(self) -> Spool:
        """Return the spool."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the file as it is."""
        self._file.close()

    def keep(self) -> None:
        """Go on behind the whole records that an earlier writer left."""
        size = 0
        with self._path.open("rb") as file:
            for record in file:
                if not record.endswith(b"\n"):
                    break
                self._digest.update(record)
                self.count += 1
                size += len(record)
        self._file.seek(size)

    def write(self, line: Line) -> None:
        """Append one line, where a reader of the file sees it at once."""
        head = {"run": self._run, "seq": self.count + 1, "time": line.time, "stream": line.stream}
        head |= {"continues": True} if line.continues else {}
        try:
            record = json.dumps(head | {"text": line.data.decode()}).replace("\x7f", "\\u007f")
        except UnicodeDecodeError:
            record = ""
        if not record or len(record) > LONGEST_RECORD:
            record = json.dumps(head | {"base64": base64.b64encode(line.data).decode()})
        data = record.encode() + b"\n"
        self._file.write(data)
        self._file.flush()
        self._digest.update(data)
        self.count += 1

    def finish(self) -> None:
        """Write the closing record, cut off what an earlier writer left behind it, and flush all to disk."""
        record = {
            "run": self._run,
            "seq": self.count + 1,
            "time": now(),
            "stream": "end",
            "count": self.count,
            "sha256": self._digest.hexdigest(),
        }
        self._file.write(json.dumps(record).encode() + b"\n")
        self._file.truncate()
        self._file.flush()
        os.fsync(self._file.fileno())
        flush_directory(self._path.parent)


def now() -> str:
    """Return the time as records have it."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def flush(path: Path) -> None:
    """Have a file, and its name, on disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    flush_directory(path.parent)


def flush_directory(path: Path) -> None:
    """Have the names in a directory on disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def place(path: Path) -> Path:
    """Return where a spool is: at its path, or put by."""
    aside = path.with_suffix(PUT_BY)
    return aside if aside.exists() else path


def put_by(path: Path) -> None:
    """Give a spool that the collector has another name, which no pattern of rsyslog's means.

    rsyslog holds open what its pattern means, two descriptors a file, for good: at some 8,000 it takes in nothing any
    more, the host's own logs included. A new name and the old one's removal are a removal for it, by which it also
    forgets how far it had read; a file that is renamed leaves that behind (tried with 8.2504).
    """
    with suppress(FileExistsError):
        path.with_suffix(PUT_BY).hardlink_to(path)
    path.unlink()


def take_back(path: Path) -> None:
    """Give a spool that is to be sent again its own name again, if it was put by."""
    aside = path.with_suffix(PUT_BY)
    if aside.exists() and not path.exists():
        aside.rename(path)


def close_as_it_is(path: Path, run: str) -> None:
    """Close the spool of a run whose container is gone: what is there is all that there will be, and it says so."""
    if is_closed(path):
        return
    with Spool(path, run) as spool:
        spool.keep()
        spool.write(Line(now(), "standpipe", REMOVED.encode()))
        spool.finish()


def is_closed(path: Path) -> bool:
    """Say whether a spool has its closing record."""
    return end_of(path) is not None


def end_of(path: Path) -> dict[str, Any] | None:
    """Return the closing record of a spool, or None where it has none, or is not there."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 512))  # the closing record is shorter
            last = json.loads(file.read().rpartition(b"\n")[0].rpartition(b"\n")[2])
        return {**last} if last["stream"] == "end" else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def first_and_last(path: Path) -> tuple[Line, Line] | None:
    """Return the first and the last whole line of a spool that is not closed, or None where it has none."""
    try:
        with path.open("rb") as file:
            first = file.readline()
            file.seek(max(0, path.stat().st_size - 2 * LONGEST_RECORD))
            last = file.read().rpartition(b"\n")[0].rpartition(b"\n")[2]
        return line_of(json.loads(first)), line_of(json.loads(last))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def line_of(record: dict[str, Any]) -> Line:
    """Return the line that was made a record."""
    return Line(record["time"], record["stream"], text(record), bool(record.get("continues")))


def closed_with(end: dict[str, Any]) -> tuple[Any, Any]:
    """Return the count and the digest of a closing record, or of a receipt."""
    return end.get("count"), end.get("sha256")


def is_whole(path: Path, noted: tuple[int, str] | None = None) -> bool:
    """Say whether a spool is closed, and holds what it was closed with; as it was noted then, where it was."""
    end = end_of(path)
    if end is None or (noted and closed_with(end) != noted):
        return False
    digest, count = hashlib.sha256(), 0
    with path.open("rb") as file:
        for line in file:
            if count == end.get("count"):
                return digest.hexdigest() == end.get("sha256") and file.read(1) == b""
            digest.update(line)
            count += 1
    return False


def read(path: Path, growing: Callable[[], bool] = lambda: False) -> Iterator[dict[str, Any]]:
    """Yield the records of a spool as far as it is written; wait for more of them while it is `growing`.

    Raises InternalError where a line of the file is no record.
    """
    with path.open("rb") as file:
        number = 0
        while True:
            more = growing()
            while (line := file.readline()).endswith(b"\n"):
                number += 1
                try:
                    record = json.loads(line)
                except ValueError:
                    raise InternalError(f"{path} is damaged: its line {number} is no record") from None
                yield record
                if record["stream"] == "end":
                    return
            file.seek(-len(line), os.SEEK_CUR)  # a line that is still being written
            if not more:
                return
            time.sleep(0.2)


def text(record: dict[str, Any]) -> bytes:
    """Return the bytes that the container wrote."""
    if "base64" in record:
        return base64.b64decode(record["base64"])
    return str(record.get("text", "")).encode()


def printable(data: bytes) -> str:
    """Return a line as it can be shown: no byte of it moves a cursor or ends the line.

    Of a carriage-return progress bar, what stood last is shown.
    """
    return one_line(data.rstrip(b"\r").rpartition(b"\r")[2])


def one_line(data: bytes) -> str:
    """Return all of a line, as one line that moves no cursor."""
    return data.decode(errors="backslashreplace").translate(CONTROL)
