"""distlock on asyncio."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from . import distlock_sync
from ._peer import TTL

PEER = replace(distlock_sync.PEER, name="distlock, asyncio", stores=("redis", "etcd"), colour="asyncio")


async def connect(place: str) -> Any:
    """As in sync code."""
    return distlock_sync.connect(place)


def lock(locks: Any, key: str) -> tuple[Any, Any]:
    """What acquiring gives is what is released."""
    recipe, held = locks.lock(key, ttl=TTL), []

    async def take() -> None:
        held.append(await recipe.acquire_async())

    async def give() -> None:
        await held.pop().release()

    return take, give
