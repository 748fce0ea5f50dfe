"""A whole run: all workloads on all stores, in turns, and nothing left of it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from .. import BackendError, DistLockError
from .._open import without_secrets
from ._crew import Crew, crew
from ._machine import description, versions
from ._measure import Spread, Unknown, rotated
from ._plan import Plan
from ._stores import KeysInUse, Store, check_free, opened
from ._workloads import WORKLOADS, Measured, NothingDone, Turn, Workload

__all__ = ("Cell", "Failure", "Outcome", "bench")

PACKAGES = ("pydistlock", "redis", "hiredis", "grpcio", "kazoo", "sqlalchemy")
LONGER = 3
"""Times that a turn is tried again, each for four times as long, until anything is seen."""
SAMPLES = 2000
"""Of each turn that are kept to be drawn."""


@dataclass
class Cell:
    """What one workload has come to on one store, with so many contenders."""

    workload: Workload
    store: Store
    at: int
    values: dict[str, list[float]] = field(default_factory=dict)
    """By metric and turn."""
    unknown: dict[str, str] = field(default_factory=dict)
    """Metrics that are not to be had, and why."""
    ratios: list[float] = field(default_factory=list)
    """Of the first metric to the floor of the same turn."""
    floors: list[float] = field(default_factory=list)
    """Seconds."""
    samples: list[float] = field(default_factory=list)
    spans: Sequence[tuple[int, int, int]] = ()
    """Of the last turn."""
    missing: str = ""
    """Why there is nothing, if there is nothing."""

    def spread(self, metric: str) -> Spread | None:
        """Over the turns; None if it is not known."""
        values = self.values.get(metric)
        return Spread.of(values) if values else None

    def take(self, found: Measured, floor: float | None) -> None:
        """One more turn."""
        for name, value in found.figures.items():
            if isinstance(value, Unknown):
                self.unknown[name] = value.why
            else:
                self.values.setdefault(name, []).append(value)
        if floor is not None:
            first = self.workload.metrics[0]
            self.ratios.append(first.to_floor(self.values[first.name][-1], floor))
            self.floors.append(floor)
        self.samples += found.samples[:: 1 + len(found.samples) // SAMPLES]
        self.spans = found.spans or self.spans


@dataclass(frozen=True)
class Failure:
    """What could not be measured, or not be cleaned."""

    where: str
    error: DistLockError


@dataclass
class Outcome:
    """All that was found."""

    plan: Plan
    conditions: Mapping[str, str]
    stores: list[Store] = field(default_factory=list)
    cells: list[Cell] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    interrupted: bool = False

    def of(self, workload: str) -> list[Cell]:
        """The cells of a workload, by contenders and store."""
        return [cell for cell in self.cells if cell.workload.name == workload]


Tell = Callable[[str, int, int], object]


def bench(plan: Plan, tell: Tell = lambda doing, done, total: None) -> Outcome:
    """Measures all of ``plan``. ``tell`` hears what is done, how many turns are over, and how many there are.

    A store that fails is left out from then on, and told in the outcome. Ctrl-C ends the run early, and what was found
    by then is in the outcome. Nothing is left in any store that can be reached, and no process. Raises `KeysInUse`,
    before anything is written, if a store has names that begin as those of a run.
    """
    outcome = Outcome(plan, {**description(), **versions(PACKAGES)})
    try:
        usable = list(_checked(outcome))
        size = max(WORKLOADS[name].processes(plan) for name in plan.workloads)
        with _stores(outcome, usable) as stores, crew(size) as workers:
            _measure(outcome, stores, workers, tell)
    except KeyboardInterrupt:
        outcome.interrupted = True
    return outcome


def _checked(outcome: Outcome) -> Iterator[tuple[int, str]]:
    """The URLs that can be used, with their numbers."""
    for number, url in enumerate(outcome.plan.urls, 1):
        try:
            check_free(outcome.plan, url)
        except KeysInUse:
            raise
        except DistLockError as error:
            outcome.failures.append(Failure(without_secrets(url), error))
        else:
            yield number, url


@contextmanager
def _stores(outcome: Outcome, usable: Sequence[tuple[int, str]]) -> Iterator[list[Store]]:
    """Open; and clean at the end, however it comes."""
    stores: list[Store] = []
    try:
        for number, url in usable:
            try:
                stores.append(opened(outcome.plan, number, url))
            except DistLockError as error:
                outcome.failures.append(Failure(without_secrets(url), error))
        _name_apart(stores)
        outcome.stores = _with_tiers(stores)
        yield outcome.stores
    finally:
        with _undisturbed():
            for store in stores:
                try:
                    store.clean()
                except DistLockError as error:
                    outcome.failures.append(Failure(f"{store.name}, cleaning up", error))


def _name_apart(stores: Sequence[Store]) -> None:
    names = [store.name for store in stores]
    for store in stores:
        if names.count(store.name) > 1:
            store.name += f" {store.address.partition('://')[2]}"


def _with_tiers(stores: Sequence[Store]) -> list[Store]:
    """A local lock in front of each server of distlock's is one more store."""
    found: list[Store] = []
    for store in stores:
        found.append(store)
        if store.guarantees is not None and store.guarantees.scope == "network":
            found.append(replace(store, name=f"local lock, {store.name}", tiered=True))
    return found


def _measure(outcome: Outcome, stores: Sequence[Store], workers: Crew, tell: Tell) -> None:
    plan = outcome.plan
    works = [WORKLOADS[name] for name in plan.workloads]
    numbers = {work.name: plan.contenders if work.varied else (1,) for work in works}
    cells = {
        (work.name, at, store.name): Cell(work, store, at, missing=work.unfit(store, plan))
        for work in works
        for at in numbers[work.name]
        for store in stores
    }
    outcome.cells = [cell for cell in cells.values() if not (cell.missing and cell.store.tiered)]
    done, total = 0, plan.rounds * sum(not cell.missing for cell in cells.values())
    for turn in range(plan.rounds):
        for work in works:
            for at in numbers[work.name]:
                for store in rotated(stores, turn) if stores else ():
                    cell = cells[work.name, at, store.name]
                    if not cell.missing:
                        tell(f"{work.name}: {store.name}", done, total)
                        _take_turn(outcome, cell, workers)
                        done += 1
    tell("cleaning up", done, total)


def _take_turn(outcome: Outcome, cell: Cell, workers: Crew) -> None:
    store, has_floor = cell.store, cell.workload.has_floor
    try:
        before = store.floor() if has_floor else None
        found = _measured(Turn(outcome.plan, workers, store, cell.at), cell.workload)
        after = store.floor() if has_floor else None
        cell.take(found, None if before is None or after is None else (before + after) / 2)
    except DistLockError as error:
        cell.missing = str(error)
        outcome.failures.append(Failure(f"{store.name}, {cell.workload.name}", error))
        if isinstance(error, BackendError):
            for other in outcome.cells:
                if other.store.url == store.url:
                    other.missing = other.missing or str(error)


def _measured(turn: Turn, work: Workload) -> Measured:
    """For a longer time than was asked for, if nothing is done in that."""
    for _ in range(LONGER):
        try:
            return work.measure(turn)
        except NothingDone:
            turn = replace(turn, plan=replace(turn.plan, seconds=4 * turn.plan.seconds))
    return work.measure(turn)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Ctrl-C comes too late."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {
        number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
