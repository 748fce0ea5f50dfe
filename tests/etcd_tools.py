"""etcd as a store under test, and what can be seen of locks there."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from urllib.parse import quote

import distlock
from distlock.testing import Store

from .etcd_servers import EtcdServer

__all__ = ("ROOT", "etcd_store", "folder_of", "queue_of")

ROOT = "distlock/"
"""What all keys of distlock begin with."""


def folder_of(key: str, namespace: str = "default") -> str:
    """What the keys of all who hold or want a lock begin with."""
    return f"{ROOT}{namespace}/{quote(key, safe='')}/"


def queue_of(server: EtcdServer, key: str) -> list[str]:
    """The keys of the holder and of those who wait behind it, in order."""
    return server.keys(folder_of(key))


def etcd_store(url: str, server: Callable[[], EtcdServer]) -> Store:
    """One server, or several; ``server`` gives one that answers."""

    def lose(key: str) -> None:
        server().delete(queue_of(server(), key)[0])

    return Store(connect=partial(distlock.connect, url), lose=lose, url=url, left=lambda: server().keys(ROOT))
