"""`Cluster.send` for an event loop of asyncio. What is known of the cluster is shared with the threads."""

from __future__ import annotations

import anyio
from anyio.to_thread import run_sync

from ...base import BackendError
from .._aio import AsyncPool
from .._pool import Reply
from .._scripts import Script
from .._trail import Trail
from ._nodes import Address, Cluster, Parcel

__all__ = ("AsyncCluster",)


class AsyncCluster:
    """A link to each node that is asked."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._pools: dict[Address, AsyncPool] = {}
        self._looking = anyio.CapacityLimiter(2)

    async def send(
        self, frame: bytes, deadline: float, key: str | None = None, script: Script | None = None, replies: int = 1
    ) -> Reply:
        """See `Cluster.send`."""
        cluster = self._cluster
        slot, trail = cluster.slot_of(key or ""), Trail(deadline)
        while True:
            seen, node, parcel = cluster.discoveries, trail.ask_at, Parcel(frame, replies, trail)
            try:
                node = node or cluster.known_owner(slot)
                if node is None:
                    node = await run_sync(cluster.owner, slot, deadline, limiter=self._looking)
                link = self._pool(node)
                reply = await link.send(parcel.frame, trail.limit(), key, script, parcel.replies)
                return parcel.opened(reply, cluster, node, key)
            except BackendError as error:
                pause = trail.after(error, node)
            cluster.note(slot, trail)
            if pause:
                await anyio.sleep(pause)
            if trail.lost:
                await run_sync(cluster.look_again, deadline, seen, slot, limiter=self._looking)

    def _pool(self, node: Address) -> AsyncPool:
        pool = self._pools.get(node)
        if pool is None:
            pool = self._pools[node] = AsyncPool(self._cluster.server(node), self._cluster.op_timeout)
        return pool

    async def aclose(self) -> None:
        """Drops all connections."""
        for pool in self._pools.values():
            await pool.aclose()
