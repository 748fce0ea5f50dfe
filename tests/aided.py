"""Tests of the testing aids, written once for every colour."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from distlock import Manager
from distlock.testing import VirtualClock, in_memory
from distlock.testing.colours import COLOURS, Colour

__all__ = ("World", "async_world", "locks", "running", "world")


class World(Colour):
    """One colour, and the clock as one moves it there."""

    def __init__(self, name: str, locks: Manager) -> None:
        super().__init__(name)
        self.locks = locks

    async def advance(self, clock: VirtualClock, seconds: float) -> None:
        await clock.advance_async(seconds) if self.is_async else clock.advance(seconds)

    async def queued(self, key: str, count: int) -> None:
        await self.until(lambda: len(self.locks.inspect(key).waiters) == count)


@pytest.fixture
def locks() -> Iterator[Manager]:
    with in_memory() as manager:
        yield manager


@pytest.fixture(params=COLOURS)
def world(request: pytest.FixtureRequest, locks: Manager) -> World:
    return World(str(request.param), locks)


@pytest.fixture(params=COLOURS[1:])
def async_world(request: pytest.FixtureRequest, locks: Manager) -> World:
    return World(str(request.param), locks)


def running(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """A test that is an async function, in the colour of its world."""

    def run(**fixtures: Any) -> None:
        world: World = fixtures.get("world") or fixtures["async_world"]
        world.run(lambda: test(**fixtures))  # type: ignore[arg-type, return-value]

    run.__name__, run.__doc__, run.__module__ = test.__name__, test.__doc__, test.__module__
    run.__signature__ = inspect.signature(test)  # type: ignore[attr-defined]
    return run
