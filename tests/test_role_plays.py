"""Tasks of roles, played on hosts that are directories here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROLES = Path(__file__).parents[1] / "roles"


def play(
    folder: Path, tasks: list[dict[str, Any]], *options: str, hosts: str = "localhost", **known: Any
) -> subprocess.CompletedProcess[str]:
    """Have each of the hosts, which are all this machine, do the tasks; programs in `folder` are found before others."""
    (folder / "play.yml").write_text(
        json.dumps([{"hosts": "all", "connection": "local", "gather_facts": False, "tasks": tasks}])
    )
    variables = known | {"ansible_python_interpreter": sys.executable}
    return subprocess.run(
        [
            f"{Path(sys.executable).parent}/ansible-playbook",
            f"--inventory={hosts},",
            f"--extra-vars={json.dumps(variables)}",
            *options,
            "play.yml",
        ],
        cwd=folder,
        env=os.environ
        | {
            "ANSIBLE_LOCAL_TEMP": f"{folder}/local",
            "ANSIBLE_REMOTE_TEMP": f"{folder}/remote",
            "ANSIBLE_ROLES_PATH": f"{folder}/roles:{ROLES}",
            "PATH": f"{folder}:{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
        check=False,
    )


def borrow(folder: Path, tasks: str, **elsewhere: str) -> Path:
    """Copy a file of tasks (ROLE/FILE) to `folder`, with paths of the host replaced."""
    text = (ROLES / tasks.replace("/", "/tasks/")).read_text()
    for name, path in elsewhere.items():
        text = text.replace(f"/{name.replace('_', '/')}/", f"{path}/")
    (folder / Path(tasks).name).write_text(text)
    return folder / Path(tasks).name


@pytest.mark.parametrize(("said", "kept"), [("false", True), ("no", True), ("true", False), (True, False)])
def test_only_a_purge_that_is_asked_for_removes_data(tmp_path: Path, said: object, kept: bool) -> None:
    (tmp_path / "srv/arxlive").mkdir(parents=True)
    program = tmp_path / "standpipe"
    program.symlink_to("/bin/true")
    remove = borrow(tmp_path, "pipeline/remove.yml", srv_standpipe=f"{tmp_path}/srv", usr_local_bin=f"{tmp_path}")
    remove.write_text(remove.read_text().replace("/opt/standpipe", f"{tmp_path}/opt"))
    answer = play(
        tmp_path, [{"ansible.builtin.include_tasks": "remove.yml"}], pipeline_absent=["arxlive"], pipeline_purge=said
    )
    assert (answer.returncode, (tmp_path / "srv/arxlive").exists()) == (0, kept), answer.stdout + answer.stderr
