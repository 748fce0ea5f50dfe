"""The least that a queue over the same store costs; it survives the death of nobody. Of ZooKeeper there is none."""

from __future__ import annotations

from typing import Any

from . import raw
from ._peer import Peer, port_of

PEER = Peer("raw queue", ("redis", "etcd", "file"), workloads=("hand-off", "contended"))
connect = raw.connect


def lock(place: str, key: str) -> tuple[Any, Any]:
    """A release makes the first who waits the holder, and tells it; of files, the kernel does what it likes."""
    if place.startswith("file:"):
        return raw.on_files(place, key)
    queue: Any
    if place.startswith("redis:"):
        from benchmarks._redis import DirectGrant

        queue = DirectGrant(port_of(place), key)
    else:
        from benchmarks._etcd import RawQueue

        queue = RawQueue(port_of(place), key)
    return queue.__enter__, queue.__exit__
