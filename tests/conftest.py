"""A host's folders below a temporary root, and an engine whose containers are plain processes."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from standpipe import paths
from standpipe.engines import CannotStart, Container, Line
from standpipe.errors import AlreadyRunning, EngineUnavailable
from standpipe.ledger import Ledger, timestamp

DECLARED = """\
name: arxlive
source: {repo: https://git.example.org/arxlive.git, version: dev}
task: {module: arxlive.tasks, name: RootTask, params: {date: "{date}"}}
schedule: {cron: "* * * * *", timezone: UTC}
"""


@dataclass
class ProcessEngine:
    """Real processes, one at a time for a pipeline, with their real output and exit codes."""

    program: str = "print('hello')"
    refuses: Exception | None = None
    made: dict[str, Container] = field(default_factory=dict)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)
    arguments: list[str] = field(default_factory=list)
    break_after: int | None = None  # lines after which the next connection to a log breaks
    refuses_removal: Exception | None = None

    def start(
        self, pipeline: str, run: str, arguments: list[str], life: int, door: Path | None, output: Path | None = None
    ) -> None:
        os.fstat(life)  # raises where it is not open
        if self.refuses:
            raise self.refuses
        if self.holder(pipeline):
            raise AlreadyRunning(f"{pipeline} is already running")
        self.arguments = arguments
        log = Path(os.environ["STANDPIPE_TEST_LOGS"]) / run
        with log.open("wb") as file:
            process = subprocess.Popen([sys.executable, "-uc", self.program], stdout=file, stderr=subprocess.STDOUT)
        self.processes[run] = process
        self.made[run] = Container(
            id=run, name=f"standpipe-{pipeline}", run=run, running=True, exit_code=None,
            started_at=timestamp(datetime.now(UTC)), ended_at=None, image="sha256:0", commit="c" * 40, error="",
            pipeline=pipeline,
        )  # fmt: skip

    def find(self, pipeline: str, run: str) -> Container | None:
        container = self.made.get(run)
        if container and container.running and self.processes[run].poll() is not None:
            code = self.processes[run].returncode
            container = replace(
                container,
                running=False,
                exit_code=code if code >= 0 else 128 - code,
                ended_at=timestamp(datetime.now(UTC)),
            )
            self.made[run] = container
        return container

    def holder(self, pipeline: str) -> Container | None:
        named = [run for run, one in self.made.items() if one.name == f"standpipe-{pipeline}"]
        return self.find(pipeline, named[0]) if named else None

    def sharing_lock(self, pipeline: str) -> list[Container]:
        return []  # no process of these mounts anything

    def log(self, container: str) -> Iterator[Line]:
        log = Path(os.environ["STANDPIPE_TEST_LOGS"]) / container
        breaks, self.break_after = self.break_after, None
        with log.open("rb") as file:
            while True:
                ended = self.processes[container].poll() is not None
                while line := file.readline():
                    if not line.endswith(b"\n") and not ended:
                        file.seek(-len(line), os.SEEK_CUR)  # it is being written
                        break
                    if breaks == 0:
                        raise EngineUnavailable("the connection broke")
                    breaks = breaks and breaks - 1
                    yield Line("2026-11-23T03:00:00Z", "stdout", line.rstrip(b"\n"))
                if ended:
                    return
                time.sleep(0.01)

    def wait(self, container: str) -> None:
        self.processes[container].wait()

    def stop(self, container: str, grace: int) -> None:
        self.processes[container].terminate()

    def containers(self) -> list[Container]:
        found = (self.find("", run) for run in list(self.made))
        return [container for container in found if container]

    def free(self, container: Container) -> None:
        self.made[container.id] = replace(container, name=f"{container.name}.{container.run}")

    def remove(self, container: Container) -> None:
        if self.refuses_removal:
            raise self.refuses_removal
        self.removed.append(container.id)
        del self.made[container.id]

    def has_image(self, pipeline: str, image: str | None = None) -> bool:
        return True

    def discard_images(self, pipeline: str, keep: int, rather: frozenset[str]) -> list[str]:
        return []

    def discard_networks(self, pipeline: str) -> list[str]:
        return []

    def version(self) -> str:
        return "processes"


@pytest.fixture
def short_path() -> Iterator[Path]:
    """The path of a Unix socket may have 107 bytes."""
    made = Path(tempfile.mkdtemp(prefix="sp"))
    yield made
    shutil.rmtree(made)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A host that knows the pipeline arxlive."""
    monkeypatch.setenv("STANDPIPE_ROOT", str(tmp_path))
    monkeypatch.setenv("STANDPIPE_TEST_LOGS", str(tmp_path / "logs"))
    (tmp_path / "logs").mkdir()
    importlib.reload(paths)
    paths.PIPELINES.mkdir(parents=True)
    (paths.PIPELINES / "arxlive.yml").write_text(DECLARED)
    yield tmp_path
    monkeypatch.undo()
    importlib.reload(paths)


@pytest.fixture
def ledger(host: Path) -> Iterator[Ledger]:
    ledger = Ledger(paths.LEDGER)
    yield ledger
    ledger.close()


@pytest.fixture
def engine() -> Iterator[ProcessEngine]:
    engine = ProcessEngine()
    yield engine
    for process in engine.processes.values():
        process.kill()
        process.wait()


@pytest.fixture
def docker_away() -> CannotStart:
    return CannotStart("engine", "Docker does not answer", 69)


def have_certificates(days: int, authority_days: int) -> None:
    """Give the host a certificate and an authority's that are good for so many days."""
    paths.TLS.mkdir(parents=True)
    paths.STATE.mkdir(parents=True, exist_ok=True)
    for path, good in ((paths.CERTIFICATE, days), (paths.AUTHORITY, authority_days)):
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        command += ["-keyout", os.devnull, "-subj", "/CN=x", "-days", str(good), "-out", str(path)]
        subprocess.run(command, check=True, capture_output=True)
    paths.KEY.touch()
