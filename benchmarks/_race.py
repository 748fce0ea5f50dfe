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


class Duelist:
    """One of the two processes."""

    def __init__(self, board: Any, me: int, barrier: Barrier) -> None:
        self.board, self.me, self.other, self.barrier = board, me, 1 - me, barrier

    def ping_pong(self, lock: AbstractContextManager[object], seconds: float) -> list[int]:
        """Hands over only to one that waits already, and asks again only after it got in; ns of each hand-over."""
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
                time.sleep(SURELY_QUEUED)
                board[STAMP] = time.monotonic_ns()
            self._until(lambda: board[LAST] == other or board[DONE + other])
        board[DONE + me] = 1
        return found

    @staticmethod
    def _until(true: Callable[[], object]) -> None:
        while not true():
            time.sleep(NAP)

    def free_for_all(self, lock: AbstractContextManager[object], seconds: float) -> int:
        """Asks again at once; how often the other one had had it."""
        board, me, changes = self.board, self.me, 0
        if me == 0:
            board[LAST] = -1
        self.barrier.wait()
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            with lock:
                if board[LAST] != me:
                    board[LAST] = me
                    changes += 1
        return changes


def _work(pipe: Connection, place: Mapping[str, str], duelist: Duelist) -> None:
    locks = {name: MAKERS[name](where) for name, where in place.items()}
    try:
        while True:
            name, seconds = pipe.recv()
            latencies = duelist.ping_pong(locks[name], seconds)
            duelist.barrier.wait()
            changes = duelist.free_for_all(locks[name], seconds)
            pipe.send((latencies, changes))
    except (EOFError, KeyboardInterrupt):
        pass


@contextmanager
def duel(places: Mapping[str, str]) -> Iterator[Callable[[str, float], Handoffs]]:
    """Two processes; gives a function that runs one round of one contender.

    They are not bound to processors: where each has threads, those would wait for one another's.
    """
    context = multiprocessing.get_context("spawn")
    board, barrier = context.RawArray("q", 6), context.Barrier(2, timeout=60)
    pipes, workers = [], []
    try:
        for me in (0, 1):
            ours, theirs = context.Pipe()
            worker = context.Process(target=_work, args=(theirs, places, Duelist(board, me, barrier)), daemon=True)
            worker.start()
            theirs.close()
            pipes.append(ours)
            workers.append(worker)

        def run(name: str, seconds: float) -> Handoffs:
            for pipe in pipes:
                pipe.send((name, seconds))
            outcomes = [pipe.recv() for pipe in pipes]
            latencies = [each for found, _ in outcomes for each in found]
            return Handoffs(median(latencies) / 1e9, sum(changes for _, changes in outcomes) / seconds)

        yield run
    finally:
        for pipe in pipes:
            pipe.close()
        for worker in workers:
            worker.join(3)
            if worker.is_alive():
                worker.kill()
                worker.join()


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
