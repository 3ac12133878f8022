"""Clients whose every request, to OpenAlex or to arXiv, is counted against a budget before it is sent.

The only place that knows of Standpipe; `standpipe_task` is in every image that it builds.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx2
import requests
from oaipmh_scythe import Scythe

from arxlive.openalex import Bearer, kind_of
from standpipe_task.budget import BudgetAdapter, BudgetSpent, BudgetUnavailable, expect
from standpipe_task.budget_httpx import BudgetTransport

__all__ = ["BudgetSpent", "BudgetUnavailable", "BudgetedScythe", "expect", "open_session"]


class BudgetedScythe(Scythe):
    """A Scythe that spends from `budget`.

    The library takes no client, but sends whatever it sends through its property `client`: here that is
    another one, with the same settings.
    """

    def __init__(self, endpoint: str, budget: str, **options: Any) -> None:
        """Take the budget's name, and the options of a Scythe."""
        super().__init__(endpoint, **options)
        own = super().client
        self._budgeted = httpx2.Client(
            transport=BudgetTransport(httpx2.HTTPTransport(proxy=_proxy_to(endpoint)), budget),
            headers=own.headers,
            timeout=own.timeout,
            auth=own.auth,
            event_hooks=own.event_hooks,
            default_encoding=self.http_config.encoding,
        )

    @property
    def client(self) -> httpx2.Client:
        """Give the client that spends; closed, it stays so."""
        return self._budgeted

    def close(self) -> None:
        """Let go of both clients' connections."""
        self._budgeted.close()
        super().close()


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


def _proxy_to(address: str) -> str | None:
    """Return the environment's proxy to an address: httpx2 looks for none where it is given a transport."""
    scheme, host = urlsplit(address)[:2]
    proxies = getproxies()
    proxy = None if proxy_bypass(host) else proxies.get(scheme) or proxies.get("all")
    return f"http://{proxy}" if proxy and "://" not in proxy else proxy  # as curl and requests take it


def _key() -> str:
    """Return the key of $OPENALEX_API_KEY, else what the file of $OPENALEX_API_KEY_FILE holds."""
    if key := os.environ.get("OPENALEX_API_KEY"):
        return key.strip()
    if name := os.environ.get("OPENALEX_API_KEY_FILE"):
        return Path(name).read_text(encoding="utf-8").strip()
    return ""
