"""Work that is done once, on a Redis Cluster: its record lies in the slot of its lock."""

from __future__ import annotations

from .._aio import AsyncRedisBackend
from .._results import AsyncRedisResults, RedisResults
from ._backend import AsyncClusterBackend, ClusterBackend

__all__ = ("ClusterResults",)


class ClusterResults(RedisResults, ClusterBackend):
    """Thread-safe. Connects when it is first asked, to the nodes that have the slots of the work at hand."""

    def _twin(self) -> AsyncRedisBackend:
        return AsyncClusterResults(self)


class AsyncClusterResults(AsyncRedisResults, AsyncClusterBackend):
    """The same for one event loop of asyncio."""
