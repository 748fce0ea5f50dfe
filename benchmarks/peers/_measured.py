"""All contenders of a store, measured in turns."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from .._machine import SERVER
from .._measure import Pace, Spread, rotated
from .._stores import STORES
from . import _workloads
from ._driver import Crew, Failed
from ._peer import Peer

__all__ = ("Figure", "Results", "measure")

T = TypeVar("T")
Values = dict[str, dict[str, list[float]]]
"""By adapter and figure, a value for each turn."""


@dataclass(frozen=True, slots=True)
class Figure:
    """What was found of one contender; the ratios are those within a turn."""

    store: str
    figure: str
    peer: str
    value: Spread
    unit: str
    to_floor: Spread | None
    to_distlock: Spread | None


@dataclass(slots=True)
class Results:
    """Of all stores so far."""

    figures: list[Figure] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    """Why there is no figure, by contender, store and workload."""
    conditions: dict[str, str] = field(default_factory=dict)


def measure(
    store: str, workload: str, peers: Mapping[str, Peer], pythons: Mapping[str, str], pace: Pace, results: Results
) -> None:
    """``peers`` and ``pythons`` are by adapter; what is found goes into ``results``."""
    those = {name: peer for name, peer in peers.items() if store in peer.stores and workload in peer.workloads}
    race = _Race(store, workload, {name: pythons[name] for name in those}, pace)
    found = race.counted() if workload == "waiting" else race.in_turns()
    results.figures += _figures(store, those, found)
    results.conditions.update(race.conditions)
    for name, why in race.failures.items():
        results.failures[f"{peers[name].name}, {store}, {workload}"] = why


class _Race:
    """One workload over one store, by those whose interpreters these are."""

    def __init__(self, store: str, workload: str, pythons: Mapping[str, str], pace: Pace) -> None:
        self.store, self.workload, self.pythons, self.pace = store, workload, pythons, pace
        self.conditions: dict[str, str] = {}
        self.failures: dict[str, str] = {}

    def in_turns(self) -> Values:
        """One server for all of them, each with keys of its own."""
        prepare = _workloads.PREPARE[self.workload]
        found: dict[str, list[dict[str, float]]] = {}
        processor = SERVER if self.workload in _workloads.ALONE else None
        with STORES[self.store](processor) as store, ExitStack() as stack:
            self.conditions.update(store.conditions)
            crews = {name: stack.enter_context(Crew(name, path, store.place)) for name, path in self.pythons.items()}
            rounds = {name: self._tried(crew, partial(prepare, crew, self.pace)) for name, crew in crews.items()}
            self.conditions.update(
                {f"python of {name}": crew.about["python"] for name, crew in crews.items() if _elsewhere(crew)}
            )
            for turn in self.pace.turns(_workloads.ROUNDS[self.workload]):
                for name in rotated(list(crews), turn):
                    once = rounds[name]
                    outcome = self._tried(crews[name], once) if once else None
                    if outcome:
                        found.setdefault(name, []).append(outcome)
        whole = [name for name in found if name not in self.failures]
        return {name: {key: [each[key] for each in found[name]] for key in found[name][0]} for name in whole}

    def counted(self) -> Values:
        """One after the other, each with a server of its own: no time is measured. Files tell nobody."""
        found: Values = {}
        for name, python in self.pythons.items() if self.store != "file" else ():
            with STORES[self.store](None) as store, Crew(name, python, store.place) as crew:
                outcome = self._tried(crew, partial(_workloads.waiting, crew, store, self.pace))
                if outcome:
                    found[name] = {key: [value] for key, value in outcome.items()}
            self.pace.tick()
        return found

    def _tried(self, crew: Crew, call: Callable[[], T]) -> T | None:
        """None of one that failed, now or before."""
        if crew.adapter in self.failures:
            return None
        try:
            return call()
        except Failed as why:
            self.failures[crew.adapter] = str(why)
            crew.dismiss()
            return None


def _elsewhere(crew: Crew) -> bool:
    """Whether it runs on another Python than ours."""
    return bool(crew.about) and crew.about["python"] != platform.python_version()


def _figures(store: str, peers: Mapping[str, Peer], found: Values) -> list[Figure]:
    figures = []
    for figure in dict.fromkeys(figure for values in found.values() for figure in values):
        of_all = {name: values[figure] for name, values in found.items()}
        floor = next((values for name, values in of_all.items() if peers[name].guarantees is None), None)
        unit = _workloads.UNITS[figure]
        for name, values in of_all.items():
            ours = of_all.get(f"distlock_{peers[name].colour}")
            value = Spread.of([each * (1e6 if unit == "µs" else 1) for each in values])
            ratios = _ratio(values, floor), _ratio(values, ours)
            figures.append(Figure(store, figure, peers[name].name, value, unit, *ratios))
    return figures


def _ratio(values: Sequence[float], others: Sequence[float] | None) -> Spread | None:
    """None where there is nothing to compare with."""
    if not others or not all(others):
        return None
    return Spread.of([value / other for value, other in zip(values, others, strict=True)])
