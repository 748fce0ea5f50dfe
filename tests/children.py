"""What tests tell the programs that they start."""

from __future__ import annotations

import os
from collections.abc import Mapping

__all__ = ("untraced",)


def untraced(env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """For a program that Ctrl-C is to end. Coverage would trace it too, and has locks of its own, which a
    KeyboardInterrupt at the wrong moment leaves locked (``Collector.lock_data``): the program would hang."""
    return {name: value for name, value in env.items() if not name.startswith("COVERAGE_")}
