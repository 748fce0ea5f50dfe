"""Contenders of one process that all want locks: how often each gets one, and how long that takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from ..testing.torture._colour import Colour

__all__ = ("Mutex", "Tally", "Window", "fight")

START = 0.05
"""Seconds in which all processes surely hear of a turn."""


class Mutex(Protocol):
    """One contender's way to one lock, for a thread or task alone. In sync code no coroutine here suspends."""

    async def acquire(self) -> bool:
        """False: it was not to be had in time."""
        raise NotImplementedError

    async def release(self) -> None:
        """Gives it up."""


@dataclass(frozen=True, slots=True)
class Window:
    """When it is counted, by the monotonic clock, which is the same in all processes."""

    opens: float
    counts_from: float
    ends: float

    @classmethod
    def of(cls, warm_up: float, seconds: float) -> Window:
        opens = time.monotonic() + START
        return cls(opens, opens + warm_up, opens + warm_up + seconds)


@dataclass(slots=True)
class Tally:
    """What one contender has come to in a window."""

    waits: list[float] = field(default_factory=list)
    """Seconds of each acquire."""
    pairs: list[float] = field(default_factory=list)
    """Seconds of each acquire together with its release."""
    failed: int = 0
    """Attempts that came to nothing in time."""
    error: Exception | None = None


async def fight(
    mutexes: Sequence[Mutex],
    window: Window,
    colour: Colour,
    stopped: Callable[[], object] = lambda: False,
    *,
    work: float = 0.0,
) -> list[Tally]:
    """A contender for each of ``mutexes``; all ask again at once. ``work``: seconds that each holds the lock."""
    tallies = [Tally() for _ in mutexes]
    await colour.sleep(max(0.0, window.opens - time.monotonic()))
    contenders = zip(mutexes, tallies, strict=True)
    await colour.all([partial(_contend, *each, window, colour, stopped, work) for each in contenders])
    for tally in tallies:
        if tally.error is not None:
            raise tally.error
    return tallies


async def _contend(
    mutex: Mutex, tally: Tally, window: Window, colour: Colour, stopped: Callable[[], object], work: float
) -> None:
    try:
        while time.monotonic() < window.ends and not stopped():
            asked = time.monotonic()
            entered = await mutex.acquire()
            waited, returning = time.monotonic() - asked, 0.0
            if entered:
                if work:
                    await colour.sleep(work)
                leaving = time.monotonic()
                await mutex.release()
                returning = time.monotonic() - leaving
            if window.counts_from <= asked + waited < window.ends:
                if entered:
                    tally.waits.append(waited)
                    tally.pairs.append(waited + returning)
                else:
                    tally.failed += 1
            if colour.is_async:
                await colour.sleep(0)  # else a task that never has to wait would keep out the others
    except Exception as error:  # noqa: BLE001 - in a thread: it is raised where all come together
        tally.error = error
