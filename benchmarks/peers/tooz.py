"""tooz over Redis, its heart beating."""

from __future__ import annotations

import uuid
from typing import Any

from ._peer import TTL, Guarantees, Peer, no, part, yes

PEER = Peer(
    "tooz",
    ("redis",),
    "debtcollector==3.1.0 fasteners==0.20 futurist==3.5.0 iso8601==2.1.0 msgpack==1.2.4 netaddr==1.3.0 "
    "oslo.i18n==6.9.0 oslo.serialization==5.11.0 oslo.utils==10.2.0 packaging==26.3 pbr==7.1.3 psutil==7.2.2 "
    "pyparsing==3.3.3 PyYAML==6.0.3 redis==8.1.0 setuptools==84.2.1 stevedore==5.10.0 tenacity==9.2.1 tooz==9.1.0 "
    "voluptuous==0.16.0 wrapt==2.5.2",
    Guarantees(
        owner_check=yes("tooz.drivers.redis:RedisLock.release"),
        renewal=part("tooz.coordination:Heart.start", "if told, for the coordinator"),
        fencing=no("tooz.locking:Lock.acquire"),
        fairness=no("tooz.drivers.redis:RedisLock.acquire", "redis-py's"),
        waiting=no("tooz.drivers.redis:RedisLock.acquire", "redis-py's: asks every 0.1 s"),
        told=no("tooz.drivers.redis:RedisDriver.heartbeat", "logs a warning; a release gives False"),
        asyncio=no("tooz.locking:Lock.acquire"),
    ),
)


def connect(place: str) -> Any:
    """A coordinator."""
    from tooz import coordination

    coordinator = coordination.get_coordinator(f"{place}?lock_timeout={TTL}", uuid.uuid4().hex.encode())
    coordinator.start(start_heart=True)
    return coordinator


def lock(coordinator: Any, key: str) -> tuple[Any, Any]:
    """A lock of the coordinator's."""
    one = coordinator.get_lock(key.encode())
    return one.acquire, one.release
