"""A session whose every request to OpenAlex is counted against a budget before it is sent.

The only place that knows of Standpipe; `standpipe_task` is in every image that it builds.
"""

from __future__ import annotations

import os
from pathlib import Path

import requests

from arxlive.openalex import Bearer, kind_of
from standpipe_task.budget import BudgetAdapter, BudgetSpent, BudgetUnavailable, expect

__all__ = ["BudgetSpent", "BudgetUnavailable", "expect", "open_session"]


def open_session(budget: str) -> requests.Session:
    """Return a session that spends from `budget`, and shows a key where the environment has one."""
    session = requests.Session()
    session.headers["User-Agent"] = "arxlive (Standpipe's example pipeline)"
    if key := _key():
        session.auth = Bearer(key)
    adapter = BudgetAdapter(budget, kind=kind_of)
    # Wherever a redirect leads to, it is counted as well.
    session.mount("https://", adapter)
    session.mount("http://", adapter)
    return session


def _key() -> str:
    """Return the key of $OPENALEX_API_KEY, else what the file of $OPENALEX_API_KEY_FILE holds."""
    if key := os.environ.get("OPENALEX_API_KEY"):
        return key.strip()
    if name := os.environ.get("OPENALEX_API_KEY_FILE"):
        return Path(name).read_text(encoding="utf-8").strip()
    return ""
