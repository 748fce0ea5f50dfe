"""The stores, each for the length of a block, and what they say of requests and of what is in them."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ("STORES", "Store")


@dataclass(frozen=True, slots=True)
class Store:
    """One that runs."""

    place: str
    conditions: dict[str, str]
    heard: Callable[[float], float] | None = None
    """How many requests it receives in so many seconds; of files nobody can say."""
    kept: Callable[[], tuple[float, float]] | None = None
    """How many keys it has now, and in how many bytes."""


@contextmanager
def redis(processor: int | None) -> Iterator[Store]:
    """A server of our own."""
    from redis import Redis

    from . import _redis

    with _redis.server(processor) as store:

        def heard(seconds: float) -> float:
            with closing(_redis.RawSocket(store.port)) as monitor:
                monitor.socket.sendall(_redis.command("MONITOR"))
                time.sleep(seconds)
                return sum(_redis.heard(store.port, monitor).values())

        def kept() -> tuple[float, float]:
            with Redis(port=store.port) as client:
                return float(client.dbsize()), float(client.info("memory")["used_memory"])

        yield Store(_redis.url_of(store), {"redis": _redis.conditions(store)["redis"]}, heard, kept)


@contextmanager
def etcd(processor: int | None) -> Iterator[Store]:
    """A server of our own."""
    from . import _etcd

    with _etcd.server(processor) as store:

        def heard(seconds: float) -> float:
            before = sum(_etcd.requests_of(store).values())
            time.sleep(seconds)
            return sum(_etcd.requests_of(store).values()) - before

        def kept() -> tuple[float, float]:
            for _ in range(2):  # what the first one frees counts as free with the next
                store.put("-")
                store.delete("-")
                store.compact()
            return len(store.keys()), store.metric("etcd_mvcc_db_total_size_in_use_in_bytes")

        yield Store(store.url, {"etcd": _etcd.conditions()["etcd"]}, heard, kept)


@contextmanager
def zookeeper(processor: int | None) -> Iterator[Store]:
    """A server of our own."""
    from . import _zookeeper

    with _zookeeper.server(processor) as store:

        def heard(seconds: float) -> float:
            before = _zookeeper.requests_of(store)
            time.sleep(seconds)
            return _zookeeper.requests_of(store) - before - 1  # the question itself

        def kept() -> tuple[float, float]:
            return store.metric("zk_znode_count"), store.metric("zk_approximate_data_size")

        yield Store(store.url, {"ZooKeeper": _zookeeper.conditions(store)["ZooKeeper"]}, heard, kept)


@contextmanager
def file(processor: int | None) -> Iterator[Store]:
    """A folder of our own, which no processor has to itself."""
    with tempfile.TemporaryDirectory(prefix="distlock-bench-") as folder:

        def kept() -> tuple[float, float]:
            sizes = [path.stat().st_size for path in Path(folder).rglob("*.lock")]
            return len(sizes), sum(sizes)

        yield Store(Path(folder).as_uri(), {}, kept=kept)


@contextmanager
def memory(processor: int | None) -> Iterator[Store]:
    """That of whoever asks for it."""
    yield Store("memory://", {})


STORES: dict[str, Callable[[int | None], AbstractContextManager[Store]]] = {
    "redis": redis,
    "etcd": etcd,
    "zookeeper": zookeeper,
    "file": file,
    "memory": memory,
}
"""Each with the processor that its server is bound to, if any."""
