"""Keeps what a run writes in a file of its host, before Docker sees it.

What Docker's daemon has read from a container, and not yet written when it ends, is lost to everybody. So the
container's first process stands between: each piece of the output is a frame of that file first, and goes on to
Docker then, for `docker logs`, as fast as Docker takes it. The host makes the file and mounts it into the run's
container; where it does not, nothing here is used.

A frame is MAGIC, the stream (1 stdout, 2 stderr), the time (nanoseconds since 1970), the length, and so many bytes.
"""

from __future__ import annotations

import os
import select
import signal
import struct
import subprocess
import time
from contextlib import suppress
from pathlib import Path

PLACE = Path("/run/standpipe/output")

MAGIC = b"\xffSP\xfe"
HEADER = struct.Struct(">4sBQI")
AT_ONCE = 65_536  # bytes; what a pipe holds, unless it was made larger
MOST_LEFT = 16  # times as much, which is what a pipe can be made to hold
STDOUT, STDERR = 1, 2
TRY_AGAIN = 0.5  # seconds after which a disk without room is tried again
DOCKER_MAY_REST = 10.0  # seconds for which it takes nothing, at the end, until the rest is left to the file alone


def kept_at(path: Path) -> Output | None:
    """Return what keeps the output in a file, or None where there is none, or no room for its first frame."""
    try:
        file = os.open(path, os.O_RDWR | os.O_APPEND)
        os.write(file, HEADER.pack(MAGIC, STDOUT, time.time_ns(), 0))  # by which the host sees that all comes here
    except OSError:
        return None
    return Output(file)


class Output:
    """The output of a run: kept first, passed on to Docker then."""

    def __init__(self, file: int) -> None:
        """Begin at the end of the file; from here on Docker is waited for by nobody."""
        self._file = file
        self._kept = self._passed = os.lseek(file, 0, os.SEEK_END)
        self._rest, self._size, self._to = b"", 0, STDOUT  # of the frame that is being passed on
        self._said: list[bytes] = []
        self._without_room = False
        for stream in (STDOUT, STDERR):
            os.set_blocking(stream, False)

    def say(self, message: str) -> None:
        """Have a line of standard error, in its turn: a signal's handler may say it in the middle of anything."""
        self._said.append(f"standpipe: {message}\n".encode(errors="backslashreplace"))

    def follow(self, child: subprocess.Popen[bytes]) -> int:
        """Keep what a child writes to its pipes until it has ended; return its exit code.

        What it left running may hold the pipes open, and is not waited for.
        """
        pipes = (child.stdout, STDOUT), (child.stderr, STDERR)
        streams = {pipe.fileno(): stream for pipe, stream in pipes if pipe}
        woken, wake = os.pipe()
        for end in (woken, wake, *streams):
            os.set_blocking(end, False)
        signal.signal(signal.SIGCHLD, lambda _signum, _frame: None)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        waiting = select.poll()
        for pipe in (woken, *streams):
            waiting.register(pipe, select.POLLIN)
        blocked = None
        while True:
            code = child.poll()  # before the reading: what it has written is there by then
            self._keep_what_was_said()
            if blocked is not None:
                waiting.unregister(blocked)
            blocked = None if self._pass_on() else self._to
            if blocked is not None:
                waiting.register(blocked, select.POLLOUT)
            ready = {number for number, _event in waiting.poll(None if code is None else 0)}
            if woken in ready:
                os.read(woken, AT_ONCE)
            for pipe in sorted(ready & streams.keys()):
                if not self._keep_from(pipe, streams[pipe], 1 if code is None else MOST_LEFT):
                    waiting.unregister(pipe)
                    del streams[pipe]
            if code is not None:
                signal.set_wakeup_fd(-1)
                return code

    def finish(self) -> None:
        """Have all on disk, and with Docker, unless that takes nothing any more."""
        self._keep_what_was_said()
        with suppress(OSError):  # of a disk that fails; the exit code is to be told all the same
            os.fsync(self._file)
        waiting = select.poll()
        while not self._pass_on():
            waiting.register(self._to, select.POLLOUT)
            if not waiting.poll(DOCKER_MAY_REST * 1000):
                return
            waiting.unregister(self._to)

    def _keep_from(self, pipe: int, stream: int, times: int) -> bool:
        """Keep what is in a pipe, in so many pieces at most; return whether more may come."""
        for _ in range(times):
            try:
                data = os.read(pipe, AT_ONCE)
            except BlockingIOError:
                return True
            if not data:
                return False
            self._keep(stream, data)
        return True

    def _keep_what_was_said(self) -> None:
        while self._said:
            self._keep(STDERR, self._said.pop(0))

    def _keep(self, stream: int, data: bytes) -> None:
        """Append a frame; where there is no room, wait for it, and so does whoever writes."""
        frame = memoryview(HEADER.pack(MAGIC, stream, time.time_ns(), len(data)) + data)
        if self._passed == self._kept:
            self._rest, self._size, self._to = data, len(data), stream
        self._kept += len(frame)
        while frame:
            try:
                frame = frame[os.write(self._file, frame) :]
            except OSError as error:
                if not self._without_room:
                    self._without_room = True
                    self._tell_docker(f"the output cannot be kept ({error.strerror}): it waits until it can")
                time.sleep(TRY_AGAIN)

    def _tell_docker(self, message: str) -> None:
        with suppress(OSError):  # nobody reads there
            os.write(STDERR, f"standpipe: {message}\n".encode())

    def _pass_on(self) -> bool:
        """Pass on to Docker what it takes now; return whether that is all there is."""
        while self._passed < self._kept:
            if not self._size:
                self._read_back()
            try:
                self._rest = self._rest[os.write(self._to, self._rest) :]
            except BlockingIOError:
                return False
            except OSError:
                self._rest = b""  # nobody reads there any more
            if not self._rest:
                self._passed += HEADER.size + self._size
                self._size = 0
        return True

    def _read_back(self) -> None:
        """Have the next frame that is to be passed on; none any more where a stranger has written into the file."""
        header = os.pread(self._file, HEADER.size, self._passed)
        magic, stream, _time, size = HEADER.unpack(header.ljust(HEADER.size, b"\0"))
        if magic == MAGIC and stream in (STDOUT, STDERR) and size <= AT_ONCE:
            self._to, self._size = stream, size
            self._rest = os.pread(self._file, size, self._passed + HEADER.size)
        else:
            self._passed, self._rest, self._size = self._kept - HEADER.size, b"", 0
