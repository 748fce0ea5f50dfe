"""What a worker takes and leaves locks with: distlock, or a peer that is to be measured by the same rule."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Protocol

from ... import AcquireTimeout, AsyncLease, Guarantees, Lease, connect
from ._plan import Plan

__all__ = ("Distlock", "Held", "Party", "party_of")


class Held(Protocol):
    """A lock that was taken. Thread-safe, but for `release`, which the actor calls that took it."""

    @property
    def token(self) -> int | None:
        """The fencing token; None if there is none. Such writes are never refused."""

    @property
    def until(self) -> float:
        """The moment, by `distlock.backends.base.now`, until which holding is proven by what is known now;
        ``math.inf`` if it is believed until something says otherwise."""
        raise NotImplementedError

    def sure(self) -> float | None:
        """`until`, if it is held for certain; None if nothing can be said. Raises `LockLost`. Asks no server."""

    def on_lost(self, callback: Callable[[], object]) -> None:
        """Calls it once, from any thread, when the loss is noticed; never, if nothing notices."""

    async def release(self) -> None:
        """Gives it up. `LockLost` if it turns out to be lost; any other error is written down."""


class Party(Protocol):
    """A client of the store: one in each process, shared by its actors.

    Made by calling its class with the `Plan` and a colour. In sync code (``"sync"``) actors are threads, and no
    coroutine here may suspend: each awaits nothing and blocks. Else they are tasks of asyncio or trio.
    """

    def __init__(self, plan: Plan, colour: str) -> None: ...

    @property
    def guarantees(self) -> Guarantees:
        """What it is judged by; known once it is open."""
        raise NotImplementedError

    async def open(self) -> None:
        """Connects, so that the first lock is not slower than the others. Any error ends the attempt."""

    async def acquire(self, key: str, timeout: float | None, *, renew: bool) -> Held | None:
        """None if it was not to be had in time; any error is written down. ``renew``: keep it beyond the ttl of the
        plan. Cancelled, it leaves nothing behind."""

    async def close(self) -> None:
        """Ends connections and threads. Nobody holds or waits any more."""


def party_of(plan: Plan, colour: str) -> Party:
    """The party that the plan names, not open yet."""
    module, _, name = plan.party.partition(":")
    make: Callable[[Plan, str], Party] = getattr(importlib.import_module(module), name)
    return make(plan, colour)


class Distlock:
    """The locks of this library."""

    def __init__(self, plan: Plan, colour: str) -> None:
        options: dict[str, Any] = dict(plan.options)
        if plan.op_timeout is not None:
            options["op_timeout"] = plan.op_timeout
        self._plan = plan
        self._is_async = colour != "sync"
        self._locks = connect(plan.url, namespace=plan.namespace, **options)

    @property
    def guarantees(self) -> Guarantees:
        return self._locks.guarantees

    async def open(self) -> None:
        if self._is_async:
            await self._locks.inspect_async("open")
        else:
            self._locks.inspect("open")

    async def acquire(self, key: str, timeout: float | None, *, renew: bool) -> Held | None:
        lock = self._locks.lock(key, ttl=self._plan.ttl, timeout=timeout, renew=renew)
        try:
            return _Held(await lock.acquire_async() if self._is_async else lock.acquire())
        except AcquireTimeout:
            return None

    async def close(self) -> None:
        if self._is_async:
            await self._locks.aclose()
        else:
            self._locks.close()


class _Held:
    def __init__(self, lease: Lease | AsyncLease) -> None:
        self._lease = lease

    @property
    def token(self) -> int | None:
        return self._lease.token

    @property
    def until(self) -> float:
        return self._lease._hold.deadline  # not `remaining`, which waits for a confirmation that is on its way

    def sure(self) -> float | None:
        self._lease.ensure_held()
        return self.until

    def on_lost(self, callback: Callable[[], object]) -> None:
        self._lease.on_lost(callback)

    async def release(self) -> None:
        lease = self._lease
        if isinstance(lease, AsyncLease):
            await lease.release()
        else:
            lease.release()
