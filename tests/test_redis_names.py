"""Any name is a lock's name, and nothing but its own keys is touched; foreign data least of all."""

from __future__ import annotations

import threading
from functools import partial

import pytest
import redis
from redis.crc import key_slot

import distlock
from distlock import AcquireTimeout, LockLost

from .redis_tools import Colour, Connect, Probe, in_colours, monitor, touching_its_keys, until
from .servers import RedisServer

ODD = (
    "a", "ab", "a/b", "a:b", "a b", " ", "\0", "\n", "\r\n", "$5\r\nhello\r\n", "*", "?", "[a]", "\\", "\\*", "'", '"',
    "{", "}", "{}", "}{", "{a}", "a}", "a}:q", "a}:w", "}:q", ":q", ":w", ":clock", "default:clock", "q", "w",
    "distlock:{default:a}", "distlock:default:clock", "~", "=a", "-", "%41", "%", "é", "e\u0301", "☂", "🔒", "ـ",
    "x" * 512, "🔒" * 128, "}" * 512,
)  # fmt: skip


@in_colours()
async def test_odd_names_are_locks_of_their_own(colour: Colour, connect: Connect, redis_server: RedisServer) -> None:
    """redis.io, "Cluster specification": a ``}`` or ``{`` in a name must not move or merge its keys."""
    probe, locks = Probe(redis_server), connect(redis_server.url)
    held = {name: await colour.acquire(locks.lock(name), timeout=0) for name in ODD}
    waiting = [colour.start(partial(colour.acquire, locks.lock(name))) for name in ODD]
    await colour.until(lambda: all(probe.queued(name) == 1 for name in ODD))
    assert len(probe.keys()) == 3 * len(ODD)
    assert sorted(each.key for each in await colour.list(locks)) == sorted(ODD)
    for lease in held.values():
        await colour.release(lease)
    for waiter in waiting:
        lease = await waiter.result()
        assert lease.token > held[lease.key].token
        await colour.release(lease)
    assert probe.keys() == set()


@pytest.mark.parametrize("name", ODD)
def test_all_keys_of_a_lock_are_in_one_slot(name: str, redis_server: RedisServer) -> None:
    """redis.io, "Cluster specification": a script's keys must hash to one slot, by what is in the first braces."""
    probe = Probe(redis_server)
    slots = {key_slot(probe.name(name, suffix).encode()) for suffix in ("", ":q", ":w")}
    assert len(slots) == 1


@in_colours()
async def test_odd_owners_and_metadata_come_back_as_they_were(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    """The stored value is one packed string: nothing that a user writes may be taken for a separator."""
    locks = connect(redis_server.url)
    for odd in ODD:
        lock = locks.lock(key, owner=odd, metadata={odd: odd[::-1]}, reentrant=True)
        one, two = await colour.acquire(lock), await colour.acquire(lock)
        assert one.token == two.token
        with pytest.raises(AcquireTimeout) as caught:
            await colour.acquire(locks.lock(key, owner=odd), timeout=0)
        assert caught.value.holder is not None
        assert caught.value.holder.owner == odd
        assert caught.value.holder.metadata == {odd: odd[::-1]}
        await colour.release(one)
        await colour.release(two)
    assert Probe(redis_server).keys() == set()


@in_colours()
async def test_a_prefix_is_taken_literally(colour: Colour, connect: Connect, redis_server: RedisServer) -> None:
    """redis.io, "SCAN": the pattern is a glob, a prefix is not."""
    locks, others = connect(redis_server.url), connect(redis_server.url, namespace="other")
    names = ["a*b", "axb", "a?b", "a[x]b", "a\\b", "a^b", "a{b}", "a}", "b"]
    leases = [await colour.acquire(locks.lock(name)) for name in names]
    leases.append(await colour.acquire(others.lock("a*b")))
    for prefix in ("", "a", "a*", "a?", "a[", "a[x]", "a\\", "a^", "a{", "a}", "b", "*", "x"):
        found = await colour.list(locks, prefix)
        assert sorted(each.key for each in found) == sorted(name for name in names if name.startswith(prefix))
        assert all(each.holder is not None for each in found)
    for lease in leases:
        await colour.release(lease)
    assert list(await colour.list(locks)) == []


def test_a_script_touches_only_the_keys_it_was_given(redis_server: RedisServer, key: str) -> None:
    """redis.io, "EVAL": a key that is not in KEYS breaks on a cluster, one day."""
    with monitor(redis_server) as lines, distlock.connect(redis_server.url) as locks:
        holder = locks.lock(key, ttl=6.0, owner="one", reentrant=True).acquire()
        again = locks.lock(key, ttl=6.0, owner="one", reentrant=True).acquire()
        with pytest.raises(AcquireTimeout):
            locks.lock(key, ttl=3.0).acquire(timeout=2.5)
        holder.extend()
        threading.Timer(0.5, again.release).start()
        holder.release()
        locks.lock(key).acquire(timeout=20).release()
        locks.inspect(key)
        locks._watchdog.give_up(holder._hold.grant.claim)  # by a tombstone
        until(lambda: not locks._watchdog._chores)
    assert {"SET", "GET", "DEL", "PTTL", "PEXPIRE", "ZADD", "ZREM", "HSET", "HGET", "HDEL"} <= touching_its_keys(lines)


ALMOST = ["1 a 5 ~\xff {}", "1 \xff 5 - {}", "1 a 5 - \xff", "1 a 5 = []", '1 a 5 - {"p": "x"}', '1 a 5 - {"m": 1}']
"""In our format, as far as it goes."""
FOREIGN = [
    *ALMOST,
    "",
    "hello",
    "1",
    "1 ",
    "1 a b",
    "1 a b c d",
    "2 a 5 - {}",
    "1 a 5 -",
    "\xff\xfe binary",
    " ",
    "1  5 - {}",
]


@pytest.mark.parametrize("value", FOREIGN)
@in_colours()
async def test_a_value_that_is_not_ours_is_someone_elses_lock(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str, value: str
) -> None:
    """antirez, "Redlock": whoever deletes without looking destroys another's lock. What we cannot read stays."""
    probe, locks = Probe(redis_server), connect(redis_server.url)
    stored = value.encode("latin-1")
    probe.ask("SET", probe.name(key), stored)
    assert await colour.try_acquire(locks.lock(key)) is None
    with pytest.raises(AcquireTimeout) as caught:
        await colour.acquire(locks.lock(key), timeout=1.0)
    holder = caught.value.holder
    assert holder is not None
    assert ("unknown" in str(caught.value)) == (value not in ALMOST)
    inspection = await colour.inspect(locks, key)
    assert inspection.waiters == ()
    assert probe.ask("GET", probe.name(key)) == stored
    assert probe.pttl(key) == -1
    await colour.until(lambda: probe.keys() == {probe.name(key)})
    waiter = colour.start(lambda: colour.acquire(locks.lock(key, ttl=3.0)))
    await colour.until(lambda: probe.queued(key) == 1)
    probe.ask("DEL", probe.name(key))
    await colour.release(await waiter.result())
    assert probe.keys() == set()


@in_colours()
async def test_a_lease_whose_value_was_overwritten_leaves_the_new_one_alone(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    """redis.io, "SET": delete only if the value is still mine."""
    probe = Probe(redis_server)
    lease = await colour.acquire(connect(redis_server.url).lock(key))
    mine = probe.value(key)
    assert mine is not None
    for foreign in (mine[:-1], b"1 x" + mine[3:], b"1 " + mine, mine.replace(b"1 ", b"2 ", 1)):
        probe.ask("SET", probe.name(key), foreign)
        fresh = await colour.try_acquire(connect(redis_server.url).lock(key))
        assert fresh is None
    probe.ask("SET", probe.name(key), b"1 x" + mine[3:])
    with pytest.raises(LockLost):
        await colour.release(lease)
    assert probe.value(key) == b"1 x" + mine[3:]


def test_a_lock_of_redis_py_at_the_same_key_keeps_us_out_until_it_is_released(
    redis_server: RedisServer, key: str
) -> None:
    """redis-py, ``Lock``: a random value with a ttl. Neither of the two destroys the other's."""
    probe = Probe(redis_server)
    with redis.Redis(port=redis_server.port) as client, distlock.connect(redis_server.url) as locks:
        theirs = client.lock(probe.name(key), timeout=30)
        assert theirs.acquire(blocking=False)
        assert locks.lock(key).try_acquire() is None
        theirs.release()
        lease = locks.lock(key).acquire(timeout=0)
        assert not theirs.acquire(blocking=False)
        lease.release()
        assert probe.keys() == set()
