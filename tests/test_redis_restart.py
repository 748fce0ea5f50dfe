"""A server that forgets its scripts, its data or the time, between any two requests."""

from __future__ import annotations

import pytest

from distlock import BackendError, LeaseState, LockLost

from .redis_tools import Colour, Connect, Probe, in_colours
from .servers import RedisServer

LONG = 60.0


@in_colours()
async def test_scripts_may_be_forgotten_between_any_two_requests(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    """redlock-rb, redsync: after SCRIPT FLUSH every call fails until the program is started anew."""
    probe, locks = Probe(redis_server), connect(redis_server.url)

    def forget() -> None:
        probe.ask("SCRIPT", "FLUSH")

    forget()
    lease = await colour.acquire(locks.lock(key, ttl=LONG))
    forget()
    waiter = colour.start(lambda: colour.acquire(locks.lock(key, ttl=4.5)))
    await colour.until(lambda: probe.queued(key) == 1)
    forget()
    before = probe.calls()["hset"]
    await colour.until(lambda: probe.calls()["hset"] > before)  # a refresh
    forget()
    assert len((await colour.inspect(locks, key)).waiters) == 1
    await colour.extend(lease, 4.5)
    forget()
    before = probe.calls()["pttl"]
    await colour.until(lambda: probe.calls()["pttl"] > before + 3)  # renewals and refreshes
    forget()
    await colour.release(lease)
    forget()
    lease = await waiter.result()
    forget()
    await colour.release(lease)
    await colour.until(lambda: not probe.keys())


@in_colours()
async def test_a_restart_with_its_data_is_not_noticed(colour: Colour, connect: Connect, key: str) -> None:
    """redis.io, "Persistence": appendfsync always; what was acquired before is held after."""
    with RedisServer(appendonly=True) as server:
        probe, locks = Probe(server), connect(server.url)
        lease = await colour.acquire(locks.lock(key, ttl=LONG))
        waiter = colour.start(lambda: colour.acquire(locks.lock(key, ttl=LONG)))
        await colour.until(lambda: probe.queued(key) == 1)
        server.restart(crash=True)
        assert await colour.try_acquire(locks.lock(key)) is None
        lease.ensure_held()
        await colour.until(lambda: probe.subscribers() == 1)
        await colour.extend(lease)
        await colour.release(lease)
        served = await waiter.result()
        assert served.token > lease.token
        await colour.release(served)
        await colour.until(lambda: not probe.keys())


@in_colours()
async def test_a_restart_without_its_data_is_noticed_by_holders_and_waiters(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    """redis.io, "Distributed Locks with Redis": a server that comes back empty has lost the lock."""
    probe, locks = Probe(redis_server), connect(redis_server.url)
    lost = await colour.acquire(locks.lock(key, ttl=3.0))
    waiter = colour.start(lambda: colour.acquire(locks.lock(key, ttl=LONG)))
    await colour.until(lambda: probe.queued(key) == 1)
    redis_server.restart(data=False)
    await colour.until(lambda: lost.state is LeaseState.LOST)
    served = await waiter.result()
    assert served.token > lost.token, "tokens rise although the counter is gone"
    with pytest.raises(LockLost):
        await colour.release(lost)
    served.ensure_held()
    await colour.release(served)
    await colour.until(lambda: not probe.keys())


@pytest.mark.parametrize("ahead", [10**9, 10**15, 2**53 - 10**6])
@in_colours()
async def test_tokens_rise_above_what_was_given_out_before_whatever_the_clock_says(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str, ahead: int
) -> None:
    """Kleppmann, "How to do distributed locking": a fencing token never falls, though clocks are set back.

    Lua prints numbers with 14 digits, which would make tokens repeat.
    """
    probe, locks = Probe(redis_server), connect(redis_server.url)
    first = await colour.acquire(locks.lock(key))
    await colour.release(first)
    high = max(ahead, first.token + 10**9) if ahead < 2**52 else ahead
    probe.ask("SET", probe.clock, high)
    tokens = [high]
    for _ in range(5):
        lease = await colour.acquire(locks.lock(key))
        stored = probe.value(key)
        assert stored is not None
        assert stored.split()[2] == str(lease.token).encode() == probe.ask("GET", probe.clock)
        tokens.append(lease.token)
        waiter = colour.start(lambda: colour.acquire(locks.lock(key)))
        await colour.until(lambda: probe.queued(key) == 1)
        await colour.release(lease)
        lease = await waiter.result()
        tokens.append(lease.token)
        await colour.release(lease)
    assert tokens == list(range(high, high + 11))
    assert 0 < probe.ask("TTL", probe.clock) <= 86400


@in_colours()
async def test_the_clock_of_tokens_is_shared_by_the_locks_of_a_namespace(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    """A million names leave one key behind (spring#3655, aioredlock#101: one each), and namespaces stay apart."""
    mine, other = connect(redis_server.url, namespace="mine"), connect(redis_server.url, namespace="other")
    for number in range(20):
        one = await colour.acquire(mine.lock(f"{key}:{number}"))
        two = await colour.acquire(other.lock(f"{key}:{number}"))
        await colour.release(one)
        await colour.release(two)
    assert set(Probe(redis_server).ask("KEYS", "*")) == {b"distlock:mine:clock", b"distlock:other:clock"}


@in_colours()
async def test_a_clock_that_is_no_number_is_an_error(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    """A token that might have been given out before is worse than none."""
    probe = Probe(redis_server)
    probe.ask("SET", probe.clock, "tomorrow")
    with pytest.raises(BackendError) as caught:
        await colour.acquire(connect(redis_server.url).lock(key))
    assert caught.value.key == key
    await colour.until(lambda: not probe.keys())
