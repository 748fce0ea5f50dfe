"""The Redlock of pottery, over one server."""

from __future__ import annotations

from typing import Any

from ._peer import TTL, Guarantees, Peer, no, yes

PEER = Peer(
    "pottery",
    ("redis",),
    "hiredis==3.5.0 mmh3==5.3.1 pottery==3.0.1 redis==8.1.0 typing_extensions==4.16.0",
    Guarantees(
        owner_check=yes("pottery.redlock:Scripts._release_script"),
        renewal=no("pottery.redlock:Redlock.extend", "by hand, three times"),
        fencing=no("pottery.redlock:Redlock._acquire_masters", "its owner is a random UUID"),
        fairness=no("pottery.redlock:Redlock.acquire"),
        waiting=no("pottery.redlock:Redlock.acquire", "asks every 0 to 0.2 s"),
        told=no("pottery.redlock:Redlock.locked", "only by the release, or if it asks"),
        asyncio=yes("pottery.aioredlock:AIORedlock.acquire"),
    ),
)


def connect(place: str) -> Any:
    """A client of redis-py."""
    import redis

    return redis.Redis.from_url(place)


def lock(client: Any, key: str) -> tuple[Any, Any]:
    """One master is a quorum of one."""
    from pottery import Redlock

    one = Redlock(key=key, masters={client}, auto_release_time=TTL)
    return one.acquire, one.release
