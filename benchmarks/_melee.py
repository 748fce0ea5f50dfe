"""Many processes of many threads that all want one lock: how often each of them gets it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection

from ._locks import team
from ._workers import workers

__all__ = ("Window", "melee")

START = 0.05
"""Seconds in which all processes surely hear of a turn."""


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


@contextmanager
def melee(
    names: Sequence[str], place: str, processes: int, threads: int
) -> Iterator[Callable[[str, float, float], list[int]]]:
    """Gives a function of a contender's name, a warm-up and a time: the acquisitions of each thread in that time."""
    with workers(_work, [(names, place, threads)] * processes) as pipes:
        for pipe in pipes:
            pipe.recv()

        def run(name: str, warm_up: float, seconds: float) -> list[int]:
            window = Window.of(warm_up, seconds)
            for pipe in pipes:
                pipe.send((name, window))
            return [count for pipe in pipes for count in pipe.recv()]

        yield run


def _work(pipe: Connection, names: Sequence[str], place: str, threads: int) -> None:
    teams = {name: team(name, place, threads) for name in names}
    try:
        pipe.send("ready")
        while True:
            name, window = pipe.recv()
            pipe.send(_turn(teams[name], window))
    except (EOFError, KeyboardInterrupt):
        pass


def _turn(locks: Sequence[AbstractContextManager[object]], window: Window) -> list[int]:
    counts = [0] * len(locks)

    def fight(lock: AbstractContextManager[object], me: int) -> None:
        time.sleep(max(0.0, window.opens - time.monotonic()))
        while time.monotonic() < window.ends:
            with lock:
                if window.counts_from <= time.monotonic() < window.ends:
                    counts[me] += 1

    fighters = [threading.Thread(target=fight, args=(lock, me), daemon=True) for me, lock in enumerate(locks)]
    for fighter in fighters:
        fighter.start()
    for fighter in fighters:
        fighter.join()
    return counts
