"""Notes each change of a play, real or predicted by check mode, one JSON object a line, in $STANDPIPE_CHANGES."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ansible import context
from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: changes
type: notification
short_description: Notes each change
description: Appends each change of a play, real or predicted, to the file that STANDPIPE_CHANGES names.
"""


class CallbackModule(CallbackBase):  # type: ignore[misc]  # ansible is untyped
    """Appends to the file, so that a check and the converge after it can be held against each other."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "changes"
    CALLBACK_NEEDS_ENABLED = True

    def v2_runner_on_ok(self, result: Any) -> None:
        """Note what a task changed: of a loop, each round of it."""
        returned = result._result
        for one in returned.get("results", [returned]):
            if one.get("changed"):
                change = {
                    "check": bool(context.CLIARGS.get("check")),
                    "host": result._host.get_name(),
                    "task": result._task.get_name(),
                    "what": what(one),
                }
                with Path(os.environ["STANDPIPE_CHANGES"]).open("a") as file:
                    file.write(json.dumps(change) + "\n")


def what(result: dict[str, Any]) -> str:
    """Return what a debug task told, or the round of a loop, or the name of packages or of a service."""
    arguments = result.get("invocation", {}).get("module_args", {})
    named = result.get("msg") if not arguments else result.get("_ansible_item_label") or arguments.get("name")
    return ", ".join(named) if isinstance(named, list) else str(named or "")
