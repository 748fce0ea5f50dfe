"""A lock that is handed over while something goes wrong: nobody is passed over, nothing is lost."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from distlock import AcquireTimeout, BackendUnavailable
from distlock.testing.colours import Task
from distlock.testing.proxy import FaultProxy

from .blocking import may_block
from .redis_tools import ASYNC, Colour, Connect, Probe, in_colours, until
from .servers import RedisServer

LONG = 60.0
"""A ttl that no test outlasts: who is served by it, and not by a message, fails."""
SOON = 15.0


@in_colours()
async def test_a_grant_on_its_way_to_one_that_timed_out_is_passed_on(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    """Redisson's fair lock: the one that was served had just left, and the lock lies idle until it expires."""
    with _served_unawares(colour, connect, redis_server, key) as served:
        leaver, heir = await served(4.0)
        await colour.release(await heir.result())
        with pytest.raises(AcquireTimeout):
            await leaver.result()


@in_colours(*ASYNC)
async def test_a_grant_on_its_way_to_one_that_was_cancelled_is_passed_on(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    """As above; and anyio, "Cancellation": what it leaves behind is the library's to see to."""
    with _served_unawares(colour, connect, redis_server, key) as served:
        leaver, heir = await served(None)
        await leaver.cancel()
        await colour.release(await heir.result())


@contextmanager
def _served_unawares(
    colour: Colour, connect: Connect, server: RedisServer, key: str
) -> Iterator[Callable[[float | None], Awaitable[tuple[Task, Task]]]]:
    """One that waits and was handed the lock, for ever, but for which no news arrives; and the next."""
    probe, locks = Probe(server), connect(server.url)
    with may_block(), FaultProxy(server.address) as proxy:
        leavers = connect(proxy.url, op_timeout=2.0)

        async def serve(timeout: float | None) -> tuple[Task, Task]:
            holder = await colour.acquire(locks.lock(key, ttl=LONG))
            leaver = colour.start(lambda: colour.acquire(leavers.lock(key, ttl=LONG), timeout=timeout))
            await colour.until(lambda: probe.queued(key) == 1)
            heir = colour.start(lambda: colour.acquire(locks.lock(key, ttl=LONG)))
            await colour.until(lambda: probe.queued(key) == 2)
            proxy.pause(requests=False)
            await colour.release(holder)
            assert not heir.done
            probe.ask("PERSIST", probe.name(key))
            return leaver, heir

        yield serve
        proxy.resume()
        until(lambda: probe.keys() == set())


@in_colours()
async def test_a_subscription_that_was_left_on_a_replica_is_noticed(colour: Colour, connect: Connect, key: str) -> None:
    """redis.io, PUBLISH: replicas pass it on to their subscribers, but the primary counts its own alone."""
    with RedisServer() as one, RedisServer() as two, FaultProxy(one.address) as proxy:
        _replicate(two, one)
        locks = connect(proxy.url)
        waiters, probe = connect(proxy.url), Probe(two)
        holder = await colour.acquire(locks.lock(key, ttl=LONG))
        running = colour.start(lambda: colour.acquire(waiters.lock(key, ttl=4.0)))
        await colour.until(lambda: probe.queued(key) == 1)
        _replicate(one, two)  # and what is connected there stays so
        with may_block():
            proxy.redirect(two.address)
        await colour.until(lambda: probe.subscribers() == 1)
        await colour.until(lambda: Probe(one).subscribers() == 0)
        with suppress(BackendUnavailable):  # its connection is to the old primary still; it tries again
            await colour.release(holder)
        await colour.release(await running.result())


def _replicate(replica: RedisServer, primary: RedisServer) -> None:
    primary.command("REPLICAOF", "NO", "ONE")
    replica.command("REPLICAOF", "127.0.0.1", primary.port)

    def synced() -> bool:
        said: Any = replica.command("INFO", "replication")
        return b"master_link_status:up" in said

    with may_block():
        until(synced)


@in_colours()
async def test_the_connection_that_brings_the_news_may_die(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    """redisson#5761: a subscription that broke, and a waiter that is never told."""
    probe = Probe(redis_server)
    locks, waiters = connect(redis_server.url), connect(redis_server.url)
    for pause in (False, True):
        holder = await colour.acquire(locks.lock(key, ttl=LONG))
        running = colour.start(lambda: colour.acquire(waiters.lock(key, ttl=LONG)))
        await colour.until(lambda: probe.queued(key) == 1)
        assert probe.ask("CLIENT", "KILL", "TYPE", "pubsub") == 1
        if pause:
            await colour.until(lambda: probe.subscribers() == 1)
        started = time.monotonic()
        await colour.release(holder)
        lease = await running.result()
        assert time.monotonic() - started < SOON
        await colour.release(lease)
    assert probe.keys() == set()


@in_colours()
async def test_a_lost_message_costs_a_third_of_a_ttl(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    """redis.io, "Pub/Sub": at most once. And a half-open connection looks alive from both ends."""
    probe = Probe(redis_server)
    locks = connect(redis_server.url)
    holder = await colour.acquire(locks.lock(key, ttl=LONG))
    with FaultProxy(redis_server.address) as proxy:
        waiters = connect(proxy.url)
        running = colour.start(lambda: colour.acquire(waiters.lock(key, ttl=4.5)))
        await colour.until(lambda: probe.queued(key) == 1)
        proxy.drop_replies(to="SUBSCRIBE", then="silence")
        await colour.release(holder)
        lease = await running.result()
        # Nobody told the client that its connection is dead; it finds out while it waits.
        running = colour.start(lambda: colour.acquire(waiters.lock(key, ttl=4.5)))
        await colour.until(lambda: probe.queued(key) == 1)
        await colour.until(lambda: proxy.sent.count("SUBSCRIBE") >= 2)
        await colour.release(lease)
        await colour.release(await running.result())
    assert probe.keys() == set()


@in_colours()
async def test_a_free_lock_is_found_by_who_cannot_hear(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    """redis.io, "Pub/Sub": the server has dropped the subscriber, and the client does not know: nobody is told."""
    probe = Probe(redis_server)
    holder = await colour.acquire(connect(redis_server.url).lock(key, ttl=LONG))
    with FaultProxy(redis_server.address) as proxy:
        waiters = connect(proxy.url)
        running = colour.start(lambda: colour.acquire(waiters.lock(key, ttl=12.0)))  # no refresh before the release
        await colour.until(lambda: probe.queued(key) == 1)
        proxy.drop_replies(to="SUBSCRIBE", then="silence")
        [channel] = probe.ask("PUBSUB", "CHANNELS", "distlock:*")
        probe.ask("PUBLISH", channel, "x")
        await colour.until(lambda: probe.ask("CLIENT", "KILL", "TYPE", "pubsub") == 1)
        await colour.release(holder)
        assert probe.value(key) is None, "nobody hears"
        started = time.monotonic()
        lease = await running.result()
        assert time.monotonic() - started < SOON
        await colour.release(lease)
