"""Tests of the testing aids, written once for every colour."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any

from distlock import Manager
from distlock.testing import VirtualClock
from distlock.testing.colours import Colour

__all__ = ("World", "running")


class World(Colour):
    """One colour, and the clock as one moves it there."""

    def __init__(self, name: str, locks: Manager) -> None:
        super().__init__(name)
        self.locks = locks

    async def advance(self, clock: VirtualClock, seconds: float) -> None:
        await clock.advance_async(seconds) if self.is_async else clock.advance(seconds)

    async def queued(self, key: str, count: int) -> None:
        await self.until(lambda: len(self.locks.inspect(key).waiters) == count)


def running(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """A test that is an async function, in the colour of its world."""

    def run(**fixtures: Any) -> None:
        world: World = fixtures.get("world") or fixtures["async_world"]
        world.run(lambda: test(**fixtures))  # type: ignore[arg-type, return-value]

    run.__name__, run.__doc__, run.__module__ = test.__name__, test.__doc__, test.__module__
    run.__signature__ = inspect.signature(test)  # type: ignore[attr-defined]
    return run
