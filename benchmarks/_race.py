"""Two processes, or many threads of one, that want the same lock."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from statistics import median
from typing import Any

from distlock._core.drive import drive
from distlock.bench import _race
from distlock.bench._race import BOARD, LAST, SURELY_QUEUED
from distlock.bench._workers import workers
from distlock.testing.torture._colour import Colour

from ._locks import MAKERS
from ._melee import Block

__all__ = ("Handoffs", "crowd", "duel")


@dataclass(frozen=True, slots=True)
class Handoffs:
    """What came of one round."""

    latency: float
    """Seconds from the moment before the release to the waiter being in, the median."""
    rate: float
    """Changes of the holder in a second, when all ask again at once."""
    acquisitions: float = 0.0
    """All of them in that second, those too with which the lock stayed where it was."""


class Duelist(_race.Duelist):
    """One of the two processes."""

    def __init__(self, board: Any, me: int, barrier: Barrier) -> None:
        super().__init__(board, me)
        self.barrier = barrier

    def meet(self) -> None:
        """Both of them, before anything is measured."""
        self.barrier.wait()
        if self.me == 0:
            self.clear(self.board)
        self.barrier.wait()

    def free_for_all(self, lock: AbstractContextManager[object], seconds: float) -> tuple[int, int]:
        """Asks again at once; how often the other one had had it, and how often it got in at all."""
        board, me, changes, entered = self.board, self.me, 0, 0
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            with lock:
                entered += 1
                if board[LAST] != me:
                    board[LAST] = me
                    changes += 1
        return changes, entered


def _work(pipe: Connection, place: Mapping[str, str], duelist: Duelist) -> None:
    locks = {name: MAKERS[name](where) for name, where in place.items()}
    try:
        while True:
            name, seconds, rest = pipe.recv()
            duelist.meet()
            found = drive(duelist.ping_pong(Block(locks[name]), seconds, rest, Colour("sync")))
            latencies = [entered - left for left, entered in found]
            duelist.meet()
            pipe.send((latencies, *duelist.free_for_all(locks[name], seconds if rest == SURELY_QUEUED else 0)))
    except (EOFError, KeyboardInterrupt):
        pass


@contextmanager
def duel(places: Mapping[str, str], rest: float = SURELY_QUEUED) -> Iterator[Callable[[str, float], Handoffs]]:
    """Two processes; gives a function that runs one round of one contender.

    With another ``rest`` than the shortest they never ask again at once, so that there is no rate.
    They are not bound to processors: where each has threads, those would wait for one another's.
    """
    context = multiprocessing.get_context("spawn")
    board, barrier = context.RawArray("q", BOARD), context.Barrier(2, timeout=60)
    with workers(_work, [(places, Duelist(board, me, barrier)) for me in (0, 1)]) as pipes:

        def run(name: str, seconds: float) -> Handoffs:
            for pipe in pipes:
                pipe.send((name, seconds, rest))
            outcomes = [pipe.recv() for pipe in pipes]
            latencies, changes, entered = zip(*outcomes, strict=True)
            return Handoffs(
                median([*latencies[0], *latencies[1]]) / 1e9, sum(changes) / seconds, sum(entered) / seconds
            )

        yield run


def crowd(locks: Sequence[AbstractContextManager[object]], seconds: float) -> Handoffs:
    """A thread for each of ``locks``, which are one and the same to the store; all ask again at once."""
    last: list[Any] = [None, 0]
    latencies: list[int] = []
    ready = threading.Barrier(len(locks))

    def work(lock: AbstractContextManager[object], me: int) -> None:
        ready.wait()
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            with lock:
                entered = time.monotonic_ns()
                if last[0] not in (me, None):
                    latencies.append(entered - last[1])
                last[:] = me, time.monotonic_ns()

    threads = [threading.Thread(target=work, args=(lock, me), daemon=True) for me, lock in enumerate(locks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Handoffs(median(latencies or [0]) / 1e9, len(latencies) / seconds)
