"""The image's entrypoint, with a real Luigi in real processes."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[1] / "src"

TASKS = """
import os
import sys
import time
from pathlib import Path

import luigi


class Leaf(luigi.Task):
    how = luigi.Parameter()

    def output(self):
        return luigi.LocalTarget("leaf")

    def run(self):
        Path("running").touch()
        if self.how == "slow":
            time.sleep(2)
        if self.how == "raise":
            raise ValueError("told to")
        if self.how == "sys.exit":
            sys.exit(0)
        if self.how == "os._exit":
            os._exit(0)
        if self.how == "os._exit 75":
            os._exit(75)
        if self.how == "killed":
            os.kill(os.getpid(), 9)
        with self.output().open("w") as file:
            file.write("done")


class Missing(luigi.ExternalTask):
    def output(self):
        return luigi.LocalTarget("nowhere")


class Root(luigi.Task):
    how = luigi.Parameter(default="well")

    def requires(self):
        if self.how == "sys.exit in requires":
            sys.exit(0)
        return Missing() if self.how == "missing" else Leaf(how=self.how)

    def output(self):
        if self.how == "sys.exit in output":
            sys.exit()
        return luigi.LocalTarget("root")

    def run(self):
        with self.output().open("w") as file:
            file.write("done")
"""

# The lock's place is the host's to mount; a test cannot write to /run.
STARTER = """
import sys
from pathlib import Path
from standpipe_task import entrypoint
entrypoint.LOCK_DIRECTORY = Path("lock")
sys.exit(entrypoint.main(sys.argv[1:]))
"""


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    (tmp_path / "tasks.py").write_text(TASKS)
    (tmp_path / "lock").mkdir()
    (tmp_path / "lock" / "lock").touch(mode=0o444)
    (tmp_path / "lock" / "holder").write_text("01J0000000000000000000TEST\n")
    return tmp_path


def start(where: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": f"{SOURCES}:{where}", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", STARTER, "--module", "tasks", "Root", *arguments],
        cwd=where,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def run(where: Path, *arguments: str) -> tuple[int, str]:
    process = start(where, *arguments)
    output, _ = process.communicate(timeout=60)
    return process.returncode, output


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} did not appear"
        time.sleep(0.02)


def test_a_run_that_goes_well_exits_0(pipeline: Path) -> None:
    code, output = run(pipeline)
    assert (code, (pipeline / "root").read_text()) == (0, "done"), output


def test_a_question_for_help_is_answered_with_exit_0(pipeline: Path) -> None:
    code, output = run(pipeline, "--help")
    assert code == 0, output
    assert "usage: luigi" in output


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("raise", 30),
        ("sys.exit", 30),
        ("missing", 20),
        ("os._exit", 40),
        ("os._exit 75", 40),
        ("sys.exit in requires", 40),
        ("sys.exit in output", 40),
        ("killed", 128 + 9),
    ],
)
def test_a_failure_is_never_exit_0(pipeline: Path, how: str, expected: int) -> None:
    code, output = run(pipeline, "--how", how)
    assert code == expected, output


def test_a_module_that_ends_the_process_at_its_import_is_a_failure(pipeline: Path) -> None:
    (pipeline / "tasks.py").write_text("import sys; sys.exit(0)")
    code, output = run(pipeline)
    assert code == 40, output


def test_a_configuration_that_says_otherwise_does_not_make_a_failure_exit_0(pipeline: Path) -> None:
    (pipeline / "luigi.cfg").write_text("[retcode]\ntask_failed = 0\n")
    code, output = run(pipeline, "--how", "raise")
    assert code == 30, output


def test_a_module_that_is_not_there_is_an_unhandled_exception(pipeline: Path) -> None:
    (pipeline / "tasks.py").unlink()
    code, output = run(pipeline)
    assert (code, "ModuleNotFoundError" in output) == (40, True), output


def test_the_lock_refuses_a_second_container_and_names_the_first(pipeline: Path) -> None:
    with (pipeline / "lock" / "lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        code, output = run(pipeline)
    assert code == 75
    assert "01J0000000000000000000TEST" in output


def test_the_lock_is_free_when_its_holder_is_killed(pipeline: Path) -> None:
    first = start(pipeline, "--how", "slow")
    wait_for(pipeline / "running")
    first.kill()
    first.communicate()  # until the orphaned Luigi has ended too; in a container it dies with its init
    assert run(pipeline)[0] == 0


def test_a_polite_stop_lets_the_current_task_finish_and_starts_no_other(pipeline: Path) -> None:
    process = start(pipeline, "--how", "slow")
    wait_for(pipeline / "running")
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=30)
    assert (pipeline / "leaf").read_text() == "done", output
    assert not (pipeline / "root").exists(), output
    assert process.returncode == 25, output


def test_a_stop_before_the_first_task_is_not_run(pipeline: Path) -> None:
    process = start(pipeline, "--how", "slow")
    time.sleep(0.15)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode != 0
