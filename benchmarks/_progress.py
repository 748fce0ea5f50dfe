"""Shows people what runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ("progress",)


@contextmanager
def progress(total: int) -> Iterator[Callable[[str, bool], object]]:
    """Shows what runs, on a terminal."""
    if not sys.stderr.isatty():
        yield lambda name, done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, TextColumn("{task.fields[rounds]} rounds"), console=console, transient=True) as bars:
        task = bars.add_task("starting", total=total, rounds=0)
        rounds: dict[str, int] = {}

        def tell(name: str, done: bool) -> None:
            rounds[name] = rounds.get(name, 0) + 1
            bars.update(task, description=name, advance=1 if done else 0, rounds=rounds[name])

        yield tell
