"""The Redlock of aioredlock, over one server. It needs distutils, which Python has had until 3.11."""

from __future__ import annotations

from typing import Any

from ._peer import TTL, Guarantees, Peer, no, part, yes

PEER = Peer(
    "aioredlock",
    ("redis",),
    "aioredis==1.3.1 aioredlock==0.7.3 async-timeout==5.0.1 attrs==26.1.0 hiredis==3.5.0",
    Guarantees(
        owner_check=yes("aioredlock.redis:Instance.UNSET_LOCK_SCRIPT"),
        renewal=yes("aioredlock.redis:Instance.SET_LOCK_SCRIPT", "an expired one too, if it is free"),
        fencing=no("aioredlock:Aioredlock.lock", "its identifier is a random UUID"),
        fairness=no("aioredlock:Aioredlock._set_lock"),
        waiting=no("aioredlock:Aioredlock._set_lock", "asks three times, 0.1 to 0.3 s apart, then raises"),
        told=part("aioredlock:Aioredlock.extend", "`valid` turns False after a failed renewal"),
        asyncio=yes("aioredlock:Aioredlock.lock", "alone"),
    ),
    python="3.11",
    colour="asyncio",
)


async def connect(place: str) -> Any:
    """One server is a quorum of one."""
    from aioredlock import Aioredlock

    return Aioredlock([place], internal_lock_timeout=TTL)


def lock(manager: Any, key: str) -> tuple[Any, Any]:
    """Where it gives up, it is asked again."""
    from aioredlock import LockError

    held: list[Any] = []

    async def take() -> None:
        while True:
            try:
                held.append(await manager.lock(key))
            except LockError:
                continue
            return

    async def give() -> None:
        await manager.unlock(held.pop())

    return take, give
