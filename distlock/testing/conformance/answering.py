"""The line to the store breaks: requests and replies get lost, come late or come twice."""

from __future__ import annotations

import time
from typing import Any

import pytest

from ... import AcquireTimeout, BackendUnavailable, LeaseState, LockLost
from ..._clock import now
from ..._who import new_claim_id
from ...backends.base import Busy, Claim, Grant
from ..colours import World, case

__all__ = ("Answering",)


class Answering:
    @case
    async def test_a_lost_reply_never_locks_the_winner_out(self, world: World) -> None:
        """redis-py, python-redis-lock: the lock was acquired, the reply lost, and the retry met "taken"."""
        locks, tap = await world.tap()
        tap.after["acquire"] = tap.once(tap.cut, 2)
        lease = await world.acquire(locks.lock("k"), timeout=20)
        holder = (await world.inspect("k")).holder
        assert holder is not None
        assert (holder.token, tap.calls["acquire"]) == (lease.token, 3)
        await world.release(lease)
        await self._is_free(world)

    @case
    async def test_a_lost_request_is_sent_again(self, world: World) -> None:
        locks, tap = await world.tap()
        tap.before["acquire"] = tap.once(tap.cut)
        await world.release(await world.acquire(locks.lock("k"), timeout=20))
        await self._is_free(world)

    @case
    async def test_a_lost_reply_keeps_the_place_in_the_queue(self, world: World) -> None:
        locks, tap = await world.tap()
        lease = await world.acquire(world.locks.lock("k", ttl=300))
        tap.after["acquire"] = tap.once(tap.cut, 2)
        task = world.start(lambda: world.acquire(locks.lock("k"), timeout=20))
        await world.until(lambda: tap.wakes)
        await world.queued("k", 1, locks)
        await world.release(lease)
        await world.release(await task.result())
        await self._is_free(world)

    @case
    async def test_a_lost_reply_to_the_one_who_is_next_is_found_again(self, world: World) -> None:
        """The lock was handed to the waiter, who hears of it at the second try."""
        locks, tap = await world.tap()
        lease = await world.acquire(world.locks.lock("k", ttl=300))
        task = world.start(lambda: world.acquire(locks.lock("k"), timeout=20))
        await world.until(lambda: tap.wakes)
        tap.after["acquire"] = tap.once(tap.cut)
        await world.release(lease)
        next_lease = await task.result()
        holder = (await world.inspect("k")).holder
        assert holder is not None
        assert holder.token == next_lease.token > lease.token
        await world.release(next_lease)
        await self._is_free(world)

    @case
    async def test_an_outage_is_never_called_taken(self, world: World) -> None:
        """tooz: an error of the store is not "not acquired", and a timeout of the caller no error of the store."""
        locks, tap = await world.tap()
        tap.before["acquire"] = tap.down
        for timeout in (None, 0, 0.05):
            with pytest.raises(BackendUnavailable) as caught:
                await world.acquire(locks.lock("k"), timeout=timeout)
            assert not isinstance(caught.value, AcquireTimeout)
        with pytest.raises(BackendUnavailable):
            await world.try_acquire(locks.lock("k"))
        tap.before.clear()
        await self._is_free(world)

    @case
    async def test_an_acquire_that_stays_unknown_is_withdrawn(self, world: World) -> None:
        """The replies are lost for longer than the caller waits; what the store has given comes back to it."""
        locks, tap = await world.tap()
        tap.after["acquire"] = tap.cut
        tap.before["withdraw"] = tap.once(tap.cut, 2)
        with pytest.raises(BackendUnavailable):
            await world.acquire(locks.lock("k", ttl=300), timeout=0.3)
        await self._is_free(world)

    @case
    async def test_a_lost_reply_to_a_release_has_released(self, world: World) -> None:
        locks, tap = await world.tap()
        tap.after["release"] = tap.once(tap.cut)
        lease = await world.acquire(locks.lock("k", ttl=300))
        with pytest.raises(BackendUnavailable):
            await world.release(lease)
        assert lease.remaining() == 0
        await self._is_free(world)
        await world.release(lease)
        assert lease.state is LeaseState.RELEASED

    @case
    async def test_a_release_that_failed_goes_on_by_itself(self, world: World) -> None:
        """redis-py#3847: a release that failed was forgotten, and the lock stayed until its ttl."""
        locks, tap = await world.tap()
        tap.before["release"] = tap.cut
        tap.before["withdraw"] = tap.once(tap.cut)
        async with world.block(locks.lock("k", ttl=300)):
            pass  # left without an error: it goes on in the background
        await self._is_free(world)

    @case
    async def test_an_extension_without_an_answer_proves_the_shorter_time(self, world: World) -> None:
        if not world.locks.guarantees.extend:
            return
        locks, tap = await world.tap()
        lease = await world.acquire(locks.lock("k", ttl=100, renew=False))
        for side in (tap.before, tap.after):
            for ttl in (200, 50):
                side["extend"] = tap.once(tap.cut)
                with pytest.raises(BackendUnavailable):
                    await world.extend(lease, ttl)
                assert 0 < lease.remaining() <= min(100, ttl)
                holder = (await world.inspect("k")).holder
                assert holder is not None
                assert holder.ttl is None or holder.ttl > lease.remaining() - 0.1
        await world.extend(lease, 200)
        assert 50 < lease.remaining() <= 200
        await world.release(lease)

    @case
    async def test_time_counts_from_before_the_request(self, world: World) -> None:
        """DistributedLock (.NET): the reply took most of the ttl, and the lease was believed for a whole one."""
        locks, tap = await world.tap()
        tap.after["acquire"] = tap.after["extend"] = lambda: time.sleep(0.6)
        lease = await world.acquire(locks.lock("k", ttl=20, renew=False))
        assert lease.remaining() <= 19.4
        if world.locks.guarantees.extend:
            await world.extend(lease, 21)
            assert lease.remaining() <= 20.4
        await world.release(lease)

    @case
    async def test_a_late_renewal_counts_from_before_the_request(self, world: World) -> None:
        locks, tap = await world.tap()
        asked: list[float] = []
        answered: list[tuple[float, float]] = []

        def late() -> None:
            answered.append((asked[-1], lease._hold.deadline))
            time.sleep(0.3)

        tap.before["renew"] = lambda: asked.append(now())
        tap.after["renew"] = late
        lease = await world.acquire(locks.lock("k", ttl=6))
        await world.until(lambda: answered and lease._hold.deadline > answered[0][1])
        proven = lease._hold.deadline
        assert proven <= answered[-1][0] + 6
        await world.release(lease)

    @case
    async def test_a_blip_is_unknown_and_then_held_again(self, world: World) -> None:
        """mithril: one renewal failed, and the lock was given up although the store had it still."""
        locks, tap = await world.tap()
        lost: list[int] = []
        lease = await world.acquire(locks.lock("k", ttl=6))
        lease.on_lost(lambda: lost.append(1))
        tap.before["renew"] = tap.cut
        await world.until(lambda: lease.state is LeaseState.UNKNOWN)
        assert lease.ensure_held() == lease.token
        tap.before.clear()
        await world.until(lambda: lease.state is LeaseState.HELD)
        assert lost == []
        await world.release(lease)

    @case
    async def test_a_holder_that_cannot_renew_has_lost_before_anyone_enters(self, world: World) -> None:
        locks, tap = await world.tap()
        lost: list[int] = []
        tap.before["renew"] = tap.before["withdraw"] = tap.cut
        lease = await world.acquire(locks.lock("k", ttl=0.8))
        proven = now() + lease.remaining()
        lease.on_lost(lambda: lost.append(1))
        if world.locks.guarantees.dead_holder != "ttl":  # it frees when it is told to
            await world.until(lambda: lost)
            tap.before.clear()
        async with world.block(world.locks.lock("k", timeout=20)) as next_lease:
            assert proven < next_lease.acquired_at
            assert next_lease.token > lease.token
            assert lease.state is LeaseState.LOST
            with pytest.raises(LockLost):
                lease.ensure_held()
        tap.before.clear()
        await world.until(lambda: lost == [1])

    @case
    async def test_a_release_before_the_watch_is_not_missed(self, world: World) -> None:
        """redisson#5761: released between the failed try and the subscription, and the waiter slept on."""
        locks, tap = await world.tap()
        lease = await world.aside(world.locks.lock("k", ttl=300).acquire)
        tap.before["watch"] = lease.release
        async with world.block(locks.lock("k", timeout=20)) as next_lease:
            assert next_lease.token > lease.token

    # The contract of each method: asked twice, each does the same as asked once.

    @case
    async def test_acquiring_twice_gives_one_grant(self, world: World) -> None:
        backend, claim = world.backend, _claim()
        first = await backend.acquire(claim, _soon())
        again = await backend.acquire(claim, _soon())
        assert isinstance(first, Grant)
        assert isinstance(again, Grant)
        assert first.token == again.token
        assert first.deadline < now() + claim.ttl
        assert await backend.release(again, _soon()) is True
        assert await backend.release(first, _soon()) is False
        await self._is_free(world)

    @case
    async def test_a_claim_is_ended_by_itself_alone(self, world: World) -> None:
        backend, mine = world.backend, _claim()
        grant = await backend.acquire(mine, _soon())
        assert isinstance(grant, Grant)
        other = Grant(_claim(), grant.token, grant.deadline)
        assert await backend.release(other, _soon()) is False
        for _ in range(2):
            await backend.withdraw(other.claim, _soon(), in_flight=False)
        if world.locks.guarantees.extend:
            assert (await backend.extend(other, 60.0, _soon())).state is LeaseState.LOST
        states = [one.state for one in await world.aside(lambda: world.locks._backend.renew([grant, other], _soon()))]
        assert states == [LeaseState.HELD, LeaseState.LOST]
        assert isinstance(await backend.acquire(other.claim, _soon()), Busy)
        for _ in range(2):
            await backend.withdraw(mine, _soon(), in_flight=False)
        await self._is_free(world)

    @case
    async def test_what_has_ended_is_never_written_again(self, world: World) -> None:
        """aioredlock, redsync#149: an extension that came late set the key again."""
        backend, claim = world.backend, _claim()
        grant = await backend.acquire(claim, _soon())
        await backend.release(grant, _soon())
        if world.locks.guarantees.extend:
            assert (await backend.extend(grant, 60.0, _soon())).state is LeaseState.LOST
        (renewal,) = await world.aside(lambda: world.locks._backend.renew([grant], _soon()))
        assert renewal.state is LeaseState.LOST
        await self._is_free(world)

    @case
    async def test_a_hand_over_to_one_who_left_is_passed_on(self, world: World) -> None:
        backend = world.backend
        first, second, third = (_claim(wait=True) for _ in range(3))
        grant = await backend.acquire(first, _soon())
        wakes: list[int] = []
        watches = [await self._watching(world, claim, wakes) for claim in (second, third)]
        await backend.release(grant, _soon())
        await world.until(lambda: wakes)
        await backend.withdraw(second, _soon(), in_flight=False)
        await self._granted(world, third)
        await backend.withdraw(third, _soon(), in_flight=False)
        for watch in watches * 2:
            watch.close()
        await self._is_free(world)

    @case
    async def test_one_who_does_not_answer_the_hand_over_is_passed_over(self, world: World) -> None:
        """A waiter that was stopped, or whose process hangs, keeps nobody waiting for its whole ttl."""
        backend = world.backend
        first, second, third = (_claim(wait=True) for _ in range(3))
        grant = await backend.acquire(first, _soon())
        wakes: list[int] = []
        watches = [await self._watching(world, claim, wakes) for claim in (second, third)]
        await backend.release(grant, _soon())
        await self._granted(world, third)
        for claim, watch in zip((second, third), watches, strict=True):
            await backend.withdraw(claim, _soon(), in_flight=False)
            watch.close()
        await self._is_free(world)

    @case
    async def test_a_request_that_arrives_after_its_withdrawal_comes_to_nothing(self, world: World) -> None:
        if world.locks.guarantees.scope != "network":  # nothing is on its way for long within a machine
            return
        backend, claim = world.backend, _claim()
        await backend.withdraw(claim, _soon(), in_flight=True)
        with pytest.raises(Exception, match="withdrawn"):
            await backend.acquire(claim, _soon())
        await self._is_free(world)

    async def _watching(self, world: World, claim: Claim, wakes: list[int]) -> Any:
        busy = await world.backend.acquire(claim, _soon())
        assert isinstance(busy, Busy)
        return await world.backend.watch(busy, lambda: wakes.append(1), _soon())

    async def _granted(self, world: World, claim: Claim) -> None:
        """Within a bound, by asking."""
        started = time.monotonic()
        while not isinstance(await world.backend.acquire(claim, _soon()), Grant):
            assert time.monotonic() - started < 20
            await world.sleep(0.05)

    async def _is_free(self, world: World) -> None:
        """For anyone, well before the ttl, and nobody queues."""
        async with world.block(world.other.lock("k", timeout=20)):
            pass
        await world.queued("k", 0)


def _claim(*, wait: bool = False) -> Claim:
    return Claim(new_claim_id(), "k", 300.0, wait)


def _soon() -> float:
    return now() + 10
