"""``distlock demo``: a flash sale, first without a lock and then with one."""

from __future__ import annotations

import json
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from ._app import AsJson, Debug, app, debugging, say, store
from ._race import Outcome, WorkerFailed, race, temporary_folder

__all__ = ("demo",)


@app.command(
    epilog="Examples:\n\n`distlock demo`\n\n`distlock demo --url redis://localhost:6379/0 --stock 100 --workers 8`"
)
def demo(
    url: Annotated[
        Optional[str],  # noqa: UP045 - typer reads it at run time, on 3.10 too
        typer.Option(envvar="DISTLOCK_URL", help="The store of the lock; files in a temporary folder if not given."),
    ] = None,
    as_json: AsJson = False,
    stock: Annotated[int, typer.Option(min=1, max=100_000, help="How many there are to sell.")] = 50,
    workers: Annotated[int, typer.Option(min=2, max=64, help="How many processes sell them.")] = 4,
    debug: Debug = False,
) -> None:
    """Sell a small stock from several processes at once: oversold without a lock, never with it."""
    began = time.monotonic()
    for number in (signal.SIGTERM, signal.SIGHUP):  # what was begun is ended, as by Ctrl-C
        signal.signal(number, signal.default_int_handler)
    try:
        with temporary_folder() as folder:
            url = url or (folder / "locks").as_uri()
            address = _usable(url)
            unlocked, locked = _both(folder, url, stock, workers)
    except WorkerFailed as error:
        if debugging():
            print(error.traceback, end="", file=sys.stderr)
        say(error)
        raise typer.Exit(1) from None
    if as_json:
        print(json.dumps(_report(address, unlocked, locked, time.monotonic() - began)))
    else:
        _show(address, unlocked, locked)
    if locked.sold != stock or not locked.tokens_in_order:
        raise typer.Exit(1)


def _usable(url: str) -> str:
    """How to call the store without secrets, if processes can share it and it can be reached."""
    with store(url, None) as locks:
        locks.inspect("distlock-demo")  # better now than from each worker
        return locks.address


def _both(folder: Path, url: str, stock: int, workers: int) -> tuple[Outcome, Outcome]:
    key = f"distlock-demo:{uuid.uuid4().hex}"
    with _progress(stock) as begin:
        unlocked = race(folder / "unlocked", stock, workers, begin("without a lock"))
        locked = race(folder / "locked", stock, workers, begin("with the lock"), url=url, key=key)
    return unlocked, locked


@contextmanager
def _progress(stock: int) -> Iterator[Callable[[str], Callable[[int], object]]]:
    """Bars on stderr, if that is a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:  # not by Progress(disable=True): early versions of rich end a line even so
        yield lambda description: lambda sold: None
        return
    columns = TextColumn("{task.description:>14}"), BarColumn(), MofNCompleteColumn(), TextColumn("sold")
    with Progress(*columns, console=console, transient=True) as bars:

        def begin(description: str) -> Callable[[int], object]:
            task = bars.add_task(description, total=stock)
            return lambda sold: bars.update(task, completed=sold)

        yield begin


def _report(address: str, unlocked: Outcome, locked: Outcome, seconds: float) -> dict[str, object]:
    return {
        "stock": locked.stock,
        "workers": locked.workers,
        "url": address,
        "unlocked": {
            "sold": unlocked.sold,
            "oversold": unlocked.oversold,
            "fairness": round(unlocked.fairness, 3),
            "seconds": round(unlocked.seconds, 3),
        },
        "locked": {
            "sold": locked.sold,
            "oversold": locked.oversold,
            "handoffs_per_s": round(locked.handoffs_per_s, 1),
            "fairness": round(locked.fairness, 3),
            "tokens_in_order": locked.tokens_in_order,
            "seconds": round(locked.seconds, 3),
        },
        "seconds": round(seconds, 3),
    }


def _show(address: str, unlocked: Outcome, locked: Outcome) -> None:
    table = Table(title=f"{locked.stock} to sell, {locked.workers} processes, {address}", title_justify="left")
    table.add_column()
    table.add_column("without a lock", justify="right")
    table.add_column("with the lock", justify="right")
    table.add_row("sold", str(unlocked.sold), str(locked.sold))
    table.add_row(
        "oversold", _judged(unlocked.oversold, not unlocked.oversold), _judged(locked.oversold, not locked.oversold)
    )
    table.add_row("hand-offs per second", "-", f"{locked.handoffs_per_s:.0f}")
    table.add_row("fairness (Jain, 1 is even)", f"{unlocked.fairness:.2f}", f"{locked.fairness:.2f}")
    table.add_row("tokens in order", "-", _judged("yes" if locked.tokens_in_order else "no", locked.tokens_in_order))
    table.add_row("seconds", f"{unlocked.seconds:.2f}", f"{locked.seconds:.2f}")
    Console().print(table)


def _judged(value: object, good: bool) -> str:
    return f"[{'green' if good else 'bold red'}]{value}[/]"
