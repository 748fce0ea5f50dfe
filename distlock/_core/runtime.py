"""The two things the core cannot do without knowing the colour: wait for a signal, and hold off cancellation."""

from __future__ import annotations

import math
import threading
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Protocol

import anyio

from .._clock import seconds_left
from .actor import poster

__all__ = ("AsyncRuntime", "Runtime", "Signal", "SyncRuntime")


class Signal(Protocol):
    """An event that any thread may set."""

    def set(self) -> None:
        """Wakes the one that waits. A set that nobody waited for is kept."""

    async def wait(self, deadline: float) -> None:
        """Until set, or the deadline; then cleared."""


class Runtime(Protocol):
    """What differs between the colours."""

    def signal(self) -> Signal: ...

    def shield(self, deadline: float) -> AbstractContextManager[object]:
        """Inside, an outer cancellation waits; at the deadline the inside is given up (`TimeoutError`)."""
        ...


class _ThreadSignal:
    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        self._event.set()

    async def wait(self, deadline: float) -> None:
        # A wait of over threading.TIMEOUT_MAX is refused; one that ends early is asked again.
        self._event.wait(None if deadline == math.inf else min(seconds_left(deadline), threading.TIMEOUT_MAX))
        self._event.clear()


class SyncRuntime:
    """For threads."""

    def signal(self) -> Signal:
        return _ThreadSignal()

    def shield(self, deadline: float) -> AbstractContextManager[object]:
        return nullcontext()  # every call below is bounded by its deadline, and Ctrl-C is the caller's will


class _LoopSignal:
    __slots__ = ("_event", "_post")

    def __init__(self) -> None:
        self._event = anyio.Event()
        self._post = poster()

    def set(self) -> None:
        with suppress(RuntimeError):  # the loop has ended, and whoever waited with it
            self._post(self._fire)

    def _fire(self) -> None:
        self._event.set()

    async def wait(self, deadline: float) -> None:
        with anyio.move_on_after(seconds_left(deadline)):
            await self._event.wait()
        self._event = anyio.Event()


class AsyncRuntime:
    """For asyncio and trio."""

    def signal(self) -> Signal:
        return _LoopSignal()

    def shield(self, deadline: float) -> AbstractContextManager[object]:
        return anyio.fail_after(seconds_left(deadline), shield=True)
