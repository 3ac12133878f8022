"""Luigi tasks that tests watch: one that takes its time, one that follows it, and one that must be alone."""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import luigi

DATA = Path("/data")


class First(luigi.Task):
    """Writes a line a second; its output is there when all of it is."""

    date = luigi.DateParameter()
    seconds = luigi.IntParameter()

    def output(self) -> luigi.LocalTarget:
        """Return the file, which Luigi puts in its place when it is closed."""
        return luigi.LocalTarget(str(DATA / f"first-{self.date}"))

    def run(self) -> None:
        """Write it."""
        with self.output().open("w") as file:
            for second in range(self.seconds):
                time.sleep(1)
                print(second, file=file)


class Second(luigi.Task):
    """Follows the first."""

    date = luigi.DateParameter()
    seconds = luigi.IntParameter()

    def requires(self) -> Iterator[luigi.Task]:
        """Require the first."""
        yield First(date=self.date, seconds=self.seconds)

    def output(self) -> luigi.LocalTarget:
        """Return its file."""
        return luigi.LocalTarget(str(DATA / f"second-{self.date}"))

    def run(self) -> None:
        """Write it."""
        with self.output().open("w") as file:
            print("done", file=file)


class Alone(luigi.Task):
    """Writes down when it begins and when it ends: two at a time would show."""

    seconds = luigi.FloatParameter()

    def complete(self) -> bool:
        """Be never done, so that each run works."""
        return False

    def run(self) -> None:
        """Work."""
        for mark in ("begin", "end"):
            with (DATA / "alone").open("a") as file:
                file.write(f"{mark}\n")
            if mark == "begin":
                time.sleep(self.seconds)


class Lines(luigi.Task):
    """Writes numbered lines at a pace, each with the word that lies beside its data."""

    count = luigi.IntParameter()
    rate = luigi.IntParameter()  # lines a second

    def complete(self) -> bool:
        """Be never done, so that each run works."""
        return False

    def run(self) -> None:
        """Write them."""
        nonce = (DATA / "nonce").read_text().strip()
        began = time.monotonic()
        for number in range(self.count):
            print(f"{nonce} {number} {'.' * 60}", flush=True)
            ahead = number / self.rate - (time.monotonic() - began)
            if ahead > 0.01:
                time.sleep(ahead)


class Lasting(luigi.Task):
    """Writes a line a second until the file `enough` lies beside its data, for half an hour at the most."""

    def complete(self) -> bool:
        """Be never done, so that each run works."""
        return False

    def run(self) -> None:
        """Write them."""
        for second in range(1800):
            if (DATA / "enough").exists():
                return
            print(second, flush=True)
            time.sleep(1)


class Copy(luigi.Task):
    """Writes out, byte for byte and at once, the file that lies beside its data."""

    def complete(self) -> bool:
        """Be never done, so that each run works."""
        return False

    def run(self) -> None:
        """Write it."""
        sys.stdout.buffer.write((DATA / "strange").read_bytes())
        sys.stdout.buffer.flush()


class Who(luigi.Task):
    """Asks AWS who it is; where `wait` lies beside its data, again when that is gone, or after five minutes."""

    endpoint = luigi.Parameter()

    def complete(self) -> bool:
        """Be never done, so that each run works."""
        return False

    def run(self) -> None:
        """Ask."""
        wait, deadline = DATA / "wait", time.monotonic() + 300
        waited = wait.exists()
        self.ask()
        while wait.exists() and time.monotonic() < deadline:
            time.sleep(0.2)
        if waited:
            self.ask()

    def ask(self) -> None:
        """Ask for credentials anew, say whose they are, and leave them where the test finds them."""
        session = boto3.Session()
        keys = session.get_credentials().get_frozen_credentials()
        (DATA / "issued").write_text("".join(f"{key}\n" for key in keys if key))
        print("I am", session.client("sts", endpoint_url=self.endpoint).get_caller_identity()["Arn"], flush=True)


class Spend(luigi.Task):
    """Makes calls on a budget, as the file `spend` beside its data or its parameters say, and says what came of them.

    A call that its budget's state does not allow is made again a little later, until the file `enough` is there.
    """

    url = luigi.Parameter()
    budget = luigi.Parameter(default="")
    calls = luigi.IntParameter(default=0)

    def complete(self) -> bool:
        """Be never done, so that each run works."""
        return False

    def run(self) -> None:
        """Spend."""
        import requests  # which not every lock that goes with these tasks has

        from standpipe_task.budget import BudgetAdapter, BudgetError, BudgetSpent

        asked = {"budget": "", "calls": 0, "name": "none", "hows": ["ok"], "pause": 0.0}
        if (DATA / "spend").exists():
            asked |= json.loads((DATA / "spend").read_text())
        if self.budget:
            asked |= {"budget": self.budget, "calls": self.calls, "name": "by-hand"}
        session = requests.Session()
        session.mount(self.url, BudgetAdapter(asked["budget"], backoff=0.1))
        answered, told = 0, ""
        while answered < asked["calls"]:
            how = asked["hows"][answered % len(asked["hows"])]
            try:
                session.get(f"{self.url}/{asked['name']}/{how}", timeout=20).raise_for_status()
                answered, told = answered + 1, ""
            except BudgetSpent as error:
                told = str(error)
                break
            except BudgetError as error:
                if str(error) != told:
                    print("not made:", error, flush=True)
                told = str(error)
                if (DATA / "enough").exists():
                    break
                time.sleep(0.2)
            time.sleep(asked["pause"])
        print(f"answered {answered}; {told or 'all were made'}", flush=True)
