"""What the service says to the host's journal."""

from __future__ import annotations

import sys


def warn(message: str) -> None:
    """Tell the journal, as a warning (sd-daemon(3): the prefix <4>)."""
    safe = message.encode("unicode_escape", "backslashreplace").decode()
    print(f"<4>{safe}", file=sys.stderr, flush=True)
