"""The steps of standpipe's own source; and what has a process die at one, or tell of each that it passes.

They are what a run's story calls, from who starts, adopts, stops, backfills or catches it up on.
"""

from __future__ import annotations

import ast
import inspect
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType, ModuleType
from typing import Any

from standpipe import backfill, catch_up, runner
from standpipe.engines.compose import ComposeEngine
from standpipe.ledger import Ledger
from standpipe.logs import follow, receipts, spool

TOLD = (runner, follow, catch_up, backfill, receipts)  # whose functions are the story
BEGINNINGS = (
    (runner, "run"),
    (runner, "stop"),
    (runner, "reconcile"),
    (runner, "settle_for_a_look"),
    (runner, "abandoned"),
    (catch_up, "catch_up"),
    (catch_up, "work_through"),  # which it has a child do
    (backfill, "backfill"),
    (receipts, "confirm"),
)
# By the names that they have there.
OBJECTS = {"ledger": Ledger, "own": Ledger, "engine": ComposeEngine, "file": spool.Spool}

# What changes nothing: to be killed before it or after it is to be killed after what came before it.
COMPUTES = {
    "paths.spool", "paths.sbom", "paths.output", "paths.written_within", "spool.place", "spool.closed_with",
    "report.ended",
    "slots.slot_date", "slots.newest_due", "slots.between", "ledger.instant", "ledger.timestamp",
    "runner.instant", "runner.luigi_arguments", "runner.outcome_of", "runner.retry_at", "runner.exit_code_of",
    "runner.is_overdue", "runner.was_ended_by_the_host", "runner.boot_identity", "runner.not_started",
    "runner.of_the_disk", "runner.stop_requests", "runner.unhurried", "follow.instant", "follow.joined",
    "backfill.shown", "receipts.instant", "receipts.is_overdue", "receipts.is_to_be_held",
    "catch_up.is_too_late", "catch_up.plan", "catch_up.holder_at", "catch_up.timestamp",
}  # fmt: skip
# What only looks: to be killed after it is to be killed before it.
LOOKS = {
    "run", "running", "unfinished", "registered", "has_slot", "succeeded", "trouble", "unconfirmed", "confirmed",
    "newest_confirmed", "seen", "retries", "recorded", "missed_too_early", "newest_started", "holders",
    "find", "holder", "sharing_lock", "containers", "log", "names", "load", "settings", "kept", "left", "begins",
    "frames", "end_of", "is_closed", "first_and_last", "of", "holder_of_lock", "has_collector", "has_living_runner",
}  # fmt: skip
# Functions of receipts.py, to which lose-lines sees.
OF_A_LOG_THAT_IS_SENT_AGAIN = {"send_again_in_time", "send_again", "make_whole"}

Step = tuple[str, str, Any, str]  # the module and the function in which it is called; whose it is, and its name


def whose(owner: Any) -> str:
    """Name a module or a class, as the tables above do."""
    return str(owner.__name__).rpartition(".")[2]


def called(module: ModuleType, call: ast.Call) -> tuple[Any, str] | None:
    """Return what a call in a module calls: a function of standpipe's, or a method of the story's objects."""
    owner: Any
    if isinstance(call.func, ast.Name):
        owner, name = module, call.func.id
    elif isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name):
        base, name = call.func.value.id, call.func.attr
        if module is receipts and base == "receipts":
            owner = receipts.Receipts
        else:
            owner = OBJECTS.get(base) or getattr(module, base, None)
    else:
        return None
    method = owner in (*OBJECTS.values(), receipts.Receipts)
    function = getattr(owner, name, None)
    known = method or (inspect.ismodule(owner) and owner.__name__.startswith("standpipe"))
    ours = inspect.isfunction(function) and function.__module__.startswith("standpipe")
    return (owner, name) if known and ours else None


def story() -> list[Step]:
    """Return each step once for each function that takes it: what is called there and has itself no steps."""
    calls: dict[tuple[str, str], list[tuple[Any, str]]] = {}
    todo = [(module, getattr(module, name)) for module, name in BEGINNINGS]
    while todo:
        module, function = todo.pop()
        key = (module.__name__, function.__name__)
        if key in calls:
            continue
        tree = ast.parse(inspect.getsource(inspect.unwrap(function)))
        found = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        inside = [called(module, node) for node in sorted(found, key=lambda node: (node.lineno, node.col_offset))]
        named = [step for step in inside if step and f"{whose(step[0])}.{step[1]}" not in COMPUTES]
        calls[key] = list(dict.fromkeys(named))
        todo += [(home, inner) for home, inner in map(defined, calls[key]) if home in TOLD]
    return [
        (module, function, owner, name)
        for (module, function), inside in calls.items()
        for owner, name in inside
        if not (module == receipts.__name__ and function in OF_A_LOG_THAT_IS_SENT_AGAIN)
        if not calls.get((getattr(owner, name).__module__, name))
    ]


def defined(step: tuple[Any, str]) -> tuple[ModuleType | None, Any]:
    """Return the module that a step's function is defined in, and the function; no module where it is a method."""
    owner, name = step
    function = getattr(owner, name)
    return (sys.modules[function.__module__] if inspect.ismodule(owner) else None), function


def shown(step: Step) -> str:
    """Write a step for people."""
    return f"{step[1]}: {whose(step[2])}.{step[3]}"


def caller(frame: FrameType) -> tuple[str, str]:
    """Return the module and the function of a frame, whatever is nested in it."""
    return frame.f_globals["__name__"], frame.f_code.co_qualname.partition(".")[0]


def deadly(step: Step, when: str, to: int) -> Callable[[], None]:
    """Return what has a process kill itself at a step, and say so before: it may be a child of who was started."""
    module, function, owner, name = step
    real = getattr(owner, name)

    def dies() -> None:
        os.write(to, b"killed")
        os.kill(os.getpid(), signal.SIGKILL)

    def kills(*arguments: Any, **named: Any) -> Any:
        here = caller(sys._getframe(1)) == (module, function)
        if here and when == "before":
            dies()
        result = real(*arguments, **named)
        if here:
            dies()
        return result

    return lambda: setattr(owner, name, kills)


def tracing(steps: list[Step], to: int) -> Callable[[], None]:
    """Return what has a process write down the steps that it passes."""
    numbers = {(step[0], step[1], id(step[2]), step[3]): number for number, step in enumerate(steps)}

    def traced(owner: Any, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def told(*arguments: Any, **named: Any) -> Any:
            number = numbers.get((*caller(sys._getframe(1)), id(owner), name))
            if number is not None:
                os.write(to, b"%d\n" % number)
            return real(*arguments, **named)

        return told

    def arm() -> None:
        for owner, name in {(step[2], step[3]): None for step in steps}:
            setattr(owner, name, traced(owner, name, getattr(owner, name)))

    return arm
