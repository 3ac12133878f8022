"""Word of runs, to a real web server; and metrics, in Prometheus' own text."""

from __future__ import annotations

import email
import email.message
import email.policy
import json
import os
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from conftest import DECLARED, ProcessEngine, have_certificates
from standpipe import catch_up, certificates, cli, metrics, notify, paths, runner
from standpipe.engines import compose
from standpipe.errors import ConfigurationError
from standpipe.ledger import Ledger
from standpipe.pipeline import Pipeline
from standpipe.scan.secrets import Detector

KEY, SECRET = "AKIA" + "A" * 16, "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
TOKEN = "IQoJb3JpZ2luX2VjE" + "aB3/" * 80


def nothing(_told: object) -> None:
    pass


class Hook:
    """A web server that takes every message, or refuses it."""

    def __init__(self) -> None:
        self.taken: list[dict[str, Any]] = []
        self.pings = 0
        self.status = 200
        self.delay = 0.0
        self.asked = 0
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                hook.asked += 1
                time.sleep(hook.delay)
                if hook.status == 200:
                    hook.taken.append(body)
                self.send_response(hook.status)
                self.end_headers()

            def do_GET(self) -> None:
                hook.pings += 1
                self.send_response(hook.status)
                self.end_headers()

            def log_message(self, *_arguments: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def hook(host: Path) -> Iterator[Hook]:
    hook = Hook()
    paths.NOTIFY.parent.mkdir(parents=True, exist_ok=True)
    settings = {"urls": [f"json://127.0.0.1:{hook.port}/x"], "ping_url": f"http://127.0.0.1:{hook.port}/ping"}
    paths.NOTIFY.write_text(yaml.safe_dump(settings))
    yield hook
    hook.server.shutdown()
    hook.server.server_close()


def run(ledger: Ledger, engine: ProcessEngine, program: str) -> None:
    engine.program = program
    runner.run(ledger, engine, "arxlive", None, scheduled=False, listen=nothing, say=nothing)


def test_a_failure_is_told_with_the_end_of_its_log_and_without_a_secret(
    ledger: Ledger, engine: ProcessEngine, hook: Hook
) -> None:
    paths.CREDENTIALS.mkdir(parents=True)
    (paths.CREDENTIALS / "arxlive").write_text(
        f"[default]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n"
    )
    lines = ["first"] * 30 + [f"with {KEY}", f"and {SECRET}", "at https://me:hunter2@x/", "password=hunter2", "the end"]
    run(ledger, engine, f"for line in {lines!r}: print(line)\nimport os, sys; sys.stdout.flush(); os._exit(30)")
    notify.tell(ledger, nothing)
    (told,) = hook.taken
    assert "arxlive" in told["title"]
    assert "failed" in told["title"]
    assert "exit code: 30" in told["message"]
    assert told["message"].endswith("the end")
    assert told["message"].count("first") == 15
    for secret in (KEY, SECRET, "hunter2"):
        assert secret not in told["message"]
    notify.tell(ledger, nothing)
    assert len(hook.taken) == 1


def two_tell_at_once(hook: Hook, tell: str) -> None:
    hook.delay = 2  # seconds: the other one looks meanwhile
    program = f"from standpipe import certificates, ledger, notify, paths; {tell}"
    tellers = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(2)]
    assert [teller.wait(timeout=60) for teller in tellers] == [0, 0]
    assert len(hook.taken) == 1


def test_two_processes_that_tell_at_once_send_one_message(ledger: Ledger, engine: ProcessEngine, hook: Hook) -> None:
    run(ledger, engine, "import os; os._exit(30)")
    two_tell_at_once(hook, "notify.tell(ledger.Ledger(paths.LEDGER), print)")
    assert titles(hook) == ["failed"]
    assert ledger.notices() == []


def test_recovery_is_told_once_and_success_is_not(ledger: Ledger, engine: ProcessEngine, hook: Hook) -> None:
    for program in ("print()", "import os; os._exit(30)", "print()", "print()"):
        run(ledger, engine, program)
        notify.tell(ledger, nothing)
    assert [told["title"].partition(": ")[2] for told in hook.taken] == ["failed", "recovered"]


def test_what_could_not_be_sent_is_sent_later_and_changes_no_outcome(
    ledger: Ledger, engine: ProcessEngine, hook: Hook
) -> None:
    hook.status = 500
    said: list[str] = []
    run(ledger, engine, "import os; os._exit(30)")
    notify.tell(ledger, said.append)
    assert "could not be sent" in said[0]
    assert ledger.history("arxlive", 1)[0].exit_code == 30
    hook.status = 200
    notify.tell(ledger, nothing)
    assert len(hook.taken) == 1


def test_nobody_is_told_old_news_when_somebody_is_named_at_last(ledger: Ledger, engine: ProcessEngine) -> None:
    run(ledger, engine, "import os; os._exit(30)")
    notify.tell(ledger, nothing)
    assert ledger.notices() == []


def test_missed_slots_are_told(ledger: Ledger, engine: ProcessEngine, hook: Hook) -> None:
    document = yaml.safe_load(DECLARED) | {
        "late_after": "1h",
        "schedule": {"cron": "0 * * * *", "start_within": "1h30m"},
    }
    (paths.PIPELINES / "arxlive.yml").write_text(yaml.safe_dump(document))
    ledger.register(Pipeline.model_validate(document), datetime.now(UTC) - timedelta(hours=5))
    engine.program = "import os; os._exit(30)"
    catch_up.catch_up(ledger, engine, nothing, nothing, datetime.now(UTC))
    notify.tell(ledger, nothing)
    titles = [told["title"].partition(": ")[2] for told in hook.taken]
    assert any(title.startswith("missed") for title in titles)


def test_a_slot_that_nothing_has_finished_in_its_time_is_told_as_late(
    ledger: Ledger, engine: ProcessEngine, hook: Hook
) -> None:
    document = yaml.safe_load(DECLARED) | {"late_after": "5m", "schedule": {"cron": "*/5 * * * *"}}
    (paths.PIPELINES / "arxlive.yml").write_text(yaml.safe_dump(document))
    now = datetime.now(UTC)
    ledger.register(Pipeline.model_validate(document), now - timedelta(minutes=1))
    engine.program = "import os; os._exit(30)"
    for minutes in (10, 13):  # it is tried, and to be tried again; then its time is over
        catch_up.catch_up(ledger, engine, nothing, nothing, now + timedelta(minutes=minutes))
        notify.tell(ledger, nothing)
    assert "late" in titles(hook)


def test_a_damaged_file_is_told_without_what_is_in_it(host: Path) -> None:
    paths.NOTIFY.write_text("urls: [slack://hunter2]\nping_uri: https://hunter2\n")
    with pytest.raises(ConfigurationError, match=r"is damaged.*ping_uri") as error:
        notify.settings()
    assert "hunter2" not in str(error.value)


def test_the_dead_man_s_switch_hears_of_a_host_that_is_up(host: Path, hook: Hook) -> None:
    notify.ping(nothing)
    assert hook.pings == 1
    hook.status = 500
    said: list[str] = []
    notify.ping(said.append)
    assert "could not be reached" in said[0]


def test_what_fails_in_passing_word_on_changes_nothing(ledger: Ledger, engine: ProcessEngine) -> None:
    paths.NOTIFY.parent.mkdir(parents=True, exist_ok=True)
    paths.NOTIFY.write_text("urls: {")
    run(ledger, engine, "import os; os._exit(30)")
    cli.pass_on(ledger, ping=True)
    assert ledger.history("arxlive", 1)[0].outcome == "failed"


def test_metrics_are_prometheus_own_text(ledger: Ledger, engine: ProcessEngine) -> None:
    metrics.write(ledger)  # no such directory: nothing
    paths.METRICS.mkdir(parents=True)
    for program in ("print()", "import os; os._exit(30)"):
        run(ledger, engine, program)
    metrics.write(ledger)
    text = (paths.METRICS / "standpipe.prom").read_text()
    found = {
        (sample.name, sample.labels.get("outcome")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert found[("standpipe_runs", "succeeded")] == found[("standpipe_runs", "failed")] == 1
    assert found[("standpipe_running", None)] == found[("standpipe_slots_missed", None)] == 0
    age = datetime.now(UTC).timestamp() - found[("standpipe_last_success_timestamp_seconds", None)]
    assert 0 <= age < 60
    assert found[("standpipe_last_duration_seconds", None)] > 0


def test_the_metrics_are_everybody_s_to_read_whatever_the_umask(ledger: Ledger) -> None:
    paths.METRICS.mkdir(parents=True)
    before = os.umask(0o077)
    try:
        metrics.write(ledger)
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in paths.METRICS.iterdir()] == [0o644]


def test_a_removed_pipeline_leaves_the_metrics(ledger: Ledger, engine: ProcessEngine) -> None:
    paths.METRICS.mkdir(parents=True)
    run(ledger, engine, "print()")
    (paths.PIPELINES / "arxlive.yml").unlink()
    runner.reconcile(ledger, engine, wait=False, say=nothing)
    metrics.write(ledger)
    assert "arxlive" not in (paths.METRICS / "standpipe.prom").read_text()
    assert ledger.history("arxlive", 1)


def test_metrics_that_cannot_be_written_fail_no_reconcile(
    ledger: Ledger, engine: ProcessEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths.METRICS.mkdir(parents=True)
    paths.BUDGETS.write_text("[{name: units, limit: '10', timezone: Nowhere/Gone}]")
    monkeypatch.setattr(compose, "ComposeEngine", lambda: engine)
    assert cli.main(["reconcile", "--no-wait"]) == 0


@pytest.mark.parametrize(("delay", "asked"), [(0.3, 1), (0.0, 3)])
def test_an_address_that_hangs_is_asked_once_and_one_that_refuses_for_each(
    ledger: Ledger, hook: Hook, monkeypatch: pytest.MonkeyPatch, delay: float, asked: int
) -> None:
    monkeypatch.setattr(notify, "HANGS_AFTER", 0.2)
    hook.status, hook.delay = 500, delay
    now = datetime.now(UTC)
    for number in range(3):
        ledger.claim(f"R{number}", f"p{number}", "manual", now.date(), None, now)
        ledger.settle(f"R{number}", "failed", exit_code=30, notice="failed")
    notify.tell(ledger, nothing)
    assert hook.asked == asked
    hook.status, hook.delay = 200, 0.0
    notify.tell(ledger, nothing)
    assert titles(hook) == ["failed"] * 3


def test_what_hangs_keeps_metrics_and_the_ping_from_nobody(
    ledger: Ledger, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths.METRICS.mkdir(parents=True)

    def hangs(*_arguments: object) -> None:
        assert hook.pings == 1
        assert (paths.METRICS / "standpipe.prom").exists()

    monkeypatch.setattr(notify, "tell", hangs)
    monkeypatch.setattr(cli, "note", pytest.fail)
    cli.pass_on(ledger, ping=True, looks_ahead=True)
    assert hook.pings == 1


def test_an_address_that_refuses_costs_no_other_a_second_message(
    ledger: Ledger, engine: ProcessEngine, hook: Hook
) -> None:
    bad = Hook()
    bad.status = 500
    urls = [f"json://127.0.0.1:{port}/x" for port in (hook.port, bad.port)]
    paths.NOTIFY.write_text(yaml.safe_dump({"urls": [*urls, "nosuchscheme://x"]}))
    run(ledger, engine, "import os; os._exit(30)")
    for _ in range(3):
        notify.tell(ledger, nothing)
    assert (len(hook.taken), len(bad.taken)) == (1, 0)
    bad.status = 200
    notify.tell(ledger, nothing)
    assert (len(hook.taken), len(bad.taken)) == (1, 1)
    bad.server.shutdown()
    bad.server.server_close()


def titles(hook: Hook) -> list[str]:
    return [told["title"].partition(": ")[2] for told in hook.taken]


def test_a_retry_that_succeeds_is_no_recovery_of_what_nobody_was_told(
    ledger: Ledger, engine: ProcessEngine, hook: Hook
) -> None:
    document = yaml.safe_load(DECLARED) | {"retries": {"count": 2, "delay": "1s"}}
    (paths.PIPELINES / "arxlive.yml").write_text(yaml.safe_dump(document))
    ledger.register(Pipeline.model_validate(document), datetime.now(UTC) - timedelta(hours=1))
    for program in ("import os; os._exit(30)", "print()"):
        engine.program = program
        slot = datetime.now(UTC).replace(second=0, microsecond=0)
        trigger = "retry" if ledger.retries("arxlive") else "scheduled"
        slot = ledger.retries("arxlive")[0][0] if trigger == "retry" else slot
        with runner.stop_requests() as requests:
            pipeline = Pipeline.model_validate(document)
            runner.attempt(
                ledger, engine, "arxlive", trigger, slot, slot.date(), pipeline, requests, nothing, nothing
            )  # fmt: skip
        notify.tell(ledger, nothing)
    assert titles(hook) == []


def test_a_damaged_declaration_and_a_late_slot_are_told_and_so_is_their_recovery(
    ledger: Ledger, engine: ProcessEngine, hook: Hook
) -> None:
    ledger.register(Pipeline.model_validate(yaml.safe_load(DECLARED)), datetime.now(UTC) - timedelta(hours=1))
    (paths.PIPELINES / "arxlive.yml").write_text("name: [")
    with pytest.raises(ConfigurationError):
        runner.run(ledger, engine, "arxlive", None, scheduled=True, listen=nothing, say=nothing)
    (paths.PIPELINES / "arxlive.yml").write_text(DECLARED)
    run(ledger, engine, "print()")
    notify.tell(ledger, nothing)
    failed = next(one for one in ledger.history("arxlive", 9) if one.slot)
    now = datetime.now(UTC)
    ledger.note_late("unused", "arxlive", datetime.fromisoformat(failed.slot or ""), now.date(), now)
    run(ledger, engine, "print()")
    notify.tell(ledger, nothing)
    assert titles(hook) == ["failed", "recovered", "late", "recovered"]


@pytest.mark.parametrize(
    ("outcome", "notice", "told"),
    [("succeeded", "recovered", ["late"]), ("failed", None, ["late"]), ("failed", "failed", ["failed"])],
)
def test_what_was_late_and_has_ended_before_anybody_heard_of_it_is_told_once(
    ledger: Ledger, hook: Hook, outcome: str, notice: str | None, told: list[str]
) -> None:
    now = datetime.now(UTC)
    ledger.register(Pipeline.model_validate(yaml.safe_load(DECLARED)), now)
    ledger.claim("R", "arxlive", "scheduled", now.date(), now, now)
    ledger.note_late("unused", "arxlive", now, now.date(), now)
    ledger.settle("R", outcome, exit_code=0, notice=notice)
    notify.tell(ledger, nothing)
    assert titles(hook) == told
    assert f"outcome: {outcome}" in hook.taken[0]["message"]
    assert (ledger.trouble("arxlive") is None) == (outcome == "succeeded")


def test_of_what_one_address_has_heard_as_late_all_hear_that_it_recovered(ledger: Ledger, hook: Hook) -> None:
    now = datetime.now(UTC)
    ledger.register(Pipeline.model_validate(yaml.safe_load(DECLARED)), now)
    ledger.claim("R", "arxlive", "scheduled", now.date(), now, now)
    ledger.note_late("unused", "arxlive", now, now.date(), now)
    ledger.deliver(["R"], "late", "another")
    ledger.settle("R", "succeeded", exit_code=0, notice="recovered")
    notify.tell(ledger, nothing)
    assert titles(hook) == ["recovered"]


def test_word_is_as_old_as_it_was_noted_and_not_as_its_run(ledger: Ledger, hook: Hook) -> None:
    now = datetime.now(UTC)
    began, ended = now - timedelta(days=3), f"{now - timedelta(days=2):%FT%T}Z"
    for number, pipeline in enumerate(("given-up", "late")):
        ledger.register(Pipeline.model_validate(yaml.safe_load(DECLARED) | {"name": pipeline}), began)
        ledger.claim(f"R{number}", pipeline, "scheduled", began.date(), began, began)
    ledger.settle("R0", "failed", exit_code=30, ended_at=ended, retry_at=now)
    ledger.give_up("given-up", began)
    ledger.note_late("unused", "late", began, began.date(), now)
    ledger.claim("R2", "old", "manual", began.date(), None, began)
    ledger.settle("R2", "failed", exit_code=30, ended_at=ended, notice="failed")
    ledger._connection.execute("UPDATE runs SET noted_at = ended_at WHERE id = 'R2'")
    notify.tell(ledger, nothing)
    assert titles(hook) == ["failed", "late"]
    assert ledger.notices() == []


def test_a_ledger_that_was_lost_is_told_once(ledger: Ledger, hook: Hook) -> None:
    paths.LEDGER.unlink()
    Ledger(paths.LEDGER).close()
    said: list[str] = []
    hook.status = 500
    notify.tell_of_a_new_ledger(said.append)
    hook.status = 200
    for _again in range(2):
        notify.tell_of_a_new_ledger(said.append)
    assert len(said) == 1
    (told,) = hook.taken
    assert "began anew" in told["title"]


def test_a_lost_ledger_is_told_once_though_one_of_the_addresses_is_dead(host: Path, hook: Hook) -> None:
    paths.STATE.mkdir(parents=True, exist_ok=True)
    paths.LEDGER_BEGUN.write_text("begun anew")
    paths.NOTIFY.write_text(yaml.safe_dump({"urls": ["nosuchscheme://x", f"json://127.0.0.1:{hook.port}/x"]}))
    for _ in range(2):
        notify.tell_of_a_new_ledger(nothing)
    assert len(hook.taken) == 1


def test_two_processes_tell_of_a_lost_ledger_and_of_certificates_once(host: Path, hook: Hook) -> None:
    have_certificates(13, 100)
    two_tell_at_once(hook, "certificates.warn(print)")
    hook.taken.clear()
    paths.LEDGER_BEGUN.write_text("begun anew")
    two_tell_at_once(hook, "notify.tell_of_a_new_ledger(print)")


def test_what_is_to_be_told_since_a_message_was_made_is_told_too(ledger: Ledger, host: Path) -> None:
    now = datetime.now(UTC)
    ledger.claim("A", "arxlive", "manual", now.date(), None, now)
    ledger.settle("A", "failed", exit_code=30, notice="failed")
    ledger.told(["A"], "late")
    assert [one.notice for one in ledger.notices()] == ["failed"]


@pytest.mark.parametrize(
    "line",
    [
        "aws_secret_access_key=hunter2", "SECRET_KEY=hunter2", "Authorization: Bearer hunter2", "--password hunter2",
        "passwd=hunter2", '{"password": "a b hunter2"}', "mysql --password=hunter2 -u me", "my_token: hunter2",
    ],
)  # fmt: skip
def test_what_looks_like_a_secret_in_a_log_is_in_no_message(
    ledger: Ledger, engine: ProcessEngine, hook: Hook, line: str
) -> None:
    key = ["-----BEGIN RSA PRIVATE KEY-----", "MIIhunter2", "-----END RSA PRIVATE KEY-----", "ghp_" + "a" * 36]
    run(
        ledger,
        engine,
        f"for l in {[*key, line, 'the end']!r}: print(l)\nimport os, sys; sys.stdout.flush(); os._exit(1)",
    )
    notify.tell(ledger, nothing)
    (told,) = hook.taken
    assert told["message"].endswith("the end")
    assert "hunter2" not in told["message"]
    assert "ghp_" not in told["message"]


@pytest.mark.parametrize(
    "line",
    [f"ReadOnlyCredentials('ASIA{'Q' * 16}', '{SECRET}', '{TOKEN}')", SECRET, f"export {TOKEN}", f"{TOKEN}=="],
)
def test_keys_that_were_issued_for_a_run_and_printed_bare_are_in_no_message(line: str) -> None:
    masked = notify.without_secrets(line, set(), Detector())
    for secret in ("ASIA", SECRET, TOKEN):
        assert secret not in masked


def test_a_commit_a_digest_and_a_path_are_no_secrets() -> None:
    line = f"{'c0ffee12' * 5} sha256:{'0a' * 32} /usr/lib/python3.13/{'packages/' * 15} RootTask_2026_11_20_c0ffee1234"
    assert notify.without_secrets(line, set(), Detector()) == line


def test_a_line_without_end_holds_up_no_message_and_is_cut_before_a_word(
    ledger: Ledger, engine: ProcessEngine, hook: Hook
) -> None:
    run(ledger, engine, "import os; print('result:', 'a' * 1_000_000, flush=True); os._exit(30)")
    began = time.monotonic()
    notify.tell(ledger, nothing)
    assert time.monotonic() - began < 20
    (told,) = hook.taken
    assert told["message"].endswith("result: ...")


class Mailbox(socketserver.StreamRequestHandler):
    """A mail server (RFC 5321), of one mail at a time, which it keeps."""

    mails: ClassVar[list[str]] = []

    def handle(self) -> None:
        self.wfile.write(b"220 mail.example.org\r\n")
        for line in self.rfile:
            word = line.split()[0].upper()
            if word == b"DATA":
                self.wfile.write(b"354 go on\r\n")
                self.mails.append(b"".join(iter(self.rfile.readline, b".\r\n")).decode())
            self.wfile.write(b"221 bye\r\n" if word == b"QUIT" else b"250 ok\r\n")


def test_a_mailbox_and_a_slack_like_channel_are_told(ledger: Ledger, engine: ProcessEngine, hook: Hook) -> None:
    with socketserver.TCPServer(("127.0.0.1", 0), Mailbox) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        mail = f"mailto://127.0.0.1:{server.server_address[1]}/?from=host@example.org&to=team@example.org"
        paths.NOTIFY.write_text(yaml.safe_dump({"urls": [mail, f"mmost://127.0.0.1:{hook.port}/token"]}))
        run(ledger, engine, "import os; print('the end', flush=True); os._exit(30)")
        notify.tell(ledger, nothing)
        server.shutdown()
    assert ledger.notices() == []
    (mail,) = Mailbox.mails
    parsed = email.message_from_string(mail, policy=email.policy.default)
    assert isinstance(parsed, email.message.EmailMessage)
    body = parsed.get_body(("plain", "html"))
    assert body is not None
    (posted,) = hook.taken
    for text in (f"{parsed['subject']} {body.get_content()}", posted["text"]):
        for told in ("arxlive", "failed", "exit code: 30", "the end"):
            assert told in text
    assert parsed["to"] == "team@example.org"


def test_a_message_of_many_slots_lists_the_newest_and_counts_the_rest(ledger: Ledger) -> None:
    now = datetime.now(UTC)
    missed: list[tuple[str, datetime, date, str, str | None]] = [
        (f"R{n:04}", now + timedelta(minutes=n), now.date(), "too_late", None) for n in range(5000)
    ]
    ledger.miss(missed, "arxlive", now)
    title, body = notify.message("arxlive", "missed", ledger.notices(), 20)
    assert "(5000 slots)" in title
    assert len(body.splitlines()) == 21
    assert body.startswith("and 4980 before")


def test_the_metrics_say_at_its_start_that_a_run_is_going_and_lose_nothing_else(
    ledger: Ledger, engine: ProcessEngine
) -> None:
    paths.METRICS.mkdir(parents=True)
    path = paths.METRICS / "standpipe.prom"
    seen: list[str] = []
    for program in ("print()", "print()"):  # without a file, and with one
        engine.program = program
        runner.run(
            ledger, engine, "arxlive", None, scheduled=False, listen=lambda _line: seen.append(path.read_text()),
            say=nothing,
        )  # fmt: skip
        metrics.write(ledger)
    for text in seen:
        found = {s.name: s.value for family in text_string_to_metric_families(text) for s in family.samples}
        assert found["standpipe_running"] == 1
    assert "standpipe_last_success_timestamp_seconds" in seen[1]
    assert 'standpipe_running{pipeline="arxlive"} 0.0' in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o644


def test_what_looks_like_a_secret_in_why_a_run_could_not_start_is_in_no_message(ledger: Ledger, host: Path) -> None:
    now = datetime.now(UTC)
    ledger.claim("A", "arxlive", "manual", now.date(), None, now)
    ledger.settle(
        "A", "failed", reason="image", exit_code=78, notice="failed", detail="pull https://me:hunter2@x/ failed"
    )
    _title, body = notify.message("arxlive", "failed", ledger.notices(), 20)
    assert "why: pull https://***@x/ failed" in body


@pytest.mark.parametrize(
    ("days", "authority_days", "told"),
    [(13, 100, ["certificate"]), (100, 13, ["certificate authority"]), (15, 15, [])],
)
def test_certificates_that_end_soon_are_told_once_a_day(
    hook: Hook, days: int, authority_days: int, told: list[str]
) -> None:
    have_certificates(days, authority_days)
    certificates.warn(nothing)
    certificates.warn(nothing)
    assert [each["title"].partition(" on ")[0] for each in hook.taken] == told
    if told:
        assert "run site.yml" in hook.taken[0]["message"]
        yesterday = paths.CERTIFICATES_TOLD.stat().st_mtime - 86_400
        os.utime(paths.CERTIFICATES_TOLD, (yesterday, yesterday))
        certificates.warn(nothing)
        assert len(hook.taken) == 2


def test_word_of_certificates_that_nobody_took_is_sent_again(hook: Hook) -> None:
    have_certificates(1, 100)
    hook.status = 500
    said: list[str] = []
    certificates.warn(said.append)
    assert "could not be sent" in said[0]
    hook.status = 200
    certificates.warn(said.append)
    assert len(hook.taken) == 1
