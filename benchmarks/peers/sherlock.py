"""sherlock over Redis."""

from __future__ import annotations

from typing import Any

from ._peer import TTL, Guarantees, Peer, no, yes

PEER = Peer(
    "sherlock",
    ("redis",),
    "redis==4.6.0 sherlock==0.4.1",
    Guarantees(
        owner_check=yes("sherlock:RedisLock._release_script"),
        renewal=no("sherlock:RedisLock.renew", "by hand"),
        fencing=no("sherlock:RedisLock._acquire", "its owner is a random UUID"),
        fairness=no("sherlock.lock:BaseLock.acquire"),
        waiting=no("sherlock.lock:BaseLock.acquire", "asks every 0.1 s"),
        told=no("sherlock:RedisLock._renew", "only by the release, or if it asks"),
        asyncio=no("sherlock.lock:BaseLock.acquire"),
    ),
)


def connect(place: str) -> Any:
    """A client of redis-py."""
    import redis

    return redis.StrictRedis.from_url(place)


def lock(client: Any, key: str) -> tuple[Any, Any]:
    """It would give up after 10 s."""
    from sherlock import RedisLock

    one = RedisLock(key, client=client, expire=TTL, timeout=3600)
    return one.acquire, one.release
