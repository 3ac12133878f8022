"""What a ref is at a repository, asked of git itself.

Commits are fetched, without their files' content, into a cache of bare repositories below
$XDG_CACHE_HOME/standpipe/git; what is there already is not fetched again.
"""

from __future__ import annotations

import difflib
import fcntl
import hashlib
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from standpipe.errors import ConfigurationError

TIMEOUT = 60  # seconds that one question to a repository may take
NOTHING: Mapping[str, str] = {}  # the variables by which git finds secrets, where there are none


class SourceError(ConfigurationError):
    """A repository, ref or file that is not there; `key` is the one of the declaration that names it."""

    def __init__(self, key: str, message: str) -> None:
        """Keep the key beside the message."""
        super().__init__(message)
        self.key = key


def resolve(repo: str, version: str, given: Mapping[str, str] = NOTHING) -> str:
    """Return the commit (40 hexadecimal digits) that `version` names at `repo` now."""
    refs = list_refs(repo, given)
    for candidate in (f"refs/tags/{version}^{{}}", f"refs/tags/{version}", f"refs/heads/{version}"):
        if candidate in refs:
            return refs[candidate]
    if re.fullmatch(r"[0-9a-f]{40}", version):
        fetch(repo, version, version, given)
        return version
    names = [name.split("/", 2)[2] for name in refs if name.startswith(("refs/tags/", "refs/heads/"))]
    names = [name for name in names if not name.endswith("^{}")]
    near = difflib.get_close_matches(version, names, n=3) or names[:5]
    has = f"It has {', '.join(near)}" if near else "It has no branch and no tag: push one"
    raise SourceError("source.version", f'"{version}" is no tag, branch or commit of {public(repo)}. {has}')


def list_refs(repo: str, given: Mapping[str, str] = NOTHING) -> dict[str, str]:
    """Return the refs of a repository with their commits, as git ls-remote has them."""
    answer = git("ls-remote", "--", repo, given=given)
    if answer.returncode != 0:
        raise SourceError(
            "source.repo",
            f"{public(repo)} cannot be reached: {last_line(answer.stderr, repo)}. "
            "Check the address, the network, and that this account may read it, or what build_secrets gives it",
        )
    pairs = (line.split("\t") for line in answer.stdout.splitlines())
    return {ref: commit for commit, ref in pairs}


def require_file(repo: str, version: str, commit: str, path: str, given: Mapping[str, str] = NOTHING) -> int:
    """Raise SourceError where a commit cannot be built: it has no file `path`, or not all of its files.

    Return when it was made, in seconds since 1970.
    """
    cache = fetch(repo, version, commit, given)
    listed = git("-C", str(cache), "ls-tree", "-r", commit).stdout.splitlines()
    files = [line.partition("\t")[2] for line in listed]
    where = f"{public(repo)} at {version} ({commit[:8]})"
    if path not in files:
        found = [name for name in files if "requirements" in name] or ["no requirements file at all"]
        raise SourceError("source.requirements", f'"{path}" is not in {where}. It has {", ".join(found[:5])}')
    modules = [name for name, line in zip(files, listed, strict=True) if line.startswith("160000 ")]
    if modules:
        raise SourceError(
            "source.version",
            f'{where} has the submodule "{modules[0]}", which builds do not fetch. '
            "Add its files to the repository, or its package to the requirements",
        )
    return int(git("-C", str(cache), "show", "--no-patch", "--format=%ct", commit).stdout)


def fetch(repo: str, version: str, commit: str, given: Mapping[str, str] = NOTHING) -> Path:
    """Bring a commit and its trees into the cache; return the cached repository's path."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "standpipe" / "git"
    cache = home / hashlib.sha256(repo.encode()).hexdigest()[:16]
    with alone(cache):
        return _fetch(cache, repo, version, commit, given)


@contextmanager
def alone(cache: Path) -> Iterator[None]:
    """Keep other fetches, of this process and of others, away from one cached repository."""
    cache.parent.mkdir(parents=True, exist_ok=True)
    with cache.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fetch(cache: Path, repo: str, version: str, commit: str, given: Mapping[str, str]) -> Path:
    if not (cache / "HEAD").exists():
        git("init", "--quiet", "--bare", str(cache))
    lock = cache / "shallow.lock"  # a git that was ended in mid-fetch leaves it, and nobody else is at this cache
    lock.unlink(missing_ok=True)
    if git("-C", str(cache), "ls-tree", "-r", commit).returncode == 0:
        return cache
    lean = ("fetch", "--quiet", "--depth=1", "--filter=blob:none", repo)
    # Not every server hands out a commit by its name, or leaves out files: ask for less each time.
    for attempt in (
        (*lean, commit),
        ("fetch", "--quiet", "--depth=1", repo, commit),
        ("fetch", "--quiet", repo, version),
    ):
        answer = git("-C", str(cache), *attempt, given=given)
        lock.unlink(missing_ok=True)
        if answer.returncode == 0 and git("-C", str(cache), "ls-tree", "-r", commit).returncode == 0:
            return cache
    raise SourceError(
        "source.version", f'"{version}" of {public(repo)} cannot be fetched: {last_line(answer.stderr, repo)}'
    )


def git(*arguments: str, given: Mapping[str, str] = NOTHING) -> subprocess.CompletedProcess[str]:
    """Run git so that it never asks a question."""
    environment = {"GIT_SSH_COMMAND": "ssh -o BatchMode=yes", **os.environ, **given, "GIT_TERMINAL_PROMPT": "0"}
    command = ["git", "-c", "credential.interactive=false", *arguments]
    try:
        return subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
            errors="replace",
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", f"no answer within {TIMEOUT} seconds")


def public(repo: str) -> str:
    """Return an address without what may be a secret in it."""
    return re.sub(r"^([a-z+]+://)[^/@]*@", r"\1", repo)


def last_line(text: str, repo: str) -> str:
    """Return the last line that git said, without a secret."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = next((line for line in reversed(lines) if line.startswith("fatal:")), lines[-1] if lines else "no reason")
    return said.removeprefix("fatal: ").replace(repo, public(repo)).rstrip(".")
