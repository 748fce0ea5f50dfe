"""The results as drawings: one SVG for each store and figure."""

from __future__ import annotations

from pathlib import Path

from .._plots import drawing, logarithmic
from ._measured import Figure, Results

__all__ = ("plot",)

LINE = 0.28
"""Inches of a contender."""
TITLES = {
    "uncontended": "acquire and release, µs",
    "hand-off": "hand-off to a waiter, µs",
    "contended": "acquisitions a second, contended",
    "fairness": "most by least of a thread",
    "waiting": "requests a second of 20 waiters",
}


def plot(results: Results, folder: Path) -> list[Path]:
    """Where they are: ``folder``/``store``-``figure``.svg."""
    by_name: dict[str, list[Figure]] = {}
    for each in results.figures:
        by_name.setdefault(f"{each.store}-{each.figure}", []).append(each)
    return [_draw(found, folder / f"{name}.svg") for name, found in by_name.items()]


def _draw(found: list[Figure], path: Path) -> Path:
    """The median as a point, the extremes as a line; on a logarithmic axis, as some are a thousand times as slow."""
    with drawing(path, 1 + LINE * len(found)) as (axes,):
        for number, each in enumerate(found):
            value, colour = each.value, "tab:blue" if each.peer.startswith("distlock") else "black"
            reach = [[value.median - value.low], [value.high - value.median]]
            axes.errorbar(value.median, number, xerr=reach, fmt="o", color=colour)
        axes.set_yticks(range(len(found)), [each.peer for each in found])
        axes.invert_yaxis()
        logarithmic(axes, "x", [bound for each in found for bound in (each.value.low, each.value.high)])
        axes.grid(axis="x", alpha=0.3)
        axes.set_title(f"{found[0].store}: {TITLES[found[0].figure]}", fontsize="medium")
    return path
