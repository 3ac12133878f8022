"""The works that the server holds: from a file of its own kind, or made of the OAI-PMH server's catalogue."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

ALWAYS = "1970-01-01T00:00:00+00:00"


@dataclass(frozen=True)
class Work:
    """A work, and from when on it can be found (seconds since the epoch)."""

    key: str
    doi: str
    title: str
    authors: list[str]
    year: int
    findable_from: float

    def shown(self) -> dict[str, Any]:
        """Return the work as OpenAlex shows one, as far as a matcher reads it."""
        authorships = [
            {
                "author_position": "first" if place == 0 else "last" if place == len(self.authors) - 1 else "middle",
                "author": {"id": None, "display_name": name, "orcid": None},
                "raw_author_name": name,
            }
            for place, name in enumerate(self.authors)
        ]
        return {
            "id": f"https://openalex.org/{self.key}",
            "doi": f"https://doi.org/{self.doi}" if self.doi else None,
            "title": self.title,
            "display_name": self.title,
            "publication_year": self.year,
            "authorships": authorships,
        }


def words(text: str) -> list[str]:
    """Return what a search compares: words without case, accents and punctuation."""
    plain = "".join(char for char in unicodedata.normalize("NFKD", text) if not unicodedata.combining(char))
    return re.findall(r"\w+", plain.casefold())


class Index:
    """The works by what they are asked for; what is not yet findable is never answered."""

    def __init__(self, works: list[Work]) -> None:
        """Index works by key, DOI and the words of their titles."""
        self.works = works
        self._by_key = {work.key: work for work in works}
        self._by_doi = defaultdict(list)
        self._by_word: dict[str, set[int]] = defaultdict(set)
        self._lengths = []
        for number, work in enumerate(works):
            self._by_doi[work.doi.casefold()].append(work)
            said = words(work.title)
            self._lengths.append(len(said))
            for word in set(said):
                self._by_word[word].add(number)

    def key(self, key: str, now: float) -> list[Work]:
        """Return the work of a key, if it is findable."""
        return [work for work in [self._by_key.get(key)] if work and work.findable_from <= now]

    def dois(self, dois: list[str], now: float) -> list[Work]:
        """Return the works of some DOIs, which may have their address before them."""
        found = []
        for doi in dict.fromkeys(doi.casefold().removeprefix("https://doi.org/") for doi in dois):
            found += [work for work in self._by_doi.get(doi, ()) if work.findable_from <= now]
        return found

    def title(self, query: str, now: float) -> list[Work]:
        """Return the works whose titles have every word of the query, the shortest title first."""
        sets = sorted((self._by_word.get(word, set()) for word in words(query)), key=len)
        common = set.intersection(*sets) if sets else set()
        found = [self.works[number] for number in sorted(common, key=lambda number: (self._lengths[number], number))]
        return [work for work in found if work.findable_from <= now]


def load(path: Path) -> list[Work]:
    """Read `{"works": [...]}`, or make works of the papers of an OAI-PMH server's catalogue."""
    document = json.loads(path.read_text(encoding="utf-8"))
    if "works" in document:
        return [
            Work(
                entry["key"],
                entry["doi"] or "",
                entry["title"],
                entry["authors"],
                entry["year"],
                datetime.fromisoformat(entry.get("findable_from", ALWAYS)).timestamp(),
            )
            for entry in document["works"]
        ]
    papers = [entry for entry in document["papers"] if not (entry.get("deleted") or entry.get("bare"))]
    return [work for number, entry in enumerate(papers) for work in _of_paper(number, entry)]


def _of_paper(number: int, entry: dict[str, Any]) -> list[Work]:
    """Make works of one paper: of ten papers five are held under arXiv's DOI, two under the journal's
    or none that arXiv knows, one with a namesake beside it, one not for another day, one never.
    """
    authors = [" ".join(reversed(author.split(", "))) for author in entry["authors"]]
    year = int(entry["created"][:4])
    arxiv = f"10.48550/arxiv.{entry['id']}"
    key = f"W{number + 1:07}"
    own = Work(key, arxiv, entry["title"], authors, year, 0.0)
    kind = number % 10
    if kind in (5, 6):
        doi = (entry.get("doi") or "").casefold() if kind == 5 else ""
        return [Work(key, doi, entry["title"], authors, year, 0.0)]
    if kind == 7:
        other = Work(f"W9{number:06}", "", entry["title"], ["Nobody Else"], year - 9, 0.0)
        return [other, Work(key, "", entry["title"], authors, year, 0.0)]
    if kind == 8:
        tomorrow = datetime.now(UTC) + timedelta(days=1)
        return [Work(key, arxiv, entry["title"], authors, year, tomorrow.timestamp())]
    return [] if kind == 9 else [own]
