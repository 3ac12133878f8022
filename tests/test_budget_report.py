"""What `standpipe budget` shows and foretells, of books that were really written."""

from __future__ import annotations

import json
import random
import re
import socket
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from statistics import median

import pytest
from prometheus_client.parser import text_string_to_metric_families
from ulid import ULID

from standpipe import budgets, cli, configuration, metrics, notify, paths, runner
from standpipe.budgets import expected, report, shortage
from standpipe.budgets.forecast import Forecast, forecast
from standpipe.errors import EngineUnavailable
from standpipe.ledger import Ledger
from standpipe.pipeline import BudgetUse
from standpipe_task import spending
from test_notify import Hook

DECLARED = """\
name: arxlive
source: {repo: https://git.example.org/arxlive.git, version: dev}
task: {module: arxlive.tasks, name: RootTask}
schedule: {cron: "0 3 * * 0-4"}
budgets: [{name: openalex, per_run: 600}]
"""
WEEKDAYS = (6, 0, 1, 2, 3)  # Sunday to Thursday


class Books:
    """The books of a host that knows one budget, at a time of the test's choosing."""

    def __init__(self, limit: int) -> None:
        paths.BUDGETS.write_text(f"[{{name: openalex, limit: '{limit}'}}]\n")
        (paths.PIPELINES / "arxlive.yml").write_text(DECLARED)
        self.database = budgets.open_books()
        self.terms = budgets.named("openalex")

    def at(self, text: str) -> None:
        instant = datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()
        self.database.clock = lambda: instant

    def spend(self, calls: int, run: str) -> None:
        with spending.books(self.database) as opened:
            for number in range(calls):
                opened.reserve(f"{run}{number}", self.terms, "arxlive", run)
                opened.settle(f"{run}{number}", self.terms)

    def nights(self, first: date, last: date, calls: Callable[[], int]) -> None:
        """Spend on each night of the schedule."""
        for count in range((last - first).days + 1):
            night = first + timedelta(days=count)
            if night.weekday() in WEEKDAYS:
                self.at(f"{night}T03:00")
                self.spend(calls(), f"{night:%Y%m%d}".rjust(26, "0"))


@pytest.fixture
def books(host: Path) -> Books:
    return Books(10_000)


def test_the_end_of_the_month_is_foretold_within_five_percent_by_the_tenth(books: Books) -> None:
    chance = random.Random(6)  # noqa: S311  # a test's chances
    books.nights(date(2026, 9, 20), date(2026, 10, 9), lambda: chance.randint(120, 260))
    books.at("2026-10-10T12:00")
    look = report.outlook(books.database, books.terms).forecast
    books.nights(date(2026, 10, 10), date(2026, 10, 31), lambda: chance.randint(120, 260))
    books.at("2026-10-31T23:59")
    spent = spending.state(books.database, books.terms, "0").spent
    assert look.at_end == pytest.approx(spent, rel=0.05)
    assert look.low <= spent <= look.high
    assert look.runs_dry is None


def foretold_on_the_tenth(nights: dict[date, int]) -> tuple[Forecast, int]:
    """Return what was expected of October on its tenth, by the nights until then; and what it came to."""
    terms, today = spending.Terms("openalex", 10**6 * spending.SCALE), date(2026, 10, 10)
    starts, ends = terms.period_at(datetime(2026, 10, 10, 12, tzinfo=UTC).timestamp())
    days = [(f"{night}", "arxlive", calls, calls * spending.SCALE) for night, calls in nights.items() if night <= today]
    october = {night: calls for night, calls in nights.items() if night.month == 10}
    spent = sum(calls for night, calls in october.items() if night <= today) * spending.SCALE
    state = spending.State(terms, starts, ends, spent, 0, 0, 0, 0.0, days)
    return forecast(state, today, {"arxlive": list(nights)}, {"arxlive": True}), sum(october.values()) * spending.SCALE


def nights(calls: Callable[[int], float]) -> dict[date, int]:
    """Return what the nights of nine weeks up to the end of October spend, by their number."""
    every = (date(2026, 8, 30) + timedelta(days=count) for count in range(63))
    return {night: round(calls(number)) for number, night in enumerate(n for n in every if n.weekday() in WEEKDAYS)}


def test_what_varies_by_chance_is_foretold_as_well_as_chance_lets_one() -> None:
    errors, held = [], 0
    for seed in range(100):
        chance = random.Random(seed)  # noqa: S311  # a test's chances
        look, came_to = foretold_on_the_tenth(nights(lambda _number, chance=chance: chance.randint(120, 260)))  # type: ignore[misc]
        errors.append(abs(look.at_end / came_to - 1))
        held += look.low <= came_to <= look.high
    assert median(errors) < 0.05
    assert held >= 80  # the range is meant to hold nine of ten; it knows the chances by what it saw alone


@pytest.mark.parametrize(
    "calls",
    [
        pytest.param(lambda number: 100 + 8 * number if number < 30 else 340, id="it rises, and then stays"),
        pytest.param(lambda number: min(500, 40 * number), id="it rises to the most that a run may spend"),
        pytest.param(lambda number: (400, 120, 100, 90, 80)[number % 5], id="it goes by the weekday"),
        pytest.param(lambda number: 600 - 5 * number, id="it falls"),
    ],
)
def test_what_has_a_rhythm_is_foretold_within_five_percent(calls: Callable[[int], float]) -> None:
    look, came_to = foretold_on_the_tenth(nights(calls))
    assert look.at_end == pytest.approx(came_to, rel=0.05)


def test_a_pipelines_own_word_is_believed_for_a_week_and_beyond_it_what_was_spent(books: Books) -> None:
    books.nights(date(2026, 9, 1), date(2026, 10, 11), lambda: 100)

    def expected(at: str) -> dict[date, float]:
        books.at(at)
        look = report.outlook(books.database, books.terms).forecast
        assert look.low <= look.at_end <= look.high
        return {day.day: day.spends / spending.SCALE for day in look.days if day.spends}

    times = ("2026-10-11T12:00", "2026-10-18T02:00", "2026-10-19T02:00")
    by_history = [expected(at) for at in times]
    books.at("2026-10-11T04:00")
    with spending.books(books.database) as opened:
        told = {date(2026, 10, day): 10 * spending.SCALE for day in (11, 12, 13, 14, 15, 18, 19)}
        opened.expect(books.terms, "arxlive", told)
        opened.expect(books.terms, "another", {date(2026, 10, 20): 5000 * spending.SCALE})
    nights = {day: 10.0 for day in told if day.day > 11}  # of the eleventh nothing is left to come
    another = [{date(2026, 10, 20): each[date(2026, 10, 20)] + 5000} for each in by_history]  # it never spent, so far
    assert expected(times[0]) == by_history[0] | nights | another[0]
    words = [f"{name} told on 2026-10-11 what it expects to spend" for name in ("another", "arxlive")]
    assert "\n".join(words) in report.detail(report.outlook(books.database, books.terms))
    assert expected(times[1]) == by_history[1] | {day: 10.0 for day in told if day.day >= 18} | another[1]
    assert expected(times[2]) == by_history[2]  # the words are too old
    assert "told on" not in report.detail(report.outlook(books.database, books.terms))


def test_a_word_that_begins_tomorrow_says_nothing_of_what_is_left_of_today(books: Books) -> None:
    books.nights(date(2026, 9, 1), date(2026, 10, 18), lambda: 100)
    books.at("2026-10-19T01:00")
    with spending.books(books.database) as opened:
        opened.expect(books.terms, "arxlive", {date(2026, 10, 20): 10 * spending.SCALE})
    look = report.outlook(books.database, books.terms).forecast
    spends = {day.day.day: round(day.spends / spending.SCALE) for day in look.days[:4]}
    assert spends == {19: 100, 20: 10, 21: 100, 22: 100}


def test_a_pipeline_that_tells_too_little_is_warned_of_by_what_it_spent(books: Books) -> None:
    books.nights(date(2026, 10, 1), date(2026, 10, 15), lambda: 600)
    books.at("2026-10-16T12:00")
    untold = report.outlook(books.database, books.terms).forecast
    with spending.books(books.database) as opened:
        opened.expect(books.terms, "arxlive", {date(2026, 10, 18): spending.SCALE, date(2026, 10, 31): 0})
    look = report.outlook(books.database, books.terms).forecast
    assert look.at_end == pytest.approx(6601 * spending.SCALE)
    assert (look.runs_dry, look.may_run_dry) == (None, untold.runs_dry)
    assert untold.runs_dry == date(2026, 10, 25)


def test_the_day_on_which_a_budget_runs_dry_is_foretold_days_before(books: Books) -> None:
    books.nights(date(2026, 10, 1), date(2026, 10, 15), lambda: 600)
    books.at("2026-10-16T12:00")
    look = report.outlook(books.database, books.terms).forecast
    assert look.runs_dry == date(2026, 10, 25)  # 11 nights took 6,600; five more fit
    assert look.at_end > books.terms.limit
    assert [day.day for day in look.days if day.spends][:2] == [date(2026, 10, 18), date(2026, 10, 19)]


def test_a_run_is_expected_to_spend_what_the_last_ones_did_and_no_more_than_its_envelope(books: Books) -> None:
    use = BudgetUse(name="openalex", per_run="600")
    assert expected(books.database, "arxlive", use) == 600 * spending.SCALE
    books.nights(date(2026, 10, 1), date(2026, 10, 15), lambda: 100)
    assert expected(books.database, "arxlive", use) == 100 * spending.SCALE
    assert expected(books.database, "arxlive", use.model_copy(update={"per_run": "50"})) == 50 * spending.SCALE


def test_a_run_that_succeeded_and_spent_nothing_is_one_of_the_last(books: Books, ledger: Ledger) -> None:
    use = BudgetUse(name="openalex", per_run="600")
    pipeline = configuration.load("arxlive")
    ledger.register(pipeline, datetime.now(UTC))

    def run(outcome: str) -> None:
        run = str(ULID())
        ledger.claim(run, pipeline.name, "manual", date(2026, 10, 1), None, datetime.now(UTC))
        ledger.started(run, run, None, "c" * 40, "sha256:0")
        ledger.settle(run, outcome)
        time.sleep(0.002)  # for the ids' order

    for _ in range(3):
        run("succeeded")
    assert expected(books.database, pipeline.name, use) == 600 * spending.SCALE  # before the budget was used
    books.spend(200, str(ULID()))
    time.sleep(0.002)
    for _ in range(3):
        run("failed")
    assert expected(books.database, pipeline.name, use) == 600 * spending.SCALE
    for _ in range(9):
        run("succeeded")
    assert expected(books.database, pipeline.name, use) == 0
    books.spend(100, str(ULID()))
    assert expected(books.database, pipeline.name, use) == 100 * spending.SCALE


def test_a_run_for_which_too_little_is_left_is_short(host: Path) -> None:
    books = Books(1000)
    pipeline = configuration.load("arxlive")
    assert shortage(pipeline) is None
    books.spend(500, "by hand")
    told = shortage(pipeline)
    assert told is not None
    assert "500 calls left this month, and a run is expected to spend 600" in told
    (paths.PIPELINES / "arxlive.yml").write_text(DECLARED.replace("600}", "600, if_short: start}"))
    assert shortage(configuration.load("arxlive")) is None


def test_a_provider_that_asks_for_no_calls_is_shown_and_no_run_starts(
    books: Books, ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    def hold(seconds: float) -> str | None:
        ident = f"of {seconds} s"
        with spending.books(books.database) as opened:
            opened.reserve(ident, books.terms, "arxlive", "by hand")
            opened.settle(ident, books.terms, hold=seconds)
        return shortage(configuration.load("arxlive"))

    assert hold(spending.LONGEST_HOLD - 60) is None
    told = hold(7200)
    assert told is not None
    assert "the provider of openalex asks for no calls before 20" in told
    assert cli.main(["budget"]) == 0
    assert "openalex: its provider asks for no calls before 20" in capsys.readouterr().out
    assert cli.main(["budget", "--json"]) == 0
    until = datetime.fromisoformat(json.loads(capsys.readouterr().out)["budgets"][0]["held_until"]).timestamp()
    assert until == pytest.approx(datetime.now(UTC).timestamp() + 7200, abs=60)
    paths.METRICS.mkdir(parents=True)
    metrics.write(ledger)
    text = (paths.METRICS / "standpipe.prom").read_text()
    assert re.search(r"^standpipe_budget_held_until_timestamp_seconds.budget=.openalex.. [1-9]", text, re.M)
    books.at(f"{datetime.now(UTC) + timedelta(hours=3):%Y-%m-%dT%H:%M}")
    assert spending.state(books.database, books.terms).held_until == 0


def test_the_burn_down_ends_at_what_is_left(books: Books) -> None:
    books.at("2026-10-31T23:59:59")
    with spending.books(books.database) as opened:
        opened.reserve("over the end", books.terms, "arxlive", "by hand")
    books.at("2026-11-02T12:00")
    with spending.books(books.database) as opened:
        opened.settle("over the end", books.terms)
        opened.set_elsewhere(books.terms, 2000 * spending.SCALE)
    books.spend(10, "by hand")
    with spending.books(books.database) as opened:
        opened.reserve("under way", books.terms, "arxlive", "by hand")
    look = report.outlook(books.database, books.terms)
    assert look.state.left == (10_000 - 1 - 2000 - 10 - 1) * spending.SCALE
    assert report.burn_down(look)[:2] == [
        ("2026-11-01", "0", "7998", "█" * 32),
        ("2026-11-02", "10", "7988", "█" * 32),
    ]


def test_the_command_shows_all_budgets_one_budget_and_json(books: Books, capsys: pytest.CaptureFixture[str]) -> None:
    books.spend(3, "by hand")
    assert cli.main(["budget"]) == 0
    assert "openalex  10000 calls  month  3 " in capsys.readouterr().out
    assert cli.main(["budget", "openalex"]) == 0
    shown = capsys.readouterr().out
    assert "arxlive   3      3" in shown
    assert "█" in shown
    assert cli.main(["budget", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["schema"] == 1
    assert (told["budgets"][0]["spent"], told["budgets"][0]["left"]) == ("3", "9997")


def test_budget_settles_what_a_dead_runner_left_and_a_ledger_that_is_ill_does_not_stop_it(
    books: Books, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engines: list[object] = []

    def settle(_ledger: Ledger, engine: object) -> bool:
        engines.append(engine)
        raise EngineUnavailable("Docker does not answer")

    monkeypatch.setattr(runner, "settle_for_a_look", settle)
    ledger.claim("A", "arxlive", "manual", date(2026, 11, 20), None, datetime(2026, 11, 20, tzinfo=UTC))
    assert cli.main(["budget"]) == 0
    assert len(engines) == 1
    assert "openalex" in capsys.readouterr().out


def test_what_was_spent_elsewhere_can_be_noted(books: Books, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["budget", "openalex", "--elsewhere", "2500.5"]) == 0
    shown = capsys.readouterr()
    assert "elsewhere 2500.5" in shown.out
    assert not shown.err
    assert cli.main(["budget", "openalex", "--elsewhere", "500.5"]) == 0
    assert "2500.5 were noted before, perhaps by its provider's word: 2000 calls more" in capsys.readouterr().err
    assert cli.main(["budget", "--elsewhere", "1"]) == 2
    assert cli.main(["budget", "openalex", "--elsewhere", "many"]) == 2
    assert cli.main(["budget", "nonsense"]) == 2
    assert "It knows: openalex" in capsys.readouterr().err


def test_the_picture_is_svg_that_loads_nothing(books: Books, tmp_path: Path) -> None:
    books.spend(3, "by hand")
    assert cli.main(["budget", "openalex", "--svg", str(tmp_path / "burn-down.svg")]) == 0
    picture = ET.fromstring((tmp_path / "burn-down.svg").read_bytes())  # noqa: S314  # it was drawn here
    assert picture.tag.endswith("svg")
    assert not [element for element in picture.iter() if str(element.tag).endswith(("script", "image"))]


def test_metrics_say_what_is_left(books: Books, ledger: Ledger) -> None:
    paths.METRICS.mkdir(parents=True)
    books.spend(3, "by hand")
    metrics.write(ledger)
    text = (paths.METRICS / "standpipe.prom").read_text()
    families = {family.name: family.samples for family in text_string_to_metric_families(text)}
    assert families["standpipe_budget_left"][0].labels == {"budget": "openalex"}
    assert families["standpipe_budget_left"][0].value == 9997


@pytest.mark.parametrize(
    ("limit", "spent", "dry"),
    [
        ("0.05", 50, "2026-10-06"),  # to the limit
        ("0.0502", 50, "no"),  # there is enough for a list
        ("0.05009", 50, "2026-10-06"),
        ("0", 0, "no"),
        ("0.00009", 0, "no"),
    ],
)
def test_what_is_spent_with_no_slot_to_follow_has_run_dry(books: Books, limit: str, spent: int, dry: str) -> None:
    prices = {"list": "0.0001", "search": "0.001", "free": "0"}
    declared = {"name": "openalex", "limit": limit, "unit": "USD", "period": "day", "prices": prices}
    books.terms = spending.Terms.of(declared)
    books.at("2026-10-06T03:00")
    with spending.books(books.database) as opened:
        for number in range(spent):
            opened.reserve(f"{number}", books.terms, "arxlive", "by hand", "search")
            opened.settle(f"{number}", books.terms)
    books.at("2026-10-06T04:00")  # the only slot of the day is over
    assert report.when_dry(report.outlook(books.database, books.terms).forecast) == dry


def test_people_are_warned_once_a_period_that_it_may_and_once_that_it_will(books: Books) -> None:
    def warned(level: int) -> bool:
        with spending.books(books.database) as opened:
            return opened.warn(books.terms, level)

    books.at("2026-10-16T12:00")
    assert [warned(1), warned(1), warned(2), warned(1), warned(2)] == [True, False, True, False, False]
    books.at("2026-11-16T12:00")
    assert warned(2)


def test_a_warning_whose_sender_is_killed_is_sent_by_another_and_by_one_at_a_time(books: Books) -> None:
    paths.BUDGETS.write_text("[{name: openalex, limit: '1000'}]")
    books.terms = budgets.named("openalex")
    with spending.books(books.database) as opened:  # of the time now: the processes below go by it
        for number in range(1000):
            opened.reserve(f"{number}", books.terms, "arxlive", "by hand")
            opened.settle(f"{number}", books.terms)
    hook = Hook()
    stuck = socket.create_server(("127.0.0.1", 0))  # takes the connection, and says nothing
    look = [sys.executable, "-c", "from standpipe import notify; notify.warn_of_budgets(print)"]

    def told_of(port: int) -> None:
        paths.NOTIFY.write_text(f"urls: ['json://127.0.0.1:{port}/x']")

    told_of(stuck.getsockname()[1])
    with subprocess.Popen(look) as sender, stuck, stuck.accept()[0]:
        sender.kill()
    told_of(hook.port)
    said: list[str] = []
    notify.warn_of_budgets(said.append)
    assert (said, hook.taken) == ([], [])  # it may be on its way still
    books.database.execute("UPDATE period SET warning_since = warning_since - ?", spending.WARNING + 1)
    for _ in range(2):
        notify.warn_of_budgets(said.append)
    assert (said, len(hook.taken)) == ([], 1)
    assert "runs dry: 20" in hook.taken[0]["title"]
    hook.server.shutdown()
    hook.server.server_close()


def test_a_warning_that_reached_somebody_is_not_sent_again_and_one_budget_that_is_away_keeps_back_no_other(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths.BUDGETS.write_text("[{name: away, limit: '10000'}, {name: openalex, limit: '10000'}]")
    for name in ("away", "openalex"):
        books.terms = budgets.named(name)
        books.nights(date(2026, 10, 1), date(2026, 10, 15), lambda: 600)
    books.at("2026-10-16T12:00")
    books.database.execute("UPDATE budget SET latest = latest + 864000 WHERE name = 'away'")  # the clock was set back
    monkeypatch.setattr(budgets, "open_books", lambda: books.database)
    monkeypatch.setattr(books.database, "close", lambda: None)
    hooks = [Hook(), Hook()]
    urls = [f"json://127.0.0.1:{hook.port}/x" for hook in hooks]
    paths.NOTIFY.write_text(f"urls: {json.dumps(urls)}")

    def told() -> tuple[list[str], list[int]]:
        said: list[str] = []
        notify.warn_of_budgets(said.append)
        assert "the clock says" in said.pop(0)
        return said, [len(hook.taken) for hook in hooks]

    hooks[0].status = hooks[1].status = 500
    assert told() == (["budget openalex: a warning could not be sent; it is tried again"], [0, 0])
    hooks[0].status = 200
    assert told() == (["budget openalex: a warning did not reach every address"], [1, 0])
    assert told() == ([], [1, 0])
    assert hooks[0].taken[0]["title"].endswith("runs dry: 2026-10-25")
    for hook in hooks:
        hook.server.shutdown()
        hook.server.server_close()
