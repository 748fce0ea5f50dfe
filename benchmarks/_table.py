"""The results for people, in Markdown so that they can go into the documentation as they are."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ._measure import Report, Row, Spread

__all__ = ("table",)


def table(reports: Sequence[Report]) -> str:
    """All results, and under which conditions they came about."""
    lines = [
        "| benchmark | way | median (min–max) | ratio to the first row | of the best turns | target | note |",
        "|---|---|--:|--:|--:|---|---|",
    ]
    for report in reports:
        for number, row in enumerate(report.rows):
            title = f"**{report.name}**: {report.what}" if number == 0 else ""
            lines.append(_line(title, row, report.floor_of(row)))
    return "\n".join([*lines, "", *_conditions(reports)])


def _line(title: str, row: Row, floor: Row) -> str:
    ratio = _figures(row.ratio) if row.ratio and math.isfinite(row.ratio.median) else ""
    best = _plain(_best(row) / _best(floor)) if ratio and row is not floor and _best(floor) else ""
    targets = "; ".join(f"{target}: {'✓' if target.met(got) else '✗'} {got:.2f}" for target, got in row.targets)
    value = f"{_figures(row.value)} {row.unit}".rstrip()
    return f"| {title} | {row.name} | {value} | {ratio} | {best} | {targets} | {row.note} |"


def _best(row: Row) -> float:
    return row.value.high if row.unit == "/s" else row.value.low


def _figures(spread: Spread) -> str:
    if spread.low == spread.high:
        return f"{spread.median:.3g}" if abs(spread.median) < 1000 else f"{spread.median:.0f}"
    return f"{_plain(spread.median)} ({_plain(spread.low)}–{_plain(spread.high)})"


def _plain(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 100 else f"{value:.0f}"


def _conditions(reports: Sequence[Report]) -> list[str]:
    merged: dict[str, dict[str, None]] = {}
    for report in reports:
        for name, value in report.conditions.items():
            merged.setdefault(name, {})[value] = None
    return [f"- {name}: {', '.join(values)}" for name, values in merged.items()]
