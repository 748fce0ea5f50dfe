"""The lock of etcd3, in the fork of cslab."""

from __future__ import annotations

from typing import Any

from ._peer import TTL, Guarantees, Peer, no, part, port_of, yes

PEER = Peer(
    "etcd3",
    ("etcd",),
    "cslab-etcd3==0.12.1 grpcio==1.85.1 protobuf==7.36.2 six==1.17.0 typing_extensions==4.16.0",
    Guarantees(
        owner_check=yes("etcd3.locks:Lock.release"),
        renewal=no("etcd3.locks:Lock.refresh", "by hand"),
        fencing=part("etcd3.locks:Lock._try_acquire", "leaves a `revision` behind, and does not say so"),
        fairness=no("etcd3.locks:Lock.acquire", "all are woken at once"),
        waiting=yes("etcd3.locks:Lock._wait_delete_event"),
        told=no("etcd3.locks:Lock.__exit__", "not even by leaving the block"),
        asyncio=no("etcd3.locks:Lock.acquire"),
    ),
)


def connect(place: str) -> Any:
    """A client."""
    import etcd3

    return etcd3.client(port=port_of(place))


def lock(client: Any, key: str) -> tuple[Any, Any]:
    """It would give up after 10 s."""
    one = client.lock(key, ttl=TTL)
    return lambda: one.acquire(timeout=None), one.release
