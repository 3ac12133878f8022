"""OAI-PMH 2.0: from a request's arguments to the XML that answers it.

https://openarchives.org/OAI/openarchivesprotocol.html. Granularity is the day, as at arXiv; and as
there a resumption token is a percent-encoded query that counts by offset in the list as it is at that
moment and ends at midnight UTC, says nothing of the list's length, and leads to noRecordsMatch where
the list has become shorter than its offset.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, quote, unquote, urlencode
from xml.sax.saxutils import escape, quoteattr

if TYPE_CHECKING:
    from collections.abc import Callable

    from catalogue import Item

FORMATS = {
    "arXiv": ("http://arxiv.org/OAI/arXiv.xsd", "http://arxiv.org/OAI/arXiv/"),
    "oai_dc": (
        "http://www.openarchives.org/OAI/2.0/oai_dc.xsd",
        "http://www.openarchives.org/OAI/2.0/oai_dc/",
    ),
}
# The arguments of each verb: those that must be there, those that may.
LIST = ({"metadataPrefix"}, {"from", "until", "set"})
ARGUMENTS: dict[str, tuple[set[str], set[str]]] = {
    "Identify": (set(), set()),
    "ListMetadataFormats": (set(), {"identifier"}),
    "ListSets": (set(), set()),
    "GetRecord": ({"identifier", "metadataPrefix"}, set()),
    "ListRecords": LIST,
    "ListIdentifiers": LIST,
}
HEADERS = 8  # so many times a page's records are a page's headers, as at arXiv
RESUMABLE = {"ListRecords", "ListIdentifiers", "ListSets"}


class OaiError(Exception):
    """An error of the protocol."""

    def __init__(self, code: str, message: str) -> None:
        """Take the protocol's code and a sentence for people."""
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Repository:
    """What is served and how.

    `items` is asked at each request, `token_tail` ends every resumption token.
    """

    items: Callable[[], list[Item]]
    page_size: int
    token_tail: str = ""
    state_size: bool = False  # whether completeListSize and cursor are given
    overstate: int = 0  # added to completeListSize
    _lists: dict[tuple[str, ...], tuple[list[Item], list[Item]]] = field(default_factory=dict)

    def page_number(self, arguments: list[tuple[str, str]]) -> int:
        """Return which page of a list is asked for, from 1."""
        token = dict(arguments).get("resumptionToken")
        if token is None:
            return 1
        return int(self._resume(token)["skip"]) // self.page_size + 1

    def answer(self, base_url: str, arguments: list[tuple[str, str]]) -> str:
        """Return the XML document that answers a request; a protocol error is one as well."""
        try:
            verb, given = _checked(arguments)
            attributes = "".join(f" {name}={quoteattr(value)}" for name, value in arguments)
            body = f"<{verb}>{self._body(verb, given, base_url)}</{verb}>"
        except OaiError as error:
            if error.code in {"badVerb", "badArgument"}:
                attributes = ""
            body = f'<error code="{error.code}">{escape(str(error))}</error>'
        return document(base_url, attributes, body)

    def _body(self, verb: str, given: dict[str, str], base_url: str) -> str:
        if verb == "Identify":
            return self._identify(base_url)
        if verb == "ListMetadataFormats":
            return self._formats(given.get("identifier"))
        if verb == "ListSets":
            return self._sets(given)
        if verb == "GetRecord":
            item = self._find(given["identifier"])
            return _record(item, _prefix(given["metadataPrefix"], item))
        return self._list(verb, given)

    def _identify(self, base_url: str) -> str:
        earliest = min((_day(item) for item in self.items()), default=date(1991, 8, 14))
        return (
            "<repositoryName>A small OAI-PMH server</repositoryName>"
            f"<baseURL>{escape(base_url)}</baseURL>"
            "<protocolVersion>2.0</protocolVersion><adminEmail>nobody@example.org</adminEmail>"
            f"<earliestDatestamp>{earliest}</earliestDatestamp><deletedRecord>persistent</deletedRecord>"
            "<granularity>YYYY-MM-DD</granularity>"
        )

    def _formats(self, identifier: str | None) -> str:
        names = list(FORMATS) if identifier is None else list(self._find(identifier).metadata)
        if not names:
            raise OaiError("noMetadataFormats", "this record has none")
        return "".join(
            f"<metadataFormat><metadataPrefix>{name}</metadataPrefix><schema>{FORMATS[name][0]}</schema>"
            f"<metadataNamespace>{FORMATS[name][1]}</metadataNamespace></metadataFormat>"
            for name in names
        )

    def _sets(self, given: dict[str, str]) -> str:
        if "resumptionToken" in given:
            raise OaiError("badResumptionToken", "the list of sets is one page")
        specs: set[str] = set()
        for item in self.items():
            for spec in item.sets:
                parts = spec.split(":")
                specs.update(":".join(parts[:depth]) for depth in range(1, len(parts) + 1))
        return "".join(
            f"<set><setSpec>{escape(spec)}</setSpec><setName>{escape(spec)}</setName></set>" for spec in sorted(specs)
        )

    def _find(self, identifier: str) -> Item:
        for item in self.items():
            if item.identifier == identifier:
                return item
        raise OaiError("idDoesNotExist", f"nothing is named {identifier}")

    def _list(self, verb: str, given: dict[str, str]) -> str:
        skip = 0
        if "resumptionToken" in given:
            given = self._resume(given["resumptionToken"])
            if given.pop("verb") != verb:
                raise OaiError("badResumptionToken", "the token of another verb")
            skip = int(given.pop("skip"))
        prefix = _prefix(given["metadataPrefix"])
        first, last = _window(given)
        chosen = self._chosen(first, last, prefix, given.get("set", ""))
        if skip >= len(chosen):
            raise OaiError("noRecordsMatch", "nothing in these days and this set, or not as much")
        page = chosen[skip : skip + self.page_size * (HEADERS if verb == "ListIdentifiers" else 1)]
        if verb == "ListRecords":
            listed = "".join(_record(item, prefix) for item in page)
        else:
            listed = "".join(_header(item) for item in page)
        if len(page) == len(chosen):
            return listed
        size = f' completeListSize="{len(chosen) + self.overstate}" cursor="{skip}"' if self.state_size else ""
        if skip + len(page) == len(chosen):
            return f"{listed}<resumptionToken{size}/>"
        midnight = datetime.combine(datetime.now(UTC).date() + timedelta(days=1), datetime.min.time())
        expires = f"{midnight.isoformat()}Z"
        state = {"verb": verb, **given, "skip": str(skip + len(page)), "expires": expires}
        token = quote(urlencode(state), safe="") + self.token_tail
        return f'{listed}<resumptionToken expirationDate="{expires}"{size}>{escape(token)}</resumptionToken>'

    def _resume(self, token: str) -> dict[str, str]:
        state = dict(parse_qsl(unquote(token.removesuffix(self.token_tail))))
        expected = {"verb", "metadataPrefix", "skip", "expires"}
        # A token is taken exactly as it was given, or not at all.
        if not token.endswith(self.token_tail) or not expected <= state.keys():
            raise OaiError("badResumptionToken", f"not a token of this server: {token}")
        if quote(urlencode(state), safe="") + self.token_tail != token or not state["skip"].isdecimal():
            raise OaiError("badResumptionToken", f"not a token of this server: {token}")
        if datetime.fromisoformat(state.pop("expires")) <= datetime.now(UTC):
            raise OaiError("badResumptionToken", "the token has expired")
        return state

    def _chosen(self, first: date, last: date, prefix: str, spec: str) -> list[Item]:
        """Return what a list has; it is kept for its next pages, as long as the items are the same."""
        items, key = self.items(), (str(first), str(last), prefix, spec)
        kept_of, kept = self._lists.get(key, ([], []))
        if kept_of is not items:
            kept = [
                item
                for item in items
                if first <= _day(item) <= last
                and (prefix in item.metadata or not item.metadata)
                and (not spec or any(f"{one}:".startswith(f"{spec}:") for one in item.sets))
            ]
            if len(self._lists) >= 100:
                self._lists.clear()
            self._lists[key] = (items, kept)
        return kept


def document(base_url: str, attributes: str, body: str) -> str:
    """Wrap a body into the document that every answer is; `attributes` are those of <request>."""
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<OAI-PMH xmlns="http://www.openarchives.org/OAI/2.0/" '
        'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" '
        'xsi:schemaLocation="http://www.openarchives.org/OAI/2.0/ '
        'http://www.openarchives.org/OAI/2.0/OAI-PMH.xsd">\n'
        f"<responseDate>{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}</responseDate>\n"
        f"<request{attributes}>{escape(base_url)}</request>\n{body}\n</OAI-PMH>\n"
    )


def _checked(arguments: list[tuple[str, str]]) -> tuple[str, dict[str, str]]:
    """Return the verb and its arguments, or raise what is wrong with them."""
    verbs = [value for name, value in arguments if name == "verb"]
    if len(verbs) != 1 or verbs[0] not in ARGUMENTS:
        raise OaiError("badVerb", f"one verb is needed, of {', '.join(ARGUMENTS)}")
    given = dict(arguments)
    if len(given) != len(arguments):
        raise OaiError("badArgument", "an argument is repeated")
    verb = given.pop("verb")
    if "resumptionToken" in given and verb in RESUMABLE:
        if len(given) > 1:
            raise OaiError("badArgument", "resumptionToken is an exclusive argument")
        return verb, given
    required, optional = ARGUMENTS[verb]
    if missing := required - given.keys():
        raise OaiError("badArgument", f"missing: {', '.join(sorted(missing))}")
    if unknown := given.keys() - required - optional:
        raise OaiError("badArgument", f"not an argument of {verb}: {', '.join(sorted(unknown))}")
    return verb, given


def _window(given: dict[str, str]) -> tuple[date, date]:
    ends = []
    for name, default in (("from", date.min), ("until", date.max)):
        text = given.get(name)
        try:
            ends.append(default if text is None else datetime.strptime(text, "%Y-%m-%d").date())  # noqa: DTZ007 - a day has no zone
        except ValueError:
            raise OaiError("badArgument", f"{name} is no day: {text}") from None
    if ends[0] > ends[1]:
        raise OaiError("badArgument", "from is after until")
    return ends[0], ends[1]


def _prefix(prefix: str, item: Item | None = None) -> str:
    if prefix not in FORMATS or (item is not None and item.metadata and prefix not in item.metadata):
        raise OaiError("cannotDisseminateFormat", f"no {prefix} here")
    return prefix


def _day(item: Item) -> date:
    if item.datestamp is None:
        raise ValueError(f"{item.identifier} has no datestamp")
    return item.datestamp


def _header(item: Item) -> str:
    status = ' status="deleted"' if item.deleted else ""
    sets = "".join(f"<setSpec>{escape(spec)}</setSpec>" for spec in item.sets)
    return (
        f"<header{status}><identifier>{escape(item.identifier)}</identifier>"
        f"<datestamp>{item.datestamp}</datestamp>{sets}</header>"
    )


def _record(item: Item, prefix: str) -> str:
    xml = item.metadata.get(prefix)
    metadata = f"<metadata>{xml}</metadata>" if xml else ""
    return f"<record>{_header(item)}{metadata}</record>\n"
