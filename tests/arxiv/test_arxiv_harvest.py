"""One day's harvest, against a real server on loopback, faults included."""

from __future__ import annotations

import itertools
import json
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from oaipmh_scythe.exceptions import BadArgument, CannotDisseminateFormat, OAIPMHException
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from arxlive.harvest import RESTARTS, HarvestError, read_day, retry_after
from arxlive.store import Paper, Progress, Sighting, Unread, mark_of, open_store, progress_of, save, unread
from arxlive.tasks import HarvestDay

from .conftest import REAL_RECORDS, needs_real_records, paper, papers_of

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import Serve, Server

DAY = date(2026, 11, 19)
# The list says how long it is, or not, as at arXiv.
EITHER_WAY = pytest.mark.parametrize("options", [(), ("--list-size",)], ids=["as arXiv", "with its size"])
IDS_OF_25 = [entry["id"] for entry in papers_of(str(DAY), 25)]


def harvest(server: Server | str, tmp_path: Path, day: date = DAY, set_spec: str = "", pace: float = 0.0) -> HarvestDay:
    """Run the task of one day, in this process."""
    task = HarvestDay(  # type: ignore[no-untyped-call]  # Luigi's tasks have no typed constructor
        day=day,
        set_spec=set_spec,
        base_url=server if isinstance(server, str) else server.base_url,
        data_dir=str(tmp_path),
        pace=pace,
        production=True,
    )
    task.run()
    return task


def stored(tmp_path: Path) -> dict[str, Paper]:
    with Session(open_store(f"sqlite:///{tmp_path}/arxlive.sqlite3"), expire_on_commit=False) as session:
        return {paper.paper_id: paper for paper in session.scalars(select(Paper).order_by(Paper.paper_id))}


def sightings(tmp_path: Path) -> dict[tuple[str, date], str]:
    with Session(open_store(f"sqlite:///{tmp_path}/arxlive.sqlite3")) as session:
        return {(seen.paper_id, seen.day): seen.kind for seen in session.scalars(select(Sighting))}


def begun(server: Server) -> int:
    """Count how often the day's records were asked for from their beginning."""
    return sum("ListRecords" in path and "from=" in path for _, path, _ in server.requests())


def is_done(tmp_path: Path, day: date = DAY, set_spec: str = "") -> bool:
    mark = mark_of(open_store(f"sqlite:///{tmp_path}/arxlive.sqlite3"), day, set_spec)
    return mark is not None and mark.done


def test_every_page_of_a_day_is_stored_and_the_day_is_done(serve: Serve, tmp_path: Path) -> None:
    other_days = [paper("1901.00001", "2026-11-18"), paper("1901.00002", "2026-11-20")]
    server = serve([*papers_of(str(DAY), 25), *other_days])
    assert harvest(server, tmp_path).complete()
    assert list(stored(tmp_path)) == IDS_OF_25
    asked = [path.split("&")[0].partition("=")[2] for _, path, _ in server.requests()]
    assert asked == ["ListRecords"] * 3 + ["ListIdentifiers"]
    assert is_done(tmp_path)


def test_a_paper_keeps_all_that_its_record_says(serve: Serve, tmp_path: Path) -> None:
    entry = paper(
        "hep-th/0001001",
        str(DAY),
        updated="2026-11-18",
        title="A <title> & its\n  second line",
        authors=["Erdős, Paul", "A Collaboration"],
        categories="hep-th cs.CL",
        comments="12 pages",
        journal_ref="J. 1 (2000) 2",
        doi="10.1000/182",
        license="http://creativecommons.org/licenses/by/4.0/",
    )
    harvest(serve([entry]), tmp_path)
    kept = stored(tmp_path)["hep-th/0001001"]
    assert (kept.datestamp, kept.created, kept.updated) == (DAY, date(2020, 1, 2), date(2026, 11, 18))
    assert kept.title == "A <title> & its second line"
    assert kept.authors == [{"keyname": "Erdős", "forenames": "Paul"}, {"keyname": "A Collaboration"}]
    assert (kept.categories, kept.comments) == ("hep-th cs.CL", "12 pages")
    assert (kept.journal_ref, kept.doi) == ("J. 1 (2000) 2", "10.1000/182")
    assert kept.license == "http://creativecommons.org/licenses/by/4.0/"
    assert kept.abstract == "What there is to say of hep-th/0001001."
    assert not kept.deleted


@EITHER_WAY
def test_a_day_of_one_page_needs_no_token(serve: Serve, tmp_path: Path, options: tuple[str, ...]) -> None:
    server = serve(papers_of(str(DAY), 10), *options)
    harvest(server, tmp_path)
    assert len(stored(tmp_path)) == 10
    assert len(server.requests()) == 1


@pytest.mark.parametrize("tail", ["%2F%25&x=1+2", "|é\"'<>;#", "  two  spaces ", "%E2%82%AC?a=b==", "\\^`{}~"])
def test_a_resumption_token_goes_back_exactly_as_it_came(serve: Serve, tmp_path: Path, tail: str) -> None:
    harvest(serve(papers_of(str(DAY), 25), "--token-tail", tail), tmp_path)
    assert list(stored(tmp_path)) == IDS_OF_25


@EITHER_WAY
def test_the_empty_last_token_ends_the_day(serve: Serve, tmp_path: Path, options: tuple[str, ...]) -> None:
    harvest(serve(papers_of(str(DAY), 20), *options), tmp_path)
    assert len(stored(tmp_path)) == 20
    assert is_done(tmp_path)


def test_an_empty_day_is_done(serve: Serve, tmp_path: Path) -> None:
    assert harvest(serve([paper("2001.00001", "2026-11-18")]), tmp_path).complete()
    assert stored(tmp_path) == {}
    assert is_done(tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--retry-after-as-date",),
        ("--busy-status", "429"),
        ("--busy-status", "429", "--retry-after-as-date"),
    ],
)
def test_a_busy_server_is_given_the_time_it_asks_for(serve: Serve, tmp_path: Path, options: tuple[str, ...]) -> None:
    server = serve(papers_of(str(DAY), 3), "--busy-first", "1", "--retry-after", "1", *options)
    harvest(server, tmp_path)
    (busy, _, refused), (answered, _, status) = server.requests()
    assert (refused, status) == (429 if "429" in options else 503, 200)
    assert answered - busy > 0.99
    assert len(stored(tmp_path)) == 3


def test_a_server_that_is_busy_in_mid_harvest_loses_nothing(serve: Serve, tmp_path: Path) -> None:
    server = serve(papers_of(str(DAY), 25), "--busy-every", "2", "--retry-after", "0")
    harvest(server, tmp_path)
    assert [status for _, _, status in server.requests()] == [200, 503, 200, 503, 200, 503, 200]
    assert list(stored(tmp_path)) == IDS_OF_25


def test_a_server_that_stays_busy_is_asked_a_bounded_number_of_times(serve: Serve, tmp_path: Path) -> None:
    server = serve(papers_of(str(DAY), 3), "--busy-every", "1", "--retry-after", "0")
    with pytest.raises(HarvestError, match="HTTP 503; asked 6 times"):
        harvest(server, tmp_path)
    assert len(server.requests()) == 6
    assert not is_done(tmp_path)


def test_a_server_that_asks_for_a_day_is_not_waited_for(serve: Serve, tmp_path: Path) -> None:
    server = serve(papers_of(str(DAY), 3), "--busy-every", "1", "--retry-after", "86400")
    with pytest.raises(HarvestError, match="86400 s"):
        harvest(server, tmp_path)
    assert len(server.requests()) == 1


def test_both_forms_of_retry_after_are_read() -> None:
    at_noon = "Thu, 19 Nov 2026 12:00:00 GMT"
    assert retry_after("120") == 120
    assert retry_after("Thu, 19 Nov 2026 12:00:07 GMT", at_noon) == 7
    assert retry_after("Thu, 19 Nov 2026 11:00:00 GMT", at_noon) == 0
    assert retry_after(None) is None
    assert retry_after("soon") is None


def test_requests_keep_the_pace(serve: Serve, tmp_path: Path) -> None:
    server = serve(papers_of(str(DAY), 30))
    harvest(server, tmp_path, pace=0.3)
    moments = [when for when, _, _ in server.requests()]
    assert len(moments) == 4
    assert all(later - earlier > 0.29 for earlier, later in itertools.pairwise(moments))


def test_a_token_that_expires_in_mid_harvest_begins_the_day_anew(serve: Serve, tmp_path: Path) -> None:
    server = serve(papers_of(str(DAY), 25), "--expire-after-page", "2", "--fault-times", "1")
    harvest(server, tmp_path)
    assert list(stored(tmp_path)) == IDS_OF_25
    assert set(sightings(tmp_path).values()) == {"new"}
    assert len(server.requests()) == 3 + 3 + 1
    assert is_done(tmp_path)


def test_a_token_that_always_expires_fails_the_day(serve: Serve, tmp_path: Path) -> None:
    server = serve(papers_of(str(DAY), 25), "--expire-after-page", "1")
    with pytest.raises(HarvestError, match="resumption token"):
        harvest(server, tmp_path)
    assert len(server.requests()) == 2 * (RESTARTS + 1)
    assert not is_done(tmp_path)


@pytest.mark.parametrize("fault", ["--truncate-page", "--html-page"])
@pytest.mark.parametrize("page", [1, 3])
def test_a_day_with_a_page_that_is_not_whole_is_never_done(serve: Serve, tmp_path: Path, fault: str, page: int) -> None:
    server = serve(papers_of(str(DAY), 25), fault, str(page))
    with pytest.raises(HarvestError, match="not whole"):
        harvest(server, tmp_path)
    assert list(stored(tmp_path)) == IDS_OF_25[: 10 * (page - 1)]
    assert not is_done(tmp_path)


def test_a_page_that_is_whole_when_asked_again_is_taken(serve: Serve, tmp_path: Path) -> None:
    server = serve(papers_of(str(DAY), 25), "--truncate-page", "2", "--fault-times", "2")
    harvest(server, tmp_path)
    assert list(stored(tmp_path)) == IDS_OF_25
    assert is_done(tmp_path)


@pytest.mark.parametrize("page", [1, 2])
@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("badArgument", BadArgument),
        ("cannotDisseminateFormat", CannotDisseminateFormat),
        ("somethingNew", OAIPMHException),
    ],
)
def test_an_error_that_the_server_names_fails_the_day(
    serve: Serve, tmp_path: Path, page: int, code: str, error: type[Exception]
) -> None:
    server = serve(papers_of(str(DAY), 25), "--error-on-page", str(page), "--error", code)
    with pytest.raises(error, match="told to fail"):
        harvest(server, tmp_path)
    assert len(stored(tmp_path)) == 10 * (page - 1)
    assert not is_done(tmp_path)


def test_no_records_match_in_the_middle_of_a_list_is_no_empty_day(serve: Serve, tmp_path: Path) -> None:
    server = serve(papers_of(str(DAY), 25), "--error-on-page", "2", "--error", "noRecordsMatch")
    with pytest.raises(HarvestError, match="in the middle"):
        harvest(server, tmp_path)
    assert not is_done(tmp_path)


def test_a_list_that_is_shorter_than_it_says_fails_the_day(serve: Serve, tmp_path: Path) -> None:
    with pytest.raises(HarvestError, match="25 records read, but the list has 27"):
        harvest(serve(papers_of(str(DAY), 25), "--overstate", "2"), tmp_path)
    assert not is_done(tmp_path)


def test_an_address_that_is_no_oai_server_fails_at_once(serve: Serve, tmp_path: Path) -> None:
    server = serve(papers_of(str(DAY), 3))
    with pytest.raises(HarvestError, match="HTTP 404"):
        harvest(server.base_url + "2", tmp_path)
    assert len(server.requests()) == 1


def test_nobody_at_the_address_fails_the_day(serve: Serve, tmp_path: Path) -> None:
    server = serve(papers_of(str(DAY), 3))
    server.process.kill()
    server.process.wait(timeout=5)
    with pytest.raises(HarvestError, match=r"ConnectError.*asked 6 times"):
        harvest(server, tmp_path)
    assert not is_done(tmp_path)


def test_a_deleted_paper_is_marked_and_kept(serve: Serve, tmp_path: Path) -> None:
    harvest(serve(papers_of(str(DAY), 2)), tmp_path)
    next_day = DAY + timedelta(days=1)
    deleted = {"id": "2001.00001", "datestamp": str(next_day), "deleted": True}
    never_seen = {"id": "2001.09999", "datestamp": str(next_day), "deleted": True}
    harvest(serve([deleted, never_seen]), tmp_path, next_day)
    papers = stored(tmp_path)
    assert {paper_id: kept.deleted for paper_id, kept in papers.items()} == {
        "2001.00001": True,
        "2001.00002": False,
        "2001.09999": True,
    }
    assert papers["2001.00001"].title == "On 2001.00001"
    assert papers["2001.09999"].title is None
    assert sightings(tmp_path)["2001.00001", next_day] == "deleted"


def test_a_deleted_paper_that_comes_back_is_there_again(serve: Serve, tmp_path: Path) -> None:
    harvest(serve([{"id": "2001.00001", "datestamp": str(DAY), "deleted": True}]), tmp_path)
    next_day = DAY + timedelta(days=1)
    harvest(serve([paper("2001.00001", str(next_day))]), tmp_path, next_day)
    assert not stored(tmp_path)["2001.00001"].deleted


def with_a_bad_one(place: int = 7) -> list[dict[str, Any]]:
    """Return the day's 25 papers, one of them without metadata."""
    papers = papers_of(str(DAY), 25)
    papers[place - 1] = {"id": papers[place - 1]["id"], "datestamp": str(DAY), "bare": True}
    return papers


def test_a_record_that_cannot_be_read_is_kept_and_named_and_the_others_are_stored(serve: Serve, tmp_path: Path) -> None:
    task = harvest(serve(with_a_bad_one()), tmp_path)
    assert list(stored(tmp_path)) == IDS_OF_25[:6] + IDS_OF_25[7:]
    assert not is_done(tmp_path)
    assert task.complete()  # what hangs on the day goes on in this run
    named = [f"{DAY}: oai:arXiv.org:2001.00007: no metadata, and not deleted"]
    assert unread(task.engine(), 9) == (1, named)
    with Session(task.engine()) as session:
        kept = session.scalars(select(Unread)).one()
    assert kept.place == 7
    assert "2001.00007" in kept.xml

    harvest(serve(papers_of(str(DAY), 25)), tmp_path)
    assert list(stored(tmp_path)) == IDS_OF_25
    assert unread(task.engine(), 9) == (0, [])
    assert is_done(tmp_path)


def test_a_record_that_cannot_be_read_is_not_forgotten_where_the_reading_is_broken_off(
    serve: Serve, tmp_path: Path
) -> None:
    server = serve(with_a_bad_one())
    broken_off(server, tmp_path, 2)
    task = harvest(server, tmp_path)
    assert begun(server) == 1
    assert unread(task.engine(), 9)[0] == 1
    assert not is_done(tmp_path)


def test_a_paper_that_is_seen_on_a_later_day_is_updated(serve: Serve, tmp_path: Path) -> None:
    harvest(serve(papers_of(str(DAY), 2)), tmp_path)
    next_day = DAY + timedelta(days=1)
    harvest(serve([paper("2001.00001", str(next_day), title="Revised")]), tmp_path, next_day)
    assert stored(tmp_path)["2001.00001"].title == "Revised"
    assert sightings(tmp_path) == {
        ("2001.00001", DAY): "new",
        ("2001.00002", DAY): "new",
        ("2001.00001", next_day): "updated",
    }


def test_an_older_day_read_later_does_not_undo_a_newer_one(serve: Serve, tmp_path: Path) -> None:
    harvest(serve([paper("2001.00001", str(DAY), title="Revised")]), tmp_path)
    day_before = DAY - timedelta(days=1)
    harvest(serve([paper("2001.00001", str(day_before), title="First")]), tmp_path, day_before)
    kept = stored(tmp_path)["2001.00001"]
    assert (kept.title, kept.datestamp) == ("Revised", DAY)


def test_a_day_that_has_not_ended_is_stored_but_not_done(serve: Serve, tmp_path: Path) -> None:
    # A day that begins while the test runs is no more over than the one before it.
    today = datetime.now(UTC).date() + timedelta(days=1)
    assert harvest(serve(papers_of(str(today), 12)), tmp_path, today).complete()
    assert len(stored(tmp_path)) == 12
    assert not is_done(tmp_path, today)


def broken_off(server: Server, tmp_path: Path, pages: int) -> None:
    """Read so many pages of the day, store them, and go no further, as a process that is killed then."""
    engine = open_store(f"sqlite:///{tmp_path}/arxlive.sqlite3")
    for page in itertools.islice(read_day(server.base_url, DAY, pace=0.0), pages):
        save(engine, DAY, "", page, server.base_url)


@EITHER_WAY
def test_a_reading_that_was_broken_off_goes_on_with_the_next_page(
    serve: Serve, tmp_path: Path, options: tuple[str, ...]
) -> None:
    server = serve(papers_of(str(DAY), 25), *options)
    broken_off(server, tmp_path, 2)
    harvest(server, tmp_path)
    assert list(stored(tmp_path)) == IDS_OF_25
    assert is_done(tmp_path)
    asked = [path for _, path, _ in server.requests() if "ListRecords" in path]
    assert [path.count("resumptionToken") for path in asked] == [0, 1, 1]
    assert len(set(asked)) == 3  # no page twice
    assert progress_of(open_store(f"sqlite:///{tmp_path}/arxlive.sqlite3"), DAY, "", server.base_url) is None


@pytest.mark.parametrize(
    "change",
    [
        {"token": "verb%3DListRecords"},
        {"expires": "2026-11-19T00:00:00Z"},
    ],
    ids=["refused", "expired"],
)
def test_a_reading_that_cannot_go_on_begins_anew(serve: Serve, tmp_path: Path, change: dict[str, Any]) -> None:
    server = serve(papers_of(str(DAY), 25))
    broken_off(server, tmp_path, 2)
    with Session(open_store(f"sqlite:///{tmp_path}/arxlive.sqlite3")) as session, session.begin():
        session.execute(update(Progress).values(**change))
    harvest(server, tmp_path)
    assert list(stored(tmp_path)) == IDS_OF_25
    assert is_done(tmp_path)
    assert set(sightings(tmp_path).values()) == {"new"}
    assert begun(server) == 2


@EITHER_WAY
@pytest.mark.parametrize("pages", [1, 2])
def test_a_list_that_lost_a_paper_since_its_reading_was_broken_off_is_read_anew(
    serve: Serve, tmp_path: Path, options: tuple[str, ...], pages: int
) -> None:
    server = serve(papers_of(str(DAY), 25), "--shrink-after-page", str(pages), "--fault-times", "1", *options)
    broken_off(server, tmp_path, pages)
    harvest(server, tmp_path)
    assert list(stored(tmp_path)) == IDS_OF_25
    assert is_done(tmp_path)
    assert begun(server) == 2


def test_a_day_that_has_not_ended_is_read_from_its_beginning(serve: Serve, tmp_path: Path) -> None:
    today = datetime.now(UTC).date()
    server = serve(papers_of(str(today), 25))
    engine = open_store(f"sqlite:///{tmp_path}/arxlive.sqlite3")
    for page in itertools.islice(read_day(server.base_url, today, pace=0.0), 2):
        save(engine, today, "", page, server.base_url)
    assert progress_of(engine, today, "", server.base_url) is None


def test_a_reading_does_not_go_on_at_another_server(serve: Serve, tmp_path: Path) -> None:
    first, second = serve(papers_of(str(DAY), 25)), serve(papers_of(str(DAY), 25))
    broken_off(first, tmp_path, 2)
    harvest(second, tmp_path)
    assert begun(second) == 1
    assert is_done(tmp_path)


@EITHER_WAY
@pytest.mark.parametrize("number", [25, 21], ids=["", "and with it its last page"])
def test_a_list_that_loses_a_paper_while_it_is_read_is_read_anew(
    serve: Serve, tmp_path: Path, options: tuple[str, ...], number: int
) -> None:
    server = serve(papers_of(str(DAY), number), "--shrink-after-page", "1", "--fault-times", "1", *options)
    harvest(server, tmp_path)
    # The first paper left the day after page 1; the eleventh would have been passed over.
    assert list(stored(tmp_path)) == IDS_OF_25[:number]
    assert is_done(tmp_path)
    assert begun(server) == 2


def test_a_list_that_never_holds_still_fails_the_day(serve: Serve, tmp_path: Path) -> None:
    server = serve(papers_of(str(DAY), 120), "--shrink-after-page", "1")
    with pytest.raises(HarvestError, match="the list changed 4 times: 116 records were read, and the list has 116 now"):
        harvest(server, tmp_path)
    assert not is_done(tmp_path)


def test_a_set_is_harvested_and_marked_by_itself(serve: Serve, tmp_path: Path) -> None:
    entries = [
        paper("2001.00001", str(DAY), categories="cs.CL"),
        paper("2001.00002", str(DAY), categories="hep-th math.AG"),
        paper("2001.00003", str(DAY), categories="csx.AB"),
    ]
    server = serve(entries)
    harvest(server, tmp_path, set_spec="cs")
    assert list(stored(tmp_path)) == ["2001.00001"]
    harvest(server, tmp_path, set_spec="physics:hep-th")
    assert list(stored(tmp_path)) == ["2001.00001", "2001.00002"]
    assert is_done(tmp_path, set_spec="cs")
    assert is_done(tmp_path, set_spec="physics:hep-th")
    assert not is_done(tmp_path)


@needs_real_records
def test_every_real_record_of_two_recorded_pages_is_stored(serve: Serve, tmp_path: Path) -> None:
    pages = sorted(REAL_RECORDS.glob("listrecords-*.xml"))
    ids = {
        part.split("<")[0].removeprefix("oai:arXiv.org:")
        for page in pages
        for part in page.read_text(encoding="utf-8").split("<identifier>")[1:]
    }
    harvest(serve(None, "--recorded", *pages, "--page-size", "40"), tmp_path, date(2015, 1, 16))
    papers = stored(tmp_path)
    assert papers.keys() == ids
    assert len(ids) > 150
    assert all(kept.title and kept.authors and kept.abstract for kept in papers.values())


@needs_real_records
def test_real_papers_survive_the_way_through_server_and_store(serve: Serve, tmp_path: Path) -> None:
    versions = [json.loads(line) for line in (REAL_RECORDS / "papers.jsonl").read_text("utf-8").splitlines()]
    newest = {v["paper_id"]: v for v in sorted(versions, key=lambda v: int(v["version"]))}
    days = [(v["updated"] or v["created"])[:10] for v in newest.values()]
    busiest = max(set(days), key=days.count)
    harvest(serve(None, "--catalogue", REAL_RECORDS / "papers.jsonl"), tmp_path, date.fromisoformat(busiest))
    papers = stored(tmp_path)
    assert len(papers) == days.count(busiest)
    for paper_id, kept in papers.items():
        assert kept.title == " ".join(newest[paper_id]["title"].split())
        assert kept.abstract == newest[paper_id]["abstract"].strip()
