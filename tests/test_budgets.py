"""Budgets: the books, the adapter against a real server that counts, and the service that is killed."""

from __future__ import annotations

import json
import os
import pickle
import random
import resource
import socket
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from uuid import uuid4

import pytest
import requests
import requests_cache
from hypothesis import given, settings
from hypothesis import strategies as st

from budget_drill import Drill
from standpipe import budgets, paths
from standpipe_task import purse as task
from standpipe_task import spending
from standpipe_task.budget import BudgetAdapter, BudgetSpent, BudgetUnavailable, expect

CALL = spending.SCALE


class Counting(ThreadingHTTPServer):
    """Answers by path, and counts what reaches it."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self.at: list[float] = []  # when calls came, by the monotonic clock
        super().__init__(("127.0.0.1", 0), Answer)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def calls(self) -> int:
        return sum(self.seen.values())


class Answer(BaseHTTPRequestHandler):
    server: Counting
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.seen[path] += 1
        self.server.at.append(time.monotonic())
        if path == "/broken":
            self.connection.close()
            self.close_connection = True
        elif path == "/slow":
            time.sleep(1)
        elif path == "/redirect":
            self.reply(302, Location="/ok")
        elif path == "/once" and self.server.seen[path] == 1:
            self.reply(503, **{"Retry-After": "0"})
        elif path == "/later":
            self.reply(429, **{"Retry-After": "3600"})
        elif path == "/remaining":
            self.reply(200, **{"X-RateLimit-Remaining": "3"})
        elif path == "/wordy":
            self.reply(200, **{"X-RateLimit-Remaining": "9" * 20_000})
        elif path == "/contradicts-itself":
            self.reply(200, **{"Content-length": "3"})
        else:
            self.reply(200)

    do_POST = do_PUT = do_GET  # noqa: N815  # as they are called there

    def reply(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # as it is called there
        pass


@pytest.fixture
def server() -> Iterator[Counting]:
    counting = Counting()
    Thread(target=counting.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield counting
    counting.shutdown()
    counting.server_close()


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A laptop's budgets: ten calls, and one by price."""
    declared = tmp_path / "budgets.json"
    budgets = [
        {"name": "ten", "limit": 10, "remaining_header": "X-RateLimit-Remaining"},
        {"name": "priced", "limit": "0.5", "unit": "USD", "period": "day", "prices": {"list": "0.1", "search": "0.25"}},
    ]
    declared.write_text(json.dumps(budgets))
    monkeypatch.setenv(task.LOCAL, str(declared))
    monkeypatch.setattr(task, "_mine", task.Mine())
    return declared


def session(server: Counting, budget: str = "ten", **options: object) -> requests.Session:
    made = requests.Session()
    made.mount(server.address, BudgetAdapter(budget, backoff=0.01, **options))  # type: ignore[arg-type]
    return made


def state(declared: Path, name: str = "ten") -> spending.State:
    terms = next(spending.Terms.of(budget) for budget in json.loads(declared.read_text()) if budget["name"] == name)
    database = spending.open_database(str(declared.with_suffix(".sqlite3")))
    try:
        return spending.state(database, terms, "0")
    finally:
        database.close()


def test_not_one_call_more_than_the_limit_goes_out(server: Counting, local: Path) -> None:
    with session(server) as api:
        for _ in range(10):
            assert api.get(f"{server.address}/ok").ok
        with pytest.raises(BudgetSpent, match="0 of 10 calls left this month") as refused:
            api.get(f"{server.address}/ok")
    assert refused.value.resets_at is not None
    assert refused.value.resets_at.day == 1
    assert server.calls == 10
    assert state(local).left == 0


@pytest.mark.parametrize(("path", "calls"), [("/ok", 1), ("/redirect", 2), ("/once", 2), ("/broken", 3), ("/later", 1)])
def test_the_books_agree_with_what_reaches_the_server(server: Counting, local: Path, path: str, calls: int) -> None:
    with session(server, retries=2) as api:
        try:
            api.get(f"{server.address}{path}")
        except requests.ConnectionError:
            assert path == "/broken"
    assert server.calls == calls
    assert state(local).spent == calls * CALL
    assert state(local).reserved == 0


def test_a_read_timeout_counts_and_a_request_that_may_not_be_repeated_is_not(server: Counting, local: Path) -> None:
    with session(server) as api, pytest.raises(requests.ReadTimeout):
        api.post(f"{server.address}/slow", timeout=0.2)
    assert server.calls == 1
    assert state(local).spent == CALL


def test_where_no_connection_was_made_nothing_is_spent(server: Counting, local: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        with requests.Session() as api:
            api.mount(address, BudgetAdapter("ten", retries=1, backoff=0.01))
            with pytest.raises(requests.ConnectionError):
                api.get(address)
    assert state(local).spent == state(local).reserved == 0


def test_an_answer_that_contradicts_itself_counts(server: Counting, local: Path) -> None:
    with session(server) as api, pytest.raises(requests.exceptions.InvalidHeader):
        api.get(f"{server.address}/contradicts-itself")
    assert state(local).spent == server.calls * CALL == CALL


def test_a_stream_that_fails_by_a_connection_of_its_own_counts(server: Counting, local: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))

        def body() -> Iterator[bytes]:
            yield b"a piece that is sent"
            yield requests.get(f"http://127.0.0.1:{nobody.getsockname()[1]}", timeout=5).content

        with session(server) as api, pytest.raises(requests.ConnectionError):
            api.post(f"{server.address}/ok", data=body())
    assert state(local).spent == CALL


def test_calls_have_prices_by_their_kind(server: Counting, local: Path) -> None:
    def kind(request: requests.PreparedRequest) -> str:
        return "search" if "search=" in str(request.url) else "list"

    with session(server, "priced", kind=kind) as api:
        api.get(f"{server.address}/ok")
        api.get(f"{server.address}/ok?search=x")
        with pytest.raises(BudgetSpent, match=r"0.15 of 0.5 USD left this day, and this call costs 0.25"):
            api.get(f"{server.address}/ok?search=x")
        api.get(f"{server.address}/ok")
    assert state(local, "priced").left == spending.parts("0.05")


def test_a_kind_of_call_without_a_price_is_refused(server: Counting, local: Path) -> None:
    with (
        session(server, "priced", kind="semantic") as api,
        pytest.raises(BudgetUnavailable, match="no price for a call"),
    ):
        api.get(f"{server.address}/ok")
    assert server.calls == 0


def test_a_provider_may_lower_what_is_left_and_never_raise_it(server: Counting, local: Path) -> None:
    with session(server) as api:
        api.get(f"{server.address}/remaining")
        assert state(local).left == 3 * CALL
        api.get(f"{server.address}/remaining")
        assert state(local).left == 2 * CALL


def test_a_provider_that_asks_for_an_hour_is_not_asked_by_anybody(server: Counting, local: Path) -> None:
    with session(server) as api:
        assert api.get(f"{server.address}/later").status_code == 429
        with pytest.raises(BudgetSpent, match="asks for none before") as refused:
            api.get(f"{server.address}/ok")
    assert refused.value.resets_at is not None
    assert 3500 < (refused.value.resets_at - datetime.now(UTC)).total_seconds() <= 3600
    assert server.calls == 1


def test_what_a_cache_knows_costs_nothing(server: Counting, local: Path) -> None:
    with requests_cache.CachedSession(backend="memory") as api:
        api.mount(server.address, BudgetAdapter("ten"))
        for _ in range(20):
            assert api.get(f"{server.address}/ok").ok
    assert server.calls == 1
    assert state(local).spent == CALL


def require_turns(server: Counting, local: Path, clients: list[Callable[[], Any]]) -> None:
    """Require that no call of processes which share ten a second, four of each client, comes before its turn."""
    local.write_text(json.dumps([{"name": "ten", "limit": 4 * len(clients), "pace": "10/s"}]))
    began = time.monotonic()
    children = []
    for client in clients:
        child = os.fork()
        if not child:
            try:
                with client() as api:
                    for _ in range(4):
                        api.get(f"{server.address}/ok")
            finally:
                os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    turns = [began + number / 10 for number in range(4 * len(clients))]
    early = [turn - came for turn, came in zip(turns, sorted(server.at), strict=True) if came < turn]
    assert not early


def test_a_pace_holds_over_all_processes_that_share_the_budget_and_no_call_comes_before_its_turn(
    server: Counting, local: Path
) -> None:
    require_turns(server, local, [lambda: session(server)] * 4)


def test_without_a_socket_and_without_a_setting_no_call_goes_out(
    server: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(task.LOCAL, raising=False)
    monkeypatch.setattr(task, "_mine", task.Mine())
    with session(server) as api, pytest.raises(BudgetUnavailable, match="STANDPIPE_LOCAL_BUDGETS"):
        api.get(f"{server.address}/ok")
    assert server.calls == 0


def test_damaged_books_let_no_call_out(server: Counting, local: Path) -> None:
    local.with_suffix(".sqlite3").write_bytes(b"no database" * 1000)
    with session(server) as api, pytest.raises(BudgetUnavailable, match=r"cannot be opened .*not a database"):
        api.get(f"{server.address}/ok")
    assert server.calls == 0


def test_books_on_a_full_disk_let_no_call_out(server: Counting, local: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with session(server) as api:
        api.get(f"{server.address}/ok")
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))  # the kernel lets no file grow beyond it
        try:
            with pytest.raises(BudgetUnavailable, match=r"ledger .*cannot be"):
                api.get(f"{server.address}/ok")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert server.calls == 1
        assert api.get(f"{server.address}/ok").ok
    assert state(local).spent == 2 * CALL


class Clock:
    """A clock that is set by hand."""

    def __init__(self, text: str) -> None:
        self.set(text)

    def set(self, text: str) -> None:
        self.now = datetime.fromisoformat(text).timestamp()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock("2026-11-30T23:59:50+00:00")


@pytest.fixture
def database(tmp_path: Path, clock: Clock) -> Iterator[spending.Database]:
    made = spending.Database(str(tmp_path / "books.sqlite3"), clock)
    yield made
    made.close()


TEN = spending.Terms("ten", 10 * CALL)


def reserve(database: spending.Database, ident: str, terms: spending.Terms = TEN, **more: object) -> float:
    with spending.books(database) as books:
        return books.reserve(ident, terms, "arxlive", "run", **more)  # type: ignore[arg-type]


def settle(database: spending.Database, ident: str, terms: spending.Terms = TEN) -> None:
    with spending.books(database) as books:
        books.settle(ident, terms)


def test_a_call_that_is_under_way_at_a_period_s_end_counts_in_both(database: spending.Database, clock: Clock) -> None:
    for number in range(9):
        reserve(database, f"a{number}")
        settle(database, f"a{number}")
    reserve(database, "late")
    clock.set("2026-12-01T00:00:05+00:00")
    assert spending.state(database, TEN, "0").left == 9 * CALL
    settle(database, "late")
    december = spending.state(database, TEN, "0")
    assert (december.spent, december.left) == (CALL, 9 * CALL)
    assert database.execute("SELECT spent FROM period ORDER BY starts").fetchall() == [(10 * CALL,), (CALL,)]


def test_a_clock_that_is_set_back_into_an_earlier_period_stops_all(database: spending.Database, clock: Clock) -> None:
    clock.set("2026-12-01T00:00:30+00:00")
    reserve(database, "first")
    clock.set("2026-11-30T23:59:59+00:00")
    assert reserve(database, "slipped") == 0  # half a minute is what clocks do
    clock.set("2026-11-28T00:00:00+00:00")
    with pytest.raises(spending.Unavailable, match="set the clock right"):
        reserve(database, "third")
    with spending.books(database) as books:
        books.trust_clock(TEN)
    assert reserve(database, "fourth") == 0


def test_a_limit_below_what_is_spent_says_so(database: spending.Database) -> None:
    for number in range(6):
        reserve(database, f"{number}")
        settle(database, f"{number}")
    lowered = spending.Terms("ten", 5 * CALL)
    with pytest.raises(spending.Spent, match=r"has 0 of 5 calls left .* above its limit \(it was lowered\)"):
        reserve(database, "next", lowered)
    assert spending.state(database, lowered, "0").left == 0


def test_a_run_has_an_envelope(database: spending.Database) -> None:
    for ident in ("one", "two"):
        reserve(database, ident, per_run=2 * CALL)
    with pytest.raises(spending.Spent, match="this run has spent 2 of its 2 calls") as refused:
        reserve(database, "three", per_run=2 * CALL)
    assert refused.value.resets_at is None
    with spending.books(database) as books:
        books.refund("two", TEN)
        books.settle("one", TEN)
    reserve(database, "three", per_run=2 * CALL)
    with pytest.raises(spending.Spent, match="of its 2 calls"):
        reserve(database, "four", per_run=2 * CALL)


def test_the_same_reservation_asked_for_twice_is_one(database: spending.Database) -> None:
    reserve(database, "same")
    reserve(database, "same")
    assert spending.state(database, TEN, "0").reserved == CALL
    settle(database, "same")
    settle(database, "same")
    assert spending.state(database, TEN, "0").spent == CALL


def test_what_nobody_closed_counts_as_spent(database: spending.Database, clock: Clock) -> None:
    clock.set("2026-11-20T03:00:00+00:00")
    reserve(database, "lost")
    clock.set("2026-11-20T04:30:00+00:00")
    with spending.books(database) as books:
        assert books.crash(TEN) == 1
        books.refund("lost", TEN)  # too late
    now = spending.state(database, TEN, "0")
    assert (now.crashed, now.spent, now.reserved, now.left) == (CALL, 0, 0, 9 * CALL)


PERIODS = st.sampled_from(["day", "week", "month"])
ZONES = st.sampled_from(["UTC", "Europe/London", "America/New_York", "Australia/Lord_Howe", "Asia/Beirut"])


@given(st.integers(0, 2**32 - 1), PERIODS, ZONES)
def test_periods_tile_the_time_without_a_gap(instant: int, period: str, zone: str) -> None:
    terms = spending.Terms("tiles", CALL, period=period, timezone=zone)
    starts, ends = terms.period_at(instant)
    assert starts <= instant < ends
    assert terms.period_at(ends)[0] == ends
    assert terms.period_at(starts) == (starts, ends)
    assert terms.period_at(starts - 1)[1] == starts


@settings(deadline=None)  # it writes to a real disk, which others may keep busy
@given(st.lists(st.sampled_from(["reserve", "settle", "refund", "crash", "on"]), max_size=60), st.integers(0, 99))
def test_whatever_happens_the_books_add_up_and_nothing_goes_over(steps: list[str], seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311  # a test's chances
    clock = Clock("2026-11-30T23:00:00+00:00")
    database = spending.Database(":memory:", clock)
    terms = spending.Terms("ten", 10 * CALL, period="day")
    granted: list[str] = []
    for number, step in enumerate(steps):
        if step == "on":
            clock.now += chance.random() * 7200
        elif step == "crash":
            with spending.books(database) as books:
                books.crash(terms)
        elif step == "reserve":
            try:
                reserve(database, str(number), terms)
                granted.append(str(number))
            except spending.Spent:
                assert spending.state(database, terms, "0").left == 0
        elif granted:
            with spending.books(database) as books:
                ident = granted.pop(chance.randrange(len(granted)))
                books.settle(ident, terms) if step == "settle" else books.refund(ident, terms)
        for starts, spent, crashed in database.execute("SELECT starts, spent, crashed FROM period").fetchall():
            assert spent + crashed <= terms.limit
            told = database.execute("SELECT coalesce(sum(amount), 0) FROM spending WHERE starts = ?", starts).fetchone()
            assert told[0] == spent + crashed
    database.close()


@pytest.fixture
def drill(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Drill]:
    """A real service with a budget of ten units, through which this process spends."""
    made = Drill(short_path, 10, 0, 0)
    monkeypatch.setattr(task, "DOOR", made.door)
    monkeypatch.setattr(task, "_mine", task.Mine())
    yield made
    made.end()


def test_many_spenders_and_a_service_that_are_killed_never_spend_one_unit_more(short_path: Path) -> None:
    full = "STANDPIPE_FULL" in os.environ
    units, processes, kills, think = (10_000, 64, 1000, 0.3) if full else (1500, 16, 40, 0.05)
    drill = Drill(short_path, units, processes, think)
    drill.run(kills, random.Random(1))  # noqa: S311  # a drill's chances
    told = drill.result()
    assert told["spenders_killed"] + told["service_killed"] == kills, told
    assert told["spent"] + told["crashed"] + told["left"] == units, told
    assert told["left"] == 0, told
    assert told["booked"] == told["spent"] + told["crashed"], told
    assert told["granted"] <= told["spent"] + told["crashed"], told
    assert told["crashed"] <= told["spenders_killed"] + told["service_killed"] * processes, told


def test_where_the_service_is_away_no_call_goes_out(
    drill: Drill, server: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task, "PATIENCE", 0.3)
    with session(server, "units") as api:
        assert api.get(f"{server.address}/ok").ok
        drill.service.kill()
        drill.service.wait()
        with pytest.raises(BudgetUnavailable, match=r"standpiped on the host does not answer"):
            api.get(f"{server.address}/ok")
        assert server.calls == 1
        drill.service = drill.started()
        assert api.get(f"{server.address}/ok").ok
    assert server.calls == 2
    told = drill.result()
    assert told["spent"] + told["crashed"] == 2  # it was killed before it had read that the call was answered


def test_a_budget_that_is_removed_under_a_run_takes_none_of_its_others(short_path: Path) -> None:
    drill = Drill(short_path, 10, 0, 0)
    declared, pipeline = (short_path / "etc/standpipe" / name for name in ("budgets.yml", "pipelines/drill.yml"))
    pipeline.write_text(pipeline.read_text().replace("[{name: units}]", "[{name: units}, {name: gone}]"))
    declared.write_text("[{name: units, limit: '10'}, {name: gone, limit: '10'}]\n")
    purse = task.HostPurse(drill.door)
    try:
        under_way = "a" * 32
        purse.reserve("gone", "call", under_way)
        declared.write_text("[{name: units, limit: '10'}]\n")
        purse.settle("gone", under_way, {})
        for number in range(10):
            purse.reserve("units", "call", f"{number:032x}")
            purse.settle("units", f"{number:032x}", {})
        with pytest.raises(spending.Spent):
            purse.reserve("units", "call", "b" * 32)
        assert drill.result()["spent"] == 10
    finally:
        purse.close()
        drill.end()


def test_a_long_word_of_the_provider_s_ends_no_connection(drill: Drill, server: Counting) -> None:
    with session(server, "units") as api:
        for _ in range(3):
            assert api.get(f"{server.address}/wordy").ok
    assert drill.result()["spent"] == 3


def test_a_budget_that_the_pipeline_does_not_name_is_refused(
    drill: Drill, server: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    with session(server, "another") as api, pytest.raises(BudgetUnavailable, match="does not name budget 'another'"):
        api.get(f"{server.address}/ok")
    (drill.door / "token").chmod(0o644)
    (drill.door / "token").write_text("not the one")
    monkeypatch.setattr(task, "_mine", task.Mine())
    with session(server, "units") as api, pytest.raises(BudgetUnavailable, match="token is not this pipeline's"):
        api.get(f"{server.address}/ok")
    assert server.calls == 0


def test_the_books_of_the_service_are_damaged_and_it_fails_closed(
    drill: Drill, short_path: Path, server: Counting
) -> None:
    books = short_path / "var/lib/standpipe/budgets.sqlite3"
    drill.end()
    books.parent.mkdir(parents=True, exist_ok=True)
    books.with_name("budgets.sqlite3-wal").unlink(missing_ok=True)
    books.write_bytes(b"no database" * 1000)
    drill.service = drill.started()
    with session(server, "units") as api:
        with pytest.raises(BudgetUnavailable, match="books cannot be kept now"):
            api.get(f"{server.address}/ok")
        assert server.calls == 0
        environment = {**os.environ, "STANDPIPE_ROOT": str(short_path)}
        command = [sys.executable, "-m", "standpipe", "budget", "--new-books"]
        subprocess.run(command, env=environment, check=True, capture_output=True)
        assert api.get(f"{server.address}/ok").ok


def test_local_books_stay_where_they_are_wherever_the_process_goes(
    server: Counting, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(task.LOCAL, local.name)
    with session(server) as api:
        api.get(f"{server.address}/ok")
        monkeypatch.chdir(tmp_path / "elsewhere")
        api.get(f"{server.address}/ok")
    assert state(local).spent == 2 * CALL
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_fork_spends_the_same_budget(server: Counting, local: Path) -> None:
    with session(server) as api:
        api.get(f"{server.address}/ok")
        children = []
        for _ in range(4):
            child = os.fork()
            if not child:
                try:
                    for _ in range(6):
                        session(server).get(f"{server.address}/ok")
                finally:
                    os._exit(0)
            children.append(child)
        with suppress(BudgetSpent):
            api.get(f"{server.address}/ok")
        api.close()
        for child in children:
            os.waitpid(child, 0)
    assert server.calls == 10
    assert state(local).spent == 10 * CALL


def test_another_period_or_zone_does_not_make_what_is_spent_forgotten(
    database: spending.Database, clock: Clock
) -> None:
    clock.set("2026-11-20T12:00:00+00:00")
    for number in range(10):
        reserve(database, f"{number}")
        settle(database, f"{number}")
    for period, zone in (("week", "UTC"), ("month", "America/New_York"), ("day", "Asia/Tokyo")):
        with pytest.raises(spending.Spent):
            reserve(database, zone, spending.Terms("ten", 10 * CALL, period=period, timezone=zone))
    clock.set("2026-12-01T12:00:00+00:00")
    assert reserve(database, "december") == 0


def spend(database: spending.Database, calls: int, terms: spending.Terms) -> None:
    for _ in range(calls):
        ident = uuid4().hex
        reserve(database, ident, terms)
        settle(database, ident, terms)


def test_another_period_and_back_again_is_not_one_unit_more(database: spending.Database, clock: Clock) -> None:
    week = spending.Terms("ten", 10 * CALL, period="week")
    clock.set("2026-11-17T12:00:00+00:00")
    spend(database, 4, TEN)
    spend(database, 3, week)
    clock.set("2026-11-24T12:00:00+00:00")
    spend(database, 1, week)  # of a week of which none was spent
    assert spending.state(database, week).left == 9 * CALL
    spend(database, 1, TEN)
    assert spending.state(database, TEN).left == CALL
    spend(database, 1, week)
    with pytest.raises(spending.Spent):
        reserve(database, "eleventh")
    clock.set("2026-12-08T12:00:00+00:00")
    spend(database, 10, TEN)


@settings(deadline=None, max_examples=50)  # as above
@given(st.integers())
def test_however_a_budget_is_declared_from_time_to_time_no_period_has_more_than_its_limit(seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311  # a test's chances
    clock = Clock("2026-11-25T23:00:00+00:00")
    periods, zones = ("day", "week", "month"), ("UTC", "America/New_York", "Asia/Tokyo")
    declared = [spending.Terms("ten", 10 * CALL, period=period, timezone=zone) for period in periods for zone in zones]
    terms = declared[0]
    granted: list[float] = []
    under_way: list[str] = []
    with closing(spending.Database(":memory:", clock)) as database:
        for number in range(100):
            match chance.choice(("change", "on", "on", "settle", "settle", "reserve", "reserve", "reserve", "reserve")):
                case "change":
                    terms = chance.choice(declared)
                case "on":
                    clock.now += chance.random() * chance.choice((600, 7200, 86400))
                case "settle" if under_way:
                    settle(database, under_way.pop(chance.randrange(len(under_way))), terms)
                case "reserve":
                    with suppress(spending.Spent):
                        reserve(database, f"{number}", terms)
                        granted.append(clock.now)
                        under_way.append(f"{number}")
                        starts, ends = terms.period_at(clock.now)
                        assert sum(starts <= instant < ends for instant in granted) <= 10


@contextmanager
def older_books(path: str, clock: Clock) -> Iterator[sqlite3.Connection]:
    """Begin books as an earlier version did, with four units spent this month."""
    with closing(sqlite3.connect(path, isolation_level=None)) as older:
        for statement in spending.TABLES:
            older.execute(statement)
        older.execute("INSERT INTO budget VALUES ('ten', 0, 0, 0)")
        older.execute("INSERT INTO period VALUES ('ten', ?, ?, ?, 0, 0, 0)", (*TEN.period_at(clock()), 4 * CALL))
        yield older


def test_books_that_were_begun_before_changes_were_noted_go_on(tmp_path: Path, clock: Clock) -> None:
    path = str(tmp_path / "books.sqlite3")
    week = spending.Terms("ten", 10 * CALL, period="week")
    clock.set("2026-11-17T12:00:00+00:00")
    with older_books(path, clock) as older:
        older.execute("ALTER TABLE budget ADD COLUMN counted_by TEXT NOT NULL DEFAULT ''")  # and then it was killed
    with closing(spending.Database(path, clock)) as database:
        spend(database, 1, TEN)
        assert spending.state(database, TEN).left == 5 * CALL
        spend(database, 1, week)
        assert spending.state(database, week).left == 4 * CALL


def test_what_older_books_had_carried_over_is_counted_once(tmp_path: Path, clock: Clock) -> None:
    path = str(tmp_path / "books.sqlite3")
    week = spending.Terms("ten", 10 * CALL, period="week")
    clock.set("2026-11-17T12:00:00+00:00")
    with older_books(path, clock) as older:
        older.execute("INSERT INTO period VALUES ('ten', ?, ?, 0, 0, ?, 0)", (*week.period_at(clock()), 4 * CALL))
    with closing(spending.Database(path, clock)) as database:
        spend(database, 1, week)
        assert spending.state(database, week).left == 5 * CALL
        clock.set("2026-11-24T12:00:00+00:00")
        spend(database, 1, week)
        assert spending.state(database, week).left == 9 * CALL


def test_a_reservation_is_of_one_budget_and_one_kind(database: spending.Database) -> None:
    other = spending.Terms("other", 10 * CALL, prices={"cheap": CALL, "dear": 5 * CALL})
    reserve(database, "one")
    with pytest.raises(spending.Refused, match="of another call"):
        reserve(database, "one", other, kind="cheap")
    settle(database, "one", other)
    assert spending.state(database, TEN).reserved == CALL
    reserve(database, "two", other, kind="cheap")
    with pytest.raises(spending.Refused, match="of another call"):
        reserve(database, "two", other, kind="dear")


def test_a_provider_that_asks_for_a_thousand_years_is_believed_for_a_day(database: spending.Database) -> None:
    with spending.books(database) as books:
        books.settle("nobody's", TEN, hold=1e18)
    assert reserve(database, "one") == 0
    with spending.books(database) as books:
        books.settle("one", TEN, hold=1e18)
    assert spending.state(database, TEN).held_until == database.now() + spending.MOST_HOLD


def test_what_a_clock_that_was_ahead_had_spent_counts_now(database: spending.Database, clock: Clock) -> None:
    clock.set("2027-03-01T12:00:00+00:00")
    for number in range(4):
        reserve(database, f"{number}")
        settle(database, f"{number}")
    clock.set("2026-12-05T12:00:00+00:00")
    with spending.books(database) as books:
        books.trust_clock(TEN)
    assert spending.state(database, TEN).left == 6 * CALL
    clock.set("2027-03-01T12:00:00+00:00")
    assert spending.state(database, TEN).left == 10 * CALL


def test_what_a_clock_that_was_ahead_had_spent_is_shown_on_no_day_to_come(
    database: spending.Database, clock: Clock
) -> None:
    for ahead in ("2026-12-20", "2027-03-01"):
        clock.set(f"{ahead}T23:59:59+00:00")
        reserve(database, ahead)
        clock.now += 1
        reserve(database, f"after {ahead}")
        for number in (ahead, f"after {ahead}"):
            settle(database, number)
    reserve(database, "under way")
    clock.set("2026-12-05T12:00:00+00:00")
    with spending.books(database) as books:
        books.trust_clock(TEN)
    settle(database, "under way")
    now = spending.state(database, TEN, "2026-11-01")
    assert now.days == [("2026-12-05", "arxlive", 3, 3 * CALL)]
    assert (now.spent, now.elsewhere, now.left) == (3 * CALL, 2 * CALL, 5 * CALL)
    with pytest.raises(spending.Spent, match="this run has spent 5 of its 5 calls"):
        reserve(database, "next", per_run=5 * CALL)
    clock.set("2027-03-02T12:00:00+00:00")
    later = spending.state(database, TEN, "2027-01-01")
    assert (later.days, later.left) == ([], 10 * CALL)


def test_a_body_that_cannot_be_sent_again_is_sent_once(server: Counting, local: Path) -> None:
    with session(server) as api, pytest.raises(requests.ConnectionError):
        api.put(f"{server.address}/broken", data=iter([b"first", b"second"]))
    assert server.calls == 1


def test_a_proxy_that_is_away_costs_nothing(server: Counting, local: Path) -> None:
    with session(server, retries=1) as api, pytest.raises(requests.exceptions.ProxyError):
        api.get(f"{server.address}/ok", proxies={"http": "http://127.0.0.1:9"})
    assert state(local).spent == state(local).reserved == 0


def test_an_adapter_survives_being_pickled(local: Path) -> None:
    again = pickle.loads(pickle.dumps(BudgetAdapter("ten", kind="list", retries=7)))  # noqa: S301  # of this test
    assert (again.budget, again.kind, again.retries) == ("ten", "list", 7)


def test_a_zone_that_is_none_is_told(local: Path) -> None:
    local.write_text(json.dumps([{"name": "ten", "limit": 10, "timezone": "Mars/Olympus"}]))
    with pytest.raises(spending.Unavailable, match="knows no such zone"):
        task.purse_of_this_thread()


@pytest.fixture
def hostile(drill: Drill) -> Iterator[socket.socket]:
    """A connection of a container that is not meant well."""
    purse = task.HostPurse(drill.door)
    purse._connect()
    assert purse._connection
    yield purse._connection
    purse.close()


IDENT = "a" * 32


@pytest.mark.parametrize(
    "order",
    [
        b"[" * 60_000,
        b'{"reserve": "units", "id": "\\ud800"}',
        b'{"reserve": "units", "id": "' + b"a" * 100_000 + b'"}',
        b'{"reserve": "units", "id": "' + IDENT.encode() + b'", "kind": "' + b"k" * 1000 + b'"}',
        b'{"settle": "units", "id": "' + IDENT.encode() + b'", "hold": 1' + b"0" * 400 + b"}",
        b'{"settle": "units", "id": "' + IDENT.encode() + b'", "hold": NaN, "remaining": "Infinity"}',
        b'{"settle": ["units"], "id": "' + IDENT.encode() + b'"}',
        b'{"expect": "units", "id": "' + IDENT.encode() + b'", "days": {"2026-11-20": {"call": -1}}}',
        b'{"expect": "units", "id": "' + IDENT.encode() + b'", "days": {"2026-11-20": {"call": NaN}}}',
        b'{"expect": "units", "id": "' + IDENT.encode() + b'", "days": [["x"]]}',
        b'{"id": null}',
        b"\xff\xfe\x00",
    ],
)
def test_no_order_whatever_it_says_keeps_others_from_spending(
    drill: Drill, hostile: socket.socket, server: Counting, order: bytes
) -> None:
    served = drill.service.pid
    with suppress(OSError):
        hostile.sendall(order + b"\n")
    with session(server, "units") as api:
        for _ in range(3):
            assert api.get(f"{server.address}/ok").ok
    assert drill.service.poll() is None
    assert drill.service.pid == served


def told_of(short_path: Path) -> list[tuple[str, int]]:
    """Return what the service's books hold of what was told."""
    with closing(sqlite3.connect(short_path / "var/lib/standpipe/budgets.sqlite3")) as books:
        return books.execute("SELECT key, value FROM foretold, json_each(days) ORDER BY key").fetchall()


def today() -> date:
    return datetime.now(UTC).date()


def test_what_a_pipeline_expects_is_noted_in_place_of_what_it_said_before(drill: Drill, short_path: Path) -> None:
    days = [today() + timedelta(days=count) for count in range(1, 32)]
    expect("units", {day: {"list": 4.0, "search": 40.123} for day in days})
    assert told_of(short_path) == [(f"{day}", 44_123_000_000) for day in days]
    expect("units", {days[1]: {"call": 7}, days[0] - timedelta(days=9): {"call": 7}, days[-1] + timedelta(9): {}})
    assert told_of(short_path) == [(f"{days[1]}", 7 * CALL)]  # neither what is over nor what is far
    with pytest.raises(BudgetUnavailable, match="does not name budget 'another'"):
        expect("another", {days[0]: {"call": 7}})
    with pytest.raises(BudgetUnavailable, match="so many days"):
        expect("units", {day: {f"kind-{number}": 1.0 for number in range(9)} for day in days})
    with pytest.raises(BudgetUnavailable, match="calls by kind for each day"):
        expect("units", {days[0]: {"call": -1}})
    with pytest.raises(BudgetUnavailable, match="31 days at most"):
        expect("units", {day: {} for day in [today(), *days]})
    assert told_of(short_path) == [(f"{days[1]}", 7 * CALL)]
    expect("units", {})
    assert told_of(short_path) == []
    assert drill.result()["left"] == 10  # nothing was reserved


def test_of_what_is_told_at_once_the_last_word_is_put_down_and_each_is_answered(
    drill: Drill, hostile: socket.socket, short_path: Path
) -> None:
    lines = [told(f"{today()}", number) for number in range(1, 6)]
    hostile.sendall(b"".join([*lines[:4], told(f"{today()}", -1), lines[4], told("20261120", 1, kind="k" * 9)]))
    with hostile.makefile() as answers:
        said = [json.loads(answers.readline()) for _ in range(7)]
    assert [list(answer) for answer in said] == [*[["noted"]] * 4, ["refused"], ["noted"], ["noted"]]
    assert told_of(short_path) == []  # the last word was of a day that is over


def told(day: str, calls: float, kind: str = "call") -> bytes:
    """Return an order that tells what is expected of one day."""
    return json.dumps({"expect": "units", "id": IDENT, "days": {day: {kind: calls}}}).encode() + b"\n"


def test_what_is_expected_has_the_prices_of_its_kinds(local: Path) -> None:
    expect("priced", {today(): {"list": 2, "search": Decimal("1.5")}})  # type: ignore[dict-item]  # it is taken
    assert state(local, "priced").told == [("local", f"{today()}", f"{today()}", 575_000_000)]
    with pytest.raises(BudgetUnavailable, match="no price for a call of kind 'work'"):
        expect("priced", {today(): {"work": 1}})
    with pytest.raises(BudgetUnavailable, match="is not declared"):
        expect("another", {})


def test_however_often_a_pipeline_tells_it_costs_the_disk_one_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terms = spending.Terms("ten", 10 * CALL)
    days = {today() + timedelta(days=count): count * CALL for count in range(31)}
    with closing(spending.open_database(str(tmp_path / "books"))) as database:
        execute, statements = database.execute, []

        def counted(statement: str, *values: object) -> object:
            statements.append(statement)
            return execute(statement, *values)

        monkeypatch.setattr(database, "execute", counted)
        with spending.books(database) as opened:
            for _ in range(1000):
                opened.expect(terms, "local", days)
        assert len([each for each in statements if "foretold" in each]) == 1
        assert len(statements) < 15
        told = spending.state(database, terms, "0").told
    assert told == [("local", f"{today()}", f"{day}", amount) for day, amount in days.items()]


def most_told() -> bytes:
    """Return about as long an order as is taken, which tells what is expected of 31 days."""
    kinds = {f"kind-{number}": 1 for number in range(9)}
    days = {f"{today() + timedelta(days=count)}": kinds for count in range(31)}
    line = json.dumps({"expect": "units", "id": IDENT, "days": days}, separators=(",", ":")).encode() + b"\n"
    assert spending.LONGEST_ORDER * 3 / 4 < len(line) <= spending.LONGEST_ORDER
    return line


@pytest.mark.parametrize(
    "orders",
    [(b'{"settle": "units", "id": "' + IDENT.encode() + b'"}\n') * 3000, most_told() * 60],
    ids=["settle", "expect"],
)
def test_who_floods_the_service_does_not_starve_the_others(drill: Drill, server: Counting, orders: bytes) -> None:
    flooding = []
    for _ in range(40):
        purse = task.HostPurse(drill.door)
        purse._connect()
        assert purse._connection
        purse._connection.setblocking(False)
        with suppress(BlockingIOError):
            purse._connection.send(orders)
        flooding.append(purse)
    with session(server, "units") as api:
        assert api.get(f"{server.address}/ok").ok
    for purse in flooding:
        purse.close()


def test_an_answer_that_nobody_waited_for_is_nobody_else_s(drill: Drill, monkeypatch: pytest.MonkeyPatch) -> None:
    purse = task.HostPurse(drill.door)
    purse.reserve("units", "call", "b" * 32)

    class Stopped(Exception):
        pass

    def stopped() -> bytes:
        raise Stopped

    assert purse._reader
    monkeypatch.setattr(
        purse, "_reader", type("Reader", (), {"readline": staticmethod(stopped), "close": lambda _: None})()
    )
    with pytest.raises(Stopped):
        purse.reserve("units", "call", "c" * 32)
    with pytest.raises(spending.Unavailable, match="does not name budget 'another'"):
        purse.reserve("another", "call", "d" * 32)
    purse.close()


def test_books_that_are_gone_are_not_begun_anew_in_silence(drill: Drill, short_path: Path, server: Counting) -> None:
    with session(server, "units") as api:
        assert api.get(f"{server.address}/ok").ok
        for path in (short_path / "var/lib/standpipe").glob("budgets.sqlite3*"):
            path.rename(f"{path}.elsewhere")
        with pytest.raises(BudgetUnavailable, match="books cannot be kept now"):
            api.get(f"{server.address}/ok")
        environment = {**os.environ, "STANDPIPE_ROOT": str(short_path)}
        command = [sys.executable, "-m", "standpipe", "budget", "--new-books"]
        subprocess.run(command, env=environment, check=True, capture_output=True)
        assert api.get(f"{server.address}/ok").ok
    assert server.calls == 2


def test_a_host_spends_by_the_books_that_it_knows_and_by_others_when_it_is_told_to(
    host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = [host / "first.sqlite3", host / "second.sqlite3"]
    monkeypatch.setattr(budgets, "open_shared_books", lambda: spending.open_database(str(shared[0])))

    def identity() -> str:
        with closing(budgets.open_books()) as database:
            return database.identity

    def others() -> bool:
        with pytest.raises(spending.Unavailable, match="the books by which this host has spent are not "):
            budgets.open_books()
        return True

    identity()  # of no use: nothing is declared that would be spent
    paths.BUDGETS_DATABASE.write_text("its URL")
    paths.BUDGETS.write_text("[{name: ten, limit: '10'}]")
    first = identity()
    assert identity() == first
    shared.reverse()
    assert others()
    paths.BUDGETS_DATABASE.unlink()
    assert others()
    budgets.begin_new_books(datetime.now(UTC))
    assert identity() != first
    paths.BUDGETS_DATABASE.write_text("its URL")
    shared.reverse()
    assert others()
    budgets.begin_new_books(datetime.now(UTC))
    assert identity() == first


def test_books_that_are_set_aside_while_they_are_open_keep_all_that_was_spent(host: Path) -> None:
    paths.BUDGETS.write_text("[{name: ten, limit: '10'}]")
    with closing(budgets.open_books()) as live:  # as the service has them: what was spent is in the log beside them
        reserve(live, "one")
        settle(live, "one")
        aside = budgets.begin_new_books(datetime(2026, 11, 20, 12, 30, tzinfo=UTC))
    old = f"{paths.BUDGET_LEDGER}.aside-20261120T123000Z"
    assert sorted(map(str, aside)) == [old, f"{old}-shm", f"{old}-wal"]
    with closing(sqlite3.connect(old)) as found:
        assert found.execute("SELECT spent FROM period").fetchall() == [(CALL,)]
    with closing(budgets.open_books()) as new:
        assert spending.state(new, TEN).spent == 0


def test_a_host_that_has_begun_its_books_before_they_were_told_apart_goes_on(host: Path) -> None:
    paths.BUDGETS.write_text("[{name: ten, limit: '10'}]")
    budgets.open_books().close()
    paths.BUDGETS_BEGUN.write_text("")
    budgets.open_books().close()
    paths.BUDGET_LEDGER.rename(host / "elsewhere")
    spending.open_database(str(paths.BUDGET_LEDGER)).close()
    with pytest.raises(spending.Unavailable, match="the books by which this host has spent are not /"):
        budgets.open_books()


def test_sqlite_here_can_do_what_the_books_need() -> None:
    assert sqlite3.sqlite_version_info >= (3, 35)  # RETURNING
