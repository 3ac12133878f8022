"""`standpiped`: opens one socket for each run, answers what comes through it, and closes it at the run's end.

Who asks is known by the socket: it lies in a directory that is mounted into the run's container alone. That the
asking process is in that container is looked up all the same (its control group names it), and it shows a token that
lies beside the socket. A pipeline has a socket, too, for its containers that are started by hand: they spend its
budgets, and get no credentials, which the journal tells.
"""

from __future__ import annotations

import hmac
import json
import os
import re
import secrets
import select
import shutil
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingMixIn, UnixStreamServer
from threading import BoundedSemaphore, Lock, Thread
from typing import Any

from standpipe import budgets, configuration, paths
from standpipe.engines import CannotStart, Engine
from standpipe.errors import BudgetsUnavailable, ConfigurationError, CredentialsRefused, StandpipeError
from standpipe.ledger import Ledger
from standpipe.pipeline import Pipeline
from standpipe.runsocket.budgets import Teller
from standpipe.runsocket.credentials import Vendor, session_name
from standpipe.runsocket.journal import warn
from standpipe_task import spending

PROTOCOL = "standpipe-budgets"
SWEEP_EVERY = 300  # seconds between two looks at reservations that nobody closed
LOOK_EVERY = 2  # seconds between two looks at which runs have ended
CONNECTIONS = 256  # at a time, through one socket
IDLE = 60  # seconds for which a connection may say nothing
VENDED = "vended"  # a file that says so to the container: only then are AWS's SDKs to ask here
DECLARED = "pipeline.json"  # a file, root's alone: the declaration by which a run began
RUN_ID = re.compile(r"[0-9A-HJKMNP-TV-Z]{26}")
CONTAINER_ID = re.compile(r"[0-9a-f]{64}")


class Refused(Exception):
    """A request that is not answered; `status` is HTTP's."""

    def __init__(self, status: int, why: str) -> None:
        """Keep the status beside the reason."""
        super().__init__(why)
        self.status = status


class Door(ThreadingMixIn, UnixStreamServer):
    """One socket in a directory of its own, with a token beside it: of a run, or of a pipeline (`run` is None)."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = CONNECTIONS

    def __init__(self, directory: Path, pipeline: Pipeline, run: str | None, engine: Engine, teller: Teller) -> None:
        """Open it; a directory that is there already keeps its token, since a container may have it mounted."""
        self.directory, self.pipeline, self.run = directory, pipeline.name, run
        self.role_arn = pipeline.credentials.role_arn  # a run keeps both, whatever becomes of the declaration
        self.budgets = pipeline.budgets
        self.engine, self.teller = engine, teller
        self.container: str | None = None  # the id of the run's container, once that was seen
        self.closed = False
        self._vendor: Vendor | None = None
        self._free = BoundedSemaphore(CONNECTIONS)
        self._open: set[socket.socket] = set()
        self._handed_over: set[socket.socket] = set()
        self._lock = Lock()
        directory.mkdir(mode=0o755, exist_ok=True)
        directory.chmod(0o755)  # the directory above it is root's alone; the container's user must pass this one
        token = directory / "token"
        if run is not None:
            note(directory / DECLARED, pipeline.model_dump_json(), 0o400)
        if not token.exists():
            note(token, secrets.token_urlsafe(32), 0o444)
        self.token = token.read_text()
        if pipeline.credentials.mode == "vended":
            (directory / VENDED).touch()
        (directory / "socket").unlink(missing_ok=True)
        super().__init__(str(directory / "socket"), Answers)
        (directory / "socket").chmod(0o666)
        self._serving = Thread(target=self._serve, daemon=True)
        self._serving.start()

    def _serve(self) -> None:
        """Take connections until the door is closed; between them nothing happens, not even a look at a flag."""
        while not self.closed:
            self.handle_request()

    @property
    def name(self) -> str:
        """Say whose it is."""
        return f"{self.pipeline} run {self.run}" if self.run else f"{self.pipeline}, started by hand"

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer a connection in a thread of its own, and no more of them than are bearable."""
        if self.closed:
            warn(f"{self.name}: refused: a call after its end")
            self.shutdown_request(request)
            return
        if not self._free.acquire(blocking=False):
            warn(f"{self.name}: more than {CONNECTIONS} connections at a time: one is refused")
            self.shutdown_request(request)
            return
        with self._lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer it, and note its end."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._open.discard(request)
            self._free.release()

    def shutdown_request(self, request: Any) -> None:
        """End a connection, unless it is served elsewhere now."""
        with self._lock:
            elsewhere = request in self._handed_over
            self._handed_over.discard(request)
        if not elsewhere:
            super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Tell of an error that nobody foresaw; a connection that broke is none."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            warn(f"{self.name}: {error!r}")

    def close(self) -> None:
        """Answer nothing any more: not what comes anew, nor through connections that stand."""
        self.closed = True
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits for connections (Linux)
        self._serving.join()
        self.server_close()
        shutil.rmtree(self.directory, ignore_errors=True)
        with self._lock:
            for connection in self._open:
                if is_held(connection):
                    warn(f"{self.name}: refused: a connection that stood at its end")
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def credentials(self, asking: int, token: str) -> dict[str, str]:
        """Return credentials for the process `asking` that shows `token`. Raises Refused, CredentialsRefused."""
        if self.closed:
            raise Refused(410, "the run has ended")
        if self.run is None:
            raise Refused(403, "a container that was started by hand gets no credentials: standpipe run gives them")
        self.require_own(asking)
        self.require_token(token)
        if self.role_arn is None:
            raise Refused(403, "the pipeline is not declared with vended credentials")
        if self._vendor is None:
            self._vendor = Vendor(self.role_arn, session_name(self.pipeline, self.run))
        return self._vendor.vend().as_answer()

    def require_token(self, token: str) -> None:
        """Raise Refused where a token is not the one that lies beside the socket."""
        if not hmac.compare_digest(token.encode(), self.token.encode()):
            raise Refused(401, "the token is not this run's" if self.run else "the token is not this pipeline's")

    def spender(self, asking: int, token: str) -> tuple[str, dict[str, int | None]]:
        """Return for which run the process `asking` spends, and which budgets, with its envelopes. Raises Refused."""
        if self.closed:
            raise Refused(410, "the run has ended")
        if self.run is not None:
            self.require_own(asking)
        self.require_token(token)
        uses = self.budgets if self.run is not None else configuration.load(self.pipeline).budgets
        container = next(iter(CONTAINER_ID.findall(groups_of(asking))), "")[:12]
        by_hand = f"by hand {container}".strip()  # an envelope of its own for each such container
        return self.run or by_hand, {use.name: spending.parts(use.per_run) if use.per_run else None for use in uses}

    def hand_over(self, connection: socket.socket, spender: tuple[str, dict[str, int | None]]) -> None:
        """Have a connection served by the teller from now on."""
        with self._lock:
            self._handed_over.add(connection)
        self.teller.take_over(connection, self.pipeline, *spender)

    def require_own(self, asking: int) -> None:
        """Raise Refused where a process is not in the run's container."""
        if self.container is None:
            found = self.engine.find(self.pipeline, self.run or "")
            self.container = found.id if found else None
        if self.container is None or self.container not in CONTAINER_ID.findall(groups_of(asking)):
            raise Refused(403, f"the process that asks ({asking}) is not in the run's container")


def note(path: Path, text: str, mode: int) -> None:
    """Write a file of a door's directory, whole or not at all."""
    unfinished = path.with_name(f".{path.name}")
    unfinished.unlink(missing_ok=True)
    unfinished.touch(mode=0o600)
    unfinished.write_text(text)
    unfinished.chmod(mode)
    unfinished.rename(path)


def begun_by(directory: Path) -> Pipeline | None:
    """Return the declaration by which a run began; None where none is there that this program can read."""
    try:
        return Pipeline.model_validate_json((directory / DECLARED).read_bytes())
    except (OSError, ValueError):
        return None


def is_held(connection: socket.socket) -> bool:
    """Say whether the other end of a connection is still there."""
    ends = select.poll()
    try:
        ends.register(connection, select.POLLRDHUP)
    except ValueError:  # closed on this side
        return False
    return not ends.poll(0)


def groups_of(process: int) -> str:
    """Return the control groups of a process, which name its container; nothing where it is gone."""
    try:
        return Path(f"/proc/{process}/cgroup").read_text()
    except OSError:
        return ""


class Answers(BaseHTTPRequestHandler):
    """Speaks HTTP through a door."""

    server: Door
    protocol_version = "HTTP/1.1"
    timeout = IDLE

    def do_GET(self) -> None:
        """Answer; a refusal is told in the journal, too."""
        token = self.headers.get("Authorization", "")
        try:
            if self.path == "/credentials":
                self.reply(200, self.server.credentials(self.peer(), token))
            elif self.path == "/budgets" and self.headers.get("Upgrade") == PROTOCOL:
                spender = self.server.spender(self.peer(), token)
                self.close_connection = True
                self.send_response_only(101)
                self.send_header("Connection", "Upgrade")
                self.send_header("Upgrade", PROTOCOL)
                self.end_headers()
                self.server.hand_over(self.connection, spender)
            else:
                self.refuse(404, "there are only /credentials and /budgets here")
        except Refused as error:
            self.refuse(error.status, str(error))
        except CredentialsRefused as error:
            self.refuse(502, str(error))
        except StandpipeError as error:
            self.refuse(503, str(error))

    def peer(self) -> int:
        """Return the process at the other end, by the kernel's word (unix(7): SO_PEERCRED)."""
        size = struct.calcsize("3i")
        return int(struct.unpack("3i", self.connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))[0])

    def refuse(self, status: int, why: str) -> None:
        """Tell why, here and there."""
        warn(f"{self.server.name}: refused: {why}")
        self.close_connection = True
        self.reply(status, {"code": "Refused", "message": f"standpipe: {why}"})

    def reply(self, status: int, answer: dict[str, str]) -> None:
        """Send an answer as JSON."""
        body = json.dumps(answer).encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # as it is called there
        """Log nothing of what is answered; and of what is no HTTP, that it came, not what it was."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse what is no request that is known."""
        self.refuse(code, "it is no request that is known here")


class Service:
    """The doors that are open, and what opens and closes them."""

    def __init__(self, engine: Engine) -> None:
        """Begin with none."""
        self.engine = engine
        self.teller = Teller(budgets.open_books, budgets.terms)
        self._swept = 0.0
        self._declared: dict[str, spending.Terms] = {}
        self.runs: dict[str, Door] = {}
        self.pipelines: dict[str, Door] = {}
        self._lock = Lock()
        self._one_looks = Lock()

    def open(self, run: str, name: str) -> None:
        """Open a run's door. Raises StandpipeError where the pipeline is not known."""
        if not RUN_ID.fullmatch(run):
            raise CredentialsRefused(f"{run!r} is no run")
        pipeline = begun_by(paths.RUN_SOCKETS / run) or configuration.load(name)
        with self._lock:
            if run not in self.runs:
                self.runs[run] = Door(paths.RUN_SOCKETS / run, pipeline, run, self.engine, self.teller)

    def open_if_paid_for(self, run: str, name: str) -> str | None:
        """Open a run's door, unless a budget has less left than the run is expected to spend: then say which.

        Raises CannotStart where that cannot be known.
        """
        pipeline = configuration.load(name)
        if not budgets.cautious(pipeline):
            self.open(run, name)
            return None
        with self._one_looks:  # and the next one sees that this one's door is open
            under_way = [
                (door.pipeline, other, door.budgets) for other, door in list(self.runs.items()) if other != run
            ]
            try:
                short = budgets.shortage(pipeline, under_way)
            except BudgetsUnavailable as error:
                raise CannotStart("budget", str(error), error.exit_code) from None
            except ConfigurationError as error:
                raise CannotStart("policy", str(error), error.exit_code) from None
            if short is None:
                self.open(run, name)
            return short

    def close(self, run: str) -> None:
        """Close a run's door, if it has one."""
        with self._lock:
            door = self.runs.pop(run, None)
        if door:
            door.close()
            self.teller.end(run)

    def take_up(self) -> None:
        """Open the doors again that were open before a restart, of runs that go on; remove what is left of others."""
        for directory in paths.RUN_SOCKETS.iterdir():
            try:
                with closing(Ledger(paths.LEDGER, migrate=False)) as ledger:
                    noted = ledger.run(directory.name)
            except StandpipeError as error:  # a look closes it when the ledger can be read again, if it is over
                warn(f"whether run {directory.name} goes on cannot be seen now: {error}")
                if pipeline := begun_by(directory):
                    self.open(directory.name, pipeline.name)
                continue
            if noted is None or noted.outcome:
                self.teller.end(directory.name)
                shutil.rmtree(directory, ignore_errors=True)
            else:
                with suppress(StandpipeError):
                    self.open(noted.id, noted.pipeline)

    def look(self) -> None:
        """Close the doors of runs that have ended; have one for each pipeline that has a use for it."""
        if self.runs:
            with closing(Ledger(paths.LEDGER, migrate=False)) as ledger:
                ended = [run for run, door in list(self.runs.items()) if self.has_ended(ledger, door)]
            for run in ended:
                self.close(run)
        wanted = {pipeline.name: pipeline for pipeline in declared() if pipeline.needs_socket}
        for name in wanted.keys() - self.pipelines.keys():
            self.pipelines[name] = Door(paths.PIPELINE_SOCKETS / name, wanted[name], None, self.engine, self.teller)
        for name in self.pipelines.keys() - wanted.keys():
            self.pipelines.pop(name).close()
        terms = budgets.terms()
        if terms != self._declared or (terms and time.monotonic() - self._swept > SWEEP_EVERY):
            self._declared, self._swept = terms, time.monotonic()
            self.teller.sweep()

    def has_ended(self, ledger: Ledger, door: Door) -> bool:
        """Say whether a run is over: by the ledger's word, or since its container ran and does not any more."""
        noted = ledger.run(door.run or "")
        if noted is None or noted.outcome:
            return True
        container = self.engine.find(door.pipeline, noted.id)
        if container is not None and container.running:
            door.container = container.id
            return False
        began = container is not None and container.started_at is not None  # Docker makes one before it starts it
        return began or door.container is not None

    def watch(self) -> None:
        """Look again and again; what goes wrong is told once, and tried again."""
        told = ""
        while True:
            try:
                self.look()
                told = ""
            except Exception as error:  # of whatever kind: who watches goes on
                if str(error) != told:
                    warn(f"which runs have ended cannot be seen now: {error}")
                told = str(error)
            time.sleep(LOOK_EVERY)


def declared() -> Iterator[Pipeline]:
    """Yield the pipelines of this host whose files are whole."""
    for name in configuration.names():
        with suppress(StandpipeError):
            yield configuration.load(name)


class Control(ThreadingMixIn, UnixStreamServer):
    """Where the runner asks for sockets: root's alone."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, service: Service) -> None:
        """Listen."""
        self.service = service
        paths.CONTROL.unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            super().__init__(str(paths.CONTROL), Orders)
        finally:
            os.umask(before)


class Orders(StreamRequestHandler):
    """One order a connection: a line of JSON, answered by one."""

    server: Control
    timeout = 5

    def handle(self) -> None:
        """Do what is asked, and say so."""
        answer: dict[str, str | int | None] = {}
        try:
            order = json.loads(self.rfile.readline(10_000))
            if "open" in order:
                answer["short"] = self.server.service.open_if_paid_for(order["open"], order["pipeline"])
            else:
                self.server.service.close(order["close"])
        except CannotStart as error:
            answer = {"refused": str(error), "reason": error.reason, "exit_code": error.exit_code}
            warn(f"a run is not started: {error}")
        except (StandpipeError, OSError, ValueError, KeyError) as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
            warn(f"an order could not be carried out: {answer['error']}")
        self.wfile.write(json.dumps(answer).encode() + b"\n")


def ready() -> None:
    """Tell systemd that the sockets are there (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.sendto(b"READY=1", "\0" + address[1:] if address.startswith("@") else address)


def serve(engine: Engine, told: Callable[[], None] = ready) -> None:
    """Serve until the process is ended; what is open then is taken up by the next one."""
    for directory in (paths.RUN_SOCKETS, paths.PIPELINE_SOCKETS):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    service = Service(engine)
    service.take_up()
    with Control(service) as control:
        Thread(target=service.watch, daemon=True).start()
        told()
        control.serve_forever()
