"""Spends budgets for what comes through the doors: a line of JSON for each order, a line for each answer.

One thread reads from all connections. What has come in from any of them meanwhile is one transaction, and is answered
when that is on disk: the more there are who ask, the more orders each flush of the disk carries. A settling that is
lost with the service leaves its reservation open, which counts the same.
"""

from __future__ import annotations

import json
import os
import re
import selectors
import socket
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import Thread
from typing import Any

from standpipe.errors import InternalError
from standpipe.runsocket.journal import warn
from standpipe_task import spending

ORDERS = ("reserve", "settle", "refund", "expect")
ANSWERED = {"reserve", "expect"}  # the others are told, and nobody waits
IDENTITY = re.compile(r"[0-9a-f]{32}")
KIND = re.compile(r"[\w.-]{1,64}", re.ASCII)
CONNECTIONS = 256  # at a time, of one run or one container
SETTLES_WAIT = 0.02  # seconds
OTHERS_COME = 0.0003  # seconds for which the first of many waits, so that one flush of the disk carries them all
MOST_WAIT = 1000  # orders
ANSWERS_WAITING = 1 << 18  # bytes that a client may leave unread


@dataclass
class Client:
    """One connection: of whom, and which budgets he may spend (with the most that his run may, in billionths)."""

    connection: socket.socket
    pipeline: str
    run: str
    envelopes: dict[str, int | None]
    unread: bytearray = field(default_factory=bytearray)
    answers: bytearray = field(default_factory=bytearray)


Ready = list[tuple[selectors.SelectorKey, int]]


class Teller:
    """Keeps the books, for all doors of this host."""

    def __init__(
        self, database: Callable[[], spending.Database], terms: Callable[[], dict[str, spending.Terms]]
    ) -> None:
        """Serve from now on; `database` is opened when it is needed, and again after it failed."""
        self._open_database, self._declared = database, terms
        self._database: spending.Database | None = None
        self._told = ""
        self._selector = selectors.DefaultSelector()
        self._arrivals: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._bell, bell = socket.socketpair()
        bell.setblocking(False)
        self._selector.register(bell, selectors.EVENT_READ)
        self._inner_bell = bell
        self._closed = False
        self._thread = Thread(target=self._serve_or_end, daemon=True)
        self._thread.start()

    def take_over(self, connection: socket.socket, pipeline: str, run: str, envelopes: dict[str, int | None]) -> None:
        """Serve a connection from now on."""
        connection.setblocking(False)
        client = Client(connection, pipeline, run, envelopes)

        def do() -> None:
            if sum(key.data.run == run for key in self._selector.get_map().values() if key.data) >= CONNECTIONS:
                warn(f"{pipeline} {run}: more than {CONNECTIONS} connections at a time spend budgets: one is refused")
                connection.close()
            else:
                self._selector.register(connection, selectors.EVENT_READ, client)

        self._ask(do)

    def end(self, run: str) -> None:
        """Let go of a run's connections, and charge what it had reserved and not closed."""
        answered: SimpleQueue[None] = SimpleQueue()

        def do() -> None:
            try:
                clients = [key.data for key in self._selector.get_map().values() if key.data and key.data.run == run]
                unread = [(client, order) for client in clients for order in self._read(client)]
                self._answer([(client, order) for client, order in unread if "reserve" not in order])
                for client in clients:
                    self._drop(client)
                terms = self._declared()
                self._write_books(lambda books: [books.crash(terms[name], run) for name in sorted(terms)])
            finally:
                answered.put(None)

        self._ask(do)
        answered.get()

    def sweep(self) -> None:
        """Charge what was reserved long ago and never closed, and say to other hosts what is declared on this one."""

        def do() -> None:
            terms = self._declared()

            def look(books: spending.Books) -> None:
                books.declare(terms)
                for name in sorted(terms):
                    with suppress(spending.Refused):
                        books.crash(terms[name])

            self._write_books(look)

        self._ask(do)

    def close(self) -> None:
        """Serve no more, and let go of everything."""

        def do() -> None:
            self._closed = True

        self._ask(do)
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            if key.data:
                self._drop(key.data)
        self._selector.close()
        self._bell.close()
        self._inner_bell.close()
        self._forget_database()

    def _ask(self, what: Callable[[], None]) -> None:
        """Have something done by the thread that serves."""
        self._arrivals.put(what)
        self._bell.send(b"!")

    def _serve_or_end(self) -> None:
        """Serve; an error that nobody foresaw ends the whole service, which systemd starts anew."""
        try:
            self._serve()
        except BaseException:
            traceback.print_exc()
            os._exit(InternalError.exit_code)

    def _serve(self) -> None:
        waiting: list[tuple[Client, dict[str, Any]]] = []
        many = False
        while not self._closed:
            ready = self._selector.select(SETTLES_WAIT if waiting else None)
            self._take(ready, waiting)
            if many and ready:
                time.sleep(OTHERS_COME)
                self._take(self._selector.select(0), waiting)
            # Nobody waits for a settling; where the next reservation is not far, one flush of the disk carries both.
            reservations = sum("reserve" in order for _, order in waiting)
            if not ready or reservations or len(waiting) > MOST_WAIT:
                many = reservations > 1
                self._answer(waiting)
                waiting.clear()

    def _take(self, ready: Ready, waiting: list[tuple[Client, dict[str, Any]]]) -> None:
        """Take what has come in; what others ask of this thread comes after all before it."""
        for key, events in ready:
            if key.data is None:
                self._answer(waiting)
                waiting.clear()
                self._do_what_is_asked()
            else:
                if events & selectors.EVENT_WRITE:
                    self._write(key.data)
                if events & selectors.EVENT_READ:
                    waiting += [(key.data, order) for order in self._read(key.data)]

    def _do_what_is_asked(self) -> None:
        """Do what others asked this thread for."""
        with suppress(BlockingIOError):
            self._inner_bell.recv(4096)
        while not self._arrivals.empty():
            with suppress(Exception):  # of whatever kind: what was not closed now is, an hour later
                self._arrivals.get()()

    def _read(self, client: Client) -> Iterable[dict[str, Any]]:
        """Return the orders that have come in whole; one that is none ends the connection."""
        try:
            data = client.connection.recv(spending.LONGEST_ORDER)  # no more at a time: the others have their turn
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        client.unread += data
        *lines, rest = client.unread.split(b"\n")
        client.unread = rest
        orders = [order_of(bytes(line)) for line in lines]
        if not data or len(rest) > spending.LONGEST_ORDER or None in orders:
            self._drop(client)
        return [order for order in orders if order] if data else []

    def _answer(self, orders: list[tuple[Client, dict[str, Any]]]) -> None:
        """Carry out orders in one transaction, and answer when it is on disk."""
        if not orders:
            return
        answers: list[tuple[Client, dict[str, Any] | None]] = []
        try:
            terms = self._declared()

            def carry_out(books: spending.Books) -> None:
                for name in sorted({asked_of(client, order) for client, order in orders}.intersection(terms)):
                    with suppress(spending.Refused):  # told to whoever asks for it
                        books.account(terms[name])  # in one order everywhere: nobody waits for who waits for him
                answers[:] = [(client, carried_out(books, client, order, terms)) for client, order in orders]

            self._write_books(carry_out)
            self._told = ""
        except Exception as error:  # of whatever kind: what may have been written stands, and nothing is granted
            if str(error) != self._told:  # once, and where containers do not see it: it may name the database
                warn(f"budgets cannot be counted now: {error}")
            self._told = str(error)
            why = "the budgets' books cannot be kept now, as standpiped's journal says: no call goes out"
            answers = [(client, {"refused": why} if order.keys() & ANSWERED else None) for client, order in orders]
        for client, answer in answers:
            if answer is not None:
                client.answers += json.dumps(answer).encode() + b"\n"
        for client in {id(client): client for client, _ in answers}.values():
            self._write(client)

    def _write_books(self, what: Callable[[spending.Books], object]) -> None:
        """Do something in one transaction; once more where the connection was of before the server's restart.

        That is safe: each order's identity makes it happen once.
        """
        again = self._database is not None
        try:
            if self._database is not None and self._database.is_replaced():
                self._forget_database()
            if self._database is None:
                self._database = self._open_database()
            with spending.books(self._database) as books:
                what(books)
        except Exception as error:
            self._forget_database()
            if not (again and isinstance(error, spending.Unavailable)):
                raise
            self._write_books(what)

    def _forget_database(self) -> None:
        if self._database is not None:
            with suppress(Exception):
                self._database.close()
        self._database = None

    def _write(self, client: Client) -> None:
        """Send what the client takes now, and the rest when he takes it."""
        try:
            while client.answers:
                sent = client.connection.send(client.answers)
                del client.answers[:sent]
        except BlockingIOError:
            pass
        except OSError:
            self._drop(client)
            return
        if len(client.answers) > ANSWERS_WAITING:
            self._drop(client)
            return
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if client.answers else 0)
        with suppress(KeyError, ValueError):  # it was dropped meanwhile
            if self._selector.get_key(client.connection).events != wanted:
                self._selector.modify(client.connection, wanted, client)

    def _drop(self, client: Client) -> None:
        """Let go of a connection."""
        with suppress(KeyError, ValueError):
            self._selector.unregister(client.connection)
        client.connection.close()


def order_of(line: bytes) -> dict[str, Any] | None:
    """Read an order; None for what is none."""
    try:
        order = json.loads(line)
    except (ValueError, RecursionError):
        return None
    known = isinstance(order, dict) and len(line) <= spending.LONGEST_ORDER and IDENTITY.fullmatch(str(order.get("id")))
    return order if known and KIND.fullmatch(str(order.get("kind", "call"))) else None


def asked_of(client: Client, order: dict[str, Any]) -> str:
    """Return the budget that an order is about; nothing where it is none of the client's."""
    name = next((str(order[key]) for key in ORDERS if key in order), "")
    return name if name in client.envelopes else ""


def carried_out(
    books: spending.Books, client: Client, order: dict[str, Any], terms: dict[str, spending.Terms]
) -> dict[str, Any] | None:
    """Carry out one order; return the answer, where one is waited for. Raises what keeps the books from being kept."""
    try:
        name = budget_of(client, order, terms)
        own = f"{client.run} {order['id']}"  # nobody closes another's
        if "reserve" in order:
            kind = str(order.get("kind", "call"))
            wait = books.reserve(own, terms[name], client.pipeline, client.run, kind, client.envelopes[name])
            return {"wait": wait, "remaining_header": terms[name].remaining_header}
        if "settle" in order:
            books.settle(own, terms[name], spending.remaining(order.get("remaining")), seconds(order.get("hold")))
        elif "expect" in order:
            books.expect(terms[name], client.pipeline, spending.expected(terms[name], order.get("days")))
            return {"noted": True}
        else:
            books.refund(own, terms[name])
    except spending.Spent as error:
        return {"spent": str(error), "resets_at": error.resets_at}
    except spending.Refused as error:
        return {"refused": str(error)} if order.keys() & ANSWERED else None
    return None


def budget_of(client: Client, order: dict[str, Any], terms: dict[str, spending.Terms]) -> str:
    """Return the budget that an order is about. Raises Refused where it may not be spent, or is none of this host's."""
    name = asked_of(client, order)
    if not name:
        asked = next((str(order[key]) for key in ORDERS if key in order), "")
        known = ", ".join(sorted(client.envelopes)) or "none"
        raise spending.Refused(f"pipeline {client.pipeline} does not name budget {asked!r}. It names: {known}")
    if name not in terms:
        raise spending.Refused(f"budget {name} is not declared on this host: run site.yml on it")
    return name


def seconds(value: object) -> float | None:
    """Read for how long a provider asks for no calls; a year at most, None where that is no number."""
    return float(min(max(value, 0), spending.MOST_HOLD)) if isinstance(value, int | float) and value == value else None
