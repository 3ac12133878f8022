"""`standpipe validate`: what is wrong with a declaration, all of it at once, before anything changes."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any, TextIO

import yaml
from pydantic import ValidationError

from standpipe import build_secrets, sources
from standpipe.build_secrets import BuildSecrets
from standpipe.errors import ConfigurationError
from standpipe.pipeline import Declaration, Source, problems


def read(stream: TextIO) -> dict[str, Any]:
    """Read a declaration as it was written."""
    text = stream.read()
    try:
        # JSON is YAML too, and far slower read as such.
        document = json.loads(text) if text.lstrip().startswith("{") else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigurationError(f"the declaration is neither JSON nor YAML: {error}") from None
    if not isinstance(document, dict):
        raise ConfigurationError('the declaration is no mapping. Write {"pipelines": [...]}')
    return document


def validate(document: dict[str, Any], have_credentials: list[str] | None = None) -> Declaration:
    """Check a declaration; raise ConfigurationError with one line for each thing that is wrong."""
    found = []
    declaration = None
    try:
        declaration = Declaration.model_validate(document)
    except ValidationError as error:
        found += problems(error, document)
    found += repeated_names(document, "pipelines") + repeated_names(document, "budgets")
    found += wrong_budgets(declaration) if declaration else []
    if declaration and have_credentials is not None:
        found += [
            f"pipeline '{pipeline.name}': credentials.mode: \"file\" has no keys. "
            f"Add aws_credentials_keys.{pipeline.name} (access_key_id and secret_access_key) "
            "to the vault file of group_vars (ansible-vault edit), "
            "or choose mode: role"
            for pipeline in declaration.pipelines
            if pipeline.state == "present"
            and pipeline.credentials.mode == "file"
            and pipeline.name not in have_credentials
        ]
    if found or declaration is None:
        raise ConfigurationError("\n".join(found))
    return declaration


def repeated_names(document: dict[str, Any], key: str) -> list[str]:
    """Find pipelines, or budgets, of one name."""
    listed = document.get(key)
    names = [item.get("name") for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []
    twice = {name for name in names if isinstance(name, str) and names.count(name) > 1}
    return [
        f"{key.removesuffix('s')} '{name}': name: is declared {names.count(name)} times. Rename all but one"
        for name in sorted(twice)
    ]


def wrong_budgets(declaration: Declaration) -> list[str]:
    """Find budgets that pipelines name and nobody declares, and runs that may spend more than there is."""
    limits = {budget.name: Decimal(budget.limit) for budget in declaration.budgets}
    found = []
    for pipeline in declaration.pipelines:
        for use in pipeline.budgets:
            where = f"pipeline '{pipeline.name}': budgets: {use.name!r}"
            if use.name not in limits:
                known = ", ".join(sorted(limits)) or "none"
                found.append(f"{where} is not declared. Add it to the list `budgets`, which has {known}")
            elif use.per_run is not None and Decimal(use.per_run) > limits[use.name]:
                found.append(f"{where} has {use.per_run} per_run, which is more than its limit, {limits[use.name]}")
    return found


def resolve(declaration: Declaration, secrets: dict[str, BuildSecrets] | None = None) -> Declaration:
    """Fill in the commit of each pipeline that is present, asking each repository once for each ref."""
    present = [pipeline for pipeline in declaration.pipelines if pipeline.state == "present" and pipeline.source]
    asked = {
        pipeline.name: (pipeline.source, (secrets or {}).get(pipeline.name, build_secrets.NONE)) for pipeline in present
    }
    questions = list(dict.fromkeys(asked.values()))
    with ThreadPoolExecutor(max_workers=8) as pool:
        answers = dict(zip(questions, pool.map(_answer, questions), strict=True))
    found = []
    resolved = []
    for pipeline in declaration.pipelines:
        if pipeline.name in asked and pipeline.state == "present":
            answer = answers[asked[pipeline.name]]
            if isinstance(answer, sources.SourceError):
                found.append(f"pipeline '{pipeline.name}': {answer.key}: {answer}")
            else:
                pipeline = pipeline.model_copy(update={"source": answer})
        resolved.append(pipeline)
    if found:
        raise ConfigurationError("\n".join(found))
    return declaration.model_copy(update={"pipelines": resolved})


def _answer(question: tuple[Source, BuildSecrets]) -> Source | sources.SourceError:
    source, secrets = question
    try:
        with build_secrets.for_git(secrets) as given:
            commit = sources.resolve(source.repo, source.version, given)
            made = sources.require_file(source.repo, source.version, commit, source.requirements, given)
    except sources.SourceError as error:
        return sources.SourceError(error.key, build_secrets.masked(str(error), secrets))
    return source.model_copy(update={"commit": commit, "committed": made})
