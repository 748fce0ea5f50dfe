"""The lock of aetcd."""

from __future__ import annotations

from typing import Any

from ._peer import TTL, Guarantees, Peer, no, part, port_of, yes

PEER = Peer(
    "aetcd",
    ("etcd",),
    "aetcd==1.0.0 grpcio==1.85.1 protobuf==7.36.2 typing_extensions==4.16.0",
    Guarantees(
        owner_check=yes("aetcd.locks:Lock.release"),
        renewal=no("aetcd.locks:Lock.refresh", "by hand"),
        fencing=part("aetcd.locks:Lock._try_acquire", "leaves a `revision` behind, and does not say so"),
        fairness=no("aetcd.locks:Lock.acquire", "all are woken at once"),
        waiting=yes("aetcd.locks:Lock._wait_for_delete_event"),
        told=no("aetcd.locks:Lock.__aexit__", "not even by leaving the block"),
        asyncio=yes("aetcd.locks:Lock.acquire", "alone"),
    ),
    colour="asyncio",
)


async def connect(place: str) -> Any:
    """A client."""
    import aetcd

    client = aetcd.Client(host="127.0.0.1", port=port_of(place))
    await client.connect()
    return client


def lock(client: Any, key: str) -> tuple[Any, Any]:
    """It would give up after 10 s."""
    one = client.lock(key.encode(), ttl=TTL)

    async def take() -> None:
        assert await one.acquire(timeout=None)

    return take, one.release
