"""Other libraries' locks for the torture kit, to be measured by the same rule: each as its documentation has it.

None of them has fencing tokens. ``until`` is what the library itself gives its users to believe: where it tells them
nothing, the time of the reply and the ttl; where it renews or listens, for as long as it says nothing else.

A run uses them by ``Plan(url, party="benchmarks.torture_peers:RedisPy")``, in the folder of the project.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

from distlock import ConfigurationError, Fault, Guarantees, LockLost
from distlock.backends.base import now
from distlock.testing.torture import Plan

__all__ = ("Kazoo", "PythonRedisLock", "RedisPy")

T = TypeVar("T")

EXCEPTED_BY_REDIS = frozenset(
    {
        Fault.DELETED,
        Fault.EMPTY_RESTART,
        Fault.EVICTION,
        Fault.FAILOVER,
        Fault.LOST_WRITES,
        Fault.STORE_CLOCK_JUMP,
    }
)
"""What no lock in Redis can promise: peers are not blamed for it either."""


def promised(backend: str, *, fair: bool, dead_holder: str, excepted: frozenset[Fault]) -> Guarantees:
    """What a lock of this kind is judged by."""
    return Guarantees(
        backend=backend,
        scope="network",
        fenced=False,
        fair=fair,
        dead_holder=dead_holder,
        owner_reentrant=False,
        extend=False,
        excepted=excepted,
    )


async def done(result: T | Awaitable[T]) -> T:
    """The result, whichever colour the client has that gave it."""
    return await result if inspect.isawaitable(result) else result


class RedisPy:
    """``redis.lock.Lock`` and ``redis.asyncio.lock.Lock``: they ask every 0.1 s, and do not renew."""

    guarantees = promised("redis-py", fair=False, dead_holder="ttl", excepted=EXCEPTED_BY_REDIS)

    def __init__(self, plan: Plan, colour: str) -> None:
        import redis
        import redis.asyncio

        if colour == "trio":
            raise ConfigurationError("redis-py knows no trio")
        self._is_sync = colour == "sync"
        client: Any = redis.Redis if self._is_sync else redis.asyncio.Redis
        self._plan = plan
        self._client = client.from_url(plan.url, **_client_options(plan))

    async def open(self) -> None:
        await done(self._client.ping())

    async def acquire(self, key: str, timeout: float | None, *, renew: bool) -> _OfRedisPy | None:
        lock = self._client.lock(f"{self._plan.namespace}:{key}", timeout=self._plan.ttl, blocking_timeout=timeout)
        return _OfRedisPy(lock, now() + self._plan.ttl) if await done(lock.acquire()) else None

    async def close(self) -> None:
        await done(self._client.close() if self._is_sync else self._client.aclose())


class _OfRedisPy:
    token = None

    def __init__(self, lock: Any, until: float) -> None:
        self._lock = lock
        self.until = until
        """The time of the reply and the timeout, as users of it believe."""

    def sure(self) -> None:
        """Only the server knows."""

    def on_lost(self, callback: Callable[[], object]) -> None:
        """Nothing notices."""

    async def release(self) -> None:
        from redis.exceptions import LockNotOwnedError

        try:
            await done(self._lock.release())
        except LockNotOwnedError as error:
            raise LockLost(str(error)) from error


class PythonRedisLock:
    """``redis_lock.Lock``: a release pushes a signal for which a waiter blocks; a thread renews. Whole seconds only."""

    guarantees = promised("python-redis-lock", fair=False, dead_holder="ttl", excepted=EXCEPTED_BY_REDIS)

    def __init__(self, plan: Plan, colour: str) -> None:
        import redis

        if colour != "sync":
            raise ConfigurationError("python-redis-lock is for sync code")
        self._plan = plan
        self._client: Any = redis.Redis.from_url(plan.url, **{"socket_timeout": None, **_client_options(plan)})

    async def open(self) -> None:
        self._client.ping()

    async def acquire(self, key: str, timeout: float | None, *, renew: bool) -> _OfPythonRedisLock | None:
        import redis_lock

        expire = math.ceil(self._plan.ttl)
        lock = redis_lock.Lock(self._client, f"{self._plan.namespace}:{key}", expire=expire, auto_renewal=renew)
        if timeout is not None:  # whole seconds, and what is not renewed may not wait for longer than it lasts
            timeout = max(1, int(timeout)) if renew else max(1, min(expire, int(timeout)))
        return _OfPythonRedisLock(lock, now() + expire) if lock.acquire(timeout=timeout) else None

    async def close(self) -> None:
        self._client.close()


class _OfPythonRedisLock:
    token = None

    def __init__(self, lock: Any, ends: float) -> None:
        self._lock = lock
        self._ends = ends
        self._renews = lock._lock_renewal_interval is not None

    @property
    def until(self) -> float:
        """For as long as its thread renews: that ends when it finds the lock gone, or cannot reach the server."""
        if not self._renews:
            return self._ends
        thread = self._lock._lock_renewal_thread
        return math.inf if thread is not None and thread.is_alive() else now()

    def sure(self) -> float | None:
        return self.until if self._renews and self.until == math.inf else None

    def on_lost(self, callback: Callable[[], object]) -> None:
        """Nothing tells."""

    async def release(self) -> None:
        import redis_lock

        try:
            self._lock.release()
        except redis_lock.NotAcquired as error:
            raise LockLost(str(error)) from error


class Kazoo:
    """kazoo's ``Lock``, of which users know what its client knows of the connection. The session is a ttl long."""

    guarantees = promised(
        "kazoo", fair=True, dead_holder="session", excepted=frozenset({Fault.DELETED, Fault.EMPTY_RESTART})
    )

    def __init__(self, plan: Plan, colour: str) -> None:
        from kazoo.client import KazooClient

        if colour != "sync":
            raise ConfigurationError("kazoo is for sync code")
        parts = urlsplit(plan.url)
        self._plan = plan
        self._client = KazooClient(f"{parts.netloc}{parts.path.rstrip('/')}", timeout=plan.ttl, **plan.options)

    async def open(self) -> None:
        self._client.start()

    async def acquire(self, key: str, timeout: float | None, *, renew: bool) -> _OfKazoo | None:
        from kazoo.exceptions import LockTimeout

        lock = self._client.Lock(f"/{self._plan.namespace}/{key}")
        try:
            return _OfKazoo(self._client, lock) if lock.acquire(timeout=timeout) else None
        except LockTimeout:
            return None

    async def close(self) -> None:
        self._client.stop()
        self._client.close()


class _OfKazoo:
    token = None

    def __init__(self, client: Any, lock: Any) -> None:
        self._client = client
        self._lock = lock
        self._listener: Callable[[str], object] | None = None

    @property
    def until(self) -> float:
        """While it is connected. When it is suspended, nothing is sure, as its documentation says."""
        return math.inf if self._client.connected else now()

    def sure(self) -> float | None:
        from kazoo.client import KazooState

        if self._client.state == KazooState.LOST:
            raise LockLost("the session is lost")
        return self.until if self._client.state == KazooState.CONNECTED else None

    def on_lost(self, callback: Callable[[], object]) -> None:
        from kazoo.client import KazooState

        def listen(state: str) -> bool:
            if state == KazooState.LOST:
                callback()
            return bool(state == KazooState.LOST)  # and then it is not called again

        self._listener = listen
        self._client.add_listener(listen)

    async def release(self) -> None:
        if self._listener is not None:
            self._client.remove_listener(self._listener)
        if not self._lock.release():
            raise LockLost("it was not held")


def _client_options(plan: Plan) -> dict[str, Any]:
    timeouts = {} if plan.op_timeout is None else {"socket_timeout": plan.op_timeout}
    return {**timeouts, **plan.options}
