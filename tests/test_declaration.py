"""What `standpipe validate` says of declarations: all that is wrong, each with pipeline, key, value and remedy."""

from __future__ import annotations

import copy
import io
import json
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from standpipe import validate
from standpipe.errors import ConfigurationError
from standpipe.pipeline import Declaration, Pipeline, luigi_arguments

REPOSITORY = Path(__file__).parents[1]

MINIMAL: dict[str, Any] = {
    "name": "arxlive",
    "source": {"repo": "https://git.example.org/arxlive.git", "version": "0.3"},
    "task": {"module": "arxlive.tasks", "name": "RootTask", "params": {"date": "{date}", "production": True}},
}


def with_key(path: str, value: Any) -> dict[str, Any]:
    pipeline = copy.deepcopy(MINIMAL)
    where = pipeline
    *parents, key = path.split(".")
    for parent in parents:
        where = where.setdefault(parent, {})
    where[key] = value
    return pipeline


def told(*pipelines: dict[str, Any], **more: Any) -> str:
    with pytest.raises(ConfigurationError) as error:
        validate.validate({"pipelines": list(pipelines), **more})
    assert error.value.exit_code == 78
    return str(error.value)


def test_every_default_is_filled() -> None:
    pipeline = validate.validate({"pipelines": [MINIMAL]}).model_dump(mode="json")["pipelines"][0]
    assert pipeline["schedule"] == {
        "cron": "0 3 * * 0-4",
        "timezone": "UTC",
        "start_within": "6h",
        "if_missed": "latest",
    }
    assert (pipeline["timeout"], pipeline["stop_grace"], pipeline["python"]) == ("4h", "5m", "3.13")
    assert pipeline["credentials"] == {"mode": "role", "role_arn": None, "region": None}


def test_what_was_put_out_can_be_read_again_and_is_the_same() -> None:
    once = validate.validate({"pipelines": [MINIMAL]})
    again = Declaration.model_validate_json(once.model_dump_json())
    assert again == once


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("shedule", {}, ["shedule", "no key that Standpipe knows", "Did you mean schedule"]),
        ("schedule.zone", "UTC", ["schedule.zone", "Did you mean timezone"]),
        ("schedule.cron", "0 3 * *", ['"0 3 * *"', "4 fields, not 5", '"0 3 * * 0-4"']),
        ("schedule.cron", "0 0 3 * * 0-4", ["6 fields"]),
        ("schedule.cron", "@daily", ["@daily", "five fields"]),
        ("schedule.cron", "61 3 * * *", ["61 3 * * *", "no cron line"]),
        ("schedule.cron", "0 3 L * *", ["'L'", "day of month"]),
        ("schedule.cron", "0 3 * * 5#2", ["5#2"]),
        ("schedule.cron", "0~30 3 * * *", ["0~30"]),
        ("schedule.cron", "0 3 30 2 *", ["0 3 30 2 *", "0 3 * * 0-4"]),
        ("schedule.timezone", "posixrules", ['"posixrules"', "is no time zone"]),
        ("schedule.timezone", "Europe/Lundon", ['"Europe/Lundon"', "Did you mean Europe/London"]),
        ("schedule.if_missed", "some", ['"some"', "latest", "all", "skip"]),
        ("name", "Arx_live", ['"Arx_live"', "2 to 22"]),
        ("name", "a" * 23, ["2 to 22"]),
        ("timeout", 0, ["timeout", "no time at all", '"4h"']),
        ("timeout", "soon", ['"soon"', '"4h"']),
        ("python", "2.7", ['"2.7"', "3.13"]),
        ("python", 3.9, ["3.9", "no Python version that a base image serves"]),
        ("task.module", "arx live", ['"arx live"', "arxlive.tasks"]),
        ("task.params", {"Date": 1}, ["'Date'", "snake_case"]),
        ("task.params", {"date": None}, ["'date'", "no value"]),
        ("source.repo", "arxlive", ["no git address"]),
        ("source.version", "--upload-pack=x", ["git ref"]),
        ("source.requirements", "../other.txt", ["../other.txt", "inside the repository"]),
        ("user", "root;id", ["account"]),
        ("engine", "swarm", ['"swarm"', "compose"]),
        ("credentials.mode", "shared", ['"shared"', "'role', 'vended', 'file'"]),
        ("credentials", {"mode": "vended"}, ["role_arn: is missing"]),
        ("resources.memory", "lots", ['"lots"', '"2g"']),
        ("retries.count", -1, ["retries.count", "-1"]),
        ("retries.delay", "soon", ['"soon"', '"4h"']),
        ("late_after", "soon", ['"soon"', '"4h"']),
        ("budgets", [{"name": "openalex"}], ["'openalex' is not declared", "list `budgets`, which has none"]),
        ("budgets", [{"name": "openalex", "per_night": 3}], ["per_night", "Did you mean per_run?"]),
        ("budgets", [{"name": "openalex", "per_run": "many"}], ["per_run", "is no number of units"]),
        ("budgets", [{"name": "openalex"}, {"name": "openalex"}], ["names one twice"]),
        ("keep_images", 0, ["keep_images"]),
    ],
)
def test_a_wrong_key_is_told_with_its_value_and_a_remedy(path: str, value: Any, expected: list[str]) -> None:
    message = told(with_key(path, value))
    assert [part for part in expected if part not in message] == []
    assert message.startswith("pipeline ")
    assert "input_type" not in message
    assert "pydantic" not in message


@pytest.mark.parametrize("key", ["source", "task"])
def test_what_is_missing_is_told_with_an_example(key: str) -> None:
    message = told({name: value for name, value in MINIMAL.items() if name != key})
    assert f"pipeline 'arxlive': {key}: is missing" in message


@pytest.mark.parametrize("key", ["module", "name"])
def test_a_missing_module_or_task_is_told(key: str) -> None:
    pipeline = copy.deepcopy(MINIMAL)
    del pipeline["task"][key]
    assert f"pipeline 'arxlive': task.{key}: is missing" in told(pipeline)


def test_two_pipelines_of_one_name_are_told() -> None:
    assert "pipeline 'arxlive': name: is declared 2 times" in told(MINIMAL, MINIMAL)


@pytest.mark.parametrize(
    "address",
    [
        "https://me:hunter2@git.example.org/arxlive.git",
        "https://hunter2@git.example.org/arxlive.git",
        "https://me:hun/ter2hunter2@git.example.org/arxlive.git",
        "ssh://me:hunter2@git.example.org/arxlive.git",
    ],
)
def test_a_secret_in_an_address_is_refused_and_not_repeated(address: str) -> None:
    message = told(with_key("source.repo", address))
    assert "holds a password or a token" in message
    assert "hunter2" not in message
    assert "hunter2" not in told(MINIMAL | {"source": address})


def test_a_missing_credential_names_its_variable_and_never_a_value() -> None:
    pipeline = with_key("credentials.mode", "file")
    with pytest.raises(ConfigurationError, match=r"aws_credentials_keys\.arxlive"):
        validate.validate({"pipelines": [pipeline]}, have_credentials=["other"])
    assert validate.validate({"pipelines": [pipeline]}, have_credentials=["arxlive"])


def test_everything_that_is_wrong_is_told_at_once() -> None:
    pipeline = with_key("timeout", 0) | {"python": "2.7"}
    assert len(told(pipeline, with_key("name", "B")).splitlines()) == 3


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({}, ["budget 'openalex'", "limit: is missing"]),
        ({"limit": -1}, ["limit", "is no number of units"]),
        ({"limit": "0.0000000001"}, ["limit", "nine decimals"]),
        ({"limit": 5, "period": "year"}, ["period", "'day', 'week', 'month'"]),
        ({"limit": 5, "timezone": "Europe/Londn"}, ["Did you mean Europe/London"]),
        ({"limit": 5, "pace": "fast"}, ["pace", '"10/s"']),
        ({"limit": 5, "prices": {"list": "cheap"}}, ["prices.list", "is no number of units"]),
        ({"limit": 5, "prises": {}}, ["prises", "Did you mean prices?"]),
    ],
)
def test_a_wrong_budget_is_told_with_its_value_and_a_remedy(wrong: dict[str, Any], expected: list[str]) -> None:
    message = told(MINIMAL, budgets=[{"name": "openalex"} | wrong])
    assert [part for part in expected if part not in message] == []


def test_two_declarations_of_a_budget_that_disagree_are_refused() -> None:
    two = [{"name": "openalex", "limit": 5}, {"name": "openalex", "limit": 6}]
    assert "budget 'openalex': name: is declared 2 times" in told(MINIMAL, budgets=two)


def test_a_run_may_not_spend_more_than_there_is() -> None:
    pipeline = MINIMAL | {"budgets": [{"name": "openalex", "per_run": "5.5"}]}
    assert "more than its limit, 5" in told(pipeline, budgets=[{"name": "openalex", "limit": 5}])


def test_budgets_are_filled_with_defaults_and_keep_their_decimals() -> None:
    openalex = {"name": "openalex", "limit": 1.0, "unit": "USD", "period": "day", "prices": {"list": 0.0001}}
    pipeline = MINIMAL | {"budgets": [{"name": "openalex", "per_run": 0.5}]}
    declared = validate.validate({"pipelines": [pipeline], "budgets": [openalex]}).model_dump(mode="json")
    assert declared["budgets"][0]["limit"] == "1"
    assert declared["budgets"][0]["prices"] == {"list": "0.0001"}
    assert declared["pipelines"][0]["budgets"] == [{"name": "openalex", "per_run": "0.5", "if_short": "skip"}]


def test_an_absent_pipeline_needs_only_its_name() -> None:
    assert validate.validate({"pipelines": [{"name": "old-one", "state": "absent"}]})


@pytest.mark.parametrize("text", ["{", "[]", "pipelines: [", ""])
def test_what_is_no_declaration_is_told(text: str) -> None:
    with pytest.raises(ConfigurationError, match="declaration"):
        validate.read(io.StringIO(text))


def test_the_command_exits_78_and_says_why_on_standard_error() -> None:
    document = json.dumps({"pipelines": [with_key("timeout", 0)]})
    answer = subprocess.run(
        [sys.executable, "-m", "standpipe", "validate"], input=document, capture_output=True, text=True, check=False
    )
    assert (answer.returncode, answer.stdout) == (78, "")
    assert answer.stderr.startswith("standpipe: pipeline 'arxlive': timeout: 0 is no time at all")


def test_parameters_become_luigi_s() -> None:
    pipeline = Pipeline.model_validate(
        with_key(
            "task.params",
            {
                "date": "{date}",
                "production": True,
                "dry_run": False,
                "sets": ["cs", "math"],
                "page_size": 50,
                "note": "to {date}",
            },
        )
    )
    assert luigi_arguments(pipeline, date(2026, 11, 23)) == [
        *("--module", "arxlive.tasks", "RootTask"),
        "--date=2026-11-23",
        "--production",
        '--sets=["cs", "math"]',
        "--page-size=50",
        "--note=to 2026-11-23",
    ]


@pytest.mark.parametrize(
    ("argument", "page"), [("--docs", "variables-pipelines.md"), ("--json-schema", "pipelines.schema.json")]
)
def test_the_pages_of_the_docs_are_what_the_model_says(argument: str, page: str) -> None:
    made = subprocess.run(
        [sys.executable, "-m", "standpipe.schema", argument], capture_output=True, text=True, check=True
    ).stdout
    assert (REPOSITORY / "docs" / page).read_text() == made


def test_a_version_that_yaml_takes_for_a_number_is_refused_with_what_to_write() -> None:
    said = told(with_key("source.version", 1.1))
    assert "source.version: 1.1 is a number to YAML, which drops its last 0." in said
    assert 'Write it in quotes, as it is called: "1.1"' in said


@pytest.mark.parametrize(
    "document",
    [
        {"pipelines": {"arxiv": {"source": {"repo": "https://user:S3cretT0ken@h/x.git"}}}},
        {"pipelines": [[{"name": "arxiv", "source": {"repo": "https://user:S3cretT0ken@h/x.git"}}]]},
        {"pipelines": [{"name": "arxiv", "source": {"repo": "x", "version": "https://user:S3cretT0ken@h/x.git"}}]},
        {"pipelines": [{"name": "arxiv", "credentials": {"mode": {"keys": "S3cretT0ken"}}}]},
    ],
)
def test_what_may_hold_a_secret_is_not_repeated_wherever_it_was_put(document: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as error:
        validate.validate(document)
    assert "S3cretT0ken" not in str(error.value)
