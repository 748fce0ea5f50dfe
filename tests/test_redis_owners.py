"""Re-entering by an explicit owner: counted on the server, for any process that bears the name."""

from __future__ import annotations

import itertools
import time
from functools import partial

import pytest

from distlock import Lock, LockLost, Manager

from .redis_tools import Colour, Connect, Probe, in_colours
from .servers import RedisServer

LONG = 60.0
"""A ttl that no test outlasts: who is served by it, and not by a message, fails."""
SOON = 15.0


def _lock(locks: Manager, key: str, owner: str = "job-7", ttl: float = LONG, *, reentrant: bool = True) -> Lock:
    return locks.lock(key, owner=owner, reentrant=reentrant, ttl=ttl)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@in_colours()
async def test_the_lock_is_held_until_the_last_entry_is_left(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str, order: tuple[int, ...]
) -> None:
    """redisson, RLock: re-entry is a count on the server. Left in any order."""
    probe = Probe(redis_server)
    managers = [connect(redis_server.url) for _ in range(3)]
    leases = [await colour.acquire(_lock(locks, key), timeout=0) for locks in managers]
    assert len({lease.token for lease in leases}) == 1, "a re-entry shares the token"
    waiter = colour.start(lambda: colour.acquire(managers[0].lock(key, ttl=LONG)))
    await colour.until(lambda: probe.queued(key) == 1)
    for entry in order:
        assert not waiter.done
        leases[entry].ensure_held()
        await colour.release(leases[entry])
    served = await waiter.result()
    assert served.token > leases[0].token
    await colour.release(served)
    assert probe.keys() == set()


@in_colours()
async def test_only_the_same_owner_who_asked_for_it_re_enters(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    """bsm/redislock: owner ids are compared whole. And naming an owner is not asking to re-enter."""
    locks, others = connect(redis_server.url), connect(redis_server.url)
    lease = await colour.acquire(_lock(locks, key))
    for owner in ("job-70", "job-", "=job-7", "~job-7", "-", "JOB-7", "job-7 ", "job%2D7", "*"):
        assert await colour.try_acquire(_lock(others, key, owner)) is None, owner
    assert await colour.try_acquire(_lock(others, key, reentrant=False)) is None
    assert await colour.try_acquire(others.lock(key)) is None
    await colour.release(lease)
    lease = await colour.acquire(_lock(locks, key, reentrant=False))
    assert await colour.try_acquire(_lock(others, key)) is None
    await colour.release(lease)
    assert Probe(redis_server).keys() == set()


@in_colours()
async def test_a_waiter_re_enters_past_the_queue_when_its_owner_gets_the_lock(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    """redisson, RLock: an owner that had to queue behind others would wait for itself."""
    probe = Probe(redis_server)
    locks, others = connect(redis_server.url), connect(redis_server.url)
    holder = await colour.acquire(others.lock(key, ttl=LONG))
    first = colour.start(lambda: colour.acquire(_lock(locks, key)))
    await colour.until(lambda: probe.queued(key) == 1)
    stranger = colour.start(lambda: colour.acquire(locks.lock(key, ttl=LONG)))
    await colour.until(lambda: probe.queued(key) == 2)
    queued = [colour.start(partial(colour.acquire, _lock(manager, key))) for manager in (locks, others)]
    await colour.until(lambda: probe.queued(key) == 4)
    started = time.monotonic()
    await colour.release(holder)
    lease = await first.result()
    entries = [lease, *[await each.result() for each in queued]]
    assert time.monotonic() - started < SOON
    late = await colour.acquire(_lock(others, key), timeout=0)
    assert {entry.token for entry in [*entries, late]} == {lease.token}
    for entry in [*entries, late]:
        assert not stranger.done
        await colour.release(entry)
    await colour.release(await stranger.result())
    assert probe.keys() == set()


@in_colours()
async def test_a_waiter_that_was_not_told_of_its_owner_finds_it_in_a_third_of_a_ttl(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    """redis.io, "Pub/Sub": at most once. Here nobody was told at all."""
    probe, locks = Probe(redis_server), connect(redis_server.url)
    holder = await colour.acquire(locks.lock(key, ttl=LONG))
    waiter = colour.start(lambda: colour.acquire(_lock(locks, key, ttl=3.0)))
    await colour.until(lambda: probe.queued(key) == 1)
    probe.ask("SET", probe.name(key), "1 elsewhere 5 =job-7 {}", "PX", 60_000)
    lease = await waiter.result()
    assert lease.token == 5
    await colour.release(lease)
    assert probe.value(key) == b"1 elsewhere 5 =job-7 {}"
    with pytest.raises(LockLost):
        await colour.release(holder)


@in_colours()
async def test_an_entry_that_ends_with_its_process_leaves_the_others_alone(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    """redisson#3730: one of two that share a lock dies; the other keeps it, and then all is over."""
    probe = Probe(redis_server)
    dying, living = connect(redis_server.url), connect(redis_server.url)
    dead = await colour.acquire(_lock(dying, key, ttl=4.0))
    lease = await colour.acquire(_lock(living, key, ttl=4.0))
    dying._watchdog.forget(dead._hold)  # nobody renews it any more, nobody gives it back
    await colour.until(lambda: dead.remaining() == 0.0)
    lease.ensure_held()
    await colour.release(lease)
    # The dead entry keeps the lock for the rest of a ttl at most.
    free = await colour.acquire(living.lock(key))
    with pytest.raises(LockLost):
        await colour.release(dead)
    await colour.release(free)
    await colour.until(lambda: not probe.keys())


@in_colours()
async def test_a_shorter_entry_does_not_shorten_the_lock(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    """redisson, RLock: pexpire at each re-entry, with whatever lease time the last one asked for."""
    probe, locks = Probe(redis_server), connect(redis_server.url)
    long = await colour.acquire(_lock(locks, key, ttl=LONG))
    short = await colour.acquire(_lock(locks, key, ttl=5.0))
    assert probe.pttl(key) > 50_000
    await colour.release(short)
    assert probe.pttl(key) > 50_000
    short = await colour.acquire(_lock(locks, key, ttl=5.0))
    await colour.release(long)
    short.ensure_held()
    await colour.release(short)
    assert probe.keys() == set()
