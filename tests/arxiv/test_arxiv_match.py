"""Matching the store's papers, night by night, against a real server of OpenAlex's protocol."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from datetime import date, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import requests
from sqlalchemy import select
from sqlalchemy.orm import Session

from arxlive import ahead, asking, openalex
from arxlive.harvest import Page
from arxlive.match import Client, Outcome, match
from arxlive.openalex import OpenAlexError, Spent
from arxlive.records import Record
from arxlive.store import Alone, Asked, Matched, open_store, save

from .conftest import EXAMPLE, work

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

    from .conftest import OpenAlex, ServeWorks

NIGHT = date(2026, 11, 20)
ADA = [{"keyname": "Lovelace", "forenames": "Ada"}, {"keyname": "Noether", "forenames": "Emmy"}]


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return open_store(f"sqlite:///{tmp_path}/arxlive.sqlite3")


@pytest.fixture
def session() -> Iterator[requests.Session]:
    with requests.Session() as opened:
        yield opened


def record(number: int, **more: Any) -> Record:
    what: dict[str, Any] = {"created": date(2020, 1, 2), "title": f"On number {number} of all games", "authors": ADA}
    return Record(f"2001.{number:05}", NIGHT, deleted=False, categories="math.HO", **{**what, **more})


def add(engine: Engine, *records: Record) -> None:
    save(engine, NIGHT, "", Page(list(records), 1, len(records), None, last=True, day_over=True))


def night(engine: Engine, server: OpenAlex, session: requests.Session, day: date = NIGHT, titles: int = 60) -> Outcome:
    """Match once, and return what came of it."""
    server.is_now(day)
    outcome = Outcome()
    client = Client(
        partial(openalex.by_dois, session, server.base_url), partial(openalex.by_title, session, server.base_url)
    )
    match(engine, client, day, titles, outcome)
    return outcome


def matched(engine: Engine) -> dict[str, Matched]:
    with Session(engine, expire_on_commit=False) as opened:
        return {one.paper_id: one for one in opened.scalars(select(Matched))}


def asked(engine: Engine) -> dict[str, Asked]:
    with Session(engine, expire_on_commit=False) as opened:
        return {one.paper_id: one for one in opened.scalars(select(Asked))}


def held(number: int, doi: str | None = "arxiv", **more: Any) -> dict[str, Any]:
    doi = f"10.48550/arxiv.2001.{number:05}" if doi == "arxiv" else doi
    return work(f"W{number}", f"On number {number} of all games", doi, **more)


def test_a_night_with_250_papers_is_three_calls_and_a_second_time_none(
    serve_works: ServeWorks, engine: Engine, session: requests.Session
) -> None:
    server = serve_works([held(number) for number in range(250) if number % 5])
    add(engine, *[record(number) for number in range(250)])
    outcome = night(engine, server, session)
    assert (outcome.asked_by_doi, outcome.found_by_doi, outcome.left_by_doi) == (250, 200, 0)
    assert server.counts() == {"list": 3}
    assert {one.way for one in matched(engine).values()} == {"arxiv-doi"}
    assert matched(engine)["2001.00001"].work == "W1"

    again = night(engine, server, session)
    assert (again.asked_by_doi, again.asked_by_title) == (0, 0)
    assert server.counts() == {"list": 3}


def test_a_journals_doi_is_asked_for_beside_arxivs_own_and_anew_when_it_becomes_known(
    serve_works: ServeWorks, engine: Engine, session: requests.Session
) -> None:
    server = serve_works(
        [
            held(1, "10.1000/one"),
            held(2, "10.1000/two"),
            work("W9", "Of Other Things", "10.1000/three", authors=["X Y"]),
        ]
    )
    add(engine, record(1, doi="10.1000/ONE"), record(2), record(3, doi="10.1000/three"))
    night(engine, server, session)
    assert {paper_id: (one.work, one.way) for paper_id, one in matched(engine).items()} == {
        "2001.00001": ("W1", "journal-doi")
    }
    assert server.counts() == {"list": 1}
    add(engine, record(2, doi="10.1000/two"))
    night(engine, server, session)
    assert matched(engine)["2001.00002"].work == "W2"
    assert server.counts() == {"list": 2}


def test_what_is_not_there_is_asked_for_at_growing_intervals(
    serve_works: ServeWorks, engine: Engine, session: requests.Session
) -> None:
    server = serve_works([held(0)])
    add(engine, record(1))
    nights: dict[str, list[int]] = {"list": [], "search": []}
    before: dict[str, int] = {}
    for age in range(181):
        night(engine, server, session, NIGHT + timedelta(days=age))
        now = server.counts()
        for kind, found in nights.items():
            if now.get(kind, 0) > before.get(kind, 0):
                found.append(age)
        before = now
    by_doi, by_title = nights["list"], nights["search"]
    gaps = [later - earlier for earlier, later in itertools.pairwise(by_doi)]
    assert gaps[:4] == [1, 1, 1, 1]
    assert max(gaps) > 10
    assert len(by_doi) < 60
    assert 25 <= by_title[0] <= 35  # nothing came yet that could tell how long it takes
    assert 2 <= len(by_title) <= 6


def test_a_call_that_goes_out_anyway_is_filled_with_those_that_are_due_next(
    serve_works: ServeWorks, engine: Engine, session: requests.Session
) -> None:
    server = serve_works([held(0)])
    add(engine, *[record(number) for number in range(1, 31)])
    night(engine, server, session)
    with Session(engine) as opened, opened.begin():
        for one in opened.scalars(select(Asked)):
            one.doi_due = NIGHT + timedelta(days=20)
    assert night(engine, server, session, NIGHT + timedelta(days=1)).asked_by_doi == 0
    add(engine, record(31))
    assert night(engine, server, session, NIGHT + timedelta(days=1)).asked_by_doi == 31
    assert server.counts() == {"list": 2}


def test_titles_are_asked_for_when_papers_like_these_should_have_come_by_their_doi(
    serve_works: ServeWorks, engine: Engine, session: requests.Session
) -> None:
    came = NIGHT + timedelta(days=6)
    works = [held(number, findable_from=f"{came}T00:00:00+00:00") for number in range(1, 90)]
    server = serve_works([*works, held(95, None), held(96, "10.1000/unknown")])
    add(engine, *[record(number) for number in range(1, 101)])
    for age in range(12):
        outcome = night(engine, server, session, NIGHT + timedelta(days=age))
        if age < 4:
            assert outcome.asked_by_title == 0
    found = matched(engine)
    assert {paper_id: one.way for paper_id, one in found.items() if one.way != "arxiv-doi"} == {
        "2001.00095": "title",
        "2001.00096": "title",
    }
    assert outcome.titles_from_age in {6.0, 7.0, 8.0}
    assert server.counts()["search"] <= 30
    assert found["2001.00095"].score == 1.0


def test_titles_are_capped_and_those_asked_for_least_come_first(
    serve_works: ServeWorks, engine: Engine, session: requests.Session
) -> None:
    server = serve_works([held(0)])
    add(engine, *[record(number) for number in range(1, 31)])
    night(engine, server, session)
    late = NIGHT + timedelta(days=40)
    first = night(engine, server, session, late, titles=10)
    assert (first.asked_by_title, first.left_by_title) == (10, 20)
    second = night(engine, server, session, late, titles=25)
    assert (second.asked_by_title, second.left_by_title) == (20, 0)
    assert {one.title_times for one in asked(engine).values()} == {1}


def test_a_budget_that_ends_leaves_the_rest_to_the_next_night(
    serve_works: ServeWorks, engine: Engine, session: requests.Session
) -> None:
    server = serve_works([held(number) for number in range(1, 301)], "--limit-usd", "0.0002")
    add(engine, *[record(number) for number in range(1, 301)])
    server.is_now(NIGHT)
    outcome = Outcome()
    client = Client(
        partial(openalex.by_dois, session, server.base_url), partial(openalex.by_title, session, server.base_url)
    )
    with pytest.raises(Spent):
        match(engine, client, NIGHT, 60, outcome)
    assert (outcome.asked_by_doi, outcome.found_by_doi, outcome.left_by_doi) == (200, 200, 100)
    following = night(engine, server, session, NIGHT + timedelta(days=1))
    assert (following.asked_by_doi, following.found_by_doi) == (100, 100)
    assert server.counts() == {"list": 4, "refused": 1}


def test_a_list_without_a_usable_answer_is_asked_for_in_halves(
    serve_works: ServeWorks, engine: Engine, session: requests.Session
) -> None:
    server = serve_works([held(1), held(2)], "--html-first", "3")
    add(engine, record(1), record(2))
    outcome = night(engine, server, session)
    assert (outcome.found_by_doi, outcome.unanswered) == (2, [])
    assert server.counts() == {"list": 3 + 2}


@pytest.mark.parametrize("status", ["400", "500"])
def test_a_paper_whose_dois_get_no_answer_is_asked_for_alone_at_doubling_intervals_and_the_others_go_on(
    serve_works: ServeWorks, engine: Engine, session: requests.Session, status: str
) -> None:
    numbers = range(250)
    server = serve_works([held(n) for n in numbers], "--poison", "2001.00007", "--poison-status", status)
    add(engine, *[record(number) for number in numbers])
    outcome = night(engine, server, session)
    assert (outcome.asked_by_doi, outcome.found_by_doi, outcome.left_by_doi) == (250, 249, 0)
    assert outcome.unanswered == [f"2001.00007, by DOI: HTTP {status} from OpenAlex: told to fail"]
    assert server.counts()["list"] <= 3 + 2 * 7

    asked_again = []
    for age in range(1, 32):
        before = server.counts()["list"]
        # Another paper that is new each night: a call that goes out anyway is not filled with the one that spoils it.
        add(engine, record(1000 + age))
        outcome = night(engine, server, session, NIGHT + timedelta(days=age), titles=0)
        calls = server.counts()["list"] - before
        if outcome.unanswered:
            asked_again.append(age)
        assert calls == 1 + len(outcome.unanswered)
    assert asked_again == [1, 3, 7, 15, 31]

    healthy = serve_works([held(n) for n in numbers])
    assert night(engine, healthy, session, NIGHT + timedelta(days=63), titles=0).found_by_doi == 1
    with Session(engine) as opened:
        assert opened.scalars(select(Alone)).all() == []


def test_a_title_that_gets_no_answer_keeps_no_other_from_being_asked_for(
    serve_works: ServeWorks, engine: Engine, session: requests.Session
) -> None:
    server = serve_works([held(n, None) for n in range(3)], "--poison", "number 0")
    add(engine, *[record(number) for number in range(3)])
    night(engine, server, session)
    outcome = night(engine, server, session, NIGHT + timedelta(days=40))
    assert set(matched(engine)) == {"2001.00001", "2001.00002"}
    assert outcome.unanswered == ["2001.00000, by title: HTTP 500 from OpenAlex: told to fail"]
    assert night(engine, server, session, NIGHT + timedelta(days=41)).asked_by_title == 0


def test_a_paper_that_cannot_be_compared_keeps_no_other_from_its_match(
    serve_works: ServeWorks, engine: Engine, session: requests.Session
) -> None:
    server = serve_works([held(0, "10.1000/zero"), *(held(n) for n in range(1, 4)), held(4, None), held(5, None)])
    odd = {"authors": ["Ada Lovelace"]}  # of a form that no record has
    add(engine, record(0, doi="10.1000/zero", **odd), *map(record, range(1, 4)), record(4, **odd), record(5))
    outcome = night(engine, server, session)
    assert (outcome.found_by_doi, outcome.left_by_doi) == (3, 0)
    assert [one.partition(": ")[0] for one in outcome.failed] == ["2001.00000"]
    outcome = night(engine, server, session, NIGHT + timedelta(days=40))
    assert set(matched(engine)) == {f"2001.0000{n}" for n in (1, 2, 3, 5)}
    assert "2001.00004: AttributeError" in str(outcome.failed)


def test_where_nobody_answers_the_run_ends_after_a_few_questions_and_puts_nothing_off(
    serve_works: ServeWorks, engine: Engine, session: requests.Session
) -> None:
    server = serve_works([held(n) for n in range(250)], "--busy-every", "1")
    add(engine, *[record(number) for number in range(250)])
    with pytest.raises(OpenAlexError, match="9 questions in a row without an answer: HTTP 503"):
        night(engine, server, session)
    assert server.counts() == {"list": 9}
    assert asked(engine) == {}


def test_deleted_papers_are_not_asked_for(serve_works: ServeWorks, engine: Engine, session: requests.Session) -> None:
    server = serve_works([held(1)])
    add(engine, record(1), Record("2001.00002", NIGHT, deleted=True))
    add(engine, Record("2001.00001", NIGHT, deleted=True))
    assert night(engine, server, session).asked_by_doi == 0
    assert server.counts() == {}


MATCHING = """
import sys
from datetime import date
from functools import partial
import requests
from arxlive import openalex
from arxlive.match import Client, Outcome, match
from arxlive.store import open_store
url, database, night = sys.argv[1:]
session = requests.Session()
client = Client(partial(openalex.by_dois, session, url), partial(openalex.by_title, session, url))
match(open_store(database), client, date.fromisoformat(night), 60, Outcome())
"""


def test_a_matching_that_is_killed_at_any_moment_loses_nothing_and_repeats_one_call_at_most(
    serve_works: ServeWorks, engine: Engine, tmp_path: Path
) -> None:
    papers = 1200
    server = serve_works([held(number) for number in range(papers) if number % 3], "--slow", "0.02")
    add(engine, *[record(number) for number in range(papers)])
    arguments = [sys.executable, "-c", MATCHING, server.base_url, f"sqlite:///{tmp_path}/arxlive.sqlite3", str(NIGHT)]
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLE)}
    kills = 0
    for pause in (0.0, 0.03, 0.06, 0.09, 0.12, 0.15):
        running = subprocess.Popen(arguments, env=environment, stderr=subprocess.DEVNULL)
        calls = server.counts().get("list", 0)
        deadline = time.monotonic() + 20
        while server.counts().get("list", 0) == calls and running.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(pause)
        if running.poll() is None:
            running.send_signal(signal.SIGKILL)
            kills += 1
        running.wait(timeout=5)
    assert kills >= 3
    subprocess.run(arguments, env=environment, check=True, timeout=60)
    assert set(matched(engine)) == {f"2001.{n:05}" for n in range(papers) if n % 3}
    assert all(one.doi_times == 1 for one in asked(engine).values())
    assert len(asked(engine)) == papers
    assert server.counts()["list"] <= papers // 100 + kills


def test_intervals_grow_with_age_and_differ_from_paper_to_paper() -> None:
    ids = [f"2001.{number:05}" for number in range(500)]
    for age, shortest, longest in ((1, 1, 1), (20, 1, 3), (100, 8, 12)):
        days = [(asking.next_doi(one, NIGHT, NIGHT + timedelta(days=age)) - NIGHT).days - age for one in ids]
        assert shortest <= min(days)
        assert max(days) <= longest
        assert days == [(asking.next_doi(one, NIGHT, NIGHT + timedelta(days=age)) - NIGHT).days - age for one in ids]
    assert len(set(days)) > 4


def test_the_age_of_titles_is_not_misled_by_papers_that_are_young() -> None:
    assert asking.age_of_titles([], []) == asking.LATEST
    assert asking.age_of_titles([5] * 60, [40] * 40) == 5.0
    # Ten came on their second day, and nobody else is as old as that.
    assert asking.age_of_titles([2] * 10, [1] * 90) == asking.EARLIEST
    assert asking.age_of_titles([2] * 10, [3] * 90) == asking.LATEST
    assert asking.age_of_titles([60] * 90, []) == asking.LATEST


def test_what_the_nights_to_come_ask_for_is_known_where_they_are_like_those_before(
    serve_works: ServeWorks, engine: Engine, session: requests.Session
) -> None:
    server = serve_works([])
    days = (NIGHT + timedelta(days=count) for count in range(63))
    nights = [day for day in days if day.weekday() < 5]
    add(engine, *[record(number) for number in range(120)])  # and then three each night
    lived = {}
    for place, day in enumerate(nights):
        add(engine, *[record(200 + 3 * place + number) for number in range(3)])
        before = server.counts()
        night(engine, server, session, day, titles=20)
        lived[day] = {kind: number - before.get(kind, 0) for kind, number in server.counts().items()}
        if place == 9:
            assert ahead.questions(engine, day, 20) == {}  # it has not seen each weekday twice
        if place == 21:
            told = ahead.questions(engine, day, 20)
    assert list(told) == nights[22:]
    assert max(calls["search"] for calls in told.values()) == pytest.approx(20, abs=1)
    for kind in ("list", "search"):
        came = sum(lived[day].get(kind, 0) for day in told)
        assert came > 20
        assert sum(calls[kind] for calls in told.values()) == pytest.approx(came, rel=0.05)


def test_what_was_never_asked_for_is_asked_for_the_next_night(
    serve_works: ServeWorks, engine: Engine, session: requests.Session
) -> None:
    server = serve_works([])
    nights = [NIGHT + timedelta(days=count) for count in range(15)]
    for number, day in enumerate(nights):
        add(engine, record(number))
        night(engine, server, session, day)
    before = next(iter(ahead.questions(engine, nights[-1], 60).values()))
    add(engine, *[record(number) for number in range(100, 550)])  # more than the budget had left, say
    tomorrow, later = list(ahead.questions(engine, nights[-1], 60).items())[:2]
    assert tomorrow[0] == nights[-1] + timedelta(days=1)
    assert tomorrow[1]["list"] == before["list"] + 4  # the last list had room for the rest
    assert tomorrow[1]["search"] == before["search"]  # no title on its first day
    begun = server.counts()["list"]
    assert night(engine, server, session, tomorrow[0]).left_by_doi == 0
    assert server.counts()["list"] - begun == tomorrow[1]["list"]
    assert later[1]["list"] >= 4  # at first it is asked for every night


def test_what_is_told_ahead_goes_by_what_was_learnt() -> None:
    assert ahead.arrivals({NIGHT: 900, NIGHT - timedelta(weeks=1): 4}, NIGHT - timedelta(weeks=2), NIGHT)[4] == 4
    learnt = ahead.Learnt({NIGHT.weekday(): 0.0}, [(3, 0.5), (6, 0.25)], 5.0, (0.2, 0.1, 0.0))
    assert [learnt.stays(*ages) for ages in ((0, 2), (0, 3), (3, 6), (0, 60))] == [1.0, 0.5, 0.5, 0.25]
    # Of four papers that have been asked for on their first day one will be out after a week, and its title asked for.
    waiting = [ahead.Waiting(f"{number}", 1, NIGHT, NIGHT, NIGHT + timedelta(days=7)) for number in range(4)]
    told = ahead.walk(waiting, learnt, NIGHT, 60)
    assert told[NIGHT + timedelta(days=7)] == {"list": 1.0, "search": pytest.approx(1.0)}
    # Of eight titles that were asked for once four were found, of three that were asked for twice as yet none.
    assert ahead.shares_found({1: 5, 2: 3}, {1: 4}) == pytest.approx((5 / 12, 1 / 7, 1 / 4))
