"""Passes connections on from 127.0.0.1 to the run's socket, as AWS's SDKs speak to no socket.

The host mounts a directory with `socket` and `token` where a run has one. What is passed on is not looked at: the
host's service judges it.
"""

from __future__ import annotations

import select
import socket
import socketserver
import threading
import time
from pathlib import Path

DOOR = Path("/run/standpipe/run")
PATIENCE = 3.0  # seconds for which the host's service may be away, as while it is restarted
PIECE = 65536  # bytes


class Relay(socketserver.ThreadingTCPServer):
    """Listens on 127.0.0.1, on a port that was free."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, door: Path) -> None:
        """Listen, and pass on to `door`/socket."""
        self.door = door
        super().__init__(("127.0.0.1", 0), Passage)


class Passage(socketserver.BaseRequestHandler):
    """One connection, passed on until both ends have said all."""

    server: Relay
    request: socket.socket

    def handle(self) -> None:
        """Pass it on; what cannot be is ended, and whoever asked asks again."""
        try:
            with connected(self.server.door / "socket") as host:
                pass_on(self.request, host)
        except OSError:
            return


def connected(path: Path) -> socket.socket:
    """Connect to the run's socket, which may come back in a moment."""
    deadline = time.monotonic() + PATIENCE
    while True:
        host = socket.socket(socket.AF_UNIX)
        try:
            host.connect(str(path))
        except OSError:
            host.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return host


def pass_on(one: socket.socket, other: socket.socket) -> None:
    """Pass on what either says to the other, until both have ended."""
    towards = {one: other, other: one}
    while towards:
        for source in select.select(list(towards), [], [])[0]:
            data = source.recv(PIECE)
            if data:
                towards[source].sendall(data)
            else:
                towards.pop(source).shutdown(socket.SHUT_WR)


def variables(door: Path = DOOR) -> dict[str, str]:
    """Start the relay where the run's socket vends credentials; return what tells AWS's SDKs of it.

    Source: https://docs.aws.amazon.com/sdkref/latest/guide/feature-container-credentials.html
    """
    try:
        (door / "vended").stat()
    except OSError:
        return {}  # no directory is mounted there, or it is for budgets alone
    relay = Relay(door)
    threading.Thread(target=relay.serve_forever, daemon=True).start()
    return {
        "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"http://127.0.0.1:{relay.server_address[1]}/credentials",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": str(door / "token"),
    }
