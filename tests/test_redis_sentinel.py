"""Locks on a server that Sentinel watches: the failover is followed."""

from __future__ import annotations

from contextlib import suppress

import pytest
import redis
import redis.asyncio
import redis.asyncio.sentinel
import redis.sentinel

import distlock
from distlock import BackendUnavailable, ConfigurationError, LeaseState, LockLost

from .redis_tools import Colour, Connect, Probe, in_colours
from .sentinels import MASTER, SentinelSetup

LONG = 60.0


@in_colours()
async def test_a_lease_and_its_queue_outlive_a_failover(
    colour: Colour, connect: Connect, shared_sentinels: SentinelSetup, key: str
) -> None:
    """redis.io, "High availability with Redis Sentinel": clients ask for the primary whenever they connect."""
    locks = connect(shared_sentinels.url, op_timeout=15)
    lease = await colour.acquire(locks.lock(key, ttl=LONG))
    waiter = colour.start(lambda: colour.acquire(locks.lock(key, ttl=LONG)))
    await colour.until(lambda: all(Probe(node).queued(key) == 1 for node in shared_sentinels.nodes))
    await colour.aside(shared_sentinels.failover)
    await colour.extend(lease)
    assert await colour.try_acquire(locks.lock(key)) is None
    await colour.release(lease)
    served = await waiter.result()
    assert served.token > lease.token
    await colour.release(served)
    await colour.until(lambda: not Probe(shared_sentinels.primary).keys())


@in_colours()
async def test_who_asks_while_the_primary_is_dead_gets_the_lock_from_its_successor(
    colour: Colour, connect: Connect, redis_sentinels: SentinelSetup, key: str
) -> None:
    """A crash, and no error for who has some seconds: the retry finds the new primary."""
    locks = connect(redis_sentinels.url, op_timeout=30)
    lock = locks.lock(key, ttl=LONG)
    before = await colour.acquire(lock)
    await colour.release(before)
    crash = colour.start(lambda: colour.aside(redis_sentinels.crash_primary))
    await colour.until(lambda: any(not node.up for node in redis_sentinels.nodes))
    after = await colour.acquire(lock)
    assert after.token > before.token
    after.ensure_held()
    await crash.result()
    await colour.release(after)


@in_colours()
async def test_who_waits_is_told_when_the_primary_that_hung_is_replaced(
    colour: Colour, connect: Connect, redis_sentinels: SentinelSetup, key: str
) -> None:
    """A frozen machine answers nothing and closes nothing."""
    locks = connect(redis_sentinels.url, op_timeout=30)
    holder = await colour.acquire(locks.lock(key, ttl=6.0, renew=False))
    waiter = colour.start(lambda: colour.acquire(locks.lock(key, ttl=3.0)))
    await colour.until(lambda: Probe(redis_sentinels.primary).queued(key) == 1)
    await colour.aside(redis_sentinels.freeze_primary)
    served = await waiter.result()
    assert served.token > holder.token
    served.ensure_held()
    await colour.release(served)
    with suppress(LockLost):  # a failover may lose what was written last, so that it may be HELD still
        await colour.release(holder)


@in_colours()
async def test_a_sentinel_that_hangs_is_passed_over(
    colour: Colour, connect: Connect, redis_sentinels: SentinelSetup, key: str
) -> None:
    """redis.io, "Guidelines for Redis clients": the next one is asked, and first from then on."""
    redis_sentinels.sentinels[0].pause()
    locks = connect(redis_sentinels.url, op_timeout=8)
    await colour.release(await colour.acquire(locks.lock(key)))
    assert locks._backend.server._sentinels[0].settings["port"] != redis_sentinels.sentinels[0].port  # type: ignore[attr-defined]


@in_colours()
async def test_a_group_that_nobody_knows_is_an_error(
    colour: Colour, connect: Connect, shared_sentinels: SentinelSetup, key: str
) -> None:
    locks = connect(shared_sentinels.url.replace(MASTER, "typo"), op_timeout=4.0)
    with pytest.raises(BackendUnavailable, match="no sentinel named a primary for 'typo'"):
        await colour.acquire(locks.lock(key))


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_client_that_sentinel_gave_lends_what_it_knows(
    shared_sentinels: SentinelSetup, key: str, asynchronous: bool
) -> None:
    hosts = [("127.0.0.1", sentinel.port) for sentinel in shared_sentinels.sentinels]
    module = redis.asyncio.sentinel if asynchronous else redis.sentinel
    sentinel = module.Sentinel(hosts)
    with distlock.connect(sentinel.master_for(MASTER, db=1)) as locks, locks.lock(key):
        assert locks.address.endswith(f"/{MASTER}/1")
        assert shared_sentinels.primary.command("INFO", "keyspace")
    with pytest.raises(ConfigurationError, match="master_for"):
        distlock.connect(sentinel.slave_for(MASTER))


def test_passwords_are_used_and_not_shown(key: str) -> None:
    with (
        SentinelSetup(password="s3cret/1", sentinel_password="s3cret@2", replicas=1, sentinels=1) as setup,
        distlock.connect(setup.url) as locks,
    ):
        with locks.lock(key) as lease:
            assert lease.state is LeaseState.HELD
        assert "s3cret" not in repr(locks) + locks.address + repr(vars(locks._backend.server))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "url", ["redis+sentinel://h", "redis+sentinel://h/", "redis+sentinel://,/m", "redis+sentinel:///m"]
)
def test_a_url_that_names_no_group_or_no_host_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError):
        distlock.connect(url)


def test_the_login_of_the_servers_is_not_told_to_the_sentinels() -> None:
    url = "redis+sentinel://h/main?username=u&password=s3cret&sentinel_password=other"
    with distlock.connect(url) as locks:
        server = locks._backend.server  # type: ignore[attr-defined]
        assert server._like.settings["username"] == "u"
        assert server._like.settings["password"] == "s3cret"
        (sentinel,) = server._sentinels
        assert "username" not in sentinel.settings
        assert sentinel.settings["password"] == "other"


@pytest.mark.parametrize("count", [1, 3, 5, 20])
def test_sentinels_that_hang_leave_time_for_the_last_one_and_the_primary(count: int) -> None:
    hosts = ",".join(f"h{number}" for number in range(count))
    with distlock.connect(f"redis+sentinel://{hosts}/main") as locks:
        patience = locks._backend.server._patience(8.0)  # type: ignore[attr-defined]
    assert 0 < patience <= 2.0
    assert count * patience <= 6.001
