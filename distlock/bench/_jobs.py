"""What a worker process does in one turn: it opens a way, gets ready, is told the window, and tells what came of it."""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from .. import DistLockError, LockLost
from ..testing.torture._colour import Colour
from ._fight import Tally, Window, fight
from ._race import STOP, SURELY_QUEUED, Duelist
from ._ways import Way

__all__ = ("PATIENCE", "Duel", "Enter", "Fight", "Hold", "Job", "Trouble", "Wait", "serve")

PATIENCE = 10.0
"""Seconds after which a lock that nobody keeps is not waited for any more."""
READY = "ready"
TICK = 0.05


@dataclass(frozen=True, slots=True)
class Trouble:
    """A job has failed."""

    error: DistLockError


class Stage:
    """What a job has of its process. Raises `EOFError` when the parent is gone."""

    def __init__(self, pipe: Connection, board: Any) -> None:
        self._pipe, self.board = pipe, board

    def window(self) -> Window | None:
        """Tells that all is ready, and hears when it begins; None if it does not."""
        self._pipe.send(READY)
        window: Window | None = self._pipe.recv()
        return window

    def stopped(self) -> bool:
        """All is to end as soon as may be."""
        return bool(self.board[STOP])

    async def sleep_until(self, moment: float, colour: Colour) -> None:
        """Or until it is stopped."""
        while (left := moment - time.monotonic()) > 0 and not self.stopped():
            await colour.sleep(min(left, TICK))

    async def cpu(self, window: Window, colour: Colour) -> float:
        """Seconds of processor time that this process takes in the window."""
        await self.sleep_until(window.counts_from, colour)
        before = time.process_time()
        await self.sleep_until(window.ends, colour)
        return time.process_time() - before


@dataclass(frozen=True)
class Job:
    """Can be pickled."""

    way: Way
    colour: str

    async def run(self, stage: Stage, colour: Colour) -> Any:
        """While the way is open."""
        raise NotImplementedError


@dataclass(frozen=True)
class Fight(Job):
    """A contender for each of ``keys``. Gives their tallies."""

    keys: tuple[str, ...]
    timeout: float = PATIENCE
    work: float = 0.0

    async def run(self, stage: Stage, colour: Colour) -> list[Tally]:
        mutexes = [self.way.mutex(key, self.timeout) for key in self.keys]
        first = self.way.mutex(self.keys[0], PATIENCE)
        if await first.acquire():  # connects
            await first.release()
        window = stage.window()
        return await fight(mutexes, window, colour, stage.stopped, work=self.work) if window else []


@dataclass(frozen=True)
class Duel(Job):
    """One of two that hand ``key`` to each other. Gives what `Duelist.ping_pong` does."""

    key: str
    me: int

    async def run(self, stage: Stage, colour: Colour) -> list[tuple[int, int]]:
        mutex = self.way.mutex(self.key, PATIENCE)
        if await mutex.acquire():
            await mutex.release()
        window = stage.window()
        if window is None:
            return []
        await stage.sleep_until(window.opens, colour)
        duelist = Duelist(stage.board, self.me)
        found = await duelist.ping_pong(mutex, window.ends - window.opens, SURELY_QUEUED, colour)
        return [(left, entered) for left, entered in found if entered >= window.counts_from * 1e9]


@dataclass(frozen=True)
class Hold(Job):
    """Holds all of ``keys``. Gives the processor time that takes."""

    keys: tuple[str, ...]

    async def run(self, stage: Stage, colour: Colour) -> float:
        held = []
        try:
            for key in self.keys:
                mutex = self.way.mutex(key, PATIENCE)
                if not await mutex.acquire():
                    raise DistLockError(f"{key!r} is held by somebody else")
                held.append(mutex)
            window = stage.window()
            return await stage.cpu(window, colour) if window else 0.0
        finally:
            for mutex in held:
                with suppress(LockLost):  # the figures are those of a machine that was too slow to renew
                    await mutex.release()


@dataclass(frozen=True)
class Wait(Job):
    """Contenders that wait for a lock that they do not get. Gives the processor time that takes."""

    key: str
    waiters: int

    async def run(self, stage: Stage, colour: Colour) -> float:
        window = stage.window()
        if window is None:
            return 0.0
        timeout = window.ends - time.monotonic() + 2 * TICK  # what giving up costs is not counted
        spent: list[float] = []
        errors: list[Exception] = []

        async def meter() -> None:
            spent.append(await stage.cpu(window, colour))

        waiting = [partial(self._wait, timeout, errors)] * self.waiters
        await colour.all([meter, *waiting])
        if errors:
            raise errors[0]
        return spent[0]

    async def _wait(self, timeout: float, errors: list[Exception]) -> None:
        try:
            mutex = self.way.mutex(self.key, timeout)
            if await mutex.acquire():
                await mutex.release()
        except Exception as error:  # noqa: BLE001 - in a thread: it is raised where all come together
            errors.append(error)


@dataclass(frozen=True)
class Enter(Job):
    """Waits for ``key``. Gives the moment when it was in, in ns by the monotonic clock; None if it was not."""

    key: str
    timeout: float

    async def run(self, stage: Stage, colour: Colour) -> int | None:
        if stage.window() is None:
            return None
        mutex = self.way.mutex(self.key, self.timeout)
        if not await mutex.acquire():
            return None
        entered = time.monotonic_ns()
        await mutex.release()
        return entered


def serve(pipe: Connection, board: Any) -> None:
    """The life of a worker process: one job after the other, until the pipe is closed."""
    logging.disable()  # what is wrong is told by the parent, in one line
    stage = Stage(pipe, board)
    with suppress(EOFError, OSError):
        while True:
            pipe.send(_done(pipe.recv(), stage))


def _done(job: Job, stage: Stage) -> Any:
    colour = Colour(job.colour)
    try:
        return colour.run(partial(_perform, job, stage, colour))
    except EOFError:
        raise
    except DistLockError as error:
        return Trouble(error)
    except Exception as error:  # noqa: BLE001 - of a driver
        return Trouble(DistLockError(f"{type(error).__name__}: {error}"))


async def _perform(job: Job, stage: Stage, colour: Colour) -> Any:
    await job.way.open(colour)
    try:
        return await job.run(stage, colour)
    finally:
        await job.way.close()
