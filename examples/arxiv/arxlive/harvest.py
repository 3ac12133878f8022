"""Read one day of an OAI-PMH repository to its end, page by page, or fail.

The protocol: https://openarchives.org/OAI/openarchivesprotocol.html. The client library sends the
requests and names the errors; its own iterator is not used, because its XML parser mends a
truncated page (and with it ends the list early), and because it reads Retry-After neither as a date
nor on 429.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from email.utils import parsedate_to_datetime
from hashlib import blake2b
from typing import TYPE_CHECKING

import httpx2
from oaipmh_scythe import Scythe
from oaipmh_scythe.config import HTTPConfig
from oaipmh_scythe.exceptions import BadResumptionToken, NoRecordsMatch
from oaipmh_scythe.response import OAIResponse

from arxlive.records import OAI, BadRecord, Record, RecordError, parse

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from arxlive.store import Progress

# Luigi prints what is logged below its own logger.
log = logging.getLogger("luigi-interface.arxlive")

LONGEST_WAIT = 900.0  # seconds; a server that asks for more is not waited for: the next run tries again
RESTARTS = 3  # how often a day is begun anew because its resumption token was refused


class HarvestError(RuntimeError):
    """The day was not read to its end; what was read may be stored, but the day is not done."""


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a day's list: the records that can be read, and those that cannot.

    `number` and `so_far` (records up to and with this page) start anew when the day is begun anew;
    `size` is how many records the server says the day has, where it says so; `digest` is of the
    identifiers so far, whatever their order. `last` is true on the last page only, after everything
    that can be checked of the whole was. `day_over` is true if the day had ended, by the server's
    clock, when the reading began: then nothing can join it any more.
    """

    records: list[Record]
    number: int
    so_far: int
    size: int | None
    last: bool
    day_over: bool
    digest: int = 0
    bad: list[BadRecord] = field(default_factory=list)
    token: str = ""  # what the next page is asked for with, and until when, as the server says it
    expires: str = ""


@dataclass(frozen=True, slots=True)
class _Part:
    """One page of any list as it came; `listing` is None where nothing matches at all."""

    number: int
    root: ET.Element
    listing: ET.Element | None = None
    size: int | None = None
    token: str = ""
    expires: str = ""


class _Changed(Exception):
    """The list is no more the one that was begun; the message says how."""


def read_day(
    base_url: str,
    day: date,
    *,
    set_spec: str = "",
    pace: float = 3.0,
    retries: int = 5,
    since: Progress | None = None,
    budget: str = "",
) -> Iterator[Page]:
    """Yield every page of the papers whose datestamp is `day` (UTC), in `set_spec` or in all sets.

    `pace` is the least time in seconds before each request; `retries` is how often one request is
    repeated after a broken connection, 429, 5xx or a page that is not whole. Where a `budget` is named,
    every request is spent from it and goes out at its pace, which holds over all that share it; `pace` is
    then only what the waiting before a repetition begins with. A refused resumption
    token begins the day anew, RESTARTS times: whoever stores the pages must bear to see a record
    again. `since` is where an earlier reading was broken off: it goes on there, if its token is still
    taken; else it begins anew. An empty day is one empty page.

    A list that changes while it is read begins the day anew as well. A paper that is revised leaves a
    day that is over, and all after it move up: a token that counts by offset would pass over as many
    as have left. Where the server says how long the list is, that shows it; where it does not, as at
    arXiv, the identifiers of a list of more than one page are asked for before its last page is given,
    and must be those that were read.

    Raises HarvestError, the library's OAIPMHException for an error that the server names, or the budget's
    own BudgetError where a request was not made for its sake.
    """
    with _open(base_url, budget) as client:
        asker = _Asker(client, 0.0 if budget else pace, pace, retries)
        for restarts_left in reversed(range(RESTARTS + 1)):
            try:
                yield from _one_pass(asker, day, set_spec, since)
            except BadResumptionToken as error:
                if not restarts_left:
                    raise HarvestError(
                        f"{day}: a resumption token was refused {RESTARTS + 1} times: {error}"
                    ) from error
                log.warning("%s: the resumption token was refused (%s): beginning anew", day, error)
            except _Changed as error:
                if not restarts_left:
                    raise HarvestError(f"{day}: the list changed {RESTARTS + 1} times: {error}") from error
                log.warning("%s: %s: beginning anew", day, error)
            else:
                return
            since = None


def _open(base_url: str, budget: str) -> Scythe:
    config = HTTPConfig(user_agent=f"arxlive {HTTPConfig.user_agent}")
    if not budget:
        return Scythe(base_url, http_config=config)
    # Only who names a budget needs Standpipe's.
    from arxlive.budgeted import BudgetedScythe

    return BudgetedScythe(base_url, budget, http_config=config)


def _one_pass(asker: _Asker, day: date, set_spec: str, since: Progress | None) -> Iterator[Page]:
    window = {"metadataPrefix": "arXiv", "from": day.isoformat(), "until": day.isoformat()}
    if set_spec:
        window["set"] = set_spec
    query = {"verb": "ListRecords", **window}
    size = None
    so_far = digest = 0
    day_over = False
    first = 1
    if since is not None and not _expired(since.expires):
        first, so_far, size, digest, day_over = since.number + 1, since.so_far, since.size, since.digest, True
        query = {"verb": "ListRecords", "resumptionToken": since.token}
        log.info("%s: going on after page %d, %d records", day, since.number, so_far)
    for part in _parts(asker, day, query, first):
        number = part.number
        if number == 1:
            day_over = _response_date(part.root).date() > day
        if part.listing is None:
            yield Page([], number, 0, None, last=True, day_over=day_over)
            return
        records, bad = [], []
        for element in part.listing.iterfind(f"{OAI}record"):
            so_far += 1
            try:
                records.append(parse(element))
            except RecordError as error:
                bad.append(BadRecord(so_far, str(error), ET.tostring(element, encoding="unicode")))
        digest ^= _digest(part.listing.iterfind(f"{OAI}record/{OAI}header"))
        if part.size is not None:
            if day_over and size not in (None, part.size):
                raise _Changed(f"the list had {size} records, and has {part.size}")
            size = part.size
        page = Page(
            records, number, so_far, size,
            last=not part.token, day_over=day_over, digest=digest, bad=bad, token=part.token, expires=part.expires,
        )  # fmt: skip
        if not page.last:
            yield page
    del part  # the last page's XML: a page of identifiers is as large
    _check_size(day, so_far, size, day_over)
    if size is None and day_over and number > 1:
        _check_identifiers(asker, day, window, (so_far, digest))
    yield page


def _parts(asker: _Asker, day: date, query: dict[str, str], first: int) -> Iterator[_Part]:
    """Yield a list page by page, from its page `first` on, for which `query` asks."""
    verb = query["verb"]
    tokens = set()
    for number in itertools.count(first):
        answer, root = asker.ask(query)
        try:
            if root.find(f"{OAI}error") is not None:  # the library reads the document a second time
                answer.raise_for_oaipmh_error()
        except NoRecordsMatch:
            if number > 1:  # so arXiv says that the list is shorter by now than the token's offset
                raise _Changed("no records match, in the middle of the list") from None
            yield _Part(number, root)
            return
        listing = root.find(f"{OAI}{verb}")
        if listing is None:
            raise HarvestError(f"{day}: page {number} is no list of records")
        token = listing.find(f"{OAI}resumptionToken")
        if token is None:
            yield _Part(number, root, listing)
            return
        stated = token.get("completeListSize", "")
        size = int(stated) if stated.isdecimal() else None
        # Exactly as it came: a token means something to its server alone.
        resume = token.text or ""
        if not resume.strip():
            yield _Part(number, root, listing, size)
            return
        if resume in tokens:
            raise HarvestError(f"{day}: page {number} leads back to an earlier one")
        tokens.add(resume)
        yield _Part(number, root, listing, size, resume, token.get("expirationDate") or "")
        query = {"verb": verb, "resumptionToken": resume}


def _check_identifiers(asker: _Asker, day: date, window: dict[str, str], read: tuple[int, int]) -> None:
    """Hold what was read, its number and digest, against the identifiers that the list has now.

    Of a day that is over papers only leave. If one that was passed over is there, one that was read
    before it has left, and the two differ, whatever leaves while this is asked.
    """
    number = digest = 0
    for part in _parts(asker, day, {"verb": "ListIdentifiers", **window}, 1):
        headers = [] if part.listing is None else part.listing.findall(f"{OAI}header")
        number += len(headers)
        digest ^= _digest(headers)
    if (number, digest) != read:
        raise _Changed(f"{read[0]} records were read, and the list has {number} now, not all the same")


def _digest(headers: Iterable[ET.Element]) -> int:
    digest = 0
    for header in headers:
        identifier = (header.findtext(f"{OAI}identifier") or "").strip()
        digest ^= int.from_bytes(blake2b(identifier.encode(), digest_size=8).digest()) >> 1  # a column is signed
    return digest


def _expired(expires: str) -> bool:
    """Say whether a token's time is over, by this machine's clock; the server has the last word."""
    try:
        moment = datetime.fromisoformat(expires)
    except ValueError:
        return False
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) <= datetime.now(UTC)


def _check_size(day: date, so_far: int, size: int | None, day_over: bool) -> None:
    if size is None or so_far == size:
        return
    if day_over:
        raise HarvestError(f"{day}: {so_far} records read, but the list has {size}")
    # A list that still grows may end otherwise than it began; it is read again after its day.
    log.warning("%s: %d records read of a list of %d that still grows", day, so_far, size)


@dataclass(frozen=True, slots=True)
class _Asker:
    """Sends requests one at a time, `pace` seconds before each, and repeats them as `backoff` and `retries` say."""

    client: Scythe
    pace: float
    backoff: float
    retries: int

    def ask(self, query: dict[str, str]) -> tuple[OAIResponse, ET.Element]:
        """Send one request, repeat it where that may help, and return a whole OAI-PMH document."""
        wait = self.pace
        for attempt in range(self.retries + 1):
            time.sleep(max(self.pace, wait))
            wait = self.backoff * 2 ** (attempt + 1)
            try:
                response = self.client.client.get(self.client.endpoint, params=query)
            except httpx2.RequestError as error:
                fault = f"{type(error).__name__}: {error}"
            else:
                status = response.status_code
                if status == httpx2.codes.TOO_MANY_REQUESTS or status >= 500:
                    fault = f"HTTP {status}"
                    asked = retry_after(response.headers.get("Retry-After"), response.headers.get("Date"))
                    wait = wait if asked is None else asked
                elif status != httpx2.codes.OK:
                    raise HarvestError(f"HTTP {status} from {response.url}")
                else:
                    try:
                        # The standard parser mends nothing; expat itself bounds what entities expand to.
                        root = ET.fromstring(response.content)  # noqa: S314
                    except ET.ParseError as error:
                        fault = f"a page that is not whole ({error})"
                    else:
                        if root.tag != f"{OAI}OAI-PMH":
                            raise HarvestError(f"{response.url} answers <{root.tag}>, not OAI-PMH")
                        return OAIResponse(response, params=query), root
            if wait > LONGEST_WAIT:
                raise HarvestError(f"{fault}; the server asks to wait for {wait:.0f} s, which is too long")
            if attempt < self.retries:
                log.warning("%s: asking again in %.1f s", fault, max(self.pace, wait))
        raise HarvestError(f"{fault}; asked {self.retries + 1} times")


def retry_after(value: str | None, server_date: str | None = None) -> float | None:
    """How long a Retry-After header asks to wait, in seconds; None if it is absent or not readable.

    Both its forms are read, a number of seconds and a date (RFC 9110, 10.2.3); a date is measured
    from the server's own `Date`, where it sent one, so that two clocks need not agree.
    """
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    until = _http_date(value)
    if until is None:
        return None
    now = _http_date(server_date or "") or datetime.now(UTC)
    return max(0.0, math.ceil((until - now).total_seconds()))


def _http_date(text: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _response_date(root: ET.Element) -> datetime:
    text = (root.findtext(f"{OAI}responseDate") or "").strip()
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise HarvestError(f"responseDate is no time: {text!r}") from error
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
