"""What asyncio and trio need. Imported with the first lock in an event loop: sync code does without anyio."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from typing import TypeVar

import anyio
from anyio import CancelScope
from anyio.to_thread import run_sync

from .._clock import now, seconds_left
from .._errors import BackendUnavailable
from ..backends.base import Busy, Claim, Done, Grant, Inspection, Renewal, Subscription, SyncBackend, Wake
from .actor import poster, running_loop
from .runtime import NO_SHIELD, Signal

__all__ = ("AsyncRuntime", "CancelScope", "Threaded", "run_sync")

PATIENCE = 1.0
"""Seconds for a thread that was left behind to give back what it got."""

GRACE = 0.25
"""Seconds for a call that keeps its deadline to come back from its thread."""

T = TypeVar("T")


class _LoopSignal:
    __slots__ = ("_event", "_post")

    def __init__(self) -> None:
        self._event = anyio.Event()
        self._post = poster()

    def set(self) -> None:
        with suppress(RuntimeError, OSError):  # the loop has ended (trio's is closing), and whoever waited with it
            self._post(self._fire)

    def _fire(self) -> None:
        self._event.set()

    async def wait(self, deadline: float, attend: object = None) -> None:
        seconds = seconds_left(deadline)
        loop = running_loop()
        if loop is None:
            with anyio.move_on_after(seconds):
                await self._event.wait()
        else:
            # No scope: on Python 3.10, whose tasks have no `uncancel`, one whose time is up just as the task is
            # cancelled takes that cancellation for its own, and nobody hears of it.
            timer = None if seconds == math.inf else loop.call_later(seconds, self._fire)
            try:
                await self._event.wait()
            finally:
                if timer is not None:
                    timer.cancel()
        self._event = anyio.Event()


class AsyncRuntime:
    """For asyncio and trio."""

    def __init__(self, *, shields: bool) -> None:
        self._shields = shields

    def signal(self) -> Signal:
        return _LoopSignal()

    def shield(self, deadline: float) -> AbstractContextManager[object]:
        return anyio.fail_after(seconds_left(deadline), shield=True) if self._shields else NO_SHIELD


class Threaded:
    """Runs a blocking backend in worker threads, which gives asyncio and trio to every driver.

    A cancelled caller goes on at once, and what the thread it left behind brings is given back by that thread.
    Calls that give something back have places of their own, so that a crowd of acquirers never keeps them out.
    """

    shields = False

    def __init__(self, backend: SyncBackend, give_up: Callable[[Claim], object]) -> None:
        self._sync = backend
        self._give_up = give_up
        self._asking = anyio.CapacityLimiter(32)
        self._giving = anyio.CapacityLimiter(8)

    async def acquire(self, claim: Claim, deadline: float) -> Grant | Busy | Done:
        abandoned: list[bool] = []

        def call() -> Grant | Busy | Done:
            outcome = self._sync.acquire(claim, deadline)
            # The caller has withdrawn already, perhaps before this came to pass. It cannot have asked again: who was
            # cancelled does not, and a call that overran its deadline has used up the time for another.
            if abandoned:
                self._give_back(claim)
            return outcome

        try:
            return await self._run(call, self._asking, deadline)
        except BaseException:
            abandoned.append(True)
            raise

    def _give_back(self, claim: Claim) -> None:
        # Here, in the thread that was left behind: the watchdog may have ended with its manager by now.
        try:
            self._sync.withdraw(claim, now() + PATIENCE, in_flight=False)
        except Exception:  # noqa: BLE001 - then it is for the watchdog, if there is one
            self._give_up(claim)

    async def watch(self, busy: Busy, wake: Wake, deadline: float) -> Subscription:
        made: list[Subscription] = []
        abandoned: list[bool] = []

        def call() -> Subscription:
            made.append(self._sync.watch(busy, wake, deadline))
            if abandoned:
                made[0].close()
            return made[0]

        try:
            return await self._run(call, self._asking, deadline)
        except BaseException:
            abandoned.append(True)
            for subscription in made:  # made just before the cancellation: closing twice does no harm
                subscription.close()
            raise

    async def withdraw(self, claim: Claim, deadline: float, *, in_flight: bool) -> None:
        await self._run(lambda: self._sync.withdraw(claim, deadline, in_flight=in_flight), self._giving, deadline)

    async def extend(self, grant: Grant, ttl: float, deadline: float) -> Renewal:
        return await self._run(lambda: self._sync.extend(grant, ttl, deadline), self._asking, deadline)

    async def release(self, grant: Grant, deadline: float) -> bool:
        return await self._run(lambda: self._sync.release(grant, deadline), self._giving, deadline)

    async def revoke(self, key: str, token: int, deadline: float) -> bool:
        return await self._run(lambda: self._sync.revoke(key, token, deadline), self._asking, deadline)

    async def inspect(self, key: str, deadline: float) -> Inspection:
        return await self._run(lambda: self._sync.inspect(key, deadline), self._asking, deadline)

    async def list(self, prefix: str, deadline: float) -> Sequence[Inspection]:
        # Many requests, each of which bounds itself.
        return await run_sync(lambda: tuple(self._sync.list(prefix, deadline)), limiter=self._asking)

    async def complete(self, grant: Grant, record: bytes, keep: float, deadline: float) -> bool:
        return await self._run(lambda: self._sync.complete(grant, record, keep, deadline), self._giving, deadline)

    async def recorded(self, key: str, deadline: float) -> tuple[bytes, float | None] | None:
        return await self._run(lambda: self._sync.recorded(key, deadline), self._asking, deadline)

    async def forget(self, key: str, deadline: float) -> bool:
        return await self._run(lambda: self._sync.forget(key, deadline), self._asking, deadline)

    async def records(self, prefix: str, deadline: float) -> Sequence[str]:
        return await run_sync(lambda: tuple(self._sync.records(prefix, deadline)), limiter=self._asking)

    async def aclose(self) -> None:
        pass

    async def _run(self, call: Callable[[], T], places: anyio.CapacityLimiter, deadline: float) -> T:
        # The call keeps its deadline; waiting for a place, behind others that get no answer, has to be bounded here.
        try:
            with anyio.fail_after(seconds_left(deadline) + GRACE):
                return await run_sync(call, abandon_on_cancel=True, limiter=places)
        except TimeoutError as error:
            address = self._sync.address
            raise BackendUnavailable(
                f"the store did not answer in time [{address}]", backend=address, sent=True
            ) from error
