"""The simulated half year, in small: the model is what it says, and both policies live through it."""

from __future__ import annotations

import os
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from .conftest import REAL_RECORDS, needs_real_records

HALF_YEAR = Path(__file__).parents[2] / "bench" / "half_year"
sys.path.insert(0, str(HALF_YEAR))

import foretell  # noqa: E402 - found by the path above
import model  # noqa: E402 - found by the path above
import oracle  # noqa: E402 - found by the path above
import picture  # noqa: E402 - found by the path above
import simulate  # noqa: E402 - found by the path above

NO_RECORDS = Path("/nonexistent")  # the example's catalogue, on every machine the same


def test_the_same_seed_makes_the_same_world_and_another_seed_another_one() -> None:
    assert model.world(10.0, copies=2, records=NO_RECORDS) == model.world(10.0, copies=2, records=NO_RECORDS)
    assert model.world(10.0, copies=2, records=NO_RECORDS, seed=2) != model.world(10.0, copies=2, records=NO_RECORDS)


def test_worlds_differ_in_their_lags_alone() -> None:
    worlds = {lag: model.world(lag, records=NO_RECORDS) for lag in model.LAGS}
    for lag, made in worlds.items():
        assert made.papers == worlds[3.0].papers
        assert [work["title"] for work in made.works] == [work["title"] for work in worlds[3.0].works]
        waits = [
            (fact.findable_from - paper.arrives).total_seconds() / 86400
            for paper in made.papers
            if (fact := made.truth[paper.paper_id]).findable_from
        ]
        assert median(waits) == pytest.approx(lag, rel=0.15)


def test_papers_arrive_on_real_weekdays_and_have_titles_of_their_own() -> None:
    made = model.world(10.0, records=NO_RECORDS)
    _, origin = model.seeds(NO_RECORDS)
    assert len({paper.title for paper in made.papers}) == len(made.papers) == 10 * len(origin)
    real = Counter(seed.created.weekday() for seed in origin)
    assert Counter(paper.arrives.weekday() for paper in made.papers) == {day: 10 * n for day, n in real.items()}
    ways = Counter(fact.known_by for fact in made.truth.values())
    assert ways["never"] / len(made.papers) == pytest.approx(model.NEVER, abs=0.04)
    assert min(ways.values()) > 50


def found_and_called(result: dict[str, Any]) -> tuple[float, float]:
    """Return this policy's share of the ancestor's right matches, and of its calls."""
    theirs, ours = result["judged"]["ancestor"], result["judged"]["this"]
    return len(ours.right & theirs.right) / len(theirs.right), ours.calls_a_month / theirs.calls_a_month


# Six weeks are short: at a lag of 30 days many a title is not due by then, at one of 3 days the ancestor asks for few.
@pytest.mark.parametrize(("lag", "found", "called"), [(3.0, 0.96, 0.14), (10.0, 0.97, 0.08), (30.0, 0.79, 0.04)])
def test_in_small_this_policy_finds_what_every_title_every_night_finds_for_few_of_its_calls(
    lag: float, found: float, called: float
) -> None:
    result = simulate.compare(lag, NO_RECORDS, copies=2, weeks=6, most_titles=60)
    theirs, ours = result["judged"]["ancestor"], result["judged"]["this"]
    assert theirs.searches_a_month == theirs.calls_a_month > 100
    assert len(theirs.right) >= 45
    assert ours.wrong == theirs.wrong == 0
    share, ratio = found_and_called(result)
    assert share >= found
    assert ratio <= called
    assert f"| {lag:g} days | this one |" in simulate.table([result])
    drawn = ET.fromstring(picture.draw([result]))  # noqa: S314 - made here
    assert len(drawn.findall("{http://www.w3.org/2000/svg}polyline")) == 4


def test_nights_that_are_all_alike_are_foretold_and_an_ample_limit_warns_of_nothing() -> None:
    days = (date(2026, 1, 1) + timedelta(days=count) for count in range(120))
    nights = [{"night": str(day), "list": 1, "search": 99} for day in days if day.weekday() in foretell.NIGHTS]
    alike: dict[str, Any] = {"nights": nights}
    errors, warned, silent = foretell.judge(alike)
    assert max(abs(error) for error in errors) < 0.01
    assert silent == 0
    assert min(warned) >= 72
    assert foretell.warned_for_nothing(alike, 1.05) == [(0, 0)] * len(errors)
    assert all(may > 0 for may, _ in foretell.warned_for_nothing(alike, 0.9))


def test_what_the_policy_tells_is_nearer_than_what_it_spent_and_the_oracle_lives_the_same_nights() -> None:
    result = simulate.compare(10.0, NO_RECORDS, copies=6, weeks=9, most_titles=60)
    [theirs, ours] = simulate.traces([result])
    assert not any(night["told"] for night in theirs["nights"])
    told, untold = foretell.judge(ours)[0], foretell.judge(foretell.untold(ours))[0]
    assert len(told) == len(untold) == 1
    assert abs(told[0]) < 0.05 < abs(untold[0])
    world = model.world(10.0, copies=6, weeks=9, records=NO_RECORDS)
    for trace, policy in ((theirs, oracle.Ancestor()), (ours, oracle.This())):
        lived = foretell.lived(trace)[0]
        calls, known = oracle.tenths(world, policy, {date(2026, 7, 10)})
        assert sum(abs(calls[day] - lived[day]) for day in lived) <= 0.01 * sum(lived.values())
        assert known[date(2026, 7, 10)].to_come[0].arrives > datetime(2026, 7, 10, tzinfo=UTC)


@needs_real_records
@pytest.mark.skipif("STANDPIPE_FULL" not in os.environ, reason="three minutes of processor each; make test-full")
@pytest.mark.parametrize("lag", model.LAGS)
def test_in_half_a_year_this_policy_finds_97_of_100_for_a_tenth_of_the_calls(lag: float) -> None:
    result = simulate.compare(lag, REAL_RECORDS / "papers.jsonl", copies=10, weeks=model.WEEKS, most_titles=60)
    share, ratio = found_and_called(result)
    assert share >= 0.97
    assert ratio <= 0.1
    assert result["judged"]["this"].wrong <= result["judged"]["ancestor"].wrong
