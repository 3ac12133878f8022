"""What was in service of a pipeline, kept so that one can go back to it: image, configuration and schedule.

A release is a copy of the files that say what runs, and when. `site.yml` has the ones in service kept at
its end. AWS keys are no part of it: a key that was rotated stays so.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from standpipe import configuration, paths
from standpipe.errors import ConfigurationError, UsageError

KEPT_AT = "kept_at"  # when the release was last seen in service
ROLLED_BACK = "rolled_back"  # there where somebody went back from it


@dataclass(frozen=True)
class Release:
    """One state of a pipeline: its `name` is made of its content, `image` is the image's name."""

    name: str
    image: str
    kept_at: str
    in_service: bool
    rolled_back: bool


def files(pipeline: str) -> list[Path]:
    """Return the files that make up a release, as far as a pipeline can have them."""
    folder = paths.compose_file(pipeline).parent
    return [
        folder / ".env",
        folder / "docker-compose.yml",
        folder / "Dockerfile",
        paths.PIPELINES / f"{pipeline}.yml",
        paths.CRON / f"standpipe-{pipeline}",
        paths.SUDOERS / f"standpipe-{pipeline}",
    ]


def directory(pipeline: str) -> Path:
    """Return where the releases of a pipeline are kept."""
    return paths.CONTEXTS / pipeline / "releases"


def name_of(pipeline: str) -> str:
    """Return the name of what is in service."""
    digest = hashlib.sha256()
    for path in files(pipeline):
        content = path.read_bytes() if path.exists() else None
        digest.update(f"{path.name} {content!r}\n".encode())
    return digest.hexdigest()[:12]


def kept(pipeline: str) -> list[Release]:
    """Return the releases of a pipeline, the one that was in service last first."""
    serving = name_of(pipeline)
    found = []
    for path in directory(pipeline).glob("*/" + KEPT_AT):
        name = path.parent.name
        settings = path.parent / paths.compose_file(pipeline).with_name(".env").relative_to(paths.ROOT)
        image = configuration.image_of(settings)
        rolled_back = (path.parent / ROLLED_BACK).exists()
        found.append(Release(name, image, path.read_text().strip(), name == serving, rolled_back))
    return sorted(found, key=lambda release: (release.kept_at, release.in_service), reverse=True)


def keep(pipeline: str, count: int) -> Release | None:
    """Keep what is in service, and the `count` newest releases in all; return it unless it was the newest already."""
    name = name_of(pipeline)
    newest = next(iter(kept(pipeline)), None)
    if newest and newest.name == name and not newest.rolled_back:
        return None
    place = directory(pipeline) / name
    if not (place / KEPT_AT).exists():
        unfinished = place.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True, mode=0o700)
        for path in files(pipeline):
            if path.exists():
                copy = unfinished / path.relative_to(paths.ROOT)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, copy)
        shutil.rmtree(place, ignore_errors=True)
        unfinished.rename(place)
    (place / ROLLED_BACK).unlink(missing_ok=True)
    date_now(pipeline, place)
    for old in kept(pipeline)[count:]:
        shutil.rmtree(directory(pipeline) / old.name)
    return next(release for release in kept(pipeline) if release.name == name)


def date_now(pipeline: str, place: Path) -> None:
    """Note that a release is in service from now on: after each other, also where a clock was ahead."""
    at = datetime.now(UTC)
    for release in kept(pipeline):
        with suppress(ValueError):  # its note was cut off when the host went down
            at = max(at, datetime.fromisoformat(release.kept_at) + timedelta(microseconds=1))
    unfinished = place / f".{KEPT_AT}.unfinished"
    unfinished.write_text(f"{at.isoformat(timespec='microseconds')}\n")
    unfinished.replace(place / KEPT_AT)


def roll_back(pipeline: str, has_image: Callable[[str], bool], to: str | None = None) -> Release:
    """Put the release in service again that was before this one, or the one that `to` names; return it.

    `to` is a release's name, or its image, which is the same on other hosts. A run that is under way goes on as
    it was started. Raises UsageError where a name is none, ConfigurationError where there is nothing to go back to.
    """
    serving = name_of(pipeline)
    found = kept(pipeline)
    named = [release for release in found if not to or to in (release.name, release.image)]
    if to and not named:
        known = ", ".join(release.name for release in found) or "none"
        raise UsageError(f"{pipeline} has no release {to}. It has: {known}")
    others = [release for release in named if release.name != serving]
    target = next((release for release in others if to or not release.rolled_back), None)
    if target is None:
        raise ConfigurationError(
            f"{pipeline} has nothing to go back to: no other release is kept on this host, or each was gone back from. "
            f"standpipe releases {pipeline} lists them; standpipe roll-back {pipeline} --to RELEASE chooses one"
        )
    if not has_image(target.image):
        raise ConfigurationError(
            f"{pipeline} cannot go back to {target.name}: its image {target.image} is no longer on this host"
        )
    place = directory(pipeline) / target.name
    declared = configuration.read(place / (paths.PIPELINES / f"{pipeline}.yml").relative_to(paths.ROOT))
    key = paths.CREDENTIALS / pipeline
    if declared.get("credentials", {}).get("mode") == "file" and not key.is_file():
        raise ConfigurationError(
            f"{pipeline} cannot go back to {target.name}: its containers read {key}, which is not on this host,"
            " and keys are no part of a release. Declare credentials: {mode: file} again, and run site.yml"
        )
    if any(release.name == serving for release in found) and not target.rolled_back:
        (directory(pipeline) / serving / ROLLED_BACK).touch()
    for path in files(pipeline):
        put(place / path.relative_to(paths.ROOT), path)
    (place / ROLLED_BACK).unlink(missing_ok=True)
    date_now(pipeline, place)
    return target


def put(source: Path, path: Path) -> None:
    """Have a file as it was, at once and whole; or not have it."""
    if not source.exists():
        path.unlink(missing_ok=True)
        return
    unfinished = path.with_name(f".{path.name}.unfinished")  # neither cron nor sudo reads a name like this
    shutil.copy2(source, unfinished)
    unfinished.replace(path)
