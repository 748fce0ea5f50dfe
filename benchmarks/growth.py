"""Whether the cost stays flat while the work grows: more locks held, more waiters, more names.

Each figure is one fresh process's, over a fresh server. It does its work in tasks of one event loop.
"""

from __future__ import annotations

import asyncio
import gc
import math
import resource
import threading
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import NamedTuple

import distlock
from distlock import AsyncLease, Manager
from distlock.bench._workers import child

from ._machine import awake, description, traffic
from ._measure import Pace, Report, Row, table_of
from ._stores import STORES, Store

__all__ = ("held", "names", "waiting")

INTERVAL = 2.0
"""Seconds between two renewals, and between two looks of those who wait."""
TTL = 3 * INTERVAL
"""Seconds. ZooKeeper has a session of that length."""
INTERVALS = 3
HELD = (10, 100, 1_000, 10_000)
WAITERS = (1, 10, 100, 1_000)
NAMES = (1, 1_000, 10_000, 1_000_000)
FEWER = 10_000
"""Names, but for Redis: where requests do not share a connection a million would take an hour."""
QUICK = (2,)
TASKS = 100
PATIENCE = 30.0
"""Seconds for a request."""
QUIET = 0.3
"""Seconds after which files that nobody wants again are gone."""
SWEPT = 1.5
"""Seconds in which ZooKeeper, here, deletes some of the containers that are empty, if there are any."""

At = tuple[str, int]
"""A store, and how many."""
Work = Callable[[Manager, int], Awaitable[Callable[[], Awaitable[int]]]]
"""Begins something for so many locks. Gives a function that tells how many of them are still at it."""


class Cost(NamedTuple):
    """Of a process that holds locks or waits, and does nothing else."""

    memory: float
    """Bytes for each lock."""
    busy: float
    """Seconds of processor time in a second."""
    sent: float
    """Bytes in an interval."""
    received: float
    threads: int
    requests: float | None = None
    """In an interval, by the server's account."""


def held(pace: Pace) -> list[Report]:
    """Locks that are held, each of another name."""
    return _costs("growth, held", "locks held", tuple(STORES), _hold, pace.of(HELD, QUICK), pace)


def waiting(pace: Pace) -> list[Report]:
    """Tasks that wait for one lock. Who has it was killed, so that all requests are theirs, and it outlives them."""
    return _costs("growth, waiting", "waiters", ("redis", "etcd", "zookeeper"), _wait, pace.of(WAITERS, QUICK), pace)


def _costs(name: str, axis: str, stores: Iterable[str], work: Work, sizes: Iterable[int], pace: Pace) -> list[Report]:
    about, found = description(), {}
    with awake():
        for store in stores:
            for size in sizes:
                with STORES[store](None) as place:
                    about |= place.conditions
                    found[store, size] = _cost(place, work, size, pace)
                pace.tick()
    busy = {at: cost.busy * 1e6 / at[1] for at, cost in found.items()}
    in_all = {at: f"{cost.busy * 1e3:.1f} ms in all; {cost.threads} threads" for at, cost in found.items()}
    requests = {at: cost.requests for at, cost in found.items() if cost.requests is not None}
    bytes_of = {at: f"{cost.sent:.0f} B sent, {cost.received:.0f} B received" for at, cost in found.items()}
    per = f"requests in {INTERVAL:g} s, a third of the ttl"
    return [
        _report(name, "client's processor time in a second, each", axis, "µs", busy, about, in_all),
        _report(name, "client's memory, each", axis, "B", {at: cost.memory for at, cost in found.items()}, about),
        _report(name, per, axis, "requests", requests, about, bytes_of),
    ]


def _report(
    name: str,
    what: str,
    axis: str,
    unit: str,
    found: Mapping[At, float],
    about: dict[str, str],
    notes: Mapping[At, str] | None = None,
) -> Report:
    """A curve for each store; the ratios are to its smallest size."""
    rows: list[Row] = []
    for store in dict.fromkeys(store for store, _ in found):
        named = {f"{store}, {at[1]:,}": at for at in found if at[0] == store}
        values = {row: [found[at]] for row, at in named.items()}
        told = {row: notes[at] for row, at in named.items()} if notes else None
        rows += [replace(row, curve=store, at=named[row.name][1]) for row in table_of(values, unit, {}, told)]
    return Report(name, what, rows, about, axis)


def _cost(place: Store, work: Work, size: int, pace: Pace) -> Cost:
    seconds = pace.of(INTERVALS * INTERVAL, 0.2)
    if work is _wait:
        with child(_take, place.place) as pipe:
            pipe.recv()
    with child(_doing, place.place, work, size, pace.of(INTERVAL, 0.0), seconds) as pipe:
        pipe.recv()
        requests = place.heard(seconds) * INTERVAL / seconds if place.heard else None
        pipe.send("counted")
        return pipe.recv()._replace(requests=requests)  # type: ignore[no-any-return]


def _take(pipe: Connection, url: str) -> None:
    locks = distlock.connect(url)
    lease = locks.lock(KEY, ttl=2 * PATIENCE).acquire()
    pipe.send(lease.token)
    pipe.recv()


# In a process of its own.

KEY = "contended"


async def _hold(locks: Manager, size: int) -> Callable[[], Awaitable[int]]:
    leases: list[AsyncLease] = []

    async def take(number: int) -> None:
        leases.append(await locks.lock(f"orders:{number}", ttl=TTL).acquire_async())

    async def still() -> int:
        return sum(lease.remaining() > 0 for lease in leases)

    await _by_tasks(size, take)
    return still


async def _wait(locks: Manager, size: int) -> Callable[[], Awaitable[int]]:
    tasks = [asyncio.create_task(locks.lock(KEY, ttl=TTL).acquire_async()) for _ in range(size)]

    async def still() -> int:
        queued = len((await locks.inspect_async(KEY)).waiters)
        return min(queued, sum(not task.done() for task in tasks))

    while await still() < size and not any(task.done() for task in tasks):  # noqa: ASYNC110  # it is the store's to say
        await asyncio.sleep(0.05)
    return still


async def _by_tasks(size: int, call: Callable[[int], Awaitable[None]]) -> None:
    """All numbers below ``size``, in turn, by as many tasks as share a connection well."""
    numbers = iter(range(size))

    async def some() -> None:
        for number in numbers:
            await call(number)

    await asyncio.gather(*(some() for _ in range(TASKS)))


async def _pairs(locks: Manager, size: int, name: str) -> None:
    """So many names, each taken and given back."""

    async def pair(number: int) -> None:
        lease = await locks.lock(f"{name}:{number}", ttl=TTL).acquire_async()
        await lease.release()

    await _by_tasks(size, pair)


def _doing(pipe: Connection, url: str, work: Work, size: int, settled: float, seconds: float) -> None:
    """What it costs to be at ``work`` for some seconds."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # a file is open for each lock that is one
    locks = distlock.connect(url, op_timeout=PATIENCE)

    async def body() -> None:
        await _warm_up(locks, work)
        tracemalloc.start()
        at_first = await _traced()
        still = await work(locks, size)
        memory = (await _traced() - at_first) / size
        tracemalloc.stop()
        await asyncio.sleep(settled)  # the first renewals are out of step
        pipe.send("begun")
        before, began = traffic(), time.process_time()
        await asyncio.sleep(seconds)
        busy, after = time.process_time() - began, traffic()
        pipe.recv()  # what is asked from here on is not counted
        if (left := await still()) < size:
            raise RuntimeError(f"only {left} of {size} were still at it")
        sent, received = [(new - old) * INTERVAL / seconds for old, new in zip(before, after, strict=True)]
        pipe.send(Cost(memory, busy / seconds, sent, received, threading.active_count()))
        pipe.recv()

    asyncio.run(body())


async def _warm_up(locks: Manager, work: Work) -> None:
    """What is there once for all of them: connections, threads."""

    async def give_up(number: int) -> None:
        with suppress(distlock.AcquireTimeout):
            await locks.lock(KEY, ttl=TTL, timeout=1).acquire_async()

    await _pairs(locks, TASKS, "warm")
    if work is _wait:
        await _by_tasks(TASKS, give_up)


async def _traced() -> int:
    """Bytes, when all is quiet."""
    await asyncio.sleep(QUIET)
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


# Names.

LEFT = (
    ("memory that the client keeps", "B"),
    ("keys that the server keeps", "keys"),
    ("memory that the server keeps", "B"),
)


def names(pace: Pace) -> list[Report]:
    """Names that never come again: what is left of them in the client and on the server."""
    about = description()
    found: dict[At, Sequence[float]] = {}
    for store in STORES:
        most = NAMES[-1] if store == "redis" else FEWER
        for at in [(store, size) for size in pace.of(NAMES, QUICK) if size <= most]:
            with STORES[store](None) as place:
                about |= place.conditions
                found[at] = _left(place, at[1])
            pace.tick()
    reports = []
    for number, (what, unit) in enumerate(LEFT):
        values = {at: left[number] for at, left in found.items() if number < len(left)}
        reports.append(_report("growth, names", what, "names", unit, values, about))
    return reports


def _left(place: Store, size: int) -> Sequence[float]:
    """As `LEFT` has it; of the client alone, if there is no server. The client has gone when the server is asked."""
    before = place.kept() if place.kept else (0.0, 0.0)
    with child(_naming, place.place, size) as pipe:
        client = pipe.recv()
        pipe.recv()
    if not place.kept:
        return [client]
    last, after = math.inf, place.kept()
    while before[0] < after[0] != last:
        time.sleep(SWEPT)
        last, after = after[0], place.kept()
    return [client, after[0] - before[0], after[1] - before[1]]


def _naming(pipe: Connection, url: str, size: int) -> None:
    locks = distlock.connect(url, op_timeout=PATIENCE)

    async def body() -> None:
        await _pairs(locks, TASKS, "warm")
        tracemalloc.start()
        before = await _traced()
        await _pairs(locks, size, "orders")
        pipe.send(await _traced() - before)
        await locks.aclose()
        pipe.send("closed")

    asyncio.run(body())
