"""What the host does with the collector's word: over real TLS, with certificates of an authority made for the test."""

from __future__ import annotations

import json
import os
import secrets
import ssl
import subprocess
import threading
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from conftest import ProcessEngine
from standpipe import catch_up, cli, configuration, doctor, paths, report, runner
from standpipe import certificates as certificate_module
from standpipe.engines import Container, Line
from standpipe.ledger import Ledger, timestamp
from standpipe.logs import follow, receipts, spool

RUN = "01M84AKR264QPEVVWCM9BVPTMA"


def openssl(*arguments: str, cwd: Path) -> None:
    """Run openssl in a folder."""
    subprocess.run(["openssl", *arguments], cwd=cwd, check=True, capture_output=True)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, with a certificate for a collector and one for a host."""
    folder = tmp_path_factory.mktemp("certificates")
    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    extensions = ("-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign")
    files = ("-keyout", "ca.key", "-out", "ca.pem")
    openssl("req", "-x509", *new_key, *files, "-subj", "/CN=authority", "-days", "1", *extensions, cwd=folder)
    for name in ("logs-1", "batch-1", "stranger"):
        openssl("req", *new_key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}", cwd=folder)
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
                "-out", f"{name}.pem", "-days", "1", cwd=folder)  # fmt: skip
    return folder


class Collector:
    """Serves receipts from a dictionary, to whoever shows a certificate of the authority."""

    def __init__(self, folder: Path, name: str) -> None:
        self.receipts: dict[str, bytes] = {}
        self.asked = 0
        self.ends_connections = False
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:  # the library's name
                outer.asked += 1
                body = outer.receipts.get(self.path)
                self.send_response(404 if body is None else 200)
                self.send_header("Content-Length", str(len(body or b"")))
                if outer.ends_connections:
                    self.send_header("Connection", "close")
                    self.close_connection = True
                self.end_headers()
                self.wfile.write(body or b"")

            def log_message(self, *_arguments: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(folder / "ca.pem"))
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(folder / f"{name}.pem", folder / f"{name}.key")
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def confirm(self, pipeline: str, run: str, /, **changed: object) -> None:
        """Have the receipt of what is in the spool, or one that differs."""
        end = spool.end_of(paths.spool(pipeline, run)) or {}
        receipt = {"schema": 1, "host": "batch-1", "pipeline": pipeline, "run": run, "count": end.get("count"),
                   "sha256": end.get("sha256"), "received_at": "2026-11-23T03:00:05Z"} | changed  # fmt: skip
        self.receipts[f"/receipts/{pipeline}/{run}.json"] = json.dumps(receipt).encode()


class Docker:
    """The ended containers of runs, each with its log."""

    def __init__(self) -> None:
        self.logs: dict[str, list[Line]] = {}
        self.removed: list[str] = []

    def find(self, _pipeline: str, run: str) -> Container | None:
        if run not in self.logs:
            return None
        times = {"started_at": None, "ended_at": None}
        return Container(run, f"standpipe-arxlive.{run}", run, False, 0, image="", commit=None, error="", **times)

    def log(self, container: str) -> Iterator[Line]:
        yield from self.logs[container]

    def remove(self, container: Container) -> None:
        self.removed.append(container.run or "")
        del self.logs[container.run or ""]


class Host:
    """A host with one settled run, whose log is not confirmed."""

    def __init__(self, certificates: Path, collector_name: str = "logs-1") -> None:
        self.collector = Collector(certificates, collector_name)
        self.docker = Docker()
        self.said: list[str] = []
        paths.TLS.mkdir(parents=True)
        paths.STATE.mkdir(parents=True, exist_ok=True)
        for source, target in (("ca.pem", "ca.pem"), ("batch-1.pem", "host.pem"), ("batch-1.key", "host.key")):
            (paths.TLS / target).write_bytes((certificates / source).read_bytes())
        self.configure()
        self.ledger = Ledger(paths.LEDGER)
        self.docker.logs[RUN] = [Line(f"2026-11-23T03:00:0{n}Z", "stdout", f"line {n}".encode()) for n in range(3)]
        self.ledger.claim(RUN, "arxlive", "manual", date(2026, 11, 23), None, datetime.now(UTC))
        self.ledger.started(RUN, RUN, None, None, "")
        with spool.Spool(self.path, RUN) as file:
            for line in self.docker.logs[RUN]:
                file.write(line)
            file.finish()
        self.ledger.closed(RUN, spool.end_of(self.path))
        self.ledger.ended(RUN)
        self.ended_ago(timedelta(minutes=2))

    @property
    def path(self) -> Path:
        return paths.spool("arxlive", RUN)

    def configure(self, **more: object) -> None:
        port = self.collector.server.server_address[1]
        collector = {"address": "127.0.0.1", "names": ["logs-1", "logs-2"], "receipts_port": port} | more
        paths.SETTINGS.parent.mkdir(parents=True, exist_ok=True)
        paths.SETTINGS.write_text(json.dumps({"collector": collector}))

    def ended_ago(self, ago: timedelta) -> None:
        self.ledger.settle(RUN, "succeeded", exit_code=0, unconfirmed_since=datetime.now(UTC) - ago)

    def look(self) -> None:
        receipts.confirm(self.ledger, self.docker, self.said.append, wait=True)  # type: ignore[arg-type]  # as much as is asked of it


@pytest.fixture
def waiting(host: Path, certificates: Path) -> Host:
    return Host(certificates)


def test_a_receipt_is_noted_and_its_container_removed(waiting: Host) -> None:
    waiting.collector.confirm("arxlive", RUN)
    waiting.look()
    run = waiting.ledger.run(RUN)
    assert run
    assert run.receipt == "2026-11-23T03:00:05Z"
    assert run.unconfirmed_since is None
    assert waiting.docker.removed == [RUN]
    assert not waiting.path.exists(), "rsyslog would hold it open"
    assert spool.is_whole(spool.place(waiting.path))
    assert not waiting.said


def test_a_log_whose_receipt_somebody_noted_who_died_then_is_put_by_all_the_same(waiting: Host) -> None:
    waiting.collector.confirm("arxlive", RUN)
    waiting.ledger.confirm(RUN, "2026-11-23T03:00:05Z")
    waiting.path.with_suffix(spool.PUT_BY).hardlink_to(waiting.path)  # half of it was done
    waiting.look()
    assert not waiting.path.exists()
    assert spool.is_whole(spool.place(waiting.path))


def test_what_a_restored_ledger_has_forgotten_of_a_confirmed_log_is_not_made_up(waiting: Host) -> None:
    waiting.collector.confirm("arxlive", RUN)
    waiting.look()
    follow.close_as_it_is(waiting.docker, "arxlive", RUN)  # type: ignore[arg-type]
    assert [record["stream"] for record in spool.read(waiting.path)] == ["stdout", "stdout", "stdout", "end"]
    assert spool.place(waiting.path) == waiting.path


def test_a_log_that_was_given_up_leaves_rsyslog_s_sight(waiting: Host) -> None:
    assert waiting.ledger.accept_loss(RUN, "given up")
    waiting.look()
    assert not waiting.path.exists()
    assert spool.is_whole(spool.place(waiting.path))


def test_of_a_confirmed_run_whose_container_was_left_nothing_is_spooled_again(waiting: Host) -> None:
    logs = dict(waiting.docker.logs)
    waiting.collector.confirm("arxlive", RUN)
    waiting.look()
    waiting.docker.logs = logs
    waiting.docker.free = lambda _container: None  # type: ignore[attr-defined]
    runner.release(waiting.ledger, waiting.docker, RUN, "arxlive")  # type: ignore[arg-type]
    assert waiting.docker.removed == [RUN, RUN]
    assert not waiting.path.exists()


def test_what_is_not_confirmed_stays(waiting: Host) -> None:
    waiting.look()
    assert [run.id for run in waiting.ledger.unconfirmed()] == [RUN]
    assert not waiting.docker.removed
    told = report.unconfirmed(waiting.ledger, datetime.now(UTC))
    assert "has not confirmed: 1" in told
    assert "arxlive" in told


def test_what_is_missing_is_sent_again_as_a_new_file_of_the_same_bytes(waiting: Host) -> None:
    before, inode = waiting.path.read_bytes(), waiting.path.stat().st_ino
    waiting.look()
    assert waiting.path.stat().st_ino == inode, "not at once"
    waiting.ledger.send_again(RUN, datetime.now(UTC))
    waiting.look()
    assert waiting.path.stat().st_ino != inode
    assert waiting.path.read_bytes() == before
    run = waiting.ledger.run(RUN)
    assert run
    assert run.send_again_at
    assert run.send_again_at > timestamp(datetime.now(UTC) + timedelta(minutes=4))
    assert "is sent again" in waiting.said[-1]


def lose(path: Path) -> None:
    path.unlink()


def cut_off(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 20)


def change(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"line 1", b"lime 1"))


def insert(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], *lines]))


def forge(path: Path) -> None:
    """Have another spool in its place, closed as if it had always been that."""
    with spool.Spool(path.with_suffix(".forged"), RUN) as file:
        file.write(Line("2026-11-23T03:00:00Z", "stdout", b"all is well"))
        file.finish()
    path.with_suffix(".forged").rename(path)


@pytest.mark.parametrize("harm", [lose, cut_off, change, insert, forge])
def test_a_spool_that_is_not_what_it_was_is_made_anew_from_the_container(waiting: Host, harm: object) -> None:
    before = [json.loads(line) for line in waiting.path.read_text().splitlines()]
    harm(waiting.path)  # type: ignore[operator]
    harmed = waiting.path.read_bytes() if waiting.path.exists() else b""
    waiting.ledger.send_again(RUN, datetime.now(UTC))
    waiting.look()
    after = [json.loads(line) for line in waiting.path.read_text().splitlines()]
    assert after[:-1] == before[:-1]
    assert after[-1]["sha256"] == before[-1]["sha256"]
    assert spool.is_whole(waiting.path)
    kept = list(waiting.path.parent.glob(f"{RUN}.changed-*"))
    assert [path.read_bytes() for path in kept] == ([harmed] if harm in (change, insert, forge) else [])


def test_a_changed_spool_without_a_container_is_told_and_left(waiting: Host) -> None:
    change(waiting.path)
    waiting.docker.logs.clear()
    waiting.ledger.send_again(RUN, datetime.now(UTC))
    waiting.look()
    assert "was changed after it was closed, and its container is gone" in waiting.said[-1]
    assert waiting.ledger.unconfirmed()


def test_the_receipt_of_a_forged_spool_is_not_accepted_and_the_log_made_anew(waiting: Host) -> None:
    whole = spool.end_of(waiting.path)
    forge(waiting.path)
    waiting.collector.confirm("arxlive", RUN)
    waiting.look()
    run = waiting.ledger.run(RUN)
    assert run
    assert run.receipt is None
    assert "was changed after it was closed: it is kept as" in waiting.said[0]
    waiting.look()
    assert "the collector's receipt is not of this log" in waiting.said[-1]
    again = spool.end_of(waiting.path)
    assert whole
    assert again
    assert spool.closed_with(again) == spool.closed_with(whole)


def test_the_receipt_of_a_forged_spool_whose_container_is_gone_is_told_once_and_not_accepted(waiting: Host) -> None:
    waiting.docker.logs.clear()
    forge(waiting.path)
    waiting.collector.confirm("arxlive", RUN)
    waiting.look()
    waiting.look()
    assert len(waiting.said) == 2
    assert "its container is gone" in waiting.said[0]
    assert "not of this log" in waiting.said[1]
    assert waiting.ledger.unconfirmed()


def test_a_receipt_of_what_was_closed_is_accepted_though_the_spool_was_forged_later(waiting: Host) -> None:
    waiting.collector.confirm("arxlive", RUN)
    waiting.docker.logs.clear()
    forge(waiting.path)
    waiting.look()
    assert "was changed after it was closed" in waiting.said[0]
    assert not waiting.ledger.unconfirmed()


def test_a_receipt_of_another_log_is_told_once_and_never_accepted(waiting: Host) -> None:
    waiting.collector.confirm("arxlive", RUN, count=2)
    waiting.look()
    waiting.look()
    assert len(waiting.said) == 1
    assert "not of this log" in waiting.said[0]
    assert "3 lines here, 2 there" in waiting.said[0]
    run = waiting.ledger.run(RUN)
    assert run
    assert run.receipt is None
    assert run.notice == "unconfirmed"
    assert not waiting.docker.removed


def test_a_receipt_in_another_runs_name_is_none(waiting: Host) -> None:
    waiting.collector.confirm("arxlive", RUN, run=RUN[:-1] + "B")
    waiting.look()
    assert waiting.ledger.unconfirmed()
    assert "none of" in waiting.said[-1]


def test_an_overdue_receipt_is_told_once(waiting: Host) -> None:
    waiting.configure(overdue_after=60)
    waiting.look()
    assert [run.notice for run in waiting.ledger.notices()] == ["unconfirmed"]
    waiting.ledger.told([RUN], "unconfirmed")
    waiting.look()
    assert waiting.ledger.notices() == []


def test_a_collector_that_is_away_is_told_and_nothing_is_sent_again(waiting: Host) -> None:
    waiting.collector.server.shutdown()
    waiting.collector.server.server_close()
    waiting.look()
    run = waiting.ledger.run(RUN)
    assert "cannot be asked" in waiting.said[-1]
    assert run
    assert run.send_again_at is None


@pytest.mark.parametrize("lost", ["host.pem", "host.key", "ca.pem"])
def test_a_certificate_that_is_lost_is_told_and_so_is_what_is_overdue(
    waiting: Host, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(cli, "in_another_process", lambda *command: asked.append(command))
    waiting.configure(overdue_after=60)
    (paths.TLS / lost).unlink()
    cli.pass_on(waiting.ledger)
    assert asked == [("reconcile", "--receipts")]
    waiting.look()
    assert f"{paths.TLS / lost} is missing" in waiting.said[-1]
    assert [run.notice for run in waiting.ledger.notices()] == ["unconfirmed"]
    assert any(lost in one.seen and one.remedy == certificate_module.RENEWS for one in certificate_module.here())
    found = next(doctor.look_at_receipts())
    assert (found.remedy, found.exit_code) == ("run site.yml on this host, which makes it anew", 69)


def test_a_receipt_that_is_damaged_is_none_and_keeps_no_other_waiting(
    waiting: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receipts, "FRESH", timedelta(0))
    waiting.collector.confirm("arxlive", RUN)
    waiting.look()
    waiting.collector.receipts[f"/receipts/arxlive/{RUN}.json"] = b""
    run = another_run(waiting)
    waiting.collector.confirm("arxlive", run)
    waiting.look()
    assert [left.id for left in waiting.ledger.unconfirmed()] == [RUN]
    assert any("no longer holds 1 logs" in said for said in waiting.said)


def test_a_collector_of_another_name_is_refused(host: Path, certificates: Path) -> None:
    waiting = Host(certificates, collector_name="stranger")
    waiting.collector.confirm("arxlive", RUN)
    waiting.look()
    assert "shows the certificate of stranger" in waiting.said[-1]
    assert waiting.collector.asked == 0
    assert waiting.ledger.unconfirmed()


def test_a_connection_that_the_collector_ends_is_made_anew(waiting: Host) -> None:
    waiting.collector.ends_connections = True
    waiting.collector.confirm("arxlive", RUN)
    collector = configuration.settings().collector
    assert collector
    asking = receipts.Receipts(collector)
    run = waiting.ledger.run(RUN)
    assert run
    assert [bool(asking.of(run)) for _ in range(3)] == [True] * 3


def test_a_run_that_has_ended_just_now_is_waited_for(waiting: Host) -> None:
    with waiting.ledger._transaction() as db:
        db.execute("UPDATE runs SET unconfirmed_since = ?", (timestamp(datetime.now(UTC)),))
    threading.Timer(0.5, waiting.collector.confirm, ("arxlive", RUN)).start()
    waiting.look()
    assert not waiting.ledger.unconfirmed()


def test_a_second_process_leaves_it_to_the_first(waiting: Host) -> None:
    with receipts.alone() as chosen:
        assert chosen
        waiting.look()
    assert waiting.collector.asked == 0


def test_what_a_restored_collector_has_lost_is_told_and_sent_again(
    waiting: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting.collector.confirm("arxlive", RUN)
    waiting.look()
    assert not waiting.ledger.unconfirmed()
    waiting.collector.receipts.clear()
    put_by = spool.place(waiting.path)
    before, inode = put_by.read_bytes(), put_by.stat().st_ino
    monkeypatch.setattr(receipts, "FRESH", timedelta(0))  # else it is waited for, as a run that has ended just now
    waiting.look()
    assert "no longer holds 1 logs" in waiting.said[0]
    assert [run.id for run in waiting.ledger.unconfirmed()] == [RUN]
    assert spool.place(waiting.path) == waiting.path, "what is put by is not sent"
    assert waiting.path.read_bytes() == before
    assert waiting.path.stat().st_ino != inode
    waiting.collector.confirm("arxlive", RUN)
    waiting.look()
    run = waiting.ledger.run(RUN)
    assert run is not None
    assert run.receipt


def another_run(waiting: Host, letter: str = "B", name: str = "arxlive") -> str:
    """Have one more settled run, which has ended just now."""
    run = RUN[:-1] + letter
    waiting.ledger.claim(run, name, "manual", date(2026, 11, 24), None, datetime.now(UTC))
    waiting.ledger.started(run, run, None, None, "")
    with spool.Spool(paths.spool(name, run), run) as file:
        file.write(Line("2026-11-24T03:00:00Z", "stdout", b"x"))
        file.finish()
    waiting.ledger.ended(run)
    waiting.ledger.settle(run, "succeeded", exit_code=0, unconfirmed_since=datetime.now(UTC))
    return run


def test_a_collector_that_is_restored_while_a_receipt_is_waited_for_is_told(waiting: Host) -> None:
    waiting.collector.confirm("arxlive", RUN)
    waiting.look()
    run = another_run(waiting)

    def restore() -> None:
        waiting.collector.receipts.clear()
        waiting.collector.confirm("arxlive", run, received_at="2026-11-24T03:00:05Z")

    timer = threading.Timer(0.6, restore)
    timer.start()
    receipts.confirm(waiting.ledger, waiting.docker, waiting.said.append, wait=False)  # type: ignore[arg-type]
    timer.join()
    receipts.confirm(waiting.ledger, waiting.docker, waiting.said.append, wait=False)  # type: ignore[arg-type]
    assert "no longer holds 1 logs" in waiting.said[0]
    noted = waiting.ledger.run(RUN)
    assert noted
    assert noted.receipt is None


def confirmed_runs(waiting: Host, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Have two confirmed runs of arxlive, and a later one of another pipeline; return their pipelines."""
    waiting.ledger.confirm(RUN, "2026-11-23T03:00:05Z")
    waiting.collector.confirm("arxlive", RUN)
    monkeypatch.setattr(receipts, "FRESH", timedelta(0))
    runs = {RUN: "arxlive"}
    for day, (letter, name) in enumerate((("B", "arxlive"), ("C", "other")), start=24):
        run = another_run(waiting, letter, name)
        received = f"2026-11-{day}T03:00:05Z"
        waiting.collector.confirm(name, run, received_at=received)
        waiting.ledger.confirm(run, received)
        runs[run] = name
    waiting.look()
    assert not waiting.said
    return runs


def test_a_collector_that_lost_what_it_confirmed_last_of_one_pipeline_is_told_within_an_hour(
    waiting: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    _first, second, _other = confirmed_runs(waiting, monkeypatch)
    del waiting.collector.receipts[f"/receipts/arxlive/{second}.json"]
    waiting.look()
    assert not waiting.said
    an_hour_later()
    waiting.look()
    assert [run.id for run in waiting.ledger.unconfirmed()] == [second]


def test_before_a_receipt_is_believed_the_one_before_of_its_pipeline_is_asked_for(
    waiting: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    _first, second, _other = confirmed_runs(waiting, monkeypatch)
    del waiting.collector.receipts[f"/receipts/arxlive/{second}.json"]
    third = another_run(waiting, "D")
    waiting.collector.confirm("arxlive", third)
    waiting.look()
    assert [run.id for run in waiting.ledger.unconfirmed()] == [second]


def test_a_collector_that_lost_older_logs_is_told_when_one_of_them_is_asked_for(
    waiting: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _second, other = confirmed_runs(waiting, monkeypatch)
    for run, name in ((first, "arxlive"), (other, "other")):
        del waiting.collector.receipts[f"/receipts/{name}/{run}.json"]
    waiting.ledger.confirm(other, "2026-11-22T03:00:05Z")
    waiting.collector.confirm("other", another_run(waiting, "D", "other"), received_at="2026-11-25T03:00:05Z")
    waiting.ledger.confirm(RUN[:-1] + "D", "2026-11-25T03:00:05Z")
    an_hour_later()
    monkeypatch.setattr(secrets, "choice", lambda _paths: paths.spool("arxlive", first))
    waiting.look()
    assert [run.id for run in waiting.ledger.unconfirmed()] == [first, other]


def an_hour_later() -> None:
    before = paths.LOOKED_BACK.stat().st_mtime - 3600
    os.utime(paths.LOOKED_BACK, (before, before))


def test_nothing_is_believed_of_a_collector_that_could_not_be_asked_for_what_it_had(
    waiting: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting.collector.confirm("arxlive", RUN)
    waiting.look()
    run = another_run(waiting)
    waiting.collector.confirm("arxlive", run)

    def away(*_arguments: object) -> None:
        raise receipts.CollectorAway("the collector cannot be asked")

    monkeypatch.setattr(receipts, "look_for_losses", away)
    receipts.confirm(waiting.ledger, waiting.docker, waiting.said.append, wait=False)  # type: ignore[arg-type]
    assert [run.id for run in waiting.ledger.unconfirmed()] == [run]


def test_what_a_collector_has_removed_by_its_age_is_no_loss(waiting: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    eight_days_ago = datetime.now(UTC) - timedelta(days=8)
    waiting.collector.confirm("arxlive", RUN, received_at=timestamp(eight_days_ago))
    waiting.look()
    waiting.collector.receipts.clear()
    monkeypatch.setattr(receipts, "FRESH", timedelta(0))
    waiting.configure(keeps_days=7)
    waiting.look()
    assert waiting.said == []
    assert not waiting.ledger.unconfirmed()
    waiting.configure(keeps_days=30)
    waiting.look()
    assert "no longer holds 1 logs" in waiting.said[0]


def test_confirmed_logs_go_in_time_and_others_stay(waiting: Host) -> None:
    old = datetime.now(UTC) - timedelta(days=40)
    os.utime(waiting.path, (old.timestamp(), old.timestamp()))
    month, years = datetime.now(UTC) - timedelta(days=30), datetime.now(UTC) - timedelta(days=1830)
    assert receipts.forget(waiting.ledger, month, years) == 0, "it is not confirmed"
    waiting.collector.confirm("arxlive", RUN)
    waiting.look()
    unknown = waiting.path.with_name(f"{RUN[:-1]}Z.ndjson")
    unknown.write_bytes(b"")
    os.utime(unknown, (old.timestamp(), old.timestamp()))
    assert receipts.forget(waiting.ledger, month, years) == 1
    assert not spool.place(waiting.path).exists()
    assert unknown.exists(), "a ledger that was lost is no reason to lose logs"


def test_without_a_collector_nothing_waits_for_one(host: Path, certificates: Path) -> None:
    waiting = Host(certificates)
    paths.SETTINGS.write_text("{}")
    assert configuration.settings().collector is None
    waiting.look()
    assert waiting.collector.asked == 0


def test_where_the_collector_is_declared_no_more_nothing_waits_for_it_and_the_logs_stay(
    host: Path, certificates: Path, engine: ProcessEngine
) -> None:
    waiting = Host(certificates)
    waiting.ledger.settle(RUN, "succeeded", exit_code=0)
    paths.output("arxlive", RUN).write_bytes(b"kept")

    def look() -> None:
        catch_up.catch_up(waiting.ledger, engine, lambda _line: None, pytest.fail, datetime.now(UTC))

    look()
    assert waiting.ledger.unconfirmed()
    paths.SETTINGS.write_text("{}")
    look()
    assert waiting.ledger.unconfirmed() == []
    assert "no collector any more" in str(getattr(waiting.ledger.run(RUN), "detail", ""))
    assert waiting.path.exists()
    assert not paths.output("arxlive", RUN).exists()
