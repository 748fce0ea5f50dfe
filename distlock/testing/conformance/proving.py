"""What a grant and a renewal prove, and what no request may take back."""

from __future__ import annotations

from ... import LeaseState
from ..._clock import now
from ..._who import new_claim_id
from ...backends.base import Claim, Grant, Renewal, proven_until
from ..colours import World, case

__all__ = ("Proving",)


class Proving:
    @case
    async def test_a_late_renewal_takes_nothing_back(self, world: World) -> None:
        """It was sent before an extension and arrives after it, when the holder relies on the longer time."""
        await world.warm_up()
        grant = await world.backend.acquire(_claim(ttl=3.0), _soon())
        if world.locks.guarantees.extend:
            assert (await world.backend.extend(grant, 60.0, _soon())).state is LeaseState.HELD
            assert (await self._renewed(world, grant)).state is LeaseState.HELD
            await world.sleep(3.2)
            assert await world.try_acquire(world.other.lock("k")) is None
            assert (await self._renewed(world, grant)).state is LeaseState.HELD
        assert await world.backend.release(grant, _soon())

    @case
    async def test_what_has_expired_is_not_revived(self, world: World) -> None:
        """aioredlock: a renewal that came too late set the key of a lock that another had by then."""
        await world.warm_up()
        grant = await world.backend.acquire(_claim(ttl=2.0), _soon())
        if world.locks.guarantees.dead_holder == "ttl":
            await world.sleep(2.2)
            assert (await self._renewed(world, grant)).state is LeaseState.LOST
            if world.locks.guarantees.extend:
                assert (await world.backend.extend(grant, 60.0, _soon())).state is LeaseState.LOST
            async with world.block(world.other.lock("k", timeout=0)):
                pass
        await world.backend.withdraw(grant.claim, _soon(), in_flight=False)

    @case
    async def test_no_more_is_proven_than_the_ttl_less_the_margin(self, world: World) -> None:
        """redis.io, "Distributed Locks with Redis": the clocks of the two sides drift."""
        ttl = 60.0
        grant = await world.backend.acquire(_claim(ttl=ttl), _soon())
        assert grant.deadline <= proven_until(now(), ttl)
        assert (await self._renewed(world, grant)).deadline <= proven_until(now(), ttl)
        if world.locks.guarantees.extend:
            assert (await world.backend.extend(grant, 2 * ttl, _soon())).deadline <= proven_until(now(), 2 * ttl)
        assert await world.backend.release(grant, _soon())

    async def _renewed(self, world: World, grant: Grant) -> Renewal:
        """By the watchdog's way, which is a thread in every colour."""
        renewals: list[Renewal] = await world.aside(lambda: world.locks._backend.renew([grant], _soon()))
        return renewals[0]


def _claim(*, ttl: float) -> Claim:
    return Claim(new_claim_id(), "k", ttl, wait=False)


def _soon() -> float:
    return now() + 10
