"""Word of what went wrong, and of what is well again, to whoever is to know.

Each is noted in the ledger together with the outcome that it tells of, and struck out when it was
sent; what could not be sent is tried again by the next command that has something to tell.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import re
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import groupby

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from standpipe import budgets, paths, report
from standpipe.budgets import report as budget_report
from standpipe.configuration import all_credentials, credentials
from standpipe.errors import ConfigurationError
from standpipe.ledger import Ledger, Run, instant
from standpipe.logs import spool
from standpipe.scan.secrets import Detector
from standpipe_task import spending

TOO_OLD = timedelta(days=1)  # news of yesterday is for `standpipe history`
HANGS_AFTER = 3  # seconds of a message that was not taken; Apprise waits for four, of mail fifteen
PING_TIMEOUT = 10  # seconds

SLOTS_LISTED = 20
LONGEST_LINE = 2000  # characters of a log's line in a message
ALARMS_EVERY = 3600  # seconds

# What a log has and an image's settings have not; the rest is `scan`'s to know.
SECRETS = (
    re.compile(r"(?<=://)[^/\s:@]*:[^/\s@]+(?=@)"),
    re.compile(r"(?i)\b(?:bearer|basic)\s+[\w.~+/=-]{6,}"),
    re.compile(
        r"(?i)(?<![\w-])[\w-]*(?:passw(?:or)?d|passphrase|secret|token|api.?key|access.?key|private.?key|credential)[\w-]*"
        r"(?:['\"]?\s*[=:]\s*|\s+(?<=-password )|\s+(?<=-passwd )|\s+(?<=-token )|\s+(?<=-secret )|\s+(?<=-key ))"
        r"(?:\"[^\"]*\"?|'[^']*'?|\S+)"
    ),
)
# AWS's secret keys are 40 letters, its session tokens some hundred; a commit's id and a digest have no capitals.
BARE = re.compile(r"(?<![\w/+-])(?:[A-Za-z0-9/+]{40}|[\w/+-]{100,}={0,2})(?![\w/+=-])", re.ASCII)
KEY_BEGINS, KEY_ENDS = "PRIVATE KEY-----", "-----END "


class Settings(BaseModel):
    """Where word goes: Apprise's addresses (mail, Slack, webhooks and more), and a dead man's switch."""

    model_config = ConfigDict(extra="forbid")

    urls: list[str] = Field(default_factory=list)
    ping_url: str | None = None
    log_lines: int = Field(20, ge=0)


def settings() -> Settings:
    """Read the host's settings; nobody is told anything where there are none.

    Raises ConfigurationError, without a value of the file in it, where it is damaged.
    """
    try:
        return Settings.model_validate(yaml.safe_load(paths.NOTIFY.read_bytes()) or {})
    except FileNotFoundError:
        return Settings()
    except (OSError, ValueError, yaml.YAMLError) as error:
        keys = [str(found["loc"]) for found in error.errors()] if isinstance(error, ValidationError) else []
        remedy = "run site.yml on this host, which writes it anew"
        raise ConfigurationError(f"{paths.NOTIFY} is damaged {' '.join(keys)}: {remedy}") from None


def tell(ledger: Ledger, say: Callable[[str], None]) -> None:
    """Send what is noted and not yet sent. What goes wrong is said, and changes nothing else."""
    if not ledger.notices():
        return
    with alone():
        tell_alone(ledger, say)


@contextmanager
def alone() -> Iterator[None]:
    """Wait until no other process sends word: what it had to tell is told by then."""
    with paths.TELLING.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def tell_alone(ledger: Ledger, say: Callable[[str], None]) -> None:
    """Send it, while no other process does."""
    chosen = settings()
    hung: set[str] = set()
    for (name, event), group in groupby(ledger.notices(), key=lambda run: (run.pipeline, run.notice or "")):
        runs = list(group)
        noted_at = runs[-1].noted_at or runs[-1].ended_at or runs[-1].claimed_at
        old = event != "unconfirmed" and datetime.now(UTC) - instant(noted_at) > TOO_OLD
        if not chosen.urls or old or deliver(ledger, chosen, name, event, runs, hung):
            ledger.told([run.id for run in runs], event)
        else:
            say(f"{name}: word of run {runs[-1].id} ({event}) could not be sent; it is tried again")


def deliver(ledger: Ledger, chosen: Settings, name: str, event: str, runs: list[Run], hung: set[str]) -> bool:
    """Send word to each address that has not taken it yet; return whether all have by now.

    Those that have `hung` just now are left to the next time: there may be much to tell.
    """
    whole = True
    for url in chosen.urls:
        address = hashlib.sha256(url.encode()).hexdigest()  # the address itself holds secrets
        known = ledger.delivered(event, address)
        new = [run for run in runs if run.id not in known]
        if not new:
            continue
        began = time.monotonic()
        if url not in hung and send(url, *message(name, event, new, chosen.log_lines)):
            ledger.deliver([run.id for run in new], event, address)
            continue
        whole = False
        if time.monotonic() - began > HANGS_AFTER:  # who refuses at once may take the next
            hung.add(url)
    return whole


def send(url: str, title: str, body: str) -> bool:
    """Send one message to an address; return whether it has taken it."""
    import apprise

    logging.getLogger("apprise").setLevel(logging.CRITICAL)  # its messages hold the addresses, and these hold secrets
    sender = apprise.Apprise()
    try:
        return bool(sender.add(url) and sender.notify(title=title, body=body))
    except Exception:  # whatever a service's plugin raises is no affair of a run
        return False


def mask_of(name: str) -> Callable[[str], str]:
    """Return what takes from a line that which is or looks like a secret, and each that this host knows of."""
    known = set(all_credentials()) | set(credentials(name))
    detector = Detector(value.encode() for value in known)
    return lambda line: without_secrets(line, known, detector)


def message(name: str, event: str, runs: list[Run], log_lines: int) -> tuple[str, str]:
    """Return title and body of what there is to tell of a pipeline's runs."""
    run, host = runs[-1], socket.gethostname()
    title = f"{name} on {host}: {event.replace('_', ' ')}"
    if len(runs) > 1:
        listed = [f"{one.slot}: {report.outcome(one)}" for one in runs[-SLOTS_LISTED:]]
        more = len(runs) - len(listed)
        before = [f"and {more} before: standpipe history {name}"] if more else []
        return f"{title} ({len(runs)} slots)", "\n".join(before + listed)
    facts = {
        "slot": run.slot,
        "date": run.date,
        "outcome": report.outcome(run),
        "exit code": run.exit_code,
        "why": run.detail and mask_of(name)(run.detail),
        "took": report.took(run),
        "commit": run.commit_id,
        "run": run.id,
    }
    lines = [f"{key}: {value}" for key, value in facts.items() if value not in (None, "")]
    ending = list(last_lines(name, run.id, log_lines)) if event != "recovered" else []
    return title, "\n".join([*lines, *(["", "the log ends with:"] if ending else []), *ending])


def last_lines(name: str, run: str, count: int) -> Iterator[str]:
    """Yield the last lines of a run's log, without what is or looks like a secret."""
    path = spool.place(paths.spool(name, run))
    if not path.exists() or not count:
        return
    ending: deque[str] = deque(maxlen=count)
    in_key = False
    for record in spool.read(path):
        if record["stream"] == "end":
            break
        line = spool.printable(spool.text(record))
        in_key = in_key or KEY_BEGINS in line
        ending.append("***" if in_key else shortened(line))
        in_key = in_key and KEY_ENDS not in line
    mask = mask_of(name)
    for line in ending:
        yield mask(line)


def shortened(line: str) -> str:
    """Return the beginning of a line that is too long for a message; no word of it is cut, as it may be a secret."""
    return line if len(line) <= LONGEST_LINE else line[: line.rfind(" ", 0, LONGEST_LINE) + 1] + "..."


def without_secrets(line: str, known: set[str], detector: Detector) -> str:
    """Return a line without what is or looks like a secret."""
    for value in known:
        line = line.replace(value, "***")
    for pattern in SECRETS:
        line = pattern.sub("***", line)
    return detector.masked(BARE.sub(unless_plain, line))


def unless_plain(found: re.Match[str]) -> str:
    """Mask what has capitals, small letters and digits in it."""
    kinds = (str.isupper, str.islower, str.isdigit)
    return "***" if all(any(map(kind, found[0])) for kind in kinds) else found[0]


def warn_of_budgets(say: Callable[[str], None]) -> None:
    """Send word, once a period, of each budget that is going to run dry before its period ends, or may well."""
    terms = budgets.terms()
    chosen = settings()
    if not terms or not chosen.urls:
        return
    with budgets.books() as database:
        for name, each in terms.items():
            try:
                told = warn_of(database, each, chosen.urls)
            except spending.Unavailable as error:  # this one: the others may be well
                told = str(error)
            if told:
                say(f"budget {name}: {told}")


def warn_of(database: spending.Database, terms: spending.Terms, urls: list[str]) -> str | None:
    """Send word of one budget, if it is to be; return what went wrong. Raises Unavailable.

    It is noted once somebody has taken it: who is killed before that is not the last to tell.
    """
    look = budget_report.outlook(database, terms)
    if look.forecast.may_run_dry is None:
        return None
    level = 2 if look.forecast.runs_dry else 1
    with spending.books(database) as opened:
        if not opened.begin_warning(terms, level):
            return None  # they know, or are being told by another process or host
    title = f"budget {terms.name} on {socket.gethostname()}: runs dry: {budget_report.when_dry(look.forecast)}"
    taken = [send(url, title, budget_report.detail(look)) for url in urls]
    with spending.books(database) as opened:
        if any(taken):  # who has taken it is not told again for the others' sake
            opened.warn(terms, level)
        else:
            opened.give_up_warning(terms)
    if all(taken):
        return None
    return "a warning did not reach every address" if any(taken) else "a warning could not be sent; it is tried again"


def tell_of_alarms(say: Callable[[str], None]) -> None:
    """Send word of what this collector has warned of since the last time; after that, not again for an hour."""
    from standpipe.logs import alarms

    chosen, place = settings(), paths.ALARMS_TOLD
    if not chosen.urls or paths.written_within(place, ALARMS_EVERY):
        return
    found = alarms.since(place.read_text() if place.exists() else None)
    if not found:
        return
    shown = [without_secrets(spool.one_line(one.encode()), set(), Detector()) for one in found.first]
    more = found.number - len(shown)
    body = "\n".join(shown + ([f"and {more} more: journalctl -u standpipe-collect -p warning"] if more else []))
    title = f"collector {socket.gethostname()}: {found.number} {'alarms' if found.number > 1 else 'alarm'}"
    taken = [send(url, title, body) for url in chosen.urls]
    if not all(taken):
        say(f"word of {found.number} alarms could not be sent to {taken.count(False)} of {len(taken)} addresses")
    if any(taken):  # whoever took it is not told again because of another
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        unfinished = place.with_suffix(".unfinished")
        unfinished.write_text(found.cursor)
        unfinished.rename(place)


def tell_of_a_new_ledger(say: Callable[[str], None]) -> None:
    """Send word, once, that this host's ledger was lost and another begun."""
    if not paths.LEDGER_BEGUN.exists() or not paths.LEDGER_BEGUN.stat().st_size:
        return
    with alone():
        told = paths.LEDGER_BEGUN.read_text()
        title = f"standpipe on {socket.gethostname()}: its history began anew"
        if not told or reaches_somebody("the new ledger", title, told, say):
            paths.LEDGER_BEGUN.write_text("")


def reaches_somebody(what: str, title: str, body: str, say: Callable[[str], None]) -> bool:
    """Send word of something to each address; who has taken it is not told again for the others' sake.

    Returns whether that was all: one has taken it, or there is none.
    """
    taken = [send(url, title, body) for url in settings().urls]
    if any(taken) or not taken:
        return True
    say(f"word of {what} could not be sent; it is tried again")
    return False


def ping(say: Callable[[str], None]) -> None:
    """Tell a dead man's switch that this host is up: what it then hears nothing of, it raises an alarm for."""
    import requests

    url = settings().ping_url
    if url:
        try:
            requests.get(url, timeout=PING_TIMEOUT).raise_for_status()
        except requests.RequestException as error:
            say(f"the dead man's switch could not be reached ({type(error).__name__})")
