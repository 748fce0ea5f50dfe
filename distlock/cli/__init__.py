"""The command ``distlock``. Typer and rich are imported when it runs, not before: the demo's workers live here too."""

from __future__ import annotations

import sys

__all__ = ("main",)

INTERRUPTED = 130
"""What a shell reports of a program that Ctrl-C ended: 128 + SIGINT."""


def main() -> None:
    """Runs the command line and exits."""
    try:
        try:
            from .demo import app
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("distlock"):
                raise
            print(f"distlock: {error.name} is not installed; run: pip install 'pydistlock[cli]'", file=sys.stderr)
            sys.exit(1)
        app(prog_name="distlock")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
