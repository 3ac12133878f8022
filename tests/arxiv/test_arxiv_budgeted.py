"""Matching as it is run: Luigi's command line in a process of its own, every call counted against a budget."""

from __future__ import annotations

import json
import sqlite3
import subprocess
from contextlib import closing
from datetime import date, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from arxlive import ahead, tasks
from standpipe_task import purse, spending

from .conftest import paper, papers_of, work
from .test_arxiv_luigi import DAY, command, environment, rows

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import OpenAlex, Serve, Server, ServeWorks

PRICES = {"list": "0.0001", "search": "0.001"}


def budgets(tmp_path: Path, limit: str = "1.00") -> Path:
    """Declare the budget, as for a host."""
    path = tmp_path / "budgets.json"
    declared = {"name": "openalex", "limit": limit, "unit": "USD", "period": "day", "timezone": "UTC", "prices": PRICES}
    path.write_text(json.dumps([{**declared, "remaining_header": "X-RateLimit-Remaining-USD"}]))
    return path


def spent(path: Path) -> Decimal:
    """Return what the books say was spent."""
    terms = spending.Terms.of(json.loads(path.read_text())[0])
    database = spending.open_database(str(path.with_suffix(".sqlite3")))
    try:
        return spending.units(spending.state(database, terms, "2000-01-01").spent)
    finally:
        database.close()


def cost(server: OpenAlex) -> Decimal:
    """Return what the server has counted, in dollars."""
    return sum((number * Decimal(PRICES.get(kind, "0")) for kind, number in server.counts().items()), Decimal(0))


def matching(
    server: Server,
    openalex: OpenAlex,
    tmp_path: Path,
    exit_code: int = 0,
    **variables: str,
) -> str:
    """Run the pipeline with matching to its end and return what it printed."""
    given = ("--date", str(DAY), "--production", "--lookback-days", "0", "--openalex-url", openalex.base_url)
    result = subprocess.run(
        command(server, tmp_path, *given),
        cwd=tmp_path,
        env={**environment(tmp_path), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == exit_code, result.stdout
    return result.stdout


def held(number: int) -> dict[str, Any]:
    return work(f"W{number}", f"On 2001.{number:05}", f"10.48550/arxiv.2001.{number:05}")


def matches(tmp_path: Path) -> dict[str, Any]:
    written: dict[str, Any] = json.loads((tmp_path / "data" / "reports" / f"{DAY}-openalex.json").read_bytes())
    return written


def test_a_record_that_cannot_be_read_keeps_no_other_paper_from_being_matched(
    serve: Serve, serve_works: ServeWorks, tmp_path: Path
) -> None:
    server = serve([*papers_of(str(DAY), 1), {"id": "2001.00002", "datestamp": str(DAY), "bare": True}])
    said = matching(server, serve_works([held(1)]), tmp_path, 30, STANDPIPE_LOCAL_BUDGETS=str(budgets(tmp_path)))
    assert "records that cannot be read: 1" in said
    assert rows(tmp_path, "select work from matched") == [("W1",)]


def test_papers_are_matched_after_the_harvest_and_a_second_run_asks_nothing(
    serve: Serve, serve_works: ServeWorks, tmp_path: Path
) -> None:
    server = serve(papers_of(str(DAY), 30), "--page-size", "30")
    openalex = serve_works([held(number) for number in range(1, 25)])
    declared = budgets(tmp_path)
    said = matching(server, openalex, tmp_path, STANDPIPE_LOCAL_BUDGETS=str(declared))
    assert "OpenAlex: 24 found of 30 asked for by DOI, 0 of 0 by title; 24 of 30 papers are matched" in said
    written = matches(tmp_path)
    assert (written["final"], written["ended"], written["matched_in_store"]) == (True, None, 24)
    assert rows(tmp_path, "select way, score, count(*) from matched group by way, score") == [("arxiv-doi", 1.0, 24)]
    assert openalex.counts() == {"list": 1}

    again = matching(server, openalex, tmp_path, STANDPIPE_LOCAL_BUDGETS=str(declared))
    assert "This progress looks :)" in again
    assert openalex.counts() == {"list": 1}
    assert spent(declared) == cost(openalex) == Decimal("0.0001")


def test_a_budget_that_ends_is_no_failure_and_the_next_run_goes_on(
    serve: Serve, serve_works: ServeWorks, tmp_path: Path
) -> None:
    server = serve(papers_of(str(DAY), 250), "--page-size", "250")
    openalex = serve_works([held(number) for number in range(1, 251)])
    declared = budgets(tmp_path, limit="0.0002")
    said = matching(server, openalex, tmp_path, STANDPIPE_LOCAL_BUDGETS=str(declared))
    written = matches(tmp_path)
    assert (written["final"], written["found_by_doi"], written["left_by_doi"]) == (False, 200, 50)
    assert "openalex" in written["ended"]
    assert "left for the next run: 50 papers by DOI" in said
    assert openalex.counts() == {"list": 2}  # the third was not sent

    budgets(tmp_path, limit="0.0003")  # a day later there would be more as well
    matching(server, openalex, tmp_path, STANDPIPE_LOCAL_BUDGETS=str(declared))
    written = matches(tmp_path)
    assert (written["final"], written["found_by_doi"], written["matched_in_store"]) == (True, 50, 250)
    assert openalex.counts() == {"list": 3}
    assert spent(declared) == cost(openalex)


def test_a_run_tells_its_host_what_the_nights_to_come_will_ask_for(
    serve: Serve, serve_works: ServeWorks, tmp_path: Path
) -> None:
    server = serve(papers_of(str(DAY), 30), "--page-size", "30")
    openalex = serve_works([held(number) for number in range(1, 25)])
    declared = budgets(tmp_path)
    matching(server, openalex, tmp_path, STANDPIPE_LOCAL_BUDGETS=str(declared))
    assert told(declared) == []  # after a first night nobody knows
    with closing(sqlite3.connect(tmp_path / "data" / "arxlive.sqlite3")) as database, database:
        database.execute("update asked set first = date(first, '-21 days')")
        database.execute("update matched set first = date(first, '-21 days'), found = date(found, '-21 days')")
    (tmp_path / "data" / "reports" / f"{DAY}-openalex.json").unlink()
    matching(server, openalex, tmp_path, STANDPIPE_LOCAL_BUDGETS=str(declared))
    nights = told(declared)
    assert [later - night for (night, _), (later, _) in pairwise(nights)] == [timedelta(days=7)] * 3
    assert all(amount >= spending.parts(PRICES["list"]) for _, amount in nights)


def test_a_run_whose_foretelling_fails_has_matched_and_reported_all_the_same(
    serve_works: ServeWorks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_given: object) -> None:
        raise ValueError("no such weekday")

    monkeypatch.setattr(ahead, "questions", fail)
    monkeypatch.setenv(purse.LOCAL, str(budgets(tmp_path)))
    monkeypatch.delenv("ARXLIVE_DATABASE_URL", raising=False)
    monkeypatch.setattr(purse, "_mine", purse.Mine())
    openalex = serve_works([])
    data = tmp_path / "data"
    data.mkdir()
    given: dict[str, Any] = {"date": DAY, "production": True, "data_dir": str(data)}
    tasks.MatchPapers(**given, openalex_url=openalex.base_url).run()  # type: ignore[no-untyped-call]  # Luigi's
    assert matches(tmp_path)["final"] is True
    assert "could not be told: ValueError('no such weekday')" in caplog.text


def told(path: Path) -> list[tuple[date, int]]:
    """Return what the books know of the days to come."""
    with closing(sqlite3.connect(path.with_suffix(".sqlite3"))) as books:
        rows = books.execute("SELECT key, value FROM foretold, json_each(days) ORDER BY key").fetchall()
    return [(date.fromisoformat(day), amount) for day, amount in rows]


def test_openalexs_own_word_that_nothing_is_left_ends_the_run_as_well(
    serve: Serve, serve_works: ServeWorks, tmp_path: Path
) -> None:
    server = serve(papers_of(str(DAY), 250), "--page-size", "250")
    openalex = serve_works([held(number) for number in range(1, 251)], "--limit-usd", "0.0002")
    matching(server, openalex, tmp_path, STANDPIPE_LOCAL_BUDGETS=str(budgets(tmp_path)))
    written = matches(tmp_path)
    assert (written["final"], written["found_by_doi"], written["left_by_doi"]) == (False, 200, 50)
    # Its header said so with the second answer: the third call is not made.
    assert openalex.counts() == {"list": 2}


def test_what_is_repeated_is_paid_for_again(serve: Serve, serve_works: ServeWorks, tmp_path: Path) -> None:
    server = serve(papers_of(str(DAY), 150), "--page-size", "150")
    openalex = serve_works(
        [held(number) for number in range(1, 151)], "--busy-first", "1", "--drop-first", "1", "--truncate-first", "1"
    )
    declared = budgets(tmp_path)
    matching(server, openalex, tmp_path, STANDPIPE_LOCAL_BUDGETS=str(declared))
    assert matches(tmp_path)["found_by_doi"] == 150
    assert openalex.counts() == {"list": 5}
    assert spent(declared) == cost(openalex) == Decimal("0.0005")


def test_a_paper_without_an_answer_fails_the_run_by_name_after_all_else_and_the_next_run_succeeds(
    serve: Serve, serve_works: ServeWorks, tmp_path: Path
) -> None:
    server = serve(papers_of(str(DAY), 9))
    openalex = serve_works([held(n) for n in range(1, 10)], "--poison", "2001.00004", "--poison-status", "400")
    declared = str(budgets(tmp_path))
    said = matching(server, openalex, tmp_path, 30, STANDPIPE_LOCAL_BUDGETS=declared)
    name = "2001.00004, by DOI: HTTP 400 from OpenAlex: told to fail"
    assert f"no answer from OpenAlex: 1; {name}" in said
    written = matches(tmp_path)
    assert (written["final"], written["found_by_doi"], written["unanswered"]) == (False, 8, [name])
    matching(server, openalex, tmp_path, STANDPIPE_LOCAL_BUDGETS=declared)
    assert matches(tmp_path)["final"] is True


def test_a_paper_that_cannot_be_compared_fails_the_run_by_name_after_all_else(
    serve: Serve, serve_works: ServeWorks, tmp_path: Path
) -> None:
    server = serve([paper("2001.00001", str(DAY), doi="10.1000/one"), paper("2001.00002", str(DAY))])
    openalex = serve_works([work("W1", "On 2001.00001", "10.1000/one"), held(2)])
    declared = str(budgets(tmp_path))
    matching(server, openalex, tmp_path, 30, STANDPIPE_LOCAL_BUDGETS=str(tmp_path / "none"))  # the harvest alone
    with closing(sqlite3.connect(tmp_path / "data" / "arxlive.sqlite3")) as store, store:
        store.execute("UPDATE paper SET authors = '[\"Ada\"]' WHERE paper_id = '2001.00001'")
    said = matching(server, openalex, tmp_path, 30, STANDPIPE_LOCAL_BUDGETS=declared)
    assert "could not be compared with its answer: 1; 2001.00001: AttributeError" in said
    assert (matches(tmp_path)["final"], matches(tmp_path)["found_by_doi"]) == (False, 1)


def test_without_a_budget_no_call_goes_out_and_the_harvest_stays(
    serve: Serve, serve_works: ServeWorks, tmp_path: Path
) -> None:
    server = serve(papers_of(str(DAY), 30))
    openalex = serve_works([held(1)])
    said = matching(server, openalex, tmp_path, exit_code=30)
    assert "STANDPIPE_LOCAL_BUDGETS" in said
    assert openalex.counts() == {}
    assert rows(tmp_path, "select count(*) from paper") == [(30,)]


def test_a_key_is_shown_to_openalex_and_to_nobody_else(serve: Serve, serve_works: ServeWorks, tmp_path: Path) -> None:
    server = serve(papers_of(str(DAY), 3))
    openalex = serve_works([held(1)], "--api-key", "hunter2secret")
    declared = str(budgets(tmp_path))
    key = tmp_path / "key"
    key.write_text("hunter2secret\n")
    refused = matching(server, openalex, tmp_path, exit_code=30, STANDPIPE_LOCAL_BUDGETS=declared)
    assert "HTTP 401 from OpenAlex" in refused
    said = matching(server, openalex, tmp_path, STANDPIPE_LOCAL_BUDGETS=declared, OPENALEX_API_KEY_FILE=str(key))
    assert matches(tmp_path)["found_by_doi"] == 1
    assert "hunter2secret" not in said
    kept = [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    assert all(b"hunter2secret" not in path.read_bytes() for path in kept)


def test_matching_is_left_out_where_no_address_is_given(serve: Serve, tmp_path: Path) -> None:
    server = serve(papers_of(str(DAY), 3))
    given = ("--date", str(DAY), "--production", "--lookback-days", "0")
    subprocess.run(command(server, tmp_path, *given), cwd=tmp_path, env=environment(tmp_path), check=True, timeout=60)
    assert [path.name for path in (tmp_path / "data" / "reports").iterdir()] == [f"{DAY}.json"]
