"""Cancellation at every step of every operation."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Iterator
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel

from ... import LeaseState
from ..colours import World, async_case

__all__ = ("Cancelling", "at_every_step")

_ENOUGH = 200
"""Steps that no operation takes."""


class Cancelling:
    """redis-py#3847 and others: a task was cancelled between two steps, and the lock stayed taken."""

    @async_case
    async def test_a_cancelled_acquire_leaves_nothing(self, world: World) -> None:
        for cancelled in at_every_step():
            lease = await cancelled(lambda: world.acquire(world.locks.lock("k", ttl=300)))
            if lease is not None:  # too late to be cancelled
                await world.release(lease)
            await _is_free(world)

    @async_case
    async def test_a_cancelled_try_leaves_nothing(self, world: World) -> None:
        for cancelled in at_every_step():
            lease = await cancelled(lambda: world.try_acquire(world.locks.lock("k", ttl=300)))
            if lease is not None:
                await world.release(lease)
            await _is_free(world)

    @async_case
    async def test_a_cancelled_waiter_leaves_nothing(self, world: World) -> None:
        """Before, while and after the lock is handed to it."""
        for cancelled in at_every_step():
            held = await world.acquire(world.other.lock("k", ttl=300))
            releasing = world.start(partial(_release_soon, held))
            lease = await cancelled(lambda: world.acquire(world.locks.lock("k", ttl=300)))
            await releasing.result()
            if lease is not None:
                await world.release(lease)
            await _is_free(world)

    @async_case
    async def test_a_cancelled_release_releases(self, world: World) -> None:
        for cancelled in at_every_step():
            lease = await world.acquire(world.locks.lock("k", ttl=300))
            await cancelled(lease.release)
            await world.release(lease)  # once more does no harm
            assert lease.state is LeaseState.RELEASED
            await _is_free(world)

    @async_case
    async def test_a_cancelled_extend_keeps_the_lease(self, world: World) -> None:
        for cancelled in at_every_step():
            lease = await world.acquire(world.locks.lock("k", ttl=300))
            await cancelled(partial(lease.extend, 200 if world.locks.guarantees.extend else None))
            assert lease.ensure_held() == lease.token
            assert await world.try_acquire(world.other.lock("k")) is None
            await world.release(lease)
            await _is_free(world)

    @async_case
    async def test_a_cancelled_block_releases(self, world: World) -> None:
        async def block() -> None:
            async with world.locks.lock("k", ttl=300):
                await anyio.lowlevel.checkpoint()

        for cancelled in at_every_step():
            await cancelled(block)
            await _is_free(world)


async def _is_free(world: World) -> None:
    async with world.block(world.other.lock("k", timeout=20)):
        pass
    await world.until(lambda: not world.other.inspect("k").waiters)
    await world.until(lambda: not world.locks._watchdog._chores)
    assert world.locks._watchdog.holds == []


async def _release_soon(lease: Any) -> None:
    await anyio.sleep(0.01)
    await lease.release()


def at_every_step() -> Iterator[Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]]]:
    """Gives a function that runs a call and cancels it at its first step; then at its second; up to its last."""
    for step in range(1, _ENOUGH):
        stepper = _Stepper(step)
        yield stepper.run
        if stepper.taken < step:
            return
    raise AssertionError("it does not end")


class _Stepper:
    def __init__(self, step: int) -> None:
        self.taken = 0
        self._step = step

    async def run(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """What it returned; None if it was cancelled."""
        with anyio.CancelScope() as scope:
            return await _Steps(self, call(), scope.cancel)
        return None

    def suspends(self, cancel: Callable[[], object]) -> None:
        self.taken += 1
        if self.taken == self._step:
            cancel()


class _Steps:
    """An awaitable around another one, that sees each of its suspensions."""

    def __init__(self, stepper: _Stepper, inner: Awaitable[Any], cancel: Callable[[], object]) -> None:
        self._stepper, self._inner, self._cancel = stepper, inner, cancel

    def __await__(self) -> Generator[Any, Any, Any]:
        inner = self._inner.__await__()
        resume: Callable[[], Any] = partial(next, inner)
        while True:
            try:
                suspension = resume()
            except StopIteration as done:
                return done.value
            self._stepper.suspends(self._cancel)
            try:
                sent = yield suspension
            except BaseException as error:  # noqa: BLE001 - it is the inner one's
                resume = partial(inner.throw, error)
            else:
                resume = partial(inner.send, sent)
