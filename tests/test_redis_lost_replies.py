"""A reply that never comes, or comes late: what the server did is found out, or undone."""

from __future__ import annotations

import time
from functools import partial

import pytest

from distlock import AcquireTimeout, AsyncLease, BackendUnavailable, LeaseState, LockLost
from distlock.testing.proxy import FaultProxy

from .redis_tools import ASYNC, Colour, Connect, Probe, in_colours
from .servers import RedisServer

PATIENT = 3.0
"""An op_timeout that is waited for, and within which all others are answered."""
SOON = 15.0
"""Seconds in which no ttl ends."""


@pytest.mark.parametrize("lost", [1, 2, 3])
@in_colours()
async def test_a_grant_whose_reply_was_lost_is_found_again(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str, lost: int
) -> None:
    """redis-py, python-redis-lock, fencekit: the retry is told "busy" by the caller's own orphan."""
    probe = Probe(redis_server)
    with FaultProxy(redis_server.address) as proxy:
        locks = connect(proxy.url)
        await colour.release(await colour.acquire(locks.lock("warm")))
        proxy.drop_replies(lost, to="EVALSHA", then="reset")
        lease = await colour.acquire(locks.lock(key))
        stored = probe.value(key)
        assert stored is not None
        assert int(stored.split()[2]) == lease.token
        assert proxy.sent.count("EVALSHA") >= 2 + lost
        await colour.release(lease)
    await colour.until(lambda: not probe.keys())


@in_colours()
async def test_a_grant_whose_reply_vanishes_is_an_error_in_time_and_given_back(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    """aioredlock#59, redis.asyncio: a request that timed out may have been carried out."""
    probe = Probe(redis_server)
    with FaultProxy(redis_server.address) as proxy:
        lock = connect(proxy.url, op_timeout=PATIENT).lock(key)
        await colour.release(await colour.acquire(lock))
        proxy.drop_replies(to="EVALSHA", then="silence")
        with pytest.raises(BackendUnavailable) as caught:
            await colour.acquire(lock, timeout=None)
        assert caught.value.key == key
        await colour.until(lambda: not probe.keys())
        await colour.release(await colour.acquire(lock))


@in_colours()
async def test_a_hung_server_does_not_stretch_the_timeout(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    """python-redis-lock: timeout=0.5 is 0.5 s and a round trip, whatever the server does. kazoo spends it twice."""
    lock = connect(redis_server.url, op_timeout=15.0).lock(key)
    await colour.release(await colour.acquire(lock))
    redis_server.pause()
    started = time.monotonic()
    with pytest.raises(BackendUnavailable):
        await colour.acquire(lock, timeout=0.5)
    assert 0.4 < time.monotonic() - started < 10
    redis_server.resume()


@pytest.mark.parametrize("handshake", ["none", "db", "password"])
@in_colours()
async def test_nor_does_a_server_that_takes_the_connection_and_says_nothing(
    colour: Colour, connect: Connect, key: str, handshake: str
) -> None:
    """redis-py: AUTH and SELECT wait for the socket's own timeout."""
    with RedisServer(requirepass="secret" if handshake == "password" else None) as server:
        lock = connect(server.url_at(server.port, db=int(handshake == "db")), op_timeout=15.0).lock(key)
        server.pause()
        started = time.monotonic()
        with pytest.raises(BackendUnavailable):
            await colour.acquire(lock, timeout=0.3)
        assert time.monotonic() - started < 10
        server.resume()


@in_colours()
async def test_what_a_frozen_server_does_when_it_thaws_comes_to_nothing(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    """redis.asyncio: the request that was given up is carried out all the same, and nobody releases the lock."""
    probe = Probe(redis_server)
    lock = connect(redis_server.url, op_timeout=PATIENT).lock(key)
    await colour.release(await colour.acquire(lock))
    redis_server.pause()
    with pytest.raises(BackendUnavailable):
        await colour.acquire(lock, timeout=None)
    redis_server.resume()
    await colour.until(lambda: not probe.keys(), timeout=SOON)
    await colour.release(await colour.acquire(lock))


@in_colours(*ASYNC)
async def test_a_request_that_was_cancelled_on_a_frozen_server_comes_to_nothing(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    """redis.asyncio: a cancelled acquire leaves an orphan."""
    probe = Probe(redis_server)
    lock = connect(redis_server.url, op_timeout=PATIENT).lock(key)
    await colour.release(await colour.acquire(lock))
    redis_server.pause()
    running = colour.start(lambda: colour.acquire(lock, timeout=None))
    await colour.sleep(0.05)
    await running.cancel()
    redis_server.resume()
    await colour.until(lambda: not probe.keys(), timeout=SOON)
    await colour.release(await colour.acquire(lock))


@in_colours(*ASYNC)
async def test_a_cancelled_acquire_leaves_nothing(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    """redis.asyncio: cancelled between the request and the reply."""
    probe = Probe(redis_server)
    with FaultProxy(redis_server.address) as proxy:
        lock = connect(proxy.url, op_timeout=PATIENT).lock(key)
        await colour.release(await colour.acquire(lock))
        proxy.pause(requests=False)
        running = colour.start(lambda: colour.acquire(lock))
        await colour.until(lambda: probe.value(key))
        await running.cancel()
        proxy.resume()
        await colour.until(lambda: not probe.keys(), timeout=SOON)


@in_colours(*ASYNC)
async def test_a_cancelled_waiter_leaves_nothing(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    """redisson#5761 and many: a waiter that went away must not stay in the queue; nor one that was just served."""
    probe = Probe(redis_server)
    holder = await colour.acquire(connect(redis_server.url).lock(key))
    with FaultProxy(redis_server.address) as proxy:
        waiters = connect(proxy.url, op_timeout=PATIENT)
        first, second = (colour.start(lambda: colour.acquire(waiters.lock(key))) for _ in range(2))
        await colour.until(lambda: probe.queued(key) == 2)
        await first.cancel()
        assert probe.queued(key) == 1
        proxy.pause(requests=False)
        await colour.release(holder)  # and in this moment the second is served
        await second.cancel()
        proxy.resume()
        await colour.until(lambda: not probe.keys(), timeout=SOON)


@in_colours(*ASYNC)
async def test_a_cancelled_release_releases(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    """redis-py#3847: a release that is cancelled forgets the token, and can never be repeated."""
    probe = Probe(redis_server)
    with FaultProxy(redis_server.address) as proxy:
        lock = connect(proxy.url, op_timeout=PATIENT).lock(key)
        for held_back in ("replies", "all"):
            lease = await colour.acquire(lock)
            proxy.pause(requests=held_back == "all")
            running = colour.start(partial(colour.release, lease))
            await colour.sleep(0.05)
            await running.cancel()
            proxy.resume()
            await colour.until(lambda: not probe.keys(), timeout=SOON)
            await colour.release(lease)
            assert lease.state is LeaseState.RELEASED


@in_colours()
async def test_a_release_whose_reply_was_lost_has_released(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    """redis-py#3847: the retry finds nothing to release, which is as it should be and no LockLost."""
    probe = Probe(redis_server)
    with FaultProxy(redis_server.address) as proxy:
        lock = connect(proxy.url).lock(key)
        await colour.release(await colour.acquire(lock))
        lease = await colour.acquire(lock)
        proxy.drop_replies(to="EVALSHA", then="reset")
        await colour.release(lease)
        assert lease.state is LeaseState.RELEASED
    await colour.until(lambda: not probe.keys())


@in_colours()
async def test_a_release_whose_reply_vanishes_can_be_repeated(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    """redis-py#3847: the token is gone after the first try."""
    probe = Probe(redis_server)
    with FaultProxy(redis_server.address) as proxy:
        lock = connect(proxy.url, op_timeout=PATIENT).lock(key)  # the second one is to be answered by then
        await colour.release(await colour.acquire(lock))
        lease = await colour.acquire(lock)
        proxy.drop_replies(to="EVALSHA", then="silence")
        with pytest.raises(BackendUnavailable):
            await colour.release(lease)
        assert lease.remaining() == 0.0
        await colour.release(lease)
        assert lease.state is LeaseState.RELEASED
    await colour.until(lambda: not probe.keys())  # a tombstone stays for one op_timeout


@pytest.mark.parametrize("lost", ["request", "reply"])
@in_colours()
async def test_a_withdrawal_that_got_lost_goes_on_in_the_background(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str, lost: str
) -> None:
    """Redisson's fair lock: a waiter that timed out blocks the queue if its farewell gets lost."""
    probe = Probe(redis_server)
    holder = await colour.acquire(connect(redis_server.url).lock(key))
    with FaultProxy(redis_server.address) as proxy:
        waiters = connect(proxy.url, op_timeout=PATIENT)
        running = colour.start(lambda: colour.acquire(waiters.lock(key), timeout=PATIENT))
        await colour.until(lambda: probe.queued(key) == 1)
        drop = proxy.drop_requests if lost == "request" else proxy.drop_replies
        drop(to="EVALSHA", then="silence")
        with pytest.raises((AcquireTimeout, BackendUnavailable)):  # the latter if its first reply was still on its way
            await running.result()
        await colour.until(lambda: probe.keys() == {probe.name(key)}, timeout=SOON)
    await colour.release(holder)
    await colour.until(lambda: not probe.keys())


@in_colours()
async def test_a_slow_reply_does_not_lengthen_the_lease(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    """redis.io, "Distributed Locks with Redis": validity is the ttl less the time that acquiring took."""
    ttl, delay = 20.0, 2.0
    with FaultProxy(redis_server.address) as proxy:
        locks = connect(proxy.url, op_timeout=SOON)
        await colour.release(await colour.acquire(locks.lock("warm")))
        proxy.delay(delay)
        lease = await colour.acquire(locks.lock(key, ttl=ttl))
        assert lease.remaining() < ttl - 2 * delay
        proxy.delay(0)
        await colour.release(lease)


@in_colours()
async def test_a_reply_later_than_the_ttl_is_no_lease(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    """redis.io, "Distributed Locks with Redis": nothing is valid when the ttl has passed before the reply came."""
    probe = Probe(redis_server)
    with FaultProxy(redis_server.address) as proxy:
        locks = connect(proxy.url)
        await colour.release(await colour.acquire(locks.lock("warm")))
        lock = locks.lock(key, ttl=0.5)
        proxy.delay(0.3)
        lease = await colour.acquire(lock)
        proxy.delay(0)
        assert lease.remaining() == 0.0
        assert lease.state is LeaseState.LOST
        with pytest.raises(LockLost):
            await _enter(lease)
        await colour.until(lambda: not probe.keys())


async def _enter(lease) -> None:
    if isinstance(lease, AsyncLease):
        async with lease:
            pytest.fail("entered")
    else:
        with lease:
            pytest.fail("entered")
