"""ZooKeeper: a single server or an ensemble, by URL or by a ready client of kazoo."""

from __future__ import annotations

from typing import Any

from ._backend import ZooKeeperBackend
from ._url import Place
from ._values import Guard

__all__ = ("Guard", "ZooKeeperBackend", "open_client", "open_url")


def open_url(url: str, *, namespace: str, op_timeout: float) -> ZooKeeperBackend:
    """``zookeeper://host,host/chroot``, or with TLS ``zookeeper+tls://…``; ``zk`` for short.

    ``?session_timeout=`` seconds; ``?layout=kazoo`` or ``curator``, with ``?path=``: nodes as those libraries make
    them; ``?acl=creator``; ``?auth=sasl``.
    """
    return ZooKeeperBackend(Place.parse(url), namespace, op_timeout)


def open_client(
    client: Any, *, namespace: str, op_timeout: float, layout: str = "distlock", path: str = ""
) -> ZooKeeperBackend:
    """A client of kazoo: it lends its servers and credentials, not its session."""
    return ZooKeeperBackend(Place.of(client, layout, path), namespace, op_timeout)
