"""Which work a paper is, and how sure that is: a wrong match is worse than none.

A title alone proves nothing (there are sequels, comments, and the same title by others), so a title's
candidate needs the authors and the year as well.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rapidfuzz import fuzz

from arxlive.openalex import Candidate, normalised

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

TITLE = 0.92  # the least similarity of two titles, of 1
AUTHORS = 0.5  # the least share of authors that two works have in common, of 1
YEARS = 2  # at most between arXiv's first version and the work
# Words that make another work of the same title.
OTHER_WORK = re.compile(
    r"\d+|[ivx]+|part|comments?|repl(y|ies)|response|errat(um|a)|corrigend(um|a)|correction|addendum|supplement\w*"
    r"|retract\w*|revisited|not?|non|without"
)


@dataclass(frozen=True, slots=True)
class Match:
    """A work that a paper is taken for: `score` up to 1, and the `way` that led to it.

    The ways: `arxiv-doi`, `journal-doi`, `title`.
    """

    work: Candidate
    way: str
    score: float


def arxiv_doi(paper_id: str) -> str:
    """Return the DOI that arXiv gives each paper, in lower case."""
    return f"10.48550/arxiv.{paper_id}".casefold()


def by_doi(
    paper_id: str, title: str, authors: Sequence[dict[str, Any]], doi: str | None, found: dict[str, Candidate]
) -> Match | None:
    """Choose among the works of DOIs: arXiv's own, else one of the journal's.

    arXiv's is the paper. What an author typed as the journal's may be another's (a digit is lost
    easily), so title or authors must speak for it.
    """
    if work := found.get(arxiv_doi(paper_id)):
        return Match(work, "arxiv-doi", 1.0)
    for one in journal_dois(doi):
        if (work := found.get(one)) is None:
            continue
        alike, same = similarity(title, work.title), common_authors(authors, work.authors)
        if alike >= TITLE or same >= AUTHORS:
            return Match(work, "journal-doi", round(0.9 + 0.05 * alike + 0.05 * same, 3))
    return None


def by_title(title: str, authors: Sequence[dict[str, Any]], year: int, candidates: Iterable[Candidate]) -> Match | None:
    """Choose the best of a title's candidates, or none where none is good enough."""
    best: Match | None = None
    for work in candidates:
        alike = similarity(title, work.title)
        same = common_authors(authors, work.authors)
        apart = YEARS + 1 if work.year is None else abs(work.year - year)
        if alike < TITLE or same < AUTHORS or apart > YEARS or _another_work(title, work.title or ""):
            continue
        score = round(0.6 * alike + 0.3 * same + 0.1 * (1 - apart / (YEARS + 1)), 3)
        if best is None or score > best.score:
            best = Match(work, "title", score)
    return best


def journal_dois(doi: str | None) -> list[str]:
    """Return the DOIs of a record's field, in lower case: some have several."""
    return [one.casefold() for one in (doi or "").split()]


def similarity(title: str, other: str | None) -> float:
    """Return how alike two titles are, from 0 to 1, whatever their typesetting."""
    return fuzz.ratio(normalised(title), normalised(other or "")) / 100


def common_authors(authors: Sequence[dict[str, Any]], names: Sequence[str]) -> float:
    """Return the share of authors that two lists have in common, from 0 to 1 (Dice's).

    Who has no surname is one of them, and the same as nobody.
    """
    ours = {_name(author.get("forenames", ""), author.get("keyname", "")) for author in authors}
    theirs = {_name("", name) for name in names}
    if not ours or not theirs:
        return 0.0
    left = set(theirs)
    common = 0
    for surname, initial in ours:
        for other in left:
            if surname and surname == other[0] and (not initial or not other[1] or initial == other[1]):
                left.remove(other)
                common += 1
                break
    return 2 * common / (len(ours) + len(theirs))


def _name(forenames: str, surname: str) -> tuple[str, str]:
    """Return the last word of a name, and the first letter of its first; `surname` may be the whole name."""
    if not normalised(surname):
        return "", ""
    parts = normalised(f"{forenames} {surname}").split()
    return parts[-1], parts[0][0] if len(parts) > 1 else ""


def _another_work(title: str, other: str) -> bool:
    differing = set(normalised(title).split()) ^ set(normalised(other).split())
    return any(OTHER_WORK.fullmatch(word) for word in differing)
