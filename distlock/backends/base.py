"""The contract between the core and a store.

A backend subclasses `SyncBackend` and implements nine methods; the core brings waiting, timeouts,
cancellation, renewal, loss, re-entry and both colours. `distlock.testing` proves one.

Rules for every method

* ``deadline`` is a moment on `distlock._clock.now`. Return or raise by then; the time that is left is the
  budget of the whole call, connecting included.
* A store that does not answer is `BackendUnavailable`, one that answers nonsense `BackendError`, each with
  ``key`` and with ``backend`` set to an address without secrets.
* Methods are called from any thread, several at once.
* Asked twice, each does the same as asked once: the core retries after a lost reply.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, Protocol

from .._clock import now, seconds_left
from .._errors import (
    BackendError,
    BackendUnavailable,
    ConfigurationError,
    DistLockError,
    InvalidKey,
    TooLarge,
    Unsupported,
)
from .._types import (
    Busy,
    Claim,
    Confirmation,
    Done,
    Fault,
    Grant,
    Guarantees,
    Holder,
    Inspection,
    LeaseState,
    Renewal,
    Waiter,
)

__all__ = (
    "PROVISIONAL",
    "AsyncBackend",
    "AsyncResults",
    "BackendError",
    "BackendUnavailable",
    "Busy",
    "Claim",
    "ConfigurationError",
    "Confirmation",
    "DistLockError",
    "Done",
    "Fault",
    "Grant",
    "Guarantees",
    "Holder",
    "Inspection",
    "InvalidKey",
    "LeaseState",
    "Renewal",
    "Subscription",
    "SyncBackend",
    "TooLarge",
    "Unsupported",
    "Waiter",
    "Wake",
    "now",
    "proven_until",
    "seconds_left",
)

Wake = Callable[[], None]

PROVISIONAL = 1.0
"""Seconds within which a waiter that was handed the lock must confirm it, by asking again if by nothing else."""


def proven_until(sent_at: float, ttl: float) -> float:
    """The deadline of a lease of ``ttl`` seconds asked for at ``sent_at``.

    The margin of 1 % and 2 ms is the drift allowance of the Redlock description (redis.io, "Distributed
    Locks with Redis"): the local clock and the store's may differ in speed by that much.
    """
    return sent_at + ttl - (0.01 * ttl + 0.002)


class Subscription(Protocol):
    """A watch that was set up."""

    def close(self) -> None:
        """Ends it: no ``wake`` afterwards, nothing left behind. Never blocks; may be called twice."""


class SyncBackend(ABC):
    """A store of locks. Subclass it: the last methods have defaults."""

    guarantees: Guarantees
    address: str
    """For people: scheme and place, without secrets."""
    on_loss: Callable[[], object] = staticmethod(lambda: None)
    """Set by the manager: to be called, from any thread, when locks may have been lost; all are renewed then."""
    never_blocks: ClassVar[bool] = False
    """True if no method ever waits for I/O, so that an event loop may call it."""

    @abstractmethod
    def acquire(self, claim: Claim, deadline: float) -> Grant | Busy | Done:
        """One attempt. Repeated for the same ``claim.id`` it finds its own grant or its place in the queue.
        `Done` only comes from a store of `results`.

        Asking again is also how a waiter confirms a lock that was handed to it. With ``claim.wait`` the
        claim takes its place in the queue, if the store keeps one.
        """

    @abstractmethod
    def watch(self, busy: Busy, wake: Wake, deadline: float) -> Subscription:
        """Calls ``wake`` (from any thread, as often as it likes) when asking again may help.

        That includes "at once", if the lock became free or ours since ``busy``. A wake-up is a hint, never
        a grant.
        """

    def watch_here(self, busy: Busy, wake: Wake, deadline: float) -> Subscription:
        """`watch`, by a thread that will wait itself: in ``attend`` of the subscription, if it has such a method.

        ``attend(deadline)`` returns True at the deadline or when asking again may help; False: it does not know.
        Then ``granted()`` is the grant, with its `Confirmation`, if the lock was handed to the claim and its holding is
        proven without asking; else None.
        """
        return self.watch(busy, wake, deadline)

    @abstractmethod
    def withdraw(self, claim: Claim, deadline: float, *, in_flight: bool) -> None:
        """The claim is given up: out of the queue, and handed on if it was granted in the meantime.

        ``in_flight``: an acquire for it may still be on its way to the store; it must come to nothing.
        """

    @abstractmethod
    def renew(self, grants: Sequence[Grant], deadline: float) -> Sequence[Renewal]:
        """Each grant for its ``claim.ttl`` from now at least, in as few requests as the store allows.

        Never shortens what the store has granted for longer: a request that arrives late would take back what
        another one has proven.
        """

    @abstractmethod
    def extend(self, grant: Grant, ttl: float, deadline: float) -> Renewal:
        """``ttl`` seconds from now at least; never shortens (as `renew`), never adds, never revives what has ended.

        That the lease ends earlier, if it was meant to, is the core's to see to.
        """

    @abstractmethod
    def release(self, grant: Grant, deadline: float) -> bool:
        """Gives the lock up, and to the next waiter in the same step. False: it was not ours any more."""

    @abstractmethod
    def revoke(self, key: str, token: int, deadline: float) -> bool:
        """Ends the grant of ``token``, whoever holds it; never a newer one. False: it is not there any more.

        The holder learns it at its next renewal. A store that cannot take a lock away leaves word there, upon
        which the holder's `renew` gives it up.
        """

    @abstractmethod
    def inspect(self, key: str, deadline: float) -> Inspection:
        """Who holds ``key`` and who waits, in order."""

    @abstractmethod
    def list(self, prefix: str, deadline: float) -> Iterator[Inspection]:
        """The locks in use whose names start with ``prefix``, in no order."""

    def descriptors(self, grant: Grant) -> Sequence[int]:
        """Open files that keep the lock for as long as any process has them open; none, if nothing does."""
        return ()

    def guard(self, grant: Grant) -> object:
        """What a transaction in the store compares, to be carried out only while ``grant`` is held."""
        raise Unsupported(
            f"{self.guarantees.backend} has no transactions that could compare a lease; have the token compared by what"
            f" you write to [{self.address}]",
            key=grant.claim.key,
            backend=self.address,
        )

    def results(self) -> SyncBackend:
        """The store beside this one in which a lock's work can be completed, and then is not granted any more.

        Of the same namespace, but with keys of its own: none of them is a lock's. Its connections are its own too, and
        closed with it. Beyond what every backend has it implements the four methods below, and ``acquire`` looks for a
        record in the same step in which it grants.
        """
        raise self._no_results()

    def complete(self, grant: Grant, record: bytes, keep: float, deadline: float) -> bool:
        """Keeps ``record`` for ``keep`` seconds and gives the lock up, in one step, if ``grant`` is still held.

        All who wait are woken. Repeated for the same claim it finds its own record. False: it is not held any more.
        Raises `TooLarge` for a record that it never takes; other errors are taken to pass.
        """
        raise self._no_results()

    def recorded(self, key: str, deadline: float) -> tuple[bytes, float | None] | None:
        """The record of ``key`` and the seconds for which it is kept; None: there is none."""
        raise self._no_results()

    def forget(self, key: str, deadline: float) -> bool:
        """Deletes the record of ``key``, but no lease. False: there was none."""
        raise self._no_results()

    def records(self, prefix: str, deadline: float) -> Iterator[str]:
        """The keys with a record that start with ``prefix``, in no order."""
        raise self._no_results()

    def _no_results(self) -> Unsupported:
        return Unsupported(
            f"{self.guarantees.backend} keeps no results, so that nothing can be done just once there [{self.address}]",
            backend=self.address,
        )

    def close(self) -> None:  # noqa: B027 - there may be nothing to end
        """Ends connections and threads. Claims that are still open are the caller's to end before."""

    def after_fork(self) -> None:  # noqa: B027 - or to drop
        """In a forked child: drop what was inherited without a word to the store, be ready for use."""

    def native(self) -> AsyncBackend | None:
        """An async twin for the running event loop, or None to be run in worker threads."""
        return None


class AsyncBackend(Protocol):
    """`SyncBackend` for an event loop. Renewal stays with the watchdog thread, on the sync one."""

    @property
    def shields(self) -> bool:
        """True if no cancel scope cuts `release` and `withdraw` short, so that the core need not shield them."""
        ...

    async def acquire(self, claim: Claim, deadline: float) -> Grant | Busy | Done: ...
    async def watch(self, busy: Busy, wake: Wake, deadline: float) -> Subscription: ...
    async def withdraw(self, claim: Claim, deadline: float, *, in_flight: bool) -> None: ...
    async def extend(self, grant: Grant, ttl: float, deadline: float) -> Renewal: ...
    async def release(self, grant: Grant, deadline: float) -> bool: ...
    async def revoke(self, key: str, token: int, deadline: float) -> bool: ...
    async def inspect(self, key: str, deadline: float) -> Inspection: ...
    async def list(self, prefix: str, deadline: float) -> Sequence[Inspection]: ...
    async def aclose(self) -> None: ...


class AsyncResults(AsyncBackend, Protocol):
    """A store of `SyncBackend.results` for an event loop."""

    async def complete(self, grant: Grant, record: bytes, keep: float, deadline: float) -> bool: ...
    async def recorded(self, key: str, deadline: float) -> tuple[bytes, float | None] | None: ...
    async def forget(self, key: str, deadline: float) -> bool: ...
    async def records(self, prefix: str, deadline: float) -> Sequence[str]: ...
