"""What all commands share: the options, the way to the store, and how errors end."""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Annotated, Any, Optional

import typer

from distlock import (
    BackendError,
    ConfigurationError,
    DistLockError,
    Manager,
    Unsupported,
    __version__,
    connect,
)

__all__ = (
    "BUSY",
    "INTERRUPTED",
    "LOST",
    "NOTHING_DONE",
    "UNAVAILABLE",
    "USAGE",
    "AsJson",
    "Debug",
    "Key",
    "Namespace",
    "Url",
    "app",
    "debugging",
    "keys_in_use",
    "main",
    "printable",
    "say",
    "status_of",
    "store",
)

# As sysexits(3) has them, but for LOST.
USAGE, UNAVAILABLE, LOST, INPUT_OUTPUT, BUSY = 64, 69, 70, 74, 75
NOTHING_DONE = 1
INTERRUPTED = 130
"""What a shell reports of a program that Ctrl-C ended: 128 + SIGINT."""

# Of click, which newer releases of typer have within themselves.
_UsageError: Any = typer.BadParameter.__mro__[1]

log = logging.getLogger("distlock")

app: typer.Typer = typer.Typer(
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Distributed locks: run a command under one, see who holds which, or try `distlock demo`.",
)

# Optional, not `| None`: typer reads them at run time, on 3.10 too.
Url = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--url", envvar="DISTLOCK_URL", help="The store. Files of this machine if not given."),
]
Namespace = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--namespace", envvar="DISTLOCK_NAMESPACE", help="Keeps the locks of different services apart."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


def _show_more(wanted: bool) -> bool:
    if wanted:
        log.setLevel(logging.DEBUG)
    return wanted


Debug = Annotated[
    bool, typer.Option("--debug", help="Show where an error comes from.", is_eager=True, callback=_show_more)
]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"distlock {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
    debug: Debug = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help(), end="")
        raise typer.Exit(USAGE)


def debugging() -> bool:
    """More is wanted than one line."""
    return log.level == logging.DEBUG


def printable(text: str) -> str:
    """What others have stored must not command the terminal that shows it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def say(message: object) -> None:
    """One line on stderr."""
    with suppress(OSError):  # nobody listens, or the disk is full: no reason to leave anything undone
        print(f"distlock: {printable(' '.join(str(message).split()))}", file=sys.stderr, flush=True)


def keys_in_use(context: typer.Context, incomplete: str) -> list[str]:
    """For completion, which must neither last nor complain."""
    try:
        with store(context.params.get("url"), context.params.get("namespace"), op_timeout=1.0) as locks:
            return [found.key for found in locks.list(incomplete)]
    except Exception:  # noqa: BLE001
        return []


Key = Annotated[
    str,
    typer.Argument(metavar="KEY", help="The name of the lock.", show_default=False, autocompletion=keys_in_use),
]


@contextmanager
def store(url: str | None, namespace: str | None, *, op_timeout: float = 5.0) -> Iterator[Manager]:
    """The locks that the options name; closed at the end."""
    with connect(url or "file://", namespace=namespace, op_timeout=op_timeout) as locks:
        if locks.guarantees.scope == "process":
            raise ConfigurationError(
                f"{locks.address} would exclude nobody here: each program has a memory of its own; give --url"
                " redis://… or file:///folder"
            )
        yield locks


def main() -> int:
    """Runs the command line. The exit status."""
    _mend_stdio()
    logging.basicConfig(format="distlock: %(message)s", level=logging.WARNING)
    logging.raiseExceptions = False
    try:
        return app(prog_name="distlock", standalone_mode=False) or 0
    except _UsageError as error:
        where = f" (see: {error.ctx.command_path} --help)" if error.ctx is not None else ""
        say(f"{error.format_message()}{where}")
        return USAGE
    except typer.Abort as end:
        return INTERRUPTED if isinstance(end.__context__, KeyboardInterrupt) else NOTHING_DONE
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # as `head` does it
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 128 + signal.SIGPIPE
    except (DistLockError, OSError, ValueError) as error:
        if debugging():
            traceback.print_exc()
        say(error)
        return status_of(error)


def status_of(error: Exception) -> int:
    """The exit status that says what kind of error it was."""
    if isinstance(error, BackendError):
        return UNAVAILABLE
    if isinstance(error, OSError):
        return INPUT_OUTPUT
    return USAGE if isinstance(error, (ConfigurationError, Unsupported, ValueError)) else 1


def _mend_stdio() -> None:
    """What was closed is /dev/null, else it would be the first file that is opened; and every name can be printed."""
    for fd, name, mode in (0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w"):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
            os.set_inheritable(fd, True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(fd, mode, closefd=False))  # noqa: SIM115 - for as long as the program lasts
    for stream in sys.stdout, sys.stderr:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
