"""What is measured: each gives a function that does one round of one contender, and the figures of that round."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import asdict
from statistics import median

from .._machine import CLIENT, pin
from .._measure import ROUND_SECONDS, Pace
from .._melee import Window
from .._stores import Store
from ._driver import Crew

__all__ = ("ALONE", "PREPARE", "ROUNDS", "UNITS", "Round", "waiting")

Round = Callable[[], dict[str, float]]

ROUNDS = {"uncontended": 100, "hand-off": 12, "contended": 6}
UNITS = {"uncontended": "µs", "hand-off": "µs", "contended": "/s", "fairness": "", "waiting": "/s"}
"""By figure; a time is measured in seconds."""


def uncontended(crew: Crew, pace: Pace) -> Round:
    """Seconds for one acquire and release of a lock that nobody else wants, by one thread or task."""
    (worker,), key, count = crew.first(1), f"{crew.adapter}-uncontended", 10
    pin(worker.pid, CLIENT)
    worker.ask("pairs", key=key, count=count)  # connects
    while (seconds := worker.ask("pairs", key=key, count=count)) < ROUND_SECONDS / 3:
        count *= 2
    count = max(10, round(count * ROUND_SECONDS / seconds))
    return lambda: {"uncontended": worker.ask("pairs", key=key, count=count) / count}


HAND_OFFS = 4
SURELY_QUEUED = 0.01
REST = (2 * SURELY_QUEUED, 2 * SURELY_QUEUED + 0.2)
"""Seconds before a release, by lot over the pauses of those who ask every 0.1 or 0.2 s: else their phase would show."""


def hand_off(crew: Crew, pace: Pace) -> Round:
    """Seconds from the moment before the release to the other process being in, the median of some."""
    pair, key = crew.first(2), f"{crew.adapter}-hand-off"

    def once() -> dict[str, float]:
        holder, waiter = pair
        holder.ask("take", key=key)
        found: list[float] = []
        patience = 1
        while len(found) < pace.of(HAND_OFFS, 2):
            waiter.send("take", key=key)
            time.sleep(random.uniform(*REST) * patience)
            given = holder.ask("give", key=key)
            asked, entered = waiter.reply()
            if given - asked > SURELY_QUEUED * 1e9:
                found.append((entered - given) / 1e9)
            else:
                patience += 1  # a slow machine
            holder, waiter = waiter, holder
        holder.ask("give", key=key)
        return {"hand-off": median(found)}

    once()  # connects
    return once


PROCESSES, SIZE = 4, 2
WARM_UP, SECONDS = 0.5, 1.5


def contended(crew: Crew, pace: Pace) -> Round:
    """Acquisitions of all threads in a second, and those of the luckiest by those of the unluckiest."""
    workers, key = crew.first(PROCESSES), f"{crew.adapter}-contended"
    warm_up, seconds = pace.of(WARM_UP, 0.1), pace.of(SECONDS, 0.3)

    def once() -> dict[str, float]:
        window = asdict(Window.of(warm_up, seconds))
        for worker in workers:
            worker.send("fight", key=key, size=SIZE, **window)
        counts = [count for worker in workers for count in worker.reply()]
        return {"contended": sum(counts) / seconds, "fairness": max(counts) / (min(counts) or 0.5)}

    once()  # connects
    return once


WAITERS = 20
SETTLED, WATCHED = 3.0, 15.0
"""Seconds; with the lock held before, less than it lasts, and more than anything takes that recurs."""


def waiting(crew: Crew, store: Store, pace: Pace) -> dict[str, float]:
    """Requests in a second of a process whose 20 threads or tasks wait for a lock that nobody gives back.

    Who holds it is killed before it is counted, so that all requests are those of who waits.
    """
    assert store.heard
    (holder, waiter), key = crew.first(2), f"{crew.adapter}-waiting"
    holder.ask("take", key=key)
    waiter.ask("wait", key=key, size=WAITERS)
    time.sleep(pace.of(SETTLED, 0.5))
    holder.kill()
    seconds = pace.of(WATCHED, 1.0)
    return {"waiting": store.heard(seconds) / seconds}


ALONE = ("uncontended",)
"""One client and the server, each with a processor of its own: else the figures say which two the kernel chose."""
PREPARE = {"uncontended": uncontended, "hand-off": hand_off, "contended": contended}
