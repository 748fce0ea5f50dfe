"""For tests of code that uses locks: a store in memory, and leases that are lost when the test says so."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from .. import AsyncLease, Lease, Manager, _default, connect
from .._clock import now
from .._core.hold import GONE
from ..backends.base import Waiter
from ._waiting import join_callbacks

__all__ = ("in_memory", "left_open", "lose")


@contextmanager
def in_memory() -> Iterator[Manager]:
    """Inside, the bare `lock` and `locked` use a fresh in-memory store; gives its manager.

    Recipes made before, at the top of a module for one, find it too. What was configured before is back
    afterwards. Leases that are still open at the end are lost, and a `UserWarning` names them: code that has
    forgotten one would keep everyone else out.
    """
    manager = connect("memory://")
    before = _configured(manager)
    try:
        yield manager
    finally:
        _configured(before)
        left = left_open([manager])
        manager.close()
        if left:
            warnings.warn(left, stacklevel=3)


def lose(lease: Lease | AsyncLease) -> None:
    """Makes the store forget ``lease``, and its holder know it, without waiting for a renewal.

    When it returns, ``lease.state`` is ``LOST``, callbacks of `on_lost` have returned, an ``async with`` block
    is being cancelled (at its next checkpoint), and others can take the lock. Leases that share its token
    (re-entered by the same owner, task or thread) are lost with it.

    For every store; asks it once, and blocks meanwhile. Raises `LockLost` or `NotHeld` if the lease has ended
    before, `BackendUnavailable` if the store does not answer, and RuntimeError if a callback runs for 10 s.
    """
    token = lease.ensure_held()
    manager = lease._keeper
    assert isinstance(manager, Manager)
    for hold in manager._watchdog.holds:
        grant = hold.grant
        if (grant.claim.key, grant.token) == (lease.key, token):
            hold.lose(GONE)
            manager._watchdog.forget(hold)
            manager._backend.withdraw(grant.claim, now() + manager._op_timeout, in_flight=grant.in_flight)
    join_callbacks()


def left_open(managers: Iterable[Manager]) -> str:
    """What to say of the leases of ``managers`` that nobody has released; empty if there is nothing to say."""
    holds = [hold for manager in managers for hold in manager._watchdog.holds]
    claims = [hold.grant.claim for hold in holds if not (hold.ended or hold.giving_up or not hold.count)]
    names = sorted(f"{claim.key!r} ({Waiter.read(claim.id, claim.about).site})" for claim in claims)
    return f"leases were left open at the end of the test: {', '.join(names)}" if names else ""


def _configured(manager: Manager | None) -> Manager | None:
    """``manager`` is what the bare `lock` uses. Gives the one before."""
    with _default._default_lock:
        before, _default._default = _default._default, manager
    return before
