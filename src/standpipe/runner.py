"""One run, from claim to release; and what is left of runs whose runner died.

The steps: load, register, claim, start, follow, settle, release. Each is noted in the ledger before
the next begins, and each can be done again, by the same process or by another.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Thread
from types import FrameType
from typing import Any

from ulid import ULID

from standpipe import configuration, metrics, paths, releases, runsocket, slots
from standpipe.engines import CannotStart, Container, Engine
from standpipe.errors import (
    ALREADY_RUNNING,
    DISK_FULL,
    STOPPED,
    TIMED_OUT,
    AlreadyRunning,
    BudgetShort,
    ConfigurationError,
    EngineUnavailable,
    InternalError,
    LedgerDamaged,
    NotWritable,
    StandpipeError,
)
from standpipe.ledger import Ledger, Registered, Run, SlotRecorded, instant
from standpipe.logs import kept, spool
from standpipe.logs.follow import ContainerGone, Listener, close_as_it_is, found, spool_log
from standpipe.pipeline import Pipeline, luigi_arguments

Teller = Callable[[str], None]
FAILURES = ("failed", "timed_out", "interrupted", "missed")
OWN_A_SLOT = ("scheduled", "catch-up", "retry")  # triggers whose runs are their slot's record
SETTLED_WITHIN = 30  # seconds for which a run is kept waiting by another process that settles the one before it
SETTLING = b"settling"  # in the file of a run whose runner died, while another process settles it
ENDED_BY_SIGNAL = (25, 128 + signal.SIGTERM, 128 + signal.SIGKILL)  # 25: Luigi took no more tasks, as TERM has it do
SAID_WITHIN = 5  # seconds for systemd to say what it is at
LOW_PRIORITY = 15  # niceness of what follows a log


class Requests(SimpleQueue[str]):
    """Why a run is to end before its time; `asked` stays true for whoever would start another one."""

    asked = False

    def forget(self) -> None:
        """Take what nobody has taken."""
        with suppress(Empty):
            while True:
                self.get_nowait()


def run(
    ledger: Ledger, engine: Engine, name: str, day: date | None, scheduled: bool, listen: Listener, say: Teller
) -> Run | None:
    """Run a pipeline once; return the settled run, or None where no slot is due.

    `day` is the date of a run by hand; a scheduled run has its slot's own. Raises AlreadyRunning
    where another run holds the pipeline, BudgetShort where too little is left of a budget, CannotStart where the engine
    cannot start it,
    ConfigurationError where its file is damaged; each is on record by then. Raises EngineUnavailable
    where the engine went away for long: the run is then settled by `reconcile`, when it is back.
    """
    now = datetime.now(UTC)
    pipeline, damage = load(name, scheduled)
    known = register(ledger, name, pipeline, now)
    slot = due_slot(ledger, known, now) if scheduled else None
    if scheduled and slot is None:
        if damage:
            raise damage
        with suppress(EngineUnavailable):  # there is nothing to start that would do it
            settle_the_dead(ledger, engine, name)
        return None
    day = day or slots.slot_date(known.schedule if known else None, slot or now)

    trigger = "scheduled" if slot else "manual"
    with stop_requests() as requests:
        return attempt(ledger, engine, name, trigger, slot, day, pipeline or damage, requests, listen, say)


def attempt(
    ledger: Ledger,
    engine: Engine,
    name: str,
    trigger: str,
    slot: datetime | None,
    day: date,
    pipeline: Pipeline | StandpipeError | None,
    requests: Requests,
    listen: Listener,
    say: Teller,
) -> Run | None:
    """Try a slot, or what somebody asked for, once: from the claim to the release; end it early on request.

    Returns None where another was quicker with the slot; raises as `run` does.
    """
    run_id = str(ULID())
    with living_runner(ledger, run_id) as life:
        with suppress(EngineUnavailable):  # then the claim tells who holds it, or the start that Docker is away
            settle_first(ledger, engine, name)
        try:
            claim(ledger, run_id, name, trigger, day, slot)
        except SlotRecorded:
            return None
        if not isinstance(pipeline, Pipeline):
            conclude(ledger, run_id, name, "failed", reason="policy", exit_code=ConfigurationError.exit_code)
            raise pipeline or ConfigurationError(f"{name} cannot be read")
        try:
            container = start(ledger, engine, run_id, pipeline, day, life)
            with suppress(OSError):  # the run and its record stand
                metrics.note_running(name)
            say(f"{name}: run {run_id} started{f', slot {slot:%Y-%m-%d %H:%M} UTC' if slot else ''}")
            with bounded(ledger, engine, run_id, container, pipeline, requests, say):
                follow(ledger, engine, run_id, name, container, listen, say)
            settle(ledger, engine, run_id, name)
            with suppress(EngineUnavailable):  # `reconcile` does it when the engine is back
                release(ledger, engine, run_id, name)
            settled = ledger.run(run_id)
        except LedgerDamaged as error:
            raise NotWritable(str(error)) from error  # the command is not repeated: that would be a second run
    if settled is None:
        raise NotWritable(f"the record of {name}'s run {run_id} is lost: the ledger was replaced meanwhile")
    return settled


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
        make_lock(name)  # a container that is started by hand takes it too, and may be the first
    return next(iter(ledger.registered(name)), None)


def make_lock(name: str) -> None:
    """Make the file that the pipeline's containers lock, once: a new file would be a new lock."""
    directory = paths.LOCKS / name
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o755)  # the directory above it is root's alone; the container's user must pass this one
    for file, mode in (("lock", 0o444), ("holder", 0o644)):
        if not (directory / file).exists():
            (directory / file).touch()
            (directory / file).chmod(mode)


def require_free_lock(engine: Engine, name: str) -> None:
    """Raise AlreadyRunning where a container that was started by hand holds the pipeline's kernel lock."""
    if by_hand := holder_of_lock(engine, name):
        raise AlreadyRunning(f"{name} is already running: {by_hand}")


def holder_of_lock(engine: Engine, name: str) -> str | None:
    """Name who holds a pipeline's kernel lock while no run of it is under way: who was started by hand, most likely."""
    file = paths.LOCKS / name / "lock"
    if not file.exists():
        return None  # it was removed, and its containers with it
    with file.open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return holder_in_container(engine, name)
    return None


def holder_in_container(engine: Engine, name: str) -> str:
    """Name the container that holds a pipeline's lock, or its run, as far as the engine tells."""
    holder = "a container"
    with suppress(EngineUnavailable):
        for container in engine.sharing_lock(name):
            if container.running and container.run:
                return f"run {container.run}"
            if container.running:
                holder = f"the container {container.name}"
    return f"{holder}, which was started by hand"


def note_holder(name: str, run_id: str) -> None:
    """Write down, where containers can read it, which run holds the pipeline; an empty id for none."""
    (paths.LOCKS / name / "holder").write_text(f"{run_id}\n" if run_id else "")


def due_slot(ledger: Ledger, known: Registered | None, now: datetime) -> datetime | None:
    """Return the newest slot that is due and has no record."""
    if known is None or known.schedule is None:
        return None
    slot = slots.newest_due(known.schedule, now, known.schedule_since)
    return None if slot is None or ledger.has_slot(known.name, slot, now) else slot


@contextmanager
def living_runner(ledger: Ledger, run_id: str, settling: bool = False) -> Iterator[int]:
    """Hold a kernel lock in a run's name, which tells others that it is looked after; yield its descriptor.

    Whoever only settles what is left says so in the file: that is done in a moment, and worth waiting for.
    Raises BlockingIOError where another process holds it. Children that inherit the descriptor hold the
    lock too. The file stays until the run is settled: a new one would be a new lock.
    """
    paths.RUNNERS.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = paths.RUNNERS / run_id
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, SETTLING if settling else b"", 0)
        try:
            yield descriptor
        finally:
            with suppress(StandpipeError):  # a ledger that cannot be read must not hide what went wrong before
                noted = ledger.run(run_id)
                if noted is None or noted.outcome:
                    path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def has_living_runner(run_id: str) -> bool:
    """Say whether a process looks after a run."""
    try:
        descriptor = os.open(paths.RUNNERS / run_id, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def is_being_settled(run_id: str) -> bool:
    """Say whether a process is at settling what a dead runner left of a run."""
    try:
        return (paths.RUNNERS / run_id).read_bytes() == SETTLING and has_living_runner(run_id)
    except FileNotFoundError:
        return False


@contextmanager
def stop_requests() -> Iterator[Requests]:
    """Take TERM and INT for requests to end the run; HUP is for whoever looks on, not for the run."""
    requests = Requests()

    def ask(_signum: int, _frame: FrameType | None) -> None:
        requests.asked = True
        requests.put("stopped")

    before = {signum: signal.signal(signum, ask) for signum in (signal.SIGTERM, signal.SIGINT)}
    before[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield requests
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def claim(ledger: Ledger, run_id: str, name: str, trigger: str, day: date, slot: datetime | None) -> None:
    """Claim the pipeline and the slot, on disk, before anything is started."""
    held_by = ledger.claim(run_id, name, trigger, day, slot, datetime.now(UTC), boot_identity())
    if held_by:
        raise AlreadyRunning(f"{name} is already running: run {held_by.id}, since {held_by.claimed_at}")


def start(ledger: Ledger, engine: Engine, run_id: str, pipeline: Pipeline, day: date, life: int) -> Container:
    """Start the container; whatever keeps it from starting is the run's outcome.

    An engine that goes away meanwhile is asked again, when it is back, whether there is a container.
    """
    name = pipeline.name
    gone = f"the container of {name} was removed as soon as it had started"
    try:
        make_lock(name)
        require_free_lock(engine, name)
        note_holder(name, run_id)
        door = runsocket.open_for(pipeline, run_id)
        output = kept.make(name, run_id)
        start_exclusively(ledger, engine, run_id, pipeline, day, life, door, output)
    except EngineUnavailable as error:
        gone = str(error)
    except (AlreadyRunning, BudgetShort, CannotStart, OSError) as error:
        refusal = of_the_disk(error) if isinstance(error, OSError) else error
        outcome, reason = not_started(refusal)
        with suppress(OSError):
            note_holder(name, "")
        conclude(ledger, run_id, name, outcome, reason=reason, exit_code=refusal.exit_code, detail=str(refusal))
        kept.discard(name, run_id)
        raise refusal from None
    container = found(engine, name, run_id)
    if container is None or container.started_at is None:
        note_holder(name, "")
        conclude(ledger, run_id, name, "interrupted", reason="engine", detail=gone)
        raise EngineUnavailable(gone)
    ledger.started(run_id, container.id, container.started_at, container.commit, container.image)
    return container


def of_the_disk(error: OSError) -> CannotStart:
    """Say that a run cannot be started for want of a disk. Raises the error where that is not what is wrong."""
    if error.errno not in DISK_FULL:
        raise error
    message = f"{error.filename or paths.STATE} cannot be written: {error.strerror}"
    return CannotStart("no_space", message, NotWritable.exit_code)


def not_started(error: AlreadyRunning | BudgetShort | CannotStart) -> tuple[str, str]:
    """Return outcome and reason of a run that was not started."""
    if isinstance(error, CannotStart):
        return "failed", error.reason
    return "skipped", "budget" if isinstance(error, BudgetShort) else "held"


def start_exclusively(
    ledger: Ledger,
    engine: Engine,
    run_id: str,
    pipeline: Pipeline,
    day: date,
    life: int,
    door: Path | None,
    output: Path | None,
) -> None:
    """Start the container under the pipeline's one name; an ended container that still has it gives way."""
    arguments = luigi_arguments(pipeline, day)
    try:
        engine.start(pipeline.name, run_id, arguments, life, door, output)
    except AlreadyRunning:
        holder = engine.holder(pipeline.name)
        if holder is not None and holder.running:
            who = f"run {holder.run}" if holder.run else f"the container {holder.name}, which was started by hand"
            raise AlreadyRunning(f"{pipeline.name} is already running: {who}") from None
        if holder is not None:
            engine.free(holder)
        if holder is not None and holder.run:
            release(ledger, engine, holder.run, pipeline.name)
        engine.start(pipeline.name, run_id, arguments, life, door, output)


@contextmanager
def bounded(
    ledger: Ledger,
    engine: Engine,
    run_id: str,
    container: Container,
    pipeline: Pipeline,
    requests: Requests,
    say: Teller,
) -> Iterator[None]:
    """End the container at its timeout, or when that is requested."""
    elapsed = (datetime.now(UTC) - instant(container.started_at)).total_seconds() if container.started_at else 0.0
    over = Event()

    def watch() -> None:
        try:
            why = requests.get(timeout=max(0.0, pipeline.timeout - elapsed))
        except Empty:
            why = "timed_out"
        if not over.is_set():
            end(ledger, engine, run_id, pipeline, why, over, say)

    watcher = Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        requests.put("over")
        watcher.join()
        requests.forget()  # a watcher that the timeout woke has not taken it, and that of the next run would


def end(ledger: Ledger, engine: Engine, run_id: str, pipeline: Pipeline, why: str, over: Event, say: Teller) -> None:
    """End a run before its time: note why, then TERM, a grace period for Luigi's current task, KILL.

    What has ended by itself meanwhile is left as it is.
    """
    while not over.is_set():
        try:
            container = engine.find(pipeline.name, run_id)
            if container is None or not container.running:
                return
            note_ending(ledger, run_id, why)
            say(f"{pipeline.name}: run {run_id} is being stopped ({why}); Luigi may finish its current task")
            engine.stop(container.id, pipeline.stop_grace)
            break
        except EngineUnavailable:
            if why == "stopped":  # the host may be going down, and the engine was quicker
                note_ending(ledger, run_id, why)
            over.wait(1)


def note_ending(ledger: Ledger, run_id: str, why: str) -> None:
    """Note why a run is being ended; a ledger that cannot be written must not keep its container going."""
    with suppress(StandpipeError), closing(ledger.again()) as own:
        own.ending(run_id, why)


def follow(
    ledger: Ledger, engine: Engine, run_id: str, name: str, container: Container, listen: Listener, say: Teller
) -> None:
    """Write the container's log to the spool until the container has ended.

    A spool that cannot be written does not end the run: its log stays in its container, which is
    kept for as long as the spool is not whole.
    """
    try:
        with unhurried(), suppress(ContainerGone):
            spool_log(engine, name, run_id, container, listen)
    except OSError as error:
        say(f"{name}: the log of run {run_id} could not be spooled ({error}); its container keeps it")
    ledger.closed(run_id, spool.end_of(paths.spool(name, run_id)))
    ledger.ended(run_id)


@contextmanager
def unhurried() -> Iterator[None]:
    """Leave the processors to others, the container first: its log waits in Docker meanwhile. This thread's alone."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    os.setpriority(os.PRIO_PROCESS, 0, max(before, LOW_PRIORITY))
    try:
        yield
    finally:
        with suppress(PermissionError):  # who is not root cannot be in more of a hurry again
            os.setpriority(os.PRIO_PROCESS, 0, before)


def settle(ledger: Ledger, engine: Engine, run_id: str, name: str) -> None:
    """Note what came of a run, by the container's own word."""
    container = found(engine, name, run_id)
    noted = ledger.run(run_id)
    note_holder(
        name, ""
    )  # it holds nothing any more; who dies before the next step is followed by one who repeats this
    if container is None:
        close_as_it_is(engine, name, run_id)
        ledger.closed(run_id, spool.end_of(paths.spool(name, run_id)))
        conclude(ledger, run_id, name, "interrupted", reason="engine")
    elif noted and was_ended_by_the_host(noted, container):
        conclude(ledger, run_id, name, "interrupted", reason="host_down", started_at=container.started_at)
    elif container.started_at is None or container.exit_code is None:
        conclude(ledger, run_id, name, "failed", reason="engine", exit_code=EngineUnavailable.exit_code)
    else:
        outcome, reason, code = outcome_of(container, noted.ending if noted else None)
        # Its entrypoint found the lock taken since the runner looked; by no run, as this one had the pipeline's name.
        held = reason == "held"
        conclude(
            ledger,
            run_id,
            name,
            outcome,
            reason=reason,
            exit_code=code,
            started_at=container.started_at,
            ended_at=container.ended_at,
            detail=f"held by {holder_in_container(engine, name)}" if held else None,
        )


def boot_time() -> datetime:
    """Return when this host came up: when its first process started (proc(5): /proc/stat, /proc/PID/stat)."""
    since_boot = int(Path("/proc/1/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    machine = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime "))
    return datetime.fromtimestamp(int(machine.split()[1]) + since_boot, UTC)


def boot_identity() -> str:
    """Return what differs after each boot of this host, and by no step of its clock.

    The kernel's own id, and when the first process started, in ticks since the kernel did: a host that
    is a container has its kernel's id from another.
    """
    kernel = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{kernel} {Path('/proc/1/stat').read_text().rpartition(')')[2].split()[19]}"


def was_ended_by_the_host(run: Run, container: Container) -> bool:
    """Say whether a run ended, before it was done, because its host went down: at once, or in good order."""
    rebooted = run.boot != boot_identity()
    if rebooted and was_killed_by_a_reboot(container, boot_time()):
        return True
    if container.exit_code == 0 and not container.error:
        return False
    asked_by_nobody = run.ending == "stopped" and run.detail is None  # but by a signal to its runner
    if rebooted:
        return asked_by_nobody
    return (asked_by_nobody or (run.ending is None and container.exit_code in ENDED_BY_SIGNAL)) and host_goes_down()


def host_goes_down() -> bool:
    """Say whether this host is being shut down, by systemd's own word."""
    try:
        asked = subprocess.run(
            ["systemctl", "is-system-running"], capture_output=True, text=True, timeout=SAID_WITHIN, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return asked.stdout.strip() == "stopping"


def was_killed_by_a_reboot(container: Container, booted: datetime) -> bool:
    """Say whether a container ran when the host went down: Docker then gives it an end after the boot."""
    if container.started_at is None or container.ended_at is None:
        return False
    return instant(container.started_at) < booted <= instant(container.ended_at) + timedelta(seconds=1)


def conclude(ledger: Ledger, run_id: str, name: str, outcome: str, **known: Any) -> None:
    """Note what came of a run, and whether its slot is tried again, in one step."""
    noted = ledger.run(run_id)
    at = retry_at(bounds(name), noted, outcome, known.get("reason"), datetime.now(UTC)) if noted else None
    ledger.settle(
        run_id,
        outcome,
        retry_at=at,
        notice=None if at else notice_of(ledger, name, outcome),
        unconfirmed_since=datetime.now(UTC) if has_collector() else None,
        **known,
    )
    runsocket.close(run_id)


def has_collector() -> bool:
    """Say whether a log is to wait for a receipt; where the settings are damaged, it is."""
    try:
        return configuration.settings().collector is not None
    except ConfigurationError:
        return True


def notice_of(ledger: Ledger, name: str, outcome: str) -> str | None:
    """Return what is to be told of an outcome that stands: what went wrong, or is well since that was told."""
    if outcome in FAILURES:
        return outcome
    return "recovered" if outcome == "succeeded" and ledger.trouble(name) else None


def retry_at(pipeline: Pipeline, run: Run, outcome: str, reason: str | None, now: datetime) -> datetime | None:
    """Return when a slot is to be tried again after a run of it, or None for never.

    Only what may pass is: a task that failed, an interruption, an engine or books that were away, a full disk; and who
    was in the way of a retry, which was none then.
    """
    refused = outcome == "skipped" and reason == "held" and run.trigger == "retry"
    passes = outcome == "failed" and reason in (None, "engine", "no_space", "budget")
    may_pass = refused or outcome == "interrupted" or passes
    if not may_pass or run.slot is None or run.trigger not in OWN_A_SLOT or pipeline.state != "present":
        return None
    at = now + timedelta(seconds=pipeline.retries.delay)
    if run.attempt - refused > pipeline.retries.count or pipeline.schedule is None:
        return None
    return at if at <= instant(run.slot) + timedelta(seconds=pipeline.schedule.start_within) else None


def outcome_of(container: Container, ending: str | None) -> tuple[str, str | None, int]:
    """Return outcome, reason and exit code of an ended container."""
    code = container.exit_code if container.exit_code is not None else 1
    if code == 0 and not container.error:  # Luigi's word that all is done, whatever was to be done about it
        return "succeeded", None, 0
    if ending == "timed_out":
        return "timed_out", None, TIMED_OUT
    if ending == "stopped":
        return "stopped", None, STOPPED
    if code == ALREADY_RUNNING:
        return "skipped", "held", code
    return "failed", None, code or 1


def stop(ledger: Ledger, engine: Engine, name: str, who: str, say: Teller) -> Run | None:
    """Stop what runs of a pipeline, politely, and note who asked; return the settled run, or None where none ran."""
    running = ledger.running(name)
    if running is None:
        return None
    grace = bounds(name).stop_grace
    ledger.ending(running.id, "stopped", f"by {who}")
    say(f"{name}: stopping run {running.id}; Luigi may finish its current task, for {grace} s at most")
    while (noted := ledger.run(running.id)) is not None and noted.outcome is None:
        container = found(engine, name, running.id)
        if container is not None and container.running:
            with suppress(EngineUnavailable):  # the daemon is being restarted: asked again
                engine.stop(container.id, grace)
        settle_the_dead(ledger, engine, name, say)  # where the runner is dead, nobody else will
        time.sleep(0.2)
    return ledger.run(running.id)


def release(ledger: Ledger, engine: Engine, run_id: str, name: str) -> None:
    """Free the pipeline's name from a settled run's ended container.

    The container is removed when its log is on disk, and confirmed where there is a collector.
    """
    container = engine.find(name, run_id)
    noted = ledger.run(run_id)
    if container is None or container.running or noted is None or noted.outcome is None:
        return
    engine.free(container)
    if not spool.is_closed(spool.place(paths.spool(name, run_id))):
        try:
            with unhurried():
                spool_log(engine, name, run_id, container)
        except (OSError, ContainerGone):
            return  # `reconcile` tries again; `doctor` tells of it
        ledger.closed(run_id, spool.end_of(paths.spool(name, run_id)))
    if noted.unconfirmed_since is None:
        kept.discard(name, run_id)
        engine.remove(container)


def reconcile(ledger: Ledger, engine: Engine, wait: bool, say: Teller) -> None:
    """Register what the roles declared, settle what dead runners left, keep images to their number.

    A network of another credentials mode goes, too.
    A container that still runs without its runner is followed to its end where `wait` is true.
    Raises what is wrong with a pipeline's file, after all else is done.
    """
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
    ledger.retire(set(configuration.names()), now)
    release_the_settled(ledger, engine)
    if wait:
        settle_and_follow(ledger, engine, None, say)
    else:
        settle_the_dead(ledger, engine, None, say)
    for pipeline in pipelines:
        kept = frozenset(release.image for release in releases.kept(pipeline.name))
        for image in engine.discard_images(pipeline.name, pipeline.keep_images, kept):
            paths.sbom(pipeline.name, image).unlink(missing_ok=True)
            say(f"removed the image {image}")
        for network in engine.discard_networks(pipeline.name):
            say(f"removed the network {network}")
    if errors:
        raise errors[0]


def wait_for_no_receipt(ledger: Ledger) -> None:
    """Let go of what waits for a collector that is declared no more; the logs stay here, as those to come will."""
    for run in ledger.unconfirmed():
        ledger.accept_loss(run.id, "no receipt is waited for: this host has no collector any more")


def release_the_settled(ledger: Ledger, engine: Engine) -> None:
    """Release the containers of settled runs that are still there: an engine that was away kept them.

    What was kept of runs whose containers are gone goes too, unless it may still be needed. A run whose record was lost
    has one again, to be settled as what a dead runner left.
    """
    there = engine.containers()
    for container in there:
        if container.run is None:
            continue
        noted = ledger.run(container.run)
        if noted is None:
            take_in(ledger, container.run, container)
        elif noted.outcome:
            release(ledger, engine, noted.id, noted.pipeline)
    for name, run_id in kept.left():
        noted = ledger.run(run_id)
        if noted and noted.outcome and noted.unconfirmed_since is None and run_id not in {one.run for one in there}:
            kept.discard(name, run_id)


def take_in(ledger: Ledger, run_id: str, container: Container) -> None:
    """Note a run of a declared pipeline that the ledger has lost, and that no living process looks after."""
    name = container.pipeline
    if name is None or name not in configuration.names() or has_living_runner(run_id):
        return
    ledger.take_in(run_id, name, instant(container.started_at) if container.started_at else datetime.now(UTC))


def settle_the_dead(
    ledger: Ledger, engine: Engine, name: str | None, say: Teller = lambda _message: None, wait: bool = False
) -> None:
    """Settle the unfinished runs, of one pipeline or of all, that no living process looks after."""
    for left in ledger.unfinished():
        if name in (None, left.pipeline):
            with suppress(BlockingIOError), living_runner(ledger, left.id, settling=not wait):
                settle_one(ledger, engine, left.id, say, wait)


def settle_and_follow(ledger: Ledger, engine: Engine, name: str | None, say: Teller) -> None:
    """Settle them, and follow what still runs to its end; first what takes no waiting, which a new run waits for."""
    for patiently in (False, True):
        settle_the_dead(ledger, engine, name, say, wait=patiently)


def settle_first(ledger: Ledger, engine: Engine, name: str) -> None:
    """Settle what a dead runner left of a pipeline; where another process is at it just now, wait for that.

    Else a `status` that settles the run of yesterday would have this one refused.
    """
    until = time.monotonic() + SETTLED_WITHIN
    settle_the_dead(ledger, engine, name)
    while (left := ledger.running(name)) and is_being_settled(left.id) and time.monotonic() < until:
        time.sleep(0.05)


def settle_for_a_look(ledger: Ledger, engine: Engine) -> bool:
    """Settle what dead runners left of containers that have ended, or never began; whoever looks waits for no other.

    Returns whether a container is left that still runs, for another process to follow to its end.
    The engine is asked only where there is a run that no living process looks after. What cannot be
    settled now, because the engine is away or a disk is full, is shown as it stands.
    """
    goes_on = False
    for left in ledger.unfinished():
        with suppress(BlockingIOError, OSError, StandpipeError), living_runner(ledger, left.id, settling=True):
            container = engine.find(left.pipeline, left.id)
            if container is not None and container.running:
                goes_on = True
            else:
                settle_one(ledger, engine, left.id, lambda _message: None, wait=False)
    return goes_on


def abandoned(ledger: Ledger, but: str) -> list[Run]:
    """Return the unfinished runs that no living process looks after, of all pipelines but one."""
    return [left for left in ledger.unfinished() if left.pipeline != but and not has_living_runner(left.id)]


def settle_one(ledger: Ledger, engine: Engine, run_id: str, say: Teller, wait: bool) -> None:
    """Go on where a dead runner stopped: follow, settle, release, by what the engine has of the run.

    A container that still runs is left alone, unless `wait` is true.
    """
    left = ledger.run(run_id)
    if left is None or left.outcome:
        return  # another process was quicker
    container = engine.find(left.pipeline, run_id)
    if container is not None and container.running and not wait and not is_overdue(container, bounds(left.pipeline)):
        say(f"{left.pipeline}: run {run_id} goes on without its runner: standpipe reconcile follows it to its end")
        return
    make_lock(left.pipeline)
    if container is not None and container.started_at:
        say(f"{left.pipeline}: going on with run {run_id}, whose runner died")
        ledger.started(run_id, container.id, container.started_at, container.commit, container.image)
        if left.state != "ended":
            with bounded(ledger, engine, run_id, container, bounds(left.pipeline), Requests(), say):
                follow(ledger, engine, run_id, left.pipeline, container, lambda _line: None, say)
        settle(ledger, engine, run_id, left.pipeline)
    elif left.state == "claimed":
        # Nothing ran. A container that was made and never started has no log and no exit code.
        note_holder(left.pipeline, "")
        conclude(ledger, run_id, left.pipeline, "interrupted", detail="its runner died before a container had started")
    else:
        settle(ledger, engine, run_id, left.pipeline)
    release(ledger, engine, run_id, left.pipeline)
    settled = ledger.run(run_id)
    say(f"{left.pipeline}: run {run_id} is settled: {settled.outcome if settled else 'gone'}")


def is_overdue(container: Container, pipeline: Pipeline) -> bool:
    """Say whether a container has run for longer than its pipeline may."""
    if container.started_at is None:
        return False
    return (datetime.now(UTC) - instant(container.started_at)).total_seconds() > pipeline.timeout


def bounds(name: str) -> Pipeline:
    """Return a pipeline for its timeout and grace; the defaults where it is no longer declared."""
    try:
        return configuration.load(name)
    except StandpipeError:
        return Pipeline(name=name, state="absent")


def exit_code_of(run: Run) -> int:
    """Return the exit code that `standpipe run` has for a settled run; a failure is never 0."""
    if run.outcome == "succeeded":
        return 0
    if run.outcome == "interrupted":
        return EngineUnavailable.exit_code
    return run.exit_code or InternalError.exit_code
