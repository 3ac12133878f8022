"""What a pipeline's build may know and nothing may keep: how git gets it on the controller, and what is never said."""

from __future__ import annotations

import configparser
import netrc
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from standpipe.errors import ConfigurationError
from standpipe.scan.secrets import SHORTEST, Detector

FAILED = re.compile(r"^#(\d+) ERROR: ", re.MULTILINE)  # the step, by its number in BuildKit's plain progress
TOLD = 40  # lines that are told of a build that failed


class BuildSecrets(BaseModel):
    """The files of one pipeline's build, as they are written in the vault."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    netrc: str | None = Field(None, min_length=1)
    ssh_key: str | None = Field(None, min_length=1)
    ssh_known_hosts: str | None = Field(None, min_length=1)
    pip_conf: str | None = Field(None, min_length=1)

    def values(self) -> set[str]:
        """Return what is secret in them: passwords, and the lines of a private key."""
        found = set()
        if self.netrc:
            words = self.netrc.split()
            found |= {after for word, after in pairwise(words) if word in ("password", "account")}
        if self.ssh_key:
            found |= {line for line in self.ssh_key.split() if len(line) >= 16 and not line.startswith("-----")}
        for user in re.findall(r"://([^/@\s]+)@", self.pip_conf or ""):
            secret = user.partition(":")[2] or user
            found |= {secret, unquote(secret)}
        return found


NONE = BuildSecrets()


def read(given: object) -> dict[str, BuildSecrets]:
    """Read `build_secrets` as the vault has it, by pipeline; raise ConfigurationError, which repeats no value."""
    if not isinstance(given, Mapping):
        raise ConfigurationError("build_secrets: is no mapping of pipelines. Write {NAME: {netrc: ...}}")
    found = {}
    wrong = []
    for name, files in given.items():
        try:
            found[name] = BuildSecrets.model_validate(files)
            wrong += [f"build_secrets.{name}.{key}: {what}" for key, what in _unreadable(found[name])]
        except ValidationError as error:
            wrong += [f"build_secrets.{name}: {_told(problem)}" for problem in error.errors(include_input=False)]
    if wrong:
        raise ConfigurationError("\n".join(wrong))
    return found


def _told(problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"{key} is nothing that a build is given. Choose of {', '.join(BuildSecrets.model_fields)}"
    if not key:
        return f"is no mapping. Write {{{': ..., '.join(BuildSecrets.model_fields)}: ...}}, each if it is needed"
    return f"{key} is empty, or no text. Write the file's content (|), or leave it out"


def _unreadable(secrets: BuildSecrets) -> Iterator[tuple[str, str]]:
    """Yield the keys whose content is not what the programs that get it can read."""
    if secrets.netrc:
        with tempfile.NamedTemporaryFile("w", prefix="standpipe-") as file:
            file.write(secrets.netrc)
            file.flush()
            try:
                netrc.netrc(file.name)
            except netrc.NetrcParseError as error:
                yield "netrc", f"cannot be read at line {error.lineno}. Write: machine HOST login NAME password SECRET"
    if secrets.ssh_key and not secrets.ssh_key.lstrip().startswith("-----BEGIN "):
        yield "ssh_key", "is no private key. Write the content of the key's file, from -----BEGIN to END-----"
    if secrets.pip_conf:
        try:
            configparser.RawConfigParser().read_string(secrets.pip_conf)
        except configparser.Error as error:
            at = f" at line {error.lineno}" if isinstance(error, configparser.MissingSectionHeaderError) else ""
            yield "pip_conf", f"cannot be read{at}. Write it as pip.conf, with [global] first"


@contextmanager
def for_git(secrets: BuildSecrets) -> Iterator[dict[str, str]]:
    """Yield the variables by which git finds the secrets, in files of a directory that goes afterwards."""
    if not (secrets.netrc or secrets.ssh_key or secrets.ssh_known_hosts):
        yield {}
        return
    with tempfile.TemporaryDirectory(prefix="standpipe-") as name:
        home = Path(name)  # mode 0700
        variables = {}
        if secrets.netrc:
            (home / ".netrc").write_text(secrets.netrc)
            own = Path(os.environ.get("HOME", "/nonexistent"))
            xdg = Path(os.environ.get("XDG_CONFIG_HOME") or own / ".config") / "git/config"
            kept = next((path for path in (own / ".gitconfig", xdg) if path.exists()), Path(os.devnull))
            variables = {"HOME": name, "GIT_CONFIG_GLOBAL": os.environ.get("GIT_CONFIG_GLOBAL", str(kept))}
        ssh = ["ssh", "-o", "BatchMode=yes"]
        if secrets.ssh_key:
            key = home / "key"
            key.touch(mode=0o600)
            key.write_text(secrets.ssh_key.strip() + "\n")
            ssh += ["-i", str(key), "-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none"]
        if secrets.ssh_known_hosts:
            (home / "known_hosts").write_text(secrets.ssh_known_hosts.strip() + "\n")
            ssh += ["-o", f"UserKnownHostsFile={home / 'known_hosts'}", "-o", "StrictHostKeyChecking=yes"]
        yield {**variables, "GIT_SSH_COMMAND": " ".join(ssh)}


def masked(text: str, secrets: BuildSecrets) -> str:
    """Return a text without the values of secrets, in any form that they can have."""
    values = secrets.values()
    told = Detector(value.encode() for value in values).masked(text)
    for value in values:
        if 3 < len(value) < SHORTEST:
            told = told.replace(value, "***")
    return told


def failure(said: str, secrets: BuildSecrets) -> str:
    """Return what a build that failed said in the step where it did, without the values of secrets.

    That is taken from the progress: the summary at the end lacks it where a step failed at once.
    """
    text = said.replace("\r", "")
    step = FAILED.findall(text)
    lines = re.findall(rf"^#{step[-1]} \d+\.\d+ (.*)$", text, re.MULTILINE) if step else []
    return masked("\n".join((lines or text.rstrip().splitlines())[-TOLD:]), secrets)
