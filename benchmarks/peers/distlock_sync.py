"""distlock, from the source that this is a part of."""

from __future__ import annotations

from typing import Any

from ._peer import TTL, Guarantees, Peer, part, yes

PEER = Peer(
    "distlock",
    ("redis", "etcd", "zookeeper", "file"),
    "anyio==4.16.0 grpcio==1.85.1 hiredis==3.5.0 idna==3.20 kazoo==2.11.0 protobuf==7.36.2 redis==8.1.0 "
    "typing_extensions==4.16.0",
    Guarantees(
        owner_check=yes("distlock.backends.redis:RedisBackend.release"),
        renewal=yes("distlock._core.watchdog:Watchdog"),
        fencing=yes("distlock:Lease.token"),
        fairness=part("distlock:Guarantees.fair", "not on files, nor on Redlock"),
        waiting=yes("distlock._core.acquire:acquire"),
        told=yes("distlock:Lease.on_lost", "before anyone else gets in"),
        asyncio=yes("distlock:Lock.acquire_async", "and trio"),
    ),
)


def connect(place: str) -> Any:
    """Its URLs are those of the stores."""
    import distlock

    return distlock.connect(place)


def lock(locks: Any, key: str) -> tuple[Any, Any]:
    """What acquiring gives is what is released."""
    recipe, held = locks.lock(key, ttl=TTL), []
    return lambda: held.append(recipe.acquire()), lambda: held.pop().release()
