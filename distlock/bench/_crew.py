"""The worker processes of a run, as their parent sees them."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

from .. import DistLockError
from ._fight import Window
from ._jobs import Job, Trouble, serve
from ._race import BOARD, STOP, Duelist
from ._workers import child, workers

__all__ = ("Crew", "crew")


class Crew:
    """Used by one thread."""

    def __init__(self, pipes: Sequence[Connection], board: Any) -> None:
        self._pipes, self._board = pipes, board

    def run(
        self, jobs: Sequence[Job], warm_up: float, seconds: float, watch: Callable[[Window], Any] = lambda window: None
    ) -> tuple[list[Any], Any]:
        """A job for each of the first workers, all in one window, and what ``watch`` gives, which is called meanwhile.

        Raises what the first of them that failed has raised, when none is at work any more.
        """
        Duelist.clear(self._board)
        pipes = self._pipes[: len(jobs)]
        for pipe, job in zip(pipes, jobs, strict=True):
            pipe.send(job)
        first = [_received(pipe) for pipe in pipes]
        ready = [pipe for pipe, said in zip(pipes, first, strict=True) if not isinstance(said, Trouble)]
        window = Window.of(warm_up, seconds) if len(ready) == len(pipes) else None
        for pipe in ready:
            pipe.send(window)
        try:
            seen = watch(window) if window else None
        finally:
            done = [
                said if isinstance(said, Trouble) else _received(pipe) for pipe, said in zip(pipes, first, strict=True)
            ]
        return [_checked(said) for said in done], seen

    def entered_after_kill(self, victim: Job, waiter: Job, rest: float) -> int | None:
        """A process of its own does ``victim``'s job and is killed (SIGKILL) ``rest`` seconds after a worker has begun
        ``waiter``'s. Gives ns from the kill to what the waiter says."""
        Duelist.clear(self._board)
        with child(serve, self._board) as pipe:
            ours = self._pipes[0]
            for each, job in (pipe, victim), (ours, waiter):
                each.send(job)
                _checked(_received(each))
            ours.send(Window.of(0.0, 0.0))
            time.sleep(rest)
            killed = time.monotonic_ns()
        entered = _checked(_received(ours))
        return None if entered is None else entered - killed


def _checked(said: Any) -> Any:
    if isinstance(said, Trouble):
        raise said.error
    return said


def _received(pipe: Connection) -> Any:
    try:
        return pipe.recv()
    except (EOFError, OSError):
        raise DistLockError("a worker process has died") from None


@contextmanager
def crew(size: int) -> Iterator[Crew]:
    """So many processes, which are gone when the block is left."""
    board = multiprocessing.get_context("spawn").RawArray("q", BOARD)
    with workers(serve, [(board,)] * size) as pipes:
        try:
            yield Crew(pipes, board)
        finally:
            board[STOP] = 1
