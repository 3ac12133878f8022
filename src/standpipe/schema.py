"""The declared pipeline's schema, for people and for editors: `python -m standpipe.schema --docs|--json-schema`."""

from __future__ import annotations

import json
import sys
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from standpipe.pipeline import Budget, Declaration, Pipeline

TITLE = """\
# The keys of a pipeline

Made by `make docs` from `src/standpipe/pipeline.py`, which alone knows them. `pipelines` is a list in `group_vars`;
only the bold keys have no default. [pipelines.schema.json](pipelines.schema.json) serves editors.

| key | default | what it is |
|---|---|---|"""

BUDGETS = """
# The keys of a budget

`budgets` is a list beside `pipelines`; a pipeline names those that it spends.

| key | default | what it is |
|---|---|---|"""


def main(argument: str) -> None:
    """Print the page of keys, or the JSON Schema."""
    if argument == "--json-schema":
        print(json.dumps(Declaration.model_json_schema(), indent=1))
    else:
        print(TITLE)
        for row in rows(Pipeline, ""):
            print(row)
        print(BUDGETS)
        for row in rows(Budget, ""):
            print(row)


def rows(model: type[BaseModel], prefix: str) -> list[str]:
    """Return a table row for each key of a model and of the models in it."""
    found = []
    for name, field in model.model_fields.items():
        part = part_of(field)
        if part:
            if field.description:
                found.append(f"| `{prefix}{name}` | | {field.description} |")
            found += rows(part, f"{prefix}{name}.")
            continue
        key = f"`{prefix}{name}`"
        required = field.is_required()
        default = "" if required else f"`{json.dumps(shown(model, name))}`"
        found.append(f"| {f'**{key}**' if required else key} | {default} | {field.description} |")
    return found


def part_of(field: FieldInfo) -> type[BaseModel] | None:
    """Return the model that a field holds, if it holds one."""
    candidates = [field.annotation, *get_args(field.annotation)]
    return next((kind for kind in candidates if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def shown(model: type[BaseModel], name: str) -> Any:
    """Return a default as the output of `standpipe validate` has it."""
    field = model.model_fields[name]
    default = field.get_default(call_default_factory=True, validated_data={})
    return model.model_construct(**{name: default}).model_dump(mode="json", include={name}, warnings=False)[name]


if __name__ == "__main__":
    main(sys.argv[1])
