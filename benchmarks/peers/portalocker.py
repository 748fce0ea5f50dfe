"""portalocker, told to block in the kernel."""

from __future__ import annotations

from typing import Any

from ._peer import Guarantees, Peer, folder_of, no, yes

PEER = Peer(
    "portalocker",
    ("file",),
    "portalocker==4.4.2",
    Guarantees(
        owner_check=yes("portalocker.utils:Lock.release", "the descriptor is the lock"),
        renewal=yes("portalocker.utils:Lock.acquire", "the kernel keeps it"),
        fencing=no("portalocker.utils:Lock.acquire"),
        fairness=no("portalocker.utils:Lock.acquire", "the kernel chooses"),
        waiting=no("portalocker.utils:LockBase._timeout_generator", "asks every 0.25 s, or blocks without a bound"),
        told=no("portalocker.utils:Lock.release"),
        asyncio=no("portalocker.utils:Lock.acquire"),
    ),
)


def connect(place: str) -> str:
    """A folder."""
    return folder_of(place)


def lock(folder: str, key: str) -> tuple[Any, Any]:
    """By default it asks every 0.25 s, and gives up after 5 s."""
    import portalocker

    one = portalocker.Lock(f"{folder}/{key}", flags=portalocker.LockFlags.EXCLUSIVE)
    return one.acquire, one.release
