"""What users test their own code with: a store in memory, and leases that get lost."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import anyio
import pytest

import distlock
from distlock import LeaseState, LockLost, NotHeld, _default
from distlock.testing import in_memory, lose
from distlock.testing.colours import PATIENCE

from .aided import async_world, locks, running, world

__all__ = ("async_world", "locks", "world")

REPORT = distlock.lock("report", timeout=5)
"""As programs have it: made at import time, before anything is configured."""

pytestmark = pytest.mark.may_block  # losing a lease blocks the event loop it is called from


# The store in memory.


def test_recipes_made_earlier_use_it(locks):
    with REPORT as lease:
        assert lease.backend == "memory://default"
        assert locks.inspect("report").holder.token == lease.token


def test_decorators_use_it(locks):
    @distlock.locked("orders:{order}")
    def ship(order):
        assert locks.inspect(f"orders:{order}").holder is not None

    ship(7)


def test_each_is_fresh():
    with in_memory() as first, first.lock("k"), in_memory(), distlock.lock("k", timeout=0):
        pass


@pytest.mark.parametrize("configured", [True, False])
def test_what_was_configured_is_back_afterwards(monkeypatch, configured):
    with distlock.connect("memory://") as manager:
        monkeypatch.setattr(_default, "_default", manager if configured else None)
        with suppress(ZeroDivisionError), in_memory():
            distlock.configure("memory://another")
            raise ZeroDivisionError
        assert _default._default is (manager if configured else None)


def test_a_lease_that_was_left_open_is_named_and_lost():
    exits = ExitStack()
    locks = exits.enter_context(in_memory())
    lease = locks.lock("k").acquire()
    locks.lock("other").acquire().release()
    with pytest.warns(UserWarning, match=r"left open.*: 'k' \(test_testing_aids.py:\d+\)$"):
        exits.close()
    assert lease.state is LeaseState.LOST


def test_a_lost_lease_is_not_called_left_open():
    with in_memory() as locks:
        lease = locks.lock("k").acquire()
        lose(lease)


def test_a_lease_that_was_dropped_is_not_called_left_open_too():
    with in_memory() as locks:
        lease = locks.lock("k").acquire()
        with pytest.warns(ResourceWarning, match="dropped"):
            del lease


# Losing a lease.


@running
async def test_a_lease_is_lost_when_lose_returns(world):
    told = []
    lease = await world.acquire(world.locks.lock("k"))

    def tell() -> None:
        time.sleep(0.05)  # it is waited for
        told.append(lease.state)

    lease.on_lost(tell)
    await world.aside(partial(lose, lease))
    assert (lease.state, told) == (LeaseState.LOST, [LeaseState.LOST])
    with pytest.raises(LockLost, match="does not have it"):
        await world.release(lease)
    async with world.block(world.locks.lock("k", timeout=0)) as next_lease:
        assert next_lease.token > lease.token


@running
async def test_a_waiter_gets_what_was_lost(world):
    lease = await world.acquire(world.locks.lock("k"))
    task = world.start(lambda: world.acquire(world.locks.lock("k")))
    await world.queued("k", 1)
    lose(lease)
    await world.release(await task.result())


@running
async def test_losing_cancels_the_block(async_world):
    reached = False

    async def pay() -> None:
        nonlocal reached
        async with async_world.locks.lock("k") as lease:
            lose(lease)
            await anyio.sleep(PATIENCE)
            reached = True

    with pytest.raises(LockLost):
        await pay()
    assert not reached


def test_leases_that_share_a_grant_are_lost_together(locks):
    recipe = locks.lock("k", reentrant=True, owner="me")
    outer, inner = recipe.acquire(), recipe.acquire()
    lose(inner)
    assert outer.state is LeaseState.LOST
    locks.lock("k").acquire(timeout=0).release()


@pytest.mark.parametrize("scheme", ["file", "redis"])
def test_any_store_can_lose_a_lease(scheme, tmp_path: Path, redis_url, key):
    url = redis_url if scheme == "redis" else f"file://{tmp_path}"
    with distlock.connect(url) as locks, distlock.connect(url) as others:
        lease = locks.lock(key).acquire()
        lose(lease)
        assert lease.state is LeaseState.LOST
        others.lock(key).acquire(timeout=0).release()


def test_what_has_ended_cannot_be_lost(locks):
    lease = locks.lock("k").acquire()
    lease.release()
    with pytest.raises(NotHeld):
        lose(lease)
    lease = locks.lock("k").acquire()
    lose(lease)
    with pytest.raises(LockLost):
        lose(lease)


def test_a_callback_that_does_not_return_is_an_error(locks, monkeypatch):
    monkeypatch.setattr("distlock.testing._waiting.SETTLING", 0.01)
    over = threading.Event()
    lease = locks.lock("k").acquire()
    lease.on_lost(over.wait)
    with pytest.raises(RuntimeError, match="still runs"):
        lose(lease)
    over.set()
