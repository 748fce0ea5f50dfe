"""Redis: by URL or by a ready client of redis-py; a single server, one that Sentinel watches, or a Cluster."""

from __future__ import annotations

from typing import Any

import redis
import redis.asyncio

from ..base import ConfigurationError, Unsupported
from ._backend import RedisBackend
from ._connect import Server
from ._results import RedisResults
from ._sentinel import SentinelServer
from ._url import Place, check_db
from .cluster import ClusterBackend

__all__ = ("ClusterBackend", "RedisBackend", "RedisResults", "open_client", "open_url")

_MOST_REPLICAS = 1000
"""Redis replicates to a handful; a larger number is a mistake, and would never be reached."""


def open_url(url: str, *, namespace: str, op_timeout: float) -> RedisBackend:
    """``redis://``, ``rediss://`` (TLS) or ``unix://``; ``redis+sentinel://`` or ``redis+cluster://``, with TLS too.

    ``?wait_replicas=n``: a grant or a renewal counts when n replicas have it.
    """
    place = Place.parse(url)
    replicas = _counted(place.take_number("wait_replicas"))
    if place.scheme.endswith("+cluster"):
        if place.path not in ((), ("0",)):
            raise ConfigurationError("a cluster has one database, 0: write redis+cluster://host,host")
        return ClusterBackend(place.servers("0", 6379), namespace, op_timeout, replicas)
    if place.scheme.endswith("+sentinel"):
        return RedisBackend(SentinelServer.from_place(place), namespace, op_timeout, replicas)
    if place.scheme != "unix":
        _check_single(place)
    return RedisBackend(Server.from_url(url), namespace, op_timeout, replicas)


def _check_single(place: Place) -> None:
    if len(place.hosts) > 1:
        raise ConfigurationError(
            f"{place.scheme}:// names one server; lists of hosts go with redis+cluster://, redis+sentinel:// (with TLS"
            " rediss+…) and redlock://"
        )
    check_db("/".join(place.path) or "0")


def _counted(replicas: int) -> int:
    if replicas > _MOST_REPLICAS:
        raise ConfigurationError(f"wait_replicas is at most {_MOST_REPLICAS}")
    return replicas


def open_client(client: Any, *, namespace: str, op_timeout: float, wait_replicas: int = 0) -> RedisBackend:
    """A ``Redis`` or ``RedisCluster`` of redis-py, of either colour: it lends its address and credentials, not its
    connections. So does one that ``Sentinel.master_for`` gave."""
    _counted(wait_replicas)
    if isinstance(client, (redis.RedisCluster, redis.asyncio.RedisCluster)):
        return ClusterBackend(_nodes(client), namespace, op_timeout, wait_replicas)
    pool = getattr(client, "connection_pool", None)
    if hasattr(pool, "sentinel_manager"):
        return RedisBackend(SentinelServer.from_pool(pool), namespace, op_timeout, wait_replicas)
    return RedisBackend(Server.from_client(client), namespace, op_timeout, wait_replicas)


def _nodes(client: Any) -> list[Server]:
    manager = client.nodes_manager
    if getattr(manager, "address_remap", None) is not None:
        raise Unsupported("a RedisCluster with an address_remap is not supported: its nodes would not be found")
    given = dict(manager.connection_kwargs)
    own_way = getattr(client, "user_on_connect_func", None)  # redis-py puts a function of its own in its place
    given["redis_connect_func"] = own_way
    tls = given.get("ssl") or "SSL" in getattr(given.get("connection_class"), "__name__", "")
    like = Server.from_options({name: value for name, value in given.items() if name != "path"}, bool(tls))
    return [like.at(node.host, int(node.port)) for node in manager.startup_nodes.values()]
