"""Metrics for Prometheus, by the textfile collector of its node exporter."""

from __future__ import annotations

from collections import Counter

from standpipe import paths
from standpipe.ledger import Ledger, instant


def write(ledger: Ledger) -> None:
    """Write the state of all pipelines, at once and whole; nothing where this host has no such directory."""
    if not paths.METRICS.is_dir():
        return
    from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

    registry = CollectorRegistry()

    def gauge(name: str, help_: str, *labels: str) -> Gauge:
        return Gauge(f"standpipe_{name}", help_, ["pipeline", *labels], registry=registry)

    success = gauge("last_success_timestamp_seconds", "When a run last succeeded, in seconds since 1970 (UTC).")
    took = gauge("last_duration_seconds", "How long the last run took that ended.")
    runs = gauge("runs", "Recorded runs by outcome.", "outcome")
    running = gauge("running", "1 while a run is going, else 0.")
    missed = gauge("slots_missed", "Slots that were missed.")
    waiting = gauge("logs_unconfirmed", "Logs of ended runs that the collector has not confirmed.")
    unconfirmed = Counter(run.pipeline for run in ledger.unconfirmed())
    unfinished = {run.pipeline for run in ledger.unfinished()}
    for known in ledger.registered():
        counts = ledger.counts(known.name)
        running.labels(known.name).set(known.name in unfinished)
        waiting.labels(known.name).set(unconfirmed[known.name])
        missed.labels(known.name).set(counts.get("missed", 0))
        for outcome, count in counts.items():
            runs.labels(known.name, outcome).set(count)
        if (last := ledger.newest(known.name, "succeeded")) and last.ended_at:
            success.labels(known.name).set(instant(last.ended_at).timestamp())
        if (ended := ledger.newest(known.name)) and ended.started_at and ended.ended_at:
            took.labels(known.name).set((instant(ended.ended_at) - instant(ended.started_at)).total_seconds())
    write_to_textfile(str(paths.METRICS / "standpipe.prom"), registry)
