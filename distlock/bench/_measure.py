"""Figures of contenders that are measured in turns, so that whatever disturbs the machine disturbs all alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import TypeVar

__all__ = ("Spread", "Unknown", "percentile", "rotated")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some measurements, and their extremes."""

    median: float
    low: float
    high: float
    middle: tuple[float, float] | None = None
    """The quartiles: half of them lie in between."""

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        lower, _, upper = quantiles(values, method="inclusive") if len(values) > 1 else [values[0]] * 3
        return cls(median(values), min(values), max(values), (lower, upper))


@dataclass(frozen=True, slots=True)
class Unknown:
    """In place of a figure that is not to be had."""

    why: str


def rotated(things: Sequence[T], turn: int) -> list[T]:
    """All of them; each turn begins with another."""
    first = turn % len(things)
    return [*things[first:], *things[:first]]


def percentile(values: Sequence[float], share: float) -> float:
    """By the nearest rank."""
    return sorted(values)[max(0, math.ceil(len(values) * share) - 1)]
