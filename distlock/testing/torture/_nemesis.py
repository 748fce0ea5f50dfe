"""Who hurts, and when: one fault at a time, with peace between them, all decided by the seed."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

from ._events import Log, What
from ._faults import Arena, Hurt
from ._plan import Plan

__all__ = ("Field", "Nemesis", "Turn", "a_round", "schedule")

MOMENT = 0.001
"""Seconds, too few for a turn to begin: times are added up in more ways than one, and are printed and read again."""


class Turn(NamedTuple):
    """One fault of a schedule. Times are seconds."""

    hurt: Hurt
    lasts: float
    rest: float
    seed: str
    """Of the dice that choose the victim."""


def schedule(plan: Plan, hurts: Sequence[Hurt]) -> Iterator[Turn]:
    """Round after round, in each every fault once, shuffled, as long as one begins within ``plan.seconds``.

    What it takes to hurt and to heal does not count: how slow a machine is decides nothing.
    """
    begins = 0.0
    for turn in _rounds(plan, hurts):
        if plan.seconds - begins < MOMENT:
            return
        yield turn
        begins += turn.lasts + turn.rest


def a_round(plan: Plan, hurts: Sequence[Hurt]) -> float:
    """Seconds for each fault to have its turn, and none a second one; in milliseconds, for people to read."""
    return round(sum(turn.lasts + turn.rest for turn in itertools.islice(_rounds(plan, hurts), len(hurts))), 3)


def _rounds(plan: Plan, hurts: Sequence[Hurt]) -> Iterator[Turn]:
    dice = random.Random(plan.seed)
    numbers = itertools.count()
    while hurts:
        for hurt in dice.sample(hurts, len(hurts)):
            lasts = plan.ttl * dice.uniform(*hurt.lasts)
            yield Turn(hurt, lasts, plan.ttl * hurt.rest, f"{plan.seed}/{next(numbers)}")


class Field(Arena, Protocol):
    """Where it is at work."""

    def mend(self) -> None:
        """Other processes take the places of those that were killed, and are ready."""


class Nemesis(threading.Thread):
    """Carries out the `schedule`; if that is empty, it lets ``plan.seconds`` pass. A daemon thread."""

    def __init__(self, field: Field, hurts: Sequence[Hurt], log: Log, tell: Callable[[str], object]) -> None:
        super().__init__(name="torture-nemesis", daemon=True)
        self.failed: list[str] = []
        """Faults that could not be made, and why."""
        self._field, self._hurts, self._log, self._tell = field, hurts, log, tell
        self._over = threading.Event()

    def run(self) -> None:
        for turn in schedule(self._field.plan, self._hurts):
            if self._over.is_set():
                return
            self._strike(turn)
            self._over.wait(turn.rest)
        if not self._hurts:
            self._over.wait(self._field.plan.seconds)

    def stop(self) -> None:
        """Heals what is hurt, and ends."""
        self._over.set()

    def _strike(self, turn: Turn) -> None:
        hurt, on = turn.hurt, ""
        self._field.dice = random.Random(turn.seed)
        excused = sorted(fault.name for fault in hurt.excused)
        self._log.say("nemesis", What.STRIKES, fault=hurt.name, on=on, excused=excused)
        try:
            with hurt.strike(self._field) as on:
                self._log.say("nemesis", What.STRUCK, fault=hurt.name, on=on)
                self._tell(f"{hurt.name}: {on}, for {turn.lasts:.1f} s")
                self._over.wait(turn.lasts)
                self._log.say("nemesis", What.HEALS, fault=hurt.name, on=on)
            self._field.mend()
        except Exception as error:  # noqa: BLE001 - the others still get their turn
            self.failed.append(f"{hurt.name}: {type(error).__name__}: {error}")
        finally:
            self._log.say("nemesis", What.HEALED, fault=hurt.name, on=on)
