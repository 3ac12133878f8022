"""The pipelines of this host, as the roles wrote them."""

from __future__ import annotations

import yaml
from pydantic import ValidationError

from standpipe import paths
from standpipe.errors import ConfigurationError, UsageError
from standpipe.pipeline import Pipeline, problems


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
    remedy = "run site.yml on this host, which writes it anew"
    try:
        document = yaml.load(path.read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506  # safe
    except (OSError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{path} is damaged: {remedy} ({error})") from None
    try:
        return Pipeline.model_validate(document)
    except ValidationError as error:
        told = "; ".join(problems(error, {}))
        raise ConfigurationError(f"{path} is damaged: {remedy} ({told})") from None
