"""What a run's container writes, as its first process keeps it on the host before Docker sees it.

The file is the container's to write: a task can scribble into it, as it can print anything. So it is read as a
stranger's, and means nothing beyond its own run. Its format is that of standpipe_task/output.py.
"""

from __future__ import annotations

import errno
import os
import struct
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from threading import Event

from standpipe import paths

MAGIC = b"\xffSP\xfe"
HEADER = struct.Struct(">4sBQI")
STREAMS = {1: "stdout", 2: "stderr"}
LONGEST_FRAME = 65_536  # bytes
AT_ONCE = 262_144  # bytes
BEGINS_WITHIN = 20  # seconds after which nothing is expected there any more
PAUSES = (0.01, 0.1)  # seconds between two looks, while something came lately and at most
SCRIBBLED = "lines may be missing here: somebody else has written into the file of this run's output"

Frame = tuple[str, str, bytes]


def make(name: str, run_id: str) -> Path | None:
    """Make the file of a run, which its container's user, whoever that is, can write; None where there is no room.

    Nobody else gets to it: the directory is root's alone, and the file is mounted into that container only.
    """
    path = paths.output(name, run_id)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch()
        path.chmod(0o666)
    except OSError:
        return None
    return path


def discard(name: str, run_id: str) -> None:
    """Remove the file of a run, if it is there."""
    paths.output(name, run_id).unlink(missing_ok=True)


def left() -> Iterator[tuple[str, str]]:
    """Yield pipeline and run of each file that is there."""
    for path in paths.SPOOL.glob("*/*.output"):
        yield path.parent.name, path.stem


def begins(name: str, run_id: str, ended: Event) -> bool:
    """Say whether a container's first process keeps its output; it begins with a frame, before all else.

    Where none comes (no room, an older image, a container that was started without), the file is removed, so that
    whoever follows the run later takes the same source: Docker's log.
    """
    path = paths.output(name, run_id)
    deadline = time.monotonic() + BEGINS_WITHIN
    while True:
        over = ended.is_set() or time.monotonic() > deadline
        try:
            if path.stat().st_size >= HEADER.size:
                return True
        except FileNotFoundError:
            return False
        if over:
            discard(name, run_id)
        else:
            ended.wait(PAUSES[0])


def frames(path: Path, ended: Event) -> Iterator[Frame]:
    """Yield time, stream and bytes of each frame, until the container has ended and all is read.

    What is no frame is skipped to the next one, and told once, as of the stream `standpipe`.
    """
    unread = bytearray()
    told = False
    pause, longest = PAUSES
    with path.open("rb", buffering=0) as file:
        while True:
            last = ended.is_set()  # before the reading: all is there by then
            data = file.read(AT_ONCE)
            shrunk = not data and os.fstat(file.fileno()).st_size < file.tell()
            if shrunk:
                file.seek(0, os.SEEK_END)
                unread.clear()
            elif data:
                unread += data
                pause = PAUSES[0]
            elif last:
                break
            else:
                ended.wait(pause)
                pause = min(pause * 1.5, longest)
            skipped = False
            while frame := next_frame(unread):
                if isinstance(frame, int):
                    skipped = True
                    del unread[:frame]
                    continue
                yield frame
            if skipped:
                skip_a_hole(file.fileno())
            if (shrunk or skipped) and not told:
                told = True
                yield when(time.time_ns()), "standpipe", SCRIBBLED.encode() + b"\n"
    if len(unread) >= HEADER.size:  # the last frame, which was cut off with whatever wrote it
        _magic, stream, nanoseconds, _size = HEADER.unpack_from(unread)
        yield when(nanoseconds), STREAMS[stream], bytes(unread[HEADER.size :])


def skip_a_hole(file: int) -> None:
    """Go on where a file has data again: a stranger can make it as long as he likes, and of nothing."""
    here = os.lseek(file, 0, os.SEEK_CUR)
    try:
        os.lseek(file, here, os.SEEK_DATA)
    except OSError as error:
        os.lseek(file, *((0, os.SEEK_END) if error.errno == errno.ENXIO else (here, os.SEEK_SET)))


def next_frame(unread: bytearray) -> Frame | int | None:
    """Take the next frame; or say how many bytes are none, or None where more is to come."""
    if len(unread) < HEADER.size:
        return None
    magic, stream, nanoseconds, size = HEADER.unpack_from(unread)
    if magic != MAGIC or stream not in STREAMS or size > LONGEST_FRAME:
        found = unread.find(MAGIC, 1)
        return found if found > 0 else len(unread) - len(MAGIC) + 1
    end = HEADER.size + size
    if len(unread) < end:
        return None
    data = bytes(unread[HEADER.size : end])
    del unread[:end]
    return when(nanoseconds), STREAMS[stream], data


def when(nanoseconds: int) -> str:
    """Return a time since 1970 as RFC 3339 has it."""
    seconds, rest = divmod(nanoseconds, 10**9)
    return f"{datetime.fromtimestamp(seconds, UTC).isoformat()[:19]}.{rest:09}Z"
