"""python-redis-lock: a release pushes a signal, for which one waiter blocks."""

from __future__ import annotations

from typing import Any

from ._peer import TTL, Guarantees, Peer, no, part, yes

PEER = Peer(
    "python-redis-lock",
    ("redis",),
    "hiredis==3.5.0 python-redis-lock==4.0.1 redis==8.1.0",
    Guarantees(
        owner_check=yes("redis_lock:UNLOCK_SCRIPT"),
        renewal=part("redis_lock:Lock._start_lock_renewer", "if told; a thread for each lock"),
        fencing=no("redis_lock:Lock.acquire"),
        fairness=no("redis_lock:Lock.acquire", "who comes may overtake who was woken"),
        waiting=part("redis_lock:Lock.acquire", "whole seconds, no longer than its expiry"),
        told=no("redis_lock:Lock._lock_renewer", "only by the release; its thread dies of it"),
        asyncio=no("redis_lock:Lock.acquire"),
    ),
)


def connect(place: str) -> Any:
    """It waits for longer than newer releases of redis-py wait for a reply."""
    import redis

    return redis.Redis.from_url(place, socket_timeout=None)


def lock(client: Any, key: str) -> tuple[Any, Any]:
    """With an expiry, which it does not have by default."""
    import redis_lock

    one = redis_lock.Lock(client, key, expire=TTL)
    return one.acquire, one.release
