"""Acquiring, holding and releasing."""

from __future__ import annotations

import math
import os
import random
import threading
from contextlib import suppress

import pytest

from ... import AcquireTimeout, BackendUnavailable, InvalidKey, LeaseState, LockLost, NotHeld, Unsupported
from ..colours import World, case

__all__ = ("Holding",)

_NOT_SECONDS = [0, 0.0004, -1, math.nan, math.inf, True, "5", 2**63]
_NAMES = [
    "{}",
    "{",
    "}",
    "a:b",
    "a",
    "ab",
    "a/b",
    " ",
    "\0",
    "a\nb",
    "🔒",
    "x" * 512,
    "a}:q",
    "a}:w",
    ":clock",
    "*",
    "?",
]


class Holding:
    @case
    async def test_one_at_a_time(self, world: World) -> None:
        """The whole point, among tasks or threads of two clients."""
        other = world.other
        inside = 0
        tokens: list[int] = []

        async def work(n: int) -> None:
            nonlocal inside
            for _ in range(10):
                async with world.block((world.locks if n % 2 else other).lock("k")) as lease:
                    inside += 1
                    assert inside == 1
                    tokens.append(lease.token)
                    await world.sleep(0)
                    inside -= 1

        tasks = [world.start(lambda n=n: work(n)) for n in range(6)]  # type: ignore[misc]
        for task in tasks:
            await task.result()
        assert tokens == sorted(set(tokens))
        assert len(tokens) == 60

    @case
    async def test_a_lease_says_what_it_is(self, world: World) -> None:
        lease = await world.acquire(world.locks.lock("k", ttl=20, owner="me"))
        assert (lease.key, lease.owner, lease.state) == ("k", "me", LeaseState.HELD)
        assert isinstance(lease.token, int)
        assert 0 < lease.remaining() < 20
        assert lease.ensure_held() == lease.token
        assert lease.backend == world.locks.address
        with pytest.raises(LockLost, match="more"):
            lease.ensure_held(at_least=25)
        await world.release(lease)
        assert lease.state is LeaseState.RELEASED
        assert lease.remaining() == 0
        with pytest.raises(NotHeld):
            lease.ensure_held()

    @case
    async def test_try_gives_none_when_taken(self, world: World) -> None:
        """tooz: an error of the store is not "taken", and "taken" is not an error."""
        async with world.block(world.locks.lock("k")):
            assert await world.try_acquire(world.other.lock("k")) is None
            with pytest.raises(AcquireTimeout):
                await world.acquire(world.other.lock("k"), timeout=0)
        lease = await world.try_acquire(world.locks.lock("k"))
        async with world.block(lease):
            assert await world.try_acquire(world.locks.lock("k")) is None
        assert lease.state is LeaseState.RELEASED

    @case
    async def test_values_out_of_range_are_refused(self, world: World) -> None:
        """redis-py: a ttl of 0 or of a fraction of a millisecond was accepted, or deleted the key."""
        for ttl in _NOT_SECONDS:
            with pytest.raises(ValueError, match="ttl"):
                world.locks.lock("k", ttl=ttl)  # type: ignore[arg-type]
        for timeout in (-1, math.nan, math.inf, "5", True):
            with pytest.raises(ValueError, match="timeout"):
                world.locks.lock("k", timeout=timeout)  # type: ignore[arg-type]
            with pytest.raises(ValueError, match="timeout"):
                await world.acquire(world.locks.lock("k"), timeout=timeout)
        assert await world.list() == ()

    @case
    async def test_release_twice_is_no_error(self, world: World) -> None:
        lease = await world.acquire(world.locks.lock("k"))
        await world.release(lease)
        await world.release(lease)

    @case
    async def test_a_late_release_leaves_the_next_holder_alone(self, world: World) -> None:
        """redis-py: one lock object used by two, the first expired; its release freed the second's."""
        await world.warm_up()
        lock = world.locks.lock("k", ttl=0.3, renew=False)
        first = await world.acquire(lock)
        second = await world.acquire(world.locks.lock("k"), timeout=30)
        assert second.token > first.token
        with pytest.raises(LockLost):
            await world.release(first)
        assert second.ensure_held() == second.token
        assert await world.try_acquire(world.locks.lock("k")) is None
        await world.release(second)

    @case
    async def test_another_thread_may_release(self, world: World) -> None:
        """redis-py keeps the token in a thread-local; here the lease owns, not the thread."""
        lease = await world.acquire(world.locks.lock("k"))
        if world.is_async:
            await world.start(lease.release).result()
        else:
            thread = threading.Thread(target=lease.release)
            thread.start()
            thread.join()
        async with world.block(world.other.lock("k", timeout=0)):
            pass

    @case
    async def test_any_exception_releases(self, world: World) -> None:
        for kind in (ValueError, KeyboardInterrupt, SystemExit, GeneratorExit):
            with pytest.raises(kind):
                async with world.block(world.locks.lock("k")):
                    raise kind
            async with world.block(world.other.lock("k", timeout=0)):
                pass

    @case
    async def test_extend_sets_and_never_adds(self, world: World) -> None:
        """redbeat#127: each extension was added to what was left."""
        if not world.locks.guarantees.extend:
            lease = await world.acquire(world.locks.lock("k"))
            with pytest.raises(Unsupported):
                await world.extend(lease, 10)
            await world.release(lease)
            return
        lease = await world.acquire(world.locks.lock("k", ttl=30))
        for _ in range(100):
            await world.extend(lease, 10)
        assert 0 < lease.remaining() <= 10
        await world.extend(lease, 60)
        assert lease.remaining() > 30
        await world.release(lease)
        with pytest.raises(NotHeld):
            await world.extend(lease, 10)

    @case
    async def test_the_same_thread_or_task_enters_again(self, world: World) -> None:
        lock = world.locks.lock("k", reentrant=True)
        async with world.block(lock) as outer:
            async with world.block(lock) as inner:
                assert inner.token == outer.token
                assert inner.remaining() == pytest.approx(outer.remaining(), abs=5)
            assert inner.state is LeaseState.RELEASED
            assert outer.ensure_held() == outer.token
            task = world.start(lambda: world.try_acquire(lock))  # another thread, or a child task
            assert await task.result() is None
        async with world.block(world.other.lock("k", timeout=0)):
            pass

    @case
    async def test_the_same_owner_enters_again(self, world: World) -> None:
        if not world.locks.guarantees.owner_reentrant:
            with pytest.raises(Unsupported):
                world.locks.lock("k", reentrant=True, owner="me")
            return
        other = world.other
        first = await world.acquire(world.locks.lock("k", reentrant=True, owner="me"))
        second = await world.acquire(other.lock("k", reentrant=True, owner="me"), timeout=30)
        assert second.token == first.token
        assert await world.try_acquire(other.lock("k", reentrant=True, owner="you")) is None
        assert await world.try_acquire(other.lock("k", owner="me")) is None
        await world.release(first)
        assert await world.try_acquire(world.locks.lock("k")) is None
        await world.release(second)
        async with world.block(world.locks.lock("k", timeout=0)):
            pass

    @case
    async def test_names_are_independent(self, world: World) -> None:
        """bsm/redislock, redis-py: names that are prefixes of each other or of auxiliary keys."""
        leases = [await world.acquire(world.locks.lock(name), timeout=0) for name in _NAMES]
        assert sorted(seen.key for seen in await world.list()) == sorted(_NAMES)
        for lease in leases:
            await world.release(lease)
        assert await world.list() == ()
        for name in ("", "x" * 513, "é" * 257, "\ud800"):
            with pytest.raises(InvalidKey):
                world.locks.lock(name)

    @case
    async def test_a_prefix_is_no_pattern(self, world: World) -> None:
        async with world.block(world.locks.lock("a*b")), world.block(world.locks.lock("axb")):
            assert [seen.key for seen in await world.list("a*")] == ["a*b"]
            assert len(await world.list("a")) == 2

    @case
    async def test_namespaces_are_independent(self, world: World) -> None:
        apart = await world.aside(lambda: world.connect(namespace="apart"))
        async with world.block(world.locks.lock("k")), world.block(apart.lock("k", timeout=0)):
            assert await world.list(manager=apart) != ()
            assert await world.try_acquire(apart.lock("k")) is None
        async with world.block(world.locks.lock("k")):
            assert await world.list(manager=apart) == ()
            assert (await world.inspect("k", apart)).holder is None

    @case
    async def test_inspect_names_the_holder(self, world: World) -> None:
        lock = world.locks.lock("k", metadata={"order": "42"})
        async with world.block(lock) as lease:
            holder = (await world.inspect("k", world.other)).holder
            assert holder is not None
            assert (holder.token, holder.pid, holder.owner) == (lease.token, os.getpid(), lease.owner)
            assert dict(holder.metadata) == {"order": "42"}
            assert holder.host
            with pytest.raises(AcquireTimeout, match=f"held by .* pid {os.getpid()}") as caught:
                await world.acquire(world.locks.lock("k"), timeout=0)
            assert caught.value.holder is not None
            assert caught.value.holder.token == lease.token
        assert (await world.inspect("k")).holder is None

    @case
    async def test_random_steps_leave_nothing(self, world: World) -> None:
        """redisson#7272: renewals, queue entries and subscriptions that stayed behind."""
        dice = random.Random(11)

        async def work() -> None:
            for _ in range(60):
                lock = world.locks.lock(f"k{dice.randrange(3)}", ttl=5, timeout=dice.choice([0, 0.002, 0.02, 20]))
                # A slow store may not answer in the quarter of a second that a short timeout gets.
                with suppress(AcquireTimeout, BackendUnavailable):
                    lease = await world.acquire(lock)
                    await world.sleep(dice.choice([0, 0, 0.002]))
                    await world.release(lease)

        tasks = [world.start(work) for _ in range(5)]
        for task in tasks:
            await task.result()
        await self._nothing_left(world)

    @case
    async def test_many_names_leave_nothing(self, world: World) -> None:
        """spring-integration#3655: a map of locks that only grew."""
        for n in range(300):
            async with world.block(world.locks.lock(f"name-{n}")):
                pass
        await self._nothing_left(world)

    async def _nothing_left(self, world: World) -> None:
        await world.until(lambda: not world.locks.list())
        await world.until(lambda: not world.store.left())
        await world.until(lambda: not world.locks._watchdog.holds)
