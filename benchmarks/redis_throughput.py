"""Many tasks or threads of one process, each with a lock of its own: how many acquisitions they get done together."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from typing import Any

import redis
import redis.asyncio

import distlock

from ._machine import CLIENT, SERVER, awake, pin
from ._measure import Contender, Pace, Report, Target, interleaved, table_of
from ._redis import RawLock, conditions, server, url_of

__all__ = ("tasks", "threads")

ROUNDS = 40
TASKS = 200
THREADS = 32
PAIRS = 4
"""Of each thread in what counts as once: enough to outweigh the start of the threads."""


def tasks(pace: Pace) -> Report:
    """Tasks of one event loop."""
    with awake(), server(SERVER) as store, closing(asyncio.new_event_loop()) as loop:
        pin(0, CLIENT)
        url = url_of(store)
        with distlock.connect(url) as locks:
            client = redis.asyncio.Redis.from_url(url, max_connections=TASKS)
            ours = [locks.lock(f"ours:{number}") for number in range(TASKS)]
            theirs = [client.lock(f"theirs:{number}", timeout=30) for number in range(TASKS)]
            raw = [RawLock(store.port, f"raw:{number}") for number in range(TASKS)]
            pipeline = loop.run_until_complete(loop.create_connection(Pipelined, "127.0.0.1", store.port))[1]
            ways: dict[str, Sequence[Callable[[], Awaitable[object]]]] = {
                "raw floor, pipelined": [lambda each=each: pipeline.pair(each) for each in raw],
                "distlock": [lambda each=each: async_pair(each) for each in ours],
                "redis.asyncio": [lambda each=each: their_pair(each) for each in theirs],
            }
            contenders = [Contender(name, together(loop, pairs)) for name, pairs in ways.items()]
            rates = _rates(contenders, TASKS, pace)
            loop.run_until_complete(client.aclose())
            loop.run_until_complete(locks.aclose())
        targets = {"distlock": (Target(3, "redis.asyncio", least=True),)}
        what = "acquisitions, each with its release"
        rows = table_of(rates, "/s", targets)
        return Report(f"redis, {TASKS} tasks with a key each", what, rows, conditions(store, pinned=True))


class Pipelined(asyncio.Protocol):
    """One connection for all tasks: what they ask in one turn of the loop goes out together."""

    def __init__(self) -> None:
        import hiredis

        self.reader = hiredis.Reader()
        self.loop = asyncio.get_event_loop()
        self.out: list[bytes] = []
        self.asked: deque[asyncio.Future[Any]] = deque()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Part of asyncio's protocol."""
        self.transport: Any = transport

    def data_received(self, data: bytes) -> None:
        """Part of asyncio's protocol."""
        self.reader.feed(data)
        while (reply := self.reader.gets()) is not False:
            self.asked.popleft().set_result(reply)

    def ask(self, frame: bytes) -> asyncio.Future[Any]:
        """The reply, later."""
        if not self.out:
            self.loop.call_soon(self.flush)
        self.out.append(frame)
        self.asked.append(future := self.loop.create_future())
        return future

    def flush(self) -> None:
        """Sends what has come together."""
        self.transport.write(b"".join(self.out))
        self.out.clear()

    async def pair(self, lock: RawLock) -> None:
        """Takes and gives back."""
        replies = await self.ask(lock.take), await self.ask(lock.give)
        assert replies == (b"OK", 1), replies


async def async_pair(lock: distlock.Lock) -> None:
    """distlock's."""
    lease = await lock.acquire_async()
    await lease.release()


async def their_pair(lock: Any) -> None:
    """redis-py's."""
    await lock.acquire()
    await lock.release()


def together(
    loop: asyncio.AbstractEventLoop, pairs: Sequence[Callable[[], Awaitable[object]]]
) -> Callable[[int], object]:
    """All tasks at once, each so many times."""

    async def one(pair: Callable[[], Awaitable[object]], count: int) -> None:
        for _ in range(count):
            await pair()

    async def everyone(count: int) -> None:
        await asyncio.gather(*(one(pair, count) for pair in pairs))

    return lambda count: loop.run_until_complete(everyone(count))


def threads(pace: Pace) -> Report:
    """Threads, on whatever processor they come to run."""
    with awake(), server(None) as store:
        with distlock.connect(url_of(store)) as locks, redis.Redis.from_url(url_of(store)) as client:
            contenders = [
                Contender("raw floor", in_threads([RawLock(store.port, f"raw:{each}").run for each in range(THREADS)])),
                Contender("distlock", in_threads([_ours(locks.lock(f"ours:{each}")) for each in range(THREADS)])),
                Contender(
                    "redis-py",
                    in_threads([_theirs(client.lock(f"theirs:{each}", timeout=30)) for each in range(THREADS)]),
                ),
                Contender(
                    "python-redis-lock", in_threads([_theirs(_signalled(client, each)) for each in range(THREADS)])
                ),
            ]
            rates = _rates(contenders, THREADS * PAIRS, pace)
        targets = {"distlock": (Target(2, "redis-py", least=True),)}
        what = "acquisitions, each with its release"
        return Report(
            f"redis, {THREADS} threads with a key each", what, table_of(rates, "/s", targets), conditions(store)
        )


def _rates(contenders: Sequence[Contender], pairs: int, pace: Pace) -> dict[str, list[float]]:
    found = interleaved(contenders, ROUNDS, pace)
    return {name: [pairs / seconds for seconds in times] for name, times in found.items()}


def in_threads(runs: Sequence[Callable[[int], object]]) -> Callable[[int], object]:
    """All of ``runs`` at once, each in a thread; once is `PAIRS` times each."""

    def run(count: int) -> None:
        workers = [threading.Thread(target=each, args=(count * PAIRS,)) for each in runs]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    return run


def _ours(lock: distlock.Lock) -> Callable[[int], None]:
    def run(count: int) -> None:
        for _ in range(count):
            lock.acquire().release()

    return run


def _theirs(lock: Any) -> Callable[[int], None]:
    def run(count: int) -> None:
        for _ in range(count):
            lock.acquire()
            lock.release()

    return run


def _signalled(client: Any, number: int) -> Any:
    import redis_lock

    return redis_lock.Lock(client, f"signalled:{number}")
