"""Ask OpenAlex for works: many by their DOIs, or by one title.

https://developers.openalex.org/api-reference. The session is the caller's: what it costs, how often
a request is repeated and when the budget ends is the business of the adapter that is mounted on it.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import requests
from requests.auth import AuthBase

if TYPE_CHECKING:
    from collections.abc import Iterable

MOST_DOIS = 100  # OpenAlex's limit of values in one filter
MOST_CANDIDATES = 10  # of a title; who is not among these is not the paper
MOST_WORDS = 24  # of a title that is asked for
ASKED_AGAIN = 2  # how often an answer that is not whole is asked for again
SECONDS = 60.0  # until an answer must begin
FIELDS = "id,doi,title,publication_year,authorships"


class OpenAlexError(RuntimeError):
    """OpenAlex answered something that cannot be used; the message says what."""


class Unanswered(OpenAlexError):
    """OpenAlex has no answer to this question, whatever is repeated; to others it may have."""


class Spent(Exception):
    """OpenAlex itself says that nothing is left (429), where no budget said so before."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A work as OpenAlex shows it: `work` as `W2741809807`, `doi` in lower case and without address."""

    work: str
    doi: str | None
    title: str | None
    year: int | None
    authors: tuple[str, ...]


class Bearer(AuthBase):
    """Shows the key in a header: an address ends in logs, and a netrc would displace a bare header."""

    def __init__(self, key: str) -> None:
        """Take the key."""
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Add the header."""
        request.headers["Authorization"] = f"Bearer {self._key}"
        return request


def kind_of(request: requests.PreparedRequest) -> str:
    """Return what OpenAlex charges a request for: `search` or `list`, as a budget's prices name them."""
    return "search" if ".search" in (request.url or "") else "list"


def by_dois(session: requests.Session, base_url: str, dois: Iterable[str]) -> dict[str, Candidate]:
    """Return the works of up to MOST_DOIS DOIs, by DOI in lower case; what is not held is not there."""
    # A comma would begin another filter, a bar another DOI; OpenAlex has no way to escape either.
    asked = sorted({doi.casefold() for doi in dois if "," not in doi and "|" not in doi})
    if not asked:
        return {}
    values = "|".join(quote(doi, safe="/:;()") for doi in asked)
    found = _works(session, f"{base_url}/works?filter=doi:{values}&select={FIELDS}&per_page={MOST_DOIS}")
    return {work.doi: work for work in found if work.doi is not None}


def by_title(session: requests.Session, base_url: str, title: str) -> list[Candidate]:
    """Return the works whose titles have all words of a title, OpenAlex's best first."""
    words = asked_for(title)
    if not words:
        return []
    query = quote(" ".join(words))
    return _works(session, f"{base_url}/works?filter=title.search:{query}&select={FIELDS}&per_page={MOST_CANDIDATES}")


def asked_for(title: str) -> list[str]:
    """Return the words that a title is asked for by.

    Words only, in lower case: commas, bars, quotes, AND, OR and NOT mean something to OpenAlex. A
    formula is left out, where enough is left without it: whether it is held as TeX, as MathML or
    as letters, nobody can know.
    """
    without = re.sub(r"\$[^$]*\$", " ", title)
    words = _words(without)
    return (words if len(words) >= 4 else _words(title))[:MOST_WORDS]


def normalised(text: str) -> str:
    """Return a title or name without what typesetting changes: case, accents, punctuation, TeX."""
    return " ".join(_words(text))


def _words(text: str) -> list[str]:
    text = re.sub(r"\\[a-zA-Z]+|\\.", "", text)  # TeX commands and accents; their letters stay
    text = re.sub(r"[{}$^_~]", "", text)
    plain = "".join(char for char in unicodedata.normalize("NFKD", text) if not unicodedata.combining(char))
    return re.findall(r"\w+", plain.casefold())


def _works(session: requests.Session, url: str) -> list[Candidate]:
    """Send one request, again where its answer is not whole, and return the works."""
    fault = ""
    for _ in range(1 + ASKED_AGAIN):
        try:
            response = session.get(url, timeout=SECONDS)
        except requests.ReadTimeout as error:
            raise Unanswered(f"no answer of OpenAlex within {SECONDS:.0f} s") from error
        if response.status_code == requests.codes.too_many_requests:
            raise Spent(f"OpenAlex answers 429: {_message(response)}")
        if response.status_code != requests.codes.ok:
            of_the_key = response.status_code in (requests.codes.unauthorized, requests.codes.forbidden)
            kind = OpenAlexError if of_the_key else Unanswered
            raise kind(f"HTTP {response.status_code} from OpenAlex: {_message(response)}")
        try:
            return [_candidate(work) for work in response.json()["results"]]
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            fault = f"{type(error).__name__}: {error}"
    raise Unanswered(f"{1 + ASKED_AGAIN} answers of OpenAlex were not whole, the last: {fault}")


def _candidate(work: dict[str, Any]) -> Candidate:
    names = (
        (entry.get("author") or {}).get("display_name") or entry.get("raw_author_name") for entry in work["authorships"]
    )
    doi = work["doi"]
    return Candidate(
        work["id"].rpartition("/")[2],
        None if doi is None else doi.casefold().removeprefix("https://doi.org/"),
        work["title"],
        work["publication_year"],
        tuple(name for name in names if name),
    )


def _message(response: requests.Response) -> str:
    try:
        return str(response.json()["message"])[:200]
    except (ValueError, LookupError, TypeError):
        return response.reason or ""
