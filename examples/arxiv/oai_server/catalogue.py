"""The papers that the server shows: from JSON, from JSON lines, or from recorded OAI-PMH pages."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

OAI = "{http://www.openarchives.org/OAI/2.0/}"
ARXIV_NS = "http://arxiv.org/OAI/arXiv/"
ARXIV = f"{{{ARXIV_NS}}}"
# arXiv's archives in the group (the topmost set) "physics"; each other one is a group of its own.
PHYSICS = re.compile(r"(astro-ph|cond-mat|gr-qc|hep-\w+|math-ph|nlin|nucl-\w+|physics|quant-ph)(\.|$)")
EPOCH = date(1970, 1, 5)  # a Monday


@dataclass(frozen=True)
class Item:
    """One record: its header, and its metadata as XML in each format (none if it is deleted)."""

    paper_id: str
    datestamp: date | None  # None: spread over the days, see `spread`
    sets: tuple[str, ...]
    deleted: bool
    metadata: dict[str, str]

    @property
    def identifier(self) -> str:
        """The OAI identifier, https://openarchives.org/OAI/2.0/guidelines-oai-identifier.htm."""
        return f"oai:arXiv.org:{self.paper_id}"


def load(path: Path) -> list[Item]:
    """Read a catalogue: `.json` as catalogue.json is, `.jsonl` with a version of a paper a line."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".jsonl":
        return [_item(entry) for entry in json.loads(text)["papers"]]
    newest: dict[str, dict[str, Any]] = {}
    for line in text.splitlines():
        version = json.loads(line)
        known = newest.get(version["paper_id"])
        if known is None or version["version"] > known["version"]:
            # A paper's first version says when it was created.
            first = known["created"] if known else version["created"]
            newest[version["paper_id"]] = {**version, "created": first}
    return [_item(_entry_of(version)) for version in newest.values()]


def load_recorded(paths: Iterable[Path]) -> list[Item]:
    """Read the records of recorded ListRecords pages; a paper of two pages is in both's sets."""
    items: dict[str, Item] = {}
    ET.register_namespace("", ARXIV_NS)
    for path in paths:
        for record in ET.parse(path).iterfind(f".//{OAI}record"):  # noqa: S314 - a file of the user's
            header = record.find(f"{OAI}header")
            if header is None:
                raise ValueError(f"{path}: a record without a header")
            paper_id = (header.findtext(f"{OAI}identifier") or "").removeprefix("oai:arXiv.org:")
            sets = tuple(element.text or "" for element in header.iterfind(f"{OAI}setSpec"))
            if paper_id in items:
                sets = tuple(dict.fromkeys(items[paper_id].sets + sets))
            paper = record.find(f"{OAI}metadata/{ARXIV}arXiv")
            items[paper_id] = Item(
                paper_id,
                date.fromisoformat(header.findtext(f"{OAI}datestamp") or ""),
                sets,
                header.get("status") == "deleted",
                {} if paper is None else {"arXiv": ET.tostring(paper, encoding="unicode")},
            )
    return list(items.values())


def spread(items: list[Item], days: int, until: date) -> list[Item]:
    """Give each item without a datestamp one of the last `days` weekdays up to and with `until`.

    The n-th item belongs to every `days`-th weekday, counted from a fixed Monday; its datestamp is
    the newest of these that is not after `until`. So a day's papers depend on that day alone, all
    days from Monday to Friday have some, Saturdays and Sundays are empty, and as time goes on a
    paper is modified anew every `days` weekdays, as the datestamp of a paper at arXiv moves when it
    is revised.
    """
    newest = until
    while newest.weekday() > 4:
        newest -= timedelta(days=1)
    weeks, weekday = divmod((newest - EPOCH).days, 7)
    last = 5 * weeks + weekday  # weekdays since the Monday
    spread_items = []
    for number, item in enumerate(items):
        datestamp = item.datestamp
        if datestamp is None:
            weeks, weekday = divmod(last - (last - number) % days, 5)
            datestamp = EPOCH + timedelta(days=7 * weeks + weekday)
        spread_items.append(Item(item.paper_id, datestamp, item.sets, item.deleted, item.metadata))
    return spread_items


def _entry_of(version: dict[str, Any]) -> dict[str, Any]:
    authors = re.split(r",\s*(?:and\s+)?|\s+and\s+", re.sub(r"\([^()]*\)", "", version["authors"]))
    return {
        "id": version["paper_id"],
        "datestamp": (version["updated"] or version["created"])[:10],
        "created": version["created"][:10],
        "title": version["title"],
        "authors": [", ".join(reversed(author.strip().rsplit(" ", 1))) for author in authors if author.strip()],
        "categories": version["abs_categories"],
        "abstract": version["abstract"],
        **{key: version[key] for key in ("comments", "journal_ref", "doi", "license")},
    }


def _item(entry: dict[str, Any]) -> Item:
    datestamp = entry.get("datestamp")
    metadata = {}
    if not (entry.get("deleted") or entry.get("bare")):
        metadata = {"arXiv": _arxiv(entry), "oai_dc": _dublin_core(entry)}
    return Item(
        entry["id"],
        date.fromisoformat(datestamp) if datestamp else None,
        tuple(dict.fromkeys(set_of(category) for category in entry.get("categories", "").split())),
        bool(entry.get("deleted")),
        metadata,
    )


def set_of(category: str) -> str:
    """Return the set of a category, as at arXiv: `cs.CL` is in `cs:cs:CL`, `hep-th` in `physics:hep-th`."""
    archive, _, subject = category.partition(".")
    group = "physics" if PHYSICS.match(category) else archive
    return ":".join(part for part in (group, archive, subject) if part)


def _elements(pairs: Iterable[tuple[str, str | None]]) -> str:
    return "".join(f"<{name}>{escape(text)}</{name}>" for name, text in pairs if text)


def _arxiv(entry: dict[str, Any]) -> str:
    authors = ""
    for author in entry["authors"]:
        keyname, _, forenames = author.partition(", ")
        authors += f"<author>{_elements([('keyname', keyname), ('forenames', forenames)])}</author>"
    before = _elements([("id", entry["id"]), ("created", entry["created"]), ("updated", entry.get("updated"))])
    after = _elements(
        [
            ("title", entry["title"]),
            ("categories", entry["categories"]),
            ("comments", entry.get("comments")),
            ("journal-ref", entry.get("journal_ref")),
            ("doi", entry.get("doi")),
            ("license", entry.get("license")),
            ("abstract", entry["abstract"]),
        ]
    )
    return (
        f'<arXiv xmlns="{ARXIV_NS}" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" '
        f'xsi:schemaLocation="{ARXIV_NS} http://arxiv.org/OAI/arXiv.xsd">'
        f"{before}<authors>{authors}</authors>{after}</arXiv>"
    )


def _dublin_core(entry: dict[str, Any]) -> str:
    pairs = [("title", entry["title"])]
    pairs += [("creator", author) for author in entry["authors"]]
    pairs += [("subject", category) for category in entry["categories"].split()]
    pairs += [
        ("description", entry["abstract"]),
        ("date", entry["created"]),
        ("type", "text"),
        ("identifier", f"http://arxiv.org/abs/{entry['id']}"),
        ("identifier", f"doi:{entry['doi']}" if entry.get("doi") else None),
    ]
    return (
        '<oai_dc:dc xmlns:oai_dc="http://www.openarchives.org/OAI/2.0/oai_dc/" '
        'xmlns:dc="http://purl.org/dc/elements/1.1/" '
        'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" '
        'xsi:schemaLocation="http://www.openarchives.org/OAI/2.0/oai_dc/ '
        'http://www.openarchives.org/OAI/2.0/oai_dc.xsd">'
        f"{_elements((f'dc:{name}', text) for name, text in pairs)}</oai_dc:dc>"
    )
