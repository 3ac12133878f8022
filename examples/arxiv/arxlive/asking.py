"""When a paper that was not found is asked for again.

A list of DOIs costs a hundredth of a call for each, and most papers come by their DOI; a title costs
a call of its own, and ten times the price. So DOIs are asked for often, and titles seldom, and first
when a paper like this one should have come by its DOI already. What "already" is, is learnt from the
papers that did come: nobody publishes how long OpenAlex takes, and it changes.

Every interval grows with the paper's age, as what has not come in a month is not likely to come
tonight; and each paper's is a little longer or shorter than the next one's, so that a night with many
new papers does not return as a night with many questions.
"""

from __future__ import annotations

import math
from datetime import date, timedelta
from hashlib import sha256
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

DOI_GROWTH = 0.1  # of a paper's age until its DOIs are asked for again
TITLE_GROWTH = 1.0  # likewise its title: at twice the age
JITTER = 0.15  # of an interval, either way
COME = 0.4  # a title is first asked for at the age at which this share of papers has come by DOI
EARLIEST, LATEST = 5, 30  # days: the bounds of that age
LAST = 365  # days; the longest interval
DOUBLING = 8  # times at most that the wait of a paper doubles whose DOIs get no answer


def next_doi(paper_id: str, first: date, today: date) -> date:
    """Return when to ask for a paper's DOIs again, which was first asked for on `first`."""
    return today + _interval(paper_id, "doi", DOI_GROWTH * (today - first).days)


def next_title(paper_id: str, first: date, today: date) -> date:
    """Return when to ask for a paper's title again."""
    return today + _interval(paper_id, "title", TITLE_GROWTH * (today - first).days)


def next_alone(times: int, today: date) -> date:
    """Return when to ask for a paper's DOIs again, by themselves, that got no answer `times` times."""
    return today + timedelta(days=2 ** min(times - 1, DOUBLING))


def first_title(paper_id: str, age: float) -> timedelta:
    """Return the age at which a paper's title is first asked for, where `age` is that of all."""
    return _interval(paper_id, "first", age)


def still_out(came: Iterable[int], waiting: Iterable[int]) -> list[tuple[int, float]]:
    """Return the share of all papers that has not come by DOI after each age in days at which one came.

    `came` are the ages at which papers came, `waiting` those of the papers that have not yet: the
    estimate is Kaplan and Meier's, so a young store does not take its papers for fast ones.
    """
    events: dict[int, int] = {}
    leaving: dict[int, int] = {}
    for age in came:
        events[age] = events.get(age, 0) + 1
    for age in waiting:
        leaving[age] = leaving.get(age, 0) + 1
    at_risk = sum(events.values()) + sum(leaving.values())
    share, found = 1.0, []
    for age in sorted(events.keys() | leaving.keys()):
        if number := events.get(age, 0):
            share *= 1 - number / at_risk
            found.append((age, share))
        at_risk -= number + leaving.get(age, 0)
    return found


def age_of_titles(came: Iterable[int], waiting: Iterable[int]) -> float:
    """Return the age in days at which a share COME of all papers has come by DOI: see `still_out`.

    LATEST where it cannot be told.
    """
    reached = next((age for age, share in still_out(came, waiting) if share <= 1 - COME), LATEST)
    return float(min(max(reached, EARLIEST), LATEST))


def _interval(paper_id: str, what: str, days: float) -> timedelta:
    drawn = int.from_bytes(sha256(f"{what} {paper_id}".encode()).digest()[:4]) / 2**32
    stretched = days * (1 + JITTER * (2 * drawn - 1))
    return timedelta(days=min(max(1, math.floor(stretched + drawn)), LAST))
