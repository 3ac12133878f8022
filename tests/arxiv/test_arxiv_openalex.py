"""Questions to OpenAlex, against a real server of its protocol on loopback, faults included."""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING

import pytest
import requests

from arxlive.openalex import OpenAlexError, Spent, Unanswered, asked_for, by_dois, by_title

from .conftest import EXAMPLE, work

if TYPE_CHECKING:
    from .conftest import OpenAlex, ServeWorks

WORKS = [
    work("W1", "On the Theory of Games", "10.48550/arxiv.2001.00001"),
    work("W2", "On the Theory of Games II", "10.1000/games(2)<1::aid>3.0.co;2-x"),
    work("W3", "Étude: of $N=4$ Games, AND others", None, findable_from="2026-12-01T00:00:00+00:00"),
]


@pytest.fixture
def session() -> requests.Session:
    return requests.Session()


def ask(server: OpenAlex, query: str) -> requests.Response:
    return requests.get(f"{server.base_url}/{query}", timeout=10)


def test_a_hundred_dois_are_one_call_and_a_hundred_and_one_are_refused(
    serve_works: ServeWorks, session: requests.Session
) -> None:
    server = serve_works([work(f"W{n}", f"Title {n}", f"10.48550/arxiv.2001.{n:05}") for n in range(120)])
    found = by_dois(session, server.base_url, [f"10.48550/arXiv.2001.{n:05}" for n in range(100)])
    assert len(found) == 100
    assert found["10.48550/arxiv.2001.00042"].work == "W42"
    assert server.counts() == {"list": 1}
    with pytest.raises(OpenAlexError, match=r"HTTP 400 .*Decrease values to 100"):
        by_dois(session, server.base_url, [f"10.48550/arXiv.2001.{n:05}" for n in range(101)])


def test_a_doi_with_strange_letters_is_found_and_one_that_would_be_two_is_not_asked_for(
    serve_works: ServeWorks, session: requests.Session
) -> None:
    server = serve_works(WORKS)
    odd = WORKS[1]["doi"]
    assert [
        found.work for found in by_dois(session, server.base_url, [odd.upper(), "10.1/a,b", "10.1/a|b"]).values()
    ] == ["W2"]
    assert by_dois(session, server.base_url, ["10.1/a,b"]) == {}
    assert server.counts() == {"list": 1}


def test_a_title_finds_what_has_all_its_words(serve_works: ServeWorks, session: requests.Session) -> None:
    server = serve_works(WORKS)
    found = by_title(session, server.base_url, 'On the theory of "Games", or: ')
    assert found == []
    assert [one.work for one in by_title(session, server.base_url, "On the Theory of Games!")] == ["W1", "W2"]
    assert server.counts() == {"search": 2}


@pytest.mark.parametrize(
    ("title", "words"),
    [
        ('Étude of Games, AND others|NOT: "more"', "etude of games and others not more"),
        (r"Superconformal $\mathcal{N}=4$ theories in four dimensions", "superconformal theories in four dimensions"),
        (r"$\mathcal{N}=4$ Theory", "n 4 theory"),
        (r"Schr{\"o}dinger's {\it Equation}", "schrodinger s equation"),
    ],
)
def test_a_title_is_asked_for_by_words_that_mean_nothing_else(title: str, words: str) -> None:
    assert " ".join(asked_for(title)) == words


def test_a_title_without_words_is_not_asked_for(serve_works: ServeWorks, session: requests.Session) -> None:
    server = serve_works(WORKS)
    assert by_title(session, server.base_url, "?!") == []
    assert server.counts() == {}


def test_a_work_is_found_from_its_day_on(serve_works: ServeWorks, session: requests.Session) -> None:
    server = serve_works(WORKS)
    title = WORKS[2]["title"]
    assert by_title(session, server.base_url, title) == []
    server.is_now(date(2026, 12, 1))
    assert [one.work for one in by_title(session, server.base_url, title)] == ["W3"]


@pytest.mark.parametrize("fault", ["--truncate-first", "--html-first"])
def test_an_answer_that_is_not_whole_is_asked_for_again_and_not_for_ever(
    serve_works: ServeWorks, session: requests.Session, fault: str
) -> None:
    server = serve_works(WORKS, fault, "2")
    assert len(by_title(session, server.base_url, "On the Theory of Games")) == 2
    assert server.counts() == {"search": 3}
    server = serve_works(WORKS, fault, "3")
    with pytest.raises(OpenAlexError, match="3 answers of OpenAlex were not whole"):
        by_title(session, server.base_url, "On the Theory of Games")
    assert server.counts() == {"search": 3}


@pytest.mark.parametrize("fault", ["--drop-first", "--break-first"])
def test_a_connection_that_breaks_is_an_error_and_no_empty_answer(
    serve_works: ServeWorks, session: requests.Session, fault: str
) -> None:
    server = serve_works(WORKS, fault, "1")
    with pytest.raises(requests.RequestException):
        by_title(session, server.base_url, "On the Theory of Games")


def test_a_server_that_is_down_is_an_error_with_its_status(serve_works: ServeWorks, session: requests.Session) -> None:
    server = serve_works(WORKS, "--busy-first", "1", "--busy-status", "500")
    with pytest.raises(Unanswered, match="HTTP 500"):
        by_title(session, server.base_url, "On the Theory of Games")


def test_a_server_that_says_nothing_is_told_from_one_that_is_not_there(
    serve_works: ServeWorks, session: requests.Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("arxlive.openalex.SECONDS", 0.2)
    server = serve_works(WORKS, "--slow", "1")
    with pytest.raises(Unanswered, match="no answer of OpenAlex within"):
        by_title(session, server.base_url, "On the Theory of Games")
    with pytest.raises(requests.ConnectionError):
        by_title(session, "http://127.0.0.1:9", "On the Theory of Games")


def test_a_day_that_is_spent_is_told_as_such_and_the_next_one_is_not(
    serve_works: ServeWorks, session: requests.Session
) -> None:
    server = serve_works(WORKS, "--limit-usd", "0.0021")
    for _ in range(2):
        by_title(session, server.base_url, "On the Theory of Games")
    by_dois(session, server.base_url, ["10.48550/arXiv.2001.00001"])
    with pytest.raises(Spent, match="Insufficient budget"):
        by_title(session, server.base_url, "On the Theory of Games")
    server.is_now(date(2026, 11, 21))
    by_title(session, server.base_url, "On the Theory of Games")
    assert server.counts() == {"search": 4, "list": 1, "refused": 1}


def test_every_answer_says_what_it_cost_and_what_is_left(serve_works: ServeWorks) -> None:
    server = serve_works(WORKS, "--limit-usd", "0.0012")
    paid = ask(server, "works?filter=title.search:games")
    said = {name.removeprefix("X-RateLimit-"): value for name, value in paid.headers.items() if "RateLimit" in name}
    assert said == {
        "Limit": "12", "Remaining": "2", "Credits-Used": "10", "Reset": "43200",
        "Limit-USD": "0.0012", "Remaining-USD": "0.0002", "Cost-USD": "0.001",
    }  # fmt: skip
    assert ask(server, "works/W1").headers["X-RateLimit-Cost-USD"] == "0"
    refused = ask(server, "works?search=games")
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "43200")
    assert server.counts() == {"search": 2, "singleton": 1, "refused": 1}


@pytest.mark.parametrize(
    ("query", "status", "part"),
    [
        ("works?filter=title:games", 400, "title is not a valid field"),
        ("works?filter=games", 400, "NAME:VALUE"),
        ("works?per_page=101", 400, "per_page"),
        ("works?per_page=x", 400, "no number"),
        ("works?select=abstract", 400, "abstract"),
        ("works?titel=games", 400, "titel"),
        ("works/W9", 404, "W9"),
        ("works/W3", 404, "W3"),
        ("authors", 404, "authors"),
    ],
)
def test_what_openalex_refuses_is_refused(serve_works: ServeWorks, query: str, status: int, part: str) -> None:
    answer = ask(serve_works(WORKS), query)
    assert answer.status_code == status
    assert part in answer.json()["message"]


def test_one_work_is_found_by_its_key_and_by_its_doi(serve_works: ServeWorks) -> None:
    server = serve_works(WORKS)
    shown = ask(server, "works/W1").json()
    assert ask(server, "works/https://doi.org/10.48550/arXiv.2001.00001").json() == shown
    assert [entry["author"]["display_name"] for entry in shown["authorships"]] == ["Ada Lovelace", "Emmy Noether"]


def test_a_key_that_is_asked_for_must_be_shown(serve_works: ServeWorks) -> None:
    server = serve_works(WORKS, "--api-key", "k3y")
    assert ask(server, "works/W1").status_code == 401
    shown = requests.get(f"{server.base_url}/works/W1", headers={"Authorization": "Bearer k3y"}, timeout=10)
    assert shown.status_code == 200


def test_the_examples_catalogue_has_papers_of_each_kind(serve_works: ServeWorks, session: requests.Session) -> None:
    server = serve_works(EXAMPLE / "oai_server" / "catalogue.json")
    found = by_dois(session, server.base_url, ["10.48550/arXiv.1706.03762"])
    assert found["10.48550/arxiv.1706.03762"].title == "Attention Is All You Need"
    everything = ask(server, "works?per_page=100").json()["results"]
    assert sum(one["doi"] is None for one in everything) > 10
