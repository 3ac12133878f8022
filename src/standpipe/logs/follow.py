"""A container's log to its very end, each line once, over as many connections as that takes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime

from standpipe.engines import Container, Engine, Line
from standpipe.errors import EngineUnavailable
from standpipe.ledger import instant

PATIENCE = 600  # seconds for which an engine that does not answer is asked again, while a run is under way


class ContainerGone(Exception):
    """The container was removed while its log was read: what came of it is not all that there was."""


def found(engine: Engine, name: str, run_id: str) -> Container | None:
    """Find a run's container; an engine that is being restarted is asked again."""
    for _ in range(PATIENCE):
        try:
            return engine.find(name, run_id)
        except EngineUnavailable:
            time.sleep(1)
    return engine.find(name, run_id)


def lines_until_the_end(engine: Engine, name: str, run_id: str, container: Container) -> Iterator[Line]:
    """Yield each line once, until the container has ended. Raises ContainerGone where it was removed meanwhile."""
    seen = 0
    while True:
        whole = False
        cut_off = []
        with suppress(EngineUnavailable):  # the daemon is being restarted: the container may well be alive
            for number, line in enumerate(engine.log(container.id), start=1):
                if not line.whole:
                    cut_off.append(line)  # by the container's end, or by the connection's
                elif number > seen:
                    seen = number
                    yield line
            whole = True
        closed = datetime.now(UTC)
        now = found(engine, name, run_id)
        if now is None:
            raise ContainerGone
        # A daemon that stops ends its connections like a container that ends: what came later is read again.
        if whole and not now.running and (now.ended_at is None or instant(now.ended_at) <= closed):
            yield from cut_off
            return
        time.sleep(0.2)
