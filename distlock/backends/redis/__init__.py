"""Redis: a single server, by URL or by a ready client of redis-py."""

from __future__ import annotations

from typing import Any

from ._backend import RedisBackend
from ._connect import Server

__all__ = ("RedisBackend", "open_client", "open_url")


def open_url(url: str, *, namespace: str, op_timeout: float) -> RedisBackend:
    """``redis://``, ``rediss://`` (TLS) or ``unix://``, as redis-py reads them."""
    return RedisBackend(Server.from_url(url), namespace, op_timeout)


def open_client(client: Any, *, namespace: str, op_timeout: float) -> RedisBackend:
    """A ``redis.Redis`` or ``redis.asyncio.Redis``: it lends its address and credentials, not its connections."""
    return RedisBackend(Server.from_client(client), namespace, op_timeout)
