"""The filters by which the role asks src/standpipe/fleet.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from standpipe import fleet


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name the filters."""
        return {
            "standpipe_stock": fleet.stock,
            "standpipe_plan": fleet.plan,
            "standpipe_differing": fleet.differing,
            "standpipe_digests": fleet.digests,
            "standpipe_words": fleet.words,
        }
