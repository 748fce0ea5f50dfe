"""A ZooKeeper server for the length of a benchmark, and the least that can be said to it by kazoo."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from distlock.bench import _zookeeper
from tests.zookeeper_servers import ZooKeeperServer

from ._machine import SERVER, description, pin, versions

__all__ = ("Bare", "client_at", "conditions", "requests_of", "server")

PEERS = ("kazoo", "tooz")


@contextmanager
def server(processor: int | None) -> Iterator[ZooKeeperServer]:
    """A server of our own that waits for no disk, bound to ``processor``. The JVM compiles what is used for a while."""
    with ZooKeeperServer(properties=["-XX:TieredStopAtLevel=4"]) as store:
        pin(store.pid, processor)
        yield store


def conditions(store: ZooKeeperServer, *, pinned: bool = False) -> dict[str, str]:
    """What readers must know of this run."""
    return {
        **description(),
        "ZooKeeper": f"{store.say('srvr').split()[2].partition('-')[0]}, without fsync",
        **versions(PEERS),
        "client and server on processors of their own": "yes" if pinned and SERVER is not None else "no",
    }


def client_at(url: str) -> Any:
    """A client of kazoo, started."""
    from kazoo.client import KazooClient

    client = KazooClient(url.partition("://")[2], timeout=30)
    client.start()
    return client


def requests_of(store: ZooKeeperServer) -> float:
    """How many packets the server has received so far, but for that which asks; pings are some."""
    return store.metric("zk_packets_received") - 1


class Bare(_zookeeper.Bare):
    """An ephemeral sequential node that is made and deleted: half of what any lock in ZooKeeper does."""

    def __init__(self, url: str, path: str) -> None:
        super().__init__(client_at(url), path)
