"""A harvest within a budget: what reaches a real server is what the books say, at the budget's pace."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx2
import pytest
from oaipmh_scythe.config import HTTPConfig, RetryConfig

from arxlive.budgeted import BudgetedScythe
from arxlive.harvest import HarvestError, read_day
from arxlive.store import mark_of, open_store, papers_in_store
from budget_drill import Drill
from standpipe_task import purse, spending
from standpipe_task.budget_httpx import BudgetSpent, BudgetUnavailable

from .conftest import paper, papers_of
from .test_arxiv_luigi import DAY, command, environment

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .conftest import Serve, Server


def declare(tmp_path: Path, limit: int = 1000, **more: object) -> Path:
    """Declare the budget, as for a host."""
    path = tmp_path / "budgets.json"
    path.write_text(json.dumps([{"name": "arxiv", "limit": limit, "period": "day", **more}]))
    return path


@pytest.fixture
def declared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A laptop's budget, of this process as well."""
    path = declare(tmp_path)
    monkeypatch.setenv(purse.LOCAL, str(path))
    monkeypatch.setattr(purse, "_mine", purse.Mine())
    return path


def booked(declared: Path) -> tuple[int, int]:
    """Return how many calls the books hold as spent, and how many as under way."""
    terms = spending.Terms.of(json.loads(declared.read_text())[0])
    database = spending.open_database(str(declared.with_suffix(".sqlite3")))
    try:
        now = spending.state(database, terms, "2000-01-01")
        return now.spent // spending.SCALE, now.reserved // spending.SCALE
    finally:
        database.close()


def running(server: Server, tmp_path: Path, declared: Path | None, *given: str) -> subprocess.Popen[str]:
    """Start the pipeline for one day, from a folder of its own where one is given."""
    given = ("--date", str(DAY), "--production", "--lookback-days", "0", "--arxiv-budget", "arxiv", *given)
    setting = {} if declared is None else {purse.LOCAL: str(declared)}
    tmp_path.mkdir(exist_ok=True)
    return subprocess.Popen(
        command(server, tmp_path, *given),
        cwd=tmp_path,
        env={**environment(tmp_path), **setting},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(process: subprocess.Popen[str], exit_code: int = 0) -> str:
    said, _ = process.communicate(timeout=120)
    assert process.returncode == exit_code, said
    return said


def is_done(tmp_path: Path) -> bool:
    mark = mark_of(open_store(f"sqlite:///{tmp_path}/data/arxlive.sqlite3"), DAY, "")
    return mark is not None and mark.done


def stored(tmp_path: Path) -> int:
    return papers_in_store(open_store(f"sqlite:///{tmp_path}/data/arxlive.sqlite3"))


def read(base_url: str, retries: int = 5) -> int:
    """Read the day in this process; return how many papers it has."""
    pages = read_day(base_url, DAY, pace=0.0, retries=retries, budget="arxiv")
    return sum(len(page.records) for page in pages)


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--list-size",),
        ("--busy-every", "2", "--retry-after", "0"),
        ("--busy-first", "1", "--busy-status", "429", "--retry-after", "1", "--retry-after-as-date"),
        ("--expire-after-page", "2", "--fault-times", "1"),
    ],
    ids=["as arXiv", "with its size", "busy", "busy, by a date", "a token that expires"],
)
def test_the_books_agree_with_what_reaches_the_server(serve: Serve, declared: Path, options: tuple[str, ...]) -> None:
    server = serve(papers_of(str(DAY), 25), *options)
    assert read(server.base_url) in (25, 45)  # a day that was begun anew gives its pages again
    assert len(server.requests()) >= 3
    assert booked(declared) == (len(server.requests()), 0)


def test_a_run_within_its_budget_is_as_one_without(serve: Serve, tmp_path: Path) -> None:
    server = serve(papers_of(str(DAY), 25))
    declared = declare(tmp_path)
    ended(running(server, tmp_path, declared))
    assert (stored(tmp_path), is_done(tmp_path)) == (25, True)
    assert booked(declared) == (len(server.requests()), 0) == (4, 0)
    ended(running(server, tmp_path, declared))
    assert booked(declared) == (4, 0)


def test_the_pace_holds_over_all_runs_that_share_the_budget(serve: Serve, tmp_path: Path) -> None:
    server = serve(papers_of(str(DAY), 25))
    declared = declare(tmp_path, pace="2/s")
    # Each has a store of its own, as on machines of their own.
    for process in [running(server, tmp_path / name, declared) for name in ("one", "other")]:
        ended(process)
    first, *others = sorted(when for when, _, _ in server.requests())
    assert 1 + len(others) == booked(declared)[0] == 8
    # Each call comes a little after its turn; what the first one was late by is less than a turn.
    early = [when - first for turn, when in enumerate(others, 1) if when - first < (turn - 0.8) / 2]
    assert not early


def test_a_budget_that_ends_leaves_the_day_undone_and_the_next_run_goes_on_there(serve: Serve, tmp_path: Path) -> None:
    server = serve(papers_of(str(DAY), 45))
    declared = declare(tmp_path, limit=3)
    said = ended(running(server, tmp_path, declared), exit_code=30)
    assert "budget arxiv has 0 of 3 calls left this day" in said
    assert len(server.requests()) == 3
    assert (stored(tmp_path), is_done(tmp_path)) == (30, False)
    assert not (tmp_path / "data" / "reports").exists()

    declare(tmp_path, limit=100)  # a day later there would be more as well
    said = ended(running(server, tmp_path, declared))
    assert f"{DAY}: going on after page 3, 30 records" in said
    assert (stored(tmp_path), is_done(tmp_path)) == (45, True)
    assert booked(declared) == (len(server.requests()), 0) == (3 + 2 + 1, 0)


@pytest.mark.parametrize("given", [False, True], ids=["no budgets", "another budget"])
def test_a_budget_that_is_not_there_lets_no_request_out(serve: Serve, tmp_path: Path, given: bool) -> None:
    server = serve(papers_of(str(DAY), 5))
    declared = declare(tmp_path)
    declared.write_text(declared.read_text().replace("arxiv", "another"))
    said = ended(running(server, tmp_path, declared if given else None), exit_code=30)
    assert ("budget arxiv is not declared" if given else "STANDPIPE_LOCAL_BUDGETS") in said
    assert server.requests() == []
    assert not is_done(tmp_path)


def test_while_the_service_is_away_no_request_goes_out_and_the_harvest_goes_on_after_it(
    serve: Serve, tmp_path: Path, short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drill = Drill(short_path, 10, 0, 0)
    try:
        monkeypatch.setattr(purse, "DOOR", drill.door)
        monkeypatch.setattr(purse, "PATIENCE", 0.3)
        monkeypatch.setattr(purse, "_mine", purse.Mine())
        server = serve(papers_of(str(DAY), 25))
        pages = read_day(server.base_url, DAY, pace=0.0, budget="units")
        assert len(next(pages).records) == 10
        drill.service.kill()
        drill.service.wait()
        with pytest.raises(BudgetUnavailable, match="standpiped on the host does not answer"):
            next(pages)
        assert len(server.requests()) == 1
        drill.service = drill.started()
        assert sum(len(page.records) for page in read_day(server.base_url, DAY, pace=0.0, budget="units")) == 25
        assert len(server.requests()) == 5
    finally:
        told = drill.result()
    assert told["spent"] + told["crashed"] == 5  # it was killed before it had read that the first was answered


def test_a_server_that_asks_for_an_hour_is_asked_by_nobody(serve: Serve, declared: Path) -> None:
    server = serve(papers_of(str(DAY), 3), "--busy-every", "1", "--retry-after", "3600")
    with pytest.raises(HarvestError, match="3600 s"):
        read(server.base_url)
    with pytest.raises(BudgetSpent, match="asks for none before"):
        read(server.base_url)
    assert len(server.requests()) == 1
    assert booked(declared) == (1, 0)


def test_a_connection_that_is_refused_costs_nothing(declared: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        with pytest.raises(HarvestError, match=r"ConnectError.*asked 3 times"):
            read(f"http://127.0.0.1:{nobody.getsockname()[1]}/oai", retries=2)
    assert booked(declared) == (0, 0)


class Odd(BaseHTTPRequestHandler):
    """Leads on, breaks off, or does not answer in time."""

    seen: list[str]

    def do_GET(self) -> None:
        self.seen.append(self.path.partition("?")[0])
        path = urlsplit(self.path).path
        if path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/gone")
            self.end_headers()
        elif path == "/slow":
            time.sleep(1)
        elif path == "/busy":
            self.send_error(503)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # as it is called there
        pass


@pytest.fixture
def odd() -> Iterator[tuple[str, list[str]]]:
    Odd.seen = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Odd) as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", Odd.seen
        server.shutdown()


def test_a_server_that_leads_elsewhere_is_not_followed(odd: tuple[str, list[str]], declared: Path) -> None:
    address, seen = odd
    with pytest.raises(HarvestError, match="HTTP 302"):
        read(f"{address}/moved")
    assert seen == ["/moved"]
    assert booked(declared) == (1, 0)


def test_a_connection_that_breaks_counts_each_time(odd: tuple[str, list[str]], declared: Path) -> None:
    address, seen = odd
    with pytest.raises(HarvestError, match="asked 3 times"):
        read(f"{address}/broken", retries=2)
    assert booked(declared) == (len(seen), 0) == (3, 0)


@pytest.mark.parametrize(("path", "error"), [("/slow", httpx2.ReadTimeout), ("/busy", httpx2.HTTPStatusError)])
def test_whatever_the_library_sends_by_itself_is_spent_too(
    odd: tuple[str, list[str]], declared: Path, path: str, error: type[Exception]
) -> None:
    address, seen = odd
    again = RetryConfig(max_retries=2, default_retry_after=0.01, retry_on_transport_error=True)
    quick = HTTPConfig(timeout=0.2)
    with (
        BudgetedScythe(f"{address}{path}", "arxiv", http_config=quick, retry_config=again) as scythe,
        pytest.raises(error),
    ):
        next(iter(scythe.list_records()))
    assert booked(declared) == (len(seen), 0) == (3, 0)


@pytest.mark.parametrize(
    ("variable", "scheme", "spared", "seen_by_proxy"),
    [
        ("http_proxy", "http://", "", True),
        ("http_proxy", "http://", "127.0.0.1", False),
        ("http_proxy", "", "", True),
        ("ALL_PROXY", "http://", "", True),
    ],
)
def test_a_proxy_of_the_environment_is_asked_where_it_is_to_be(
    odd: tuple[str, list[str]],
    declared: Path,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    scheme: str,
    spared: str,
    seen_by_proxy: bool,
) -> None:
    address, seen = odd
    for name in ("HTTP_PROXY", "http_proxy", "NO_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, address.replace("http://", scheme))
    monkeypatch.setenv("no_proxy", spared)
    with pytest.raises(HarvestError, match="HTTP 503"):
        read(f"{address}/busy", retries=0)
    assert seen == [f"{address}/busy" if seen_by_proxy else "/busy"]
    assert booked(declared) == (1, 0)


def test_it_asks_as_the_library_does(serve: Serve, declared: Path) -> None:
    server = serve([paper("2001.00001", str(DAY))])
    config = HTTPConfig(user_agent="as it is told")
    with BudgetedScythe(server.base_url, "arxiv", http_config=config) as budgeted:
        assert budgeted.client.headers["User-Agent"] == "as it is told"
        assert budgeted.client.headers["Accept"].startswith("text/xml")
        assert budgeted.client.timeout == httpx2.Timeout(config.timeout)
        assert budgeted.identify().xml is not None
    assert budgeted.client.is_closed
    assert booked(declared) == (1, 0)
