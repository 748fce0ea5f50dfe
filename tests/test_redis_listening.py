"""Who listens for a process that waits, and who does when that one leaves."""

from __future__ import annotations

import signal
import threading
from contextlib import suppress
from functools import partial

import pytest

import distlock
from distlock import AcquireTimeout, Manager

from .redis_tools import ASYNC, Colour, Connect, Probe, in_colours, until
from .servers import RedisServer

LONG = 60.0
"""A ttl that no test outlasts: who is served by it, and not by a message, fails."""
SOON = 15.0


def test_who_stops_listening_leaves_that_to_another_thread(redis_server: RedisServer, key: str) -> None:
    """redisson#5761, as it would be here: the one that listened for all has gone, and nobody hears."""
    probe = Probe(redis_server)
    with distlock.connect(redis_server.url) as holders, distlock.connect(redis_server.url) as locks:
        names = [f"{key}:{number}" for number in range(4)]
        held = [holders.lock(name, ttl=LONG).acquire() for name in names]
        found: list[str] = []

        def wait(name: str) -> None:
            locks.lock(name, ttl=LONG).acquire().release()
            found.append(name)

        leader = threading.Thread(target=lambda: _time_out(locks, names[0]))
        threads = [threading.Thread(target=wait, args=(name,)) for name in names[1:]]
        leader.start()
        until(lambda: probe.queued(f"{key}:0") == 1)
        for number, thread in enumerate(threads):
            thread.start()
            until(lambda: probe.queued(names[number + 1]) == 1)  # noqa: B023 - it is asked for here and now
        leader.join()
        for number, lease in enumerate(held):
            lease.release()
            until(lambda: len(found) == number)  # noqa: B023
        for thread in threads:
            thread.join()


def _time_out(locks: Manager, key: str) -> None:
    with suppress(AcquireTimeout):
        locks.lock(key, ttl=LONG).acquire(timeout=4.0)


@pytest.mark.parametrize("first", ["thread", "task"])
@in_colours(*ASYNC)
async def test_tasks_and_threads_of_a_process_hear_whoever_of_them_came_first(
    colour: Colour, connect: Connect, redis_server: RedisServer, key: str, first: str
) -> None:
    """redisson#5761: two kinds that wait on one connection, and one of them never told."""
    probe, holders, locks = Probe(redis_server), connect(redis_server.url), connect(redis_server.url)
    order = ["thread", "task"] if first == "thread" else ["task", "thread"]
    names = {kind: f"{key}:{kind}" for kind in order}
    held = {kind: await colour.acquire(holders.lock(name, ttl=LONG)) for kind, name in names.items()}
    running = {}
    for kind in order:
        lock = locks.lock(names[kind], ttl=LONG)
        call = partial(colour.aside, lock.acquire) if kind == "thread" else partial(colour.acquire, lock)
        running[kind] = colour.start(call)
        await colour.until(lambda: probe.queued(names[kind]) == 1)  # noqa: B023 - it is asked for here and now
    for kind in order:
        await colour.release(held[kind])
        lease = await running[kind].result()
        await (colour.aside(lease.release) if kind == "thread" else colour.release(lease))


def _listens(locks: Manager) -> bool:
    """One of the threads that wait."""
    return locks._backend.inbox._reader is not None  # type: ignore[attr-defined]


class _InterruptedError(Exception):
    pass


@pytest.mark.usefixtures("untraced")
def test_one_that_is_interrupted_while_it_listens_leaves_that_to_another_thread(
    redis_server: RedisServer, key: str
) -> None:
    """Python, "signal": a handler's exception comes out of whatever the main thread waits in."""
    probe = Probe(redis_server)

    def interrupt(*_: object) -> None:
        raise _InterruptedError

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with distlock.connect(redis_server.url) as holders, distlock.connect(redis_server.url) as locks:
            held = holders.lock(key, ttl=LONG).acquire(), holders.lock(f"{key}:2", ttl=LONG).acquire()
            other = threading.Thread(target=lambda: locks.lock(f"{key}:2", ttl=LONG).acquire().release())

            def when_both_wait() -> None:
                until(lambda: probe.queued(key) == 1 and _listens(locks))
                other.start()
                until(lambda: probe.queued(f"{key}:2") == 1)
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

            helper = threading.Thread(target=when_both_wait)
            helper.start()
            with pytest.raises(_InterruptedError):
                locks.lock(key, ttl=LONG).acquire()
            helper.join()
            assert probe.queued(key) == 0
            for lease in held:
                lease.release()
            other.join(SOON)
            assert not other.is_alive()
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.usefixtures("untraced")
def test_a_signals_handler_may_wait_for_a_lock_in_the_midst_of_waiting(redis_server: RedisServer, key: str) -> None:
    """Python, "signal": a handler runs in the main thread, which waits, and would have heard for it."""
    probe, names = Probe(redis_server), (key, f"{key}:2")
    with distlock.connect(redis_server.url) as holders, distlock.connect(redis_server.url) as locks:
        held = [holders.lock(name, ttl=LONG).acquire() for name in names]

        def handle(*_: object) -> None:
            locks.lock(names[1], ttl=LONG).acquire(timeout=SOON).release()
            held[0].release()

        def when_it_waits() -> None:
            until(lambda: probe.queued(names[0]) == 1 and _listens(locks))
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
            until(lambda: probe.queued(names[1]) == 1)
            held[1].release()

        before = signal.signal(signal.SIGUSR1, handle)
        try:
            helper = threading.Thread(target=when_it_waits)
            helper.start()
            locks.lock(names[0], ttl=LONG).acquire(timeout=SOON).release()
            helper.join()
        finally:
            signal.signal(signal.SIGUSR1, before)
