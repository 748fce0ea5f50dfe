"""A clock that stands still until the test moves it: renewal, loss and time-outs without waiting."""

from __future__ import annotations

import itertools
import math
import sys
import threading
import time
import warnings
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from types import ModuleType

from .. import ConfigurationError, Manager, _clock, _manager
from .._core import acquire as _acquire
from .._core.actor import current_loop
from .._core.drive import drive
from ._waiting import SETTLING, Waiters, Waiting, acquire_by, callbacks, join_callbacks
from .aids import left_open

__all__ = ("VirtualClock",)

_entering = threading.Lock()


class VirtualClock:
    """Inside its ``with`` block, the time of distlock stands still until `advance`.

    It is the time of every manager of this process, and of the memory store. Stores with a clock of their own
    (Redis, for one) do not follow it, and neither do ``time.sleep`` and the timers of event loops: test against
    ``memory://``. Leases that are open at the end of the block are lost, with a warning that names them, as
    nothing of them is proven in real time. One clock at a time; thread-safe.

    A wait for a lock that has a timeout does not need `advance`. Once nothing has happened for
    ``autojump_threshold`` real seconds (nobody was given a lock that others wait for, lost one or gave up), the
    time jumps to the next thing that is due, and on, until that wait is over: leases that are renewed survive
    that. Code that keeps others waiting over something slow and real needs a longer threshold; ``math.inf``
    leaves all to `advance`. The threshold is waited for in 20 turns, so that a machine that is slow to run the
    other thread is slow to jump, too. A wait without a timeout waits for a release or for `advance`.
    """

    def __init__(self, autojump_threshold: float = 0.1) -> None:
        self.autojump_threshold: float = autojump_threshold
        """Real seconds, as trio's `MockClock` has them. To be set before the waiting begins."""
        self._now = 0.0
        self._exits = ExitStack()
        self._stepping = threading.Lock()
        self._waiters = Waiters(self, self._jump)

    def now(self) -> float:
        """Seconds, from no moment in particular."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Lets ``seconds`` pass; when it returns, all that was due has happened, in its order.

        Leases are renewed or lost at their times, and callbacks of losses have returned. Whoever waited for
        what was freed has it, or has given up: in other threads and their event loops, that is. Tasks of the
        event loop that it is called from go on only when that one runs again: there, `advance_async` is better.

        Raises `ValueError` unless ``seconds`` is finite and not negative, and RuntimeError if something that is
        due has not come to its end in 10 real seconds.
        """
        here = _loop()
        with closing(self._steps(seconds)) as steps:
            for _ in steps:
                if not self._waiters.settle(here):
                    raise _late()
                join_callbacks()

    async def advance_async(self, seconds: float) -> None:
        """`advance` for asyncio and trio: the tasks of this event loop take part.

        A block that is cancelled for a loss has been told so; what its clean-up awaits may go on for longer.
        Cancelled itself, it stops where it is.
        """
        with closing(self._steps(seconds)) as steps:
            for stirs in steps:
                await self._settled(stirs)

    async def _settled(self, stirs: int) -> None:
        from anyio import sleep

        until = time.monotonic() + SETTLING
        for turn in itertools.count(1):
            await sleep(0 if turn < 50 else 0.001)
            if time.monotonic() > until:
                raise _late()
            # A cancellation takes a few turns of the loop to arrive.
            if (turn >= 10 or stirs == self._waiters.stirs) and not (self._waiters.busy(None) or callbacks()):
                return

    def _steps(self, seconds: float) -> Generator[int, None, None]:
        """Step by step, with time to settle before the first and after each. Gives the stirs before the step."""
        if not 0 <= seconds < math.inf:
            raise ValueError(f"the time goes forward, by a finite number of seconds, not by {seconds!r}")
        if not self._waiters.on:
            raise RuntimeError("this clock does not run: enter its block first")
        with self._waiters.steered():
            target = self._now + seconds
            yield self._waiters.stirs
            while True:
                before = self._waiters.stirs
                with self._stepping:
                    self._step(target)
                yield before
                if self._now >= target:
                    return

    def _jump(self, waiter: Waiting) -> None:
        """Moves on to the next thing that is due, on behalf of ``waiter``, unless something else happens."""
        with self._stepping:
            if self._waiters.is_quiet(waiter):
                self._step(math.inf)

    def _step(self, target: float) -> None:
        """Moves on to the next thing that is due, ``target`` at the latest, and does it. Waits for nobody."""
        watchdogs = [manager._watchdog for manager in _open_managers()]
        holds = [hold for watchdog in watchdogs for hold in watchdog.holds]
        events = [watchdog.next_event() for watchdog in watchdogs] + self._waiters.due()
        self._now = max(self._now, min([target, *(event for event in events if event > self._now)]))
        for watchdog in watchdogs:
            watchdog.look()
        self._waiters.rouse(self._now)
        if any(hold.ended for hold in holds):
            self._waiters.stir()

    def __enter__(self) -> VirtualClock:
        if not _entering.acquire(blocking=False):
            raise RuntimeError("a virtual clock runs already")
        self._exits.callback(_entering.release)
        self._now = _clock.now()
        self._exits.enter_context(_renamed(_clock.now, self.now))
        self._exits.enter_context(_swapped(_acquire, "CALM", 0.0))  # in no time, as none passes
        acquire = acquire_by(self._waiters)
        self._exits.enter_context(_swapped(_manager, "acquire", acquire))
        self._exits.enter_context(
            _swapped(_manager, "acquire_sync", lambda line, _, claim, deadline: drive(acquire(line, claim, deadline)))
        )
        self._exits.enter_context(self._waiters)
        return self

    def __exit__(self, *_: object) -> None:
        managers = _open_managers()
        left = left_open(managers)
        try:
            for hold in [hold for manager in managers for hold in manager._watchdog.holds]:
                hold.lose("its virtual clock has ended")
            with self._stepping:
                self._step(self._now)  # the stores hear of it
        finally:
            self._exits.close()
        if left:
            warnings.warn(left, stacklevel=2)


def _late() -> RuntimeError:
    return RuntimeError(
        f"what was due has not come to its end in {SETTLING:g} s: does it wait for the thread or the event loop"
        " that moves the clock?"
    )


def _open_managers() -> list[Manager]:
    return [manager for manager in list(_manager._managers) if not manager._closed]


def _loop() -> object:
    """The running event loop, if there is one."""
    try:
        return current_loop()
    except ConfigurationError:
        return None


@contextmanager
def _swapped(module: ModuleType, name: str, value: object) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


@contextmanager
def _renamed(real: object, virtual: object) -> Iterator[None]:
    """Every module's ``now`` that is ``real`` is ``virtual``; also of backends from elsewhere, and of what is
    imported meanwhile. By name, since a function that asks who is in charge would cost every lock dearly."""
    _rename(real, virtual)
    try:
        yield
    finally:
        _rename(virtual, real)


def _rename(before: object, after: object) -> None:
    for module in list(sys.modules.values()):
        names = getattr(module, "__dict__", None)
        if isinstance(names, dict) and names.get("now") is before:
            names["now"] = after
