"""filelock, as it comes."""

from __future__ import annotations

from typing import Any

from ._peer import Guarantees, Peer, folder_of, no, yes

PEER = Peer(
    "filelock",
    ("file",),
    "filelock==4.2.11",
    Guarantees(
        owner_check=yes("filelock:UnixFileLock._release", "the descriptor is the lock"),
        renewal=yes("filelock._unix:lock_fd_nonblocking", "the kernel keeps it"),
        fencing=no("filelock:BaseFileLock.acquire"),
        fairness=no("filelock:BaseFileLock.acquire"),
        waiting=no("filelock:BaseFileLock._poll_until_acquired", "asks every 0.05 s"),
        told=no("filelock:BaseFileLock.release"),
        asyncio=yes("filelock:AsyncFileLock"),
    ),
)


def connect(place: str) -> str:
    """A folder."""
    return folder_of(place)


def lock(folder: str, key: str) -> tuple[Any, Any]:
    """Each thread has one."""
    import filelock

    one = filelock.FileLock(f"{folder}/{key}")
    return one.acquire, one.release
