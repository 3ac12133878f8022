"""Every file of an archive, and of the archives in it."""

from __future__ import annotations

import bz2
import gzip
import lzma
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from io import BufferedReader, RawIOBase
from pathlib import Path
from typing import IO, Any

CHUNK = 4_000_000  # bytes that are looked at in one go
IN_MEMORY = 32_000_000  # bytes of an inner archive; a larger one goes to disk meanwhile
DEEPEST = 8  # archives in one another
LARGEST = 20_000_000_000  # bytes that one outer archive may unpack to


class Stream(RawIOBase):
    """A file of what comes in pieces."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        """Begin with the first piece."""
        self._pieces = iter(pieces)
        self._rest = b""

    def readable(self) -> bool:
        """Say yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Give what is there."""
        self._rest = self._rest or next(self._pieces, b"")
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count


def inflated(file: IO[bytes]) -> BufferedReader:
    """Open a file that is compressed as git's objects are, without a header."""

    def pieces() -> Iterator[bytes]:
        inflating = zlib.decompressobj()
        while not inflating.eof:
            packed = inflating.unconsumed_tail or file.read(CHUNK)
            plain = inflating.decompress(packed, CHUNK)
            if plain:
                yield plain
            elif not packed:
                raise EOFError
        if inflating.unused_data or file.read(1):
            raise zlib.error("something follows")

    return BufferedReader(Stream(pieces()))


Opener = Callable[..., Any]
COMPRESSED: dict[bytes, Opener] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
EMPTY_TAR = b"\0" * tarfile.BLOCKSIZE
ZIP = b"PK\x03\x04"
CLOSED = {
    b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!\x1a\x07": "rar",
    b"PACK\0\0\0": "a pack of git's",
}
DAMAGED = (
    OSError,
    EOFError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    RuntimeError,
    ValueError,
)

Place = tuple[str, ...]  # the path in the outer archive, then that in the archive there, and so on
See = Callable[[Place, Iterator[bytes]], None]


@dataclass
class Walk:
    """Shows every file of an archive to `see`, with its place, in pieces.

    Notes what cannot be opened in `closed`, and the tar archives that it has walked through in `walked`.
    """

    see: See
    walked: set[Place] = field(default_factory=set)
    closed: dict[Place, str] = field(default_factory=dict)
    unpacked: int = 0

    def tar(self, file: IO[bytes], place: Place = ()) -> None:
        """Walk through a tar archive; it need not be seekable. Raises what tarfile raises where it is none."""
        with tarfile.open(fileobj=file, mode="r|") as archive:
            for member in archive:
                words = " ".join([member.name, member.linkname, *map(str, member.pax_headers.values())])
                self.see((*place, member.name), iter([words.encode(errors="surrogateescape")]))
                content = archive.extractfile(member) if member.isreg() else None
                if content:
                    self.file(content, (*place, member.name))
                elif not place:
                    self.walked.add((member.name,))  # a link: what it leads to has a name of its own
        self.walked.add(place)

    def directory(self, top: Path) -> None:
        """Walk through the files below a directory."""
        for path in sorted(top.rglob("*") if top.is_dir() else [top]):
            if path.is_file() and not path.is_symlink():
                with path.open("rb") as content:
                    self.file(content, (str(path),))

    def file(self, content: IO[bytes], place: Place) -> None:
        """Look at a file, and into it where it is an archive."""
        head = content.read(512)
        opens = next((opens for magic, opens in COMPRESSED.items() if head.startswith(magic)), None)
        if opens is None and is_deflated(head):
            opens = inflated
        for magic, name in CLOSED.items():
            if head.startswith(magic):
                self.closed[place] = name
        if not (opens or head.startswith(ZIP) or is_tar(head)):
            self.see(place, self._pieces(head, content))
            if head == EMPTY_TAR:
                self.walked.add(place)
            return
        if len(place) > DEEPEST:
            self.closed[place] = "an archive in too many others"
            self.see(place, self._pieces(head, content))
            return
        with tempfile.SpooledTemporaryFile(IN_MEMORY, dir="/var/tmp") as kept:  # no name, and no memory
            kept.write(head)
            shutil.copyfileobj(content, kept, CHUNK)
            kept.seek(0)
            try:
                self._archive(kept, opens, place)
            except DAMAGED as error:
                self.closed[place] = f"damaged ({type(error).__name__})"
                kept.seek(0)
                self.see(place, self._pieces(b"", kept))

    def _archive(self, kept: Any, opens: Opener | None, place: Place) -> None:
        if opens:
            with opens(kept) as content:
                self.file(content, (*place, ""))
        elif is_tar(kept.read(512)):
            kept.seek(0)
            self.tar(kept, place)
        else:
            kept.seek(0)
            with zipfile.ZipFile(kept) as archive:
                self.see(place, iter([archive.comment]))
                for member in archive.infolist():
                    self.see((*place, member.filename), iter([member.filename.encode(), member.comment, member.extra]))
                    with archive.open(member) as content:
                        self.file(content, (*place, member.filename))

    def _pieces(self, head: bytes, content: IO[bytes]) -> Iterator[bytes]:
        yield head + content.read(CHUNK)
        while piece := content.read(CHUNK):
            self.unpacked += len(piece)
            if self.unpacked > LARGEST:
                raise ValueError(f"it unpacks to more than {LARGEST / 1e9:.0f} GB")
            yield piece


def is_deflated(head: bytes) -> bool:
    """Say whether a file begins as one that zlib has compressed does: with its two bytes, and what they promise."""
    with suppress(zlib.error):
        return head[:1] == b"\x78" and bool(zlib.decompressobj().decompress(head))
    return False


def is_tar(head: bytes) -> bool:
    """Say whether a file begins as a tar archive does: with a header whose checksum is right."""
    with suppress(tarfile.TarError, ValueError):
        return len(head) == tarfile.BLOCKSIZE and bool(tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape"))
    return False
