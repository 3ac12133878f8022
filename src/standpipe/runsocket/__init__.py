"""A run's one door to its host: a Unix socket of its own, mounted into its container alone.

`standpiped` (service.py) serves it; what is here is the runner's side, which has it opened and closed.
"""

from __future__ import annotations

import json
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from standpipe import paths
from standpipe.engines import CannotStart
from standpipe.errors import BudgetShort, EngineUnavailable
from standpipe.pipeline import Pipeline

ANSWER_WITHIN = 10  # seconds
COMES_BACK_WITHIN = 5  # seconds in which systemd has started it anew


def open_for(pipeline: Pipeline, run: str) -> Path | None:
    """Have a run's socket opened; return the directory to mount, or None where the pipeline has no use for it.

    Raises CannotStart where the service does not open it, BudgetShort where what is left of a budget is less than the
    run is expected to spend.
    """
    if not pipeline.needs_socket:
        return None
    try:
        answer = ask_patiently({"open": run, "pipeline": pipeline.name})
    except (OSError, ValueError) as error:
        message = (
            f"{pipeline.name} gets credentials and budgets from standpiped, which opens no socket for it ({error}): "
            "systemctl status standpiped"
        )
        raise CannotStart("engine", message, EngineUnavailable.exit_code) from None
    if refused := answer.get("refused"):
        raise CannotStart(answer["reason"], f"{pipeline.name} is not started: {refused}", answer["exit_code"])
    if short := answer.get("short"):
        raise BudgetShort(f"{pipeline.name} is not started: {short}")
    return paths.RUN_SOCKETS / run


def close(run: str) -> None:
    """Have a run's socket closed, if there is one; the service does so by itself where it cannot be told."""
    if (paths.RUN_SOCKETS / run).exists():
        with suppress(OSError, ValueError):
            ask({"close": run})


def ask_patiently(request: dict[str, str]) -> dict[str, Any]:
    """Ask the service, which may be about to come back; the same request may be made again."""
    deadline = time.monotonic() + COMES_BACK_WITHIN
    while True:
        try:
            return ask(request)
        except (ConnectionError, FileNotFoundError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def ask(request: dict[str, str]) -> dict[str, Any]:
    """Ask the service for something; return its answer. Raises OSError or ValueError where it is not done."""
    with socket.socket(socket.AF_UNIX) as door:
        door.settimeout(ANSWER_WITHIN)
        door.connect(str(paths.CONTROL))
        door.sendall(json.dumps(request).encode() + b"\n")
        with door.makefile("rb") as answers:
            line = answers.readline()
    if not line:
        raise ConnectionResetError("it ended before it answered")
    answer = dict(json.loads(line))
    if answer.get("error"):
        raise ValueError(answer["error"])
    return answer
