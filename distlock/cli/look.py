"""``distlock inspect`` and ``distlock ls``: who holds which lock, and who waits for it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from distlock import BackendError, Holder, Inspection, Manager

from ._app import AsJson, Debug, Key, Namespace, Url, app, printable, say, store
from ._shown import add_waiters, console, details, fields, line_by_line, moment, seconds, table_of, who

__all__ = ("as_dict", "inspect", "ls", "portrait")


@app.command(
    epilog="Examples:\n\n`distlock inspect orders:42`\n\n"
    "`distlock inspect orders:42 --json --url redis://localhost:6379/0 | jq .holder.host`"
)
def inspect(
    key: Key, url: Url = None, namespace: Namespace = None, as_json: AsJson = False, debug: Debug = False
) -> None:
    """Show who holds a lock and who waits for it, in order.

    The exit status is 0 whether it is held or not.
    """
    with store(url, namespace) as locks:
        found = locks.inspect(key)
    if as_json:
        print(json.dumps(as_dict(found)))
    else:
        console().print(portrait(found))


@app.command(
    epilog="Examples:\n\n`distlock ls`\n\n`distlock ls orders: --watch --interval 0.5`\n\n"
    "`distlock ls --json | jq -r '.[] | select(.waiters | length > 10) | .key'`"
)
def ls(
    prefix: Annotated[
        str, typer.Argument(metavar="[PREFIX]", help="Only those whose names start so.", show_default=False)
    ] = "",
    url: Url = None,
    namespace: Namespace = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on until Ctrl-C, in place.")] = False,
    interval: Annotated[float, typer.Option(min=0.1, max=86400, help="Seconds between two looks.")] = 2.0,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """List the locks in use.

    With `--watch` and `--json` together, each look is one line.
    """
    with store(url, namespace) as locks:
        if not watch:
            _print(_listed(locks, prefix), as_json)
        elif as_json or not sys.stdout.isatty():
            while True:
                try:
                    _print(_listed(locks, prefix), as_json)
                except BackendError as error:
                    say(error)
                time.sleep(interval)
        else:
            _watch(locks, prefix, interval)


def _watch(locks: Manager, prefix: str, interval: float) -> None:
    """An outage is shown, and outlived."""
    seen: Sequence[Inspection] = []
    with Live(console=console(), screen=True, auto_refresh=False) as live:
        while True:
            said = Text(f"{locks.address}, every {interval:g} s; Ctrl-C ends it", style="dim")
            try:
                seen = _listed(locks, prefix)
            except BackendError as error:
                said = Text(printable(f"as it was before: {error}"), style="bold red")
            live.update(
                Group(Text(f"{time.strftime('%H:%M:%S')}  locks in use: {len(seen)}"), said, _table(seen)), refresh=True
            )
            time.sleep(interval)


def _listed(locks: Manager, prefix: str) -> Sequence[Inspection]:
    return sorted(locks.list(prefix), key=lambda found: found.key)


def _print(listed: Sequence[Inspection], as_json: bool) -> None:
    if as_json:
        print(json.dumps([as_dict(found) for found in listed]), flush=True)
    elif listed:
        console().print(_table(listed))
    else:
        print("no locks in use", flush=True)


def _table(listed: Sequence[Inspection]) -> Table:
    table = table_of(("lock", "held by"), ("at", "for", "ttl", "token", "waiting"))
    for found in listed:
        holder = found.holder
        row = [found.key, "-", "", "", "", "", str(len(found.waiters))]
        if holder is not None:
            row[1:6] = (
                who(holder),
                holder.site,
                seconds(holder.held_for),
                seconds(holder.ttl),
                str(holder.token or ""),
            )
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table


def portrait(found: Inspection) -> Table:
    """One lock, line by line."""
    lines, add = line_by_line()
    add("lock", found.key)
    holder = found.holder
    add("held by", "nobody" if holder is None else who(holder))
    if holder is not None:
        for name, value in details(holder):
            add(name, value)
        if holder.since is not None:
            add("since", f"{moment(holder.since)}, {seconds(holder.held_for)}")
        if holder.ttl is not None:
            add("ttl", f"{seconds(holder.ttl)} left, if it is not renewed")
        add("token", holder.token)
    add_waiters(add, found.waiters)
    return lines


def as_dict(found: Inspection) -> dict[str, Any]:
    """For JSON."""
    holder = found.holder
    shown: dict[str, Any] | None = None
    if isinstance(holder, Holder):
        shown = {**fields(holder), "since": holder.since}
    return {"key": found.key, "holder": shown, "waiters": [fields(waiter) for waiter in found.waiters]}
