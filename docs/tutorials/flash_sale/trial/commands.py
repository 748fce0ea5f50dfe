"""The commands that try the shop: ``load`` and ``throughput``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from ..running.console import ending_in_order, say
from .audit import Finding
from .databases import new_database
from .load import Report, sale
from .pace import Pace, measure
from .without import PROTECTIONS

__all__ = ("load", "throughput")

BREACH = 1

Server = Annotated[
    str, typer.Option("--database", help="A URL of PostgreSQL, where each sale gets a new one. SQLite if not given.")
]
RedisURL = Annotated[str, typer.Option(help="A URL. A redis-server is started, and restarted, if not given.")]


def load(
    clients: Annotated[int, typer.Option(min=1, help="People who want some.")] = 500,
    stock: Annotated[int, typer.Option(min=1, help="Pieces there are.")] = 100,
    rush: Annotated[float, typer.Option(min=0, help="Seconds in which they come.")] = 5.0,
    without: Annotated[str, typer.Option(help=f"A protection to switch off: {', '.join(PROTECTIONS)}.")] = "",
    each: Annotated[bool, typer.Option("--each", help="All protections, and then without each of them.")] = False,
    server: Server = "",
    redis: RedisURL = "",
) -> None:
    """A sale with a crowd, in which processes are killed and stopped and Redis restarts; then the audit.

    The status is 1 if anything is not as it must be; with --each, if anything is wrong with all protections, or nothing
    is wrong without one of them.
    """
    if without and without not in PROTECTIONS:
        raise typer.BadParameter(f"there are {', '.join(PROTECTIONS)}", param_hint="--without")
    if each and without:
        raise typer.BadParameter("goes without --without", param_hint="--each")
    with ending_in_order():
        as_expected = True
        rows = []
        for protection in ("", *PROTECTIONS) if each else (without,):
            say(f"a sale to {clients} people" + (f", without {protection}" if protection else ""))
            with new_database(server) as database:
                where = {"database": database, "redis": redis}
                report = sale(clients=clients, stock=stock, rush=rush, without=protection, tell=say, **where)
            print_audit(report)
            as_expected &= bool(report.breaches) == bool(protection and each)
            rows.append((protection or "none", report.breaches))
        if each:
            print_comparison(rows)
    if not as_expected:
        sys.exit(BREACH)


def print_audit(report: Report) -> None:
    """What is so, and what must be."""
    table = Table(box=box.SIMPLE, show_edge=False)
    for title in ("", "must be", "is", "wrong"):
        table.add_column(title)
    for finding in report.findings:
        sign = "[red]✗[/]" if finding.breaches else "[green]✓[/]"
        table.add_row(sign, finding.claim, finding.seen, _shortly(finding.breaches))
    _console().print(table)
    _console().print(f"{report.purchases} purchases in {report.seconds:.1f} s; {', '.join(report.happened)}\n")


def print_comparison(rows: Sequence[tuple[str, Sequence[Finding]]]) -> None:
    """What each protection is for."""
    table = Table("without", "what broke", "for example", box=box.MARKDOWN)
    for protection, breaches in rows:
        first = breaches[0].breaches if breaches else ()
        table.add_row(protection, "; ".join(each.claim for each in breaches) or "nothing", _shortly(first))
    _console().print(table)


def throughput(
    seconds: Annotated[float, typer.Option(min=1, help="How long each of them is measured.")] = 10.0,
    clients: Annotated[int, typer.Option(min=1, help="Who buy one after the other, without a pause.")] = 16,
    rounds: Annotated[int, typer.Option(min=1, help="How often both are measured, in turns.")] = 3,
    server: Server = "",
) -> None:
    """How many checkouts it takes, beside the same shop without distlock, in turns on this machine."""
    with ending_in_order():
        table = Table("shop", "checkouts/s", "ratio", "orders completed/s", "ratio", box=box.MARKDOWN)
        without, protected = measure(seconds, clients, rounds, server, say)
        for name, pace in (("without distlock", without), ("with it", protected)):
            table.add_row(name, *_paces(pace.checkouts, without.checkouts), *_paces(pace.completed, without.completed))
        _console().print(table)


def _paces(rates: Sequence[float], floor: Sequence[float]) -> tuple[str, str]:
    """The median with the range, and the median of the ratios in each round; a dash if there are none."""
    ratios = [rate / base for rate, base in zip(rates, floor, strict=True) if base]
    middle = f"{Pace.median(rates):.0f} ({min(rates):.0f}–{max(rates):.0f})"
    return middle, f"{Pace.median(ratios):.2f}" if ratios else "–"


def _shortly(breaches: Sequence[str]) -> str:
    more = f", and {len(breaches) - 1} more" if len(breaches) > 1 else ""
    return f"{breaches[0]}{more}" if breaches else ""


def _console() -> Console:
    # Not cut to the width of nothing when it goes to a file.
    return Console(width=None if sys.stdout.isatty() else 160, highlight=False)
