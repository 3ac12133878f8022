"""The image's entrypoint, with a real Luigi in real processes."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event

import pytest

from standpipe.engines import joined
from standpipe.logs import kept

SOURCES = Path(__file__).parents[1] / "src"

TASKS = """
import os
import subprocess
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
        if self.how == "killed by a signal without a name":
            os.kill(os.getpid(), 40)
        if self.how == "closes its output":
            sys.stdout.close()
        if self.how == "replaces its output":
            sys.stdout = None
        if self.how.startswith("writes"):
            for number in range(20_000):
                print(number, "." * 91, flush=True)
                print("-", number, file=sys.stderr, flush=True)
        if self.how.endswith("leaves another running"):
            subprocess.Popen(["sleep", "60"])
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

# The places of lock and output are the host's to mount; a test cannot write to /run.
STARTER = """
import sys
from pathlib import Path
from standpipe_task import entrypoint, output
entrypoint.LOCK_DIRECTORY = Path("lock")
output.PLACE = Path("output")
output.DOCKER_MAY_REST = 1.0
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


@pytest.mark.parametrize("how", ["closes its output", "replaces its output"])
def test_what_a_task_does_to_its_output_changes_no_verdict(pipeline: Path, how: str) -> None:
    code, output = run(pipeline, "--how", how)
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
        ("killed by a signal without a name", 128 + 40),
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


@pytest.fixture
def keeping(pipeline: Path) -> Path:
    """A pipeline whose host has a place for its output."""
    (pipeline / "output").touch()
    return pipeline


def apart(where: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """Start with the two streams apart, as Docker has them."""
    environment = os.environ | {"PYTHONPATH": f"{SOURCES}:{where}"}
    command = [sys.executable, "-c", STARTER, "--module", "tasks", "Root", *arguments]
    return subprocess.Popen(command, cwd=where, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def in_the_file(where: Path, stream: str) -> bytes:
    """Return what was kept of a stream."""
    ended = Event()
    ended.set()
    return b"".join(data for _time, its, data in kept.frames(where / "output", ended) if its == stream)


WRITTEN = b"".join(b"%d %s\n" % (number, b"." * 91) for number in range(20_000))


def test_what_a_run_writes_is_kept_and_goes_on_to_docker(keeping: Path) -> None:
    process = apart(keeping, "--how", "writes")
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (0, WRITTEN)
    assert in_the_file(keeping, "stdout") == WRITTEN
    assert in_the_file(keeping, "stderr") == stderr
    assert [line for line in stderr.splitlines() if line.startswith(b"- ")] == [b"- %d" % n for n in range(20_000)]


def test_docker_that_has_gone_away_does_not_end_what_is_kept(keeping: Path) -> None:
    process = apart(keeping, "--how", "writes")
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    process.stderr.close()
    assert process.wait(timeout=60) == 0
    assert in_the_file(keeping, "stdout") == WRITTEN


def test_docker_that_takes_nothing_for_a_while_gets_all_of_it_later_in_order(keeping: Path) -> None:
    process = apart(keeping, "--how", "writes")
    wait_for(keeping / "root")  # the work goes on meanwhile, though no pipe holds so much
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (0, WRITTEN)
    assert in_the_file(keeping, "stderr") == stderr


def test_docker_that_never_takes_anything_keeps_no_run_from_its_end(keeping: Path) -> None:
    process = apart(keeping, "--how", "writes")
    assert process.wait(timeout=60) == 0
    assert in_the_file(keeping, "stdout") == WRITTEN
    process.communicate()


def test_a_run_without_room_for_its_output_waits_and_loses_nothing(keeping: Path) -> None:
    process = apart(keeping, "--how", "writes")
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (500_000, resource.RLIM_INFINITY))
    wait_until(lambda: (keeping / "output").stat().st_size == 500_000)
    time.sleep(0.5)
    assert process.poll() is None
    assert not (keeping / "root").exists()
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (0, WRITTEN)
    assert in_the_file(keeping, "stdout") == WRITTEN
    assert stderr.count(b"it waits until it can") == 1


def test_a_run_that_finds_no_room_at_its_start_leaves_its_output_to_docker(keeping: Path) -> None:
    (keeping / "output").unlink()
    (keeping / "output").symlink_to("/dev/full")
    code, output = run(keeping)
    assert (code, "Luigi Execution Summary" in output) == (0, True)


def test_a_process_that_a_task_left_running_is_not_waited_for(keeping: Path) -> None:
    began = time.monotonic()
    process = apart(keeping, "--how", "writes and leaves another running")
    stdout, _ = process.communicate(timeout=60)
    assert time.monotonic() - began < 40
    assert (process.returncode, stdout) == (0, WRITTEN)
    assert in_the_file(keeping, "stdout") == WRITTEN


def test_what_the_entrypoint_itself_says_is_kept(keeping: Path) -> None:
    with (keeping / "lock" / "lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        code, output = run(keeping)
    assert (code, "holds the lock" in output) == (75, True)
    assert b"holds the lock" in in_the_file(keeping, "stderr")
    code, output = run(keeping, "--how", "killed")
    assert (code, "ended by signal 9" in output) == (137, True)
    assert b"ended by signal 9" in in_the_file(keeping, "stderr")


def test_a_polite_stop_is_the_same_where_the_output_is_kept(keeping: Path) -> None:
    process = start(keeping, "--how", "slow")
    wait_for(keeping / "running")
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=30)
    assert (process.returncode, (keeping / "leaf").exists(), (keeping / "root").exists()) == (25, True, False), output
    lines = [line.data for line in joined([("", "stderr", in_the_file(keeping, "stderr"))].__iter__())]
    assert b"standpipe: asked to stop: Luigi finishes its current task and takes no more" in lines


@pytest.mark.parametrize("how", ["raise", "os._exit", "missing", "sys.exit in requires"])
def test_an_exit_code_is_the_same_where_the_output_is_kept(pipeline: Path, how: str) -> None:
    without, _ = run(pipeline, "--how", how)
    (pipeline / "output").touch()
    assert run(pipeline, "--how", how)[0] == without


def wait_until(seen: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not seen():
        assert time.monotonic() < deadline
        time.sleep(0.02)
