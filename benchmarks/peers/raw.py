"""The least that any lock over the same store has to do; `raw_queue` is the like for those who wait."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from typing import Any

from ._peer import Peer, folder_of, port_of

PEER = Peer("raw floor", ("redis", "etcd", "zookeeper", "file"), workloads=("uncontended",))


def connect(place: str) -> str:
    """Nothing is shared."""
    return place


def lock(place: str, key: str) -> tuple[Any, Any]:
    """The two prepared requests, or system calls."""
    return FLOORS[place.partition(":")[0]](place, key)


def on_redis(place: str, key: str) -> tuple[Any, Any]:
    """``SET NX PX`` and a checked delete."""
    from benchmarks._redis import RawLock

    raw = RawLock(port_of(place), key)

    def take() -> None:
        assert raw.ask(raw.take) == b"+OK\r\n"

    def give() -> None:
        assert raw.ask(raw.give) == b":1\r\n"

    return take, give


def on_etcd(place: str, key: str) -> tuple[Any, Any]:
    """A transaction and a deletion, by bare grpcio."""
    from benchmarks._etcd import RawLock

    raw = RawLock(port_of(place), key)

    def take() -> None:
        assert raw.txn(raw.take).succeeded

    def give() -> None:
        assert raw.delete(raw.give).deleted == 1

    return take, give


def on_zookeeper(place: str, key: str) -> tuple[Any, Any]:
    """A node that is made and deleted, by kazoo."""
    from benchmarks._zookeeper import Bare

    bare, made = Bare(place, f"/{key}"), []
    take = lambda: made.append(bare.client.create(bare.path, b"v" * 80, ephemeral=True, sequence=True))  # noqa: E731
    return take, lambda: bare.client.delete(made.pop())


def on_files(place: str, key: str) -> tuple[Any, Any]:
    """A bare blocking ``flock``, and its undoing."""
    fd = os.open(f"{folder_of(place)}/{key}", os.O_RDWR | os.O_CREAT, 0o600)
    return lambda: fcntl.flock(fd, fcntl.LOCK_EX), lambda: fcntl.flock(fd, fcntl.LOCK_UN)


FLOORS: dict[str, Callable[[str, str], tuple[Any, Any]]] = {
    "redis": on_redis,
    "etcd": on_etcd,
    "zookeeper": on_zookeeper,
    "file": on_files,
}
