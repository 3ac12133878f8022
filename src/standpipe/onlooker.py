"""Whoever looks on while something is done: that he has gone, or that his disk is full, ends nothing."""

from __future__ import annotations

import os
import sys
from typing import Any, TextIO


def show_no_more(target: TextIO) -> None:
    """Show nothing there from now on."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), target.fileno())


class Onlooker:
    """Standard error, for as long as somebody reads it."""

    def __getattr__(self, name: str) -> Any:
        """Be what standard error is."""
        return getattr(sys.stderr, name)

    def write(self, text: str) -> None:
        """Write there."""
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except OSError:
            show_no_more(sys.stderr)

    def flush(self) -> None:
        """Have it written: it is."""
