"""The lock of coredis, as it comes."""

from __future__ import annotations

from typing import Any

from ._peer import TTL, Guarantees, Peer, no, port_of, yes

PEER = Peer(
    "coredis",
    ("redis",),
    "anyio==4.16.0 beartype==0.23.1 coredis==6.9.0 Deprecated==3.0.1 exceptiongroup==1.3.1 idna==3.20 packaging==26.3 "
    "typing_extensions==4.16.0 wrapt==2.5.2",
    Guarantees(
        owner_check=yes("coredis.patterns.lock:RELEASE_SCRIPT"),
        renewal=no("coredis.patterns.lock:Lock.extend", "by hand"),
        fencing=no("coredis.patterns.lock:Lock.acquire", "its token is random"),
        fairness=no("coredis.patterns.lock:Lock.acquire"),
        waiting=no("coredis.patterns.lock:Lock.acquire", "asks every 0.1 s"),
        told=no("coredis.patterns.lock:Lock.release", "only by the release"),
        asyncio=yes("coredis.patterns.lock:Lock.acquire", "and trio; no sync code"),
    ),
    colour="asyncio",
)


async def connect(place: str) -> Any:
    """A client, which is open for as long as the process lives."""
    import coredis

    return await coredis.Redis(host="127.0.0.1", port=port_of(place)).__aenter__()


def lock(client: Any, key: str) -> tuple[Any, Any]:
    """With an expiry, which it does not have by default."""
    from coredis.patterns.lock import Lock

    one = Lock(client, key, timeout=TTL)
    return one.acquire, one.release
