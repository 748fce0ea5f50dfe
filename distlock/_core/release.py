"""How a lock is given up."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from .._clock import now
from .._errors import BackendError, BackendUnavailable, LockLost, NotHeld, TooLarge, Unsupported
from .._types import LeaseState
from ..backends.base import AsyncResults, Claim, SyncBackend, proven_until
from .acquire import Line
from .hold import GONE, Hold
from .watchdog import Watchdog

__all__ = ("complete", "ensure_held", "extend", "lost", "release", "release_sync", "results")


def lost(hold: Hold, address: str) -> LockLost:
    """The error for a hold that is lost."""
    key = hold.grant.claim.key
    return LockLost(
        f"the lease of {key!r} (token {hold.grant.token}) is lost: {hold.reason or 'no time of it is proven'};"
        f" stop writing under it [{address}]",
        key=key,
        backend=address,
    )


def ensure_held(hold: Hold, at_least: float, address: str) -> int:
    """The token, if holding is proven for more than ``at_least`` seconds. See `Hold.remaining`."""
    left = hold.remaining(at_least)
    if left > at_least:
        return hold.grant.token
    key = hold.grant.claim.key
    if hold.state is LeaseState.RELEASED or hold.giving_up:
        raise NotHeld(f"the lease of {key!r} was released [{address}]", key=key, backend=address)
    if hold.state is not LeaseState.LOST:
        raise LockLost(
            f"the lease of {key!r} is proven for {left:.3f} s more, not for {at_least:g} s [{address}]",
            key=key,
            backend=address,
        )
    raise lost(hold, address)


async def release(line: Line, hold: Hold, watchdog: Watchdog) -> None:
    """Ends the hold, cancelled or not, within ``op_timeout``.

    `LockLost` if it had ended before. If the store does not answer, the watchdog goes on with it until the
    outcome is known or the ttl has passed, and the error comes out.
    """
    if not _is_to_do(line, hold):
        return
    retried = hold.giving_up
    try:
        hold.giving_up = True  # from here on nobody renews it or relies on it
        watchdog.forget(hold)
        deadline = now() + line.op_timeout
        with line.runtime.shield(deadline):
            ours = await line.backend.release(hold.grant, deadline)
    except BaseException as error:
        claim = hold.grant.claim
        watchdog.give_up(claim, done=hold.finish)
        if isinstance(error, TimeoutError):
            raise _unanswered("the release", claim, line.address) from error
        raise
    _finish(line, hold, ours or retried)


def _unanswered(what: str, claim: Claim, address: str) -> BackendUnavailable:
    """In the place of the shield's own error, which comes a moment before the backend's."""
    return BackendUnavailable(
        f"{what} of {claim.key!r} was not answered in time; it goes on in the background [{address}]",
        key=claim.key,
        backend=address,
        sent=True,
    )


def release_sync(line: Line, backend: SyncBackend, hold: Hold, watchdog: Watchdog) -> None:
    """`release` in a thread; ``line`` leads to ``backend``, whose deadline bounds it. Ctrl-C is the caller's will."""
    if not _is_to_do(line, hold):
        return
    retried = hold.giving_up
    try:
        hold.giving_up = True
        watchdog.forget(hold)
        ours = backend.release(hold.grant, now() + line.op_timeout)
    except BaseException:
        watchdog.give_up(hold.grant.claim, done=hold.finish)
        raise
    _finish(line, hold, ours or retried)


def _is_to_do(line: Line, hold: Hold) -> bool:
    state = hold.state
    if state is LeaseState.LOST:
        raise lost(hold, line.address)
    return state is not LeaseState.RELEASED


def _finish(line: Line, hold: Hold, ours: bool) -> None:
    # Gone at a second try: the first one, whose reply was lost, has done it.
    if ours or hold.state is LeaseState.RELEASED:  # the latter: by another thread at the same time
        hold.finish()
    else:
        hold.lose(GONE)
        raise lost(hold, line.address)


async def extend(line: Line, hold: Hold, ttl: float, watchdog: Watchdog) -> None:
    """Sets the time that is left to ``ttl`` seconds, and the lease's length from now on.

    If the outcome is unknown, the shorter of the old and the new time counts.
    """
    ensure_held(hold, 0.0, line.address)
    grant = hold.grant._replace(claim=hold.grant.claim._replace(ttl=ttl))
    asked_at = now()
    undo = hold.shorten(grant, asked_at, proven_until(asked_at, ttl))
    watchdog.keep(hold)
    try:
        renewal = await line.backend.extend(grant, ttl, asked_at + line.op_timeout)
    except (BackendError, Unsupported) as error:
        if not getattr(error, "sent", False):
            undo()
        raise
    if renewal.state is LeaseState.HELD:
        hold.extended(grant, asked_at, renewal.deadline)
        watchdog.keep(hold)
    elif renewal.state is LeaseState.LOST:
        hold.lose(GONE)
        watchdog.give_up(hold.grant.claim, in_flight=hold.grant.in_flight)
    else:
        raise BackendUnavailable(
            f"the store did not say whether it has extended {grant.claim.key!r} [{line.address}]",
            key=grant.claim.key,
            backend=line.address,
            sent=True,
        )
    ensure_held(hold, 0.0, line.address)


def results(line: Line) -> AsyncResults:
    """The store that a line leads to, which is one of results."""
    return cast("AsyncResults", line.backend)


async def complete(
    line: Line,
    hold: Hold,
    watchdog: Watchdog,
    record: bytes,
    keep: float,
    instead: Callable[[TooLarge], bytes],
    done: Callable[[bool], object],
) -> None:
    """Keeps ``record`` for ``keep`` seconds instead of the hold, which it ends.

    `LockLost` if the hold had ended before: someone else may be at the work by now, and what they bring counts. If the
    store does not answer, or refuses the record, the error comes out; the watchdog keeps the hold alive and goes on
    until the outcome is known, which ``done`` is told. ``instead``: what to keep if the record is too large for the
    store.
    """
    ensure_held(hold, 0.0, line.address)
    hold.saving = True  # from here on a renewal that finds nothing may have been overtaken
    try:
        deadline = now() + line.op_timeout
        with line.runtime.shield(deadline):
            ours = await results(line).complete(hold.grant, record, keep, deadline)
    except BaseException as error:
        going_on = watchdog.save(hold, record, keep, instead, done)
        if not going_on and isinstance(error, (BackendError, TimeoutError)):
            raise lost(hold, line.address) from error
        if isinstance(error, TimeoutError):
            raise _unanswered("the result", hold.grant.claim, line.address) from error
        raise
    watchdog.forget(hold)
    hold.completed(ours)
    if not ours:
        raise lost(hold, line.address)
