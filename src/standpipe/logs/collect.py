"""The collector's side: what rsyslog took in becomes one readable file a run, checked to its last line.

rsyslog writes the records of each run, as they come, to an intake file. They are put in the order of
their numbers here, duplicates are dropped, and each becomes one line of the run's file. When lines 1
to N are there and their digest is the one that the host took, the file is flushed to disk and the
run gets a receipt. Whatever is killed on the way, the same is made of the intake again.
"""

from __future__ import annotations

import base64
import errno
import gzip
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import time
import zlib
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from io import BufferedReader
from itertools import chain, islice
from pathlib import Path
from typing import Any

from standpipe import paths
from standpipe.logs import spool

HOST = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")
PIPELINE = re.compile(r"[a-z][a-z0-9-]{1,21}")
RUN = re.compile(r"[0-9A-HJKMNP-TV-Z]{26}")
TIME = re.compile(r"\d{4}-\d\d-\d\dT[0-9:.]+(Z|[+-][0-9:]+)")
STREAMS = ("stdout", "stderr", "standpipe", "end")

MOST_KNOWN = 2_000_000  # lines of a run of which four bytes are kept, to tell one that comes again otherwise
MOST_WAITING = 8_000_000  # bytes of records that came before their turn, of one run; what is more is sent again
AT_ONCE = 4_000_000  # bytes of a run that are taken in its turn; then the others have theirs
PACKED_AT_ONCE = 1_000_000  # bytes
HELD_AT_ONCE = 8_000_000  # bytes of files that are held against their receipts; then receipts have their turn
A_LOOK = 10_000  # bytes that are read in the time that it takes to see that a file is as it was
TRY_AGAIN = 10  # seconds after which a run's file that could not be written is tried again
LEAST_FREE = 2_000_000_000  # bytes of a disk, or a twentieth of it where that is less
TIDY_EVERY = 3600  # seconds
KEEP_INTAKE = 3600  # seconds after a run's last record; rsyslog itself keeps a file open for ten minutes
GAP_STAYS = 600  # seconds after an end that came with lines missing; the host sends all again after half of them
QUIET_FOR = 86400  # seconds without a record and without an end
KEEP_KNOWN = 60  # seconds after a confirmed run's last record, for which its lines are known; then they are read again

Teller = Callable[[str], None]


def collect(
    say: Teller,
    alarm: Teller,
    wait: Callable[[], bool],
    compress_after: timedelta | None = None,
    asked_to_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Look after the intake, again and again, for as long as `wait` returns true and nobody asks to stop.

    What goes wrong with a run is an alarm, once; it is tried again until it is well. A stop comes between any two
    records, and loses no more than the end of the process does.
    """
    known: dict[Path, Assembly] = {}
    troubles: dict[Path, tuple[str, float]] = {}  # what was told of a run, and when it is tried again
    disks = Disks(alarm, say)
    guard, rejected = Guard(alarm), Rejected(alarm)
    packing: Iterator[None] = iter(())
    tidied_at = -math.inf
    while True:
        found = set(runs_taken_in())
        is_all = True
        for path in known.keys() - found:
            del known[path]
        for path in sorted(found):
            if asked_to_stop():
                return
            told, until = troubles.get(path, ("", 0.0))
            if time.monotonic() < until:
                continue
            name = "/".join([*path.parts[-3:-1], path.stem])
            try:
                if path not in known:
                    known[path] = Assembly(path, say, alarm)
                is_all = known[path].advance(asked_to_stop) and is_all
                known[path].clean_up()
                if troubles.pop(path, None):
                    say(f"{name}: goes on")
            except Exception as error:  # whatever is wrong with one run, the others go on
                message = f"{name}: {error}; it is tried again"
                if message != told:
                    alarm(message)
                troubles[path] = (message, time.monotonic() + TRY_AGAIN)
                known.pop(path, None)  # it begins anew, from what is on disk
        disks.look()
        guard.look()
        rejected.look()
        if time.monotonic() - tidied_at > TIDY_EVERY:
            tidied_at = time.monotonic()
            take_back_receipts(alarm)
            if compress_after is not None:
                packing = chain(packing, compress(datetime.now(UTC) - compress_after, alarm))
        for _piece in islice(packing, HELD_AT_ONCE // PACKED_AT_ONCE):
            pass  # then receipts have their turn
        if is_all and not wait():
            for _piece in packing:
                if asked_to_stop():
                    return  # what is unfinished is removed, and begun anew
            return


class Disks:
    """Tells when a disk of the collector is nearly full, before it is, and when it no longer is."""

    def __init__(self, alarm: Teller, say: Teller) -> None:
        """Begin with nothing told."""
        self._alarm, self._say = alarm, say
        self._full: set[Path] = set()

    def look(self) -> None:
        """Look at what is free now."""
        for path in (paths.COLLECTED, paths.INTAKE):
            if not path.exists():
                continue
            usage = shutil.disk_usage(path)
            if usage.free < min(LEAST_FREE, usage.total // 20):
                if path not in self._full:
                    self._alarm(
                        f"{path}: only {usage.free / 1e6:.0f} MB are free: intake stops when they are used, and the "
                        "hosts keep their logs until there is room: du -xh /var | sort -h | tail"
                    )
                self._full.add(path)
            elif path in self._full:
                self._full.discard(path)
                self._say(f"{path}: {usage.free / 1e6:.0f} MB are free again")


class Rejected:
    """Tells when rsyslog rejects what no host may have sent, once an hour at most."""

    def __init__(self, alarm: Teller) -> None:
        """Begin with what was rejected in the last hour."""
        self._alarm = alarm
        lately = paths.written_within(paths.REJECTED, TIDY_EVERY)
        self._told_of = None if lately else self._written()
        self._told_at = -math.inf

    def look(self) -> None:
        """Look whether there is more."""
        if time.monotonic() - self._told_at < TIDY_EVERY:
            return
        written = self._written()
        if written not in (None, self._told_of):
            self._told_of, self._told_at = written, time.monotonic()
            self._alarm(f"{paths.REJECTED}: what no host may send, or not in that name, came in and was rejected")

    def _written(self) -> int | None:
        """Return when the file was written last, by whatever clock."""
        return paths.REJECTED.stat().st_mtime_ns if paths.REJECTED.exists() else None


class Guard:
    """Holds the files of confirmed runs against their receipts: each once, and within an hour after it was touched."""

    def __init__(self, alarm: Teller) -> None:
        """Begin with nothing known."""
        self._alarm = alarm
        self._known = array("q")  # sorted: eight bytes of each file that was held as it is
        self._rounds = self._go_around()

    def look(self) -> None:
        """Look at some more of them."""
        done = 0
        while done < HELD_AT_ONCE:
            done += next(self._rounds)

    def _go_around(self) -> Iterator[int]:
        """Yield how much was done, in bytes."""
        while True:
            began = time.monotonic()
            held = array("q")
            for path in logs_of_runs():
                yield from self._hold(path, held)
                yield A_LOOK
            self._known = array("q", sorted(held))
            yield HELD_AT_ONCE
            while time.monotonic() - began < TIDY_EVERY:
                yield HELD_AT_ONCE

    def _hold(self, path: Path, held: array[int]) -> Iterator[int]:
        try:
            seen = path.stat()
            identity = hash((str(path), seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns))
            place = bisect_left(self._known, identity)
            if self._known[place : place + 1] != array("q", [identity]):
                if not (receipt := receipt_of(path)):
                    return
                for wrong in changes(path, receipt):
                    if wrong:
                        self._alarm(wrong)
                    yield PACKED_AT_ONCE
            held.append(identity)
        except FileNotFoundError:
            return  # compressed, or removed by its age
        except OSError as error:
            self._alarm(f"{path} cannot be read: {error.strerror}")


def logs_of_runs(host: str = "*", pipeline: str = "*") -> Iterator[Path]:
    """Yield the files of runs, compressed or not."""
    for path in paths.COLLECTED.glob(f"{host}/{pipeline}/*.log*"):
        if RUN.fullmatch(path.name.partition(".")[0]) and path.suffix in (".log", ".gz"):
            yield path


def take_back_receipts(alarm: Teller) -> None:
    """Remove receipts of logs that are no longer here: whoever asks is to hear that he has to send them again."""
    for folder in paths.RECEIPTS.glob("*/*"):
        logs = paths.COLLECTED / folder.relative_to(paths.RECEIPTS)
        if is_hidden(logs, folder):
            alarm(f"{logs}: its confirmed logs are gone together: is its disk mounted? The receipts stay")
            continue
        for receipt in folder.glob("*.json"):
            if is_gone(logs / receipt.with_suffix(".log").name):
                alarm(f"{logs / receipt.stem}: it was confirmed, and its log is gone: its receipt is taken back")
                receipt.unlink(missing_ok=True)


def is_gone(log: Path) -> bool:
    """Say whether a run's file is not here, compressed or not."""
    return not log.exists() and not log.with_suffix(".log.gz").exists()


def is_hidden(logs: Path, receipts: Path) -> bool:
    """Say whether logs of a pipeline are gone all together, as when their disk is not mounted.

    What is here is then younger than all that is gone: runs may have come since.
    """
    here = {path.name.partition(".")[0] for path in logs.glob("*.log*") if RUN.fullmatch(path.name[:26])}
    gone = {path.stem for path in receipts.glob("*.json")} - here
    return len(gone) > 1 and not any(run < max(gone) for run in here)  # an id begins with the time


def compressible() -> Iterator[Path]:
    """Yield the files that are whole once they are old: of confirmed runs, and of the days of hosts' systems."""
    for path in paths.COLLECTED.glob("*/*/*.log"):
        name = path.relative_to(paths.COLLECTED)
        if RUN.fullmatch(path.stem) and (paths.RECEIPTS / name).with_suffix(".json").exists():
            yield path
    yield from paths.COLLECTED.glob("*/system-*.log")


def compress(before: datetime, alarm: Teller) -> Iterator[None]:
    """Compress the files that were last written before an instant, a piece at a time; their age stays."""
    for path in compressible():
        unfinished = path.with_suffix(".log.gz.unfinished")
        try:
            seen = path.stat()
            if seen.st_mtime >= before.timestamp():
                continue
            with path.open("rb") as source, gzip.open(unfinished, "wb", compresslevel=6) as target:
                while piece := source.read(PACKED_AT_ONCE):
                    target.write(piece)
                    yield
            unfinished.chmod(0o640)
            os.utime(unfinished, ns=(seen.st_atime_ns, seen.st_mtime_ns))
            spool.flush(unfinished)
            if mark_of(path.stat()) != mark_of(seen):
                continue  # it was written on, or anew: it is not that old any more
            unfinished.rename(packed_name(path, seen.st_mtime_ns))
            path.unlink()
        except FileNotFoundError:
            continue  # it was removed by its age
        except OSError as error:
            alarm(f"{path}: cannot be compressed: {error.strerror}")
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                return
        finally:
            unfinished.unlink(missing_ok=True)


def mark_of(seen: os.stat_result) -> tuple[int, int, int]:
    """Return by what a file is known as it was."""
    return seen.st_ino, seen.st_size, seen.st_mtime_ns


def packed_name(path: Path, written_ns: int) -> Path:
    """Return what a file is called when it is compressed.

    A day of a system's may be there already: by a clock that was wrong, rsyslog went on writing in one that was over.
    """
    packed = path.with_suffix(".log.gz")
    if RUN.fullmatch(path.stem) or not packed.exists() or packed.stat().st_mtime_ns == written_ns:
        return packed
    return path.with_suffix(f".{written_ns}.log.gz")


def runs_taken_in() -> Iterator[Path]:
    """Yield the intake files whose place says a host, a pipeline and a run."""
    for path in paths.INTAKE.glob("*/*/*.ndjson"):
        host, pipeline, run = path.parts[-3], path.parts[-2], path.stem
        if HOST.fullmatch(host) and PIPELINE.fullmatch(pipeline) and RUN.fullmatch(run):
            yield path


class Assembly:
    """One run, from its first record to its receipt."""

    def __init__(self, intake: Path, say: Teller, alarm: Teller) -> None:
        """Begin at the beginning of the intake file; what the run's file has already is not written again.

        What was confirmed, and nothing was added to since, is not even read.
        """
        self.name = f"{intake.parts[-3]}/{intake.parts[-2]}/{intake.stem}"
        self._intake, self._run, self._say, self._alarm = intake, intake.stem, say, alarm
        self._log = (paths.COLLECTED / self.name).with_suffix(".log")
        self._receipt = (paths.RECEIPTS / self.name).with_suffix(".json")
        self._key = secrets.token_bytes(16)  # nobody outside can make two lines that look the same by it
        self._told: set[str] = set()
        self._start_over()
        self._passed_over = self._read_before_the_receipt()

    def _read_before_the_receipt(self) -> int:
        """Return the size of the intake that the receipt is for, where that is the very intake that is there."""
        if not self._confirmed:
            return 0
        size, written = self._confirmed.get("intake"), self._intake.stat().st_mtime
        return size if isinstance(size, int) and written < self._receipt.stat().st_mtime else 0

    def _start_over(self) -> None:
        """Read the intake from its beginning."""
        self._offset = 0
        self._known = array("I")
        self._begin()

    def _begin(self) -> None:
        self._next = 1
        self._digest = hashlib.sha256()
        self._shown = hashlib.sha256()
        self._waiting: dict[int, bytes] = {}
        self._waiting_size = 0
        self._end: dict[str, Any] | None = None
        self._confirmed = self._confirmation()
        self._written = 0 if self._confirmed else whole_lines(self._log)

    def _confirmation(self) -> dict[str, Any] | None:
        """Return the run's receipt, which stands for a log that is here; without one, have that log to go on with."""
        packed = self._log.with_suffix(".log.gz")
        receipt = read_receipt(self._receipt)
        if receipt and is_gone(self._log) and not is_hidden(self._log.parent, self._receipt.parent):
            self._alarm(f"{self.name}: it was confirmed, and its log is gone: its receipt is taken back")
            self._receipt.unlink()
            return None
        if receipt is None and packed.exists():
            unfinished = self._log.with_suffix(".log.unfinished")
            with gzip.open(packed) as source, unfinished.open("wb") as target:
                shutil.copyfileobj(source, target)
            unfinished.chmod(0o640)
            spool.flush(unfinished)
            unfinished.rename(self._log)
            packed.unlink()
        return receipt

    def advance(self, asked_to_stop: Callable[[], bool] = lambda: False) -> bool:
        """Take what has come since the last time, as much as is one turn; return whether that was all."""
        size = self._intake.stat().st_size
        if size <= self._offset or size == self._passed_over:
            return True
        self._passed_over = 0
        lines: list[bytes] = []
        turn_ends = self._offset + AT_ONCE
        with self._intake.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n") or asked_to_stop():
                    break  # it is being written; or read when the service is there again
                self._offset += len(line)
                self._take(line.strip() + b"\n", lines)
                if self._offset >= turn_ends:
                    break
        is_all = self._offset < turn_ends
        self._append(lines)
        if self._end and self._next > self._end["count"]:  # more lines than that are no agreement either
            (self._compare if self._confirmed else self._close)(self._end)
        return is_all

    def _take(self, line: bytes, lines: list[bytes]) -> None:
        """Take one record: in its turn, before its turn, or once more."""
        record = self._read(line)
        if record is None:
            self._tell_once("a record was refused, which is none of this run", f": {spool.one_line(line[:200])}")
        elif record["stream"] == "end":
            self._end = record
        else:
            self._take_in_turn(line, record, lines)

    def _take_in_turn(self, line: bytes, record: dict[str, Any], lines: list[bytes]) -> None:
        if self._comes_otherwise(line, record["seq"]):
            self._tell_once("a line came that is not the one of its number which came before; the first is kept")
            if not self._confirmed:
                return
        elif self._confirmed and record["seq"] > self._confirmed["count"]:
            self._tell_once(f"a line came after its end: it was confirmed with {self._confirmed['count']}")
        if record["seq"] == self._next:
            self._accept(line, record, lines)
            while (waited := self._waiting.pop(self._next, b"")) and (known := self._read(waited)):
                self._waiting_size -= len(waited)
                self._accept(waited, known, lines)
        elif record["seq"] > self._next and self._waiting_size + len(line) <= MOST_WAITING:
            self._waiting_size += len(line) - len(self._waiting.get(record["seq"], b""))
            self._waiting[record["seq"]] = line
        elif record["seq"] > self._next and not self._confirmed:  # else rsyslog sends from where it noted last
            self._tell_once(
                f"line {self._next} is missing, and more come after it than can wait: they are to come again"
            )

    def _comes_otherwise(self, line: bytes, number: int) -> bool:
        """Say whether a line is another than that of its number which came before, or waits for its turn."""
        if number <= len(self._known):
            return self._known[number - 1] != self._trace(line)
        return self._waiting.get(number, line) != line

    def _trace(self, line: bytes) -> int:
        return int.from_bytes(hashlib.blake2b(line, digest_size=4, key=self._key).digest())

    def _tell_once(self, what: str, which: str = "") -> None:
        """Tell what goes on, or what somebody forges, once: he can do so as often as he likes."""
        if what not in self._told:
            self._told.add(what)
            self._alarm(f"{self.name}: {what}{which}")

    def _read(self, line: bytes) -> dict[str, Any] | None:
        """Return a record of this run, or None."""
        try:
            record = json.loads(line)
            fits = (
                record["run"] == self._run
                and isinstance(record["seq"], int)
                and record["seq"] > 0
                and record["stream"] in STREAMS
                and TIME.fullmatch(record["time"])
            )
            if fits and record["stream"] == "end":
                fits = isinstance(record["count"], int) and re.fullmatch(r"[0-9a-f]{64}", record["sha256"])
            elif fits and "base64" in record:
                base64.b64decode(record["base64"], validate=True)
            elif fits:
                record["text"].encode()  # half of a surrogate pair is no text
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
        return record if fits else None

    def _accept(self, line: bytes, record: dict[str, Any], lines: list[bytes]) -> None:
        self._digest.update(line)
        if len(self._known) == self._next - 1 < MOST_KNOWN:
            self._known.append(self._trace(line))
        if not self._confirmed:
            text = spool.one_line(spool.text(record))
            goes_on = "+" if record.get("continues") else ""
            shown = f"{record['time']} {record['stream']}{goes_on} {text}\n".encode()
            self._shown.update(shown)
            if self._next > self._written:
                lines.append(shown)
                if record["stream"] == "standpipe":
                    self._alarm(f"{self.name}: {text}")
        self._next += 1

    def _append(self, lines: list[bytes]) -> None:
        """Write lines to the run's file, whole."""
        if not lines:
            return
        self._log.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        with self._log.open("ab") as file:
            os.fchmod(file.fileno(), 0o640)
            file.writelines(lines)
        self._written += len(lines)

    def _close(self, end: dict[str, Any]) -> None:
        """Give the receipt where the digest agrees; else set all aside, so that the host can send it anew."""
        if self._digest.hexdigest() != end["sha256"]:
            aside = self._intake.with_suffix(f".refused-{datetime.now(UTC):%Y%m%dT%H%M%S}")
            try:
                shutil.copyfile(self._intake, aside)
            except OSError:
                aside.unlink(missing_ok=True)  # the disk is full, and the next look has another name
                raise
            os.truncate(self._intake, 0)  # rsyslog has it open
            self._log.unlink(missing_ok=True)
            self._alarm(
                f"{self.name}: the digest of its {end['count']} lines is not the host's; they are kept as {aside}"
            )
            self._start_over()
            return
        ending = f"end {end['count']} lines, sha256 {end['sha256']}\n"
        if self._written <= end["count"]:
            self._append([f"{end['time']} {ending}".encode()])
        log_sha256 = digest_of_log(self._log, end["count"], self._shown.hexdigest(), ending)
        if log_sha256 is None:
            self._log.unlink()
            self._alarm(f"{self.name}: its file was changed before it was confirmed; it is written anew")
            self._start_over()
            return
        try:
            spool.flush(self._log)
        except OSError:
            self._log.unlink(missing_ok=True)  # to be written anew: a second flush would not tell of it
            raise
        host, pipeline, run = self.name.split("/")
        receipt = {"schema": 1, "host": host, "pipeline": pipeline, "run": run}
        receipt |= {"count": end["count"], "sha256": end["sha256"], "received_at": f"{datetime.now(UTC):%FT%TZ}"}
        receipt |= {"log_sha256": log_sha256}  # of the run's file, which outlasts the intake
        receipt |= {"intake": self._offset}  # bytes, so that nobody reads them again for nothing
        self._receipt.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        unfinished = self._receipt.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(receipt) + "\n")
        spool.flush(unfinished)
        unfinished.rename(self._receipt)
        spool.flush_directory(self._receipt.parent)
        self._begin()
        self._say(f"{self.name}: {end['count']} lines, confirmed")

    def _compare(self, end: dict[str, Any]) -> None:
        """Tell where a run that was confirmed came again, and came otherwise."""
        if self._confirmed and {end["sha256"], self._digest.hexdigest()} != {self._confirmed["sha256"]}:
            self._alarm(f"{self.name}: came again, and is not what was confirmed: its spool was changed on the host")
        self._begin()

    def clean_up(self) -> None:
        """Where nothing more comes: of a confirmed run, forget its lines, then remove the intake; tell of any other."""
        seen = self._intake.stat()
        idle = time.time() - seen.st_mtime
        if not self._confirmed:
            if self._end and idle > GAP_STAYS:
                self._tell_once(
                    f"its end came, and line {self._next} of {self._end['count']} has not: it is not confirmed"
                )
            elif not self._end and idle > QUIET_FOR:
                self._tell_once("no line has come for a day, and no end: it is not confirmed")
        elif idle > KEEP_INTAKE:
            self._intake.unlink()
        elif idle > KEEP_KNOWN and self._known:
            self._start_over()
            self._passed_over = seen.st_size


def whole_lines(path: Path) -> int:
    """Return how many lines a run's file has; what was cut off in its middle is cut off from the file."""
    if not path.exists():
        return 0
    count = size = 0
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                count, size = count + 1, size + len(line)
    os.truncate(path, size)
    return count


def digest_of_log(path: Path, count: int, shown: str, ending: str) -> str | None:
    """Return the SHA-256 of a run's file, or None where it is not the lines that are shown, and their ending."""
    digest, number, lines, last = hashlib.sha256(), -1, "", b""
    with path.open("rb") as file:
        for number, line in enumerate(file):
            if number == count:
                lines, last = digest.hexdigest(), line
            digest.update(line)
    is_same = number == count and lines == shown and last.partition(b" ")[2] == ending.encode()
    return digest.hexdigest() if is_same else None


def receipt_of(log: Path) -> dict[str, Any] | None:
    """Return the receipt that was given for a run's file, if there is one."""
    name = log.relative_to(paths.COLLECTED).parent / f"{log.name.partition('.')[0]}.json"
    return read_receipt(paths.RECEIPTS / name)


def opened(path: Path) -> BufferedReader | gzip.GzipFile:
    """Open a run's file, compressed or not, or compressed since its name was read."""
    packed = path.with_suffix(".log.gz")
    if path.suffix == ".log" and not path.exists() and packed.exists():
        path = packed
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


def changes(path: Path, receipt: dict[str, Any]) -> Iterator[str]:
    """Yield what is wrong with a confirmed run's file, if anything is; before that, an empty text for each piece."""
    if "log_sha256" not in receipt:
        return  # one of an earlier version says nothing of the file
    digest = hashlib.sha256()
    try:
        with opened(path) as file:
            while piece := file.read(PACKED_AT_ONCE):
                digest.update(piece)
                yield ""
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        yield f"{path} is damaged: {error}"
        return
    if digest.hexdigest() != receipt["log_sha256"]:
        yield f"{path} is not what was confirmed: it was changed after that"


def read_receipt(path: Path) -> dict[str, Any] | None:
    """Return a run's receipt, if it has one."""
    try:
        receipt = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None  # a damaged one is given anew
    return receipt if isinstance(receipt, dict) and "sha256" in receipt else None
