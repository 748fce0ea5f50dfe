"""A sync backend as an async one, called in place."""

from __future__ import annotations

from collections.abc import Sequence

from ..backends.base import Busy, Claim, Done, Grant, Inspection, Renewal, Subscription, SyncBackend, Wake

__all__ = ("Immediate",)


class Immediate:
    """Awaits that never suspend: for `drive`, and for backends that never block."""

    __slots__ = ("_sync",)

    shields = True

    def __init__(self, backend: SyncBackend) -> None:
        self._sync = backend

    async def acquire(self, claim: Claim, deadline: float) -> Grant | Busy | Done:
        return self._sync.acquire(claim, deadline)

    async def watch(self, busy: Busy, wake: Wake, deadline: float) -> Subscription:
        return self._sync.watch_here(busy, wake, deadline)

    async def withdraw(self, claim: Claim, deadline: float, *, in_flight: bool) -> None:
        self._sync.withdraw(claim, deadline, in_flight=in_flight)

    async def extend(self, grant: Grant, ttl: float, deadline: float) -> Renewal:
        return self._sync.extend(grant, ttl, deadline)

    async def release(self, grant: Grant, deadline: float) -> bool:
        return self._sync.release(grant, deadline)

    async def revoke(self, key: str, token: int, deadline: float) -> bool:
        return self._sync.revoke(key, token, deadline)

    async def inspect(self, key: str, deadline: float) -> Inspection:
        return self._sync.inspect(key, deadline)

    async def list(self, prefix: str, deadline: float) -> Sequence[Inspection]:
        return tuple(self._sync.list(prefix, deadline))

    async def complete(self, grant: Grant, record: bytes, keep: float, deadline: float) -> bool:
        return self._sync.complete(grant, record, keep, deadline)

    async def recorded(self, key: str, deadline: float) -> tuple[bytes, float | None] | None:
        return self._sync.recorded(key, deadline)

    async def forget(self, key: str, deadline: float) -> bool:
        return self._sync.forget(key, deadline)

    async def records(self, prefix: str, deadline: float) -> Sequence[str]:
        return tuple(self._sync.records(prefix, deadline))

    async def aclose(self) -> None:
        pass
