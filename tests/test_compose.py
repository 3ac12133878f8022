"""What Docker and Compose say when they do not start a container, and what that means for a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from standpipe.engines import CannotStart, Container, compose
from standpipe.engines.compose import ComposeEngine
from standpipe.errors import AlreadyRunning, EngineUnavailable

CONFLICT = (
    'Error response from daemon: Conflict. The container name "/standpipe-arxlive" is already in use by container "c1".'
    " You have to remove (or rename) that container to be able to reuse that name."
)


class FoundEngine(ComposeEngine):
    """Compose, with what Docker has of the run in question."""

    def __init__(self, container: Container | Exception | None) -> None:
        self.container = container
        self.removed: list[str] = []

    def find(self, pipeline: str, run: str) -> Container | None:
        if isinstance(self.container, Exception):
            raise self.container
        return self.container

    def remove(self, container: Container) -> None:
        self.removed.append(container.id)


def made(started_at: str | None) -> Container:
    return Container("c2", "standpipe-arxlive", "R", False, None, started_at, None, "sha256:0", None, "")


@pytest.mark.parametrize(
    ("said", "reason", "code"),
    [
        (
            "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?",
            "engine",
            69,
        ),
        ("failed to connect to the docker API at unix:///var/run/docker.sock", "engine", 69),
        ("docker: 'compose' is not a docker command.\nSee 'docker --help'", "engine", 69),
        ("unknown shorthand flag: 'f' in -f", "engine", 69),
        ("Error response from daemon: mkdir /var/lib/docker/overlay2/x: no space left on device", "no_space", 73),
        ("Error response from daemon: write /x: Disk quota exceeded", "no_space", 73),
        ("Error response from daemon: No such image: standpipe-arxlive:1", "image", 78),
        (
            "Error response from daemon: pull access denied for standpipe-arxlive, repository does not exist",
            "image",
            78,
        ),
        ("yaml: line 3: did not find expected node content", "policy", 78),
        ("no such service: luigi", "policy", 78),
        ("validating docker-compose.yml: services.luigi additional properties 'x' not allowed", "policy", 78),
        ("Error response from daemon: error while creating mount source path", "engine", 69),
        ("", "engine", 69),
    ],
)
def test_what_docker_says_is_told_with_its_reason(said: str, reason: str, code: int) -> None:
    error = FoundEngine(None)._not_started("arxlive", "R", said)
    assert isinstance(error, CannotStart)
    assert (error.reason, error.exit_code) == (reason, code)


def test_a_name_that_is_taken_is_a_run_under_way() -> None:
    assert isinstance(FoundEngine(None)._not_started("arxlive", "R", CONFLICT), AlreadyRunning)


def test_a_container_that_was_made_and_did_not_start_is_removed() -> None:
    engine = FoundEngine(made(None))
    error = engine._not_started("arxlive", "R", "Error response from daemon: no space left on device")
    assert (type(error), engine.removed) == (CannotStart, ["c2"])


def test_a_container_that_has_started_stays_whatever_docker_said_then() -> None:
    engine = FoundEngine(made("2026-11-23T03:00:00Z"))
    error = engine._not_started("arxlive", "R", "unexpected EOF")
    assert (type(error), engine.removed) == (EngineUnavailable, [])


@pytest.mark.parametrize("said", ["unexpected EOF", "no space left on device"])
def test_whether_there_is_a_container_is_not_guessed_while_docker_is_away(said: str) -> None:
    away: Any = EngineUnavailable("Docker does not answer")
    with pytest.raises(EngineUnavailable):
        FoundEngine(away)._not_started("arxlive", "R", said)


def test_compose_is_its_plug_in_where_docker_looks_for_it_and_else_what_docker_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "root"))
    monkeypatch.setattr(compose, "PLUGINS", (str(tmp_path / "local"), str(tmp_path / "libexec")))
    assert compose.compose() == ["docker", "compose"]
    for place in ("libexec", "local", "root/.docker"):  # the later ones go before the earlier ones
        plugin = tmp_path / place / "cli-plugins/docker-compose"
        plugin.parent.mkdir(parents=True)
        plugin.touch()
        assert compose.compose() != [str(plugin)], "it cannot be called"
        plugin.chmod(0o755)
        assert compose.compose() == [str(plugin)]
    plugin.write_bytes(b"\x7fELF of another machine")
    monkeypatch.setattr(ComposeEngine, "_ask", lambda *_question: {"Version": "26.1"})
    with pytest.raises(EngineUnavailable, match="docker-compose cannot be called"):
        FoundEngine(None).version()
