"""An outcome, for people and for programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from statistics import median
from typing import TYPE_CHECKING, Any

from .._open import without_secrets
from ._measure import Spread
from ._run import Cell, Outcome
from ._workloads import Metric, Workload

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ("as_json", "best_of", "tables")

FORMAT = 1
"""Of the JSON; a field that goes, or means something else, makes it one more."""


def best_of(cells: Sequence[Cell]) -> list[Cell]:
    """The best of each number of contenders by the first metric, where there are several to choose from."""
    found = []
    for at in sorted({cell.at for cell in cells}):
        metric = cells[0].workload.metrics[0]
        rivals = [(spread.median, cell) for cell in cells if cell.at == at and (spread := cell.spread(metric.name))]
        if len(rivals) > 1:
            choose = min if metric.better == "less" else max
            found.append(choose(rivals, key=lambda rival: rival[0])[1])
    return found


# For programs


def as_json(outcome: Outcome) -> dict[str, Any]:
    """All of it but single samples. A figure that is not known is null and has an ``unknown`` beside it."""
    plan = asdict(outcome.plan)
    plan["urls"] = [without_secrets(url) for url in outcome.plan.urls]
    return {
        "format": FORMAT,
        "plan": plan,
        "conditions": dict(outcome.conditions),
        "stores": [
            {
                "name": store.name,
                "address": store.address,
                "ttl": store.ttl,
                "fair": store.guarantees.fair if store.guarantees else None,
                "floor": store.server.floor or None,
            }
            for store in outcome.stores
        ],
        "workloads": [_workload(outcome, work) for work in _worked(outcome)],
        "failures": [{"where": failure.where, "error": str(failure.error)} for failure in outcome.failures],
        "interrupted": outcome.interrupted,
    }


def _worked(outcome: Outcome) -> list[Workload]:
    return list({cell.workload.name: cell.workload for cell in outcome.cells}.values())


def _workload(outcome: Outcome, work: Workload) -> dict[str, Any]:
    cells = outcome.of(work.name)
    best = best_of(cells)
    return {
        "name": work.name,
        "what": work.what,
        "rows": [
            {
                "store": cell.store.name,
                "contenders": cell.at if work.varied else None,
                "missing": cell.missing or None,
                "best": any(cell is each for each in best),
                "figures": {metric.name: _figure(cell, metric) for metric in work.metrics},
                "to_floor": asdict(Spread.of(cell.ratios)) if cell.ratios else None,
                "floor_us": 1e6 * median(cell.floors) if cell.floors else None,
            }
            for cell in cells
        ],
    }


def _figure(cell: Cell, metric: Metric) -> dict[str, Any]:
    spread = cell.spread(metric.name)
    found = asdict(spread) if spread else dict.fromkeys(field.name for field in fields(Spread))
    return {
        **found,
        "unit": metric.unit,
        "rounds": cell.values.get(metric.name, []),
        "unknown": None if spread else cell.unknown.get(metric.name, cell.missing) or "not measured",
    }


# For people


def tables(outcome: Outcome) -> RenderableType:
    """A table for each workload, the best of each marked, and how fast the servers could be. Needs rich."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = []
    for work in _worked(outcome):
        notes = (Text(f"  {line}", "dim") for line in _notes(outcome, work))
        parts += [Text(f"{work.name}: {work.what}", "italic"), _table(outcome, work), *notes, Text()]
    parts += [Text(line, "dim") for line in _floors(outcome)]
    plan = outcome.plan
    how = f"{plan.rounds} rounds of {plan.seconds:g} s; medians, with the least and the most of a round; ★ the best"
    return Group(*parts, Text(how, "dim"))


def _table(outcome: Outcome, work: Workload) -> RenderableType:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    shown.add_column("", no_wrap=True)
    if work.varied:
        shown.add_column("contenders", justify="right")
    for metric in work.metrics:
        shown.add_column(f"{metric.name} {metric.unit}".strip(), justify="right")
    if work.has_floor:
        shown.add_column("to the floor", justify="right")
    cells = outcome.of(work.name)
    best = best_of(cells)
    for cell in cells:
        wins = any(cell is each for each in best)
        row = [f"★ {cell.store.name}" if wins else f"  {cell.store.name}"]
        row += [str(cell.at)] if work.varied else []
        row += [_text(cell, metric) for metric in work.metrics]
        row += [f"× {_spread(Spread.of(cell.ratios))}" if cell.ratios else "–"] if work.has_floor else []
        shown.add_row(*map(Text, row), style="bold green" if wins else None)
    return shown


def _text(cell: Cell, metric: Metric) -> str:
    spread = cell.spread(metric.name)
    if spread is not None:
        return _spread(spread)
    return "–" if cell.missing else "unknown"


def _notes(outcome: Outcome, work: Workload) -> Iterator[str]:
    """Why figures are missing."""
    why: dict[str, dict[str, list[str]]] = {}
    for cell in outcome.of(work.name):
        if cell.missing:
            why.setdefault(cell.missing, {})[cell.store.name] = []
        for metric, reason in cell.unknown.items():
            names = why.setdefault(reason, {}).setdefault(cell.store.name, [])
            names += [] if metric in names else [metric]
    for reason, stores in why.items():
        told = (f"{store} ({', '.join(metrics)})" if metrics else store for store, metrics in stores.items())
        yield f"{'; '.join(told)}: {reason}"


def _floors(outcome: Outcome) -> Iterator[str]:
    for store in outcome.stores:
        found = [floor * 1e6 for cell in outcome.cells if cell.store is store for floor in cell.floors]
        if found:
            yield f"floor of {store.name}: {store.server.floor}: {_spread(Spread.of(found))} µs"


def _spread(spread: Spread) -> str:
    if spread.low == spread.high:
        return _plain(spread.median)
    return f"{_plain(spread.median)} ({_plain(spread.low)}–{_plain(spread.high)})"


def _plain(value: float) -> str:
    if 0 < abs(value) < 0.1:
        return f"{value:.3f}"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 100 else f"{value:.0f}"
