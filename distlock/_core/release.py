"""How a lock is given up."""

from __future__ import annotations

from dataclasses import replace

from .._clock import now
from .._errors import BackendError, BackendUnavailable, LockLost, NotHeld, Unsupported
from .._types import LeaseState
from ..backends.base import proven_until
from .acquire import Line
from .hold import GONE, Hold
from .watchdog import Watchdog

__all__ = ("ensure_held", "extend", "lost", "release")


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
    """The token, if holding is proven for more than ``at_least`` seconds. Asks no thread and no server."""
    if hold.remaining() > at_least:
        return hold.grant.token
    key = hold.grant.claim.key
    if hold.state is LeaseState.RELEASED or hold.giving_up:
        raise NotHeld(f"the lease of {key!r} was released [{address}]", key=key, backend=address)
    if hold.state is not LeaseState.LOST:
        raise LockLost(
            f"the lease of {key!r} is proven for {hold.remaining():.3f} s more, not for {at_least:g} s [{address}]",
            key=key,
            backend=address,
        )
    raise lost(hold, address)


async def release(line: Line, hold: Hold, watchdog: Watchdog) -> None:
    """Ends the hold, cancelled or not, within ``op_timeout``.

    `LockLost` if it had ended before. If the store does not answer, the watchdog goes on with it until the
    outcome is known or the ttl has passed, and the error comes out.
    """
    state = hold.state
    if state is LeaseState.RELEASED:
        return
    if state is LeaseState.LOST:
        raise lost(hold, line.address)
    retried = hold.giving_up
    hold.giving_up = True  # from here on nobody renews it or relies on it
    watchdog.forget(hold)
    deadline = now() + line.op_timeout
    try:
        with line.runtime.shield(deadline):
            ours = await line.backend.release(hold.grant, deadline)
    except BaseException as error:
        claim = hold.grant.claim
        watchdog.give_up(claim, done=hold.finish)
        if isinstance(error, TimeoutError):  # the shield's, a moment before the backend's own
            raise BackendUnavailable(
                f"the release of {claim.key!r} was not answered in time; it goes on in the background [{line.address}]",
                key=claim.key,
                backend=line.address,
                sent=True,
            ) from error
        raise
    # Gone at a second try: the first one, whose reply was lost, has done it.
    if ours or retried or hold.state is LeaseState.RELEASED:  # the last: by another thread at the same time
        hold.finish()
    else:
        hold.lose(GONE)
        raise lost(hold, line.address)


async def extend(line: Line, hold: Hold, ttl: float, watchdog: Watchdog) -> None:
    """Sets the time that is left to ``ttl`` seconds, and the lease's length from now on.

    If the outcome is unknown, the shorter of the old and the new time counts.
    """
    ensure_held(hold, 0.0, line.address)
    grant = replace(hold.grant, claim=replace(hold.grant.claim, ttl=ttl))
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
        watchdog.give_up(hold.grant.claim, in_flight=False)
    else:
        raise BackendUnavailable(
            f"the store did not say whether it has extended {grant.claim.key!r} [{line.address}]",
            key=grant.claim.key,
            backend=line.address,
            sent=True,
        )
    ensure_held(hold, 0.0, line.address)
