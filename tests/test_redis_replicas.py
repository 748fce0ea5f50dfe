"""``wait_replicas``: a grant or a renewal counts when so many replicas have it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

import distlock
from distlock import BackendUnavailable, ConfigurationError, LeaseState
from distlock.backends.redis import open_client

from .redis_tools import Colour, Connect, Probe, in_colours, until
from .servers import RedisServer

LONG = 60.0


@pytest.fixture
def replica(redis_server: RedisServer) -> Iterator[RedisServer]:
    """Of ``redis_server``, and in step with it."""
    with RedisServer(replica_of=redis_server.address) as server:
        until(lambda: server.linked)
        yield server


@in_colours()
async def test_a_confirmed_grant_is_on_the_replica(
    colour: Colour, connect: Connect, redis_server: RedisServer, replica: RedisServer, key: str
) -> None:
    """redis.io, WAIT: the number of replicas that acknowledged the writes of this connection."""
    locks = connect(f"{redis_server.url}?wait_replicas=1")
    lease = await colour.acquire(locks.lock(key, ttl=LONG))
    assert Probe(replica).value(key) is not None
    await colour.extend(lease)
    await colour.release(lease)


@in_colours()
async def test_a_grant_that_no_replica_confirms_is_withdrawn_and_fails(
    colour: Colour, connect: Connect, redis_server: RedisServer, replica: RedisServer, key: str
) -> None:
    locks = connect(f"{redis_server.url}?wait_replicas=1", op_timeout=4.0)
    replica.pause()
    with pytest.raises(BackendUnavailable, match="0 of 1 replicas confirmed"):
        await colour.acquire(locks.lock(key, ttl=LONG))
    await colour.until(lambda: not Probe(redis_server).value(key))
    replica.resume()
    await colour.release(await colour.acquire(locks.lock(key, ttl=LONG)))


@in_colours()
async def test_a_renewal_that_no_replica_confirms_proves_nothing(
    colour: Colour, connect: Connect, redis_server: RedisServer, replica: RedisServer, key: str
) -> None:
    locks = connect(f"{redis_server.url}?wait_replicas=1")
    lease = await colour.acquire(locks.lock(key, ttl=2.0))
    replica.pause()
    await colour.until(lambda: lease.state is LeaseState.LOST)


@in_colours()
async def test_a_lock_that_was_handed_over_is_written_again_before_it_is_waited_for(
    colour: Colour, connect: Connect, redis_server: RedisServer, replica: RedisServer, key: str
) -> None:
    """WAIT knows of the writes of its own connection alone: the grant was written on that of who released."""
    others, locks = connect(redis_server.url), connect(f"{redis_server.url}?wait_replicas=1", op_timeout=3.0)
    holder = await colour.acquire(others.lock(key, ttl=LONG))
    waiter = colour.start(lambda: colour.acquire(locks.lock(key, ttl=LONG)))
    await colour.until(lambda: Probe(redis_server).queued(key) == 1)
    replica.pause()
    await colour.release(holder)
    with pytest.raises(BackendUnavailable, match="0 of 1 replicas confirmed"):
        await waiter.result()
    await colour.until(lambda: not Probe(redis_server).value(key))


@in_colours()
async def test_a_confirmation_asked_for_again_at_once_is_not_taken_for_granted(
    colour: Colour, connect: Connect, redis_server: RedisServer, replica: RedisServer, key: str
) -> None:
    """Nothing to write, nothing to wait for: a script that changes nothing would let WAIT answer at once."""
    locks = connect(f"{redis_server.url}?wait_replicas=1")
    lease = await colour.acquire(locks.lock(key, ttl=LONG))
    await colour.aside(lambda: redis_server.command("PEXPIRE", Probe(redis_server).name(key), 3_600_000))
    replica.pause()
    with pytest.raises(BackendUnavailable, match="0 of 1 replicas confirmed"):
        await colour.extend(lease, 30)
    assert lease.remaining() < 31
    replica.resume()
    await colour.release(lease)


@in_colours()
async def test_who_gives_back_does_not_wait_for_replicas(
    colour: Colour, connect: Connect, redis_server: RedisServer, replica: RedisServer, key: str
) -> None:
    locks = connect(f"{redis_server.url}?wait_replicas=1")
    lease = await colour.acquire(locks.lock(key, ttl=LONG))
    asking = colour.start(lambda: colour.acquire(locks.lock(f"{key} too", ttl=LONG, timeout=5)))
    await asking.result()
    replica.pause()
    stuck = colour.start(lambda: colour.try_acquire(locks.lock(f"{key} three", ttl=LONG)))
    await colour.until(lambda: Probe(redis_server).value(f"{key} three"))
    await colour.release(lease)
    assert Probe(redis_server).value(key) is None
    with pytest.raises(BackendUnavailable):
        await stuck.result()


@pytest.mark.parametrize("value", ["", "-1", "1.5", "many", "1001"])
def test_a_number_of_replicas_is_a_number(value: str) -> None:
    with pytest.raises(ConfigurationError, match="wait_replicas"):
        distlock.connect(f"redis://localhost/0?wait_replicas={value}")


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("redis://localhost/0?wait_replica=1", "wait_replica"),
        ("redis://localhost/0?sentinel_password=x", "sentinel_password"),
        ("unix:///tmp/redis.sock?timout=1", "timout"),
        ("redis+cluster://localhost?db=1", "db"),
        ("redis+sentinel://localhost/main?db=1", "db"),
        ("redlock://a,b,c?wait_replicas=1", "wait_replicas"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(url: str, name: str) -> None:
    """A typo must not silently do less."""
    with pytest.raises(ConfigurationError, match=f"has no option '{name}'"):
        distlock.connect(url)


def test_a_client_at_hand_can_be_told_to_wait(redis_server: RedisServer, replica: RedisServer, key: str) -> None:
    with redis.Redis.from_url(redis_server.url) as client:
        backend = open_client(client, namespace="default", op_timeout=5.0, wait_replicas=1)
        with distlock.connect(backend) as locks, locks.lock(key, ttl=LONG):
            assert Probe(replica).value(key) is not None
