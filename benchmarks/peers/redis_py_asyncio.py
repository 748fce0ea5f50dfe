"""The lock of redis-py on asyncio, as it comes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from . import redis_py

PEER = replace(redis_py.PEER, name="redis-py, asyncio", colour="asyncio")
lock = redis_py.lock


async def connect(place: str) -> Any:
    """A client with its pool."""
    import redis.asyncio

    return redis.asyncio.Redis.from_url(place)
