"""A transport for `requests` that spends a budget: no call goes out that was not counted first.

    session = requests.Session()
    session.mount("https://api.openalex.org/", BudgetAdapter("openalex"))

In a container that Standpipe started it asks the host, through the run's socket. Elsewhere, as on a laptop, it keeps
the books itself where that is said: STANDPIPE_LOCAL_BUDGETS names a file with a JSON list of budgets, as they are
declared for hosts, and an SQLite file beside it holds what was spent.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import threading
import time
import uuid
from contextlib import contextmanager, suppress
from datetime import date, datetime, timezone
from email.utils import parsedate_to_datetime
from http.client import HTTPException, parse_headers
from io import BufferedReader
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Union

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError, MaxRetryError, NewConnectionError, ProxyError

from standpipe_task import spending

DOOR = Path("/run/standpipe/run")
LOCAL = "STANDPIPE_LOCAL_BUDGETS"
FRESH = 60.0  # seconds after which a reservation is not taken for one of now
PATIENCE = 10.0  # seconds for which the host's service may be away, as while it is restarted
NEVER_SENT = (
    requests.exceptions.ConnectTimeout,
    requests.exceptions.InvalidHeader,
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
        repeatable = request.method in REPEATABLE and isinstance(request.body, (bytes, str, type(None)))
        for left in range(self.retries if repeatable else 0, -1, -1):
            try:
                response = self._send_once(request, kind, *args, **options)
            except (requests.ConnectionError, requests.Timeout) as error:
                if not left or isinstance(error, requests.exceptions.SSLError):
                    raise
            else:
                asked = retry_after(response.headers)
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
        if _mine.purse is not None and _mine.process == os.getpid():
            _mine.purse.close()
            _mine.purse = None

    def _send_once(self, request: requests.PreparedRequest, kind: str, *args: Any, **options: Any) -> requests.Response:
        ident, asked = uuid.uuid4().hex, time.time()
        try:
            purse = purse_of_this_thread()
            wait = purse.reserve(self.budget, kind, ident)
        except spending.Spent as error:
            until = None if error.resets_at is None else datetime.fromtimestamp(error.resets_at, timezone.utc)
            raise BudgetSpent(self.budget, str(error), request, until) from None
        except spending.Refused as error:
            raise BudgetUnavailable(self.budget, str(error), request) from None
        sent = False
        try:
            time.sleep(wait)
            if time.time() - asked > wait + FRESH:  # this process was stopped meanwhile, perhaps over a period's end
                purse.settle(self.budget, ident, {})
                return self._send_once(request, kind, *args, **options)
            sent = True
            response = super().send(request, *args, **options)
        except (requests.RequestException, HTTPError, OSError) as error:
            if not sent or was_never_connected(error):
                purse.refund(self.budget, ident)
            else:
                purse.settle(self.budget, ident, {})
            raise
        except BaseException:  # somebody stopped it
            if sent:
                purse.settle(self.budget, ident, {})
            else:
                purse.refund(self.budget, ident)
            raise
        purse.settle(self.budget, ident, response.headers, response.status_code)
        return response


def expect(budget: str, calls: Mapping[date, Mapping[str, float]]) -> None:
    """Tell how many calls, by kind, this pipeline expects to make on each of the days to come.

    The forecast goes by it until more is told, for a week at most, instead of by what was spent; nothing is reserved.
    Raises BudgetUnavailable where it cannot be told.
    """
    days = {day.isoformat(): {kind: round(number, 3) for kind, number in kinds.items()} for day, kinds in calls.items()}
    try:
        purse = new_purse()
        try:
            purse.expect(budget, days)
        finally:
            purse.close()
    except spending.Refused as error:
        raise BudgetUnavailable(budget, str(error)) from None


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


def retry_after(headers: Mapping[str, str]) -> Optional[float]:
    """Return for how many seconds a server asks not to be asked; None where it does not say (RFC 9110, 10.2.3)."""
    text = headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return float(text)
    with suppress(ValueError, TypeError, OverflowError):
        until = parsedate_to_datetime(text)
        now = parsedate_to_datetime(headers["Date"]) if headers.get("Date") else datetime.now(timezone.utc)
        return max(0.0, (until - now).total_seconds())
    return None


def hold_asked(headers: Mapping[str, str], status: int) -> Optional[float]:
    """Return for how long nobody who shares the budget is to ask, by a server that has refused for a while."""
    return retry_after(headers) if status in (429, 503) else None


class HostPurse:
    """Spends through the run's socket. The protocol: an HTTP upgrade, then a line of JSON for each order and answer."""

    def __init__(self, door: Path) -> None:
        """Connect when the first order comes."""
        self._door = door
        self._connection: Optional[socket.socket] = None
        self._reader: Optional[BufferedReader] = None
        self._headers: Dict[str, str] = {}
        self._unsure: List[Dict[str, Any]] = []  # what was told since the last answer, and may not be in the books

    def reserve(self, budget: str, kind: str, ident: str) -> float:
        """Reserve; return the seconds to wait before sending."""
        answer = self._order({"reserve": budget, "kind": kind, "id": ident})
        if "spent" in answer:
            raise spending.Spent(answer["spent"], answer.get("resets_at"))
        if "wait" not in answer:
            raise spending.Unavailable(answer.get("refused", "the host's service gave no answer that is known"))
        if answer.get("remaining_header"):
            self._headers[budget] = answer["remaining_header"]
        return float(answer["wait"])

    def settle(self, budget: str, ident: str, headers: Mapping[str, str], status: int = 0) -> None:
        """Charge it. Where that cannot be told, the reservation stands, which counts the same."""
        order: Dict[str, Any] = {"settle": budget, "id": ident}
        remaining = headers.get(self._headers.get(budget, ""), "") if status < 400 else ""
        if remaining:
            order["remaining"] = remaining
        hold = hold_asked(headers, status)
        if hold is not None:
            order["hold"] = hold
        self._tell(order)

    def refund(self, budget: str, ident: str) -> None:
        """Take it back."""
        self._tell({"refund": budget, "id": ident})

    def expect(self, budget: str, days: Mapping[str, Mapping[str, float]]) -> None:
        """Tell what is expected of the days to come."""
        order = {"expect": budget, "id": uuid.uuid4().hex, "days": days}
        if len(json.dumps(order)) > spending.LONGEST_ORDER:
            raise spending.Refused("so many days and kinds are not taken: tell the next 31 days")
        answer = self._order(order)
        if "noted" not in answer:
            raise spending.Unavailable(answer.get("refused", "the host's service gave no answer that is known"))

    def close(self) -> None:
        """End the connection."""
        self._hang_up()

    def _order(self, order: Dict[str, Any]) -> Dict[str, Any]:
        """Give an order and return the answer; give it again through a new connection where one breaks."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self._say(order)
                answer = dict(json.loads(self._reader.readline() if self._reader else b""))
            except (OSError, ValueError, HTTPException) as error:
                self._hang_up()
                if time.monotonic() > deadline:
                    if "reserve" in order:  # it may have come through, or will
                        self._tell({"refund": order["reserve"], "id": order["id"]})
                    raise spending.Unavailable(
                        f"standpiped on the host does not answer ({error}): no call goes out that it has not counted"
                    ) from None
                time.sleep(0.1)
            except BaseException:  # somebody stopped it: the answer must not be read for another's
                self._hang_up()
                raise
            else:
                if "refused" in answer:
                    self._hang_up()  # what was told before may not be booked either: a new connection tells it again
                else:
                    self._unsure.clear()
                return answer

    def _tell(self, order: Dict[str, Any]) -> None:
        for _ in range(2):  # a connection that broke since is made anew, once
            try:
                self._say(order)
            except (OSError, ValueError, HTTPException, spending.Unavailable):
                self._hang_up()
            else:
                break
        self._unsure.append(order)

    def _say(self, order: Dict[str, Any]) -> None:
        if self._connection is None:
            self._connect()
        assert self._connection is not None  # noqa: S101  # as connect() leaves it
        self._connection.sendall(json.dumps(order).encode() + b"\n")

    def _connect(self) -> None:
        token = (self._door / "token").read_text()
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(PATIENCE)
        try:
            connection.connect(str(self._door / "socket"))
            request = "GET /budgets HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: standpipe-budgets\r\nAuthorization: "
            connection.sendall(f"{request}{token}\r\n\r\n".encode())
            answers = connection.makefile("rb")
            status = answers.readline()
            head = parse_headers(answers)
            refusal = b"" if b" 101 " in status else answers.read(int(head.get("Content-Length", 0)))
        except BaseException:
            connection.close()
            raise
        if b" 101 " not in status:
            connection.close()
            raise spending.Unavailable(json.loads(refusal or b"{}").get("message", "the host's service refuses"))
        self._connection, self._reader = connection, answers
        for order in self._unsure:
            self._say(order)

    def _hang_up(self) -> None:
        if self._reader is not None:
            self._reader.close()
        if self._connection is not None:
            self._connection.close()
        self._connection = self._reader = None


class LocalPurse:
    """Keeps the books in an SQLite file beside the list of budgets that STANDPIPE_LOCAL_BUDGETS names."""

    def __init__(self, declared: Path) -> None:
        """Read the list, and open the file."""
        try:
            terms = [spending.Terms.of(budget) for budget in json.loads(declared.read_text())]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise spending.Unavailable(f"{LOCAL}: {declared} is no list of budgets ({error})") from None
        self._terms = {each.name: each for each in terms}
        self._run = f"{datetime.now(timezone.utc):%Y-%m-%d} {os.getpid()}"
        self._books = str(declared.with_suffix(".sqlite3"))

    def reserve(self, budget: str, kind: str, ident: str) -> float:
        """Reserve; return the seconds to wait before sending."""
        if budget not in self._terms:
            raise spending.Refused(f"budget {budget} is not declared in the file that {LOCAL} names")
        with self._open() as books:
            books.crash(self._terms[budget])
            return books.reserve(ident, self._terms[budget], "local", self._run, kind)

    def settle(self, budget: str, ident: str, headers: Mapping[str, str], status: int = 0) -> None:
        """Charge it. Where that fails, the reservation stands, which counts the same."""
        terms = self._terms[budget]
        with suppress(spending.Refused), self._open() as books:
            remaining = spending.remaining(headers.get(terms.remaining_header or "", "") if status < 400 else "")
            books.settle(ident, terms, remaining, hold_asked(headers, status))

    def refund(self, budget: str, ident: str) -> None:
        """Take it back."""
        with suppress(spending.Refused), self._open() as books:
            books.refund(ident, self._terms[budget])

    def expect(self, budget: str, days: Mapping[str, Mapping[str, float]]) -> None:
        """Note what is expected of the days to come."""
        if budget not in self._terms:
            raise spending.Refused(f"budget {budget} is not declared in the file that {LOCAL} names")
        with self._open() as books:
            books.expect(self._terms[budget], "local", spending.expected(self._terms[budget], days))

    def close(self) -> None:
        """Have nothing to let go of."""

    @contextmanager
    def _open(self) -> Iterator[spending.Books]:
        """Open the file for one transaction: a fork must not share what SQLite has open."""
        database = spending.open_database(self._books)
        try:
            with spending.books(database) as books:
                yield books
        finally:
            database.close()


class Mine(threading.local):
    """What a thread spends with: a thread or a fork must not share a connection."""

    process: int = 0
    purse: Optional[Union[HostPurse, LocalPurse]] = None


_mine = Mine()


def purse_of_this_thread() -> Union[HostPurse, LocalPurse]:
    """Return what this thread of this process spends with. Raises Unavailable where it has nothing."""
    if _mine.purse is None or _mine.process != os.getpid():
        _mine.purse, _mine.process = new_purse(), os.getpid()
    return _mine.purse


def new_purse() -> Union[HostPurse, LocalPurse]:
    """Return what a process of here spends with. Raises Unavailable where it has nothing."""
    if (DOOR / "token").exists():
        return HostPurse(DOOR)
    if os.environ.get(LOCAL):
        return LocalPurse(Path(os.environ[LOCAL]))
    raise spending.Unavailable(
        "this process has no run socket to spend a budget through: let the pipeline name the budget and start "
        f"it with standpipe run or from its folder; elsewhere, {LOCAL} names a file with budgets"
    )
