"""Nothing stays behind: not on the server, not in the process, not in a forked child."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from functools import partial

import anyio
import pytest

import distlock
from distlock import AcquireTimeout, BackendUnavailable, DistLockError, LeaseState, Lock, LockLost, Manager
from distlock.backends.redis import RedisBackend

from .redis_tools import Child, Colour, Connect, Probe, in_colours, until
from .servers import RedisServer

LONG = 60.0
SOON = 15.0


def _files() -> int:
    return len(os.listdir("/proc/self/fd"))


def _threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("distlock")}


def _backend(locks: Manager) -> RedisBackend:
    assert isinstance(locks._backend, RedisBackend)
    return locks._backend


@in_colours()
async def test_nothing_is_left_after_thousands_of_random_steps(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    """redisson#7272: a place in a queue, a subscription or a renewal leaks in one path of many."""
    probe, workers, steps = Probe(redis_server), 8, 100
    managers = [distlock.connect(redis_server.url, op_timeout=10.0) for _ in range(2)]
    before = _files() - (1 if colour.is_async else 0)
    tokens: dict[str, list[int]] = {}
    running = [
        colour.start(partial(_live, colour, managers[worker % 2], key, worker, steps, tokens))
        for worker in range(workers)
    ]
    for each in running:
        await each.result()
    await colour.until(lambda: not probe.keys())
    assert len(probe.clients()) <= 2 * (2 * 16 + 1)
    assert probe.subscribers() <= 2
    for manager in managers:
        assert not _backend(manager).inbox._waiting  # type: ignore[attr-defined]
        assert not list(manager._watchdog.holds)
        if colour.is_async:
            await manager.aclose()
        else:
            manager.close()
    await colour.until(lambda: not probe.clients())
    assert all(each == sorted(set(each)) for each in tokens.values()), "tokens rise"
    await colour.until(lambda: _files() <= before + 1)


async def _live(
    colour: Colour, locks: Manager, key: str, worker: int, steps: int, tokens: dict[str, list[int]]
) -> None:
    rng = random.Random(worker)
    for _ in range(steps):
        name = f"{key}:{rng.randrange(3)}"
        lock = locks.lock(name, ttl=rng.choice([6.0, LONG]))
        timeout = rng.choice([0, 0, 0.002, 0.01, 0.05, 5])
        try:
            lease = await _acquire(colour, lock, timeout, cancel_after=rng.choice([None, None, 0.001, 0.01]))
        except (AcquireTimeout, BackendUnavailable):  # the latter where a busy machine has not answered in time
            continue
        if lease is None:
            continue
        tokens.setdefault(name, []).append(lease.token)
        if rng.random() < 0.2:
            await colour.extend(lease)
        if rng.random() < 0.5:
            await colour.sleep(rng.choice([0, 0.001, 0.005]))
        with anyio.move_on_after(0.001) if colour.is_async and rng.random() < 0.2 else nullcontext():
            await colour.release(lease)
        await colour.release(lease)


async def _acquire(colour: Colour, lock: Lock, timeout: float, cancel_after: float | None):
    if not colour.is_async:
        return await colour.acquire(lock, timeout)
    with anyio.move_on_after(cancel_after):
        return await colour.acquire(lock, timeout)
    return None


@in_colours()
async def test_closing_gives_back_what_is_held_and_ends_all_waits(
    colour: Colour, redis_server: RedisServer, key: str
) -> None:
    """redis-py, asyncio: what a closed pool still had under way hangs, or holds its lock for a ttl."""
    probe = Probe(redis_server)
    before = _threads()
    with distlock.connect(redis_server.url) as others:
        locks = distlock.connect(redis_server.url)
        lease = await colour.acquire(locks.lock(f"{key}:mine", ttl=LONG))
        foreign = await _in_thread(colour, others.lock(key, ttl=LONG).acquire)
        waiters = [colour.start(lambda: colour.acquire(locks.lock(key, ttl=LONG), timeout=None)) for _ in range(3)]
        await colour.until(lambda: probe.queued(key) == 3)
        started = time.monotonic()
        if colour.is_async:
            await locks.aclose()
        else:
            locks.close()
        for waiter in waiters:
            with pytest.raises(DistLockError, match="closed"):
                await waiter.result()
        assert time.monotonic() - started < SOON
        assert lease.state is LeaseState.LOST
        assert probe.keys() == {probe.name(key)}
        with pytest.raises(DistLockError, match="closed"):
            await colour.acquire(locks.lock(key))
        with pytest.raises(LockLost):
            await colour.release(lease)
        await colour.until(lambda: len(probe.clients()) == 1)
        await _in_thread(colour, foreign.release)
        await _in_thread(colour, others.close)
    await colour.until(lambda: not probe.clients())
    await colour.until(lambda: _threads() <= before)


async def _in_thread(colour: Colour, call: Callable[[], object]):
    return await anyio.to_thread.run_sync(call) if colour.is_async else call()


async def _queued(probe: Probe, key: str) -> None:
    while not probe.queued(key):  # noqa: ASYNC110 - no event tells what a server knows
        await asyncio.sleep(0.002)


def test_one_manager_serves_one_asyncio_run_after_the_other(redis_server: RedisServer, key: str) -> None:
    """redis.asyncio: connections of a loop that has ended break the next one, and warn when they are collected."""
    probe = Probe(redis_server)
    with distlock.connect(redis_server.url) as locks:

        async def contend() -> None:
            async with locks.lock(key, ttl=LONG):
                waiter = asyncio.create_task(locks.lock(key, ttl=LONG).acquire_async())
                await _queued(probe, key)
            await (await waiter).release()

        for _ in range(3):
            asyncio.run(contend())
            gc.collect()
            with locks.lock(key, timeout=SOON):
                pass
        until(lambda: len(probe.clients()) <= 3)  # sync ones and the inbox: no loop's
    until(lambda: not probe.clients())


def test_a_loop_that_ends_with_a_wait_under_way_leaves_no_place_in_the_queue(
    redis_server: RedisServer, key: str
) -> None:
    """asyncio.run cancels what is left: that must withdraw too."""
    probe = Probe(redis_server)
    with distlock.connect(redis_server.url, op_timeout=3.0) as locks:
        held = locks.lock(key, ttl=LONG).acquire()
        tasks = []

        async def leave() -> None:
            tasks.append(asyncio.create_task(locks.lock(key, ttl=LONG).acquire_async()))
            await _queued(probe, key)

        asyncio.run(leave())
        assert probe.queued(key) == 0
        held.release()
    until(lambda: not probe.keys())  # a request under way is remembered for an op_timeout


def test_the_interpreter_ends_at_once_with_locks_held_and_waits_under_way(redis_server: RedisServer, key: str) -> None:
    """python-redis-lock, kazoo: a thread that is joined at exit keeps the program alive."""
    probe = Probe(redis_server)
    with ExitStack() as children:
        holder = children.enter_context(Child(redis_server.url, key, LONG))
        assert holder.says() == "ready"
        assert holder.says().startswith("got")
        waiter = children.enter_context(Child(redis_server.url, key, LONG))
        until(lambda: probe.queued(key) == 1)
        waiter.signal(signal.SIGINT)
        assert waiter._process.wait(SOON) != 0
        assert probe.queued(key) == 0, "Ctrl-C withdraws"
        assert holder._process.stdin is not None
        holder._process.stdin.close()
        holder._process.stdin = None
        assert holder._process.wait(SOON) == 0


def _in_fork(check: Callable[[], None]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 and later: threads and fork do not mix; we know
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.alarm(30)
            check()
            code = 0
        except BaseException:  # noqa: BLE001 - the child must not go on as a second pytest
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_forked_child_holds_nothing_and_disturbs_nothing(redis_server: RedisServer, key: str) -> None:
    """python-redis-lock: a child that releases its parent's lock, or talks on its parent's connection."""
    probe = Probe(redis_server)
    with distlock.connect(redis_server.url) as locks, distlock.connect(redis_server.url) as others:
        lease = locks.lock(key, ttl=6.0).acquire()
        foreign = others.lock(f"{key}:2", ttl=LONG).acquire()
        served: list[int] = []

        def wait() -> None:
            with locks.lock(f"{key}:2", ttl=LONG) as waited:
                served.append(waited.token)

        waiter = threading.Thread(target=wait)
        waiter.start()
        until(lambda: probe.queued(f"{key}:2") == 1)
        connections = {client["id"] for client in probe.clients()}

        def child() -> None:
            assert lease.state is LeaseState.LOST
            assert lease.remaining() == 0.0
            with pytest.raises(LockLost):
                lease.release()
            assert locks.lock(key).try_acquire() is None
            with locks.lock(f"{key}:3", ttl=LONG) as own, pytest.raises(AcquireTimeout):
                locks.lock(key).acquire(timeout=1.0)  # by a subscription of its own
            assert own.state is LeaseState.RELEASED
            locks.close()
            gc.collect()

        _in_fork(child)
        assert connections <= {client["id"] for client in probe.clients()}
        lease.ensure_held()
        until(lambda: lease.remaining() > 5.5)  # renewed on the same connection
        foreign.release()
        waiter.join(SOON)
        assert len(served) == 1
        assert connections <= {client["id"] for client in probe.clients()}
        lease.release()
    assert probe.keys() == set()


def test_a_child_forked_by_a_task_leaves_the_loop_of_its_parent_alone(redis_server: RedisServer, key: str) -> None:
    """CPython#66285: an epoll instance is shared with the child, which must not unregister its parent's sockets."""
    probe = Probe(redis_server)

    async def parent() -> None:
        async with distlock.connect(redis_server.url) as locks:
            async with locks.lock(key):
                pass
            connections = {client["id"] for client in probe.clients()}

            def child() -> None:
                gc.collect()
                with locks.lock(key, timeout=SOON):
                    pass
                locks.close()
                gc.collect()

            _in_fork(child)
            for _ in range(3):
                started = time.monotonic()
                async with locks.lock(key, timeout=SOON):
                    assert time.monotonic() - started < 4, "the reply was not seen"
            assert connections <= {client["id"] for client in probe.clients()}

    asyncio.run(parent())
    assert probe.keys() == set()


@in_colours()
async def test_a_million_names_cost_neither_side_anything(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str
) -> None:
    """spring#3655, aioredlock#101: a table of locks that only grows. (A thousand of a million are enough to see it.)"""
    probe, locks = Probe(redis_server), connect(redis_server.url)

    async def take(start: int) -> None:
        for number in range(start, start + 500):
            await colour.release(await colour.acquire(locks.lock(f"{key}:{number}" + "x" * 400)))

    await take(0)
    assert probe.ask("DBSIZE") == 1
    head = _backend(locks)._head.cache_info()
    assert head.currsize <= (head.maxsize or 0) <= 1024
    watchdog = locks._watchdog
    for table in (watchdog._reentrant, watchdog._holds, watchdog._chores, _backend(locks).inbox._waiting):  # type: ignore[attr-defined]
        assert len(table) == 0
