"""A store under test, and the ways to hurt it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from .. import Manager, connect

__all__ = ("Store", "redis_store")


@dataclass(frozen=True, slots=True)
class Store:
    """One store; each call of ``connect`` is one more client of it."""

    connect: Callable[..., Manager]
    """`distlock.connect` with the target filled in; it is given a ``namespace`` at times."""
    lose: Callable[[str], object]
    """Makes the lease of a key vanish behind its holder's back."""
    url: str | None = None
    """For other processes; None where there are none."""
    left: Callable[[], object] = field(default=lambda: ())
    """What the store has kept of locks that are free; nothing, if all is well."""


def redis_store(url: str) -> Store:
    """A Redis server."""
    import redis

    def keys() -> list[bytes]:
        with redis.Redis.from_url(url) as client:
            return [key for key in client.scan_iter("distlock:{*") if isinstance(key, bytes)]

    def lose(key: str) -> None:
        with redis.Redis.from_url(url) as client:
            client.delete(f"distlock:{{default:{key}}}")

    return Store(connect=partial(connect, url), lose=lose, url=url, left=keys)
