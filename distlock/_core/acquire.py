"""How a lock is acquired: ask, queue, wait to be woken, ask again. For every backend and colour."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from .._clock import now
from .._errors import AcquireTimeout, BackendError, BackendUnavailable
from ..backends.base import AsyncBackend, Busy, Claim, Done, Grant, SyncBackend
from .drive import drive
from .runtime import Runtime

__all__ = ("Line", "acquire", "acquire_sync", "timed_out", "withdraw")

RECHECK = 30.0
"""Seconds. A wake-up is a push, and pushes get lost: this is the bound, for a backend that names none itself."""

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


def acquire_sync(line: Line, backend: SyncBackend, claim: Claim, deadline: float) -> Grant | Busy | Done:
    """`acquire` in a thread; ``line`` leads to ``backend``.

    The first answer, which most often is the grant, takes nothing of what is there for all others.
    """
    asked_at = now()
    try:
        answer = backend.acquire(claim, _first_limit(line, claim, deadline, asked_at))
        if isinstance(answer, Grant) and answer.deadline > now():
            return answer
    except BaseException as error:  # noqa: BLE001 - `acquire` raises it, or asks again
        return drive(acquire(line, claim, deadline, First(asked_at, error)))
    return drive(acquire(line, claim, deadline, First(asked_at, answer)))


class First(NamedTuple):
    """What came of asking once."""

    asked_at: float
    outcome: Grant | Busy | Done | BaseException


async def acquire(line: Line, claim: Claim, deadline: float, first: First | None = None) -> Grant | Busy | Done:
    """The grant of ``claim``; `Busy` if it does not wait; `AcquireTimeout` at ``deadline``; `Done` of results.

    However it ends otherwise (an outage, a cancellation, Ctrl-C), the claim is withdrawn. ``first``: it was asked for
    once already, with this result.
    """
    asker = _Asker(line, claim, deadline, first)
    del first
    try:
        outcome = await asker.ask()
        if not isinstance(outcome, Busy):
            return outcome
        if not claim.wait:
            if asker.in_flight:  # an earlier request may find the lock free yet, and nobody there to hold it
                line.give_up(claim)
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


async def _wait(line: Line, asker: _Asker, busy: Busy, deadline: float) -> Grant | Done:
    started = now()
    try:
        while True:
            outcome = await _grant(line, asker, busy, deadline)
            if not isinstance(outcome, Busy):
                return outcome
            busy = outcome
    except BackendUnavailable as error:
        if now() < deadline:
            raise
        # It had answered; that it did not in what was left of the caller's time is no outage.
        raise timed_out(asker.busy or busy, now() - started, line.address) from error


async def _grant(line: Line, asker: _Asker, busy: Busy, deadline: float) -> Grant | Busy | Done:
    started = now()
    signal = line.runtime.signal()
    subscription = await line.backend.watch(busy, signal.set, min(deadline, now() + line.op_timeout))
    attend = getattr(subscription, "attend", None)
    granted = getattr(subscription, "granted", _nothing)
    try:
        while True:
            after = RECHECK if busy.retry_after is None else busy.retry_after
            await signal.wait(min(deadline, now() + after), attend)
            if now() >= deadline:
                raise timed_out(busy, now() - started, line.address)
            if (grant := granted()) is not None:
                return asker.late(grant)
            had = asker.grants
            outcome = await asker.ask()
            if not isinstance(outcome, Busy) or asker.grants != had:  # who had it for a moment is watched for no more
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


def _nothing() -> None:
    return None


class _Asker:
    """Sends a claim, again where that can help, and remembers whether the store may have heard of it."""

    def __init__(self, line: Line, claim: Claim, deadline: float, first: First | None) -> None:
        self._first = first
        self._line = line
        self._claim = claim
        self._deadline = deadline
        self.busy: Busy | None = None
        self.in_flight = False
        """A request that was not answered may still be on its way, even if a later one was answered."""
        self.grants = 0
        """Those that were over when they came."""

    @property
    def reached(self) -> bool:
        """True unless the store certainly knows nothing of the claim."""
        return self.busy is not None or self.in_flight or self.grants > 0

    async def ask(self) -> Grant | Busy | Done:
        """One answer. A lease that is over when it comes is of no use: the store is asked once more.

        It confirms the grant or makes another. If that one is over too, the ttl is shorter than answers take.
        """
        outcome = await self._ask()
        if isinstance(outcome, Grant) and outcome.deadline <= now():
            self.grants += 1
            outcome = await self._ask()
        return outcome

    async def _ask(self) -> Grant | Busy | Done:
        """One answer, whatever it is worth.

        A store that cannot be reached at first is an error at once. One that broke off after it may have
        heard us is asked again for up to ``op_timeout``: a grant whose reply was lost is found that way.
        """
        asked_at = now() if self._first is None else self._first.asked_at
        patient_until = min(self._deadline, asked_at + self._line.op_timeout)
        limit, pause = self._limit(), 0.02
        while True:
            unknown_before, self.in_flight = self.in_flight, True
            try:
                if self._first is not None:
                    outcome = self._recall(self._first)
                else:
                    outcome = await self._line.backend.acquire(self._claim, limit)
                break
            except BackendError as error:
                self.in_flight = unknown_before or getattr(error, "sent", False)
                if not isinstance(error, BackendUnavailable) or not self.reached or now() + pause >= patient_until:
                    raise
            await self._line.runtime.signal().wait(now() + pause)
            pause = min(2 * pause, 0.5)
            limit = min(self._limit(), max(patient_until, now() + FAIR))
        self.in_flight = unknown_before or outcome.in_flight
        if isinstance(outcome, Busy):
            self.busy = outcome
        return self.late(outcome) if isinstance(outcome, Grant) else outcome

    def late(self, grant: Grant) -> Grant:
        """The grant, which says so if a request for it may be on its way."""
        return grant._replace(in_flight=True) if self.in_flight else grant

    def _recall(self, first: First) -> Grant | Busy | Done:
        self._first = None
        try:
            if isinstance(first.outcome, BaseException):
                raise first.outcome
            return first.outcome
        finally:
            del first  # as above: else an error would keep this frame, and the frame the error

    def _limit(self) -> float:
        """Until when to wait for one answer."""
        t = now()
        if self.busy is None:
            return _first_limit(self._line, self._claim, self._deadline, t)
        return min(self._deadline, t + self._line.op_timeout)


def _first_limit(line: Line, claim: Claim, deadline: float, t: float) -> float:
    """Until when to wait for an answer of a store that has not given one yet."""
    limit = t + line.op_timeout
    if claim.wait and deadline < limit:  # else it is the one attempt of timeout=0, which gets its whole time
        return min(limit, max(deadline, t + FAIR))
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
