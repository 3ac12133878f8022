"""Where runs execute: one module per engine, behind one small protocol."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from standpipe.errors import StandpipeError

LONGEST_PIECE = 1 << 20  # bytes of a line; what is longer travels in pieces, so that none is too long for a record


class CannotStart(StandpipeError):
    """A run that could not be started: `reason` is the ledger's (engine, image, no_space, policy, budget)."""

    def __init__(self, reason: str, message: str, exit_code: int) -> None:
        """Keep the ledger's reason and the command's exit code beside the message."""
        super().__init__(message)
        self.reason = reason
        self.exit_code = exit_code


@dataclass(frozen=True)
class Container:
    """What the engine says of a run's container.

    Times are RFC 3339; `started_at` is None where it was made and never started, `exit_code` is None
    while it runs. `run` and `pipeline` are None where it is nobody's run.
    """

    id: str
    name: str
    run: str | None
    running: bool
    exit_code: int | None
    started_at: str | None
    ended_at: str | None
    image: str
    commit: str | None
    error: str
    pipeline: str | None = None


@dataclass(frozen=True)
class Line:
    """One line of a container's log: when (RFC 3339), which stream (stdout or stderr), and its bytes.

    A longer line than LONGEST_PIECE comes as several; `continues` is True for all of them but the last.
    `whole` is False for what the log ended with before the line did.
    """

    time: str
    stream: str
    data: bytes
    continues: bool = False
    whole: bool = field(default=True, compare=False)


def joined(frames: Iterator[tuple[str, str, bytes]]) -> Iterator[Line]:
    """Yield the lines of what comes in frames (time, stream, bytes), whole, each with the time of its first."""
    open_lines: dict[str, tuple[str, bytearray]] = {}
    for time, stream, frame in frames:
        *ended, rest = frame.split(b"\n")
        for end in ended:
            began, data = open_lines.pop(stream, (time, bytearray()))
            data += end
            if len(data) > LONGEST_PIECE:
                yield from pieces(began, stream, data)
            yield Line(began, stream, bytes(data))
        if rest:
            began, data = open_lines.setdefault(stream, (time, bytearray()))
            data += rest
            yield from pieces(began, stream, data)
    for stream, (began, data) in open_lines.items():
        yield Line(began, stream, bytes(data), whole=False)


def pieces(began: str, stream: str, data: bytearray) -> Iterator[Line]:
    """Take from a line what is too long for a record, and yield it."""
    while len(data) > LONGEST_PIECE:
        cut = LONGEST_PIECE
        while cut > LONGEST_PIECE - 4 and data[cut] & 0xC0 == 0x80:  # no letter of UTF-8 is cut in two
            cut -= 1
        yield Line(began, stream, bytes(data[:cut]), continues=True)
        del data[:cut]


class Engine(Protocol):
    """What a run needs of an engine.

    Every method raises EngineUnavailable where it does not answer, and each can be repeated: what is
    done already, or gone already, is no error.
    """

    def start(
        self, pipeline: str, run: str, arguments: list[str], life: int, door: Path | None, output: Path | None = None
    ) -> None:
        """Start a run's container, exclusively, with the directory of its run socket mounted, if it has one.

        `output` is the file that its first process keeps its output in, likewise.

        `life` is a file descriptor that whatever does the starting holds open for as long as it may
        still make a container. Raises AlreadyRunning where the pipeline's name is taken, CannotStart
        where there is no container and will be none, EngineUnavailable where that is not known.
        """

    def find(self, pipeline: str, run: str) -> Container | None:
        """Return a run's container, running or ended."""

    def holder(self, pipeline: str) -> Container | None:
        """Return the container that holds the pipeline's name, whoever started it."""

    def sharing_lock(self, pipeline: str) -> list[Container]:
        """Return the containers that have the pipeline's lock mounted, whoever started them."""

    def containers(self) -> list[Container]:
        """Return the containers of all runs, running or ended."""

    def log(self, container: str) -> Iterator[Line]:
        """Yield the lines of a container's log from its first until it ends; raise where the connection breaks."""

    def wait(self, container: str) -> None:
        """Return when a container has ended, or is gone. The daemon's own end may look the same."""

    def stop(self, container: str, grace: int) -> None:
        """Ask a container to end, and end it after `grace` seconds."""

    def free(self, container: Container) -> None:
        """Rename an ended container after its run, so that the pipeline's name is free for another."""

    def remove(self, container: Container) -> None:
        """Remove an ended container, and its log with it."""

    def has_image(self, pipeline: str, image: str | None = None) -> bool:
        """Say whether the image that is in service, or another, is there to be started."""

    def discard_images(self, pipeline: str, keep: int, rather: frozenset[str]) -> list[str]:
        """Remove a pipeline's images but the newest `keep` and those in use; return what was removed."""

    def discard_networks(self, pipeline: str) -> list[str]:
        """Remove the networks that a pipeline had in another credentials mode, but those in use; return them."""

    def version(self) -> str:
        """Name the engine and its version."""
