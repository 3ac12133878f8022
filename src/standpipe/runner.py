"""One run, from claim to release; and what is left of runs whose runner died.

The steps: register, claim, start, follow, settle, release. Each is noted in the ledger before the
next begins, and each can be done again.
"""

from __future__ import annotations

import fcntl
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, date, datetime
from types import FrameType

from ulid import ULID

from standpipe import configuration, paths, slots
from standpipe.engines import CannotStart, Container, Engine, Line
from standpipe.errors import (
    ALREADY_RUNNING,
    STOPPED,
    TIMED_OUT,
    AlreadyRunning,
    ConfigurationError,
    EngineUnavailable,
    StandpipeError,
)
from standpipe.ledger import Ledger, Registered, Run, SlotRecorded
from standpipe.logs.spool import Spool
from standpipe.pipeline import Pipeline, luigi_arguments

Listener = Callable[[Line], None]


def run(ledger: Ledger, engine: Engine, name: str, day: date | None, scheduled: bool, listen: Listener) -> Run | None:
    """Run a pipeline once; return the settled run, or None where no slot is due.

    `day` is the date of a run by hand; a scheduled run has its slot's own. Raises AlreadyRunning
    where another run holds the pipeline, CannotStart where the engine cannot start it; either is on
    record by then.
    """
    now = datetime.now(UTC)
    pipeline, broken = load(name, scheduled)
    known = register(ledger, name, pipeline, now)
    slot = due_slot(ledger, known, now) if scheduled else None
    if scheduled and slot is None:
        return None
    schedule = known.schedule if known else None
    day = slots.slot_date(schedule, slot or now) if day is None else day

    run_id = str(ULID())
    with living_runner(run_id):
        with suppress(EngineUnavailable):  # then the claim tells who holds it, or the start that Docker is away
            settle_the_dead(ledger, engine, name)
        try:
            claim(ledger, run_id, name, day, slot, now)
        except SlotRecorded:
            return None
        if pipeline is None or broken:
            ledger.settle(run_id, "failed", reason="policy", exit_code=ConfigurationError.exit_code)
            raise broken or ConfigurationError(f"{name} cannot be read")
        container = start(ledger, engine, run_id, pipeline, day)
        with ending_on_request(ledger, engine, run_id, container, pipeline.stop_grace):
            follow(ledger, engine, run_id, pipeline, container, listen)
        settle(ledger, engine, run_id, name)
    return ledger.run(run_id)


def load(name: str, scheduled: bool) -> tuple[Pipeline | None, ConfigurationError | None]:
    """Read a pipeline's file; a damaged one is told only when the slot has its record."""
    try:
        return configuration.load(name), None
    except ConfigurationError as error:
        if not scheduled:
            raise
        return None, error


def register(ledger: Ledger, name: str, pipeline: Pipeline | None, now: datetime) -> Registered | None:
    """Note the pipeline in the ledger and make its lock; return what the ledger knows of it."""
    if pipeline is not None:
        ledger.register(pipeline, now)
        make_lock(name)
    return next((known for known in ledger.registered() if known.name == name), None)


def make_lock(name: str) -> None:
    """Make the file that the pipeline's containers lock, once: a new file would be a new lock."""
    directory = paths.LOCKS / name
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o755)  # the directory above it is root's alone; the container's user must pass this one
    for file, mode in (("lock", 0o444), ("holder", 0o644)):
        if not (directory / file).exists():
            (directory / file).touch()
            (directory / file).chmod(mode)


def due_slot(ledger: Ledger, known: Registered | None, now: datetime) -> datetime | None:
    """Return the newest slot that is due and has no record."""
    if known is None or known.schedule is None:
        return None
    slot = slots.newest_due(known.schedule, now, known.schedule_since)
    return None if slot is None or ledger.has_slot(known.name, slot) else slot


@contextmanager
def living_runner(run_id: str) -> Iterator[None]:
    """Hold a kernel lock in a run's name: it tells others that the run has a living runner."""
    paths.RUNNERS.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = paths.RUNNERS / run_id
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def has_living_runner(run_id: str) -> bool:
    """Say whether the process that started a run still lives."""
    try:
        descriptor = os.open(paths.RUNNERS / run_id, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def claim(ledger: Ledger, run_id: str, name: str, day: date, slot: datetime | None, now: datetime) -> None:
    """Claim the pipeline and the slot, on disk, before anything is started."""
    trigger = "scheduled" if slot else "manual"
    held_by = ledger.claim(run_id, name, trigger, day, slot, now)
    if held_by:
        raise AlreadyRunning(f"{name} is already running: run {held_by.id}, since {held_by.claimed_at}")


def start(ledger: Ledger, engine: Engine, run_id: str, pipeline: Pipeline, day: date) -> Container:
    """Start the container; whatever keeps it from starting is the run's outcome."""
    try:
        started = engine.start(pipeline.name, run_id, luigi_arguments(pipeline, day))
    except AlreadyRunning as error:
        ledger.settle(run_id, "skipped", reason="held", exit_code=error.exit_code)
        raise
    except CannotStart as error:
        ledger.settle(run_id, "failed", reason=error.reason, exit_code=error.exit_code)
        raise
    ledger.started(run_id, started)
    (paths.LOCKS / pipeline.name / "holder").write_text(f"{run_id}\n")
    container = engine.find(pipeline.name, run_id)
    if container is None:
        ledger.settle(run_id, "interrupted", reason="engine", exit_code=EngineUnavailable.exit_code)
        raise EngineUnavailable(f"the container of {pipeline.name} was removed as soon as it had started")
    return container


@contextmanager
def ending_on_request(ledger: Ledger, engine: Engine, run_id: str, container: Container, grace: int) -> Iterator[None]:
    """Stop the container, politely, when this process is asked to end."""

    def stop(_signum: int, _frame: FrameType | None) -> None:
        # In a thread: the log is still being followed, to its end.
        threading.Thread(target=end, args=(ledger, engine, run_id, container.id, grace, "stopped"), daemon=True).start()

    before = {signum: signal.signal(signum, stop) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def end(ledger: Ledger, engine: Engine, run_id: str, container: str, grace: int, why: str) -> None:
    """End a run before its time: note why, then TERM, a grace period for Luigi's current task, KILL."""
    own = Ledger(ledger.path)  # SQLite's connections stay in the thread that made them
    try:
        own.ending(run_id, why)
    finally:
        own.close()
    engine.stop(container, grace)


def follow(
    ledger: Ledger, engine: Engine, run_id: str, pipeline: Pipeline, container: Container, listen: Listener
) -> None:
    """Write the container's log to the spool until the container has ended; end it at its timeout."""
    elapsed = 0.0
    if container.started_at:
        began = datetime.fromisoformat(container.started_at[:26].rstrip("Z") + "+00:00")
        elapsed = (datetime.now(UTC) - began).total_seconds()
    timer = threading.Timer(
        max(0.0, pipeline.timeout - elapsed),
        end,
        (ledger, engine, run_id, container.id, pipeline.stop_grace, "timed_out"),
    )
    timer.daemon = True
    timer.start()
    try:
        with Spool(paths.spool(pipeline.name, run_id), run_id) as spool:
            for line in lines_until_the_end(engine, pipeline.name, run_id, container):
                spool.write(line)
                listen(line)
            spool.finish()
    finally:
        timer.cancel()


def lines_until_the_end(engine: Engine, name: str, run_id: str, container: Container) -> Iterator[Line]:
    """Yield each line once, over as many connections as it takes, until the container has ended."""
    seen = 0
    while True:
        for number, line in enumerate(engine.log(container.id), start=1):
            if number > seen:
                seen = number
                yield line
        try:
            now = engine.find(name, run_id)
        except EngineUnavailable:
            time.sleep(1)  # the daemon is being restarted: the container may well be alive
            continue
        if now is None or not now.running:
            break


def settle(ledger: Ledger, engine: Engine, run_id: str, name: str) -> None:
    """Note what came of a run by the container's own word; then free the pipeline's name."""
    container = engine.find(name, run_id)
    noted = ledger.run(run_id)
    if container is None or container.exit_code is None:
        ledger.settle(run_id, "interrupted", reason="engine")
    else:
        outcome, reason, code = outcome_of(container, noted.ending if noted else None)
        ledger.settle(
            run_id,
            outcome,
            reason=reason,
            exit_code=code,
            started_at=container.started_at,
            ended_at=container.ended_at,
            commit_id=container.commit,
            image=container.image,
        )
    (paths.LOCKS / name / "holder").write_text("")
    if container is not None:
        engine.release(container)


def outcome_of(container: Container, ending: str | None) -> tuple[str, str | None, int]:
    """Return outcome, reason and exit code of an ended container."""
    code = container.exit_code if container.exit_code is not None else 1
    if ending == "timed_out":
        return "timed_out", None, TIMED_OUT
    if ending == "stopped":
        return "stopped", None, STOPPED
    if code == ALREADY_RUNNING:
        return "skipped", "held", code
    if code == 0 and not container.error:
        return "succeeded", None, 0
    return "failed", None, code or 1


def reconcile(ledger: Ledger, engine: Engine, say: Callable[[str], None]) -> None:
    """Register what the roles declared, settle what dead runners left, keep images to their number."""
    now = datetime.now(UTC)
    pipelines = []
    errors = []
    for name in configuration.names():
        try:
            pipelines.append(configuration.load(name))
        except ConfigurationError as error:
            errors.append(error)
    for pipeline in pipelines:
        register(ledger, pipeline.name, pipeline, now)
    settle_the_dead(ledger, engine, None, adopt=say)
    for pipeline in pipelines:
        for image in engine.discard_images(pipeline.name, pipeline.keep_images):
            say(f"removed the image {image}")
    if errors:
        raise errors[0]


def settle_the_dead(
    ledger: Ledger, engine: Engine, name: str | None, adopt: Callable[[str], None] | None = None
) -> None:
    """Settle the unfinished runs whose runner died.

    A container that has ended gives its log and its exit code; one that still runs is followed to
    its end where `adopt` is given, and left alone otherwise; where there is none, the run never
    started or was interrupted.
    """
    for left in ledger.unfinished():
        if (name is not None and left.pipeline != name) or has_living_runner(left.id):
            continue
        container = engine.find(left.pipeline, left.id)
        if container is not None and container.running and adopt is None:
            continue
        if container is not None:
            if adopt:
                adopt(f"{left.pipeline}: settling run {left.id}, whose runner died")
            with living_runner(left.id):
                if left.state == "claimed":
                    ledger.started(left.id, container.id)
                follow(ledger, engine, left.id, configuration.load(left.pipeline), container, lambda _line: None)
                settle(ledger, engine, left.id, left.pipeline)
        else:
            outcome = "failed" if left.state == "claimed" else "interrupted"
            ledger.settle(left.id, outcome, reason="engine")


def exit_code_of(run: Run) -> int:
    """Return the exit code that `standpipe run` has for a settled run; a failure is never 0."""
    if run.outcome == "succeeded":
        return 0
    return run.exit_code or StandpipeError.exit_code
