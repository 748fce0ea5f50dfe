"""What the command understands, and how it ends."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer
from rich.console import Console

from distlock import ConfigurationError, DistLockError, __version__

from . import _report
from ._demo import Demo

__all__ = ("run",)

INTERRUPTED = 130  # 128 + SIGINT, as shells have it
REFUSED = 2

app = typer.Typer(name="distlock", no_args_is_help=True, add_completion=False, rich_markup_mode=None)


def run(argv: list[str]) -> int:
    """Exit status; one line on stderr for what went wrong."""
    try:
        return int(app(argv, standalone_mode=False) or 0)
    except (KeyboardInterrupt, typer.Abort):
        return _failed("interrupted", INTERRUPTED)
    except ConfigurationError as error:
        return _failed(str(error), REFUSED, error, argv)
    except DistLockError as error:
        return _failed(str(error), 1, error, argv)
    except Exception as error:
        show = getattr(error, "show", None)  # what the parser of arguments says of itself
        if show is None:
            raise
        show()
        return int(getattr(error, "exit_code", REFUSED))


def _failed(what: str, status: int, error: Exception | None = None, argv: list[str] | None = None) -> int:
    if error is not None and argv is not None and "--debug" in argv:
        raise error
    print(f"distlock: {what}", file=sys.stderr)
    return status


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def distlock(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Distributed locks that never lie about who holds what."""


@app.command(epilog="Example: distlock demo --url redis://localhost:6379/0")
def demo(
    url: Annotated[
        str | None, typer.Option(envvar="DISTLOCK_URL", help="Where the locks live; default: files of this machine.")
    ] = None,
    stock: Annotated[int, typer.Option(min=1, max=100_000, help="How many items there are to sell.")] = 100,
    workers: Annotated[int, typer.Option(min=2, max=64, help="How many processes sell them.")] = 4,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of the table.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """A flash sale: worker processes race for a small stock, first without a lock, then with it.

    Exits with 1 if anything was oversold under the lock.
    """
    progress = _report.Progress(stock, Console(stderr=True))
    try:
        result = Demo(url, stock, workers).run(progress)
    finally:
        progress.stop()
    if as_json:
        print(json.dumps(result.as_dict()))
    else:
        _report.show(result, Console())
    if not result.sound:
        raise typer.Exit(1)
