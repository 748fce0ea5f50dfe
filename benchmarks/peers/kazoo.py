"""The lock of kazoo, as it comes: a watch on the node before."""

from __future__ import annotations

from typing import Any

from ._peer import TTL, Guarantees, Peer, no, part, yes

PEER = Peer(
    "kazoo",
    ("zookeeper",),
    "kazoo==2.11.0",
    Guarantees(
        owner_check=yes("kazoo.recipe.lock:Lock._inner_release", "it deletes its own node"),
        renewal=yes("kazoo.protocol.connection:ConnectionHandler._send_ping", "the session"),
        fencing=no("kazoo.recipe.lock:Lock.acquire"),
        fairness=yes("kazoo.recipe.lock:Lock._get_predecessor"),
        waiting=part("kazoo.recipe.lock:Lock._inner_acquire", "each wake-up begins the timeout anew"),
        told=part("kazoo.client:KazooClient.add_listener", "of its session; `is_acquired` stays True"),
        asyncio=no("kazoo.recipe.lock:Lock.acquire"),
    ),
)


def connect(place: str) -> Any:
    """One client for all threads of a process."""
    from kazoo.client import KazooClient

    client = KazooClient(place.partition("://")[2], timeout=TTL)
    client.start()
    return client


def lock(client: Any, key: str) -> tuple[Any, Any]:
    """Each thread has one."""
    one = client.Lock(f"/{key}")
    return one.acquire, one.release
