"""A real OAI-PMH server on loopback, for each test its own, and catalogues for it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest
import requests

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import date

EXAMPLE = Path(__file__).parents[2] / "examples" / "arxiv"
SERVER = EXAMPLE / "oai_server" / "server.py"
OPENALEX = EXAMPLE / "openalex_server" / "serve.py"
REAL_RECORDS = Path(__file__).parents[2].parent / "shared" / "arxiv"
# A pipeline in a container finds its package on PYTHONPATH; here its folder takes that place.
sys.path[:0] = [str(EXAMPLE), str(EXAMPLE / "oai_server")]

with warnings.catch_warnings():
    # Luigi warns of this when it is imported, unless a luigi.cfg of the working directory decides it.
    warnings.filterwarnings("ignore", r"\s*Autoloading range tasks", DeprecationWarning)
    import luigi  # noqa: F401

needs_real_records = pytest.mark.skipif(
    not REAL_RECORDS.is_dir(), reason="the recorded pages of arXiv are not on this machine"
)


@dataclass(frozen=True)
class Server:
    """A running server; `log` has one line a request."""

    base_url: str
    log: Path
    process: subprocess.Popen[str]

    def requests(self) -> list[tuple[float, str, int]]:
        """Return what was asked so far: (seconds of the clock at the answer, path and query, status)."""
        found = re.findall(r'^([\d.]+) \S+ "\w+ (\S+) [^"]+" (\d+)', self.log.read_text(), re.MULTILINE)
        return [(float(when), path, int(status)) for when, path, status in found]


class Serve(Protocol):
    """Start a server with papers and options of its command line."""

    def __call__(self, papers: list[dict[str, Any]] | None, *options: str | Path) -> Server: ...


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Give a function that starts servers, and stop them after the test."""
    started: list[subprocess.Popen[str]] = []

    def start(papers: list[dict[str, Any]] | None, *options: str | Path) -> Server:
        number = len(started)
        # Without the packages of this environment: the server runs on a bare host.
        arguments: list[str | Path] = [sys.executable, "-S", "-E", "-B", SERVER, "--port", "0"]
        if papers is not None:
            catalogue = tmp_path / f"catalogue-{number}.json"
            catalogue.write_text(json.dumps({"papers": papers}), encoding="utf-8")
            arguments += ["--catalogue", catalogue]
        log = tmp_path / f"server-{number}.log"
        with log.open("w") as errors:
            process = subprocess.Popen([*arguments, *options], stdout=subprocess.PIPE, stderr=errors, text=True)
        started.append(process)
        assert process.stdout is not None
        said = re.search(r"http://\S+", process.stdout.readline())
        assert said, log.read_text()
        return Server(said.group(), log, process)

    yield start
    for process in started:
        process.terminate()
        process.wait(timeout=5)
        assert process.stdout is not None
        process.stdout.close()


@dataclass(frozen=True)
class OpenAlex:
    """A running server of OpenAlex's protocol; `clock` is the file with the time that it lives in."""

    base_url: str
    clock: Path
    process: subprocess.Popen[str]

    def counts(self) -> dict[str, int]:
        """Return how many calls of each kind reached it."""
        counted: dict[str, int] = requests.get(f"{self.base_url}/counts", timeout=10).json()
        return counted

    def is_now(self, day: date) -> None:
        """Set its time to noon of a day."""
        self.clock.write_text(f"{day}T12:00:00+00:00")


class ServeWorks(Protocol):
    """Start a server with works and options of its command line."""

    def __call__(self, works: list[dict[str, Any]] | Path, *options: str | Path) -> OpenAlex: ...


@pytest.fixture
def serve_works(tmp_path: Path) -> Iterator[ServeWorks]:
    """Give a function that starts servers of OpenAlex's protocol, and stop them after the test."""
    started: list[subprocess.Popen[str]] = []

    def start(works: list[dict[str, Any]] | Path, *options: str | Path) -> OpenAlex:
        number = len(started)
        path = works if isinstance(works, Path) else tmp_path / f"works-{number}.json"
        if isinstance(works, list):
            path.write_text(json.dumps({"works": works}), encoding="utf-8")
        clock = tmp_path / f"openalex-clock-{number}"
        clock.write_text("2026-11-20T12:00:00+00:00")
        arguments: list[str | Path] = [sys.executable, "-S", "-E", "-B", OPENALEX, "--port", "0"]
        arguments += ["--works", path, "--now-from", clock, "--quiet", *options]
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        said = re.search(r"(http://[^/]+)/works", process.stdout.readline())
        assert said
        return OpenAlex(said.group(1), clock, process)

    yield start
    for process in started:
        process.terminate()
        process.wait(timeout=5)
        assert process.stdout is not None
        process.stdout.close()


def work(key: str, title: str, doi: str | None = None, **more: Any) -> dict[str, Any]:
    """Return an entry of a works file."""
    return {"key": key, "doi": doi, "title": title, "authors": ["Ada Lovelace", "Emmy Noether"], "year": 2020, **more}


def paper(paper_id: str, day: str | None, **more: Any) -> dict[str, Any]:
    """Return a catalogue's entry; the titles are of no real paper, and the ids are only used on loopback."""
    return {
        "id": paper_id,
        "datestamp": day,
        "title": f"On {paper_id}",
        "authors": ["Lovelace, Ada", "Noether, Emmy"],
        "categories": "math.HO cs.GL",
        "created": "2020-01-02",
        "abstract": f"What there is to say of {paper_id}.",
        **more,
    }


def papers_of(day: str, number: int) -> list[dict[str, Any]]:
    """Return so many papers of one day."""
    return [paper(f"2001.{nth:05}", day) for nth in range(1, number + 1)]
