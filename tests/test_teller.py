"""The teller: one thread serves all who spend, so that nothing which comes through a connection may end it."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from standpipe import paths
from standpipe.budgets.postgres import PostgresDatabase
from standpipe.runsocket.budgets import Teller
from standpipe_task import spending

TERMS = {"ten": spending.Terms("ten", 10 * spending.SCALE)}


class Books:
    """Books of which each opening is noted, and declarations that may be damaged."""

    def __init__(self, path: Path) -> None:
        self.path, self.opened = str(path), 0
        self.damaged = False

    def open(self) -> spending.Database:
        self.opened += 1
        self.database = spending.open_database(self.path)
        return self.database

    def terms(self) -> dict[str, spending.Terms]:
        if self.damaged:
            raise RuntimeError("the file is damaged")
        return TERMS


@pytest.fixture
def books(tmp_path: Path) -> Books:
    return Books(tmp_path / "books.sqlite3")


@pytest.fixture
def teller(books: Books) -> Iterator[Teller]:
    made = Teller(books.open, books.terms)
    yield made
    made.close()


@pytest.fixture
def client(teller: Teller) -> Iterator[socket.socket]:
    with connected(teller) as here:
        yield here


@contextmanager
def connected(teller: Teller) -> Iterator[socket.socket]:
    here, there = socket.socketpair()
    here.settimeout(10)
    teller.take_over(there, "pipeline", "run", {"ten": None})
    yield here
    here.close()
    deadline = time.monotonic() + 10
    while there.fileno() != -1 and time.monotonic() < deadline:  # the teller lets go of it
        time.sleep(0.01)


def say(client: socket.socket, *orders: dict[str, str]) -> None:
    orders = tuple(order | {"id": order["id"].encode().hex().ljust(32, "0")} for order in orders)
    client.sendall(b"".join(json.dumps(order).encode() + b"\n" for order in orders))


def reserve(client: socket.socket, ident: str) -> dict[str, object]:
    say(client, {"reserve": "ten", "id": ident})
    with client.makefile("rb") as answers:
        return dict(json.loads(answers.readline()))


def spent(books: Books) -> int:
    with closing(spending.open_database(books.path)) as database:
        return spending.state(database, TERMS["ten"], "0").spent // spending.SCALE


def test_a_client_that_settles_and_is_gone_is_charged_and_others_are_served(
    teller: Teller, client: socket.socket, books: Books
) -> None:
    for number in range(3):
        with connected(teller) as gone:
            assert "wait" in reserve(gone, str(number))
            say(gone, {"settle": "ten", "id": str(number)})
    assert "wait" in reserve(client, "last")
    assert spent(books) == 3


def test_a_settling_is_booked_though_nobody_reserves_after_it(
    client: socket.socket, teller: Teller, books: Books
) -> None:
    reserve(client, "one")
    say(client, {"settle": "ten", "id": "one"})
    for _ in range(500):
        if spent(books):
            return
        time.sleep(0.01)
    pytest.fail("not within five seconds")


def test_a_connection_to_the_database_that_broke_is_made_anew(client: socket.socket, books: Books) -> None:
    assert "wait" in reserve(client, "one")
    books.database._connection.close()  # as of a database that was restarted
    assert "wait" in reserve(client, "two")
    assert books.opened == 2


def test_damaged_declarations_refuse_and_end_nothing(teller: Teller, client: socket.socket, books: Books) -> None:
    books.damaged = True
    assert "as standpiped's journal says" in str(reserve(client, "one")["refused"])
    teller.sweep()
    teller.end("another run")
    books.damaged = False
    assert "wait" in reserve(client, "one")


def test_a_database_that_the_host_spends_by_no_more_is_replaced(host: Path) -> None:
    database = object.__new__(PostgresDatabase)  # without a server
    database._url = "postgresql://one/books"
    paths.BUDGETS_DATABASE.write_text(f"{database._url}\n")
    assert not database.is_replaced()
    paths.BUDGETS_DATABASE.write_text("postgresql://another/books\n")
    assert database.is_replaced()
    paths.BUDGETS_DATABASE.unlink()
    assert database.is_replaced()


def test_the_message_of_a_url_that_is_none_has_nothing_of_it() -> None:
    with pytest.raises(spending.Unavailable) as refused:
        PostgresDatabase("postgresql://standpipe:pass/word@database/books?" + "hunter2")
    assert "word" not in str(refused.value)
    assert "hunter2" not in str(refused.value)


def test_what_a_run_said_last_is_heard_before_its_end(teller: Teller, client: socket.socket, books: Books) -> None:
    for number in range(5):
        reserve(client, str(number))
    say(client, *({"settle": "ten", "id": str(number)} for number in range(5)))
    teller.end("run")
    assert spent(books) == 5
