"""Contenders measured in turns, so that whatever disturbs the machine disturbs all of them alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TypeVar

from distlock.bench._measure import Spread, rotated

__all__ = (
    "Contender",
    "Pace",
    "Report",
    "Row",
    "Spread",
    "Target",
    "compare",
    "interleaved",
    "rotated",
    "rows_of",
    "table_of",
)

T = TypeVar("T")

ROUND_SECONDS = 0.005
"""Short, so that what else the machine does is much the same for all that are compared in one round."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How thorough a run is, and who hears that it goes on."""

    tick: Callable[[], object] = lambda: None
    quick: bool = False
    """Only to see that everything runs: its figures say nothing."""

    def turns(self, full: int) -> Iterator[int]:
        """The numbers of the turns."""
        for turn in range(self.of(full, 2)):
            yield turn
            self.tick()

    def of(self, full: T, quick: T) -> T:
        """One or the other."""
        return quick if self.quick else full


@dataclass(frozen=True, slots=True)
class Target:
    """What a ratio to another row, or a value of its own, should not exceed or fall below."""

    bound: float
    of: str = ""
    """The row that it is a ratio to; empty: it bounds the value itself."""
    least: bool = False
    """More is better."""

    def met(self, value: float) -> bool:
        """Whether ``value`` is on the right side."""
        return value >= self.bound if self.least else value <= self.bound

    def __str__(self) -> str:
        return f"{'≥' if self.least else '≤'} {self.bound:g}" + (f" × {self.of}" if self.of else "")


@dataclass(frozen=True, slots=True)
class Row:
    """One contender's result."""

    name: str
    value: Spread
    unit: str
    ratio: Spread | None = None
    """To `Report.floor_of`, round by round."""
    targets: tuple[tuple[Target, float], ...] = ()
    """Each with what was measured against it."""
    note: str = ""
    curve: str = ""
    """What it is a point of, if the report has an axis."""
    at: float = 0.0
    """Where on that axis."""


@dataclass(frozen=True, slots=True)
class Report:
    """The results of one benchmark."""

    name: str
    what: str
    rows: Sequence[Row]
    conditions: dict[str, str] = field(default_factory=dict)
    axis: str = ""
    """What grows from row to row, along each curve."""

    def floor_of(self, row: Row) -> Row:
        """What the ratio of ``row`` is to: the first of all, or of its curve."""
        return next(each for each in self.rows if each.curve == row.curve)


@dataclass(frozen=True, slots=True)
class Contender:
    """A way to do the work: ``run(n)`` does it ``n`` times."""

    name: str
    run: Callable[[int], object]
    targets: tuple[Target, ...] = ()
    note: str = ""


def interleaved(contenders: Sequence[Contender], rounds: int, pace: Pace) -> dict[str, list[float]]:
    """Seconds for doing it once, by contender and round; each round begins with another contender."""
    counts = {each.name: _count_for_a_round(each) for each in contenders}
    times: dict[str, list[float]] = {each.name: [] for each in contenders}
    for turn in pace.turns(rounds):
        for each in rotated(contenders, turn):
            times[each.name].append(_time(each, counts[each.name]) / counts[each.name])
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


def compare(contenders: Sequence[Contender], rounds: int, pace: Pace) -> tuple[Row, ...]:
    """The rows of a race; the first contender is the floor."""
    return rows_of(contenders, interleaved(contenders, rounds, pace), scale=1e6, unit="µs")


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
    return [value / floor if floor else math.inf for value, floor in zip(values, floors, strict=True)]


def table_of(
    values: Mapping[str, Sequence[float]],
    unit: str,
    targets: Mapping[str, tuple[Target, ...]],
    notes: Mapping[str, str] | None = None,
    scale: float = 1.0,
) -> tuple[Row, ...]:
    """Rows from measurements by name; the first name is the floor."""
    contenders = [
        Contender(name, lambda _: None, targets.get(name, ()), (notes or {}).get(name, "")) for name in values
    ]
    return rows_of(contenders, {name: list(found) for name, found in values.items()}, scale=scale, unit=unit)
