"""The contenders of the races between processes, made anew in each process from a name and a place."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from types import TracebackType
from typing import Any

import distlock

from ._redis import RawSocket, command

__all__ = ("MAKERS",)


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
    raw = RawSocket(int(place.rpartition(":")[2].partition("/")[0]))
    take, give = command("BLPOP", "token", "0"), command("RPUSH", "token", "t")
    return Pair(lambda: raw.ask(take), lambda: raw.ask(give))


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
    "raw flock": raw_flock,
    "distlock": ours,
    "redis-py": redis_py,
    "redis-py, asking every 1 ms": eager_redis_py,
    "filelock": with_filelock,
    "portalocker": with_portalocker,
}
