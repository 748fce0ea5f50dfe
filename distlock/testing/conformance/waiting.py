"""Waiting, giving up, and who comes next."""

from __future__ import annotations

import time
from contextlib import suppress
from itertools import pairwise

import pytest

from ... import AcquireTimeout, BackendUnavailable, Deadlock
from ...backends.base import PROVISIONAL, now
from ..colours import World, case

__all__ = ("Waiting",)

_SHORT = 1.0
"""Seconds of a timeout that is to pass. Shorter, and a slow machine may get no answer in it: an outage, no timeout."""


class Waiting:
    @case
    async def test_a_release_wakes_the_waiter(self, world: World) -> None:
        """Well within the ttl: by the release, not by its end."""
        lease = await world.acquire(world.locks.lock("k", ttl=300))
        task = world.start(lambda: world.acquire(world.other.lock("k", ttl=300)))
        await world.queued("k", 1) if world.locks.guarantees.fair else await world.sleep(0.05)
        await world.release(lease)
        next_lease = await task.result()
        assert next_lease.token > lease.token
        await world.release(next_lease)

    @case
    async def test_first_come_first_served(self, world: World) -> None:
        if not world.locks.guarantees.fair:
            return
        order: list[int] = []
        times: list[float] = []

        async def work(n: int) -> None:
            async with world.block((world.locks if n % 2 else other).lock("k")):
                order.append(n)
                times.append(now())

        other = world.other
        async with world.block(world.locks.lock("k")):
            tasks = []
            for n in range(6):
                tasks.append(world.start(lambda n=n: work(n)))  # type: ignore[misc]
                await world.queued("k", n + 1)
            times.append(now())
        for task in tasks:
            await task.result()
        # Who is that late, as this whole process may be, is passed over.
        stood_still = any(after - before >= PROVISIONAL for before, after in pairwise(times))
        assert order == list(range(6)) or stood_still

    @case
    async def test_a_timeout_bounds_the_whole_wait(self, world: World) -> None:
        """python-redis-lock, kazoo: woken often and losing each time, it began anew."""
        async with world.block(world.locks.lock("k")):
            started = time.monotonic()
            with pytest.raises(AcquireTimeout):
                await world.acquire(world.locks.lock("k"), timeout=_SHORT)
            assert time.monotonic() - started >= _SHORT
            await world.queued("k", 0)
        async with world.block(world.other.lock("k", timeout=10)):
            pass

    @case
    async def test_a_waiter_that_gave_up_is_passed_over(self, world: World) -> None:
        lease = await world.acquire(world.locks.lock("k"))
        with pytest.raises(AcquireTimeout):
            await world.acquire(world.locks.lock("k"), timeout=_SHORT)
        task = world.start(lambda: world.acquire(world.locks.lock("k"), timeout=30))
        await world.queued("k", 1)
        await world.release(lease)
        await world.release(await task.result())

    @case
    async def test_a_grant_that_crossed_a_withdrawal_is_passed_on(self, world: World) -> None:
        """The lock is handed to a waiter at the moment at which it gives up."""
        other = world.other
        for n in range(15):
            lease = await world.acquire(world.locks.lock("k"))
            task = world.start(lambda: world.acquire(other.lock("k"), timeout=0.02))
            await world.sleep(0.014 + 0.001 * (n % 8))
            await world.release(lease)
            with suppress(AcquireTimeout, BackendUnavailable):  # the latter of a store that was slow to answer
                await world.release(await task.result())
            async with world.block(world.locks.lock("k", timeout=20)):
                pass

    @case
    async def test_waiting_for_oneself_is_said(self, world: World) -> None:
        """filelock#315: the same thread took a lock twice, and hung."""
        async with world.block(world.locks.lock("k")):
            with pytest.raises(Deadlock, match="reentrant=True"):
                await world.acquire(world.locks.lock("k"), timeout=None)
            with pytest.raises(AcquireTimeout):  # this one ends
                await world.acquire(world.locks.lock("k"), timeout=_SHORT)

    @case
    async def test_two_tasks_are_no_deadlock(self, world: World) -> None:
        lease = await world.acquire(world.locks.lock("k"))
        task = world.start(lambda: world.acquire(world.locks.lock("k"), timeout=None))
        await world.queued("k", 1)
        await world.release(lease)
        await world.release(await task.result())
