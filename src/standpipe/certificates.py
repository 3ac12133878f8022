"""The certificates by which logs travel, and word of them before they end: only a converge renews them."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from standpipe import notify, paths

RENEW_WITHIN = 14 * 86400  # seconds before a certificate's end from which on no converge has renewed it in time
TOLD_EVERY = 86400  # seconds
RENEWS = "run site.yml on this host, which renews it"
RENEWS_ALL = "move its folder (certificate-authority) away on the controller, and run site.yml on all hosts"


@dataclass(frozen=True)
class Certificate:
    """One certificate of this host: `remedy` is None where it is good for some time."""

    kind: str
    seen: str
    remedy: str | None


def here() -> Iterator[Certificate]:
    """Look at this host's certificate and key, and at its authority's; at nothing where the logs stay here."""
    if not paths.TLS.exists():
        return
    if not paths.KEY.exists():
        yield Certificate("certificate", f"its key {paths.KEY} is missing", RENEWS)
    kinds = (("certificate", paths.CERTIFICATE, RENEWS), ("certificate authority", paths.AUTHORITY, RENEWS_ALL))
    for kind, path, renews in kinds:
        command = ["openssl", "x509", "-noout", "-enddate", "-checkend", str(RENEW_WITHIN), "-in", str(path)]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        seen = (answer.stdout or answer.stderr).splitlines()[0].replace("notAfter=", "good until ")
        remedy = renews if answer.stdout else RENEWS  # the authority's is lost here alone
        yield Certificate(kind, seen, remedy if answer.returncode else None)


def warn(say: Callable[[str], None]) -> None:
    """Send word, once a day, of certificates that end soon."""
    if not notify.settings().urls or paths.written_within(paths.CERTIFICATES_TOLD, TOLD_EVERY):
        return
    ending = [one for one in here() if one.remedy]
    if not ending:
        return
    title = f"{' and '.join(one.kind for one in ending)} on {socket.gethostname()}: {ending[0].seen}"
    body = "\n".join(f"{one.kind}: {one.seen}: {one.remedy}" for one in ending)
    with notify.alone():
        if paths.written_within(paths.CERTIFICATES_TOLD, TOLD_EVERY):
            return  # by another process, meanwhile
        if notify.reaches_somebody("certificates that end soon", title, body, say):
            paths.CERTIFICATES_TOLD.touch()
