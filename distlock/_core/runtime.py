"""The two things the core cannot do without knowing the colour: wait for a signal, and hold off cancellation."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Protocol

from .._clock import seconds_left

Attend = Callable[[float], bool]

__all__ = ("Attend", "Runtime", "Signal", "SyncRuntime")


class Signal(Protocol):
    """An event that any thread may set."""

    def set(self) -> None:
        """Wakes the one that waits. A set that nobody waited for is kept."""

    async def wait(self, deadline: float, attend: Attend | None = None) -> None:
        """Until set, or the deadline; then cleared. A thread may wait in ``attend`` meanwhile."""


class Runtime(Protocol):
    """What differs between the colours."""

    def signal(self) -> Signal: ...

    def shield(self, deadline: float) -> AbstractContextManager[object]:
        """Inside, an outer cancellation waits; at the deadline the inside is given up (`TimeoutError`)."""
        ...


class _ThreadSignal:
    """A lock that is free when the signal is set: one step of C, where an Event takes many."""

    __slots__ = ("_unset",)

    def __init__(self) -> None:
        self._unset = threading.Lock()
        self._unset.acquire()

    def set(self) -> None:
        with suppress(RuntimeError):  # it is set
            self._unset.release()

    async def wait(self, deadline: float, attend: Attend | None = None) -> None:
        if attend is not None and self._unset.locked() and attend(deadline):
            self._unset.acquire(blocking=False)
            return
        # A wait of over threading.TIMEOUT_MAX is refused; one that ends early is asked again.
        self._unset.acquire(timeout=-1 if deadline == math.inf else min(seconds_left(deadline), threading.TIMEOUT_MAX))


NO_SHIELD = nullcontext()


class SyncRuntime:
    """For threads."""

    def signal(self) -> Signal:
        return _ThreadSignal()

    def shield(self, deadline: float) -> AbstractContextManager[object]:
        return NO_SHIELD  # every call below is bounded by its deadline, and Ctrl-C is the caller's will
