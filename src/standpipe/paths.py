"""Where things lie on a managed host. Tests set STANDPIPE_ROOT to have them elsewhere."""

from __future__ import annotations

import os
import time
from pathlib import Path

ROOT = Path(os.environ.get("STANDPIPE_ROOT", "/"))

PIPELINES = ROOT / "etc/standpipe/pipelines"
BUDGETS = ROOT / "etc/standpipe/budgets.yml"
BUDGETS_DATABASE = ROOT / "etc/standpipe/budgets-database"
CREDENTIALS = ROOT / "etc/standpipe/credentials"
SETTINGS = ROOT / "etc/standpipe/settings.yml"
NOTIFY = ROOT / "etc/standpipe/notify.yml"
TLS = ROOT / "etc/standpipe/tls"
METADATA = ROOT / "etc/docker/metadata.nft"
CERTIFICATE = TLS / "host.pem"
KEY = TLS / "host.key"
AUTHORITY = TLS / "ca.pem"
AWS_IDENTITY = ROOT / "etc/standpipe/aws-identity"
METRICS = ROOT / "var/lib/prometheus/node-exporter"
CRON = ROOT / "etc/cron.d"
SUDOERS = ROOT / "etc/sudoers.d"
CONTEXTS = ROOT / "opt/standpipe"
STATE = ROOT / "var/lib/standpipe"
LEDGER = STATE / "ledger.sqlite3"
LEDGER_BEGUN = STATE / "ledger-begun"
BUDGET_LEDGER = STATE / "budgets.sqlite3"
BUDGETS_BEGUN = STATE / "budgets-begun"
LOCKS = STATE / "lock"
RUNNERS = STATE / "runners"
CERTIFICATES_TOLD = STATE / "certificates-told"
CONFIRMING = STATE / "confirming"
LOOKED_BACK = STATE / "looked-back"
MEASURING = STATE / "measuring"
TELLING = STATE / "telling"
CLEAN = STATE / "clean"
SPOOL = ROOT / "var/spool/standpipe"
CONTROL = ROOT / "run/standpipe/control"
RUN_SOCKETS = ROOT / "run/standpipe/runs"
PIPELINE_SOCKETS = ROOT / "run/standpipe/pipelines"

# On the collector.
COLLECT = ROOT / "var/lib/standpipe-collect"
INTAKE = COLLECT / "intake"
RECEIPTS = COLLECT / "receipts"
COLLECTOR = ROOT / "etc/standpipe/receipts.conf"
ALARMS_TOLD = STATE / "alarms-told"
COLLECTED = ROOT / "var/log/standpipe"
REJECTED = COLLECTED / "rejected.log"


def written_within(path: Path, seconds: float) -> bool:
    """Say whether a file was written so lately; one that a clock left in times to come was not."""
    return path.exists() and abs(time.time() - path.stat().st_mtime) < seconds


def compose_file(pipeline: str) -> Path:
    """Return the Compose file of a pipeline."""
    return CONTEXTS / pipeline / "docker/docker-compose.yml"


def sbom(pipeline: str, image: str) -> Path:
    """Return the file that says what is in an image of a pipeline, by the image's tag."""
    return CONTEXTS / pipeline / "sbom" / f"{image.rpartition(':')[2]}.cdx.json"


def spool(pipeline: str, run: str) -> Path:
    """Return the file that holds a run's log lines."""
    return SPOOL / pipeline / f"{run}.ndjson"


def output(pipeline: str, run: str) -> Path:
    """Return the file in which a run's container keeps what it writes; no pattern of rsyslog's means it."""
    return SPOOL / pipeline / f"{run}.output"
