"""The small OAI-PMH server by itself: the protocol's verbs and errors, and the papers that it shows."""

from __future__ import annotations

import json
import re
import time
import xml.etree.ElementTree as ET
from datetime import date, timedelta
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

import httpx2
from catalogue import load, set_of, spread

from arxlive.records import ARXIV, OAI, parse

from .conftest import EXAMPLE, REAL_RECORDS, needs_real_records, papers_of

if TYPE_CHECKING:
    from .conftest import Serve, Server

CATALOGUE = EXAMPLE / "oai_server" / "catalogue.json"
FRIDAY = date(2026, 11, 20)


def ask(server: Server, query: str) -> ET.Element:
    answer = httpx2.get(f"{server.base_url}?{query}")
    assert answer.status_code == 200
    return ET.fromstring(answer.content)  # noqa: S314 - the test's own server


def error(server: Server, query: str) -> str | None:
    found = ask(server, query).find(f"{OAI}error")
    return None if found is None else found.get("code")


def test_every_error_of_the_protocol_comes_with_http_200(serve: Serve) -> None:
    server = serve(papers_of("2026-11-19", 3))
    wrong = {
        "": "badVerb",
        "verb=Sing": "badVerb",
        "verb=Identify&verb=ListSets": "badVerb",
        "verb=Identify&set=cs": "badArgument",
        "verb=ListRecords": "badArgument",
        "verb=ListRecords&metadataPrefix=arXiv&from=19+Nov": "badArgument",
        "verb=ListRecords&metadataPrefix=arXiv&from=2026-11-19&from=2026-11-19": "badArgument",
        "verb=ListRecords&metadataPrefix=arXiv&from=2026-11-20&until=2026-11-19": "badArgument",
        "verb=ListRecords&metadataPrefix=arXiv&resumptionToken=x": "badArgument",
        "verb=ListRecords&resumptionToken=x": "badResumptionToken",
        "verb=ListSets&resumptionToken=x": "badResumptionToken",
        "verb=ListRecords&metadataPrefix=marc": "cannotDisseminateFormat",
        "verb=GetRecord&metadataPrefix=arXiv&identifier=oai:arXiv.org:0": "idDoesNotExist",
        "verb=GetRecord&metadataPrefix=marc&identifier=oai:arXiv.org:2001.00001": "cannotDisseminateFormat",
        "verb=ListMetadataFormats&identifier=oai:arXiv.org:0": "idDoesNotExist",
        "verb=ListRecords&metadataPrefix=arXiv&from=2026-11-20": "noRecordsMatch",
        "verb=ListRecords&metadataPrefix=arXiv&set=econ": "noRecordsMatch",
    }
    assert {query: error(server, query) for query in wrong} == wrong


def test_every_verb_answers(serve: Serve) -> None:
    server = serve(papers_of("2026-11-19", 3))
    assert ask(server, "verb=Identify").findtext(f"{OAI}Identify/{OAI}granularity") == "YYYY-MM-DD"
    formats = ask(server, "verb=ListMetadataFormats").iterfind(f".//{OAI}metadataPrefix")
    assert [prefix.text for prefix in formats] == ["arXiv", "oai_dc"]
    sets = ask(server, "verb=ListSets").iterfind(f".//{OAI}setSpec")
    assert [spec.text for spec in sets] == ["cs", "cs:cs", "cs:cs:GL", "math", "math:math", "math:math:HO"]
    headers = ask(server, "verb=ListIdentifiers&metadataPrefix=oai_dc").findall(f".//{OAI}header")
    assert len(headers) == 3
    one = "verb=GetRecord&identifier=oai:arXiv.org:2001.00002&metadataPrefix="
    assert ask(server, f"{one}arXiv").findtext(f".//{ARXIV}id") == "2001.00002"
    dublin_core = ask(server, f"{one}oai_dc")
    creators = dublin_core.iterfind(".//{http://purl.org/dc/elements/1.1/}creator")
    assert [creator.text for creator in creators] == ["Lovelace, Ada", "Noether, Emmy"]


def test_a_form_is_answered_like_a_query(serve: Serve) -> None:
    server = serve(papers_of("2026-11-19", 3))
    answer = httpx2.post(server.base_url, data={"verb": "ListRecords", "metadataPrefix": "arXiv"})
    assert answer.text.count("<record>") == 3


def tokens_of_a_list_of_5(server: Server) -> list[dict[str, str]]:
    """Read a list to its end, and return the attributes of its tokens."""
    query = "verb=ListRecords&metadataPrefix=arXiv"
    attributes = []
    while True:
        token = ask(server, query).find(f".//{OAI}resumptionToken")
        assert token is not None
        attributes.append(token.attrib)
        if not token.text:
            return attributes
        assert "%" in token.text
        query = f"verb=ListRecords&resumptionToken={quote(token.text, safe='')}"


def test_pages_say_as_at_arxiv_when_their_token_ends_and_nothing_of_the_list(serve: Serve) -> None:
    tokens = tokens_of_a_list_of_5(serve(papers_of("2026-11-19", 5), "--page-size", "2"))
    assert [list(attributes) for attributes in tokens] == [["expirationDate"], ["expirationDate"], []]


def test_pages_say_if_told_to_where_they_are_and_how_long_the_list_is(serve: Serve) -> None:
    tokens = tokens_of_a_list_of_5(serve(papers_of("2026-11-19", 5), "--page-size", "2", "--list-size"))
    assert [attributes["cursor"] for attributes in tokens] == ["0", "2", "4"]
    assert {attributes["completeListSize"] for attributes in tokens} == {"5"}


def test_a_list_that_is_shorter_by_now_than_a_tokens_offset_has_as_at_arxiv_no_records(serve: Serve) -> None:
    server = serve(papers_of("2026-11-19", 3), "--page-size", "2", "--shrink-after-page", "1")
    token = ask(server, "verb=ListRecords&metadataPrefix=arXiv").findtext(f".//{OAI}resumptionToken")
    assert error(server, f"verb=ListRecords&resumptionToken={quote(token or '', safe='')}") == "noRecordsMatch"


def test_a_token_of_yesterday_has_expired(serve: Serve) -> None:
    server = serve(papers_of("2026-11-19", 5), "--page-size", "2")
    token = ask(server, "verb=ListRecords&metadataPrefix=arXiv").findtext(f".//{OAI}resumptionToken")
    old = quote(re.sub(r"expires=\d{4}", "expires=2025", unquote(token or "")), safe="")
    assert error(server, f"verb=ListRecords&resumptionToken={quote(token or '', safe='')}") is None
    assert error(server, f"verb=ListRecords&resumptionToken={quote(old, safe='')}") == "badResumptionToken"


def test_sigterm_ends_it_at_once_with_a_connection_open(serve: Serve) -> None:
    server = serve(papers_of("2026-11-19", 3))
    with httpx2.Client() as client:
        client.get(f"{server.base_url}?verb=Identify")
        asked = time.monotonic()
        server.process.terminate()
        assert server.process.wait(timeout=5) == 0
        assert time.monotonic() - asked < 1


def test_the_catalogue_is_spread_over_weekdays_and_no_weekend() -> None:
    items = spread(load(CATALOGUE), 5, FRIDAY)
    days = [item.datestamp for item in items]
    counts = {day: days.count(day) for day in sorted({day for day in days if day})}
    assert list(counts) == [FRIDAY - timedelta(days=back) for back in (4, 3, 2, 1, 0)]
    assert min(counts.values()) >= 12
    for weekend in (1, 2):
        assert spread(load(CATALOGUE), 5, FRIDAY + timedelta(days=weekend)) == items


def test_a_day_that_is_over_keeps_its_papers_for_a_week() -> None:
    catalogue = load(CATALOGUE)
    of_friday = {item.paper_id for item in spread(catalogue, 5, FRIDAY) if item.datestamp == FRIDAY}
    for later in range(1, 7):
        shown = spread(catalogue, 5, FRIDAY + timedelta(days=later))
        assert {item.paper_id for item in shown if item.datestamp == FRIDAY} == of_friday
    a_week_on = spread(catalogue, 5, FRIDAY + timedelta(days=7))
    assert {item.paper_id for item in a_week_on if item.datestamp == FRIDAY + timedelta(days=7)} == of_friday


def test_the_server_shows_papers_up_to_the_day_it_is_told(serve: Serve) -> None:
    server = serve(None, "--catalogue", CATALOGUE, "--spread-over-days", "3", "--until", str(FRIDAY))
    for day, code in {"2026-11-20": None, "2026-11-18": None, "2026-11-17": "noRecordsMatch"}.items():
        assert error(server, f"verb=ListRecords&metadataPrefix=arXiv&from={day}&until={day}") == code


def test_the_catalogue_names_each_paper_once_and_completely() -> None:
    papers = json.loads(CATALOGUE.read_text(encoding="utf-8"))["papers"]
    assert len(papers) == len({entry["id"] for entry in papers}) >= 60
    for entry in papers:
        assert re.fullmatch(r"\d{4}\.\d{4,5}|[a-z-]+/\d{7}", entry["id"])
        assert date.fromisoformat(entry["created"])
        assert all(entry[key] for key in ("title", "authors", "categories", "abstract"))


def test_categories_become_arxivs_sets() -> None:
    assert [set_of(category) for category in ("cs.CL", "hep-th", "cond-mat.str-el", "physics.soc-ph", "math.NT")] == [
        "cs:cs:CL",
        "physics:hep-th",
        "physics:cond-mat:str-el",
        "physics:physics:soc-ph",
        "math:math:NT",
    ]


@needs_real_records
def test_every_paper_of_the_real_file_can_be_read(serve: Serve) -> None:
    server = serve(None, "--catalogue", REAL_RECORDS / "papers.jsonl", "--page-size", "1000")
    listing = ask(server, "verb=ListRecords&metadataPrefix=arXiv")
    records = [parse(element) for element in listing.iter(f"{OAI}record")]
    lines = (REAL_RECORDS / "papers.jsonl").read_text(encoding="utf-8").splitlines()
    assert {record.paper_id for record in records} == {json.loads(line)["paper_id"] for line in lines}
    assert len(records) == len({record.paper_id for record in records}) == 509
