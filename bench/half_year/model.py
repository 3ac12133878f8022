"""What a simulated half year is made of: which papers arrive when, and what OpenAlex comes to hold.

Nothing here knows how anybody asks. README.md beside this file names the sources, and says which
numbers are known and which are assumed. The same seed gives the same world, to the byte.
"""

from __future__ import annotations

import json
import math
import random
import re
import sys
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

SHARED = Path(__file__).parents[2].parent / "shared" / "arxiv" / "papers.jsonl"
CATALOGUE = Path(__file__).parents[2] / "examples" / "arxiv" / "oai_server" / "catalogue.json"

BEGIN = date(2026, 6, 1)  # a Monday; the half year is 26 weeks from here
WEEKS = 26
EPOCH = date(1970, 1, 5)  # a Monday

LAGS = (3.0, 10.0, 30.0)  # days until half of the papers that will be in OpenAlex are there
LAG_SIGMA = 0.9  # of the lag's logarithm: a tenth take more than three times the median
NEVER = 0.12  # papers that OpenAlex does not get within the half year, nor later
MERGED = 0.5  # of the papers whose journal DOI arXiv knows: held under that DOI alone
TITLE_ONLY = 0.2  # of the others: held under no DOI that arXiv knows of

TYPESET = 0.15  # titles that differ in dashes, case, colons or TeX
REWORDED = 0.05  # titles of which a word was exchanged, or the subtitle dropped
YEAR_LATER = 0.15  # works dated by the journal's year, which is the next one
INITIALS = 0.10  # works whose authors have initials only
FIRST_AUTHOR_LOST = 0.03

# Works that are somebody else's, in OpenAlex all the time. Shares of all papers.
NAMESAKES = (("same title", 0.05), ("sequel", 0.05), ("one word differs", 0.07), ("comment", 0.03))


@dataclass(frozen=True)
class Paper:
    """A paper as arXiv lists it: known to whoever harvests after `arrives` (UTC)."""

    paper_id: str
    arrives: datetime
    title: str
    authors: list[dict[str, str]]
    categories: str
    doi: str | None


@dataclass(frozen=True)
class Truth:
    """Which work a paper is, and from when on OpenAlex has it; both None where it never has it.

    `known_by` is what it can be found by: `arxiv` or `journal` (its DOI), `title`, or `never`.
    """

    work: str | None
    findable_from: datetime | None
    known_by: str


@dataclass(frozen=True)
class World:
    """The papers by their arrival, the hidden truth by paper, and OpenAlex's works for its server."""

    papers: list[Paper]
    truth: dict[str, Truth]
    works: list[dict[str, Any]]


@dataclass(frozen=True)
class Seed:
    """What is taken from one real record."""

    created: datetime
    title: str
    authors: list[dict[str, str]]
    categories: str
    doi: str | None


def seeds(records: Path = SHARED) -> tuple[str, list[Seed]]:
    """Return real records' first versions and where they are from: the file, else the catalogue."""
    if records.is_file():
        first: dict[str, dict[str, Any]] = {}
        for line in records.read_text(encoding="utf-8").splitlines():
            version = json.loads(line)
            known = first.get(version["paper_id"])
            if known is None or version["version"] < known["version"]:
                first[version["paper_id"]] = version
        found = [
            Seed(
                datetime.fromisoformat(version["created"]).replace(tzinfo=UTC),
                " ".join(version["title"].split()),
                _authors(version["authors"]),
                version["abs_categories"],
                version["doi"],
            )
            for version in first.values()
        ]
        return "arXiv's test database", sorted(found, key=lambda seed: (seed.created, seed.title))
    draw = random.Random(1)  # noqa: S311 - a simulation
    found = [
        Seed(
            datetime.combine(date.fromisoformat(entry["created"]), datetime.min.time(), UTC)
            + timedelta(minutes=draw.randrange(24 * 60)),
            entry["title"],
            [dict(zip(("keyname", "forenames"), author.split(", "), strict=False)) for author in entry["authors"]],
            entry["categories"],
            entry.get("doi"),
        )
        for entry in json.loads(CATALOGUE.read_text(encoding="utf-8"))["papers"]
    ]
    return "the example's catalogue", sorted(found, key=lambda seed: (seed.created, seed.title))


def world(lag: float, *, copies: int = 10, weeks: int = WEEKS, seed: int = 20261125, records: Path = SHARED) -> World:
    """Return a world of `weeks` weeks from BEGIN, with `copies` papers for each real record.

    `lag` is the median in days. The papers of all lags are the same, and so is everything else that
    is drawn, but for the lags themselves, which are the same times `lag`.
    """
    draw = random.Random(seed)  # noqa: S311 - a simulation
    origin = seeds(records)[1]
    taken: set[str] = set()
    papers = []
    for copy in range(copies):
        for real in origin:
            papers.append(_paper(draw, origin, real, copy, weeks, taken))
    papers.sort(key=lambda paper: (paper.arrives, paper.title))
    papers = [_numbered(number, paper) for number, paper in enumerate(papers)]
    truth, works = {}, []
    for paper in papers:
        fact, held = _held(draw, paper, lag, origin)
        truth[paper.paper_id] = fact
        works += held
    for number, work in enumerate(works):
        work["number"] = number
    return World(papers, truth, works)


def _paper(draw: random.Random, origin: list[Seed], real: Seed, copy: int, weeks: int, taken: set[str]) -> Paper:
    """Draw a paper; its weekday and time of day are the real record's.

    The first copy has the real date, folded into the half year by whole weeks, with all that comes
    at once on the real dates; the others are moved by whole weeks of their own.
    """
    weekday, folded = real.created.weekday(), (real.created.date() - EPOCH).days // 7 % weeks
    week = folded if copy == 0 else draw.randrange(weeks)
    day = BEGIN + timedelta(days=7 * week + weekday)
    title = real.title
    while title in taken:
        # A title of two real ones' halves: real words in a real order, and nobody else's title.
        head, tail = real.title.split(), draw.choice(origin).title.split()
        title = " ".join(head[: max(2, len(head) // 2)] + tail[len(tail) // 2 :])
        if title in taken:
            title = f"{title} {draw.choice(draw.choice(origin).title.split())}"
    authors = real.authors if copy == 0 else draw.choice(origin).authors[:3] + real.authors[1:]
    taken.add(title)
    doi = None if real.doi is None else f"10.5555/{real.created:%Y}.{copy}.{len(taken)}"
    return Paper("", datetime.combine(day, real.created.timetz()), title, authors or real.authors, real.categories, doi)


def _numbered(number: int, paper: Paper) -> Paper:
    paper_id = f"{paper.arrives:%y%m}.{number:05}"
    return Paper(paper_id, paper.arrives, paper.title, paper.authors, paper.categories, paper.doi)


def _held(draw: random.Random, paper: Paper, lag: float, origin: list[Seed]) -> tuple[Truth, list[dict[str, Any]]]:
    """Draw what OpenAlex holds of a paper and when, and the namesakes that it holds beside it."""
    # Everything is drawn, also where it is not used: so all lags and shares see the same draws.
    never, merged, title_only = draw.random(), draw.random(), draw.random()
    wait = timedelta(days=lag * math.exp(draw.gauss(0.0, LAG_SIGMA)))
    title = _as_held(draw, paper.title, origin)
    later, initials, lost = draw.random(), draw.random(), draw.random()
    own, works = f"W{paper.paper_id}", []
    truth = Truth(None, None, "never")
    if never >= NEVER:
        doi, known_by = f"10.48550/arxiv.{paper.paper_id}", "arxiv"
        if paper.doi is not None and merged < MERGED:
            doi, known_by = paper.doi.lower(), "journal"
        elif paper.doi is None and title_only < TITLE_ONLY:
            doi, known_by = f"10.5556/{paper.paper_id}", "title"
        names = (paper.authors[1:] or paper.authors) if lost < FIRST_AUTHOR_LOST else paper.authors
        works.append(
            {
                "key": own,
                "doi": doi,
                "title": title,
                "authors": [_name(author, initials=initials < INITIALS) for author in names],
                "year": paper.arrives.year + (later < YEAR_LATER),
                "findable_from": (paper.arrives + wait).isoformat(timespec="seconds"),
            }
        )
        truth = Truth(own, paper.arrives + wait, known_by)
    return truth, works + _namesakes(draw, paper, origin)


def _namesakes(draw: random.Random, paper: Paper, origin: list[Seed]) -> list[dict[str, Any]]:
    works = []
    for kind, share in NAMESAKES:
        drawn, other, back = draw.random(), draw.choice(origin), draw.randrange(1, 15)
        word = draw.randrange(1000)
        if drawn >= share:
            continue
        year, authors, title = paper.arrives.year - back, other.authors, paper.title
        if kind == "sequel":
            year, authors, title = paper.arrives.year - back % 3, paper.authors, f"{paper.title} II"
        elif kind == "one word differs":
            title = _exchanged(paper.title, word, other.title)
        elif kind == "comment":
            year, title = paper.arrives.year, f'Comment on "{paper.title}"'
        works.append(
            {
                "key": f"W{paper.paper_id}-{kind.replace(' ', '-')}",
                "doi": f"10.5557/{paper.paper_id}.{kind.replace(' ', '-')}",
                "title": title,
                "authors": [_name(author) for author in authors],
                "year": year,
                "findable_from": "1970-01-01T00:00:00+00:00",
            }
        )
    return works


def _as_held(draw: random.Random, title: str, origin: list[Seed]) -> str:
    how, word, other = draw.random(), draw.randrange(1000), draw.choice(origin).title
    if how < TYPESET:
        title = re.sub(r"\$|\\[a-z]+|[{}^_]", "", title).replace("--", "\N{EN DASH}").replace(": ", " - ").title()
    elif how < TYPESET + REWORDED:
        head, colon, _ = title.partition(": ")
        title = head if colon and len(head.split()) > 2 else _exchanged(title, word, other)
    return title


def _exchanged(title: str, word: int, other: str) -> str:
    """Exchange one longer word of a title for one of another title."""
    words = title.split()
    places = [place for place, text in enumerate(words) if len(text) > 4] or [0]
    choices = [text for text in other.split() if len(text) > 4 and text not in words] or ["Revisited"]
    words[places[word % len(places)]] = choices[word % len(choices)]
    return " ".join(words)


def _name(author: dict[str, str], *, initials: bool = False) -> str:
    forenames = author.get("forenames", "")
    if initials:
        forenames = " ".join(f"{part[0]}." for part in re.split(r"[\s.]+", forenames) if part)
    return f"{forenames} {author['keyname']}".strip()


def _authors(text: str) -> list[dict[str, str]]:
    names = re.split(r",\s*(?:and\s+)?|\s+and\s+", re.sub(r"\([^()]*\)", "", text))
    found = []
    for name in names:
        forenames, _, keyname = re.sub(r"\.(?=\w)", ". ", name.strip()).rpartition(" ")
        if keyname:
            found.append({"keyname": keyname, "forenames": forenames})
    return found[:12]


def summary(records: Path) -> str:
    """Return what the worlds look like, as a table."""
    source, origin = seeds(records)
    lines = [f"{len(origin)} real records of {source}", "", "| median lag | papers | works | by |", "|---|---|---|---|"]
    for lag in LAGS:
        made = world(lag, records=records)
        ways = [fact.known_by for fact in made.truth.values()]
        counted = ", ".join(f"{way} {ways.count(way)}" for way in ("arxiv", "journal", "title", "never"))
        lines.append(f"| {lag:g} days | {len(made.papers)} | {len(made.works)} | {counted} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(summary(Path(sys.argv[1]) if sys.argv[1:] else SHARED) + "\n")
