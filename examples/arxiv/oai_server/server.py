"""A small OAI-PMH server, for demonstrations and tests: `python3 server.py --catalogue
catalogue.json --port 8080`.

The standard library is all that it needs. It can be told to be busy and to go wrong, in the ways
that arXiv's own server has been seen to.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from email.utils import format_datetime
from functools import lru_cache, partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from catalogue import Item, load, load_recorded, spread
from protocol import OaiError, Repository, document


@dataclass
class Faults:
    """What goes wrong, how often, and how often it has already."""

    options: argparse.Namespace
    requests: Counter[str] = field(default_factory=Counter)
    happened: Counter[str] = field(default_factory=Counter)
    gone: int = 0  # how many papers have left the catalogue, from its beginning
    lock: threading.Lock = field(default_factory=threading.Lock)

    def busy(self, client: str) -> bool:
        """Count a request of a client, and say whether the server is busy for it."""
        options = self.options
        with self.lock:
            self.requests[client] += 1
            self.requests["*"] += 1
            first = options.busy_first and self.requests[client] <= options.busy_first
            return bool(first or (options.busy_every and self.requests["*"] % options.busy_every == 0))

    def strikes(self, kind: str, wanted: int | None, page: int) -> bool:
        """Say whether the fault of a page happens now, at most --fault-times in all."""
        if wanted != page:
            return False
        with self.lock:
            self.happened[kind] += 1
            return self.options.fault_times is None or self.happened[kind] <= self.options.fault_times


class Handler(BaseHTTPRequestHandler):
    """Answers /oai; every other path is 404."""

    protocol_version = "HTTP/1.1"  # one connection for all requests, as arXiv asks for
    wbufsize = -1  # an answer leaves in one piece: two would wait for each other on one connection

    def __init__(self, repository: Repository, faults: Faults, options: argparse.Namespace, *args: object) -> None:
        """Take what all requests share, and what the server tells of one."""
        self.repository, self.faults, self.options = repository, faults, options
        super().__init__(*args)  # type: ignore[arg-type]  # what the server hands on to its handler

    def do_GET(self) -> None:
        """Answer a query."""
        self._answer(urlsplit(self.path).query)

    def do_POST(self) -> None:
        """Answer a form: the protocol has both."""
        self._answer(self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode())

    def _answer(self, query: str) -> None:
        options = self.options
        time.sleep(options.slow)
        if urlsplit(self.path).path != "/oai":
            self._send(404, "text/plain", b"not here\n")
            return
        if self.faults.busy(self.client_address[0]):
            value = str(options.retry_after)
            if options.retry_after_as_date:
                # A date has whole seconds only: one more, so that it is never less than asked for.
                until = datetime.now(UTC) + timedelta(seconds=options.retry_after + 1)
                value = format_datetime(until, usegmt=True)
            self._send(options.busy_status, "text/plain", b"busy\n", ("Retry-After", value))
            return
        arguments = parse_qsl(query, keep_blank_values=True)
        self._send(200, "text/xml; charset=utf-8", self._document(arguments))

    def _document(self, arguments: list[tuple[str, str]]) -> bytes:
        options, strikes = self.options, self.faults.strikes
        base_url = f"http://{self.headers.get('Host', 'localhost')}/oai"
        whole = self.repository.answer(base_url, arguments).encode()
        if dict(arguments).get("verb") != "ListRecords":
            return whole
        try:
            page = self.repository.page_number(arguments)
        except OaiError:
            return whole
        if strikes("error", options.error_on_page, page):
            error = f'<error code="{options.error}">told to fail</error>'
            return document(base_url, "", error).encode()
        if strikes("expire", options.expire_after_page, page - 1):
            error = '<error code="badResumptionToken">the token has expired</error>'
            return document(base_url, "", error).encode()
        if strikes("truncate", options.truncate_page, page):
            return whole[: len(whole) * 2 // 3]
        if strikes("html", options.html_page, page):
            return b"<!DOCTYPE html><html><body>Down for maintenance<br></body></html>"
        if strikes("shrink", options.shrink_after_page, page):
            self.faults.gone += 1
        return whole

    def _send(self, status: int, kind: str, body: bytes, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name it overrides
        """Log one line a request: seconds of the clock, client, request, status."""
        print(
            f"{time.time():.3f} {self.client_address[0]} {format % args}",
            file=sys.stderr,
            flush=True,
        )


def parse_options(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="the address to listen on")
    add("--port", type=int, default=8080, help="0 takes a free one, which the first line says")
    add("--catalogue", type=Path, nargs="+", default=[], metavar="FILE", help=".json or .jsonl")
    add("--recorded", type=Path, nargs="+", default=[], metavar="FILE", help="ListRecords pages")
    add("--page-size", type=int, default=10, help="records a page")
    add("--spread-over-days", type=int, default=5, metavar="N",
        help="papers without a datestamp of their own are spread over the last N weekdays")  # fmt: skip
    add("--until", type=_day_or_today, default="today", metavar="DATE",
        help="the last of these days, or 'today' (UTC, at each request)")  # fmt: skip
    add("--token-tail", default="", help="appended to every resumption token")
    add("--list-size", action="store_true", help="give completeListSize and cursor, which arXiv does not")
    add("--overstate", type=int, default=0, metavar="N", help="added to completeListSize, which is given then")
    add("--busy-every", type=int, default=0, metavar="N", help="every N-th request finds it busy")
    add("--busy-first", type=int, default=0, metavar="N", help="the first N requests of each client")
    add("--busy-status", type=int, default=503, choices=(429, 503))
    add("--retry-after", type=int, default=1, metavar="S", help="seconds to wait when busy")
    add("--retry-after-as-date", action="store_true", help="say so as a date")
    add("--expire-after-page", type=int, metavar="K", help="refuse the token that page K gave")
    add("--truncate-page", type=int, metavar="K", help="send two thirds of page K")
    add("--html-page", type=int, metavar="K", help="send HTML instead of page K")
    add("--error-on-page", type=int, metavar="K", help="answer page K with --error")
    add("--error", default="badArgument", metavar="CODE")
    add("--shrink-after-page", type=int, metavar="K",
        help="once page K was sent, the first paper leaves, as one that is revised does")  # fmt: skip
    add("--fault-times", type=int, metavar="N", help="each of these N times; default: always")
    add("--slow", type=float, default=0.0, metavar="S", help="seconds before each answer")
    options = parser.parse_args(argv)
    if not options.catalogue and not options.recorded:
        parser.error("nothing to serve: name a --catalogue or --recorded pages")
    return options


def _day_or_today(text: str) -> date | None:
    return None if text == "today" else date.fromisoformat(text)


def main(argv: list[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT."""
    options = parse_options(argv)
    loaded = [item for path in options.catalogue for item in load(path)]
    loaded += load_recorded(options.recorded)

    faults = Faults(options)

    @lru_cache(maxsize=1)
    def papers(until: date, gone: int) -> list[Item]:
        return spread(loaded, options.spread_over_days, until)[gone:]

    repository = Repository(
        lambda: papers(options.until or datetime.now(UTC).date(), faults.gone),
        options.page_size,
        options.token_tail,
        options.list_size or bool(options.overstate),
        options.overstate,
    )
    # As PID 1 of a container a process without a handler would not hear SIGTERM at all.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    handler = partial(Handler, repository, faults, options)
    with ThreadingHTTPServer((options.host, options.port), handler) as server:
        host, port = server.server_address[:2]
        print(f"{len(loaded)} papers at http://{host!s}:{port}/oai", flush=True)
        try:
            server.serve_forever(poll_interval=0.1)
        except KeyboardInterrupt:
            return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
