"""How a lock is acquired: ask, queue, wait to be woken, ask again. For every backend and colour."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from .._clock import now
from .._errors import AcquireTimeout, BackendError, BackendUnavailable
from ..backends.base import AsyncBackend, Busy, Claim, Grant
from .runtime import Runtime

__all__ = ("Line", "acquire", "timed_out", "withdraw")

RECHECK = 30.0
"""A wake-up is a push, and pushes get lost. Backends see to that; this is the bound for one that does not."""

FAIR = 0.25
"""Seconds that the first request gets even if the caller's timeout is shorter: less would say nothing of the store."""

CALM = 0.005
"""Seconds between two checks when the first was for nothing: a flood of wake-ups is no spin."""


@dataclass(frozen=True, slots=True)
class Line:
    """The way to a store in one colour."""

    backend: AsyncBackend
    runtime: Runtime
    op_timeout: float
    address: str
    give_up: Callable[[Claim], object]
    """Takes over what could not be withdrawn in time; never blocks."""


async def acquire(line: Line, claim: Claim, deadline: float) -> Grant | Busy:
    """The grant of ``claim``; `Busy` if it does not wait; `AcquireTimeout` at ``deadline``.

    However it ends otherwise (an outage, a cancellation, Ctrl-C), the claim is withdrawn.
    """
    asker = _Asker(line, claim, deadline)
    try:
        outcome = await asker.ask()
        if isinstance(outcome, Grant) or not claim.wait:
            return outcome
        return await _wait(line, asker, outcome, deadline)
    except BaseException as error:
        if isinstance(error, BackendUnavailable) or isinstance(error.__cause__, BackendUnavailable):
            if asker.reached:
                line.give_up(claim)  # it does not answer now: that is not waited for on the caller's time
        elif asker.reached:
            # A timeout is the caller's time; a cancellation is rare, and better left with nothing behind.
            patience = FAIR if isinstance(error, AcquireTimeout) else line.op_timeout
            await withdraw(line, claim, patience, in_flight=asker.in_flight)
        raise


async def _wait(line: Line, asker: _Asker, busy: Busy, deadline: float) -> Grant:
    started = now()
    try:
        return await _grant(line, asker, busy, deadline)
    except BackendUnavailable as error:
        if now() < deadline:
            raise
        # It had answered; that it did not in what was left of the caller's time is no outage.
        raise timed_out(asker.busy or busy, now() - started, line.address) from error


async def _grant(line: Line, asker: _Asker, busy: Busy, deadline: float) -> Grant:
    started = now()
    signal = line.runtime.signal()
    subscription = await line.backend.watch(busy, signal.set, min(deadline, now() + line.op_timeout))
    try:
        while True:
            after = RECHECK if busy.retry_after is None else busy.retry_after
            await signal.wait(min(deadline, now() + after))
            if now() >= deadline:
                raise timed_out(busy, now() - started, line.address)
            outcome = await asker.ask()
            if isinstance(outcome, Grant):
                return outcome
            busy = outcome
            await line.runtime.signal().wait(min(deadline, now() + CALM))
    finally:
        subscription.close()


async def withdraw(line: Line, claim: Claim, patience: float, *, in_flight: bool) -> None:
    """Gives the claim up, cancelled or not, in ``patience`` seconds; what remains to be done then is handed on."""
    deadline = now() + min(patience, line.op_timeout)
    try:
        with line.runtime.shield(deadline):
            await line.backend.withdraw(claim, deadline, in_flight=in_flight)
    except BaseException as error:
        line.give_up(claim)
        if not isinstance(error, Exception):
            raise


class _Asker:
    """Sends a claim, again where that can help, and remembers whether the store may have heard of it."""

    def __init__(self, line: Line, claim: Claim, deadline: float) -> None:
        self._line = line
        self._claim = claim
        self._deadline = deadline
        self.busy: Busy | None = None
        self.in_flight = False
        """A request that was not answered may still be on its way, even if a later one was answered."""

    @property
    def reached(self) -> bool:
        """True unless the store certainly knows nothing of the claim."""
        return self.busy is not None or self.in_flight

    async def ask(self) -> Grant | Busy:
        """One answer.

        A store that cannot be reached at first is an error at once. One that broke off after it may have
        heard us is asked again for up to ``op_timeout``: a grant whose reply was lost is found that way.
        """
        patient_until = min(self._deadline, now() + self._line.op_timeout)
        pause = 0.02
        while True:
            unknown_before, self.in_flight = self.in_flight, True
            try:
                outcome = await self._line.backend.acquire(self._claim, self._limit())
                break
            except BackendError as error:
                self.in_flight = unknown_before or getattr(error, "sent", False)
                if not isinstance(error, BackendUnavailable) or not self.reached or now() + pause >= patient_until:
                    raise
            await self._line.runtime.signal().wait(now() + pause)
            pause = min(2 * pause, 0.5)
        self.in_flight = unknown_before or outcome.in_flight
        if isinstance(outcome, Busy):
            self.busy = outcome
            return outcome
        return replace(outcome, in_flight=True) if self.in_flight else outcome

    def _limit(self) -> float:
        """Until when to wait for one answer."""
        limit = now() + self._line.op_timeout
        if self.busy is not None:
            return min(limit, self._deadline)
        if self._claim.wait:  # else it is the one attempt of timeout=0, which gets its whole time
            return min(limit, max(self._deadline, now() + FAIR))
        return limit


def timed_out(busy: Busy, waited: float, address: str) -> AcquireTimeout:
    """The error for a lock that someone else kept."""
    key = busy.claim.key
    holder = "" if busy.holder is None else f": held by {busy.holder}"
    return AcquireTimeout(
        f"{key!r} was not acquired in {waited:.3g} s{holder} [{address}]",
        key=key,
        backend=address,
        holder=busy.holder,
    )
