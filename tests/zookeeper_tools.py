"""ZooKeeper as a store under test, and what can be seen of locks there."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from urllib.parse import quote

import distlock
from distlock.testing import Store

from .zookeeper_servers import ZooKeeperServer

__all__ = ("folder_of", "queue_of", "zookeeper_store")


def folder_of(key: str, namespace: str = "default") -> str:
    """The node above those of all who hold or want a lock."""
    return f"/distlock/{namespace}/{quote(key, safe='')}"


def queue_of(server: ZooKeeperServer, key: str) -> list[str]:
    """The nodes of the holder and of those who wait behind it, in order."""
    return server.children(folder_of(key))


def zookeeper_store(url: str, server: Callable[[], ZooKeeperServer], session_timeout: float = 10) -> Store:
    """One server, or several; ``server`` gives one that answers."""
    url = f"{url}?session_timeout={session_timeout:g}"

    def lose(key: str) -> None:
        server().delete(f"{folder_of(key)}/{queue_of(server(), key)[0]}")

    return Store(connect=partial(distlock.connect, url), lose=lose, url=url, left=lambda: server().nodes())
