"""The stores, each for the length of a block, and what they say of requests."""

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


@contextmanager
def redis(processor: int | None) -> Iterator[Store]:
    """A server of our own."""
    from .. import _redis

    with _redis.server(processor) as store:

        def heard(seconds: float) -> float:
            with closing(_redis.RawSocket(store.port)) as monitor:
                monitor.socket.sendall(_redis.command("MONITOR"))
                time.sleep(seconds)
                return sum(_redis.heard(store.port, monitor).values())

        yield Store(_redis.url_of(store), {"redis": _redis.conditions(store)["redis"]}, heard)


@contextmanager
def etcd(processor: int | None) -> Iterator[Store]:
    """A server of our own."""
    from .. import _etcd

    with _etcd.server(processor) as store:

        def heard(seconds: float) -> float:
            before = sum(_etcd.requests_of(store).values())
            time.sleep(seconds)
            return sum(_etcd.requests_of(store).values()) - before

        yield Store(store.url, {"etcd": _etcd.conditions()["etcd"]}, heard)


@contextmanager
def zookeeper(processor: int | None) -> Iterator[Store]:
    """A server of our own."""
    from .. import _zookeeper

    with _zookeeper.server(processor) as store:

        def heard(seconds: float) -> float:
            before = _zookeeper.requests_of(store)
            time.sleep(seconds)
            return _zookeeper.requests_of(store) - before - 1  # the question itself

        yield Store(store.url, {"ZooKeeper": _zookeeper.conditions(store)["ZooKeeper"]}, heard)


@contextmanager
def file(processor: int | None) -> Iterator[Store]:
    """A folder of our own, which no processor has to itself."""
    with tempfile.TemporaryDirectory(prefix="distlock-peers-") as folder:
        yield Store(Path(folder).as_uri(), {})


STORES: dict[str, Callable[[int | None], AbstractContextManager[Store]]] = {
    "redis": redis,
    "etcd": etcd,
    "zookeeper": zookeeper,
    "file": file,
}
"""Each with the processor that its server is bound to, if any."""
