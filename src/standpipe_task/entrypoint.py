"""The entrypoint of an image: ``python -m standpipe_task.entrypoint --module M Task --date D``.

It takes the pipeline's lock, opens the relay to the run's socket, runs Luigi in a child process, keeps what
that writes where its host has a place for it, turns a polite stop into Luigi's own ("finish the current task,
take no more"), and ends with Luigi's documented exit codes.

Exit codes: Luigi's (10 already running, 20 missing data, 25 not run, 30 task failed, 35 scheduling
error, 40 unhandled exception; https://luigi.readthedocs.io/en/stable/configuration.html#retcode),
75 when another container of the pipeline holds the lock, 128+N when signal N ended Luigi.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from standpipe_task import output, relay

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

LOCK_DIRECTORY = Path("/run/standpipe/lock")

NOT_RUN = 25
UNHANDLED_EXCEPTION = 40
ALREADY_RUNNING = 75

# Luigi exits 0 on failure unless it is told otherwise.
RETCODES = {
    "already-running": 10,
    "missing-data": 20,
    "not-run": NOT_RUN,
    "task-failed": 30,
    "scheduling-error": 35,
    "unhandled-exception": UNHANDLED_EXCEPTION,
}


def main(arguments: list[str]) -> int:
    """Run Luigi with `arguments` under the pipeline's lock; return the container's exit code."""
    kept = output.kept_at(output.PLACE)
    if kept is None:
        return run(arguments, None, say)
    try:
        return run(arguments, kept, kept.say)
    except Exception:
        kept.say(traceback.format_exc())
        return UNHANDLED_EXCEPTION
    finally:
        kept.finish()


def run(arguments: list[str], kept: output.Output | None, tell: Callable[[str], None]) -> int:
    """Take the lock and run Luigi."""
    lock = take_lock(LOCK_DIRECTORY)
    if lock is None:
        tell(f"another run of this pipeline holds the lock ({holder(LOCK_DIRECTORY)}); not started")
        return ALREADY_RUNNING
    return run_luigi(luigi_arguments(arguments), kept, tell)


def take_lock(directory: Path) -> int | None:
    """Lock `directory`/lock for the life of this process.

    Returns a file descriptor to keep open, -1 where the host mounts no lock, None where it is held.
    """
    try:
        descriptor = os.open(directory / "lock", os.O_RDONLY)
    except FileNotFoundError:
        return -1
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def holder(directory: Path) -> str:
    """Name the run that holds the lock, as far as the host has written it down."""
    try:
        return (directory / "holder").read_text().strip() or "started by hand"
    except OSError:
        return "started by hand"


def luigi_arguments(arguments: list[str]) -> list[str]:
    """Add the exit codes, and the local scheduler where no other is named."""
    options = [f"--retcode-{name}={code}" for name, code in RETCODES.items()]
    chosen = ("--local-scheduler", "--scheduler-host", "--scheduler-url")
    if not any(argument.split("=")[0] in chosen for argument in arguments):
        options.append("--local-scheduler")
    return [*arguments, *options]


def run_luigi(arguments: list[str], kept: output.Output | None, tell: Callable[[str], None]) -> int:
    """Run Luigi in a child; translate signals for it; believe a 0 only from Luigi itself."""
    verdict_read, verdict_write = os.pipe()
    pipe = subprocess.PIPE if kept else None
    # A session of its own: a terminal's Ctrl-C then reaches this process alone, to be translated.
    this = [sys.executable, "-m", "standpipe_task.entrypoint"]
    child = subprocess.Popen(
        [*this, f"--verdict-to={verdict_write}", *arguments],
        env={**os.environ, **relay.variables()},
        pass_fds=[verdict_write],
        start_new_session=True,
        stdout=pipe,
        stderr=pipe,
    )
    os.close(verdict_write)
    asked = 0

    def stop(signum: int, _frame: FrameType | None) -> None:
        nonlocal asked
        asked += 1
        insists = signum == signal.SIGINT and asked > 1
        child.send_signal(signal.SIGTERM if insists else signal.SIGUSR1)
        if asked == 1:
            tell("asked to stop: Luigi finishes its current task and takes no more")

    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, stop)

    code = kept.follow(child) if kept else child.wait()
    with os.fdopen(verdict_read, "rb") as answer:
        # What a task left running may hold the other end open.
        os.set_blocking(answer.fileno(), False)
        verdict = answer.read() or b""
    if code < 0:
        tell(f"Luigi was ended by signal {-code} ({signal.strsignal(-code)})")
        return 128 - code
    if code == ALREADY_RUNNING:
        tell(f"the pipeline's own code ended with {code}, which here means a held lock: taken as a failure")
        return UNHANDLED_EXCEPTION
    if code == 0 and verdict != b"0":
        tell("a task ended the process with exit code 0 before Luigi was done: taken as a failure")
        return UNHANDLED_EXCEPTION
    return code


def luigi_child(verdict: int, arguments: list[str]) -> int:
    """Be the child: run Luigi here and write its verdict to the file descriptor `verdict`."""

    def too_early(_signum: int, _frame: FrameType | None) -> None:
        say("stopped before the first task")
        raise SystemExit(NOT_RUN)

    # Luigi's worker puts its own handler here when it is there; until then USR1 would kill.
    signal.signal(signal.SIGUSR1, too_early)

    # The child alone needs Luigi; the parent starts quicker and stays smaller without it.
    from luigi.retcodes import run_with_retcodes

    sys.argv[0] = "luigi"  # what a usage message calls the program
    try:
        run_with_retcodes(arguments)  # type: ignore[no-untyped-call]  # Luigi has no types here
    except Exception:  # what Luigi itself does not catch: a module that is not there, for one
        traceback.print_exc()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        with suppress(AttributeError, ValueError, OSError):  # a task may have closed it, or put something in its place
            sys.stdout.flush()
        if code == 0 and raised_in(end).partition(".")[0] not in ("luigi", "argparse"):
            return 0  # not Luigi's word: a module or a task said so, and nothing may have been done
        os.write(verdict, str(code).encode())
        return code
    return UNHANDLED_EXCEPTION


def raised_in(error: BaseException) -> str:
    """Name the module whose code raised."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    return str(trace.tb_frame.f_globals.get("__name__")) if trace else ""


def say(message: str) -> None:
    """Write one line to standard error, where the run's log has it."""
    print(f"standpipe: {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1].startswith("--verdict-to="):
        sys.exit(luigi_child(int(sys.argv[1].split("=")[1]), sys.argv[2:]))
    sys.exit(main(sys.argv[1:]))
