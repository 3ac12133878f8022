"""Which runs start where a budget is short, by a real service and real books."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from threading import Thread

import pytest
from ulid import ULID

from conftest import ProcessEngine
from standpipe import budgets, configuration, paths, runner, runsocket
from standpipe.engines import CannotStart
from standpipe.errors import BudgetShort
from standpipe.ledger import Ledger
from standpipe.pipeline import BudgetUse, Pipeline
from standpipe.runsocket import service

DECLARED = """\
name: {name}
source: {{repo: https://git.example.org/{name}.git, version: dev}}
task: {{module: {name}.tasks, name: RootTask}}
schedule: null
budgets: [{{name: openalex, per_run: 600}}]
"""


@pytest.fixture
def tmp_path(short_path: Path) -> Path:
    """Where the host's files are."""
    return short_path


@pytest.fixture
def standpiped(host: Path, engine: ProcessEngine) -> Iterator[service.Service]:
    """A service of a host with a budget that is enough for one run of either pipeline, and not for both."""
    paths.BUDGETS.write_text("[{name: openalex, limit: '1000'}]")
    for name in ("alpha", "beta"):
        (paths.PIPELINES / f"{name}.yml").write_text(DECLARED.format(name=name))
    for directory in (paths.RUN_SOCKETS, paths.PIPELINE_SOCKETS):
        directory.mkdir(parents=True)
    made = service.Service(engine)
    with service.Control(made) as control:
        Thread(target=control.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield made
        control.shutdown()
    for door in made.runs.values():
        door.close()
    made.teller.close()


def started(name: str, run: str | None = None) -> bool:
    try:
        runsocket.open_for(configuration.load(name), run or str(ULID()))
    except BudgetShort:
        return False
    return True


def test_of_two_runs_that_start_at_once_and_do_not_both_fit_one_starts(
    standpiped: service.Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = budgets.shortage

    def look_long(pipeline: Pipeline, under_way: Iterable[tuple[str, str, list[BudgetUse]]] = ()) -> str | None:
        short = look(pipeline, under_way)
        time.sleep(0.3)
        return short

    monkeypatch.setattr(budgets, "shortage", look_long)
    with ThreadPoolExecutor(2) as both:
        assert sorted(both.map(started, ["alpha", "beta"])) == [False, True]


def refused(pipeline: str) -> CannotStart:
    with pytest.raises(CannotStart) as raised:
        started(pipeline)
    return raised.value


def test_a_run_that_cannot_start_for_its_budget_s_sake_says_why_and_is_tried_again_where_that_helps(
    standpiped: service.Service, ledger: Ledger
) -> None:
    paths.BUDGET_LEDGER.write_bytes(b"no database" * 1000)
    unreadable = refused("alpha")
    assert (unreadable.reason, unreadable.exit_code) == ("budget", 73)
    assert "alpha is not started: the budgets' ledger" in str(unreadable)
    paths.BUDGET_LEDGER.unlink()
    paths.BUDGETS.write_text("[]")
    undeclared = refused("alpha")
    assert (undeclared.reason, undeclared.exit_code) == ("policy", 78)
    assert "budget openalex is not declared on this host: run site.yml" in str(undeclared)

    pipeline = configuration.load("arxlive")
    now = datetime.now(UTC)
    ledger.register(pipeline, now)
    ledger.claim("one", pipeline.name, "scheduled", now.date(), now, now)
    run = ledger.run("one")
    assert run
    assert runner.retry_at(pipeline, run, "failed", "budget", now)
    assert not runner.retry_at(pipeline, run, "failed", "policy", now)


def test_what_a_run_under_way_has_not_spent_yet_is_not_for_the_next(standpiped: service.Service) -> None:
    run = str(ULID())
    assert started("alpha", run)
    assert started("alpha", run)  # who asks twice is not in his own way
    with pytest.raises(BudgetShort, match="400 calls left this month for it, besides the 600 of runs under way"):
        runsocket.open_for(configuration.load("beta"), str(ULID()))
    standpiped.close(run)
    assert started("beta")


@pytest.mark.parametrize("change", ["removed", "damaged"])
def test_what_becomes_of_the_declaration_of_a_run_under_way_is_not_for_others_to_bear(
    standpiped: service.Service, change: str
) -> None:
    run = str(ULID())
    assert started("alpha", run)
    if change == "removed":
        (paths.PIPELINES / "alpha.yml").unlink()
    else:
        (paths.PIPELINES / "alpha.yml").write_text("name: [")
    with pytest.raises(BudgetShort, match="besides the 600 of runs under way"):
        runsocket.open_for(configuration.load("beta"), str(ULID()))
    standpiped.close(run)
    assert started("beta")
