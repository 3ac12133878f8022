"""What the collector's service warned of, as the system's journal has it."""

from __future__ import annotations

import json
import subprocess
from typing import NamedTuple

from standpipe.errors import InternalError

COMMAND = ["journalctl", "--unit=standpipe-collect", "--priority=warning", "--output=json", "--no-pager", "--quiet"]


class Alarm(NamedTuple):
    """One warning, and its place in the journal."""

    cursor: str
    text: str


def since(cursor: str | None = None) -> list[Alarm]:
    """Return the warnings after a place in the journal; without one, those of the last day.

    Raises InternalError where the journal cannot be read.
    """
    where = f"--after-cursor={cursor}" if cursor else "--since=-1d"
    answer = subprocess.run([*COMMAND, where], capture_output=True, check=False)
    if answer.returncode:
        raise InternalError(f"the journal cannot be read: {answer.stderr.decode(errors='replace').strip()}")
    entries = [json.loads(line) for line in answer.stdout.splitlines()]
    return [Alarm(entry["__CURSOR"], message(entry.get("MESSAGE"))) for entry in entries]


def message(value: object) -> str:
    """Return a message of the journal's JSON, which has one that is no text as a list of bytes."""
    return bytes(value).decode(errors="backslashreplace") if isinstance(value, list) else str(value)
