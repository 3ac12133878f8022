"""The run sockets, with a real service, a real relay, AWS's own SDK, and moto in the place of STS."""

from __future__ import annotations

import http.client
import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from threading import Thread
from typing import Any

import botocore.session
import pytest
from botocore import exceptions
from botocore.utils import get_environ_proxies
from moto.server import ThreadedMotoServer
from ulid import ULID

from conftest import ProcessEngine
from standpipe import configuration, paths, runner, runsocket
from standpipe.engines import CannotStart
from standpipe.errors import CredentialsRefused, CredentialsUnavailable
from standpipe.ledger import Ledger
from standpipe.pipeline import Pipeline
from standpipe.runsocket import credentials, service
from standpipe_task import relay

ROLE = "arn:aws:iam::123456789012:role/arxlive"
DECLARED = """\
name: vended
source: {repo: https://git.example.org/arxlive.git, version: dev}
task: {module: arxlive.tasks, name: RootTask}
schedule: null
credentials: {mode: vended, role_arn: "arn:aws:iam::123456789012:role/arxlive"}
"""
SECRET = "wJalrXUtnFEMIK7MDENGbPxRfiCYtestonly"  # noqa: S105  # moto takes any


@pytest.fixture
def tmp_path(short_path: Path) -> Path:
    """Where the host's files are."""
    return short_path


@pytest.fixture
def aws(host: Path) -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    (paths.PIPELINES / "vended.yml").write_text(DECLARED)
    be_somebody(address)
    yield address
    server.stop()


def be_somebody(address: str) -> None:
    paths.AWS_IDENTITY.write_text(
        f"[default]\naws_access_key_id = AKIATESTONLY\naws_secret_access_key = {SECRET}\nendpoint_url = {address}\n"
    )


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> dict[int, str]:
    """The control groups of processes, by their ids: these are no containers' here."""
    known: dict[int, str] = {}
    read = Path.read_text

    def read_text(path: Path, *arguments: Any, **named: Any) -> str:
        if path.name == "cgroup":
            return known[int(path.parent.name)]
        return read(path, *arguments, **named)

    monkeypatch.setattr(Path, "read_text", read_text)
    return known


@pytest.fixture
def standpiped(aws: str, engine: ProcessEngine) -> Iterator[service.Service]:
    for directory in (paths.RUN_SOCKETS, paths.PIPELINE_SOCKETS):
        directory.mkdir(parents=True)
    made = service.Service(engine)
    with service.Control(made) as control:
        Thread(target=control.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield made
        control.shutdown()
    for door in [*made.runs.values(), *made.pipelines.values()]:
        door.close()
    made.teller.close()


def claimed(ledger: Ledger) -> str:
    run = str(ULID())
    ledger.register(configuration.load("vended"), datetime.now(UTC))
    ledger.claim(run, "vended", "manual", date(2026, 11, 23), None, datetime.now(UTC))
    return run


def under_way(ledger: Ledger, engine: ProcessEngine, groups: dict[int, str]) -> tuple[str, Path]:
    """Have a run whose container is, for the service, that of this test's own process."""
    run = claimed(ledger)
    runner.make_lock("vended")
    door = runsocket.open_for(configuration.load("vended"), run)
    assert door
    engine.program = "import time; time.sleep(60)"
    with runner.living_runner(ledger, run) as life:
        engine.start("vended", run, [], life, door)
    ledger.started(run, run, None, "c" * 40, "sha256:0")
    container = "a" * 64
    engine.made[run] = engine.made[run].__class__(**(vars(engine.made[run]) | {"id": container}))
    groups[os.getpid()] = f"0::/system.slice/docker-{container}.scope\n"
    return run, door


def get(door: Path, token: str | None, path: str = "/credentials") -> tuple[int, dict[str, str]]:
    connection = http.client.HTTPConnection("door")
    with closing(connection):
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(str(door / "socket"))
        connection.request("GET", path, headers={"Authorization": token} if token else {})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


def test_an_sdk_in_the_run_s_container_is_given_the_credentials_of_its_role(
    ledger: Ledger,
    engine: ProcessEngine,
    standpiped: service.Service,
    groups: dict[int, str],
    aws: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, door = under_way(ledger, engine, groups)
    for name, value in relay.variables(door).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    session = botocore.session.Session()
    given = session.get_credentials()
    assert given is not None
    assert given.method == "container-role"
    who = session.create_client("sts", region_name="eu-west-1", endpoint_url=aws).get_caller_identity()
    assert who["Arn"] == f"arn:aws:sts::123456789012:assumed-role/arxlive/vended.{run}"
    left = given._expiry_time - datetime.now(UTC)
    assert timedelta(minutes=10) < left <= timedelta(minutes=15)


def test_sts_is_asked_once_however_often_a_run_asks(
    ledger: Ledger, engine: ProcessEngine, standpiped: service.Service, groups: dict[int, str]
) -> None:
    _, door = under_way(ledger, engine, groups)
    token = (door / "token").read_text()
    answers = [get(door, token) for _ in range(5)]
    assert {status for status, _ in answers} == {200}
    assert len({answer["AccessKeyId"] for _, answer in answers}) == 1


def test_keys_that_are_good_are_handed_out_while_sts_is_silent(
    host: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [datetime(2026, 11, 23, 3, tzinfo=UTC)]
    asked: list[datetime] = []

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return now[0]

    def assume(*_arguments: str) -> credentials.Issued:
        asked.append(now[0])
        if len(asked) > 1:
            raise CredentialsUnavailable("STS does not answer: nothing is known of it")
        return credentials.Issued("AKIATESTONLY", SECRET, "token", now[0] + timedelta(minutes=15), ROLE)

    monkeypatch.setattr(credentials, "datetime", Clock)
    monkeypatch.setattr(credentials, "assume", assume)
    vendor = credentials.Vendor(ROLE, "vended.run")
    first = vendor.vend()
    now[0] += timedelta(minutes=6)
    assert vendor.vend() is first
    assert "<4>vended.run: STS does not answer" in capsys.readouterr().err
    now[0] += timedelta(seconds=20)
    assert vendor.vend() is first
    assert len(asked) == 2
    now[0] += timedelta(minutes=9)
    with pytest.raises(CredentialsUnavailable):
        vendor.vend()


@pytest.mark.parametrize("token", [None, "", "guessed"])
def test_a_wrong_token_is_refused_and_told(
    ledger: Ledger,
    engine: ProcessEngine,
    standpiped: service.Service,
    groups: dict[int, str],
    token: str | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, door = under_way(ledger, engine, groups)
    assert get(door, token) == (401, {"code": "Refused", "message": "standpipe: the token is not this run's"})
    told = capsys.readouterr().err
    assert f"<4>vended run {run}: refused: the token is not this run's" in told
    assert (door / "token").read_text() not in told


def test_another_process_is_refused_though_it_has_socket_and_token(
    ledger: Ledger,
    engine: ProcessEngine,
    standpiped: service.Service,
    groups: dict[int, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, door = under_way(ledger, engine, groups)
    groups[os.getpid()] = f"0::/system.slice/docker-{'b' * 64}.scope\n"
    status, answer = get(door, (door / "token").read_text())
    assert (status, answer["message"]) == (
        403,
        f"standpipe: the process that asks ({os.getpid()}) is not in the run's container",
    )
    assert "is not in the run's container" in capsys.readouterr().err


def test_a_container_started_by_hand_is_refused_and_told(
    ledger: Ledger, standpiped: service.Service, capsys: pytest.CaptureFixture[str]
) -> None:
    standpiped.look()
    door = paths.PIPELINE_SOCKETS / "vended"
    status, answer = get(door, (door / "token").read_text())
    assert (status, "started by hand" in answer["message"]) == (403, True)
    assert "<4>vended, started by hand: refused" in capsys.readouterr().err


def test_a_door_is_closed_once_its_run_is_settled_and_a_connection_that_stands_is_cut_and_told(
    ledger: Ledger,
    engine: ProcessEngine,
    standpiped: service.Service,
    groups: dict[int, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, door = under_way(ledger, engine, groups)
    token = (door / "token").read_text()
    connection = http.client.HTTPConnection("door")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(door / "socket"))
    connection.request("GET", "/credentials", headers={"Authorization": token})
    assert connection.getresponse().read()
    runner.conclude(ledger, run, "vended", "succeeded", exit_code=0)
    assert not door.exists()
    assert connection.sock.recv(1) == b""  # the end
    assert f"<4>vended run {run}: refused: a connection that stood at its end" in capsys.readouterr().err
    with pytest.raises(OSError, match=r"refused|No such file"):
        get(door, token)
    connection.close()


def test_a_call_that_comes_while_a_door_closes_is_told(
    ledger: Ledger,
    engine: ProcessEngine,
    standpiped: service.Service,
    groups: dict[int, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, door = under_way(ledger, engine, groups)
    standpiped.runs[run].closed = True
    with socket.socket(socket.AF_UNIX) as late:
        late.connect(str(door / "socket"))
        assert late.recv(1) == b""
    assert f"<4>vended run {run}: refused: a call after its end" in capsys.readouterr().err


def test_a_door_that_nobody_holds_is_closed_without_a_word(
    ledger: Ledger,
    engine: ProcessEngine,
    standpiped: service.Service,
    groups: dict[int, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, door = under_way(ledger, engine, groups)
    assert get(door, (door / "token").read_text())[0] == 200
    standpiped.close(run)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("end", ["its container has ended", "its record is settled"])
def test_a_door_is_closed_though_nobody_says_that_the_run_is_over(
    ledger: Ledger, engine: ProcessEngine, standpiped: service.Service, groups: dict[int, str], end: str
) -> None:
    run, door = under_way(ledger, engine, groups)
    standpiped.look()
    assert door.exists()
    if end == "its container has ended":
        engine.processes[run].kill()
        engine.processes[run].wait()
    else:
        ledger.settle(run, "interrupted")
    standpiped.look()
    assert not door.exists()


def test_a_door_stays_open_while_the_container_is_made_and_not_yet_started(
    ledger: Ledger, engine: ProcessEngine, standpiped: service.Service, groups: dict[int, str]
) -> None:
    run, _door = under_way(ledger, engine, groups)
    begun = engine.made[run]
    engine.made[run] = replace(begun, running=False, started_at=None)
    standpiped.look()
    assert (paths.RUN_SOCKETS / run / "token").exists()
    engine.made[run] = begun
    standpiped.look()
    assert (paths.RUN_SOCKETS / run / "token").exists()


def test_a_service_that_comes_back_opens_what_goes_on_with_the_same_token_and_removes_the_rest(
    ledger: Ledger, engine: ProcessEngine, standpiped: service.Service, groups: dict[int, str]
) -> None:
    run, door = under_way(ledger, engine, groups)
    token = (door / "token").read_text()
    (paths.RUN_SOCKETS / str(ULID())).mkdir()
    killed = standpiped.runs.pop(run)
    killed.closed = True
    killed.socket.shutdown(socket.SHUT_RDWR)  # as a process that is killed leaves it: socket and token stay behind
    standpiped.take_up()
    assert [path.name for path in paths.RUN_SOCKETS.iterdir()] == [run]
    assert get(door, token)[0] == 200
    killed.server_close()


@pytest.mark.parametrize("how", ["cannot be read", "has older tables"])
def test_a_service_that_comes_back_to_a_ledger_that_it_cannot_read_yet_keeps_the_doors_of_what_goes_on(
    ledger: Ledger, engine: ProcessEngine, standpiped: service.Service, groups: dict[int, str], how: str
) -> None:
    run, door = under_way(ledger, engine, groups)
    token = (door / "token").read_text()
    with closing(sqlite3.connect(paths.LEDGER)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    ledger.let_go()
    whole = paths.LEDGER.read_bytes()
    if how == "cannot be read":
        paths.LEDGER.write_bytes(whole[:100] + b"x" * (len(whole) - 100))
    else:
        with closing(sqlite3.connect(paths.LEDGER)) as database:
            database.execute("ALTER TABLE runs DROP COLUMN noted_at")
    again = service.Service(engine)
    again.take_up()
    try:
        assert get(door, token)[0] == 200
        paths.LEDGER.write_bytes(whole)
        again.look()
        assert get(door, token)[0] == 200
    finally:
        again.close(run)
        again.teller.close()


@pytest.mark.parametrize("change", ["mode: role", "another role", "removed"])
def test_a_run_keeps_what_it_began_with_whatever_is_declared_meanwhile(
    ledger: Ledger, engine: ProcessEngine, standpiped: service.Service, groups: dict[int, str], change: str
) -> None:
    run, door = under_way(ledger, engine, groups)
    declared = paths.PIPELINES / "vended.yml"
    if change == "removed":
        declared.unlink()
    else:
        vended = DECLARED.splitlines()[-1]
        other = "credentials: {mode: role}" if change == "mode: role" else vended.replace("role/arxlive", "role/other")
        declared.write_text(DECLARED.replace(vended, other))
    token = (door / "token").read_text()
    assert get(door, token)[0] == 200
    assert standpiped.runs[run].spender(os.getpid(), token) == (run, {})
    killed = standpiped.runs.pop(run)
    killed.closed = True
    killed.socket.shutdown(socket.SHUT_RDWR)
    standpiped.take_up()
    assert get(door, token)[0] == 200
    assert standpiped.runs[run].role_arn == ROLE
    assert (door / service.DECLARED).stat().st_mode & 0o777 == 0o400
    killed.server_close()


def test_the_relay_waits_for_a_service_that_is_being_restarted(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("any")
    (tmp_path / "vended").touch()
    address = relay.variables(tmp_path)["AWS_CONTAINER_CREDENTIALS_FULL_URI"]
    asked = http.client.HTTPConnection(address.split("/")[2], timeout=10)
    asked.request("GET", "/credentials")
    time.sleep(0.3)
    with socket.socket(socket.AF_UNIX) as late:
        late.bind(str(tmp_path / "socket"))
        late.listen()
        connection, _ = late.accept()
        with connection:
            assert connection.recv(1000).startswith(b"GET /credentials")
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            assert asked.getresponse().read() == b"ok"
    asked.close()


def test_without_a_run_socket_there_is_no_relay(tmp_path: Path) -> None:
    assert relay.variables(Path(os.devnull)) == {}
    assert relay.variables(tmp_path) == {}


def test_a_run_is_not_started_where_the_service_is_away(host: Path, ledger: Ledger) -> None:
    (paths.PIPELINES / "vended.yml").write_text(DECLARED)
    with pytest.raises(CannotStart, match="systemctl status standpiped") as raised:
        runsocket.open_for(configuration.load("vended"), str(ULID()))
    assert (raised.value.reason, raised.value.exit_code) == ("engine", 69)


def test_a_pipeline_without_vended_credentials_needs_no_service(host: Path) -> None:
    assert runsocket.open_for(configuration.load("arxlive"), str(ULID())) is None


def test_what_is_no_run_or_no_pipeline_gets_no_door(standpiped: service.Service) -> None:
    for order in ({"open": "../../etc", "pipeline": "vended"}, {"open": str(ULID()), "pipeline": "nobody"}, {}):
        with pytest.raises(ValueError, match=r"Refused|UsageError|KeyError"):
            runsocket.ask(order)
    assert list(paths.RUN_SOCKETS.iterdir()) == []


def test_an_sts_that_hangs_is_told_within_bounds(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credentials, "ANSWER_WITHIN", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        be_somebody(f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(CredentialsUnavailable, match="STS does not answer"):
            credentials.assume(ROLE, "test")


@pytest.mark.parametrize(
    "silence",
    [
        exceptions.EndpointConnectionError(endpoint_url="https://sts.example.org"),
        exceptions.ConnectTimeoutError(endpoint_url="https://sts.example.org"),
        exceptions.ProxyConnectionError(proxy_url="http://proxy.example.org:3128"),
        exceptions.ReadTimeoutError(endpoint_url="https://sts.example.org"),
    ],
)
def test_a_proxy_or_an_sts_that_is_away_is_no_refusal(silence: exceptions.BotoCoreError) -> None:
    with pytest.raises(CredentialsUnavailable, match=type(silence).__name__), credentials.refusals_told("it"):
        raise silence


def test_an_sts_that_refuses_is_told_without_a_key(host: Path) -> None:
    refusal = (
        b"<ErrorResponse><Error><Code>AccessDenied</Code><Message>AKIAABCDEFGHIJKLMNOP may not assume it</Message>"
        b"</Error></ErrorResponse>"
    )

    def answer(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 403 No\r\nContent-Length: %d\r\n\r\n%s" % (len(refusal), refusal))

    with socket.create_server(("127.0.0.1", 0)) as server:
        be_somebody(f"http://127.0.0.1:{server.getsockname()[1]}")
        thread = Thread(target=answer, args=(server,))
        thread.start()
        with pytest.raises(CredentialsRefused, match=r"AWS refuses the role .*AccessDenied") as raised:
            credentials.assume(ROLE, "test")
        thread.join()
    assert "AKIA" not in str(raised.value)


def test_a_host_that_is_nobody_is_told_what_to_do(host: Path) -> None:
    paths.AWS_IDENTITY.write_text("[default]\ncredential_process = /bin/false\nendpoint_url = http://127.0.0.1:9\n")
    with pytest.raises(CredentialsRefused, match="credential_process failed"):
        credentials.assume(ROLE, "test")


def test_a_credentials_file_says_whose_it_is(aws: str) -> None:
    keys = f"[default]\naws_access_key_id = AKIATESTONLY\naws_secret_access_key = {SECRET}\n"
    assert credentials.identity_by_keys(keys, "it") == credentials.Identity(
        "arn:aws:sts::123456789012:user/moto", "never by itself"
    )
    with pytest.raises(CredentialsRefused, match="it is no AWS credentials file"):
        credentials.identity_by_keys("nothing", "it")
    paths.AWS_IDENTITY.unlink()  # nothing is in service yet
    known = credentials.identity_by_keys(f"{keys}endpoint_url = {aws}\n", "it")
    assert known.arn == "arn:aws:sts::123456789012:user/moto"


def test_an_instance_role_says_when_it_expires(aws: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    script = Path(__file__).parents[1] / "molecule" / "fleet" / "files" / "metadata-service"
    with subprocess.Popen([sys.executable, script, "127.0.0.1", port]) as served:
        for _ in range(100):
            with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", int(port))):
                break
            time.sleep(0.1)
        with paths.AWS_IDENTITY.open("a") as identity:
            identity.write(f"ec2_metadata_service_endpoint = http://127.0.0.1:{port}/\n")
        credentials.identity_of_the_instance.cache_clear()
        try:
            found = credentials.identity_of_the_instance()
        finally:
            credentials.identity_of_the_instance.cache_clear()
            served.terminate()
    assert found.arn == "arn:aws:sts::123456789012:user/moto"
    expires = datetime.strptime(found.expires, "at %Y-%m-%d %H:%M UTC, and is renewed").replace(tzinfo=UTC)
    assert timedelta(hours=5) < expires - datetime.now(UTC) <= timedelta(hours=6)


def test_the_variables_of_whoever_calls_decide_nothing(aws: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    assert credentials.assume(ROLE, "test").arn.endswith("assumed-role/arxlive/test")


def test_aws_is_asked_through_the_host_s_proxy_and_the_metadata_service_never(
    aws: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "no_proxy"):
        monkeypatch.setenv(name, "")  # as it was before, it is again
    be_somebody("http://sts.nowhere.invalid")
    with pytest.raises(CredentialsUnavailable):
        credentials.assume(ROLE, "test")
    paths.SETTINGS.write_text(f"http_proxy: {aws}\nno_proxy: git.example.org\n")
    assert credentials.assume(ROLE, "test").arn.endswith("assumed-role/arxlive/test")
    assert get_environ_proxies("http://169.254.169.254/latest/meta-data/") == {}
    assert get_environ_proxies("https://git.example.org/") == {}


def test_issued_credentials_do_not_show_their_secret(aws: str) -> None:
    issued = credentials.assume(ROLE, "test")
    assert issued.secret_access_key not in repr(issued)
    assert issued.token not in repr(issued)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"mode": "vended"}, "role_arn: is missing"),
        ({"mode": "role", "role_arn": ROLE}, "role_arn: is for mode: vended"),
        ({"mode": "vended", "role_arn": "arxlive"}, "is no role"),
        ({"mode": "role", "region": "Europe"}, "is no region"),
    ],
)
def test_credentials_that_do_not_fit_together_are_refused(given: dict[str, str], said: str) -> None:
    document = {"name": "vended", "state": "absent", "credentials": given}
    with pytest.raises(ValueError, match=said):
        Pipeline.model_validate(document)
