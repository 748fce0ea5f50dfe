"""What a held lock costs in memory, on either side."""

from __future__ import annotations

import gc
import tracemalloc
from typing import Any

import pytest

import distlock
from distlock import Lease, Manager

from .redis_tools import Probe
from .servers import RedisServer

LOCKS = 5_000


def held(locks: Manager, start: int, count: int, **options: Any) -> list[Lease]:
    return [locks.lock(f"orders:{number:06d}", ttl=600, **options).acquire() for number in range(start, start + count)]


@pytest.mark.parametrize("options", [{}, {"reentrant": True}, {"max_hold": 3600.0}], ids=str)
def test_a_held_lock_takes_at_most_800_bytes_here_and_400_there(
    redis_server: RedisServer, key: str, options: dict[str, Any]
) -> None:
    """All that is kept for it counts, its name included."""
    probe = Probe(redis_server)
    with distlock.connect(redis_server.url) as locks:
        tracemalloc.start(1)
        try:
            for lease in held(locks, 0, 600, **options):  # fills what is kept once for all
                lease.release()
            gc.collect()
            before = tracemalloc.get_traced_memory()[0]
            leases = held(locks, 1_000, LOCKS, **options)
            gc.collect()
            here = (tracemalloc.get_traced_memory()[0] - before) / LOCKS
        finally:
            tracemalloc.stop()
        there = max(int(probe.ask("MEMORY", "USAGE", probe.name(lease.key))) for lease in leases[::100])
        for lease in leases:
            lease.release()
    assert here <= 800
    assert there <= 400
