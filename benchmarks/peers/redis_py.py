"""The lock of redis-py, as it comes."""

from __future__ import annotations

from typing import Any

from ._peer import TTL, Guarantees, Peer, no, yes

PEER = Peer(
    "redis-py",
    ("redis",),
    "hiredis==3.5.0 redis==8.1.0",
    Guarantees(
        owner_check=yes("redis.lock:Lock.LUA_RELEASE_SCRIPT"),
        renewal=no("redis.lock:Lock.extend", "by hand"),
        fencing=no("redis.lock:Lock.do_acquire", "its token is random"),
        fairness=no("redis.lock:Lock.acquire"),
        waiting=no("redis.lock:Lock.acquire", "asks every 0.1 s"),
        told=no("redis.lock:Lock.owned", "only by the release, or if it asks"),
        asyncio=yes("redis.asyncio.lock:Lock.acquire"),
    ),
)


def connect(place: str) -> Any:
    """A client with its pool."""
    import redis

    return redis.Redis.from_url(place)


def lock(client: Any, key: str) -> tuple[Any, Any]:
    """With an expiry, which it does not have by default."""
    one = client.lock(key, timeout=TTL)
    return one.acquire, one.release
