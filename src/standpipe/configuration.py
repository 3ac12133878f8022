"""The pipelines and the settings of this host, as the roles wrote them."""

from __future__ import annotations

import configparser
import os
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from standpipe import paths
from standpipe.errors import ConfigurationError, UsageError
from standpipe.pipeline import Budget, Pipeline, problems

REMEDY = "run site.yml on this host, which writes it anew"


class Collector(BaseModel):
    """Where this host's logs go, and where their receipts are."""

    model_config = ConfigDict(extra="forbid")

    address: str
    names: list[str] = Field(min_length=1)  # its certificate has one of them
    receipts_port: int = Field(ge=1, le=65535)
    send_again_after: int = Field(300, ge=1)  # seconds for which the collector may be without a log that has ended
    overdue_after: int = Field(3600, ge=1)  # seconds after which somebody is told
    keeps_days: int = Field(0, ge=0)  # for how long it keeps a log; 0 is for good


class Settings(BaseModel):
    """What holds for the whole host."""

    model_config = ConfigDict(extra="forbid")

    history_days: int = Field(1830, ge=1)  # for how long a run stays on record
    log_days: int = Field(30, ge=1)  # for how long a log stays here that the collector has confirmed
    check_credentials: bool = True  # whether AWS is asked who pipelines are
    http_proxy: str = ""  # through which it is asked; empty for none
    no_proxy: str = ""  # what is reached without it, as a comma-separated list
    collector: Collector | None = None


def names() -> list[str]:
    """Return the names of the pipelines that this host knows."""
    return sorted(path.stem for path in paths.PIPELINES.glob("*.yml"))


def load(name: str) -> Pipeline:
    """Read one pipeline.

    Raises UsageError where this host does not know it, ConfigurationError where its file is damaged.
    """
    path = paths.PIPELINES / f"{name}.yml"
    if name not in names():
        known = ", ".join(names()) or "none; run site.yml on it"
        raise UsageError(f"this host knows no pipeline {name!r}. It knows: {known}")
    try:
        return Pipeline.model_validate(read(path))
    except ValidationError as error:
        told = "; ".join(problems(error, {}))
        raise ConfigurationError(f"{path} is damaged: {REMEDY} ({told})") from None


def budgets() -> list[Budget]:
    """Return the budgets that this host knows. Raises ConfigurationError where their file is damaged."""
    if not paths.BUDGETS.exists():
        return []
    try:
        return [Budget.model_validate(declared) for declared in read(paths.BUDGETS) or []]
    except ValidationError as error:
        told = "; ".join(problems(error, {}))
        raise ConfigurationError(f"{paths.BUDGETS} is damaged: {REMEDY} ({told})") from None


def settings() -> Settings:
    """Read the host's settings, or the defaults. Raises ConfigurationError where they are damaged."""
    if not paths.SETTINGS.exists():
        return Settings()
    try:
        return Settings.model_validate(read(paths.SETTINGS) or {})
    except ValidationError as error:
        told = "; ".join(f"{finding['loc'][0]}: {finding['msg']}" for finding in error.errors())
        raise ConfigurationError(f"{paths.SETTINGS} is damaged: {REMEDY} ({told})") from None


def image_of(path: Path) -> str:
    """Return the image that the settings of a Compose file name. Raises ConfigurationError where they are gone."""
    return setting(path, "STANDPIPE_IMAGE")


def setting(path: Path, name: str) -> str:
    """Return one setting of a Compose file, "" where it is not set. Raises ConfigurationError where all are gone."""
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read ({error.strerror}): {REMEDY}") from None
    return next((line.partition("=")[2] for line in lines if line.startswith(f"{name}=")), "")


def credentials(name: str) -> list[str]:
    """Return the secret values of a pipeline's credentials file, as far as this process can read it."""
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read(paths.CREDENTIALS / name)
    except (OSError, configparser.Error):
        return []
    pairs = (pair for section in parser.sections() for pair in parser[section].items())
    return [value for key, value in pairs if key.endswith(("_key_id", "_key", "_token")) and value]


def all_credentials() -> list[str]:
    """Return the secret values of all credentials files of this host, as far as this process can read them."""
    if not os.access(paths.CREDENTIALS, os.R_OK):
        return []
    return [value for path in paths.CREDENTIALS.iterdir() for value in credentials(path.name)]


def read(path: Path) -> Any:
    """Read a file of the roles' making."""
    try:
        return yaml.load(path.read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506  # safe
    except (OSError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{path} is damaged: {REMEDY} ({error})") from None
