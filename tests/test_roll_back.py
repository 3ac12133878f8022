"""The playbook that rolls a pipeline back, on hosts that are directories here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TASKS = Path(__file__).parents[1] / "roles/pipeline/tasks/roll-back.yml"
PLAY = """\
- hosts: all
  connection: local
  gather_facts: false
  environment: {HOST: "{{ inventory_hostname }}"}
  tasks:
    - ansible.builtin.import_tasks: roll-back.yml
"""
# Lists what the host's directory has, and notes what it is asked for else.
PROGRAM = (
    '#!/bin/sh\ncd "$(dirname "$0")/$HOST"\n'
    'case "$1" in releases) cat releases.json ;; *) echo "$*" | tee -a asked ;; esac\n'
)


def release(image: str, in_service: bool = False) -> dict[str, object]:
    return {"name": f"of {image}", "image": image, "in_service": in_service, "rolled_back": False}


@pytest.mark.parametrize(
    ("served", "wanted", "asked"),
    [
        ({"a": "21", "b": "21", "c": ""}, "", {"a": "roll-back p", "b": "roll-back p"}),
        ({"a": "21", "b": "10", "c": ""}, "", None),
        ({"a": "21", "b": "10", "c": ""}, "i:1", {"a": "roll-back p --to i:1"}),
        ({"a": "", "b": "", "c": ""}, "", None),
    ],
)
def test_hosts_go_back_from_one_image_to_another_one_or_none_does(
    tmp_path: Path, served: dict[str, str], wanted: str, asked: dict[str, str] | None
) -> None:
    program = tmp_path / "standpipe"
    program.write_text(PROGRAM)
    program.chmod(0o755)
    for host, images in served.items():
        (tmp_path / host).mkdir()
        if images:
            (tmp_path / host / "p.yml").touch()
            kept = [release(f"i:{image}", number == 0) for number, image in enumerate(images)]
            (tmp_path / host / "releases.json").write_text(json.dumps({"releases": {"p": kept}}))
    tasks = TASKS.read_text().replace("/usr/local/bin/standpipe", str(program))
    tasks = tasks.replace("/etc/standpipe/pipelines", f"{tmp_path}/{{{{ inventory_hostname }}}}")
    (tmp_path / "roll-back.yml").write_text(tasks)
    (tmp_path / "play.yml").write_text(PLAY)
    known = {"pipeline": "p", "pipeline_release": wanted, "ansible_python_interpreter": sys.executable}
    command = [
        f"{Path(sys.executable).parent}/ansible-playbook",
        "--inventory=a,b,c,",
        f"--extra-vars={json.dumps(known)}",
    ]
    answer = subprocess.run(
        [*command, "play.yml"],
        cwd=tmp_path,
        env=os.environ | {"ANSIBLE_LOCAL_TEMP": f"{tmp_path}/local", "ANSIBLE_REMOTE_TEMP": f"{tmp_path}/remote"},
        capture_output=True,
        text=True,
        check=False,
    )
    done = {path.parent.name: path.read_text().strip() for path in tmp_path.glob("*/asked")}
    assert (answer.returncode == 0, done) == (asked is not None, asked or {}), answer.stdout + answer.stderr
