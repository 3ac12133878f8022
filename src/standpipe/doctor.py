"""`standpipe doctor`: is everything there that a run needs at three in the morning?"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from standpipe import budgets, certificates, configuration, paths
from standpipe.engines import Engine
from standpipe.errors import StandpipeError
from standpipe.ledger import Ledger, clock_went_back
from standpipe.logs import alarms, spool
from standpipe.logs.receipts import CollectorAway, Receipts, is_overdue
from standpipe.pipeline import Pipeline
from standpipe.runner import has_living_runner
from standpipe_task import spending

ENOUGH_DISK = 2_000_000_000  # bytes that a run and its log may need


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: `remedy` is None where it is well."""

    subject: str
    seen: str
    remedy: str | None = None
    exit_code: int = 78


def examine(engine: Engine) -> Iterator[Finding]:
    """Look at everything in turn; on a host that only collects, at what a collector needs."""
    if paths.COLLECTOR.exists():
        yield from look_at_collector()
    if runs_pipelines():
        yield from look_at_runner(engine)


def runs_pipelines() -> bool:
    """Say whether this host runs pipelines, or would be expected to, as it is no collector either."""
    return paths.SETTINGS.exists() or not paths.COLLECTOR.exists()


def look_at_collector() -> Iterator[Finding]:
    """See that logs are taken in and confirmed, that there is room for them, and what was warned of lately."""
    yield from look_at_services("rsyslog", "standpipe-collect", "standpipe-receipts", "standpipe-alarms.timer")
    yield from look_at_disks(paths.COLLECTED, paths.INTAKE)
    yield from look_at_certificates()
    try:
        warned = alarms.since()
    except StandpipeError as error:
        yield Finding("alarms", "cannot be read", str(error), error.exit_code)
        return
    remedy = "journalctl -u standpipe-collect -p warning" if warned else None
    last = f"; the last: {spool.one_line(warned.last.encode())}" if warned else ""
    yield Finding("alarms", f"{warned.number if warned else 0} in the last day{last}", remedy, 69)


def look_at_runner(engine: Engine) -> Iterator[Finding]:
    """Look at what a run needs."""
    yield look_at_engine(engine)
    yield look_at_ledger()
    yield from look_at_clock()
    yield from look_at_disks(Path("/var/lib/docker"), paths.STATE, paths.SPOOL)
    yield from look_at_services("cronie", "rsyslog", "standpiped")
    yield from look_at_metadata()
    if not paths.COLLECTOR.exists():
        yield from look_at_certificates()
    yield from look_at_receipts()
    yield from look_at_budgets()
    for name in configuration.names():
        yield from look_at_pipeline(engine, name)
    yield from look_at_unfinished()


def look_at_engine(engine: Engine) -> Finding:
    """Ask Docker and Compose for their versions."""
    try:
        return Finding("engine", engine.version())
    except StandpipeError as error:
        return Finding("engine", "does not answer", str(error), error.exit_code)


def look_at_ledger() -> Finding:
    """Let SQLite check the ledger."""
    try:
        ledger = Ledger(paths.LEDGER)
        verdict = ledger.check()
    except StandpipeError as error:
        return Finding("ledger", "cannot be used", str(error), error.exit_code)
    if verdict != "ok":
        return Finding("ledger", verdict, "standpipe reconcile, which sets it aside and recovers its runs", 73)
    return Finding("ledger", f"{paths.LEDGER}: ok")


def look_at_clock() -> Iterator[Finding]:
    """See that the clock is not behind the newest record."""
    try:
        told = clock_went_back(Ledger(paths.LEDGER), datetime.now(UTC))
    except StandpipeError:
        return  # told already, of the ledger
    if told:
        yield Finding(
            "clock", told, "timedatectl; where the clock is right now, it was ahead, and this passes by itself"
        )


def look_at_disks(*places: Path) -> Iterator[Finding]:
    """See that there is room."""
    for path in places:
        if path.exists():
            free = shutil.disk_usage(path).free
            remedy = None if free >= ENOUGH_DISK else "free some space: docker system df; du -xh /var | sort -h | tail"
            yield Finding(f"disk {path}", f"{free / 1e9:.1f} GB free", remedy, 73)


def look_at_services(*services: str) -> Iterator[Finding]:
    """See that services are active."""
    for service in services:
        answer = subprocess.run(["systemctl", "is-active", service], capture_output=True, text=True, check=False)
        state = answer.stdout.strip() or "unknown"
        remedy = None if state == "active" else f"systemctl status {service}; or run site.yml on this host"
        yield Finding(f"service {service}", state, remedy)


def look_at_metadata() -> Iterator[Finding]:
    """See that containers are kept from the instance metadata service, where the role has set that up."""
    if not paths.METADATA.exists():
        return
    command = ["nft", "list", "table", "inet", "standpipe"]
    there = subprocess.run(command, capture_output=True, check=False).returncode == 0
    remedy = None if there else "systemctl restart standpipe-metadata"
    yield Finding("metadata service", "refused to containers" if there else "open to every container", remedy)


def look_at_certificates() -> Iterator[Finding]:
    """See that the certificates by which logs travel are good for some time."""
    for one in certificates.here():
        yield Finding(one.kind, one.seen, one.remedy)


def look_at_receipts() -> Iterator[Finding]:
    """See that the collector answers, and has confirmed what it should have by now."""
    try:
        collector = configuration.settings().collector
        if collector is None:
            return
        with closing(Receipts(collector)) as receipts:
            receipts.reach()
        yield Finding("collector", f"{collector.address} answers")
        ledger = Ledger(paths.LEDGER)
        waiting = ledger.unconfirmed()
    except CollectorAway as error:
        yield Finding("collector", str(error), error.remedy, 69)
        return
    except StandpipeError as error:
        yield Finding("receipts", "cannot be looked at", str(error), error.exit_code)
        return
    if not waiting:
        yield Finding("receipts", "every log is confirmed")
    now = datetime.now(UTC)
    for run in waiting:
        late = is_overdue(run, collector, now)
        seen = f"the log of {run.pipeline} run {run.id} is not confirmed since {run.awaits_receipt_since:%F %H:%M} UTC"
        remedy = "standpipe reconcile; then journalctl -t standpipe, and -u standpipe-collect on the collector"
        yield Finding("receipts", seen, remedy if late else None, 69)


def look_at_budgets() -> Iterator[Finding]:
    """See whether the books can be read, and who declares a budget otherwise; tell what is left."""
    try:
        terms = budgets.terms()
        if not terms:
            return
        with budgets.books() as database:
            for name, each in terms.items():
                state = spending.state(database, each)
                used = state.spent + state.crashed + state.elsewhere
                seen = f"{spending.units(state.left)} of {spending.units(each.limit)} {each.units} left"
                if otherwise := database.disagreement(each):
                    yield Finding(f"budget {name}", otherwise, "run site.yml on both")
                elif used > each.limit:
                    yield Finding(f"budget {name}", f"{seen}: its limit was lowered", f"standpipe budget {name}", 76)
                else:
                    yield Finding(f"budget {name}", seen)
    except StandpipeError as error:
        yield Finding("budgets", "cannot be read", str(error), error.exit_code)


def look_at_pipeline(engine: Engine, name: str) -> Iterator[Finding]:
    """See that a pipeline's file, schedule, credentials and name are as they should be."""
    subject = f"pipeline {name}"
    try:
        pipeline = configuration.load(name)
    except StandpipeError as error:
        yield Finding(subject, "damaged", str(error), error.exit_code)
        return
    again = "run site.yml on this host"
    if pipeline.schedule and not (paths.CRON / f"standpipe-{name}").exists():
        yield Finding(subject, "has a schedule and no cron file", again)
    if not paths.compose_file(name).exists():
        yield Finding(subject, "has no Compose file", again)
    yield from look_at_credentials(pipeline)
    try:
        if not engine.has_image(name):
            yield Finding(subject, "its image is not on this host", again)
        holder = engine.holder(name)
    except StandpipeError:
        return  # told already, of the engine
    if holder and not holder.running:
        yield Finding(subject, f"an ended container holds its name ({holder.run})", "standpipe reconcile", 75)
    else:
        yield Finding(subject, f"running ({holder.run})" if holder else "ready")


def look_at_credentials(pipeline: Pipeline) -> Iterator[Finding]:
    """See that a credentials file is nobody else's to read; ask AWS who the pipeline is, and for how long."""
    subject, mode = f"pipeline {pipeline.name}", pipeline.credentials.mode
    path = paths.CREDENTIALS / pipeline.name
    if mode == "file":
        if not path.is_file():
            yield Finding(subject, f"{path} is missing", "run site.yml on this host")
            return
        if path.stat().st_mode & 0o077:
            yield Finding(subject, f"{path} can be read by others", f"chmod 0400 {path}")
    try:
        if mode == "file" and not is_readable_by_containers(path, pipeline.name):
            yield Finding(subject, f"{path} cannot be read by its containers", "run site.yml on this host")
        if not configuration.settings().check_credentials:
            yield Finding(subject, f"credentials: {mode}")
            return
        from standpipe.runsocket import credentials

        identity = credentials.identity_of(pipeline)
    except StandpipeError as error:
        yield Finding(subject, f"credentials: {mode}", str(error), error.exit_code)
        return
    told = f"{identity.arn}; it expires {identity.expires}" if identity.arn else identity.expires
    yield Finding(subject, f"credentials: {mode}: {told}")


def is_readable_by_containers(path: Path, pipeline: str) -> bool:
    """Say whether a file is for the account that the pipeline's containers run as, and the owner may read it."""
    account, _, _ = configuration.setting(paths.compose_file(pipeline).with_name(".env"), "STANDPIPE_USER").partition(
        ":"
    )
    status = path.stat()
    return bool(status.st_mode & 0o400) and str(status.st_uid) == account


def look_at_unfinished() -> Iterator[Finding]:
    """See whether a runner died and left its run."""
    try:
        unfinished = Ledger(paths.LEDGER).unfinished()
    except StandpipeError:
        return  # told already, of the ledger
    for run in unfinished:
        if not has_living_runner(run.id):
            yield Finding(f"run {run.id}", f"of {run.pipeline} has lost its runner", "standpipe reconcile", 75)
