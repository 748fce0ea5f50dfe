"""The Redlock of redlock-py, over one server."""

from __future__ import annotations

from typing import Any

from ._peer import TTL, Guarantees, Peer, no, part

PEER = Peer(
    "redlock-py",
    ("redis",),
    "redis==8.1.0 redlock-py==1.0.8",
    Guarantees(
        owner_check=part("redlock:Redlock.unlock_instance", "and does not say what it found"),
        renewal=no("redlock:Redlock.lock", "nor is there any by hand"),
        fencing=no("redlock:Redlock.get_unique_id", "its key is random"),
        fairness=no("redlock:Redlock.lock"),
        waiting=no("redlock:Redlock.lock", "asks three times in 0.6 s, then gives up"),
        told=no("redlock:Redlock.unlock", "not even by the release"),
        asyncio=no("redlock:Redlock.lock"),
    ),
)


def connect(place: str) -> Any:
    """One server is a quorum of one."""
    from redlock import Redlock

    return Redlock([place])


def lock(manager: Any, key: str) -> tuple[Any, Any]:
    """Where it gives up, it is asked again."""
    held: list[Any] = []

    def take() -> None:
        one = manager.lock(key, TTL * 1000)
        while not one:
            one = manager.lock(key, TTL * 1000)
        held.append(one)

    return take, lambda: manager.unlock(held.pop())
