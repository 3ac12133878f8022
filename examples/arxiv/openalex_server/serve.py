"""A small server of OpenAlex's protocol, for demonstrations and tests: `python3 serve.py --works
works.json --port 8081`.

The standard library is all that it needs. It answers what a matcher asks (works by DOIs, by title,
one by one), keeps a budget of dollars a day as OpenAlex does, counts by kind whatever reaches it,
and can be told to be busy and to go wrong. https://developers.openalex.org/api-reference
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from works import Index, Work, load

CREDIT = Decimal("0.0001")  # dollars; the headers count in both
MOST_VALUES = 100  # in one filter, with | between
MOST_PER_PAGE = 100


class Refused(Exception):
    """A request that cannot be answered: 400 or 404, with a sentence for people."""

    def __init__(self, status: int, error: str, message: str) -> None:
        """Take the status, OpenAlex's word for it, and the sentence."""
        super().__init__(message)
        self.status, self.error = status, error


@dataclass
class State:
    """What was counted, what was spent today, and what went wrong already."""

    options: argparse.Namespace
    counts: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    spent: Decimal = Decimal(0)
    day: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def now(self) -> datetime:
        """Return the time that the server lives in."""
        if self.options.now_from:
            return datetime.fromisoformat(self.options.now_from.read_text(encoding="ascii").strip())
        return datetime.now(UTC)

    def spend(self, kind: str, now: datetime) -> tuple[bool, Decimal, Decimal]:
        """Count a call; return whether it can be paid, its price and what is left today."""
        price = {"list": self.options.price_list, "search": self.options.price_search}.get(kind, Decimal(0))
        with self.lock:
            self.counts[kind] += 1
            if self.day != f"{now:%F}":
                self.day, self.spent = f"{now:%F}", Decimal(0)
            if self.spent + price > self.options.limit_usd:
                self.counts["refused"] += 1
                return False, price, self.options.limit_usd - self.spent
            self.spent += price
            return True, price, self.options.limit_usd - self.spent

    def strikes(self, fault: str) -> bool:
        """Say whether a fault happens to this call: the first N, every N-th, or not at all."""
        first = getattr(self.options, f"{fault}_first", 0)
        every = getattr(self.options, f"{fault}_every", 0)
        with self.lock:
            self.faults[fault] += 1
            return self.faults[fault] <= first or bool(every and self.faults[fault] % every == 0)


class Handler(BaseHTTPRequestHandler):
    """Answers /works and /works/KEY; /counts says what reached the server, and is not counted."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer leaves in one piece: two would wait for each other on one connection

    def __init__(self, index: Index, state: State, *args: object) -> None:
        """Take what all requests share, and what the server tells of one."""
        self.index, self.state = index, state
        super().__init__(*args)  # type: ignore[arg-type]  # what the server hands on to its handler

    def do_GET(self) -> None:
        """Answer a query."""
        address = urlsplit(self.path)
        if address.path == "/counts":
            self._send(200, dict(self.state.counts))
            return
        time.sleep(self.state.options.slow)
        now = self.state.now()
        query = dict(parse_qsl(address.query, keep_blank_values=True))
        kind = "singleton" if address.path.startswith("/works/") else kind_of(query)
        paid, price, left = self.state.spend(kind, now)
        midnight = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
        reset = int((midnight - now).total_seconds())
        headers = [
            ("X-RateLimit-Limit", str(int(self.state.options.limit_usd / CREDIT))),
            ("X-RateLimit-Remaining", str(int(left / CREDIT))),
            ("X-RateLimit-Credits-Used", str(int(price / CREDIT) if paid else 0)),
            ("X-RateLimit-Reset", str(reset)),
            ("X-RateLimit-Limit-USD", str(self.state.options.limit_usd)),
            ("X-RateLimit-Remaining-USD", str(left)),
            ("X-RateLimit-Cost-USD", str(price if paid else 0)),
        ]
        if self.state.strikes("drop"):
            self.close_connection = True
            return
        if self.state.strikes("busy"):
            self._send(self.state.options.busy_status, {"error": "busy", "message": "told to be busy"},
                       [*headers, ("Retry-After", str(self.state.options.retry_after))])  # fmt: skip
            return
        if not paid:
            body = {"error": "Rate limit exceeded", "message": f"Insufficient budget. Resets in {reset} seconds"}
            self._send(429, body, [*headers, ("Retry-After", str(reset))])
            return
        poison = self.state.options.poison
        if poison and poison in unquote(address.query):
            self._send(self.state.options.poison_status, {"error": "poison", "message": "told to fail"}, headers)
            return
        key = self.state.options.api_key
        if key and self.headers.get("Authorization") != f"Bearer {key}":
            self._send(401, {"error": "Invalid or missing API key", "message": "see the documentation"}, headers)
            return
        try:
            body = self._answer(address.path, query, now.timestamp(), price)
        except Refused as refused:
            self._send(refused.status, {"error": refused.error, "message": str(refused)}, headers)
            return
        self._send(200, body, headers, faulty=True)

    def _answer(self, path: str, query: dict[str, str], now: float, price: Decimal) -> dict[str, Any]:
        if path.startswith("/works/"):
            name = unquote(path.removeprefix("/works/"))
            doi = name.removeprefix("https://doi.org/").removeprefix("doi:")
            found = self.index.key(name, now) if name == doi else self.index.dois([doi], now)
            if not found:
                raise Refused(404, "Not Found", f"{name} does not exist")
            return found[0].shown()
        if path != "/works":
            raise Refused(404, "Not Found", f"{path} does not exist")
        per_page = number(query, "per_page", number(query, "per-page", 25))
        page = number(query, "page", 1)
        if not 1 <= per_page <= MOST_PER_PAGE or page < 1:
            raise Refused(
                400, "Invalid query parameters error.", f"per_page is at most {MOST_PER_PAGE}, page at least 1"
            )
        found = self._find(query, now)
        shown = [work.shown() for work in found[(page - 1) * per_page : page * per_page]]
        if fields := [name for name in query.get("select", "").split(",") if name]:
            if unknown := set(fields) - Work("", "", "", [], 0, 0.0).shown().keys():
                raise Refused(
                    400, "Invalid query parameters error.", f"not to be selected: {', '.join(sorted(unknown))}"
                )
            shown = [{name: work[name] for name in fields} for work in shown]
        meta = {"count": len(found), "page": page, "per_page": per_page, "cost_usd": float(price)}
        return {"meta": meta, "results": shown, "group_by": []}

    def _find(self, query: dict[str, str], now: float) -> list[Work]:
        if unknown := query.keys() - {
            "filter",
            "search",
            "select",
            "per_page",
            "per-page",
            "page",
            "api_key",
            "mailto",
        }:
            raise Refused(400, "Invalid query parameters error.", f"not a parameter: {', '.join(sorted(unknown))}")
        lists = [self.index.title(query["search"], now)] if query.get("search") else []
        for part in filter(None, query.get("filter", "").split(",")):
            name, colon, value = part.partition(":")
            if not colon:
                raise Refused(400, "Invalid query parameters error.", f"a filter is NAME:VALUE, not {part}")
            if name in ("title.search", "display_name.search"):
                lists.append(self.index.title(value, now))
            elif name == "doi":
                values = value.split("|")
                if len(values) > MOST_VALUES:
                    message = f"Maximum number of values exceeded for doi. Decrease values to {MOST_VALUES} or below"
                    raise Refused(400, "Invalid query parameters error.", message)
                lists.append(self.index.dois(values, now))
            elif name == "publication_year" and value.isdecimal():
                lists.append(
                    [work for work in self.index.works if work.year == int(value) and work.findable_from <= now]
                )
            else:
                raise Refused(400, "Invalid query parameters error.", f"{name} is not a valid field here")
        if not lists:
            return [work for work in self.index.works if work.findable_from <= now]
        return [work for work in lists[0] if all(work in more for more in lists[1:])]

    def _send(
        self, status: int, body: dict[str, Any], headers: list[tuple[str, str]] | None = None, *, faulty: bool = False
    ) -> None:
        content, kind = json.dumps(body).encode(), "application/json"
        broken = False
        if faulty and self.state.strikes("truncate"):
            content = content[: len(content) * 2 // 3]
        if faulty and self.state.strikes("html"):
            content, kind = b"<!DOCTYPE html><html><body>Down for maintenance<br></body></html>", "text/html"
        if faulty and self.state.strikes("break"):
            broken = True
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers or ():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if broken else content)
        self.close_connection = self.close_connection or broken

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name it overrides
        """Log one line a request: seconds of the clock, client, request, status."""
        if not self.state.options.quiet:
            print(f"{time.time():.3f} {self.client_address[0]} {format % args}", file=sys.stderr, flush=True)


def kind_of(query: dict[str, str]) -> str:
    """Return what OpenAlex charges a query of a list for: `search` or `list`."""
    searched = query.get("search") or any(".search:" in part for part in query.get("filter", "").split(","))
    return "search" if searched else "list"


def number(query: dict[str, str], name: str, default: int) -> int:
    """Return a whole number of a query."""
    text = query.get(name)
    if text is None:
        return default
    if not text.isdecimal():
        raise Refused(400, "Invalid query parameters error.", f"{name} is no number: {text}")
    return int(text)


def parse_options(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="the address to listen on")
    add("--port", type=int, default=8081, help="0 takes a free one, which the first line says")
    add("--works", type=Path, nargs="+", required=True, metavar="FILE",
        help='{"works": [...]}, or the OAI-PMH server\'s catalogue')  # fmt: skip
    add("--now-from", type=Path, metavar="FILE", help="live in the time that this file says (RFC 3339)")
    add("--api-key", default="", help="refuse who does not show this key")
    add("--limit-usd", type=Decimal, default=Decimal("1.00"), help="dollars a day, of UTC")
    add("--price-list", type=Decimal, default=Decimal("0.0001"), metavar="USD")
    add("--price-search", type=Decimal, default=Decimal("0.001"), metavar="USD")
    add("--busy-every", type=int, default=0, metavar="N", help="every N-th request finds it busy")
    add("--busy-first", type=int, default=0, metavar="N", help="the first N requests")
    add("--busy-status", type=int, default=503, choices=(429, 500, 503))
    add("--retry-after", type=int, default=1, metavar="S", help="seconds to wait when busy")
    for fault, text in (
        ("drop", "end the connection without an answer"),
        ("break", "end it in the middle of one"),
        ("truncate", "send two thirds of an answer as if it were whole"),
        ("html", "send HTML with status 200"),
    ):
        add(f"--{fault}-every", type=int, default=0, metavar="N", help=f"every N-th time {text}")
        add(f"--{fault}-first", type=int, default=0, metavar="N", help=f"the first N times {text}")
    add("--poison", default="", metavar="TEXT", help="fail whatever is asked for with this in it")
    add("--poison-status", type=int, default=500, metavar="STATUS")
    add("--slow", type=float, default=0.0, metavar="S", help="seconds before each answer")
    add("--quiet", action="store_true", help="log no requests")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT."""
    options = parse_options(argv)
    works = [work for path in options.works for work in load(path)]
    # As PID 1 of a container a process without a handler would not hear SIGTERM at all.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    handler = partial(Handler, Index(works), State(options))
    with ThreadingHTTPServer((options.host, options.port), handler) as server:
        host, port = server.server_address[:2]
        print(f"{len(works)} works at http://{host!s}:{port}/works", flush=True)
        try:
            server.serve_forever(poll_interval=0.1)
        except KeyboardInterrupt:
            return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
