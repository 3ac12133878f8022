"""The places of an image in which a secret can be: every layer, the configuration, the history."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple

from standpipe.scan.archives import Place, Stream, Walk
from standpipe.scan.secrets import Detector

DOCUMENT = 4_000_000  # bytes; a larger file is no manifest and no configuration


class Finding(NamedTuple):
    """What was found, and where; never the value."""

    place: str
    what: str


class Scanned(NamedTuple):
    """What came of a scan; `closed` are archives that could not be looked into, with the reason."""

    findings: list[Finding]
    closed: list[Finding]


def scan_files(top: Path, detector: Detector) -> Scanned:
    """Look at every file below a directory, and into every archive there."""
    findings: set[tuple[Place, str]] = set()

    def see(place: Place, pieces: Iterator[bytes]) -> None:
        findings.update((place, what) for what in detector.in_file(place[-1], pieces))

    walk = Walk(see)
    walk.directory(top)
    return told(findings, walk.closed, detector, {})


def scan_image(saved: Iterable[bytes], detector: Detector) -> Scanned:
    """Look through an image as `docker save` writes it.

    Source: https://github.com/opencontainers/image-spec/blob/main/image-layout.md, and the file
    manifest.json that Docker adds.
    """
    findings: set[tuple[Place, str]] = set()
    documents: dict[str, bytes] = {}

    def see(place: Place, pieces: Iterator[bytes]) -> None:
        if len(place) > 1:
            findings.update((place, what) for what in detector.in_file(place[-1], pieces))
            return
        kept = list(pieces)  # of the layout itself
        if sum(map(len, kept)) <= DOCUMENT and kept[0][:1] in (b"{", b"["):
            documents[place[0]] = b"".join(kept)
        findings.update((place, what) for what in detector.in_file(place[0], kept))

    walk = Walk(see)
    walk.tar(BufferedReader(Stream(saved)))
    names = {}
    for manifest in json.loads(documents.get("manifest.json", b"[]")):
        config = json.loads(documents.get(manifest["Config"], b"{}"))
        names[manifest["Config"]] = "configuration"
        findings = {found for found in findings if found[0] != (manifest["Config"],)}  # told more exactly here
        findings |= {((where,), what) for where, text in settings(config) for what in detector.in_settings(text)}
        steps = [step for step in config.get("history", []) if not step.get("empty_layer")]
        for number, layer in enumerate(manifest["Layers"]):
            by = instruction(steps[number].get("created_by") or "") if len(steps) == len(manifest["Layers"]) else ""
            names.setdefault(layer, f"layer {number + 1} of {len(manifest['Layers'])}{by}")
            if walk.walked.isdisjoint({(layer,), (layer, "")}):
                why = walk.closed.get((layer,)) or walk.closed.get((layer, "")) or "no archive that is known here"
                findings.add(((layer,), f"it could not be looked into: {why}"))
    return told(findings, walk.closed, detector, names)


def settings(config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each line of an image's configuration with its place."""
    for number, step in enumerate(config.get("history", []), start=1):
        for key in ("created_by", "comment", "author"):
            yield f"history, step {number}{instruction(step.get('created_by') or '')}", step.get(key) or ""
    run = config.get("config") or {}
    for variable in run.get("Env") or []:
        yield f"configuration, variable {variable.partition('=')[0]}", variable
    for label, value in (run.get("Labels") or {}).items():
        yield f"configuration, label {label}", f"{label}={value}"
    rest = {key: value for key, value in run.items() if key not in ("Env", "Labels")}
    for key, value in (rest | {key: config.get(key) for key in ("author", "comment")}).items():
        yield f"configuration, {key}", json.dumps(value, ensure_ascii=False)


def instruction(created_by: str) -> str:
    """Return the instruction of a Dockerfile by which a step was made; no more of it, as more could be a secret."""
    match = re.match(r"(?:/bin/sh -c #\(nop\)\s+)?([A-Z]{3,12})\b", created_by)
    return f" ({match[1]})" if match else " (RUN)" if created_by.startswith("/bin/sh") else ""


def told(
    findings: set[tuple[Place, str]], closed: dict[Place, str], detector: Detector, names: dict[str, str]
) -> Scanned:
    """Say each place in words, without a secret."""

    def said(place: Place) -> str:
        first, *rest = place
        return detector.masked(" > ".join([names.get(first, first), *filter(None, rest)]))

    def sort(found: Iterable[tuple[Place, str]]) -> list[Finding]:
        return sorted({Finding(said(place), what) for place, what in found})

    return Scanned(sort(findings), sort(closed.items()))
