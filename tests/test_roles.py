"""What every role keeps to."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml

REPOSITORY = Path(__file__).parents[1]
ROLES = sorted((REPOSITORY / "roles").iterdir())


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_defaults_and_argument_spec_name_the_same_variables(role: Path) -> None:
    defaults = set(load(role / "defaults/main.yml"))
    specs = load(role / "meta/argument_specs.yml")["argument_specs"].values()
    assert defaults == {
        name for spec in specs for name, option in spec["options"].items() if not option.get("required")
    }


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_every_variable_carries_the_role_s_name(role: Path) -> None:
    assert [name for name in load(role / "defaults/main.yml") if not name.startswith(f"{role.name}_")] == []


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_internals_stay_out_of_the_defaults(role: Path) -> None:
    internals = role / "vars/main.yml"
    names = load(internals) if internals.exists() else {}
    assert [name for name in names if not name.startswith(f"__{role.name}_")] == []


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_no_task_registers_a_name_that_the_role_s_variables_have(role: Path) -> None:
    internals = role / "vars/main.yml"
    names = {*load(role / "defaults/main.yml"), *(load(internals) if internals.exists() else {})}
    registered = [
        name for path in role.glob("tasks/*.yml") for name in re.findall(r"register: (\w+)", path.read_text())
    ]
    assert sorted(names.intersection(registered)) == []


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_no_role_reads_another_s_variables(role: Path) -> None:
    others = [f"{other.name}_" for other in ROLES if other != role]
    mine = set(load(role / "defaults/main.yml"))
    foreign = {name for other in ROLES if other != role for name in load(other / "defaults/main.yml")} - mine
    text = "\n".join(path.read_text() for path in role.rglob("*") if path.suffix in {".yml", ".j2"})
    assert others
    assert sorted(name for name in foreign if name in text) == []


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_what_is_true_or_false_is_so_as_a_word_too(role: Path) -> None:
    specs = load(role / "meta/argument_specs.yml")["argument_specs"].values()
    truths = {name for spec in specs for name, option in spec["options"].items() if option["type"] == "bool"}
    files = [*role.glob("tasks/*.yml"), *role.glob("vars/*.yml"), *role.glob("handlers/*.yml"), *role.rglob("*.j2")]
    text = "\n".join(path.read_text() for path in files)
    bare = {name for name in truths if re.search(rf"\b{name}\b(?! \| bool|:)", text)}  # with a colon, in a message
    assert bare == set()


@pytest.mark.parametrize(
    ("waits", "code", "said"),
    [
        ("echo 0", 0, ""),
        ("echo 1", 1, "luigi --module m T --help: exit code 1\n"),
        ("exec sleep 60", 1, "luigi --module m T --help: no end within 1 s\n"),
    ],
)
def test_a_trial_of_an_image_ends_and_leaves_no_container(tmp_path: Path, waits: str, code: int, said: str) -> None:
    docker = tmp_path / "docker"
    docker.write_text(f'#!/bin/sh\necho "$*" >>{tmp_path}/asked\nif [ "$1" = wait ]; then {waits}; fi\n')
    docker.chmod(0o755)
    _, options, script, *_ = load(REPOSITORY / "roles/pipeline/vars/main.yml")["__pipeline_try"]
    command = ["sh", options, script.replace("120", "1"), "luigi --module m T --help", "standpipe-a.trial", "image"]
    answer = subprocess.run(
        command, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, text=True, check=False
    )
    assert (answer.returncode, answer.stderr) == (code, said)
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked[1] == "run --detach --name standpipe-a.trial image"
    assert asked[-1] == "rm --force standpipe-a.trial"


@pytest.mark.parametrize(("revision", "taken"), [("c" * 40, True), ("d" * 40, False), ("", False)])
def test_an_image_is_taken_from_a_registry_only_if_it_says_its_commit(
    tmp_path: Path, revision: str, taken: bool
) -> None:
    docker = tmp_path / "docker"
    docker.write_text(f'#!/bin/sh\necho "$1 $2" >>{tmp_path}/asked\nif [ "$2" = inspect ]; then echo {revision}; fi\n')
    docker.chmod(0o755)
    take = load(REPOSITORY / "roles/pipeline/tasks/ask-registry.yml")[0]["block"][1]["ansible.builtin.shell"]["cmd"]
    known = {"__pipeline_there": "r/i:1", "__pipeline_image": "i:1", "item": {"source": {"commit": "c" * 40}}}
    command = ["sh", "-c", jinja2.Template(take).render(known)]
    answer = subprocess.run(command, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, check=False)
    asked = (tmp_path / "asked").read_text().splitlines()
    assert (answer.returncode == 0, "tag r/i:1" in asked, asked[-1]) == (taken, taken, "image rm")


def test_docker_makes_nothing_in_the_place_of_a_credentials_file() -> None:
    volumes = load(REPOSITORY / "docker/docker-compose.yml")["services"]["luigi"]["volumes"]
    mounts = [volume for volume in volumes if "STANDPIPE_AWS_CREDENTIALS" in str(volume)]
    assert [mount["bind"]["create_host_path"] for mount in mounts] == [False]


def test_the_page_of_variables_is_what_the_roles_say() -> None:
    made = subprocess.run(
        [sys.executable, REPOSITORY / "docs/generate-variables"], capture_output=True, text=True, check=True
    ).stdout
    assert (REPOSITORY / "docs/variables-roles.md").read_text() == made
