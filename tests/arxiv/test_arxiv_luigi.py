"""The pipeline as it is run: Luigi's command line, in a process of its own."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.schema import CreateTable

from arxlive.harvest import Page
from arxlive.records import BadRecord
from arxlive.store import Base, holes, mark_of, open_store, papers_in_store, save
from arxlive.tasks import NAMED_FOR, RootTask, database_of, days_until

from .conftest import EXAMPLE, paper, papers_of

if TYPE_CHECKING:
    from .conftest import Serve, Server

DAY = date(2026, 11, 19)
LUIGI = Path(sys.executable).with_name("luigi")


def command(server: Server, tmp_path: Path, *parameters: str) -> list[str | Path]:
    where = ["--base-url", server.base_url, "--data-dir", str(tmp_path / "data"), "--pace", "0"]
    codes = ["--retcode-scheduling-error", "35", "--retcode-task-failed", "30"]
    return [LUIGI, "--module", "arxlive.tasks", "RootTask", "--local-scheduler", *codes, *where, *parameters]


def environment(tmp_path: Path) -> dict[str, str]:
    # The runs of one session compile their many modules once, also where Python is told not to.
    cache = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(tmp_path.parent / "bytecode")}
    # Beside the example is what an image has in /opt/standpipe: this checkout's, whatever is installed.
    return {**os.environ, **cache, "PYTHONPATH": f"{EXAMPLE}{os.pathsep}{EXAMPLE.parents[1] / 'src'}"}


def luigi(server: Server, tmp_path: Path, *parameters: str, exit_code: int = 0) -> str:
    """Run the pipeline to its end and return what it printed."""
    result = subprocess.run(
        command(server, tmp_path, *parameters),
        cwd=tmp_path,
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == exit_code, result.stdout
    return result.stdout


def report(tmp_path: Path, day: date, directory: str = "reports") -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((tmp_path / "data" / directory / f"{day}.json").read_bytes())
    return loaded


def rows(tmp_path: Path, query: str, name: str = "arxlive.sqlite3") -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(tmp_path / "data" / name)) as database:
        return database.execute(query).fetchall()


def test_a_run_stores_its_days_and_reports_on_them_and_a_second_one_does_nothing(serve: Serve, tmp_path: Path) -> None:
    deleted = {"id": "2001.00001", "datestamp": str(DAY), "deleted": True}
    server = serve([deleted, *papers_of(str(DAY), 13)[1:], *[paper("2002.00001", str(DAY - timedelta(days=2)))]])
    said = luigi(server, tmp_path, "--date", str(DAY), "--production", "--lookback-days", "3")
    assert f"INFO: {DAY}: page 2, 13 records so far" in said
    written = report(tmp_path, DAY)
    assert (written["new"], written["updated"], written["deleted"]) == (13, 0, 1)
    assert (written["papers_in_store"], written["final"], written["never_harvested"]) == (13, True, [])
    assert [day["new"] for day in written["days"]] == [0, 1, 0, 12]
    assert rows(tmp_path, "select count(*) from paper where not deleted") == [(13,)]

    asked = len(server.requests())
    again = luigi(server, tmp_path, "--date", str(DAY), "--production", "--lookback-days", "3")
    assert "This progress looks :)" in again
    assert len(server.requests()) == asked


def test_a_run_without_production_leaves_the_real_store_alone(serve: Serve, tmp_path: Path) -> None:
    server = serve(papers_of(str(DAY), 3))
    luigi(server, tmp_path, "--date", str(DAY), "--lookback-days", "0")
    assert report(tmp_path, DAY, "reports-dev")["new"] == 3
    assert rows(tmp_path, "select count(*) from paper", "arxlive-dev.sqlite3") == [(3,)]
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [
        "arxlive-dev.sqlite3",
        "reports-dev",
    ]


def mark_done(tmp_path: Path, day: date) -> None:
    engine = open_store(f"sqlite:///{tmp_path}/data/arxlive.sqlite3")
    save(engine, day, "", Page([], number=1, so_far=0, size=None, last=True, day_over=True))


def test_missed_nights_are_made_up_for(serve: Serve, tmp_path: Path) -> None:
    days = [DAY + timedelta(days=offset) for offset in range(-4, 1)]
    mark_done(tmp_path, days[0])
    server = serve([paper(f"2001.0000{n}", str(day)) for n, day in enumerate(days)])
    luigi(server, tmp_path, "--date", str(days[4]), "--production")
    assert rows(tmp_path, "select count(*) from paper") == [(4,)]
    asked = [path for _, path, _ in server.requests()]
    assert [sum(f"from={day}" in path for path in asked) for day in days] == [0, 1, 1, 1, 1]
    assert asked == sorted(asked)


def test_days_that_no_run_will_reach_are_named(serve: Serve, tmp_path: Path) -> None:
    mark_done(tmp_path, date(2026, 11, 1))
    server = serve(papers_of(str(DAY), 1))
    said = luigi(server, tmp_path, "--date", str(DAY), "--production", "--lookback-days", "1")
    assert "WARNING: 2026-11-02 to 2026-11-17: never harvested" in said
    gap = {"set": "all sets", "from": "2026-11-02", "until": "2026-11-17"}
    assert report(tmp_path, DAY)["never_harvested"] == [gap]


def test_each_hole_of_a_year_is_named_whatever_was_read_since(tmp_path: Path) -> None:
    engine = open_store(f"sqlite:///{tmp_path}/arxlive.sqlite3")
    bad = [BadRecord(0, "no metadata", "<record/>")]

    def read(day: date, number: int = 1, **more: Any) -> None:
        for count in range(number):
            page = Page([], number=1, so_far=0, size=None, last=True, **{"day_over": True, **more})
            save(engine, day + timedelta(days=count), "", page)

    def named(first: date) -> list[tuple[str, str]]:
        return [(str(begins), str(ends)) for begins, ends in holes(engine, first - NAMED_FOR, first, "")]

    read(date(2010, 1, 1), 31)  # long ago, by hand: no hole of sixteen years
    assert named(date(2010, 2, 3)) == [("2010-02-01", "2010-02-02")]
    read(date(2026, 10, 1), 31)
    read(date(2026, 11, 14), 2)  # the first night after an outage, which failed half way
    assert named(date(2026, 11, 15)) == [("2026-11-01", "2026-11-13")]
    read(date(2026, 11, 16), bad=bad)  # its record has a name in the report
    read(date(2026, 11, 17), day_over=False)
    read(date(2026, 11, 18), 4)
    assert named(date(2026, 11, 22)) == [("2026-11-01", "2026-11-13"), ("2026-11-17", "2026-11-17")]
    assert named(date(2027, 11, 2)) == [("2026-11-17", "2026-11-17"), ("2026-11-22", "2027-11-01")]
    assert named(date(2029, 1, 1)) == [("2026-11-22", "2028-12-31")]


def test_the_date_of_today_reads_the_day_under_way_each_time(serve: Serve, tmp_path: Path) -> None:
    today = datetime.now(UTC).date()
    yesterday = today - timedelta(days=1)
    server = serve([paper("2001.00001", str(today)), paper("2001.00002", str(yesterday))])
    for _ in range(2):
        luigi(server, tmp_path, "--date", str(today), "--production", "--lookback-days", "1")
    if datetime.now(UTC).date() > today:
        pytest.skip("midnight came in between")
    assert report(tmp_path, today)["new"] == 2
    assert report(tmp_path, today)["final"] is False
    asked = [path for _, path, _ in server.requests()]
    assert [sum(f"from={day}" in path for path in asked) for day in (yesterday, today)] == [1, 2]


def test_a_record_that_cannot_be_read_fails_the_run_and_nothing_else(serve: Serve, tmp_path: Path) -> None:
    bare = {"id": "2001.00002", "datestamp": str(DAY - timedelta(days=1)), "bare": True}
    server = serve([*papers_of(str(DAY), 1), bare])
    parameters = ("--date", str(DAY), "--production", "--lookback-days", "2")
    for _ in range(2):
        said = luigi(server, tmp_path, *parameters, exit_code=30)
        fault = f"{DAY - timedelta(days=1)}: oai:arXiv.org:2001.00002: no metadata, and not deleted"
        assert f"records that cannot be read: 1, so their days are not done; {fault}" in said
    assert report(tmp_path, DAY)["unreadable"] == {"records": 1, "named": [fault]}
    assert report(tmp_path, DAY)["final"] is False
    assert report(tmp_path, DAY)["new"] == 1
    assert rows(tmp_path, "select count(*) from mark where done") == [(2,)]


def test_a_day_that_the_server_fails_fails_the_run_and_not_the_other_days(serve: Serve, tmp_path: Path) -> None:
    server = serve(papers_of(str(DAY), 12), "--error-on-page", "2")
    parameters = ("--date", str(DAY), "--production", "--lookback-days", "2")
    said = luigi(server, tmp_path, *parameters, exit_code=30)
    assert "told to fail" in said
    assert not (tmp_path / "data" / "reports").exists()
    assert rows(tmp_path, "select count(*) from mark where done") == [(2,)]


def test_a_run_killed_in_mid_harvest_is_finished_by_the_next_one(serve: Serve, tmp_path: Path) -> None:
    server = serve(papers_of(str(DAY), 40), "--slow", "0.25")
    parameters = ("--date", str(DAY), "--production", "--lookback-days", "0")
    running = subprocess.Popen(
        command(server, tmp_path, *parameters),
        cwd=tmp_path,
        env=environment(tmp_path),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 30
    while not (len(server.requests()) >= 2 and rows(tmp_path, "select count(*) from paper") >= [(10,)]):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait(timeout=5)
    ((kept,),) = rows(tmp_path, "select count(*) from paper")
    assert 10 <= kept < 40
    assert rows(tmp_path, "select count(*) from mark") == [(0,)]

    luigi(server, tmp_path, *parameters)
    assert rows(tmp_path, "select count(*), count(distinct paper_id) from paper") == [(40, 40)]
    assert rows(tmp_path, "select kind, count(*) from sighting group by kind") == [("new", 40)]
    assert rows(tmp_path, "select done, records from mark") == [(1, 40)]
    assert report(tmp_path, DAY)["new"] == 40


@pytest.mark.parametrize("options", [(), ("--list-size",)], ids=["as arXiv", "with its size"])
def test_a_bulk_day_killed_at_every_page_is_read_once_and_stored_once(
    serve: Serve, tmp_path: Path, options: tuple[str, ...]
) -> None:
    pages, size = 6, 500
    server = serve(papers_of(str(DAY), pages * size), "--page-size", str(size), "--slow", "0.1", *options)
    parameters = ("--date", str(DAY), "--production", "--lookback-days", "0")
    engine = open_store(f"sqlite:///{tmp_path}/data/arxlive.sqlite3")
    with engine.begin() as connection:  # what is written twice leaves a trace
        connection.exec_driver_sql("create table twice (paper_id text)")
        wrote = "after update on paper begin insert into twice values (new.paper_id); end"
        connection.exec_driver_sql(f"create trigger again {wrote}")
    for page in range(1, pages):
        running = subprocess.Popen(
            command(server, tmp_path, *parameters),
            cwd=tmp_path,
            env=environment(tmp_path),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + 60
        while rows(tmp_path, "select count(*) from paper") < [(page * size,)]:
            assert time.monotonic() < deadline
            assert running.poll() is None
            time.sleep(0.01)
        os.killpg(running.pid, signal.SIGKILL)
        running.wait(timeout=5)
    luigi(server, tmp_path, *parameters)
    assert rows(tmp_path, "select count(*) from paper") == [(pages * size,)]
    assert rows(tmp_path, "select count(*) from twice") == [(0,)]
    assert rows(tmp_path, "select done, records from mark") == [(1, pages * size)]
    assert rows(tmp_path, "select kind, count(*) from sighting group by kind") == [("new", pages * size)]
    asked = [path for _, path, _ in server.requests() if "ListRecords" in path]
    assert sum("from=" in path for path in asked) == 1
    assert len(asked) <= 2 * pages - 1  # of each kill at most the page that was under way


def test_a_day_of_many_pages_takes_no_more_memory_than_one_of_a_page() -> None:
    bench = EXAMPLE.parents[1] / "bench" / "harvest"
    command_line = [sys.executable, str(bench), "16000"]
    said = subprocess.run(command_line, stdout=subprocess.PIPE, text=True, timeout=300, check=True).stdout
    memory = next(line for line in said.splitlines() if "peak memory; of a day of 2,000" in line)
    assert float(memory.strip("| ").split(" | ")[-1]) < 1.4, said


def test_several_workers_still_ask_one_at_a_time_at_the_pace(serve: Serve, tmp_path: Path) -> None:
    server = serve(papers_of(str(DAY), 12))
    parameters = ("--date", str(DAY), "--production", "--lookback-days", "3", "--workers", "3")
    luigi(server, tmp_path, *parameters, "--pace", "0.2")
    moments = [when for when, _, _ in server.requests()]
    assert len(moments) == 6
    assert all(later - earlier > 0.19 for earlier, later in itertools.pairwise(moments))
    assert report(tmp_path, DAY)["new"] == 12


def test_a_run_asks_for_each_set_that_is_named_and_for_all_when_none_is() -> None:
    named = RootTask(date=DAY, sets="cs, physics:hep-th", lookback_days=1)  # type: ignore[no-untyped-call]  # no types in Luigi
    days = [DAY - timedelta(days=1), DAY]
    asked = [(task.day, task.set_spec) for task in named.harvests()]
    assert asked == [(day, spec) for day in days for spec in ("cs", "physics:hep-th")]
    assert named.set_specs() == ["cs", "physics:hep-th"]
    assert RootTask(date=DAY).set_specs() == [""]  # type: ignore[no-untyped-call]  # likewise


def test_a_password_in_the_database_url_is_not_printed(serve: Serve, tmp_path: Path) -> None:
    server = serve(papers_of(str(DAY), 1))
    url = "nosuchdb://me:hunter2@localhost/arxlive"
    said = luigi(server, tmp_path, "--date", str(DAY), "--database-url", url, exit_code=35)
    assert "nosuchdb" in said
    assert "hunter2" not in said
    # Luigi's summary of a run with several days shows every parameter, in this form.
    shown = RootTask.database_url.serialize(url)  # type: ignore[no-untyped-call]  # no types in Luigi
    assert shown == "nosuchdb://me:***@localhost/arxlive"


def test_a_date_of_yesterday_or_later_means_up_to_now() -> None:
    today = date(2026, 11, 20)
    up_to_now = [date(2026, 11, 18), date(2026, 11, 19), today]
    for last in (date(2026, 11, 19), today, date(2026, 12, 24)):
        assert days_until(last, 2, today) == up_to_now
    assert days_until(date(2026, 11, 18), 1, today) == [date(2026, 11, 17), date(2026, 11, 18)]


@pytest.mark.parametrize(
    ("url", "rehearsal"),
    [
        ("sqlite:////data/arxlive.sqlite3", "sqlite:////data/arxlive-dev.sqlite3"),
        ("postgresql+psycopg://me:secret@db/arxlive", "postgresql+psycopg://me:secret@db/arxlive-dev"),
        ("mysql+pymysql://db/arxlive?charset=utf8mb4", "mysql+pymysql://db/arxlive-dev?charset=utf8mb4"),
    ],
)
def test_a_rehearsal_has_a_database_of_its_own_at_any_url(url: str, rehearsal: str) -> None:
    assert database_of(url, production=True) == url
    assert database_of(url, production=False) == rehearsal


@pytest.mark.parametrize("dialect", [postgresql, mysql], ids=["postgresql", "mysql"])
def test_the_tables_can_be_made_in_other_databases(dialect: Any) -> None:
    for table in Base.metadata.sorted_tables:
        assert "CREATE TABLE" in str(CreateTable(table).compile(dialect=dialect.dialect()))


def test_a_database_that_forgets_is_refused() -> None:
    with pytest.raises(ValueError, match="name a file"):
        open_store("sqlite://")


def test_an_empty_store_says_so(tmp_path: Path) -> None:
    engine = open_store(f"sqlite:///{tmp_path}/new/folder/arxlive.sqlite3")
    assert papers_in_store(engine) == 0
    assert mark_of(engine, DAY, "") is None
    assert holes(engine, DAY, DAY, "") == []
