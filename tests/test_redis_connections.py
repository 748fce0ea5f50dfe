"""Connections that died, grew old or lead to the wrong server; and how many there are."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import signal
import socket
import struct
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import pytest

import distlock
from distlock import AcquireTimeout, BackendError, BackendUnavailable, LeaseState
from distlock.testing.proxy import FaultProxy

from .redis_tools import ASYNC, Colour, Connect, Probe, in_colours, until
from .servers import RedisServer

SOON = 15.0


async def _several_idle(colour: Colour, locks: distlock.Manager, key: str, count: int = 6) -> None:
    """As many connections as there are requests at the same time."""
    several = [locks.lock(f"{key}:{number}") for number in range(count)]
    tasks = [colour.start(partial(colour.acquire, lock)) for lock in several]
    held = [await task.result() for task in tasks]
    for lease in held:
        await colour.release(lease)


@in_colours()
async def test_a_lease_survives_that_a_network_forgot_the_idle_connections(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    """A NAT gateway or a load balancer drops idle flows in silence: of those one costs a timeout, not each."""
    with FaultProxy(redis_server.address) as proxy:
        locks = connect(proxy.url, op_timeout=2.0)
        await _several_idle(colour, locks, key)
        lease = await colour.acquire(locks.lock(key, ttl=12.0))
        await _several_idle(colour, locks, key)
        proxy.silence_all()
        failed = 0
        for _ in range(5):
            try:
                await colour.release(await colour.acquire(locks.lock(f"{key}:next")))
            except BackendUnavailable:
                failed += 1
        assert failed <= 2  # the watchdog may have taken the other one
        proven = lease._hold.deadline
        await colour.until(lambda: lease._hold.deadline > proven)
        assert lease.state is LeaseState.HELD
        await colour.release(lease)


@in_colours()
async def test_after_a_failover_behind_the_address_the_new_primary_is_asked(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    """redis-py#3203: a pool that stays with the demoted node until the process ends."""
    with (
        FaultProxy(redis_server.address) as proxy,
        RedisServer(f"replicaof 127.0.0.1 {redis_server.port}") as replica,
    ):
        old, new = Probe(redis_server), Probe(replica)
        await colour.until(lambda: b"master_link_status:up" in new.ask("INFO", "replication"))
        locks = connect(proxy.url)
        await _several_idle(colour, locks, key)
        lease = await colour.acquire(locks.lock(key, ttl=15.0))  # which is not renewed before the next one has asked
        await colour.until(lambda: new.value(key) is not None)
        new.ask("REPLICAOF", "NO", "ONE")
        old.ask("REPLICAOF", "127.0.0.1", replica.port)
        proxy.redirect(replica.address)
        with pytest.raises(BackendUnavailable, match="read-only"):
            await colour.acquire(locks.lock(f"{key}:next"), timeout=0)
        await colour.release(await colour.acquire(locks.lock(f"{key}:next")))
        proven = lease._hold.deadline
        await colour.until(lambda: lease._hold.deadline > proven)
        assert lease.state is LeaseState.HELD
        await colour.release(lease)


@in_colours()
async def test_a_server_that_hangs_while_we_wait_does_not_stretch_the_timeout(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    """kazoo: the time for withdrawing was spent on top."""
    probe = Probe(redis_server)
    holder = await colour.acquire(connect(redis_server.url).lock(key, ttl=60))
    locks = connect(redis_server.url, op_timeout=2 * SOON)
    started = time.monotonic()
    waiter = colour.start(lambda: colour.acquire(locks.lock(key), timeout=4.0))
    await colour.until(lambda: probe.queued(key) == 1)
    redis_server.pause()
    try:
        with pytest.raises(AcquireTimeout):
            await waiter.result()
        assert time.monotonic() - started < SOON
    finally:
        redis_server.resume()
    await colour.until(lambda: probe.queued(key) == 0)
    await colour.release(holder)


@pytest.mark.usefixtures("untraced")
def test_signals_do_not_stretch_a_request(redis_server: RedisServer, key: str) -> None:
    """signal(7): a read that a signal interrupts starts anew; a profiler sends one a hundred times a second."""
    with distlock.connect(redis_server.url) as locks:
        locks.lock(key).acquire().release()
        redis_server.pause()
        before = signal.signal(signal.SIGALRM, lambda number, frame: None)
        at_last = threading.Timer(SOON, redis_server.resume)
        at_last.start()
        signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
        try:
            started = time.monotonic()
            with pytest.raises(BackendUnavailable, match="in time"):
                locks.lock(key).acquire(timeout=0.5)
            assert time.monotonic() - started < SOON / 2
        finally:
            at_last.cancel()
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
            redis_server.resume()


def _reset(end: socket.socket) -> None:
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    end.shutdown(socket.SHUT_RDWR)
    end.close()


@contextmanager
def _network(server: RedisServer, mishap: Callable[[Callable[[], None], Callable[[], None]], None]) -> Iterator[Any]:
    """Gives a URL, and a function after which the next script suffers ``mishap``, which is given two functions: one
    that resets the client, and one that has the server carry the request out."""
    armed = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))

    def deliver(data: bytes) -> None:
        with socket.create_connection(server.address) as other:
            other.sendall(data)
            other.recv(65536)

    def copy(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if armed.is_set() and b"EVALSHA" in data:
                    armed.clear()
                    mishap(partial(_reset, source), partial(deliver, data))
                    break
                target.sendall(data)
        target.close()

    def serve() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                there = socket.create_connection(server.address)
                for pair in ((client, there), (there, client)):
                    threading.Thread(target=copy, args=pair, daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"redis://127.0.0.1:{listener.getsockname()[1]}/0", armed.set
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


@in_colours()
async def test_a_request_that_is_delivered_after_the_release_comes_to_nothing(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    """A repeated request that arrives when all is over: without a tombstone it would be an orphan for a ttl."""
    probe, delivered = Probe(redis_server), threading.Event()

    def late(reset: Callable[[], None], deliver: Callable[[], None]) -> None:
        reset()
        time.sleep(0.5)  # networks may do this, and tell nobody
        deliver()
        delivered.set()

    with _network(redis_server, late) as (url, arm):
        locks = connect(url)
        await colour.release(await colour.acquire(locks.lock(key)))
        arm()
        await colour.release(await colour.acquire(locks.lock(key, ttl=60)))
        await colour.until(delivered.is_set)
        assert probe.value(key) is None
        await colour.release(await colour.acquire(locks.lock(key)))


@in_colours()
async def test_a_second_try_that_is_refused_does_not_make_us_forget_the_first(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    probe = Probe(redis_server)
    with FaultProxy(redis_server.address) as proxy:
        locks = connect(proxy.url)
        await colour.release(await colour.acquire(locks.lock(key)))
        proxy.drop_replies(to="EVALSHA", then="reset")
        probe.ask("CONFIG", "SET", "requirepass", "secret")
        with pytest.raises(BackendError, match="password"):
            await colour.acquire(locks.lock(key, ttl=60), timeout=0)
        probe.ask("CONFIG", "SET", "requirepass", "")
        await colour.until(lambda: probe.value(key) is None)


@in_colours()
async def test_a_release_is_one_though_its_reply_was_lost_and_the_scripts_were_too(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    """redlock-rb, redsync: NOSCRIPT between any two calls, those of one retry too."""
    probe = Probe(redis_server)

    def forgotten(reset: Callable[[], None], deliver: Callable[[], None]) -> None:
        deliver()
        probe.ask("SCRIPT", "FLUSH")
        reset()

    with _network(redis_server, forgotten) as (url, arm):
        lease = await colour.acquire(connect(url).lock(key))
        arm()
        await colour.release(lease)
        assert lease.state is LeaseState.RELEASED
        assert probe.value(key) is None


@in_colours()
async def test_a_server_with_too_many_clients_is_unavailable(colour: Colour, connect: Connect, key: str) -> None:
    with RedisServer("maxclients 3") as server:
        crowd = [socket.create_connection(server.address) for _ in range(3)]
        try:
            locks = connect(server.url)
            with pytest.raises(BackendUnavailable, match="max number of clients"):
                await colour.acquire(locks.lock(key), timeout=10)
        finally:
            for each in crowd:
                each.close()


@in_colours(ASYNC[0])
async def test_a_crowd_of_tasks_needs_no_crowd_of_connections(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    """redis.asyncio: a connection a task, until there are no files left."""
    locks = connect(redis_server.url)
    files = len(os.listdir("/proc/self/fd"))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files + 100, before[1]))
    try:
        tasks = [colour.start(partial(colour.acquire, locks.lock(f"{key}:{number}"))) for number in range(400)]
        for task in tasks:
            await colour.release(await task.result())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_loops_that_have_ended_are_forgotten(redis_server: RedisServer, key: str) -> None:
    """A script, or a test suite, may call asyncio.run a thousand times."""
    loops: list[weakref.ref[asyncio.AbstractEventLoop]] = []
    with distlock.connect(redis_server.url) as locks:

        async def once() -> None:
            loops.append(weakref.ref(asyncio.get_running_loop()))
            async with locks.lock(key):
                pass

        for _ in range(5):
            asyncio.run(once())
        gc.collect()
        assert [loop() for loop in loops] == [None] * 5
        assert len(locks._lines) == 0
    until(lambda: not Probe(redis_server).clients())
