"""A budget under httpx or httpx2, whichever is here: what reaches a real server is what the books say."""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import time
from contextlib import closing, suppress
from datetime import UTC, datetime
from importlib.util import find_spec
from socketserver import BaseRequestHandler, ThreadingTCPServer
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest

from standpipe_task import purse
from standpipe_task.budget_httpx import BudgetSpent, BudgetTransport, BudgetUnavailable, expect
from test_budgets import CALL, Counting, drill, local, require_turns, server, session, state

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from budget_drill import Drill

__all__ = ["drill", "local", "server"]  # fixtures

LIBRARIES = [importlib.import_module(name) for name in ("httpx", "httpx2") if find_spec(name)]


@pytest.fixture(params=LIBRARIES, ids=lambda library: library.__name__)
def httpx(request: pytest.FixtureRequest) -> Any:
    return request.param


def client(httpx: Any, budget: str = "ten", kind: Any = "call", **options: Any) -> Any:
    transport = BudgetTransport(httpx.HTTPTransport(**options), budget, kind)
    return httpx.Client(transport=transport, follow_redirects=True)


def test_not_one_call_more_than_the_limit_goes_out(httpx: Any, server: Counting, local: Path) -> None:
    with client(httpx) as api:
        for _ in range(10):
            assert api.get(f"{server.address}/ok").status_code == 200
        with pytest.raises(BudgetSpent, match="0 of 10 calls left this month") as refused:
            api.get(f"{server.address}/ok")
    assert refused.value.budget == "ten"
    assert refused.value.resets_at is not None
    assert refused.value.resets_at.day == 1
    assert server.calls == 10
    assert state(local).left == 0


@pytest.mark.parametrize(("path", "calls"), [("/ok", 2), ("/redirect", 4), ("/once", 2), ("/broken", 2), ("/slow", 2)])
def test_the_books_agree_with_what_reaches_the_server(
    httpx: Any, server: Counting, local: Path, path: str, calls: int
) -> None:
    errors = {"/broken": httpx.RemoteProtocolError, "/slow": httpx.ReadTimeout}
    with client(httpx) as api:
        for _ in range(2):  # as who repeats what failed
            if path in errors:
                with pytest.raises(errors[path]):
                    api.get(f"{server.address}{path}", timeout=0.2)
            else:
                api.get(f"{server.address}{path}")
    assert server.calls == calls
    assert state(local).spent == calls * CALL
    assert state(local).reserved == 0


def test_where_no_connection_was_made_nothing_is_spent(httpx: Any, server: Counting, local: Path) -> None:
    with socket.socket() as nobody, client(httpx, retries=1) as api:
        nobody.bind(("127.0.0.1", 0))
        for address in (f"http://127.0.0.1:{nobody.getsockname()[1]}", server.address.replace("http", "https")):
            with pytest.raises(httpx.ConnectError):
                api.get(address)
    with client(httpx, proxy="http://127.0.0.1:9") as api, pytest.raises(httpx.ConnectError):
        api.get(server.address)
    assert server.calls == 0
    assert state(local).spent == state(local).reserved == 0


def test_what_the_transport_within_would_send_again_is_not_sent(httpx: Any, server: Counting, local: Path) -> None:
    class Again(httpx.HTTPTransport):  # type: ignore[misc]  # as HTTP/2's does, after a GOAWAY
        def handle_request(self, request: Any) -> Any:
            super().handle_request(request).read()
            return super().handle_request(request)

    seen: list[str] = []
    with httpx.Client(transport=BudgetTransport(Again(), "ten")) as api:
        for calls in (1, 2):
            with pytest.raises(BudgetUnavailable, match="is not sent again uncounted"):
                api.get(f"{server.address}/ok", extensions={"trace": lambda event, _: seen.append(event)})
            assert server.calls == calls
            assert state(local).spent == calls * CALL
    assert state(local).reserved == 0
    assert seen.count("http11.send_request_headers.complete") == 2  # whose own trace it is has it


def test_a_body_that_fails_as_a_connection_does_was_begun_to_be_sent(httpx: Any, server: Counting, local: Path) -> None:
    def body() -> Iterator[bytes]:
        yield b"a"
        httpx.get("http://127.0.0.1:9/")

    with client(httpx) as api, pytest.raises(httpx.ConnectError):
        api.post(f"{server.address}/ok", content=body())
    assert state(local).spent == CALL


class Proxy(ThreadingTCPServer):
    """Opens tunnels to one server, whatever it is asked for."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        self.port, self.opened = port, 0
        super().__init__(("127.0.0.1", 0), Tunnel)


class Tunnel(BaseRequestHandler):
    server: Proxy

    def handle(self) -> None:
        assert self.request.recv(65536).startswith(b"CONNECT ")
        self.server.opened += 1
        self.request.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        with socket.create_connection(("127.0.0.1", self.server.port)) as there:
            back = Thread(target=self.carry, args=(there, self.request), daemon=True)
            back.start()
            self.carry(self.request, there)
            back.join()

    @staticmethod
    def carry(one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)


def test_a_tunnel_through_a_proxy_is_no_sending_of_its_own(
    httpx: Any, server: Counting, local: Path, tmp_path: Path
) -> None:
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    options = "-x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=x -addext subjectAltName=IP:127.0.0.1"
    command = ["openssl", "req", *options.split(), "-keyout", str(key), "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True)
    inside = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    inside.load_cert_chain(cert, key)
    server.socket = inside.wrap_socket(server.socket, server_side=True)
    address = server.address.replace("http:", "https:")
    with Proxy(server.server_address[1]) as proxy:
        Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        way = f"http://127.0.0.1:{proxy.server_address[1]}"
        with client(httpx, proxy=way) as api, pytest.raises(httpx.ConnectError, match="certificate"):
            api.get(f"{address}/ok")
        assert (proxy.opened, state(local).spent, state(local).reserved) == (1, 0, 0)
        trusted = ssl.create_default_context(cafile=str(cert))
        with client(httpx, proxy=way, verify=trusted) as api:
            for _ in range(2):
                assert api.get(f"{address}/ok").status_code == 200
        proxy.shutdown()
    assert (proxy.opened, server.calls, state(local).spent) == (2, 2, 2 * CALL)


def test_calls_have_prices_by_their_kind(httpx: Any, server: Counting, local: Path) -> None:
    with client(httpx, "priced", lambda request: "search" if "search" in request.url.params else "list") as api:
        api.get(f"{server.address}/ok")
        api.get(f"{server.address}/ok?search=x")
        with pytest.raises(BudgetSpent, match=r"0.15 of 0.5 USD left this day, and this call costs 0.25"):
            api.get(f"{server.address}/ok?search=x")
    assert server.calls == 2


def test_what_a_provider_says_in_its_headers_is_believed(httpx: Any, server: Counting, local: Path) -> None:
    with client(httpx) as api:
        api.get(f"{server.address}/remaining")
        assert state(local).left == 3 * CALL
        assert api.get(f"{server.address}/later").status_code == 429
        with pytest.raises(BudgetSpent, match="asks for none before"):
            api.get(f"{server.address}/ok")
    assert server.calls == 2


def test_a_stream_is_paid_for_when_its_answer_begins(httpx: Any, server: Counting, local: Path) -> None:
    with client(httpx) as api, api.stream("POST", f"{server.address}/ok", content=iter([b"a", b"b"])) as answer:
        assert state(local).spent == CALL
        assert b"".join(answer.iter_bytes()) == b"{}"
    assert state(local).spent == CALL


def test_a_pace_holds_over_processes_with_either_library(httpx: Any, server: Counting, local: Path) -> None:
    require_turns(server, local, [lambda: session(server), lambda: client(httpx), lambda: client(httpx)])


def test_without_a_socket_and_without_a_setting_no_call_goes_out(
    httpx: Any, server: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(purse.LOCAL, raising=False)
    monkeypatch.setattr(purse, "_mine", purse.Mine())
    with client(httpx) as api, pytest.raises(BudgetUnavailable, match="STANDPIPE_LOCAL_BUDGETS"):
        api.get(f"{server.address}/ok")
    assert server.calls == 0


def test_it_spends_through_the_service_and_where_that_is_away_no_call_goes_out(
    httpx: Any, drill: Drill, server: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(purse, "PATIENCE", 0.3)
    with client(httpx, "units") as api:
        assert api.get(f"{server.address}/redirect").status_code == 200
        with pytest.raises(httpx.ReadTimeout):
            api.get(f"{server.address}/slow", timeout=0.2)
        with pytest.raises(httpx.ConnectError):
            api.get("http://127.0.0.1:9/")
        drill.service.kill()
        drill.service.wait()
        with pytest.raises(BudgetUnavailable, match=r"standpiped on the host does not answer"):
            api.get(f"{server.address}/ok")
        assert server.calls == 3
        drill.service = drill.started()
        assert api.get(f"{server.address}/ok").status_code == 200
    assert server.calls == 4
    told = drill.result()
    assert told["spent"] + told["crashed"] == 4  # it was killed before it had read that a call was answered
    assert told["left"] == told["limit"] - 4


@pytest.mark.parametrize("path", ["/slow", "/ok"])
def test_a_call_that_is_stopped_under_way_counts_and_one_that_waits_for_its_turn_does_not(
    httpx: Any, server: Counting, local: Path, path: str
) -> None:
    local.write_text(json.dumps([{"name": "ten", "limit": 10, "pace": "1/m"}]))
    child = os.fork()
    if not child:
        try:
            with client(httpx) as api:
                for _ in range(2):
                    api.get(f"{server.address}{path}")
        finally:
            os._exit(0)
    under_way = (0, CALL) if path == "/slow" else (CALL, CALL)
    while not server.calls or (state(local).spent, state(local).reserved) != under_way:
        time.sleep(0.01)
    assert os.waitpid(child, os.WNOHANG) == (0, 0)
    os.kill(child, signal.SIGINT)
    os.waitpid(child, 0)
    assert server.calls == 1
    assert state(local).spent == CALL
    assert state(local).reserved == 0


def test_it_needs_no_library_but_the_one_that_is_used() -> None:
    program = """import sys, standpipe_task.budget_httpx
print(sorted({"httpx", "httpx2", "requests"} & set(sys.modules)))"""
    told = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert told.stdout.strip() == "[]"


def test_what_is_expected_can_be_told_without_requests(local: Path) -> None:
    day = datetime.now(UTC).date()
    expect("ten", {day: {"call": 4}})
    with closing(sqlite3.connect(local.with_suffix(".sqlite3"))) as books:
        assert books.execute("SELECT key, value FROM foretold, json_each(days)").fetchall() == [(f"{day}", 4 * CALL)]
    with pytest.raises(BudgetUnavailable, match="budget another is not declared"):
        expect("another", {day: {"call": 4}})
