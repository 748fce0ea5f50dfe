"""A clock that stands still: moved by the test, and by those who wait."""

from __future__ import annotations

import importlib
import math
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from functools import partial

import anyio
import anyio.from_thread
import pytest

from distlock import AcquireTimeout, BackendUnavailable, LeaseState, LockLost, Manager, _clock, _manager
from distlock._core import acquire as core_acquire
from distlock.backends.base import Claim, now
from distlock.testing import Tap, VirtualClock
from distlock.testing.colours import COLOURS, PATIENCE

from .aided import async_world, locks, running, world

__all__ = ("async_world", "locks", "world")

pytestmark = pytest.mark.may_block  # moving the clock blocks the event loop it is called from


@pytest.fixture
def clock(locks: Manager) -> Iterator[VirtualClock]:
    with VirtualClock() as clock:
        yield clock


# Moved by hand.


@running
async def test_the_time_stands_still(world, clock):
    async with world.block(world.locks.lock("k", ttl=0.1, renew=False)) as lease:
        left = lease.remaining()
        await world.sleep(0.2)
        assert lease.remaining() == left


@running
async def test_a_renewed_lease_outlives_its_ttl(world, clock):
    async with world.block(world.locks.lock("k", ttl=30)) as lease:
        began = clock.now()
        await world.advance(clock, 300)
        assert clock.now() - began == 300
        assert 19 < lease.remaining() <= 30
        assert await world.try_acquire(world.locks.lock("k")) is None


@pytest.mark.parametrize(
    ("options", "held", "lost"), [({"ttl": 10, "renew": False}, 9.897, 9.899), ({"ttl": 10, "max_hold": 60}, 59.9, 60)]
)
@running
async def test_a_lease_is_lost_when_its_time_is_over(world, clock, options, held, lost):
    told = []
    began = clock.now()

    def tell() -> None:
        time.sleep(0.05)  # it is waited for
        told.append(clock.now() - began)

    lease = await world.acquire(world.locks.lock("k", **options))
    lease.on_lost(tell)
    await world.advance(clock, held)
    assert (lease.state, told) == (LeaseState.HELD, [])
    await world.advance(clock, lost - held)
    assert lease.state is LeaseState.LOST
    assert held < told[0] <= lost
    async with world.block(world.locks.lock("k", timeout=0)):
        pass


@running
async def test_whoever_waits_gets_the_lock_when_it_comes_free(world, clock):
    """Not at the end of the advance."""
    clock.autojump_threshold = math.inf
    began = clock.now()
    holder = await world.acquire(world.locks.lock("k", ttl=10, renew=False))
    task = world.start(lambda: world.acquire(world.locks.lock("k", ttl=5)))
    await world.queued("k", 1)
    await world.advance(clock, 300)
    assert task.done
    lease = await task.result()
    assert holder.state is LeaseState.LOST
    assert lease.acquired_at - began == pytest.approx(9.898)
    assert lease.state is LeaseState.HELD
    await world.release(lease)


@running
async def test_those_that_give_up_have_done_so(world, clock):
    clock.autojump_threshold = math.inf
    async with world.block(world.locks.lock("k")):
        tasks = [world.start(partial(world.acquire, world.locks.lock("k", timeout=60 * n))) for n in (1, 2)]
        await world.queued("k", 2)
        await world.advance(clock, 90)
        await world.queued("k", 1)
        with pytest.raises(AcquireTimeout, match="in 60 s"):
            await tasks[0].result()
        assert not tasks[1].done
        await world.advance(clock, 30)
        with pytest.raises(AcquireTimeout):
            await tasks[1].result()


@running
async def test_a_loss_cancels_the_block_of_another_task(async_world, clock):
    cancelled = []

    async def pay() -> None:
        async with async_world.locks.lock("k", ttl=10, renew=False):
            try:
                await anyio.sleep(PATIENCE)
            except BaseException:
                cancelled.append(clock.now())
                raise

    task = async_world.start(pay)
    await async_world.until(lambda: async_world.locks.inspect("k").holder)
    await clock.advance_async(9)
    assert cancelled == []
    await clock.advance_async(1)
    assert len(cancelled) == 1
    with pytest.raises(LockLost):
        await task.result()


@running
async def test_whoever_asked_in_vain_hears_of_the_next_release(world, clock):
    clock.autojump_threshold = math.inf
    lease = await world.acquire(world.locks.lock("k", ttl=30))
    task = world.start(lambda: world.acquire(world.locks.lock("k")))
    await world.queued("k", 1)
    await world.advance(clock, 30)  # when it would be free if it had not been renewed
    await world.release(lease)
    await world.release(await task.result())


@running
async def test_advance_does_not_wait_for_the_loop_that_waits_for_it(async_world, clock):
    clock.autojump_threshold = math.inf
    async with async_world.locks.lock("k"):
        task = async_world.start(lambda: async_world.acquire(async_world.locks.lock("k", timeout=60)))
        await async_world.queued("k", 1)
        clock.advance(60)
        with pytest.raises(AcquireTimeout):
            await task.result()


@pytest.mark.parametrize("loop", COLOURS[1:])
def test_another_threads_event_loop_takes_part(locks, clock, loop):
    clock.autojump_threshold = math.inf
    with locks.lock("k", ttl=10), anyio.from_thread.start_blocking_portal(loop) as portal:
        future = portal.start_task_soon(locks.lock("k", timeout=60).acquire_async)
        while not locks.inspect("k").waiters:
            time.sleep(0.001)
        clock.advance(59)
        assert not future.done()
        clock.advance(1)
        with pytest.raises(AcquireTimeout):
            future.result(PATIENCE)


def test_any_thread_may_move_it(locks, clock):
    lease = locks.lock("k", ttl=10, renew=False).acquire()
    threads = [threading.Thread(target=clock.advance, args=[n]) for n in (5, 20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lease.state is LeaseState.LOST


@pytest.mark.parametrize("seconds", [-1, math.inf, math.nan])
def test_the_time_goes_forward(clock, seconds):
    with pytest.raises(ValueError, match="goes forward"):
        clock.advance(seconds)


# Moved by those who wait.


@running
async def test_a_timeout_takes_no_time(world, clock):
    """Those who hold the lock and wait for it are one and the same here."""
    began, really = clock.now(), time.monotonic()
    async with world.block(world.locks.lock("k", ttl=30)) as lease:
        with pytest.raises(AcquireTimeout, match=r"in 3.6e\+03 s"):
            await world.acquire(world.locks.lock("k"), timeout=3600)
        assert lease.state is LeaseState.HELD
    assert clock.now() - began == pytest.approx(3600)
    assert time.monotonic() - really < PATIENCE


@running
async def test_a_task_that_waits_jumps_too(world, clock):
    async with world.block(world.locks.lock("k")):
        tasks = [world.start(partial(world.acquire, world.locks.lock("k", timeout=60 * n))) for n in (1, 2)]
        for task in tasks:
            with pytest.raises(AcquireTimeout):
                await task.result()


@running
async def test_a_jump_goes_no_further_than_the_end_of_the_holder(world, clock):
    began = clock.now()
    holder = await world.acquire(world.locks.lock("k", ttl=10, renew=False))
    lease = await world.acquire(world.locks.lock("k", timeout=3600))
    assert holder.state is LeaseState.LOST
    assert lease.acquired_at - began == pytest.approx(9.898)
    await world.release(lease)


@running
async def test_a_holder_that_is_about_to_release_is_waited_for(world, clock):
    clock.autojump_threshold = 5.0
    began = clock.now()
    lease = await world.acquire(world.locks.lock("k"))
    task = world.start(lambda: world.acquire(world.locks.lock("k", timeout=60)))
    await world.queued("k", 1)
    await world.sleep(0.02)
    await world.release(lease)
    await world.release(await task.result())
    assert clock.now() == began


@running
async def test_the_first_to_give_up_lets_the_next_one_go_on(world, clock):
    """It released what the other one waited for."""
    clock.autojump_threshold = 0.5
    began = clock.now()

    holding = threading.Event()

    async def first() -> None:
        async with world.block(world.locks.lock("a")):
            holding.set()
            with pytest.raises(AcquireTimeout):
                await world.acquire(world.locks.lock("k"), timeout=60)
            await world.sleep(0.05)

    async with world.block(world.locks.lock("k")):
        task = world.start(first)
        await world.until(holding.is_set)
        async with world.block(world.locks.lock("a", timeout=3600)):
            assert clock.now() - began == pytest.approx(60)
        await task.result()


@running
async def test_what_a_loss_sets_off_comes_before_the_next_jump(world, clock):
    """Its callback releases what the other one waits for."""
    clock.autojump_threshold = 1.0
    began = clock.now()
    kept = world.locks.lock("k").acquire()

    def release() -> None:
        time.sleep(0.05)
        kept.release()

    short = world.locks.lock("short", ttl=10, renew=False).acquire()
    short.on_lost(release)
    async with world.block(world.locks.lock("k", timeout=3600)):
        assert clock.now() - began == pytest.approx(9.898)
    assert short.state is LeaseState.LOST


def test_nobody_jumps_while_the_test_moves_the_time(locks, clock):
    clock.autojump_threshold = 0.0
    began = clock.now()
    seen: list[float] = []

    def wait() -> None:
        with suppress(AcquireTimeout):
            locks.lock("k", timeout=3600).acquire()

    def look() -> None:
        waiter.start()
        time.sleep(0.1)  # it would be over by now
        seen.append(clock.now() - began)

    waiter = threading.Thread(target=wait)
    with locks.lock("k"):
        short = locks.lock("short", ttl=10, renew=False).acquire()
        short.on_lost(look)
        clock.advance(20)
        waiter.join(PATIENCE)
    assert seen == [pytest.approx(9.898)]


@pytest.mark.parametrize(("threshold", "timeout"), [(math.inf, 60), (0.01, None)])
@running
async def test_nobody_jumps_unasked_or_without_a_timeout(world, clock, threshold, timeout):
    clock.autojump_threshold = threshold
    began = clock.now()
    lease = await world.acquire(world.locks.lock("k"))
    task = world.start(lambda: world.acquire(world.locks.lock("k", timeout=timeout)))
    await world.queued("k", 1)
    await world.sleep(0.1)
    assert clock.now() == began
    await world.release(lease)
    await world.release(await task.result())


@running
async def test_a_store_that_breaks_while_we_wait_is_an_error_all_the_same(world, clock):
    clock.autojump_threshold = 0.01
    tap = Tap(world.locks._backend)
    with Manager(tap) as manager:
        async with world.block(world.locks.lock("k")):
            tap.after["watch"] = lambda: tap.before.update(acquire=tap.down)
            with pytest.raises(BackendUnavailable):
                await world.acquire(manager.lock("k"), timeout=3600)


# Its beginning and its end.


def test_real_time_is_back_at_the_end():
    real = _clock.now
    names, managers = vars(core_acquire).copy(), vars(_manager).copy()
    with VirtualClock() as clock:
        assert vars(core_acquire)["now"]() == _clock.now() == now() == clock.now()
        assert vars(_manager) != managers
    assert _clock.now is now is real
    assert vars(core_acquire) == names
    assert vars(_manager) == managers


def test_what_is_imported_meanwhile_gets_the_real_time_back(tmp_path, monkeypatch):
    (tmp_path / "backend_from_elsewhere.py").write_text("from distlock.backends.base import now\n")
    monkeypatch.syspath_prepend(tmp_path)
    with VirtualClock() as clock:
        backend = importlib.import_module("backend_from_elsewhere")
        assert backend.now() == clock.now()
    assert backend.now is _clock.now is now


def test_there_is_one_clock():
    with VirtualClock(), pytest.raises(RuntimeError, match="runs already"), VirtualClock():
        pass
    with VirtualClock() as clock:
        pass
    with pytest.raises(RuntimeError, match="does not run"):
        clock.advance(1)


def test_leases_that_outlive_the_clock_are_lost(locks):
    exits = ExitStack()
    clock = exits.enter_context(VirtualClock())
    lease = locks.lock("k").acquire()
    clock.advance(3600)
    with pytest.warns(UserWarning, match="left open.*'k'"):
        exits.close()
    assert lease.state is LeaseState.LOST
    locks.lock("k").acquire(timeout=0).release()
    with pytest.raises(LockLost, match="virtual clock"):
        lease.release()


def test_a_manager_goes_on_in_real_time(locks):
    with VirtualClock() as clock, locks.lock("k"):
        clock.advance(3600)
    with locks.lock("k", ttl=3.0) as lease:
        time.sleep(3.3)
        lease.ensure_held()


def test_whoever_waits_goes_on_waiting_in_real_time(locks):
    got = []

    def wait() -> None:
        with locks.lock("k") as lease:
            got.append(lease.token)

    exits = ExitStack()
    exits.enter_context(VirtualClock())
    lease = locks.lock("k").acquire()
    thread = threading.Thread(target=wait)
    thread.start()
    while not locks.inspect("k").waiters:
        time.sleep(0.001)
    with pytest.warns(UserWarning, match="left open"):
        exits.close()
    assert lease.state is LeaseState.LOST
    thread.join(PATIENCE)
    assert len(got) == 1


@running
async def test_whoever_waits_gives_up_in_real_time(world):
    tap = Tap(world.locks._backend)
    tap.backend.acquire(Claim("someone's", "k", ttl=300.0, wait=False), math.inf)
    with Manager(tap) as manager:
        with VirtualClock(autojump_threshold=math.inf):
            task = world.start(lambda: world.acquire(manager.lock("k", timeout=0.3)))
            await world.queued("k", 1)
        with pytest.raises(AcquireTimeout):
            await task.result()
    assert tap.calls["acquire"] < 10
