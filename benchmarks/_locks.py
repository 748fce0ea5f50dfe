"""The contenders of the races between processes, made anew in each process from a name and a place."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from functools import cache
from types import TracebackType
from typing import Any

import distlock

from ._redis import DirectGrant, RawSocket, command, port_of

__all__ = ("MAKERS", "team")


class Pair:
    """A context manager of two functions, with as little between as there can be."""

    __slots__ = ("give", "take")

    def __init__(self, take: Callable[[], object], give: Callable[[], object]) -> None:
        self.take, self.give = take, give

    def __enter__(self) -> None:
        self.take()

    def __exit__(
        self, kind: type[BaseException] | None, body: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.give()


def raw_token(place: str) -> Pair:
    """One token in a list, popped blockingly and pushed back: Redis itself wakes the next."""
    raw = RawSocket(port_of(place))
    take, give = command("BLPOP", "token", "0"), command("RPUSH", "token", "t")
    return Pair(lambda: raw.ask(take), lambda: raw.ask(give))


def direct_grant(place: str) -> DirectGrant:
    """A queue of names: a release makes the first of them the holder and tells it."""
    return DirectGrant(port_of(place), "direct")


def raw_flock(place: str) -> Pair:
    """An open file, flock(2) that blocks, and its undoing."""
    fd = os.open(f"{place}/raw", os.O_RDWR | os.O_CREAT, 0o600)
    return Pair(lambda: fcntl.flock(fd, fcntl.LOCK_EX), lambda: fcntl.flock(fd, fcntl.LOCK_UN))


def ours(place: str) -> Any:
    """distlock, on whatever URL."""
    return distlock.connect(place).lock("contended")


def redis_py(place: str) -> Any:
    """As it comes: it asks every 0.1 s."""
    import redis

    return redis.Redis.from_url(place).lock("redis-py", timeout=30)


def eager_redis_py(place: str) -> Any:
    """It asks every millisecond."""
    import redis

    return redis.Redis.from_url(place).lock("eager", timeout=30, sleep=0.001)


def python_redis_lock(place: str) -> Any:
    """As it comes: a release pushes a signal, for which one waiter blocks."""
    import redis
    import redis_lock

    return redis_lock.Lock(redis.Redis.from_url(place, socket_timeout=None), "python-redis-lock")


def raw_queue(place: str) -> Any:
    """A transaction that queues and tells whom to wait for, and a watch of that one."""
    from . import _etcd

    return _etcd.RawQueue(_etcd.port_of(place), "raw")


class Etcd3:
    """A lock of cslab-etcd3, which waits for as long as it takes."""

    def __init__(self, client: Any, key: str, ttl: int = 30) -> None:
        self.lock = client.lock(key, ttl=ttl)

    def __enter__(self) -> Any:
        assert self.lock.acquire(timeout=None)
        return self.lock

    def __exit__(self, *_: object) -> None:
        assert self.lock.release()


def with_etcd3(place: str) -> Etcd3:
    """Told to wait for as long as it takes: a watch of the key, and all try again when it is gone."""
    from . import _etcd

    return Etcd3(_etcd.etcd3_at(place), "etcd3")


@cache
def _kazoo(place: str) -> Any:
    from . import _zookeeper

    return _zookeeper.client_at(place)


def with_kazoo(place: str) -> Any:
    """As it comes: a watch on the node before. One client for all threads of a process."""
    return _kazoo(place).Lock("/kazoo")


def with_filelock(place: str) -> Any:
    """As it comes: it asks every 0.05 s."""
    import filelock

    return filelock.FileLock(f"{place}/filelock")


def with_portalocker(place: str) -> Any:
    """Told to block in the kernel."""
    import portalocker

    return portalocker.Lock(f"{place}/portalocker", flags=portalocker.LockFlags.EXCLUSIVE)


MAKERS: dict[str, Callable[[str], Any]] = {
    "raw token (BLPOP)": raw_token,
    "raw direct grant": direct_grant,
    "raw flock": raw_flock,
    "distlock": ours,
    "redis-py": redis_py,
    "redis-py, asking every 1 ms": eager_redis_py,
    "python-redis-lock": python_redis_lock,
    "raw queue": raw_queue,
    "etcd3": with_etcd3,
    "kazoo Lock": with_kazoo,
    "filelock": with_filelock,
    "portalocker": with_portalocker,
}

SHARED = {"distlock", "redis-py", "redis-py, asking every 1 ms"}
"""One object for all threads of a process, as their documentation has it; the others are one thread's."""


def team(name: str, place: str, size: int) -> list[Any]:
    """A lock for each of ``size`` threads of this process."""
    make = MAKERS[name]
    return [make(place)] * size if name in SHARED else [make(place) for _ in range(size)]
