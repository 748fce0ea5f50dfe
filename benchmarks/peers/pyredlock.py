"""The Redlock of pyredlock, over one server."""

from __future__ import annotations

from typing import Any

from ._peer import TTL, Guarantees, Peer, no, part, port_of, yes

PEER = Peer(
    "pyredlock",
    ("redis",),
    "attrs==26.1.0 jsonschema==4.20.0 jsonschema-specifications==2025.9.1 loguru==0.7.2 pyredlock==1.0.0 redis==5.0.1 "
    "referencing==0.37.0 rpds-py==2026.9.1 typing_extensions==4.16.0",
    Guarantees(
        owner_check=part("pyredlock.redlock:Redlock.unlock", "and does not say what it found"),
        renewal=no("pyredlock.redlock:Redlock.extend", "by hand"),
        fencing=no("pyredlock.redlock:Redlock._get_unique_id", "its value is random"),
        fairness=no("pyredlock.redlock:Redlock.lock"),
        waiting=no("pyredlock.redlock:Redlock.lock", "asks three times in 0.4 s, then gives up"),
        told=no("pyredlock.redlock:Redlock.unlock", "not even by the release"),
        asyncio=yes("pyredlock.redlock:Redlock.alock"),
    ),
)


def connect(place: str) -> Any:
    """The client of its own documentation."""
    from pyredlock import RedisClient, Redlock

    where = {"endpoint": f"127.0.0.1:{port_of(place)}", "password": "", "db": 0}
    client = RedisClient(client_conf={**where, "socket_timeout": 0.5, "socket_connect_timeout": 0.25})
    return Redlock(connections=[client.get_connection()], async_mode=False)


def lock(manager: Any, key: str) -> tuple[Any, Any]:
    """Where it gives up, it is asked again."""
    held: list[Any] = []

    def take() -> None:
        taken, one = manager.lock(key, TTL * 1000)
        while not taken:
            taken, one = manager.lock(key, TTL * 1000)
        held.append(one)

    return take, lambda: manager.unlock(held.pop())
