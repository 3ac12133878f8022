"""A drill: many processes spend one budget through the real service, and any of them, or the service, is killed.

    python tests/budget_drill.py --units 10000 --processes 64 --kills 1000 [--database postgresql://...]

Every kill is a SIGKILL at a random moment; one in ten hits the service, which is started again at once, as by systemd.
Puts out JSON: what was granted by the processes' own count, and what the books say in the end.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from uuid import uuid4

from standpipe_task import spending
from standpipe_task.purse import HostPurse

PIPELINE = """\
name: drill
source: {repo: https://git.example.org/drill.git, version: dev}
task: {module: drill.tasks, name: RootTask}
schedule: null
budgets: [{name: units}]
"""


class Drill:
    """One service and its spenders, below a directory of their own."""

    def __init__(self, root: Path, units: int, processes: int, think: float, database: str | None = None) -> None:
        """Declare a budget and start the service; its books are in a file, or in a database of nothing else."""
        self.root, self.units, self.processes, self.think = root, units, processes, think
        self.door = root / "run/standpipe/pipelines/drill"
        self.granted = root / "granted"
        self.granted.touch()
        for path, text in (
            ("pipelines/drill.yml", PIPELINE),
            ("budgets.yml", f"[{{name: units, limit: '{units}', remaining_header: X-RateLimit-Remaining}}]\n"),
        ):
            (root / "etc/standpipe" / path).parent.mkdir(parents=True, exist_ok=True)
            (root / "etc/standpipe" / path).write_text(text)
        if database:
            (root / "etc/standpipe/budgets-database").write_text(database)
        self.service = self.started()
        self.spenders: set[int] = set()
        self.killed = self.service_killed = 0

    def started(self) -> subprocess.Popen[bytes]:
        """Start the service; return when it serves."""
        (self.door / "socket").unlink(missing_ok=True)
        environment = {**os.environ, "STANDPIPE_ROOT": str(self.root)}
        service = subprocess.Popen([sys.executable, "-P", "-m", "standpipe.runsocket"], env=environment)
        deadline = time.monotonic() + 30
        while not (self.door / "socket").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        return service

    def fill_up(self) -> None:
        """Have as many spenders as there should be."""
        while len(self.spenders) < self.processes:
            child = os.fork()
            if not child:
                try:
                    spend(self.door, self.granted, self.think)
                finally:
                    os._exit(0)
            self.spenders.add(child)

    def reap(self) -> bool:
        """Count those out that have ended; say whether one of them by itself, which is when nothing is left."""
        by_itself = False
        for child in list(self.spenders):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                self.spenders.discard(child)
                by_itself = by_itself or os.WIFEXITED(status)
        return by_itself

    def kill_one(self, chance: random.Random) -> None:
        """Kill a spender, or the service."""
        if chance.random() < 0.1:
            self.service.kill()
            self.service.wait()
            self.service = self.started()
            self.service_killed += 1
        else:
            os.kill(chance.choice(sorted(self.spenders)), signal.SIGKILL)
            self.killed += 1

    def run(self, kills: int, chance: random.Random, every: float = 0.02) -> None:
        """Kill as often as is asked, while all spend what there is; then let them spend the rest.

        From kill to kill it is `every` seconds at the most; each kill of the service costs its start besides.
        """
        self.fill_up()
        for _ in range(kills):
            time.sleep(chance.random() * every)
            self.kill_one(chance)
            if self.reap():
                break
            self.fill_up()
        while self.spenders:
            self.reap()
            time.sleep(0.02)

    def end(self) -> None:
        """End the service."""
        self.service.terminate()
        self.service.wait()

    def result(self) -> dict[str, int]:
        """End the service, charge what nobody closed, and say what the books hold."""
        self.end()
        database = opened(self.root)
        terms = spending.Terms("units", self.units * spending.SCALE)
        with spending.books(database) as books:
            open_at_the_end = books.crash(terms, "by hand")
        now = spending.state(database, terms, "0")
        database.close()
        return {
            "limit": self.units,
            "granted": self.granted.stat().st_size,
            "spent": int(spending.units(now.spent)),
            "crashed": int(spending.units(now.crashed)),
            "left": int(spending.units(now.left)),
            "booked": int(spending.units(sum(amount for _, _, _, amount in now.days))),
            "open_at_the_end": open_at_the_end,
            "spenders_killed": self.killed,
            "service_killed": self.service_killed,
            "processes": self.processes,
        }


def opened(root: Path) -> spending.Database:
    """Open the books of a drill."""
    url = root / "etc/standpipe/budgets-database"
    if url.exists():
        from standpipe.budgets.postgres import PostgresDatabase

        return PostgresDatabase(url.read_text())
    return spending.open_database(str(root / "var/lib/standpipe/budgets.sqlite3"))


def spend(door: Path, granted: Path, think: float) -> None:
    """Spend until nothing is left; a byte for each unit that was granted, before it is closed."""
    purse = HostPurse(door)
    count = os.open(granted, os.O_WRONLY | os.O_APPEND)
    chance = random.Random(os.getpid())  # noqa: S311  # a drill's chances
    while True:
        time.sleep(chance.random() * think)
        ident = uuid4().hex
        try:
            purse.reserve("units", "call", ident)
        except spending.Spent:
            return
        except spending.Refused:
            continue  # the service was away for long: nothing was granted
        os.write(count, b".")
        purse.settle("units", ident, {})


def main() -> None:
    """Hold the drill."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--units", type=int, default=10_000)
    parser.add_argument("--processes", type=int, default=64)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument(
        "--think", type=float, default=0.3, help="at most so many seconds between two calls of a process"
    )
    parser.add_argument("--every", type=float, default=0.02, help="at most so many seconds from kill to kill")
    parser.add_argument("--database", metavar="URL", help="keep the books in this PostgreSQL database, which is empty")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sp") as root:
        drill = Drill(Path(root), asked.units, asked.processes, asked.think, asked.database)
        drill.run(asked.kills, random.Random(asked.seed), asked.every)  # noqa: S311  # likewise
        print(json.dumps(drill.result()))


if __name__ == "__main__":
    main()
