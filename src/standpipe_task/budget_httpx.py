"""A transport for `httpx` or `httpx2` that spends a budget: no call goes out that was not counted first.

    client = httpx.Client(transport=BudgetTransport(httpx.HTTPTransport(), "arxiv"))

What it spends from is what `budget` says. Neither library is imported here: a pipeline has the one that it uses.
"""

from __future__ import annotations

from datetime import date, datetime
from typing import TYPE_CHECKING, Any, Callable, Mapping, Optional, Union

from standpipe_task import purse, spending

if TYPE_CHECKING:
    from httpx2 import BaseTransport, Request, Response
else:
    BaseTransport = object  # the libraries ask a transport for its methods alone

# By their names, which both libraries give them: there was no connection to send anything through, TLS included. What
# a body raises while it is sent may have these names, too.
NEVER_SENT = frozenset({"ConnectError", "ConnectTimeout", "PoolTimeout", "UnsupportedProtocol"})

Kind = Union[str, "Callable[[Request], str]"]


class BudgetError(Exception):
    """A call that was not made, for its budget's sake. It is no error of httpx's: what repeats those leaves it be."""

    def __init__(self, budget: str, message: str) -> None:
        """Say which budget."""
        super().__init__(message)
        self.budget = budget


class BudgetSpent(BudgetError):
    """Nothing is left of it: until `resets_at`, or, where that is None, for the rest of this run."""

    def __init__(self, budget: str, message: str, resets_at: Optional[datetime] = None) -> None:
        """Say when there will be more (UTC)."""
        super().__init__(budget, message)
        self.resets_at = resets_at


class BudgetUnavailable(BudgetError):
    """It cannot be counted now, or is not declared for this pipeline."""


class BudgetTransport(BaseTransport):
    """Sends each request through another transport when its price is reserved in a budget, once, and charges it.

    `kind` names the kind of call, by which a budget may have prices: a text, or a function of the request. Redirects
    come through here one by one, and are charged so. What repeats requests has its place outside of this: what the
    transport within is about to send again, as over HTTP/2, is not sent. It may try again to connect (`retries`), as
    that sends nothing. What is sent is charged, whatever comes of it; only where no connection was made is a
    reservation taken back.

    Give it the proxy: `httpx.HTTPTransport(proxy=...)`. What `proxy` or `mounts` of the client itself apply to goes
    around this, and is not counted.

    Raises BudgetSpent and BudgetUnavailable, before anything is sent that was not counted.
    """

    def __init__(self, transport: BaseTransport, budget: str, kind: Kind = "call") -> None:
        """Connect to nothing yet."""
        self.transport = transport
        self.budget = budget
        self.kind = kind

    def handle_request(self, request: Request) -> Response:
        """Send one request, which is paid for."""
        kind = self.kind if isinstance(self.kind, str) else self.kind(request)
        sending = Sending(self.budget, self.transport, request)
        try:
            return purse.pay(self.budget, kind, sending.send, sending.was_not_begun)
        except spending.Spent as error:
            raise BudgetSpent(self.budget, str(error), error.until) from None
        except spending.Refused as error:
            raise BudgetUnavailable(self.budget, str(error)) from None

    def close(self) -> None:
        """Let go of all connections; a later request makes new ones."""
        self.transport.close()
        purse.let_go()

    def __enter__(self) -> BudgetTransport:
        """Open the transport within."""
        self.transport.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """Let go of all connections."""
        self.transport.__exit__(*error)
        purse.let_go()


class Sending:
    """One request on its way: by what the transport traces, whether anything of it was sent; and it is sent once."""

    def __init__(self, budget: str, transport: BaseTransport, request: Request) -> None:
        """Send nothing yet."""
        self._budget = budget
        self._transport = transport
        self._request = request
        self._traced = request.extensions.get("trace")
        self._begun = False

    def send(self) -> Response:
        """Send it."""
        own = self._request.extensions
        self._request.extensions = {**own, "trace": self._trace}
        try:
            return self._transport.handle_request(self._request)
        finally:
            self._request.extensions = own

    def was_not_begun(self, error: BaseException) -> bool:
        """Say whether nothing can have been sent: there was no connection to send it through, or nobody to trust."""
        return not self._begun and any(kind.__name__ in NEVER_SENT for kind in type(error).__mro__)

    def _trace(self, event: str, info: Mapping[str, Any]) -> Any:
        """Note that the headers go out now. Raises BudgetUnavailable before they do so again."""
        if event.endswith("send_request_headers.started") and not self._opens_tunnel(info):
            if self._begun:
                why = "its connection was lost, and what was sent is not sent again uncounted: whoever repeats it pays"
                raise BudgetUnavailable(self._budget, f"a call of budget {self._budget} got no answer: {why}")
            self._begun = True
        return self._traced(event, info) if self._traced else None

    def _opens_tunnel(self, info: Mapping[str, Any]) -> bool:
        """Say whether it is the proxy that is asked for a way, by a request of the transport's own."""
        method = getattr(info.get("request"), "method", b"")
        return bool(method == b"CONNECT" and self._request.method != "CONNECT")


def expect(budget: str, calls: Mapping[date, Mapping[str, float]]) -> None:
    """Tell how many calls, by kind, this pipeline expects to make on each of the days to come: see `purse.expect`.

    Raises BudgetUnavailable where it cannot be told.
    """
    purse.expect(budget, calls, BudgetUnavailable)
