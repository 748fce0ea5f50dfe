"""What an operation costs: round trips, requests, bytes, memory and threads. Counted, so that a slow machine passes."""

from __future__ import annotations

import gc
import itertools
import sys
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

import pytest

import distlock
from distlock import AsyncLease, Lease, Manager, _who
from distlock.testing.colours import COLOURS, Task
from distlock.testing.proxy import FaultProxy

from .meters import (
    KEY,
    TTL,
    Clock,
    ClusterMeter,
    EtcdMeter,
    Meter,
    RedlockMeter,
    Spent,
    ZooKeeperMeter,
    is_asleep,
)
from .redis_tools import Colour

THIRD = TTL / 3 + 1
HELD = 100
QUIET = 0.02
"""Seconds for what is too much to show itself. If it is later it goes unnoticed: no machine is too slow for this."""
PATIENCE = 10.0

AnyLease = Lease | AsyncLease


class Clients:
    """Three clients of one store, which is metered."""

    def __init__(self, meter: Meter, colour: Colour, clock: Clock, exits: ExitStack) -> None:
        self.meter = meter
        self.colour = colour
        self.clock = clock
        self.managers = [exits.enter_context(meter.connect()) for _ in range(3)]
        self.own, self.waiters, self.others = self.managers
        self.waited = 0
        """How many have waited so far."""
        self.expected = 0
        """Requests."""
        self.spent = Spent(0, 0, 0, 0)

    async def acquire(self, locks: Manager | None = None, key: str = KEY, **options: Any) -> AnyLease:
        return await self.colour.acquire((locks or self.own).lock(key, ttl=TTL, **options), timeout=None)

    async def measure(self, call: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """What ``call`` returns; what it has cost is in `spent`, once all that was expected has been asked."""
        await self.colour.until(lambda: all(map(is_asleep, self.managers)) and self.meter.is_quiet(self.waited))
        spent, until = self.meter.spending(), time.monotonic() + PATIENCE
        got = await call()
        while spent().requests < self.expected and time.monotonic() < until:
            await self.colour.sleep(0.002)
        await self.colour.sleep(QUIET)
        self.spent = spent()
        return got

    async def queue(self) -> list[Task]:
        """Those who wait, one behind the other."""
        tasks: list[Task] = []
        for _ in range(self.meter.crowd):
            tasks.append(self.colour.start(partial(self.acquire, self.waiters)))
            self.waited += 1
            await self.colour.until(lambda: len(self.waiters.inspect(KEY).waiters) == len(tasks))
            await self.colour.until(lambda: self.meter.is_quiet(self.waited))
        return tasks

    async def serve(self, tasks: list[Task]) -> None:
        """Each of them has the lock, and gives it up."""
        while tasks:
            await self.colour.until(lambda: any(task.done for task in tasks))
            (done,) = (task for task in tasks if task.done)
            tasks.remove(done)
            await self.colour.release(await done.result())


# Operations


async def acquire(clients: Clients) -> None:
    await clients.colour.release(await clients.measure(clients.acquire))


async def try_free(clients: Clients) -> None:
    lock = clients.own.lock(KEY, ttl=TTL)
    await clients.colour.release(await clients.measure(lambda: clients.colour.try_acquire(lock)))


async def try_taken(clients: Clients) -> None:
    held = await clients.acquire(clients.others)
    lock = clients.own.lock(KEY, ttl=TTL)
    assert await clients.measure(lambda: clients.colour.try_acquire(lock)) is None
    await clients.colour.release(held)


async def release(clients: Clients) -> None:
    lease = await clients.acquire()
    await clients.measure(lambda: clients.colour.release(lease))


async def enter_again(clients: Clients) -> None:
    async def inner() -> None:
        await clients.colour.release(await clients.acquire(reentrant=True))

    outer = await clients.acquire(reentrant=True)
    await clients.measure(inner)
    await clients.colour.release(outer)


async def hand_over(clients: Clients) -> None:
    """From the release to the next one being in; the others wait on."""
    held = await clients.acquire()
    tasks = await clients.queue()

    async def pass_on() -> None:
        await clients.colour.release(held)
        await clients.colour.until(lambda: any(task.done for task in tasks))

    await clients.measure(pass_on)
    await clients.serve(tasks)


async def renew(clients: Clients, count: int = HELD) -> None:
    """A third of the ttl later."""

    async def look() -> None:
        clients.clock.advance(THIRD)
        await clients.colour.aside(clients.own._watchdog.look)

    held = [await clients.acquire(key=f"orders:{number}") for number in range(count)]
    await clients.measure(look)
    for lease in held:
        await clients.colour.release(lease)


async def hold(clients: Clients) -> None:
    await renew(clients, 1)


async def wait(clients: Clients) -> None:
    """For a third of the ttl."""

    async def pass_time() -> None:
        clients.clock.advance(THIRD)
        clients.meter.stir(clients.waiters)

    held = await clients.acquire(clients.others)
    tasks = await clients.queue()
    await clients.measure(pass_time)
    await clients.colour.aside(clients.others._watchdog.look)
    await clients.colour.release(held)
    await clients.serve(tasks)


@pytest.fixture
def meter(store: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Meter]:
    """The store of that name."""
    found: Any = request.getfixturevalue(SHARED[store])
    with ExitStack() as exits:
        if store == "redis":
            yield Meter(found.url, found)
        elif store == "cluster":
            yield ClusterMeter(found)
        elif store == "redlock":
            monkeypatch.setattr("distlock.backends.redis.redlock._waiting.STRAGGLERS", PATIENCE)
            proxies = [exits.enter_context(FaultProxy(server.address)) for server in found.servers[:3]]
            yield RedlockMeter(found.url_at(*(proxy.port for proxy in proxies)), *proxies)
        elif store == "etcd":
            # Who waits does so under a lease as long as the others here.
            monkeypatch.setattr("distlock.backends.etcd._values.LONGEST_WAIT", int(TTL))
            yield EtcdMeter(found, exits.enter_context(FaultProxy(found.address)))
        else:
            yield ZooKeeperMeter(found, exits.enter_context(FaultProxy(found.address)))


SHARED = {
    "redis": "redis_proxy",
    "cluster": "shared_cluster",
    "redlock": "redlock_nodes",
    "etcd": "shared_etcd",
    "zookeeper": "shared_zookeeper",
}

# Operation by store: round trips and requests, to be met exactly; bytes sent and received, which are not to grow by
# more than the slack. The nodes of a cluster tell their requests alone. What a store's own threads do while nothing
# happens is in "hold" and "wait".
COSTS: Mapping[Callable[[Clients], Coroutine[Any, Any, None]], Mapping[str, Spent]] = {
    acquire: {
        "redis": Spent(1, 1, 376, 19),
        "cluster": Spent(0, 1, 0, 0),
        "redlock": Spent(2, 6, 1680, 112),
        "etcd": Spent(1, 1, 1250, 125),
        "zookeeper": Spent(1, 2, 289, 230),
    },
    try_free: {
        "redis": Spent(1, 1, 375, 19),
        "cluster": Spent(0, 1, 0, 0),
        "redlock": Spent(2, 6, 1677, 112),
        "etcd": Spent(1, 1, 674, 125),
        "zookeeper": Spent(1, 2, 288, 230),
    },
    try_taken: {
        "redis": Spent(1, 1, 375, 175),
        "cluster": Spent(0, 1, 0, 0),
        "redlock": Spent(2, 6, 3849, 606),
        "etcd": Spent(1, 1, 713, 378),
        "zookeeper": Spent(2, 4, 465, 518),
    },
    release: {
        "redis": Spent(1, 1, 254, 4),
        "cluster": Spent(0, 1, 0, 0),
        "redlock": Spent(1, 3, 2850, 16),
        "etcd": Spent(1, 1, 304, 125),
        "zookeeper": Spent(1, 1, 90, 20),
    },
    enter_again: dict.fromkeys(SHARED, Spent(0, 0, 0, 0)),
    hand_over: {
        "redis": Spent(2, 2, 1076, 152),
        "cluster": Spent(0, 2, 0, 0),
        "redlock": Spent(4, 12, 4665, 588),
        "etcd": Spent(2, 3, 840, 404),
        "zookeeper": Spent(1, 1, 90, 540),
    },
    renew: {
        "redis": Spent(1, 1, 7665, 4),
        "cluster": Spent(0, HELD, 0, 0),
        "redlock": Spent(1, 3, 23895, 1218),
        "etcd": Spent(1, 2, 226, 7382),
        "zookeeper": Spent(1, 1, 8711, 929),
    },
    hold: {
        "redis": Spent(1, 1, 146, 4),
        "cluster": Spent(0, 1, 0, 0),
        "redlock": Spent(1, 3, 447, 24),
        "etcd": Spent(1, 2, 226, 280),
        "zookeeper": Spent(1, 1, 107, 38),
    },
    wait: {
        "redis": Spent(1, 1, 360, 90),
        "cluster": Spent(0, 1, 0, 0),
        "redlock": Spent(2, 6, 3801, 606),
        "etcd": Spent(1, 2, 520, 560),
        "zookeeper": Spent(1, 1, 282, 56),
    },
}


TRIES = 10
"""Of which one must cost what the table says: what costs more each time does so in all of them."""


def is_as_in(table: Spent, spent: Spent) -> bool:
    """A longer name, and what a driver says now and then to keep its connection, are no growth in bytes."""
    exact = (spent.trips, spent.requests) == (table.trips, table.requests)
    return exact and all(now <= 1.1 * then + 100 for now, then in zip(spent[2:], table[2:], strict=True))


CASES = [
    (operation, store, colour)
    for operation, costs in COSTS.items()
    for store in costs
    for colour in (COLOURS[:1] if operation in (renew, hold) else COLOURS)  # which the watchdog's thread does for all
]


@pytest.mark.usefixtures("nobody_passed_over")
@pytest.mark.parametrize(("operation", "store", "colour"), CASES, ids=lambda each: getattr(each, "__name__", each))
def test_an_operation_costs_as_much_as_the_table_says(
    operation: Callable[[Clients], Coroutine[Any, Any, None]],
    store: str,
    colour: str,
    meter: Meter,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_who, "_host", "web-3")
    _who._plain.cache_clear()
    table = COSTS[operation][store]

    with Clock.running() as clock, ExitStack() as exits:
        clients = Clients(meter, Colour(colour), clock, exits)

        async def measured() -> None:
            await operation(clients)  # connects, and the servers learn the scripts
            clients.expected = table.requests
            for _ in range(TRIES):  # something earlier may come late, and be counted as well, or in its place
                await operation(clients)
                if is_as_in(table, clients.spent):
                    break

        clients.colour.run(measured)
    _who._plain.cache_clear()
    assert is_as_in(table, clients.spent), clients.spent


# Memory and threads


URLS: Mapping[str, Callable[[pytest.FixtureRequest], str]] = {
    "memory": lambda _: "memory://",
    "file": lambda request: request.getfixturevalue("tmp_path").as_uri(),
    "redis": lambda request: request.getfixturevalue("redis_url"),
    "cluster": lambda request: request.getfixturevalue("redis_cluster_url"),
    "redlock": lambda request: request.getfixturevalue("redlock_nodes").url,
    "etcd": lambda request: request.getfixturevalue("etcd_url"),
    "zookeeper": lambda request: request.getfixturevalue("shared_zookeeper").url,
}
# In the colours' order; most of it is what sockets and event loops read into.
PEAKS = {
    "memory": (4_300, 5_700, 5_700),
    "file": (36_000, 41_000, 77_500),
    "redis": (70_500, 268_500, 79_500),
    "cluster": (70_700, 269_100, 79_400),
    "redlock": (83_200, 88_800, 92_400),
    "etcd": (10_200, 14_600, 77_800),
    "zookeeper": (75_800, 80_100, 83_200),
}
"""Bytes for one acquire and release, at the same time."""
TRACED = 5_000
"""Those of whoever measures coverage."""
WAITING = {
    "memory": [],
    "file": ["distlock-flock"],
    "redis": ["distlock-inbox"],
    "cluster": ["distlock-inbox"],
    "redlock": ["distlock-watcher"],
    "etcd": ["distlock-etcd-clerk", "distlock-etcd-stream", "distlock-etcd-stream", "distlock-etcd-tidier"],
    "zookeeper": ["distlock-zookeeper-clerk", "distlock-zookeeper-tidier"],
}
"""The threads that a manager with waiters has at most, beside its watchdog; however many wait."""
IDLE_FILES = "distlock-idle-files"
"""A thread that ends when no file has been idle for a while."""
DRIVERS = 4
"""Those of a driver, at most."""
WARM, COUNTED = 550, 120  # caches of names hold 512


@pytest.fixture
def locks(place: str, request: pytest.FixtureRequest) -> Iterator[Manager]:
    with distlock.connect(URLS[place](request)) as manager:
        yield manager


@pytest.fixture
def quick_collection() -> Iterator[None]:
    """Of what is made in the test: what pytest has takes much longer to look through."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of all threads that Python starts."""
    names: list[str] = []
    start = threading.Thread.start

    def noted(thread: threading.Thread) -> None:
        names.append(thread.name)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", noted)
    return names


@pytest.mark.usefixtures("quick_collection")
@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("place", URLS)
def test_nothing_is_kept_of_a_lock_and_no_thread_started_for_it(
    place: str, colour: str, locks: Manager, started: list[str]
) -> None:
    """Of names that never come again, in threads; in event loops the name is the same, which takes less time."""
    painted, kept, peak = Colour(colour), 0, 0
    names = (f"orders:{number:06d}" for number in (itertools.repeat(0) if painted.is_async else itertools.count()))

    async def pairs(count: int) -> None:
        for name in itertools.islice(names, count):
            await painted.release(await painted.acquire(locks.lock(name, ttl=TTL)))

    async def blocks() -> int:
        await painted.sleep(QUIET)  # workers let go of what they have done
        while any(thread.name == IDLE_FILES for thread in threading.enumerate()):
            await painted.sleep(QUIET)
        gc.collect()
        return sys.getallocatedblocks()

    async def body() -> None:
        nonlocal kept, peak
        await pairs(40 if painted.is_async else WARM)
        started.clear()
        for _ in range(TRIES):  # what others do at the same time only adds
            before = await blocks()
            await pairs(COUNTED)
            kept = await blocks() - before
            if kept < COUNTED / 2:
                break
        peak = min([await peak_of(lambda: pairs(1)) for _ in range(3)])

    painted.run(body)
    # What is kept of each lock is as many pieces at least; what is made once for all, or held for a moment, is
    # not half of that.
    # Python 3.10 keeps a cache for each function that has run 1,024 times, which may be any of these.
    assert kept < COUNTED / 2 or sys.version_info < (3, 11)
    assert peak <= 1.5 * PEAKS[place][COLOURS.index(colour)] + TRACED
    assert len([name for name in started if name != IDLE_FILES and not is_worker(name)]) < COUNTED / 2


async def peak_of(call: Callable[[], Coroutine[Any, Any, None]]) -> int:
    """How many bytes more than before there were at the same time."""
    tracemalloc.start(1)
    try:
        await call()  # what it keeps until the next
        gc.collect()
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        await call()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def is_worker(name: str) -> bool:
    """A thread in which an event loop has something done, and which it keeps for a while."""
    return name.startswith(("AnyIO", "Trio"))


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("place", URLS)
def test_waiters_have_no_threads_of_their_own(place: str, colour: str, locks: Manager) -> None:
    painted, before = Colour(colour), set(threading.enumerate())

    def threads() -> list[str]:
        new = set(threading.enumerate()) - before
        return sorted(each.name for each in new if not each.name.endswith("(<lambda>)"))  # the callers, of `start`

    def too_many() -> Counter[str]:
        """Beyond what is allowed; what connects, in a thread that ends, is not."""
        mine = Counter(name for name in threads() if name.startswith("distlock"))
        return mine - Counter(["distlock-watchdog", *WAITING[place]])

    async def wait() -> None:
        await painted.release(await painted.acquire(locks.lock(KEY, ttl=TTL), timeout=None))

    async def body() -> None:
        held = await painted.acquire(locks.lock(KEY, ttl=TTL))
        tasks: list[Task] = []
        for _ in range(6):
            tasks.append(painted.start(wait))
            await painted.until(lambda: len(locks.inspect(KEY).waiters) == len(tasks))
        with suppress(AssertionError):
            await painted.until(lambda: not too_many(), timeout=PATIENCE)
        found, others = too_many(), [name for name in threads() if not name.startswith("distlock")]
        await painted.release(held)
        for task in tasks:
            await task.result()

        assert not found
        assert len([name for name in others if is_worker(name)]) < len(tasks)
        assert len([name for name in others if not is_worker(name)]) <= DRIVERS

    painted.run(body)
