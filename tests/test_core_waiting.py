"""Waiting and extending over a store that wakes too often, too late or never, in every colour."""

from __future__ import annotations

import asyncio
import threading
import time
from functools import partial
from typing import Any

import pytest

from distlock import AcquireTimeout, BackendUnavailable, Manager, Unsupported
from distlock._core import acquire as core
from distlock._core.loops import AsyncRuntime
from distlock.backends.base import Busy, Claim, Done, Grant, Renewal, Subscription, Wake, now
from distlock.backends.memory import MemoryBackend
from distlock.testing import Store, World, case

PATIENCE = 30.0


class Counting(MemoryBackend):
    """Counts how often it is asked, and by how many at a time; keeps the wake-ups for the test to use."""

    never_blocks = False

    def __init__(self) -> None:
        super().__init__("counting")
        self.asked: dict[str, int] = {}
        self.asking = 0
        self.most_at_a_time = 0
        self.wakes_of: list[Wake] = []
        self.deaf = False
        self._count = threading.Lock()

    def acquire(self, claim: Claim, deadline: float) -> Grant | Busy | Done:
        with self._count:
            self.asked[claim.id] = self.asked.get(claim.id, 0) + 1
            self.asking += 1
            self.most_at_a_time = max(self.most_at_a_time, self.asking)
        try:
            outcome = super().acquire(claim, deadline)
            return Busy(claim, outcome.holder) if self.deaf and isinstance(outcome, Busy) else outcome
        finally:
            with self._count:
                self.asking -= 1

    def watch(self, busy: Busy, wake: Wake, deadline: float) -> Subscription:
        self.wakes_of.append(wake)
        return super().watch(busy, (lambda: None) if self.deaf else wake, deadline)


class Strict(MemoryBackend):
    """Shortens a lease when it is extended by less, as the contract allows; replies get lost."""

    never_blocks = False

    def __init__(self) -> None:
        super().__init__("strict")
        self.silent = False

    def extend(self, grant: Grant, ttl: float, deadline: float) -> Renewal:
        outcome = super().extend(grant, ttl, deadline)
        self._locks[grant.claim.key].expires = now() + ttl
        if self.silent:
            raise BackendUnavailable("no reply", backend=self.address, sent=True)
        return outcome


@pytest.fixture
def backend() -> Counting:
    return Counting()


class TestWaiting:
    @pytest.fixture
    def store(self, backend: Counting) -> Store:
        return Store(connect=partial(Manager, backend), lose=backend._locks.pop)

    @pytest.fixture(autouse=True)
    def _own_backend(self, backend: Counting) -> None:
        self.backend = backend

    @case
    async def test_a_flood_of_wake_ups_is_no_spin(self, world: World) -> None:
        """rueidis 4e74bce: each wake-up was one more check, and they piled up."""
        lease = await world.acquire(world.other.lock("k"))
        task = world.start(lambda: world.acquire(world.locks.lock("k"), timeout=PATIENCE))
        await world.until(lambda: self.backend.wakes_of)
        wake, started = self.backend.wakes_of[0], time.monotonic()
        woken = checks = 0
        while checks < 50:
            wake()
            woken += 1
            await world.sleep(0)
            checks = max(self.backend.asked.values())
        lasted = time.monotonic() - started
        assert woken > 3 * checks  # there was a flood
        assert checks <= lasted / core.CALM + 3
        assert self.backend.most_at_a_time == 1
        await world.release(lease)
        await world.release(await task.result())

    @case
    async def test_a_waiter_that_is_woken_often_still_keeps_its_time(self, world: World) -> None:
        """python-redis-lock, kazoo: each wake-up began the timeout anew."""
        lease = await world.acquire(world.other.lock("k"))
        started = time.monotonic()
        task = world.start(lambda: world.acquire(world.locks.lock("k"), timeout=2.0))
        while not task.done:
            for wake in self.backend.wakes_of:
                wake()
            await world.sleep(0.05)
            assert time.monotonic() - started < PATIENCE
        with pytest.raises(AcquireTimeout):
            await task.result()
        assert time.monotonic() - started >= 2.0
        assert not self.backend._locks["k"].queue
        await world.release(lease)

    @case
    async def test_a_wake_up_that_gets_lost_costs_one_check(self, world: World) -> None:
        """redisson#5761: the subscription died, and the waiter slept for ever."""
        self.backend.deaf = True
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(core, "RECHECK", 0.3)
            lease = await world.acquire(world.other.lock("k"))
            task = world.start(lambda: world.acquire(world.locks.lock("k"), timeout=PATIENCE))
            await world.until(lambda: self.backend.wakes_of)
            await world.release(lease)
            await world.release(await task.result())

    @case
    async def test_a_release_between_the_try_and_the_watch_is_not_missed(self, world: World) -> None:
        """redisson#5761."""
        lease = await world.acquire(world.other.lock("k"))
        watch = self.backend.watch

        def released_just_before(*args: Any) -> Subscription:
            self.backend.release(lease._hold.grant, now() + 5)
            return watch(*args)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.backend, "watch", released_just_before)
            next_lease = await world.acquire(world.locks.lock("k"), timeout=PATIENCE)
        assert max(self.backend.asked.values()) == 2
        await world.release(next_lease)
        with pytest.raises(Exception, match="is lost"):
            await world.release(lease)


class TestExtending:
    @pytest.fixture
    def store(self) -> Store:
        self.backend = Strict()
        return Store(connect=partial(Manager, self.backend), lose=self.backend._locks.pop)

    @case
    async def test_a_shortening_whose_reply_was_lost_is_believed(self, world: World) -> None:
        """The store may end the lease at the new time already: nobody may count on the old one."""
        lease = await world.acquire(world.locks.lock("k", ttl=60))
        self.backend.silent = True
        with pytest.raises(BackendUnavailable):
            await world.extend(lease, 5)
        assert lease._hold.deadline <= self.backend._locks["k"].expires
        assert lease.remaining() > 0
        self.backend.silent = False
        await world.extend(lease, 20)
        assert lease.remaining() > 5
        await world.release(lease)

    @case
    async def test_a_shortening_that_was_not_sent_changes_nothing(self, world: World) -> None:
        lease = await world.acquire(world.locks.lock("k", ttl=60))

        def refuse(*_: object) -> Renewal:
            raise Unsupported("no other length")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.backend, "extend", refuse)
            with pytest.raises(Unsupported):
                await world.extend(lease, 5)
        assert lease.remaining() > 50
        await world.release(lease)


def test_a_cancellation_that_comes_just_when_a_wait_ends_is_not_lost() -> None:
    """A scope of anyio swallows it on Python 3.10: the task waited for ever, and so did ``asyncio.run``."""
    short = 0.01

    async def wait() -> None:
        await AsyncRuntime(shields=False).signal().wait(now() + short)

    async def cancelled_at_its_end() -> None:
        waiting = asyncio.ensure_future(wait())
        await asyncio.sleep(0)  # it waits
        asyncio.get_running_loop().call_later(short, waiting.cancel)
        time.sleep(2 * short)  # noqa: ASYNC251 - both are due in one turn of the loop, the wait's own end first
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(cancelled_at_its_end())
