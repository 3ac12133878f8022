"""A transport for `requests` that spends a budget: no call goes out that was not counted first.

    session = requests.Session()
    session.mount("https://api.openalex.org/", BudgetAdapter("openalex"))

In a container that Standpipe started it asks the host, through the run's socket. Elsewhere, as on a laptop, it keeps
the books itself where that is said: STANDPIPE_LOCAL_BUDGETS names a file with a JSON list of budgets, as they are
declared for hosts, and an SQLite file beside it holds what was spent.
"""

from __future__ import annotations

import ssl
import time
from datetime import date, datetime
from functools import partial
from typing import Any, Callable, Mapping, Optional, Union

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import MaxRetryError, NewConnectionError, ProxyError

from standpipe_task import purse, spending

NEVER_SENT = (
    requests.exceptions.ConnectTimeout,
    requests.exceptions.InvalidSchema,
    requests.exceptions.InvalidURL,
)
REPEATABLE = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})
MAY_PASS = frozenset({429, 500, 502, 503, 504})

Kind = Union[str, Callable[[requests.PreparedRequest], str]]


class BudgetError(requests.RequestException):
    """A call that was not made, for its budget's sake."""

    def __init__(self, budget: str, message: str, request: Optional[requests.PreparedRequest] = None) -> None:
        """Say which budget."""
        super().__init__(message, request=request)
        self.budget = budget


class BudgetSpent(BudgetError):
    """Nothing is left of it: until `resets_at`, or, where that is None, for the rest of this run."""

    def __init__(
        self,
        budget: str,
        message: str,
        request: Optional[requests.PreparedRequest] = None,
        resets_at: Optional[datetime] = None,
    ) -> None:
        """Say when there will be more (UTC)."""
        super().__init__(budget, message, request)
        self.resets_at = resets_at


class BudgetUnavailable(BudgetError):
    """It cannot be counted now, or is not declared for this pipeline."""


class BudgetAdapter(HTTPAdapter):
    """Sends each request when its price is reserved in a budget, again where that may help, and charges every sending.

    `kind` names the kind of call, by which a budget may have prices: a text, or a function of the prepared request.
    `retries` is how often a request that may be repeated is, after a broken connection, 429 or 5xx, `backoff` seconds
    later and then twice as long each time, or as Retry-After says up to `longest_wait` seconds. Redirects come through
    here one by one, and are charged so. What is sent is charged, whatever comes of it; only where no connection was
    made is a reservation taken back. Other options are those of requests' own HTTPAdapter.

    Raises BudgetSpent and BudgetUnavailable, before anything is sent.
    """

    __attrs__ = [*HTTPAdapter.__attrs__, "budget", "kind", "retries", "backoff", "longest_wait"]  # noqa: RUF012  # theirs

    def __init__(
        self,
        budget: str,
        kind: Kind = "call",
        retries: int = 3,
        backoff: float = 1.0,
        longest_wait: float = 60.0,
        **options: Any,
    ) -> None:
        """Connect to nothing yet."""
        self.budget = budget
        self.kind = kind
        self.retries = retries
        self.backoff = backoff
        self.longest_wait = longest_wait
        super().__init__(max_retries=0, **options)

    def send(self, request: requests.PreparedRequest, *args: Any, **options: Any) -> requests.Response:
        """Send a request, as often as it takes; each time it is paid for."""
        kind = self.kind if isinstance(self.kind, str) else self.kind(request)
        wait = self.backoff
        repeatable = request.method in REPEATABLE and is_whole(request)
        for left in range(self.retries if repeatable else 0, -1, -1):
            try:
                response = self._send_once(request, kind, *args, **options)
            except (requests.ConnectionError, requests.Timeout) as error:
                if not left or isinstance(error, requests.exceptions.SSLError):
                    raise
            else:
                asked = purse.retry_after(response.headers)
                if not left or response.status_code not in MAY_PASS or (asked or 0) > self.longest_wait:
                    return response
                wait = max(wait, asked or 0)
                response.close()
            time.sleep(wait)
            wait *= 2
        raise AssertionError("unreachable")

    def close(self) -> None:
        """Let go of all connections; a later request makes new ones."""
        super().close()
        purse.let_go()

    def _send_once(self, request: requests.PreparedRequest, kind: str, *args: Any, **options: Any) -> requests.Response:
        send = partial(super().send, request, *args, **options)
        try:
            return purse.pay(self.budget, kind, send, was_never_connected if is_whole(request) else never)
        except spending.Spent as error:
            raise BudgetSpent(self.budget, str(error), request, error.until) from None
        except spending.Refused as error:
            raise BudgetUnavailable(self.budget, str(error), request) from None


def expect(budget: str, calls: Mapping[date, Mapping[str, float]]) -> None:
    """Tell how many calls, by kind, this pipeline expects to make on each of the days to come: see `purse.expect`.

    Raises BudgetUnavailable where it cannot be told.
    """
    purse.expect(budget, calls, BudgetUnavailable)


def is_whole(request: requests.PreparedRequest) -> bool:
    """Say whether a request's body is at hand: what a stream raises is any error, of a connection of its own, too."""
    return isinstance(request.body, (bytes, str, type(None)))


def never(_error: BaseException) -> bool:
    """Take nothing back."""
    return False


def was_never_connected(error: BaseException) -> bool:
    """Say whether a request cannot have been sent: there was no connection to send it through, or nobody to trust."""
    if type(error) is OSError or isinstance(error, NEVER_SENT):  # the former is requests' word for a missing CA file
        return True
    cause: object = error
    for _ in range(8):  # what wraps what differs between versions
        if isinstance(cause, (NewConnectionError, ssl.SSLCertVerificationError)):
            return True
        if isinstance(cause, MaxRetryError):
            cause = cause.reason
        elif isinstance(cause, ProxyError):
            cause = cause.original_error
        else:
            cause = cause.args[-1] if isinstance(cause, BaseException) and cause.args else None
    return False
