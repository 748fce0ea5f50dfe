"""An outcome as a drawing: latency distributions, throughput over contenders, hand-offs over time."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import partial
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

from .. import ConfigurationError
from ._report import tables
from ._run import Cell, Outcome

__all__ = ("check_plot", "plot")

SUFFIXES = (".svg", ".html")
LATENCIES = ("uncontended", "hand-off", "recovery", "capacity")
VARIED = ("processes", "threads", "tasks")
SHOWN = 12
"""Hand-offs of each store that are drawn."""
WIDTH, HEIGHT = 6.5, 4.0
"""Inches of a panel."""


def check_plot(path: Path) -> None:
    """Raises `ConfigurationError` if it could not be drawn: better before the run than after."""
    if path.suffix not in SUFFIXES:
        raise ConfigurationError(f"--plot writes {' or '.join(SUFFIXES)}, not {path.name!r}")
    _figure_class()


def _figure_class() -> Any:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"{error.name} is not installed; run: pip install 'pydistlock[bench]'") from error
    return Figure


def plot(outcome: Outcome, path: Path) -> None:
    """Writes an SVG; or a page of HTML that has it, and the tables, and needs nothing else."""
    svg = _svg(outcome)
    path.write_text(svg if path.suffix == ".svg" else _page(outcome, svg), encoding="utf-8")


def _svg(outcome: Outcome) -> str:
    colours = {store.name: f"C{number % 10}" for number, store in enumerate(outcome.stores)}
    panels: list[Callable[[Any], None]] = []
    for name in LATENCIES:
        cells = [cell for cell in outcome.of(name) if cell.samples]
        if cells:
            panels.append(partial(_distributions, cells=cells, colours=colours))
    for name in VARIED:
        cells = [cell for cell in outcome.of(name) if cell.spread("rate")]
        if cells:
            panels.append(partial(_throughput, cells=cells, colours=colours))
    handed = [cell for cell in outcome.of("hand-off") if cell.spans]
    if handed:
        panels.append(partial(_hand_offs, cells=handed))
    rows = max(1, (len(panels) + 1) // 2)
    figure = _figure_class()(figsize=(2 * WIDTH, rows * HEIGHT), layout="constrained")
    for number, draw in enumerate(panels, 1):
        draw(figure.add_subplot(rows, 2, number))
    page = io.StringIO()
    figure.savefig(page, format="svg")
    return page.getvalue()


def _distributions(axes: Any, cells: Sequence[Cell], colours: dict[str, str]) -> None:
    """Which share took no longer than so long."""
    for cell in cells:
        times = sorted(time * 1e6 for time in cell.samples)
        shares = [100 * (number + 1) / len(times) for number in range(len(times))]
        axes.step(times, shares, where="post", label=cell.store.name, color=colours[cell.store.name])
    what = "wait" if cells[0].workload.name == "capacity" else "latency"
    axes.set(title=f"{cells[0].workload.name}: {what}", xscale="log", xlabel="µs", ylabel="% took no longer")
    axes.grid(alpha=0.3)
    axes.legend()


def _throughput(axes: Any, cells: Sequence[Cell], colours: dict[str, str]) -> None:
    for name in dict.fromkeys(cell.store.name for cell in cells):
        mine = [cell for cell in cells if cell.store.name == name]
        spreads = [spread for cell in mine if (spread := cell.spread("rate"))]
        middles = [spread.median for spread in spreads]
        errors = [[one.median - one.low for one in spreads], [one.high - one.median for one in spreads]]
        at = [cell.at for cell in mine]
        axes.errorbar(at, middles, errors, label=name, color=colours[name], marker="o", capsize=3)
    at = sorted({cell.at for cell in cells})
    title = f"throughput: {cells[0].workload.name} that want one lock"
    axes.set(title=title, xlabel="contenders", ylabel="acquisitions a second", yscale="log", xticks=at)
    axes.grid(alpha=0.3)
    axes.legend()


def _hand_offs(axes: Any, cells: Sequence[Cell]) -> None:
    """Who of the two holds it when; what lies between is the hand-off."""
    for lane, cell in enumerate(cells):
        spans = list(cell.spans)[: SHOWN + 1]
        began = spans[0][2]
        for (who, _, entered), (_, left, _) in pairwise(spans):
            axes.broken_barh([((entered - began) / 1e6, (left - entered) / 1e6)], (lane - 0.3, 0.6), color=f"C{who}")
    axes.set(title=f"the first {SHOWN} hand-offs between two processes", xlabel="ms")
    axes.set_yticks(range(len(cells)), [cell.store.name for cell in cells])
    axes.invert_yaxis()
    axes.grid(alpha=0.3, axis="x")


def _page(outcome: Outcome, svg: str) -> str:
    from rich.console import Console

    console = Console(record=True, file=io.StringIO(), width=200)
    console.print(tables(outcome))
    shown = console.export_html(inline_styles=True, code_format="<pre>{code}</pre>")
    facts = "".join(f"<li>{escape(name)}: {escape(value)}</li>" for name, value in outcome.conditions.items())
    names = ", ".join(store.address for store in outcome.stores)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>distlock bench: {escape(names)}</title>'
        "<style>body{font-family:sans-serif;margin:2em}svg{max-width:100%;height:auto}</style></head>"
        f"<body><h1>distlock bench</h1>{svg[svg.index('<svg') :]}{shown}<ul>{facts}</ul></body></html>\n"
    )
