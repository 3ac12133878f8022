"""What may be told of builds that were given secrets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from standpipe import build_secrets


def failures(results: list[dict[str, Any]], given: dict[str, Any]) -> list[str]:
    """Return what is to be said of each result of a loop over pipelines that failed, without a secret."""
    secrets = build_secrets.read(given)
    told = []
    for result in results:
        if result.get("skipped") or "image" in result or result.get("rc") == 0:
            continue
        name = result["item"]["name"]
        mine = secrets.get(name, build_secrets.NONE)
        said = [build_secrets.masked(str(result.get("msg") or ""), mine)] if "rc" not in result else []
        said += [
            build_secrets.failure(str(result.get(key) or ""), mine) for key in ("stdout", "stderr", "module_stderr")
        ]
        told.append(f"pipeline '{name}': " + "\n".join(text for text in said if text.strip()))
    return told


def unseen(results: list[dict[str, Any]]) -> list[str]:
    """Return what scans say that they could not look into, or for: the scan has masked it."""
    said = ((result["item"]["name"], str(result.get("stderr") or "").splitlines()) for result in results)
    return [f"pipeline '{name}': {line}" for name, lines in said for line in lines if "could not be looked" in line]


def values(given: dict[str, Any]) -> list[str]:
    """Return what is secret in the secrets of one build."""
    return sorted(build_secrets.read({"": given})[""].values())


class FilterModule:
    """The filters, as Ansible finds them."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name them."""
        return {"pipeline_failures": failures, "pipeline_secret_values": values, "pipeline_unseen": unseen}
