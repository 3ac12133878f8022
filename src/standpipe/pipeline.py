"""The declared pipeline: the only place that knows its schema.

`standpipe validate` checks declarations against it on the controller, the roles render from its
output, and the host reads the same back.
"""

from __future__ import annotations

import difflib
import json
import re
from datetime import date
from functools import cache
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from standpipe import cron
from standpipe_task import spending

# The minor versions that the official Python images serve.
PYTHON_VERSIONS = ("3.10", "3.11", "3.12", "3.13", "3.14")

UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}


def parse_duration(value: object) -> int:
    """Read "4h", "1h30m" or a number of seconds; return whole seconds, at least one."""
    text = str(value).strip()
    if re.fullmatch(r"\d+", text):
        seconds = int(text)
    elif match := re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text):
        seconds = sum(int(n or 0) * unit for n, unit in zip(match.groups(), UNITS.values(), strict=True))
    else:
        raise ValueError('is not a duration. Write for example "4h", "90m" or "1h30m"')
    if seconds == 0:
        raise ValueError('is no time at all. Write for example "4h"')
    return seconds


def format_duration(seconds: int) -> str:
    """Write whole seconds as parse_duration reads them: 5400 is "1h30m"."""
    parts = []
    for unit, size in UNITS.items():
        count, seconds = divmod(seconds, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts)


def check_cron(text: str) -> str:
    """Check a cron line against what both cronie and this program understand."""
    cron.check(text)
    return text


@cache
def known_timezones() -> frozenset[str]:
    """Return the names of all time zones; finding them reads the whole database of zones."""
    return frozenset(available_timezones())


def check_timezone(name: str) -> str:
    """Check that a time zone exists; suggest names that are near."""
    try:
        if name[:1].isalpha() and not name.startswith(("posix", "right/")) and ZoneInfo(name):
            return name  # one file is read; to list the zones, as is done below, reads all of some five hundred
    except (ZoneInfoNotFoundError, ValueError, OSError):
        pass
    zones = known_timezones()
    if name not in zones:
        near = difflib.get_close_matches(name, sorted(zones), n=3)
        hint = f"Did you mean {' or '.join(near)}?" if near else 'Write for example "Europe/London" or "UTC"'
        raise ValueError(f"is no time zone. {hint}")
    return name


def check_repository(address: str) -> str:
    """Check a git address; a password in it is refused and not repeated."""
    scheme, _, rest = address.partition("://")
    if rest and "@" in rest and (scheme != "ssh" or ":" in rest.rpartition("@")[0]):
        raise ValueError(
            "holds a password or a token, which logs would show. Write it without, and the secret into build_secrets"
        )
    if not re.match(r"(https?|ssh|git|file)://\S+$|[\w.-]+@[\w.-]+:\S+$|/\S+$", address):
        raise ValueError("is no git address. Write for example https://git.example.org/name.git")
    return address


def check_ref(ref: str) -> str:
    """Check that a text can be a git ref (git-check-ref-format)."""
    if not re.fullmatch(r"[\w][\w./+-]*", ref) or ".." in ref or ref.endswith((".", "/", ".lock")):
        raise ValueError("cannot be a git ref. Name a tag, a branch or a commit")
    return ref


def check_relative_path(path: str) -> str:
    """Check that a path stays inside the pipeline's repository."""
    if path.startswith(("/", "-")) or ".." in path.split("/") or not re.fullmatch(r"[\w./+-]+", path):
        raise ValueError("is no path inside the repository. Write for example requirements.txt")
    return path


def check_python(version: str) -> str:
    """Check that a base image serves a Python version."""
    if version not in PYTHON_VERSIONS:
        raise ValueError(f"is no Python version that a base image serves. Choose of {', '.join(PYTHON_VERSIONS)}")
    return version


def check_parameters(parameters: dict[str, Any]) -> dict[str, Any]:
    """Check the names of Luigi parameters, and that each has a value."""
    for name, value in parameters.items():
        if not re.fullmatch(r"[a-z_][a-z0-9_]*", name):
            raise ValueError(f"has the parameter {name!r}: names are snake_case, as in the Luigi task")
        if value is None:
            raise ValueError(f"has no value for the parameter {name!r}. Give it one, or leave it out")
    return parameters


def matching(pattern: str, remedy: str) -> AfterValidator:
    """Make a validator for texts of one pattern, with the remedy for others."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(remedy)
        return value

    return AfterValidator(check)


def as_text(value: object) -> object:
    """Take a number for its text: YAML reads an unquoted 3.13 or 0.3 as one."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def check_decimals(value: object) -> object:
    """Refuse a number with decimals for a name: of an unquoted 1.10 YAML makes 1.1, which may be another one."""
    has_decimals = isinstance(value, float)
    if has_decimals:
        raise ValueError(f'is a number to YAML, which drops its last 0. Write it in quotes, as it is called: "{value}"')
    return value


Duration = Annotated[
    int,
    BeforeValidator(parse_duration),
    PlainSerializer(format_duration),
    WithJsonSchema({"type": ["string", "integer"], "description": "such as 4h, 90m, 1h30m; or seconds"}),
]
Name = Annotated[
    str,
    matching(
        r"[a-z][a-z0-9-]{1,21}",
        "cannot name a container and an account. Use 2 to 22 of a-z, 0-9 and -, beginning with a letter",
    ),
]
Text = Annotated[str, BeforeValidator(as_text)]


def check_units(text: str) -> str:
    """Check a number of units; return it without an exponent."""
    return str(spending.units(spending.parts(text)))


def check_pace(text: str) -> str:
    """Check a pace."""
    spending.seconds_between(text)
    return text


Units = Annotated[
    Text,
    AfterValidator(check_units),
    WithJsonSchema({"type": ["string", "number"], "description": "such as 10000 or 0.0001"}),
]


class Part(BaseModel):
    """A part of a declaration: no key that is not known, no change after it was read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(Part):
    """Where a pipeline's code comes from."""

    repo: Annotated[str, AfterValidator(check_repository)] = Field(description="git address of the code")
    version: Annotated[Text, BeforeValidator(check_decimals), AfterValidator(check_ref)] = Field(
        "dev", description="tag, branch or commit; resolved to a commit at each converge"
    )
    requirements: Annotated[str, AfterValidator(check_relative_path)] = Field(
        "requirements.txt", description="the pipeline's own requirements, a path in its repository"
    )
    commit: Annotated[str, matching(r"[0-9a-f]{40}", "is no commit: 40 hexadecimal digits")] | None = Field(
        None, description="what `version` was resolved to; filled in by `standpipe validate --resolve`"
    )
    committed: int | None = Field(
        None, ge=0, description="when that commit was made, in seconds since 1970; filled in likewise"
    )


class Task(Part):
    """What Luigi is asked to run."""

    module: Annotated[
        str,
        matching(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", "is no Python module. Write for example arxlive.tasks"),
    ] = Field(description="Python module of the task")
    name: Annotated[str, matching(r"[A-Za-z_][\w.]*", "is no name of a Luigi task. Write for example RootTask")] = (
        Field(description="name of the task")
    )
    params: Annotated[dict[str, Any], AfterValidator(check_parameters)] = Field(
        default_factory=dict,
        description="Luigi parameters, snake_case; `{date}` is the slot's date; true: a bare flag, false: absent",
    )


class Schedule(Part):
    """When a pipeline runs."""

    cron: Annotated[str, AfterValidator(check_cron)] = Field("0 3 * * 0-4", description="five fields, as in crontab(5)")
    timezone: Annotated[str, AfterValidator(check_timezone)] = Field(
        "UTC", description="the zone of those fields, whatever the host's own"
    )
    start_within: Duration = Field(6 * 3600, description="how late a slot may still be started")
    if_missed: Literal["latest", "all", "skip"] = Field(
        "latest",
        description="which slots that nothing started are made up for within `start_within`: the newest, all, or none",
    )


class Retries(Part):
    """What follows a slot's run that failed in a way that may pass."""

    count: int = Field(2, ge=0, le=100, description="how often it is tried again")
    delay: Duration = Field(600, description="how long after its end, at least")


class Credentials(Part):
    """How a pipeline gets its AWS credentials."""

    mode: Literal["role", "vended", "file"] = Field(
        "role",
        description="`role`: the host's instance role; `vended`: 15-minute credentials of `role_arn`, asked for by "
        "standpiped, for runs alone; `file`: keys from the vault, in a file",
    )
    role_arn: (
        Annotated[
            str,
            matching(
                r"arn:aws[a-z-]*:iam::\d{12}:role/[\w+=,.@/-]{1,512}",
                "is no role. Write for example arn:aws:iam::123456789012:role/arxlive",
            ),
        ]
        | None
    ) = Field(None, description="the role of `mode: vended`")
    region: Annotated[str, matching(r"[a-z]{2}(-[a-z]+)+-\d", "is no region. Write for example eu-west-1")] | None = (
        Field(None, description="the AWS region that the pipeline's SDK takes for its own")
    )

    @model_validator(mode="after")
    def _role_where_it_is_assumed(self) -> Credentials:
        """A role is assumed in one mode only."""
        if self.mode == "vended" and self.role_arn is None:
            raise ValueError("role_arn: is missing. Name the role that vended credentials are of")
        if self.mode != "vended" and self.role_arn is not None:
            raise ValueError("role_arn: is for mode: vended. Choose that mode, or leave it out")
        return self


class BudgetUse(Part):
    """A budget that a pipeline spends."""

    name: Name = Field(description="of a budget that `budgets` declares")
    per_run: Units | None = Field(None, description="the most that one run may spend of it, in its units; null: all")
    if_short: Literal["skip", "start"] = Field(
        "skip",
        description="what becomes of a run that will not find enough left: `skip`, or `start` it and let it stop early",
    )


class Budget(Part):
    """How much of an API may be spent in a calendar period."""

    name: Name = Field(description="2 to 22 of a-z, 0-9 and -, beginning with a letter")
    limit: Units = Field(description="how many units may be spent in a period")
    unit: Annotated[str, matching(r"[A-Za-z]{1,16}", "is no unit. Write for example call or USD")] = Field(
        "call", description="what is counted"
    )
    period: Literal["day", "week", "month"] = Field("month", description="which calendar period; weeks begin on Monday")
    timezone: Annotated[str, AfterValidator(check_timezone)] = Field(
        "UTC", description="the provider's zone, at whose midnight a period ends"
    )
    pace: Annotated[str, AfterValidator(check_pace)] | None = Field(
        None, description='the most calls in a time, over all who share it: "10/s", "1/3s", "100/m"'
    )
    prices: dict[Annotated[str, matching(r"[\w.-]{1,64}", "is no kind of call")], Units] = Field(
        default_factory=dict, description="units for each kind of call; without any, a call is one unit"
    )
    remaining_header: Annotated[str, matching(r"[A-Za-z0-9-]{1,64}", "is no name of a header")] | None = Field(
        None,
        description="the provider's header that says how many units are left of this very period; it may lower what is "
        "left here, never raise it",
    )

    @property
    def terms(self) -> spending.Terms:
        """Return it as the books take it."""
        return spending.Terms.of(self.model_dump(mode="json"))


class Resources(Part):
    """What a container may use."""

    memory: Annotated[Text, matching(r"[1-9]\d*[kmg]?", 'is no size. Write for example "512m" or "2g"')] = Field(
        "2g", description="memory"
    )
    cpus: float = Field(1, gt=0, description="CPUs")
    pids: int = Field(512, ge=16, description="processes and threads")


class Pipeline(Part):
    """A Luigi entry point with its code, image, schedule and credentials."""

    name: Name = Field(description="2 to 22 of a-z, 0-9 and -, beginning with a letter")
    state: Literal["present", "absent"] = Field("present", description="`absent` removes it from the hosts")
    source: Source | None = None
    python: Annotated[Text, AfterValidator(check_python)] = Field("3.13", description="Python version of the image")
    task: Task | None = None
    schedule: Schedule | None = Field(default_factory=Schedule, description="null: by hand only")
    user: Annotated[str, matching(r"[a-z_][a-z0-9_-]{0,31}", "is no name of an account")] = Field(
        "root", description="whose cron line it is"
    )
    timeout: Duration = Field(4 * 3600, description="how long a run may take")
    stop_grace: Duration = Field(300, description="how long Luigi may go on with its current task after a stop")
    retries: Retries = Field(
        default_factory=Retries,
        description="for slots alone; never after a stop, a timeout, a skip, or what only a converge can mend",
    )
    late_after: Duration | None = Field(
        None, description="somebody is told when a slot has not succeeded so long after its instant; null: never"
    )
    engine: Literal["compose"] = Field("compose", description="where runs execute")
    credentials: Credentials = Credentials()
    budgets: list[BudgetUse] = Field(default_factory=list, description="the budgets that it spends")
    resources: Resources = Resources()
    keep_images: int = Field(3, ge=1, description="how many images of it a host keeps")

    @model_validator(mode="after")
    def _complete(self) -> Pipeline:
        """Only what is to be absent may lack its code and its task."""
        if self.state == "present":
            for key in ("source", "task"):
                if getattr(self, key) is None:
                    raise ValueError(f"{key}: is missing. {MISSING[key]}")
        named = [use.name for use in self.budgets]
        if len(set(named)) < len(named):
            raise ValueError("budgets: names one twice. Leave out all but one")
        return self

    @property
    def needs_socket(self) -> bool:
        """Say whether its containers are to have a run socket."""
        return self.credentials.mode == "vended" or bool(self.budgets)


MISSING = {
    "source": "Say where the code is: source: {repo: https://git.example.org/name.git}",
    "task": "Say what Luigi runs: task: {module: arxlive.tasks, name: RootTask}",
}


class Declaration(Part):
    """All that is declared for a host."""

    pipelines: list[Pipeline]
    budgets: list[Budget] = Field(default_factory=list)


# Parts whose value may be, or hold, a secret, and what is said in its place.
SECRETIVE = {"repo": "the address", "source": "what is given", "credentials": "what is given"}


def problems(error: ValidationError, document: dict[str, Any]) -> list[str]:
    """Put pydantic's findings in the words of the declaration: pipeline, key, value, remedy."""
    return [_problem(finding, document) for finding in error.errors(include_url=False)]


def _problem(finding: Any, document: dict[str, Any]) -> str:
    where = list(finding["loc"])
    owner = "the declaration"
    if where[:1] in (["pipelines"], ["budgets"]) and len(where) > 1 and isinstance(where[1], int):
        item = document[where[0]][where[1]]
        name = item.get("name") if isinstance(item, dict) else None
        kind = where[0].removesuffix("s")
        owner = f"{kind} {name!r}" if isinstance(name, str) else f"{kind} number {where[1] + 1}"
        where = where[2:]
    key = ".".join(str(part) for part in where)
    return f"{owner}: {key}: {_told(finding, where)}" if key else f"{owner}: {_told(finding, where)}"


def _told(finding: Any, where: list[Any]) -> str:
    kind, value = finding["type"], finding["input"]
    # A git address may hold a password; it is not repeated, nor what may have one in it.
    may_hold_one = isinstance(value, dict | list) or "://" in str(value)
    itself = "what is given" if may_hold_one else json.dumps(value, default=str)
    shown = SECRETIVE.get(where[-1] if where else "", itself)
    if kind == "value_error":
        message = str(finding["ctx"]["error"])
        return f"{shown} {message}" if where else message
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(str(where[-1]), known_keys(where[:-1], finding["loc"][0]), n=1)
        return f"is no key that Standpipe knows. {f'Did you mean {near[0]}?' if near else 'Leave it out'}"
    if kind == "missing":
        return "is missing. Give it a value"
    if kind == "literal_error":
        return f"{shown} is not possible. Choose of {finding['ctx']['expected'].replace(' or ', ', ')}"
    return f"{shown} is wrong: {finding['msg'][0].lower()}{finding['msg'][1:]}"


def known_keys(where: list[Any], top: object = "pipelines") -> list[str]:
    """Name the keys that a part of a pipeline has, by the path of that part; or of what else is declared at the top."""
    parts: dict[str, type[Part]] = {
        "source": Source,
        "task": Task,
        "schedule": Schedule,
        "retries": Retries,
        "credentials": Credentials,
        "budgets": BudgetUse,
        "resources": Resources,
    }
    named = [part for part in where if not isinstance(part, int)]
    whole = Budget if top == "budgets" else Pipeline
    return list((parts.get(str(named[-1]), whole) if named else whole).model_fields)


def luigi_arguments(pipeline: Pipeline, day: date) -> list[str]:
    """Make Luigi's command line of a pipeline's task for one date.

    `snake_case` becomes `--kebab-case`; true is the bare flag, false is absent; lists and dicts are
    JSON; `{date}` in a text is the date, as YYYY-MM-DD.
    """
    if pipeline.task is None:
        raise ValueError(f"pipeline {pipeline.name} has no task")
    arguments = ["--module", pipeline.task.module, pipeline.task.name]
    for name, value in pipeline.task.params.items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            arguments.append(flag)
        elif value is not False:
            text = value if isinstance(value, str) else json.dumps(value)
            # In one word: a value that begins with a dash is no flag.
            arguments.append(f"{flag}={text.replace('{date}', day.isoformat())}")
    return arguments
