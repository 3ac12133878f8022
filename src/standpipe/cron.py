"""Cron lines, in the syntax that both cronie and cronsim understand alike."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from cronsim import CronSim, CronSimError

FIELDS = ("minute", "hour", "day of month", "month", "day of week")
EXAMPLE = 'for example "0 3 * * 0-4" (Sunday to Thursday, 03:00)'


def check(line: str) -> None:
    """Raise ValueError, in words, where a line is not one that both would read in the same way."""
    if line.strip().startswith("@"):
        raise ValueError(f"is a nickname. Write five fields, {EXAMPLE}")
    fields = line.split()
    if len(fields) != 5:
        raise ValueError(f"has {len(fields)} fields, not 5: {', '.join(FIELDS)}. Write {EXAMPLE}")
    for name, field in zip(FIELDS, fields, strict=True):
        last_or_weekday = any(re.fullmatch(r"\d*[LW]", token.upper()) for token in re.split("[,/-]", field))
        if last_or_weekday or not re.fullmatch(r"[0-9A-Za-z*,/-]+", field):
            raise ValueError(f"has {field!r} for the {name}: use numbers, names, * , - and /. Write {EXAMPLE}")
    try:
        next(CronSim(line, datetime.now(UTC)))
    except CronSimError as error:
        raise ValueError(f"is no cron line ({error}). Write {EXAMPLE}") from None


def has_star(line: str) -> bool:
    """Say whether a line names every minute or hour, or every so many: cron then goes by real time."""
    minute, hour, *_days = line.split()
    return minute.startswith("*") or hour.startswith("*")
