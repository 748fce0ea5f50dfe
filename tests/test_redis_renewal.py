"""Kept while it can be proven; and when it cannot, known before the server lets anyone else in."""

from __future__ import annotations

import threading
import time

import pytest

import distlock
from distlock import LeaseState, LockLost
from distlock.backends.base import Claim, Grant, now
from distlock.testing.proxy import FaultProxy

from .redis_tools import Colour, Connect, Probe, in_colours
from .servers import RedisServer

LONG = 60.0


@pytest.mark.parametrize("change", ["deleted", "taken over", "taken by a client of distlock"])
@in_colours()
async def test_a_lock_that_vanished_is_lost_at_the_next_renewal_and_never_revived(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str, change: str
) -> None:
    """python-redis-lock, aioredlock: the renewal sets the key again, or nobody is told."""
    probe, called = Probe(redis_server), []
    others = connect(redis_server.url)
    lease = await colour.acquire(connect(redis_server.url).lock(key, ttl=3.0))
    lease.on_lost(lambda: called.append(threading.current_thread().name))
    new = None
    if change == "taken over":
        probe.ask("SET", probe.name(key), "someone else")
    else:
        probe.ask("DEL", probe.name(key))
    if change == "taken by a client of distlock":
        new = await colour.acquire(others.lock(key, ttl=LONG))
    stored = probe.value(key)
    await colour.until(lambda: called)
    assert lease.state is LeaseState.LOST
    assert lease.remaining() == 0.0
    for use in (lambda: colour.extend(lease), lambda: colour.release(lease)):
        with pytest.raises(LockLost):
            await use()
    assert probe.value(key) == stored
    assert probe.pttl(key) != 3000
    if new is not None:
        new.ensure_held()
        await colour.release(new)
    assert len(called) == 1


@in_colours()
async def test_a_key_of_another_type_costs_its_own_lease_alone(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    """redis.io, WRONGTYPE: one such key in a script that renews many is an error for all of them."""
    probe, locks = Probe(redis_server), connect(redis_server.url)
    good = [await colour.acquire(locks.lock(f"{key}:{number}", ttl=3.0)) for number in range(3)]
    bad = await colour.acquire(locks.lock(key, ttl=3.0))
    probe.ask("DEL", probe.name(key))
    probe.ask("SADD", probe.name(key), "foreign")
    await colour.until(lambda: bad.state is LeaseState.LOST)
    proven = [lease._hold.deadline for lease in good]
    await colour.until(lambda: all(each._hold.deadline > before for each, before in zip(good, proven, strict=True)))
    for lease in good:
        await colour.release(lease)
    with pytest.raises(LockLost):
        await colour.release(bad)
    assert probe.ask("TYPE", probe.name(key)) == "set"


def test_of_more_than_one_script_those_that_vanished_alone_are_lost(redis_server: RedisServer, key: str) -> None:
    """Also among names that are not ASCII, whose length in bytes is another."""
    probe, names = Probe(redis_server), [f"{key}:{number}{'é☃' if number % 7 == 0 else ''}" for number in range(600)]
    with distlock.connect(redis_server.url) as locks:
        backend = locks._backend
        claims = [Claim(f"{number}", name, LONG, wait=False) for number, name in enumerate(names)]
        grants = [grant for claim in claims if isinstance(grant := backend.acquire(claim, now() + LONG), Grant)]
        for name in names:
            probe.ask("PEXPIRE", probe.name(name), "30000")
        gone = {0, 7, 255, 256, 599}
        for number in gone:
            probe.ask("DEL", probe.name(names[number]))
        states = [renewal.state for renewal in backend.renew(grants, now() + LONG)]
        assert [number for number, state in enumerate(states) if state is LeaseState.LOST] == sorted(gone)
        assert states.count(LeaseState.HELD) == len(names) - len(gone)
        assert {number for number, name in enumerate(names) if probe.pttl(name) <= 30_000} == gone
        for grant in grants:
            backend.release(grant, now() + LONG)


@in_colours()
async def test_a_short_outage_is_survived(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    """mithril, redisson#3194: one renewal that failed is not the end; the proven time counts."""
    lost: list[bool] = []
    with FaultProxy(redis_server.address) as proxy:
        # Far longer than the outage, for slow machines; each request gives up soon, so that it is noticed.
        lease = await colour.acquire(connect(proxy.url, op_timeout=1.5).lock(key, ttl=9.0))
        lease.on_lost(lambda: lost.append(True))
        proxy.refuse()
        proxy.reset_all()
        await colour.until(lambda: lease.state is LeaseState.UNKNOWN)
        assert lease.remaining() > 0
        lease.ensure_held()
        proxy.accept()
        await colour.until(lambda: lease.state is LeaseState.HELD)
        assert lease.remaining() > 4.0
        await colour.release(lease)
    assert not lost


@in_colours()
async def test_requests_that_hang_for_a_while_are_survived(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    """mithril: a network that stands still for 0.7 s, ttl 3 s."""
    with FaultProxy(redis_server.address) as proxy:
        lease = await colour.acquire(connect(proxy.url).lock(key, ttl=6.0))
        before = lease.remaining()
        proxy.pause()
        await colour.until(lambda: lease.remaining() < before - 2.7)  # a renewal is on its way by now
        proxy.resume()
        await colour.until(lambda: lease.remaining() > before - 1.0)
        assert lease.state is LeaseState.HELD
        await colour.release(lease)


@pytest.mark.parametrize("outage", ["refused", "hung"])
@in_colours()
async def test_loss_is_told_while_the_server_still_keeps_the_lock(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str, outage: str
) -> None:
    """redis.io, "Distributed Locks with Redis": validity ends before the server's expiry, by the drift allowance."""
    probe = Probe(redis_server)
    told: list[float] = []
    with FaultProxy(redis_server.address) as proxy:
        # The allowance is 1 %: with 20 s there are 200 ms for the watchdog of a slow machine to wake up in.
        lease = await colour.acquire(connect(proxy.url, op_timeout=2.0).lock(key, ttl=20.0))
        # Straight from the watchdog: a callback of the user's has a thread of its own, which takes its time.
        lease._hold.on_lost(lambda: told.append(time.time()))
        if outage == "refused":
            proxy.refuse()
            proxy.reset_all()
        else:
            proxy.pause()
        ends = probe.ask("PEXPIRETIME", probe.name(key)) / 1000
        await colour.until(lambda: told)
        assert told[0] < ends
        assert lease.state is LeaseState.LOST
        with pytest.raises(LockLost):
            await colour.release(lease)
        proxy.accept()
        proxy.resume()


@in_colours()
async def test_a_lease_without_renewal_ends_and_cannot_be_extended(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    """aioredlock, redsync#149: an extension after the end sets the key anew, beside the next holder."""
    probe, locks = Probe(redis_server), connect(redis_server.url)
    lease = await colour.acquire(locks.lock(key, ttl=0.5, renew=False))
    await colour.until(lambda: probe.value(key) is None)
    for _ in range(2):
        with pytest.raises(LockLost):
            await colour.extend(lease, LONG)
    assert probe.keys() == set()


@in_colours()
async def test_extending_sets_the_time_and_does_not_add_to_it(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    """redbeat#127: extend(10) each second, and the lock outlives its holder by hours."""
    probe, locks = Probe(redis_server), connect(redis_server.url)
    lease = await colour.acquire(locks.lock(key, ttl=5.0))
    for _ in range(100):
        await colour.extend(lease, 10.0)
    assert 5 < lease.remaining() < 10
    assert 5_000 < probe.pttl(key) <= 10_000
    await colour.release(lease)


@in_colours()
async def test_a_late_renewal_does_not_shorten_what_a_later_one_has_proven(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    """redsync#149: two requests on two connections may arrive in either order."""
    probe, locks = Probe(redis_server), connect(redis_server.url)
    lease = await colour.acquire(locks.lock(key, ttl=LONG))
    await colour.extend(lease, 4.0)
    assert lease.remaining() < 4.0
    assert probe.pttl(key) > 30_000
    await colour.until(lambda: 0 < lease.remaining() < 3.6)
    await colour.release(lease)
    assert probe.keys() == set()
