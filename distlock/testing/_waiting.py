"""Who waits for a lock under a `VirtualClock`: woken when the time is moved, and moving it when nothing else will."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .._core.acquire import Line, acquire
from .._core.actor import current_loop
from .._core.runtime import Runtime, Signal, SyncRuntime
from ..backends.base import Busy, Claim, Done, Grant

if TYPE_CHECKING:
    from .clock import VirtualClock

__all__ = ("SETTLING", "Waiters", "Waiting", "acquire_by", "callbacks", "join_callbacks")

SETTLING = 10.0
"""Real seconds after which a thread that has something to do is late. A bound, never a measure."""

TURNS = 20


class Waiters:
    """The acquire calls that are going on. Thread-safe. A context manager: no waiter sleeps by the clock outside."""

    def __init__(self, clock: VirtualClock, jump: Callable[[Waiting], None]) -> None:
        self.clock: VirtualClock = clock
        self.jump: Callable[[Waiting], None] = jump
        self.on: bool = False
        self.stirs: int = 0
        """Counts what may make others act: somebody was given a lock, lost one, or gave up."""
        self._changed = threading.Condition()
        self._all: set[Waiting] = set()
        self._steering = 0

    def __enter__(self) -> None:
        self.on = True

    def __exit__(self, *_: object) -> None:
        self.on = False
        self.rouse(math.inf)

    def stir(self) -> None:
        """Something has happened: whoever is about to jump waits anew."""
        with self._changed:
            self.stirs += 1

    @contextmanager
    def steered(self) -> Iterator[None]:
        """Inside, nobody jumps: the test moves the time."""
        with self._changed:
            self._steering += 1
        try:
            yield
        finally:
            with self._changed:
                self._steering -= 1
                self.stirs += 1

    @contextmanager
    def joined(self, waiter: Waiting) -> Iterator[None]:
        """``waiter`` is one of them."""
        with self._changed:
            self._all.add(waiter)
        try:
            yield
        finally:
            with self._changed:
                self._all.discard(waiter)
                self.stirs += waiter.has_slept
                self._changed.notify_all()

    def due(self) -> list[float]:
        """When those that sleep want to be woken."""
        with self._changed:
            return [waiter.until for waiter in self._all if not waiter.busy]

    def rouse(self, moment: float) -> None:
        """Wakes those whose time has come."""
        with self._changed:
            for waiter in self._all:
                if waiter.until <= moment and not waiter.busy:
                    waiter.busy = True
                    waiter.wake()

    def busy(self, here: object) -> bool:
        """One of them was woken and has not yet come to its end or back to sleep. Those of ``here`` do not count:
        they cannot, as long as their event loop is kept waiting."""
        with self._changed:
            return any(waiter.busy and (here is None or waiter.loop is not here) for waiter in self._all)

    def settle(self, here: object) -> bool:
        """Waits until nobody is `busy`; False if that lasts too long."""
        with self._changed:
            return self._changed.wait_for(lambda: not self.busy(here), SETTLING)

    def is_quiet(self, waiter: Waiting) -> bool:
        """Nothing has happened for as long as it takes ``waiter`` to jump."""
        with self._changed:
            if waiter.seen != self.stirs:
                waiter.seen, waiter.turns = self.stirs, 0
            patient = waiter.turn == math.inf or waiter.turns < TURNS
            return not (patient or self._steering or self.busy(None))

    def sleeps(self, waiter: Waiting, signal: _Signal, until: float) -> bool:
        """``waiter`` lies down; False if there is nothing to wait for."""
        with self._changed:
            if signal.is_set or not self.on or self.clock.now() >= until:
                signal.is_set = False
                return False
            waiter.busy, waiter.has_slept, waiter.until, waiter.wake = False, True, until, signal.inner.set
            self._changed.notify_all()
            return True

    def wakes(self, waiter: Waiting) -> None:
        """``waiter`` gets up, for whatever reason."""
        with self._changed:
            waiter.busy, waiter.until = True, math.inf

    def signalled(self, waiter: Waiting, signal: _Signal) -> None:
        """The store says that ``waiter`` should ask again."""
        with self._changed:
            signal.is_set = waiter.busy = True
            self.stirs += 1


class Waiting:
    """One acquire call, and its runtime."""

    def __init__(self, waiters: Waiters, runtime: Runtime, deadline: float) -> None:
        self.waiters = waiters
        self.loop = None if isinstance(runtime, SyncRuntime) else current_loop()
        self.busy = True
        self.has_slept = False
        self.until = math.inf
        self.wake: Callable[[], object] = lambda: None
        self.turns = 0
        self.seen = -1
        self._runtime = runtime
        self._ends = deadline < math.inf

    def signal(self) -> Signal:
        return _Signal(self, self._runtime.signal())

    def shield(self, deadline: float) -> AbstractContextManager[object]:
        return self._runtime.shield(deadline)

    @property
    def turn(self) -> float:
        """Real seconds to sleep before looking whether to jump."""
        return self.waiters.clock.autojump_threshold / TURNS if self._ends else math.inf


class _Signal:
    def __init__(self, waiter: Waiting, inner: Signal) -> None:
        self.inner = inner
        self.is_set = False
        self._waiter = waiter

    def set(self) -> None:
        self._waiter.waiters.signalled(self._waiter, self)
        self.inner.set()

    async def wait(self, deadline: float, attend: object = None) -> None:
        waiter, waiters, clock = self._waiter, self._waiter.waiters, self._waiter.waiters.clock
        if not waiters.on:  # the clock has ended, and we are still here
            await self.inner.wait(deadline)
        while waiters.sleeps(waiter, self, deadline):
            try:
                if waiters.is_quiet(waiter):
                    waiters.jump(waiter)
                else:
                    await self.inner.wait(clock.now() + waiter.turn)  # by this clock: so many real seconds from now
                    waiter.turns += 1
            finally:
                waiters.wakes(waiter)


def acquire_by(waiters: Waiters) -> Callable[[Line, Claim, float], Coroutine[Any, Any, Grant | Busy | Done]]:
    """`acquire`, with waits that are by the clock of ``waiters``."""

    async def acquire_so(line: Line, claim: Claim, deadline: float) -> Grant | Busy | Done:
        waiter = Waiting(waiters, line.runtime, deadline)
        with waiters.joined(waiter):
            return await acquire(replace(line, runtime=waiter), claim, deadline)

    return acquire_so


def callbacks() -> list[threading.Thread]:
    """Callbacks of losses that are running, but for the one that asks."""
    me = threading.current_thread()
    return [thread for thread in threading.enumerate() if thread.name == "distlock-on-lost" and thread is not me]


def join_callbacks() -> None:
    """Waits for the end of `callbacks`."""
    until = time.monotonic() + SETTLING
    for thread in callbacks():
        thread.join(max(0.0, until - time.monotonic()))
        if thread.is_alive():
            raise RuntimeError(
                f"a callback of on_lost still runs after {SETTLING:g} s: does it wait for the thread or the event loop"
                " that waits for it here?"
            )
