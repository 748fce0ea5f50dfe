"""The two things the core cannot do without knowing the colour: wait for a signal, and hold off cancellation."""

from __future__ import annotations

import math
import threading
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from .._clock import seconds_left

__all__ = ("Runtime", "Signal", "SyncRuntime")


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


NO_SHIELD = nullcontext()


class SyncRuntime:
    """For threads."""

    def signal(self) -> Signal:
        return _ThreadSignal()

    def shield(self, deadline: float) -> AbstractContextManager[object]:
        return NO_SHIELD  # every call below is bounded by its deadline, and Ctrl-C is the caller's will
