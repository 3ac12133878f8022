"""The host's side of the receipts: what the collector has confirmed may go; what it lacks is sent again.

A spool is sent again by giving the same bytes a new inode: rsyslog takes that for a new file. The
collector drops what it has already.
"""

from __future__ import annotations

import fcntl
import http.client
import json
import secrets
import shutil
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

from standpipe import configuration, paths
from standpipe.configuration import Collector
from standpipe.engines import Engine
from standpipe.errors import EngineUnavailable, StandpipeError
from standpipe.ledger import Ledger, Run, instant
from standpipe.logs import kept, spool
from standpipe.logs.follow import ContainerGone, spool_log

ANSWER_WITHIN = 10  # seconds
FRESH = timedelta(seconds=60)  # a run that ended so lately is waited for
LOOK_AGAIN = (0.2, 5.0)  # seconds between two looks, at first and at most
LOOK_BACK_EVERY = 3600  # seconds; for what the collector should still hold
MOST_TO_LOSE = 100_000  # logs that are looked for at a collector that was restored
ROOM = 100_000_000  # bytes of a disk that a second copy of a log leaves free
SEND_AGAIN_DAILY = timedelta(days=1)  # the longest time between two sendings
A_DAY_OF_CLEANING = timedelta(days=1)  # a log's age counts from its last line, before its receipt; clocks differ

Teller = Callable[[str], None]


class CollectorAway(StandpipeError):
    """The collector cannot be asked for receipts; `remedy` says where to look."""

    exit_code = 69
    remedy = "systemctl status standpipe-receipts rsyslog, on the collector"


class CertificateMissing(CollectorAway):
    """This host has nothing to show to the collector."""

    remedy = "run site.yml on this host, which makes it anew"


class Receipts:
    """A connection to the collector, by which this host asks for its own receipts."""

    def __init__(self, collector: Collector) -> None:
        """Prepare the connection; both ends show a certificate of the installation's authority."""
        self._collector = collector
        self._connection: http.client.HTTPSConnection | None = None

    def close(self) -> None:
        """End the connection."""
        if self._connection:
            self._connection.close()
        self._connection = None

    def reach(self) -> None:
        """See that the collector answers this host. Raises CollectorAway where it does not."""
        self._get("/")

    def of(self, run: Run) -> dict[str, Any] | None:
        """Return the receipt of a run, or None where there is none yet. Raises CollectorAway."""
        receipt = self._get(f"/receipts/{run.pipeline}/{run.id}.json")
        if receipt is None:
            return None
        if not isinstance(receipt, dict) or (receipt.get("pipeline"), receipt.get("run")) != (run.pipeline, run.id):
            raise CollectorAway(f"the collector {self._collector.address} gives a receipt that is none of {run.id}")
        return receipt

    def _get(self, path: str) -> Any:
        """Return what the collector has in a place, or None."""
        try:
            if self._connection is None or self._connection.sock is None:  # nginx ends one after 1,000 answers
                self._connection = self._connect()
            self._connection.request("GET", path)
            answer = self._connection.getresponse()
            body = answer.read()
            if answer.status in (200, 404):
                return receipt_in(body) if answer.status == 200 else None
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise CollectorAway(f"the collector {self._collector.address} cannot be asked: {error}") from None
        self.close()
        raise CollectorAway(f"the collector {self._collector.address} answers {answer.status} {answer.reason}")

    def _connect(self) -> http.client.HTTPSConnection:
        for path in (paths.AUTHORITY, paths.CERTIFICATE, paths.KEY):
            if not path.exists():
                raise CertificateMissing(f"the collector cannot be asked: {path} is missing")
        context = ssl.create_default_context(cafile=str(paths.AUTHORITY))
        context.check_hostname = False  # the certificate has the collector's name in the inventory: looked at below
        context.load_cert_chain(paths.CERTIFICATE, paths.KEY)
        connection = http.client.HTTPSConnection(
            self._collector.address, self._collector.receipts_port, timeout=ANSWER_WITHIN, context=context
        )
        connection.auto_open = 0  # a new one is to be looked at like the first
        connection.connect()
        certificate: Any = connection.sock.getpeercert()
        shown = {key: value for part in certificate["subject"] for key, value in part}
        if shown.get("commonName") not in self._collector.names:
            connection.close()
            raise CollectorAway(
                f"{self._collector.address} shows the certificate of {shown.get('commonName')}, "
                f"which is no collector of this host ({', '.join(self._collector.names)})"
            )
        return connection


def receipt_in(body: bytes) -> Any:
    """Return what a receipt says; a damaged one is none: its log is sent again, and the collector gives it anew."""
    with suppress(ValueError):
        return json.loads(body)
    return None


def confirm(ledger: Ledger, engine: Engine, say: Teller, wait: bool) -> None:
    """Ask for the receipts that are missing, and send again what is overdue.

    Where `wait` is true, goes on while a run that ended lately has none. Another process that does so
    already is left to it.
    """
    collector = configuration.settings().collector
    while collector:
        with alone() as chosen, closing(Receipts(collector)) as receipts:
            if not chosen:
                return
            pause, longest = LOOK_AGAIN
            look(ledger, engine, receipts, collector, say)
            while wait and awaited(ledger):
                time.sleep(pause)
                pause = min(pause * 1.5, longest)
                look(ledger, engine, receipts, collector, say)
        if not wait or not awaited(ledger):  # else a run has ended just now, whose own process found this one at it
            return


def look_for_losses(ledger: Ledger, receipts: Receipts, collector: Collector, waiting: set[str], say: Teller) -> None:
    """See whether the collector still holds what it confirmed; what it has lost is sent again.

    A collector that was restored from a backup lacks what came after that. Asked for is what it confirmed last, of all
    pipelines and of those that are `waiting` for a receipt; once an hour of each, and for an older log, whichever.
    Where it lacks that one, all are asked for. What it has confirmed and then removed by its age is no loss.
    Raises CollectorAway.
    """
    newest = [run for run in ledger.newest_confirmed() if is_to_be_held(run, collector)]
    looks_back = not paths.written_within(paths.LOOKED_BACK, LOOK_BACK_EVERY)
    asked = [run for run in newest if looks_back or run is newest[0] or run.pipeline in waiting]
    older = an_older_one(ledger, collector) if looks_back else None
    thorough = older is not None and not receipts.of(older)
    lost = []
    if thorough or not all(receipts.of(run) for run in asked):
        lacking = {run.pipeline for run in newest if thorough or not receipts.of(run)}
        for run in ledger.confirmed(MOST_TO_LOSE):
            if run.pipeline in lacking and is_to_be_held(run, collector):
                if not receipts.of(run):
                    lost.append(run)
                elif not thorough:
                    lacking.discard(run.pipeline)
    for run in lost:
        ledger.unconfirm(run.id, datetime.now(UTC))
    if looks_back:
        paths.LOOKED_BACK.touch()
    if lost:
        say(
            f"the collector no longer holds {len(lost)} logs, confirmed from {lost[-1].receipt} on: they are sent again"
        )


def an_older_one(ledger: Ledger, collector: Collector) -> Run | None:
    """Return a run by chance whose log is here, or None where it is not confirmed."""
    here = [*paths.SPOOL.glob(f"*/*{spool.PUT_BY}")]
    run = ledger.run(secrets.choice(here).stem) if here else None
    return run if run and run.receipt and is_to_be_held(run, collector) else None


def is_to_be_held(run: Run, collector: Collector) -> bool:
    """Say whether a confirmed log is here, to be sent again, and so young that the collector keeps it."""
    keeps = timedelta(days=collector.keeps_days) - A_DAY_OF_CLEANING if collector.keeps_days else None
    young = keeps is None or datetime.now(UTC) - instant(str(run.receipt)) < keeps
    return young and spool.place(paths.spool(run.pipeline, run.id)).exists()


def awaited(ledger: Ledger) -> bool:
    """Say whether a run that ended lately has no receipt yet."""
    since = datetime.now(UTC) - FRESH
    return any(run.unconfirmed_since and instant(run.unconfirmed_since) > since for run in ledger.unconfirmed())


def is_overdue(run: Run, collector: Collector, now: datetime) -> bool:
    """Say whether the collector should have confirmed a run's log by now."""
    return now - run.awaits_receipt_since > timedelta(seconds=collector.overdue_after)


@contextmanager
def alone() -> Iterator[bool]:
    """Yield whether this process is the one that asks for receipts."""
    with paths.CONFIRMING.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def look(ledger: Ledger, engine: Engine, receipts: Receipts, collector: Collector, say: Teller) -> None:
    """Ask once for each missing receipt, and do what then is to be done about its run.

    What the collector confirmed before is looked for between asking and believing: one that was restored
    meanwhile would else confirm what came after that, and what it has lost would be missed.
    """
    away = None
    sent_again = False
    found: dict[str, dict[str, Any] | None] = {}
    try:
        waiting = ledger.unconfirmed()
        for run in waiting:
            found[run.id] = receipts.of(run)
        look_for_losses(ledger, receipts, collector, {run.pipeline for run in waiting}, say)
    except CollectorAway as error:
        away = error
    now = datetime.now(UTC)
    for run in ledger.unconfirmed():
        receipt = None if away else found.get(run.id)
        try:
            spool.take_back(paths.spool(run.pipeline, run.id))
            if receipt:
                accept(ledger, engine, run, receipt, say)
                continue
            if is_overdue(run, collector, now):
                since = f"{run.awaits_receipt_since:%F %H:%M} UTC"
                ledger.escalate(run.id, f"its log is not confirmed by the collector {collector.address} since {since}")
            if not away:
                sent_again = send_again_in_time(ledger, engine, run, collector, now, say) or sent_again
        except OSError as error:
            say(f"{run.pipeline}: the log of run {run.id}: {error.filename or 'the disk'}: {error.strerror}")
    put_by_the_done(ledger)
    if away and not awaited(ledger):
        say(str(away))
    if sent_again:
        restart_shipper()


def accept(ledger: Ledger, engine: Engine, run: Run, receipt: dict[str, Any], say: Teller) -> None:
    """Note a receipt that is of this very log, and remove the container; one that is not is told, and kept apart."""
    path = paths.spool(run.pipeline, run.id)
    end = spool.end_of(path)
    closed_with = run.closed_with or (end and spool.closed_with(end))
    if (end is None or spool.closed_with(end) != closed_with) and make_whole(ledger, engine, run, say):
        return  # compared when it is looked at again
    if closed_with and spool.closed_with(receipt) != closed_with:
        told = "the collector's receipt is not of this log: one of them was changed"
        if told not in (run.detail or ""):
            say(f"{run.pipeline}: run {run.id}: {told} ({closed_with[0]} lines here, {receipt.get('count')} there)")
        ledger.escalate(run.id, told)
        return
    ledger.confirm(run.id, str(receipt.get("received_at")))
    remove_container(engine, run)


def put_by_the_done(ledger: Ledger) -> None:
    """Put by the spools of settled runs for which no receipt is waited for: most by then are confirmed.

    Some just now, some before somebody died who would have done so; others were given up, or are from before there was
    a collector.
    """
    for path in paths.SPOOL.glob("*/*.ndjson"):
        noted = ledger.run(path.stem)
        if noted and noted.outcome and noted.unconfirmed_since is None:
            with suppress(OSError):  # the next look does it
                spool.put_by(path)


def remove_container(engine: Engine, run: Run) -> None:
    """Remove a run's ended container, and what it kept; what Docker does not do now, `reconcile` does."""
    kept.discard(run.pipeline, run.id)
    with suppress(EngineUnavailable):
        container = engine.find(run.pipeline, run.id)
        if container and not container.running:
            engine.remove(container)


def send_again_in_time(
    ledger: Ledger, engine: Engine, run: Run, collector: Collector, now: datetime, say: Teller
) -> bool:
    """Send a log again that the collector has lacked for long, at growing intervals; return whether it was."""
    patience = timedelta(seconds=collector.send_again_after)
    if run.send_again_at is None:
        ledger.send_again(run.id, now + patience)
    elif now >= instant(run.send_again_at):
        waited = now - run.awaits_receipt_since
        ledger.send_again(run.id, now + min(max(waited, patience), SEND_AGAIN_DAILY))
        send_again(ledger, engine, run, say)
        return True
    return False


def restart_shipper() -> None:
    """Restart rsyslog: after a certificate that was refused, it would not try again by itself (omrelp, 8.2504)."""
    if paths.ROOT.samefile("/"):  # a test has its own, and its machine's rsyslog is none of its business
        subprocess.run(["systemctl", "--no-block", "try-restart", "rsyslog.service"], capture_output=True, check=False)


def send_again(ledger: Ledger, engine: Engine, run: Run, say: Teller) -> None:
    """Give a run's spool a new inode; from its container's log where the spool is gone, cut off or changed."""
    path = paths.spool(run.pipeline, run.id)
    if not spool.is_whole(path, run.closed_with):
        make_whole(ledger, engine, run, say)
        return
    if shutil.disk_usage(path.parent).free < path.stat().st_size + ROOM:
        say(f"{run.pipeline}: there is no room to send the log of run {run.id} again: free some of {path.parent}")
        return
    copy = path.with_suffix(".again")
    try:
        shutil.copyfile(path, copy)
        copy.chmod(0o600)
        spool.flush(copy)
        copy.rename(path)
    finally:
        copy.unlink(missing_ok=True)
    spool.flush_directory(path.parent)
    say(f"{run.pipeline}: the log of run {run.id} is sent again, as the collector has not confirmed it")


def make_whole(ledger: Ledger, engine: Engine, run: Run, say: Teller) -> bool:
    """Make a run's spool anew from its container's output; what it was before is kept beside it.

    Returns False where there is nothing to make it from.
    """
    path = paths.spool(run.pipeline, run.id)
    try:
        container = engine.find(run.pipeline, run.id)
    except EngineUnavailable:
        return True  # looked at again
    if container is None and not paths.output(run.pipeline, run.id).exists():
        if not path.exists():
            say(f"{run.pipeline}: the log of run {run.id} is no longer on this host: neither spool nor container")
            return False
        if spool.is_closed(path):
            told = f"{path} was changed after it was closed, and its container is gone"
            if told not in (run.detail or ""):
                say(f"{run.pipeline}: {told}")
            ledger.escalate(run.id, told)
            return False
        spool.close_as_it_is(path, run.id)
        ledger.closed(run.id, spool.end_of(path))
        say(f"{run.pipeline}: {path} was cut off, and its container is gone: it is closed with what is left")
        return True
    if spool.is_closed(path):
        aside = path.with_suffix(f".changed-{datetime.now(UTC):%Y%m%dT%H%M%SZ}")
        path.rename(aside)
        say(f"{run.pipeline}: {path} was changed after it was closed: it is kept as {aside}")
    try:
        spool_log(engine, run.pipeline, run.id, container)
    except (EngineUnavailable, ContainerGone) as error:
        say(f"{run.pipeline}: the log of run {run.id} cannot be made anew from its container: {error or 'it is gone'}")
    else:
        ledger.closed(run.id, spool.end_of(path))
        say(f"{run.pipeline}: the log of run {run.id} is made anew from its container")
    return True


def forget(ledger: Ledger, confirmed_before: datetime, unknown_before: datetime) -> int:
    """Remove spools of runs that the collector confirmed, or that are no longer on record; return how many.

    Those are meant that were last written before an instant.
    """
    count = 0
    for path in paths.SPOOL.glob("*/*"):  # what is kept of changed ones, too
        with suppress(FileNotFoundError):
            written = datetime.fromtimestamp(path.stat().st_mtime, UTC)
            run = ledger.run(path.stem) if written < max(confirmed_before, unknown_before) else None
            if (run and run.receipt and written < confirmed_before) or (run is None and written < unknown_before):
                path.unlink()
                count += 1
    return count
