"""A lock on Redis that many want: how often it changes hands, how fairly, and what it costs to wait for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any

import distlock
from distlock.bench._workers import child

from ._machine import awake
from ._measure import Pace, Report, Target, rotated, table_of
from ._melee import melee
from ._redis import RawSocket, command, conditions, heard, port_of, server, url_of

__all__ = ("crowd", "waiting")

ROUNDS = 8
PROCESSES, THREADS = 4, 8
WARM_UP, SECONDS = 0.5, 1.5
CROWD = ("raw direct grant", "distlock", "python-redis-lock", "redis-py")


def crowd(pace: Pace) -> list[Report]:
    """Acquisitions of all threads together, and those of the luckiest as a ratio to the unluckiest's."""
    rates: dict[str, list[float]] = {name: [] for name in CROWD}
    fairness: dict[str, list[float]] = {name: [] for name in CROWD}
    seconds = pace.of(SECONDS, 0.5)
    with awake(), server(None) as store, melee(CROWD, url_of(store), PROCESSES, THREADS) as run:
        for turn in pace.turns(ROUNDS):
            for name in rotated(CROWD, turn):
                counts = run(name, pace.of(WARM_UP, 0.2), seconds)
                rates[name].append(sum(counts) / seconds)
                fairness[name].append(max(counts) / (min(counts) or 0.5))
        about = conditions(store)
    name = f"redis contended, {PROCESSES} processes × {THREADS} threads"
    fast = {"distlock": (Target(2, "python-redis-lock", least=True),)}
    return [
        Report(name, "acquisitions when all ask again at once", table_of(rates, "/s", fast), about),
        Report(
            f"{name}, fairness",
            f"acquisitions of a thread in {seconds:g} s, most by least (none counts as a half)",
            table_of(fairness, "", {"distlock": (Target(1.2),)}),
            about,
        ),
    ]


# Waiting, counted and not timed.

WAITERS = 50
TTL = 30
WATCHED = 30.0
"""Seconds: a ttl, in which each thing that recurs does so, the refreshes and each waiter's own checks too."""
SETTLED = 5.0
"""Seconds in which all have surely asked, on a loaded machine too."""
HELD = 4 * TTL


class Ours:
    """distlock."""

    def __init__(self, url: str) -> None:
        self.locks = distlock.connect(url)
        self._teach()

    def _teach(self) -> None:
        """The server all scripts: a request that it does not understand is counted, too."""
        with self.locks.lock("taught"), suppress(distlock.AcquireTimeout):
            self.locks.lock("taught", ttl=0.3, timeout=0.3).acquire()

    def hold(self, key: str) -> object:
        """For long, and without any further request."""
        return self.locks.lock(key, ttl=HELD, renew=False).acquire()

    def wait(self, key: str) -> object:
        """Until it is given up."""
        return self.locks.lock(key, ttl=TTL).acquire()


class RedisPy:
    """redis-py's own lock."""

    def __init__(self, url: str) -> None:
        import redis

        self.client = redis.Redis.from_url(url)

    def hold(self, key: str) -> object:
        """For long, and without any further request."""
        return self.client.lock(key, timeout=HELD).acquire()

    def wait(self, key: str) -> object:
        """Until it is given up."""
        return self.client.lock(key, timeout=TTL).acquire()


class PythonRedisLock(RedisPy):
    """python-redis-lock, with an expiry. It waits for longer than newer releases of redis-py wait for a reply."""

    def __init__(self, url: str) -> None:
        import redis

        self.client = redis.Redis.from_url(url, socket_timeout=None)

    def hold(self, key: str) -> object:
        """For long, and without any further request."""
        return self._lock(key, HELD).acquire()

    def wait(self, key: str) -> object:
        """Until it is given up."""
        return self._lock(key, TTL).acquire()

    def _lock(self, key: str, expire: int) -> Any:
        import redis_lock

        return redis_lock.Lock(self.client, key, expire=expire)


CASES: dict[str, tuple[Callable[[str], Any], int]] = {
    "distlock": (Ours, 1),
    f"distlock, {WAITERS} keys": (Ours, WAITERS),
    "python-redis-lock": (PythonRedisLock, 1),
    "redis-py": (RedisPy, 1),
}
"""By name: who waits, and for how many locks."""


def waiting(pace: Pace) -> list[Report]:
    """What one process with many waiters asks of the server. The cases share the time, each with its server."""
    seconds = pace.of(WATCHED, 1.0)
    with ExitStack() as stack:
        stores = {name: stack.enter_context(server(None)) for name in CASES}
        clients = {name: stack.enter_context(_waiters(name, url_of(store))) for name, store in stores.items()}
        time.sleep(pace.of(SETTLED, 0.5))
        monitors = {name: RawSocket(store.port) for name, store in stores.items()}
        for monitor in monitors.values():
            monitor.socket.sendall(command("MONITOR"))
        time.sleep(seconds)
        used = {name: [len(listed()) - 1.0] for name, listed in clients.items()}  # the monitor is one
        notes = {name: _subscribed(listed()) for name, listed in clients.items()}
        received = {name: heard(stores[name].port, monitor) for name, monitor in monitors.items()}
        about = conditions(stores["distlock"])
        pace.tick()
    name = f"redis, {WAITERS} waiters of one process"
    sent = {each: [sum(found.values()) * 10 / seconds] for each, found in received.items()}
    what = {each: ", ".join(f"{count} {verb}" for verb, count in found.items()) for each, found in received.items()}
    few = {each: (Target(1),) for each in received if each.startswith("distlock")}
    return [
        Report(
            name,
            f"commands in 10 s, ttl {TTL} s, counted for {seconds:g} s",
            table_of(sent, "commands", few, what),
            about,
        ),
        Report(name, "connections", table_of(used, "connections", few, notes), about),
    ]


@contextmanager
def _waiters(name: str, url: str) -> Iterator[Callable[[], list[bytes]]]:
    """Holds the locks here, has another process wait for them, and gives a function that lists new connections."""
    make, keys = CASES[name]
    holder = make(url)
    held = [holder.hold(f"key:{number}") for number in range(keys)]
    asker = RawSocket(port_of(url))
    before = {_id(line) for line in _connections(asker)}
    with child(_wait, name, url) as pipe:
        pipe.recv()
        yield lambda: [line for line in _connections(asker) if _id(line) not in before]
    del held


def _wait(pipe: Connection, name: str, url: str) -> None:
    make, keys = CASES[name]
    waiter = make(url)
    for number in range(WAITERS):
        threading.Thread(target=waiter.wait, args=(f"key:{number % keys}",), daemon=True).start()
    pipe.send("all of them ask")
    threading.Event().wait()


def _connections(asker: RawSocket) -> list[bytes]:
    asker.socket.sendall(command("CLIENT", "LIST"))
    stream = asker.socket.makefile("rb")
    return stream.read(int(stream.readline()[1:]) + 2).splitlines()[:-1]


def _id(line: bytes) -> bytes:
    return line.split(b" ", 1)[0]


def _subscribed(lines: list[bytes]) -> str:
    count = sum(b" sub=0 " not in line for line in lines)
    return f"{count} of them subscribed" if count else ""
