"""Ways to hold many locks on Redis at a time: each gives a function that takes one and returns what holds it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from ._redis import RawSocket, command, port_of

__all__ = ("TAKERS", "Taker")

Taker = Callable[[str], object]


def nothing(url: str, ttl: int) -> Taker:
    """Holds none."""
    return lambda key: None


def raw(url: str, ttl: int) -> Taker:
    """`SET NX PX`, and all renewed by one pipeline of prepared requests at every third of ``ttl``."""
    store, frames = RawSocket(port_of(url)), [b""]

    def renew() -> None:
        while True:
            time.sleep(ttl / 3)
            store.socket.sendall(b"".join(frames))
            left = 4 * (len(frames) - 1)  # each reply is `:1`
            while left:
                left -= len(store.socket.recv(65536))

    def take(key: str) -> object:
        assert store.ask(command("SET", key, "v" * 20, "NX", "PX", str(ttl * 1000))) == b"+OK\r\n"
        frames.append(command("PEXPIRE", key, str(ttl * 1000)))
        return key

    threading.Thread(target=renew, daemon=True).start()
    return take


def bare(url: str, ttl: int) -> Taker:
    """`SET NX PX`, and nothing kept but the key and its value."""
    store = RawSocket(port_of(url))

    def take(key: str) -> object:
        value = f"{len(key):020}"
        assert store.ask(command("SET", key, value, "NX", "PX", str(ttl * 1000))) == b"+OK\r\n"
        return (key, value)

    return take


def ours(url: str, ttl: int) -> Taker:
    """distlock, which renews."""
    import distlock

    locks = distlock.connect(url)
    return lambda key: locks.lock(key, ttl=ttl).acquire()


def redis_py(url: str, ttl: int) -> Taker:
    """redis-py, which does not renew."""
    import redis

    client = redis.Redis.from_url(url)
    return lambda key: _taken(client.lock(key, timeout=ttl))


def python_redis_lock(url: str, ttl: int) -> Taker:
    """python-redis-lock, without renewal."""
    import redis
    import redis_lock

    client = redis.Redis.from_url(url, socket_timeout=None)
    return lambda key: _taken(redis_lock.Lock(client, key, expire=ttl))


def renewing_python_redis_lock(url: str, ttl: int) -> Taker:
    """python-redis-lock, told to renew."""
    import redis
    import redis_lock

    client = redis.Redis.from_url(url, socket_timeout=None, max_connections=10_000)
    return lambda key: _taken(redis_lock.Lock(client, key, expire=ttl, auto_renewal=True))


def with_tooz(url: str, ttl: int) -> Taker:
    """tooz, whose coordinator renews when told to keep its heart beating."""
    from tooz import coordination

    coordinator = coordination.get_coordinator(f"{url.removesuffix('/0')}?lock_timeout={ttl}", b"benchmark")
    coordinator.start(start_heart=True)
    return lambda key: _taken(coordinator.get_lock(key.encode()))


def _taken(lock: Any) -> object:
    assert lock.acquire()
    return lock


TAKERS: dict[str, Callable[[str, int], Taker]] = {
    "nothing": nothing,
    "raw pipeline": raw,
    "key and value": bare,
    "distlock": ours,
    "redis-py": redis_py,
    "python-redis-lock": python_redis_lock,
    "python-redis-lock, auto_renewal": renewing_python_redis_lock,
    "tooz": with_tooz,
}
