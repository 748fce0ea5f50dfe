"""The command ``distlock``. Typer and rich are imported when it runs, not before: the demo's workers live here too."""

from __future__ import annotations

import sys

__all__ = ("main",)


def main() -> None:
    """Runs the command line and exits."""
    try:
        from . import _app, bench, demo, idempotency, look, release, run, torture  # noqa: F401 - each adds its command
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("distlock"):
            raise
        print(f"distlock: {error.name} is not installed; run: pip install 'pydistlock[cli]'", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(_app.main())
