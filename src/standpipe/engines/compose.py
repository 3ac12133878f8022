"""The host's own Docker, through Compose.

Starting goes through the `docker compose` command, since the Compose file is its to read; all else
goes through the Engine API, which needs no process for each question.
"""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

from standpipe import paths
from standpipe.engines import CannotStart, Container, Line
from standpipe.errors import AlreadyRunning, EngineUnavailable

if TYPE_CHECKING:
    from docker import APIClient

RUN_LABEL = "standpipe.run"
PIPELINE_LABEL = "standpipe.pipeline"
COMMIT_LABEL = "org.opencontainers.image.revision"
UNREACHABLE = (
    "cannot connect to the docker daemon",
    "failed to connect to the docker api",
    "is the docker daemon running",
)


def container_name(pipeline: str) -> str:
    """Return the name that one container of a pipeline can have at a time."""
    return f"standpipe-{pipeline}"


class ComposeEngine:
    """Docker on this host."""

    @cached_property
    def api(self) -> APIClient:
        """The Engine API; importing its client takes a while, so only when something is asked of it."""
        import docker
        from docker.errors import DockerException

        try:
            return docker.APIClient(version="auto", timeout=60)
        except DockerException as error:
            raise unavailable(error) from None

    def start(self, pipeline: str, run: str, arguments: list[str]) -> str:
        """Start the service `luigi` of the pipeline's Compose file under the pipeline's one name."""
        name = container_name(pipeline)
        command = ["docker", "compose", "--progress", "quiet", "-f", str(paths.compose_file(pipeline)), "run"]
        command += ["--detach", "--no-TTY", "--name", name]
        command += ["--label", f"{RUN_LABEL}={run}", "--label", f"{PIPELINE_LABEL}={pipeline}", "luigi", *arguments]
        # The client is imported while Compose is at work: neither then waits for the other.
        importing = threading.Thread(target=lambda: __import__("docker"), daemon=True)
        importing.start()
        try:
            answer = subprocess.run(command, capture_output=True, text=True, check=False, errors="replace")
        except FileNotFoundError:
            raise CannotStart("engine", "there is no docker command here: run site.yml on this host", 69) from None
        importing.join()
        if answer.returncode == 0:
            return answer.stdout.split()[-1]
        raise self._not_started(pipeline, run, answer.stderr.strip())

    def _not_started(self, pipeline: str, run: str, said: str) -> Exception:
        """Tell why a container was not started, and leave nothing of it behind."""
        lower = said.lower()
        if any(phrase in lower for phrase in UNREACHABLE):
            return CannotStart("engine", "Docker does not answer: systemctl status docker", 69)
        if "is already in use by container" in lower:
            return AlreadyRunning(f"{pipeline} is already running, as the container {container_name(pipeline)}")
        container = self.find(pipeline, run)
        if container:
            self._remove(container)
        last = said.splitlines()[-1] if said else "no reason given"
        if "no space left on device" in lower:
            return CannotStart("no_space", f"no disk space for the container of {pipeline}: {last}", 73)
        if "no such image" in lower or "pull access denied" in lower or "manifest unknown" in lower:
            return CannotStart("image", f"the image of {pipeline} is not on this host: run site.yml ({last})", 78)
        if "no such file or directory" in lower or "no configuration file provided" in lower:
            return CannotStart("engine", f"the Compose file of {pipeline} cannot be used: run site.yml ({last})", 78)
        return CannotStart("engine", f"Docker could not start {pipeline}: {last}", 69)

    def find(self, pipeline: str, run: str) -> Container | None:
        """Return a run's container, by its label."""
        found = self._ask("containers", all=True, filters={"label": f"{RUN_LABEL}={run}"})
        return self._inspect(found[0]["Id"]) if found else None

    def holder(self, pipeline: str) -> Container | None:
        """Return the container of the pipeline's name, ended ones too."""
        name = container_name(pipeline)
        found = self._ask("containers", all=True, filters={"name": f"^/?{name}$"})
        return self._inspect(found[0]["Id"]) if found else None

    def _inspect(self, container: str) -> Container:
        seen = self._ask("inspect_container", container)
        state, labels = seen["State"], seen["Config"]["Labels"] or {}
        running = bool(state["Running"] or state["Paused"] or state["Restarting"])
        return Container(
            id=seen["Id"],
            name=seen["Name"].lstrip("/"),
            run=labels.get(RUN_LABEL),
            running=running,
            exit_code=None if running else int(state["ExitCode"]),
            started_at=instant(state["StartedAt"]),
            ended_at=instant(state["FinishedAt"]),
            image=seen["Image"],
            commit=labels.get(COMMIT_LABEL),
            error=state["Error"],
        )

    def log(self, container: str) -> Iterator[Line]:
        """Read the log's frames from the first on; pieces of a long line (16 KiB each) are joined again.

        Source: the stream format of https://docs.docker.com/reference/api/engine/ (ContainerAttach).
        """
        import requests
        import urllib3

        address = f"{self.api.base_url}/v{self.api.api_version}/containers/{container}/logs"
        parameters = {"follow": 1, "stdout": 1, "stderr": 1, "timestamps": 1}
        open_lines: dict[str, tuple[str, bytearray]] = {}
        try:
            with self.api.get(address, params=parameters, stream=True, timeout=None) as response:
                response.raise_for_status()
                while header := response.raw.read(8):
                    stream = "stderr" if header[0] == 2 else "stdout"
                    time, _, piece = response.raw.read(int.from_bytes(header[4:8], "big")).partition(b" ")
                    began, data = open_lines.setdefault(stream, (time.decode("ascii", "replace"), bytearray()))
                    data += piece
                    if data.endswith(b"\n"):
                        del open_lines[stream]
                        yield Line(began, stream, bytes(data[:-1]))
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError):
            return  # the connection broke; whoever asked looks whether the container still runs
        for stream, (began, data) in open_lines.items():
            yield Line(began, stream, bytes(data))

    def stop(self, container: str, grace: int) -> None:
        """Send TERM, and KILL after `grace` seconds."""
        self._ask("stop", container, timeout=grace)

    def release(self, container: Container) -> None:
        """Give the container the name of its run alone, and remove it: its spool is closed and on disk."""
        if container.run and not container.name.endswith(container.run):
            self._ask("rename", container.id, f"{container.name}.{container.run}")
        self._remove(container)

    def _remove(self, container: Container) -> None:
        self._ask("remove_container", container.id)

    def discard_images(self, pipeline: str, keep: int) -> list[str]:
        """Remove the oldest images of the pipeline's repository; Docker itself refuses those in use."""
        from docker.errors import APIError

        images = self._ask("images", name=container_name(pipeline))
        in_service = self._in_service(pipeline)
        images.sort(key=lambda image: image["Created"], reverse=True)
        removed = []
        for image in images[keep:]:
            for tag in image["RepoTags"] or []:
                if tag == in_service:
                    continue
                try:
                    self.api.remove_image(tag)
                    removed.append(tag)
                except APIError:
                    continue  # a container uses it
        return removed

    def _in_service(self, pipeline: str) -> str:
        settings = (paths.CONTEXTS / pipeline / "docker/.env").read_text().splitlines()
        return next((line.split("=", 1)[1] for line in settings if line.startswith("STANDPIPE_IMAGE=")), "")

    def version(self) -> str:
        """Name the engine and Compose with their versions."""
        engine = self._ask("version")["Version"]
        compose = subprocess.run(
            ["docker", "compose", "version", "--format", "json"], capture_output=True, text=True, check=False
        )
        if compose.returncode != 0:
            raise EngineUnavailable("there is no Compose v2 beside Docker: run site.yml on this host")
        return f"Docker {engine}, Compose {json.loads(compose.stdout)['version']}"

    def _ask(self, question: str, *arguments: Any, **options: Any) -> Any:
        """Ask the Engine API; a daemon that does not answer is EngineUnavailable."""
        import requests

        try:
            return getattr(self.api, question)(*arguments, **options)
        except requests.ConnectionError as error:
            raise unavailable(error) from None


def instant(text: str) -> str | None:
    """Return the engine's timestamp, or None for the one that it has for never."""
    return None if text.startswith("0001-") else text


def unavailable(error: Exception) -> EngineUnavailable:
    """Say that Docker does not answer, and what to look at."""
    return EngineUnavailable(f"Docker does not answer ({type(error).__name__}): systemctl status docker")
