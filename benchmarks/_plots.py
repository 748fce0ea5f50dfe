"""Drawings: SVG, narrow enough for a phone."""

from __future__ import annotations

import math
from argparse import ArgumentTypeError
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ._measure import Report

__all__ = ("drawing", "logarithmic", "plot", "plot_folder")

WIDTH, PANEL, LEGEND = 4.0, 2.2, 0.4
"""Inches."""


def plot_folder(name: str) -> Path:
    """Of an option: where to draw to. What cannot be drawn is told now, not when all is measured."""
    if not find_spec("matplotlib"):
        raise ArgumentTypeError("drawing needs matplotlib")
    return Path(name)


@contextmanager
def drawing(path: Path, height: float, panels: int = 1) -> Iterator[Sequence[Any]]:
    """The axes of so many panels, one below the other. What is drawn there is in ``path`` when the block is left."""
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(WIDTH, height), layout="constrained")
    yield list(canvas.subplots(panels, squeeze=False)[:, 0])
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(path, metadata={"Date": None})


def logarithmic(axes: Any, which: str, values: Sequence[float]) -> None:
    """For ``values`` on the axis ``which`` (``x`` or ``y``); linear near zero, if some are not above it."""
    low, high = min(values), max(values)
    if low > 0:
        getattr(axes, f"set_{which}scale")("log")
        return
    few = min((value for value in values if value > 0), default=1.0) / 2
    getattr(axes, f"set_{which}scale")("symlog", linthresh=few)
    axes.set(**{f"{which}lim": (2 * low - few / 10, 2 * max(few, high))})


def plot(reports: Iterable[Report], folder: Path) -> list[Path]:
    """Those that have an axis. All of one name are a drawing: ``name`` is in ``folder``/``name``.svg."""
    by_name: dict[str, list[Report]] = {}
    for each in reports:
        if each.axis:
            by_name.setdefault(each.name, []).append(each)
    return [_draw(found, folder / f"{name.replace(', ', '-')}.svg") for name, found in by_name.items()]


def _draw(reports: Sequence[Report], path: Path) -> Path:
    """A panel for each report, a line for each curve, in the same colour everywhere."""
    curves = dict.fromkeys(row.curve for report in reports for row in report.rows)
    colours = {curve: f"C{number}" for number, curve in enumerate(curves)}
    with drawing(path, LEGEND + PANEL * len(reports), len(reports)) as panels:
        for report, axes in zip(reports, panels, strict=True):
            for curve, colour in colours.items():
                points = [(row.at, row.value.median) for row in report.rows if row.curve == curve]
                axes.plot([at for at, _ in points], [value for _, value in points], "o-", color=colour, markersize=3)
            _finish(axes, report)
        panels[0].figure.legend(panels[0].lines, colours, loc="outside upper center", ncols=3, fontsize="small")
        panels[-1].set_xlabel(reports[0].axis)
    return path


def _finish(axes: Any, report: Report) -> None:
    values = [row.value.median for row in report.rows]
    axes.set_xscale("log")
    logarithmic(axes, "y", values)
    if min(values) > 0:  # whole decades: what is nearly flat is to look so
        low, high = math.log10(min(values)), math.log10(max(values))
        axes.set_ylim(10.0 ** math.floor(low), 10.0 ** math.ceil(high + 0.01))
    axes.yaxis.set(major_formatter="{x:,.12g}", minor_formatter="")
    axes.grid(alpha=0.3)
    axes.set_title(report.what, fontsize="medium")
    axes.set_ylabel(report.rows[0].unit)
