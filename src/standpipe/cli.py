"""The command `standpipe`: parse, call, print."""

from __future__ import annotations

import argparse
import getpass
import json
import os
import sys
import traceback
from contextlib import ExitStack, suppress
from datetime import UTC, date, datetime, timedelta
from io import TextIOWrapper
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, NoReturn, TextIO

from standpipe.errors import (
    DISK_FULL,
    STOPPED,
    AlreadyRunning,
    ConfigurationError,
    InternalError,
    LedgerDamaged,
    NotWritable,
    StandpipeError,
    UsageError,
)
from standpipe.onlooker import show_no_more

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from standpipe.engines import Line
    from standpipe.ledger import Ledger

AT_THE_END = ExitStack()  # of the command
LOOK_AGAIN = 0.5  # seconds between two looks at what has come in

# Each subcommand imports what it needs when it is called: a run should not wait for what only doctor uses.


def command() -> NoReturn:
    """Be the command: end with main's exit code, at once.

    Nothing is left to be done, and taking apart what was imported would take Python as long as most commands' own work.
    """
    code = main()
    AT_THE_END.close()
    for stream in filter(None, (sys.stdout, sys.stderr)):  # either may be closed
        with suppress(OSError):  # main has told of it
            stream.flush()
    os._exit(code)


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code. Errors are one message on standard error."""
    arguments = parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a locale without some letter is no reason to fail
    code = 0
    try:
        try:
            code = int(arguments.call(arguments))
        except LedgerDamaged:  # wherever it was met: what is set aside cannot be met again
            from standpipe import paths

            recovered(paths.LEDGER).close()
            code = int(arguments.call(arguments))
        if sys.stdout:
            sys.stdout.flush()
    except StandpipeError as error:
        for line in str(error).splitlines():
            print(f"standpipe: {line}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return STOPPED  # a run takes it for a request to end; any other command simply ends
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever read has read enough
    except OSError as error:
        if not isinstance(error, PermissionError) and error.errno not in DISK_FULL:
            return internal()
        print(f"standpipe: {error.filename or 'the disk'} cannot be written: {error.strerror}", file=sys.stderr)
        return NotWritable.exit_code
    except Exception:
        return internal()
    return code


def internal() -> int:
    """Tell of an error that nobody foresaw, on standard error and in the system's journal."""
    told = traceback.format_exc()
    note(told)
    tell(f"{told}standpipe: this is an error in standpipe itself; please report it with the lines above", sys.stderr)
    return InternalError.exit_code


def parser() -> argparse.ArgumentParser:
    """Declare the subcommands."""
    top = argparse.ArgumentParser(
        prog="standpipe", description="Runs Luigi pipelines: on time, once, with every line kept."
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="run a pipeline now")
    run.add_argument("name")
    when = run.add_mutually_exclusive_group()
    when.add_argument(
        "--date", type=day, metavar="YYYY-MM-DD", help="what {date} is; else today in the schedule's zone"
    )
    when.add_argument("--scheduled", action="store_true", help="claim the newest slot that is due (cron's line)")
    run.set_defaults(call=call_run)

    stop = commands.add_parser("stop", help="end what runs of a pipeline; Luigi may finish its current task")
    stop.add_argument("name")
    stop.set_defaults(call=call_stop)

    backfill = commands.add_parser("backfill", help="work through the slots of a range of dates, oldest first")
    backfill.add_argument("name")
    backfill.add_argument("--from", dest="first", type=day, required=True, metavar="YYYY-MM-DD")
    backfill.add_argument("--to", dest="last", type=day, required=True, metavar="YYYY-MM-DD", help="this date included")
    backfill.add_argument("--again", action="store_true", help="what succeeded, too")
    backfill.add_argument("--dry-run", action="store_true", help="list the slots and start nothing")
    backfill.set_defaults(call=call_backfill)

    catch_up = commands.add_parser(
        "catch-up", help="make up for slots that nothing started, and for those to be retried"
    )
    catch_up.set_defaults(call=call_catch_up)

    status = commands.add_parser("status", help="what runs, what ran last, what is next")
    status.add_argument("name", nargs="?", help="one pipeline, with its next slots")
    status.add_argument("--next", type=count, default=5, metavar="N", help="how many slots (5)")
    status.add_argument("--json", action="store_true")
    status.set_defaults(call=call_status)

    history = commands.add_parser("history", help="runs, newest first")
    history.add_argument("name", nargs="?")
    history.add_argument("--limit", type=count, default=20, metavar="N", help="how many (20)")
    history.add_argument("--json", action="store_true")
    history.set_defaults(call=call_history)

    logs = commands.add_parser("logs", help="the log of a run; the newest unless --run names another")
    logs.add_argument("name", nargs="?")
    logs.add_argument("--run", metavar="ID")
    logs.add_argument("--host", help="on a collector: of that host's run")
    logs.add_argument("--search", metavar="TEXT", help="on a collector: every line with this text, of all hosts")
    logs.add_argument("--follow", action="store_true", help="go on until the run ends")
    logs.add_argument("--timestamps", action="store_true")
    logs.add_argument("--raw", action="store_true", help="the bytes as they were written, control characters and all")
    logs.add_argument("--json", action="store_true", help="the records as they are spooled")
    logs.set_defaults(call=call_logs)

    doctor = commands.add_parser("doctor", help="is everything there that a run needs?")
    doctor.add_argument("--json", action="store_true")
    doctor.set_defaults(call=call_doctor)

    reconcile = commands.add_parser("reconcile", help="register what is declared; settle what dead runners left")
    reconcile.add_argument(
        "--no-wait", action="store_true", help="leave a run that goes on without its runner, instead of following it"
    )
    reconcile.add_argument(
        "--receipts",
        action="store_true",
        help="only ask the collector for receipts, for a minute at most after the last run's end",
    )
    reconcile.add_argument(
        "--accept-loss", metavar="RUN", help="wait no longer for the receipt of a run whose log cannot be made whole"
    )
    reconcile.add_argument("--forget", metavar="NAME", help="remove the history and the logs of a removed pipeline")
    reconcile.add_argument("--follow", action="store_true", help=argparse.SUPPRESS)  # what is begun in passing
    reconcile.set_defaults(call=call_reconcile)

    collect = commands.add_parser("collect", help="on a collector: check what hosts sent, write run files and receipts")
    collect.add_argument("--once", action="store_true", help="what is there now, and end")
    collect.add_argument(
        "--compress-after", type=int, metavar="DAYS", help="compress runs' files that are older (never, unless given)"
    )
    collect.add_argument(
        "--tell", action="store_true", help="pass on to notify_urls what was warned of since the last time, and end"
    )
    collect.set_defaults(call=call_collect)

    budget = commands.add_parser(
        "budget", help="what of the budgets is spent, what is left, and on which day they run dry"
    )
    budget.add_argument("name", nargs="?", help="one budget, by pipeline and by day")
    budget.add_argument("--json", action="store_true")
    budget.add_argument("--svg", metavar="FILE", help="draw the burn-down of NAME there")
    correct = budget.add_mutually_exclusive_group()
    correct.add_argument(
        "--elsewhere", metavar="UNITS", help="note how much of NAME's present period was spent without these books"
    )
    correct.add_argument(
        "--clock-is-right", action="store_true", help="spend again, after a clock that was ahead was set right"
    )
    correct.add_argument(
        "--new-books",
        action="store_true",
        help="set this host's books aside, damaged ones too, and go on with empty ones, or with its database's",
    )
    budget.set_defaults(call=call_budget)

    releases = commands.add_parser("releases", help="what was in service of a pipeline, and can be again")
    releases.add_argument("name", nargs="?")
    releases.add_argument("--keep", action="store_true", help="keep what is in service now (site.yml does)")
    releases.add_argument("--json", action="store_true")
    releases.set_defaults(call=call_releases)

    roll_back = commands.add_parser(
        "roll-back", help="put in service what was before, image and configuration; the next run uses it"
    )
    roll_back.add_argument("name")
    roll_back.add_argument("--to", metavar="RELEASE", help="one that `standpipe releases` lists, or its image")
    roll_back.set_defaults(call=call_roll_back)

    identity = commands.add_parser(
        "identity",
        help="who a pipeline's containers are for AWS",
        description="Asks AWS (STS) who a pipeline's containers are, and for how long; or who one would be by a role "
        "that this host assumes, or by a credentials file, before either is put in service. Exit code 78 where AWS "
        "refuses, 69 where it does not answer.",
    )
    asked = identity.add_mutually_exclusive_group(required=True)
    asked.add_argument("name", nargs="?")
    asked.add_argument("--role-arn", metavar="ARN", help="a role that this host may assume")
    asked.add_argument("--file", metavar="PATH", help="an AWS credentials file (- for standard input)")
    identity.add_argument(
        "--by",
        metavar="PATH",
        help="with --role-arn: by the identity in this AWS configuration file (- for standard input)",
    )
    identity.add_argument("--json", action="store_true")
    identity.set_defaults(call=call_identity)

    scan = commands.add_parser(
        "scan",
        help="look for secrets in an image, or in files",
        description="Looks for secrets in every layer of an image, its configuration and its history, and in the "
        "archives there: for what looks like one, and for known values, plain and in base64, hex and other forms. "
        "Says where, never which. Exit code 78 where something is found.",
    )
    scanned = scan.add_mutually_exclusive_group(required=True)
    scanned.add_argument("image", nargs="?", help="a name, a tag or an id")
    scanned.add_argument("--files", metavar="PATH", help="a file, or all files below a directory, instead of an image")
    scan.add_argument(
        "--known",
        metavar="FILE",
        help="values to look for, one a line (- for standard input); on a host, those of its credentials files as well",
    )
    scan.add_argument(
        "--accept",
        metavar="PATTERN",
        action="append",
        default=[],
        help="a place that is no matter, such as '*/a/test.key'",
    )
    scan.add_argument("--once", action="store_true", help="do not look again at an image that was found clean")
    scan.add_argument("--json", action="store_true")
    scan.set_defaults(call=call_scan)

    bill = commands.add_parser(
        "sbom",
        help="list what is in an image",
        description="Puts out a CycloneDX document (JSON) with the Debian and the Python packages of an image; of a "
        "pipeline's image in service where a pipeline is named. site.yml keeps one in /opt/standpipe/NAME/sbom.",
    )
    bill.add_argument("image", help="a name, a tag or an id; or a pipeline")
    bill.add_argument("--output", metavar="FILE", help="write it there")
    bill.set_defaults(call=call_sbom)

    check = commands.add_parser(
        "validate",
        help="check a declaration (on the controller)",
        description='Reads {"pipelines": [...], "budgets": [...]} as JSON or YAML on standard input; puts out the same '
        "with every default filled, or says what is wrong (exit code 78). `build_secrets` beside them, by "
        "pipeline, serves to ask repositories, and is never put out.",
    )
    check.add_argument("--resolve", action="store_true", help="ask each repository for the commit of its ref")
    check.add_argument(
        "--have-credentials",
        metavar="NAME,...",
        type=lambda text: [name for name in text.split(",") if name],
        help="the pipelines for which the inventory holds AWS keys",
    )
    check.set_defaults(call=call_validate)
    return top


def day(text: str) -> date:
    """Read a date of the command line."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no date: write YYYY-MM-DD") from None


def count(text: str) -> int:
    """Read a number of the command line that is none below 0."""
    try:
        number = int(text)
    except ValueError:
        number = -1
    if not 0 <= number < 1_000_000_000:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of lines: write 0 or more")
    return number


def require_root() -> None:
    """Raise NotWritable where this process is not root: what a host keeps is root's alone."""
    from standpipe import paths

    if os.geteuid() != 0 and "STANDPIPE_ROOT" not in os.environ:
        raise NotWritable(f"{paths.STATE} is root's alone: use sudo, or ansible with --become")


def open_ledger() -> Ledger:
    """Open this host's ledger, which is root's alone."""
    from standpipe import paths
    from standpipe.ledger import Ledger

    require_root()
    try:
        ledger = Ledger(paths.LEDGER)
    except LedgerDamaged:
        return recovered(paths.LEDGER)
    AT_THE_END.callback(ledger.close)
    if ledger.began_anew:
        note(ledger.began_anew)
        tell(f"standpipe: {ledger.began_anew}", sys.stderr)
    return ledger


def settled_ledger() -> Ledger:
    """Open the ledger, with what dead runners left settled; what still runs is followed by another process."""
    ledger = open_ledger()
    settle(ledger)
    return ledger


def settle_in_passing() -> None:
    """Settle what dead runners left, for a command about something else: a ledger that is ill does not stop it."""
    with suppress(StandpipeError):
        settled_ledger().close()


def settle(ledger: Ledger) -> None:
    """Settle what dead runners left, as far as that takes no waiting; have another process follow what still runs."""
    if ledger.unfinished():
        from standpipe import runner
        from standpipe.engines.compose import ComposeEngine

        if runner.settle_for_a_look(ledger, ComposeEngine()):
            in_another_process("reconcile", "--follow")  # of several begun at once, one has the run, the others end


def have_others_settled(ledger: Ledger, name: str) -> None:
    """Have another process settle or follow what dead runners left of other pipelines: a run is not kept waiting."""
    from standpipe import runner

    if runner.abandoned(ledger, but=name):
        in_another_process("reconcile", "--follow")


def recovered(path: Path) -> Ledger:
    """Set a damaged ledger aside, tell of it, and open the new one."""
    from standpipe import ledger

    def say(told: str) -> None:
        note(told)
        tell(f"standpipe: {told}", sys.stderr)

    ledger.recover(path, datetime.now(UTC), say)
    return ledger.Ledger(path)


def call_run(arguments: argparse.Namespace) -> int:
    """Run a pipeline, showing its log; cron's run shows a line at its start and one at its end."""
    from standpipe import report, runner
    from standpipe.engines.compose import ComposeEngine

    def say(message: str) -> None:
        if arguments.scheduled:
            note(message)
            tell(message, sys.stdout)
        else:
            tell(f"standpipe: {message}", sys.stderr)

    ledger = open_ledger()
    warn_of_the_clock(ledger, say)
    have_others_settled(ledger, arguments.name)
    listen = quiet if arguments.scheduled else Viewer()
    try:
        run = runner.run(ledger, ComposeEngine(), arguments.name, arguments.date, arguments.scheduled, listen, say)
    except StandpipeError as error:
        if arguments.scheduled:
            note(f"{arguments.name}: {error}")
        if isinstance(error, AlreadyRunning):
            settle(ledger)  # by a run that nobody follows, perhaps
        raise
    finally:
        if isinstance(listen, Viewer):
            listen.close()
        pass_on(ledger)
    if run is None:
        print(f"{arguments.name}: no slot is due")
        return 0
    code = runner.exit_code_of(run)
    say(report.ended(run, code))
    return code


def warn_of_the_clock(ledger: Ledger, say: Callable[[str], None]) -> None:
    """Tell of a clock that has gone back behind the newest record."""
    from standpipe.ledger import clock_went_back

    told = clock_went_back(ledger, datetime.now(UTC))
    if told:
        say(told)


def pass_on(ledger: Ledger, ping: bool = False, looks_ahead: bool = False) -> None:
    """Tell people and programs what became of runs; that this fails is noted in the journal and changes nothing."""
    from standpipe import metrics, notify, runner

    steps: list[Callable[[], None]] = [lambda: metrics.write(ledger)]
    if ping:
        steps.append(lambda: notify.ping(note))
    if runner.has_collector():
        steps.append(await_receipts)
    steps.append(lambda: notify.tell(ledger, note))  # here and below a service that hangs keeps others waiting
    if looks_ahead:
        from standpipe import certificates

        steps += [lambda: notify.warn_of_budgets(note), lambda: certificates.warn(note)]
        steps.append(lambda: notify.tell_of_a_new_ledger(note))
    for step in steps:
        try:
            step()
        except Exception as error:  # of whatever kind: the run and its record stand
            told = str(error) if isinstance(error, StandpipeError) else type(error).__name__  # no address, no secret
            note(f"word of a run could not be passed on: {told}")


def await_receipts() -> None:
    """Have another process ask for receipts for as long as it takes, while this one ends."""
    in_another_process("reconcile", "--receipts")


def in_another_process(*command: str) -> None:
    """Have a command of this program done by a process of its own, which nobody waits for."""
    import subprocess

    subprocess.Popen(
        [sys.executable, "-P", "-m", "standpipe", *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd="/",
    )


def call_stop(arguments: argparse.Namespace) -> int:
    """Stop a run; the exit code is 0 once it is settled, and where none was running. What is nobody's run is named."""
    from standpipe import report, runner
    from standpipe.engines.compose import ComposeEngine

    ledger = open_ledger()
    require_known(ledger, arguments.name)
    have_others_settled(ledger, arguments.name)

    run = runner.stop(ledger, ComposeEngine(), arguments.name, who_asks(), warn)
    if run is None and (by_hand := runner.holder_of_lock(ComposeEngine(), arguments.name)):
        raise AlreadyRunning(f"{arguments.name} has no run to stop; its lock is held by {by_hand}: docker stop it")
    print(f"{run.pipeline}: run {run.id} {report.outcome(run)}" if run else f"{arguments.name}: nothing is running")
    return 0


def who_asks() -> str:
    """Return the account of the person who calls."""
    return os.environ.get("SUDO_USER") or getpass.getuser()


def call_backfill(arguments: argparse.Namespace) -> int:
    """Work through a range, or list it."""
    from standpipe import backfill, configuration, runner
    from standpipe.engines.compose import ComposeEngine

    ledger, pipeline = settled_ledger(), configuration.load(arguments.name)
    runner.register(ledger, arguments.name, pipeline, datetime.now(UTC))
    todo = backfill.open_slots(ledger, pipeline, arguments.first, arguments.last, arguments.again)
    if arguments.dry_run:
        for slot in todo:
            print(f"{slot:%a %Y-%m-%d %H:%M} UTC")
        return 0
    if not todo:
        print(f"{arguments.name}: no slot of {arguments.first} to {arguments.last} is left to be done")
        return 0

    try:
        say = backfill.beside_the_bar
        return backfill.backfill(ledger, ComposeEngine(), arguments.name, todo, quiet, say, arguments.again)
    finally:
        pass_on(ledger)


def call_catch_up(_arguments: argparse.Namespace) -> int:
    """Look after every slot; what a single pipeline lacks is told, and the rest goes on."""
    from standpipe import catch_up
    from standpipe.engines.compose import ComposeEngine

    def say(message: str) -> None:
        note(message)
        tell(message, sys.stdout)

    ledger = open_ledger()
    warn_of_the_clock(ledger, say)
    failures = 1
    try:
        failures = catch_up.catch_up(ledger, ComposeEngine(), quiet, say, datetime.now(UTC))
    finally:
        pass_on(
            ledger, ping=not failures, looks_ahead=True
        )  # of a host that cannot look after all of its pipelines an alarm is right
    return InternalError.exit_code if failures else 0


def quiet(_line: Line) -> None:
    """Show nothing: cron has nobody to show it to."""


def tell(message: str, target: TextIO) -> None:
    """Say something to whoever looks on; that he has gone, or that his disk is full, changes nothing."""
    try:
        print(message, file=target, flush=True)
    except OSError:
        show_no_more(target)


def warn(message: str) -> None:
    """Say something beside what was asked for."""
    tell(f"standpipe: {message}", sys.stderr)


class Viewer:
    """Shows lines beside the run: whoever reads them slowly, or stops, holds up nothing."""

    LIMIT = 100_000  # lines that may wait to be shown
    MOST = 32_000_000  # bytes of such lines

    def __init__(self) -> None:
        """Start showing."""
        self._lines: SimpleQueue[Line | None] = SimpleQueue()
        self._dropped = 0
        self._taken, self._shown = 0, 0  # bytes; each is counted by one thread
        self._thread = Thread(target=self._show, daemon=True)
        self._thread.start()

    def __call__(self, line: Line) -> None:
        """Take a line, to show it in its turn."""
        if self._lines.qsize() < self.LIMIT and self._taken - self._shown < self.MOST:
            self._taken += len(line.data)
            self._lines.put(line)
        else:
            self._dropped += 1

    def close(self) -> None:
        """Show what is left."""
        self._lines.put(None)
        self._thread.join()
        if self._dropped:
            tell(f"standpipe: {self._dropped} lines came too fast to be shown: standpipe logs has them", sys.stderr)

    def _show(self) -> None:
        while (line := self._lines.get()) is not None:
            show_line(line)
            self._shown += len(line.data)


def show_line(line: Line) -> None:
    """Show a line of a run as it comes, without what would move a cursor: behind a pipe is a terminal, too."""
    from standpipe.logs import spool

    target = sys.stdout if line.stream == "stdout" else sys.stderr
    end = "" if line.continues else "\n"
    try:
        print(spool.printable(line.data), file=target, end=end, flush=True)
    except OSError:
        show_no_more(target)


def note(message: str) -> None:
    """Tell the system's journal."""
    import syslog

    syslog.openlog("standpipe")
    syslog.syslog(message)


def call_status(arguments: argparse.Namespace) -> int:
    """Show what runs, what ran last, what is next."""
    from standpipe import configuration, report

    ledger, now = settled_ledger(), datetime.now(UTC)
    warn_of_the_clock(ledger, warn)
    if arguments.name:
        require_known(ledger, arguments.name)
    declared = configuration.names()
    known = [known for known in ledger.registered(arguments.name) if arguments.name or known.name in declared]
    if arguments.json:
        pipelines = [report.status_of(ledger, pipeline, now, arguments.next) for pipeline in known]
        unconfirmed = [report.unconfirmed_as_json(run) for run in ledger.unconfirmed()]
        print(json.dumps({"schema": report.SCHEMA, "pipelines": pipelines, "unconfirmed": unconfirmed}, indent=1))
    elif arguments.name:
        print(report.history(ledger.history(arguments.name, 5), of_one=True))
        print(report.next_slots(known[0], now, arguments.next))
    else:
        print(report.status(ledger, known, now))
        if told := report.unconfirmed(ledger, now):
            print(told)
    return 0


def call_history(arguments: argparse.Namespace) -> int:
    """Show runs, newest first."""
    from standpipe import report

    ledger = settled_ledger()
    warn_of_the_clock(ledger, warn)
    runs = ledger.history(arguments.name, arguments.limit)
    if arguments.name and not runs:
        require_known(ledger, arguments.name)
    if arguments.json:
        print(json.dumps(report.history_as_json(runs), indent=1))
    else:
        print(report.history(runs, of_one=bool(arguments.name)))
    return 0


def require_known(ledger: Ledger, name: str) -> None:
    """Raise UsageError, with the names that there are, where this host does not know a pipeline."""
    known = [pipeline.name for pipeline in ledger.registered()]
    if name not in known:
        raise UsageError(f"this host knows no pipeline {name!r}. It knows: {', '.join(known) or 'none'}")


def call_logs(arguments: argparse.Namespace) -> int:
    """Show the log of a run: this host's own, or on a collector any host's."""
    from standpipe import paths
    from standpipe.logs import spool

    if arguments.host or arguments.search:
        return show_collected(arguments)
    if paths.COLLECTED.exists() and not (paths.PIPELINES / f"{arguments.name}.yml").exists():
        return show_collected(arguments)  # a collector, and no run of its own
    if not arguments.name:
        raise UsageError("whose log? standpipe logs NAME")
    ledger = settled_ledger()
    runs = [run.id for run in ledger.logged(arguments.name, 10)]
    if not runs:
        require_known(ledger, arguments.name)
    run = arguments.run or next(iter(runs), "(none yet)")
    noted = ledger.run(run)
    path = spool.place(paths.spool(arguments.name, run))
    if noted is None or noted.pipeline != arguments.name or not path.exists():
        newest = ", ".join(runs[:10]) or "none"
        raise UsageError(f"no log of {arguments.name} run {run} on this host. Its newest runs: {newest}")

    def growing() -> bool:
        sys.stdout.flush()
        noted = ledger.run(run)
        return bool(arguments.follow and noted and not noted.outcome)

    for record in spool.read(path, growing):
        if arguments.json:
            print(json.dumps(record))
        elif record["stream"] != "end":
            stamp = f"{record['time']} " if arguments.timestamps else ""
            end = "" if record.get("continues") and not stamp else "\n"
            if arguments.raw:
                sys.stdout.buffer.write(stamp.encode() + spool.text(record) + end.encode())
            else:
                print(stamp + spool.printable(spool.text(record)), end=end)
    noted = ledger.run(run) or noted
    path = spool.place(paths.spool(arguments.name, run))  # it may have been confirmed meanwhile
    if (noted.closed_with or spool.is_closed(path)) and not spool.is_whole(path, noted.closed_with):
        held = f"; the collector has confirmed it ({noted.receipt}), and holds what it was" if noted.receipt else ""
        raise InternalError(f"{path} is not what it was closed with: it was changed after that{held}")
    return 0


def show_collected(arguments: argparse.Namespace) -> int:
    """Show what the collector holds of a run, or every line with a text in it."""
    from standpipe import paths
    from standpipe.logs import collected

    if not paths.COLLECTED.exists():
        raise UsageError("this host is no collector: --host and --search are for the collector")
    if arguments.raw:
        raise UsageError("a collector keeps lines as they can be shown: --raw is for the host of the run")

    def show(entry: collected.Entry, head: str = "") -> None:
        if arguments.json:
            print(json.dumps(entry._asdict() | ({"run": head} if head else {})))
        else:
            stamp = f"{entry.time} " if arguments.timestamps else ""
            print(f"{head}: {stamp}{entry.text}" if head else f"{stamp}{entry.text}")

    damaged: list[str] = []

    def tell(what: str) -> None:
        if what not in damaged:
            print(f"standpipe: {what}", file=sys.stderr)
            damaged.append(what)

    if arguments.search:
        for path, entry in collected.search(arguments.search, arguments.name, arguments.host, tell):
            show(entry, collected.label(path))
        return InternalError.exit_code if damaged else 0
    if not arguments.name:
        raise UsageError("whose log? standpipe logs NAME, or --search TEXT")

    def growing() -> bool:
        sys.stdout.flush()
        return bool(arguments.follow)

    path = collected.find(arguments.name, arguments.host, arguments.run)
    for entry in collected.read(path, tell, growing):
        show(entry)
    sys.stdout.flush()
    if told := collected.standing(path, tell):
        print(f"standpipe: {told}", file=sys.stderr)
    return InternalError.exit_code if damaged else 0


def call_doctor(arguments: argparse.Namespace) -> int:
    """Show what was looked at; the exit code is that of the first thing that is wrong."""
    from standpipe.doctor import examine, runs_pipelines
    from standpipe.engines.compose import ComposeEngine

    if runs_pipelines():
        settle_in_passing()
    findings = list(examine(ComposeEngine()))
    ill = [finding for finding in findings if finding.remedy]
    if arguments.json:
        print(json.dumps({"schema": 1, "findings": [vars(finding) for finding in findings]}, indent=1))
    else:
        for finding in findings:
            print(f"{'FAIL' if finding.remedy else 'ok  '}  {finding.subject}: {finding.seen}")
            if finding.remedy:
                print(f"      -> {finding.remedy}")
    return ill[0].exit_code if ill else 0


def call_reconcile(arguments: argparse.Namespace) -> int:
    """Register what is declared, settle what dead runners left; or forget a removed pipeline."""
    import shutil

    from standpipe import configuration, metrics, paths, runner
    from standpipe.engines.compose import ComposeEngine
    from standpipe.logs import receipts

    def say(message: str) -> None:
        note(message)
        tell(message, sys.stdout)

    ledger = open_ledger()
    if not ledger.is_well():
        ledger.close()
        ledger = recovered(paths.LEDGER)
    if arguments.forget or arguments.accept_loss or arguments.receipts:
        runner.settle_for_a_look(ledger, ComposeEngine())
    if arguments.forget:
        if arguments.forget in configuration.names():
            raise ConfigurationError(f"{arguments.forget} is still declared on this host: remove it by site.yml first")
        require_known(ledger, arguments.forget)
        ledger.forget(arguments.forget)
        shutil.rmtree(paths.SPOOL / arguments.forget, ignore_errors=True)
        return 0
    if arguments.accept_loss:
        if not ledger.accept_loss(arguments.accept_loss, f"its log was given up by {who_asks()}"):
            raise UsageError(f"no receipt is waited for of run {arguments.accept_loss!r}: standpipe doctor names them")
        return 0
    if arguments.receipts:
        receipts.confirm(ledger, ComposeEngine(), say, wait=True)
        return 0
    if arguments.follow:  # a converge may be under way: what it registers, and its images, are left to it
        runner.settle_and_follow(ledger, ComposeEngine(), None, say)
    else:
        runner.reconcile(ledger, ComposeEngine(), not arguments.no_wait, lambda message: tell(message, sys.stdout))
        with suppress(OSError, StandpipeError):  # they are written again at the next run's end
            metrics.write(ledger)
    receipts.confirm(ledger, ComposeEngine(), say, wait=False)
    return 0


def call_collect(arguments: argparse.Namespace) -> int:
    """Collect, as a service: a line a run for the journal, and alarms with the journal's mark of a warning."""
    import signal
    from threading import Event

    if arguments.tell:
        from standpipe import certificates, notify

        require_root()
        notify.tell_of_alarms(note)
        certificates.warn(note)
        return 0
    from standpipe.logs import collect

    ended = Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda _signum, _frame: ended.set())
    collect.collect(
        lambda message: print(message, flush=True),
        lambda message: print(f"<4>{message}", flush=True),
        lambda: not arguments.once and not ended.wait(LOOK_AGAIN),
        None if arguments.compress_after is None else timedelta(days=arguments.compress_after),
        ended.is_set,
    )
    return 0


def call_budget(arguments: argparse.Namespace) -> int:
    """Show budgets, or correct what the books of one say."""
    from pathlib import Path

    from standpipe import budgets, paths
    from standpipe.budgets import report
    from standpipe_task import spending

    require_root()
    if (arguments.svg or arguments.elsewhere) and not arguments.name:
        raise UsageError("--svg and --elsewhere are of one budget: name it")
    if paths.LEDGER.exists():
        settle_in_passing()
    terms = [budgets.named(arguments.name)] if arguments.name else list(budgets.terms().values())
    if arguments.new_books:
        aside = budgets.begin_new_books(datetime.now(UTC))
        now = "those of the database" if paths.BUDGETS_DATABASE.exists() else "empty"
        print(f"the books are {now}; set aside: {', '.join(map(str, aside)) or 'none'}", file=sys.stderr)
    with budgets.books() as database:
        if arguments.elsewhere or arguments.clock_is_right:
            with spending.books(database) as opened:
                if arguments.clock_is_right:
                    for each in terms:
                        opened.trust_clock(each)
                else:
                    amount = units(arguments.elsewhere)
                    before = opened.set_elsewhere(terms[0], amount)
                    if amount < before:
                        print(
                            f"{spending.units(before)} were noted before, perhaps by its provider's word: "
                            f"{spending.units(before - amount)} {terms[0].units} more are left now",
                            file=sys.stderr,
                        )
        outlooks = [report.outlook(database, each) for each in terms]
    if arguments.svg:
        report.write_svg(outlooks[0], Path(arguments.svg))
    if arguments.json:
        print(report.render_json(outlooks))
    else:
        print(report.detail(outlooks[0]) if arguments.name else report.overview(outlooks))
    return 0


def units(text: str) -> int:
    """Read a number of units of the command line, as billionths."""
    from standpipe_task import spending

    try:
        return spending.parts(text)
    except ValueError as error:
        raise UsageError(str(error)) from None


def call_releases(arguments: argparse.Namespace) -> int:
    """List the releases of pipelines; or keep what is in service, and say what was kept."""
    from standpipe import configuration, releases, report

    require_root()
    names = [configuration.load(arguments.name).name] if arguments.name else configuration.names()
    if arguments.keep:
        for name in names:
            if release := releases.keep(name, configuration.load(name).keep_images):
                print(f"{name}: kept {release.name}, with the image {release.image}")
        return 0
    found = {name: releases.kept(name) for name in names}
    if arguments.json:
        listed = {name: [vars(release) for release in kept] for name, kept in found.items()}
        print(json.dumps({"schema": 1, "releases": listed}, indent=1))
    else:
        print(report.releases(found))
    return 0


def call_roll_back(arguments: argparse.Namespace) -> int:
    """Go back to an earlier release, and register it."""
    from functools import partial

    from standpipe import configuration, releases, runner
    from standpipe.engines.compose import ComposeEngine

    require_root()
    name = configuration.load(arguments.name).name
    engine = ComposeEngine()
    release = releases.roll_back(name, partial(engine.has_image, name), arguments.to)
    ledger = settled_ledger()
    runner.register(ledger, name, configuration.load(name), datetime.now(UTC))
    note(f"{name}: rolled back to the release {release.name} by {who_asks()}")
    print(f"{name}: the next run uses the release {release.name}, with the image {release.image}")
    running = ledger.running(name)
    if running:
        print(f"{name}: run {running.id} goes on as it was started")
    print("the next site.yml puts in service what the inventory declares: change it there as well")
    return 0


def call_scan(arguments: argparse.Namespace) -> int:
    """Look for secrets; tell where they are."""
    import hashlib
    from fnmatch import fnmatchcase
    from pathlib import Path

    from standpipe import configuration, paths
    from standpipe.engines.compose import ComposeEngine
    from standpipe.scan.image import scan_files, scan_image
    from standpipe.scan.secrets import SHORTEST, Detector

    known = {value.encode() for value in configuration.all_credentials()}
    if arguments.known:
        try:
            text = sys.stdin.buffer.read() if arguments.known == "-" else Path(arguments.known).read_bytes()
        except OSError as error:
            raise UsageError(f"--known {arguments.known} cannot be read: {error.strerror}") from None
        known |= set(text.splitlines())
    detector = Detector(known)
    clean = None
    if arguments.files:
        if not os.access(arguments.files, os.R_OK):
            raise UsageError(f"--files {arguments.files} is not there, or cannot be read")
        scanned = scan_files(Path(arguments.files), detector)
    else:
        engine = ComposeEngine()
        image = engine.image_id(arguments.image)
        asked = hashlib.sha256(repr((image, sorted(known), arguments.accept)).encode()).hexdigest()
        clean = paths.CLEAN / asked if arguments.once else None
        if clean and clean.exists() and not arguments.json:
            print(f"{arguments.image} was looked through already, and no secret found")
            return 0
        scanned = scan_image(shown(engine.saved(image)), detector)
    findings = [found for found in scanned.findings if not any(fnmatchcase(found.place, a) for a in arguments.accept)]
    if arguments.json:
        parts = {"findings": findings, "closed": scanned.closed}
        listed = {key: [finding._asdict() for finding in found] for key, found in parts.items()}
        print(json.dumps({"schema": 1, **listed}, indent=1))
    else:
        for finding in findings:
            print(f"{finding.place}: {finding.what}")
        for finding in scanned.closed:
            print(f"{finding.place}: could not be looked into: {finding.what}", file=sys.stderr)
        if detector.left_out:
            short = f"{detector.left_out} shorter than {SHORTEST} bytes could not be looked for"
            print(f"of the values that are known, {short}", file=sys.stderr)
        if not findings:
            print(f"no secret found ({detector.known} values were known)")
    if clean and not findings:
        clean.parent.mkdir(parents=True, exist_ok=True)
        clean.touch()
    return ConfigurationError.exit_code if findings else 0


def call_sbom(arguments: argparse.Namespace) -> int:
    """List what is in an image."""
    from pathlib import Path

    from standpipe import configuration, paths, sbom
    from standpipe.engines.compose import ComposeEngine

    name = arguments.image
    if name in configuration.names():
        name = configuration.image_of(paths.compose_file(name).with_name(".env"))
    text = sbom.document(ComposeEngine().image(name), name, sbom.listed(name)) + "\n"
    if not arguments.output:
        print(text, end="")
        return 0
    place = Path(arguments.output)
    place.parent.mkdir(parents=True, exist_ok=True)
    unfinished = place.with_suffix(".unfinished")
    unfinished.write_text(text)
    unfinished.rename(place)
    return 0


def shown(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Pass on what comes in pieces, with a sign of progress for a person who looks on."""
    from tqdm import tqdm

    with tqdm(unit="B", unit_scale=True, desc="looked through", disable=not sys.stderr.isatty(), leave=False) as bar:
        for piece in pieces:
            bar.update(len(piece))
            yield piece


def call_identity(arguments: argparse.Namespace) -> int:
    """Show who somebody is for AWS."""
    import tempfile
    from pathlib import Path

    from standpipe import configuration
    from standpipe.runsocket import credentials

    require_root()
    if arguments.by and not arguments.role_arn:
        raise UsageError("--by goes with --role-arn")
    if arguments.role_arn:
        with tempfile.NamedTemporaryFile("w", dir="/dev/shm") as given:  # root's alone, and on no disk
            if arguments.by == "-":
                given.write(sys.stdin.read())
                given.flush()
            by = Path(given.name if arguments.by == "-" else arguments.by) if arguments.by else None
            identity = credentials.identity_by_role(arguments.role_arn, "standpipe-identity", by)
    elif arguments.file:
        text = sys.stdin.read() if arguments.file == "-" else Path(arguments.file).read_text()
        identity = credentials.identity_by_keys(text, "standard input" if arguments.file == "-" else arguments.file)
    else:
        identity = credentials.identity_of(configuration.load(arguments.name))
    if arguments.json:
        print(json.dumps({"schema": 1, **vars(identity)}, indent=1))
    else:
        print(f"{identity.arn}; it expires {identity.expires}" if identity.arn else identity.expires)
    return 0


def call_validate(arguments: argparse.Namespace) -> int:
    """Check the declaration on standard input, and put it out with every default filled."""
    from standpipe import build_secrets, validate

    document = validate.read(sys.stdin)
    secrets = build_secrets.read(document.pop("build_secrets", {}))
    declaration = validate.validate(document, arguments.have_credentials)
    if arguments.resolve:
        declaration = validate.resolve(declaration, secrets)
    print(declaration.model_dump_json(indent=1))
    return 0
