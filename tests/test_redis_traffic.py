"""What locks cost the network beyond what test_costs.py counts: scripts to be learnt, crowds, and nobody who polls."""

from __future__ import annotations

import math
from functools import partial

import pytest

import distlock
from distlock import Lock
from distlock.backends.base import Claim, now
from distlock.backends.redis import RedisBackend
from distlock.backends.redis._scripts import SERVER
from distlock.testing.proxy import FaultProxy

from .redis_tools import Colour, Connect, Probe, in_colours
from .servers import RedisServer


@in_colours()
async def test_a_script_that_the_server_does_not_know_costs_one_more_request(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    """redlock-rb, redsync: NOSCRIPT has to be seen and mended by whoever calls."""
    with FaultProxy(redis_server.address) as proxy:
        lock = connect(proxy.url).lock(key)
        lease = await colour.acquire(lock)
        assert [name for name in proxy.sent if name != "CLIENT"] == ["EVALSHA", "EVAL"]
        assert proxy.traffic.connections == 1
        await colour.release(lease)
        assert [name for name in proxy.sent if name != "CLIENT"] == ["EVALSHA", "EVAL"] * 2
        assert proxy.traffic.connections == 1


@in_colours()
async def test_a_waiting_process_asks_once_in_a_third_of_a_ttl_however_many_locks_it_waits_for(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    """redis-py polls ten times a second for each waiter; Redisson wakes by pub/sub instead (redisson#5761)."""
    probe, ttl, count, periods = Probe(redis_server), 6.0, 50, 2  # a ttl that a slow machine keeps up with
    names = [f"{key}:{number}" for number in range(count)]
    holders = connect(redis_server.url)
    leases = [await colour.acquire(holders.lock(name)) for name in names]
    with FaultProxy(redis_server.address) as proxy:
        waiters = connect(proxy.url)
        calls = [partial(_hold_shortly, colour, waiters.lock(name, ttl=ttl)) for name in names]
        running = [colour.start(call) for call in calls]
        await colour.until(lambda: sum(probe.queued(name) for name in names) == count)
        before, subscribed, started = proxy.traffic, proxy.sent.count("SUBSCRIBE"), now()
        await colour.sleep(periods * ttl / 3)
        spent = proxy.traffic - before
        passed = math.ceil((now() - started) / (ttl / 3))  # the first script may be sent twice
        assert spent.commands <= passed + 1, proxy.traffic_text()
        assert spent.connections <= 1, "refreshing takes one, shared with the watchdog"
        assert subscribed == probe.subscribers() == 1, "one inbox serves the whole process"
        assert not any(each.done for each in running)
        for lease in leases:
            await colour.release(lease)
        for each in running:
            await each.result()
    assert probe.keys() == set()


@in_colours()
async def test_nobody_who_waits_asks_by_itself(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """redis-py polls. What is lost is found by the one request of the process, not by one of each waiter."""
    monkeypatch.setattr("distlock._core.acquire.RECHECK", 0.1)
    probe = Probe(redis_server)
    holder = await colour.acquire(connect(redis_server.url).lock(key, ttl=60.0))
    waiters = connect(redis_server.url)
    running = [colour.start(partial(_hold_shortly, colour, waiters.lock(key, ttl=60.0))) for _ in range(5)]
    await colour.until(lambda: probe.queued(key) == 5)
    before = probe.requests()
    await colour.sleep(1.0)
    assert probe.requests() - before <= 1
    await colour.release(holder)
    for each in running:
        await each.result()


def test_a_refresh_of_thousands_goes_in_pieces_and_a_dead_process_is_asked_for_once(
    redis_server: RedisServer, key: str
) -> None:
    """redis.io, "EVAL": while a script runs, every other client of the server waits."""
    probe, count = Probe(redis_server), 2000
    with distlock.connect(redis_server.url) as holders, distlock.connect(redis_server.url) as waiters:
        backend = waiters._backend
        assert isinstance(backend, RedisBackend)
        names = {f"{key}:{number}": [f"{number}"] for number in range(300)}
        crowd = {key: [f"c{number}" for number in range(count)]}
        holder = holders.lock(key, ttl=600).acquire()
        for claim_id in crowd[key]:
            claim = Claim(claim_id, key, 60.0, wait=True)
            backend._pool.send(backend.asking(claim, b"distlock:dead"), now() + 5, script=SERVER.acquire)
        for waiting, claims in ((names, 300), (crowd, count)):
            before = probe.calls()
            found = backend._refresh(b"distlock:dead", waiting).locks
            spent = probe.calls() - before
            assert list(found) == list(waiting)
            assert spent["evalsha"] + spent["eval"] <= math.ceil(claims / 256) + 1
            assert spent["publish"] == 1, "one echo"
        assert found[key][1] == []
        before = probe.calls()
        holder.release()
        spent = probe.calls() - before
        assert spent["pubsub|numsub"] + spent["pubsub"] == 1
        assert spent["publish"] == 0
        found = backend._refresh(b"distlock:dead", crowd).locks
        assert sorted(found[key][1]) == sorted(crowd[key]), "free: let them ask"


async def _hold_shortly(colour: Colour, lock: Lock) -> None:
    await colour.release(await colour.acquire(lock))
