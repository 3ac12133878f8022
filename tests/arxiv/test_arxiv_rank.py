"""Which work a paper is: a labelled set of look-alikes, judged through the real server."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import requests

from arxlive.openalex import Candidate, by_title
from arxlive.rank import by_doi, common_authors, similarity
from arxlive.rank import by_title as choose

from .conftest import EXAMPLE, work

if TYPE_CHECKING:
    from .conftest import ServeWorks

CATALOGUE = json.loads((EXAMPLE / "oai_server" / "catalogue.json").read_text(encoding="utf-8"))["papers"]
ADA = [{"keyname": "Lovelace", "forenames": "Ada"}, {"keyname": "Noether", "forenames": "Emmy"}]


@dataclass(frozen=True)
class Labelled:
    """A paper, and the key of its work in `works`; None where OpenAlex has look-alikes only."""

    title: str
    authors: list[dict[str, str]]
    year: int
    label: str | None
    kind: str


def labelled_set() -> tuple[list[Labelled], list[dict[str, Any]]]:
    """Make, of each paper of the catalogue, its work in some guise and the works it must not be taken for."""
    draw = random.Random(7)  # noqa: S311 - a seeded test
    papers, works = [], []
    for number, entry in enumerate(CATALOGUE):
        title, year = entry["title"], int(entry["created"][:4])
        authors = [dict(zip(("keyname", "forenames"), name.split(", "), strict=False)) for name in entry["authors"]]
        names = [" ".join(reversed(name.split(", "))) for name in entry["authors"]]
        strangers = [" ".join(reversed(name.split(", "))) for name in CATALOGUE[number - 9]["authors"]]
        guises = {
            "as it is": (title, names, year),
            "typeset": (title.upper().replace("-", "\N{EN DASH}").replace(": ", " \N{EM DASH} "), names, year),
            "initials": (title, [f"{name[0]}. {name.split()[-1]}" for name in names], year + 1),
            "first author lost": (title, names[1:] or names, year),
            "published later": (f"{title}.", names, year + 2),
            "absent": None,
        }
        kind = list(guises)[number % len(guises)]
        if (guise := guises[kind]) is not None:
            works.append(work(f"W{number}", guise[0], authors=guise[1], year=guise[2]))
        words = title.split()
        place = draw.randrange(len(words))
        other = [*words[:place], "Turbulent", *words[place + 1 :]]
        for look, (name, whose, when) in {
            "same title, others": (title, strangers, year),
            "same title, others, older": (title, ["Jan Novak"], year - 8),
            "sequel": (f"{title} II", names, year + 1),
            "part": (f"{title}, Part 2", names, year),
            "comment": (f"Comment on: {title}", strangers, year),
            "reply": (f"Reply to comment on {title}", names, year),
            "erratum": (f"Erratum: {title}", names, year),
            "one word differs, others": (" ".join(other), strangers, year),
            "much later": (title, names, year + 9),
        }.items():
            works.append(work(f"X{number}-{look}", name, authors=whose, year=when))
        papers.append(Labelled(title, authors, year, None if guise is None else f"W{number}", kind))
    return papers, works


def test_of_look_alikes_none_is_taken_and_nearly_every_work_is_found(serve_works: ServeWorks) -> None:
    papers, works = labelled_set()
    server = serve_works(works, "--limit-usd", "10")
    right, wrong, missed = 0, [], []
    with requests.Session() as session:
        for paper in papers:
            best = choose(paper.title, paper.authors, paper.year, by_title(session, server.base_url, paper.title))
            found = best and best.work.work
            if found == paper.label:
                right += found is not None
            elif found is not None:
                wrong.append((paper.kind, paper.title, found))
            else:
                missed.append((paper.kind, paper.title))
    labelled = sum(paper.label is not None for paper in papers)
    assert labelled > 60
    assert wrong == []  # precision 1
    assert right / labelled >= 0.95, missed  # recall


def test_the_better_of_two_candidates_is_taken_and_its_score_says_how_sure_it_is() -> None:
    exact = Candidate("W1", None, "On the Theory of Games", 2020, ("Ada Lovelace", "Emmy Noether"))
    close = Candidate("W2", None, "On the Theory of Gamez", 2021, ("A. Lovelace",))
    for candidates in ([exact, close], [close, exact]):
        best = choose("On the theory of games", ADA, 2020, candidates)
        assert best is not None
        assert (best.work.work, best.way, best.score) == ("W1", "title", 1.0)
    second = choose("On the theory of games", ADA, 2020, [close])
    assert second is not None
    assert 0.7 < second.score < 0.9


@pytest.mark.parametrize(
    "candidate",
    [
        Candidate("W1", None, "On the Theory of Games", 2020, ()),
        Candidate("W1", None, "On the Theory of Games", None, ("Ada Lovelace", "Emmy Noether")),
        Candidate("W1", None, None, 2020, ("Ada Lovelace", "Emmy Noether")),
        Candidate("W1", None, "On the Theory of Games", 2020, ("Ada Lovelace", "B. C", "D. E", "F. G")),
        Candidate("W1", None, "On the Theory of Games", 2016, ("Ada Lovelace", "Emmy Noether")),
    ],
    ids=["no authors", "no year", "no title", "others among the authors", "another year"],
)
def test_what_cannot_be_judged_is_not_taken(candidate: Candidate) -> None:
    assert choose("On the Theory of Games", ADA, 2020, [candidate]) is None


def test_arxivs_own_doi_is_certain_and_a_journals_needs_the_title_or_the_authors() -> None:
    arxiv = Candidate("W1", "10.48550/arxiv.2001.00001", "Anything", 2020, ())
    journal = Candidate("W2", "10.1000/1", "On the Theory of Games", 2022, ("Ada Lovelace",))
    other = Candidate("W3", "10.1000/2", "Of Other Things", 2022, ("Jan Novak",))

    def found(doi: str | None, *works: Candidate) -> tuple[str, str] | None:
        by = {work.doi or "": work for work in works}
        best = by_doi("2001.00001", "On the Theory of Games", ADA, doi, by)
        return None if best is None else (best.work.work, best.way)

    assert found("10.1000/1", arxiv, journal) == ("W1", "arxiv-doi")
    assert found("10.1000/1", journal) == ("W2", "journal-doi")
    assert found("10.1000/2", other) is None
    assert found("10.1000/2 10.1000/1", journal, other) == ("W2", "journal-doi")
    assert found(None, journal) is None


@pytest.mark.parametrize(
    ("title", "other", "alike"),
    [
        (r"Schr\"odinger's $N$-body problem", "Schrödinger\N{RIGHT SINGLE QUOTATION MARK}s N-Body Problem", 1.0),
        ("Deep Learning: A Survey", "DEEP LEARNING — A SURVEY", 1.0),
        ("Attention Is All You Need", "Attention Is Not All You Need", 0.93),
    ],
)
def test_titles_are_as_alike_as_their_words(title: str, other: str, alike: float) -> None:
    assert similarity(title, other) == pytest.approx(alike, abs=0.03)


def test_authors_are_compared_by_surname_and_initial() -> None:
    assert common_authors(ADA, ["A. Lovelace", "E. Noether"]) == 1.0
    assert common_authors(ADA, ["Lovelace", "Emmy Noether"]) == 1.0
    assert common_authors(ADA, ["Byron Lovelace"]) == 0.0
    assert common_authors([{"keyname": "Pérez de la Torre", "forenames": "José"}], ["Jose Torre"]) == 1.0
    assert common_authors([], ["Ada Lovelace"]) == 0.0


def test_an_author_without_a_surname_is_the_same_as_nobody() -> None:
    nameless: list[dict[str, Any]] = [{"forenames": "Ada"}, {"affiliation": ["CERN"]}, {"keyname": "--"}]
    assert common_authors(nameless, ["Ada", "", "--"]) == 0.0
    assert common_authors([nameless[0], *ADA], ["Ada Lovelace", "Emmy Noether", "Ada"]) == pytest.approx(2 / 3)
