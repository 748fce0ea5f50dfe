"""Contenders measured in turns, so that whatever disturbs the machine disturbs all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

__all__ = ("Contender", "Report", "Row", "Spread", "Target", "compare", "interleaved", "rows_of")

ROUND_SECONDS = 0.005
"""Short, so that what else the machine does is much the same for all that are compared in one round."""


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some measurements, and their extremes."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(median(values), min(values), max(values))


@dataclass(frozen=True, slots=True)
class Target:
    """What a ratio to another row, or a value of its own, should not exceed."""

    most: float
    of: str = ""
    """The row that it is a ratio to; empty: it bounds the value itself."""

    def __str__(self) -> str:
        return f"≤ {self.most:g} × {self.of}" if self.of else f"≤ {self.most:g}"


@dataclass(frozen=True, slots=True)
class Row:
    """One contender's result."""

    name: str
    value: Spread
    unit: str
    ratio: Spread | None = None
    """To the first row of its report, round by round."""
    targets: tuple[tuple[Target, float], ...] = ()
    """Each with what was measured against it."""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """The results of one benchmark. Its first row is the floor that the ratios are to."""

    name: str
    what: str
    rows: Sequence[Row]
    conditions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Contender:
    """A way to do the work: ``run(n)`` does it ``n`` times."""

    name: str
    run: Callable[[int], object]
    targets: tuple[Target, ...] = ()
    note: str = ""


def interleaved(
    contenders: Sequence[Contender], rounds: int, tick: Callable[[], object] = lambda: None
) -> dict[str, list[float]]:
    """Seconds for doing it once, by contender and round; each round begins with another contender."""
    counts = {each.name: _count_for_a_round(each) for each in contenders}
    times: dict[str, list[float]] = {each.name: [] for each in contenders}
    for turn in range(rounds):
        first = turn % len(contenders)
        for each in [*contenders[first:], *contenders[:first]]:
            times[each.name].append(_time(each, counts[each.name]) / counts[each.name])
        tick()
    return times


def _count_for_a_round(contender: Contender) -> int:
    count = 10
    while (seconds := _time(contender, count)) < ROUND_SECONDS / 3:
        count *= 2
    return max(10, round(count * ROUND_SECONDS / seconds))


def _time(contender: Contender, count: int) -> float:
    start = time.perf_counter()
    contender.run(count)
    return time.perf_counter() - start


def compare(contenders: Sequence[Contender], rounds: int, tick: Callable[[], object] = lambda: None) -> tuple[Row, ...]:
    """The rows of a race; the first contender is the floor."""
    return rows_of(contenders, interleaved(contenders, rounds, tick), scale=1e6, unit="µs")


def rows_of(
    contenders: Sequence[Contender], times: dict[str, list[float]], *, scale: float, unit: str
) -> tuple[Row, ...]:
    """Rows from measurements that are aligned by round."""
    floor = times[contenders[0].name]
    rows = []
    for each in contenders:
        mine = times[each.name]
        targets = [
            (target, median(_ratios(mine, times[target.of])) if target.of else median(mine) * scale)
            for target in each.targets
        ]
        rows.append(
            Row(
                each.name,
                Spread.of([value * scale for value in mine]),
                unit,
                Spread.of(_ratios(mine, floor)),
                tuple(targets),
                each.note,
            )
        )
    return tuple(rows)


def _ratios(values: Sequence[float], floors: Sequence[float]) -> list[float]:
    return [value / floor for value, floor in zip(values, floors, strict=True)]
