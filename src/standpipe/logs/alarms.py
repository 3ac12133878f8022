"""What the collector's service warned of, as the system's journal has it."""

from __future__ import annotations

import json
import subprocess
import tempfile
from itertools import islice
from typing import NamedTuple

from standpipe.errors import InternalError

COMMAND = (
    *("journalctl", "--unit=standpipe-collect", "--priority=warning"),
    *("--output=json", "--output-fields=MESSAGE", "--no-pager", "--quiet"),
)
MOST_SHOWN = 20
MOST_COUNTED = 100_000  # of a flood; what came after these is of the next time


class Alarms(NamedTuple):
    """Warnings: how many, the first of them in full, the last; and where that is in the journal."""

    number: int
    first: list[str]
    last: str
    cursor: str


def since(cursor: str | None = None) -> Alarms | None:
    """Return the warnings after a place in the journal, if there are any; without a place, those of the last day.

    However many there are, few are in memory at once. Raises InternalError where the journal cannot be read.
    """
    where = f"--after-cursor={cursor}" if cursor else "--since=-1d"
    count, first, line = 0, [], b""
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen([*COMMAND, where], stdout=subprocess.PIPE, stderr=errors) as journal,
    ):
        for count, line in enumerate(islice(journal.stdout or (), MOST_COUNTED), 1):
            if count <= MOST_SHOWN:
                first.append(message(json.loads(line)))
        if count == MOST_COUNTED:
            journal.kill()
        elif journal.wait():
            errors.seek(0)
            raise InternalError(f"the journal cannot be read: {errors.read().decode(errors='replace').strip()}")
    if not count:
        return None
    entry = json.loads(line)
    return Alarms(count, first, message(entry), entry["__CURSOR"])


def message(entry: dict[str, object]) -> str:
    """Return the message of an entry of the journal's JSON, which has one that is no text as a list of bytes."""
    value = entry.get("MESSAGE")
    return bytes(value).decode(errors="backslashreplace") if isinstance(value, list) else str(value)
