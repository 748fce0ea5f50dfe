"""A lock on etcd that nobody else wants: what acquiring and releasing it costs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import closing
from typing import Any

import grpc.aio

import distlock
from distlock.backends.etcd._rpc import DELETE_RANGE, TXN

from ._etcd import RawLock, conditions, etcd3_at, requests_of, server, unary
from ._locks import Etcd3
from ._machine import CLIENT, SERVER, awake, pin
from ._measure import Contender, Pace, Report, Row, Spread, Target, compare
from .redis_uncontended import async_blocks, blocks, pairs

__all__ = ("asynchronous", "requests", "sync")

ROUNDS = 150
TARGETS = (Target(1.4, "raw floor"),)


def sync(pace: Pace) -> Report:
    """One thread that holds nothing else."""
    with awake(), server(SERVER) as store:
        pin(0, CLIENT)
        with distlock.connect(store.url) as locks:
            contenders = (
                Contender("raw floor", RawLock(store.port, "floor").run),
                Contender("distlock with", blocks(locks.lock("a")), TARGETS),
                Contender("distlock acquire/release", pairs(locks.lock("b")), TARGETS),
                Contender("etcd3 with", blocks(Etcd3(etcd3_at(store.url), "c")), note="leaves a lease each time"),
            )
            rows = compare(contenders, ROUNDS, pace)
        return Report("etcd uncontended", "one acquire and release", rows, conditions(pinned=True))


def asynchronous(pace: Pace) -> Report:
    """One task that holds nothing else."""
    with awake(), server(SERVER) as store, closing(asyncio.new_event_loop()) as runner:
        pin(0, CLIENT)
        raw = RawLock(store.port, "floor")

        def on_asyncio(loop: Callable[[int], Coroutine[Any, Any, None]]) -> Callable[[int], None]:
            return lambda count: runner.run_until_complete(loop(count))

        with distlock.connect(store.url) as locks:
            channel, client = runner.run_until_complete(_clients(store.port))
            contenders = (
                Contender("raw floor (sync)", raw.run),
                Contender("grpc.aio", on_asyncio(_aio(channel, raw))),
                Contender("distlock on asyncio", on_asyncio(async_blocks(locks.lock("a")))),
                Contender("aetcd", on_asyncio(_aetcd_blocks(client)), note="leaves a lease each time"),
            )
            rows = compare(contenders, ROUNDS, pace)
            runner.run_until_complete(client.close())
            runner.run_until_complete(channel.close())
            runner.run_until_complete(locks.aclose())
        return Report("etcd uncontended, async", "one acquire and release", rows, conditions(pinned=True))


def _aio(channel: Any, raw: RawLock) -> Callable[[int], Coroutine[Any, Any, None]]:
    """The raw floor's requests by grpcio's own asyncio."""
    txn, delete = unary(channel, TXN), unary(channel, DELETE_RANGE)

    async def run(count: int) -> None:
        for _ in range(count):
            await txn(raw.take)
            await delete(raw.give)

    return run


async def _clients(port: int) -> tuple[Any, Any]:
    """Both belong to the loop that they are made in."""
    import aetcd

    client = aetcd.Client(port=port)
    await client.connect()
    return grpc.aio.insecure_channel(f"127.0.0.1:{port}"), client


def _aetcd_blocks(client: Any) -> Callable[[int], Coroutine[Any, Any, None]]:
    async def run(count: int) -> None:
        for _ in range(count):
            async with client.lock(b"b", ttl=30):
                pass

    return run


# Counted, not timed.


def requests(pace: Pace) -> Report:
    """How many requests reach the server, by its own account."""
    with server(SERVER) as store, distlock.connect(store.url) as locks:
        lock, theirs = locks.lock("a"), Etcd3(etcd3_at(store.url), "b")
        lease: list[Any] = []
        with closing(asyncio.new_event_loop()) as runner:

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
                "etcd3": (theirs.__enter__, theirs.__exit__),
            }
            rows = []
            for name, (take, give) in ways.items():
                take(), give()  # connects, and grants the lease of the session
                for step, call in (("acquire", take), ("release", give)):
                    before = requests_of(store)
                    call()
                    count = sum(requests_of(store).values()) - sum(before.values())
                    targets = ((Target(1), count),) if name.startswith("distlock") else ()
                    rows.append(Row(f"{name} {step}", Spread(count, count, count), "requests", None, targets))
                pace.tick()
            runner.run_until_complete(locks.aclose())
        return Report("etcd round trips", "requests that reach the server", rows, conditions())
