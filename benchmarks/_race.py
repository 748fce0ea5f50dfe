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

from ._locks import MAKERS
from ._workers import workers

__all__ = ("Handoffs", "crowd", "duel")

NAP = 0.0002
SURELY_QUEUED = 0.002
"""Seconds after which one that was about to ask waits in earnest."""

LAST, STAMP, ASKING, DONE = 0, 1, 2, 4  # places on the board; the last two are one for each process


@dataclass(frozen=True, slots=True)
class Handoffs:
    """What came of one round."""

    latency: float
    """Seconds from the moment before the release to the waiter being in, the median."""
    rate: float
    """Changes of the holder in a second, when all ask again at once."""
    acquisitions: float = 0.0
    """All of them in that second, those too with which the lock stayed where it was."""


class Duelist:
    """One of the two processes."""

    def __init__(self, board: Any, me: int, barrier: Barrier) -> None:
        self.board, self.me, self.other, self.barrier = board, me, 1 - me, barrier

    def ping_pong(self, lock: AbstractContextManager[object], seconds: float, rest: float) -> list[int]:
        """Hands over only to one that waits already, and asks again only after it got in; ns of each hand-over.

        ``rest``: seconds between the other's wish and the release.
        """
        board, me, other = self.board, self.me, self.other
        if me == 0:
            board[:] = [-1, 0, 0, 0, 0, 0]
        self.barrier.wait()
        found: list[int] = []
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            board[ASKING + me] = 1
            with lock:
                entered = time.monotonic_ns()
                board[ASKING + me] = 0
                if board[LAST] == other:
                    found.append(entered - board[STAMP])
                board[LAST] = me
                self._until(lambda: board[ASKING + other] or board[DONE + other])
                time.sleep(rest)
                board[STAMP] = time.monotonic_ns()
            self._until(lambda: board[LAST] == other or board[DONE + other])
        board[DONE + me] = 1
        return found

    @staticmethod
    def _until(true: Callable[[], object]) -> None:
        while not true():
            time.sleep(NAP)

    def free_for_all(self, lock: AbstractContextManager[object], seconds: float) -> tuple[int, int]:
        """Asks again at once; how often the other one had had it, and how often it got in at all."""
        board, me, changes, entered = self.board, self.me, 0, 0
        if me == 0:
            board[LAST] = -1
        self.barrier.wait()
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
            latencies = duelist.ping_pong(locks[name], seconds, rest)
            duelist.barrier.wait()
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
    board, barrier = context.RawArray("q", 6), context.Barrier(2, timeout=60)
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
