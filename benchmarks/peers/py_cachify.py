"""The lock of py-cachify, told to wait."""

from __future__ import annotations

from typing import Any

from ._peer import TTL, Guarantees, Peer, no, yes

PEER = Peer(
    "py-cachify",
    ("redis",),
    "hiredis==3.5.0 py-cachify==3.1.0 redis==8.1.0 typing_extensions==4.16.0",
    Guarantees(
        owner_check=no("py_cachify:lock.release", "deletes whoever's lock it is"),
        renewal=no("py_cachify:lock", "nor is there any by hand"),
        fencing=no("py_cachify._backend._lib:CachifyClient.try_acquire_lock", "its value is always 1"),
        fairness=no("py_cachify:lock._acquire"),
        waiting=no("py_cachify:lock._acquire", "asks every 0.1 s"),
        told=no("py_cachify:lock.release", "not even by the release"),
        asyncio=yes("py_cachify:lock._a_acquire"),
    ),
)


def connect(place: str) -> Any:
    """One for the process, as its documentation has it."""
    import py_cachify
    import redis
    import redis.asyncio

    py_cachify.init_cachify(sync_client=redis.Redis.from_url(place), async_client=redis.asyncio.Redis.from_url(place))
    return py_cachify


def lock(package: Any, key: str) -> tuple[Any, Any]:
    """By default it does not wait."""
    one = package.lock(key, nowait=False, exp=TTL)
    return one.__enter__, one.release
