"""Leases that end, and who is told."""

from __future__ import annotations

import gc
import logging
import os
import threading
import time
import warnings
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from ... import AcquireTimeout, LeaseState, LockLost, current
from ...backends.base import now
from ..colours import World, async_case, case

__all__ = ("Losing",)


class Losing:
    @case
    async def test_a_renewed_lease_outlives_its_ttl(self, world: World) -> None:
        async with world.block(world.locks.lock("k", ttl=4.0)) as lease:
            await world.sleep(4.3)
            assert lease.ensure_held() == lease.token
            assert await world.try_acquire(world.other.lock("k")) is None

    @case
    async def test_a_lease_that_is_not_renewed_ends(self, world: World) -> None:
        await world.warm_up()
        lost = threading.Event()
        lease = await world.acquire(world.locks.lock("k", ttl=0.3, renew=False))
        lease.on_lost(lost.set)
        next_lease = await world.acquire(world.other.lock("k"), timeout=30)
        assert lease.state is LeaseState.LOST
        await world.until(lost.is_set)
        with pytest.raises(LockLost):
            lease.ensure_held()
        with pytest.raises(LockLost):
            await world.release(lease)
        with pytest.raises(LockLost):  # never revived: aioredlock, redsync#149
            await world.extend(lease, 30)
        assert next_lease.ensure_held() > lease.token
        await world.release(next_lease)

    @case
    async def test_renewal_stops_at_max_hold(self, world: World) -> None:
        started = time.monotonic()
        lease = await world.acquire(world.locks.lock("k", ttl=3.0, max_hold=4.0))
        next_lease = await world.acquire(world.other.lock("k"), timeout=30)
        assert time.monotonic() - started > 3.5
        assert lease.state is LeaseState.LOST
        await world.release(next_lease)

    @case
    async def test_a_vanished_lease_is_noticed_by_the_next_renewal(self, world: World) -> None:
        """python-redis-lock: the key was gone, and the renewal went on as if nothing was."""
        called = []
        lease = await world.acquire(world.locks.lock("k", ttl=3.0))
        lease.on_lost(lambda: called.append(1))
        await world.aside(lambda: world.store.lose("k"))
        await world.until(lambda: called)
        assert lease.state is LeaseState.LOST
        with pytest.raises(LockLost):
            await world.release(lease)
        lease.on_lost(lambda: called.append(2))  # late, and told at once
        await world.until(lambda: called == [1, 2])

    @case
    async def test_a_lease_ended_by_force_is_lost(self, world: World) -> None:
        lease = await world.acquire(world.locks.lock("k", ttl=3.0))
        waiting = world.start(lambda: world.acquire(world.other.lock("k", ttl=30)))
        await world.queued("k", 1, world.other)
        assert await world.force_release(world.other, "k", lease.token)
        next_lease = await waiting.result()
        assert next_lease.token > lease.token
        await world.until(lambda: lease.state is LeaseState.LOST)
        with pytest.raises(LockLost):
            await world.release(lease)
        assert next_lease.ensure_held() == next_lease.token
        await world.release(next_lease)

    @case
    async def test_force_never_ends_a_newer_lease(self, world: World) -> None:
        old = await world.acquire(world.locks.lock("k"))
        assert not await world.force_release(world.other, "k", old.token + 1)
        await world.release(old)
        assert not await world.force_release(world.other, "k", old.token)
        lease = await world.acquire(world.locks.lock("k", ttl=6))
        assert not await world.force_release(world.other, "k", old.token)
        assert not await world.force_release(world.other, "another", lease.token)
        await _renewed(world, lease)
        assert lease.ensure_held() == lease.token
        assert await world.try_acquire(world.other.lock("k")) is None
        await world.release(lease)

    @case
    async def test_a_new_lease_after_a_lost_one_is_renewed(self, world: World) -> None:
        """redisson#3194: after a failed renewal the next lease of that key was not renewed."""
        lease = await world.acquire(world.locks.lock("k", ttl=3.0))
        await world.aside(lambda: world.store.lose("k"))
        await world.until(lambda: lease.state is LeaseState.LOST)
        async with world.block(world.locks.lock("k", ttl=6.0)) as again:
            await _renewed(world, again)
            again.ensure_held()

    @case
    async def test_the_error_of_the_body_comes_out(self, world: World) -> None:
        """redis-py: LockNotOwnedError of the release hid what had gone wrong."""
        await world.warm_up()
        with pytest.raises(ValueError, match="mine") as caught:
            async with world.block(world.locks.lock("k", ttl=1.0, renew=False, when_lost="raise")) as lease:
                await world.until(lambda: lease.state is LeaseState.LOST)
                raise ValueError("mine")
        assert any("is lost" in note for note in getattr(caught.value, "__notes__", ()))

    @case
    async def test_a_body_that_ended_well_learns_of_the_loss(self, world: World) -> None:
        await world.warm_up()
        with pytest.raises(LockLost):
            async with world.block(world.locks.lock("k", ttl=0.3, renew=False, when_lost="raise")) as lease:
                await world.until(lambda: lease.state is LeaseState.LOST)

    @case
    async def test_a_loss_may_be_a_mere_warning(self, world: World) -> None:
        await world.warm_up()
        said: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
        logging.getLogger("distlock").addHandler(handler)
        try:
            async with world.block(world.locks.lock("k", ttl=1.0, renew=False, when_lost="warn")) as lease:
                await world.until(lambda: lease.state is LeaseState.LOST)
        finally:
            logging.getLogger("distlock").removeHandler(handler)
        assert any("'k'" in line and "is lost" in line for line in said)

    @async_case
    async def test_an_async_body_is_cancelled_at_the_loss(self, world: World) -> None:
        await world.warm_up()
        lock = world.locks.lock("k", ttl=0.3, renew=False)
        finished = False
        with anyio.fail_after(30):
            with pytest.raises(LockLost):
                async with lock:
                    await anyio.sleep(60)
                    finished = True
        assert not finished
        with anyio.move_on_after(5) as scope:  # nothing of the cancellation is left behind
            await anyio.lowlevel.checkpoint()
        assert not scope.cancelled_caught

    @async_case
    async def test_a_cancellation_from_outside_stays_one(self, world: World) -> None:
        with anyio.move_on_after(0.05) as scope:
            async with world.locks.lock("k"):
                await anyio.sleep(60)
        assert scope.cancelled_caught
        async with world.locks.lock("k", timeout=10):
            pass

    @case
    async def test_a_blocked_event_loop_keeps_its_locks(self, world: World) -> None:
        """python-redis-lock#91: renewal as a task stops when user code blocks the loop."""
        async with world.block(world.locks.lock("k", ttl=4.0)) as lease:
            time.sleep(4.3)  # noqa: ASYNC251 - that is the point
            lease.ensure_held()

    @case
    async def test_a_dropped_lease_is_not_renewed(self, world: World) -> None:
        """And the store frees it: no blocking call is made while garbage is collected."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            lease = await world.acquire(world.locks.lock("k", ttl=3.0))
            token = lease.token
            del lease
            gc.collect()
        assert any(warning.category is ResourceWarning and "'k'" in str(warning.message) for warning in caught)
        if world.locks.guarantees.dead_holder == "ttl":
            async with world.block(world.other.lock("k", timeout=30)) as next_lease:
                assert next_lease.token > token

    @case
    async def test_current_is_the_innermost_block(self, world: World) -> None:
        async with world.block(world.locks.lock("a")) as outer:
            assert current() is outer
            async with world.block(world.locks.lock("b")) as inner:
                assert current() is inner
            assert current() is outer

    @case
    async def test_closing_the_manager_ends_its_leases(self, world: World) -> None:
        manager = await world.aside(world.connect)
        lease = await world.acquire(manager.lock("k"))
        await world.aside(manager.close)
        assert lease.state is LeaseState.LOST
        async with world.block(world.locks.lock("k", timeout=20)):
            pass
        with pytest.raises(Exception, match="was closed"):
            await world.acquire(manager.lock("k"))

    @case
    async def test_closing_leaves_no_thread_and_no_file(self, world: World) -> None:
        """redisson#7272: what served the locks stayed behind them."""
        await world.queued("k", 0)  # what this needs itself is there from now on
        before = _threads(), _files()
        manager = await world.aside(world.connect)
        async with world.block(manager.lock("k")), world.block(manager.lock("a")):
            task = world.start(lambda: world.acquire(manager.lock("k"), timeout=20))
            await world.queued("k", 1) if world.locks.guarantees.fair else await world.sleep(0.05)
        await world.release(await task.result())
        await (manager.aclose() if world.is_async else world.aside(manager.close))
        await world.until(lambda: _threads() <= before[0])
        await world.until(lambda: _files() <= before[1])

    @case
    async def test_errors_name_key_and_store(self, world: World) -> None:
        async with world.block(world.locks.lock("k")):
            with pytest.raises(AcquireTimeout) as caught:
                await world.acquire(world.locks.lock("k"), timeout=0)
        assert caught.value.key == "k"
        assert caught.value.backend == world.locks.address
        assert world.locks.address in str(caught.value)


def _threads() -> set[threading.Thread]:
    """All but the workers of the event loops."""
    workers = ("AnyIO", "Trio", "trio")
    threads = [thread for thread in threading.enumerate() if not type(thread).__module__.startswith("anyio")]
    return {thread for thread in threads if not (thread.name.startswith(workers) or " from " in thread.name)}


def _files() -> int:
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


async def _renewed(world: World, lease: Any) -> None:
    """Until it is proven for longer than it is at first."""
    end = now() + lease.remaining()
    await world.until(lambda: now() + lease.remaining() > end + 0.1)
