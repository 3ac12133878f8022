"""The host's own Docker, through Compose.

Starting goes through Compose's command, since the Compose file is its to read; all else
goes through the Engine API, which needs no process for each question.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from standpipe import configuration, paths
from standpipe.engines import CannotStart, Container, Line, joined
from standpipe.errors import AlreadyRunning, ConfigurationError, EngineUnavailable, NotWritable, UsageError

if TYPE_CHECKING:
    from docker import APIClient
    from docker.errors import APIError

SOCKET = "unix:///var/run/docker.sock"
# Where Docker's and Debian's packages put the plug-in of Compose, and people theirs: as docker itself looks for it.
PLUGINS = ("/usr/local/lib/docker", "/usr/local/libexec/docker", "/usr/lib/docker", "/usr/libexec/docker")
START_WITHIN = 600  # seconds for Compose to make and start a container
# Compose builds an image that is missing, whatever the pull policy says. A run takes what is in service, or nothing.
NEVER_BUILD = "services: {luigi: {build: !reset null}}"
RUN_LABEL = "standpipe.run"
OUTPUT = "/run/standpipe/output"  # where a container's first process looks for the file (standpipe_task/output.py)
PIPELINE_LABEL = "standpipe.pipeline"
SAVED_AT_ONCE = 1 << 20  # bytes
COMMIT_LABEL = "org.opencontainers.image.revision"

# What Docker and Compose say (versions 20.10 to 29), in lower case, and what it means for a run.
NAME_TAKEN = "is already in use by container"
UNREACHABLE = (
    "cannot connect to the docker daemon",
    "failed to connect to the docker api",
    "is the docker daemon running",
)
NO_COMPOSE = (
    "is not a docker command",
    "unknown command: docker compose",
    "unknown shorthand flag: 'f'",
    "unknown flag: --progress",
)
NO_SPACE = ("no space left on device", "disk quota exceeded")
NO_IMAGE = ("no such image", "pull access denied", "manifest unknown")
BAD_COMPOSE_FILE = (
    "no configuration file provided",
    "no such service",
    "yaml:",
    "validating ",
    "additional propert",
    "interpolation format",
    "bind source path does not exist",
)


def container_name(pipeline: str) -> str:
    """Return the name that one container of a pipeline can have at a time."""
    return f"standpipe-{pipeline}"


def compose() -> list[str]:
    """Return the command that is Compose: its plug-in, which `docker compose` would only look for, and pass all on to.

    That takes docker as long as Compose takes to read a file. Where it is elsewhere, docker is asked.
    """
    own = Path(os.environ.get("HOME", "/root"), ".docker")
    for directory in (own, *PLUGINS):
        plugin = Path(directory, "cli-plugins/docker-compose")
        if plugin.is_file() and os.access(plugin, os.X_OK):
            return [str(plugin)]
    return ["docker", "compose"]


class ComposeEngine:
    """Docker on this host."""

    @cached_property
    def api(self) -> APIClient:
        """The Engine API; importing its client takes a while, so only when something is asked of it."""
        import docker
        from docker.errors import DockerException

        try:
            return docker.APIClient(base_url=SOCKET, version="auto", timeout=60)
        except DockerException as error:
            raise unavailable(error) from None

    def start(
        self, pipeline: str, run: str, arguments: list[str], life: int, door: Path | None, output: Path | None = None
    ) -> None:
        """Start the service `luigi` of the pipeline's Compose file under the pipeline's one name."""
        if not paths.compose_file(pipeline).exists():
            raise bad_compose_file(pipeline, "it is not there")
        command = [*compose(), "--progress", "quiet", "-f", str(paths.compose_file(pipeline)), "-f", "-"]
        command += ["run", "--detach", "--no-TTY", "--name", container_name(pipeline)]
        command += ["--volume", f"{output}:{OUTPUT}"] if output else []
        command += ["--label", f"{RUN_LABEL}={run}", "--label", f"{PIPELINE_LABEL}={pipeline}", "luigi", *arguments]
        # Who calls decides nothing: a variable of his shell would go before the pipeline's own .env.
        environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        environment["DOCKER_HOST"] = SOCKET
        if door:
            environment["STANDPIPE_SOCKET"] = str(
                door
            )  # before the pipeline's own, which is for whoever starts by hand
        # The client is imported while Compose is at work: neither then waits for the other.
        importing = threading.Thread(target=lambda: __import__("docker"), daemon=True)
        importing.start()
        try:
            answer = subprocess.run(
                command,
                env=environment,
                pass_fds=[life],
                start_new_session=True,  # a terminal's Ctrl-C is for the run, not for its starting
                input=NEVER_BUILD,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=START_WITHIN,
                check=False,
            )
        except OSError as error:
            raise CannotStart("engine", str(not_called(command, error)), EngineUnavailable.exit_code) from None
        except subprocess.TimeoutExpired:
            raise EngineUnavailable(f"Docker has not started {pipeline} within {START_WITHIN} s") from None
        importing.join()
        if answer.returncode != 0:
            raise self._not_started(pipeline, run, answer.stderr.strip())

    def _not_started(self, pipeline: str, run: str, said: str) -> Exception:
        """Tell why a container was not started, and leave nothing of it behind."""
        lower = said.lower()
        last = said.splitlines()[-1] if said else "it gave no reason"

        def has(phrases: tuple[str, ...]) -> bool:
            return any(phrase in lower for phrase in phrases)

        if has(UNREACHABLE):
            return CannotStart("engine", "Docker does not answer: systemctl status docker", EngineUnavailable.exit_code)
        if NAME_TAKEN in lower:
            return AlreadyRunning(f"{pipeline} is already running, as the container {container_name(pipeline)}")
        if has(NO_COMPOSE):
            message = "there is no Compose v2 beside Docker: run site.yml on this host"
            return CannotStart("engine", message, EngineUnavailable.exit_code)
        container = self.find(pipeline, run)
        if container:
            if container.started_at:
                return EngineUnavailable(f"Docker started {pipeline} and then said: {last}")
            self.remove(container)
        if has(NO_SPACE):
            return CannotStart("no_space", f"no disk space to start {pipeline}: {last}", NotWritable.exit_code)
        if has(NO_IMAGE):
            message = f"the image of {pipeline} is not on this host: run site.yml ({last})"
            return CannotStart("image", message, ConfigurationError.exit_code)
        if has(BAD_COMPOSE_FILE):
            return bad_compose_file(pipeline, last)
        return CannotStart("engine", f"Docker could not start {pipeline}: {last}", EngineUnavailable.exit_code)

    def find(self, pipeline: str, run: str) -> Container | None:
        """Return a run's container, by its label."""
        return next(iter(self._list(label=f"{RUN_LABEL}={run}")), None)

    def holder(self, pipeline: str) -> Container | None:
        """Return the container of the pipeline's name, ended ones too."""
        return next(iter(self._list(name=f"^/?{container_name(pipeline)}$")), None)

    def sharing_lock(self, pipeline: str) -> list[Container]:
        """Return the containers that have the pipeline's lock mounted."""
        return self._list(volume=str(paths.LOCKS / pipeline))

    def containers(self) -> list[Container]:
        """Return every container that has a run's label."""
        return self._list(label=RUN_LABEL)

    def _list(self, **filters: str) -> list[Container]:
        found = self._ask("containers", all=True, filters=filters)
        inspected = (self._inspect(container["Id"]) for container in found)
        return [container for container in inspected if container]

    def _inspect(self, container: str) -> Container | None:
        seen = self._ask("inspect_container", container)
        if seen is None:
            return None
        state, labels = seen["State"], seen["Config"]["Labels"] or {}
        running = bool(state["Running"] or state["Paused"] or state["Restarting"])
        return Container(
            id=seen["Id"],
            name=seen["Name"].lstrip("/"),
            run=labels.get(RUN_LABEL),
            running=running,
            exit_code=None if running else int(state["ExitCode"]),
            started_at=unless_never(state["StartedAt"]),
            ended_at=unless_never(state["FinishedAt"]),
            image=seen["Image"],
            commit=labels.get(COMMIT_LABEL),
            error=state["Error"],
            pipeline=labels.get(PIPELINE_LABEL),
        )

    def log(self, container: str) -> Iterator[Line]:
        """Read the log from its first line on."""
        import requests
        import urllib3

        address = f"{self.api.base_url}/v{self.api.api_version}/containers/{container}/logs"
        parameters = {"follow": 1, "stdout": 1, "stderr": 1, "timestamps": 1}
        try:
            with self.api.get(address, params=parameters, stream=True, timeout=None) as response:
                response.raise_for_status()
                yield from lines_of(response.raw.read)
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            raise unavailable(error) from None  # the log goes on; whoever reads it begins again

    def wait(self, container: str) -> None:
        """Have the daemon answer when the container has ended."""
        self._ask("wait", container)

    def stop(self, container: str, grace: int) -> None:
        """Send TERM, and KILL after `grace` seconds."""
        self._ask("stop", container, timeout=grace)

    def free(self, container: Container) -> None:
        """Give the container the name of its pipeline and its run; its own id where it is nobody's run."""
        suffix = container.run or container.id[:12]
        if not container.name.endswith(suffix):
            self._ask("rename", container.id, f"{container.name}.{suffix}")

    def remove(self, container: Container) -> None:
        """Remove an ended container; Docker refuses one that runs."""
        self._ask("remove_container", container.id)

    def has_image(self, pipeline: str, image: str | None = None) -> bool:
        """Ask for the image that the role put in service, or for another."""
        return self._ask("inspect_image", image or self._in_service(pipeline)) is not None

    def image(self, image: str) -> dict[str, Any]:
        """Return what Docker says of an image. Raises UsageError where there is none of that name."""
        seen: dict[str, Any] | None = self._ask("inspect_image", image)
        if seen is None:
            raise UsageError(f"there is no image {image} on this host: docker images")
        return seen

    def image_id(self, image: str) -> str:
        """Return the id of an image, likewise."""
        return str(self.image(image)["Id"])

    def saved(self, image: str) -> Iterator[bytes]:
        """Yield an image as `docker save` writes it."""
        import requests
        from docker.errors import APIError

        try:
            yield from self.api.get_image(image, chunk_size=SAVED_AT_ONCE)
        except APIError as error:
            raise refusal(error) from None
        except requests.RequestException as error:
            raise unavailable(error) from None

    def discard_images(self, pipeline: str, keep: int, rather: frozenset[str]) -> list[str]:
        """Remove the oldest images of the pipeline's repository, those in `rather` last of all.

        Docker itself refuses those in use.
        """
        from docker.errors import APIError

        images = self._ask("images", name=container_name(pipeline))
        in_service = self._in_service(pipeline)

        def worth(image: dict[str, Any]) -> tuple[bool, bool, int]:
            tags = image["RepoTags"] or []
            return in_service in tags, not rather.isdisjoint(tags), image["Created"]

        images.sort(key=worth, reverse=True)
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

    def discard_networks(self, pipeline: str) -> list[str]:
        """Remove the pipeline's networks but the one that its settings name. Docker itself refuses those in use."""
        from docker.errors import APIError

        settings = paths.compose_file(pipeline).with_name(".env")
        project = f"standpipe-{pipeline}"
        serving = configuration.setting(settings, "STANDPIPE_NETWORK") or f"{project}_default"
        removed = []
        for network in self._ask("networks", filters={"label": f"com.docker.compose.project={project}"}):
            if network["Name"] != serving:
                try:
                    self.api.remove_network(network["Id"])
                    removed.append(network["Name"])
                except APIError:
                    continue  # a container uses it
        return removed

    def _in_service(self, pipeline: str) -> str:
        return configuration.image_of(paths.compose_file(pipeline).with_name(".env"))

    def version(self) -> str:
        """Name the engine and Compose with their versions."""
        engine = self._ask("version")["Version"]
        asked = [*compose(), "version", "--format", "json"]
        try:
            answer = subprocess.run(asked, capture_output=True, text=True, check=False)
        except OSError as error:
            raise not_called(asked, error) from None
        if answer.returncode != 0:
            raise EngineUnavailable("there is no Compose v2 beside Docker: run site.yml on this host")
        return f"Docker {engine}, Compose {json.loads(answer.stdout)['version']}"

    def _ask(self, question: str, *arguments: Any, **options: Any) -> Any:
        """Ask the Engine API; None where what was asked about is gone, or somebody else is at it already."""
        import requests
        from docker.errors import APIError

        try:
            return getattr(self.api, question)(*arguments, **options)
        except APIError as error:
            if error.status_code in (404, 409):
                return None
            raise refusal(error) from None
        except requests.RequestException as error:
            raise unavailable(error) from None


def unless_never(text: str) -> str | None:
    """Return the engine's timestamp, or None for the one that it has for never."""
    return None if text.startswith("0001-") else text


def refusal(error: APIError) -> EngineUnavailable:
    """Say what Docker answers where it cannot do what it is asked: that a disk is full, for one."""
    return EngineUnavailable(f"Docker answers with an error ({error.explanation}): journalctl -u docker")


def unavailable(error: Exception) -> EngineUnavailable:
    """Say that Docker does not answer, and what to look at."""
    return EngineUnavailable(f"Docker does not answer ({type(error).__name__}): systemctl status docker")


def not_called(command: list[str], error: OSError) -> EngineUnavailable:
    """Say that the command which is Compose cannot be called."""
    return EngineUnavailable(f"{command[0]} cannot be called ({error.strerror}): run site.yml on this host")


def bad_compose_file(pipeline: str, why: str) -> CannotStart:
    """Say that the Compose file cannot be used: a matter of the declaration, told with the exit code for that."""
    message = f"{paths.compose_file(pipeline)} cannot be used: run site.yml on this host ({why})"
    return CannotStart("policy", message, ConfigurationError.exit_code)


def lines_of(read: Callable[[int], bytes]) -> Iterator[Line]:
    """Yield the lines of a log that comes in frames, each of 16 KiB of a line at most; they are joined again."""
    return joined(frames_of(read))


def frames_of(read: Callable[[int], bytes]) -> Iterator[tuple[str, str, bytes]]:
    """Yield time, stream and bytes of each frame.

    Source: the stream format of https://docs.docker.com/reference/api/engine/ (ContainerAttach).
    """
    while len(header := read(8)) == 8:
        time, _, frame = read(int.from_bytes(header[4:8], "big")).partition(b" ")
        yield time.decode("ascii", "replace"), "stderr" if header[0] == 2 else "stdout", frame
