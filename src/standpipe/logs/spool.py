"""A run's log lines on the host: numbered, one JSON object a line, closed by a count and a digest.

A line is `{"run", "seq", "time", "stream", "text"}`, with `"base64"` in the place of `"text"` where
the bytes are not UTF-8. The closing record has the stream `end`, the count of the lines before it
and the SHA-256 of those lines as they stand in the file.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from standpipe.engines import Line

# What would move a terminal's cursor, or forge a line: shown as \x.. by `printable`.
CONTROL = {code: f"\\x{code:02x}" for code in (*range(0x20), 0x7F, *range(0x80, 0xA0)) if code != 0x09}


class Spool:
    """The spool of one run, open for writing; written anew from its first line."""

    def __init__(self, path: Path, run: str) -> None:
        """Make the file, and its directory, root's alone."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._run = run
        self._digest = hashlib.sha256()
        self.count = 0
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        self._file = os.fdopen(descriptor, "wb")

    def __enter__(self) -> Spool:
        """Return the spool."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the file as it is."""
        self._file.close()

    def write(self, line: Line) -> None:
        """Append one line, where a reader of the file sees it at once."""
        self.count += 1
        record: dict[str, Any] = {"run": self._run, "seq": self.count, "time": line.time, "stream": line.stream}
        try:
            record["text"] = line.data.decode()
        except UnicodeDecodeError:
            record["base64"] = base64.b64encode(line.data).decode()
        encoded = json.dumps(record, ensure_ascii=False).encode() + b"\n"
        self._digest.update(encoded)
        self._file.write(encoded)
        self._file.flush()

    def finish(self) -> None:
        """Write the closing record, and flush all to disk."""
        record = {
            "run": self._run,
            "seq": self.count + 1,
            "time": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
            "stream": "end",
            "count": self.count,
            "sha256": self._digest.hexdigest(),
        }
        self._file.write(json.dumps(record).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a spool as far as it is written."""
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield json.loads(line)


def text(record: dict[str, Any]) -> bytes:
    """Return the bytes that the container wrote."""
    if "base64" in record:
        return base64.b64decode(record["base64"])
    return str(record.get("text", "")).encode()


def printable(data: bytes) -> str:
    """Return a line as it can be shown: no byte of it moves a cursor or ends the line.

    Of a carriage-return progress bar, what stood last is shown.
    """
    return data.rstrip(b"\r").rpartition(b"\r")[2].decode(errors="backslashreplace").translate(CONTROL)
