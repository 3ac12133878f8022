"""One record of an OAI-PMH list in arXiv's own format (``metadataPrefix=arXiv``).

The format: http://arxiv.org/OAI/arXiv.xsd; records:
https://openarchives.org/OAI/openarchivesprotocol.html#Record.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

OAI = "{http://www.openarchives.org/OAI/2.0/}"
ARXIV = "{http://arxiv.org/OAI/arXiv/}"
NAMES = frozenset({"keyname", "forenames", "suffix"})


class RecordError(ValueError):
    """A record that cannot be stored; the message names its identifier."""


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A record that could not be read: its place in the day's list, what is wrong, and its XML."""

    place: int
    fault: str
    xml: str


@dataclass(frozen=True, slots=True)
class Record:
    """A paper as a list of one day shows it; of a deleted one only the first three fields are
    known.

    `paper_id` is arXiv's (``2010.11929``, ``hep-th/9711200``), `datestamp` the day of its last
    modification. `authors` are dicts with, where given, `keyname`, `forenames`, `suffix` and
    `affiliation` (a list).
    """

    paper_id: str
    datestamp: date
    deleted: bool
    created: date | None = None
    updated: date | None = None
    title: str | None = None
    authors: list[dict[str, str | list[str]]] = field(default_factory=list)
    categories: str | None = None
    comments: str | None = None
    report_no: str | None = None
    journal_ref: str | None = None
    doi: str | None = None
    msc_class: str | None = None
    acm_class: str | None = None
    license: str | None = None
    abstract: str | None = None


def parse(element: Element) -> Record:
    """Read one ``<record>``.

    A record that is not deleted and has no metadata in arXiv's format, or lacks what that format
    requires, is a RecordError: to pass over it would lose a paper without a word.
    """
    header = element.find(f"{OAI}header")
    if header is None:
        raise RecordError("a record without a header")
    identifier = _line(header.find(f"{OAI}identifier"))
    if identifier is None:
        raise RecordError("a record without an identifier")
    paper_id = identifier.removeprefix("oai:arXiv.org:")
    datestamp = _day(identifier, "datestamp", header.find(f"{OAI}datestamp"))
    if datestamp is None:
        raise RecordError(f"{identifier}: no datestamp")
    if header.get("status") == "deleted":
        return Record(paper_id, datestamp, deleted=True)
    paper = element.find(f"{OAI}metadata/{ARXIV}arXiv")
    if paper is None:
        raise RecordError(f"{identifier}: no metadata, and not deleted")
    fields: dict[str, Element] = {}
    for child in paper:
        fields.setdefault(child.tag.removeprefix(ARXIV), child)
    record = Record(
        paper_id,
        datestamp,
        deleted=False,
        created=_day(identifier, "created", fields.get("created")),
        updated=_day(identifier, "updated", fields.get("updated")),
        title=_line(fields.get("title")),
        authors=[_author(author) for author in fields.get("authors", ())],
        categories=_line(fields.get("categories")),
        comments=_line(fields.get("comments")),
        report_no=_line(fields.get("report-no")),
        journal_ref=_line(fields.get("journal-ref")),
        doi=_line(fields.get("doi")),
        msc_class=_line(fields.get("msc-class")),
        acm_class=_line(fields.get("acm-class")),
        license=_line(fields.get("license")),
        abstract=_text(fields.get("abstract")),
    )
    for name in ("created", "title", "categories"):
        if getattr(record, name) is None:
            raise RecordError(f"{identifier}: no {name}")
    return record


def _text(element: Element | None) -> str | None:
    return None if element is None else (element.text or "").strip() or None


def _line(element: Element | None) -> str | None:
    # arXiv wraps long titles, names and comments; the line breaks mean nothing.
    return None if element is None else " ".join((element.text or "").split()) or None


def _day(identifier: str, name: str, element: Element | None) -> date | None:
    text = _line(element)
    if text is None:
        return None
    try:
        return date.fromisoformat(text[:10])
    except ValueError as error:
        raise RecordError(f"{identifier}: {name} is no date: {text!r}") from error


def _author(author: Element) -> dict[str, str | list[str]]:
    names: dict[str, str | list[str]] = {}
    places = []
    for child in author:
        part = child.tag.removeprefix(ARXIV)
        if part == "affiliation":
            places.append(" ".join((child.text or "").split()))
        elif part in NAMES and part not in names and (text := _line(child)):
            names[part] = text
    if places:
        names["affiliation"] = places
    return names
