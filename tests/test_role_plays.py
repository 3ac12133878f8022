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

from standpipe import configuration

ROLES = Path(__file__).parents[1] / "roles"


def play(
    folder: Path, tasks: list[dict[str, Any]], *options: str, hosts: str = "localhost", **known: Any
) -> subprocess.CompletedProcess[str]:
    """Have each of the hosts, which are all this machine, do the tasks; programs in `folder` come before others."""
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


@pytest.mark.parametrize(
    ("role", "variable", "alone"),
    [
        ("pipeline", "pipeline_scan_accept", "*/site-packages/name/test.key"),
        ("pipeline", "pipeline_ca_certificates", "/etc/ssl/ca.pem"),
        ("pipeline_runner", "pipeline_runner_notify_urls", "slack://token-a"),
        ("outbound", "outbound_ca_certificates", "/etc/ssl/ca.pem"),
        ("docker_engine", "docker_engine_metadata_bridges", "mine-*"),
        ("log_shipping", "log_shipping_collector_names", "collector-1"),
    ],
)
def test_a_list_is_not_taken_apart_into_letters(tmp_path: Path, role: str, variable: str, alone: str) -> None:
    look = {"ansible.builtin.include_role": {"name": role, "tasks_from": "preflight"}}
    answer = play(tmp_path, [look], log_shipping_collector="collector-1", **{variable: alone})
    assert answer.returncode == 2
    assert variable in answer.stdout
    assert " list, " in answer.stdout
    assert "token-a" not in answer.stdout + answer.stderr
    listed: dict[str, Any] = {"log_shipping_collector": "collector-1", variable: [alone]}
    assert "ok: [localhost]" in play(tmp_path, [look], **listed).stdout


@pytest.mark.parametrize(
    ("files", "refused"),
    [
        (["/a/ca.pem", "/b/ca.crt", "/b/other.pem"], "/a/ca.pem and /b/ca.crt have one name"),
        (["/a/one.pem", "/b/two.pem", "/b/two.pem"], ""),
    ],
)
def test_no_certificate_takes_another_s_place(tmp_path: Path, files: list[str], refused: str) -> None:
    look = {"ansible.builtin.include_role": {"name": "outbound", "tasks_from": "preflight"}}
    answer = play(tmp_path, [look], outbound_ca_certificates=files)
    assert (answer.returncode == 0, refused in answer.stdout) == (not refused, True), answer.stdout


def test_a_build_context_that_was_cut_off_is_not_taken_for_whole(tmp_path: Path) -> None:
    pack = ROLES / "pipeline/files/pack-context"
    packed = subprocess.run([pack, ROLES.parent, tmp_path], capture_output=True, text=True, check=True).stdout.strip()
    archive, whole = tmp_path / "context.tar", (tmp_path / f"context-{packed}.tar").read_bytes()
    tasks = yaml.safe_load((ROLES / "pipeline/tasks/files.yml").read_text())
    _, options, script, *_ = tasks[2]["ansible.builtin.command"]["argv"]
    compose = tmp_path / "opt/docker/docker-compose.yml"
    compose.parent.mkdir(parents=True)
    compose.write_text("of an earlier context")
    (tmp_path / "opt/docker/certs").mkdir()
    (tmp_path / "opt/docker/certs/withdrawn.crt").touch()

    def lay_out(content: bytes) -> tuple[int, bool]:
        archive.write_bytes(content)
        script_here = script.replace("/var/lib/standpipe", str(tmp_path))
        command = ["sh", options, script_here, "lay-out", str(tmp_path / "opt"), packed]
        done = subprocess.run(command, capture_output=True, check=False).returncode
        return done, (tmp_path / f"opt/docker/.laid-out-{packed}").exists()

    place = whole.index(b"docker/docker-compose.yml")
    assert lay_out(whole[: place + 1024]) == (2, False)
    assert compose.read_text() == "of an earlier context"
    assert lay_out(whole) == (0, True)
    assert compose.read_text() == (ROLES.parent / "docker/docker-compose.yml").read_text()
    assert not (tmp_path / "opt/docker/certs/withdrawn.crt").exists()
    assert sorted(path.name for path in (tmp_path / "opt").iterdir()) == ["docker", "src"]


@pytest.mark.parametrize(("failed", "carried"), [("none", "b"), ("b", "c")])
def test_an_image_is_carried_by_the_first_host_that_has_not_failed(tmp_path: Path, failed: str, carried: str) -> None:
    role = tmp_path / "roles/pipeline"
    (role / "tasks").mkdir(parents=True)
    shutil.copytree(ROLES / "pipeline/vars", role / "vars")
    shutil.copy(ROLES / "pipeline/tasks/hand-over.yml", role / "tasks")
    note = {"path": f"{tmp_path}/carried-by-{{{{ inventory_hostname }}}}", "state": "touch"}
    carry = [{"ansible.builtin.file": note, "when": "__pipeline_carries"}]
    (role / "tasks/by-archive.yml").write_text(json.dumps(carry))
    (role / "tasks/trial.yml").write_text("[]")
    tasks: list[dict[str, Any]] = [
        {"ansible.builtin.fail": None, "when": f"inventory_hostname == '{failed}'"},
        {
            "ansible.builtin.include_role": {"name": "pipeline", "tasks_from": "hand-over"},
            "vars": {"__pipeline_parcel": {"images": ["i:1"], "source": "a", "to": ["b", "c"]}},
        },
    ]
    answer = play(tmp_path, tasks, hosts="a,b,c", pipeline_list=[], pipeline_registry="", __pipeline_stock={"has": {}})
    assert [path.name for path in tmp_path.glob("carried-*")] == [f"carried-by-{carried}"], answer.stdout


@pytest.mark.parametrize(
    ("serves", "checks", "changed", "restarted"),
    [
        ("versions/old", False, "changed=2", True),
        ("versions/old", True, "changed=1", False),
        ("versions/new", False, "changed=0", False),
        ("", False, "changed=0", False),
    ],
)
def test_a_service_of_an_earlier_version_is_restarted_whatever_has_changed(
    tmp_path: Path, serves: str, checks: bool, changed: str, restarted: bool
) -> None:
    role = tmp_path / "roles/pipeline_runner"
    for part in ("tasks", "handlers"):
        (role / part).mkdir(parents=True)
    _, _, *judge = yaml.safe_load((ROLES / "pipeline_runner/tasks/service.yml").read_text())
    (role / "tasks/service.yml").write_text(json.dumps(judge))
    name = next(task["notify"] for task in judge if "notify" in task)
    assert name in [task["name"] for task in yaml.safe_load((ROLES / "pipeline_runner/handlers/main.yml").read_text())]
    restart = {"name": name, "ansible.builtin.command": f"touch {tmp_path}/restarted"}
    (role / "handlers/main.yml").write_text(json.dumps([restart]))
    start = [f"{tmp_path}/{serves}/bin/python", "60"]
    with subprocess.Popen(start, executable="/bin/sleep") as service:
        (tmp_path / "systemctl").write_text(f"#!/bin/sh\necho {service.pid if serves else 0}\n")
        (tmp_path / "systemctl").chmod(0o755)
        answer = play(
            tmp_path,
            [{"ansible.builtin.include_role": {"name": "pipeline_runner", "tasks_from": "service"}}],
            *(["--check"] if checks else []),
            __pipeline_runner_chosen=f"{tmp_path}/versions/new",
        )
        service.kill()
    assert (changed in answer.stdout, (tmp_path / "restarted").exists()) == (True, restarted), answer.stdout


def test_the_service_is_known_by_the_program_that_its_unit_starts() -> None:
    unit = (ROLES / "pipeline_runner/templates/etc/systemd/system/standpiped.service.j2").read_text()
    assert "ExecStart={{ __pipeline_runner_chosen }}/bin/python -P" in unit


def test_what_looks_after_the_host_stays_when_its_last_pipeline_has_left(tmp_path: Path) -> None:
    (tmp_path / "cron.d").mkdir()
    (tmp_path / "crontab").symlink_to("/bin/true")
    for part in ("entries", "stale"):
        text = (ROLES / f"schedule/tasks/{part}.yml").read_text().replace("/etc/", f"{tmp_path}/")
        text = text.replace(f"src: {tmp_path}", "src: etc").replace("/usr/bin/crontab", f"{tmp_path}/crontab")
        text = text.replace(": root\n", f": {os.getuid()}\n")
        (tmp_path / f"{part}.yml").write_text(text)
    shutil.copytree(ROLES / "schedule/templates", tmp_path / "templates")
    known: dict[str, Any] = {
        "__schedule_scheduled": [],
        "__schedule_by_hand": [],
        "__schedule_as_user": [],
        "schedule_pipelines": [],
    }
    answer = play(
        tmp_path, [{"ansible.builtin.include_tasks": f"{part}.yml"} for part in ("entries", "stale")], **known
    )
    assert answer.returncode == 0, answer.stdout
    assert "standpipe catch-up" in (tmp_path / "cron.d/standpipe").read_text()


def test_no_sudoers_file_is_removed_but_of_our_own_making(tmp_path: Path) -> None:
    folder = tmp_path / "sudoers.d"
    folder.mkdir()
    line = (ROLES / "schedule/templates/etc/sudoers.d/standpipe-NAME.j2").read_text()
    line = line.replace("{{ ansible_managed }}", "Ansible managed").replace("{{ item.user }}", "deploy")
    for name in ("needed", "left", "more"):
        (folder / f"standpipe-{name}").write_text(line.replace("{{ item.name }}", name))
    with (folder / "standpipe-more").open("a") as more:
        more.write("%adm ALL=(root) ALL\n")
    (folder / "standpipe-operators").write_text("%operators ALL=(root) NOPASSWD: /usr/local/bin/standpipe\n")
    stale = tmp_path / "stale.yml"
    stale.write_text((ROLES / "schedule/tasks/stale.yml").read_text().replace("/etc/", f"{tmp_path}/"))
    known: dict[str, Any] = {"__schedule_by_hand": [], "__schedule_as_user": [{"name": "needed"}]}
    answer = play(tmp_path, [{"ansible.builtin.include_tasks": "stale.yml"}], **known)
    left = sorted(path.name for path in folder.iterdir())
    assert left == ["standpipe-more", "standpipe-needed", "standpipe-operators"], answer.stdout


def test_an_installed_program_is_everybody_s_to_read_whatever_umask_root_has(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for program in ("python3", "bin/pip", "bin/standpipe"):
        (tmp_path / program).write_text("#!/bin/sh\ntouch library\n")
        (tmp_path / program).chmod(0o755)
    install = [ROLES / "pipeline_runner/files/install-version", tmp_path]
    subprocess.run(install, umask=0o077, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, check=True)
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in ("library", "complete")} == {0o644}


@pytest.mark.parametrize(("given", "well"), [(None, True), ("localhost,.example.org", True), (["localhost"], False)])
def test_what_is_reached_without_the_proxy_is_one_text(tmp_path: Path, given: object, well: bool) -> None:
    template = ROLES / "pipeline_runner/templates/etc/standpipe/settings.yml.j2"
    tasks = [
        {"ansible.builtin.include_role": {"name": "outbound", "tasks_from": "preflight"}},
        {"ansible.builtin.template": {"src": str(template), "dest": str(tmp_path / "settings.yml")}},
    ]
    known: dict[str, Any] = {
        **yaml.safe_load((ROLES / "pipeline_runner/defaults/main.yml").read_text()),
        "pipeline_runner_http_proxy": "http://proxy.example.org:3128",
        "pipeline_runner_no_proxy": given,
        "outbound_no_proxy": given,
    }
    answer = play(tmp_path, tasks, **known)
    assert (answer.returncode == 0) == well, answer.stdout
    if well:
        made = configuration.Settings.model_validate(yaml.safe_load((tmp_path / "settings.yml").read_text()))
        assert made.no_proxy == (given or "")
