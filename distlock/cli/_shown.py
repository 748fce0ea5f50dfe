"""How the commands show what a store knows: on a terminal and as JSON."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from distlock import Waiter

from ._app import printable

__all__ = (
    "add_waiters",
    "console",
    "details",
    "fields",
    "line_by_line",
    "moment",
    "seconds",
    "table_of",
    "who",
)

WIDE = 10_000
"""Columns of a table that is not for a terminal: nothing is cut off there."""


def console() -> Console:
    return Console(width=None if sys.stdout.isatty() else WIDE, highlight=False)


def table_of(folded: Sequence[str], unbroken: Sequence[str]) -> Table:
    """With these columns, of which the latter are not broken into lines."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for title in folded:
        table.add_column(title, overflow="fold")
    for title in unbroken:
        table.add_column(title, no_wrap=True, justify="left" if title in ("at", "token") else "right")
    return table


def line_by_line() -> tuple[Table, Callable[[str, object], None]]:
    """A table of names and values, and the way to add one."""
    lines = Table.grid(padding=(0, 2))
    lines.add_column(style="dim")
    lines.add_column(overflow="fold")
    return lines, lambda name, value: lines.add_row(Text(printable(name)), Text(printable(str(value))))


def add_waiters(add: Callable[[str, object], None], waiters: Sequence[Waiter]) -> None:
    for place, waiter in enumerate(waiters, 1):
        add("waiting" if place == 1 else "", f"{place}. {who(waiter)}" + (f" ({waiter.site})" if waiter.site else ""))


def moment(unix_time: float) -> str:
    """In the time zone of this machine."""
    return f"{datetime.fromtimestamp(unix_time, timezone.utc).astimezone():%Y-%m-%d %H:%M:%S %z}"


def details(waiter: Waiter) -> list[tuple[str, str]]:
    named = [("at", waiter.site), ("in", waiter.where), ("owner", waiter.owner), *waiter.metadata.items()]
    return [(name, value) for name, value in named if value]


def who(waiter: Waiter) -> str:
    return f"{waiter.host} pid {waiter.pid}" if waiter.pid else waiter.owner


def seconds(value: float | None) -> str:
    if value is None:
        return ""
    if value < 60:
        return f"{value:.1f} s"
    minutes, hours = int(value // 60), int(value // 3600)
    return f"{minutes} min {int(value % 60)} s" if minutes < 180 else f"{hours} h {minutes % 60} min"


def fields(waiter: Waiter) -> dict[str, Any]:
    return {**asdict(waiter), "metadata": dict(waiter.metadata)}
