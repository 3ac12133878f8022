"""How a call is paid for, whatever library sends it: reserved, sent at its turn, charged.

Adapters for libraries are beside this: `budget` for requests, `budget_httpx` for httpx. Standard library only.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from contextlib import contextmanager, suppress
from datetime import date, datetime, timezone
from email.utils import parsedate_to_datetime
from http.client import HTTPException, parse_headers
from io import BufferedReader
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Tuple, TypeVar, Union

from standpipe_task import spending

DOOR = Path("/run/standpipe/run")
LOCAL = "STANDPIPE_LOCAL_BUDGETS"
FRESH = 60.0  # seconds after which a reservation is not taken for one of now
LONGEST_NUMBER = 100  # characters of what a provider says is left
PATIENCE = 10.0  # seconds for which the host's service may be away, as while it is restarted

Response = TypeVar("Response", bound=Any)  # it has headers and a status_code


def pay(
    budget: str, kind: str, send: Callable[[], Response], was_never_connected: Callable[[BaseException], bool]
) -> Response:
    """Send one request when its price is reserved and its turn has come; return its response, whose body may be unread.

    What is sent is charged, whatever comes of it; it is taken back only where `was_never_connected` says of what `send`
    raised that nothing can have been sent. Raises spending.Refused, before anything is sent.
    """
    purse, ident = _turn(budget, kind)
    try:
        response = send()
    except BaseException as error:  # also where somebody stopped it
        if was_never_connected(error):
            purse.refund(budget, ident)
        else:
            purse.settle(budget, ident, {})
        raise
    purse.settle(budget, ident, response.headers, response.status_code)
    return response


def _turn(budget: str, kind: str) -> Tuple[Union[HostPurse, LocalPurse], str]:
    """Reserve, and wait until the reservation's turn has come; return it and what it was made with."""
    purse = purse_of_this_thread()
    while True:
        ident, asked = uuid.uuid4().hex, time.time()
        wait = purse.reserve(budget, kind, ident)
        try:
            time.sleep(wait)
        except BaseException:  # somebody stopped it
            purse.refund(budget, ident)
            raise
        if time.time() - asked <= wait + FRESH:
            return purse, ident
        purse.settle(budget, ident, {})  # this process was stopped meanwhile, perhaps over a period's end


def expect(
    budget: str, calls: Mapping[date, Mapping[str, float]], unavailable: Callable[[str, str], Exception]
) -> None:
    """Tell how many calls, by kind, this pipeline expects to make on each of the days to come.

    The forecast goes by it until more is told, for a week at most, instead of by what was spent; nothing is reserved.
    It takes 31 days at most; those that are over, or more than 31 days ahead in the budget's zone, are passed over.
    Raises what `unavailable` makes of the budget's name and of why, where it cannot be told.
    """
    days = {
        day.isoformat(): {kind: round(float(number), 3) for kind, number in kinds.items()}
        for day, kinds in calls.items()
    }
    try:
        purse = new_purse()
        try:
            purse.expect(budget, days)
        finally:
            purse.close()
    except spending.Refused as error:
        raise unavailable(budget, str(error)) from None


def let_go() -> None:
    """End this thread's connection to the books; a later call makes a new one."""
    if _mine.purse is not None and _mine.process == os.getpid():
        _mine.purse.close()
        _mine.purse = None


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
        if len(remaining) <= LONGEST_NUMBER and spending.remaining(remaining) is not None:
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
        self._books = str(declared.absolute().with_suffix(".sqlite3"))

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
