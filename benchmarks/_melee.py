"""Many processes of many threads that all want one lock: how often each of them gets it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from multiprocessing.connection import Connection

from distlock.bench._fight import Window, fight
from distlock.bench._workers import workers
from distlock.testing.torture._colour import Colour

from ._locks import team

__all__ = ("Block", "melee")


class Block:
    """The two ends of a ``with`` block, for one thread."""

    def __init__(self, lock: AbstractContextManager[object]) -> None:
        self.lock = lock

    async def acquire(self) -> bool:
        """Waits for as long as it takes."""
        self.lock.__enter__()
        return True

    async def release(self) -> None:
        """Leaves it."""
        self.lock.__exit__(None, None, None)


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
    teams = {name: [Block(lock) for lock in team(name, place, threads)] for name in names}
    colour = Colour("sync")
    try:
        pipe.send("ready")
        while True:
            name, window = pipe.recv()
            tallies = colour.run(lambda name=name, window=window: fight(teams[name], window, colour))
            pipe.send([len(tally.waits) for tally in tallies])
    except (EOFError, KeyboardInterrupt):
        pass
