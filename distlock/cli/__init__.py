"""The command ``distlock``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ("main",)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit status."""
    try:
        from ._app import run
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("distlock"):
            raise
        print(
            f"distlock: {error.name} is not installed; the command needs: pip install 'pydistlock[cli]'",
            file=sys.stderr,
        )
        return 1
    return run(sys.argv[1:] if argv is None else list(argv))
