"""How the demo looks."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress as Bars, TaskID, TextColumn
from rich.table import Table

from ._demo import Outcome, Result

__all__ = ("Progress", "show")


class Progress:
    """A bar for each sale, on a terminal only. Called for each item sold, from any thread."""

    def __init__(self, stock: int, console: Console) -> None:
        self._stock = stock
        self._console = console
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, sale: str) -> None:
        if not self._console.is_terminal:
            return
        if self._bars is None:
            columns = (TextColumn("{task.description:>15}"), BarColumn(), MofNCompleteColumn())
            self._bars = Bars(*columns, console=self._console, transient=True)
            self._bars.start()
        if sale not in self._tasks:
            self._tasks[sale] = self._bars.add_task(sale, total=self._stock)
        self._bars.advance(self._tasks[sale])

    def stop(self) -> None:
        """Takes the bars away."""
        if self._bars is not None:
            self._bars.stop()


def show(result: Result, console: Console) -> None:
    """The final table."""
    table = Table(title=f"{result.workers} processes sell {result.locked.stock} items, {result.url}")
    table.add_column("")
    for name in ("without a lock", "with the lock"):
        table.add_column(name, justify="right")
    for label, row in _rows(result.unlocked, result.locked):
        table.add_row(label, *row)
    console.print(table)


def _rows(unlocked: Outcome, locked: Outcome) -> list[tuple[str, tuple[str, str]]]:
    both = (unlocked, locked)

    def row(values: list[str]) -> tuple[str, str]:
        return values[0], values[1]

    return [
        ("sold", row([str(each.sold) for each in both])),
        ("oversold", row([_painted(str(each.oversold), bad=each.oversold > 0) for each in both])),
        ("hand-offs / s", row([f"{each.handoffs_per_s:.0f}" for each in both])),
        ("fairness (1 is even)", row([f"{each.fairness:.2f}" for each in both])),
        ("tokens in order", ("-", _painted(*_in_order(locked)))),
        ("seconds", row([f"{each.seconds:.2f}" for each in both])),
    ]


def _in_order(outcome: Outcome) -> tuple[str, bool]:
    return ("yes", False) if outcome.tokens_in_order else ("NO", True)


def _painted(text: str, bad: bool) -> str:
    return f"[red]{text}[/red]" if bad else f"[green]{text}[/green]"
