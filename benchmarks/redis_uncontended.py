"""A lock on Redis that nobody else wants: what acquiring and releasing it costs."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from contextlib import closing
from typing import Any

import redis
import redis.asyncio

import distlock
from distlock.backends.base import Claim
from distlock.backends.redis import RedisBackend
from distlock.backends.redis._values import NO_INBOX

from ._machine import CLIENT, SERVER, awake, pin
from ._measure import Contender, Pace, Report, Row, Spread, Target, compare
from ._redis import RawLock, RawSocket, command, conditions, server, url_of

__all__ = ("asynchronous", "requests", "sync")

ROUNDS = 200
TARGETS = (Target(1.35, "raw floor"), Target(1.15, "own scripts"))
ASYNC_TARGETS = (Target(0.85, "redis-py on asyncio"),)


def sync(pace: Pace) -> Report:
    """One thread that holds nothing else."""
    import redis_lock

    with awake(), server(SERVER) as store:
        pin(0, CLIENT)
        with distlock.connect(url_of(store)) as locks, redis.Redis.from_url(url_of(store)) as client:
            contenders = (
                Contender("raw floor", RawLock(store.port, "floor").run),
                Contender("own scripts", OwnScripts(store.port, locks).run),
                Contender("distlock with", blocks(locks.lock("a")), TARGETS),
                Contender("distlock acquire/release", pairs(locks.lock("b")), TARGETS),
                Contender("redis-py with", blocks(client.lock("c", timeout=30))),
                Contender("python-redis-lock with", blocks(redis_lock.Lock(client, "d"))),
                Contender("pyredlock", quorum_of_one(store.port, "e"), note="no wait, no renewal, no token"),
            )
            rows = compare(contenders, ROUNDS, pace)
            about = conditions(store, pinned=True)
            name = "redis uncontended" if about["hiredis"] == "yes" else "redis uncontended without hiredis"
            return Report(name, "one acquire and release", rows, about)


class OwnScripts(RawSocket):
    """distlock's own two requests, prepared and sent by a raw socket: what its Python adds shows against this."""

    def __init__(self, port: int, locks: distlock.Manager) -> None:
        super().__init__(port)
        backend = locks._backend
        assert isinstance(backend, RedisBackend)
        with locks.lock("own"):  # so that the server knows the scripts
            pass
        about = '{"h":"web-3","p":4242,"w":"MainThread","s":"redis_uncontended.py:50"}'
        claim = Claim("0123456789abcdef01231", "own", 30.0, True, about=about)
        self.take, self.give = backend.asking(claim, NO_INBOX), backend.leaving(claim)

    def run(self, count: int) -> None:
        """Takes and gives back the lock so many times."""
        ask, take, give = self.ask, self.take, self.give
        for _ in range(count):
            replies = ask(take)[:1], ask(give)
            assert replies == (b":", b":1\r\n"), replies


def blocks(lock: Any) -> Callable[[int], None]:
    """Empty ``with`` blocks."""

    def run(count: int) -> None:
        for _ in range(count):
            with lock:
                pass

    return run


def pairs(lock: distlock.Lock) -> Callable[[int], None]:
    """``acquire()`` and ``release()``."""

    def run(count: int) -> None:
        for _ in range(count):
            lock.acquire().release()

    return run


def quorum_of_one(port: int, key: str) -> Callable[[int], None]:
    """pyredlock over one server, with the client of its own documentation."""
    from pyredlock import RedisClient, Redlock

    about = {"endpoint": f"127.0.0.1:{port}", "password": "", "db": 0}
    client = RedisClient(client_conf={**about, "socket_timeout": 0.5, "socket_connect_timeout": 0.25})
    manager = Redlock(connections=[client.get_connection()], async_mode=False)

    def run(count: int) -> None:
        for _ in range(count):
            success, lock = manager.lock(key, 30_000)
            assert success
            manager.unlock(lock)

    return run


# In event loops: the floors are the same two requests by the loop's own streams.


def asynchronous(pace: Pace) -> Report:
    """One task that holds nothing else."""
    import trio  # not above: where it is imported, each lock asks whether it runs there

    with awake(), server(SERVER) as store, closing(asyncio.new_event_loop()) as runner:
        pin(0, CLIENT)
        url = url_of(store)
        raw = RawLock(store.port, "floor")

        def on_asyncio(loop: Callable[[int], Coroutine[Any, Any, None]]) -> Callable[[int], None]:
            return lambda count: runner.run_until_complete(loop(count))

        with distlock.connect(url) as locks:
            client = redis.asyncio.Redis.from_url(url)
            streams = runner.run_until_complete(asyncio.open_connection("127.0.0.1", store.port))
            contenders = (
                Contender("raw floor (sync)", raw.run),
                Contender("asyncio streams", on_asyncio(asyncio_streams(streams[0], streams[1], raw))),
                Contender("distlock on asyncio", on_asyncio(async_blocks(locks.lock("a"))), ASYNC_TARGETS),
                Contender("redis-py on asyncio", on_asyncio(async_blocks(client.lock("b", timeout=30)))),
                Contender("trio streams", lambda count: trio.run(trio_stream, store.port, raw, count)),
                Contender("distlock on trio", lambda count: trio.run(async_blocks(locks.lock("c")), count)),
            )
            rows = compare(contenders, ROUNDS, pace)
            runner.run_until_complete(client.aclose())
            streams[1].close()
            runner.run_until_complete(locks.aclose())
        return Report("redis uncontended, async", "one acquire and release", rows, conditions(store, pinned=True))


def async_blocks(lock: Any) -> Callable[[int], Coroutine[Any, Any, None]]:
    """Empty ``async with`` blocks."""

    async def run(count: int) -> None:
        for _ in range(count):
            async with lock:
                pass

    return run


def asyncio_streams(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, raw: RawLock
) -> Callable[[int], Coroutine[Any, Any, None]]:
    """The raw floor's requests by asyncio's streams."""

    async def run(count: int) -> None:
        for _ in range(count):
            writer.write(raw.take)
            await reader.readline()
            writer.write(raw.give)
            await reader.readline()

    return run


async def trio_stream(port: int, raw: RawLock, count: int) -> None:
    """The raw floor's requests by trio's streams."""
    import trio

    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        for _ in range(count):
            await stream.send_all(raw.take)
            await stream.receive_some(65536)
            await stream.send_all(raw.give)
            await stream.receive_some(65536)


# Counted, not timed.


def requests(pace: Pace) -> Report:
    """How many requests reach the server, by its own account."""
    with server(SERVER) as store, distlock.connect(url_of(store)) as locks:
        lock = locks.lock("a")
        with redis.Redis.from_url(url_of(store)) as client, closing(asyncio.new_event_loop()) as runner:
            theirs = client.lock("b", timeout=30)
            lease: list[Any] = []

            async def acquire() -> None:
                lease.append(await lock.acquire_async())

            async def release() -> None:
                await lease.pop().release()

            ways: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
                "distlock": (lambda: lease.append(lock.acquire()), lambda: lease.pop().release()),
                "distlock on asyncio": (
                    lambda: runner.run_until_complete(acquire()),
                    lambda: runner.run_until_complete(release()),
                ),
                "redis-py": (theirs.acquire, theirs.release),
            }
            rows = []
            for name, (take, give) in ways.items():
                take(), give()  # connects, and teaches the server the scripts
                target = (Target(1),) if name.startswith("distlock") else ()
                for step, call in (("acquire", take), ("release", give)):
                    count = requests_of(store.port, call)
                    row = Row(f"{name} {step}", Spread(count, count, count), "requests")
                    rows.append(Row(row.name, row.value, row.unit, None, tuple((each, count) for each in target)))
                pace.tick()
            runner.run_until_complete(locks.aclose())
            return Report("redis round trips", "requests that reach the server", rows, conditions(store, pinned=True))


def requests_of(port: int, call: Callable[[], object]) -> int:
    """Requests of clients that the server sees during ``call``, by MONITOR; not what its scripts then do."""
    monitor, marker = RawSocket(port), RawSocket(port)
    assert monitor.ask(command("MONITOR")) == b"+OK\r\n"
    call()
    marker.ask(command("PING", "the end"))
    seen = b""
    while b"the end" not in seen:
        seen += monitor.socket.recv(65536)
    for each in (monitor, marker):
        each.socket.shutdown(socket.SHUT_RDWR)
        each.socket.close()
    return sum(1 for line in seen.splitlines() if line and b" lua]" not in line and b"the end" not in line)
