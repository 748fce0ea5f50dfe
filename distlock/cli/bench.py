"""``distlock bench``: backends and topologies compared on the servers at hand."""

from __future__ import annotations

import importlib
import json
import math
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from distlock import ConfigurationError

from ._app import BUSY, INTERRUPTED, AsJson, Debug, Namespace, app, say, status_of

# The kit itself is imported when it is used: no other command has to wait for it.
if TYPE_CHECKING:
    from distlock.bench import Outcome, Plan

__all__ = ("bench",)

COLOURS = ("sync", "asyncio", "trio")
WIDE = 200
"""Columns of a table that is not for a terminal."""

HELP = """Compare backends and topologies on your own servers.

Every workload runs on every store in turns, after a warm-up, and beside it the least that any lock on that server
costs, so that a noisy machine disturbs all of them alike. A URL of SQLAlchemy stands for row locks of a database
(`SELECT … FOR UPDATE`). All names begin with `distlock-bench/`, and nothing is left of them."""

EPILOG = """Examples:

`distlock bench redis://localhost:6379/0 etcd://localhost:2379 --plot bench.html`

`distlock bench redis://h1/0 redlock://h1,h2,h3/0 postgresql+psycopg://me@h4/app --only capacity --pid 3=4242`

`distlock bench file:///tmp/locks --quick --json`"""


@app.command(help=HELP, epilog=EPILOG)
def bench(
    urls: Annotated[
        Optional[list[str]],  # noqa: UP045 - typer reads it at run time, on 3.10 too
        typer.Argument(metavar="[URL]...", envvar="DISTLOCK_URL", help="The stores; a temporary folder if none."),
    ] = None,
    only: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(metavar="WORKLOAD", help="One of those that --list names. May be repeated."),
    ] = None,
    list_workloads: Annotated[bool, typer.Option("--list", help="Name the workloads, and do nothing else.")] = False,
    seconds: Annotated[float, typer.Option(min=0.01, max=3600, help="Of each turn.")] = 0.5,
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="Turns of each workload on each store.")] = 5,
    contenders: Annotated[str, typer.Option(metavar="N,..", help="How many want the same lock.")] = "1,2,4,8",
    colour: Annotated[str, typer.Option(metavar="|".join(COLOURS), help="What contenders are.")] = "sync",
    quick: Annotated[
        bool, typer.Option("--quick", help="Only see that all of it runs: the figures say nothing.")
    ] = False,
    pid: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(metavar="N=PID", help="The server process of the N-th URL, for its CPU and memory. Repeatable."),
    ] = None,
    namespace: Namespace = None,
    as_json: AsJson = False,
    plot: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="FILE.svg|html", dir_okay=False, help="Draw distributions, throughput and hand-offs."),
    ] = None,
    debug: Debug = False,
) -> None:
    from distlock.bench import WORKLOADS, Plan

    if list_workloads:
        print("\n".join(f"{work.name:12} {work.what}" for work in WORKLOADS.values()))
        return
    for number in (signal.SIGTERM, signal.SIGHUP):  # what was begun is ended and cleaned, as by Ctrl-C
        signal.signal(number, signal.default_int_handler)
    unknown = [name for name in only or () if name not in WORKLOADS]
    if unknown:
        raise typer.BadParameter(f"{unknown[0]!r} is none of {', '.join(WORKLOADS)}", param_hint="--only")
    if not math.isfinite(seconds):
        raise typer.BadParameter("a finite number of seconds", param_hint="--seconds")
    _check_colour(colour)
    with ExitStack() as stack:
        if not urls:
            urls = [Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="distlock-bench-"))).resolve().as_uri()]
        plan = Plan(
            tuple(urls),
            tuple(name for name in WORKLOADS if not only or name in only),
            os.urandom(6).hex(),
            namespace=namespace,
            colour=colour,
            contenders=_numbers(contenders),
            rounds=rounds,
            seconds=seconds,
        )
        plan = replace(plan.quick() if quick else plan, pids=_pids(pid or (), len(urls)))
        _compare(plan, plot, as_json=as_json)


def _check_colour(colour: str) -> None:
    if colour not in COLOURS:
        raise typer.BadParameter(f"{colour!r} is none of {', '.join(COLOURS)}", param_hint="--colour")
    if colour == "trio":
        try:
            importlib.import_module("trio")
        except ModuleNotFoundError as error:
            raise ConfigurationError(f"{error.name} is not installed; run: pip install trio") from error


def _numbers(text: str) -> tuple[int, ...]:
    words = text.split(",")
    if not all(word.isdecimal() and 0 < int(word) <= 1000 for word in words):
        raise typer.BadParameter(f"{text!r} is no list of numbers from 1 to 1000", param_hint="--contenders")
    return tuple(sorted({int(word) for word in words}))


def _pids(texts: Sequence[str], urls: int) -> dict[int, int]:
    found = {}
    for text in texts:
        place, _, number = text.partition("=")
        if not (place.isdecimal() and number.isdecimal() and 0 < int(place) <= urls):
            raise typer.BadParameter(f"{text!r} is not N=PID, where N is the place of a URL", param_hint="--pid")
        found[int(place)] = int(number)
    return found


def _compare(plan: Plan, drawing: Path | None, *, as_json: bool) -> None:
    """Runs it, and says what came of it. Ends by an exit status unless all was well."""
    from distlock.bench import KeysInUse, bench
    from distlock.bench._plot import check_plot, plot

    if drawing is not None:
        check_plot(drawing)
        drawing.touch()  # if it cannot be written, now is the time to say so
    try:
        with _progress() as tell:
            outcome = bench(plan, tell)
    except KeysInUse as error:
        say(error)
        raise typer.Exit(BUSY) from None
    _show(outcome, as_json=as_json)
    if drawing is not None and outcome.cells:
        plot(outcome, drawing)
    for failure in outcome.failures:
        say(f"{failure.where}: {failure.error}")
    if outcome.interrupted:
        say("interrupted: this is what was done until then")
        raise typer.Exit(INTERRUPTED)
    if outcome.failures:
        raise typer.Exit(status_of(outcome.failures[0].error))


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], object]]:
    """A bar on stderr, if that is a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda doing, done, total: None
        return
    columns = TextColumn("{task.description:32}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("starting", total=None)
        yield lambda doing, done, total: progress.update(task, description=doing, completed=done, total=total)


def _show(outcome: Outcome, *, as_json: bool) -> None:
    from distlock.bench._report import as_json as as_dict, tables

    if as_json:
        print(json.dumps(as_dict(outcome)))
    elif outcome.cells:
        Console(width=None if sys.stdout.isatty() else WIDE, highlight=False).print(tables(outcome))
