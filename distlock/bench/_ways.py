"""What contenders take locks with. A way is made in one process, and opened in those of the contenders."""

from __future__ import annotations

import threading
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, Protocol

import anyio

from .. import AcquireTimeout, connect
from ..testing.torture._colour import Colour
from ._fight import Mutex

__all__ = ("Distlock", "Tiered", "Way")


class Way(Protocol):
    """A client of a store: one in each process, shared by its contenders; it can be pickled until it is open."""

    async def open(self, colour: Colour) -> None:
        """Before any lock."""

    def mutex(self, key: str, timeout: float) -> Mutex:
        """A lock for one contender, who gives up after ``timeout`` seconds."""
        raise NotImplementedError

    async def close(self) -> None:
        """Ends connections and threads."""


@dataclass
class Distlock:
    """The locks of this library."""

    url: str
    namespace: str | None
    ttl: float = 30.0
    renew: bool = True

    async def open(self, colour: Colour) -> None:
        """Connects when first asked."""
        self._locks = connect(self.url, namespace=self.namespace)
        self._is_async = colour.is_async

    def mutex(self, key: str, timeout: float) -> Mutex:
        """One recipe each, which is what a program keeps, too."""
        lock = self._locks.lock(key, ttl=self.ttl, timeout=timeout, renew=self.renew)
        return _Leased(lock, self._is_async)

    async def close(self) -> None:
        """All of it."""
        if self._is_async:
            await self._locks.aclose()
        else:
            self._locks.close()


class _Leased:
    def __init__(self, lock: Any, is_async: bool) -> None:
        self._lock, self._is_async = lock, is_async

    async def acquire(self) -> bool:
        try:
            self._lease = await self._lock.acquire_async() if self._is_async else self._lock.acquire()
        except AcquireTimeout:
            return False
        return True

    async def release(self) -> None:
        if self._is_async:
            await self._lease.release()
        else:
            self._lease.release()


@dataclass
class Tiered:
    """A lock of the process in front of another: one contender of each process at a time asks the store."""

    inner: Way

    async def open(self, colour: Colour) -> None:
        """The local locks are of the colour of those who want them."""
        self._is_async = colour.is_async
        self._local: defaultdict[str, Any] = defaultdict(anyio.Lock if colour.is_async else threading.Lock)
        await self.inner.open(colour)

    def mutex(self, key: str, timeout: float) -> Mutex:
        """``timeout`` is that of each of the two."""
        return _InTwoSteps(self._local[key], self.inner.mutex(key, timeout), timeout, self._is_async)

    async def close(self) -> None:
        """The inner one."""
        await self.inner.close()


class _InTwoSteps:
    def __init__(self, local: Any, mutex: Mutex, timeout: float, is_async: bool) -> None:
        self._local, self._mutex, self._timeout, self._is_async = local, mutex, timeout, is_async

    async def acquire(self) -> bool:
        if not await self._enter():
            return False
        entered = False
        try:
            entered = await self._mutex.acquire()
        finally:
            if not entered:
                self._local.release()
        return entered

    async def _enter(self) -> bool:
        if not self._is_async:
            return bool(self._local.acquire(timeout=self._timeout))
        with anyio.move_on_after(self._timeout):
            await self._local.acquire()
            return True
        return False

    async def release(self) -> None:
        try:
            await self._mutex.release()
        finally:
            self._local.release()
